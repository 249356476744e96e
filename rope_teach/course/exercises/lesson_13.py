"""The exercises of lesson 13: rules for longer context."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises import (
    as_tensor,
    close,
    exercise,
    expect,
    expect_shape,
    hand_numbers,
    number,
)
from rope_teach.frequencies import inverse_frequencies, ntk_aware, wavelengths
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
    for length, trained in ((256, 64), (96, 64), (40, 64)):
        got = as_tensor(positions_for(length, trained))
        expect_shape(got, (length,))
        plain = torch.arange(length, dtype=torch.float64)
        right = plain / max(1.0, length / trained)
        what = f"With length={length} and trained={trained}"
        if length <= trained:
            expect(
                not close(got, plain * trained / length, 1e-3),
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
        expect(
            close(got, right, 1e-3),
            f"{what} token 1 should be at {right[1]:.3f}, yours is at {got[1]:.3f}; "
            f"the last should be at {right[-1]:.2f}, yours is at {got[-1]:.2f}.",
        )
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
    for base, rotary_dim, factor in ((1e4, 16, 4.0), (5e5, 128, 8.0)):
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
        expect(
            _near(float(inverse_frequencies(rotary_dim, got)[-1]), right),
            f"{what} your base {got:,.0f} slows the last hand by {slowed:.2f}.",
        )
    return (
        "Only the last hand slows by the full factor; the first one does not slow at "
        "all."
    )


@exercise(
    "13.3",
    "Which hands Llama 3 keeps",
    difficulty=2,
    minutes=5,
    hints=(
        "A hand with wavelength λ makes T / λ turns in T tokens.",
        "Compute wavelengths(inverse_frequencies(rotary_dim, base)) and keep the "
        "numbers i at which trained / wavelength is at least 4.",
    ),
    solution='''
def kept(rotary_dim, base, trained):
    """Return the numbers of the hands, fastest first."""
    turn = wavelengths(inverse_frequencies(rotary_dim, base))
    return [i for i, tokens in enumerate(turn) if trained / tokens >= 4]
''',
    why="From four turns on, the blend keeps the old speed unchanged. The wavelength "
    "is then at most a quarter of the trained length.",
)
def which_hands_llama_3_keeps(kept: Callable[..., Any]) -> str:
    for rotary_dim, base, trained in ((128, 5e5, 8192), (64, 1e4, 2048)):
        hands = hand_numbers(kept(rotary_dim, base, trained))
        turns = trained / wavelengths(inverse_frequencies(rotary_dim, base))
        right = _numbers(turns >= 4)
        what = f"With rotary_dim={rotary_dim}, base {base:,.0f}, trained={trained:,}"
        expect(
            hands != _numbers(turns < 4),
            f"{what} you listed the slow hands. Those are the ones that are changed.",
        )
        expect(
            hands != _numbers(turns >= 1),
            f"{what} you listed all hands that came round once. Between 1 and 4 turns "
            "a hand is slowed partly.",
        )
        expect(
            hands != _numbers(turns >= 1 / 4),
            f"{what} you kept wavelengths up to 4 times the trained length. Four turns "
            "need a wavelength of at most a quarter of it.",
        )
        expect(
            hands != _numbers(turns >= 32),
            f"{what} you kept hands with at least 32 turns: that is YaRN. Llama 3 uses "
            "4.",
        )
        expect(
            hands != _numbers(turns * 2 * math.pi >= 4),
            f"{what} you used 1/θ as the wavelength. A full turn needs 2π/θ tokens.",
        )
        expect(
            hands != [i + 1 for i in right],
            f"{what} you counted the hands from 1. The fastest is hand 0.",
        )
        expect(
            sorted(hands) == right,
            f"{what} the answer is hands 0 to {right[-1]}; you gave {len(hands)} "
            f"hands: {hands[:3]}...",
        )
        expect(hands == right, "The right hands, but not fastest first.")
    return (
        "Llama 3.1 keeps 29 of its 64 hands, slows 29 by 8, and blends the 6 in "
        "between."
    )


@exercise(
    "13.4",
    "Mend the cached keys",
    difficulty=4,
    minutes=7,
    hints=(
        "The key at position m was turned by m times the old speeds. It should have "
        "been turned by m times the new ones. Turns add up: what is missing?",
        "What is missing is a turn at the speeds new - old: cos_sin(positions, "
        "new - old), then rotate.",
    ),
    solution='''
def mended(keys, old, new):
    """Return the keys (seq, dim) as if rotated with new."""
    positions = torch.arange(len(keys))
    return rotate(keys, *cos_sin(positions, new - old, keys.dtype))
''',
    why="R(m · old), then R(m · (new - old)), is R(m · new): lesson 04. A cache of "
    "unrotated keys would need no repair, but it would need a rotation at every step.",
)
def mend_the_cached_keys(mended: Callable[..., Any]) -> str:
    for seq, dim, factor in ((20, 16, 4.0), (7, 8, 2.0)):
        generator = torch.Generator().manual_seed(seq)
        raw = torch.randn(seq, dim, generator=generator, dtype=torch.float64)
        old = inverse_frequencies(dim)
        new, _ = ntk_aware(dim, 1e4, factor=factor)
        cached, right = _turned(raw, old), _turned(raw, new)
        got = as_tensor(mended(cached.clone(), old.clone(), new.clone()))
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
        wrong = (got - right).abs().amax(-1) > 1e-4
        expect(
            not wrong[0],
            "Your keys differ from keys rotated with the new speeds already at "
            "position 0, whose key needs no turn. Do your positions begin at 0?",
        )
        expect(
            not wrong.any(),
            f"{int(wrong.sum())} of {seq} keys differ from keys rotated with the new "
            f"speeds, first at position {int(wrong.double().argmax())}.",
        )
    return "It costs one rotation of the whole cache every time the speeds change."


def _near(got: float, expected: float) -> bool:
    return math.isclose(got, expected, rel_tol=1e-3)


def _numbers(chosen: Tensor) -> list[int]:
    return [int(i) for i in chosen.nonzero().flatten()]


def _turned(x: Tensor, inv_freq: Tensor, pairing: Any = "interleaved") -> Tensor:
    cos, sin = cos_sin(torch.arange(len(x)), inv_freq, x.dtype)
    return rotate(x, cos, sin, pairing)
