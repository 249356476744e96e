"""Positions and frequencies on several axes: images, video, and text among them.

A token has one position on each axis, and pair i rotates by their weighted sum:
angle_i = sum over axes a of position_a * inv_freq[a, i]. The kinds differ only in
``inv_freq`` ``(axes, r/2)``. Pass it to ``RotaryEmbedding(head_dim, inv_freq=...)``,
and the positions to each call. Built in lesson 17.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rope_teach.checks import check_count, check_number, check_rotary_dim, wrong_shape

__all__ = [
    "axial_frequencies",
    "grid_positions",
    "mixed_frequencies",
    "multimodal_frequencies",
    "multimodal_positions",
    "pixel_frequencies",
    "pixel_positions",
]


# --------------------------------------------------------------------- positions


def grid_positions(*sizes: int) -> Tensor:
    """Row, column and so on of every cell of a grid; the last axis changes fastest.

    ``sizes``, positive ints, give ``(product of sizes, axes)`` int64: positions of an
    image flattened row by row. A class token can be at zeros, which leaves it as it is.
    Raises ``TypeError`` or ``ValueError`` for other sizes. Lesson 17.

    >>> grid_positions(2, 2)
    tensor([[0, 0],
            [0, 1],
            [1, 0],
            [1, 1]])
    """
    return _grid(sizes, torch.arange)


def pixel_positions(*sizes: int, centres: bool = False) -> Tensor:
    """As :func:`grid_positions`, but every axis runs from -1 to 1, in float64.

    A finer grid then never leaves the trained range. The outermost cells are at -1 and
    1; with ``centres`` the edges of the picture are, as in DINOv3, whose frequencies
    are ``2 * pi * inverse_frequencies(head_dim // 2, 100.0)`` on each axis. Lesson 17.

    >>> pixel_positions(3).flatten()
    tensor([-1.,  0.,  1.], dtype=torch.float64)
    >>> pixel_positions(4, centres=True).flatten()
    tensor([-0.7500, -0.2500,  0.2500,  0.7500], dtype=torch.float64)
    """
    if centres:
        return _grid(sizes, lambda n: (2 * torch.arange(n).double() + 1) / n - 1)
    return _grid(sizes, lambda n: torch.linspace(-1, 1, n, dtype=torch.float64))


def multimodal_positions(
    parts: Sequence[int | tuple[int, int, int] | tuple[int, int, int, float]],
) -> Tensor:
    """Time, height and width of each token where text and images follow each other.

    Each of ``parts`` is an int, that many tokens of text, or ``(time, height, width)``,
    the cells of an image (time 1) or video; others raise ``TypeError`` or
    ``ValueError``. Returns ``(seq, 3)`` int64. Text advances on all axes at once. Each
    part continues one past the largest position so far, as in the papers, vLLM and
    earlier transformers (5.23 continues ``max(height, width)`` past the start of a
    picture: earlier, if a video lasts longer).

    A video may end in a fourth number, the positions from one frame to the next, with
    times rounded down: in Qwen2.5-VL ``tokens_per_second * second_per_grid_t``.
    Qwen3-VL gives each frame as a part of time 1, with text before it.
    Source: Qwen2-VL (2409.12191), section 2.1. Lesson 17.

    >>> multimodal_positions([1, (1, 2, 2), 1]).T
    tensor([[0, 1, 1, 1, 1, 3],
            [0, 1, 1, 2, 2, 3],
            [0, 1, 2, 1, 2, 3]])
    """
    found, start = [torch.empty(0, 3, dtype=torch.long)], 0
    for part in parts:
        if isinstance(part, tuple):
            found.append(start + _video(part))
        else:
            check_count("tokens of text", part)
            found.append(start + torch.arange(part).unsqueeze(1).expand(-1, 3))
        start = int(found[-1].max()) + 1
    return torch.cat(found)


# ------------------------------------------------- frequencies: (axes, r/2) float64


def axial_frequencies(*inv_freqs: Tensor) -> Tensor:
    """One block of frequencies for each axis: a pair rotates with one axis alone.

    ``inv_freqs``, one ``(r_a/2,)`` for each axis, give ``(axes, sum of r_a/2)``.
    ``RotaryEmbedding(head_dim, axes=2, base=100)`` builds the one with equal shares.
    Raises ``ValueError`` for other shapes, or without any.
    Source: RoPE-Axial, 2403.13298, section 3.2, with the base 100. Lesson 17.

    >>> axial_frequencies(torch.tensor([1.0, 0.1]), torch.tensor([1.0, 0.1]))
    tensor([[1.0000, 0.1000, 0.0000, 0.0000],
            [0.0000, 0.0000, 1.0000, 0.1000]], dtype=torch.float64)
    """
    if not inv_freqs or any(inv_freq.ndim != 1 for inv_freq in inv_freqs):
        raise ValueError(
            "axial_frequencies needs one (r/2,) tensor for each axis, got shapes "
            f"{[tuple(inv_freq.shape) for inv_freq in inv_freqs]}"
        )
    return torch.block_diag(*(inv_freq.double() for inv_freq in inv_freqs))


def pixel_frequencies(
    rotary_dim: int, max_freq: float = 10.0, *, log_spaced: bool = False
) -> Tensor:
    """Frequencies in equal steps, from pi to ``max_freq / 2`` times pi: ``(r/2,)``.

    ``rotary_dim`` counts the features of one axis: give one result for each axis to
    :func:`axial_frequencies`. With positions from -1 to 1 the fastest pair makes
    ``max_freq / 2`` turns across the picture; raises ``ValueError`` unless that is
    positive. ``log_spaced`` steps are equal in the logarithm, as in timm with
    ``linear_bands=False``. Source: ``pixel`` in rotary-embedding-torch. Lesson 17.

    >>> pixel_frequencies(4) / torch.pi
    tensor([1., 5.], dtype=torch.float64)
    >>> pixel_frequencies(6, 32.0, log_spaced=True) / torch.pi
    tensor([ 1.,  4., 16.], dtype=torch.float64)
    """
    check_rotary_dim(rotary_dim)
    check_number("max_freq", max_freq, above=0)
    ends = (0.0, math.log2(max_freq / 2)) if log_spaced else (1.0, max_freq / 2)
    steps = torch.linspace(*ends, rotary_dim // 2, dtype=torch.float64)
    return math.pi * (steps.exp2() if log_spaced else steps)


def mixed_frequencies(
    inv_freq: Tensor, axes: int = 2, generator: torch.Generator | None = None
) -> Tensor:
    """Point every pair in a random direction: it rotates with a mix of all axes.

    ``inv_freq`` ``(r/2,)`` gives ``(axes, r/2)``, whose columns have the lengths in
    ``inv_freq``: a start for ``RotaryEmbedding(head_dim, inv_freq=..., learned=True)``.
    Source: RoPE-Mixed, 2403.13298, section 3.2, from the base 10; but the paper draws
    one direction per head, at a right angle for half of the pairs. Here every pair
    draws its own, and heads share them. Lesson 17.

    Where heads differ, as in RoPE-Mixed's checkpoints, rotate all features before the
    split into heads, interleaved: ``RotaryEmbedding(heads * head_dim, inv_freq=bank)``
    with ``bank`` ``(axes, heads * r/2)``. Or, for tables ``(1, heads, seq, r/2)``, take
    ``angles(positions, bank).unflatten(-1, (heads, -1)).transpose(0, 1)[None]``.

    >>> mixed_frequencies(torch.tensor([1.0, 0.1])).norm(dim=0)
    tensor([1.0000, 0.1000], dtype=torch.float64)
    """
    check_count("axes", axes)
    if inv_freq.ndim != 1:
        raise wrong_shape("inv_freq", "(r/2,)", inv_freq)
    direction = torch.randn(axes, len(inv_freq), generator=generator).double()
    return inv_freq.double() * direction / direction.norm(dim=0)


def multimodal_frequencies(
    inv_freq: Tensor, sections: Sequence[int], interleaved: bool = False
) -> Tensor:
    """Share the pairs of one set of frequencies out among the axes: M-RoPE.

    ``inv_freq`` ``(r/2,)`` and ``sections``, pairs of each axis (``mrope_section`` in
    configurations), give ``(axes, r/2)``. The first axis gets the fastest pairs, the
    second the next ones, as in Qwen2-VL; ``interleaved=True`` deals them out in turn,
    as in Qwen3-VL, and the first axis gets what is left. Text, whose axes agree, sees
    no difference. Raises ``ValueError`` unless ``sections`` sum to ``r/2``.
    Source: Qwen2-VL (2409.12191), section 2.1. Lesson 17.

    >>> multimodal_frequencies(torch.tensor([1.0, 0.1, 0.01]), (1, 1, 1))
    tensor([[1.0000, 0.0000, 0.0000],
            [0.0000, 0.1000, 0.0000],
            [0.0000, 0.0000, 0.0100]], dtype=torch.float64)
    """
    axes, pairs = len(sections), len(inv_freq)
    if not axes or min(sections) < 0 or sum(sections) != pairs:
        raise ValueError(
            f"sections must be pairs of each axis that sum to r/2 = {pairs}, "
            f"got {tuple(sections)}"
        )
    owner = torch.arange(axes).repeat_interleave(torch.tensor(sections))
    if interleaved:
        owner = torch.zeros(pairs, dtype=torch.long)
        for axis in range(1, axes):
            owner[axis : axes * sections[axis] : axes] = axis
    if owner.bincount(minlength=axes).tolist() != list(sections):
        raise ValueError(
            f"sections {tuple(sections)} cannot be dealt out in turn: the last pair of "
            f"an axis, axis + {axes} * (section - 1), must be below r/2 = {pairs}"
        )
    return torch.where(owner == torch.arange(axes).unsqueeze(1), inv_freq.double(), 0)


def _video(part: tuple[Any, ...]) -> Tensor:
    """Cells of one image or video, from 0: ``(time * height * width, 3)``."""
    if len(part) not in (3, 4):
        raise ValueError(
            "an image or video is (time, height, width) or (time, height, width, "
            f"interval), got {part}"
        )
    interval = part[3] if len(part) == 4 else 1
    if not (math.isfinite(interval) and interval >= 0):
        raise ValueError(f"interval must be finite and not negative, got {interval}")
    cells = grid_positions(*part[:3])
    # In float32, so that times are rounded as the models were trained.
    cells[:, 0] = (cells[:, 0] * torch.tensor(interval, dtype=torch.float32)).long()
    return cells


def _grid(sizes: tuple[int, ...], axis: Callable[[int], Tensor]) -> Tensor:
    for size in sizes:
        check_count("each size", size)
    if not sizes:
        raise ValueError("a grid needs the size of at least one axis, got none")
    axes = torch.meshgrid(*map(axis, sizes), indexing="ij")
    return torch.stack(axes, dim=-1).flatten(0, -2)
