"""The exercises of lesson 05: a whole head in the real form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach import laws
from rope_teach.course.exercises import (
    Wrong,
    as_tensor,
    close,
    exercise,
    expect,
    expect_shape,
)
from rope_teach.frequencies import inverse_frequencies
from rope_teach.ops import rotate
from rope_teach.pairing import full_table
from rope_teach.tables import cos_sin


def _features(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _tables(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    return cos_sin(positions, inverse_frequencies(head_dim), torch.float64)


@exercise(
    "5.1",
    "One speed for each pair",
    difficulty=1,
    minutes=4,
    hints=(
        "How many hands does a head of 8 features have? Let i count them, from 0.",
        "base to the power of -2i/d, for i in torch.arange(head_dim // 2). Check "
        "head_dim % 2 before you compute anything.",
    ),
    solution='''
def speeds(head_dim, base):
    """Return the radians per token of each hand."""
    if head_dim % 2:
        raise ValueError(f"features turn in pairs, got {head_dim}")
    pair = torch.arange(head_dim // 2)
    return base ** (-2 * pair / head_dim)
''',
    why="Two features share a hand, so there are d/2 speeds. The exponent counts "
    "features (2i out of d), so it runs from 0 to almost -1.",
)
def one_speed_for_each_pair(speeds: Callable[..., Any]) -> str:
    for head_dim, base in ((8, 10_000.0), (6, 100.0), (64, 500_000.0)):
        got = as_tensor(speeds(head_dim, base))
        right = inverse_frequencies(head_dim, base)
        what = f"head_dim={head_dim}, base={base:g}"
        expect(
            got.numel() != head_dim,
            f"For {what} you gave {head_dim} speeds, one for each feature. The two "
            "features of a pair share a hand: d/2 speeds.",
        )
        expect_shape(got, (head_dim // 2,))
        expect(
            not close(got, right**0.5),
            f"For {what} the hands slow down half as fast as they should. The exponent "
            "is -2i/d: feature 2i, not pair i.",
        )
        expect(
            not close(got * right, torch.ones_like(right), 1e-3),
            f"For {what} the hands speed up. The exponent has a minus sign.",
        )
        expect(
            not close(got, right.flip(0)),
            "These are the right speeds, but slowest first. Hand 0 is the fastest.",
        )
        expect(
            not close(got[:-1], right[1:]),
            f"For {what} your first hand has the speed of hand 1. Hands count from 0.",
        )
        expect(
            not close(got, inverse_frequencies(head_dim)) or base == 10_000.0,
            f"For {what} you used base 10,000. The base is an argument.",
        )
        expect(
            close(got, right, 1e-6),
            f"For {what} hand 1 should turn by {right[1]:.4g} radians per token; yours "
            f"turns by {got[1]:.4g}.",
        )
    for odd in (7, 1):
        try:
            got = speeds(odd, 10_000.0)
        except ValueError:
            continue
        except Exception as error:
            raise Wrong(
                f"For head_dim={odd} your code stops with {type(error).__name__}. "
                "Raise a ValueError, with a message, before you compute."
            ) from None
        raise Wrong(
            f"For head_dim={odd} the last feature has no partner, and you returned "
            f"{len(got)} speeds. Raise a ValueError before you compute."
        )
    return (
        "A head of 64 features has 32 hands. An odd head size is rejected at once; a "
        "silent d // 2 would leave its last feature without a position."
    )


@exercise(
    "5.2",
    "The partner",
    difficulty=2,
    minutes=5,
    hints=(
        "Write the formula for feature 0 and for feature 1. What is multiplied by sin?",
        "a needs -b, and b needs a. Build the two halves, then stack and flatten.",
    ),
    solution='''
def partner(x):
    """Return what each feature of x, (..., d), needs times sin."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([-b, a], dim=-1).flatten(-2)
