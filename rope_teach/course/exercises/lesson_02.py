"""The exercises of lesson 02: a code made of clock hands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach import inverse_frequencies, sinusoidal
from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import close, expect_close
from rope_teach.course.exercises.student_code import untouched, uses
from rope_teach.course.exercises.values import as_tensor, number


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
        "Hand 16 has a speed of 1/100: it has moved 1 radian after 100 tokens. A full "
        "turn is 2π radians.",
    )
    expect(
        abs(got - 111.7) > 0.1,
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
    found = uses(build, sinusoidal)
    expect(not found, "`sinusoidal` is what this exercise builds. Do without it.")
    cases = (([0, 1, 7, 50], 8, 10_000.0), ([12, 3, 0], 6, 100.0), ([5, 90], 16, 500.0))
    for places, dim, base in cases:
        positions = torch.tensor(places)
        got = as_tensor(untouched(build, positions, dim, base))
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
        if close(got, right):
            continue
        _name_a_wrong_table(got, right, positions, dim, base)
        expect_close(got, right, f"positions {places}, dim {dim}, base {base:g}:")
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
    counted = sinusoidal(torch.arange(len(positions)), dim, base, torch.float64)
    every = torch.arange(dim, dtype=torch.float64)
    alone = positions[:, None] * base ** (-every / dim)
    misconceptions = (
        (
            counted,
            f"Your rows are those of positions 0 to {len(positions) - 1}. The "
            f"positions asked for are {positions.tolist()}.",
        ),
        (
            built(theta).flip(0),
            "The rows come in reverse order.",
        ),
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
    cases = ((5, 3, 8), (40, -6, 8), (1000, 25, 6), (3, 700, 12), (17, 1, 4))
    for position, steps, dim in cases:
        theta = inverse_frequencies(dim)
        places = torch.tensor([position, position + steps, position - steps])
        start, right, back = sinusoidal(places, dim, dtype=torch.float64)
        got = as_tensor(untouched(later, start.clone(), steps, theta))
        what = f"{steps} tokens after position {position}, theta {dim // 2} speeds:"
        expect(
            got.shape == start.shape,
            f"A code of {dim} features goes in, and {dim} features should come out; "
            f"yours has shape {tuple(got.shape)}.",
        )
        if close(got, right):
            continue
        _name_a_wrong_turn(got, start, right, back, position, steps)
        expect_close(got, right, what)
    return "The same turn at every position: you never had to know where the token was."


def _name_a_wrong_turn(
    got: Tensor, start: Tensor, right: Tensor, back: Tensor, position: int, steps: int
) -> None:
    """Raise :class:`Wrong` if ``got`` is what a known misconception gives."""
    dim = len(start)
    expect(
        steps > 0 or not close(got, back),
        f"With steps = {steps} you went {-steps} tokens further on. A negative number "
        "of steps goes back.",
    )
    expect(
        not close(got, back),
        "Your hands turn the other way: this is the code of a position "
        f"{steps} tokens earlier. The sine comes first, and the minus sign belongs to "
        "the new cosine.",
    )
    expect(
        not close(got, start),
        f"With steps = {steps} the code came back unchanged."
        + " A negative number of steps goes back." * (steps < 0),
    )
    expect(
        not close(got, start + sinusoidal(torch.tensor(steps), dim)),
        "You added the code of `steps`. Angles add up; sines and cosines do not.",
    )
    for far, message in (
        (1, "Your hands turn by one token, whatever `steps` says."),
        (steps + 1, "Your hands turn one token too far."),
        (steps - 1, "Your hands turn one token too little."),
        (2 * steps, "Your hands turn twice as far as asked."),
    ):
        expect(not close(got, sinusoidal(torch.tensor(position + far), dim)), message)
    expect(
        not close(got, right.view(-1, 2).flip(-1).flatten()),
        "The right hands, but each pair has its cosine first. A code has the sine "
        "first.",
    )
    expect(
        not close(got, torch.cat([right[0::2], right[1::2]])),
        "The right numbers in another order: the two of a hand belong side by side.",
    )
    expect(
        not close(got, torch.cat([right[:2], start[2:]])),
        "Only hand 0 has turned. Each hand turns, by its own speed.",
    )


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
    why="The codes are far enough apart to survive noise of 0.2 in each feature. All "
    "codes have the same length, so the largest dot product finds the same row.",
)
def read_the_clock(read: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(0)
    cases = (
        (300, 0),
        (300, 37),
        (300, 211),
        (500, 499),
        (500, 256),
        (40, 21),
        (900, 3),
    )
    for rows, position in cases:
        table = sinusoidal(torch.arange(rows), 64, dtype=torch.float64)
        noisy = table[position] + 0.2 * torch.randn(64, generator=generator).double()
        distances = (table - noisy).norm(dim=-1)
        found = as_tensor(read(noisy.clone(), table.clone()))
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
            "That is what hand 0 alone would say. It comes round about every 6 "
            "tokens. Compare whole rows.",
        )
        expect(
            got == position,
            f"With {rows} rows, the noisy code of position {position} was read as "
            f"{got:g}.",
        )
    return (
        "Fast hands tell nearby positions apart, slow hands distant ones. Together "
        "they can be read through the noise."
    )
