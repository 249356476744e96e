"""The CUDA path: one Triton kernel that rotates q and k in a single pass.

A rotation does little arithmetic and moves many bytes, so the kernel's whole merit is
to read q and k once and to write them once. One launch serves both. One program owns
one token of one sequence and a share of the heads of q, or of k; it loads the token's
cos and sin once and uses them for each of its heads. Built in lesson 18.

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
from torch.fx.experimental.symbolic_shapes import statically_known_true

from rope_teach.rotation import Again, Norms, is_recorded, is_transformed

__all__ = ["rotate_qk"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Torch's compiler takes a kernel into its own code, which saves the host 24 of 73
# microseconds a call; an interpreted one it calls, as any Python.
register: Any = torch.library.triton_op
wrap_triton: Any = torch.library.wrap_triton
if INTERPRETED:
    register, wrap_triton = torch.library.custom_op, lambda kernel: kernel


# ------------------------------------------------------------------- the kernel


@triton.jit
def _load_pairs(
    x, step, heads,
    PAIRS: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Load the pairs (a, b) of up to HEADS heads, in float32; x points at the first.

    They are marked to leave the cache last, for which most shapes take 1 to 2 % less.
    """
    head = tl.arange(0, HEADS)[:, None].to(tl.int64)
    x += head * step
    if INTERLEAVED:  # one load of neighbours, then split: two loads would be strided
        both = tl.arange(0, 2 * WIDTH)[None, :]
        here = (head < heads) & (both < 2 * PAIRS)
        pairs = tl.load(x + both, mask=here, eviction_policy="evict_last")
        a, b = tl.split(tl.reshape(pairs.to(tl.float32), (HEADS, WIDTH, 2)))
    else:
        first = tl.arange(0, WIDTH)[None, :]
        here = (head < heads) & (first < PAIRS)
        a = tl.load(x + first, mask=here, eviction_policy="evict_last")
        b = tl.load(x + PAIRS + first, mask=here, eviction_policy="evict_last")
    return a.to(tl.float32), b.to(tl.float32)


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


