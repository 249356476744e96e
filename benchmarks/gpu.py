"""How fast the CUDA path is, beside a copy of q and k and beside other libraries.

    python benchmarks/gpu.py [OUT.json]
    python benchmarks/gpu.py --wall [OUT.json]
    python benchmarks/gpu.py --alone [OUT.json]

GPU time: a CUDA graph that runs over sets of inputs larger than the L2 cache is
replayed, and the median is taken. Wall time: eager calls one after another, as a decode
loop makes them, the best round. In the whole table every contestant is compared with
float64 before it is timed. Libraries that are not installed are left out. The speed of
a host changes from second to second: --wall visits the eager calls of small shapes in
turn, ten times.
The first CUDA graph of a process replays small kernels faster than all later ones do:
--alone gives each contestant a process of its own, and measures their GPU time.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor
from torch._functorch import config as functorch

from rope_teach import RotaryEmbedding, cos_sin, inverse_frequencies
from rope_teach.pairing import full_table
from rope_teach.rotation import rotate_complex, rotate_matrix
from rope_teach.tables import angles

# Up to torch 2.11 a compiled function expects contiguous gradients and copies others
# first. Inside a compiled model there is no such border to cross.
functorch.guess_tangent_strides_as_outputs = True

DRIVER = "copy by the driver"
SINGLE_LAUNCH = ("copy of q and k", "ours, half", "ours, interleaved",
                 "Hugging Face, compiled", "Liger (in place)",
                 "torchtune, compiled")  # fmt: skip
L2_TIMES_FOUR = 256 * 2**20
Rotate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """One workload; tensors are (batch, heads, seq, head_dim)."""

    name: str
    batch: int
    seq: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16
    rotary_dim: int = 0
    backward: bool = True

    @property
    def rotary(self) -> int:
        return self.rotary_dim or self.head_dim

    @property
    def bytes(self) -> int:
        heads = self.heads + self.kv_heads
        return 2 * self.batch * self.seq * heads * self.head_dim * self.dtype.itemsize


SHAPES = [
    Shape("prefill bf16 8x8192 32/8 128", 8, 8192, 32, 8, 128),
    Shape("train bf16 4x4096 32/32 128", 4, 4096, 32, 32, 128),
    Shape("train fp32 4x4096 32/32 128", 4, 4096, 32, 32, 128, torch.float32),
    Shape("decode bf16 64x1 32/8 128", 64, 1, 32, 8, 128, backward=False),
    Shape("small bf16 1x512 8/8 64", 1, 512, 8, 8, 64),
    Shape("long bf16 1x131072 32/8 128", 1, 131_072, 32, 8, 128),
    Shape("partial bf16 4x4096 32/32 128, 32 rotated", 4, 4096, 32, 32, 128,
          rotary_dim=32),
]  # fmt: skip


# ------------------------------------------------------------------- contestants


def same(x: Tensor) -> Tensor:
    return x


def copy(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """One elementwise pass: on some shapes it beats the driver's own copy."""
    return q * 1.0, k * 1.0


def contestants(shape: Shape) -> Iterator[tuple[str, str, Rotate]]:
    """Yield (name, pairing, function) for all that can take this shape."""
    inv_freq = inverse_frequencies(shape.rotary, device="cuda")
    positions = torch.arange(shape.seq, device="cuda")
    cos, sin = cos_sin(positions, inv_freq)
    yield "copy of q and k", "", copy
    yield DRIVER, "", lambda q, k: (q.clone(), k.clone())
    for pairing in ("half", "interleaved"):
        rope = RotaryEmbedding(
            shape.head_dim, rotary_dim=shape.rotary, pairing=pairing
        ).cuda()
        yield f"ours, {pairing}", pairing, rope
        yield f"ours, {pairing}, compiled", pairing, torch.compile(rope, fullgraph=True)
    if shape.rotary == shape.head_dim:  # the others are timed on whole heads
        phases = torch.complex(cos, sin)
        yield (
            "complex form",
            "interleaved",
            lambda q, k: (rotate_complex(q, phases), rotate_complex(k, phases)),
        )
        yield from peers(shape, cos, sin)


