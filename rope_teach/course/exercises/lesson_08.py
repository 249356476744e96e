"""The exercises of lesson 08: frequencies, wavelengths and the base."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises.cards import exercise, expect
from rope_teach.course.exercises.comparing import close, expect_shape
from rope_teach.course.exercises.values import as_tensor, hand_numbers, number
from rope_teach.frequencies import inverse_frequencies, wavelengths
from rope_teach.ops import rotate
from rope_teach.tables import angles, cos_sin


def _near(got: float, expected: float, tolerance: float = 1e-3) -> bool:
    return math.isclose(got, expected, rel_tol=tolerance)


@exercise(
    "8.1",
    "A wavelength",
    difficulty=1,
    minutes=3,
    hints=(
        "Hand i turns by base ** (-2 i / rotary_dim) radians per token. How many "
        "radians are a full turn?",
        "Divide 2π by the speed. A negative power in the denominator is a positive one "
        "in the numerator.",
    ),
    solution='''
def wavelength(i, rotary_dim, base):
    """Return the tokens for a full turn of hand i."""
    return 2 * math.pi * base ** (2 * i / rotary_dim)
''',
    why="A full turn is 2π radians; at θ radians per token it takes 2π / θ tokens.",
)
def a_wavelength(wavelength: Callable[..., Any]) -> str:
    for i, rotary_dim, base in ((3, 16, 1e4), (31, 64, 5e5), (5, 12, 777.0)):
        got = number(wavelength(i, rotary_dim, base))
        speed = base ** (-2 * i / rotary_dim)
        what = f"hand {i} of a bank with rotary_dim={rotary_dim} and base {base:,.0f}"
        expect(
            not _near(got, speed),
            f"For {what} you gave {got:.2g}: its speed, in radians per token. How many "
            "tokens make a full turn?",
        )
        expect(
            not _near(got, 1 / speed),
            f"For {what} you gave {got:.4g}: after that many tokens it has turned by 1 "
            "radian. A full turn is 2π radians.",
        )
        expect(
            not _near(got, 2 * math.pi * speed),
            f"For {what} you gave {got:.2g}. A slower hand must need more tokens: "
            "divide by the speed.",
        )
        expect(
            not _near(got, 2 * math.pi * base ** (i / rotary_dim)),
            f"For {what} the exponent is 2i/d, not i/d: i counts pairs, and a pair has "
            "two features.",
        )
        expect(
            not _near(got, 360 / speed),
            f"For {what} you gave {got:,.1f}, as if a full turn were 360. Speeds are "
            "in radians per token.",
        )
        expect(
            _near(got, 2 * math.pi / speed, 1e-4),
            f"{what[0].upper()}{what[1:]} needs {2 * math.pi / speed:,.3f} tokens; you "
            f"gave {got:,.3f}.",
        )
    return (
        "The whole spectrum of a model follows from two numbers of its configuration."
    )


@exercise(
    "8.2",
    "A base for a context",
    difficulty=2,
    minutes=5,
    hints=(
        "What is the number of the slowest hand? Write down its wavelength.",
        "The slowest is hand d/2 - 1, with wavelength 2π base^((d-2)/d). Set it equal "
        "to the context and solve for the base.",
    ),
    solution='''
def smallest_base(rotary_dim, context):
    """Return the base whose slowest wavelength is context."""
    return (context / (2 * math.pi)) ** (rotary_dim / (rotary_dim - 2))
''',
    why="From context = 2π base^((d-2)/d): divide by 2π, then take the power d/(d-2). "
    "The same power appears in NTK-aware scaling, lesson 13.",
)
def a_base_for_a_context(smallest_base: Callable[..., Any]) -> str:
    for rotary_dim, context in ((16, 4096), (128, 131_072)):
        got = number(smallest_base(rotary_dim, context))
        turns = context / (2 * math.pi)
        right = turns ** (rotary_dim / (rotary_dim - 2))
        what = f"rotary_dim={rotary_dim} and a context of {context}"
        expect(got > 0, f"A base is positive; for {what} you gave {got:g}.")
        slowest = wavelengths(inverse_frequencies(rotary_dim, got))[-1].item()
        expect(
            not _near(got, turns),
            f"For {what} you gave context / 2π. That would be right if the slowest "
            "hand had speed 1/base, but it is hand d/2 - 1, which is a little faster: "
            f"it comes round after {slowest:,.0f} tokens.",
        )
        expect(
            not _near(got, context)
            and not _near(got, context ** (rotary_dim / (rotary_dim - 2))),
            f"For {what} you left out the 2π: a wavelength is 2π divided by the speed.",
        )
        expect(
            not _near(got, turns ** ((rotary_dim - 2) / rotary_dim)),
            f"For {what} the power is upside down: you took (d-2)/d, and solving for "
            "the base gives d/(d-2).",
        )
        expect(
            _near(got, right),
            f"For {what} your base {got:,.0f} brings the slowest hand round after "
            f"{slowest:,.0f} tokens.",
        )
    return (
        "The slowest hand stays within one turn. Most of the others do not, and do not "
        "need to."
    )


@exercise(
    "8.3",
    "A query that likes one distance",
    difficulty=3,
    minutes=6,
    hints=(
        "At which distance does a key score highest with a copy of itself? How can the "
        "query become a copy of a key that has been turned?",
        "A key at position `distance` has been rotated by that distance. Rotate your "
        "query by the same amount: rotate(key, *cos_sin(...)).",
    ),
    solution='''
def query_for(key, distance):
    """Return the query (128,) that likes key (128,) there best."""
    table = cos_sin(torch.tensor(distance), inverse_frequencies(128), key.dtype)
    return rotate(key, *table)
''',
    why="The query is the key as it looks from that distance. So every hand agrees "
    "there, and no other distance lines up all of them.",
)
def a_query_that_likes_one_distance(query_for: Callable[..., Any]) -> str:
    inv_freq = inverse_frequencies(128)
    positions = torch.arange(4096)
    for seed, distance in enumerate((37, 1500, 1, 4095)):
        generator = torch.Generator().manual_seed(seed)
        key = torch.randn(128, generator=generator, dtype=torch.float64)
        query = as_tensor(query_for(key.clone(), distance))
        expect_shape(query, (128,))
        cos, sin = cos_sin(torch.tensor(distance), inv_freq, key.dtype)
        expect(
            not close(query, key, 1e-3),
            "Your query is the key itself. It scores highest where both are in the "
            "same place: at distance 0.",
        )
        expect(
            not close(query, rotate(key, cos, -sin), 1e-3),
            "You turned the key backwards. The key is further on and was turned "
            "forwards; your query must point where that key points.",
        )
        expect(
            not close(query, rotate(key, cos, sin, "half"), 1e-3),
            "You rotated with half pairs. These keys are rotated with interleaved "
            "pairs, so the hands do not match: lesson 07.",
        )
        best = _likes_best(query, key, inv_freq, positions)
        expect(
            best == distance,
            f"For distance {distance} your query scores highest at {best}. Which "
            "query agrees with that key in every hand, at that distance?",
        )
    return (
        "This head looks at one distance, near or far. Nothing fades unless the "
        "weights make it fade."
    )


def _likes_best(query: Tensor, key: Tensor, inv_freq: Tensor, positions: Tensor) -> int:
    """The position at which ``key`` scores highest with a query at position 0."""
    cos, sin = cos_sin(positions, inv_freq, torch.float64)
    keys = rotate(key.expand(len(positions), -1), cos, sin)
    return int((keys @ query).argmax())


@exercise(
    "8.4",
    "Hands in new territory",
    difficulty=3,
    minutes=6,
    hints=(
        "A hand that came round in training has shown every angle. Which hands have "
        "not? How many features are rotated?",
        "Compare wavelengths(inverse_frequencies(rotary_dim, base)) with the trained "
        "length. And what if length does not exceed it?",
    ),
    solution='''
def new_territory(config, length):
    """Return the numbers of the hands, fastest first."""
    rotary_dim = int(config["head_dim"] * config["partial_rotary_factor"])
    turn = wavelengths(inverse_frequencies(rotary_dim, config["rope_theta"]))
    trained = config["max_position_embeddings"]
    if length <= trained:
        return []
    return [i for i, tokens in enumerate(turn) if tokens > trained]
''',
    why="A wavelength longer than the trained length is a circle that was never "
    "closed. Each further token turns that hand to where it has never been.",
)
def hands_in_new_territory(new_territory: Callable[..., Any]) -> str:
    for head_dim, factor, base, trained, length in (
        (128, 1.0, 1e4, 4096, 5000),
        (64, 0.5, 5e5, 2048, 100_000),
        (64, 1.0, 1e4, 4096, 4096),
        (96, 0.25, 3e4, 1024, 1025),
        (80, 1.0, 2e5, 3000, 3200),
    ):
        config = {
            "head_dim": head_dim,
            "partial_rotary_factor": factor,
            "rope_theta": base,
            "max_position_embeddings": trained,
        }
        what = f"With {config} and {length:,} tokens"
        answer = new_territory(dict(config), length)
        expect(
            answer is not None,
            f"{what} your function returned nothing. If there are no such hands, "
            "return an empty list.",
        )
        got = hand_numbers(answer)
        right = _slow_hands(int(head_dim * factor), base, trained)
        if length <= trained:
            expect(
                not got,
                f"{what} the text is no longer than the trained length: no hand goes "
                "where it has not been.",
            )
            continue
        if got == right:
            continue
        expect(
            got != [i for i in range(int(head_dim * factor) // 2) if i not in right],
            f"{what} you listed the fast hands. They have shown the full circle many "
            "times; the slow ones have not.",
        )
        expect(
            factor == 1 or got != _slow_hands(head_dim, base, trained),
            f"{what} only {head_dim * factor:.0f} of {head_dim} features are rotated. "
            "Compute the speeds from that number.",
        )
        expect(
            got != _slow_hands(int(head_dim * factor), base, length),
            f"{what} you compared with the new length. A hand that came round between "
            f"{trained:,} and {length:,} did so in new territory.",
        )
        not_round = _slow_hands(int(head_dim * factor), base, length)
        expect(
            not got or got != [i for i in right if i not in not_round],
            f"{what} you left out the hands that have not come round after {length:,}. "
            "They too go where they have not been.",
        )
        expect(
            got != _slow_hands(int(head_dim * factor), base, 2 * math.pi * trained),
            f"{what} you compared 1/θ with the trained length. A full turn needs 2π/θ "
            "tokens.",
        )
        expect(
            sorted(got) == right,
            f"{what} the answer is hands {right[0]} to {right[-1]}; you gave "
            + (f"{len(got)}, from {got[0]} to {got[-1]}." if got else "none."),
        )
        expect(got == right, "The right hands, but not fastest first.")
    return (
        "These hands are why a model fails past its trained length, and they are the "
        "ones that lesson 13 slows down."
    )


def _slow_hands(rotary_dim: int, base: float, tokens: float) -> list[int]:
    """The hands that take more than ``tokens`` for a full turn."""
    turn = wavelengths(inverse_frequencies(rotary_dim, base)).tolist()
    return [i for i, wavelength in enumerate(turn) if wavelength > tokens]


@exercise(
    "8.5",
    "The smallest base that holds",
    difficulty=4,
    minutes=8,
    hints=(
        "Compute the mean cosine at every distance in the context, not only at its "
        "end.",
        "Go through sorted(bases), and return the first whose lowest mean over "
        "torch.arange(context) is not below zero. Do not skip any: the limit jumps up "
        "and down.",
    ),
    solution='''
def first_that_holds(bases, rotary_dim, context):
    """Return the smallest base that holds."""
    distances = torch.arange(context)
    for base in sorted(bases):
        inv_freq = inverse_frequencies(rotary_dim, base)
        if angles(distances, inv_freq).cos().mean(-1).min() >= 0:
            return base
''',
    why="The limit is not monotonic in the base, so each base has to be tried over the "
    "whole context.",
)
def the_smallest_base_that_holds(first_that_holds: Callable[..., Any]) -> str:
    all_of_them = [2_000_000, 1_000_000, 500_000, 200_000, 100_000]
    for bases, rotary_dim, context in (
        (all_of_them, 64, 7000),
        (all_of_them, 64, 12_000),
        (all_of_them, 32, 3000),
        ([500_000, 1_000_000, 2_000_000], 64, 7000),  # holds, fails, holds
        ([2_000_000, 1_000_000], 64, 6235),  # a million fails first at 6,235:
        ([2_000_000, 1_000_000], 64, 6236),  # one distance more is one too many
        ([2_000_000, 200_000], 64, 6463),
        ([10_000, 100_000], 16, 184),  # 10,000 fails in the first half alone
    ):
        got = number(first_that_holds(list(bases), rotary_dim, context))
        means = {base: _mean_cosine(base, rotary_dim, context) for base in bases}
        holds = sorted(base for base, mean in means.items() if mean.min() >= 0)
        what = f"With bases {sorted(bases)}, rotary_dim={rotary_dim} and "
        what += f"context={context:,}"
        expect(got in bases, f"{what} you gave {got:,.0f}, which is not one of them.")
        mean = means[int(got)]
        first = int((mean < 0).double().argmax())
        expect(
            bool(mean.min() >= 0 or mean[-1] < 0),
            f"{what} base {got:,.0f} is above zero at the last distance, "
            f"{context - 1:,}, but below zero at distance {first:,}. The whole context "
            "counts.",
        )
        expect(
            bool(mean.min() >= 0),
            f"{what} base {got:,.0f} does not hold: at distance {first:,} its mean is "
            f"{mean[first]:.4f}.",
        )
        expect(
            got == holds[0],
            f"{what} base {got:,.0f} holds, but {holds[0]:,} is smaller and holds too: "
            f"its lowest mean at distances 0 to {context - 1:,} is "
            f"{means[holds[0]].min():.4f}.",
        )
    return (
        "Half a million holds where a million fails. A larger base is not always safer."
    )


def _mean_cosine(base: float, rotary_dim: int, context: int) -> Tensor:
    inv_freq = inverse_frequencies(rotary_dim, base)
    return angles(torch.arange(context), inv_freq).cos().mean(-1)
