"""How a rotation is made fast. Nobody above this folder needs to know.

One operator, ``rope_teach::rotate``, has three implementations: eager torch on a CPU
(:mod:`~rope_teach.ops.cpu`), one Triton kernel on CUDA (:mod:`~rope_teach.ops.cuda`),
and the readable formula (``rotation.rotate_pairs``) for all else. Since torch itself
dispatches it, whatever records, fakes, batches or traces operators sees this one too.

Gradients and forward mode need an ``autograd.Function`` around the operator. It costs
more than a decode step, so it is called only where a gradient or a tangent is asked
for. The rotation is linear, so backward is the rotation by the opposite angle.

``rope_teach::cos_sin`` makes tables the same way: float64 and torch, or a kernel that
writes the rows of any positions without asking the host. Lessons 05 and 18.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from rope_teach import tables
from rope_teach.checks import (
    Layout,
    Pairing,
    align_table,
    check_choice,
    check_floating,
)
from rope_teach.ops import cpu
from rope_teach.rotation import rotate_pairs

__all__ = ["cos_sin", "rotate", "rotate_together"]

HAS_TRITON = importlib.util.find_spec("triton") is not None  # looked up, not imported

LIBRARY = torch.library.Library("rope_teach", "FRAGMENT")
LIBRARY.define(
    "rotate(Tensor[] xs, Tensor cos, Tensor sin, str pairing, str layout, "
    "bool inverse) -> Tensor[]"
)
LIBRARY.define(
    "rotate.out(Tensor[] xs, Tensor cos, Tensor sin, str pairing, str layout, "
    "bool inverse, *, Tensor(a!)[] out) -> ()"
)
LIBRARY.define(
    "cos_sin(Tensor positions, Tensor inv_freq, float factor, SymInt first, int sign, "
    "SymInt? count) -> Tensor"
)


# ------------------------------------------------------------------- what others call


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    pairing: Pairing = "interleaved",
    layout: Layout = "bhsd",
) -> Tensor:
    """Rotate the pairs of ``x``: the real form, ``(a c - b s, a s + b c)``.

    Parameters
    ----------
    x
        ``(batch, heads, seq, head_dim)``, ``(batch, seq, heads, head_dim)`` with
        ``layout="bshd"`` or ``(seq, batch, heads, head_dim)`` with ``"sbhd"``; the
        batch axis, or batch and heads, may be absent.
    cos, sin
        ``(seq, r/2)``, or ``(batch, seq, r/2)`` when sequences differ, or one
        position for all, ``(r/2,)``; or, for a 4-D ``x``, aligned with it axis by
        axis. ``r`` is the number of rotated features; those from ``r`` on pass
        unchanged.
    pairing
        Which two features form a pair: ``"interleaved"`` or ``"half"``.

    Returns
    -------
    Tensor
        Like ``x``, in its dtype. 16-bit inputs are rotated in float32 and rounded
        once. The gradient is the rotation by the opposite angle.

    Raises
    ------
    TypeError, ValueError
        If ``x`` or a table is not floating, the tables are wider than the head,
        their length differs from ``x``'s or they lie on another device, or a name
        is unknown.

    Notes
    -----
    Source: RoFormer (2104.09864), equation 34. Lessons 05 and 07.

    Examples
    --------
    >>> from rope_teach import cos_sin
    >>> cos, sin = cos_sin(torch.tensor([1]), torch.tensor([1.0, 0.01]))
    >>> rotate(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), cos, sin)
    tensor([[-1.1426,  1.9221,  2.9599,  4.0298]])
    >>> rotate(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), cos, sin, pairing="half")
    tensor([[-1.9841,  1.9599,  2.4624,  4.0198]])
    """
    check_choice("pairing", pairing, ("interleaved", "half"))
    check_floating("x", x)
    check_floating("cos", cos)
    check_floating("sin", sin)
    if cos.shape != sin.shape or cos.dtype != sin.dtype:
        raise ValueError(
            "cos and sin must have one shape and one dtype, got "
            f"{tuple(cos.shape)} {cos.dtype} and {tuple(sin.shape)} {sin.dtype}"
        )
    cos, sin = align_table(cos, x, layout), align_table(sin, x, layout)
    return rotate_together([x], cos, sin, pairing, layout)[0]


def rotate_together(
    xs: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    pairing: Pairing,
    layout: Layout,
    out: Sequence[Tensor] | None = None,
    *,
    inverse: bool = False,
) -> Sequence[Tensor]:
    """Rotate one tensor, or q and k, by one table; on CUDA, in one launch.

    As :func:`rotate` does, unchecked. The tables broadcast against the pairs of each
    tensor. ``inverse`` rotates by the opposite angles. ``out`` has a tensor for each
    result, and takes no gradient.
    """
    how = pairing, layout, inverse
    compiling = torch.compiler.is_compiling()
    # Subclasses of Tensor take the formula, so that they see each of its operators.
    plain = compiling or all([type(x) in PLAIN for x in (cos, *xs)])
    learned = ask_for_gradient((cos, sin))
    if learned or ask_for_gradient(xs):
        if out is not None:
            raise RuntimeError(
                "out= takes no gradient, as in all of torch: call without out=, or "
                "inside torch.no_grad()"
            )
        if plain and not (learned or takes_kernels(xs[0])):
            return _differentiated(xs, cos, sin, how)
    elif plain and not compiling:
        if _are_on_cpu(xs, cos):  # the dispatcher's overhead shows in a decode step
            return _on_cpu(xs, cos, sin, *how, out=out)
        if out is None:
            return list(ROTATE(xs, cos, sin, *how))
        ROTATE_OUT(xs, cos, sin, *how, out=out)
        return out
    road = _compiled if compiling and not learned else _by_formula
    return road(xs, cos, sin, *how, out=out)


def _are_on_cpu(xs: Sequence[Tensor], cos: Tensor) -> bool:
    """Whether all is in a CPU's memory, and in no trace."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return cos.is_cpu and not tracing and has_memory(cos, *xs)


