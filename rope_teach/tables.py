"""Positions -> angles (float64) -> cos and sin.

Built in lessons 04 (angles), 06 (phases), 10 (precision) and 16 (xPos).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rope_teach.checks import (
    check_floating,
    check_number,
    check_positions,
    check_rotary_dim,
)

__all__ = ["angles", "cos_sin", "held_scale", "phases", "xpos_scale"]

XPOS_BITS = {torch.float16: 12, torch.float64: 960}  # the rest of the range: features


def angles(positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Angle of every pair at every position, in float64, in radians.

    ``positions`` (any shape, integer or float, negative allowed, in tokens) and
    ``inv_freq`` ``(r/2,)`` give shape ``(*positions.shape, r/2)``. With ``inv_freq``
    ``(axes, r/2)`` positions end in one coordinate for each axis, ``(..., axes)``, and
    their angles add up to ``(..., r/2)`` (lesson 17).

    In float32 the product is wrong by 0.05 rad at position one million. Positions in
    bfloat16 or float16 raise ``TypeError``: bfloat16 cannot tell 256 from 257. Lessons
    04 and 10.

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
    positions: Tensor,
    inv_freq: Tensor,
    dtype: torch.dtype = torch.float32,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables, each ``(*positions.shape, r/2)``, in ``dtype``.

    Only the results are cast, so that no error grows with the position. Both are
    multiplied by ``factor``, the attention factor of YaRN and LongRoPE. Lessons 05, 10
    and 13.

    >>> cos, sin = cos_sin(torch.arange(3), torch.tensor([1.0]))
    >>> cos.squeeze()
    tensor([ 1.0000,  0.5403, -0.4161])
    """
    angle = angles(positions, inv_freq)
    cos, sin = (angle.cos() * factor).to(dtype), (angle.sin() * factor).to(dtype)
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
    """The factor by which xPos multiplies a query's pairs and divides a key's.

    ``zeta_i ** ((position - origin) / scale_base)`` with ``zeta_i = (2i + 0.4 r) /
    1.4 r``: ``(*positions.shape, r/2)``, float64. A score then shrinks by
    ``zeta_i ** (distance / scale_base)``, for any origin that queries and keys share.
    Raises ``ValueError`` if ``scale_base`` is not positive and finite.
    Source: Sun et al., LeX (2212.10554), section 3.2; 0.4 is its code's. Lesson 16.

    >>> xpos_scale(torch.tensor([0, 512]), 4)
    tensor([[1.0000, 1.0000],
            [0.2857, 0.6429]], dtype=torch.float64)
    """
    check_positions("positions", positions)
    check_rotary_dim(rotary_dim)
    check_number("scale_base", scale_base, above=0)
    if positions.device.type == "mps":  # has no float64: compute on the CPU
        return xpos_scale(positions.cpu(), rotary_dim, scale_base, origin)
    pair = torch.arange(rotary_dim // 2, dtype=torch.float64, device=positions.device)
    zeta = (2 * pair + 0.4 * rotary_dim) / (1.4 * rotary_dim)
    return zeta ** ((positions.double().unsqueeze(-1) - origin) / scale_base)


def held_scale(
    scale: Tensor, dtype: torch.dtype, complaint: Callable[[int], str]
) -> Tensor:
    """Return a scale that ``dtype`` can hold, with room for features; or raise.

    Raises ``ValueError`` with ``complaint(bits)`` for a scale above ``2**bits`` or
    below ``2**-bits``. On a GPU, in a graph or in a transform, where raising would mean
    waiting for values, such a scale becomes NaN. Lesson 16.
    """
    bits = XPOS_BITS.get(dtype, 96)
    fits = (scale.abs().log2().abs() <= bits).all(dim=-1, keepdim=True)
    held = torch.where(fits, scale, math.nan)
    if torch.compiler.is_compiling() or scale.device.type != "cpu":
        return held
    try:
        if fits.all():
            return scale
    except RuntimeError:  # a batch inside vmap, or a fake tensor
        return held
    raise ValueError(complaint(bits))
