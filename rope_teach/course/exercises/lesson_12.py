"""The exercises of lesson 12: a language model, and its cliff."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import close, expect_close, expect_shape
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor, number


@exercise(
    "12.1",
    "Nats to bits",
    difficulty=1,
    minutes=3,
    hints=(
        "How many bits is one nat? The loss uses base e, bits use base 2.",
        "One byte of text costs `nats / math.log(2)` bits. There are `count` of them, "
        "and eight bits make a byte.",
    ),
    solution='''
def compressed(nats, count):
    """Return the size in bytes of a text of `count` bytes."""
    bits = nats / math.log(2)
    return count * bits / 8
''',
    why="A good predictor is a compressor: a byte with probability p takes -log2 p "
    "bits. A blind guess, at ln 256 nats, gives the size of the text itself.",
)
def nats_to_bits(compressed: Callable[..., Any]) -> str:
    for nats, count in (
        (math.log(2), 1000),
        (math.log(256), 300),
        (2.1, 59_083),
        (7.0, 400),
        (0.05, 12_345),
        (3.37, 811),
    ):
        got, right = number(compressed(nats, count)), count * nats / math.log(2) / 8
        what = f"With {nats:.3f} nats and {count:,} bytes you gave {got:,.6g}: "
        same = {
            8 * right: "the size in bits. Eight bits make a byte.",
            right / count: "the bytes for one byte. The text has many bytes.",
            8 * right / count: "the bits for one byte. The text has many bytes.",
            count * nats / 8: "nats divided by 8. One nat is 1.44 bits.",
            count * nats * math.log(2) / 8: "nats times ln 2, divided by 8. A nat is "
            "*more* than a bit, so there must be more bits than nats.",
            count * nats / math.log(10) / 8: "decimal digits divided by 8.",
            count * math.log2(nats) / 8: "the logarithm of the loss, times bytes. The "
            "loss already is a logarithm; only its base has to change.",
            count * math.exp(nats): "e to the power of the loss, times bytes.",
            nats / math.log(256): "the fraction of the size that is left. The question "
            "asks for bytes.",
            count * nats: "the nats of the whole text. The question asks for bytes.",
        }
        if math.isclose(got, right, rel_tol=1e-3, abs_tol=1):
            continue
        for value, message in same.items():
            expect(not math.isclose(got, value, rel_tol=1e-4), what + message)
        worse = " Worse than a blind guess, so the text grows." if nats > 5.6 else ""
        raise Wrong(f"{what}it takes {right:,.0f} bytes.{worse}")
    return "A language model is a compressor. At 8 bits per byte it saves nothing."


@exercise(
    "12.2",
    "Hands that come round",
    difficulty=2,
    minutes=4,
    hints=(
        "How many tokens does a hand need to turn by 2π radians?",
        "Hand i needs `2 * math.pi * base ** (2 * i / head_dim)` tokens. Count the i "
        "from 0 to head_dim / 2 - 1 for which that is at most `trained`.",
    ),
    solution='''
def come_round(head_dim, base, trained):
    """Return how many hands turn once within `trained` tokens."""
    waves = [2 * math.pi * base ** (2 * i / head_dim)
             for i in range(head_dim // 2)]
    return sum(wave <= trained for wave in waves)
''',
    why="A hand at θ radians per token needs 2π/θ tokens. With 64 bytes and heads of "
    "16 features, hands 0, 1 and 2 come round: 6, 20 and 63 tokens.",
)
def hands_that_come_round(come_round: Callable[..., Any]) -> str:
    for size, base, trained in (
        (32, 10_000.0, 128),
        (16, 10_000.0, 64),
        (128, 500_000.0, 8192),
        (8, 100.0, 4096),
        (32, 10_000.0, 512),
        (64, 1_000_000.0, 6),
        (48, 2_000.0, 300),
    ):
        got = number(come_round(size, base, trained))
        right = _turning(size, base, trained)
        if got == right:
            continue
        what = f"With heads of {size} features, base {base:g} and {trained} tokens you"
        expect(
            got <= size // 2,
            f"{what} counted {got:g} hands, but each hand has two features: there are "
            f"{size // 2}.",
        )
        same = {
            _turning(size, base, trained, turn=1): "make a turn of one radian. A full "
            "turn is 2π radians.",
            _turning(size, base, trained, turn=math.pi): "make half a turn. A full "
            "turn is 2π radians.",
            size // 2 - right: "do *not* come round.",
            _turning(size, base, trained, step=1): "come round at speeds base^(-i/d). "
            "The exponent is -2i/d.",
        }
        for value, message in same.items():
            expect(got != value, f"{what} counted {got:g} hands. As many {message}")
        raise Wrong(f"{what} counted {got:g} hands; {right} come round.")
    return "The rest of the bank has shown only part of its dial in training."


def _turning(
    size: int, base: float, trained: int, turn: float = 2 * math.pi, step: int = 2
) -> int:
    """Hands that turn by ``turn`` radians within ``trained`` tokens."""
    waves = (turn * base ** (step * i / size) for i in range(size // 2))
    return sum(wave <= trained for wave in waves)


@exercise(
    "12.3",
    "Find the cliff",
    difficulty=3,
    minutes=6,
    hints=(
        "First compute the level to compare with: the mean of `loss[:trained]`. Then "
        "walk on from position `trained`.",
        "`for m in range(trained, len(loss))`: return the first m whose loss is above "
        "the level plus `height`. After the loop return None.",
    ),
    solution='''
def cliff(loss, trained, height):
    """Return the first position past `trained` that is bad."""
    level = loss[:trained].mean() + height
    for m in range(trained, len(loss)):
        if loss[m] > level:
            return m
    return None
''',
    why="The level comes only from the trained part, and the search begins after it: "
    "the first bytes of a text are hard too, because they lack context.",
)
def find_the_cliff(cliff: Callable[..., Any]) -> str:
    for loss, trained, height in _cliffs():
        level = float(loss[:trained].double().mean()) + height
        right = _first_above(loss, trained, level)
        got = untouched(cliff, loss.clone(), trained, height)
        told = f"trained is {trained}, the mean before it {level - height:.3f}, "
        told += f"height {height:g}: more than {level:.3f} is bad. "
        if right is None:
            if got is not None:
                raise Wrong(
                    f"{told}No position from {trained} on is bad, but you returned "
                    f"{number(got):g}. Return None where there is none."
                )
            continue
        there = float(loss[right])
        if got is None:
            raise Wrong(
                f"{told}Position {right} has {there:.3f}, but you returned None."
            )
        place = number(got)
        if place == right:
            continue
        expect(
            place != right - trained,
            f"{told}You returned {place:g}: that is where it is if you count from "
            f"position {trained}. Positions count from 0.",
        )
        expect(
            place == int(place) and 0 <= place < len(loss),
            f"{told}You returned {place:g}, which is no position of this loss.",
        )
        expect(
            place >= trained,
            f"{told}You returned {place:g}. The search begins at `trained`: the first "
            "positions are hard because nothing comes before them.",
        )
        mine = float(loss[int(place)])
        expect(
            mine > level,
            f"{told}You returned {place:g}, whose loss is {mine:.3f}: not more.",
        )
        begins = " The search begins at `trained`." if right == trained else ""
        raise Wrong(
            f"{told}You returned {place:g}, but position {right} comes before it and "
            f"has {there:.3f}.{begins}"
        )
    return "Where the cliff is tells you how far the model can be trusted."


def _cliffs() -> Iterator[tuple[Tensor, int, float]]:
    """Losses that tell the mean of the trained part from any other level."""
    generator = torch.Generator().manual_seed(12)
    for trained, place, length, height in (
        (8, 13, 20, 0.5),
        (16, 40, 64, 0.5),
        (16, 16, 40, 0.3),  # bad at once
        (5, 11, 12, 1.25),  # bad at the last position only
        (32, 90, 128, 0.75),
    ):
        loss = 2 + 0.1 * torch.rand(length, generator=generator)
        loss[0], loss[1] = 4.0, 3.2  # a text begins without context
        level = float(loss[:trained].mean()) + height
        loss[trained:] = (
            level - 0.02 - 0.1 * torch.rand(length - trained, generator=generator)
        )
        loss[place] = level + 0.03
        if place + 3 < length:  # it gets better, then much worse
            loss[place + 1], loss[-1] = level - 0.05, level + 2
        yield loss, trained, height
    climbing = torch.full((16,), 2.0)
    climbing[7:] = torch.linspace(2.4, 4.0, 9)
    yield climbing, 8, 0.5
    falling = torch.linspace(6.0, 1.0, 12)  # the end of the trained part is its best
    falling[6:] = torch.tensor([3.2, 4.0, 4.9, 5.2, 6.5, 6.0])
    yield falling, 6, 0.25
    exact = torch.full((9,), 2.0)
    exact[4:] = torch.tensor([2.5, 2.25, 2.5, 2.75, 3.0])  # 0.5 is not more than 0.5
    yield exact, 4, 0.5
    flat = torch.full((12,), 2.0)
    flat[0] = 6.0
    yield flat, 4, 0.5
    yield torch.tensor([1.0, 3.0, 2.0, 2.5, 1.0]), 3, 0.5  # only just not


def _first_above(loss: Tensor, trained: int, level: float) -> int | None:
    bad = [m for m in range(trained, len(loss)) if float(loss[m]) > level]
    return bad[0] if bad else None


@exercise(
    "12.4",
    "A sampler",
    difficulty=4,
    minutes=9,
    hints=(
        "`(logits / temperature).softmax(-1).sort(descending=True)` gives the chances, "
        "likeliest first, and the places of their tokens. `cumsum` adds them up.",
        "A token is kept if the chances *before* it add up to less than top_p: "
        "`ranked.cumsum(-1) - ranked < top_p`. Set the others to 0, divide by the sum, "
        "and put each back: `result[order] = ranked`.",
    ),
    solution='''
def chances(logits, temperature, top_p):
    """Return the chance of each token to be drawn next."""
    chance = (logits / temperature).softmax(-1)
    ranked, order = chance.sort(descending=True)
    before = ranked.cumsum(-1) - ranked
    ranked = ranked * (before < top_p)
    result = torch.zeros_like(chance)
    result[order] = ranked / ranked.sum()
    return result
''',
    why="The first token that takes the sum to top_p or past it is kept: so at least "
    "one is. How many are kept depends on how sure the model is.",
)
def a_sampler(chances: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(124)
    for vocab, spread, temperature, top_p in (
        (6, 1.5, 1.0, 0.8),
        (9, 2.0, 0.7, 0.9),
        (40, 2.0, 1.6, 0.5),
        (12, 1.0, 1.0, 1.0),  # nothing is left out
        (7, 1.0, 1.0, 0.01),  # one is kept
        (20, 8.0, 0.5, 0.3),  # the likeliest alone has more
        (300, 3.0, 0.8, 0.95),
    ):
        logits = _clear(vocab, spread, temperature, top_p, generator)
        got = as_tensor(untouched(chances, logits.clone(), temperature, top_p))
        _expect_chances(got, logits, temperature, top_p)
    return "Sure models draw from few tokens, unsure ones from many: p decides, not k."


def _clear(
    vocab: int, spread: float, temperature: float, top_p: float, chance: torch.Generator
) -> Tensor:
    """Logits whose sums of chances keep away from ``top_p``."""
    while True:
        logits = spread * torch.randn(vocab, generator=chance)
        for heat, power in ((temperature, top_p), (1.0, top_p)):
            ranked = (logits.double() / heat).softmax(-1).sort(descending=True).values
            if top_p < 1 and bool(((ranked.cumsum(-1) - power).abs() < 5e-4).any()):
                break
        else:
            return logits


def _nucleus(chance: Tensor, top_p: float) -> Tensor:
    """Which tokens are the fewest that reach ``top_p``."""
    ranked, order = chance.sort(descending=True)
    kept = torch.zeros(len(chance), dtype=torch.bool)
    kept[order] = (ranked.cumsum(-1) - ranked < top_p) | (top_p >= 1)
    return kept


def _expect_chances(
    got: Tensor, logits: Tensor, temperature: float, top_p: float
) -> None:
    expect_shape(got, tuple(logits.shape))
    chance = (logits.double() / temperature).softmax(-1)
    kept = _nucleus(chance, top_p)
    right = chance * kept / (chance * kept).sum()
    if close(got, right, 1e-5):
        return
    what = f"With {len(logits)} tokens, temperature {temperature:g} and top_p={top_p:g}"
    expect(bool((got >= 0).all()), f"{what} a chance is negative or not a number.")
    cold = (logits.double() * temperature).softmax(-1)
    early = chance * _nucleus(logits.double().softmax(-1), top_p)
    same = {
        "those of logits times the temperature. Divide.": cold
        * _nucleus(cold, top_p)
        / (cold * _nucleus(cold, top_p)).sum(),
        "those of tokens that were chosen at temperature 1. Divide by the temperature "
        "first.": early / early.sum(),
        "the right ones, but likeliest first. Each chance belongs at its token's "
        "place.": right.sort(descending=True).values,
    }
    for message, other in same.items():
        expect(not close(got, other, 1e-5), f"{what} your chances are {message}")
    mine = got > 0
    count, least = int(mine.sum()), int(kept.sum())
    reach = float(chance[mine].sum())
    expect(count > 0, f"{what} you keep no token at all. At least one is kept.")
    expect(
        reach >= top_p or count >= least,
        f"{what} you keep {count} of {len(logits)} tokens. Their chances add up to "
        f"{reach:.4f}, and not to {top_p:g} or more.",
    )
    expect(
        count <= least,
        f"{what} you keep {count} of {len(logits)} tokens, but {least} are enough.",
    )
    expect(
        bool((mine == kept).all()),
        f"{what} you keep {count} tokens, but not the {least} likeliest.",
    )
    expect(
        abs(float(got.sum()) - 1) < 1e-4,
        f"{what} you keep the right tokens, but their chances add up to "
        f"{float(got.sum()):.4f}, not to 1.",
    )
    expect_close(
        got, right, f"{what} you keep the right tokens.", 1e-5, axes=("token",)
    )
