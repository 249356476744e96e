"""Norm and rotation in one kernel: what current models do to q and k, in one pass.

Qwen 3, Gemma 3 and others normalise every head of q and k (RMSNorm, with a learned
weight) just before they rotate it. Done one after the other, every feature is read and
written twice; here once. The pass back needs the features again, so that they are kept,
which a bare rotation does not ask for. Measured in benchmarks/fusion.py; lesson 18.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from rope_teach import rotation
from rope_teach.kernels import (
    _LAUNCHES,
    DTYPES,
    _key,
    _load_pairs,
    _plan,
    _readable,
    _remember,
    _store_pairs,
    _turn,
    _unit_stride,
    _usable,
)

__all__ = ["normalise_and_rotate"]


# ------------------------------------------------------------------- the kernels


@triton.jit
def _load_weight(weight, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Load a norm's weight as its pairs: two rows that serve every head."""
    pair = tl.arange(0, PAIRS)[None, :]
    step: tl.constexpr = 2 if INTERLEAVED else 1
    a = tl.load(weight + step * pair).to(tl.float32)
    b = tl.load(weight + step * pair + (1 if INTERLEAVED else PAIRS)).to(tl.float32)
    return a, b


@triton.jit
def _unit(a, b, eps, PAIRS: tl.constexpr):
    """Divide every head by its root mean square; also return by what it was divided."""
    mean = tl.sum(a * a + b * b, 1) / (2 * PAIRS)
    scale = tl.rsqrt(mean + eps)[:, None]
    return a * scale, b * scale, scale