def has_memory(*xs: Tensor) -> bool:
    """Whether none is on meta, a fake, or a batch of a transform."""
    try:
        return all([type(x) in PLAIN and (x.data_ptr() or not x.is_meta) for x in xs])
    except RuntimeError:
        return False


PLAIN = (Tensor, nn.Parameter)


def ask_for_gradient(tensors: Sequence[Tensor]) -> bool:
    """Whether backward or forward mode will ask how a result depends on one of them."""
    if torch.is_grad_enabled():
        for x in tensors:
            if x.requires_grad:
                return True
    if torch.compiler.is_compiling():  # takes tangents through what it sees
        return False
    for x in tensors:
        try:
            primal, tangent = unpack_dual(x)
        except RuntimeError:  # a batch inside vmap: torch asks its levels one by one
            continue
        if tangent is not None:
            return True
        if primal is x:  # unpacked only within a dual level: there is none
            return False
    return False


def cos_sin(
    positions: Tensor,
    inv_freq: Tensor,
    factor: float = 1.0,
    *,
    first: int = 0,
    sign: int = 1,
    count: int | None = None,
) -> Tensor:
    """Float32 tables for any positions: as ``tables.cos_sin``, and fast on CUDA.

    ``positions`` ``(...)``, or ``(..., axes)`` for ``inv_freq`` ``(axes, r/2)``, give
    ``(..., 2, r/2)``, cos above sin, multiplied by ``factor``. With a ``count``,
    ``positions`` ``(batch,)`` gives ``count`` rows for each sequence, of the positions
    ``first + sign * positions[b] + t``: ``(batch, count, 2, r/2)``. Unchecked, and
    without a gradient.
    """
    arguments = positions, inv_freq, factor, first, sign, count
    if torch.compiler.is_compiling():
        road = _rows_on_cuda if takes_kernels(positions) else _rows
    else:
        road = COS_SIN if type(positions) in PLAIN else _rows
    return road(*arguments)


# --------------------------------------------------------------- gradients, transforms


def _differentiated(
    xs: Sequence[Tensor], cos: Tensor, sin: Tensor, how: tuple[Any, ...]
) -> Sequence[Tensor]:
    """Rotate with a gradient: together where that is one launch, else one by one."""
    compiling = torch.compiler.is_compiling()
    apply: Any = (_CompiledRotation if compiling else _Rotation).apply
    if xs[0].device.type == "cuda":
        return apply(cos, sin, *how, *xs)
    return [apply(cos, sin, *how, x)[0] for x in xs]


