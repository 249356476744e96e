"""The functions of rotary-embedding-torch: they apply angles, or join them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rope_teach.checks import check_floating, check_start
from rope_teach.dialects._angles import apply_angles
from rope_teach.pairing import full_table


def apply_rotary_emb(
    freqs: Tensor,
    t: Tensor,
    start_index: int = 0,
    scale: float | Tensor = 1.0,
    seq_dim: int = -2,
    freqs_seq_dim: int | None = None,
) -> Tensor:
    """Rotate features ``start_index`` to ``start_index + r`` of ``t``.

    Parameters
    ----------
    freqs
        Angles ``(..., r)``, each twice in a row: ``(seq, r)``, or with the leading
        axes of ``t``. If there are more than ``t`` has tokens, the last ones count.
    t
        ``(..., seq, features)``; or with the sequence on axis ``seq_dim``.
    scale
        A number, or xPos's scale in the shape of ``freqs``.
    freqs_seq_dim
        The axis of ``freqs`` that runs along the sequence (default: as in ``t``).

    Returns
    -------
    Tensor
        Like ``t``, in its dtype, rounded once.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, the two angles of a pair differ, or ``t``'s dtype cannot
        hold the scale.

    Notes
    -----
    Ours lays ``freqs`` along ``seq_dim``. The original lays ``(seq, r)`` along the last
    axis but one, which are the heads in ``(batch, seq, heads, features)``; and it does
    not cut ``scale`` where it cuts ``freqs``. Lesson 20.

    Examples
    --------
    >>> freqs = torch.tensor([[0.0, 0.0], [torch.pi / 2, torch.pi / 2]])
    >>> t = torch.tensor([[1.0, 0.0, 5.0], [1.0, 0.0, 5.0]])
    >>> apply_rotary_emb(freqs, t).round().abs()
    tensor([[1., 0., 5.],
            [0., 1., 5.]])
    """
    check_start("start_index", start_index)
    check_floating("t", t)
    check_floating("freqs", freqs)
    if start_index < 0 or start_index + freqs.shape[-1] > t.shape[-1]:
        raise ValueError(
            f"freqs of shape {tuple(freqs.shape)} and start_index={start_index} do not "
            f"fit the {t.shape[-1]} features of t, which is {tuple(t.shape)}"
        )
    left, rest = t[..., :start_index], t[..., start_index:]
    rest = apply_angles(freqs, rest, "interleaved", scale, seq_dim, freqs_seq_dim)
    return torch.cat([left, rest], dim=-1) if start_index else rest


def apply_learned_rotations(
    rotations: Tensor,
    t: Tensor,
    start_index: int = 0,
    freq_ranges: Tensor | None = None,
) -> Tensor:
    """Rotate ``t`` by angles ``(..., n)`` that a network gives, one a pair.

    With ``freq_ranges`` ``(f,)`` each angle makes ``f``, itself times each of them.
    Otherwise as :func:`apply_rotary_emb`. Lesson 20.
    """
    if freq_ranges is not None:
        rotations = (rotations.unsqueeze(-1) * freq_ranges).flatten(-2)
    rotations = full_table(rotations, "interleaved")
    return apply_rotary_emb(rotations, t, start_index)


def broadcat(tensors: Sequence[Tensor], dim: int = -1) -> Tensor:
    """Join tensors along ``dim``; along every other axis they broadcast.

    Since version 0.4 the original broadcasts ``dim`` too: it refuses unequal widths,
    and repeats a tensor that is one wide. Lesson 20.

    >>> rows, columns = torch.zeros(4, 1, 3), torch.ones(1, 5, 2)
    >>> broadcat((rows, columns)).shape
    torch.Size([4, 5, 5])
    """
    if not tensors:
        raise ValueError("broadcat needs at least one tensor, got none")
    ranks = max(x.ndim for x in tensors)
    full = [x[(None,) * (ranks - x.ndim)].movedim(dim, -1) for x in tensors]
    lead = torch.broadcast_shapes(*(x.shape[:-1] for x in full))
    joined = torch.cat([x.expand(*lead, x.shape[-1]) for x in full], dim=-1)
    return joined.movedim(-1, dim)
