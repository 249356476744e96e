"""Neighbours in bfloat16 for compilers on CPUs: each pair is one number of 32 bits.

Such a compiler cannot vectorise steps of 2. Seen as one number, a pair needs none: a
bfloat16 is the upper half of a float32, so that the second feature is there already,
and the first moves up. Compiled, it costs a copy; the formula costs four to five
(`benchmarks/README.md`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rope_teach.rotation import holds_pairs


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbours of bfloat16, with float32 tables that broadcast against pairs.

    To the last bit what :func:`rope_teach.rotate` gives. Lesson 10.
    """
    head, rest = x.tensor_split([2 * cos.shape[-1]], dim=-1)
    pairs = as_pairs(head)
    a, b = (pairs << 16).view(torch.float32), (pairs & ~0xFFFF).view(torch.float32)
    first, second = upper(a * cos - b * sin), upper(a * sin + b * cos)
    turned = ((first >> 16) & 0xFFFF) | (second & ~0xFFFF)
    return torch.cat([turned.view(x.dtype), rest], dim=-1)


def upper(x: Tensor) -> Tensor:
    """The bits of ``x`` after rounding to the nearest, or even, bfloat16."""
    bits = x.view(torch.int32)
    return bits + 0x7FFF + ((bits >> 16) & 1)


# Elsewhere in a graph it cannot be asked where a tensor begins.
@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def as_pairs(x: Tensor) -> Tensor:
    """Two features of 16 bits as one of 32; a copy where they do not lie that way.

    A graph keeps the answer of its first call, and torch does not ask again where a
    tensor begins: made for an even place, the graph refuses an odd one.
    """
    if not holds_pairs(x):
        x = x.view(torch.int16).contiguous() | 0  # a mere copy would be optimised away
    return x.view(torch.int32)
