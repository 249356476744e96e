"""The exercises of lesson 12: a language model, and its cliff."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from rope_teach.course.exercises import (
    Wrong,
    as_tensor,
    exercise,
    expect,
    expect_shape,
    number,
)


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
    for nats, count in ((math.log(2), 1000), (math.log(256), 300), (2.1, 59_083)):
        got, right = number(compressed(nats, count)), count * nats / math.log(2) / 8
        what = f"With {nats:.3f} nats and {count:,} bytes you"
        named = {
            8 * right: "gave the size in bits. Eight bits make a byte.",
            nats / math.log(2): "gave the bits for one byte. The text has many bytes.",
            count
            * nats
            / 8: "counted nats as if they were bits. One nat is 1.44 bits.",
            count
            * nats
            * math.log(2)
            / 8: "multiplied by ln 2. A nat is *more* than a "
            "bit, so there must be more bits than nats.",
            count * nats / math.log(10) / 8: "divided by ln 10: that gives decimal "
            "digits, not bits.",
            count * math.log2(nats) / 8: "took the logarithm of the loss. It already "
            "is one: only its base has to change.",
            count * math.exp(nats): "took e to the power of the loss. That turns it "
            "into a probability; bits are a logarithm, just as nats are.",
            nats / math.log(256): "gave the fraction of the size that is left. The "
            "question asks for bytes.",
            count * nats: "gave the nats of the whole text. The question asks for the "
            "size in bytes.",
        }
        for value, message in named.items():
            expect(
                math.isclose(got, right, rel_tol=0.01, abs_tol=1)
                or not math.isclose(got, value, rel_tol=1e-4),
                f"{what} {message}",
            )
        expect(
            math.isclose(got, right, rel_tol=0.01, abs_tol=1),
            f"{what} gave {got:,.0f} bytes; it takes {right:,.0f}.",
        )
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
    ):
        got = number(come_round(size, base, trained))
        right = _turning(size, base, trained)
        what = f"With heads of {size} features, base {base:g} and {trained} tokens you"
        named = {
            _turning(
                size, base, trained, turn=1
            ): "used one radian. A full turn is 2π radians.",
            _turning(
                size, base, trained, turn=math.pi
            ): "used half a turn. A full turn is 2π radians.",
            size // 2 - right: "counted the hands that do *not* come round.",
            _turning(
                size, base, trained, step=1
            ): "used base^(-i/d). The exponent is -2i/d.",
            size // 2: "counted all the hands.",
        }
        expect(
            got <= size // 2,
            f"{what} counted {got:g} hands, but each hand has two features: there are "
            f"{size // 2}.",
        )
        for value, message in named.items():
            expect(value == right or got != value, f"{what} {message}")
        expect(got == right, f"{what} counted {got:g} hands; {right} come round.")
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
    generator = torch.Generator().manual_seed(0)
    for trained, place, length in ((8, 13, 20), (16, 40, 64)):
        loss = 2 + 0.1 * torch.rand(length, generator=generator, dtype=torch.float64)
        loss[0], loss[1] = 4.0, 3.2  # a text begins without context
        loss[place:] += 1.5
        got = cliff(loss.clone(), trained, 0.5)
        expect(
            got is not None,
            f"The loss jumps from 2 to 3.5 at position {place}, but you found no "
            "cliff. Is None returned only after the last position? And is the level "
            "the mean of the trained part only?",
        )
        got = number(got)
        expect(
            got != 0,
            "Position 0 is hard because nothing comes before it. The search begins at "
            "`trained`.",
        )
        expect(
            got != trained,
            f"At position {trained} the loss is still 2, as in training. `height` "
            "counts from the mean of the trained positions, not from 0.",
        )
        expect(
            got != place - trained,
            f"That is counted from position {trained} on. Add `trained` to it.",
        )
        expect(
            got != int(loss.argmax()) and got != int(loss[trained:].argmax()) + trained,
            "That is the worst position. The question asks for the first bad one.",
        )
        expect(
            got == place,
            f"The loss jumps from 2 to 3.5 at position {place}; you gave {got:g}.",
        )
    slope = torch.full((16,), 2.0, dtype=torch.float64)
    slope[7:] = torch.linspace(2.4, 4.0, 9)
    got = cliff(slope.clone(), 8, 0.5)
    expect(
        got is not None,
        "This loss climbs by 0.2 at a time, but you found no cliff. Compare with the "
        "mean of the trained part only, not with the position before.",
    )
    expect(
        number(got) == 8,
        "The trained positions have 2.05 on average, so with height 0.5 position 8, at "
        f"2.6, is the first bad one; you gave {number(got):g}. The level is the mean "
        "of the trained part, not its last or highest value.",
    )
    flat = torch.full((12,), 2.0, dtype=torch.float64)
    flat[0] = 6.0
    never = cliff(flat, 4, 0.5)
    if never is not None:
        raise Wrong(
            f"This loss stays flat, but you found a cliff at {number(never):g}. Return "
            "None where there is none."
        )
    return "Where the cliff is tells you how far the model can be trusted."


@exercise(
    "12.4",
    "What the cache saves",
    difficulty=3,
    minutes=6,
    hints=(
        "Write one token at a time on paper: which tokens go through the model for the "
        "first, the second, the third?",
        "Without a cache, prompt, prompt + 1, ... tokens go through, `steps` times in "
        "all. With one, the prompt goes through once, and then one token per step.",
    ),
    solution='''
def processed(prompt, steps):
    """Return the tokens processed: (without cache, with it)."""
    without = sum(prompt + step for step in range(steps))
    return without, prompt + steps - 1
''',
    why="Step s reads prompt + s tokens without a cache: a sum that grows with the "
    "square of the length. With one, each token is read once, except the last.",
)
def what_the_cache_saves(processed: Callable[..., Any]) -> str:
    for prompt, steps in ((16, 48), (1000, 1), (5, 3)):
        got = as_tensor(processed(prompt, steps)).flatten()
        expect_shape(got, (2,))
        without, cached = got.tolist()
        right = sum(prompt + step for step in range(steps)), prompt + steps - 1
        what = f"{prompt} tokens given, {steps} written: "
        expect(
            steps == 1 or (without, cached) != right[::-1],
            "The right numbers in the wrong order: without a cache comes first.",
        )
        expect(
            cached != prompt + steps,
            what + "with a cache you also read the last token written. Nothing is "
            "predicted after it.",
        )
        expect(
            steps == 1 or cached != steps,
            what + "the prompt has to be read once, with a cache too.",
        )
        expect(
            steps == 1 or without != prompt * steps,
            what + "without a cache you read the prompt each time, but not what has "
            "been written since.",
        )
        expect(
            without != sum(prompt + step + 1 for step in range(steps)),
            what + "without a cache you begin with one token too many. The first new "
            "token needs the prompt alone.",
        )
        expect(
            (without, cached) == right,
            what + f"{right[0]:,} without a cache and {right[1]:,} with it; you gave "
            f"{without:,.0f} and {cached:,.0f}.",
        )
    return "The square of the length, or the length. That is what a cache is for."
