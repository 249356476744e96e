"""The exercises of lesson 07: interleaved and half pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach import laws
from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import close, expect_close, expect_shape
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor
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
    for head_dim, rotary_dim in ((8, 8), (12, 6), (20, 16), (10, 2)):
        answer = way_back(head_dim, rotary_dim)
        got = as_tensor(answer)
        features = torch.arange(head_dim)
        forward = interleaved_to_half(features, rotary_dim)
        right = half_to_interleaved(features, rotary_dim)
        what = f"With head_dim={head_dim} and rotary_dim={rotary_dim}"
        expect(
            close(got, right) or not close(got, forward),
            f"{what} you gave {forward.tolist()}: that goes from interleaved to half. "
            "The way back is a different order: applying the same one twice does not "
            "undo it.",
        )
        expect(
            close(got, right) or not close(got, half_to_interleaved(features)),
            f"{what} only the first {rotary_dim} features are rotated. The partner of "
            f"feature 0 is {rotary_dim // 2} places further on, and features from "
            f"{rotary_dim} on stay where they are.",
        )
        expect(
            close(got, right) or not close(got, features),
            f"{what} nothing moved: features 0 and 1 still belong to two different "
            "hands.",
        )
        expect(
            rotary_dim == head_dim or not close(got, right[:rotary_dim]),
            f"{what} you lost the features that are not rotated. They belong at the "
            "end.",
        )
        expect_shape(got, (head_dim,))
        expect_close(got, right, f"{what} look at your order.")
        try:
            features[..., answer]
        except (IndexError, TypeError) as error:
            raise Wrong(
                f"{what} the numbers are right, but x[..., index] stops with "
                f"{type(error).__name__}: {error}. An index is made of whole numbers."
            ) from None
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
    for heads, kv_heads, factor in ((8, 2, 1.0), (6, 3, 0.5), (4, 4, 0.25)):
        config = {
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 24,
            "partial_rotary_factor": factor,
        }
        rows, rotary_dim = kv_heads * 24, int(24 * factor)
        numbers = torch.arange(rows, dtype=torch.float64)[:, None]
        weight = torch.cat([numbers, numbers.sin() + torch.arange(4)], dim=1)
        right = convert_projection(weight, kv_heads, "half", "interleaved", rotary_dim)
        try:
            got = as_tensor(untouched(convert_key, weight.clone(), dict(config)))
        except ValueError as error:
            _expect_key_heads(convert_key, weight, config, right, str(error))
            raise
        if close(got, right):
            continue
        _expect_key_heads(convert_key, weight, config, right)
        expect(
            not close(got, weight),
            "The weight came back unchanged: the program would still find half pairs.",
        )
        expect(
            not any(
                close(
                    got,
                    convert_projection(weight, kv_heads, "interleaved", "half", part),
                )
                for part in (rotary_dim, None)
            ),
            "You went from interleaved to half. This checkpoint is in half order and "
            "must become interleaved.",
        )
        expect(
            not any(
                close(got, convert_projection(weight, 1, "half", "interleaved", part))
                for part in (None, int(rows * factor))
            ),
            f"You reordered the {rows} rows as one head. Each of the {kv_heads} heads "
            "is reordered on its own.",
        )
        expect(
            not close(got, convert_projection(weight, kv_heads, "half", "interleaved")),
            f"You reordered all 24 features of each head, but with "
            f"partial_rotary_factor={factor:g} only {rotary_dim} are rotated. The "
            "others stay in their rows.",
        )
        expect_close(
            got,
            right,
            f"With {config}, a weight whose column 0 holds the numbers of the rows:",
        )
    return (
        "The right number of heads, and only the rotated rows. Public converters got "
        "the first of these wrong."
    )


def _expect_key_heads(
    convert_key: Callable[..., Any],
    weight: Tensor,
    config: dict[str, Any],
    right: Tensor,
    stopped: str = "",
) -> None:
    """Whether the answer is right as soon as both head counts are those of the key."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    alike = {**config, "num_attention_heads": kv_heads}
    try:
        helps = close(convert_key(weight.clone(), alike), right)
        if not helps and kv_heads * kv_heads != heads:  # a quotient of the two?
            alike["num_attention_heads"] = kv_heads * kv_heads
            helps = close(convert_key(weight.clone(), alike), right)
    except Exception:
        helps = False
    expect(
        not helps,
        f"With {heads} query heads and {kv_heads} key heads your result depends on "
        "num_attention_heads"
        + (f", and the conversion stops: {stopped}." if stopped else ".")
        + f" W_k has {kv_heads} heads of 24 rows: num_key_value_heads counts them.",
    )


