"""Two GPUs against one: the same results, the price of a wrong position, the time.

    torchrun --standalone --nproc-per-node 2 benchmarks/many_devices.py

Writes results/many_devices.json, for lesson 19. Sequences are cut with our all-gather
in float64, and with PyTorch's own context parallel in float32 and bfloat16, which its
attention kernels know. Differences are those of the logits and of all gradients, as
a share of the largest one; time and memory are those of the slowest and fullest GPU.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import _cp_options
from torch.nn.attention import SDPBackend, sdpa_kernel

from rope_teach.course import parallel
from rope_teach.course.models import LanguageModel
from rope_teach.course.training import RESULTS

RESULT = RESULTS / "many_devices.json"
SMALL = {"dim": 256, "layers": 4, "heads": 4, "encoding": "rope"}
SMALL_SEQ = 2048
LARGE = {"dim": 1024, "layers": 4, "heads": 8, "encoding": "rope"}
LARGE_SEQS = (8_192, 32_768, 65_536)
STEPS = 5
KERNELS = {
    torch.float32: SDPBackend.EFFICIENT_ATTENTION,
    torch.bfloat16: SDPBackend.FLASH_ATTENTION,
}
Found = tuple[Tensor, list[Tensor]]  # logits, gradients


def text(seq: int) -> tuple[Tensor, Tensor]:
    """Random tokens and targets, ``(seq,)``, the same on every process."""
    torch.manual_seed(1)
    tokens, targets = torch.randint(256, (2, seq)).cuda()
    return tokens, targets


def new_model(config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return LanguageModel(256, **config).to("cuda", dtype)


def step(
    model: nn.Module, tokens: Tensor, targets: Tensor, positions: Tensor
) -> Tensor:
    """Forward and backward; returns the logits ``(seq, vocab)``."""
    logits = model(tokens[None], positions=positions)[0]
    F.cross_entropy(logits.float(), targets).backward()
    return logits.detach()


@cache
def mesh() -> DeviceMesh:
    return init_device_mesh("cuda", (dist.get_world_size(),))


@contextmanager
def cut(scheme: str, *buffers: Tensor) -> Iterator[None]:
    """PyTorch's context parallel, which cuts the buffers in place."""
    _cp_options.enable_load_balance = scheme == "zigzag"
    axes = [0] * len(buffers)
    with context_parallel(mesh(), buffers=list(buffers), buffer_seq_dims=axes):
        yield


# --------------------------------------------------------------------- the same result


def on_one(dtype: torch.dtype) -> Found:
    model, positions = new_model(SMALL, dtype), torch.arange(SMALL_SEQ).cuda()
    with sdpa_kernel(KERNELS.get(dtype, SDPBackend.MATH)):
        logits = step(model, *text(SMALL_SEQ), positions)
    return logits, [p.grad for p in model.parameters()]


def with_ours(scheme: str, restart: bool, dtype: torch.dtype) -> Found:
    rank, world = parallel.process()
    own = parallel.shard_positions(SMALL_SEQ, rank, world, scheme).cuda()
    tokens, targets = (part[own] for part in text(SMALL_SEQ))
    model = parallel.over_processes(new_model(SMALL, dtype), scheme)
    positions = torch.arange(len(own)).cuda() if restart else own
    return whole(step(model, tokens, targets, positions), model, scheme)


def with_torchs(scheme: str, restart: bool, dtype: torch.dtype) -> Found:
    rank, world = parallel.process()
    model, positions = new_model(SMALL, dtype), torch.arange(SMALL_SEQ).cuda()
    tokens, targets = text(SMALL_SEQ)
    with cut(scheme, tokens, targets, positions), sdpa_kernel(KERNELS[dtype]):
        ours = parallel.shard_positions(SMALL_SEQ, rank, world, scheme)
        assert torch.equal(positions.cpu(), ours), "torch cuts in another order"
        turn = torch.arange(len(ours)).cuda() if restart else positions
        logits = step(model, tokens, targets, turn)
    return whole(logits, model, scheme)


