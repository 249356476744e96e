"""OpenPPL's operator ``RotaryPositionEmbedding`` of the pmx opset.

Interleaved pairs on ``(batch, seq, heads, head_dim)``. Lesson 20.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rope_teach.checks import check_positions, check_start, without_wrapping
from rope_teach.frequencies import inverse_frequencies
from rope_teach.ops import rotate
from rope_teach.rotation import widest
from rope_teach.tables import cos_sin

__all__ = ["rotary_position_embedding"]


def rotary_position_embedding(
    query: Tensor,
    key: Tensor,
    start_pos: int | Tensor,
    pad_len: Tensor | None = None,
    rotary_dim: int = 0,
    theta: float = 10_000,
    bypass_key: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotate ``query`` and ``key``; token s of sequence b stands at start + s - pad.

    Parameters
    ----------
    query, key
        ``(batch, seq, heads, head_dim)``; the numbers of heads may differ. Floating
        or int8. int8 is rotated in float32, rounded to the nearest (ties to even)
        and kept between -128 and 127.
    start_pos
        Position of the first token, in tokens: an int or a tensor of one integer.
    pad_len
        ``(batch,)``: padding tokens at the left of each sequence (default: none).
    rotary_dim
        Rotated features of each head; 0 means all.
    theta
        The base of the frequencies, ``theta ** (-2i / rotary_dim)``.
    bypass_key
        Return ``key`` itself, untouched.

    Returns
    -------
    tuple of Tensor
        Both in the shape and dtype of their inputs.

    Raises
    ------
    TypeError, ValueError
        If a tensor is neither floating nor int8, shapes do not fit each other, or
        ``rotary_dim`` is odd or larger than the head.

    Notes
    -----
    Ours differs from the original where that is wrong. Its int8 drops the fraction and
    wraps: a rotated pair can grow by the square root of two, and 165.8 becomes -91.
    Its angles are float32, wrong by 0.05 rad at position one million. The attributes
    that its later versions add for longer context (``scaling_type`` and others) have
    their place in ``RotaryEmbedding(scaling=...)``.

    Source: `docs/operators/RotaryPositionEmbedding.md` of openppl-public/ppl.pmx.
    Lesson 20.

    Examples
    --------
    >>> query = key = torch.tensor([[[[100, 0, 100, 0]]]], dtype=torch.int8)
    >>> rotary_position_embedding(query, key, start_pos=1)[0]
    tensor([[[[ 54,  84, 100,   1]]]], dtype=torch.int8)
    """
    _check(query, key, pad_len)
    start = _start(start_pos)
    start = start.to(query.device) if isinstance(start, Tensor) else start
    positions = start + torch.arange(query.shape[1], device=query.device)
    if pad_len is not None:
        positions = positions - without_wrapping(pad_len).to(query.device).unsqueeze(1)
    inv_freq = inverse_frequencies(rotary_dim or query.shape[-1], theta)
    wide = widest(query, key)
    cos, sin = cos_sin(positions, inv_freq, wide)
    rotated = _rotate(query, cos, sin)
    return rotated, key if bypass_key else _rotate(key, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if x.dtype != torch.int8:
        return rotate(x, cos, sin, "interleaved", "bshd")
    exact = rotate(x.float(), cos, sin, "interleaved", "bshd")
    return exact.round().clamp(-128, 127).to(torch.int8)


def _start(start_pos: int | Tensor) -> int | Tensor:
    if not isinstance(start_pos, Tensor):
        check_start("start_pos", start_pos, "an int or a tensor of one integer")
        return start_pos
    if (
        start_pos.numel() != 1
        or start_pos.is_floating_point()
        or start_pos.is_complex()
    ):
        raise ValueError(
            "start_pos must be one integer, the same for all sequences, got shape "
            f"{tuple(start_pos.shape)} of {start_pos.dtype}; what differs between "
            "sequences belongs to pad_len"
        )
    return start_pos.reshape(()).long()


def _check(query: Tensor, key: Tensor, pad_len: Tensor | None) -> None:
    for name, x in (("query", query), ("key", key)):
        if not isinstance(x, Tensor) or not (
            x.is_floating_point() or x.dtype == torch.int8
        ):
            raise TypeError(
                f"{name} must be a floating-point or int8 tensor, got "
                f"{getattr(x, 'dtype', type(x).__name__)}"
            )
        if x.ndim != 4:
            raise ValueError(
                f"{name} must be (batch, seq, heads, head_dim), got {tuple(x.shape)}"
            )
    same = (0, 1, 3)
    if [query.shape[axis] for axis in same] != [key.shape[axis] for axis in same]:
        raise ValueError(
            "query and key may differ in heads (axis 2) alone, got "
            f"{tuple(query.shape)} and {tuple(key.shape)}"
        )
    if pad_len is not None:
        check_positions("pad_len", pad_len)
        if pad_len.shape != query.shape[:1]:
            raise ValueError(
                f"pad_len must have shape (batch,) = ({query.shape[0]},), got "
                f"{tuple(pad_len.shape)}"
            )
