"""The exercises of lesson 21: judge explanations, choose a base and a rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rope_teach import laws
from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import apart, close, expect_shape
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor, number
from rope_teach.frequencies import inverse_frequencies
from rope_teach.ops import rotate
from rope_teach.tables import angles, cos_sin

Measured = dict[str, dict[str, float]]


@exercise(
    "21.1",
    "Three more explanations",
    difficulty=2,
    minutes=6,
    hints=(
        "Try position 0 first: whose output differs from the input there? Then ask of "
        "the remaining one whether the two features of a pair get the same angle.",
        "A is right at position 0, but does not keep the length of a vector. B has the "
        "right numbers in the wrong places, which shows at position 0. C adds: what "
        "does a turn do to a sum, or to a vector's length?",
    ),
    solution="""
broken = {"A": "norm_is_kept", "B": "identity_at_zero", "C": "is_linear"}
""",
    why="Each law is best at catching one kind of mistake. A mixes a table for one "
    "pairing with a rotation for the other, B reorders the features, C describes "
    "sinusoidal positions.",
)
def three_more_explanations(broken: Mapping[str, Any]) -> str:
    expect(
        isinstance(broken, Mapping) and set(broken) == set(EXPLANATIONS),
        'Answer with a dict of three: {"A": ..., "B": ..., "C": ...}.',
    )
    named: set[str] = set()
    for letter, told in EXPLANATIONS.items():
        name = getattr(broken[letter], "__name__", broken[letter])
        expect(
            name is not ...,
            f"{letter} is still missing. Each of the three breaks a law.",
        )
        expect(
            isinstance(name, str) and name in laws.LAWS,
            f"{letter}: there is no law {name!r}. They are {', '.join(laws.LAWS)}.",
        )
        expect(_breaks(told, name), f"{letter}: {_kept(letter, name)}")
        expect(
            name not in named,
            f"{letter}: {name} is right, but you have named it already. A law that "
            "several of them break says little about each: name a different one.",
        )
        named.add(name)
    return (
        "Compute an explanation at one position past 0, and you see what it is worth."
    )


@exercise(
    "21.2",
    "Against fading",
    difficulty=3,
    minutes=5,
    hints=(
        "A dot product of two vectors of fixed length is highest when they are equal. "
        "Which key equals the query, once both are turned by their positions?",
        "The query at m turns by m, the key by m - distance. The key must contain the "
        "missing turn from the start: rotate q by +distance.",
    ),
    solution='''
def key_for(q, distance, inv_freq):
    """Return the key (d,), not yet rotated by its position."""
    table = cos_sin(torch.tensor(distance), inv_freq, q.dtype)
    return rotate(q, *table)
''',
    why="R_m q equals R_(m - distance) applied to R_distance q. So any distance can be "
    "the favourite: rotation does not force fading.",
)
def against_fading(key_for: Callable[..., Any]) -> str:
    cases = ((16, 37, 1e4), (64, 1500, 5e5), (32, 5, 100.0), (8, 1, 1e4))
    for seed, (d, distance, base) in enumerate(cases):
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(d, generator=generator, dtype=torch.float64)
        bank = inverse_frequencies(d, base)
        key = as_tensor(untouched(key_for, q, distance, bank))
        expect_shape(key, (d,))
        what = f"With d={d}, base {base:,.0f} and a distance of {distance}"
        expect(
            not close(key, q),
            f"{what} your key is the query itself: it scores best at distance 0.",
        )
        expect(
            not close(key, _turned(q, -distance, bank)),
            f"{what} your key is turned the wrong way: it would score best {distance} "
            "tokens *after* the query.",
        )
        table = cos_sin(torch.tensor(distance), bank, q.dtype)
        half = rotate(q, *table, pairing="half")
        expect(
            not close(key, half),
            f"{what} you rotated with half pairs. Here features 0 and 1 are a pair: "
            '"interleaved".',
        )
        mine, right = float(key.norm()), float(q.norm())
        expect(
            math.isclose(mine, right, rel_tol=1e-4),
            "{} your key has length {}, q has {}. Give it the length of q: a longer "
            "key always scores higher, which says nothing about distance.".format(
                what, *apart(mine, right)
            ),
        )
        usual = _turned(q, distance, inverse_frequencies(d))
        expect(
            base == 1e4 or not close(key, usual),
            f"{what} your key is right for base 10,000. The speeds are in inv_freq.",
        )
        scores = _scores_before(q, key, bank, 4 * distance)
        best = int(scores.argmax())
        expect(
            best == distance,
            f"{what} your key scores best {best} tokens before the query.",
        )
        score, highest = float(scores[distance]), float(q @ q)
        expect(
            math.isclose(score, highest, rel_tol=1e-4),
            "{} your key scores best there, with {}. Another key of this length "
            "reaches {} there. Does each hand point where the query's will?".format(
                what, *apart(score, highest)
            ),
        )
    return (
        "Any distance can be the favourite of some key: rotation does not force fading."
    )


@exercise(
    "21.3",
    "A base for a model",
    difficulty=2,
    minutes=5,
    hints=(
        "angles(torch.arange(20_000), inverse_frequencies(64, base)).cos().mean(-1) "
        "is the mean cosine at each distance, as in lesson 08.",
        "(mean < 0).nonzero()[0] is the first distance where it is negative. For which "
        "of the three bases is that past 8,192?",
    ),
    solution="""
