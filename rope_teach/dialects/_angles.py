"""What zeta and rotary_embedding_torch share: they hand out angles as wide as a head.

Each angle stands twice, once for either feature of its pair, and an xPos scale beside
it likewise. Lesson 20.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rope_teach.checks import Pairing, check_floating
from rope_teach.frequencies import inverse_frequencies, ntk_aware
from rope_teach.ops import rotate
from rope_teach.pairing import half_table
from rope_teach.tables import held_scale


def language_frequencies(dim: int, base: float, name: str, rescale: float) -> Tensor:
    """``(dim/2,)`` float64; ``rescale``, argument ``name``, raises the base for NTK."""
    check_at_least_one(name, rescale)
    if rescale == 1:
        return inverse_frequencies(dim, base)
    return ntk_aware(dim, base, factor=rescale)[0]


def apply_angles(
    freqs: Tensor,
    t: Tensor,
    pairing: Pairing,
    scale: float | Tensor = 1.0,
    seq_dim: int = -2,
    freqs_seq_dim: int | None = None,
) -> Tensor:
    """Rotate the first features of ``t`` by angles ``(..., r)``, and scale them.

    If there are more angles than tokens along ``seq_dim``, the last ones count.
    Returns ``t``'s shape and dtype.
    """
    check_floating("t", t)
    check_floating("freqs", freqs)
    if not -t.ndim <= seq_dim < t.ndim - 1 or seq_dim == -1:
        raise ValueError(
            f"seq_dim must be an axis before the last of t, which is {tuple(t.shape)}; "
            f"got {seq_dim}"
        )
    seq_axis = seq_dim if seq_dim < 0 else seq_dim - t.ndim
    angle = half_table(freqs, pairing)
    angle = angle.to(torch.promote_types(angle.dtype, torch.float32))
    cos, sin = (_lay(x, t, seq_axis, freqs_seq_dim) for x in (angle.cos(), angle.sin()))
    if isinstance(scale, Tensor):
        if scale.shape[-1:] == freqs.shape[-1:]:
            scale = half_table(scale, pairing)
        scale = _held(_lay(scale, t, seq_axis, freqs_seq_dim), t.dtype)
    wide = torch.promote_types(t.dtype, torch.float32)
    cos, sin = ((x * scale).to(wide).to(t.device) for x in (cos, sin))
    missing = max(4 - t.ndim, 0)  # from four axes on, tables align one by one
    cos, sin = (x[(None,) * (t.ndim + missing - x.ndim)] for x in (cos, sin))
    return rotate(t[(None,) * missing], cos, sin, pairing).reshape(t.shape)


def drop_saved(
    state_dict: dict[str, Any], key: str, exact: Tensor, error_msgs: list[str]
) -> None:
    """Take out what the original saves: here it follows from the arguments.

    Saved in bfloat16 it is off by 0.4 %; by more, it belongs to other arguments.
    """
    saved = state_dict.pop(key, None)
    if saved is None:
        return
    if saved.shape == exact.shape and torch.allclose(
        saved.to(exact), exact, rtol=0.01, atol=0
    ):
        return
    error_msgs.append(
        f"{key} of the checkpoint is not what this module's arguments make: "
        f"{tuple(saved.shape)} from {saved.max():.3g} to {saved.min():.3g}, not "
        f"{tuple(exact.shape)} from {exact.max():.3g} to {exact.min():.3g}"
    )


def check_at_least_one(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number of at least 1."""
    if not (math.isfinite(value) and value >= 1):
        raise ValueError(f"{name} must be finite and at least 1, got {value}")


def _held(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``scale``, if ``dtype`` can hold it and still leave room for features."""
    return held_scale(
        scale,
        dtype,
        lambda bits: (
            f"scale must lie between 2**-{bits} and 2**{bits} for {dtype}, got "
            f"{scale.min():.3g} to {scale.max():.3g}: set xpos_origin amid the "
            "positions that occur, once, or a larger scale base"
        ),
    )


def _lay(table: Tensor, t: Tensor, seq_axis: int, table_axis: int | None) -> Tensor:
    """The last rows of ``table``, one a token, along the sequence axis of ``t``."""
    if table.ndim < 2:
        return table
    given, tokens = tuple(table.shape), t.shape[seq_axis]
    if table_axis is None and table.ndim == 2:
        table_axis = 0
    if table_axis is None and table.ndim >= -seq_axis:
        table_axis = seq_axis
    if table_axis is not None and table.shape[table_axis] > max(tokens, 1):
        table = table.narrow(table_axis, table.shape[table_axis] - tokens, tokens)
    if table.ndim == 2:
        table = table.reshape(table.shape[0], *(1,) * (-2 - seq_axis), table.shape[1])
    pairs = zip(reversed(table.shape[:-1]), reversed(t.shape[:-1]), strict=False)
    if table.ndim > t.ndim or any(size not in (1, other) for size, other in pairs):
        raise ValueError(
            f"a table of shape {given}, counting one column a pair, does not fit t of "
            f"shape {tuple(t.shape)} with {tokens} tokens along axis {seq_axis}"
        )
    return table
