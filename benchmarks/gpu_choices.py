"""What each choice in the kernels is worth: the kernels beside changed copies.

    python benchmarks/gpu_choices.py [OUT.json]

Every change is made in the text of rope_teach/ops/cuda.py and must be found there, so
that the table cannot describe a kernel of the past. Measured as in gpu.py, all choices
one after the other and then all again: the median of the rounds, in microseconds. Rows
named "..., rows" time the kernel that writes cos and sin of given positions, by itself.
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

from rope_teach import angles, cos_sin, inverse_frequencies
from rope_teach.ops import cuda

ROUNDS = 3
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
BLOCK = "2 if statically_known_true(rows * sequences <= 1024) else 8"
ROW_WARPS = "num_warps=2,"
CHANGES_OF_ROWS: dict[str, list[tuple[str, str]]] = {
    "as it is": [],
    "1 row a program": [(BLOCK, "1")],
    "2 rows a program": [(BLOCK, "2")],
    "4 rows a program": [(BLOCK, "4")],
    "8 rows a program": [(BLOCK, "8")],
    "16 rows a program": [(BLOCK, "16")],
    "1 warp": [(ROW_WARPS, "num_warps=1,")],
    "4 warps": [(ROW_WARPS, "num_warps=4,")],
    "8 warps": [(ROW_WARPS, "num_warps=8,")],
}


def changed(
    name: str, folder: Path, changes: dict[str, list[tuple[str, str]]] = CHANGES
) -> ModuleType:
    """Return the module of the kernels with one choice made otherwise."""
    source = Path(cuda.__file__).read_text()
    for old, new in changes[name]:
        if old not in source:
            raise ValueError(f"{name!r}: the kernel no longer has {old!r}")
        source = source.replace(old, new)
    kind = "choice_" if changes is CHANGES else "rows_"
    space = kind + "".join(filter(str.isalnum, name))
    path = folder / f"{space}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(space, path)
    assert spec and spec.loader
    module = sys.modules[space] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rotations(shape: gpu.Shape, pairing: str, folder: Path) -> dict[str, gpu.Rotate]:
    """The copy, and every choice; each is held against float64 first."""
    positions = shape.start + torch.arange(shape.seq, device=gpu.DEVICE)
    inv_freq = inverse_frequencies(shape.rotary, device=gpu.DEVICE)
    how = (*cos_sin(positions, inv_freq), pairing, "bhsd", False)
    found: dict[str, gpu.Rotate] = {"copy": gpu.copy}
    for name in CHANGES:
        module = changed(name, folder)

        def rotate(q, k, module=module):  # type: ignore[no-untyped-def]
            out = [torch.empty_like(x) for x in (q, k)]
            module.rotate((q, k), *how, out)
            return out

        gpu.error(rotate, gpu.Case(pairing, positions), shape)
        found[name] = rotate
    return found


def rows(shape: gpu.Shape, folder: Path) -> dict[str, gpu.Rotate]:
    """The kernel that writes the rows of a batch, and every choice in it."""
    positions = gpu.Positions(shape).rows
    inv_freq = inverse_frequencies(shape.rotary, device=gpu.DEVICE)
    angle = angles(positions, inv_freq)
    expected = torch.stack([angle.cos(), angle.sin()], dim=-2)
    found: dict[str, gpu.Rotate] = {}
    for name in CHANGES_OF_ROWS:
        module = changed(name, folder, CHANGES_OF_ROWS)

        def write(q, k, module=module):  # type: ignore[no-untyped-def]
            return module.cos_sin(positions, inv_freq, 1.0, 0, 1, None)

        if not (write(None, None) - expected).abs().max() < 1e-6:
            raise ValueError(f"{name!r} writes wrong rows on {shape.name}")
        found[name] = write
    return found


def measure(shape: gpu.Shape, folder: Path) -> list[dict[str, object]]:
    """Rows of one shape: both pairings, and the kernel of the rows."""
    found = []
    for kind in ("half", "interleaved", "rows"):
        calls = (
            rows(shape, folder) if kind == "rows" else rotations(shape, kind, folder)
        )
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                times[name].append(gpu.gpu_microseconds(call, shape, False))
        for name, rounds in times.items():
            found.append(
                {"shape": shape.name, "name": f"{name}, {kind}",
                 "gpu": median(rounds), "rounds": rounds}
            )  # fmt: skip
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        measured = [row for s in gpu.SHAPES[:5] for row in measure(s, Path(folder))]
    path = next(iter(sys.argv[1:]), None)
    gpu.write(measured, "python benchmarks/gpu_choices.py", path)
