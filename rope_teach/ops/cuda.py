"""The CUDA path: one Triton kernel that rotates q and k in a single pass.

A rotation does little arithmetic and moves many bytes, so the kernel's whole merit is
to read q and k once and to write them once. One launch serves both. One program owns
one token of one sequence and a share of the heads of q, or of k; it loads the token's
cos and sin once and uses them for each of its heads. Built in lesson 18.

Without a GPU the kernel runs in Triton's interpreter: set ``TRITON_INTERPRET=1`` before
the import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from rope_teach.checks import Layout, Pairing, axes_of
from rope_teach.rotation import rotate_pairs

__all__ = ["cos_sin", "rotate"]


# ------------------------------------------------------------------- the kernel


@triton.jit
def _load_pairs(
    x, step, heads,
    PAIRS: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Load the pairs (a, b) of up to HEADS heads, in float32; x points at the first.

    ``evict_last`` keeps them in the cache: most shapes then take 1 to 2 % less time.
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
    """Rotate every pair counter-clockwise."""
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
    """Copy the features that a partial rotation leaves as they are."""
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
    """This program's share of the heads, its token and its sequence."""
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


# ----------------------------------------------------------------------- its launch

DTYPES = frozenset([torch.float32, torch.float16, torch.bfloat16])
LARGEST_ROW = 2048  # bytes that one program takes: measured, benchmarks/gpu_choices.py
Form = tuple[torch.Size, tuple[int, ...], torch.dtype]  # shape, strides, dtype


@dataclasses.dataclass
class Plan:
    """How inputs of one form are served: a grid, numbers, and compile-time choices.

    Called, it launches the rotation. Triton's own way to a launch takes the host as
    long as a copy of q and k; what it has compiled for aligned tensors is therefore
    kept, and launched directly.
    """

    grid: tuple[int, int, int]
    numbers: tuple[int, ...]  # strides of inputs, results and tables; heads of q, of k
    choices: dict[str, int]  # in the kernel's order
    warps: int
    compiled: dict[int, Any] = dataclasses.field(default_factory=dict)  # by device

    def __post_init__(self) -> None:
        self.constants = (*self.numbers, *self.choices.values())

    def __call__(self, *tensors: Tensor) -> None:
        if self.grid[0] * self.grid[1] == 0:
            return
        device, places = tensors[0].get_device(), 0
        for x in tensors:
            places |= x.data_ptr()
        aligned = places % 16 == 0
        if aligned and device in self.compiled:
            self.compiled[device][self.grid](*tensors, *self.constants)
            return
        compiled = _rotate_token[self.grid](
            *tensors, *self.numbers, **self.choices, num_warps=self.warps
        )
        if aligned and compiled is not None:  # the interpreter compiles nothing
            self.compiled[device] = compiled


def rotate(
    xs: Sequence[Tensor], cos: Tensor, sin: Tensor, pairing: Pairing, layout: Layout,
    inverse: bool, out: Sequence[Tensor],
) -> bool:  # fmt: skip
    """Rotate one tensor, or q and k, in one launch; False where the kernel cannot.

    ``xs`` ``(batch, heads, seq, head_dim)`` in the order of ``layout``, with or without
    batch; features lie side by side, other strides are free. The tables, float32,
    broadcast against their pairs. ``out`` is like ``xs``. Lesson 18.
    """
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    launch = _known_plan(_forms(xs, out, cos), layout, pairing, inverse)
    if launch is None:
        return False
    tensors = xs[0], xs[-1], out[0], out[-1], cos, sin
    if cos.is_cuda and cos.get_device() != torch.cuda.current_device():
        with torch.cuda.device(cos.device):
            launch(*tensors)
    else:
        launch(*tensors)
    return True


def _compiled(
    xs: list[Tensor], cos: Tensor, sin: Tensor, pairing: str, layout: str, inverse: bool
) -> list[Tensor]:
    """What :func:`rotate` does, for torch's compiler, which starts the kernel itself.

    Its gradient is an operator too: an ``autograd.Function`` would have the compiler
    copy each gradient first, which is half as much again.
    """
    out = [torch.empty_like(x) for x in xs]
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    plan = _make_plan(_forms(xs, out, cos), layout, pairing, inverse)
    if plan is None:
        sin = -sin if inverse else sin
        return [
            y.copy_(rotate_pairs(x, cos, sin, pairing))
            for x, y in zip(xs, out, strict=True)
        ]
    # The compiler assumes that a size which depends on data is not zero.
    if not statically_known_true(plan.grid[0] * plan.grid[1] == 0):
        torch.library.wrap_triton(_rotate_token)[plan.grid](
            xs[0], xs[-1], out[0], out[-1], cos, sin, *plan.numbers, **plan.choices,
            num_warps=plan.warps,
        )  # fmt: skip
    return out


