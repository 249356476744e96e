"""The rotation itself: positions -> angles -> cos and sin -> rotated features.

One rotation, three forms (real pairs, complex numbers, matrix) and two pairings:

``"interleaved"``  pairs (0, 1) (2, 3) ...          RoFormer, GPT-J, Meta's Llama
``"half"``         pairs (0, r/2) (1, r/2 + 1) ...  GPT-NeoX, Hugging Face's Llama

The sign is +angle, counter-clockwise: (a, b) -> (a cos - b sin, a sin + b cos).
Built in lessons 04 (one pair), 05 (real), 06 (complex) and 07 (pairings).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rope_teach.checks import (
    Layout,
    Pairing,
    align_table,
    check_choice,
    check_floating,
)

__all__ = [
    "rotate",
    "rotate_complex",
    "rotate_matrix",
    "rotation_matrix",
]

HAS_TRITON = importlib.util.find_spec("triton") is not None  # looked up, not imported

Norms = tuple[nn.Module, nn.Module]
Again = Callable[[Tensor, Tensor, int, Norms | None], tuple[Tensor, Tensor]]


# ------------------------------------------------------------------ the three forms


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
        ``(batch, heads, seq, head_dim)``, or ``(batch, seq, heads, head_dim)``
        with ``layout="bshd"``; the batch axis, or batch and heads, may be absent.
    cos, sin
        ``(seq, r/2)``, or ``(batch, seq, r/2)`` when sequences differ, or one
        position for all, ``(r/2,)``; or aligned with ``x`` axis by axis. ``r`` is
        the number of rotated features; features from ``r`` on pass unchanged.
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
    wide = torch.promote_types(cos.dtype, torch.float32)
    aligned = [align_table(table, x, layout).to(wide) for table in (cos, sin)]
    if x.is_cuda:
        fused = _fused(x, None, cos, sin, pairing, layout)
        if fused is not None:
            return fused[0]
    cos, sin = aligned
    return _rotate_all(x, cos, sin, pairing)


def rotate_qk(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    first: int,
    pairing: Pairing,
    layout: Layout,
    norms: Norms | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotate ``q`` and ``k`` of one length by one table; on CUDA, in one launch.

    As :func:`rotate` does each, after its norm where ``norms`` are given. Row
    ``first`` of a table ``(rows, r/2)`` is the first token's, so that a decode step
    need not cut the table. Lesson 18.
    """
    if q.is_cuda:
        fused = _fused(q, k, cos, sin, pairing, layout, first, norms)
        if fused is not None:
            return fused
    if norms is not None:
        return rotate_qk(*normalise(q, k, norms), cos, sin, first, pairing, layout)
    # The caller has checked all, so that a decode step pays for the arithmetic alone.
    if cos.ndim == 2:
        rows = slice(first, first + q.shape[-2 if layout == "bhsd" else -3])
        cos, sin = cos[rows], sin[rows]
    heads_axis = -3 if layout == "bhsd" else -2
    if cos.ndim == 3 or layout == "bshd":
        cos, sin = cos.unsqueeze(heads_axis), sin.unsqueeze(heads_axis)
    if _are_small(q, k, cos, pairing):
        return _rotate_small(q, k, cos, sin, pairing)
    return _rotate_all(q, cos, sin, pairing), _rotate_all(k, cos, sin, pairing)


def normalise(q: Tensor, k: Tensor, norms: Norms) -> tuple[Tensor, Tensor]:
    """Apply ``(q_norm, k_norm)``; both keep their dtype. Lesson 18."""
    return norms[0](q).to(q.dtype), norms[1](k).to(k.dtype)


def repeat_qk(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing, layout: Layout
) -> Again:
    """:func:`rotate_qk` of ``(q, k, first, norms)`` for more calls like one just made.

    The caller answers for shapes, strides, dtypes and devices. Half of what a decode
    step on a GPU costs is the host's questions: here they are asked once. Lesson 18.
    """

    def again(
        q: Tensor, k: Tensor, first: int, norms: Norms | None
    ) -> tuple[Tensor, Tensor]:
        return rotate_qk(q, k, cos, sin, first, pairing, layout, norms)

    if not q.is_cuda or not HAS_TRITON or q.ndim != 4 or is_transformed():
        return again
    from rope_teach import kernels

    swap = layout == "bshd"
    return kernels.repeat(q, k, cos, sin, pairing == "interleaved", swap, again)


