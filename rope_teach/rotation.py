"""The rotation itself: positions -> angles -> cos and sin -> rotated features.

One rotation, three forms (real pairs, complex numbers, matrix) and two pairings:

``"interleaved"``  pairs (0, 1) (2, 3) ...          RoFormer, GPT-J, Meta's Llama
``"half"``         pairs (0, r/2) (1, r/2 + 1) ...  GPT-NeoX, Hugging Face's Llama

The sign is +angle, counter-clockwise: (a, b) -> (a cos - b sin, a sin + b cos).
Built in lessons 04 (one pair), 05 (real), 06 (complex) and 07 (pairings).
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rope_teach.frequencies import check_count, check_rotary_dim

__all__ = [
    "Pairing",
    "Layout",
    "angles",
    "cos_sin",
    "phases",
    "xpos_scale",
    "rotate",
    "rotate_complex",
    "rotate_matrix",
    "rotation_matrix",
    "interleaved_to_half",
    "half_to_interleaved",
    "full_table",
    "half_table",
    "convert_projection",
]

HAS_TRITON = importlib.util.find_spec("triton") is not None  # looked up, not imported

Pairing = Literal["interleaved", "half"]
Layout = Literal["bhsd", "bshd"]
Norms = tuple[nn.Module, nn.Module]
Again = Callable[[Tensor, Tensor, int, Norms | None], tuple[Tensor, Tensor]]


# ---------------------------------------------------------------- angles and tables


def angles(positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Angle of every hand at every position, in float64, in radians.

    ``positions`` (any shape, integer or float, negative allowed, in tokens) and
    ``inv_freq`` ``(r/2,)`` give shape ``(*positions.shape, r/2)``. With ``inv_freq``
    ``(axes, r/2)`` positions end in one coordinate an axis, ``(..., axes)``, their
    turns add up, and the result is ``(..., r/2)`` (lesson 17).

    Always float64: a product in float32 is wrong by 0.05 rad at position one
    million. Positions in bfloat16 or float16 raise ``TypeError``, since bfloat16
    cannot tell 256 from 257. Lessons 04 and 10.

    >>> angles(torch.tensor([0, 10]), torch.tensor([1.0, 0.5]))
    tensor([[ 0.,  0.],
            [10.,  5.]], dtype=torch.float64)
    """
    check_positions("positions", positions)
    check_floating("inv_freq", inv_freq)
    if positions.device.type == "mps":  # has no float64: compute on the CPU
        return angles(positions.cpu(), inv_freq.cpu())
    inv_freq = inv_freq.to(device=positions.device, dtype=torch.float64)
    if inv_freq.ndim > 1 and positions.shape[-1:] != inv_freq.shape[:1]:
        raise ValueError(
            f"inv_freq has {inv_freq.shape[0]} axes, so positions must end in as many "
            f"coordinates, got {tuple(positions.shape)}"
        )
    turns = positions.to(torch.float64).unsqueeze(-1) * inv_freq
    return turns.sum(dim=-2) if inv_freq.ndim > 1 else turns


