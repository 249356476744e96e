"""Every guard of an argument: names it, says what came and what was expected."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Pairing = Literal["interleaved", "half"]
Layout = Literal["bhsd", "bshd"]


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


def check_rotary_dim(rotary_dim: int, name: str = "rotary_dim") -> None:
    """Raise unless ``rotary_dim`` is a positive even integer."""
    if isinstance(rotary_dim, bool) or not isinstance(rotary_dim, int):
        raise TypeError(
            f"{name} must be an int, got {type(rotary_dim).__name__} ({rotary_dim!r})"
        )
    if rotary_dim <= 0 or rotary_dim % 2:
        raise ValueError(
            f"{name} must be even and positive, because features are rotated in "
            f"pairs; got {rotary_dim}"
        )


def check_count(name: str, value: int) -> None:
    """Raise unless ``value`` is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an int, got {type(value).__name__} ({value!r})"
        )
    if value < 1:
        raise ValueError(f"{name} must be positive, got {value}")


def check_base(base: float) -> None:
    """Raise unless ``base`` is a positive finite number."""
    if isinstance(base, bool) or not isinstance(base, (int, float)):
        raise TypeError(f"base must be a number, got {type(base).__name__} ({base!r})")
    if not (math.isfinite(base) and base > 0):
        raise ValueError(f"base must be positive and finite, got {base}")


def check_factor(factor: float) -> None:
    """Raise ``ValueError`` unless ``factor`` is a finite number of at least 1."""
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(f"factor must be finite and at least 1, got {factor}")


def check_embeddings(
    x: Tensor, dim: int, start: int, positions: Tensor | None = None
) -> None:
    """Raise unless ``x`` is floating ``(..., seq, dim)`` and its positions fit it."""
    check_floating("x", x)
    if x.ndim < 2 or x.shape[-1] != dim:
        raise ValueError(
            f"x must be (batch, seq, dim) with dim={dim}, got {tuple(x.shape)}"
        )
    check_start("start", start)
    if positions is None:
        return
    check_positions("positions", positions)
    if start != 0:
        raise ValueError("give positions, or start, not both")
    if positions.shape not in (x.shape[-2:-1], x.shape[:-1]):
        raise ValueError(
            f"positions must be (seq,) or (batch, seq) for x of shape "
            f"{tuple(x.shape)}, got {tuple(positions.shape)}"
        )


def check_mask(mask: Tensor, shape: tuple[int, int, int, int]) -> None:
    """Raise unless ``mask`` is boolean and broadcasts to ``shape``."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}")
    padded = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    if len(padded) > 4 or any(
        got not in (1, size) for got, size in zip(padded, shape, strict=True)
    ):
        raise ValueError(
            f"mask must broadcast to (batch, heads, queries, keys) = {shape}, got "
            f"{tuple(mask.shape)}; cached tokens are keys too"
        )


def check_divides(name: str, whole: int, part_name: str, part: int) -> None:
    """Raise ``ValueError`` unless ``whole`` divides into ``part`` equal parts."""
    for label, size in ((name, whole), (part_name, part)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{label} must be a positive int, got {size!r}")
    if whole % part:
        raise ValueError(
            f"{name}={whole} does not divide into {part_name}={part} equal parts"
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
