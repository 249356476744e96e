"""Time the rotation beside other libraries, as a multiple of copying q and k.

    python benchmarks/cpu.py > benchmarks/results/cpu.md       (about five minutes)

How it measures, and what the columns mean: `README.md` beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import functools
import importlib.metadata
import itertools
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from common import processor
from torch import Tensor

# No public name says what torch's compiler found: torch.backends.cpu knows the
# processor only, and without a working C++ compiler torch falls back silently.
from torch._inductor.cpu_vec_isa import pick_vec_isa

from rope_teach import RotaryEmbedding, angles, inverse_frequencies, rotate_matrix

PREFILL, DECODE = (4, 16, 2048, 64), (16, 16, 1, 64)  # batch, heads, seq, head_dim
HEAD_DIM, LONGEST = 64, 2048
Pair = tuple[Tensor, Tensor]
Rotation = Callable[[Tensor, Tensor], Pair]
Tables = Callable[[], object]


class Contestant(NamedTuple):
    """A library's rotation; ``make(seq, dtype, layout)`` returns it and its tables."""

    name: str
    pairing: str
    layouts: tuple[str, ...]
    make: Callable[[int, torch.dtype, str], tuple[Rotation, Tables]]
    compiled: bool = False  # timed under torch.compile too


# ------------------------------------------------------------------ contestants


def ours(pairing: str) -> Callable[..., tuple[Rotation, Tables]]:
    def make(seq: int, dtype: torch.dtype, layout: str) -> tuple[Rotation, Tables]:
        def build() -> RotaryEmbedding:
            return RotaryEmbedding(HEAD_DIM, pairing=pairing, layout=layout)

        return build(), build

    return make


def llama(seq: int, dtype: torch.dtype, layout: str) -> tuple[Rotation, Tables]:
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    config = LlamaConfig(hidden_size=HEAD_DIM, num_attention_heads=1)
    module = modeling_llama.LlamaRotaryEmbedding(config)

    def build(length: int = LONGEST) -> Pair:
        return module(torch.empty(0, dtype=dtype), torch.arange(length)[None])

    cos, sin = build(seq)
    axis = 1 if layout == "bhsd" else 2

    def rotation(q: Tensor, k: Tensor) -> Pair:
        return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin, axis)

    return rotation, build


def gptj(seq: int, dtype: torch.dtype, layout: str) -> tuple[Rotation, Tables]:
    from transformers.models.gptj import modeling_gptj

    def build(length: int = LONGEST) -> Tensor:
        return modeling_gptj.create_sinusoidal_positions(length, HEAD_DIM)

    sin, cos = build(seq)[None].to(dtype).chunk(2, dim=-1)
    apply = modeling_gptj.apply_rotary_pos_emb
    return lambda q, k: (apply(q, sin, cos), apply(k, sin, cos)), build


def torchtune(seq: int, dtype: torch.dtype, layout: str) -> tuple[Rotation, Tables]:
    from torchtune.modules import RotaryPositionalEmbeddings

    def build() -> RotaryPositionalEmbeddings:
        return RotaryPositionalEmbeddings(HEAD_DIM, max_seq_len=LONGEST)

    module = build()
    return lambda q, k: (module(q), module(k)), build


def lucidrains(seq: int, dtype: torch.dtype, layout: str) -> tuple[Rotation, Tables]:
    from rotary_embedding_torch import RotaryEmbedding, apply_rotary_emb

    # Its own positions would be in bfloat16, which cannot tell 256 from 257.
    module = RotaryEmbedding(HEAD_DIM, cache_if_possible=False)

    def build(length: int = LONGEST) -> Tensor:
        return module(torch.arange(length, dtype=torch.float32))

    freqs = build(seq) if layout == "bhsd" else build(seq)[:, None]
    return lambda q, k: (apply_rotary_emb(freqs, q), apply_rotary_emb(freqs, k)), build


def x_transformers(
    seq: int, dtype: torch.dtype, layout: str
) -> tuple[Rotation, Tables]:
    from x_transformers.x_transformers import RotaryEmbedding, apply_rotary_pos_emb

    module = RotaryEmbedding(HEAD_DIM)

    def build(length: int = LONGEST) -> Tensor:
        return module(torch.arange(length))[0]

    freqs, apply = build(seq), apply_rotary_pos_emb
    return lambda q, k: (apply(q, freqs), apply(k, freqs)), build


