"""Positions and frequencies on several axes: images, video, and text beside them.

One rule serves them all. A token has one position on each axis, and hand i turns by
each of them at its own speed: angle_i = sum over axes of position_a * inv_freq[a, i].
The kinds differ only in what ``inv_freq`` ``(axes, r/2)`` looks like. Give such a
table to ``RotaryEmbedding(head_dim, inv_freq=...)`` and the positions to each call.
Built in lesson 17.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rope_teach.checks import check_count, check_rotary_dim

__all__ = [
    "axial_frequencies",
    "constant_frequencies",
    "grid_positions",
    "mixed_frequencies",
    "multimodal_frequencies",
    "multimodal_positions",
    "pixel_frequencies",
    "pixel_positions",
]


# --------------------------------------------------------------------- positions


def grid_positions(*sizes: int) -> Tensor:
    """Row and column (and so on) of every cell of a grid, the last axis fastest.

    ``sizes``, cells an axis, give ``(product of sizes, axes)`` int64: the positions
    of an image that was flattened row by row. A class token, which has no cell, can
    be given zeros: they turn nothing. Raises ``TypeError`` or ``ValueError`` if a size
    is not a positive int. Lesson 17.

    >>> grid_positions(2, 2)
    tensor([[0, 0],
            [0, 1],
            [1, 0],
            [1, 1]])
    """
    _check_sizes(sizes)
    return _grid([torch.arange(size) for size in sizes])


def pixel_positions(*sizes: int) -> Tensor:
    """As :func:`grid_positions`, but every axis runs from -1 to 1, in float64.

    A finer grid then puts more cells into the same square, so that positions never
    leave the trained range. Pairs with :func:`pixel_frequencies`. Lesson 17.

    >>> pixel_positions(3).flatten()
    tensor([-1.,  0.,  1.], dtype=torch.float64)
    """
    _check_sizes(sizes)
    return _grid([torch.linspace(-1, 1, size, dtype=torch.float64) for size in sizes])


def multimodal_positions(parts: Sequence[int | tuple[int, int, int]]) -> Tensor:
    """Time, height and width of each token where text and images follow each other.

    ``parts`` has an int, tokens of text, or a ``(time, height, width)``, cells of an
    image (time 1) or video. Text counts on all three axes at once, so that it is
    rotated as by plain RoPE. An image starts where the text stands, and the text
    after it one past the largest position used. Returns ``(seq, 3)`` int64.

    Source: Qwen2-VL (2409.12191), section 2.1. Lesson 17.

    >>> multimodal_positions([1, (1, 2, 2), 1]).T
    tensor([[0, 1, 1, 1, 1, 3],
            [0, 1, 1, 2, 2, 3],
            [0, 1, 2, 1, 2, 3]])
    """
    found, start = [torch.empty(0, 3, dtype=torch.long)], 0
    for part in parts:
        if isinstance(part, tuple):
            if len(part) != 3:
                raise ValueError(
                    f"an image or video is (time, height, width), got {part}"
                )
            found.append(start + grid_positions(*part))
        else:
            check_count("tokens of text", part)
            found.append(start + torch.arange(part).unsqueeze(1).expand(-1, 3))
        start = int(found[-1].max()) + 1
    return torch.cat(found)


# ------------------------------------------------- frequencies: (axes, r/2) float64


def axial_frequencies(*inv_freqs: Tensor) -> Tensor:
    """Rows of clocks, one an axis: each hand listens to one axis alone.

    ``inv_freqs``, one ``(r_a/2,)`` for each axis, give ``(axes, sum of r_a/2)`` with
    zeros where a hand belongs to another axis. Raises ``ValueError`` without any.
    ``RotaryEmbedding(head_dim, axes=2, base=100)`` builds the one with equal shares.

    Source: the axial form of RoPE for images, 2403.13298, section 3.2; its models
    have the base 100. Lesson 17.

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


