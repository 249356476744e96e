"""Inverse frequencies and wavelengths: how fast each clock hand turns.

A bank of clock hands encodes a position: at position m, hand i stands at the
angle m * inv_freq[i]. Built in lessons 02 and 08.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["inverse_frequencies", "wavelengths"]


def inverse_frequencies(
    rotary_dim: int,
    base: float = 10_000.0,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Angle per token of each pair of features: ``base ** (-2i / rotary_dim)``.

    Parameters
    ----------
    rotary_dim
        Number of features that are rotated; even. Pair i has two of them.
    base
        Sets the slowest hand. Model configurations call it ``rope_theta``.

    Returns
    -------
    Tensor
        Shape ``(rotary_dim / 2,)``, float64, radians per token, fastest first.

    Raises
    ------
    TypeError, ValueError
        If ``rotary_dim`` is not a positive even integer, or ``base`` is not a
        positive finite number.

    Source: Su et al., RoFormer (2104.09864), equation 15. Lessons 02 and 08.

    >>> inverse_frequencies(8)
    tensor([1.0000, 0.1000, 0.0100, 0.0010], dtype=torch.float64)
    """
    check_rotary_dim(rotary_dim)
    check_base(base)
    pair = torch.arange(rotary_dim // 2, dtype=torch.float64, device=device)
    return float(base) ** (-2.0 * pair / rotary_dim)


def wavelengths(inv_freq: Tensor) -> Tensor:
    """Tokens until each hand is back where it started: ``2 pi / inv_freq``.

    ``inv_freq`` has shape ``(rotary_dim / 2,)``, in radians per token; so has
    the result, in tokens. A hand that never turns has an infinite wavelength.
    Lesson 08.

    >>> wavelengths(inverse_frequencies(4)).round()
    tensor([  6., 628.], dtype=torch.float64)
    """
    return 2 * math.pi / inv_freq


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