BOTH = ("bhsd", "bshd")
CONTESTANTS = [
    Contestant("rope_teach", "interleaved", BOTH, ours("interleaved"), compiled=True),
    Contestant("Hugging Face GPT-J", "interleaved", ("bshd",), gptj, compiled=True),
    Contestant("torchtune", "interleaved", ("bshd",), torchtune),
    Contestant("rotary-embedding-torch", "interleaved", BOTH, lucidrains),
    Contestant("x-transformers", "interleaved", ("bhsd",), x_transformers),
    Contestant("rope_teach", "half", BOTH, ours("half"), compiled=True),
    Contestant("Hugging Face Llama", "half", BOTH, llama, compiled=True),
]
COLUMNS = [  # header, shape, dtype, backward too
    ("fp32 fwd", PREFILL, torch.float32, False),
    ("fp32 fwd+bwd", PREFILL, torch.float32, True),
    ("bf16 fwd", PREFILL, torch.bfloat16, False),
    ("bf16 fwd+bwd", PREFILL, torch.bfloat16, True),
    ("decode fp32", DECODE, torch.float32, False),
    ("decode bf16", DECODE, torch.bfloat16, False),
]


# --------------------------------------------------------------- how positions come


def ways(
    shape: tuple[int, ...], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor, Rotation]]:
    """Yield (name, positions, rotation) for each way of saying where tokens are.

    Half pairing, bhsd. Tokens go on at position 1,000 as a decode step's do, and where
    sequences differ each begins somewhere else.
    """
    batch, heads, seq, _ = shape
    start = 1000 if seq == 1 else 0
    shared = torch.arange(start, start + seq)
    starts = start + torch.randint(100, (batch,))
    rows = starts[:, None] + torch.arange(seq)
    rope = RotaryEmbedding(HEAD_DIM, pairing="half")
    yield "rope_teach, start", shared, lambda q, k: rope(q, k, start=start)
    yield "rope_teach, positions shared", shared, lambda q, k: rope(q, k, shared)
    yield "rope_teach, positions per sequence", rows, lambda q, k: rope(q, k, rows)
    by_start: Rotation = lambda q, k: rope(q, k, start=starts)  # noqa: E731
    yield "rope_teach, start per sequence", rows, by_start
    made = rope.tables(rows)
    with_tables: Rotation = lambda q, k: rope(q, k, tables=made)  # noqa: E731
    yield "rope_teach, ready tables per sequence", rows, with_tables
    slots = itertools.cycle(torch.zeros(4, batch, heads, seq, HEAD_DIM, dtype=dtype))

    def directly(q: Tensor, k: Tensor) -> Pair:
        return rope(q, k, start=start, out=(None, next(slots)))

    def by_copy(q: Tensor, k: Tensor) -> Pair:
        q, k = rope(q, k, start=start)
        return q, next(slots).copy_(k)

    yield "rope_teach, out= into a cache", shared, directly
    yield "rope_teach, then a copy into a cache", shared, by_copy
    yield from ways_of_llama(shared, rows, dtype)


def ways_of_llama(
    shared: Tensor, rows: Tensor, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor, Rotation]]:
    """Hugging Face's function with ready tables, and with its module's at each call."""
    try:
        from transformers import LlamaConfig
        from transformers.models.llama import modeling_llama
    except ImportError:
        return
    apply = modeling_llama.apply_rotary_pos_emb
    config = LlamaConfig(hidden_size=HEAD_DIM, num_attention_heads=1)
    module = modeling_llama.LlamaRotaryEmbedding(config)
    like = torch.empty(0, dtype=dtype)
    for name, positions in (("shared", shared[None]), ("per sequence", rows)):
        ready = module(like, positions)
        yield (
            f"Hugging Face Llama, ready tables {name}",
            positions,
            lambda q, k, ready=ready: apply(q, k, *ready),
        )
        yield (
            f"Hugging Face Llama, positions {name}",
            positions,
            lambda q, k, where=positions: apply(q, k, *module(q, where)),
        )