compiled: Any = torch.library.triton_op(
    "rope_teach::rotate_compiled", _compiled, mutates_args=()
)
compiled.register_fake(lambda xs, *_: [torch.empty_like(x) for x in xs])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, cos, sin, *ctx.how = inputs
    ctx.save_for_backward(cos, sin)


def _turn_back(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    pairing, layout, inverse = ctx.how
    back = compiled(grads, *ctx.saved_tensors, pairing, layout, not inverse)
    return back, None, None, None, None, None


compiled.register_autograd(_turn_back, setup_context=_keep)


def _forms(
    xs: Sequence[Tensor], out: Sequence[Tensor], table: Tensor
) -> tuple[Form, ...]:
    return tuple([(x.shape, x.stride(), x.dtype) for x in (*xs, *out, table)])


def plan_of(
    xs: Sequence[Tensor], out: Sequence[Tensor], table: Tensor, layout: Any,
    pairing: Any = "half",
) -> Plan | None:  # fmt: skip
    """The plan for these tensors, or None if the kernel cannot serve them."""
    return _make_plan(_forms(xs, out, table), layout, pairing, False)


def _make_plan(
    forms: tuple[Form, ...], layout: Any, pairing: str, inverse: bool
) -> Plan | None:
    """Strides, sizes and how many heads a program takes; None if no kernel serves."""
    *tensors, table = forms
    xs, (first, _, _) = tensors[: len(tensors) // 2], tensors[0]
    axes = axes_of(len(first), layout)
    if not _served(tensors, table, axes):
        return None
    head_dim, pairs = int(first[-1]), int(table[0][-1])
    heads = [int(shape[axes[1]]) for shape, _, _ in xs]
    head_bytes = head_dim * max(dtype.itemsize for _, _, dtype in xs)
    rest = head_dim - 2 * pairs
    largest_row = LARGEST_ROW * (2 if rest else 1)  # less is held of a part
    share = _power_of_two(max(heads))
    while share > 1 and share * head_bytes > largest_row:
        share //= 2
    q_shares = -(-heads[0] // share)
    shares = q_shares + (-(-heads[1] // share) if len(heads) > 1 else 0)
    choices = {
        "HEAD_DIM": head_dim,
        "PAIRS": pairs,
        "WIDTH": _power_of_two(pairs),
        "HEADS": share,
        "INTERLEAVED": pairing == "interleaved",
        "TAIL": _power_of_two(rest) if rest else 0,
        "BACK": inverse,
        "SHARES": shares,
        "Q_SHARES": q_shares,
    }
    row_bytes = share * head_bytes
    warps = 4 if row_bytes > 1024 else 2 if row_bytes > 512 else 1
    if len(xs) == 1:  # it stands for k, too, which gets no share
        tensors = [tensors[0], tensors[0], tensors[1], tensors[1]]
    steps = [_step(form, axis) for form in tensors for axis in axes]
    table_steps = [_step(table, axis) for axis in (axes[0], axes[2])]
    grid = (first[axes[2]] * shares, first[axes[0]] if len(first) == 4 else 1, 1)
    return Plan(grid, (*steps, *table_steps, heads[0], heads[-1]), choices, warps)


_known_plan = functools.lru_cache(maxsize=4096)(_make_plan)


def _served(tensors: Sequence[Form], table: Form, axes: Sequence[int]) -> bool:
    """Whether the kernel serves these forms; the formula serves all."""
    shape, steps, dtype = table
    if dtype != torch.float32 or steps[-1] != 1:
        return False
    if len(shape) >= -axes[1] and not statically_known_true(shape[axes[1]] == 1):
        return False  # each head has frequencies of its own
    first = tensors[0][0]
    for shape, steps, dtype in tensors:
        if dtype not in DTYPES or steps[-1] != 1 or len(shape) != len(first):
            return False
        alike = all(
            shape[axis] == first[axis] for axis in (*axes, -1)
            if axis != axes[1] and -axis <= len(first)
        )  # fmt: skip
        if not alike or len(shape) not in (3, 4):
            return False
    # CUDA's limit for the second axis of a grid.
    return len(first) == 3 or bool(first[axes[0]] <= 65_535)


def _step(form: Form, axis: int) -> int:
    """A stride; 0 along an axis that is absent, or of size 1, or shared by all."""
    shape, steps, _ = form
    one = len(shape) < -axis or statically_known_true(shape[axis] == 1)
    return 0 if one else steps[axis]


def _power_of_two(size: int) -> int:
    return 1 << (max(size, 1) - 1).bit_length()


def device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device; torch's compiler sees to that itself."""
    if torch.compiler.is_compiling() or not x.is_cuda:
        return contextlib.nullcontext()
    if x.get_device() == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


# ------------------------------------------------------------- the kernel of the rows

# Half of pi in three parts: the first two have 22 bits, so that their products with a
# number of quarter turns are exact up to 2**31 of them.
HALF_PI_1 = math.ldexp(math.floor(math.ldexp(math.pi / 2, 21)), -21)
HALF_PI_2 = math.ldexp(math.floor(math.ldexp(math.pi / 2 - HALF_PI_1, 43)), -43)
HALF_PI_3 = 6.123233995736766e-17 + (math.pi / 2 - HALF_PI_1 - HALF_PI_2)


@triton.jit(do_not_specialize=["rows", "first"])
def _write_rows(
    positions, inv_freq, out, rows, first,
    FACTOR: tl.constexpr, SIGN: tl.constexpr, COUNTED: tl.constexpr,
    AXES: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    TWO_OVER_PI: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr,
):  # fmt: skip
    """Write cos and sin for ROWS positions of a sequence: ``(rows, 2, PAIRS)``."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    batch = tl.program_id(1).to(tl.int64)
    pair = tl.arange(0, WIDTH)
    angle = tl.zeros((ROWS, WIDTH), tl.float64)
    for axis in tl.static_range(AXES):
        if COUNTED:  # the sequence begins at first + SIGN * positions[batch]
            begin = tl.load(positions + batch).to(tl.float64) * SIGN + first
            position = begin + token
        else:
            given = tl.load(positions + token * AXES + axis, mask=token < rows, other=0)
            position = given.to(tl.float64)
        speed = tl.load(inv_freq + axis * PAIRS + pair, mask=pair < PAIRS, other=0.0)
        angle += position[:, None] * speed.to(tl.float64)[None, :]
    # Subtract whole quarter turns. At most an eighth of a turn is left, for which six
    # terms of Taylor's series (seven for cos) have an error below 1e-11.
    quarter = tl.floor(angle * TWO_OVER_PI + 0.5)
    x = ((angle - quarter * P1) - quarter * P2) - quarter * P3
    y = x * x
    c = 1 + y * (-1 / 2 + y * (1 / 24 + y * (-1 / 720 + y * (
        1 / 40320 + y * (-1 / 3628800 + y * (1 / 479001600))))))  # fmt: skip
    s = x * (1 + y * (-1 / 6 + y * (1 / 120 + y * (-1 / 5040 + y * (
        1 / 362880 + y * (-1 / 39916800))))))  # fmt: skip
    # Each quarter turn takes (c, s) to (-s, c).
    number = quarter.to(tl.int64) & 3
    odd = (number & 1) == 1
    cos, sin = tl.where(odd, -s, c), tl.where(odd, c, s)
    cos, sin = tl.where(number >= 2, -cos, cos), tl.where(number >= 2, -sin, sin)
    at = out + ((batch * rows + token) * (2 * PAIRS))[:, None] + pair[None, :]
    here = (token < rows)[:, None] & (pair < PAIRS)[None, :]
    tl.store(at, (cos * FACTOR).to(tl.float32), mask=here)
    tl.store(at + PAIRS, (sin * FACTOR).to(tl.float32), mask=here)


def cos_sin(
    positions: Tensor, inv_freq: Tensor, factor: float, first: int, sign: int,
    count: int | None,
) -> Tensor:  # fmt: skip
    """Write the rows of any positions: ``(..., 2, r/2)`` float32, cos above sin.

    Arguments as in :func:`rope_teach.ops.cos_sin`. Angles are float64, and the result
    is rounded once: at position ten million it is as exact as at ten, and nothing is
    asked of the host. Lesson 18.
    """
    axes, pairs = (1, *inv_freq.shape)[-2:]
    shape = tuple(positions.shape[:-1] if inv_freq.ndim > 1 else positions.shape)
    shape = shape if count is None else (*shape, count)
    out = torch.empty((*shape, 2, pairs), dtype=torch.float32, device=positions.device)
    rows = math.prod(shape)
    if statically_known_true(rows == 0):
        return out
    # One program for some tokens of one sequence, where a sequence is counted.
    sequences = 1 if count is None else positions.numel()
    rows = rows if count is None else count
    inv_freq = inv_freq.to(positions.device).contiguous()
    block = 2 if statically_known_true(rows * sequences <= 1024) else 8
    with device_of(positions):
        _write_rows[(-(-rows // block), sequences, 1)](
            positions.contiguous(), inv_freq, out, rows, first,
            FACTOR=factor, SIGN=sign, COUNTED=count is not None, AXES=axes,
            PAIRS=pairs, WIDTH=_power_of_two(pairs), ROWS=block,
            TWO_OVER_PI=2 / math.pi, P1=HALF_PI_1, P2=HALF_PI_2, P3=HALF_PI_3,
            num_warps=2,
        )  # fmt: skip
    return out