def rotate_complex(x: Tensor, phases: Tensor, layout: Layout = "bhsd") -> Tensor:
    """Rotate interleaved pairs as complex numbers: one multiplication.

    ``x`` and the result are as in :func:`rotate`; ``phases`` is complex, with the
    shapes that ``cos`` has there. 16-bit inputs are multiplied in float32, since
    torch has no complex bfloat16. Lesson 06.

    >>> turn = phases(torch.tensor([1]), torch.tensor([1.0, 0.01]))
    >>> rotate_complex(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), turn)
    tensor([[-1.1426,  1.9221,  2.9599,  4.0298]])
    """
    check_floating("x", x)
    if not isinstance(phases, Tensor) or not phases.is_complex():
        raise TypeError(
            "phases must be a complex tensor (see rope_teach.phases), got "
            f"{getattr(phases, 'dtype', type(phases).__name__)}"
        )
    phases = align_table(phases, x, layout)
    head, rest = x.tensor_split([2 * phases.shape[-1]], dim=-1)
    wide = head.to(torch.promote_types(x.dtype, phases.real.dtype))
    if torch.compiler.is_compiling() or not _holds_complex(wide):
        wide = wide.clone(memory_format=torch.contiguous_format)
    turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * phases
    rotated = torch.view_as_real(turned).flatten(-2).to(x.dtype)
    return torch.cat([rotated, rest], dim=-1) if rest.shape[-1] else rotated


def rotation_matrix(angles: Tensor, pairing: Pairing = "interleaved") -> Tensor:
    """The textbook matrix: one 2 x 2 rotation for each pair, zeros elsewhere.

    ``angles`` ``(..., r/2)`` in radians gives ``(..., r, r)`` in their dtype. The
    blocks lie on the diagonal for ``"interleaved"``. For teaching, and as the
    oracle of the tests. Source: RoFormer, equation 15. Lessons 04 and 05.

    >>> rotation_matrix(torch.tensor([1.0]))
    tensor([[ 0.5403, -0.8415],
            [ 0.8415,  0.5403]])
    """
    check_choice("pairing", pairing, ("interleaved", "half"))
    check_floating("angles", angles)
    pairs = angles.shape[-1]
    i = torch.arange(pairs, device=angles.device)
    a, b = (2 * i, 2 * i + 1) if pairing == "interleaved" else (i, i + pairs)
    matrix = angles.new_zeros(*angles.shape[:-1], 2 * pairs, 2 * pairs)
    matrix[..., a, a] = matrix[..., b, b] = angles.cos()
    matrix[..., b, a] = angles.sin()
    matrix[..., a, b] = -angles.sin()
    return matrix


def rotate_matrix(
    x: Tensor, angles: Tensor, pairing: Pairing = "interleaved", layout: Layout = "bhsd"
) -> Tensor:
    """Rotate by a full matrix product: slow, obvious, and the oracle.

    ``x`` as in :func:`rotate`; ``angles`` in radians, with the shapes that ``cos``
    has there. Lesson 05.

    >>> rotate_matrix(torch.tensor([[1.0, 0.0]]), torch.tensor([[torch.pi / 2]]))
    tensor([[-4.3711e-08,  1.0000e+00]])
    """
    check_floating("x", x)
    check_floating("angles", angles)
    angles = align_table(angles, x, layout)
    rotary_dim = 2 * angles.shape[-1]
    matrix = rotation_matrix(angles, pairing)
    wide = torch.promote_types(x.dtype, matrix.dtype)
    column = x[..., :rotary_dim, None].to(wide)
    rotated = (matrix.to(wide) @ column).squeeze(-1).to(x.dtype)
    return torch.cat([rotated, x[..., rotary_dim:]], dim=-1)


# ---------------------------------------------- how the arithmetic is really done


BLOCK = 2**17  # 16-bit features at a time: 512 KB of float32 stay in a core's cache
SMALL = 2**16  # features up to which the number of steps decides, not their bytes