class _CompiledRotation(torch.autograd.Function):
    """The rotation, whose derivative is the rotation by the opposite angle."""

    @staticmethod
    def forward(
        cos: Tensor, sin: Tensor, pairing: Pairing, layout: Layout, inverse: bool,
        *xs: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        road = _compiled if torch.compiler.is_compiling() else ROTATE
        return tuple(road(xs, cos, sin, pairing, layout, inverse))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        cos, sin, *ctx.how = inputs[:5]
        ctx.save_for_backward(cos, sin)
        ctx.save_for_forward(cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        pairing, layout, inverse = ctx.how
        cos, sin = ctx.saved_tensors
        back = rotate_together(grads, cos, sin, pairing, layout, inverse=not inverse)
        return None, None, None, None, None, *back


class _Rotation(_CompiledRotation):
    """Adds what eager transforms ask for; torch's compiler takes no ``jvp``."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        pairing, layout, inverse = ctx.how
        cos, sin = ctx.saved_tensors
        return tuple(
            rotate_together(tangents[5:], cos, sin, pairing, layout, inverse=inverse)
        )


# ---------------------------------------------------------------------------- roads
# Each takes tensors, tables, pairing, layout, inverse, and what to write into, if any.


def _by_formula(
    xs: Sequence[Tensor], cos: Tensor, sin: Tensor, pairing: Pairing, layout: Layout,
    inverse: bool, *, out: Sequence[Tensor] | None = None,
) -> Sequence[Tensor]:  # fmt: skip
    sin = -sin if inverse else sin
    turned = [rotate_pairs(x, cos, sin, pairing) for x in xs]
    if out is None:
        return turned
    return [into.copy_(result) for into, result in zip(out, turned, strict=True)]


def _on_cpu(
    xs: Sequence[Tensor], cos: Tensor, sin: Tensor, pairing: Pairing, layout: Layout,
    inverse: bool, *, out: Sequence[Tensor] | None = None,
) -> Sequence[Tensor]:  # fmt: skip
    return cpu.rotate(xs, cos, -sin if inverse else sin, pairing, out)


def _on_cuda(
    xs: Sequence[Tensor], cos: Tensor, sin: Tensor, *how: Any,
    out: Sequence[Tensor] | None = None,
) -> Sequence[Tensor]:  # fmt: skip
    out = [torch.empty_like(x) for x in xs] if out is None else out
    if HAS_TRITON and _kernels().rotate(xs, cos, sin, *how, out):
        return out
    return _by_formula(xs, cos, sin, *how, out=out)


def _compiled(
    xs: Sequence[Tensor], *rest: Any, out: Sequence[Tensor] | None = None
) -> Sequence[Tensor]:
    """What torch's compiler sees: the kernel on CUDA, else the formula, to be fused."""
    if not takes_kernels(xs[0]):
        return _by_formula(xs, *rest, out=out)
    turned: list[Tensor] = _kernels().compiled(list(xs), *rest)
    if out is None:
        return turned
    return [into.copy_(result) for into, result in zip(out, turned, strict=True)]


def _rows(
    positions: Tensor, inv_freq: Tensor, factor: float, first: int, sign: int,
    count: int | None,
) -> Tensor:  # fmt: skip
    """The tables of :func:`cos_sin` by the formula."""
    if count is not None:
        tokens = torch.arange(count, device=positions.device)
        positions = (first + tokens) + sign * positions.unsqueeze(-1)
    cos, sin = tables.cos_sin(positions, inv_freq, torch.float32, factor)
    return torch.stack([cos, sin], dim=-2)


def _rows_on_cuda(*arguments: Any) -> Tensor:
    return (_kernels().cos_sin if HAS_TRITON else _rows)(*arguments)


def _rows_on_meta(
    positions: Tensor, inv_freq: Tensor, factor: float, first: int, sign: int,
    count: int | None,
) -> Tensor:  # fmt: skip
    shape = positions.shape if count is None else (*positions.shape, count)
    shape = shape[:-1] if inv_freq.ndim > 1 else shape
    return positions.new_empty(*shape, 2, inv_freq.shape[-1], dtype=torch.float32)


def takes_kernels(x: Tensor) -> bool:
    """Whether torch's compiler is tracing, and takes a Triton kernel as it is."""
    on_cuda = x.device.type == "cuda"
    return HAS_TRITON and on_cuda and torch.compiler.is_dynamo_compiling()


def _kernels() -> Any:
    """The kernels, imported where they are first needed: Triton loads for a second."""
    from rope_teach.ops import cuda

    return cuda


def _register(key: str, rotate_: Any, rows: Any = None) -> None:
    """Register these implementations for a dispatch key."""

    def write(*arguments: Any, out: Sequence[Tensor]) -> None:
        rotate_(*arguments, out=out)

    LIBRARY.impl("rotate", rotate_, key)
    LIBRARY.impl("rotate.out", write, key)
    if rows is not None:
        LIBRARY.impl("cos_sin", rows, key)


# A batch of vmap, and torch's older one of is_grads_batched, follow the formula too.
BATCHED = ("FuncTorchBatched", "Batched")
for name in ("CompositeExplicitAutograd", *BATCHED):
    _register(name, _by_formula, _rows)
_register("CPU", _on_cpu)
_register("CUDA", _on_cuda, _rows_on_cuda)
_register(
    "Meta", lambda xs, *_, out=None: [torch.empty_like(x) for x in xs], _rows_on_meta
)

ROTATE = torch.ops.rope_teach.rotate.default
ROTATE_OUT = torch.ops.rope_teach.rotate.out
COS_SIN = torch.ops.rope_teach.cos_sin.default
