"""Many devices: split a sequence or a batch across communicating processes.

A process is one device: a GPU, or on a laptop a share of the CPU. In context
parallelism each holds a shard of the sequence, and attention gathers all keys and
values. In data parallelism each holds some rows of the batch, and gradients are
averaged::

    torchrun --standalone --nproc-per-node 2 -m rope_teach.course.parallel

Without a network add ``--local-addr localhost``, so that no host name is looked up.
Built in lesson 19.
"""

from __future__ import annotations

import argparse
import copy
import logging
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import FileStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing.spawn import (
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)
from torch.nn.parallel import DistributedDataParallel

from rope_teach.attention import Attention, KeyValueCache
from rope_teach.checks import check_choice
from rope_teach.course.exercises.child import pack, unpack
from rope_teach.course.models import LanguageModel
from rope_teach.course.tasks import Batch, python_text, text_batches
from rope_teach.course.training import fit, seed_everything
from rope_teach.rotary import Tables

__all__ = [
    "SCHEMES",
    "ParallelAttention",
    "attend",
    "launch",
    "over_processes",
    "run_shard",
    "shard",
    "shard_positions",
    "train",
    "unshard",
]

SCHEMES = ("contiguous", "zigzag")


# --------------------------------------------------------------------- shards


def shard_positions(
    seq: int, rank: int, world: int, scheme: str = "contiguous"
) -> Tensor:
    """Positions ``(seq / world,)`` of the tokens that device ``rank`` holds.

    Parameters
    ----------
    scheme
        ``"contiguous"``: device r holds the r-th of ``world`` pieces.
        ``"zigzag"``: of twice as many pieces it holds the r-th and the r-th from the
        end, so that all devices have equal work under a causal mask.

    Notes
    -----
    Raises ``ValueError`` if the pieces differ in size or there is no such rank.
    Source: PyTorch's context parallelism uses the zigzag order. Lesson 19.

    Examples
    --------
    >>> shard_positions(8, rank=0, world=2), shard_positions(8, 0, 2, "zigzag")
    (tensor([0, 1, 2, 3]), tensor([0, 1, 6, 7]))
    """
    check_choice("scheme", scheme, SCHEMES)
    if not 0 <= rank < world:
        raise ValueError(
            f"rank must lie between 0 and world - 1, got {rank} of {world}"
        )
    pieces = world if scheme == "contiguous" else 2 * world
    if seq % pieces:
        raise ValueError(
            f"seq must be a multiple of {pieces} for {scheme} shards on {world} "
            f"devices, got {seq}"
        )
    piece = torch.arange(seq).view(pieces, -1)
    if scheme == "contiguous":
        return piece[rank]
    return torch.cat([piece[rank], piece[-1 - rank]])


def shard(
    x: Tensor, rank: int, world: int, scheme: str = "contiguous", dim: int = 1
) -> Tensor:
    """The shard of ``x`` on device ``rank``, split along axis ``dim``. Lesson 19.

    Splits and raises errors as :func:`shard_positions` does.

    >>> shard(torch.tensor([[10, 11, 12, 13]]), rank=0, world=2, scheme="zigzag")
    tensor([[10, 13]])
    """
    own = shard_positions(x.shape[dim], rank, world, scheme)
    return x.index_select(dim, own.to(x.device))


def unshard(
    shards: Sequence[Tensor], scheme: str = "contiguous", dim: int = 1
) -> Tensor:
    """Put the shards of all devices, given in rank order, back into one sequence.

    The inverse of :func:`shard`. Lesson 19.

    >>> unshard([torch.tensor([[10, 13]]), torch.tensor([[11, 12]])], "zigzag")
    tensor([[10, 11, 12, 13]])
    """
    world, joined = len(shards), torch.cat(list(shards), dim)
    seq = joined.shape[dim]
    order = [shard_positions(seq, rank, world, scheme) for rank in range(world)]
    return joined.index_select(dim, torch.cat(order).argsort().to(joined.device))


# ------------------------------------------------- attention across processes


