"""The exercises of lesson 20: dialects and bugs, and its mystery checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rope_teach.checks import Pairing
from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import close
from rope_teach.course.exercises.student_code import untouched, uses
from rope_teach.course.exercises.values import as_tensor, number
from rope_teach.course.models import LanguageModel
from rope_teach.course.small import CodeTokens, load_small
from rope_teach.frequencies import (
    Scaling,
    inverse_frequencies,
    llama3,
    position_interpolation,
    yarn,
)
from rope_teach.identify import identify
from rope_teach.ops import rotate
from rope_teach.pairing import convert_projection
from rope_teach.rotary import RotaryEmbedding
from rope_teach.tables import cos_sin

T = TypeVar("T")
Parts = dict[str, Tensor]  # weight, bias and norm of a projection
Turn = Callable[[Tensor, Tensor], Tensor]
HEADS, KV_HEADS, HEAD_DIM = 8, 2, 32
BIAS = 8.0  # of a key's slowest hand, in the disguised small model


@exercise(
    "20.1",
    "What a permutation can fix",
    difficulty=2,
    minutes=5,
    hints=(
        "A permutation moves features to other places. What does it leave unchanged in "
        "a bank of hands?",
        "Partners may move elsewhere, and may swap with each other, which turns their "
        "hand the other way. How fast a hand turns, whether it turns at all, and how "
        "long it is stay the same.",
    ),
    solution='fixable = "ABF"',
    why="A: partners are in other places. B: swap the two features of each pair, and "
    "their hand turns the other way. F: partners are in other places again. C changes "
    "the speeds, D how many hands turn, and E their lengths.",
)
def what_a_permutation_can_fix(answer: Any) -> str:
    ask = 'Answer with letters in quotation marks, for example "CE".'
    expect(isinstance(answer, (str, list, tuple, set, frozenset)), ask)
    text = answer if isinstance(answer, str) else " ".join(map(str, answer))
    given = set(re.sub(r"[^A-Z]|\bAND\b", "", text.upper()))
    expect(bool(given), ask)
    unknown = sorted(given - set("ABCDEF"))
    expect(not unknown, f"The lines go from A to F; you gave {', '.join(unknown)}.")
    expect(
        "C" not in given,
        "C: with a different base the hands turn at different speeds. Moving a slow "
        "hand to another place does not make it fast.",
    )
    expect(
        "D" not in given,
        "D: your weights expect 32 hands that turn, but the program turns 16. No order "
        "of features makes the others turn.",
    )
    expect(
        "E" not in given,
        "E: xPos makes features longer or shorter depending on their position. A "
        "permutation changes no length.",
    )
    expect("A" in given, "A is missing: that is the permutation of lesson 07.")
    expect(
        "B" in given,
        "B is missing: look at one pair. A turn of (a, b) one way is a turn of (b, a) "
        "the other way.",
    )
    expect(
        "F" in given,
        "F is missing: the program's pairs are (63, 31), (62, 30)... They are the same "
        "pairs in other places, and that is all.",
    )
    return (
        "A permutation can move hands and mirror them. It cannot change speeds or "
        "lengths."
    )


@exercise(
    "20.2",
    "A cache that keeps its promise",
    difficulty=2,
    minutes=5,
    hints=(
        "What does the result of make depend on? All of that, and nothing else, "
        "belongs in the key.",
        "A tuple can be the key of a dict: key = (start, seq, base).",
    ),
    solution='''
def cached_table(kept, make, start, seq, base):
    """Return make(start, seq, base), computed once for each triple."""
    key = (start, seq, base)
    if key not in kept:
        kept[key] = make(start, seq, base)
    return kept[key]
''',
    why="The key holds everything that the table depends on, so no two tables share a "
    "key.",
)
def a_cache_that_keeps_its_promise(cached_table: Callable[..., Any]) -> str:
    made: list[tuple[Any, ...]] = []

    def make(start: int, seq: int, base: float) -> Tensor:
        made.append((start, seq, base))
        return _slow_table(start, seq, base)

    kept: dict[Any, Any] = {}
    for call in CALLS * 3:
        count = len(made)
        got = as_tensor(cached_table(kept, make, *call))
        new = made[count:]
        expect(
            len(new) <= 1,
            f"One call computed {len(new)} tables: look into kept first.",
        )
        expect(
            new in ([], [call]),
            f"For (start, seq, base) = {call} your code asks make for {new}. Hand "
            "all three on as they came.",
        )
        if not close(got, _slow_table(*call), 1e-9):
            raise Wrong(_whose_table(got, call, made))
        expect(
            made.count(call) == 1,
            f"{call} had been computed before, and was computed again. Is the result "
            "stored in kept, under the key that you look up, and does it stay there? "
            "(setdefault computes first, and looks it up afterwards.)",
        )
    count = len(made)
    cached_table({}, make, *CALLS[0])
    expect(
        len(made) == count + 1,
        "With an empty kept a new table must be computed; yours came from somewhere "
        "else. Two models have two dicts, and must not share a table.",
    )
    return (
        "The result of a call depends only on its arguments, and each table is "
        "computed once."
    )


CALLS: list[tuple[int, int, float]] = [
    *((0, 5, 1e4), (3, 5, 1e4), (0, 9, 1e4), (0, 5, 5e5), (0, 4, 1e4)),
    *((1, 12, 1e4), (11, 2, 1e4)),  # one sum, and the same digits
    *((2, 3, 1e4), (3, 2, 1e4)),  # one set
    *((4, 6, 500_000.0), (4, 6, 500_000.5)),  # one base, rounded
    *((-1, 6, 1e4), (-2, 6, 1e4), (2, 6, 1e4)),  # one hash, one distance from 0
    *((n, 4, 1e4) for n in range(20, 220)),  # more than a small cache holds
]


def _slow_table(start: int, seq: int, base: float) -> Tensor:
    """A table of which no row fits another call, as in dynamic NTK."""
    return seq + (start + torch.arange(seq, dtype=torch.float64)) * base


def _whose_table(
    got: Tensor, call: tuple[Any, ...], made: Sequence[tuple[Any, ...]]
) -> str:
    """What a wrong table shows: whose it is, or that it is nobody's."""
    what = f"The call with (start, seq, base) = {call}"
    twin = next((c for c in made if close(got, _slow_table(*c), 1e-9)), None)
    if twin is None:
        return f"{what} returned something other than the table that make returned."
    names = {"offset": " That is exhibit 7.", "length": "", "base": ""}
    differs = [name for name, a, b in zip(names, call, twin, strict=True) if a != b]
    if len(differs) == 1:
        return (
            f"{what} got the table of {twin}. Only the {differs[0]} tells them apart. "
            f"The {differs[0]} is missing from the key, or does not enter it as it is."
            + names[differs[0]]
        )
    return (
        f"{what} got the table of {twin}: they share one key. Keep the three numbers "
        "separate: neither a sum nor digits joined together can tell the calls apart."
    )


