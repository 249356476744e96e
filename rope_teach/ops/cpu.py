"""The rotation on a CPU, in eager torch: as few passes over memory as it allows.

Neighbouring features are one complex multiplication. Halves are a product with the
cosine, to which two products with the sine are added; they go block by block, so that
only the first of these passes reads from memory and the others find their block in the
cache. A small tensor (a decode step) is not worth that: operator overhead dominates
memory traffic, and fewer operators that move more bytes take half the time.

Measured in benchmarks/cpu.py; lesson 05.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rope_teach.checks import Pairing
from rope_teach.rotation import holds_complex, rotate_pairs, widest

BLOCK = 2**17  # features at a time: 512 KB of float32 stay in a core's cache
SMALL = 2**16  # features up to which operator overhead dominates memory traffic
WIDE = {  # of the arithmetic: by the dtype of the factors, phases or cosines
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def rotate(
    xs: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    pairing: Pairing,
    out: Sequence[Tensor | None] | None = None,
) -> Sequence[Tensor]:
    """Rotate each of ``xs`` by one table, into those of ``out`` that are not None.

    Shapes as in ``rotation.rotate_pairs``.
    """
    factors = _factors(xs, cos, sin, pairing)
    given = [None] * len(xs) if out is None else out
    return [
        _rotate(x, into, factors, cos, sin, pairing)
        for x, into in zip(xs, given, strict=True)
    ]


def _rotate(
    x: Tensor, out: Tensor | None, factors: tuple[Tensor, ...], cos: Tensor,
    sin: Tensor, pairing: Pairing,
) -> Tensor:  # fmt: skip
    """Rotate the way that costs least, into a new tensor where ``out`` is None."""
    given = [y for y in (x, out) if y is not None]
    if pairing == "interleaved" and not all(holds_complex(y) for y in given):
        turned = rotate_pairs(x, cos, sin, pairing)
        return turned if out is None else out.copy_(turned)
    if x.numel() <= SMALL and x.shape[-1] == 2 * cos.shape[-1]:
        return _rotate_small(x, out, *factors)
    return _rotate_into(torch.empty_like(x) if out is None else out, x, *factors)


def _factors(
    xs: Sequence[Tensor], cos: Tensor, sin: Tensor, pairing: Pairing
) -> tuple[Tensor, ...]:
    """What features are multiplied by, made once for q and k."""
    wide = widest(cos, *xs)
    if cos.dtype != wide:
        cos, sin = cos.to(wide), sin.to(wide)
    if pairing == "interleaved":
        return (torch.complex(cos, sin),)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def _rotate_small(
    x: Tensor, out: Tensor | None, cos: Tensor, sin: Tensor | None = None
) -> Tensor:
    """Few operators; ``cos`` holds the phases where there is no ``sin``."""
    dtype = WIDE[cos.dtype]
    if x.dtype == dtype and out is None:  # the call of a decode step
        if sin is None:
            return (x.view(cos.dtype) * cos).view(dtype)
        return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)
    wide = x.to(dtype)
    into = out if wide is x and out is not None else wide  # a copy is written over
    direct = into is out
    if sin is None:
        torch.mul(wide.view(cos.dtype), cos, out=into.view(cos.dtype))
    else:
        swapped = wide.roll(wide.shape[-1] // 2, -1)
        into = torch.mul(wide, cos, out=into) if direct else wide.mul_(cos)
        into.addcmul_(swapped, sin)
    if direct:
        return into
    return into.type_as(x) if out is None else out.copy_(into)  # faster than to()


def _rotate_into(out: Tensor, x: Tensor, *factors: Tensor) -> Tensor:
    """Write the rotated ``x`` into ``out``, with few passes over memory."""
    wide = WIDE[factors[0].dtype]
    rotary_dim = factors[0].shape[-1] * (2 if len(factors) == 1 else 1)
    source, target = x, out
    if rotary_dim < x.shape[-1]:
        source, target = x[..., :rotary_dim], out[..., :rotary_dim]
        out[..., rotary_dim:] = x[..., rotary_dim:]
    axis = max(range(x.ndim - 1), key=lambda axis: x.shape[axis], default=0)
    blocks = 1 + source.numel() // (BLOCK * torch.get_num_threads())
    if (len(factors) == 1 and x.dtype == wide) or x.ndim < 2:
        blocks = 1  # a single pass over memory
    lined_up = [t.expand(*x.shape[:-1], t.shape[-1]) for t in factors]
    parts = [t.chunk(blocks, axis) for t in (source, target, *lined_up)]
    for part, into, *rows in zip(*parts, strict=True):
        features = part.to(wide)
        turned = into if into.dtype == wide else torch.empty_like(features)
        _turn(turned, features, *rows)
        if turned is not into:
            into.copy_(turned)
    return out


def _turn(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor | None = None) -> None:
    """Write the rotated ``x``; ``cos`` holds the phases where there is no ``sin``."""
    if sin is None:
        torch.mul(x.view(cos.dtype), cos, out=out.view(cos.dtype))
        return
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half])
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