def peers(shape: Shape, cos: Tensor, sin: Tensor) -> Iterator[tuple[str, str, Rotate]]:
    """Yield the rotations of other libraries, as they are called in their models."""
    if installed("transformers"):
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        wide = [full_table(t, "half")[None].to(shape.dtype) for t in (cos, sin)]
        hugging_face: Rotate = lambda q, k: apply_rotary_pos_emb(q, k, *wide)  # noqa: E731
        yield "Hugging Face", "half", hugging_face
        yield "Hugging Face, compiled", "half", torch.compile(hugging_face)
    if installed("liger_kernel"):
        from liger_kernel.transformers.rope import liger_rotary_pos_emb

        table = [full_table(t, "half")[None] for t in (cos, sin)]
        yield (
            "Liger (in place)",
            "half",
            lambda q, k: liger_rotary_pos_emb(q, k, *table),
        )
    if installed("torchtune.modules"):
        from torchtune.modules import RotaryPositionalEmbeddings

        tune = RotaryPositionalEmbeddings(shape.head_dim, shape.seq).cuda()
        swapped: Rotate = lambda q, k: (  # noqa: E731
            tune(q.transpose(1, 2)).transpose(1, 2),
            tune(k.transpose(1, 2)).transpose(1, 2),
        )
        yield "torchtune", "interleaved", swapped
        yield "torchtune, compiled", "interleaved", torch.compile(swapped)
    if installed("rotary_embedding_torch"):
        from rotary_embedding_torch import apply_rotary_emb

        freqs = full_table(
            angles(torch.arange(shape.seq), inverse_frequencies(shape.head_dim)),
            "interleaved",
        )
        freqs = freqs.float().cuda()
        yield (
            "rotary-embedding-torch",
            "interleaved",
            lambda q, k: (apply_rotary_emb(freqs, q), apply_rotary_emb(freqs, k)),
        )
    if installed("x_transformers"):
        from x_transformers.x_transformers import RotaryEmbedding as Theirs
        from x_transformers.x_transformers import apply_rotary_pos_emb as apply

        x_freqs, _ = Theirs(shape.head_dim).cuda().forward_from_seq_len(shape.seq)
        yield (
            "x-transformers",
            "interleaved",
            lambda q, k: (apply(q, x_freqs), apply(k, x_freqs)),
        )


