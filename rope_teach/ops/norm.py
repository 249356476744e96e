"""Norm and rotation in one kernel: what current models do to q and k, in one pass.

Qwen 3, Gemma 3 and others normalise every head of q and k (RMSNorm, with a learned
weight) just before they rotate it. Done one after the other, every feature is read and
written twice; here once. The backward pass needs the features again, so they are saved;
a rotation alone saves none. Imported only when norms are given. Measured in
benchmarks/fusion.py; lesson 18.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from rope_teach import ops
from rope_teach.checks import Layout, Pairing
from rope_teach.ops.cuda import (
    DTYPES,
    Plan,
    _load_pairs,
    _place,
    _store_pairs,
    _turn,
    device_of,
    plan_of,
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
    """Divide each head by its root mean square; also return the reciprocal of that."""
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
        # The norm removes the part of the gradient that lies along the head.
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

TOKENS = 32  # per program in backward: few rows of sums, yet many programs


def launch(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float, pairing: str, layout: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Normalise and rotate into new tensors."""
    out = torch.empty_like(q), torch.empty_like(k)
    plan = plan_of((q, k), out, cos, layout, pairing)
    assert plan is not None
    with device_of(q):
        _traced(_forward)[plan.grid](  # one warp: a sum over a head stays within it
            q, k, *out, cos, sin, q_weight, k_weight, *plan.numbers,
            **_choices(plan, q_eps, k_eps), num_warps=1,
        )  # fmt: skip
    return out


