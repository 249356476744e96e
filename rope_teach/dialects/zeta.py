"""kyegomez/zeta's ``RotaryEmbedding`` and ``XPOS``, and what applies their angles.

Two pairings. ``RotaryEmbedding`` is half: ``zeta.nn`` exports the module, and what
applies it lies beside it, in ``zeta/nn/embeddings/rope.py``, and again in
``zeta/structs/transformer.py``. ``XPOS``, which zeta's attention uses, is interleaved.
Lesson 20.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rope_teach.checks import check_floating, check_rotary_dim, check_start
from rope_teach.dialects._angles import (
    apply_angles,
    check_at_least_one,
    drop_saved,
    language_frequencies,
)
from rope_teach.frequencies import inverse_frequencies
from rope_teach.pairing import full_table
from rope_teach.tables import angles, xpos_scale

__all__ = ["XPOS", "RotaryEmbedding", "apply_rotary_pos_emb", "rotate_half"]


class RotaryEmbedding(nn.Module):
    """Angles, and the scale of xPos, for positions 0 to ``seq_len - 1``.

    Parameters
    ----------
    dim
        Rotated features of each head; even.
    use_xpos
        Let scores fade with the distance (xPos): return a scale beside the angles.
    scale_base
        Tokens over which they fade.
    interpolation_factor
        What positions are divided by for the angles (position interpolation).
    base, base_rescale_factor
        The base of the frequencies, and by how much to stretch the slowest wave: the
        base becomes ``base * base_rescale_factor ** (dim / (dim - 2))`` (NTK-aware).
    xpos_origin
        The position whose scale is 1, one for all calls.

    Raises
    ------
    TypeError, ValueError
        If ``dim`` is odd, a factor is below 1, or a base is not positive.

    Notes
    -----
    Ours differs from the original 2.8.8 where that is wrong. It centres xPos on the
    middle of each call, so that a key cached at one length does not fit a query of
    another. Its frequencies are a buffer that ``.bfloat16()`` rounds, together with the
    positions. It cannot be built for ``dim=2``, and makes 64 angles for ``dim=63``.
    Here angles are float64, and frequencies follow from the arguments: they are not
    saved, and those in a checkpoint of the original must agree.

    Lesson 20.

    Examples
    --------
    >>> freqs, scale = RotaryEmbedding(dim=64)(seq_len=10, device="cpu")
    >>> freqs.shape, scale
    (torch.Size([10, 64]), 1.0)
    """

    def __init__(
        self,
        dim: int,
        use_xpos: bool = False,
        scale_base: float = 512,
        interpolation_factor: float = 1.0,
        base: float = 10_000,
        base_rescale_factor: float = 1.0,
        *,
        xpos_origin: float = 0.0,
    ) -> None:
        super().__init__()
        check_rotary_dim(dim, "dim")
        check_at_least_one("interpolation_factor", interpolation_factor)
        xpos_scale(torch.zeros(1), dim, scale_base)  # checks it
        with torch.device("cpu"):
            self.inv_freq = language_frequencies(
                dim, base, "base_rescale_factor", base_rescale_factor
            )
        self.dim, self.use_xpos, self.scale_base = dim, use_xpos, scale_base
        self.interpolation_factor, self.xpos_origin = interpolation_factor, xpos_origin

    def forward(
        self, seq_len: int, device: torch.device | str | None = None
    ) -> tuple[Tensor, float | Tensor]:
        """Angles ``(seq_len, dim)``, float64, all of them twice; and the scale.

        The scale is 1.0 without xPos, else ``(seq_len, dim)``: apply it to queries, and
        1 over it to keys.
        """
        check_start("seq_len", seq_len)
        if seq_len < 0:
            raise ValueError(f"seq_len must not be negative, got {seq_len}")
        positions = torch.arange(seq_len, device=device)
        angle = angles(positions, self.inv_freq / self.interpolation_factor)
        freqs = full_table(angle, "half")
        if not self.use_xpos:
            return freqs, 1.0
        scale = xpos_scale(positions, self.dim, self.scale_base, self.xpos_origin)
        return freqs, full_table(scale, "half")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *more: Any
    ) -> None:
        drop_saved(state_dict, f"{prefix}inv_freq", self.inv_freq, more[-1])
        if self.use_xpos:
            zeta = xpos_scale(
                torch.tensor([self.scale_base]), self.dim, self.scale_base
            )
            drop_saved(state_dict, f"{prefix}scale", zeta[0], more[-1])
        super()._load_from_state_dict(state_dict, prefix, *more)


class XPOS(nn.Module):
    """Rotate interleaved pairs, and scale them by xPos.

    Parameters
    ----------
    head_dim
        Features of each head, all rotated; even. The base is 10,000.
    scale_base
        Tokens over which scores fade.
    xpos_origin
        The position whose scale is 1, one for all calls.

    Raises
    ------
    TypeError, ValueError
        If ``head_dim`` is odd or ``scale_base`` not positive.

    Notes
    -----
    Ours differs from the original 2.8.8, which is torchscale's, where that is wrong. It
    centres the scale on the middle of each call, ``ceil((length + offset) / 2)``: give
    that as ``xpos_origin`` to have its values. It computes angles in float32, and
    returns float32 for 16-bit ``x``. Here the scale follows from the arguments: it is
    not saved, and the one in a checkpoint of the original must agree. Lesson 20.

    Examples
    --------
    >>> xpos = XPOS(64)
    >>> q, k = torch.randn(2, 3, 10, 64)
    >>> q, k = xpos(q), xpos(k, downscale=True)
    """

    def __init__(
        self, head_dim: int, scale_base: float = 512, *, xpos_origin: float = 0.0
    ) -> None:
        super().__init__()
        check_rotary_dim(head_dim, "head_dim")
        xpos_scale(torch.zeros(1), head_dim, scale_base)  # checks it
        with torch.device("cpu"):
            self.inv_freq = inverse_frequencies(head_dim)
        self.head_dim, self.scale_base = head_dim, scale_base
        self.xpos_origin = xpos_origin

    def forward(self, x: Tensor, offset: int = 0, downscale: bool = False) -> Tensor:
        """Rotate ``x`` ``(batch, seq, head_dim)``, whose first token is at ``offset``.

        ``downscale`` is for keys: it divides by the scale that queries are multiplied
        by. Returns ``x``'s shape and dtype, rounded once.
        """
        check_floating("x", x)
        check_start("offset", offset)
        if x.ndim != 3 or x.shape[-1] != self.head_dim:
            raise ValueError(
                f"x must be (batch, seq, head_dim={self.head_dim}), got "
                f"{tuple(x.shape)}"
            )
        positions = torch.arange(offset, offset + x.shape[1], device=x.device)
        scale = xpos_scale(positions, self.head_dim, self.scale_base, self.xpos_origin)
        scale = full_table(1 / scale if downscale else scale, "interleaved")
        freqs = full_table(angles(positions, self.inv_freq), "interleaved")
        return apply_angles(freqs, x, "interleaved", scale)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *more: Any
    ) -> None:
        zeta = xpos_scale(
            torch.tensor([self.scale_base]), self.head_dim, self.scale_base
        )
        drop_saved(state_dict, f"{prefix}scale", zeta[0], more[-1])
        super()._load_from_state_dict(state_dict, prefix, *more)


def apply_rotary_pos_emb(t: Tensor, freqs: Tensor, scale: float | Tensor = 1) -> Tensor:
    """Rotate the first features of ``t`` by angles ``freqs``, and scale them.

    Parameters
    ----------
    t
        ``(..., seq, features)``.
    freqs
        ``(length, r)`` as :class:`RotaryEmbedding` gives them; the last ``seq`` count.
    scale
        A number, or xPos's scale: as it is for queries, 1 over it for keys.

    Returns
    -------
    Tensor
        Like ``t``, in its dtype, rounded once.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, the angles belong to another pairing, or ``t``'s dtype
        cannot hold the scale.

    Notes
    -----
    The original cuts ``freqs`` to the last ``seq`` but not ``scale``, so that with xPos
    one token in gives ``length`` tokens out; it returns float32 for 16-bit ``t``, and
    heads may not be wider than ``freqs``. ``zeta.nn`` exports another function of this
    name, which takes sin and cos. Lesson 20.

    Examples
    --------
    >>> q, k = torch.randn(2, 1, 8, 10, 64)
    >>> freqs, scale = RotaryEmbedding(64, use_xpos=True)(10, "cpu")
    >>> q = apply_rotary_pos_emb(q, freqs, scale)
    >>> k = apply_rotary_pos_emb(k, freqs, 1 / scale)
    """
    return apply_angles(freqs, t, "half", scale)


def rotate_half(x: Tensor) -> Tensor:
    """Turn each pair by a quarter: halves ``(a, b)`` of the last axis to ``(-b, a)``.

    The original in ``embeddings`` splits the wrong axis: it raises for every width but
    4, and there it turns nothing by a quarter. The one in ``structs`` is right.
    Lesson 20.

    >>> rotate_half(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([-3., -4.,  1.,  2.])
    """
    check_floating("x", x)
    check_rotary_dim(x.shape[-1], "the width of x")
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)