def installed(module: str) -> bool:
    """Whether a peer is here and imports; some break on newer dependencies."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


# ------------------------------------------------------------------- measurement


def inputs(shape: Shape, gradients: bool = False) -> tuple[Tensor, Tensor]:
    """Random q and k, stored token by token, as a projection leaves them."""
    return tuple(
        torch.randn(shape.batch, shape.seq, heads, shape.head_dim, device="cuda")
        .to(shape.dtype)
        .transpose(1, 2)
        .requires_grad_(gradients)
        for heads in (shape.heads, shape.kv_heads)
    )  # type: ignore[return-value]


def inputs_and_gradients(
    shape: Shape, backward: bool
) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """What :func:`step` takes: q, k, and gradients where it is to go back."""
    q, k = inputs(shape, backward)
    return q, k, [torch.randn_like(x) for x in (q, k)] if backward else None


def error(
    rotate: Rotate, pairing: str, shape: Shape, norms: Sequence[Norm] = (same, same)
) -> float:
    """Relative error against a float64 rotation after ``norms``, on the last tokens."""
    q, k = inputs(shape)
    tail = slice(-min(64, shape.seq), None)
    expected = [n(x[:1, :, tail].double()) for x, n in zip((q, k), norms, strict=True)]
    if pairing:
        positions = torch.arange(shape.seq, device="cuda")[tail]
        angle = angles(positions, inverse_frequencies(shape.rotary, device="cuda"))
        expected = [rotate_matrix(x, angle, pairing) for x in expected]
    worst = 0.0
    for got, x in zip(rotate(q, k), expected, strict=True):
        worst = max(worst, ((got[:1, :, tail] - x).norm() / x.norm()).item())
    return worst


def step(
    rotate: Rotate,
    q: Tensor,
    k: Tensor,
    grads: list[Tensor] | None,
    weights: Sequence[Tensor] = (),
) -> object:
    """One call, with its backward pass where gradients are given."""
    turned = rotate(q, k)
    if grads is None:
        return turned
    return turned, torch.autograd.grad(turned, (q, k, *weights), grads)


def gpu_microseconds(
    rotate: Rotate, shape: Shape, backward: bool, weights: Sequence[Tensor] = ()
) -> float:
    """Median GPU time of one call, from replays of a graph."""
    # Three sets at least, or a kernel that asks the L2 to hold its inputs would find
    # some of them there on the next replay, which no model does.
    sets = min(512, max(3, math.ceil(L2_TIMES_FOUR / shape.bytes)))
    # Each has gradients of its own: what is written over in place would stay cached.
    data = [inputs_and_gradients(shape, backward) for _ in range(sets)]
    step(rotate, *data[0], weights)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for each in data[:2]:
            step(rotate, *each, weights)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [step(rotate, *each, weights) for each in data]
    times = []
    for _ in range(24):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / sets)
    del kept
    return median(times[4:])


def wall_microseconds(rotate: Rotate, shape: Shape, backward: bool) -> float:
    """Time of one eager call, when calls follow one another: the best of 16 rounds.

    The best, because other work on the host only ever adds to it.
    """
    each = inputs_and_gradients(shape, backward)
    rounds, calls = [], max(3, min(200, 2**31 // shape.bytes))
    for _ in range(16):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            step(rotate, *each)
        torch.cuda.synchronize()
        rounds.append((time.perf_counter() - started) * 1e6 / calls)
    return min(rounds)


def measure(shape: Shape) -> Iterator[dict[str, object]]:
    """Yield one row for each contestant that is right."""
    for name, pairing, rotate in contestants(shape):
        row: dict[str, object] = {"shape": shape.name, "name": name}
        torch._dynamo.reset()
        try:
            row["error"] = error(rotate, pairing, shape)
            with torch.no_grad():
                row["gpu"] = gpu_microseconds(rotate, shape, False)
                row["wall"] = wall_microseconds(rotate, shape, False)
            if shape.backward and name != DRIVER:  # a clone's backward copies nothing
                row["gpu_both"] = gpu_microseconds(rotate, shape, True)
                row["wall_both"] = wall_microseconds(rotate, shape, True)
        except Exception as trouble:  # a peer's failure is a result
            words = f"{type(trouble).__name__}: {trouble}"
            row["trouble"] = words.splitlines()[0][:120]
            torch.cuda.synchronize()
        torch.cuda.empty_cache()
        yield row


def table(rows: list[dict[str, object]]) -> str:
    """Write the rows as Markdown, each shape with the copy on top."""
    columns = ("gpu", "gpu_both", "wall", "wall_both")
    lines = ["| shape | contestant | error | GPU forward | GPU both | wall forward "
             "| wall both | note |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        numbers = [f"{row[c]:.1f}" if c in row else "" for c in columns]
        error = f"{row['error']:.1e}" if "error" in row else ""
        cells = [row["shape"], row["name"], error, *numbers, row.get("trouble", "")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def in_turn(shape: Shape, visits: int = 10) -> list[dict[str, object]]:
    """Wall times of eager calls, each contestant visited again and again."""
    calls = [(n, call) for n, _, call in contestants(shape) if "compiled" not in n]
    rows: list[dict[str, object]] = [
        {"shape": shape.name, "name": name, "walls": []} for name, _ in calls
    ]
    with torch.no_grad():
        for _ in range(visits):
            for row, (_, rotate) in zip(rows, calls, strict=True):
                row["walls"].append(wall_microseconds(rotate, shape, False))  # type: ignore[attr-defined]
    for row in rows:
        row["wall"] = median(row["walls"])  # type: ignore[arg-type]
    return rows


def alone(shape: Shape) -> Iterator[dict[str, object]]:
    """Yield GPU times, each of a process that captures no other graph."""
    here = {name for name, _, _ in contestants(shape)}
    for name in (name for name in SINGLE_LAUNCH if name in here):
        row: dict[str, object] = {"shape": shape.name, "name": name}
        for column in ("gpu", "gpu_both") if shape.backward else ("gpu",):
            command = [sys.executable, __file__, "--first", shape.name, name, column]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                row["trouble"] = (ran.stderr.splitlines() or ["no word"])[-1][:120]
            else:
                row[column] = float(ran.stdout.splitlines()[-1])
        print(row, file=sys.stderr)  # each takes seconds, and is not to be lost
        yield row


def first(shape_name: str, name: str, column: str) -> float:
    """GPU time of one contestant, in this process's first graph."""
    (shape,) = [shape for shape in SHAPES if shape.name == shape_name]
    rotate = next(call for n, _, call in contestants(shape) if n == name)
    backward = column == "gpu_both"
    with torch.set_grad_enabled(backward):
        return gpu_microseconds(rotate, shape, backward)


def write(rows: list[dict[str, object]], command: str, path: str | None) -> None:
    """Print machine and table, and write both as JSON where asked."""
    import triton

    machine = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "command": command,
    }
    print(machine, table(rows), sep="\n\n")
    if path is not None:
        shapes = [
            {**asdict(shape), "dtype": str(shape.dtype), "bytes": shape.bytes}
            for shape in SHAPES
            if any(row["shape"] == shape.name for row in rows)
        ]
        found = {"machine": machine, "shapes": shapes, "rows": rows}
        with open(path, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?", help="where to write the figures as JSON")
    parser.add_argument("--wall", action="store_true", help="wall times in turn")
    parser.add_argument("--alone", action="store_true", help="one process for each")
    parser.add_argument("--first", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.manual_seed(0)
    if asked.first:
        print(first(*asked.first))
        sys.exit()
    small, kind = SHAPES[3:5], ""
    if asked.wall:
        rows, kind = [row for shape in small for row in in_turn(shape)], " --wall"
    elif asked.alone:
        rows, kind = [row for shape in small for row in alone(shape)], " --alone"
    else:
        rows = [row for shape in SHAPES for row in measure(shape)]
    write(rows, f"python benchmarks/gpu.py{kind}", asked.out)
