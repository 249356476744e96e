"""The exercises of lesson 03: learned tables and biases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises import (
    Wrong,
    as_tensor,
    close,
    exercise,
    expect,
    expect_shape,
    number,
)


@exercise(
    "3.1",
    "The last place that fits",
    difficulty=1,
    minutes=2,
    hints=(
        "The rows are numbered 0 to 31. Which rows do five tokens need?",
        "They need `start` to `start + 4`, and the last of these can be at most 31.",
    ),
    solution="start = 32 - 5",
    why="Five tokens from 27 on use rows 27, 28, 29, 30 and 31, the last row there is.",
)
def the_last_place_that_fits(start: Any) -> str:
    got = number(start)
    expect(
        got not in (31, 32),
        "That leaves room for the first token at most. Four more come after it.",
    )
    expect(
        got != 28,
        "Starting at 28, the fifth token is at 32. Rows count from 0, so the last is "
        "31.",
    )
    expect(
        got != 26,
        "26 works, but row 31 stays free: there is a larger start.",
    )
    expect(
        got == 27,
        f"Starting at {got:g}, the last token is at {got + 4:g}. The last row is 31, "
        "and the question asks for the largest start.",
    )
    return "Rows 27 to 31. When text is written token by token, this is where it stops."


@exercise(
    "3.2",
    "Slopes",
    difficulty=2,
    minutes=4,
    hints=(
        "The formula is 2 to the power of -8h/H. What is h for the first head?",
        "h runs from 1 to `heads`, and H is `heads`. A list comprehension over "
        "`range(1, heads + 1)` does it.",
    ),
    solution='''
def slopes(heads):
    """Return the slope of each head, as a list or a tensor."""
    return [2 ** (-8 * h / heads) for h in range(1, heads + 1)]
''',
    why="A geometric sequence that ends at 2^-8 = 1/256 for any number of heads. "
    "`alibi_slopes` also handles numbers that are not a power of two.",
)
def slopes_of_alibi(slopes: Callable[..., Any]) -> str:
    for heads in (8, 4, 16):
        got = as_tensor(slopes(heads)).flatten()
        expect_shape(got, (heads,))
        h = torch.arange(1, heads + 1, dtype=torch.float64)
        right = 2 ** (-8 * h / heads)
        expect(
            not close(got, 2 ** (-8 * (h - 1) / heads)),
            "Your h starts at 0, so the first head has slope 1. The formula starts at "
            "h = 1.",
        )
        expect(
            not close(got, -right),
            "A slope is positive here. The minus sign is in the score, before the "
            "slope.",
        )
        expect(
            not close(got, right.flip(0)),
            "The right slopes, but the flattest comes first. Put the steepest first.",
        )
        expect(
            heads == 8 or not close(got, 2**-h),
            f"2^-h is right only for 8 heads. With {heads} heads the exponent is "
            f"-8h/{heads}.",
        )
        expect(
            not close(got, 2 ** (8 * h / heads)),
            "The minus sign in the exponent is missing: these slopes get steeper and "
            "steeper.",
        )
        expect(
            close(got, right, 1e-6),
            f"With {heads} heads the first two slopes are {right[0]:.4f} and "
            f"{right[1]:.4f}; yours are {got[0]:.4f} and {got[1]:.4f}.",
        )
    return (
        "They range from steep heads that see a few tokens to flat ones that see "
        "hundreds."
    )


@exercise(
    "3.3",
    "Is it relative?",
    difficulty=3,
    minutes=6,
    hints=(
        "If only n - m matters, what happens when both m and n increase by one?",
        "Then nothing changes: entry (m + 1, n + 1) equals entry (m, n). Compare "
        "`bias[1:, 1:]` with `bias[:-1, :-1]`.",
    ),
    solution='''
def is_relative(bias):
    """Return True if bias[m, n] depends on n - m alone."""
    return torch.equal(bias[1:, 1:], bias[:-1, :-1])
''',
    why="Each step down a diagonal moves both tokens by one and keeps n - m. If no "
    "such step changes anything, every diagonal is constant.",
)
def is_it_relative(is_relative: Callable[..., Any]) -> str:
    for bias, right, what in _biases():
        answer = is_relative(bias.clone())
        expect(
            answer is not None, "Your function returns nothing. Is there a `return`?"
        )
        answer = as_tensor(answer)
        expect(
            answer.numel() == 1,
            "Expected one True or False for the whole matrix. `.all()` reduces many to "
            "one.",
        )
        if bool(answer) != right:
            raise Wrong(what)
    return (
        "That is the test for a Toeplitz matrix. RoPE's score will pass it too, in "
        "another way."
    )


def _biases() -> list[tuple[Tensor, bool, str]]:
    """Matrices, whether each is relative, and the message for a wrong verdict."""
    m, n = torch.arange(6.0)[:, None], torch.arange(6.0)
    ahead = n - m
    corner = -ahead.abs()
    corner[5, 0] = corner[0, 5] = 3.0
    return [
        (
            -0.5 * ahead.abs(),
            True,
            "ALiBi's bias is -slope · |m - n|: it is relative, and you said it is not.",
        ),
        (
            ahead.clamp(min=0) ** 2,
            True,
            "A bias may treat before and after differently: (n - m) squared ahead and "
            "0 behind still depends only on n - m. It need not be symmetric.",
        ),
        (
            m * n,
            False,
            "m · n is symmetric, but it grows along the diagonal: symmetric does not "
            "mean relative.",
        ),
        (
            (m - n).abs() * (m + n),
            False,
            "|m - n| · (m + n) is 0 all along the main diagonal. The other diagonals "
            "must be constant too.",
        ),
        (
            (-n).expand(6, 6),
            False,
            "Here each key has its own bias, the same for every query. That is the "
            "key's position, not a distance.",
        ),
        (
            (-m).expand(6, 6),
            False,
            "Here each query has its own bias, the same for every key. That is the "
            "query's position, not a distance.",
        ),
        (
            torch.where(ahead == 0, m, corner),
            False,
            "The main diagonal of this one holds 0 to 5: it knows where it is.",
        ),
        (
            corner,
            True,
            "The corners hold 3, where the distance is 5. A bias may have any value "
            "for a distance, as long as it is always the same one.",
        ),
    ]


@exercise(
    "3.4",
    "As good as gone",
    difficulty=3,
    minutes=5,
    hints=(
        "The softmax takes e to the power of each score. With equal content, only the "
        "bias differs.",
        "Solve e^(-slope · distance) = 0.01 for the distance. `math.log` is the "
        "natural logarithm.",
    ),
    solution='''
def reach(slope):
    """Return the distance at which the weight has fallen to 1 %."""
    return math.log(100) / slope
''',
    why="e^(-s k) = 1/100 gives k = ln(100) / s = 4.6 / s. The steepest of 8 heads, "
    "with s = 1/2, sees 9 tokens; the flattest, with 1/256, sees 1179.",
)
def as_good_as_gone(reach: Callable[..., Any]) -> str:
    for slope in (0.5, 1 / 16, 1 / 256):
        got, right = number(reach(slope)), math.log(100) / slope
        what = f"With slope {slope:g}"
        named = {
            100
            / slope: "divided 100 by the slope: that is where the bias is -100. The "
            "softmax turns a bias into a factor e^bias.",
            2 / slope: "took the logarithm to base 10. The softmax has base e.",
            math.log2(100)
            / slope: "took the logarithm to base 2. The softmax has base e.",
            0.99 / slope: "let the weight itself fall in a straight line. It is the "
            "score that falls in a straight line; the weight falls as e^score.",
            0.01 / slope: "solved for a bias of -0.01, which keeps 99 % of the weight.",
            -right: "got a negative distance: ln(0.01) is negative, and so is the "
            "bias.",
            slope * math.log(100): "multiplied by the slope. A steeper head sees less "
            "far, not further.",
        }
        for value, message in named.items():
            expect(not math.isclose(got, value, rel_tol=2e-3), f"{what} you {message}")
        expect(
            abs(got - right) <= max(0.005 * right, 0.01)
            or got in (round(right), math.ceil(right)),
            f"{what}, at distance {got:.1f} the weight is "
            f"{math.exp(min(-slope * got, 50)):.2%} of the weight at distance 0, not 1 "
            "%.",
        )
    return "ln(100) / slope. So each head has a horizon, chosen before training begins."