@triton.jit
def _rotate_heads(
    x, out, cos, sin, batch, token, first,
    x_batch, x_head, x_token, out_batch, out_head, out_token, heads,
    HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr,
    HEADS: tl.constexpr, INTERLEAVED: tl.constexpr, TAIL: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    """Rotate up to HEADS heads of one token, of q or of k, from ``first`` on."""
    pair = tl.arange(0, WIDTH)[None, :]
    # The next sequence needs this row, too: q and k must not push it out of the cache.
    c = tl.load(cos + pair, mask=pair < PAIRS, eviction_policy="evict_last")
    s = tl.load(sin + pair, mask=pair < PAIRS, eviction_policy="evict_last")
    if BACK:
        s = -s
    x += batch * x_batch + token * x_token + first * x_head
    out += batch * out_batch + token * out_token + first * out_head
    heads -= first
    a, b = _load_pairs(x, x_head, heads, PAIRS, WIDTH, HEADS, INTERLEAVED)
    a, b = _turn(a, b, c, s)
    _store_pairs(out, out_head, heads, a, b, PAIRS, WIDTH, HEADS, INTERLEAVED)
    if TAIL:
        _copy_rest(x, out, x_head, out_head, heads, HEAD_DIM, PAIRS, HEADS, TAIL)


@triton.jit
def _place(SHARES: tl.constexpr):
    """Which share of the heads of which token of which sequence a program has."""
    # Neighbouring programs take the shares of one token, so that they read one stretch
    # of memory together. 64-bit numbers: offsets may pass 2**31 elements.
    share = (tl.program_id(0) % SHARES).to(tl.int64)
    token = (tl.program_id(0) // SHARES).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    return share, token, batch


@triton.jit
def _rotate_token(
    q, k, q_out, k_out, cos, sin,
    q_batch, q_head, q_token, k_batch, k_head, k_token,
    q_out_batch, q_out_head, q_out_token, k_out_batch, k_out_head, k_out_token,
    table_batch, table_row, q_heads, k_heads,
    HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr,
    HEADS: tl.constexpr, INTERLEAVED: tl.constexpr, TAIL: tl.constexpr,
    BACK: tl.constexpr, SHARES: tl.constexpr, Q_SHARES: tl.constexpr,
):  # fmt: skip
    """Rotate a share of the heads of one token of one sequence."""
    share, token, batch = _place(SHARES)
    row = batch * table_batch + token * table_row
    if share < Q_SHARES:
        _rotate_heads(
            q, q_out, cos + row, sin + row, batch, token, share * HEADS,
            q_batch, q_head, q_token, q_out_batch, q_out_head, q_out_token, q_heads,
            HEAD_DIM, PAIRS, WIDTH, HEADS, INTERLEAVED, TAIL, BACK,
        )  # fmt: skip
    else:
        _rotate_heads(
            k, k_out, cos + row, sin + row, batch, token, (share - Q_SHARES) * HEADS,
            k_batch, k_head, k_token, k_out_batch, k_out_head, k_out_token, k_heads,
            HEAD_DIM, PAIRS, WIDTH, HEADS, INTERLEAVED, TAIL, BACK,
        )  # fmt: skip


# ------------------------------------------------------------------- its launch

MOST_LAUNCHES = 2048  # that are remembered, at 4 KB
LARGEST_ROW = 2048  # bytes that one program takes: measured, benchmarks/gpu_choices.py
SHORT = 4096  # tokens in a launch whose start is a good part of it
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
    # Bytes up to the first token's row; of one row alone none are skipped.
    skipped = 4 * first_row * cos.stride(-2) if first_row else 0
    return (
        q.shape, q.stride(), k.shape, k.stride(), cos.shape, cos.stride(), sin.stride(),
        q.dtype, k.dtype, cos.dtype, cos.requires_grad or sin.requires_grad, q.device,
        interleaved, back,
        q.data_ptr() & 15, k.data_ptr() & 15,
        (cos.data_ptr() + skipped) & 15, (sin.data_ptr() + skipped) & 15,
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
    readable = _readable(*given)
    q_out, k_out, started = _start(
        _rotate_token, *readable, interleaved, first_row, back
    )
    if started:
        _remember(key, started, given, readable, q_out, k_out)
    return q_out, k_out


def _start(
    kernel: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor,
    interleaved: bool, first_row: int, back: bool,
) -> tuple[Tensor, Tensor, tuple[Any, ...] | None]:  # fmt: skip
    """Start the kernel on new tensors; also return what starts it again."""
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    # Where only the data tell a size, a compiler takes it for more than nothing.
    if statically_known_true(q_out.numel() + k_out.numel() == 0):
        return q_out, k_out, None
    grid, numbers, choices, warps = _plan(q, k, q_out, k_out, cos, interleaved, back)
    if kernel is _rotate_token:  # torch's compiler takes plain numbers alone
        numbers = _compiled_in(numbers, q, k, q_out, k_out)
    tables = _from_row(first_row, cos, sin)
    with torch.cuda.device_of(q):
        compiled = kernel[grid](
            q, k, q_out, k_out, *tables, *numbers, **choices, num_warps=warps
        )
    return q_out, k_out, (compiled, grid, (*numbers, *choices.values()))


def _readable(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the kernel reads them: features side by side, and both tables alike."""
    q, k, cos, sin = (_unit_stride(x) for x in (q, k, cos, sin))
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    return q, k, cos, sin


def _from_row(first_row: int, *tables: Tensor) -> list[Tensor]:
    """The rows of tables from the first token's on."""
    rows = tables[0].shape[-2] - first_row
    return [table.narrow(-2, first_row, rows) for table in tables]


def _remember(
    key: tuple[Any, ...],
    started: tuple[Any, tuple[int, int, int], tuple[Any, ...]],
    given: tuple[Tensor, ...],
    readable: tuple[Tensor, ...],
    q_out: Tensor,
    k_out: Tensor,
) -> None:
    """Keep what serves the next launch of this kind, as Triton would work it out."""
    if INTERPRETED or any(x is not y for x, y in zip(given, readable, strict=True)):
        return
    if len(_LAUNCHES) >= MOST_LAUNCHES:  # of prompts that are never as long again
        _LAUNCHES.clear()
    compiled, grid, arguments = started
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    device, row_bytes = q_out.device.index, 4 * readable[2].stride(-2)  # of cos

    def prepare(q_like: Tensor, k_like: Tensor) -> Launch:
        q_form = tuple(q_like.shape), q_like.stride(), q_like.dtype
        k_form = tuple(k_like.shape), k_like.stride(), k_like.dtype

        def launch(
            q: Tensor, k: Tensor, first_row: int, cos: Tensor, sin: Tensor,
            *weights: Tensor,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            if device != torch._C._cuda_getDevice():
                with torch.cuda.device(device):
                    return launch(q, k, first_row, cos, sin, *weights)
            q_out, k_out = _empty(*q_form), _empty(*k_form)
            skipped = first_row * row_bytes
            run(  # addresses, since Triton would ask CUDA about each tensor
                *grid, torch._C._cuda_getCurrentRawStream(device), function, metadata,
                None, None, None, q.data_ptr(), k.data_ptr(), q_out.data_ptr(),
                k_out.data_ptr(), cos.data_ptr() + skipped, sin.data_ptr() + skipped,
                *[weight.data_ptr() for weight in weights], *arguments,
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
    interleaved: bool, back: bool,
) -> tuple[tuple[int, int, int], tuple[int, ...], dict[str, Any], int]:  # fmt: skip
    """Grid, strides and sizes, compile-time choices, and warps of one launch."""
    # A compiler may leave the first two open; the kernel is compiled for the others.
    batch, seq = q.shape[0], q.shape[2]
    q_heads, k_heads, head_dim = int(q.shape[1]), int(k.shape[1]), int(q.shape[3])
    pairs = int(cos.shape[-1])
    head_bytes = head_dim * max(q.element_size(), k.element_size())
    largest_row = LARGEST_ROW * (1 + (2 * pairs < head_dim))  # less is held of a part
    heads = triton.next_power_of_2(max(q_heads, k_heads))
    while heads > 1 and heads * head_bytes > largest_row:
        heads //= 2
    q_shares, k_shares = -(-q_heads // heads), -(-k_heads // heads)
    shares = q_shares + k_shares
    numbers = (
        *q.stride()[:3], *k.stride()[:3], *q_out.stride()[:3], *k_out.stride()[:3],
        cos.stride(0) if cos.ndim == 3 and cos.shape[0] > 1 else 0, cos.stride(-2),
        q_heads, k_heads,
    )  # fmt: skip
    choices = {
        "HEAD_DIM": head_dim,
        "PAIRS": pairs,
        "WIDTH": triton.next_power_of_2(pairs),
        "HEADS": heads,
        "INTERLEAVED": interleaved,
        "TAIL": triton.next_power_of_2(head_dim - 2 * pairs) * (head_dim > 2 * pairs),
        "BACK": back,
        "SHARES": shares,
        "Q_SHARES": q_shares,
    }
    row_bytes = heads * head_bytes
    warps = 4 if row_bytes > 1024 else 2 if row_bytes > 512 else 1  # 16 bytes a thread
    return (seq * shares, batch, 1), numbers, choices, warps


def _compiled_in(numbers: tuple[int, ...], *tensors: Tensor) -> tuple[Any, ...]:
    """The numbers of a short launch as constants, where no length is among them.

    The fewer arguments a kernel has, the sooner it starts: 0.2 of 2.4 microseconds.
    Where they grow with the prompt, each length would be compiled anew.
    """
    batch, _, seq, head_dim = tensors[0].shape
    taken = [
        0 if size == 1 else step  # nobody takes it
        for x in tensors
        for size, step in zip(x.shape[:3], x.stride(), strict=False)
    ]
    numbers = (*taken, *numbers[len(taken) :])
    token_by_token = all(x.stride(1) <= x.stride(2) for x in tensors)
    # Steps in a slice of something long are long. Packed projections stay below this.
    row = 4 * sum(x.shape[1] for x in tensors[:2]) * head_dim
    if (
        token_by_token
        and min(batch, seq) == 1
        and batch * seq <= SHORT
        and max(numbers) <= row
    ):
        return tuple(tl.constexpr(number) for number in numbers)
    return numbers


# ------------------------------------------------------- as an operation of torch


def _usable(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether the kernel takes these inputs; the torch form takes all."""
    batch, _, seq, head_dim = q.shape
    return (
        q.dtype in DTYPES
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
    head_dim)`` in any memory layout; either may have no heads. ``cos`` and ``sin``
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
    aligned = not (q.data_ptr() | k.data_ptr() | 4 * cos.stride(-2)) & 15
    if known is None or not aligned:
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


@register("rope_teach::rotate_qk", mutates_args=())
def _operator(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    first_row: int,
    back: bool,
) -> tuple[Tensor, Tensor]:
    """What :func:`_launch` does, as torch's compiler sees it."""
    readable = _readable(q, k, cos, sin)
    kernel = wrap_triton(_rotate_token)
    return _start(kernel, *readable, interleaved, first_row, back)[:2]


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
