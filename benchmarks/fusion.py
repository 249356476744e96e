"""Norm and rotation in one kernel, beside one after the other.

    python benchmarks/fusion.py [OUT.json]

Current models normalise each head of q and k (RMSNorm, with a learned weight) just
before they rotate it. Two kernels read and write every feature twice; one could do both
in one pass. Measured as in gpu.py, beside a copy of q and k: the norm of torch and our
rotation, eager and compiled; the formula of both given to the compiler whole; and our
fused kernel. "Both" has the gradients of q, k and the two weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import gpu
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rope_teach import RotaryEmbedding, cos_sin, inverse_frequencies

EPS = 1e-6
PREFILL, TRAIN, _, DECODE = gpu.SHAPES[:4]
Norms = tuple[nn.RMSNorm, nn.RMSNorm]


def formula(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The half pairing as it is written on paper, in float32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def contestants(shape: gpu.Shape, norms: Norms) -> Iterator[tuple[str, gpu.Rotate]]:
    """Yield (name, function of q and k)."""
    positions = shape.start + torch.arange(shape.seq, device=gpu.DEVICE)
    inv_freq = inverse_frequencies(shape.head_dim, device=gpu.DEVICE)
    cos, sin = cos_sin(positions, inv_freq)
    rope = RotaryEmbedding(shape.head_dim, pairing="half").to(gpu.DEVICE)

    def one_by_one(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        turned: tuple[Tensor, Tensor] = rope(
            norms[0](q), norms[1](k), start=shape.start
        )
        return turned

    def on_paper(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return formula(norms[0](q), cos, sin), formula(norms[1](k), cos, sin)

    def fused(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        turned: tuple[Tensor, Tensor] = rope(q, k, norms=norms, start=shape.start)
        return turned

    yield "copy of q and k", gpu.copy
    yield "norm, then rotation", one_by_one
    yield "norm, then rotation, compiled", torch.compile(one_by_one, fullgraph=True)
    yield "formula of both, compiled", torch.compile(on_paper, fullgraph=True)
    yield "ours: both in one kernel", fused
    yield "ours, compiled", torch.compile(fused, fullgraph=True)


def in_float64(norm: nn.RMSNorm) -> gpu.Norm:
    """What ``norm`` does, for features in float64."""
    weight = norm.weight.double()
    return lambda x: F.rms_norm(x, norm.normalized_shape, weight, norm.eps)


def measure(shape: gpu.Shape) -> Iterator[dict[str, object]]:
    """Yield a row for each contestant."""
    norms = tuple(nn.RMSNorm(shape.head_dim, EPS) for _ in range(2))
    for norm in norms:
        nn.init.normal_(norm.weight, mean=1, std=0.1)
        norm.to(gpu.DEVICE, shape.dtype)
    positions = shape.start + torch.arange(shape.seq, device=gpu.DEVICE)
    case = gpu.Case("half", positions)
    for name, rotate in contestants(shape, norms):  # type: ignore[arg-type]
        torch.compiler.reset()
        row: dict[str, object] = {"shape": shape.name, "name": name}
        weights = () if "copy" in name else [norm.weight for norm in norms]
        with torch.no_grad():
            if weights:
                exact = [in_float64(norm) for norm in norms]
                row["error"] = gpu.error(rotate, case, shape, exact)
            row["gpu"] = gpu.gpu_microseconds(rotate, shape, False)
            row["wall"] = gpu.wall_microseconds(rotate, shape, False)
        if shape.backward:
            row["gpu_both"] = gpu.gpu_microseconds(rotate, shape, True, weights)
        torch.cuda.empty_cache()
        yield row


if __name__ == "__main__":
    torch.manual_seed(0)
    rows = [row for shape in (PREFILL, TRAIN, DECODE) for row in measure(shape)]
    gpu.write(rows, "python benchmarks/fusion.py", next(iter(sys.argv[1:]), None))