def first_negative(base):
    bank = inverse_frequencies(64, base)
    mean = angles(torch.arange(20_000), bank).cos().mean(-1)
    return (mean < 0).nonzero()[0].item()


choice = (500_000, first_negative(500_000))
""",
    why="200,000 reaches its limit at 6,462 and a million at 6,235: past some point a "
    "larger base brings the limit closer at first. By this rule of thumb half a "
    "million is right.",
)
def a_base_for_a_model(choice: Any) -> str:
    expect(
        hasattr(choice, "__len__")
        and not isinstance(choice, (str, dict, set))
        and len(choice) == 2,
        "Answer with two numbers: (base, distance).",
    )
    expect(
        not any(value is ... or value is None for value in choice),
        "One of the two is still missing: (base, distance).",
    )
    base, distance = (number(value) for value in choice)
    expect(
        base in (200_000, 500_000, 1_000_000),
        f"{base:,.0f} is not one of the three bases. (Does the base come first?)",
    )
    mean = angles(torch.arange(20_000), inverse_frequencies(64, base)).cos().mean(-1)
    first = int((mean < 0).nonzero()[0])
    smaller = (
        "A larger base is not always better: try a smaller one."
        if base > 500_000
        else "Larger bases reach further, up to a point."
    )
    expect(
        first > 8192,
        f"Base {base:,.0f}: at distance {first:,} the mean cosine is "
        f"{float(mean[first]):.4f}, inside the context. {smaller}",
    )
    half = torch.arange(20_000)[:, None] * base ** (-torch.arange(32) / 64)
    slip = (half.cos().mean(-1) < 0).nonzero()
    expect(
        not (len(slip) and distance == int(slip[0])),
        f"{distance:,.0f} comes from speeds with the exponent -i/d: it should be "
        "-2i/d.",
    )
    expect(
        distance != int(mean.argmin()),
        f"At {distance:,.0f} the mean cosine is lowest, but it is already negative "
        "before that.",
    )
    expect(
        distance == first,
        "The base is right, but the mean cosine does not first become negative at "
        f"distance {distance:,.0f}. Find the first distance below 0, counting from 0.",
    )
    return (
        "Bigger is not always better: a million would have reached its limit at 6,235."
    )


@exercise(
    "21.4",
    "A rule for a product",
    difficulty=3,
    minutes=6,
    hints=(
        "Two steps: first discard the rules that cost too much on short texts, then "
        "take the best of the rest.",
        'allowed = [rule for rule in measured if measured[rule]["short bits"] <= '
        'measured["none"]["short bits"] + 0.05], then max(allowed, key=...).',
    ),
    solution='''
def choose(measured):
    """measured: {rule: {"short bits": ..., "found": ...}}"""
    limit = measured["none"]["short bits"] + 0.05
    allowed = [rule for rule in measured
               if measured[rule]["short bits"] <= limit]
    return max(allowed, key=lambda rule: measured[rule]["found"])
''',
    why="The best rule depends on what must not get worse. With a different limit, or "
    "after some training, a different rule would win.",
)
def a_rule_for_a_product(choose: Callable[..., Any]) -> str:
    for table in TABLES:
        given = {name: dict(row) for name, row in table.items()}
        try:
            rule = untouched(choose, given)
        except (ValueError, IndexError, StopIteration) as error:
            raise Wrong(
                f"For the rules {', '.join(table)} your function raised "
                f"{type(error).__name__}: {error}. A rule is always left: none costs "
                "nothing more than itself."
            ) from None
        limit = table["none"]["short bits"] + 0.05
        allowed = [name for name in table if table[name]["short bits"] <= limit]
        expect(
            isinstance(rule, str) and rule in table,
            f"Return the name of a rule, one of {', '.join(table)}; you gave {rule!r}.",
        )
        row, right = table[rule], max(allowed, key=lambda name: table[name]["found"])
        expect(
            rule == right or rule not in allowed or table[right]["short bits"] != limit,
            f"{right} finds {table[right]['found']:.2f}, and costs 0.05 bits more than "
            f"none: at most 0.05 allows just that. {rule} finds {row['found']:.2f}.",
        )
        expect(
            rule != min(table, key=lambda name: table[name]["short bits"])
            or rule == right,
            f"{rule} has the fewest bits on short texts, and finds {row['found']:.2f}. "
            "Other rules cost hardly more and find more.",
        )
        expect(
            rule in allowed,
            f"{rule} finds {row['found']:.2f}, but its short texts cost "
            f"{row['short bits']:.2f} bits, and the limit is {limit:.2f}.",
        )
        expect(
            rule == right,
            f"{rule} is allowed and finds {row['found']:.2f}. {right} is allowed too, "
            f"and finds {table[right]['found']:.2f}.",
        )
    return "Now run choose(measured), with the table of the next slide."


def _repeated_twice(x: Tensor, positions: Tensor) -> Tensor:
    angle = angles(positions, inverse_frequencies(x.shape[-1]))
    angle = angle.repeat_interleave(2, -1)
    first, second = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()


def _put_together_by_cat(x: Tensor, positions: Tensor) -> Tensor:
    table = cos_sin(positions, inverse_frequencies(x.shape[-1]), x.dtype)
    turned = rotate(x, *table)
    return torch.cat([turned[..., ::2], turned[..., 1::2]], -1)


def _added(x: Tensor, positions: Tensor) -> Tensor:
    angle = angles(positions, inverse_frequencies(x.shape[-1]))
    return x + torch.cat([angle.cos(), angle.sin()], -1)


EXPLANATIONS = {"A": _repeated_twice, "B": _put_together_by_cat, "C": _added}

TABLES: tuple[Measured, ...] = tuple(
    {name: {"short bits": bits, "found": found} for name, (bits, found) in rows.items()}
    for rows in (
        {"none": (1.0, 0.0), "PI": (4.0, 0.1), "a": (1.04, 0.7), "b": (1.2, 0.9)},
        {"b": (2.01, 0.3), "a": (2.02, 0.8), "c": (2.08, 0.9), "none": (2.0, 0.1)},
        {"a": (0.9, 0.6), "none": (0.5, 0.4), "b": (0.4, 0.5), "c": (0.6, 0.9)},
        {"a": (1.02, 0.3), "b": (1.3, 0.9), "none": (1.0, 0.5), "c": (0.9, 0.1)},
        {"a": (1.2, 0.8), "none": (1.0, 0.1), "b": (1.4, 0.9)},  # none is left alone
        {"none": (0.25, 0.1), "a": (0.3, 0.8), "b": (0.31, 0.9)},  # a: just at most
    )
)


def _breaks(rotation: Callable[..., Tensor], name: str) -> bool:
    try:
        laws.LAWS[name](rotation)
    except laws.LawBroken:
        return True
    return False


def _kept(letter: str, name: str) -> str:
    at_zero = "sin 0 is 0 and cos 0 is 1, so nothing goes wrong at position 0"
    reasons = {
        ("A", "identity_at_zero"): at_zero,
        ("B", "norm_is_kept"): "its numbers are right, only in other places",
        ("B", "only_the_difference_counts"): "q and k are reordered alike, which does "
        "not change a dot product",
        ("C", "every_pair_turns"): "each feature does change at position 3",
    }
    reason = reasons.get((letter, name), "compute it: the law holds for this one")
    return f"it obeys {name}: {reason}. Which other law does it break?"


def _turned(x: Tensor, position: int, bank: Tensor) -> Tensor:
    return rotate(x, *cos_sin(torch.tensor(position), bank, x.dtype))


def _scores_before(q: Tensor, key: Tensor, bank: Tensor, longest: int) -> Tensor:
    """Return the scores of a key placed 0 to ``longest`` tokens before q."""
    places = longest - torch.arange(longest + 1)
    there = rotate(key.expand(longest + 1, -1), *cos_sin(places, bank, q.dtype))
    return there @ _turned(q, longest, bank)
