"""The CUDA path: one Triton kernel that rotates q and k in a single pass.

A rotation does little arithmetic and moves many bytes, so the kernel's whole merit is
to read q and k once and to write them once. One program owns one token of one sequence
and a share of its heads; it loads the token's cos and sin once and uses them for every
head of q and k. Built in lesson 18.

Without a GPU the kernel runs in Triton's interpreter: set ``TRITON_INTERPRET=1`` before
the import.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rope_teach.rotation import Again, Norms, is_recorded, is_transformed

__all__ = ["rotate_qk"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


# ------------------------------------------------------------------- the kernel


@triton.jit
def _load_pairs(
    x, step, heads,
    PAIRS: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Load the pairs (a, b) of up to HEADS heads, in float32; x points at the first."""
    head = tl.arange(0, HEADS)[:, None].to(tl.int64)
    x += head * step
    if INTERLEAVED:  # one load of neighbours, then split: two loads would be strided
        both = tl.arange(0, 2 * WIDTH)[None, :]
        here = (head < heads) & (both < 2 * PAIRS)
        pairs = tl.load(x + both, mask=here).to(tl.float32)
        a, b = tl.split(tl.reshape(pairs, (HEADS, WIDTH, 2)))
    else:
        first = tl.arange(0, WIDTH)[None, :]
        here = (head < heads) & (first < PAIRS)
        a = tl.load(x + first, mask=here).to(tl.float32)
        b = tl.load(x + PAIRS + first, mask=here).to(tl.float32)
    return a, b


@triton.jit
def _turn(a, b, cos, sin):
    """Turn every pair counter-clockwise."""
    return a * cos - b * sin, a * sin + b * cos