def launch_back(
    q_grad: Tensor, k_grad: Tensor, q: Tensor, k: Tensor, q_weight: Tensor,
    k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float, pairing: str, layout: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and the two weights."""
    q_grad, k_grad = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q_grad, k_grad)
    )
    out = torch.empty_like(q), torch.empty_like(k)
    plan = plan_of((q, k), out, cos, layout, pairing)
    grads = plan_of((q_grad, k_grad), out, cos, layout)
    assert plan is not None and grads is not None
    choices = _choices(plan, q_eps, k_eps)
    shares, q_shares = choices["SHARES"], choices["Q_SHARES"]
    seq, batch = plan.grid[0] // shares, plan.grid[1]
    blocks = -(-seq // TOKENS)
    q_sum, k_sum = (
        q.new_empty(batch * blocks * rows, q.shape[-1], dtype=torch.float32)
        for rows in (q_shares, shares - q_shares)
    )
    with device_of(q):
        _traced(_backward)[(blocks * shares, batch)](
            q_grad, k_grad, q, k, *out, q_weight, k_weight, q_sum, k_sum, cos, sin, seq,
            *grads.numbers[:6], *plan.numbers, **choices, TOKENS=TOKENS,
            num_warps=plan.warps,
        )  # fmt: skip
    return *out, q_sum.sum(0).to(q_weight.dtype), k_sum.sum(0).to(k_weight.dtype)


def _traced(kernel: Any) -> Any:
    """A kernel that torch's compiler can follow; the interpreter's is a function."""
    jit = isinstance(kernel, triton.runtime.JITFunction)
    return torch.library.wrap_triton(kernel) if jit else kernel


def _choices(plan: Plan, q_eps: float, k_eps: float) -> dict[str, Any]:
    """What the kernels are compiled for."""
    names = ("PAIRS", "HEADS", "INTERLEAVED", "SHARES", "Q_SHARES")
    own = {"Q_EPS": q_eps, "K_EPS": k_eps}
    return {name: plan.choices[name] for name in names} | own


# --------------------------------------------------------------- the same, in steps


def in_steps(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor,
    q_eps: float, k_eps: float, pairing: Pairing, layout: Layout,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What :func:`launch` computes, in torch."""
    q = F.rms_norm(q, q_weight.shape, q_weight, q_eps).to(q.dtype)
    k = F.rms_norm(k, k_weight.shape, k_weight, k_eps).to(k.dtype)
    q, k = ops.rotate_together((q, k), cos, sin, pairing, layout)
    return q, k


def back_in_steps(
    q_grad: Tensor, k_grad: Tensor, q: Tensor, k: Tensor, q_weight: Tensor,
    k_weight: Tensor, *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What :func:`launch_back` computes, in torch: for derivatives of derivatives."""
    inputs = q, k, q_weight, k_weight
    back: Any = torch.func.vjp(lambda *xs: in_steps(*xs, *rest), *inputs)[1]
    return back((q_grad, k_grad))


# ------------------------------------------------------- as an operation of torch

# Torch's compiler starts the kernels itself, and needs gradients of the operator.
FORWARD: Any = torch.library.triton_op(
    "rope_teach::normalise_and_rotate", launch, mutates_args=()
)
BACKWARD: Any = torch.library.triton_op(
    "rope_teach::normalise_and_rotate_back", launch_back, mutates_args=()
)
FORWARD.register_kernel("cpu", in_steps)
BACKWARD.register_kernel("cpu", back_in_steps)
FORWARD.register_fake(lambda q, k, *_: (torch.empty_like(q), torch.empty_like(k)))
BACKWARD.register_fake(
    lambda _q, _k, *inputs: tuple(torch.empty_like(x) for x in inputs[:4])
)
LIBRARY = torch.library.Library("rope_teach", "FRAGMENT")
for key in ops.BATCHED:
    LIBRARY.impl("normalise_and_rotate", in_steps, key)
    LIBRARY.impl("normalise_and_rotate_back", back_in_steps, key)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.how = inputs[6:]


def _back(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    second = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    road: Any = back_in_steps if second else BACKWARD
    return *road(*grads, *ctx.saved_tensors, *ctx.how), *[None] * 6


FORWARD.register_autograd(_back, setup_context=_keep)


def normalise_and_rotate(
    q: Tensor, k: Tensor, norms: tuple[nn.Module, nn.Module], cos: Tensor, sin: Tensor,
    pairing: Pairing, layout: Layout,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """Normalise each head of ``q`` and ``k`` and rotate it, or None if it cannot.

    Shapes as in :func:`rope_teach.ops.rotate_together`. Serves heads that are rotated
    whole and a power of two wide, and plain ``torch.nn.RMSNorm`` with weights.
    Lesson 18.
    """
    head_dim = q.shape[-1]
    with torch.no_grad():  # there is a backward, and no forward mode
        forward_mode = ops.ask_for_gradient((q, k))
    if (
        forward_mode
        or ops.ask_for_gradient((cos, sin))  # learned: the kernel has none for tables
        or (torch.compiler.is_compiling() and not ops.takes_kernels(q))
        or not (type(q) in ops.PLAIN and type(k) in ops.PLAIN)
        or not all(_is_plain(norm, q) for norm in norms)
        or plan_of((q, k), (q, k), cos, layout) is None
        or 2 * cos.shape[-1] != head_dim
        or head_dim & (head_dim - 1)
        or cos.stride() != sin.stride()
        or statically_known_true(q.numel() * k.numel() == 0)
    ):
        return None
    weights = [norm.weight for norm in norms]
    default = torch.finfo(torch.float32).eps  # torch's, for 16 bits as well
    eps = [default if norm.eps is None else norm.eps for norm in norms]
    compiling = torch.compiler.is_compiling()
    road: Any = FORWARD if compiling else _NormaliseAndRotate.apply
    return road(q, k, *weights, cos, sin, *eps, pairing, layout)


def _is_plain(norm: nn.Module, q: Tensor) -> bool:
    """Whether a norm does what the kernel does, and no hook observes it."""
    return (
        type(norm) is nn.RMSNorm
        and norm.normalized_shape == q.shape[-1:]
        and type(norm.weight) is nn.Parameter
        and norm.weight.shape == q.shape[-1:]
        and norm.weight.dtype in DTYPES
        and norm.weight.device == q.device
        and norm.weight.is_contiguous()
        and "forward" not in norm.__dict__
        and not _has_hooks(norm)
    )


# Torch has no public way to ask for hooks. These names are long-standing, and a test
# checks that a hook of each kind is still seen.
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def _has_hooks(norm: nn.Module) -> bool:
    """Whether a hook waits for this module, or for all modules."""
    own = any(len(getattr(norm, name)) > 0 for name in HOOKS)
    return own or nn.modules.module._has_any_global_hook()


class _NormaliseAndRotate(torch.autograd.Function):
    """One kernel forward, one backward, which also sums the weights' gradients.

    The operator's own gradient would do, but for transforms (``torch.func``).
    """

    generate_vmap_rule = True
    setup_context = staticmethod(_keep)
    backward = staticmethod(_back)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return FORWARD(*inputs)
