"""Masks by which a token sees only what is near. Built in lessons 12 and 16."""

from __future__ import annotations

import torch
from torch import Tensor

from rope_teach.checks import check_count

__all__ = ["blockwise_mask", "window_mask"]


def window_mask(q_len: int, window: int, k_len: int | None = None) -> Tensor:
    """Mask by which a token sees the newest ``window`` tokens up to itself.

    Returns ``(q_len, k_len)``. The last query is at the last key; in a cached step
    ``k_len`` counts the cached tokens as well. Lesson 12.

    >>> window_mask(3, 2).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    check_count("window", window)
    k_len = q_len if k_len is None else k_len
    if k_len < q_len:
        raise ValueError(f"k_len must be at least q_len={q_len}, got {k_len}")
    newest = k_len - q_len
    seen = torch.ones(q_len, k_len, dtype=torch.bool).tril(newest)
    return seen.triu(newest - window + 1)


def blockwise_mask(seq: int, block: int) -> Tensor:
    """Mask by which a token sees its own block and the one before: ``(seq, seq)``.

    For a causal model whose trained length is twice ``block``: no token then sees
    farther than in training. Source: blockwise causal attention, Sun et al.
    (2212.10554). Lesson 16.

    >>> blockwise_mask(5, 2).int()
    tensor([[1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [0, 0, 1, 1, 1]], dtype=torch.int32)
    """
    check_count("block", block)
    number = torch.arange(seq) // block
    return (number[:, None] - number <= 1).tril()
