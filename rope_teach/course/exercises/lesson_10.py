"""The exercises of lesson 10: positions and angles in low precision."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import close, difference
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor, number
from rope_teach.frequencies import inverse_frequencies
from rope_teach.tables import cos_sin


@exercise(
    "10.1",
    "The first collision",
    difficulty=2,
    minutes=4,
    hints=(
        "Store the positions 0, 1, 2, ... in dtype. Where do two neighbours become "
        "equal?",
        "stored = torch.arange(5000).to(dtype); compare stored[:-1] with stored[1:], "
        "and take the first place where they are equal.",
    ),
    solution='''
def first_collision(dtype):
    """Return the first m that dtype stores as it stores m + 1."""
    stored = torch.arange(5000).to(dtype)
    return (stored[:-1] == stored[1:]).nonzero()[0].item()
''',
    why="With p bits every whole number up to 2 to the power p is stored exactly. The "
    "next one needs an extra bit, lies midway, and is rounded down: 2**8 and 2**11 "
    "here.",
)
def the_first_collision(first_collision: Callable[..., Any]) -> str:
    for dtype, bits in ((torch.bfloat16, 8), (torch.float16, 11)):
        try:
            answer = first_collision(dtype)
        except IndexError as error:
            if bits == 8:
                raise
            raise Wrong(
                "For bfloat16 you find the right position. For float16, where "
                f"positions collide later, your code stops with IndexError: {error}."
            ) from None
        expect(
            answer is not None,
            f"For {dtype} your function returns nothing. Is there a `return` in every "
            "case, and does the search go far enough?",
        )
        got = number(answer)
        first = 2**bits
        expect(
            got != first + 1,
            f"{dtype}: {first + 1} is the position that was rounded. The pair is "
            f"({first}, {first + 1}), and m is the first of the two.",
        )
        expect(
            got != 2 ** (bits - 1),
            f"{dtype}: from {got:.0f} on the steps are 1 wide, so every whole number "
            "is still there. Positions collide when the steps are wider.",
        )
        expect(
            got != torch.finfo(dtype).max,
            f"{dtype}: that is the largest number. Range is not precision: gaps open "
            "long before that.",
        )
        expect(
            bits == 8 or got != 256,
            "256 is right for bfloat16. float16 keeps more bits of precision, and "
            "spends fewer on its range.",
        )
        expect(
            got == first,
            f"{dtype} stores {got:.0f} as {_stored(got, dtype):.0f}, and {got + 1:.0f} "
            f"as {_stored(got + 1, dtype):.0f}. Look for the first equal pair.",
        )
    return (
        "256 and 2048: a type with p bits counts up to 2 to the power p, then skips "
        "numbers. float32 gets to 16,777,216."
    )


def _stored(m: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(m, dtype=torch.float64).to(dtype))


@exercise(
    "10.2",
    "Pairs that collide",
    difficulty=3,
    minutes=5,
    hints=(
        "Which two powers of two does each number lie between? From 256 to 512 the "
        "stored numbers are 2 apart, from 512 on 4, from 1024 on 8, from 2048 on 16.",
        "Round each number to the nearest multiple of its step. 301 lies midway: "
        "300 is 150 steps of 2 and 302 is 151, so it goes to 300, the even one.",
    ),
    solution='colliding = "BEF"',
    why="The stored numbers are A: 199, 200; B: 300, 300; C: 300, 302; D: 1024, 1032; "
    "E: 1024, 1024; F: 4096, 4096.",
)
def pairs_that_collide(letters: Any) -> str:
    listed = isinstance(letters, (list, tuple, set, frozenset, dict))
    text = " ".join(map(str, letters)) if listed else str(letters)
    words = re.findall(r"[A-Z]+", text.upper())
    got = set("".join(word for word in words if word != "AND"))
    expect(
        bool(words) and not re.search(r"\d", text) and got <= set("ABCDEF"),
        'Answer with letters from A to F, for example "AC".',
    )
    expect(
        "A" not in got,
        "A: 199 and 200 are below 256, where bfloat16 holds every whole number.",
    )
    expect(
        got != set("BCDEF"),
        "B, C, D, E and F are all closer than a step. But rounding goes to the nearest "
        "stored number, and two close numbers can lie on either side of the middle: "
        "301 and 302, or 1026 and 1030.",
    )
    expect(
        got != set("BDF"),
        "B, D and F would collide if the surplus bits were cut off. But the hardware "
        "rounds to the nearest stored number: 1023 goes up to 1024, and 1030 to 1032.",
    )
    expect(
        got != set("CEF"),
        "C, E and F would collide if midway numbers were rounded up. But they go to "
        "the neighbour whose last stored bit is 0: 301 goes down to 300.",
    )
    expect(
        "E" in got,
        "E: 1023 and 1027 lie on either side of a power of two, and both are nearest "
        "to 1024.",
    )
    for letter, message in (
        ("B", "B: 301 lies midway between 300 and 302. 300 = 100101100 in binary, and "
"its last stored bit is 0."),
        ("F", "F: from 2048 on the stored numbers are 16 apart: 4080, 4096. Where does "
              "4090 go?"),
    ):  # fmt: skip
        expect(letter in got, message)
    expect("C" not in got, "C: 302 is stored exactly, and 301 goes down to 300.")
    expect(
        "D" not in got,
        "D: from 1024 on the stored numbers are 8 apart. 1028 is the middle, and 1026 "
        "and 1030 lie on either side of it.",
    )
    return (
        "Rounding to even makes uneven groups: from 256 to 512, three tokens share a "
        "position and the next one has its own."
    )


@exercise(
    "10.3",
    "Speeds that survive",
    difficulty=3,
    minutes=5,
    hints=(
        "Which tensors of a module does .bfloat16() cast? Look at how the module Naive "
        "told torch about its tensor.",
        "It casts parameters and buffers. A tensor that is assigned as an ordinary "
        "attribute, self.inv_freq = inv_freq, is neither.",
    ),
    solution='''
def steady(inv_freq):
    """Return an nn.Module with a robust attribute inv_freq."""
    module = torch.nn.Module()
    module.inv_freq = inv_freq
    return module
''',
    why="An ordinary attribute is neither a parameter nor a buffer, so no cast finds "
    "it. It does not follow .to(device) either: move it where it is used.",
)
def speeds_that_survive(steady: Callable[..., Any]) -> str:
    for inv_freq in (inverse_frequencies(64), inverse_frequencies(16, 5e5)):
        for cast in ("bfloat16", "half"):
            module = steady(inv_freq.clone())
            expect(module is not None, "Your function returns nothing.")
            expect(
                isinstance(module, nn.Module),
                f"Expected an nn.Module, got {type(module).__name__}.",
            )
            _expect_speeds(module, inv_freq, "before any cast")
            buffers, parameters = dict(module.named_buffers()), [*module.parameters()]
            own = steady(inv_freq.clone())
            getattr(own, cast)()
            fixes_itself = close(getattr(own, "inv_freq", 0), inv_freq, 1e-9)
            getattr(nn.Sequential(module), cast)()
            got = as_tensor(module.inv_freq)
            if close(got, inv_freq, 1e-9):
                continue
            expect(
                not fixes_itself,
                f"The speeds survive .{cast}() on the module itself, but not on a "
                "model that contains it. A model does not call its children's "
                f".{cast}(): it goes through their parameters and buffers.",
            )
            expect(
                not parameters,
                "A parameter is cast like every weight, trained or not.",
            )
            expect(
                "inv_freq" not in buffers or "inv_freq" in module.state_dict(),
                "persistent=False keeps a buffer out of the state dict. It is cast "
                "like any other.",
            )
            expect(
                "inv_freq" not in buffers,
                f"A buffer is cast: .{cast}() goes through every floating-point "
                "parameter and buffer. How else can a module hold a tensor?",
            )
            raise Wrong(
                f"After .{cast}() the speeds have type {module.inv_freq.dtype}, but "
                "their digits are lost. Casting back cannot bring them back."
            )
    return (
        "No cast can find them. The package goes one step further and recomputes its "
        "speeds from the base."
    )


def _expect_speeds(module: nn.Module, inv_freq: Tensor, when: str) -> None:
    got = getattr(module, "inv_freq", None)
    if not isinstance(got, Tensor):
        expect(got is not None, "The module has no attribute inv_freq.")
        raise Wrong(
            f"The module's inv_freq is of type {type(got).__name__}. A model "
            "multiplies it by positions, so it must be a tensor."
        )
    expect(
        close(got, inv_freq, 1e-2),
        f"The module's inv_freq is not the one that was given, {when}: these are "
        "different speeds. Keep the tensor that the function receives.",
    )
    off = float((as_tensor(got) - inv_freq).abs().max())
    expect(
        off <= 1e-9,
        f"Digits are missing {when}: inv_freq has type {got.dtype}, and differs from "
        f"the one that was given by up to {off:.0e}.",
    )


@exercise(
    "10.4",
    "Two small tables for a million",
    difficulty=4,
    minutes=8,
    hints=(
        "Turning by A and then by B is turning by A + B. What are the cosine and the "
        "sine of a sum?",
        "a, b = m // 1024, m % 1024. Then cos(A + B) = cos A cos B - sin A sin B, and "
        "sin(A + B) = sin A cos B + cos A sin B.",
    ),
    solution='''
def combine(m, fine, coarse):
    """Return cos and sin at position m, from the two tables."""
    a, b = m // 1024, m % 1024
    (cos_b, sin_b), (cos_a, sin_a) = [t[b] for t in fine], [t[a] for t in coarse]
    return cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b
''',
    why="Both rows are right to one float32 rounding, and multiplying numbers below 1 "
    "does not make that error grow. No large angle is ever computed.",
)
def two_small_tables(combine: Callable[..., Any]) -> str:
    rows = torch.arange(1024)
    generator = torch.Generator().manual_seed(10)
    exponents = 3.5 + 2.5 * torch.rand(3, generator=generator, dtype=torch.float64)
    bases = [1e4, *(10**exponents).tolist()]
    places = (1_000_000, 777_777, 5_000, 1_048_574)
    for m, base in zip(places, bases, strict=True):
        inv_freq = inverse_frequencies(64, base)
        fine, coarse = cos_sin(rows, inv_freq), cos_sin(1024 * rows, inv_freq)
        answer = untouched(combine, m, fine, coarse)
        expect(
            not isinstance(answer, Tensor) or not answer.is_complex(),
            "That is one complex tensor. Return its two parts: cos, then sin.",
        )
        got = as_tensor(answer)
        expect(
            tuple(got.shape) == (2, 32),
            "Return two tensors of 32 numbers, cos and sin; yours have shape "
            f"{tuple(got.shape)}.",
        )
        (cos_a, sin_a), (cos_b, sin_b) = (
            [table[row].double() for table in tables]
            for tables, row in ((coarse, m // 1024), (fine, m % 1024))
        )
        known = {
            "You added the cosines. Turns add up, but cos(A + B) is not cos A + "
            "cos B.": (cos_a + cos_b, sin_a + sin_b),
            "You turned only by 1024 a. The b tokens after it are missing.": (
                cos_a,
                sin_a,
            ),
            "You turned only by b. The 1024 a tokens before it are missing.": (
                cos_b,
                sin_b,
            ),
            "You multiplied cosine by cosine and sine by sine. A turn mixes the two: "
            "each result needs both.": (cos_a * cos_b, sin_a * sin_b),
            "A sign is wrong: you turned back by b. That is position 1024 a - b.": (
                cos_a * cos_b + sin_a * sin_b,
                sin_a * cos_b - cos_a * sin_b,
            ),
            "Sine and cosine are swapped: the first result must be the cosine.": (
                sin_a * cos_b + cos_a * sin_b,
                cos_a * cos_b - sin_a * sin_b,
            ),
            "a and b are swapped: m // 1024 is the row in coarse, m % 1024 the row in "
            "fine.": _at(1024 * (m % 1024) + m // 1024, inv_freq),
        }
        for message, wrong in known.items():
            expect(not close(got, torch.stack(wrong), 1e-5), message)
        right = torch.stack(_at(m, inv_freq))
        for part, good, bad in ((0, "cosine", "sine"), (1, "sine", "cosine")):
            expect(
                not close(got[part], right[part], 1e-5)
                or close(got[1 - part], right[1 - part], 1e-5),
                f"At position {m:,} your {good} is right, but your {bad} is not. "
                + difference(got[1 - part], right[1 - part], 1e-5, axes=("hand",)),
            )
        error = (got - right).abs().max().item()
        angle = torch.tensor(float(m)) * inv_freq.float()
        expect(
            m < 500_000 or not close(got, (angle.cos(), angle.sin()), 1e-3),
            f"That is the float32 angle again: off by {error:.0e} at {m:,}. Do not "
            "multiply position by speed; the tables have already done that.",
        )
        expect(
            error < 1e-6,
            f"At position {m:,} you are off by up to {error:.1g}; two float32 rows, "
            "combined correctly, are off by less than 1e-6. The tables may come from "
            "any bank: use nothing else.",
        )
    return (
        "2048 rows instead of a million, all in float32, and no growing error: float32 "
        "angles would be off by 0.02 here."
    )


def _at(m: int, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    return cos_sin(torch.tensor(m), inv_freq, torch.float64)
