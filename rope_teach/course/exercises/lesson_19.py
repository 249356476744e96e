"""The exercises of lesson 19: many devices."""

from __future__ import annotations

import faulthandler
import itertools
import linecache
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException

from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import close, difference, expect_shape
from rope_teach.course.exercises.errors import explain
from rope_teach.course.exercises.student_code import inner_function, untouched, uses
from rope_teach.course.exercises.values import as_tensor, number
from rope_teach.course.parallel import (
    gather,
    launch,
    process,
    shard_positions,
    unshard,
)


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
    expect(
        not uses(zigzag, shard_positions),
        "You call shard_positions, which is what you are to build.",
    )
    for seq, world in ((24, 3), (16, 2), (32, 4), (6, 1), (60, 5)):
        for rank in reversed(range(world)):  # on rank 0, several mistakes look alike
            got = as_tensor(zigzag(seq, rank, world))
            _judge_zigzag(got, seq, rank, world)
    return (
        "Every device holds one cheap piece and one expensive piece, so all have equal "
        "work."
    )


def _judge_zigzag(got: Tensor, seq: int, rank: int, world: int) -> None:
    right = shard_positions(seq, rank, world, "zigzag")
    size, what = seq // (2 * world), f"seq={seq}, rank={rank}, world={world}"
    expect_shape(got, (seq // world,))
    whole = got.long()
    expect(
        bool((got == whole).all()),
        f"{what}: you gave {got.tolist()}. Positions are whole numbers.",
    )
    got = whole
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
    expect(
        not uses(in_order, unshard),
        "You call unshard, which is what you are to build.",
    )
    for seq, world in ((8, 2), (12, 3), (16, 4), (4, 1)):
        x = torch.stack([torch.arange(seq), -torch.arange(seq)], dim=1).double()
        owned = [shard_positions(seq, rank, world, "zigzag") for rank in range(world)]
        shards = [x[own] for own in owned]
        got = as_tensor(untouched(in_order, [part.clone() for part in shards]))
        _judge_order(got, shards, x)
        x = torch.randn(seq, 3, generator=torch.Generator().manual_seed(seq)).double()
        again = as_tensor(in_order([x[own] for own in owned])).double()
        expect(
            torch.equal(again, x),
            "With other numbers in the tokens they come in another order: you sorted "
            "by what is in them. Their order depends on which device held them.",
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
    (out_a, lse_a), (_, lse_b) = parts
    expect_shape(out, tuple(out_a.shape))
    expect_shape(lse, tuple(lse_a.shape))
    expect(
        bool(out.isfinite().all() and lse.isfinite().all()),
        f"With L up to {max(lse_a.max(), lse_b.max()):.0f} you get inf or nan: e to "
        "that power overflows. Subtract before the exponential.",
    )
    if not close(out, right[0], 1e-3):  # float32 will do
        _name_wrong_weights(out, parts)
        raise Wrong("This is not the result of both pieces together.")
    expect(
        not close(lse, lse_a + lse_b),
        "The result is right, but L is not: you added logarithms. That multiplies the "
        "sums; here they have to be added.",
    )
    expect(
        close(lse, right[1], 1e-3),
        "The result is right, but L is not: it must be the logarithm of e^L_a + e^L_b, "
        "or the next merge goes wrong.",
    )


def _name_wrong_weights(out: Tensor, parts: list[Attended]) -> None:
    (out_a, lse_a), (out_b, lse_b) = parts
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


READY_MADE = (
    gather,
    dist.all_gather,
    dist.all_gather_into_tensor,
    dist.all_gather_object,
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_gather_tensor",
)


@exercise(
    "19.5",
    "Gather over all processes",
    difficulty=4,
    minutes=10,
    hints=(
        "Let the processes speak one after another: first everybody takes what process "
        "0 has, then what process 1 has, and so on. What does each of them need before "
        "a broadcast: the sender, and the others?",
        "For each source: the sender clones own.contiguous(), the others make "
        "torch.empty_like of it; all of them call dist.broadcast(part, source) and "
        "append part to their list.",
    ),
    solution='''
def all_gather(own):
    """Return the tensors of all processes, in the order of ranks."""
    parts = []
    for source in range(dist.get_world_size()):
        part = own.clone(memory_format=torch.contiguous_format)
        dist.broadcast(part, source)  # written over, except at its source
        parts.append(part)
    return parts
''',
    why="Every process makes the same calls in the same order, so none waits in vain, "
    "however many there are. A real all-gather passes pieces around a ring, so that "
    "all connections work at once.",
)
def gather_over_all_processes(all_gather: Callable[..., Any]) -> str:
    expect(
        callable(inner_function(all_gather)),
        "Expected a function of `own`, the tensor of this process.",
    )
    ready = uses(all_gather, *READY_MADE)
    expect(
        not ready,
        f"You call {ready}, which is what you are to build. Build it from send and "
        "recv, or from broadcast.",
    )
    for world in (2, 3):
        _gathered(all_gather, world)
    return (
        "It ran in two processes, then in three. Each knows now what all of them know, "
        "and that is all that attention needs from the others."
    )


def _gathered(all_gather: Callable[..., Any], world: int) -> None:
    """Judge ``all_gather`` in ``world`` processes; :class:`Wrong` if one complains."""
    hasty = bool(uses(all_gather, "isend", "irecv")) and not uses(all_gather, "wait")
    with tempfile.TemporaryDirectory() as folder:
        stuck = Path(folder, "stuck")
        try:
            launch(world, _in_each, all_gather, folder, hasty)
        except ValueError as error:
            raise Wrong(f"Other processes cannot have your code: {error}.") from None
        except (ProcessExitedException, RuntimeError) as error:
            said = str(error).rpartition("Wrong: ")[2].strip()
            if isinstance(error, ProcessExitedException):
                said = _how_it_ended(error, folder)
            said = stuck.read_text() if stuck.exists() else said
            raise Wrong(f"With {world} processes, {said}") from None


def _how_it_ended(error: ProcessExitedException, folder: str) -> str:
    slow = Path(folder, f"slow.{error.error_index}")
    if slow.exists() and slow.stat().st_size:
        return (
            f"process {error.error_index} was stopped after two minutes. Does a loop "
            "never end?"
        )
    if error.signal_name == "SIGABRT":
        return (
            f"process {error.error_index} was stopped in the middle of a message. Does "
            "the tensor that receives have the shape and the dtype of the one that is "
            "sent?"
        )
    how = error.signal_name or f"exit code {error.exit_code}"
    return f"process {error.error_index} ended in the middle of your code ({how})."


def _in_each(all_gather: Callable[..., Any], folder: str, hasty: bool) -> None:
    """Call ``all_gather`` in this process, and judge what it returns here."""
    rank, world = process()
    watch = _Watch(Path(folder), rank, world)
    watch.start()
    for case, parts in enumerate(_tensors_of_all(world)):
        if rank == (0, world - 1)[case % 2]:
            time.sleep(0.3)  # who is late finds out who did not wait
        own = parts[rank].clone()
        try:
            got = all_gather(own)
            _judge_gathered(got, own, parts, rank)
        except Wrong:
            raise
        except Exception as error:
            raise Wrong(f"in process {rank}: {_said(error)}") from None
        own.zero_()  # a message that is still under way would carry zeros
        watch.all_return()
        _judge_parts(list(got), parts, rank, hasty)


def _said(error: Exception) -> str:
    if "contiguous" not in str(error):
        return explain(error)
    return (
        "own is a transposed tensor here, as keys are after .transpose(1, 2), and a "
        f"message takes only what lies in one piece: own.contiguous(). ({error})"
    )


def _tensors_of_all(world: int) -> Iterator[list[Tensor]]:
    """What the processes hold, in rank order: for each case another kind of tensor."""
    generator = torch.Generator().manual_seed(world)
    shapes = torch.randn(4, 3, 2, generator=generator).bfloat16(), torch.arange(5)
    for kind in (*shapes, torch.zeros(3, 4, dtype=torch.float64).t()):
        random = torch.randint(-99, 99, (world, *kind.shape), generator=generator)
        yield [torch.empty_like(kind).copy_(part) for part in random]


def _judge_gathered(got: Any, own: Tensor, parts: list[Tensor], rank: int) -> None:
    """What can be seen at once: how many tensors of which kind, and whose memory."""
    world, who = len(parts), f"process {rank}"
    expect(got is not None, f"{who} returned nothing. Each of them needs all tensors.")
    expect(
        isinstance(got, (list, tuple, Tensor)) and len(got) == world,
        f"{who} should return a list of {world} tensors, one of each process; it "
        f"returned {_what(got)}.",
    )
    for place, part in enumerate(got):
        expect(
            isinstance(part, Tensor),
            f"{who} has {type(part).__name__} at place {place} of its list. Each of "
            "them needs all tensors.",
        )
        expect(
            part.dtype == own.dtype,
            f"{who} has {part.dtype} at place {place}, but own is {own.dtype}. A "
            "message is bytes: whoever receives must have the sender's dtype. "
            "torch.empty_like(own) does.",
        )
        expect(
            part.shape == own.shape,
            f"{who} has shape {tuple(part.shape)} at place {place}; own has "
            f"{tuple(own.shape)}.",
        )
        expect(
            part.untyped_storage().data_ptr() != own.untyped_storage().data_ptr(),
            f"at place {place} the list of {who} holds own itself. Whoever writes into "
            "own later changes your result: put a copy there.",
        )
    if isinstance(got, Tensor):
        return
    expect(
        world == len({part.data_ptr() for part in got}),
        f"the list of {who} holds one tensor several times: each message was written "
        "over the one before. Make a new tensor for each.",
    )
    expect(
        torch.equal(own, parts[rank]),
        f"own was written over in {who}. A broadcast writes into its tensor everywhere "
        "but at the source.",
    )


def _what(got: Any) -> str:
    if isinstance(got, Tensor):
        return f"a tensor of shape {tuple(got.shape)}"
    if isinstance(got, (list, tuple)):
        return f"{len(got)}"
    return type(got).__name__


def _judge_parts(
    got: list[Tensor], parts: list[Tensor], rank: int, hasty: bool
) -> None:
    """Whether each place holds the tensor of that process."""
    world, who = len(parts), f"process {rank}"

    def holds(*order: int) -> bool:
        return all(map(torch.equal, got, [parts[source] for source in order]))

    everybody = range(world)
    if holds(*everybody):
        return
    for order in itertools.permutations(everybody):
        expect(
            not holds(*order),
            f"{who} has the tensors in the order {list(order)}. The order is that of "
            f"the ranks, and the same everywhere: {[*everybody]}.",
        )
    expect(
        not holds(*[rank] * world),
        f"{who} has its own tensor at every place: none has come from the others.",
    )
    for source in everybody:
        expect(
            not holds(*[source] * world),
            f"{who} has process {source}'s tensor at every place.",
        )
    for place, (mine, right) in enumerate(zip(got, parts, strict=True)):
        twisted = right, right
        if right.ndim == 2:  # read in one layout, written in the other
            rows, columns = right.shape
            twisted = right.t().reshape(rows, columns), right.reshape(columns, rows).t()
        expect(
            torch.equal(mine, right) or not any(torch.equal(mine, t) for t in twisted),
            f"{who} has the right numbers of process {place} in the wrong order. own "
            "is transposed here, and a message carries memory as it lies: send and "
            "receive .contiguous() tensors.",
        )
        found = difference(mine, right, axes=("row", "column"))
        expect(
            not (found and hasty),
            f"{who} does not have process {place}'s tensor. isend and irecv return at "
            "once: a message has arrived only after .wait().",
        )
        expect(
            not found,
            f"place {place} in the list of {who} should hold process {place}'s "
            f"tensor. {found}",
        )


class _Watch(threading.Thread):
    """Ends the process once all of them wait for one another, and says where.

    A process waits if for five seconds it stands at one place and does no work. It is
    ended, too, after 10 seconds of work, or if it takes 4 GB.
    """

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.rank, self.world = folder, rank, world
        self.round, self.slow = 0, folder / f"slow.{rank}"

    def mark(self, what: str, rank: int) -> Path:
        return self.folder / f"{what}.{self.round}.{rank}"

    def all_return(self) -> None:
        """Wait until every process has returned from this round."""
        self.mark("back", self.rank).touch()
        while not all(self.mark("back", r).exists() for r in range(self.world)):
            time.sleep(0.02)
        self.round += 1

    def run(self) -> None:
        place, looks, worked = None, 0, 0.0
        memory = psutil.Process().memory_info
        # A loop inside C lets no other thread of Python run, but does not stop this.
        faulthandler.dump_traceback_later(120, exit=True, file=self.slow.open("w"))
        while True:
            time.sleep(0.1)
            if time.process_time() > 10:
                self.end(
                    f"process {self.rank} is still at work after 10 seconds. Does a "
                    "loop never end?"
                )
            if memory().rss > 4 * 2**30:
                self.end(f"process {self.rank} asked for more than 4 GB of memory.")
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            here = frame, frame.f_lasti
            if here != place or time.process_time() - worked > 0.25:
                place, looks, worked = here, 0, time.process_time()
                self.mark("waits", self.rank).unlink(missing_ok=True)
            looks += 1
            if looks == 50:
                self.mark("waits", self.rank).write_text(_line(frame))
            if looks >= 50:
                self.end_if_all_wait()

    def end_if_all_wait(self) -> None:
        waiting, back = {}, []
        for rank in range(self.world):
            if self.mark("back", rank).exists():
                back.append(f"process {rank} has returned")
            elif self.mark("waits", rank).exists():
                waiting[rank] = self.mark("waits", rank).read_text()
            else:
                return
        places = [f"process {rank} waits{line}" for rank, line in waiting.items()]
        self.end(
            f"nothing moves any more: {'; '.join(places + back)}. A send ends when the "
            "other process receives, a receive when it sends, a broadcast when "
            "everybody takes part."
        )

    def end(self, why: str) -> None:
        (self.folder / "stuck").write_text(why)
        os._exit(1)


def _line(frame: FrameType | None) -> str:
    """Where in a student's code a frame stands."""
    theirs = sys.modules["__main__"].__dict__
    while frame and frame.f_globals is not theirs:
        frame = frame.f_back
    if frame is None:
        return ""
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f" at line {frame.f_lineno}, `{text}`"
