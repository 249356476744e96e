"""The exercises of lesson 03: learned tables and biases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.absolute import alibi_bias, alibi_slopes
from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import (
    apart,
    close,
    expect_close,
    expect_shape,
)
from rope_teach.course.exercises.student_code import untouched, uses
from rope_teach.course.exercises.values import as_tensor, number, truth


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
        got not in range(27),
        f"{got:g} works, but row 31 stays free: there is a larger start.",
    )
    expect(got in range(-99, 99), "A position is a whole number of rows.")
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
    expect(
        not uses(slopes, alibi_slopes, alibi_bias),
        "The package's own function does it for you. Use the formula.",
    )
    for heads in (8, 4, 16, 2, 32, 1):
        got = as_tensor(slopes(heads)).flatten()
        expect(
            len(got) == heads,
            f"{heads} heads have {heads} slopes; you gave {len(got)}.",
        )
        h = torch.arange(1, heads + 1, dtype=torch.float64)
        right = 2 ** (-8 * h / heads)
        if close(got, right, 1e-6):
            continue
        named = {
            "Your h starts at 0, so the first head has slope 1. The formula starts at "
            "h = 1.": 2 ** (-8 * (h - 1) / heads),
            "A slope is positive here. The minus sign is in the score, before the "
            "slope.": -right,
            "The right slopes, but the flattest comes first. Put the steepest first.": (
                right.flip(0)
            ),
            f"2^-h is right only for 8 heads. With {heads} heads the exponent is "
            f"-8h/{heads}.": 2**-h,
            "The minus sign in the exponent is missing: these slopes get steeper and "
            "steeper.": 2 ** (8 * h / heads),
        }
        for message, wrong in named.items():
            expect(not close(got, wrong, 1e-6), message)
        expect_close(got, right, f"With {heads} heads:", 1e-6, axes=("place",))
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
        answer = untouched(is_relative, bias.clone())
        if truth(answer) != right:
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
    generator = torch.Generator().manual_seed(3)
    any_bias = torch.randn(9, generator=generator)[(n[:5] - m[:5]).long() + 4]
    spoiled = []
    for i, j in ((i, j) for i in range(5) for j in range(5) if abs(i - j) < 4):
        bias = any_bias.clone()
        bias[i, j] += 0.02  # no tolerance of a student's may swallow it
        spoiled.append(
            (
                bias,
                False,
                f"One entry is off, by 0.02: at row {i}, column {j} it differs from "
                "the others on its diagonal.",
            )
        )
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
        (
            any_bias,
            True,
            "This one has a random value for each n - m, on both sides of the diagonal "
            "and with no order among them. That is still relative.",
        ),
        (torch.tensor([[1.0, 2.0], [3.0, 1.0]]), True, "A relative bias for 2 tokens."),
        (
            torch.tensor([[1.0, 2.0], [2.0, 1.5]]),
            False,
            "For 2 tokens: the diagonal holds 1 and 1.5.",
        ),
        *spoiled,
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
    for slope in (0.5, 1 / 16, 1 / 256, 0.037):
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
            math.log(99)
            / slope: "gave the far key 1 % of the two weights together. The "
            "text asks for 1 % of the other's.",
            slope * math.log(100): "multiplied by the slope. A steeper head sees less "
            "far, not further.",
        }
        for value, message in named.items():
            expect(not math.isclose(got, value, rel_tol=5e-4), f"{what} you {message}")
        whole = got == round(got) and abs(got - right) < 1  # tokens are whole
        kept, wanted = apart(100 * math.exp(min(-slope * got, 50)), 1)
        expect(
            whole or math.isclose(got, right, rel_tol=5e-4),
            f"{what}, at distance {got:g} the weight is {kept} % of the weight at "
            f"distance 0, not {wanted} %.",
        )
    return "ln(100) / slope. So each head has a horizon, chosen before training begins."


@exercise(
    "3.5",
    "Attention with a slope",
    difficulty=4,
    minutes=8,
    hints=(
        "Build the scores step by step and print their shapes: (heads, seq, seq). The "
        "slope of a head multiplies a whole matrix: slopes[:, None, None].",
        "m = torch.arange(seq)[:, None]; n = torch.arange(seq); the bias is -slopes[:, "
        "None, None] * (m - n).abs(), and scores.masked_fill(n > m, -math.inf) hides "
        "the later tokens. Then softmax over the last dimension.",
    ),
    solution='''
def attend(q, k, v, slopes):
    """Return causal attention with ALiBi: (heads, seq, head_dim)."""
    m = torch.arange(q.shape[1])[:, None]
    n = torch.arange(q.shape[1])
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores - slopes[:, None, None] * (m - n).abs()
    scores = scores.masked_fill(n > m, -math.inf)
    return scores.softmax(dim=-1) @ v
''',
    why="Five lines: compare, scale, lower by the distance, hide what is later, mix. "
    "Any encoding that works on the score enters in the third line.",
)
def attention_with_a_slope(attend: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(35)
    for heads, seq, head_dim in ((2, 5, 4), (4, 7, 16), (1, 1, 2), (3, 3, 3)):
        shape = (heads, seq, head_dim)
        q, k, v = torch.randn(3, *shape, generator=generator).unbind()
        slopes = torch.rand(heads, generator=generator) + 0.1
        got = as_tensor(untouched(attend, q, k, v, slopes))
        expect_shape(got, shape)
        if close(got, _attended(q, k, v, slopes)):
            continue
        _name_a_wrong_attention(got, q, k, v, slopes)
        expect_close(
            got,
            _attended(q, k, v, slopes),
            f"{heads} heads, {seq} tokens:",
            axes=("head", "token", "feature"),
        )
    return "That is a whole attention layer. The next cell puts it between the weights."


def _attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    *,
    scale: float | None = None,
    sign: float = -1.0,
    power: int = 1,
    hidden: float = -math.inf,
    dim: int = -1,
) -> Tensor:
    """Attention with ALiBi, or with one of its parts done wrongly."""
    m, n = torch.arange(q.shape[1])[:, None], torch.arange(q.shape[1])
    scores = q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
    scores = scores + sign * slopes[:, None, None] * (m - n).abs() ** power
    return scores.masked_fill(n > m, hidden).softmax(dim=dim).nan_to_num() @ v


def _name_a_wrong_attention(
    got: Tensor, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor
) -> None:
    """Raise :class:`Wrong` if ``got`` is what a known misconception gives."""
    m, n = torch.arange(q.shape[1])[:, None], torch.arange(q.shape[1])
    bias = -slopes[:, None, None] * (m - n).abs()
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    named = {
        "Your tokens look ahead: every key is used, also the later ones.": (
            (scores + bias).softmax(-1) @ v
        ),
        "This is attention without a slope: the bias has no effect.": _attended(
            q, k, v, 0 * slopes
        ),
        "Your bias *raises* the score with distance. It has a minus sign.": _attended(
            q, k, v, slopes, sign=1.0
        ),
        "The scores are not divided by the root of head_dim.": _attended(
            q, k, v, slopes, scale=1.0
        ),
        "The scores are divided by head_dim, not by its root.": _attended(
            q, k, v, slopes, scale=1 / q.shape[-1]
        ),
        "The bias was divided by the root of head_dim together with the scores.": (
            _attended(q, k, v, slopes / q.shape[-1] ** 0.5)
        ),
        "A later token still gets a score of 0, and so a share. Hide it with "
        "-math.inf.": _attended(q, k, v, slopes, hidden=0.0),
        "The softmax runs over the queries. Each query shares out its own weights: the "
        "last dimension.": _attended(q, k, v, slopes, dim=-2),
        "The later tokens were removed after the softmax, so the weights no longer add "
        "up to 1.": (scores + bias).softmax(-1).tril() @ v,
        "Every head has the slope of the first one.": _attended(
            q, k, v, slopes[:1].expand_as(slopes)
        ),
        "The slopes are those of the other heads, in reverse order.": _attended(
            q, k, v, slopes.flip(0)
        ),
        "The bias grows with the square of the distance.": _attended(
            q, k, v, slopes, power=2
        ),
        "The mask hides the earlier tokens and shows the later ones.": (scores + bias)
        .masked_fill(n < m, -math.inf)
        .softmax(-1)
        @ v,
    }
    for message, wrong in named.items():
        expect(not close(got, wrong), message)