''',
    why="a cos - b sin = a cos + (-b) sin, and a sin + b cos = b cos + a sin. So the "
    "partner of (a, b) is (-b, a): the pair after a quarter turn.",
)
def the_partner(partner: Callable[..., Any]) -> str:
    for shape in ((8,), (3, 6), (2, 3, 5, 4)):
        x = _features(*shape)
        given = x.clone()
        got = as_tensor(partner(x))
        a, b = given[..., 0::2], given[..., 1::2]
        expect(
            torch.equal(x, given),
            "Your function changed its input. Make a new tensor; the caller still "
            "needs x for the cosine.",
        )
        expect_shape(got, shape)
        expect(
            not close(got, torch.stack([b, a], -1).flatten(-2)),
            "You swapped the features of each pair, but changed no sign. That mirrors "
            "the pair instead of turning it. Which of the two gets the minus sign?",
        )
        expect(
            not close(got, torch.stack([b, -a], -1).flatten(-2)),
            "The minus sign is on the wrong feature: this turns clockwise. The first "
            "line of the formula has - b sin.",
        )
        expect(
            not close(got, torch.cat([-b, a], -1)),
            "The right numbers in the wrong order: cat puts all first features before "
            "all second ones. Put each pair back side by side.",
        )
        half = torch.cat([-given.chunk(2, -1)[1], given.chunk(2, -1)[0]], -1)
        expect(
            not close(got, half),
            "You paired feature i with feature i + d/2. That is another pairing "
            "(lesson 07); here the partners are neighbours: (0, 1), (2, 3).",
        )
        positions = torch.tensor(3)
        cos, sin = _tables(positions, shape[-1])
        wide_cos, wide_sin = (full_table(t, "interleaved") for t in (cos, sin))
        expect(
            close(given * wide_cos + got * wide_sin, rotate(given, cos, sin)),
            "x * cos + partner(x) * sin is not the turn that the formula gives. Try "
            f"one pair: for (1, 2) yours is {_pair_of(partner)}.",
        )
    return (
        "(-b, a) is the pair after a quarter turn. So a turn is cosine times the pair "
        "plus sine times its quarter turn."
    )


def _pair_of(partner: Callable[..., Any]) -> str:
    values = as_tensor(partner(torch.tensor([1.0, 2.0]))).flatten().tolist()
    return f"({', '.join(f'{value:g}' for value in values)})"


@exercise(
    "5.3",
    "The gradient by hand",
    difficulty=2,
    minutes=3,
    hints=(
        "The gradient is g turned by the opposite angle. What are cos(-φ) and sin(-φ)?",
        "cos(-φ) = cos φ and sin(-φ) = -sin φ. Call turn_pairs with those two tables.",
    ),
    solution='''
def backward(g, cos, sin):
    """Return the gradient of x, (..., d)."""
    return turn_pairs(g, cos, -sin)
''',
    why="The transpose of a rotation is its inverse. In the tables, only the sine "
    "changes sign.",
)
def the_gradient_by_hand(backward: Callable[..., Any]) -> str:
    for shape in ((6, 8), (2, 3, 5, 4)):
        g = _features(*shape)
        cos, sin = _tables(torch.arange(1, shape[-2] + 1), shape[-1])
        got = as_tensor(backward(g, cos, sin))
        expect_shape(got, shape)
        expect(
            not close(got, rotate(g, cos, sin)),
            "You turned g forward, the way the layer turned x. The gradient turns the "
            "other way: by the opposite angle.",
        )
        expect(
            not close(got, rotate(g, -cos, sin)),
            "You flipped the sign of the cosine. cos(-φ) is cos φ; it is the sine that "
            "changes.",
        )
        expect(
            not close(got, rotate(g, -cos, -sin)),
            "You changed both signs: that adds half a turn and is not the opposite "
            "angle.",
        )
        expect(
            not close(got, rotate(g, sin, cos)),
            "You swapped the tables. The opposite angle has the same cosine.",
        )
        expect(
            not close(got, g),
            "You gave g back unchanged. That is right only at position 0.",
        )
        expect(
            close(got, rotate(g, cos, -sin)),
            "This is not what autograd gives. Compare the two as on the slide about "
            "the gradient.",
        )
    return (
        "One minus sign, and no memory: backward needs only the tables. Fast kernels "
        "do exactly this."
    )


@exercise(
    "5.4",
    "Along the right axis",
    difficulty=2,
    minutes=3,
    hints=(
        "The pairs of x are (batch, seq, heads, d/2). Broadcasting lines up shapes "
        "from the right.",
        "The table must be (seq, 1, d/2): the 1 is where the heads are.",
    ),
    solution='''
def line_up(table):
    """Return the same table, ready for (batch, seq, heads, d)."""
    return table.unsqueeze(1)