def pixel_frequencies(rotary_dim: int, max_freq: float = 10.0) -> Tensor:
    """Frequencies in equal steps, from pi to ``max_freq / 2`` times pi: ``(r/2,)``.

    ``rotary_dim`` counts the features of one axis: give one result for each axis to
    :func:`axial_frequencies`. With positions from -1 to 1 the fastest hand turns
    ``max_freq / 2`` times across the picture.

    Source: the ``pixel`` kind of rotary-embedding-torch. Lesson 17.

    >>> pixel_frequencies(4) / torch.pi
    tensor([1., 5.], dtype=torch.float64)
    """
    check_rotary_dim(rotary_dim)
    if not (math.isfinite(max_freq) and max_freq > 0):
        raise ValueError(f"max_freq must be positive and finite, got {max_freq}")
    steps = torch.linspace(1, max_freq / 2, rotary_dim // 2, dtype=torch.float64)
    return math.pi * steps


def constant_frequencies(rotary_dim: int) -> Tensor:
    """All hands at one radian a token: ``(r/2,)``, a start for learning. Lesson 17.

    >>> constant_frequencies(4)
    tensor([1., 1.], dtype=torch.float64)
    """
    check_rotary_dim(rotary_dim)
    return torch.ones(rotary_dim // 2, dtype=torch.float64)


def mixed_frequencies(
    inv_freq: Tensor, axes: int = 2, generator: torch.Generator | None = None
) -> Tensor:
    """Point every hand in a random direction: it turns by a mix of all axes.

    ``inv_freq`` ``(r/2,)`` gives ``(axes, r/2)``: each column has the length that
    ``inv_freq`` says. Meant as the start of learned frequencies:
    ``RotaryEmbedding(head_dim, inv_freq=..., learned=True)``. The paper draws one
    direction a head and gives half of its hands the one at right angles; here every
    hand draws its own, and heads share them.

    Source: RoPE-Mixed, 2403.13298, section 3.2; its models start from the base 10.
    Lesson 17.

    >>> mixed_frequencies(torch.tensor([1.0, 0.1])).norm(dim=0)
    tensor([1.0000, 0.1000], dtype=torch.float64)
    """
    check_count("axes", axes)
    if inv_freq.ndim != 1:
        raise ValueError(f"inv_freq must be (r/2,), got {tuple(inv_freq.shape)}")
    direction = torch.randn(axes, len(inv_freq), generator=generator).double()
    return inv_freq.double() * direction / direction.norm(dim=0)


def multimodal_frequencies(
    inv_freq: Tensor, sections: Sequence[int], interleaved: bool = False
) -> Tensor:
    """Deal the hands of one bank out to the axes: M-RoPE.

    ``inv_freq`` ``(r/2,)`` and ``sections``, hands an axis, which sum to ``r/2``,
    give ``(axes, r/2)``; configurations call the sections ``mrope_section``. The first
    axis gets the fastest hands, the second the next ones, as in Qwen2-VL;
    ``interleaved=True`` deals them in turn, as in Qwen3-VL, and the first axis gets
    what the others leave. Text, whose axes agree, cannot tell.

    Source: Qwen2-VL (2409.12191), section 2.1. Lesson 17.

    >>> multimodal_frequencies(torch.tensor([1.0, 0.1, 0.01]), (1, 1, 1))
    tensor([[1.0000, 0.0000, 0.0000],
            [0.0000, 0.1000, 0.0000],
            [0.0000, 0.0000, 0.0100]], dtype=torch.float64)
    """
    axes, pairs = len(sections), len(inv_freq)
    if not axes or min(sections) < 0 or sum(sections) != pairs:
        raise ValueError(
            f"sections must be hands an axis that sum to r/2 = {pairs}, "
            f"got {tuple(sections)}"
        )
    if interleaved:
        owner = torch.zeros(pairs, dtype=torch.long)
        for axis in range(1, axes):
            owner[axis : axes * sections[axis] : axes] = axis
        if owner.bincount(minlength=axes).tolist() != list(sections):
            raise ValueError(
                f"sections {tuple(sections)} cannot be dealt in turn: no axis may "
                "have more hands than the first"
            )
    else:
        owner = torch.arange(axes).repeat_interleave(torch.tensor(sections))
    return torch.where(owner == torch.arange(axes).unsqueeze(1), inv_freq.double(), 0)


def _grid(axes: list[Tensor]) -> Tensor:
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _check_sizes(sizes: Sequence[int]) -> None:
    if not sizes:
        raise ValueError("a grid needs the size of at least one axis, got none")
    for size in sizes:
        check_count("each size", size)