@exercise(
    "20.3",
    "Read the base",
    difficulty=3,
    minutes=8,
    hints=(
        "Put a 1 in the first feature of hands 0 and 1, and read their angles at "
        "position 1. In half pairs the partner of feature 0 is feature 32.",
        "Speed 0 is 1 / factor. Speed 0 divided by speed 1 is base ** (2 / 64), "
        "whatever the factor.",
    ),
    solution='''
def base_and_factor(turn):
    """Return the two numbers (base, factor)."""
    x = torch.zeros(2, 64, dtype=torch.float64)
    x[1, :2] = 1  # the first features of hands 0 and 1, at position 1
    out = turn(x, torch.tensor([0, 1]))[1]
    first, second = torch.atan2(out[32:34], out[:2])
    return (first / second) ** 32, 1 / first
''',
    why="Position interpolation divides every speed by the same factor, so it cancels "
    "in a ratio of two speeds. Hand 0 has speed 1 for every base, so it shows the "
    "factor alone.",
)
def read_the_base(base_and_factor: Callable[..., Any]) -> str:
    short_cut = uses(base_and_factor, identify)
    expect(
        not short_cut,
        f"The text asks you to do without {short_cut}: put a 1 in and look.",
    )
    for base, factor in ((10_000.0, 1.0), (500_000.0, 4.0), (1e6, 2.5), (31_416.0, 3)):
        inv_freq = inverse_frequencies(64, base) / factor

        def turn(x: Tensor, positions: Tensor, inv_freq: Tensor = inv_freq) -> Tensor:
            return rotate(x, *cos_sin(positions, inv_freq, torch.float64), "half")

        answer = base_and_factor(turn)
        expect(answer is not None, "Your function returns nothing.")
        expect(
            not isinstance(answer, (str, Mapping, set)),
            f"Return two numbers, (base, factor), not a {type(answer).__name__}.",
        )
        answer = as_tensor(answer).flatten()
        expect(len(answer) == 2, "Return two numbers, (base, factor).")
        expect(
            not answer.isnan().any(),
            "A number came out as nan: 0 divided by 0, or the root, log or acos of a "
            "number that has none. Did the feature turn that you read? In half pairs "
            "the partner of feature 0 is feature 32, not 1.",
        )
        expect(
            not answer.isinf().any(),
            "A number came out infinite: was an angle 0? Perhaps that feature did not "
            "turn (in half pairs the partner of feature 0 is feature 32), or its angle "
            "is too small for acos in float32; atan2 reads it.",
        )
        got = number(answer[0]), number(answer[1])
        what = f"With base {base:,.0f} and factor {factor:g}"
        step = base ** (1 / 32)
        known = {
            "base and factor are swapped.": (factor, base),
            "the base came out as its square: hand 1 has the exponent -2/64, so the "
            "ratio of speeds is base ** (1/32).": (base**2, factor),
            "the base came out as its square root: hand 1 has the exponent -2/64, so "
            "the ratio of speeds is base ** (1/32).": (math.sqrt(base), factor),
            "the base came out as 1 / base: divide the faster speed by the slower.": (
                1 / base,
                factor,
            ),
            "you used speed 1 alone as base ** (-1/32). It contains the factor too; a "
            "ratio of two speeds does not.": ((step * factor) ** 32, factor),
            "you gave the ratio of the speeds. That is base ** (1/32), not the base.": (
                step,
                factor,
            ),
        }
        for message, wrong in known.items():
            same = (
                math.isclose(a, b, rel_tol=1e-3)
                for a, b in zip(got, wrong, strict=True)
            )
            expect(
                math.isclose(got[0], base, rel_tol=1e-3) or not all(same),
                f"{what}, {message}",
            )
        expect(
            math.isclose(got[0], base, rel_tol=1e-3),
            f"{what}, you read the base as {got[0]:,.6g}. Two things can "
            "lose it: an angle past half a turn, which atan2 "
            "cannot tell from a smaller one, and acos of a small angle in float32. "
            "Position 1 and atan2 avoid both.",
        )
        expect(
            factor == 1 or not math.isclose(got[1], 1 / factor, rel_tol=1e-3),
            f"{what}, you gave {got[1]:.3g} as the factor: that is the speed of hand "
            "0. The speeds are divided by the factor.",
        )
        expect(
            factor == 1 or not math.isclose(got[1], 1, rel_tol=1e-3),
            f"{what}, you gave 1. Hand 0 would turn by 1 radian per token for every "
            "base; how far does it turn here?",
        )
        expect(
            math.isclose(got[1], factor, rel_tol=1e-3),
            f"{what}, you read the factor as {got[1]:.6g}.",
        )
    return (
        "Two hands at one position were enough. identify looks at all of them, and at "
        "distant positions."
    )