def cos_sin(
    positions: Tensor, inv_freq: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables, each ``(*positions.shape, r/2)``, in ``dtype``.

    The angles are computed in float64 and only the results are cast, so that an
    error never grows with the position. Lessons 05 and 10.

    >>> cos, sin = cos_sin(torch.arange(3), torch.tensor([1.0]))
    >>> cos.squeeze()
    tensor([ 1.0000,  0.5403, -0.4161])
    """
    angle = angles(positions, inv_freq)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return cos.to(positions.device), sin.to(positions.device)


def phases(
    positions: Tensor, inv_freq: Tensor, dtype: torch.dtype = torch.complex64
) -> Tensor:
    """The table as complex numbers ``exp(i angle)``: ``(*positions.shape, r/2)``.

    Lesson 06.

    >>> phases(torch.tensor([0]), torch.tensor([1.0]))
    tensor([[1.+0.j]])
    """
    angle = angles(positions, inv_freq)
    return torch.complex(angle.cos(), angle.sin()).to(dtype).to(positions.device)


def xpos_scale(
    positions: Tensor, rotary_dim: int, scale_base: float = 512.0, origin: float = 0.0
) -> Tensor:
    """By what xPos multiplies a query's pairs, and divides a key's, at each position.

    ``zeta_i ** ((position - origin) / scale_base)`` with ``zeta_i = (2i + 0.4 r) /
    1.4 r``: ``(*positions.shape, r/2)``, float64. A score then shrinks by
    ``zeta_i ** (distance / scale_base)``, whatever the origin, if it is one for all.

    Raises ``ValueError`` if ``scale_base`` is not positive and finite.
    Source: Sun et al., LeX (2212.10554), section 3.2; 0.4 is its code's. Lesson 16.

    >>> xpos_scale(torch.tensor([0, 512]), 4)
    tensor([[1.0000, 1.0000],
            [0.2857, 0.6429]], dtype=torch.float64)
    """
    check_positions("positions", positions)
    check_rotary_dim(rotary_dim)
    if not (math.isfinite(scale_base) and scale_base > 0):
        raise ValueError(f"scale_base must be positive and finite, got {scale_base}")
    if positions.device.type == "mps":  # has no float64: compute on the CPU
        return xpos_scale(positions.cpu(), rotary_dim, scale_base, origin)
    pair = torch.arange(rotary_dim // 2, dtype=torch.float64, device=positions.device)
    zeta = (2 * pair + 0.4 * rotary_dim) / (1.4 * rotary_dim)
    return zeta ** ((positions.double().unsqueeze(-1) - origin) / scale_base)


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


# -------------------------------------------------------- from one pairing to the other


def interleaved_to_half(x: Tensor, rotary_dim: int | None = None) -> Tensor:
    """Reorder the last axis: (0, 1)(2, 3)... becomes all firsts, then all seconds.

    ``x`` ``(..., head_dim)``; only the first ``rotary_dim`` features move (default:
    all). Rotating interleaved and reordering equals reordering and rotating half.
    Lesson 07.

    >>> interleaved_to_half(torch.arange(6))
    tensor([0, 2, 4, 1, 3, 5])
    """
    head, rest = _split_rotary(x, rotary_dim)
    return torch.cat([head[..., 0::2], head[..., 1::2], rest], dim=-1)


def half_to_interleaved(x: Tensor, rotary_dim: int | None = None) -> Tensor:
    """Undo :func:`interleaved_to_half`. Lesson 07.

    >>> half_to_interleaved(torch.tensor([0, 2, 4, 1, 3, 5]))
    tensor([0, 1, 2, 3, 4, 5])
    """
    head, rest = _split_rotary(x, rotary_dim)
    mixed = torch.stack(head.chunk(2, dim=-1), dim=-1).flatten(-2)
    return torch.cat([mixed, rest], dim=-1)


def _split_rotary(x: Tensor, rotary_dim: int | None) -> tuple[Tensor, Tensor]:
    rotary_dim = x.shape[-1] if rotary_dim is None else rotary_dim
    check_rotary_dim(rotary_dim)
    if rotary_dim > x.shape[-1]:
        raise ValueError(
            f"rotary_dim must not exceed the {x.shape[-1]} features of a head, "
            f"got {rotary_dim}"
        )
    return x[..., :rotary_dim], x[..., rotary_dim:]


def full_table(table: Tensor, pairing: Pairing) -> Tensor:
    """Repeat a half-width table to head width, as many libraries hold it.

    ``(..., r/2)`` gives ``(..., r)``: each column twice in a row for
    ``"interleaved"``, the whole table twice for ``"half"``. Lesson 07.

    >>> full_table(torch.tensor([10, 20]), "interleaved")
    tensor([10, 10, 20, 20])
    >>> full_table(torch.tensor([10, 20]), "half")
    tensor([10, 20, 10, 20])
    """
    check_choice("pairing", pairing, ("interleaved", "half"))
    if pairing == "interleaved":
        return table.repeat_interleave(2, dim=-1)
    return torch.cat([table, table], dim=-1)


def half_table(table: Tensor, pairing: Pairing) -> Tensor:
    """Undo :func:`full_table`; refuse a table that was repeated the other way.

    ``(..., r)`` gives ``(..., r/2)``. Raises ``ValueError`` if the two columns of
    a pair differ. Lesson 07.

    >>> half_table(torch.tensor([10, 20, 10, 20]), "half")
    tensor([10, 20])
    """
    check_choice("pairing", pairing, ("interleaved", "half"))
    check_rotary_dim(table.shape[-1], "the table's width")
    if pairing == "interleaved":
        first, second = table[..., 0::2], table[..., 1::2]
    else:
        first, second = table.chunk(2, dim=-1)
    if not torch.equal(first, second):
        raise ValueError(
            f"this table was not repeated for pairing={pairing!r}: the two columns "
            "of a pair differ; was it built for the other pairing?"
        )
    return first


def convert_projection(
    weight: Tensor,
    heads: int,
    source: Pairing,
    target: Pairing,
    rotary_dim: int | None = None,
) -> Tensor:
    """Reorder the rows of a q or k projection from one pairing to the other.

    Parameters
    ----------
    weight
        ``(heads * head_dim, in_features)``, or the bias ``(heads * head_dim,)``.
    heads
        Heads of *this* tensor: with grouped-query attention, the key projection
        has ``kv_heads``. Never convert v or the output projection.
    source, target
        The pairing that the weight was trained with, and the one wanted.
    rotary_dim
        Rotated features of each head (default: all).

    Returns
    -------
    Tensor
        A new tensor of ``weight``'s shape. Logits stay the same when q and k are
        both converted and rotated with ``target``.

    Raises
    ------
    ValueError
        If the rows do not divide into ``heads`` even heads, or a name is unknown.

    Notes
    -----
    Lesson 07.

    Examples
    --------
    >>> convert_projection(torch.arange(8), 2, "interleaved", "half")
    tensor([0, 2, 1, 3, 4, 6, 5, 7])
    """
    check_choice("source", source, ("interleaved", "half"))
    check_choice("target", target, ("interleaved", "half"))
    if weight.ndim not in (1, 2):
        raise ValueError(
            "weight must be (heads * head_dim, in_features) or a bias "
            f"(heads * head_dim,), got shape {tuple(weight.shape)}"
        )
    check_count("heads", heads)
    if weight.shape[0] % heads:
        raise ValueError(
            f"weight has {weight.shape[0]} rows, which do not divide into "
            f"{heads} heads; with grouped-query attention the key projection has "
            "kv_heads heads"
        )
    per_head = weight.unflatten(0, (heads, -1)).movedim(1, -1)
    if source == target:
        _split_rotary(per_head, rotary_dim)  # the same input is refused either way
        return weight.clone()
    reorder = interleaved_to_half if target == "half" else half_to_interleaved
    return reorder(per_head, rotary_dim).movedim(-1, 1).flatten(0, 1)


# ------------------------------------------------------------------------ guards


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(
            f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}"
        )


def check_floating(name: str, x: Tensor) -> None:
    """Raise ``TypeError`` unless ``x`` is a real floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        raise TypeError(
            f"{name} must be a real floating-point tensor of 16 bits or more, got "
            f"{x.dtype}"
        )


def check_positions(name: str, positions: Tensor) -> None:
    """Raise ``TypeError`` unless ``positions`` can hold token positions exactly."""
    if not isinstance(positions, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(positions).__name__}"
        )
    if positions.is_complex() or positions.dtype == torch.bool:
        raise TypeError(f"{name} must be integers or floats, got {positions.dtype}")
    if positions.dtype in (torch.bfloat16, torch.float16):
        raise TypeError(
            f"{name} must not be {positions.dtype}: it cannot hold every whole "
            f"number past {256 if positions.dtype == torch.bfloat16 else 2048}; "
            "use int64 or float32"
        )


