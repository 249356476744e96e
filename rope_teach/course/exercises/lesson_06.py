"""The exercises of lesson 06: the complex form."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises import Wrong, exercise, expect, expect_shape, number
from rope_teach.frequencies import inverse_frequencies
from rope_teach.rotation import rotate_complex
from rope_teach.tables import phases


def _as_complex(value: Any) -> Tensor:
    """A student's value as a complex128 tensor, or :class:`Wrong`."""
    if value is None or value is ...:
        raise Wrong("Your function returns nothing. Is there a `return`?")
    try:
        return torch.as_tensor(value).detach().to(torch.complex128)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"Expected numbers, got {type(value).__name__}.") from None


def _close(got: Tensor, expected: Tensor | complex, tolerance: float = 1e-4) -> bool:
    return bool(((got - expected).abs() <= tolerance).all())


def _pairs(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(*shape, generator=generator, dtype=torch.complex128)


@exercise(
    "6.1",
    "One number for two turns",
    difficulty=1,
    minutes=2,
    hints=(
        "Turning by 3 tokens is one phase, turning by 4 more is another. What happens "
        "to their angles in a product?",
        "The angles add: 7 tokens of 0.2 radians. Write the phase with cmath.exp.",
    ),
    solution="number = cmath.exp(1j * 7 * 0.2)",
    why="Multiplying phases adds their angles: 0.6 and 0.8 make 1.4.",
)
def one_number_for_two_turns(answer: Any) -> str:
    got = _as_complex(answer)
    expect(got.numel() == 1, f"Expected one number, got {got.numel()}.")
    z = complex(got.item())
    right = cmath.exp(1.4j)
    for wrong, message in (
        (
            1.4,
            "1.4 is the angle. The number that turns by that angle is a phase: e to "
            "the iφ.",
        ),
        (1.4j, "1.4i is the exponent, not a phase: it would stretch the pair by 1.4."),
        (math.exp(1.4), "Without the i this is a plain number: it stretches by 4."),
        (
            cmath.exp(0.6j) + cmath.exp(0.8j),
            "You added the two phases. Their angles add when the phases are "
            "multiplied; this sum has length nearly 2.",
        ),
        (
            cmath.exp(0.6j * 0.8),
            "You multiplied the angles. A product of phases adds them.",
        ),
        (
            cmath.exp(2.4j),
            "This is 12 tokens: you multiplied 3 by 4. One turn follows the other, so "
            "you add the tokens.",
        ),
        (
            cmath.exp(7j),
            "This turns by 7 radians. The hand turns by 0.2 radians per token.",
        ),
        (
            right.conjugate(),
            "This turns back by 7 tokens: the minus sign makes it the conjugate.",
        ),
    ):
        expect(abs(z - wrong) > 1e-3, message)
    expect(
        abs(abs(z) - 1) < 1e-3,
        f"Your number has length {abs(z):.3f}, so it stretches the pair. A phase has "
        "length 1.",
    )
    expect(
        abs(z - right) < 1e-3,
        f"Your phase turns by {cmath.phase(z):.2f} radians. Seven tokens are 1.4.",
    )
    return "Two turns, one number. A table of phases stores exactly this for each hand."


@exercise(
    "6.2",
    "The complex form, for any type",
    difficulty=2,
    minutes=5,
    hints=(
        "Pairs of neighbours: unflatten(-1, (-1, 2)), then view_as_complex. What did "
        "that say about bfloat16?",
        "Start with x.float(), multiply, view_as_real, flatten(-2), and end with "
        ".to(x.dtype).",
    ),
    solution='''
def turn_any(x, turn_by):
    """Return x turned, in the dtype of x."""
    z = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(z * turn_by).flatten(-2).to(x.dtype)
''',
    why="There is no complex bfloat16, so multiply the pairs in float32 and round "
    "once, at the end.",
)
def the_complex_form(turn_any: Callable[..., Any]) -> str:
    for seq, head_dim in ((5, 8), (3, 6)):
        table = phases(torch.arange(1, seq + 1), inverse_frequencies(head_dim))
        x = torch.view_as_real(_pairs(seq, head_dim // 2)).flatten(-2).float()
        _judge_turn(turn_any(x, table), x, table)
        try:
            got = turn_any(x.bfloat16(), table)
        except RuntimeError as error:
            raise Wrong(
                f"float32 is right. bfloat16 stops with: {str(error).split('.')[0]}. "
                "Convert to float32 before the complex view."
            ) from None
        expect(
            isinstance(got, Tensor) and got.dtype == torch.bfloat16,
            f"For bfloat16 you returned {getattr(got, 'dtype', type(got))}. The caller "
            "expects the dtype that went in.",
        )
        right = rotate_complex(x.bfloat16().float(), table)
        expect(
            _close(got.double(), right.double(), 0.05),
            "float32 is right, bfloat16 is not.",
        )
    return (
        "One multiplication in float32, rounded once. This is how the package turns "
        "neighbouring features."
    )


def _judge_turn(got: Any, x: Tensor, table: Tensor) -> None:
    expect(got is not None, "Your function returns nothing. Is there a `return`?")
    expect(
        isinstance(got, Tensor) and not got.is_complex(),
        "The result is still complex. view_as_real gives you the two parts again.",
    )
    expect(
        got.shape != (*table.shape, 2),
        f"The result has shape {tuple(got.shape)}: the pairs still have their own "
        "axis. flatten(-2) puts them side by side.",
    )
    expect_shape(got, tuple(x.shape))
    right = rotate_complex(x, table)
    expect(
        not _close(got, rotate_complex(x, table.conj())),
        "You turn clockwise: the table was conjugated.",
    )
    reordered = torch.cat([right[..., 0::2], right[..., 1::2]], -1)
    expect(
        not _close(got, reordered),
        "The right numbers in the wrong order: all real parts, then all imaginary "
        "ones. Each pair belongs side by side.",
    )
    halves = torch.complex(*x.chunk(2, -1)) * table
    side_by_side = torch.view_as_real(halves).flatten(-2)
    expect(
        not _close(got, torch.cat([halves.real, halves.imag], -1))
        and not _close(got, side_by_side),
        "You paired feature i with feature i + d/2: lesson 07. Here the pairs are "
        "neighbours.",
    )
    expect(not _close(got, x), "x came back unchanged: nothing is turned.")
    expect(_close(got, right), "This is not each pair of x times turn_by.")


@exercise(
    "6.3",
    "Take the turn back",
    difficulty=1,
    minutes=3,
    hints=(
        "Which number turns by the opposite angle?",
        "The conjugate of a phase. In torch: turn_by.conj().",
    ),
    solution='''
def take_back(z, turn_by):
    """Return the pairs that z was made from."""
    return z * turn_by.conj()
''',
    why="A phase times its conjugate is 1. So the conjugate undoes a turn. It is also "
    "the turn of the gradient in lesson 05.",
)
def take_the_turn_back(take_back: Callable[..., Any]) -> str:
    for seq, hands in ((5, 4), (3, 2)):
        table = phases(
            torch.arange(1, seq + 1), inverse_frequencies(2 * hands), torch.complex128
        )
        pairs = _pairs(seq, hands)
        z = pairs * table
        got = _as_complex(take_back(z, table))
        expect_shape(got, (seq, hands))
        expect(
            not _close(got, z * table),
            "You turned again in the same direction. Turning back needs the opposite "
            "angle.",
        )
        expect(
            not _close(got, z.conj() * table) and not _close(got, pairs.conj()),
            "You conjugated the pairs: that mirrors them. Conjugate the phases.",
        )
        expect(
            not _close(got, z * -table),
            "-turn_by adds half a turn. The opposite angle is the conjugate.",
        )
        expect(not _close(got, z), "z came back unchanged: nothing is undone.")
        expect(_close(got, pairs), "These are not the pairs before the turn.")
    return (
        "The conjugate turns back. That holds only for length 1: otherwise the inverse "
        "is a different number."
    )


@exercise(
    "6.4",
    "The distance that a pair likes best",
    difficulty=3,
    minutes=5,
    hints=(
        "The score is the real part of q k̄ times a phase. A real part is largest when "
        "the number points right, at angle 0.",
        "The angle of q k̄, plus (m - n) θ, must be 0. So n - m is that angle divided "
        "by θ. cmath.phase gives an angle between -π and π.",
    ),
    solution='''
def best_distance(q, k, theta):
    """Return the distance n - m with the largest score."""
    return cmath.phase(q * k.conjugate()) / theta
''',
    why="The content of q and k sets the angle at distance 0, and the hand changes it "
    "from there. The best distance is where the key has caught up with the query.",
)
def best_distance(best: Callable[..., Any]) -> str:
    cases = ((1 + 0.4j, 0.8 - 0.5j, 0.2), (0.3 + 1j, -0.2 - 0.9j, 0.05), (1, 1j, 1.0))
    for q, k, theta in cases:
        q, k = complex(q), complex(k)
        got, right = number(best(q, k, theta)), cmath.phase(q * k.conjugate()) / theta
        what = f"For q = {q:g}, k = {k:g}, theta = {theta}"
        expect(
            abs(got - right * theta) > 1e-3 or theta == 1.0,
            f"{what} you gave {got:.3f}: the angle, in radians. How many tokens does "
            "the hand need to turn that far?",
        )
        expect(
            abs(got + right) > 1e-3,
            f"{what} you gave {got:.2f}: right except for the sign, so that is m - n. "
            "The question asks for n - m.",
        )
        expect(
            abs(got - cmath.phase(q * k) / theta) > 1e-3,
            f"{what} you gave {got:.2f}: the angle of q k, without the conjugate. The "
            "angle between them is a difference of angles.",
        )
        turns = (got - right) * theta / (2 * math.pi)
        expect(
            abs(turns - round(turns)) > 1e-4 or round(turns) == 0,
            f"{what} you gave {got:.2f}: just as good, but {abs(round(turns))} full "
            "turn(s) further from 0.",
        )
        score = (q * k.conjugate() * cmath.exp(-1j * got * theta)).real
        expect(
            abs(got - right) < 1e-3,
            f"{what} the score at {got:.2f} is {score:.3f}. A different distance gives "
            f"{abs(q) * abs(k):.3f}.",
        )
    return (
        "The content chooses the distance, and the hand measures it. A head that looks "
        "at the previous token needs q and k at such an angle."
    )


@exercise(
    "6.5",
    "How far apart were they?",
    difficulty=4,
    minutes=7,
    hints=(
        "second times the conjugate of first has the angle (n - m) θ for each hand. "
        "Which hand has not yet made half a turn after 1000 tokens?",
        "The last hand is the slowest. Get its angle with .angle(), divide by its "
        "speed, and round.",
    ),
    solution='''
def apart(first, second, inv_freq):
    """Return n - m."""
    angle = (second * first.conj()).angle()
    return round(float(angle[-1] / inv_freq[-1]))
''',
    why="Every hand gives the distance up to full turns. The slowest has not made one, "
    "so its angle divided by its speed is the distance.",
)
def how_far_apart(apart: Callable[..., Any]) -> str:
    inv_freq = inverse_frequencies(8)
    pairs = _pairs(4)
    for m, n in ((4, 6), (10, 310), (900, 50), (2, 1002), (7, 7)):
        first, second = (
            pairs * phases(torch.tensor(p), inv_freq, torch.complex128) for p in (m, n)
        )
        got = number(apart(first, second, inv_freq))
        angle = (second * first.conj()).angle()
        product = (second * first).angle()
        what = f"Turned at {m} and {n}"
        expect(
            got == n - m or round(got) != n - m,
            f"{what}, you found {got:g}. Positions are whole numbers: round.",
        )
        expect(
            got == n - m or got != m - n,
            f"{what}, you found {got:g}: the right distance with the wrong sign. Which "
            "of the two is conjugated?",
        )
        expect(
            got == n - m or abs(got - (angle[0] / inv_freq[0]).item()) > 0.51,
            f"{what}, you found {got:g}. The first hand is fast: it has made full "
            "turns, and its angle does not show them.",
        )
        expect(
            got == n - m or abs(got - (product[-1] / inv_freq[-1]).item()) > 0.51,
            f"{what}, you found {got:g}. Without the conjugate the angles add, and the "
            "content's own angle stays in the result.",
        )
        expect(
            got == n - m or abs(got - angle[-1].item()) > 1e-3,
            f"{what}, you found {got:.3f}: an angle in radians. Divide by the speed.",
        )
        expect(got == n - m, f"{what}, the distance is {n - m}; you found {got:g}.")
    return (
        "The slow hand is enough while its angle is exact. When angles are rounded, it "
        "gives the rough distance, and the faster hands give the last digit."
    )
