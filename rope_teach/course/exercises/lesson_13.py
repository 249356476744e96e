"""The exercises of lesson 13: rules for longer context."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import (
    apart,
    close,
    expect_close,
    expect_shape,
)
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor, number
from rope_teach.frequencies import inverse_frequencies, ntk_aware
from rope_teach.ops import rotate
from rope_teach.tables import cos_sin


@exercise(
    "13.1",
    "The same rule, without touching a hand",
    difficulty=2,
    minutes=4,
    hints=(
        "A hand points at position times speed. Half the speed at position 10 is the "
        "full speed at which position?",
        "Divide torch.arange(length) by length / trained, but by 1 if the text is no "
        "longer than the trained length.",
    ),
    solution='''
def positions_for(length, trained):
    """Return the positions (length,) at which tokens stand."""
    return torch.arange(length) / max(1, length / trained)
''',
    why="m · (θ / s) = (m / s) · θ. The hands cannot tell whether they turn more "
    "slowly or the tokens are closer together.",
)
def the_same_rule_without_touching_a_hand(positions_for: Callable[..., Any]) -> str:
    for length, trained in (
        (256, 64), (96, 64), (40, 64), (64, 64), (2048, 512), (100, 7), (1, 8)
    ):  # fmt: skip
        got = as_tensor(positions_for(length, trained))
        expect_shape(got, (length,))
        plain = torch.arange(length, dtype=torch.float64)
        right = plain / max(1.0, length / trained)
        what = f"With length={length} and trained={trained}"
        if length <= trained:
            expect(
                length in (1, trained)
                or not close(got, plain * trained / length, 1e-3),
                f"{what} you spread the tokens out. A text that fits needs no rule: "
                "keep its positions as in training.",
            )
            expect(
                close(got, right, 1e-3),
                f"{what} the text fits: its positions are 0, 1, 2, ... as in training.",
            )
            continue
        expect(
            not close(got, plain * length / trained, 1e-3),
            f"{what} your last token is at {got[-1]:.0f}: further out, not closer. "
            "Divide.",
        )
        expect(
            not close(got, plain, 1e-3),
            f"{what} these are the plain positions: the slow hands meet new angles.",
        )
        expect(
            not close(got, plain % trained, 1e-3),
            f"{what} you start from 0 again after {trained}: then tokens that are "
            f"{trained} apart share a position.",
        )
        expect(
            not close(got, (plain + 1) * trained / length, 1e-3),
            f"{what} the first token is at {got[0]:.2f}. Positions count from 0.",
        )
        expect(
            len(got.unique()) == length,
            f"{what} some tokens share a position, so the model cannot tell which "
            "comes first. Positions need not be integers.",
        )
        expect(
            not close(got, plain * (trained - 1) / (length - 1), 1e-3),
            f"{what} your last token is exactly at {trained - 1}. Close, but then the "
            "step is not trained / length, as the rule has it.",
        )
        expect_close(got, right, f"{what}:", 1e-3, axes=("token",))
    return "Slower hands or closer tokens: both are position interpolation."


@exercise(
    "13.2",
    "The base that slows the last hand",
    difficulty=3,
    minutes=6,
    hints=(
        "Write down the speed of the last hand, number d/2 - 1, in terms of the base. "
        "Which power of the base is it?",
        "It is base^(-(d-2)/d). The new base must give that speed divided by factor: "
        "solve for it.",
    ),
    solution='''
def new_base(base, rotary_dim, factor):
    """Return the base that slows the last hand by factor."""
    return base * factor ** (rotary_dim / (rotary_dim - 2))
''',
    why="new^((d-2)/d) = factor · base^((d-2)/d). Take the power d/(d-2) of both "
    "sides. Hand 0 has power 0, so no base can change it.",
)
def the_base_that_slows_the_last_hand(new_base: Callable[..., Any]) -> str:
    for base, rotary_dim, factor in (
        (1e4, 16, 4.0),
        (5e5, 128, 8.0),
        (1e6, 32, 2.5),
        (1e4, 4, 3.0),
        (300.0, 64, 16.0),
    ):
        got = number(new_base(base, rotary_dim, factor))
        what = f"For base {base:,.0f}, rotary_dim={rotary_dim} and factor {factor:g}"
        expect(got > 0, f"{what} you gave {got:g}, but a base is positive.")
        power = rotary_dim / (rotary_dim - 2)
        slowed = float(
            inverse_frequencies(rotary_dim, base)[-1]
            / inverse_frequencies(rotary_dim, got)[-1]
        )
        expect(
            not _near(got, base * factor),
            f"{what} you multiplied the base by the factor. The speed of the last hand "
            f"is not quite 1/base, so it slows by only {slowed:.2f}.",
        )
        expect(
            not _near(got, base * factor ** (1 / power)),
            f"{what} the power is upside down: solving for the base gives d/(d-2).",
        )
        expect(
            not _near(got, base / factor**power),
            f"{what} your base is smaller, so the hands are faster. Slower hands need "
            "a larger base.",
        )
        expect(
            not _near(got, base**power * factor**power),
            f"{what} you took the power of the old base too. It cancels.",
        )
        right = float(ntk_aware(rotary_dim, base, factor=factor)[0][-1])
        mine, wanted = apart(slowed, factor)
        expect(
            _near(float(inverse_frequencies(rotary_dim, got)[-1]), right),
            f"{what} your base {got:,.0f} slows the last hand by {mine}, not {wanted}.",
        )
    return (
        "Only the last hand slows by the full factor; the first one does not slow at "
        "all."
    )


@exercise(
    "13.3",
    "Slow the right hands",
    difficulty=3,
    minutes=6,
    hints=(
        "A hand with wavelength λ makes T / λ turns in T tokens, and λ is 2π divided "
        "by its speed.",
        "Compute `trained / wavelengths(inv_freq)`. torch.where takes the old speed "
        "where that is at least `turns`, and the old speed / factor elsewhere.",
    ),
    solution='''
def slow(inv_freq, factor, trained, turns):
    """Return the speeds: kept, or factor times slower."""
    made = trained / wavelengths(inv_freq)
    return torch.where(made >= turns, inv_freq, inv_freq / factor)
''',
    why="Fast hands tell neighbours apart and showed every angle in training: keep "
    "them. Slow ones meet new angles past it: slow them. All the rest is blending.",
)
def slow_the_right_hands(slow: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(133)
    for rotary_dim, base, factor, trained, turns in (
        (32, 1e4, 4, 512, 1),
        (32, 1e4, 4, 512, 4),
        (128, 5e5, 8, 8192, 4),
        (64, 1e4, 2.5, 300, 1),
        (16, 100.0, 4, 50, 0.2),  # hands that made less than a turn are kept
        (16, 1e4, 2, 3, 1),  # none comes round
        (8, 20.0, 3, 4000, 2),  # all come round
    ):
        bank = inverse_frequencies(rotary_dim, base)
        _check_slowed(slow, bank, factor, trained, turns)
        mixed = bank[torch.randperm(len(bank), generator=generator)]
        _check_slowed(slow, mixed, factor, trained, turns)
    return "A rule of your own: fast hands as they were, slow ones slowed."


def _check_slowed(
    slow: Callable[..., Any], bank: Tensor, factor: float, trained: int, turns: float
) -> None:
    given = bank.clone()
    got = as_tensor(untouched(slow, given, factor, trained, turns))
    expect_shape(got, tuple(bank.shape))
    expect(bool(got.isfinite().all()), "A speed is not a number, or infinite.")
    made = trained * bank / (2 * math.pi)
    times = bank / got  # how many times slower each hand has become
    right = torch.where(made >= turns, 1.0, float(factor)).double()
    if close(times, right, 1e-4):
        return
    what = f"With {len(bank)} hands, factor {factor:g}, {trained:,} tokens and "
    what += f"turns={turns:g}"
    back = torch.where(made >= turns, float(factor), 1.0).double()
    same = {
        "you slowed each hand by the factor. That is PI.": torch.full_like(
            right, factor
        ),
        "you changed no speed.": torch.ones_like(right),
        "you kept the hands with too few turns and slowed the others.": back,
        "your slow hands became faster. Divide the speed by the factor.": 1 / right,
        "the hands that you kept turn by at least that many *radians*. A full turn is "
        "2π.": torch.where(made * 2 * math.pi >= turns, 1.0, float(factor)).double(),
    }
    for message, other in same.items():
        expect(not close(times, other, 1e-4), f"{what} {message}")
    wrong = ((times - right).abs() > 1e-4).nonzero()[0].item()
    place = int(wrong)
    mine, wanted = apart(float(times[place]), float(right[place]))
    raise Wrong(
        f"{what}: the hand at place {place} makes {float(made[place]):.3f} turns. It "
        f"should be {wanted} times slower; yours is {mine} times slower."
    )


@exercise(
    "13.4",
    "Fix the cached keys",
    difficulty=4,
    minutes=7,
    hints=(
        "The key at position m was turned by m times the old speeds. It should have "
        "been turned by m times the new ones. Turns add up: what is missing?",
        "What is missing is a turn at the speeds new - old: cos_sin(positions, "
        "new - old), then rotate.",
    ),
    solution='''
def fixed(keys, old, new):
    """Return the keys (seq, dim) as if rotated with new."""
    positions = torch.arange(len(keys))
    return rotate(keys, *cos_sin(positions, new - old, keys.dtype))
''',
    why="R(m · old), then R(m · (new - old)), is R(m · new): lesson 04. A cache of "
    "unrotated keys would need no fix, but it would need a rotation at every step.",
)
def fix_the_cached_keys(fixed: Callable[..., Any]) -> str:
    for seq, dim, factor in ((20, 16, 4.0), (7, 8, 2.0), (64, 32, 4.0)):
        generator = torch.Generator().manual_seed(seq)
        raw = torch.randn(seq, dim, generator=generator)
        old = inverse_frequencies(dim)
        new, _ = ntk_aware(dim, 1e4, factor=factor)
        cached, right = _turned(raw, old), _turned(raw, new)
        got = as_tensor(untouched(fixed, cached.clone(), old.clone(), new.clone()))
        expect_shape(got, (seq, dim))
        expect(
            not close(got, cached),
            "These are the keys unchanged from the cache: they match queries at the "
            "old speeds.",
        )
        expect(
            not close(got, _turned(cached, new)),
            "You turned the keys by the new angles on top of the old ones. They were "
            "already turned: only the difference is missing.",
        )
        expect(
            not close(got, _turned(cached, old - new)),
            "The turn goes the wrong way: you turned by old - new. Which speed do you "
            "have, and which do you want?",
        )
        expect(
            not close(got, _turned(cached, -old)),
            "You undid the old turn and stopped there: these keys are not rotated. Now "
            "turn them by the new speeds.",
        )
        expect(
            not close(got, _turned(cached, new - old, "half")),
            "The angles are right, but these keys have interleaved pairs, not half.",
        )
        wrong = (got - right).abs().amax(-1) > 1e-3
        if not wrong.any():
            continue
        first = int(wrong.double().argmax())
        none = " The key at position 0 needs no turn." if first == 0 else ""
        raise Wrong(
            f"{int(wrong.sum())} of {seq} keys differ from keys rotated with the new "
            f"speeds, first the one at position {first}.{none}"
        )
    return "It costs one rotation of the whole cache every time the speeds change."


def _near(got: float, expected: float) -> bool:
    return math.isclose(got, expected, rel_tol=1e-3)


def _turned(x: Tensor, inv_freq: Tensor, pairing: Any = "interleaved") -> Tensor:
    cos, sin = cos_sin(torch.arange(len(x)), inv_freq, x.dtype)
    return rotate(x, cos, sin, pairing)
