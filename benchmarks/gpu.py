"""How fast the CUDA path is, beside a copy of q and k and beside other libraries.

    python benchmarks/gpu.py OUT.json [--shapes prefill train]
    python benchmarks/gpu_report.py        # writes results/gpu.md from the stored JSON

GPU time: a CUDA graph of at least 32 calls, over sets of inputs larger than the L2
cache, is replayed; the median is taken. Wall time: eager calls one after another, as a
decode loop makes them. The speed of a host changes from second to second, so the
contestants of a shape are visited in turn; the median of the visits is taken. Every
contestant is compared with float64, at the positions that it is given, before it is
timed. Libraries that are not installed are left out. `--shapes` replaces these shapes
in OUT.json and leaves the others there as they are.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import itertools
import json
import math
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

# There is no public name for this switch.
from torch._functorch import config as functorch

from rope_teach import RotaryEmbedding, angles, cos_sin, inverse_frequencies, rotate
from rope_teach.pairing import full_table
from rope_teach.rotation import rotate_complex, rotate_matrix
from rope_teach.tables import xpos_scale

# Up to torch 2.11 a compiled function expects contiguous gradients and copies others
# first. Inside a compiled model there is no such border to cross.
functorch.guess_tangent_strides_as_outputs = True

DEVICE = "cuda"  # a test replaces it
DRIVER = "copy by the driver"
LAYERS = 32  # that share their tables
L2_TIMES_FOUR = 256 * 2**20
LARGEST_ERROR = {torch.bfloat16: 1e-2, torch.float32: 1e-3}  # relative, angles float32
VISITS = 4
Rotate = Callable[[Tensor, Tensor], Sequence[Tensor]]
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
    start: int = 0

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
    Shape("decode bf16 64x1 32/8 128", 64, 1, 32, 8, 128, backward=False, start=4095),
    Shape("small bf16 1x512 8/8 64", 1, 512, 8, 8, 64),
    Shape("long bf16 1x131072 32/8 128", 1, 131_072, 32, 8, 128),
    Shape("partial bf16 4x4096 32/32 128, 32 rotated", 4, 4096, 32, 32, 128,
          rotary_dim=32),
]  # fmt: skip


class Positions:
    """Where the tokens of one workload are, in each way of saying so."""

    def __init__(self, shape: Shape) -> None:
        batch, seq = shape.batch, shape.seq
        self.shared = shape.start + torch.arange(seq, device=DEVICE)
        self.offsets = torch.randint(1024, (batch,), device=DEVICE)
        self.starts = shape.start + self.offsets
        self.rows = self.shared + self.offsets[:, None]
        self.padded = self.shared - self.offsets[:, None]
        self.grid = torch.stack([self.shared // 64, self.shared % 64], dim=-1)
        # The same tokens as one sequence of documents, 1024 tokens long on average.
        total = batch * seq
        cuts = 1 + torch.randperm(total - 1)[: max(3, total // 1024)].sort().values
        ends = torch.cat([torch.tensor([0]), cuts, torch.tensor([total])])
        lengths = ends.diff()
        begins = ends[:-1].repeat_interleave(lengths)
        self.packed = (torch.arange(total) - begins).to(DEVICE)
        self.cu_seqlens, self.max_seqlen = ends.int().to(DEVICE), int(lengths.max())


@dataclass(frozen=True)
class Case:
    """What a contestant is given, so that float64 can say what is right."""

    pairing: str = ""  # none: nothing is rotated
    positions: Tensor | None = None  # (seq,) or (batch, seq), with axes at the end
    inv_freq: Tensor | None = None
    xpos_scale_base: float | None = None
    backward: bool = True


@dataclass(frozen=True)
class Shared:
    """A rotation whose tables are made once for LAYERS calls, and count as well."""

    prepare: Callable[[], Rotate]


Contestant = tuple[str, Case, "Rotate | Shared"]


# ------------------------------------------------------------------- contestants


def same(x: Tensor) -> Tensor:
    return x


def copy(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """One elementwise pass: on some shapes it beats the driver's own copy."""
    return q * 1.0, k * 1.0


