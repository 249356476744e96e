"""The exercises of lesson 02: a code made of clock hands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach import inverse_frequencies, sinusoidal
from rope_teach.course.exercises import (
    Wrong,
    as_tensor,
    close,
    exercise,
    expect,
    number,
)


@exercise(
    "2.1",
    "A hand for a hundred tokens",
    difficulty=1,
    minutes=3,
    hints=(
        "`wavelengths(theta)` gives the number of tokens in a full turn of each hand.",
        "Subtract 100 from the wavelengths, drop the signs, and find the smallest: "
        "`.abs().argmin()`.",
    ),
    solution="""
theta = inverse_frequencies(64)
hand_number = (wavelengths(theta) - 100).abs().argmin()
""",
    why="Hand 10 needs 111.7 tokens for a full turn, hand 9 needs 83.8. Each hand "
    "takes 1.33 times as long as the one before it.",
)
def a_hand_for_a_hundred_tokens(hand_number: Any) -> str:
    got = number(hand_number)
    expect(
        got not in (20, 21),
        f"{got:g} counts features. Features 20 and 21 are the sine and the cosine of "
        "one hand. Which hand?",
    )
    expect(
        got != 9,
        "Hand 9 needs 83.8 tokens, 16 less than 100. Is the neighbour on the other "
        "side of 100 closer?",
    )
    expect(
        got != 16,
        "You looked for a speed of 1/100. A hand with that speed has moved 1 radian "
        "after 100 tokens. A full turn is 2π radians.",
    )
    expect(
        not 100 < got < 120,
        f"{got:g} is a wavelength. The question asks which hand has it.",
    )
    expect(
        got in range(32),
        f"64 features make 32 hands, numbered 0 to 31. There is no hand {got:g}.",
    )
    turn = 2 * torch.pi / inverse_frequencies(64)[int(got)]
    expect(
        got == 10,
        f"Hand {got:g} needs {turn:,.1f} tokens for a full turn. "
        "Hand 0 is the fastest.",
    )
    return "Hand 10 needs 111.7 tokens. It sits in features 20 and 21 of the code."


@exercise(
    "2.2",
    "Build the table",
    difficulty=2,
    minutes=6,
    hints=(
        "Start with the angles: every position times every speed. `positions[:, None] "
        "* theta` makes a table of them.",
        "Make an empty table, `torch.empty(len(positions), dim)`, then fill every "
        "second column: `code[:, 0::2]` with sines, `code[:, 1::2]` with cosines.",
    ),
    solution='''
def build(positions, dim, base):
    """Return the code of each position: (positions, dim)."""
    theta = base ** (-2 * torch.arange(dim // 2) / dim)
    angle = positions[:, None] * theta
    code = torch.empty(len(positions), dim)
    code[:, 0::2] = angle.sin()
    code[:, 1::2] = angle.cos()
    return code
''',
    why="One row per position, and one pair of columns per hand: its sine, then its "
    "cosine. This is `sinusoidal(positions, dim, base)`.",
)
def build_the_table(build: Callable[..., Any]) -> str:
    positions = torch.tensor([0, 1, 7, 50])
    for dim, base in ((8, 10_000.0), (6, 100.0)):
        got = as_tensor(build(positions, dim, base))
        expect(
            tuple(got.shape) != (dim, len(positions)),
            "Rows and columns are swapped: make one row per position.",
        )
        expect(
            tuple(got.shape) == (len(positions), dim),
            f"{len(positions)} positions and {dim} features make a table of shape "
            f"({len(positions)}, {dim}), and yours has {tuple(got.shape)}.",
        )
        right = sinusoidal(positions, dim, base, torch.float64)
        _name_a_wrong_table(got, right, positions, dim, base)
        expect(
            close(got, right),
            f"For dim {dim} and base {base:g}, the row of position 1 should be "
            f"{_listed(right[1])}; yours is {_listed(got[1])}.",
        )
    return "That is the whole table of the 2017 paper."


def _name_a_wrong_table(
    got: Tensor, right: Tensor, positions: Tensor, dim: int, base: float
) -> None:
    """Raise :class:`Wrong` if ``got`` is the table that a known misconception gives."""
    pair = torch.arange(dim // 2, dtype=torch.float64)
    theta = inverse_frequencies(dim, base)

    def built(speeds: Tensor) -> Tensor:
        angle = positions[:, None] * speeds
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)

    sines, cosines = right[:, 0::2], right[:, 1::2]
    expect(
        base == 10_000.0 or not close(got, built(inverse_frequencies(dim)), 1e-3),
        f"With base {base:g} you computed the table of base 10,000. The base is an "
        "argument.",
    )
    every = torch.arange(dim, dtype=torch.float64)
    alone = positions[:, None] * base ** (-every / dim)
    misconceptions = (
        (
            torch.where(every % 2 == 0, alone.sin(), alone.cos()),
            "Every feature turns at its own speed. The sine and the cosine of one hand "
            "share an angle.",
        ),
        (
            torch.cat([sines, cosines], -1),
            "All sines come first, then all cosines. Some code does that. Here the two "
            "numbers of a hand sit side by side.",
        ),
        (
            torch.stack([cosines, sines], -1).flatten(-2),
            "Each pair has its cosine first. The table has the sine first.",
        ),
        (
            built(theta.flip(0)),
            "Your hands run from slow to fast. Hand 0 is the fastest.",
        ),
        (
            built(1 / theta),
            "Your hands get faster and faster: the minus sign in the exponent is "
            "missing.",
        ),
        (
            built(base ** (-pair / dim)),
            "The exponent is -2i/d, where i counts hands. Yours is -i/d, so the "
            "slowest hand is far too fast.",
        ),
        (
            built(base ** (-4 * pair / dim)),
            "The 2 of -2i/d is in there twice: i counts hands, not features.",
        ),
        (
            built(theta * 2 * torch.pi),
            "Speeds are already in radians per token. A factor of 2π turns hand 0 all "
            "the way round with every token, so it never appears to move.",
        ),
    )
    for wrong, message in misconceptions:
        if close(got, wrong, 1e-3):
            raise Wrong(message)


def _listed(row: Tensor) -> str:
    return f"[{', '.join(f'{value:.3f}' for value in row.tolist())}]"


@exercise(
    "2.3",
    "Later, without a table",
    difficulty=3,
    minutes=7,
    hints=(
        "Take one hand at a time. It is at angle φ, and turns further by steps · θ. "
        "You know sin φ and cos φ, but not φ.",
        "sin(φ + α) = sin φ cos α + cos φ sin α, and cos(φ + α) = cos φ cos α - "
        "sin φ sin α. Take `code[0::2]` as sin φ and `code[1::2]` as cos φ.",
    ),
    solution='''
def later(code, steps, theta):
    """Return the code of a position `steps` tokens after this one's."""
    sin, cos = code[0::2], code[1::2]
    turn = steps * theta
    moved = torch.empty_like(code)
    moved[0::2] = sin * turn.cos() + cos * turn.sin()
    moved[1::2] = cos * turn.cos() - sin * turn.sin()
    return moved
