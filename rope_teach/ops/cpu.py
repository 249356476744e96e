"""The rotation on a CPU, in eager torch: as few passes over memory as it allows.

Neighbouring features are one complex multiplication. Halves are a product with the
cosine, to which products of the other half with the sine are added; they go block by
block, so that only the first of these passes reads from memory and the others find
their block in the cache. In a small tensor (a decode step) operator overhead dominates
memory traffic, so one roll swaps the halves: three operators instead of nine.

Measured in benchmarks/cpu.py; lesson 05.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rope_teach.checks import Pairing
from rope_teach.rotation import holds_complex, rotate_pairs, widest

BLOCK = 2**17  # features at a time: 512 KB of float32 stay in a core's cache


def rotate(
    xs: Sequence[Tensor], cos: Tensor, sin: Tensor, pairing: Pairing,
    out: Sequence[Tensor] | None = None,
) -> Sequence[Tensor]:  # fmt: skip
    """Rotate each of ``xs`` by one table, into new tensors or those of ``out``.

    Shapes as in ``rotation.rotate_pairs``.
    """
    wide = widest(cos, *xs)
    if cos.dtype != wide:
        cos, sin = cos.to(wide), sin.to(wide)
    factors: tuple[Tensor, ...]  # of the features, made once for q and k
    if pairing == "half":
        factors = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    elif all(map(holds_complex, xs if out is None else (*xs, *out))):
        factors = (torch.complex(cos, sin),)
    else:
        turned = [rotate_pairs(x, cos, sin, pairing) for x in xs]
        return turned if out is None else list(map(Tensor.copy_, out, turned))
    whole = xs[0].shape[-1] == 2 * cos.shape[-1]
    step = _turn if whole and xs[0].numel() < BLOCK else _by_blocks
    if out is None:
        return [step(x, None, cos, *factors) for x in xs]
    return [step(x, y, cos, *factors) for x, y in zip(xs, out, strict=True)]


def _by_blocks(
    x: Tensor, out: Tensor | None, table: Tensor, *factors: Tensor
) -> Tensor:
    """Rotate the first ``2 * table.shape[-1]`` features in blocks; copy the rest."""
    source = x
    out = target = torch.empty_like(x) if out is None else out
    rotary_dim = 2 * table.shape[-1]
    if rotary_dim < x.shape[-1]:
        out[..., rotary_dim:] = x[..., rotary_dim:]
        source, target = x[..., :rotary_dim], out[..., :rotary_dim]
    blocks = 1 + source.numel() // (BLOCK * torch.get_num_threads())
    if (len(factors) == 1 and x.dtype == table.dtype) or x.ndim < 2:
        blocks = 1  # a single pass over memory
    axis = max(range(x.ndim - 1), key=lambda axis: x.shape[axis], default=0)
    lined_up = [t.expand(*x.shape[:-1], t.shape[-1]) for t in factors]
    parts = [t.chunk(blocks, axis) for t in (source, target, *lined_up)]
    for part, into, *rows in zip(*parts, strict=True):
        _turn(part, into, table, *rows)
    return out


def _turn(
    x: Tensor, out: Tensor | None, like: Tensor, cos: Tensor, sin: Tensor | None = None
) -> Tensor:
    """Rotate in the dtype of ``like``; ``cos`` holds the phases if there is no sine."""
    wide = x if x.dtype == like.dtype else x.type_as(like)  # faster than to()
    if sin is None:
        into = out if wide is x else wide  # a copy is written over
        into = None if into is None else into.view(cos.dtype)
        product = torch.mul(wide.view(cos.dtype), cos, out=into)
        turned = torch.view_as_real(product).flatten(-2)
    elif x.numel() < BLOCK // 2:
        swapped = wide.roll(like.shape[-1], -1)
        into = wide if wide is not x else out
        turned = wide * cos if into is None else torch.mul(wide, cos, out=into)
        turned.addcmul_(swapped, sin)
    else:
        half = x.shape[-1] // 2
        turned = torch.mul(wide, cos, out=out if wide is x else None)
        turned[..., :half].addcmul_(wide[..., half:], sin[..., :half])
        turned[..., half:].addcmul_(wide[..., :half], sin[..., half:])
    if wide is x:
        return turned if out is None else out
    return turned.type_as(x) if out is None else out.copy_(turned)
