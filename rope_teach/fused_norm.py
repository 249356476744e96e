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
from torch.fx.experimental.symbolic_shapes import statically_known_true

from rope_teach import rotation
from rope_teach.kernels import (
    _LAUNCHES,
    DTYPES,
    _compiled_in,
    _from_row,
    _key,
    _load_pairs,
    _place,
    _plan,
    _readable,
    _remember,
    _store_pairs,
    _turn,
    _unit_stride,
    _usable,
    register,
    wrap_triton,
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
def _unit(a, b, EPS: tl.constexpr, PAIRS: tl.constexpr):
    """Divide every head by its root mean square; also return by what it was divided."""
    mean = tl.sum(a * a + b * b, 1) / (2 * PAIRS)
    scale = tl.rsqrt(mean + EPS)[:, None]
    return a * scale, b * scale, scale


@triton.jit
def _normalise_and_turn(
    x, out, weight, cos, sin, batch, token, first,
    x_batch, x_head, x_token, out_batch, out_head, out_token, heads,
    EPS: tl.constexpr, PAIRS: tl.constexpr, HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate up to HEADS heads of one token, from ``first`` on."""
    pair = tl.arange(0, PAIRS)[None, :]
    c = tl.load(cos + pair, eviction_policy="evict_last")
    s = tl.load(sin + pair, eviction_policy="evict_last")
    x += batch * x_batch + token * x_token + first * x_head
    out += batch * out_batch + token * out_token + first * out_head
    heads -= first
    a, b = _load_pairs(x, x_head, heads, PAIRS, PAIRS, HEADS, INTERLEAVED)
    w_a, w_b = _load_weight(weight, PAIRS, INTERLEAVED)
    a, b, _ = _unit(a, b, EPS, PAIRS)
    a, b = _turn(a * w_a, b * w_b, c, s)
    _store_pairs(out, out_head, heads, a, b, PAIRS, PAIRS, HEADS, INTERLEAVED)


@triton.jit
def _forward(
    q, k, q_out, k_out, cos, sin, q_weight, k_weight,
    q_batch, q_head, q_token, k_batch, k_head, k_token,
    q_out_batch, q_out_head, q_out_token, k_out_batch, k_out_head, k_out_token,
    table_batch, table_row, q_heads, k_heads,
    PAIRS: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
    SHARES: tl.constexpr, Q_SHARES: tl.constexpr,
    Q_EPS: tl.constexpr, K_EPS: tl.constexpr,
):  # fmt: skip
    """One token's share of the heads, as in the kernel of the rotation alone."""
    share, token, batch = _place(SHARES)
    row = batch * table_batch + token * table_row
    if share < Q_SHARES:
        _normalise_and_turn(
            q, q_out, q_weight, cos + row, sin + row, batch, token, share * HEADS,
            q_batch, q_head, q_token, q_out_batch, q_out_head, q_out_token, q_heads,
            Q_EPS, PAIRS, HEADS, INTERLEAVED,
        )  # fmt: skip
    else:
        _normalise_and_turn(
            k, k_out, k_weight, cos + row, sin + row, batch, token,
            (share - Q_SHARES) * HEADS,
            k_batch, k_head, k_token, k_out_batch, k_out_head, k_out_token, k_heads,
            K_EPS, PAIRS, HEADS, INTERLEAVED,
        )  # fmt: skip


@triton.jit
def _turn_back(
    grad, x, out, weight, sums, cos, sin, batch, start, end, first, table_row,
    grad_batch, grad_head, grad_token, x_batch, x_head, x_token,
    out_batch, out_head, out_token, heads,
    EPS: tl.constexpr, PAIRS: tl.constexpr, HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Gradients of up to HEADS heads of some tokens, and their sum for the weight."""
    grad += batch * grad_batch + first * grad_head
    x += batch * x_batch + first * x_head
    out += batch * out_batch + first * out_head
    heads -= first
    there = tl.arange(0, HEADS)[:, None] < heads
    pair = tl.arange(0, PAIRS)
    w_a, w_b = _load_weight(weight, PAIRS, INTERLEAVED)
    sum_a = tl.zeros((HEADS, PAIRS), tl.float32)
    sum_b = sum_a
    for token in range(start, end):
        row = token * table_row + pair
        c = tl.load(cos + row, eviction_policy="evict_last")[None, :]
        s = tl.load(sin + row, eviction_policy="evict_last")[None, :]
        a, b = _load_pairs(x + token * x_token, x_head, heads,
                           PAIRS, PAIRS, HEADS, INTERLEAVED)  # fmt: skip
        g_a, g_b = _load_pairs(grad + token * grad_token, grad_head, heads,
                               PAIRS, PAIRS, HEADS, INTERLEAVED)  # fmt: skip
        g_a, g_b = _turn(g_a, g_b, c, -s)
        a, b, scale = _unit(a, b, EPS, PAIRS)
        # What a head gains along itself, the norm takes away again.
        along = tl.sum(g_a * w_a * a + g_b * w_b * b, 1)[:, None] / (2 * PAIRS)
        d_a, d_b = scale * (g_a * w_a - along * a), scale * (g_b * w_b - along * b)
        _store_pairs(out + token * out_token, out_head, heads, d_a, d_b,
                     PAIRS, PAIRS, HEADS, INTERLEAVED)  # fmt: skip
        sum_a += tl.where(there, g_a * a, 0.0)
        sum_b += tl.where(there, g_b * b, 0.0)
    step: tl.constexpr = 2 if INTERLEAVED else 1
    tl.store(sums + step * pair, tl.sum(sum_a, 0))
    tl.store(sums + step * pair + (1 if INTERLEAVED else PAIRS), tl.sum(sum_b, 0))


@triton.jit
def _backward(
    q_grad, k_grad, q, k, q_out, k_out, q_weight, k_weight, q_sums, k_sums, cos, sin,
    seq,
    q_grad_batch, q_grad_head, q_grad_token, k_grad_batch, k_grad_head, k_grad_token,
    q_batch, q_head, q_token, k_batch, k_head, k_token,
    q_out_batch, q_out_head, q_out_token, k_out_batch, k_out_head, k_out_token,
    table_batch, table_row, q_heads, k_heads,
    PAIRS: tl.constexpr, HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
    SHARES: tl.constexpr, Q_SHARES: tl.constexpr,
    Q_EPS: tl.constexpr, K_EPS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """A share of the heads of TOKENS tokens, and their sums for the weights."""
    share, block, batch = _place(SHARES)
    start = block * TOKENS
    end = tl.minimum(start + TOKENS, seq)
    cos += batch * table_batch
    sin += batch * table_batch
    # One row of sums a program, added up afterwards: the same sum on every run.
    block += batch * (tl.num_programs(0) // SHARES)
    if share < Q_SHARES:
        row = (block * Q_SHARES + share) * 2 * PAIRS
        _turn_back(
            q_grad, q, q_out, q_weight, q_sums + row, cos, sin, batch, start,
            end, share * HEADS, table_row,
            q_grad_batch, q_grad_head, q_grad_token, q_batch, q_head, q_token,
            q_out_batch, q_out_head, q_out_token, q_heads,
            Q_EPS, PAIRS, HEADS, INTERLEAVED,
        )  # fmt: skip
    else:
        share -= Q_SHARES
        row = (block * (SHARES - Q_SHARES) + share) * 2 * PAIRS
        _turn_back(
            k_grad, k, k_out, k_weight, k_sums + row, cos, sin, batch, start,
            end, share * HEADS, table_row,
            k_grad_batch, k_grad_head, k_grad_token, k_batch, k_head, k_token,
            k_out_batch, k_out_head, k_out_token, k_heads,
            K_EPS, PAIRS, HEADS, INTERLEAVED,
        )  # fmt: skip


# ------------------------------------------------------------------- their launch

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
        return known[0](q, k, first_row, cos, sin, q_weight, k_weight)
    given = q, k, cos, sin
    q, k, cos, sin = readable = _readable(*given)
    q_out, k_out, started = _start(
        _forward, q, k, q_weight, k_weight, cos, sin,
        q_eps, k_eps, interleaved, first_row,
    )  # fmt: skip
    _remember(key, started, given, readable, q_out, k_out)
    return q_out, k_out


def _start(
    kernel: Any, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor,
    sin: Tensor, q_eps: float, k_eps: float, interleaved: bool, first_row: int,
) -> tuple[Any, ...]:  # fmt: skip
    """Start the kernel on new tensors; also return what starts it again."""
    out = torch.empty_like(q), torch.empty_like(k)
    grid, numbers, choices, _ = _plan(q, k, *out, cos, interleaved, False)
    choices = _named(choices, q_eps, k_eps)
    if kernel is _forward:  # torch's compiler takes plain numbers alone
        numbers = _compiled_in(numbers, q, k, *out)
    with torch.cuda.device_of(q):
        compiled = kernel[grid](  # of one warp: sums of a head need no other
            q, k, *out, *_from_row(first_row, cos, sin), q_weight, k_weight,
            *numbers, **choices, num_warps=1,
        )  # fmt: skip
    return *out, (compiled, grid, (*numbers, *choices.values()))


def _start_back(
    kernel: Any, q_grad: Tensor, k_grad: Tensor, q: Tensor, k: Tensor, q_weight: Tensor,
    k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float, interleaved: bool, first_row: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Start the kernel on new tensors: gradients of q, k and the two weights."""
    q_grad, k_grad = _unit_stride(q_grad), _unit_stride(k_grad)
    q, k, cos, sin = _readable(q, k, cos, sin)
    out = torch.empty_like(q), torch.empty_like(k)
    (_, batch, _), numbers, choices, warps = _plan(q, k, *out, cos, interleaved, False)
    blocks, shares = -(-q.shape[2] // TOKENS), choices["SHARES"]
    q_sum, k_sum = (
        q.new_empty(batch * blocks * rows, q.shape[-1], dtype=torch.float32)
        for rows in (choices["Q_SHARES"], shares - choices["Q_SHARES"])
    )
    with torch.cuda.device_of(q):
        kernel[(blocks * shares, batch)](
            q_grad, k_grad, q, k, *out, q_weight, k_weight, q_sum, k_sum,
            *_from_row(first_row, cos, sin), q.shape[2],
            *q_grad.stride()[:3], *k_grad.stride()[:3], *numbers,
            **_named(choices, q_eps, k_eps), TOKENS=TOKENS, num_warps=warps,
        )  # fmt: skip
    return *out, q_sum.sum(0).to(q_weight.dtype), k_sum.sum(0).to(k_weight.dtype)


def _named(choices: dict[str, Any], q_eps: float, k_eps: float) -> dict[str, Any]:
    """Those choices of a plan that these kernels have, too, and their own."""
    names = ("PAIRS", "HEADS", "INTERLEAVED", "SHARES", "Q_SHARES")
    return {name: choices[name] for name in names} | {"Q_EPS": q_eps, "K_EPS": k_eps}


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
        or statically_known_true(q.numel() * k.numel() == 0)
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
            slopes = _start_back(_backward, *grads, *inputs, *ctx.numbers)
            return *slopes, *[None] * 6
        # For second derivatives. Views, or what one input gets through another would
        # be counted twice: k made from q, one norm for both.
        inputs = [x.view_as(x) for x in inputs]
        turned = _in_steps(*inputs, *ctx.numbers)
        pairs = [(x, g) for x, g in zip(turned, grads, strict=True) if x.requires_grad]
        asked = [x for x in inputs if x.requires_grad]
        outputs, given = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, asked, given, create_graph=True))
        return *(next(found) if x.requires_grad else None for x in inputs), *[None] * 4


@register("rope_teach::normalise_and_rotate", mutates_args=())
def _operator(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float, interleaved: bool, first_row: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What :func:`_launch` does, as torch's compiler sees it."""
    q, k, cos, sin = _readable(q, k, cos, sin)
    q_out, k_out, _ = _start(
        wrap_triton(_forward), q, k, q_weight, k_weight, cos, sin,
        q_eps, k_eps, interleaved, first_row,
    )  # fmt: skip
    return q_out, k_out


@register("rope_teach::normalise_and_rotate_back", mutates_args=())
def _operator_back(
    q_grad: Tensor, k_grad: Tensor, q: Tensor, k: Tensor, q_weight: Tensor,
    k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float, interleaved: bool, first_row: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What :func:`_start_back` does, likewise."""
    return _start_back(
        wrap_triton(_backward), q_grad, k_grad, q, k, q_weight, k_weight, cos, sin,
        q_eps, k_eps, interleaved, first_row,
    )  # fmt: skip


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