def check_start(name: str, start: int, expected: str = "an int") -> None:
    """Raise ``TypeError`` unless ``start`` is an int."""
    if isinstance(start, bool) or not isinstance(start, (int, torch.SymInt)):
        raise TypeError(
            f"{name} must be {expected}, got {type(start).__name__} ({start!r})"
        )


def align_table(table: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """View ``table`` so that it broadcasts against the pairs of ``x``, or raise.

    ``(seq, r/2)`` and ``(batch, seq, r/2)`` are laid along the axes of ``x`` that
    they name, never along the heads by accident of an equal size.
    """
    check_choice("layout", layout, ("bhsd", "bshd"))
    if table.device != x.device:
        raise ValueError(f"the table is on {table.device}, but x is on {x.device}")
    if table.ndim < 1 or x.ndim < 1:
        raise ValueError(
            f"x and the tables need a feature axis, got shapes {tuple(x.shape)} and "
            f"{tuple(table.shape)}"
        )
    if 2 * table.shape[-1] > x.shape[-1]:
        raise ValueError(
            f"the table is {table.shape[-1]} wide, enough for {2 * table.shape[-1]} "
            f"features, but x has head_dim {x.shape[-1]}; tables hold one column a "
            "pair (rope_teach.half_table narrows a repeated one)"
        )
    if table.ndim == 1:
        return table
    if table.ndim == x.ndim and x.ndim > 3:
        _check_axes(table, x, range(x.ndim - 1), layout)
        return table
    seq_axis = x.ndim - (3 if layout == "bshd" and x.ndim > 2 else 2)
    if table.ndim == 2 and x.ndim >= 2:
        _check_seq(table.shape[0], x.shape[seq_axis], x, layout)
        return table.unsqueeze(1) if seq_axis == x.ndim - 3 else table
    if table.ndim == 3 and x.ndim == 4:
        if table.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"the table has batch {table.shape[0]}, but x of shape "
                f"{tuple(x.shape)} has batch {x.shape[0]}"
            )
        _check_seq(table.shape[1], x.shape[seq_axis], x, layout)
        return table.unsqueeze(1 if layout == "bhsd" else 2)
    raise ValueError(
        f"a table of shape {tuple(table.shape)} does not fit x of shape "
        f"{tuple(x.shape)}: expected (seq, r/2) or, for a 4-D x, (batch, seq, r/2)"
    )


def _check_seq(got: int, expected: int, x: Tensor, layout: Layout) -> None:
    if got != expected:
        other = "bshd" if layout == "bhsd" else "bhsd"
        raise ValueError(
            f"the table has {got} positions, but x of shape {tuple(x.shape)} with "
            f"layout={layout!r} has {expected}; is x in layout={other!r}?"
        )


def _check_axes(table: Tensor, x: Tensor, axes: range, layout: Layout) -> None:
    if any(table.shape[axis] not in (1, x.shape[axis]) for axis in axes):
        raise ValueError(
            f"a table of shape {tuple(table.shape)} does not align with x of shape "
            f"{tuple(x.shape)} (layout={layout!r})"
        )
