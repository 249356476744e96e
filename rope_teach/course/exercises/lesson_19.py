"""The exercises of lesson 19: many devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises.cards import exercise, expect
from rope_teach.course.exercises.comparing import close, expect_shape
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor, number
from rope_teach.course.parallel import shard_positions


@exercise(
    "19.1",
    "Zigzag",
    difficulty=2,
    minutes=5,
    hints=(
        "How many pieces are there in all, and how long is each? Which two of them "
        "belong to this rank?",
        "torch.arange(seq).chunk(2 * world) gives the pieces. Counting from 0, the "
        "r-th piece from the end is pieces[-1 - r].",
    ),
    solution='''
def zigzag(seq, rank, world):
    """Return the positions of the tokens that `rank` holds."""
    pieces = torch.arange(seq).chunk(2 * world)
    return torch.cat([pieces[rank], pieces[-1 - rank]])
''',
    why="Piece r has little work and its mirror image has a lot. Their sum is the same "
    "for every r, so no device waits.",
)
def zigzag_positions(zigzag: Callable[..., Any]) -> str:
    for seq, world in ((24, 3), (16, 2), (32, 4), (6, 1), (60, 5)):
        for rank in reversed(range(world)):  # on rank 0, several mistakes look alike
            got = as_tensor(zigzag(seq, rank, world)).long().flatten()
            _judge_zigzag(got, seq, rank, world)
    return (
        "Every device holds one cheap piece and one expensive piece, so all have equal "
        "work."
    )


def _judge_zigzag(got: Tensor, seq: int, rank: int, world: int) -> None:
    right = shard_positions(seq, rank, world, "zigzag")
    size, what = seq // (2 * world), f"seq={seq}, rank={rank}, world={world}"
    expect_shape(got, (seq // world,))
    if torch.equal(got, right):
        return
    pieces = torch.arange(seq).view(2 * world, size)
    expect(
        not torch.equal(got, shard_positions(seq, rank, world)),
        f"{what}: that is one piece, the contiguous cut. Zigzag has two per device.",
    )
    expect(
        not torch.equal(got, torch.arange(2 * size)),
        f"{what}: you count from 0 on every device. Those are places within the "
        "shard; positions are places in the sequence.",
    )
    expect(
        not torch.equal(got, torch.cat([pieces[rank], pieces[rank + world]])),
        f"{what}: you took the pieces r and r + world. Then the last device has more "
        "work than the first in both pieces. Count the second piece from the end.",
    )
    expect(
        not torch.equal(got, torch.cat([pieces[rank], pieces[-rank]])),
        f"{what}: off by one. From the end you count -1, -2, ...: rank 0 has the last "
        "piece.",
    )
    expect(
        not torch.equal(got, torch.cat([pieces[rank], pieces[world - 1 - rank]])),
        f"{what}: you counted the second piece from the end of the first half. There "
        f"are {2 * world} pieces.",
    )
    expect(
        not torch.equal(got, torch.arange(rank, seq, world)),
        f"{what}: you dealt out single tokens in turn. That is balanced, but it is not "
        "zigzag: here a device holds two whole pieces.",
    )
    expect(
        not torch.equal(got, torch.cat([pieces[rank], pieces[-1 - rank].flip(0)])),
        f"{what}: the second piece runs backwards. Only the order of the pieces is "
        "mirrored, not the tokens in them.",
    )
    expect(
        not torch.equal(got.sort().values, right),
        f"{what}: the right tokens in another order. The earlier piece comes first.",
    )
    expect(
        torch.equal(got, right),
        f"{what}: you gave {got.tolist()}; zigzag is {right.tolist()}.",
    )


@exercise(
    "19.2",
    "Back in order",
    difficulty=2,
    minutes=5,
    hints=(
        "Write down for two devices which pieces each shard holds, then number the "
        "pieces of the whole sequence. Where do the second halves go?",
        "heads, tails = zip(*(s.chunk(2) for s in shards)). First all heads in rank "
        "order, then the tails from the last rank to the first.",
    ),
    solution='''
def in_order(shards):
    """Return the sequence (seq, dim) of zigzag shards."""
    heads, tails = zip(*(s.chunk(2) for s in shards))
    return torch.cat([*heads, *reversed(tails)])
''',
    why="Rank r holds piece r and piece 2 * world - 1 - r. So the heads come in rank "
    "order and the tails in reverse.",
)
def back_in_order(in_order: Callable[..., Any]) -> str:
    for seq, world in ((8, 2), (12, 3), (16, 4), (4, 1)):
        x = torch.stack([torch.arange(seq), -torch.arange(seq)], dim=1).double()
        owned = [shard_positions(seq, rank, world, "zigzag") for rank in range(world)]
        shards = [x[own] for own in owned]
        got = as_tensor(untouched(in_order, [part.clone() for part in shards]))
        _judge_order(got, shards, x)
        falling = as_tensor(in_order([-part for part in shards])).double()
        expect(
            torch.equal(falling, -x),
            "You sorted by the numbers in the tokens. Their order depends on which "
            "device held them.",
        )
    return (
        "Whatever the devices return, someone has to put it back in order. Now you can."
    )


def _judge_order(got: Tensor, shards: list[Tensor], x: Tensor) -> None:
    expect_shape(got, tuple(x.shape))
    if torch.equal(got, x):
        return
    world = len(shards)
    heads, tails = zip(*(part.chunk(2) for part in shards), strict=True)
    what = f"With {len(x)} tokens on {world} devices"
    expect(
        not torch.equal(got, torch.cat(shards)),
        f"{what} you put the shards one after another: that is right for the "
        "contiguous cut. Each of these has a gap in the middle.",
    )
    expect(
        not torch.equal(got, torch.cat([*heads, *tails])),
        f"{what} you put the second halves in rank order. Rank 0 holds the very *last* "
        "piece.",
    )
    expect(
        not torch.equal(got, torch.cat([*heads, torch.cat(tails).flip(0)])),
        f"{what} you reversed the second part token by token. Only the order of the "
        "pieces is mirrored; within a piece, tokens run forwards.",
    )
    positions = [shard_positions(len(x), r, world, "zigzag") for r in range(world)]
    expect(
        not torch.equal(got, torch.cat(shards)[torch.cat(positions)]),
        f"{what} you indexed with the positions the wrong way round. They say where a "
        "token goes; their argsort() says where it is taken from.",
    )
    expect(
        bool((got.sort(dim=0).values == x.sort(dim=0).values).all()),
        f"{what} some tokens are missing, and others appear twice.",
    )
    expect(False, f"{what} your tokens come in the order {got[:, 0].int().tolist()}.")


@exercise(
    "19.3",
    "The mean of means",
    difficulty=2,
    minutes=4,
    hints=(
        "One process holds 1 token with loss 8, another 3 tokens with loss 4 each. "
        "What is the mean of the four?",
        "means[r] * counts[r] is the sum of the losses on process r. Add those up, and "
        "divide by the total number of tokens.",
    ),
    solution='''
def loss_of_all(means, counts):
    """Return the mean loss over the tokens of all processes."""
    total = sum(m * c for m, c in zip(means, counts))
    return total / sum(counts)
''',
    why="A token in a short text is still one token. The mean of means gives it more "
    "weight than a token in a long text, and gradients inherit that.",
)
def the_mean_of_means(loss_of_all: Callable[..., Any]) -> str:
    for means, counts in (
        ([8.0, 4.0], [1, 3]),
        ([2.0, 3.0, 7.0], [10, 30, 5]),
        ([1.5, 0.25, 6.0, 2.0], [1, 70, 2, 9]),
    ):
        got = number(loss_of_all(list(means), list(counts)))
        sums = [m * c for m, c in zip(means, counts, strict=True)]
        tokens, world = sum(counts), len(means)
        right = sum(sums) / tokens
        what = f"With means {means} and counts {counts} you gave {got:.3f}"
        named = {
            sum(means) / world: "the mean of the means. A process with few tokens must "
            "not count as much as one with many.",
            sum(means): "the sum of the means.",
            sum(sums): "the sum over all tokens. The question asks for the mean.",
            sum(sums) / world: "the mean sum per process. Divide by the number of "
            "tokens, not of processes.",
            sum(means) / tokens: "the means divided by the tokens. Each mean stands "
            "for counts[r] tokens.",
            sum(m / c for m, c in zip(means, counts, strict=True))
            / sum(1 / c for c in counts): "a mean in which a process counts less, the "
            "more tokens it holds. It must count more.",
        }
        for value, message in named.items():
            expect(not math.isclose(got, value, rel_tol=1e-6), f"{what}: {message}")
        expect(
            math.isclose(got, right, rel_tol=1e-5),
            f"{what}; one process would report {right:.3f}.",
        )
    return (
        "With equal counts the plain mean would be right. That is why the lesson's "
        "training splits its batch into halves of equal size."
    )


@exercise(
    "19.4",
    "The ring's merge",
    difficulty=4,
    minutes=10,
    hints=(
        "The weight of piece b is exp(L_b - L), which is never above 1. Only exp(L_b) "
        "itself can overflow. Which torch function adds two numbers that are given by "
        "their logarithms?",
        "lse = torch.logaddexp(lse_a, lse_b); the weights are (lse_a - lse).exp() and "
        "(lse_b - lse).exp(), each with [:, None] so that it applies to all features.",
    ),
    solution='''
def merge(out_a, lse_a, out_b, lse_b):
    """Return (out, lse) of both pieces together."""
    lse = torch.logaddexp(lse_a, lse_b)
    a, b = (lse_a - lse).exp(), (lse_b - lse).exp()
    return a[:, None] * out_a + b[:, None] * out_b, lse
''',
    why="A piece's softmax was divided by its own sum, e^L_b. Multiplying by that and "
    "dividing by the total, e^L, corrects it. The difference is taken before the "
    "exponential, so nothing overflows.",
)
def merge_of_the_ring(merge: Callable[..., Any]) -> str:
    for scale, keys in ((1.0, (5, 3)), (2.0, (1, 6)), (300.0, (4, 4))):
        generator = torch.Generator().manual_seed(keys[0])
        q, k, v = (
            torch.randn(n, 4, generator=generator, dtype=torch.float64)
            for n in (3, sum(keys), sum(keys))
        )
        parts = [
            _attended(q * scale, *piece)
            for piece in zip(k.split(keys), v.split(keys), strict=True)
        ]
        got = untouched(merge, *(part.clone() for pair in parts for part in pair))
        expect(got is not None, "Your function returns nothing. Is there a `return`?")
        expect(
            isinstance(got, (tuple, list)) and len(got) == 2,
            "Return two values, out and lse: the next piece of the ring needs both.",
        )
        out, lse = (as_tensor(part).double() for part in got)
        _judge_merge(out, lse, parts, _attended(q * scale, k, v))
    return (
        "Keys may now arrive piece by piece, in any order, and none of them has to be "
        "kept."
    )


Attended = tuple[Tensor, Tensor]


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """Result and log-sum-exp of attention to one piece."""
    scores = q @ k.T
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def _judge_merge(
    out: Tensor, lse: Tensor, parts: list[Attended], right: Attended
) -> None:
    (out_a, lse_a), (out_b, lse_b) = parts
    expect_shape(out, tuple(out_a.shape))
    expect_shape(lse, tuple(lse_a.shape))
    expect(
        bool(out.isfinite().all() and lse.isfinite().all()),
        f"With L up to {max(lse_a.max(), lse_b.max()):.0f} you get inf or nan: e to "
        "that power overflows. Subtract before the exponential.",
    )
    if close(out, right[0], 1e-3) and close(lse, right[1], 1e-3):  # float32 will do
        return
    expect(
        not close(out, (out_a + out_b) / 2),
        "That is the plain mean of both pieces. A piece with higher scores gets a "
        "larger share: e^(L_b - L).",
    )
    expect(
        not close(out, out_a + out_b),
        "You added the results. Weight them: the weights e^(L_b - L) sum to 1.",
    )
    larger = (lse_a > lse_b)[:, None]
    expect(
        not close(out, torch.where(larger, out_a, out_b)),
        "You kept the piece with the larger L and dropped the other. Both count, with "
        "weight e^(L_b - L).",
    )
    for shift in (torch.zeros_like(lse_a), torch.maximum(lse_a, lse_b)):
        a, b = (lse_a - shift).exp()[:, None], (lse_b - shift).exp()[:, None]
        expect(
            not close(out, a * out_a + b * out_b),
            "The weights do not sum to 1: divide by their sum.",
        )
    share = (lse_a / (lse_a + lse_b))[:, None]
    expect(
        not close(out, share * out_a + (1 - share) * out_b),
        "You weighted by L_a and L_b themselves. They are logarithms: what adds up is "
        "e^L.",
    )
    gate = (lse_b - lse_a).sigmoid()[:, None]
    expect(
        not close(out, gate * out_a + (1 - gate) * out_b),
        "The weights are swapped: you gave the piece with the smaller L the larger "
        "share.",
    )
    expect(
        not close(out, right[0], 1e-3) or not close(lse, lse_a + lse_b),
        "The result is right, but L is not: you added logarithms. That multiplies the "
        "sums; here they have to be added.",
    )
    expect(
        close(out, right[0], 1e-3),
        "This is not the result of both pieces together.",
    )
    expect(
        close(lse, right[1], 1e-3),
        "The result is right, but L is not: it must be the logarithm of e^L_a + e^L_b, "
        "or the next merge goes wrong.",
    )
