"""The exercises of lesson 16: xPos, partial rotary, p-RoPE."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises.cards import exercise, expect
from rope_teach.course.exercises.comparing import apart, close, expect_shape
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor, number
from rope_teach.frequencies import inverse_frequencies, proportional, wavelengths
from rope_teach.tables import xpos_scale


@exercise(
    "16.1",
    "Half faded",
    difficulty=2,
    minutes=4,
    hints=(
        "At distance B a pair has zeta left; at 2 B it has zeta squared. How much at a "
        "distance of x?",
        "Solve zeta ** (x / B) = 1/2 for x with logarithms: x / B is log(1/2) / "
        "log(zeta).",
    ),
    solution='''
def half_faded(i, d, B):
    """Return the distance, in tokens, at which half is left."""
    zeta = (2 * i + 0.4 * d) / (1.4 * d)
    return B * math.log(1 / 2) / math.log(zeta)
''',
    why="The fading is exponential in the distance, so each pair has a half-life. A "
    "larger B stretches all of them by the same factor.",
)
def half_faded(half_faded: Callable[..., Any]) -> str:
    for i, d, base in ((0, 64, 512), (7, 16, 32), (5, 128, 100), (20, 64, 48.5)):
        got = number(half_faded(i, d, base))
        zeta = float(xpos_scale(torch.tensor(1), d, 1.0)[i])
        right = base * math.log(0.5) / math.log(zeta)
        what = f"For pair {i} of d={d} and B={base}"
        expect(
            not _near(got, -right),
            f"{what} your distance is negative. So are both logarithms: divide one by "
            "the other.",
        )
        expect(
            not _near(got, right / base),
            f"{what} you gave {got:.3f}: that is in units of B. How many tokens?",
        )
        expect(
            not _near(got, base * math.log(zeta) / math.log(0.5)),
            f"{what} the fraction is upside down: a zeta near 1 fades slowly.",
        )
        expect(
            not _near(got, base / 2),
            f"{what} you took half of B. At B a pair has zeta left, not zero, and each "
            "pair has its own zeta.",
        )
        expect(
            not _near(got, base * 0.5 / (1 - zeta)),
            f"{what} you let the score fall in a straight line. After B tokens zeta is "
            "left, after 2 B tokens zeta squared.",
        )
        slip = base * math.log(0.5) / math.log((i + 0.4 * d) / (1.4 * d))
        expect(
            i == 0 or not _near(got, slip),
            f"{what} you have i + 0.4 d in the numerator. Pairs count in steps of 2: "
            "2i + 0.4 d.",
        )
        expect(
            abs(got - right) <= 1,  # in whole tokens, up or down, is right too
            f"{what} {zeta ** (got / base):.3f} of the score is left at your distance "
            f"{got:.1f}.",
        )
    return (
        "With B = 32, hand 0 is down to half after 18 tokens, hand 7 of 8 only after "
        "237."
    )


@exercise(
    "16.2",
    "Keys with an old origin",
    difficulty=3,
    minutes=6,
    hints=(
        "A key at n was multiplied by zeta ** (-(n - old) / B). It should have been "
        "multiplied by zeta ** (-(n - new) / B). Divide one by the other: what happens "
        "to n?",
        "n cancels: multiply every key by zeta ** ((new - old) / B). Each zeta belongs "
        "to two neighbouring features: repeat_interleave(2).",
    ),
    solution='''
def with_new_origin(keys, old, new, B):
    """Return the keys (seq, d) as if scaled from the origin new."""
    d = keys.shape[-1]
    i = torch.arange(d // 2)
    zeta = (2 * i + 0.4 * d) / (1.4 * d)
    return keys * (zeta ** ((new - old) / B)).repeat_interleave(2)
''',
    why="A new origin is one factor per pair, the same for all keys. That is why a "
    "fixed origin loses nothing, and why a forgotten one spoils every score.",
)
def keys_with_an_old_origin(with_new_origin: Callable[..., Any]) -> str:
    for seq, d, old, new, base in (
        (9, 16, 32, 128, 32),
        (20, 8, 100, 40, 64),
        (5, 24, 7, 7.5, 12),
    ):
        generator = torch.Generator().manual_seed(seq)
        raw = torch.randn(seq, d, generator=generator)
        cached, right = (_scaled(raw, o, base).float() for o in (old, new))
        got = as_tensor(untouched(with_new_origin, cached, old, new, base))
        cached, right = cached.double(), right.double()
        expect_shape(got, (seq, d))
        what = f"From origin {old} to {new}, B={base}:"
        expect(
            not _alike(got, cached),
            f"{what} these are the keys unchanged from the cache.",
        )
        expect(
            not _alike(got, _scaled(raw, 2 * old - new, base)),
            f"{what} that is the wrong direction: you moved the origin from {old} to "
            f"{2 * old - new}. Keys are *divided* by the scale of a query.",
        )
        expect(
            not _alike(got, raw),
            f"{what} you removed the scale and stopped there. Keys need the scale of "
            "the new origin.",
        )
        expect(
            not _alike(got, _scaled(cached, new, base)),
            f"{what} you scaled the keys on top of their old scale.",
        )
        expect(
            not _alike(got, cached * _zeta(d, (new - old) / base).repeat(2)),
            f"{what} the right numbers, in the wrong features. These pairs are "
            "interleaved: features 0 and 1 are pair 0.",
        )
        expect(
            not _alike(got, _scaled(raw, old + base * (new - old), base)),
            f"{what} you left B out: the scale is zeta ** (tokens / B).",
        )
        n, feature = divmod(int((got - right).abs().argmax()), d)
        factor, yours = apart(
            float(right[n, feature] / cached[n, feature]),
            float(got[n, feature] / cached[n, feature]),
        )
        expect(
            _alike(got, right),
            f"{what} feature {feature} of key {n} needs the factor {factor}; you "
            f"multiplied by {yours}.",
        )
    return (
        "One factor per pair, whatever the position: you are free to choose the origin."
    )


@exercise(
    "16.3",
    "Read the configuration",
    difficulty=3,
    minutes=6,
    hints=(
        "Which hands are there, and which of them turn? Partial rotary has a bank of "
        "factor * d features. p-RoPE has a bank of d features, and stops its slow end.",
        "default: wavelengths(inverse_frequencies(int(factor * d), base))[-1]. "
        "proportional: wavelengths(inverse_frequencies(d, base)), and the last of the "
        "first int(factor * d / 2).",
    ),
    solution='''
def slowest_turn(kind, d, base, factor):
    """Return the wavelength of the slowest hand that turns."""
    turning = int(factor * d / 2)
    rotary_dim = 2 * turning if kind == "default" else d
    return wavelengths(inverse_frequencies(rotary_dim, base))[turning - 1]
''',
    why="Both have the same number of hands that turn. Partial rotary spreads them "
    "from fast to slow; p-RoPE takes the fastest of a larger bank.",
)
def read_the_configuration(slowest_turn: Callable[..., Any]) -> str:
    for d, base, factor in (
        (128, 1e4, 0.25),
        (256, 1e6, 0.25),
        (64, 1e4, 0.5),
        (96, 5e5, 0.5),
    ):
        small = wavelengths(inverse_frequencies(int(factor * d), base))
        large = wavelengths(inverse_frequencies(d, base))
        stopped = wavelengths(proportional(d, base, fraction=factor)[0])
        right = {"default": small[-1], "proportional": large[stopped.isfinite()][-1]}
        too_far = {
            "default": 2 * math.pi * base,
            "proportional": float(large[len(small)]),
        }
        for kind, other in (("default", "proportional"), ("proportional", "default")):
            got = float(as_tensor(slowest_turn(kind, d, base, factor)))
            what = f"For {kind!r} with d={d}, base {base:,.0f} and factor {factor}"
            expect(
                not math.isinf(got),
                f"{what} you gave a hand that stands still: its turn never ends.",
            )
            number(got)
            expect(
                not _near(got, float(right[other])),
                f"{what} that is the turn for {other!r}. Which bank do the hands come "
                "from?",
            )
            expect(
                not _near(got, float(large[-1])),
                f"{what} that is the slowest hand of the full bank, but it does not "
                "turn here.",
            )
            expect(
                not _near(got * 2 * math.pi, float(right[kind])),
                f"{what} you gave 1/θ. A full turn needs 2π/θ tokens.",
            )
            expect(
                not _near(2 * math.pi / got, float(right[kind])),
                f"{what} you gave the speed, {got:.5f} radians per token. How many "
                "tokens does a turn take?",
            )
            expect(
                not _near(got, too_far[kind]),
                f"{what} you are one hand too far: {len(small)} hands are numbered 0 "
                f"to {len(small) - 1}.",
            )
            expect(
                not _near(got, float(large[int(factor * d) - 1])),
                f"{what} you are several hands too far. d features make d / 2 hands.",
            )
            needs, yours = apart(float(right[kind]), got)
            expect(
                _near(got, float(right[kind])),
                f"{what} it needs {needs} tokens; you gave {yours}.",
            )
    return (
        "A quarter of 128 features at base 10,000: 35,333 tokens in one, 54 in the "
        "other. The type given beside the factor decides."
    )


@exercise(
    "16.4",
    "Twice the reach",
    difficulty=3,
    minutes=6,
    hints=(
        "The fastest hand's scale goes out of range first. Its zeta is 0.4 / 1.4. At "
        "which distance from the origin does it reach 1 / most?",
        "That distance is r = B log(most) / log(3.5). With the origin in the middle, "
        "the text runs from -r to r around it.",
    ),
    solution='''
def longest_text(most, B):
    """Return the number of tokens, to about one in a hundred."""
    reach = B * math.log(most) / math.log(1.4 / 0.4)
    return 2 * reach
''',
    why="Before the origin queries grow and keys shrink; after it the reverse. A scale "
    "has room on both sides of 1, but with the origin at 0 only one side is used. The "
    "package stops earlier, to leave room for the features that are scaled.",
)
def twice_the_reach(longest_text: Callable[..., Any]) -> str:
    for most, base in ((65_504.0, 512), (2.0**96, 32), (65_504.0, 64)):
        got = number(longest_text(most, base))
        reach = base * math.log(most) / math.log(3.5)
        what = f"With scales up to {most:.3g} and B={base}"
        expect(
            not _near(got, reach, 0.02),
            f"{what} that is the reach on one side of the origin. Where should the "
            "origin be?",
        )
        expect(
            not _near(got, base * math.log(most), 0.02)
            and not _near(got, 2 * base * math.log(most), 0.02),
            f"{what} you gave {got:,.0f}: as if a scale grew by a factor of e in B "
            "tokens. It grows by 1 / zeta.",
        )
        expect(
            not _near(got, 2 * base * math.log(most) / math.log(2), 0.02),
            f"{what} you gave {got:,.0f}: as if a scale doubled in B tokens. The "
            "fastest hand's scale grows by a factor of 3.5.",
        )
        expect(
            not _near(got, 2 * base * most, 0.02) and not _near(got, base * most, 0.02),
            f"{what} you gave {got:.3g} tokens: the scale grows exponentially with the "
            "distance, not in proportion to it.",
        )
        expect(
            got > 0,
            f"{what} your text has {got:,.0f} tokens. The logarithm of a zeta below 1 "
            "is negative.",
        )
        at_end = float(xpos_scale(torch.tensor(-got / 2), 16, base)[0])
        expect(
            got < 2.02 * reach,
            f"{what} your text of {got:,.0f} tokens is too long: half that length away "
            f"from the origin the fastest hand reaches a scale of {at_end:.3g}.",
        )
        expect(
            got > 1.98 * reach,
            f"{what} {got:,.0f} tokens fit, but so do more: half that length away from "
            f"the origin the fastest hand's scale is {at_end:.3g}.",
        )
    return "float16 with B = 512: 9,063 tokens, and half of that with the origin at 0."


def _near(got: float, expected: float, tolerance: float = 1e-3) -> bool:
    return math.isclose(got, expected, rel_tol=tolerance)


def _alike(got: Tensor, expected: Tensor) -> bool:
    return close(got / expected.abs().amax(), expected / expected.abs().amax())


def _zeta(d: int, power: float) -> Tensor:
    return xpos_scale(torch.tensor(power), d, 1.0)


def _scaled(keys: Tensor, origin: float, base: float) -> Tensor:
    scale = xpos_scale(torch.arange(len(keys)), keys.shape[-1], base, origin)
    return keys / scale.repeat_interleave(2, dim=-1)