def _rotate_all(x: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing) -> Tensor:
    """Rotate the leading features of ``x``; the tables broadcast against its pairs."""
    wide = torch.promote_types(x.dtype, cos.dtype)
    cos, sin = cos.to(wide), sin.to(wide)
    if is_transformed() or cos.requires_grad or sin.requires_grad:
        return _formula(x, cos, sin, pairing)
    if x.requires_grad and torch.is_grad_enabled():
        return _Rotation.apply(x, cos, sin, pairing)  # type: ignore[no-untyped-call]
    return _rotate_plainly(x, cos, sin, pairing)


def _rotate_plainly(x: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing) -> Tensor:
    """Rotate where no gradient is asked for, the way that costs least.

    Four ways to the same numbers; `benchmarks/README.md` has what each costs.
    """
    if torch.compiler.is_compiling() and _is_packed(x, cos, pairing):
        return _formula_packed(x, cos, sin)
    if torch.compiler.is_compiling() or not (pairing == "half" or _holds_complex(x)):
        return _formula(x, cos, sin, pairing)
    if x.dtype != cos.dtype and not (x.is_cpu and x.numel() > BLOCK):
        return _rotate_eagerly(x.to(cos.dtype), cos, sin, pairing).to(x.dtype)
    return _rotate_eagerly(x, cos, sin, pairing)


def _are_small(q: Tensor, k: Tensor, cos: Tensor, pairing: Pairing) -> bool:
    """Whether a step of torch takes longer than the bytes that it moves."""
    return (
        q.is_cpu
        and not (torch.compiler.is_compiling() or is_transformed())
        and q.numel() <= SMALL
        and k.numel() <= SMALL
        and q.shape[-1] == k.shape[-1] == 2 * cos.shape[-1]
        and (pairing == "half" or (_holds_complex(q) and _holds_complex(k)))
        and not (
            (q.requires_grad or k.requires_grad or cos.requires_grad)
            and torch.is_grad_enabled()
        )
    )