def contestants(shape: Shape) -> Iterator[Contestant]:
    """Yield (name, case, function) for all that can take this shape."""
    at = Positions(shape)
    yield "copy of q and k", Case(), copy
    yield DRIVER, Case(backward=False), lambda q, k: (q.clone(), k.clone())
    yield from from_start(shape, at)
    yield from by_positions(shape, at)
    yield from into_cache(shape, at)
    yield from flash_attention(shape, at)
    if shape.rotary == shape.head_dim:  # the others are timed on whole heads
        inv_freq = inverse_frequencies(shape.rotary, device=DEVICE)
        cos, sin = cos_sin(at.shared, inv_freq)
        phases = torch.complex(cos, sin)
        yield (
            "complex form",
            Case("interleaved", at.shared),
            lambda q, k: (rotate_complex(q, phases), rotate_complex(k, phases)),
        )
        yield from hugging_face_and_liger(shape, at, cos, sin)
        yield from others(shape, at)


def from_start(shape: Shape, at: Positions) -> Iterator[Contestant]:
    """Ours, as most call it; eager first, so that the rows are kept."""
    for pairing in ("half", "interleaved"):
        rope = module(shape, pairing=pairing)
        plain: Rotate = lambda q, k, rope=rope: rope(q, k, start=shape.start)  # noqa: E731
        case = Case(pairing, at.shared)
        yield f"ours, {pairing}", case, plain
        yield f"ours, {pairing}, compiled", case, compiled(plain)