class Gather(torch.autograd.Function):
    """The tensors of all processes, stacked in rank order.

    Every process may use a tensor, so its gradient is the sum over processes.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


def gather(own: Tensor, dim: int) -> Tensor:
    """Join the tensors of all processes along ``dim``; differentiable."""
    return torch.cat(list(Gather.apply(own.contiguous())), dim)  # type: ignore[no-untyped-call]


def attend(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """Causal attention of this process's queries over the keys of all processes.

    Parameters
    ----------
    q, k, v
        ``(batch, heads, shard, head_dim)``, this process's shard of the sequence; q
        and k are already rotated, and k and v may have fewer heads.
    positions
        ``(shard,)``, the positions of its tokens in the sequence. A query sees the keys
        at its own position and before it.

    Notes
    -----
    The processes exchange keys, values and their positions. Lesson 19.
    """
    keys, values = gather(k, dim=-2), gather(v, dim=-2)
    seen = positions[:, None] >= gather(positions, dim=0)
    grouped = q.shape[-3] != k.shape[-3]
    return F.scaled_dot_product_attention(
        q, keys, values, attn_mask=seen, enable_gqa=grouped
    )


class ParallelAttention(nn.Module):
    """An :class:`Attention` whose sequence is split across processes.

    Queries and keys are rotated by ``positions``, by default those of the shard, or by
    ``tables`` made for them. The mask always follows from the shard's places under
    ``scheme``. Lesson 19.

    Raises ``ValueError`` for attention that is not causal or uses ALiBi, and
    ``RuntimeError`` outside a process group.
    """

    def __init__(self, attention: Attention, scheme: str = "contiguous") -> None:
        super().__init__()
        check_choice("scheme", scheme, SCHEMES)
        if not attention.causal or attention.encoding == "alibi":
            raise ValueError(
                "attention must be causal and without ALiBi, got "
                f"Attention({attention.extra_repr()})"
            )
        self.attention, self.scheme = attention, scheme

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        tables: Tables | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Mix the tokens of the shard ``x`` ``(batch, shard, dim)``."""
        if mask is not None or cache is not None:
            raise ValueError(
                "mask and cache cannot be split across processes; leave them out"
            )
        rank, world = process()
        own = shard_positions(world * x.shape[1], rank, world, self.scheme).to(x.device)
        inner = self.attention
        places = own if positions is None else positions
        q, k = inner._queries_and_keys(x, x, places, tables, None)
        v = inner._split(inner.value(x), inner.kv_heads)
        out: Tensor = inner.out(attend(q, k, v, own).transpose(1, 2).flatten(2))
        return out


def over_processes(model: nn.Module, scheme: str = "contiguous") -> nn.Module:
    """Copy ``model``, with each :class:`Attention` in it split across processes.

    Called with a shard of the tokens and its positions, the copy returns this process's
    shard of what ``model`` returns. Raises ``ValueError`` for a model without such
    attention, or one that is already split. Lesson 19.
    """
    model = copy.deepcopy(model)
    if isinstance(model, Attention):
        return ParallelAttention(model, scheme)
    modules = dict(model.named_modules())
    found = {n: inner for n, inner in modules.items() if isinstance(inner, Attention)}
    if not found or any(isinstance(m, ParallelAttention) for m in modules.values()):
        raise ValueError(
            "model must contain rope_teach's Attention, and not be split already, got "
            f"{type(model).__name__}"
        )
    for name, inner in found.items():
        model.set_submodule(name, ParallelAttention(inner, scheme))
    return model


# --------------------------------------------------------------- in each process


def run_shard(
    model: nn.Module,
    x: Tensor,
    scheme: str = "contiguous",
    positions: Tensor | None = None,
) -> Tensor:
    """This process's shard of ``model(x)``.

    Parameters
    ----------
    model
        A :class:`LanguageModel` or an :class:`Attention`.
    x
        The whole sequence, ``(batch, seq)`` or ``(batch, seq, dim)``.
    positions
        ``(seq,)``, for the whole sequence: they are split as ``x`` is. Default:
        0, 1, ...

    Notes
    -----
    Lesson 19.
    """
    rank, world = process()
    if positions is None:
        positions = torch.arange(x.shape[1])
    own_x = shard(x, rank, world, scheme)
    own_positions = shard(positions, rank, world, scheme, dim=0)
    device = own_device()
    model = over_processes(model, scheme).to(device)
    with torch.no_grad():
        out: Tensor = model(own_x.to(device), positions=own_positions.to(device))
    return out.cpu()