def _rotate_small(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing
) -> tuple[Tensor, Tensor]:
    """Few steps, more bytes: half the time of the others for a decode step."""
    if pairing == "interleaved":
        phases = torch.complex(cos, sin)
    else:
        cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)

    def turn(x: Tensor) -> Tensor:
        wide = x.float() if x.dtype.itemsize == 2 else x
        own = wide is not x  # a copy, to be written over
        if pairing == "interleaved":
            pairs = wide.view(phases.dtype)
            turned = (pairs.mul_(phases) if own else pairs * phases).view(wide.dtype)
        else:
            swapped = wide.roll(wide.shape[-1] // 2, dims=-1)
            turned = (wide.mul_(cos) if own else wide * cos).addcmul_(swapped, sin)
        return turned.type_as(x)  # to() would take longer

    return turn(q), turn(k)


def is_transformed() -> bool:
    """Whether vmap or forward-mode differentiation follows each step."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def is_recorded() -> bool:
    """Whether each operation is written down, so that no launch may pass unseen."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _fused(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    pairing: Pairing,
    layout: Layout,
    first: int = 0,
    norms: Norms | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Rotate by the CUDA kernel, or None where it cannot: the formula then serves."""
    if not HAS_TRITON or q.ndim != 4 or is_transformed():
        return None
    if type(q) not in (Tensor, nn.Parameter) and not torch.compiler.is_compiling():
        return None  # fake and distributed tensors follow each step
    from rope_teach import kernels

    swap = layout == "bshd"
    q = q.transpose(1, 2) if swap else q
    k = q[:, :0] if k is None else k.transpose(1, 2) if swap else k
    table = cos, sin, pairing == "interleaved", first
    if norms is None:
        turned = kernels.rotate_qk(q, k, *table)
    else:
        from rope_teach import fused_norm  # its kernels are for who has norms

        turned = fused_norm.normalise_and_rotate(q, k, norms, *table)
    if turned is None or not swap:
        return turned
    return turned[0].transpose(1, 2), turned[1].transpose(1, 2)


def _formula(x: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing) -> Tensor:
    """As it is written on paper: compilers fuse it, and transforms follow it."""
    head, rest = x.tensor_split([2 * cos.shape[-1]], dim=-1)
    wide = head.to(cos.dtype)
    if pairing == "interleaved":
        a, b = wide.unflatten(-1, (-1, 2)).unbind(-1)
    else:
        a, b = wide.chunk(2, dim=-1)
    # Rounded before they are joined: a compiler would store the join in float32.
    first, second = (a * cos - b * sin).to(x.dtype), (a * sin + b * cos).to(x.dtype)
    if pairing == "half":
        return torch.cat([first, second, rest], dim=-1)
    turned = torch.stack([first, second], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _is_packed(x: Tensor, cos: Tensor, pairing: Pairing) -> bool:
    """Whether a compiler for CPUs should see each pair as one number of 32 bits."""
    return (
        pairing == "interleaved"
        and x.is_cpu
        and x.dtype == torch.bfloat16
        and cos.dtype == torch.float32
        and sys.byteorder == "little"
        and not torch.compiler._is_exporting_flag  # other runtimes read a formula
    )


def _formula_packed(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """:func:`_formula` for neighbours in bfloat16, in half of its time by one thread.

    Compilers for CPUs cannot vectorise steps of 2. Seen as one number of 32 bits, a
    pair needs none: a bfloat16 is the upper half of a float32, so that the second
    feature is there already, and the first moves up.
    """

    def upper(x: Tensor) -> Tensor:
        """The bits of ``x`` after rounding to the nearest, or even, bfloat16."""
        bits = x.view(torch.int32)
        return bits + 0x7FFF + ((bits >> 16) & 1)

    head, rest = x.tensor_split([2 * cos.shape[-1]], dim=-1)
    # "Or 0" makes a copy: what begins in the middle of 32 bits cannot be seen as pairs,
    # and where a tensor begins cannot be asked inside a graph. Flat, it has no strides.
    flat = head.view(torch.int16).reshape(-1) | 0
    pairs = flat.view(torch.int32).view(*head.shape[:-1], cos.shape[-1])
    a, b = (pairs << 16).view(torch.float32), (pairs & ~0xFFFF).view(torch.float32)
    first, second = upper(a * cos - b * sin), upper(a * sin + b * cos)
    turned = ((first >> 16) & 0xFFFF) | (second & ~0xFFFF)
    return torch.cat([turned.view(x.dtype), rest], dim=-1)


class _Rotation(torch.autograd.Function):
    """:func:`_rotate_plainly`; its gradient is the rotation by the opposite angle."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.pairing = pairing
        return _rotate_plainly(x, cos, sin, pairing)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate_all(grad, cos, -sin, ctx.pairing), None, None, None


def _rotate_eagerly(x: Tensor, cos: Tensor, sin: Tensor, pairing: Pairing) -> Tensor:
    """Rotate into a new tensor with few kernels; 16-bit features block by block."""
    tables: tuple[Tensor, ...]
    if pairing == "interleaved":
        tables = (torch.complex(cos, sin),)
    else:
        tables = (torch.cat([cos, cos], dim=-1), sin)
    out, rotary_dim = torch.empty_like(x), 2 * cos.shape[-1]
    source, target = x, out
    if rotary_dim < x.shape[-1]:
        source, target = x[..., :rotary_dim], out[..., :rotary_dim]
        out[..., rotary_dim:] = x[..., rotary_dim:]
    if x.dtype == cos.dtype:
        _turn(source, target, *tables)
        return out
    # A whole float32 copy would travel to memory and back; a block of it does not.
    blocks = 1 + source.numel() // (BLOCK * torch.get_num_threads())
    axis = max(range(x.ndim - 1), key=lambda axis: x.shape[axis], default=0)
    whole = [source, target, *(t.expand(*x.shape[:-1], -1) for t in tables)]
    for part, into, *rows in zip(*(t.chunk(blocks, axis) for t in whole), strict=True):
        wide = part.to(cos.dtype)
        turned = wide if pairing == "interleaved" else torch.empty_like(wide)
        _turn(wide, turned, *rows)
        into.copy_(turned)
    return out


def _turn(x: Tensor, out: Tensor, *tables: Tensor) -> None:
    """Write the rotated ``x``: by one table of phases, or by cos (repeated) and sin."""
    if len(tables) == 1:
        (phases,) = tables
        torch.mul(x.view(phases.dtype), phases, out=out.view(phases.dtype))
        return
    cos, sin = tables
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin, value=-1)
    out[..., half:].addcmul_(x[..., :half], sin)


def _holds_complex(x: Tensor) -> bool:
    """Whether the pairs of ``x`` can be seen as complex numbers where they lie."""
    steps = (x.shape[-1], *x.stride()[:-1], x.storage_offset())
    return x.stride(-1) == 1 and all(step % 2 == 0 for step in steps)