def by_positions(shape: Shape, at: Positions) -> Iterator[Contestant]:
    """Ours, however positions come; half pairing."""
    rope, half = module(shape), partial(Case, "half")
    rows: Rotate = lambda q, k: rope(q, k, at.rows)  # noqa: E731
    ready = rope.tables(at.shared)
    given: Rotate = lambda q, k: rope(q, k, tables=ready)  # noqa: E731
    yield "ours, ready tables, compiled", half(at.shared), compiled(given)
    yield "ours, positions shared", half(at.shared), lambda q, k: rope(q, k, at.shared)
    yield "ours, positions per sequence", half(at.rows), rows
    yield "ours, positions per sequence, compiled", half(at.rows), compiled(rows)
    yield (
        "ours, start per sequence",
        half(at.rows),
        lambda q, k: rope(q, k, start=at.starts),
    )
    yield (
        "ours, left padding",
        half(at.padded),
        lambda q, k: rope(q, k, start=shape.start, pad_len=at.offsets),
    )
    if shape.seq > 1:
        packed = at.packed.view(shape.batch, shape.seq)
        yield "ours, packed", half(packed), in_one_sequence(rope, at.packed)
    image = module(shape, axes=2)
    yield (
        "ours, two axes",
        half(at.grid, image.inv_freq.to(DEVICE)),
        lambda q, k: image(q, k, at.grid),
    )
    learned = module(shape, learned=True).requires_grad_(False)
    yield (
        "ours, learned, frozen",
        half(at.shared, learned.inv_freq),
        lambda q, k: learned(q, k, start=shape.start),
    )
    fade = max(512, shape.seq // 8)
    xpos = module(shape, xpos_scale_base=fade)
    yield (
        "ours, xPos",
        half(at.shared, xpos_scale_base=fade),
        lambda q, k: xpos(q, k, start=shape.start),
    )
    yield (
        f"ours, tables shared by {LAYERS} layers",
        half(at.rows),
        Shared(lambda: partial(rope, tables=rope.tables(at.rows))),
    )
    cos, sin = cos_sin(at.shared, inverse_frequencies(shape.rotary, device=DEVICE))
    yield (
        "ours, rotate(q), rotate(k)",
        half(at.shared),
        lambda q, k: (rotate(q, cos, sin, "half"), rotate(k, cos, sin, "half")),
    )


def into_cache(shape: Shape, at: Positions) -> Iterator[Contestant]:
    """Keys go into a preallocated cache, one slot after another."""
    rope, case = module(shape), Case("half", at.shared, backward=False)
    slots = max(2, 1024 // shape.seq)
    length = slots * shape.seq
    cache = torch.empty(shape.batch, shape.kv_heads, length, shape.head_dim,
                        device=DEVICE, dtype=shape.dtype)  # fmt: skip
    free = itertools.cycle(cache.split(shape.seq, dim=2))

    def directly(q: Tensor, k: Tensor) -> Sequence[Tensor]:
        return rope(q, k, start=shape.start, out=(None, next(free)))

    def by_copy(q: Tensor, k: Tensor) -> Sequence[Tensor]:
        q, k = rope(q, k, start=shape.start)
        return q, next(free).copy_(k)

    yield "ours, out= into a cache", case, directly
    yield "ours, then a copy into a cache", case, by_copy


def module(shape: Shape, pairing: str = "half", **how: Any) -> RotaryEmbedding:
    return RotaryEmbedding(
        shape.head_dim, rotary_dim=shape.rotary, pairing=pairing, **how
    ).to(DEVICE)


def compiled(rotate: Rotate) -> Rotate:
    """Compile as peers are compiled: ``fullgraph=True`` costs 2 to 7 µs more a call."""
    return torch.compile(rotate, dynamic=False)


def in_one_sequence(rope: RotaryEmbedding, positions: Tensor) -> Rotate:
    """All tokens of a batch as one sequence: a view, since they are stored so."""

    def turn(q: Tensor, k: Tensor) -> Sequence[Tensor]:
        batch = q.shape[0]
        joined = [x.transpose(1, 2).flatten(0, 1).transpose(0, 1) for x in (q, k)]
        return [
            x.transpose(0, 1).unflatten(0, (batch, -1)).transpose(1, 2)
            for x in rope(*joined, positions)
        ]

    return turn


def hugging_face_and_liger(
    shape: Shape, at: Positions, cos: Tensor, sin: Tensor
) -> Iterator[Contestant]:
    """With tables that are ready, made at each call, and shared by layers."""
    if not installed("transformers"):
        return
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama as llama

    apply = llama.apply_rotary_pos_emb
    wide = [full_table(t, "half")[None] for t in (cos, sin)]
    narrow = [table.to(shape.dtype) for table in wide]
    config = LlamaConfig(
        hidden_size=shape.heads * shape.head_dim,
        num_attention_heads=shape.heads,
        head_dim=shape.head_dim,
    )
    own = llama.LlamaRotaryEmbedding(config).to(DEVICE)
    like = torch.empty(0, dtype=shape.dtype, device=DEVICE)
    ready: Rotate = lambda q, k: apply(q, k, *narrow)  # noqa: E731
    anew: Rotate = lambda q, k: apply(q, k, *own(q, at.rows))  # noqa: E731
    shared_case, rows_case = Case("half", at.shared), Case("half", at.rows)
    yield "Hugging Face", shared_case, ready
    yield "Hugging Face, compiled", shared_case, compiled(ready)
    name = "Hugging Face, positions per sequence"
    yield name, rows_case, anew
    yield f"{name}, compiled", rows_case, compiled(anew)
    fused: Any = compiled(lambda q, k, c, s: apply(q, k, c, s))

    def layers(turn: Callable[..., Sequence[Tensor]]) -> Shared:
        def prepare() -> Rotate:
            with torch.no_grad():
                tables = own(like, at.rows)
            return lambda q, k: turn(q, k, *tables)

        return Shared(prepare)

    name = f"tables shared by {LAYERS} layers"
    yield f"Hugging Face, {name}, compiled", rows_case, layers(fused)
    if installed("liger_kernel.transformers.rope"):
        from liger_kernel.transformers.rope import liger_rotary_pos_emb as liger

        yield "Liger (in place)", shared_case, lambda q, k: liger(q, k, *wide)
        yield f"Liger (in place), {name}", rows_case, layers(liger)


def flash_attention(shape: Shape, at: Positions) -> Iterator[Contestant]:
    """Its Triton rotary: positions are an offset a sequence, or ``cu_seqlens``."""
    if not installed("flash_attn.layers.rotary"):
        return
    from flash_attn.layers.rotary import apply_rotary_emb

    length = shape.start + shape.seq + 1024
    inv_freq = inverse_frequencies(shape.rotary, device=DEVICE)
    table = cos_sin(torch.arange(length, device=DEVICE), inv_freq)

    def turn(interleaved: bool, start: int | Tensor) -> Rotate:
        return lambda q, k: [
            apply_rotary_emb(
                x.transpose(1, 2), *table, interleaved, seqlen_offsets=start
            ).transpose(1, 2)
            for x in (q, k)
        ]

    def packed(q: Tensor, k: Tensor) -> Sequence[Tensor]:
        ends = {"cu_seqlens": at.cu_seqlens, "max_seqlen": at.max_seqlen}
        turned = [
            apply_rotary_emb(x.transpose(1, 2).flatten(0, 1), *table, **ends)
            for x in (q, k)
        ]
        return [x.unflatten(0, (shape.batch, -1)).transpose(1, 2) for x in turned]

    name = "flash-attention"
    yield f"{name}, half", Case("half", at.shared), turn(False, shape.start)
    yield (
        f"{name}, interleaved",
        Case("interleaved", at.shared),
        turn(True, shape.start),
    )
    yield f"{name}, start per sequence", Case("half", at.rows), turn(False, at.starts)
    if shape.seq > 1:
        packed_positions = at.packed.view(shape.batch, shape.seq)
        yield f"{name}, packed", Case("half", packed_positions), packed


def others(shape: Shape, at: Positions) -> Iterator[Contestant]:
    """Yield the rotations of further libraries, as they are called in their models."""
    case = Case("interleaved", at.shared)
    if installed("torchtune.modules.position_embeddings"):
        from torchtune.modules.position_embeddings import RotaryPositionalEmbeddings

        length = shape.start + shape.seq
        tune = RotaryPositionalEmbeddings(shape.head_dim, length).to(DEVICE)
        where = {"input_pos": at.shared[None]} if shape.start else {}
        swapped: Rotate = lambda q, k: [  # noqa: E731
            tune(x.transpose(1, 2), **where).transpose(1, 2) for x in (q, k)
        ]
        yield "torchtune, compiled", case, compiled(swapped)
    if installed("x_transformers"):
        from x_transformers.x_transformers import RotaryEmbedding as Theirs
        from x_transformers.x_transformers import apply_rotary_pos_emb as apply

        freqs, _ = Theirs(shape.head_dim).to(DEVICE)(at.shared)
        yield "x-transformers", case, lambda q, k: (apply(q, freqs), apply(k, freqs))


def installed(module: str) -> bool:
    """Whether a peer is here and imports; some break on newer dependencies."""
    try:
        importlib.import_module(module)
    except Exception as trouble:
        print(f"left out: {module}: {type(trouble).__name__}: {trouble}",
              file=sys.stderr)  # fmt: skip
        return False
    return True


# ------------------------------------------------------------------- measurement


def inputs(shape: Shape, gradients: bool = False) -> tuple[Tensor, Tensor]:
    """Random q and k, stored token by token, as a projection leaves them."""
    return tuple(
        torch.randn(shape.batch, shape.seq, heads, shape.head_dim, device=DEVICE)
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


@torch.no_grad()
def error(
    rotate: Rotate | Shared,
    case: Case,
    shape: Shape,
    norms: Sequence[Norm] = (same, same),
) -> float:
    """Relative error against float64 after ``norms``; raise if it is wrong.

    On the last tokens of the first and of the last sequence.
    """
    q, k = inputs(shape)
    some, tail = [0, -1], slice(-min(64, shape.seq), None)
    expected = [
        norm(x[some][:, :, tail].double())
        for x, norm in zip((q, k), norms, strict=True)
    ]
    if case.positions is not None:
        expected = in_float64(expected, case, shape, some, tail)
    (turn,) = in_layers(rotate, 1)
    found = []
    for got, x in zip(turn(q, k), expected, strict=True):
        far = (got[some][:, :, tail] - x).flatten(1).norm(dim=1)
        found.append(far / x.flatten(1).norm(dim=1))
    worst = torch.cat(found).max().item()  # NaN, where one is
    if not worst < LARGEST_ERROR[shape.dtype]:
        raise ValueError(f"wrong by {worst:.1e}")
    return worst


def in_float64(
    xs: Sequence[Tensor], case: Case, shape: Shape, some: list[int], tail: slice
) -> list[Tensor]:
    """Rotate q and k of ``some`` sequences by the matrix."""
    assert case.positions is not None
    inv_freq = case.inv_freq
    if inv_freq is None:
        inv_freq = inverse_frequencies(shape.rotary, device=DEVICE)
    axes = inv_freq.shape[:-1]
    positions = case.positions.expand(shape.batch, shape.seq, *axes)[some][:, tail]
    angle = angles(positions, inv_freq)
    scale: list[Tensor | float] = [1.0, 1.0]
    if case.xpos_scale_base is not None:
        fade = xpos_scale(positions, shape.rotary, case.xpos_scale_base).double()
        fade = full_table(fade, "half")[:, None]
        fade = torch.nn.functional.pad(
            fade, (0, shape.head_dim - shape.rotary), value=1.0
        )
        scale = [fade, 1 / fade]
    turned = [rotate_matrix(x, angle, case.pairing) for x in xs]  # type: ignore[arg-type]
    return [x * factor for x, factor in zip(turned, scale, strict=True)]


def in_layers(rotate: Rotate | Shared, calls: int) -> Iterator[Rotate]:
    """The function of each call; shared tables are made anew every LAYERS calls."""
    for call in range(calls):
        if not isinstance(rotate, Shared):
            yield rotate
            continue
        if call % LAYERS == 0:
            prepared = rotate.prepare()
        yield prepared


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
    rotate: Rotate | Shared,
    shape: Shape,
    backward: bool,
    weights: Sequence[Tensor] = (),
) -> float:
    """Median GPU time of one call, from replays of a graph."""
    first_graph()
    # Three sets at least, or a kernel that asks the L2 to hold its inputs would find
    # some of them there on the next replay, which no model does.
    sets = min(512, max(3, math.ceil(L2_TIMES_FOUR / shape.bytes)))
    calls = LAYERS * math.ceil(sets / LAYERS)
    # Each has gradients of its own: what is written over in place would stay cached.
    data = [inputs_and_gradients(shape, backward) for _ in range(sets)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for turn, each in zip(in_layers(rotate, 3), data, strict=False):
            step(turn, *each, weights)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Results are kept as long as it takes to come back to the same inputs.
    kept: deque[object] = deque(maxlen=sets)
    with torch.cuda.graph(graph):
        for turn, each in zip(in_layers(rotate, calls), itertools.cycle(data)):
            kept.append(step(turn, *each, weights))
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 8 or (len(times) < 24 and time.perf_counter() - begun < 0.5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return median(times[3:])


GRAPHS: list[object] = []


def first_graph() -> None:
    """Keep a graph that nobody replays.

    The first graph of a process replays small kernels 12 to 18 % faster than later
    ones do, until a second one exists: nobody shall have that place.
    """
    if not GRAPHS:
        x, graph = torch.zeros(1024, device=DEVICE), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x * 1.0
        graph.replay()
        GRAPHS.extend([graph, x, y])


def wall_microseconds(
    rotate: Rotate | Shared, shape: Shape, backward: bool, rounds: int = 16
) -> float:
    """Time of one eager call, when calls follow one another: the best round.

    The best, because other work on the host only ever adds to it.
    """
    each = inputs_and_gradients(shape, backward)
    found, calls = [], max(3, min(192, 2**31 // shape.bytes))
    if isinstance(rotate, Shared):
        calls = LAYERS * math.ceil(calls / LAYERS)
    for _ in range(rounds):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for turn in in_layers(rotate, calls):
            step(turn, *each)
        torch.cuda.synchronize()
        found.append((time.perf_counter() - started) * 1e6 / calls)
    return min(found)


def measure(shape: Shape) -> list[dict[str, Any]]:
    """One row for each contestant: GPU times, then wall times in turn."""
    torch.compiler.reset()
    rows, right = [], []
    for name, case, turn in contestants(shape):
        row: dict[str, Any] = {"shape": shape.name, "name": name}
        rows.append(row)
        columns = [False, True] if shape.backward and case.backward else [False]
        try:
            row["error"] = error(turn, case, shape)
            for backward in columns:
                with torch.set_grad_enabled(backward):
                    time_taken = gpu_microseconds(turn, shape, backward)
                row["gpu_both" if backward else "gpu"] = time_taken
            right.append((row, turn, columns))
        except Exception as trouble:  # a peer's failure is a result
            words = f"{type(trouble).__name__}: {trouble}"
            row["trouble"] = words.splitlines()[0][:120]
            torch.cuda.synchronize()
        torch.cuda.empty_cache()
        print(row, file=sys.stderr, flush=True)
    walls_in_turn(shape, right)
    return rows


def walls_in_turn(
    shape: Shape, contestants: Sequence[tuple[dict[str, Any], Rotate | Shared, Any]]
) -> None:
    """Add the wall times, each contestant visited again and again."""
    walls: dict[tuple[int, bool], list[float]] = {}
    for _ in range(VISITS):
        for place, (_, turn, columns) in enumerate(contestants):
            for backward in columns:
                with torch.set_grad_enabled(backward):
                    took = wall_microseconds(turn, shape, backward, rounds=3)
                walls.setdefault((place, backward), []).append(took)
    for (place, backward), found in walls.items():
        contestants[place][0]["wall_both" if backward else "wall"] = median(found)


# ------------------------------------------------------------------------ results


def machine(command: str) -> dict[str, str]:
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "command": command,
    }


def write(rows: list[dict[str, Any]], command: str, path: str | None) -> None:
    """Write rows, shapes and machine as JSON, or print the figures as a table."""
    if path is None:
        import gpu_report

        rows_by_name = {(row["shape"], row["name"]): row for row in rows}
        shapes = list(dict.fromkeys(shape for shape, _ in rows_by_name))
        for columns in (("gpu", "gpu_both"), ("wall", "wall_both")):
            print(" / ".join(columns), machine(command), sep="\n")
            print(gpu_report.matrix(rows_by_name, shapes, columns), end="\n\n")
        return
    found = {
        "machine": machine(command),
        "shapes": [
            {**asdict(shape), "dtype": str(shape.dtype), "bytes": shape.bytes}
            for shape in SHAPES
            if any(row["shape"] == shape.name for row in rows)
        ],
        "rows": rows,
    }
    part = Path(path).with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)


def earlier(path: str | None) -> list[dict[str, Any]]:
    """The rows that a run on the same kind of machine left in ``path``."""
    if path is None or not Path(path).exists():
        return []
    stored, now = json.loads(Path(path).read_text()), machine("")
    if any(
        stored["machine"].get(key) != now[key] for key in ("gpu", "torch", "triton")
    ):
        raise SystemExit(f"{path} is of another machine: {stored['machine']}")
    rows: list[dict[str, Any]] = stored["rows"]
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?", help="where to write the figures as JSON")
    parser.add_argument("--shapes", nargs="+", help="names begin with one of these")
    asked = parser.parse_args()
    torch.manual_seed(0)
    wanted = [s for s in SHAPES if s.name.startswith(tuple(asked.shapes or [""]))]
    names = {shape.name for shape in wanted}
    kept = earlier(asked.out) if asked.shapes else []
    rows = [row for row in kept if row["shape"] not in names]
    for shape in wanted:
        begun = time.perf_counter()
        rows += measure(shape)
        rows.sort(key=lambda row: [s.name for s in SHAPES].index(row["shape"]))
        print(f"{shape.name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        if asked.out or shape == wanted[-1]:  # a run that is cut short loses one shape
            write(rows, "python benchmarks/gpu.py", asked.out)