# -------------------------------------------------------------------------- capstone


def mystery(seed: int) -> tuple[Parts, Parts, Turn]:
    """A checkpoint of unknown convention: q, k, and the function that rotates.

    q has 8 heads and k 2, of 32 features. Each is a dict of float32 tensors: ``weight``
    ``(heads * 32, 64)``, ``bias`` ``(heads * 32,)``, and ``norm`` ``(32,)``, the gains
    of the RMS norm that each head goes through before its rotation.
    ``turn(x, positions)`` takes ``x`` ``(..., seq, 32)`` and positions ``(seq,)``.
    """
    draw = torch.Generator().manual_seed(seed)

    def pick(choices: Sequence[T]) -> T:
        return choices[int(torch.randint(len(choices), (), generator=draw))]

    pairing: Pairing = pick(("interleaved", "half"))
    sign = pick((1, -1))
    scaling: Scaling | None = pick(
        (
            None,
            partial(position_interpolation, factor=4.0),
            partial(llama3, factor=8.0, trained_length=8192),
            partial(yarn, factor=16.0, trained_length=4096),
        )
    )
    base = pick((10_000.0, 500_000.0, 1_000_000.0))
    rope = RotaryEmbedding(HEAD_DIM, pairing=pairing, base=base, scaling=scaling)

    def turn(x: Tensor, positions: Tensor) -> Tensor:
        if x.shape[-1] != HEAD_DIM:
            raise ValueError(f"x must end in {HEAD_DIM} features, got {x.shape[-1]}")
        cos, sin = cos_sin(positions, rope.inv_freq, x.dtype)
        length = rope.attention_factor
        return rotate(x, cos * length, sign * sin * length, pairing)

    w_q, w_k = (
        torch.randn(heads * HEAD_DIM, 64, generator=draw) / 8
        for heads in (HEADS, KV_HEADS)
    )
    q, k = (
        {
            "weight": weight,
            "bias": torch.randn(len(weight), generator=draw) / 2,
            "norm": 0.5 + torch.rand(HEAD_DIM, generator=draw),
        }
        for weight in (w_q, w_k)
    )
    return q, k, turn