@triton.jit
def _normalise_and_turn(
    x, out, weight, x_step, out_step, heads, eps, c, s,
    PAIRS: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate up to HEADS heads of one token."""
    a, b = _load_pairs(x, x_step, heads, PAIRS, PAIRS, HEADS, INTERLEAVED)
    w_a, w_b = _load_weight(weight, PAIRS, INTERLEAVED)
    a, b, _ = _unit(a, b, eps, PAIRS)
    a, b = _turn(a * w_a, b * w_b, c, s)
    _store_pairs(out, out_step, heads, a, b, PAIRS, PAIRS, HEADS, INTERLEAVED)


@triton.jit
def _turn_back(
    grad, x, out, weight, grad_step, x_step, out_step, heads, eps, c, s,
    PAIRS: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Write the gradient of up to HEADS heads; return the weight's, head by head."""
    a, b = _load_pairs(x, x_step, heads, PAIRS, PAIRS, HEADS, INTERLEAVED)
    g_a, g_b = _load_pairs(grad, grad_step, heads, PAIRS, PAIRS, HEADS, INTERLEAVED)
    g_a, g_b = _turn(g_a, g_b, c, -s)
    w_a, w_b = _load_weight(weight, PAIRS, INTERLEAVED)
    a, b, scale = _unit(a, b, eps, PAIRS)
    # What a head gains along itself, the norm takes away again.
    along = tl.sum(g_a * w_a * a + g_b * w_b * b, 1)[:, None] / (2 * PAIRS)
    d_a, d_b = scale * (g_a * w_a - along * a), scale * (g_b * w_b - along * b)
    _store_pairs(out, out_step, heads, d_a, d_b, PAIRS, PAIRS, HEADS, INTERLEAVED)
    there = tl.arange(0, HEADS)[:, None] < heads
    return tl.where(there, g_a * a, 0.0), tl.where(there, g_b * b, 0.0)


@triton.jit(do_not_specialize=["first_row"])
def _forward(
    q, k, q_out, k_out, q_weight, k_weight, cos, sin, first_row, q_eps, k_eps,
    q_batch, q_head, q_token, k_batch, k_head, k_token,
    q_out_batch, q_out_head, q_out_token, k_out_batch, k_out_head, k_out_token,
    table_batch, table_row, q_heads, k_heads,
    PAIRS: tl.constexpr, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """One token's share of the heads, as in the kernel of the rotation alone."""
    share = (tl.program_id(0) % SHARES).to(tl.int64)
    token = (tl.program_id(0) // SHARES).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    table = batch * table_batch + (first_row + token) * table_row + tl.arange(0, PAIRS)
    c = tl.load(cos + table, eviction_policy="evict_last")[None, :]
    s = tl.load(sin + table, eviction_policy="evict_last")[None, :]
    q_first, k_first = share * Q_HEADS, share * K_HEADS
    q += batch * q_batch + token * q_token + q_first * q_head
    k += batch * k_batch + token * k_token + k_first * k_head
    q_out += batch * q_out_batch + token * q_out_token + q_first * q_out_head
    k_out += batch * k_out_batch + token * k_out_token + k_first * k_out_head
    _normalise_and_turn(q, q_out, q_weight, q_head, q_out_head, q_heads - q_first,
                        q_eps, c, s, PAIRS, Q_HEADS, INTERLEAVED)  # fmt: skip
    _normalise_and_turn(k, k_out, k_weight, k_head, k_out_head, k_heads - k_first,
                        k_eps, c, s, PAIRS, K_HEADS, INTERLEAVED)  # fmt: skip


@triton.jit(do_not_specialize=["first_row"])
def _backward(
    q_grad, k_grad, q, k, q_out, k_out, q_weight, k_weight, q_sums, k_sums, cos, sin,
    first_row, q_eps, k_eps, seq,
    q_grad_batch, q_grad_head, q_grad_token, k_grad_batch, k_grad_head, k_grad_token,
    q_batch, q_head, q_token, k_batch, k_head, k_token,
    q_out_batch, q_out_head, q_out_token, k_out_batch, k_out_head, k_out_token,
    table_batch, table_row, q_heads, k_heads,
    PAIRS: tl.constexpr, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr, SHARES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """A share of the heads of TOKENS tokens, and their sums for the weights."""
    share = (tl.program_id(0) % SHARES).to(tl.int64)
    first = (tl.program_id(0) // SHARES).to(tl.int64) * TOKENS
    batch = tl.program_id(1).to(tl.int64)
    q_first, k_first = share * Q_HEADS, share * K_HEADS
    q_grad += batch * q_grad_batch + q_first * q_grad_head
    k_grad += batch * k_grad_batch + k_first * k_grad_head
    q += batch * q_batch + q_first * q_head
    k += batch * k_batch + k_first * k_head
    q_out += batch * q_out_batch + q_first * q_out_head
    k_out += batch * k_out_batch + k_first * k_out_head
    pair = tl.arange(0, PAIRS)
    table = batch * table_batch + first_row * table_row + pair
    q_sum_a = tl.zeros((Q_HEADS, PAIRS), tl.float32)
    q_sum_b, k_sum_a = q_sum_a, tl.zeros((K_HEADS, PAIRS), tl.float32)
    k_sum_b = k_sum_a
    for token in range(first, tl.minimum(first + TOKENS, seq)):
        at = table + token * table_row
        c = tl.load(cos + at, eviction_policy="evict_last")[None, :]
        s = tl.load(sin + at, eviction_policy="evict_last")[None, :]
        a, b = _turn_back(
            q_grad + token * q_grad_token, q + token * q_token,
            q_out + token * q_out_token, q_weight, q_grad_head, q_head, q_out_head,
            q_heads - q_first, q_eps, c, s, PAIRS, Q_HEADS, INTERLEAVED,
        )  # fmt: skip
        q_sum_a += a
        q_sum_b += b
        a, b = _turn_back(
            k_grad + token * k_grad_token, k + token * k_token,
            k_out + token * k_out_token, k_weight, k_grad_head, k_head, k_out_head,
            k_heads - k_first, k_eps, c, s, PAIRS, K_HEADS, INTERLEAVED,
        )  # fmt: skip
        k_sum_a += a
        k_sum_b += b
    # One row a program, added up afterwards: the same sum on every run.
    row = (batch * tl.num_programs(0) + tl.program_id(0)) * 2 * PAIRS
    step: tl.constexpr = 2 if INTERLEAVED else 1
    other: tl.constexpr = 1 if INTERLEAVED else PAIRS
    tl.store(q_sums + row + step * pair, tl.sum(q_sum_a, 0))
    tl.store(q_sums + row + step * pair + other, tl.sum(q_sum_b, 0))
    tl.store(k_sums + row + step * pair, tl.sum(k_sum_a, 0))
    tl.store(k_sums + row + step * pair + other, tl.sum(k_sum_b, 0))


# ------------------------------------------------------------------- their launch

# Bytes of q that one program takes, there with one warp and back: measured.
ROW, ROW_BACK = 2048, 4096
TOKENS = 32  # of one program on the way back: few rows of sums, yet many programs


def _launch(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float, interleaved: bool, first_row: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Normalise and rotate into new tensors."""
    key = (
        *_key(q, k, cos, sin, interleaved, first_row, False), q_eps, k_eps,
        q_weight.dtype, k_weight.dtype, q_weight.data_ptr() & 15,
        k_weight.data_ptr() & 15,
    )  # fmt: skip
    if known := _LAUNCHES.get(key):
        return known[0](q, k, first_row, q_weight, k_weight, cos, sin)
    given = q, k, cos, sin
    q, k, cos, sin = _readable(*given)
    out = torch.empty_like(q), torch.empty_like(k)
    grid, numbers, choices, _ = _plan(q, k, *out, cos, interleaved, False, ROW)
    choices = _named(choices)
    with torch.cuda.device_of(q):
        compiled = _forward[grid](
            q, k, *out, q_weight, k_weight, cos, sin, first_row, q_eps, k_eps,
            *numbers, **choices, num_warps=1,
        )  # fmt: skip
    if all(x is y for x, y in zip((q, k, cos, sin), given, strict=True)):
        arguments = (q_eps, k_eps, *numbers, *choices.values())
        _remember(key, compiled, grid, arguments, *out)
    return out


def _launch_back(
    q_grad: Tensor, k_grad: Tensor, q: Tensor, k: Tensor, q_weight: Tensor,
    k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float, interleaved: bool, first_row: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and the two weights."""
    q_grad, k_grad = _unit_stride(q_grad), _unit_stride(k_grad)
    q, k, cos, sin = _readable(q, k, cos, sin)
    out = torch.empty_like(q), torch.empty_like(k)
    (_, batch, _), numbers, choices, warps = _plan(
        q, k, *out, cos, interleaved, False, ROW_BACK
    )
    programs = -(-q.shape[2] // TOKENS) * choices["SHARES"]
    sums = q.new_empty(2, batch * programs, q.shape[-1], dtype=torch.float32)
    with torch.cuda.device_of(q):
        _backward[(programs, batch)](
            q_grad, k_grad, q, k, *out, q_weight, k_weight, *sums, cos, sin, first_row,
            q_eps, k_eps, q.shape[2], *q_grad.stride()[:3], *k_grad.stride()[:3],
            *numbers, **_named(choices), TOKENS=TOKENS, num_warps=warps,
        )  # fmt: skip
    q_sum, k_sum = sums
    return *out, q_sum.sum(0).to(q_weight.dtype), k_sum.sum(0).to(k_weight.dtype)


def _named(choices: dict[str, Any]) -> dict[str, Any]:
    """Those choices of a plan that these kernels have, too."""
    names = ("PAIRS", "Q_HEADS", "K_HEADS", "INTERLEAVED", "SHARES")
    return {name: choices[name] for name in names}


# ------------------------------------------------------- as an operation of torch


def normalise_and_rotate(
    q: Tensor,
    k: Tensor,
    norms: tuple[nn.Module, nn.Module],
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    first_row: int = 0,
) -> tuple[Tensor, Tensor] | None:
    """Normalise each head of ``q`` and ``k`` and rotate it, or None if it cannot.

    Shapes as in :func:`rope_teach.kernels.rotate_qk`. Serves heads that are rotated
    whole and a power of two wide, and plain ``torch.nn.RMSNorm`` with weights.
    Lesson 18.
    """
    head_dim = q.shape[-1]
    if (
        not all(_is_plain(norm, q) for norm in norms)
        or not _usable(q, k, cos, sin)
        or 2 * cos.shape[-1] != head_dim
        or head_dim & (head_dim - 1)
        or not q.numel() * k.numel()
    ):
        return None
    weights = [norm.weight for norm in norms]
    default = torch.finfo(torch.float32).eps  # torch's, for 16 bits as well
    eps = [default if norm.eps is None else norm.eps for norm in norms]
    run: Any = _launch
    if rotation.is_recorded():
        run = torch.ops.rope_teach.normalise_and_rotate
    elif torch.is_grad_enabled():
        run = _NormaliseAndRotate.apply
    return run(q, k, *weights, cos, sin, *eps, interleaved, first_row)


def _is_plain(norm: nn.Module, q: Tensor) -> bool:
    """Whether a norm does what the kernel does, and nobody listens to it."""
    return (
        type(norm) is nn.RMSNorm
        and norm.normalized_shape == q.shape[-1:]
        and type(norm.weight) is nn.Parameter
        and norm.weight.shape == q.shape[-1:]
        and norm.weight.dtype in DTYPES
        and norm.weight.device == q.device
        and norm.weight.is_contiguous()
        and "forward" not in norm.__dict__
        and not (norm._forward_hooks or norm._forward_pre_hooks)
        and not (norm._backward_hooks or norm._backward_pre_hooks)
        and not torch.nn.modules.module._has_any_global_hook()
    )


def _in_steps(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float, interleaved: bool, first_row: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the kernels compute, in steps that autograd follows."""
    q = F.rms_norm(q, q_weight.shape, q_weight, q_eps)
    k = F.rms_norm(k, k_weight.shape, k_weight, k_eps)
    pairing: rotation.Pairing = "interleaved" if interleaved else "half"
    return rotation.rotate_qk(q, k, cos, sin, first_row, pairing, "bhsd")


class _NormaliseAndRotate(torch.autograd.Function):
    """One kernel there, one back, which also adds up the weights' gradients."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        _keep(ctx, arguments, None)
        return _launch(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return *_launch_back(*grads, *inputs, *ctx.numbers), *[None] * 6
        # For second derivatives. Views, or what one input gets through another would
        # be counted twice: k made from q, one norm for both.
        inputs = [x.view_as(x) for x in inputs]
        turned = _in_steps(*inputs, *ctx.numbers)
        pairs = [(x, g) for x, g in zip(turned, grads, strict=True) if x.requires_grad]
        asked = [x for x in inputs if x.requires_grad]
        outputs, slopes = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, asked, slopes, create_graph=True))
        return *(next(found) if x.requires_grad else None for x in inputs), *[None] * 4


_operator = torch.library.custom_op(
    "rope_teach::normalise_and_rotate", _launch, mutates_args=()
)
_operator_back = torch.library.custom_op(
    "rope_teach::normalise_and_rotate_back", _launch_back, mutates_args=()
)


@_operator.register_fake
def _(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_unit_stride(q)), torch.empty_like(_unit_stride(k))


@_operator_back.register_fake
def _(
    q_grad: Tensor, k_grad: Tensor, q: Tensor, k: Tensor, *weights: Any
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(_unit_stride(x)) for x in (q, k, *weights[:2]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.numbers = inputs[6:]


def _operator_backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    back = torch.ops.rope_teach.normalise_and_rotate_back
    return *back(*grads, *ctx.saved_tensors, *ctx.numbers), *[None] * 6


_operator.register_autograd(_operator_backward, setup_context=_keep)
