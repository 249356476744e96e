"""The exercises of lesson 07: interleaved and half pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach import laws
from rope_teach.checks import Pairing
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
from rope_teach.pairing import (
    convert_projection,
    half_to_interleaved,
    interleaved_to_half,
)
from rope_teach.tables import cos_sin


@exercise(
    "7.1",
    "The way back",
    difficulty=2,
    minutes=4,
    hints=(
        "In half order, where is the partner of feature 0? It must become feature 1.",
        "With r rotated features the order is 0, r/2, 1, r/2 + 1, ... Then come the "
        "features from r on, unchanged.",
    ),
    solution='''
def way_back(head_dim, rotary_dim):
    """Return the order that puts partners side by side."""
    features = torch.arange(rotary_dim)
    pairs = torch.stack(features.chunk(2), dim=-1)
    return pairs.flatten().tolist() + list(range(rotary_dim, head_dim))
''',
    why="chunk splits the features into two halves, stack puts partners side by side, "
    "and flatten writes them in a row. The package calls this half_to_interleaved.",
)
def the_way_back(way_back: Callable[..., Any]) -> str:
    for head_dim, rotary_dim in ((8, 8), (12, 6)):
        got = as_tensor(way_back(head_dim, rotary_dim))
        features = torch.arange(head_dim)
        forward = interleaved_to_half(features, rotary_dim)
        right = half_to_interleaved(features, rotary_dim)
        what = f"With head_dim={head_dim} and rotary_dim={rotary_dim}"
        expect(
            not close(got, forward),
            f"{what} you gave {forward.tolist()}: that goes from interleaved to half. "
            "The way back is a different order: applying the same one twice does not "
            "undo it.",
        )
        expect(
            rotary_dim == head_dim or not close(got, half_to_interleaved(features)),
            f"{what} only the first {rotary_dim} features are rotated. The partner of "
            f"feature 0 is {rotary_dim // 2} places further on, and features from "
            f"{rotary_dim} on stay where they are.",
        )
        expect(
            not close(got, features),
            f"{what} nothing moved: features 0 and 1 still belong to two different "
            "hands.",
        )
        expect(
            rotary_dim == head_dim or not close(got, right[:rotary_dim]),
            f"{what} you lost the features that are not rotated. They belong at the "
            "end.",
        )
        expect_shape(got, (head_dim,))
        expect(
            close(got, right),
            f"{what} the order is {right.tolist()}; you gave {got.int().tolist()}.",
        )
    return "Partners are side by side again. The same index reorders the rows of W_q."


@exercise(
    "7.2",
    "Convert a grouped-query key",
    difficulty=3,
    minutes=6,
    hints=(
        "Three questions: how many heads does W_k have, how many features of each are "
        "rotated, and in which direction does the conversion go?",
        "convert_projection(weight, heads, source, target, rotary_dim) does the work. "
        "W_k has num_key_value_heads heads.",
    ),
    solution='''
def convert_key(weight, config):
    """Return W_k for interleaved pairs; it was trained with half."""
    rotary_dim = int(config["head_dim"] * config["partial_rotary_factor"])
    return convert_projection(
        weight, config["num_key_value_heads"], "half", "interleaved", rotary_dim
    )
''',
    why="The key projection has its own, smaller number of heads. In each of them, "
    "only the rotated features have partners to be moved next to.",
)
def convert_a_key(convert_key: Callable[..., Any]) -> str:
    for heads, kv_heads, factor in ((8, 2, 1.0), (6, 3, 0.5)):
        config = {
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 24,
            "partial_rotary_factor": factor,
        }
        rows, rotary_dim = kv_heads * 24, int(24 * factor)
        weight = torch.arange(rows, dtype=torch.float64)[:, None] * torch.ones(5)
        got = as_tensor(convert_key(weight.clone(), dict(config)))

        def by(
            count: int,
            part: int | None,
            source: Pairing = "half",
            target: Pairing = "interleaved",
            given: Tensor = weight,
        ) -> Tensor:
            return convert_projection(given, count, source, target, part)

        expect(
            not close(got, weight),
            "The weight came back unchanged: the program would still find half pairs.",
        )
        expect(
            not close(got, by(kv_heads, rotary_dim, "interleaved", "half")),
            "You went from interleaved to half. This checkpoint is in half order and "
            "must become interleaved.",
        )
        expect(
            not any(
                close(got, by(heads, part)) for part in _parts(heads, rows, factor)
            ),
            f"W_k has {kv_heads} heads of 24 rows. You cut its {rows} rows into "
            f"{heads} pieces, one for each query head: num_key_value_heads counts the "
            "key heads.",
        )
        shared = heads // kv_heads
        expect(
            not any(
                close(got, by(shared, part)) for part in _parts(shared, rows, factor)
            ),
            f"You divided the two head counts: {shared} query heads share one key "
            f"head. W_k has {kv_heads} heads, num_key_value_heads.",
        )
        expect(
            not close(got, by(1, None)),
            f"You reordered all {rows} rows as one head. Each of the {kv_heads} heads "
            "is reordered on its own.",
        )
        expect(
            factor == 1 or not close(got, by(kv_heads, None)),
            f"You reordered all 24 features of each head, but with "
            f"partial_rotary_factor={factor:g} only {rotary_dim} are rotated. The "
            "others stay in their rows.",
        )
        expect_shape(got, (rows, 5))
        expect(
            close(got, by(kv_heads, rotary_dim)),
            f"With {config} the first eight rows should be the old rows "
            f"{by(kv_heads, rotary_dim)[:8, 0].int().tolist()}; yours are "
            f"{got[:8, 0].int().tolist()}.",
        )
    return (
        "The right number of heads, and only the rotated rows. Public converters got "
        "the first of these wrong."
    )


def _parts(heads: int, rows: int, factor: float) -> list[int | None]:
    """How many features a converter that miscounts the heads may have reordered."""
    part = int(rows // heads * factor)
    return [None, part] if part and part % 2 == 0 else [None]


@exercise(
    "7.3",
    "The detector",
    difficulty=3,
    minutes=6,
    hints=(
        "Put a 1 in feature 0 and rotate it to position 1. Which other feature is not "
        "zero?",
        "The partner of feature 0 is feature 1 for interleaved pairs. If it is any "
        "other feature, the pairing is half. Its sign does not matter.",
    ),
    solution='''
def pairing_of(turn):
    """Return "interleaved" or "half"."""
    out = turn(torch.eye(8)[:1], torch.tensor([1]))
    return "interleaved" if out[0, 1].abs() > 1e-6 else "half"
''',
    why="Only feature 0 and its partner can be nonzero. Feature 1 is the partner only "
    "for interleaved pairs, whatever the sign, the speeds and the part that is "
    "rotated.",
)
def the_detector(pairing_of: Callable[..., Any]) -> str:
    # Slow and fast hands, both ways round, the whole head and a part of it.
    for base, sign, rotary_dim in (
        (1e4, 1, 8), (1e4, -1, 8), (1e4, 1, 4), (1e4, -1, 4), (100.0, 1, 8)
    ):  # fmt: skip
        for pairing in ("interleaved", "half"):
            seen: list[int] = []

            def turn(
                x: Tensor,
                positions: Tensor,
                base: float = base,
                sign: int = sign,
                rotary_dim: int = rotary_dim,
                pairing: Any = pairing,
                seen: list[int] = seen,
            ) -> Tensor:
                positions = torch.as_tensor(positions)
                seen += positions.flatten().tolist()
                inv_freq = inverse_frequencies(rotary_dim, base)
                cos, sin = cos_sin(positions, inv_freq, torch.float64)
                return rotate(x, cos, sign * sin, pairing)

            got = pairing_of(turn)
            _judge_detection(got, pairing, seen, sign, rotary_dim)
    return (
        "Right for both pairings, both signs and partial rotary, without reading a "
        "line of anyone's code."
    )


def _judge_detection(
    got: Any, pairing: str, seen: list[int], sign: int, rotary_dim: int
) -> None:
    expect(got is not None, "Your function returns nothing. Is there a `return`?")
    expect(
        got in ("interleaved", "half"),
        f'The answer must be "interleaved" or "half"; you gave {got!r}.',
    )
    expect(
        bool(seen),
        "You never called turn(x, positions), so you cannot know what it does.",
    )
    expect(
        any(seen) or got == pairing,
        "You tried only position 0. No hand has turned there, so every pairing gives "
        "the input back.",
    )
    expect(
        got == pairing or sign == 1,
        f"You answered {got!r} for a clockwise rotation with {pairing} pairs. Its sine "
        "comes out negative: look at its place, not at its sign.",
    )
    expect(
        got == pairing or rotary_dim == 8,
        f"You answered {got!r} for a rotation of the first {rotary_dim} of 8 features, "
        f"with {pairing} pairs. Half pairs are then (0, {rotary_dim // 2}), not (0, "
        "4).",
    )
    expect(
        got == pairing,
        f"You answered {got!r} for a rotation with {pairing} pairs. Which feature of "
        "the output gets the sine when a 1 goes into feature 0?",
    )


@exercise(
    "7.4",
    "Repair the mixed code",
    difficulty=2,
    minutes=4,
    hints=(
        "rotate_half belongs to half pairs. Which other line of `mixed` assumes a "
        "pairing?",
        'The table must repeat for half pairs too: full_table(t, "half").',
    ),
    solution='''
def repaired(x, positions):
    """Rotate x (seq, head_dim) with half pairs."""
    inv_freq = inverse_frequencies(x.shape[-1])
    table = cos_sin(positions, inv_freq, x.dtype)
    cos, sin = (full_table(t, "half") for t in table)
    return x * cos + rotate_half(x) * sin
''',
    why="Table and rotation must agree on which features are partners. Of the two ways "
    "to make them agree, this is the one that the checkpoint needs.",
)
def repair_the_mixed_code(repaired: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    positions = torch.tensor([1, 2, 30, 400])
    got = as_tensor(repaired(x.clone(), positions))
    expect_shape(got, (4, 8))
    cos, sin = cos_sin(positions, inverse_frequencies(8), torch.float64)
    expect(
        not close(got, rotate(x, cos, sin, "interleaved"), 1e-3),
        "This is a rotation now, but with interleaved pairs. The checkpoint was "
        "trained with half pairs, so its logits would be wrong.",
    )
    expect(
        not close(got, rotate(x, cos, -sin, "half"), 1e-3),
        "Half pairs, but clockwise: the sine has the wrong sign.",
    )
    try:
        laws.check_all(repaired)
    except laws.LawBroken as broken:
        raise Wrong(f"A law is broken: {broken}.") from None
    expect(
        close(got, rotate(x, cos, sin, "half"), 1e-3),
        "Every law holds, but this is not the rotation with half pairs, base 10,000 "
        "and this course's sign.",
    )
    return "Every law holds, and the pairing is the checkpoint's."
