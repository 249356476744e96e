"""The exercises of lesson 05: a whole head in the real form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach import laws
from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import (
    apart,
    difference,
    expect_shape,
    name_mistake,
)
from rope_teach.course.exercises.student_code import untouched, uses
from rope_teach.course.exercises.values import as_tensor
from rope_teach.frequencies import inverse_frequencies, wavelengths
from rope_teach.ops import rotate
from rope_teach.rotary import RotaryEmbedding
from rope_teach.rotation import rotate_complex, rotate_matrix
from rope_teach.tables import cos_sin

FEATURES = ("token", "feature")


def _features(*shape: int, seed: int = 5) -> Tensor:
    """Random features in float32, as a lesson has them."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _tables(
    positions: Tensor, head_dim: int, base: float = 1e4
) -> tuple[Tensor, Tensor]:
    return cos_sin(positions, inverse_frequencies(head_dim, base))


def _woven(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first, second], -1).flatten(-2)


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
    taken = uses(speeds, inverse_frequencies, wavelengths, RotaryEmbedding, "inv_freq")
    expect(not taken, f"You took the package's {taken}. Write the formula yourself.")
    cases = [(8, 10_000.0), (6, 100.0), (64, 500_000.0), (2, 7.0), (20, 1_234.5)]
    got = [as_tensor(speeds(*case)) for case in cases]
    right = [inverse_frequencies(*case) for case in cases]
    formulas: dict[str, Callable[[Tensor, int, float], Tensor]] = {
        "The hands slow down half as fast as they should. The exponent is -2i/d: "
        "feature 2i, not pair i.": lambda i, d, base: base ** (-i / d),
        "The hands slow down twice as fast as they should. The exponent is -2i/d, and "
        "d counts features.": lambda i, d, base: base ** (-4 * i / d),
        "The hands speed up. The exponent has a minus sign.": (
            lambda i, d, base: base ** (2 * i / d)
        ),
        "These are the right speeds, but slowest first. Hand 0 is the fastest.": (
            lambda i, d, base: base ** (-2 * i.flip(0) / d)
        ),
        "Your first hand has the speed of hand 1. Hands count from 0.": (
            lambda i, d, base: base ** (-2 * (i + 1) / d)
        ),
        "You used base 10,000 throughout. The base is an argument.": (
            lambda i, d, _: 1e4 ** (-2 * i / d)
        ),
        "Your last hand has the speed 1/base. The exponent is -2i/d, and i ends at "
        "d/2 - 1.": lambda i, d, base: base ** (-i / max(d / 2 - 1, 1)),
        "These are wavelengths, tokens for a full turn, not radians per token.": (
            lambda i, d, base: 2 * torch.pi * base ** (2 * i / d)
        ),
    }

    def relative(values: list[Tensor]) -> list[Tensor]:
        pairs = zip(values, right, strict=True)
        return [(v / r).log() if v.shape == r.shape else v for v, r in pairs]

    name_mistake(
        relative(got),
        relative(right),
        {
            message: relative(
                [formula(torch.arange(d // 2).double(), d, b) for d, b in cases]
            )
            for message, formula in formulas.items()
        },
        tolerance=5e-3,
    )
    for (head_dim, base), mine, r in zip(cases, got, right, strict=True):
        what = f"head_dim={head_dim}, base={base:g}"
        expect(
            mine.numel() != head_dim,
            f"For {what} you gave {head_dim} speeds, one for each feature. The two "
            "features of a pair share a hand: d/2 speeds.",
        )
        expect_shape(mine, (head_dim // 2,))
        off = ~((mine / r - 1).abs() < 2e-3)
        if off.any():
            hand = int(off.nonzero()[0])
            should, yours = apart(float(r[hand]), float(mine[hand]))
            raise Wrong(
                f"For {what} hand {hand} should turn by {should} radians per token; "
                f"yours turns by {yours}."
            )
    for odd in (7, 1, 129):
        try:
            many = as_tensor(speeds(odd, 10_000.0)).numel()
        except ValueError:
            continue
        except Wrong:
            many = 0
        except Exception as error:
            raise Wrong(
                f"For head_dim={odd} your code stops with {type(error).__name__}. "
                "Raise a ValueError, with a message, before you compute."
            ) from None
        raise Wrong(
            f"For head_dim={odd} the last feature has no partner, and you returned "
            f"{many or 'no'} speeds. Raise a ValueError before you compute."
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
    cases = [_features(*shape) for shape in ((8,), (2,), (3, 6), (2, 3, 5, 4))]
    got = [as_tensor(untouched(partner, x)) for x in cases]
    for mine, x in zip(got, cases, strict=True):
        expect_shape(mine, tuple(x.shape))
    pairs = [(x[..., 0::2], x[..., 1::2]) for x in cases]
    right = [_woven(-b, a) for a, b in pairs]
    name_mistake(
        got,
        right,
        {
            "You swapped the features of each pair, but changed no sign. That mirrors "
            "the pair instead of turning it. Which of the two gets the minus sign?": [
                _woven(b, a) for a, b in pairs
            ],
            "The minus sign is on the wrong feature: this turns clockwise. The first "
            "line of the formula has - b sin.": [_woven(b, -a) for a, b in pairs],
            "The right numbers in the wrong order: cat puts all first features before "
            "all second ones. Put each pair back side by side.": [
                torch.cat([-b, a], -1) for a, b in pairs
            ],
            "You paired feature i with feature i + d/2. That is another pairing "
            "(lesson 07); here the partners are neighbours: (0, 1), (2, 3).": [
                torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0]], -1) for x in cases
            ],
            "The signs are right, but the features kept their places. a needs b, and b "
            "needs a.": [_woven(-a, b) for a, b in pairs],
        },
    )
    for mine, r, x in zip(got, right, cases, strict=True):
        wrong = difference(mine, r, axes=FEATURES[-x.ndim :])
        expect(
            not wrong,
            f"x * cos + partner(x) * sin is not the formula's turn. For x of shape "
            f"{tuple(x.shape)}: {wrong}",
        )
    return (
        "(-b, a) is the pair after a quarter turn. So a turn is cosine times the pair "
        "plus sine times its quarter turn."
    )


@exercise(
    "5.3",
    "The gradient without autograd",
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
    taken = uses(backward, torch.autograd.grad, "requires_grad_", "backward", "vjp")
    expect(not taken, f"You used {taken}. Do without autograd: the tables are enough.")
    cases = []
    for seed, shape in enumerate(((6, 8), (2, 3, 5, 4), (1, 2), (9, 10))):
        tables = _tables(torch.arange(1, shape[-2] + 1), shape[-1], 100.0)
        cases.append((_features(*shape, seed=seed), *tables))
    got = [as_tensor(untouched(backward, *case)) for case in cases]
    for mine, (g, *_) in zip(got, cases, strict=True):
        expect_shape(mine, tuple(g.shape))
    right = [rotate(g, cos, -sin) for g, cos, sin in cases]
    name_mistake(
        got,
        right,
        {
            "You turned g forward, the way the layer turned x. The gradient turns the "
            "other way: by the opposite angle.": [rotate(*case) for case in cases],
            "You flipped the sign of the cosine. cos(-φ) is cos φ; it is the sine that "
            "changes.": [rotate(g, -cos, sin) for g, cos, sin in cases],
            "You changed both signs: that adds half a turn and is not the opposite "
            "angle.": [rotate(g, -cos, -sin) for g, cos, sin in cases],
            "You swapped the tables. The opposite angle has the same cosine.": [
                rotate(g, sin, cos) for g, cos, sin in cases
            ],
            "You gave g back unchanged. That is right only at position 0.": [
                g for g, *_ in cases
            ],
            "The sign is right, but the pairs are (i, i + d/2): lesson 07. Here the "
            "partners are neighbours.": [
                rotate(g, cos, -sin, pairing="half") for g, cos, sin in cases
            ],
        },
    )
    for mine, r in zip(got, right, strict=True):
        wrong = difference(mine, r, axes=FEATURES)
        expect(
            not wrong,
            f"This is not what autograd gives for g of shape {tuple(r.shape)}. {wrong}",
        )
    return (
        "One minus sign, and no memory: backward needs only the tables. Fast kernels "
        "do exactly this."
    )


@exercise(
    "5.4",
    "Along the right axis",
    difficulty=3,
    minutes=5,
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
    for batch, seq, heads, head_dim in ((2, 5, 3, 8), (1, 4, 4, 6), (3, 7, 2, 10)):
        cos, sin = _tables(torch.arange(seq), head_dim)
        given = untouched(line_up, cos)
        got = as_tensor(given)
        expect(
            not isinstance(given, (list, tuple)),
            "turn_pairs multiplies by the table: return a tensor, not a "
            f"{type(given).__name__}.",
        )
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
        expect(
            tuple(other.shape) == shape,
            f"Two tables of one shape come back as {shape} and {tuple(other.shape)}.",
        )
        turned = _woven(a * got - b * other, a * other + b * got)
        wrong = difference(turned, right, axes=("text", "token", "head", "feature"))
        expect(
            not wrong,
            f"{shape} lines up, but the tokens are not turned by their own positions. "
            f"With it: {wrong}",
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
    difficulty=4,
    minutes=12,
    hints=(
        "Three steps: the speeds, the angles (one row for each position), the turn.",
        "speeds(head_dim, base) of 5.1, angle = positions.unsqueeze(-1) * speeds, then "
        "turn_pairs(x, angle.cos(), angle.sin()).",
    ),
    solution='''
def turn_head(x, positions, base=10_000.0):
    """Return x with every pair turned by its own hand."""
    head_dim = x.shape[-1]
    pair = torch.arange(head_dim // 2, dtype=torch.float64)
    inv_freq = base ** (-2 * pair / head_dim)
    angle = positions.unsqueeze(-1) * inv_freq
    return turn_pairs(x, angle.cos(), angle.sin()).to(x.dtype)
''',
    why="Positions give angles, angles give tables, tables turn pairs. The float64 in "
    "the middle keeps far positions exact.",
)
def a_whole_head(turn_head: Callable[..., Any]) -> str:
    taken = uses(turn_head, rotate, rotate_matrix, rotate_complex, RotaryEmbedding)
    expect(
        not taken,
        f"You let the package's {taken} turn. Use turn_pairs, or the formula.",
    )
    cases: list[tuple[Any, ...]] = [
        (_features(5, 8), torch.tensor([0, 1, 2, 10, 300])),
        (_features(4, 16), torch.tensor([7, 3, 3, 1])),
        (_features(3, 2), torch.tensor([5, 0, 40]), 100.0),
        (_features(6, 64), torch.tensor([12, 90, 2, 33, 1, 500]), 500_000.0),
    ]
    got = [as_tensor(untouched(turn_head, *case)) for case in cases]
    for mine, (x, *_) in zip(got, cases, strict=True):
        expect_shape(mine, tuple(x.shape))
    right = [_head(*case) for case in cases]
    name_mistake(
        got,
        right,
        {
            "You turned the tokens by 0, 1, 2, ... The positions are an argument.": [
                _head(x, torch.arange(len(x)), *base) for x, _, *base in cases
            ],
            "You turn clockwise: the minus sign belongs in the first line of the "
            "formula, before b sin.": [_head(x, -m, *base) for x, m, *base in cases],
            "You paired feature i with feature i + d/2: lesson 07. Here the pairs are "
            "(0, 1), (2, 3), ...": [
                rotate(x, *_tables(m, x.shape[-1], *base), pairing="half")
                for x, m, *base in cases
            ],
            "Every pair turns at the same speed. Each pair should have its own speed, "
            "θ_i.": [
                rotate(x, *cos_sin(m, torch.ones(x.shape[-1] // 2)))
                for x, m, *_ in cases
            ],
            "The right numbers in the wrong order: put each pair back side by side, "
            "with stack and flatten.": [
                torch.cat([out[..., 0::2], out[..., 1::2]], -1) for out in right
            ],
            "Your hands always turn as with base 10,000. The base is an argument.": [
                _head(x, m) for x, m, *_ in cases
            ],
        },
        tolerance=1e-3,
    )
    for mine, r, (x, m, *_) in zip(got, right, cases, strict=True):
        wrong = difference(mine, r, 1e-3, axes=FEATURES)
        expect(
            not wrong,
            f"{_broken_law(turn_head)} For {x.shape[-1]} features and the positions "
            f"{m.tolist()}: {wrong}",
        )
    return (
        "That is all of RoPE: a handful of lines, no parameters. RotaryEmbedding adds "
        "checks, layouts and a cached table."
    )


def _head(x: Tensor, positions: Tensor, base: float = 1e4) -> Tensor:
    return rotate(x, *_tables(positions, x.shape[-1], base))


def _broken_law(turn_head: Callable[..., Any]) -> str:
    """Which law an answer breaks, without the law's guess at a cause."""
    try:
        laws.check_all(lambda x, m: as_tensor(turn_head(x.float(), m)))
    except laws.LawBroken as broken:
        return f"A law is broken: {str(broken).split(' Likely')[0]}"
    return "It is a rotation, but not by the angles of RotaryEmbedding."