def disguised() -> tuple[LanguageModel, CodeTokens, Turn]:
    """The small real model in half rows, with biases, and read by a wrong base.

    The bias of the keys shifts their slowest hand. That hand hardly turns in a text, so
    the shift adds the same to all scores of a query, and softmax takes it away: in its
    place the bias costs next to nothing. ``turn(x, positions)`` is the rotation that
    the rows were made for.
    """
    model, tokens = load_small()
    shift = torch.zeros(HEADS, HEAD_DIM)
    shift[:, [HEAD_DIM // 2 - 1, HEAD_DIM - 1]] = BIAS  # the slowest hand, in half rows
    for block in model.blocks:
        attention: Any = block.attention
        attention.rope = RotaryEmbedding(HEAD_DIM, pairing="half", base=500_000.0)
        for name in ("query", "key"):
            old = getattr(attention, name).weight.data
            new = nn.Linear(old.shape[1], old.shape[0])
            new.weight.data = convert_projection(old, HEADS, "interleaved", "half")
            new.bias.data = shift.flatten() * (name == "key")
            setattr(attention, name, new)

    def turn(x: Tensor, positions: Tensor) -> Tensor:
        if x.shape[-1] != HEAD_DIM:
            raise ValueError(f"x must end in {HEAD_DIM} features, got {x.shape[-1]}")
        inv_freq = inverse_frequencies(HEAD_DIM)
        return rotate(x, *cos_sin(positions, inv_freq, x.dtype), "half")

    return model.eval(), tokens, turn


@exercise(
    "20.4",
    "Bring it home",
    difficulty=4,
    minutes=15,
    hints=(
        "First make the RotaryEmbedding: base=report.base, and scaling=partial(f, "
        "**report.parameters), where f is the function that report.scaling names. Then "
        "use conversion to compare the report of turn with the report of that module.",
        "order = conversion(identify(turn), identify(rope)); order.projection moves a "
        "weight or a bias, given its number of heads: len(bias) // 32. The gains are "
        "those of one head, for all heads.",
    ),
    solution='''
def bring_home(q, k, turn):
    """Return new q, new k, and the RotaryEmbedding."""
    report = identify(turn)
    scaling = None
    if report.scaling:
        rule = getattr(frequencies, report.scaling)
        scaling = partial(rule, **report.parameters)
    rope = RotaryEmbedding(32, base=report.base, scaling=scaling)
    order = conversion(report, identify(rope))

    def moved(parts):
        heads = len(parts["bias"]) // 32
        return {"weight": order.projection(parts["weight"], heads),
                "bias": order.projection(parts["bias"], heads),
                "norm": order.projection(parts["norm"], 1)}

    return moved(q), moved(k), rope
''',
    why="Base and scaling go into the module, since no permutation can produce them. "
    "Pairing and sign go into the rows, head by head, and into all that meets a "
    "feature before it turns: weight, bias, gain.",
)
def bring_it_home(bring_home: Callable[..., Any]) -> str:
    for seed in (17, 5, 9, 0, 12, 14):
        q, k, turn = mystery(seed)
        answer = untouched(bring_home, q, k, turn)
        expect(answer is not None, "Your function returns nothing.")
        expect(
            isinstance(answer, (tuple, list)) and len(answer) == 3,
            "Return three values: the new q, the new k, and the RotaryEmbedding.",
        )
        rope = answer[2]
        expect(
            isinstance(rope, RotaryEmbedding),
            f"The third must be a RotaryEmbedding, got {type(rope).__name__}.",
        )
        new_q, new_k = (
            _parts(name, new, old)
            for name, new, old in (("q", answer[0], q), ("k", answer[1], k))
        )
        what = "This checkpoint" if seed == 17 else f"The checkpoint of seed {seed}"
        _expect_module(rope, turn, what)
        _expect_parts(new_q, new_k, rope, seed, what)
    return (
        "Six checkpoints of unknown origin now give the same logits in our convention. "
        "The next slide does it to a model that can read."
    )


def _parts(name: str, new: Any, old: Parts) -> Parts:
    """The student's q or k, each part of the shape that it had."""
    expect(
        isinstance(new, dict) and set(new) == set(old),
        f"The new {name} must be a dict like the old one: {', '.join(old)}.",
    )
    parts = {part: as_tensor(new[part]) for part in old}
    for part, tensor in parts.items():
        expect(
            tensor.shape == old[part].shape,
            f"The {part} of {name} must keep its shape {tuple(old[part].shape)}; yours "
            f"is {tuple(tensor.shape)}.",
        )
    return parts


def _expect_module(rope: RotaryEmbedding, turn: Turn, what: str) -> None:
    """The module must follow our convention, and turn as fast as ``turn``."""
    expect(
        rope.pairing == "interleaved",
        "Ours is interleaved: RotaryEmbedding(32, ...) without pairing. Adapt the "
        "weights to the module, not the module to the weights.",
    )
    expect(
        rope.head_dim == rope.rotary_dim == HEAD_DIM,
        f"Heads have {HEAD_DIM} features, and all of them turn; your module has "
        f"head_dim={rope.head_dim} and rotary_dim={rope.rotary_dim}.",
    )
    speeds, _ = _speeds_and_length(turn)
    mine = rope.inv_freq.detach().double()
    if torch.allclose(mine, speeds, rtol=1e-4, atol=0):
        _expect_plain(rope, speeds)
        return
    expect(
        bool((mine > 0).all()),
        f"{what}: negative speeds turn clockwise, and ours turn the other way. The "
        "sign goes into the rows: turning (a, b) one way is turning (b, a) the other "
        "way.",
    )
    bent = not torch.allclose(speeds.log().diff(), speeds.log().diff()[0].expand(15))
    expect(
        not math.isclose(
            float(mine[0] / mine[1]), float(speeds[0] / speeds[1]), rel_tol=1e-4
        ),
        f"{what}: the base is right, but the scaling is not: hand 15 turns by "
        f"{speeds[15]:.3g} radians per token in turn, by {mine[15]:.3g} in yours. Look "
        "at report.scaling and report.parameters.",
    )
    raise Wrong(
        f"{what}: the base is different. Hand 1 turns by {speeds[1]:.4f} radians per "
        f"token in turn, by {mine[1]:.4f} in yours"
        + (
            ". A scaling rule bends only the slow end; the fast hands show the base."
            if bent
            else "."
        )
    )


def _expect_plain(rope: RotaryEmbedding, speeds: Tensor) -> None:
    """A module with the right speeds must turn by them, and do nothing else."""
    expect(
        not rope.clockwise,
        "Ours turns by +θ: RotaryEmbedding(32, ...) without clockwise. The sign goes "
        "into the rows: turning (a, b) one way is turning (b, a) the other way.",
    )
    x = torch.randn(1, 2, 7, HEAD_DIM, generator=torch.Generator().manual_seed(2))
    cos, sin = cos_sin(torch.arange(7), speeds)
    right = rotate(x, cos * rope.attention_factor, sin * rope.attention_factor)
    with torch.no_grad():
        same = all(close(turned, right) for turned in rope(x, x))
    expect(
        same,
        "Your module has the right speeds, and still does not turn (batch, heads, "
        "tokens, 32) features by them, queries and keys alike. Give it base and "
        f"scaling alone. Yours is {rope}.",
    )


def _speeds_and_length(turn: Turn) -> tuple[Tensor, float]:
    """The speeds of the hands of ``turn``, without sign, and their length."""
    pairing = _pairing(turn)
    ones = torch.zeros(1, HEAD_DIM, dtype=torch.float64)
    ones[0, slice(0, None, 2) if pairing == "interleaved" else slice(0, 16)] = 1
    out = turn(ones, torch.ones(1, dtype=torch.int64))[0]
    pairs = out.unflatten(0, (16, 2) if pairing == "interleaved" else (2, 16))
    a, b = pairs.unbind(-1 if pairing == "interleaved" else 0)
    return torch.atan2(b, a).abs(), float(torch.hypot(a, b)[0])


def _pairing(turn: Turn) -> Pairing:
    one = torch.zeros(1, HEAD_DIM, dtype=torch.float64)
    one[0, 0] = 1
    moved = turn(one, torch.ones(1, dtype=torch.int64))[0, 1]
    return "interleaved" if moved != 0 else "half"


def _expect_parts(
    new_q: Parts, new_k: Parts, rope: RotaryEmbedding, seed: int, what: str
) -> None:
    """Parts and module must give the same logits; otherwise say what went wrong."""
    q, k, turn = mystery(seed)
    speeds, length = _speeds_and_length(turn)
    pairing = _pairing(turn)
    one = torch.zeros(1, HEAD_DIM, dtype=torch.float64)
    one[0, 0] = 1
    back = float(turn(one, torch.ones(1, dtype=torch.int64))[0].sum()) < length

    def ours(x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = cos_sin(positions, speeds, torch.float64)
        return rotate(x, cos * rope.attention_factor, sin * rope.attention_factor)

    def by(heads: int, part: Tensor, pairs: bool = True, swap: bool = True) -> Tensor:
        """``part`` as if only partly converted: its pairs, its sign, or both."""
        if pairs:
            part = convert_projection(part, heads, pairing, "interleaved")
        if swap and back:
            part = part.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        return part

    def home(parts: Parts, heads: int) -> Parts:
        return {
            name: by(1 if name == "norm" else heads, part)
            for name, part in parts.items()
        }

    right = _logits(q, k, turn)
    if close(_logits(new_q, new_k, ours), right, 1e-3):
        return
    expect(
        math.isclose(rope.attention_factor, length, rel_tol=1e-4),
        f"{what}: the speeds are right, but cos and sin are multiplied by {length:.4f} "
        f"in turn and by {rope.attention_factor:.4f} in yours. YaRN supplies its "
        "factor if you pass it as scaling.",
    )
    w_q, w_k = new_q["weight"], new_k["weight"]
    expect(
        not (close(w_q, q["weight"]) and close(w_k, k["weight"])),
        f"{what}: the weights came back unchanged, but turn is {pairing} with sign "
        f"{'-' if back else '+'}.",
    )
    home_q, home_k = home(q, HEADS), home(k, KV_HEADS)
    for name, new, good in (("q", new_q, home_q), ("k", new_k, home_k)):
        for part, old in (("bias", "rows"), ("norm", "features")):
            alone = {**good, part: new[part]}
            pair = (alone, home_k) if name == "q" else (home_q, alone)
            expect(
                not close(new["weight"], good["weight"])
                or close(_logits(*pair, ours), right, 1e-3),
                f"{what}: the weight of {name} is right, but its {part} is not. It "
                f"meets the same {old}, so it must be reordered as they are"
                + (", as one head." if part == "norm" else "."),
            )
    good_q, good_k = close(w_q, home_q["weight"]), close(w_k, home_k["weight"])
    expect(
        not (good_q and close(w_k, by(HEADS, k["weight"]))),
        f"{what}: W_k was cut into {HEADS} heads. It has {KV_HEADS}: exhibit 12.",
    )
    expect(
        not (good_q and not good_k),
        f"{what}: W_q is right, but W_k is not. Both must be reordered, each with its "
        "own number of heads.",
    )
    expect(
        not (good_k and not good_q),
        f"{what}: W_k is right, but W_q is not. Both must be reordered, each with its "
        "own number of heads.",
    )
    expect(
        not (back and close(w_q, by(HEADS, q["weight"], swap=False))),
        f"{what}: turn goes clockwise, and yours goes the other way. The pairs are in "
        "the right places; the two features of each must be swapped as well.",
    )
    expect(
        not (pairing == "half" and close(w_q, by(HEADS, q["weight"], pairs=False))),
        f"{what}: turn has half pairs, and your weights still have them.",
    )
    wrong_way = convert_projection(q["weight"], HEADS, "interleaved", "half")
    expect(
        not (pairing == "half" and close(w_q, wrong_way)),
        f"{what}: you reordered from interleaved to half. turn is half, and the "
        "weights must become interleaved.",
    )
    off = (_logits(new_q, new_k, ours) - right).abs().max()
    placed = (
        close(new[part], good[part], 0.02)
        for new, good in ((new_q, home_q), (new_k, home_k))
        for part in good
    )
    expect(
        not all(placed),
        f"{what}: each number is in its place, but not exactly: the logits are off by "
        f"{off:.2g}. Were weights cast to a smaller type? Keep float32.",
    )
    raise Wrong(
        f"{what}: the module is right, but the logits are off by {off:.2g}. Look at "
        "report.pairs: the two features of hand i belong at 2i and 2i + 1. Which "
        "direction does your conversion go in?"
    )


def _logits(q: Parts, k: Parts, turn: Turn) -> Tensor:
    """Logits of 40 random tokens: ``(8, 40, 40)``."""
    tokens = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).double()

    def turned(parts: Parts) -> Tensor:
        weight, bias, norm = (
            parts[name].double() for name in ("weight", "bias", "norm")
        )
        x = F.linear(tokens, weight, bias).unflatten(-1, (-1, HEAD_DIM))
        x = F.rms_norm(x.transpose(0, 1), (HEAD_DIM,), norm)
        return turn(x, torch.arange(40))

    queries, keys = turned(q), turned(k)
    keys = keys.repeat_interleave(HEADS // KV_HEADS, dim=0)
    return queries @ keys.mT / math.sqrt(HEAD_DIM)