def whole(logits: Tensor, model: nn.Module, scheme: str) -> Found:
    """Logits of all shards in order, and gradients averaged over the processes."""
    parts = [torch.empty_like(logits) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, logits.contiguous())
    grads = [p.grad for p in model.parameters()]
    for grad in grads:
        dist.all_reduce(grad, dist.ReduceOp.AVG)
    return parallel.unshard(parts, scheme, dim=0), grads


def gap(found: Found, right: Found) -> dict[str, float]:
    """Largest difference, as a share of the largest right value."""
    logits = (found[0] - right[0]).abs().max() / right[0].abs().max()
    pairs = list(zip(found[1], right[1], strict=True))
    off = max((a - b).abs().max().item() for a, b in pairs)
    largest = max(b.abs().max().item() for _, b in pairs)
    return {"logits": logits.item(), "gradients": off / largest}


def equality() -> list[dict[str, Any]]:
    rows = []
    for name, run, dtype in (
        ("ours", with_ours, torch.float64),
        ("torch", with_torchs, torch.float32),
        ("torch", with_torchs, torch.bfloat16),
    ):
        right = on_one(dtype)
        for scheme in parallel.SCHEMES:
            for restart in (False, True):
                row = {
                    "by": name, "dtype": str(dtype).removeprefix("torch."),
                    "scheme": scheme, "positions_restart": restart,
                }  # fmt: skip
                rows.append(row | gap(run(scheme, restart, dtype), right))
                say(rows[-1])
    return rows


def losses() -> dict[str, Any]:
    """Data parallel: the same training, before and after this process has company."""
    alone = parallel.train()
    parallel.join()
    together = parallel.train()
    row = {
        "first": alone[0], "last": alone[-1], "steps": len(alone),
        "largest_difference": max(
            abs(a - b) for a, b in zip(alone, together, strict=True)
        ),
    }  # fmt: skip
    say(row)
    return row


# --------------------------------------------------------------------- time and memory


def measured(call: Callable[[], object]) -> dict[str, float]:
    """Median time of a step and the peak of memory, of the worst GPU."""
    for _ in range(2):
        call()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(STEPS):
        dist.barrier()
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    found = [torch.tensor(times).median(), torch.cuda.max_memory_allocated() / 2**30]
    worst = torch.tensor(found).cuda()
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    seconds, memory = worst.tolist()
    return {"milliseconds": round(1e3 * seconds, 2), "gibibytes": round(memory, 3)}


def speed() -> list[dict[str, Any]]:
    model, rows = new_model(LARGE, torch.bfloat16), []
    for seq in LARGE_SEQS:
        tokens, targets = text(seq)
        positions = torch.arange(seq).cuda()

        def on_one() -> None:
            step(model, tokens, targets, positions)  # noqa: B023

        def on_all(scheme: str) -> None:
            with cut(scheme, tokens, targets, positions):  # noqa: B023
                step(model, tokens, targets, positions)  # noqa: B023
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad, dist.ReduceOp.AVG)

        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            ways = {
                "one GPU": measured(on_one),
                **{s: measured(lambda s=s: on_all(s)) for s in parallel.SCHEMES},
            }
        rows += [{"seq": seq, "way": way, **row} for way, row in ways.items()]
        for row in rows[-len(ways) :]:
            say(row)
    return rows


def say(row: dict[str, Any]) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(row, flush=True)


def main() -> None:
    torch.cuda.set_device(parallel.own_device())
    started = time.perf_counter()
    result: dict[str, Any] = {"data_parallel": losses()}
    world = dist.get_world_size()
    result = {
        "command": f"torchrun --standalone --nproc-per-node {world} "
        "benchmarks/many_devices.py",
        "date": date.today().isoformat(),
        "machine": f"{world} x {torch.cuda.get_device_name()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": {"small": SMALL, "small_seq": SMALL_SEQ, "large": LARGE},
        **result,
        "equality": equality(),
        "speed": speed(),
    }
    result["seconds"] = round(time.perf_counter() - started)
    if dist.get_rank() == 0:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
