"""From one pairing to the other: features, tables and projection weights.

:mod:`rope_teach.rotation` says which two features each pairing pairs. Lesson 07.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rope_teach.checks import (
    Pairing,
    check_choice,
    check_count,
    check_rotary_dim,
    wrong_shape,
)

__all__ = [
    "convert_projection",
    "full_table",
    "half_table",
    "half_to_interleaved",
    "interleaved_to_half",
]


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
    return torch.cat([torch.stack(head.chunk(2, -1), -1).flatten(-2), rest], dim=-1)


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
    """Undo :func:`full_table`: ``(..., r)`` gives ``(..., r/2)``.

    Raises ``ValueError`` if the two columns of a pair differ. In a graph or a
    transform, where values cannot be compared, the first is taken. Lesson 07.

    >>> half_table(torch.tensor([10, 20, 10, 20]), "half")
    tensor([10, 20])
    """
    check_choice("pairing", pairing, ("interleaved", "half"))
    check_rotary_dim(table.shape[-1], "the table's width")
    if pairing == "interleaved":
        first, second = table[..., 0::2], table[..., 1::2]
    else:
        first, second = table.chunk(2, dim=-1)
    try:
        repeats = torch.compiler.is_compiling() or torch.equal(first, second)
    except RuntimeError:  # a batch inside vmap, or a fake tensor
        repeats = True
    if not repeats:
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

    ``weight`` ``(heads * head_dim, in_features)``, or a bias ``(heads * head_dim,)``,
    gives a new tensor of its shape, in which the first ``rotary_dim`` features of each
    head are reordered (default: all). ``source`` is the pairing that it was trained
    with. ``heads`` are those of *this* tensor: a key projection under grouped-query
    attention has ``kv_heads``. Convert q and k, never v or the output projection, and
    rotate with ``target``: logits stay the same.

    Raises ``ValueError`` if the rows do not divide into ``heads`` even heads, or a name
    is unknown. Lesson 07.

    >>> convert_projection(torch.arange(8), 2, "interleaved", "half")
    tensor([0, 2, 1, 3, 4, 6, 5, 7])
    """
    check_choice("source", source, ("interleaved", "half"))
    check_choice("target", target, ("interleaved", "half"))
    if weight.ndim not in (1, 2):
        expected = "(heads * head_dim, in_features) or a bias (heads * head_dim,)"
        raise wrong_shape("weight", expected, weight)
    check_count("heads", heads)
    if weight.shape[0] % heads:
        raise ValueError(
            f"weight has {weight.shape[0]} rows, which do not divide into {heads} "
            "heads; with grouped-query attention a key projection has kv_heads heads"
        )
    per_head = weight.unflatten(0, (heads, -1)).movedim(1, -1)
    if source == target:
        _split_rotary(per_head, rotary_dim)  # the same input is refused either way
        return weight.clone()
    reorder = interleaved_to_half if target == "half" else half_to_interleaved
    return reorder(per_head, rotary_dim).movedim(-1, 1).flatten(0, 1)
