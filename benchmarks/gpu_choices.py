"""What each choice in the kernel is worth: the kernel beside changed copies of itself.

    python benchmarks/gpu_choices.py [OUT.json]

Every change is made in the text of rope_teach/ops/cuda.py and must be found there, so
that the table cannot describe a kernel of the past. Measured as in gpu.py, all choices
one after the other and then all again: the median of the rounds, in microseconds.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from statistics import median
from types import ModuleType

import gpu
import torch

from rope_teach import cos_sin, inverse_frequencies
from rope_teach.ops import cuda

ROUNDS = 5
ROW = "LARGEST_ROW = 2048"
WARPS = "4 if row_bytes > 1024 else 2 if row_bytes > 512 else 1"
TABLE = 'mask=pair < PAIRS, eviction_policy="evict_last"'
LOAD = 'mask=here, eviction_policy="evict_last"'
STORE = "out.dtype.element_ty), mask=here"
SHARE = """share = (tl.program_id(0) % SHARES).to(tl.int64)
    token = (tl.program_id(0) // SHARES).to(tl.int64)"""
SHARE_SLOW = """tokens = tl.num_programs(0) // SHARES
    share = (tl.program_id(0) // tokens).to(tl.int64)
    token = (tl.program_id(0) % tokens).to(tl.int64)"""
CHANGES: dict[str, list[tuple[str, str]]] = {
    "as it is": [],
    "tables may leave the cache": [(TABLE, "mask=pair < PAIRS")],
    "q and k may leave the cache": [(LOAD, "mask=here")],
    "all may leave the cache": [(TABLE, "mask=pair < PAIRS"), (LOAD, "mask=here")],
    "q and k leave the cache first": [(LOAD, LOAD.replace("last", "first"))],
    "1 KB a program": [(ROW, "LARGEST_ROW = 1024")],
    "2 KB a program, 2 warps": [(WARPS, "2")],
    "4 KB a program": [(ROW, "LARGEST_ROW = 4096")],
    "8 KB a program, 8 warps": [(ROW, "LARGEST_ROW = 8192"),
                                (WARPS, "8")],
    "loads past the first cache": [(LOAD, 'mask=here, cache_modifier=".cg"')],
    "stores that stream": [(STORE, STORE + ', cache_modifier=".cs"')],
    "shares of a token far apart": [(SHARE, SHARE_SLOW)],
}  # fmt: skip


def changed(name: str, folder: Path) -> ModuleType:
    """Return the module of the kernel with one choice made otherwise."""
    source = Path(cuda.__file__).read_text()
    for old, new in CHANGES[name]:
        if old not in source:
            raise ValueError(f"{name!r}: the kernel no longer has {old!r}")
        source = source.replace(old, new)
    space = "choice_" + "".join(filter(str.isalnum, name))
    path = folder / f"{space}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(space, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contestants(shape: gpu.Shape, pairing: str, folder: Path) -> dict[str, gpu.Rotate]:
    """The copy, and every choice; each is held against float64 first."""
    positions = torch.arange(shape.seq, device="cuda")
    inv_freq = inverse_frequencies(shape.head_dim, device="cuda")
    table = (*cos_sin(positions, inv_freq), pairing == "interleaved", "bhsd")
    found: dict[str, gpu.Rotate] = {"copy": gpu.copy}
    for name in CHANGES:
        module = changed(name, folder)

        def rotate(q, k, module=module):  # type: ignore[no-untyped-def]
            return module.rotate((q, k), *table)

        if not gpu.error(rotate, pairing, shape) < 4e-3:
            raise ValueError(f"{name!r} is wrong on {shape.name}")
        found[name] = rotate
    return found


def measure(shape: gpu.Shape, folder: Path) -> list[dict[str, object]]:
    """Rows of one shape, for both pairings."""
    rows = []
    for pairing in ("half", "interleaved"):
        calls = contestants(shape, pairing, folder)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, rotate in calls.items():
                times[name].append(gpu.gpu_microseconds(rotate, shape, False))
        for name, rounds in times.items():
            rows.append(
                {"shape": shape.name, "name": f"{name}, {pairing}",
                 "gpu": median(rounds), "rounds": rounds}
            )  # fmt: skip
    return rows


if __name__ == "__main__":
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        rows = [row for s in gpu.SHAPES[:5] for row in measure(s, Path(folder))]
    gpu.write(rows, "python benchmarks/gpu_choices.py", next(iter(sys.argv[1:]), None))