def time_ways(n: int) -> Iterator[str]:
    """The lines of the second table, forward passes."""
    columns = [
        (shape, dtype)
        for shape in (PREFILL, DECODE)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    every = [ways(*column) for column in columns]
    for line in zip(*every, strict=True):
        cells = []
        for (shape, dtype), way in zip(columns, line, strict=True):
            _, positions, rotation = way
            q, k = samples(shape, dtype, "bhsd")
            tail = slice(-min(16, shape[2]), None)
            angle = angles(positions[..., tail], inverse_frequencies(HEAD_DIM))
            for x, rotated in zip((q, k), rotation(q, k), strict=True):
                expected = rotate_matrix(x[:, :, tail].double(), angle, "half")
                refuse_wrong(rotated[:, :, tail], expected, dtype)
            reference = functools.partial(copy, q, k)
            call = functools.partial(rotation, q, k)
            cells.append(compare(call, reference, n, 200 if shape == DECODE else 1))
        print(line[0][0], file=sys.stderr)
        yield f"| {line[0][0]} | {' | '.join(cells)} |"


# ------------------------------------------------------------------ measurement


def keep_memory() -> None:
    """Let glibc keep what is freed: fresh pages would cost more than the copies."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


def copy(q: Tensor, k: Tensor) -> Pair:
    return q.clone(), k.clone()


def samples(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, grad: bool = False
) -> Pair:
    if layout == "bshd":
        shape = (shape[0], shape[2], shape[1], shape[3])
    q, k = torch.randn(2, *shape).to(dtype).unbind()
    return q.clone().requires_grad_(grad), k.clone().requires_grad_(grad)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Time that this process spent on one call: other processes do not count."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    for _ in range(repeats):
        call()
    return (clock() - begin) / repeats


def compare(
    call: Callable[[], object], copy: Callable[[], object], n: int, repeats: int
) -> str:
    """Median and quartiles of call / copy, the copy timed before and after."""
    for warm_up in (call, copy, call):
        warm_up()
    ratios, before = [], seconds(copy, repeats)
    for _ in range(n):
        taken = seconds(call, repeats)
        after = seconds(copy, repeats)
        ratios.append(2 * taken / (before + after))
        before = after
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def check(rotation: Rotation, pairing: str, layout: str, dtype: torch.dtype) -> None:
    """Hold a contestant against the rotation matrix in float64."""
    x = torch.randn(1, LONGEST, HEAD_DIM).to(dtype)
    angle = angles(torch.arange(LONGEST), inverse_frequencies(HEAD_DIM))
    expected = rotate_matrix(x.double(), angle, pairing)
    x = x[:, None] if layout == "bhsd" else x[:, :, None]
    for rotated in rotation(x, x):
        refuse_wrong(rotated.reshape(expected.shape), expected, dtype)


def refuse_wrong(rotated: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Raise unless it is right, but for angles in float32 and a few roundings."""
    error = (rotated.double() - expected).square().mean().sqrt()
    if not error < (1e-4 if dtype == torch.float32 else 5e-3):
        raise ValueError(f"wrong by {error:.2g} (root mean square)")


def time_column(
    contestant: Contestant, layout: str, compiled: bool, column: tuple, n: int
) -> str:
    _, shape, dtype, backward = column
    rotation, _ = contestant.make(LONGEST, dtype, layout)
    check(rotation, contestant.pairing, layout, dtype)
    rotation, _ = contestant.make(shape[2], dtype, layout)
    if compiled:
        torch.compiler.reset()
        bare = rotation  # a module would add its call; in a model all are inlined
        rotation = torch.compile(lambda q, k: bare(q, k), dynamic=False)
    q, k = samples(shape, dtype, layout, backward)
    gradients = samples(shape, dtype, layout)

    def run() -> None:
        outputs = rotation(q, k)
        if backward:
            torch.autograd.grad(outputs, (q, k), gradients)

    def reference() -> None:
        _outputs = copy(q.detach(), k.detach())
        if backward:  # autograd's own copy would pass the gradients on as they are
            copy(*gradients)

    return compare(run, reference, n, repeats=200 if shape == DECODE else 1)


def time_tables(contestant: Contestant, layout: str, n: int) -> str:
    """Building the tables of 2048 positions, against copying q and k in float32."""
    _, build = contestant.make(LONGEST, torch.float32, layout)
    q, k = samples(PREFILL, torch.float32, layout)
    return compare(build, lambda: copy(q, k), n, 1)


# ------------------------------------------------------------------------ report


def row(contestant: Contestant, layout: str, compiled: bool, n: int) -> str:
    mode = "compiled" if compiled else "eager"
    label = [contestant.name, contestant.pairing, layout, mode]
    print(*label, file=sys.stderr)
    try:
        cells = [time_column(contestant, layout, compiled, c, n) for c in COLUMNS]
        cells.append("" if compiled else time_tables(contestant, layout, n))
    except ImportError as error:
        cells = [f"not installed: {error}", *[""] * len(COLUMNS)]
    return "| " + " | ".join(label + cells) + " |"


def machine() -> str:
    packages = ["torch", "transformers", "torchtune", "torchao"]
    packages += ["rotary-embedding-torch", "x-transformers"]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return (
        f"{datetime.date.today()}; {processor()}, {torch.get_num_threads()} thread(s), "
        f"compiled for {pick_vec_isa()}; Python {platform.python_version()}; "
        f"{', '.join(versions)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=9, help="of each cell")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    headers = ["library", "pairing", "layout", "mode"]
    headers += [column[0] for column in COLUMNS] + ["tables"]
    print("# The rotation on a CPU, as a multiple of copying q and k\n")
    print(f"{machine()}\n\nMedian (quartiles) of {options.samples}. 1.00 is a copy.\n")
    print("| " + " | ".join(headers) + " |\n" + "|---" * len(headers) + "|")
    for contestant in CONTESTANTS:
        for layout in contestant.layouts:
            for compiled in (False, True)[: 1 + contestant.compiled]:
                print(row(contestant, layout, compiled, options.samples), flush=True)
    print("\n## However positions come: half pairing, bhsd, eager, forward\n")
    headers = ["way", "prefill fp32", "prefill bf16", "decode fp32", "decode bf16"]
    print("| " + " | ".join(headers) + " |\n" + "|---" * len(headers) + "|")
    for line in time_ways(options.samples):
        print(line, flush=True)


if __name__ == "__main__":
    main()