@exercise(
    "7.3",
    "The detector",
    difficulty=4,
    minutes=8,
    hints=(
        "Put a 1 in one feature and rotate it to position 1. Which other feature is "
        "not zero? If none is, this feature does not turn: try the next.",
        "The first feature that turns has its partner next to it if pairs are "
        "interleaved, and further on if they are half. The sign does not matter.",
    ),
    solution='''
def pairing_of(turn):
    """Return "interleaved" or "half"."""
    for feature in range(8):
        out = turn(torch.eye(8)[[feature]], torch.tensor([1]))[0]
        out[feature] = 0
        if out.abs().max() > 1e-6:
            partner = out.abs().argmax()
            return "interleaved" if partner == feature + 1 else "half"
''',
    why="Only a feature and its partner can be nonzero. The first feature that turns "
    "is the first of its pair, and its partner is the next one only for interleaved "
    "pairs, whatever the sign, the speeds and the part that is rotated.",
)
def the_detector(pairing_of: Callable[..., Any]) -> str:
    slow = 0.05 * inverse_frequencies(8)
    still = torch.cat([torch.zeros(1), inverse_frequencies(8)[1:]]).double()
    strangers = [  # speeds, the first rotated feature, which way round, in words
        (inverse_frequencies(8), 0, 1, "a rotation"),
        (inverse_frequencies(8), 0, -1, "a clockwise rotation, whose sines come out "
         "negative,"),
        (inverse_frequencies(4), 0, 1, "a rotation of features 0 to 3 alone, where "
         "half pairs are (0, 2) and (1, 3),"),
        (inverse_frequencies(4), 4, -1, "a rotation of features 4 to 7 alone"),
        (slow, 0, 1, "a slow rotation, by 0.05 radians a token and less,"),
        (still, 0, 1, "a rotation whose first hand has speed 0"),
        (inverse_frequencies(8, 100.0), 0, 1, "a rotation with base 100"),
    ]  # fmt: skip
    for inv_freq, first, sign, words in strangers:
        for pairing in ("half", "interleaved"):
            turn, seen = _stranger(inv_freq, first, sign, pairing)
            got = pairing_of(turn)
            expect(
                got is not None,
                "Your function returned nothing for "
                + words
                + f" with {pairing} pairs.",
            )
            expect(
                isinstance(got, str) and got in ("interleaved", "half"),
                f'The answer must be "interleaved" or "half"; you gave {got!r}.',
            )
            expect(
                bool(seen) or got == pairing,
                "You never called turn(x, positions), so you cannot know what it does.",
            )
            expect(
                any(seen) or got == pairing,
                "You tried only position 0. No hand has turned there, so every pairing "
                "gives the input back.",
            )
            expect(
                got == pairing,
                f"You answered {got!r} for {words} with {pairing} "
                "pairs. Where does the sine of each feature come out?",
            )
    return (
        "Right for both pairings, both signs and partial rotary, without reading a "
        "line of anyone's code."
    )


def _stranger(
    inv_freq: Tensor, first: int, sign: int, pairing: Any
) -> tuple[Callable[..., Tensor], list[int]]:
    """Somebody's rotation of ``x`` ``(seq, 8)``, and the positions it was asked for."""
    seen: list[int] = []

    def turn(x: Tensor, positions: Tensor) -> Tensor:
        positions = torch.as_tensor(positions)
        seen.extend(positions.flatten().tolist())
        cos, sin = cos_sin(positions, inv_freq, torch.float64)
        size = 2 * len(inv_freq)
        before, part, after = x.split([first, size, 8 - size - first], -1)
        return torch.cat([before, rotate(part, cos, sign * sin, pairing), after], -1)

    return turn, seen


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
    for head_dim, dtype in ((8, torch.float64), (16, torch.float32)):
        x = torch.randn(5, head_dim, generator=generator, dtype=dtype)
        positions = torch.tensor([1, 2, 400, 30, 7])
        got = as_tensor(untouched(repaired, x.clone(), positions))
        expect_shape(got, (5, head_dim))
        inv_freq = inverse_frequencies(head_dim)

        def at(
            m: Tensor, x: Tensor = x, inv_freq: Tensor = inv_freq
        ) -> tuple[Tensor, Tensor, Tensor]:
            cos, sin = cos_sin(m, inv_freq, x.dtype)
            return x, cos, sin

        x, cos, sin = at(positions)
        expect(
            not close(got, rotate(x, cos, sin, "interleaved"), 1e-3),
            "This is a rotation now, but with interleaved pairs. The checkpoint was "
            "trained with half pairs, so its logits would be wrong.",
        )
        expect(
            not close(got, rotate(x, cos, -sin, "half"), 1e-3),
            "Half pairs, but clockwise: the sine has the wrong sign.",
        )
        expect(
            not close(got, rotate(*at(torch.arange(5)), pairing="half"), 1e-3),
            "Your rows are turned by 0, 1, 2, ... Use the positions that come in.",
        )
        expect(
            not close(got, rotate(*at(positions + 1), pairing="half"), 1e-3),
            "Each row is turned by one position too many.",
        )
    try:
        laws.check_all(lambda x, m: torch.as_tensor(repaired(x, m)))
    except laws.LawBroken as broken:
        law = str(broken).partition(" Likely cause")[0].rstrip(".")
        raise Wrong(
            f"A law is broken: {law}. laws.check_all(repaired) also says what often "
            "causes this."
        ) from None
    expect_close(
        got,
        rotate(x, cos, sin, "half"),
        "Every law holds, but this is not the rotation with half pairs, base 10,000 "
        "and this course's sign.",
        tolerance=1e-3,
    )
    return "Every law holds, and the pairing is the checkpoint's."