''',
    why="(seq, 1, d/2) lines up with (batch, seq, heads, d/2) from the right: the 1 is "
    "stretched over the heads, and each token keeps its own row.",
)
def along_the_right_axis(line_up: Callable[..., Any]) -> str:
    for batch, seq, heads, head_dim in ((2, 5, 3, 8), (1, 4, 4, 6)):
        cos, sin = _tables(torch.arange(seq), head_dim)
        got = as_tensor(line_up(cos))
        shape, pairs = tuple(got.shape), (batch, seq, heads, head_dim // 2)
        expect(
            shape != (seq, head_dim // 2),
            f"The table is still {shape}. Its rows run along the {heads} heads, so "
            "token 0 is turned differently in every head.",
        )
        expect(
            shape not in {(1, seq, head_dim // 2), (1, 1, seq, head_dim // 2)},
            f"{shape} has its new axis in front, where broadcasting adds one anyway. "
            "The positions still run along the heads.",
        )
        expect(
            shape != (seq, head_dim // 2, 1),
            f"{shape} runs the hands along the heads. The new axis belongs between the "
            "positions and the hands.",
        )
        expect(
            shape != (head_dim // 2, seq),
            "You transposed the table. Keep positions and hands in their order; what "
            "is missing is an axis between them.",
        )
        expect(
            _broadcasts(shape, pairs),
            f"{shape} does not line up with the pairs of x, {pairs}.",
        )
        x = _features(batch, seq, heads, head_dim)
        right = rotate(x, cos, sin, layout="bshd")
        a, b = x[..., 0::2], x[..., 1::2]
        other = as_tensor(line_up(sin))
        turned = torch.stack([a * got - b * other, a * other + b * got], -1).flatten(-2)
        expect(
            close(turned, right),
            f"{shape} lines up, but the tokens are not turned by their own positions.",
        )
    return (
        "The 1 stands in for the heads. The package's layout='bshd' does this for you."
    )


def _broadcasts(shape: tuple[int, ...], pairs: tuple[int, ...]) -> bool:
    try:
        return tuple(torch.broadcast_shapes(shape, pairs)) == pairs
    except RuntimeError:
        return False


@exercise(
    "5.5",
    "A whole head",
    difficulty=3,
    minutes=6,
    hints=(
        "Three steps: the speeds, the angles (one row for each position), the turn.",
        "speeds(head_dim, base) of 5.1, angle = positions.unsqueeze(-1) * speeds, then "
        "turn_pairs(x, angle.cos(), angle.sin()).",
    ),
    solution='''
def turn_head(x, positions, base=10_000.0):
    """Return x with every pair turned by its own hand."""
    head_dim = x.shape[-1]
    pair = torch.arange(head_dim // 2)
    inv_freq = base ** (-2 * pair.double() / head_dim)
    angle = positions.unsqueeze(-1) * inv_freq
    return turn_pairs(x, angle.cos(), angle.sin()).to(x.dtype)
''',
    why="Positions give angles, angles give tables, tables turn pairs. The float64 in "
    "the middle keeps far positions exact.",
)
def a_whole_head(turn_head: Callable[..., Any]) -> str:
    x = _features(5, 8)
    positions = torch.tensor([0, 1, 2, 10, 300])
    expect_shape(as_tensor(turn_head(x, positions)), (5, 8))
    got = as_tensor(turn_head(x, positions))
    right = rotate(x, *_tables(positions, 8))
    expect(
        not close(got, rotate(x, *_tables(torch.arange(5), 8))),
        "You turned the tokens by 0, 1, 2, 3, 4. The positions are an argument, and "
        "here they are 0, 1, 2, 10, 300.",
    )
    expect(
        not close(got, rotate(x, *_tables(-positions, 8))),
        "You turn clockwise: the minus sign belongs in the first line of the formula, "
        "before b sin.",
    )
    expect(
        not close(got, rotate(x, *_tables(positions, 8), pairing="half")),
        "You paired feature i with feature i + d/2: lesson 07. Here the pairs are "
        "(0, 1), (2, 3), ...",
    )
    hands = cos_sin(positions, torch.ones(4, dtype=torch.float64), torch.float64)
    expect(
        not close(got, rotate(x, *hands)),
        "Every pair turns at the same speed. Each pair should have its own speed, θ_i.",
    )
    try:
        laws.check_all(lambda x, m: turn_head(x, m))
    except laws.LawBroken as broken:
        raise Wrong(f"A law is broken: {broken}.") from None
    error = (got - right).abs().max().item()
    expect(
        error < 1e-3,
        "It is a rotation, but not by the angles of RotaryEmbedding: off by "
        f"{error:.2g}. Are the speeds base ** (-2i/d)?",
    )
    slow = rotate(x, *cos_sin(positions, inverse_frequencies(8, 100.0), torch.float64))
    expect(
        close(as_tensor(turn_head(x, positions, 100.0)), slow, 1e-3),
        "With base=100 your hands turn as before. The base is an argument.",
    )
    return (
        "That is all of RoPE: a handful of lines, no parameters. RotaryEmbedding adds "
        "checks, layouts and a cached table."
    )