def train(
    steps: int = 20,
    batch: int = 16,
    seq: int = 64,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[float]:
    """Train the language model of lesson 12; return the loss of each step.

    In a process group every process reads ``batch / world`` rows of each batch and
    gradients are averaged, so the losses equal those of a single process. Raises
    ``ValueError`` if the rows cannot be divided evenly.
    """
    rank, world = process() if dist.is_initialized() else (0, 1)
    if batch % world:
        raise ValueError(f"batch must be a multiple of {world} processes, got {batch}")
    seed_everything(seed)
    model: nn.Module = LanguageModel(256, encoding="rope").to(own_device(), dtype)
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    batches = own_rows(text_batches(python_text(), batch, seq, seed), rank, world)
    losses = fit(model, batches, steps, lr=1e-2, label=None)
    total = torch.tensor(losses, dtype=torch.float64, device=own_device())
    if dist.is_initialized():
        dist.all_reduce(total)
    mean: list[float] = (total / world).tolist()
    return mean


def own_rows(batches: Iterator[Batch], rank: int, world: int) -> Iterator[Batch]:
    """The rows of each batch that process ``rank`` reads."""
    for tokens, targets in batches:
        yield tokens.chunk(world)[rank], targets.chunk(world)[rank]


def process() -> tuple[int, int]:
    """Rank of this process, and the number of processes."""
    if not dist.is_initialized():
        raise RuntimeError(
            "there is no process group: use rope_teach.course.parallel.launch or "
            "torchrun"
        )
    return dist.get_rank(), dist.get_world_size()


def own_device() -> torch.device:
    """The GPU of this process, or the CPU if there are fewer GPUs than processes."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
        return torch.device("cuda", local)
    return torch.device("cpu")


# ----------------------------------------------------------- starting processes


def launch(processes: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run ``function(*args)`` in a group of new processes; return each result.

    Works in a notebook and without a network. GPUs communicate over NCCL, CPUs over
    gloo.

    Parameters
    ----------
    function
        Of a module or of a notebook; what it names there travels with it. Its result
        may consist of tensors, numbers, strings, lists and dicts.

    Notes
    -----
    Raises ``ValueError`` for a call that cannot be sent to another process, and
    ``RuntimeError`` with the error of the process that failed first. Lesson 19.

    Examples
    --------
    >>> launch(2, shard_positions, 8, 0, 2)  # doctest: +SKIP
    [tensor([0, 1, 2, 3]), tensor([0, 1, 2, 3])]
    """
    try:
        call = pack((function, args))
    except Exception as error:
        name = getattr(function, "__qualname__", function)
        raise ValueError(
            f"function and args must be such that a new process can have them, got "
            f"{name}: {error}"
        ) from None
    # It tells each process that it ends; the error says what happened.
    logging.getLogger(start_processes.__module__).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "call").write_bytes(call)
        try:
            start_processes(
                run_process,
                (processes, folder),
                processes,
                start_method=start_method(),
            )
        except ProcessRaisedException:
            # The others fail once it stops answering: the first error says why.
            errors = folder.glob("*.error")
            first = min(errors, key=lambda path: path.stat().st_mtime_ns)
            raise RuntimeError(
                f"process {first.stem} of {processes} stopped with\n{first.read_text()}"
            ) from None
        except ProcessExitedException as error:
            raise RuntimeError(f"a process ended without a result: {error}") from None
        return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def start_method() -> str:
    """How to start a process: on Linux, from one that has imported all this."""
    if sys.platform != "linux":  # Windows has no fork, and on macOS it is unsafe
        return "spawn"
    multiprocessing.set_forkserver_preload(["torch", __name__])
    return "forkserver"


def run_process(rank: int, processes: int, folder: Path) -> None:
    """Join the group, make the call of ``folder``, and leave its result there."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
    try:
        with group(FileStore(str(folder / "store"), processes), rank, processes):
            function, args = unpack((folder / "call").read_bytes())
            torch.save(function(*args), folder / f"{rank}.pt")
    except Exception:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise


@contextmanager
def group(store: Store, rank: int, world: int) -> Iterator[None]:
    """Join the ``world`` processes that meet at ``store``; leave when all are done."""
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    yield
    # A process that leaves early closes a connection that another may still need.
    store.set(f"done {rank}", "")
    store.wait([f"done {other}" for other in range(world)])
    dist.destroy_process_group()


def main() -> None:
    """Train on all the processes that torchrun started, and print the losses."""
    parser = argparse.ArgumentParser(
        prog="torchrun --standalone --nproc-per-node N -m rope_teach.course.parallel",
        description="Data-parallel training of a small language model.",
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--batch", type=int, default=16, help="rows, over all processes"
    )
    parser.add_argument("--seq", type=int, default=64, help="bytes per row")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    asked = parser.parse_args()
    rank = 0
    here: AbstractContextManager[None] = nullcontext()
    if "RANK" in os.environ:  # set by torchrun; otherwise there is one process
        store, rank, world = next(rendezvous("env://"))
        # The store survives a failed start, and so would the addresses it holds.
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        here = group(PrefixStore(f"start {start}", store), rank, world)
    with here:
        dtype = getattr(torch, asked.dtype)
        losses = train(asked.steps, asked.batch, asked.seq, dtype=dtype)
    if rank == 0:
        for step, loss in enumerate(losses):
            print(f"step {step:3}  loss {loss:.12f}")


if __name__ == "__main__":
    main()
