"""Is the pass of a rotation saved when it is fused with the norm before it?

    python benchmarks/fusion.py [OUT.json]

Current models normalise each head of q and k (RMSNorm, with learned weights) just
before they rotate it. Two kernels then read and write every feature twice; one kernel
could do both. Measured as in gpu.py, beside a copy of q and k: the norm and our
kernel one after the other, eager and compiled; the formula given whole to the
compiler; and a fused kernel written by hand, forward alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import gpu
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from rope_teach import RotaryEmbedding, cos_sin, inverse_frequencies
from rope_teach.kernels import _load_pairs, _store_turned
from rope_teach.rotation import angles, rotate_matrix

EPS = 1e-6
PREFILL, TRAIN, _, DECODE = gpu.SHAPES[:4]
Norms = tuple[Tensor, Tensor]


@triton.jit
def _normalise(a, b, weight, eps, PAIRS: tl.constexpr):
    """RMSNorm of heads whose features are held as pairs, in half order."""
    pair = tl.arange(0, PAIRS)
    scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * PAIRS) + eps)[:, None]
    w_a = tl.load(weight + pair).to(tl.float32)[None, :]
    w_b = tl.load(weight + PAIRS + pair).to(tl.float32)[None, :]
    return a * scale * w_a, b * scale * w_b


@triton.jit
def _normalise_and_rotate(
    q, k, q_out, k_out, q_weight, k_weight, cos, sin, seq, q_heads, k_heads, eps,
    PAIRS: tl.constexpr, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr,
    SHARES: tl.constexpr,
):  # fmt: skip
    """One token's share of heads, as in the package's kernel, with the norm inside."""
    share = tl.program_id(0) % SHARES
    token = (tl.program_id(0) // SHARES).to(tl.int64)
    pair = tl.arange(0, PAIRS)
    c = tl.load(cos + (token % seq) * PAIRS + pair)[None, :]
    s = tl.load(sin + (token % seq) * PAIRS + pair)[None, :]
    step: tl.constexpr = 2 * PAIRS
    q_first, k_first = share * Q_HEADS, share * K_HEADS
    q_at, k_at = (token * q_heads + q_first) * step, (token * k_heads + k_first) * step
    a, b = _load_pairs(q + q_at, step, q_heads - q_first, PAIRS, PAIRS, Q_HEADS, False)
    x, y = _load_pairs(k + k_at, step, k_heads - k_first, PAIRS, PAIRS, K_HEADS, False)
    a, b = _normalise(a, b, q_weight, eps, PAIRS)
    x, y = _normalise(x, y, k_weight, eps, PAIRS)
    _store_turned(q_out + q_at, step, q_heads - q_first, a, b, c, s,
                  PAIRS, PAIRS, Q_HEADS, False)  # fmt: skip
    _store_turned(k_out + k_at, step, k_heads - k_first, x, y, c, s,
                  PAIRS, PAIRS, K_HEADS, False)  # fmt: skip


def by_hand(shape: gpu.Shape, weights: Norms, cos: Tensor, sin: Tensor) -> gpu.Rotate:
    """Launch the fused kernel on q and k that are stored token by token."""
    share_bytes, shares = shape.heads * shape.head_dim * shape.dtype.itemsize, 1
    while share_bytes > 4096 * shares and shares < shape.kv_heads:
        shares *= 2
    grid = (shape.batch * shape.seq * shares,)

    def rotate(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(q), torch.empty_like(k)
        _normalise_and_rotate[grid](
            q, k, *out, *weights, cos, sin, shape.seq, shape.heads, shape.kv_heads, EPS,
            PAIRS=shape.head_dim // 2, Q_HEADS=shape.heads // shares,
            K_HEADS=shape.kv_heads // shares, SHARES=shares, num_warps=4,
        )  # fmt: skip
        return out

    return rotate


def formula(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The half pairing as it is written on paper, in float32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def contestants(shape: gpu.Shape, weights: Norms) -> Iterator[tuple[str, gpu.Rotate]]:
    """Yield (name, function of q and k)."""
    cos, sin = cos_sin(
        torch.arange(shape.seq, device="cuda"),
        inverse_frequencies(shape.head_dim, device="cuda"),
    )
    rope = RotaryEmbedding(shape.head_dim, pairing="half").cuda()
    d = (shape.head_dim,)

    def norms(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return F.rms_norm(q, d, weights[0], EPS), F.rms_norm(k, d, weights[1], EPS)

    def ours(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        turned: tuple[Tensor, Tensor] = rope(*norms(q, k))
        return turned

    def whole(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = norms(q, k)
        return formula(q, cos, sin), formula(k, cos, sin)

    yield "copy of q and k", lambda q, k: (q * 1.0, k * 1.0)
    yield "norm, then our kernel", ours
    yield "norm, then our kernel, compiled", torch.compile(ours, fullgraph=True)
    yield "norm and formula, compiled", torch.compile(whole, fullgraph=True)
    yield "one kernel by hand", by_hand(shape, weights, cos, sin)


def error(rotate: gpu.Rotate, shape: gpu.Shape, weights: Norms) -> float:
    """Relative error against float64, on the last tokens."""
    q, k = gpu.inputs(shape)
    tail = slice(-min(64, shape.seq), None)
    positions = torch.arange(shape.seq, device="cuda")[tail]
    angle = angles(positions, inverse_frequencies(shape.head_dim, device="cuda"))
    worst = 0.0
    for x, weight, got in zip((q, k), weights, rotate(q, k), strict=True):
        x = x[:1, :, tail].double()
        x = F.rms_norm(x, (shape.head_dim,), weight.double(), EPS)
        x = rotate_matrix(x, angle, "half")
        worst = max(worst, ((got[:1, :, tail] - x).norm() / x.norm()).item())
    return worst


def measure(shape: gpu.Shape) -> Iterator[dict[str, object]]:
    """Yield a row for each contestant; only what has a gradient is timed both ways."""
    weights = tuple(
        (1 + torch.randn(shape.head_dim, device="cuda") / 10).to(shape.dtype)
        for _ in range(2)
    )
    for name, rotate in contestants(shape, weights):  # type: ignore[arg-type]
        torch._dynamo.reset()
        row: dict[str, object] = {"shape": shape.name, "name": name}
        if not name.startswith("copy"):
            row["error"] = error(rotate, shape, weights)  # type: ignore[arg-type]
        with torch.no_grad():
            row["gpu"] = gpu.gpu_microseconds(rotate, shape, False)
            row["wall"] = gpu.wall_microseconds(rotate, shape, False)
        if shape.backward and name != "one kernel by hand":
            row["gpu_both"] = gpu.gpu_microseconds(rotate, shape, True)
        torch.cuda.empty_cache()
        yield row


if __name__ == "__main__":
    torch.manual_seed(0)
    rows = [row for shape in (PREFILL, TRAIN, DECODE) for row in measure(shape)]
    gpu.write(rows, "python benchmarks/fusion.py", next(iter(sys.argv[1:]), None))