@triton.jit
def _store_pairs(
    out, step, heads, a, b,
    PAIRS: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Store the pairs in out's dtype: the one rounding."""
    head = tl.arange(0, HEADS)[:, None].to(tl.int64)
    out += head * step
    if INTERLEAVED:
        both = tl.arange(0, 2 * WIDTH)[None, :]
        here = (head < heads) & (both < 2 * PAIRS)
        pairs = tl.reshape(tl.join(a, b), (HEADS, 2 * WIDTH))
        tl.store(out + both, pairs.to(out.dtype.element_ty), mask=here)
    else:
        first = tl.arange(0, WIDTH)[None, :]
        here = (head < heads) & (first < PAIRS)
        tl.store(out + first, a.to(out.dtype.element_ty), mask=here)
        tl.store(out + PAIRS + first, b.to(out.dtype.element_ty), mask=here)


@triton.jit
def _copy_rest(
    x, out, x_step, out_step, heads,
    HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr, HEADS: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    """Pass the features on that a partial rotation leaves alone."""
    head = tl.arange(0, HEADS)[:, None].to(tl.int64)
    rest = 2 * PAIRS + tl.arange(0, TAIL)[None, :]
    here = (head < heads) & (rest < HEAD_DIM)
    tl.store(out + head * out_step + rest, tl.load(x + head * x_step + rest, mask=here),
             mask=here)  # fmt: skip


@triton.jit(do_not_specialize=["first_row"])  # or a decode loop would compile anew
def _rotate_token(
    q, k, q_out, k_out, cos, sin, first_row,
    q_batch, q_head, q_token, k_batch, k_head, k_token,
    q_out_batch, q_out_head, q_out_token, k_out_batch, k_out_head, k_out_token,
    table_batch, table_row, q_heads, k_heads,
    HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, INTERLEAVED: tl.constexpr,
    TAIL: tl.constexpr, BACK: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Rotate a share of the heads of one token of one sequence."""
    # Neighbouring programs take the shares of one token, so that they read one stretch
    # of memory together. 64-bit numbers: offsets may pass 2**31 elements.
    share = (tl.program_id(0) % SHARES).to(tl.int64)
    token = (tl.program_id(0) // SHARES).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)

    pair = tl.arange(0, WIDTH)
    row = batch * table_batch + (first_row + token) * table_row
    # The next sequence needs this row, too: q and k must not push it out of the cache.
    c = tl.load(cos + row + pair, mask=pair < PAIRS, eviction_policy="evict_last")
    s = tl.load(sin + row + pair, mask=pair < PAIRS, eviction_policy="evict_last")
    c, s = c[None, :], s[None, :]
    if BACK:
        s = -s

    q_first, k_first = share * Q_HEADS, share * K_HEADS
    q += batch * q_batch + token * q_token + q_first * q_head
    k += batch * k_batch + token * k_token + k_first * k_head
    q_out += batch * q_out_batch + token * q_out_token + q_first * q_out_head
    k_out += batch * k_out_batch + token * k_out_token + k_first * k_out_head
    q_heads -= q_first
    k_heads -= k_first

    # All loads come before the first store: they would wait for it.
    q_a, q_b = _load_pairs(q, q_head, q_heads, PAIRS, WIDTH, Q_HEADS, INTERLEAVED)
    if K_HEADS:
        k_a, k_b = _load_pairs(k, k_head, k_heads, PAIRS, WIDTH, K_HEADS, INTERLEAVED)
    q_a, q_b = _turn(q_a, q_b, c, s)
    _store_pairs(q_out, q_out_head, q_heads, q_a, q_b,
                 PAIRS, WIDTH, Q_HEADS, INTERLEAVED)  # fmt: skip
    if K_HEADS:
        k_a, k_b = _turn(k_a, k_b, c, s)
        _store_pairs(k_out, k_out_head, k_heads, k_a, k_b,
                     PAIRS, WIDTH, K_HEADS, INTERLEAVED)  # fmt: skip
    if TAIL:
        _copy_rest(q, q_out, q_head, q_out_head, q_heads,
                   HEAD_DIM, PAIRS, Q_HEADS, TAIL)  # fmt: skip
    if TAIL and K_HEADS:
        _copy_rest(k, k_out, k_head, k_out_head, k_heads,
                   HEAD_DIM, PAIRS, K_HEADS, TAIL)  # fmt: skip


# ------------------------------------------------------------------- its launch

MOST_LAUNCHES = 2048  # that are remembered, at 4 KB
LARGEST_ROW = 2048  # bytes of q that one program takes: measured, benchmarks/gpu.py
Launch = Callable[..., tuple[Tensor, Tensor]]
_LAUNCHES: dict[tuple[Any, ...], tuple[Launch, Launch]] = {}


def _key(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    first_row: int,
    back: bool,
) -> tuple[Any, ...]:
    """All that a launch depends on, but for what differs between decode steps."""
    return (
        q.shape, q.stride(), k.shape, k.stride(), cos.shape, cos.stride(), sin.stride(),
        q.dtype, k.dtype, cos.dtype, cos.requires_grad or sin.requires_grad, q.device,
        interleaved, back,
        q.data_ptr() & 15, k.data_ptr() & 15, cos.data_ptr() & 15, sin.data_ptr() & 15,
    )  # fmt: skip


def _launch(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    first_row: int,
    back: bool,
) -> tuple[Tensor, Tensor]:
    """Rotate ``q`` and ``k`` ``(batch, heads, seq, head_dim)`` into new tensors."""
    key = _key(q, k, cos, sin, interleaved, first_row, back)
    if known := _LAUNCHES.get(key):
        return known[0](q, k, first_row, cos, sin)
    given = q, k, cos, sin
    q, k, cos, sin = _readable(*given)
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    if q_out.numel() + k_out.numel():
        grid, numbers, choices, warps = _plan(
            q, k, q_out, k_out, cos, interleaved, back, LARGEST_ROW
        )
        with torch.cuda.device_of(q):
            compiled = _rotate_token[grid](
                q, k, q_out, k_out, cos, sin, first_row, *numbers, **choices,
                num_warps=warps,
            )  # fmt: skip
        if all(x is y for x, y in zip((q, k, cos, sin), given, strict=True)):
            arguments = (*numbers, *choices.values())
            _remember(key, compiled, grid, arguments, q_out, k_out)
    return q_out, k_out


def _readable(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the kernel reads them: features side by side, and both tables alike."""
    q, k, cos, sin = (_unit_stride(x) for x in (q, k, cos, sin))
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    return q, k, cos, sin


def _remember(
    key: tuple[Any, ...],
    compiled: Any,
    grid: tuple[int, int, int],
    arguments: tuple[Any, ...],
    q_out: Tensor,
    k_out: Tensor,
) -> None:
    """Keep what serves the next launch of this kind, as Triton would work it out."""
    if INTERPRETED:
        return
    if len(_LAUNCHES) >= MOST_LAUNCHES:  # of prompts that are never as long again
        _LAUNCHES.clear()
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    device = q_out.device.index

    def prepare(q_like: Tensor, k_like: Tensor) -> Launch:
        q_form = tuple(q_like.shape), q_like.stride(), q_like.dtype
        k_form = tuple(k_like.shape), k_like.stride(), k_like.dtype

        def launch(
            q: Tensor, k: Tensor, first_row: int, *tables: Tensor
        ) -> tuple[Tensor, Tensor]:
            if device != torch._C._cuda_getDevice():
                with torch.cuda.device(device):
                    return launch(q, k, first_row, *tables)
            q_out, k_out = _empty(*q_form), _empty(*k_form)
            run(  # addresses, since Triton would ask CUDA about each tensor
                *grid, torch._C._cuda_getCurrentRawStream(device), function, metadata,
                None, None, None, q.data_ptr(), k.data_ptr(), q_out.data_ptr(),
                k_out.data_ptr(), *[table.data_ptr() for table in tables], first_row,
                *arguments,
            )  # fmt: skip
            return q_out, k_out

        return launch

    # For results with heads before tokens, and with tokens before heads.
    swapped = prepare(q_out.transpose(1, 2), k_out.transpose(1, 2))
    _LAUNCHES[key] = prepare(q_out, k_out), swapped


# What torch's compiler allocates with: half the time of empty_like.
_empty = getattr(torch._C._dynamo.guards, "_empty_strided_cuda", None) or (
    lambda shape, strides, dtype: torch.empty_strided(
        shape, strides, dtype=dtype, device="cuda"
    )
)


def _unit_stride(x: Tensor) -> Tensor:
    """The kernel reads features side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _plan(
    q: Tensor, k: Tensor, q_out: Tensor, k_out: Tensor, cos: Tensor,
    interleaved: bool, back: bool, largest_row: int,
) -> tuple[tuple[int, int, int], tuple[int, ...], dict[str, Any], int]:  # fmt: skip
    """Grid, strides and sizes, compile-time choices, and warps of one launch."""
    batch, q_heads, seq, head_dim = q.shape
    k_heads, pairs = k.shape[1], cos.shape[-1]
    head_bytes, shares = head_dim * q.element_size(), 1
    while max(q_heads, k_heads) * head_bytes > largest_row * shares:
        shares *= 2
    q_block, k_block = (_share(heads, shares) for heads in (q_heads, k_heads))
    shares = max(
        -(-q_heads // max(q_block, 1)),
        -(-k_heads // max(k_block, 1)),
    )
    numbers = (
        *q.stride()[:3], *k.stride()[:3], *q_out.stride()[:3], *k_out.stride()[:3],
        cos.stride(0) if cos.ndim == 3 and len(cos) > 1 else 0, cos.stride(-2),
        q_heads, k_heads,
    )  # fmt: skip
    choices = {
        "HEAD_DIM": head_dim,
        "PAIRS": pairs,
        "WIDTH": triton.next_power_of_2(pairs),
        "Q_HEADS": q_block,
        "K_HEADS": k_block,
        "INTERLEAVED": interleaved,
        "TAIL": triton.next_power_of_2(head_dim - 2 * pairs) * (head_dim > 2 * pairs),
        "BACK": back,
        "SHARES": shares,
    }
    row_bytes = max(q_block, k_block) * head_bytes
    warps = 4 if row_bytes > 1024 else 2 if row_bytes > 512 else 1  # 16 bytes a thread
    return (seq * shares, batch, 1), numbers, choices, warps


def _share(heads: int, shares: int) -> int:
    """Heads of one program: a power of two, or 0 where there are none."""
    return triton.next_power_of_2(-(-heads // shares)) if heads else 0


# ------------------------------------------------------- as an operation of torch


def _usable(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether the kernel takes these inputs; the torch form takes all."""
    batch, heads, seq, head_dim = q.shape
    return (
        (heads > 0 or not k.shape[1])  # a program is made for the heads of q
        and q.dtype in DTYPES
        and k.dtype in DTYPES
        and (k.shape[0], *k.shape[2:]) == (batch, seq, head_dim)
        and cos.dtype == torch.float32
        and cos.ndim in (2, 3)
        and not (cos.requires_grad or sin.requires_grad)
        and batch <= 65_535  # CUDA's limit for the second axis of a grid
    )


DTYPES = frozenset([torch.float32, torch.float16, torch.bfloat16])


def rotate_qk(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    first_row: int = 0,
) -> tuple[Tensor, Tensor] | None:
    """Rotate ``q`` and ``k`` by one table in one launch, or None if it cannot.

    ``q`` ``(batch, heads, seq, head_dim)`` and ``k`` ``(batch, kv_heads, seq,
    head_dim)`` in any memory layout; ``kv_heads`` may be 0. ``cos`` and ``sin``
    ``(rows, r/2)``, of which rows ``first_row`` to ``first_row + seq`` are used, or
    ``(batch, seq, r/2)``; float32. The results have the inputs' dtype and memory
    layout. What :mod:`rope_teach.rotation` checks must have been checked. The kernel
    serves float32, float16 and bfloat16, and tables that need no gradient. Lesson 18.
    """
    arguments = (q, k, cos, sin, interleaved, first_row, False)
    rotate: Any
    if is_recorded():
        rotate = torch.ops.rope_teach.rotate_qk
    elif (q.requires_grad or k.requires_grad) and torch.is_grad_enabled():
        rotate = _RotateQK.apply
    elif known := _LAUNCHES.get(_key(*arguments)):
        return known[0](q, k, first_row, cos, sin)
    else:
        rotate = _launch
    return rotate(*arguments) if _usable(q, k, cos, sin) else None


def repeat(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    swap: bool,
    otherwise: Again,
) -> Again:
    """:func:`rotate_qk` for more calls like one just served, with less to look up.

    The caller answers for shapes, strides, dtypes and devices. Heads and tokens are
    swapped where ``swap`` says so. What else differs is served by ``otherwise``.
    """
    views = (x.transpose(1, 2) if swap else x for x in (q, k))
    known = _LAUNCHES.get(_key(*views, cos, sin, interleaved, 0, False))  # type: ignore
    if known is None or (q.data_ptr() | k.data_ptr()) & 15:
        return otherwise
    launch = known[swap]

    def again(
        q: Tensor, k: Tensor, first_row: int, norms: Norms | None
    ) -> tuple[Tensor, Tensor]:
        if (
            norms is None
            and not (is_transformed() or is_recorded())
            and not (q.data_ptr() | k.data_ptr()) & 15
            and not ((q.requires_grad or k.requires_grad) and torch.is_grad_enabled())
        ):
            return launch(q, k, first_row, cos, sin)
        return otherwise(q, k, first_row, norms)

    return again


class _RotateQK(torch.autograd.Function):
    """Its gradient is the same kernel with -sin: nothing is kept but the table."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        _keep(ctx, arguments, None)
        return _launch(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return *_RotateQK.apply(*grads, *_kept(ctx)), *[None] * 5


# Under torch.compile the kernel is an opaque operator with a shape and a gradient.
_operator = torch.library.custom_op("rope_teach::rotate_qk", _launch, mutates_args=())


@_operator.register_fake
def _(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_unit_stride(q)), torch.empty_like(_unit_stride(k))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[2:4])
    ctx.interleaved, ctx.first_row, ctx.back = inputs[4:]


def _kept(ctx: Any) -> tuple[Any, ...]:
    return *ctx.saved_tensors, ctx.interleaved, ctx.first_row, not ctx.back


def _backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    return *torch.ops.rope_teach.rotate_qk(*grads, *_kept(ctx)), *[None] * 5


_operator.register_autograd(_backward, setup_context=_keep)