''',
    why="Every hand turns by its own angle, steps · θ. Where the code started does not "
    "matter: the position itself never appears.",
)
def later_without_a_table(later: Callable[..., Any]) -> str:
    theta = inverse_frequencies(8)
    for position, steps in ((5, 3), (40, -6), (1000, 25)):
        places = torch.tensor([position, position + steps, position - steps])
        start, right, back = sinusoidal(places, 8, dtype=torch.float64)
        given = start.clone()
        got = as_tensor(later(given, steps, theta))
        what = f"{steps} tokens after position {position}"
        expect(
            not close(given, right),
            "You wrote into the code that you were given. The caller still needs it: "
            "return a new one.",
        )
        expect(
            got.shape == start.shape,
            "A code of 8 features goes in, and 8 features should come out; yours has "
            f"shape {tuple(got.shape)}.",
        )
        expect(
            not close(got, back),
            "Your hands turn the other way: that is the code of an earlier position. "
            "The sine comes first, and the minus sign belongs to the new cosine.",
        )
        expect(not close(got, start), "The code came back unchanged.")
        expect(
            not close(got, start + sinusoidal(torch.tensor(steps), 8)),
            "You added the code of `steps`. Angles add up; sines and cosines do not.",
        )
        one = sinusoidal(torch.tensor(position + 1), 8)
        expect(
            not close(got, one),
            "Your hands turn by one token, whatever `steps` says.",
        )
        expect(
            close(got, right),
            f"{what}, the code should be {_listed(right)}; yours is {_listed(got)}.",
        )
    return "The same turn at every position: you never had to know where the token was."


@exercise(
    "2.4",
    "Read the clock",
    difficulty=2,
    minutes=5,
    hints=(
        "Which row of the table is closest to the noisy code?",
        "`(table - noisy).norm(dim=-1)` is the distance to every row. The position is "
        "the index of the smallest: `.argmin()`.",
    ),
    solution='''
def read(noisy, table):
    """Return the position whose code was `noisy` before the noise."""
    return (table - noisy).norm(dim=-1).argmin()
''',
    why="The codes are far enough apart to survive noise of 0.3 in each feature. All "
    "codes have the same length, so the largest dot product finds the same row.",
)
def read_the_clock(read: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(0)
    for rows, position in ((300, 0), (300, 37), (300, 211), (500, 499)):
        table = sinusoidal(torch.arange(rows), 64)
        noisy = table[position] + 0.3 * torch.randn(64, generator=generator)
        distances = (table - noisy).norm(dim=-1)
        found = as_tensor(read(noisy, table))
        expect(
            tuple(found.shape) != (64,),
            "You returned a code. The question asks for its position, one number.",
        )
        got = number(found)
        expect(
            got != (table - noisy).abs().argmin() or got == position,
            f"{got:g} is a place among all the numbers of the table, and the nearest "
            "number is not the nearest row. First compute one distance per row: "
            "norm(dim=-1).",
        )
        expect(
            abs(got - distances.min().item()) > 1e-4 or got == position,
            "You returned the distance to the nearest code. Which row is it? Use "
            "`argmin` instead of `min`.",
        )
        expect(
            got != distances.argmax(),
            "That row is the farthest away: look for the smallest distance.",
        )
        one_hand = (table[:, :2] - noisy[:2]).norm(dim=-1).argmin()
        expect(
            got != one_hand or got == position,
            "You looked at hand 0 alone. It comes round about every 6 tokens. Compare "
            "whole rows.",
        )
        expect(
            got == position,
            f"The noisy code of position {position} was read as {got:g}.",
        )
    return (
        "Fast hands tell nearby positions apart, slow hands distant ones. Together "
        "they can be read through the noise."
    )
