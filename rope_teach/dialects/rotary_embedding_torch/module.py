"""The module of rotary-embedding-torch: angles, and the rotation by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rope_teach.axes import grid_positions, pixel_frequencies, pixel_positions
from rope_teach.checks import check_choice, check_floating, check_rotary_dim
from rope_teach.dialects._angles import (
    check_at_least_one,
    drop_saved,
    language_frequencies,
)
from rope_teach.dialects.rotary_embedding_torch.functions import (
    apply_rotary_emb,
    broadcat,
)
from rope_teach.pairing import full_table
from rope_teach.tables import angles, xpos_scale


class RotaryEmbedding(nn.Module):
    """Angles for positions, and the rotation of queries and keys by them.

    Parameters
    ----------
    dim
        Rotated features of each head; wider heads keep the rest as it is.
    custom_freqs
        ``(dim/2,)`` in place of all below, in radians a position.
    freqs_for
        ``"lang"``: ``theta ** (-2i / dim)``. ``"pixel"``: equal steps from pi to
        ``max_freq / 2`` times pi. ``"constant"``: ``num_freqs`` ones.
    theta, theta_rescale_factor
        The base, and by how much to stretch the slowest wave (NTK-aware).
    learned_freq
        Make the frequencies, ``freqs``, a parameter. It stays float32.
    use_xpos, xpos_scale_base, xpos_origin
        xPos, tokens over which it fades, and the position where its scale is 1.
    interpolate_factor
        What positions are divided by.
    seq_before_head_dim
        Tensors are ``(batch, seq, heads, features)``.
    cache_if_possible, cache_max_seq_len
        Taken and not used: nothing is kept between calls.

    Raises
    ------
    TypeError, ValueError
        If ``dim`` is odd, a factor is below 1, a base is not positive, a name is
        unknown, or ``custom_freqs`` are not a vector.

    Notes
    -----
    Ours differs from the original 0.9.1 where that is wrong:

    - It counts positions in the dtype of ``t``, where bfloat16 cannot tell 256 from
      257; what such a call leaves in its cache serves float32 calls. Ours are exact.
    - Its cache knows lengths only: a grid's axis with an offset, or new positions with
      a known ``seq_len``, get angles that were computed for others.
    - Its xPos is centred on the middle of each call, so that queries do not fit cached
      keys, and one decoding step differs from a full pass. Ours has one origin.
    - ``.half()`` and ``.bfloat16()`` round its frequencies; ours they leave alone.

    What a test of the original may stumble on: calling the module, ``get_seq_pos``,
    ``get_scale`` and ``get_axial_freqs`` give float64 where it gives float32 (compare
    ``.float()``); ``freqs`` is a float64 tensor, and a parameter only if learned, where
    the original's always is one; and there are no ``cached_freqs`` or
    ``cached_scales``. Frequencies that are not learned follow from the arguments and
    are not saved; those in a checkpoint of the original must agree. Lesson 20.

    Examples
    --------
    >>> rope = RotaryEmbedding(dim=32)
    >>> q = rope.rotate_queries_or_keys(torch.randn(1, 8, 1024, 64))
    """

    apply_rotary_emb = staticmethod(apply_rotary_emb)
    freqs: Tensor
    dummy: Tensor

    def __init__(
        self,
        dim: int,
        custom_freqs: Tensor | None = None,
        freqs_for: str = "lang",
        theta: float = 10_000,
        max_freq: float = 10,
        num_freqs: int = 1,
        learned_freq: bool = False,
        use_xpos: bool = False,
        xpos_scale_base: float = 512,
        interpolate_factor: float = 1.0,
        theta_rescale_factor: float = 1.0,
        seq_before_head_dim: bool = False,
        cache_if_possible: bool = True,
        cache_max_seq_len: int = 8192,
        *,
        xpos_origin: float = 0.0,
    ) -> None:
        super().__init__()
        check_rotary_dim(dim, "dim")
        check_choice("freqs_for", freqs_for, ("lang", "pixel", "constant"))
        check_at_least_one("interpolate_factor", interpolate_factor)
        with torch.device("cpu"):
            if custom_freqs is not None:
                check_floating("custom_freqs", custom_freqs)
                freqs = custom_freqs.detach().to(torch.float64, copy=True)
            elif freqs_for == "pixel":
                freqs = pixel_frequencies(dim, max_freq)
            elif freqs_for == "constant":
                freqs = torch.ones(num_freqs, dtype=torch.float64)
            else:
                freqs = language_frequencies(
                    dim, theta, "theta_rescale_factor", theta_rescale_factor
                )
        if freqs.ndim != 1 or not freqs.isfinite().all():
            raise ValueError(
                f"custom_freqs must be (r/2,) and finite, got {tuple(freqs.shape)}"
            )
        if use_xpos:
            xpos_scale(torch.zeros(1), dim, xpos_scale_base)  # checks it
            if len(freqs) != dim // 2:
                raise ValueError(
                    f"xPos needs dim/2 = {dim // 2} freqs, got {len(freqs)}"
                )
        self.dim, self.freqs_for, self.learned_freq = dim, freqs_for, learned_freq
        self.use_xpos, self.scale_base = use_xpos, xpos_scale_base
        self.xpos_origin, self.interpolate_factor = xpos_origin, interpolate_factor
        self.default_seq_dim = -3 if seq_before_head_dim else -2
        if learned_freq:
            freqs = freqs.to(torch.get_default_device(), torch.float32)
        self.freqs = nn.Parameter(freqs) if learned_freq else freqs
        self.register_buffer("dummy", torch.empty(0), persistent=False)  # knows where

    # ------------------------------------------------------------ angles and scales

    def forward(
        self,
        t: Tensor | Callable[[], Tensor],
        seq_len: int | None = None,
        offset: float = 0,
        cache_key: object = None,
    ) -> Tensor:
        """Angles of positions ``t`` ``(...)``: ``(..., r)`` float64, each twice.

        ``t`` alone says where they are; it may be a function that makes them, as the
        oldest versions had it. What named a row of the original's caches, ``seq_len``,
        ``offset`` and the older ``cache_key``, is taken and not used.
        """
        positions = t() if callable(t) else t
        return full_table(angles(positions, self.freqs), "interleaved")

    def get_seq_pos(
        self,
        seq_len: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        offset: float = 0,
    ) -> Tensor:
        """Positions from ``offset`` on, over ``interpolate_factor``: ``(seq_len,)``.

        float64 unless ``dtype`` is given: 16 bits hold few positions.
        """
        if isinstance(offset, Tensor) and offset.ndim:
            raise ValueError(
                f"offset must be one number, got shape {tuple(offset.shape)}; for "
                "positions that differ, call the module on them and apply_rotary_emb"
            )
        device = self._exact(torch.device(device or self.device))
        positions = torch.arange(seq_len, dtype=dtype or torch.float64, device=device)
        return (positions + offset) / self.interpolate_factor

    def get_scale(
        self,
        t: Tensor | Callable[[], Tensor],
        seq_len: int | None = None,
        offset: float = 0,
        cache_key: object = None,
    ) -> Tensor:
        """xPos's scale of queries at positions ``t`` ``(seq,)``: ``(seq, dim)``.

        float64. Keys are scaled by its inverse. Other arguments as in :meth:`forward`.
        """
        if not self.use_xpos:
            raise ValueError("there is no scale without use_xpos=True")
        positions = t() if callable(t) else t
        scale = xpos_scale(positions, self.dim, self.scale_base, self.xpos_origin)
        return full_table(scale, "interleaved")

    def get_axial_freqs(
        self, *dims: int, offsets: Sequence[float] | Tensor | None = None
    ) -> Tensor:
        """Angles of every cell of a grid: ``(*dims, axes * r)``, one part an axis.

        Positions are 0, 1, 2..., or from -1 to 1 for ``"pixel"``, plus the axis's entry
        of ``offsets``.
        """
        offsets = [0.0] * len(dims) if offsets is None else offsets
        if not dims or len(offsets) != len(dims):
            raise ValueError(
                "get_axial_freqs needs the size of at least one axis, and offsets, if "
                f"any, for each; got sizes {dims} and {len(offsets)} offsets"
            )
        make = pixel_positions if self.freqs_for == "pixel" else grid_positions
        parts = []
        for axis, (size, offset) in enumerate(zip(dims, offsets, strict=True)):
            positions = make(size).flatten().to(self._exact(self.device)) + offset
            others = [None] * (len(dims) - 1 - axis)
            cells = (..., *[None] * axis, slice(None), *others, slice(None))
            parts.append(self(positions)[cells])
        return broadcat(parts)

    # ----------------------------------------------------------- queries and keys

    def rotate_queries_or_keys(
        self,
        t: Tensor,
        seq_dim: int | None = None,
        offset: float = 0,
        scale: float | Tensor | None = None,
    ) -> Tensor:
        """Rotate ``t`` ``(..., seq, features)``, whose first token is at ``offset``.

        ``seq_dim`` names another axis. xPos needs the ``scale`` of this one of the two.
        """
        if self.use_xpos and scale is None:
            raise ValueError(
                "xPos scales queries and keys apart: use rotate_queries_and_keys, or "
                "give scale, get_scale(positions) for queries and 1 over it for keys"
            )
        seq_dim, length = self._sequence(t, seq_dim)
        positions = self.get_seq_pos(length, t.device, offset=offset)
        scale = 1.0 if scale is None else scale
        return apply_rotary_emb(self(positions), t, scale=scale, seq_dim=seq_dim)

    def rotate_queries_and_keys(
        self, q: Tensor, k: Tensor, seq_dim: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rotate ``q`` and ``k``, both from position 0, and scale them for xPos."""
        lengths = [self._sequence(x, seq_dim)[1] for x in (q, k)]
        if lengths[0] != lengths[1]:
            raise ValueError(
                f"q has {lengths[0]} tokens and k has {lengths[1]}: if the keys are "
                "cached, use rotate_queries_with_cached_keys"
            )
        return self.rotate_queries_with_cached_keys(q, k, seq_dim)

    def rotate_queries_with_cached_keys(
        self, q: Tensor, k: Tensor, seq_dim: int | None = None, offset: float = 0
    ) -> tuple[Tensor, Tensor]:
        """Rotate all of ``k`` from position 0, and ``q`` as the last of its tokens.

        ``k`` are the keys of the cache, not yet rotated, with the new ones. ``offset``
        moves the queries alone.
        """
        q_len, k_len = (self._sequence(x, seq_dim)[1] for x in (q, k))
        if q_len > k_len:
            raise ValueError(f"q has {q_len} tokens, more than k, which has {k_len}")
        offset = k_len - q_len + offset
        q_scale = k_scale = None
        if self.use_xpos:
            q_scale = self.get_scale(self.get_seq_pos(q_len, q.device, offset=offset))
            k_scale = 1 / self.get_scale(self.get_seq_pos(k_len, k.device))
        return (
            self.rotate_queries_or_keys(q, seq_dim, offset, q_scale),
            self.rotate_queries_or_keys(k, seq_dim, 0, k_scale),
        )

    # ----------------------------------------------------------------- the module

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return self.dummy.device

    @staticmethod
    def _exact(device: torch.device) -> torch.device:
        """Where to compute for ``device``: the CPU for MPS, which has no float64."""
        return torch.device("cpu") if device.type == "mps" else device

    def _sequence(self, t: Tensor, seq_dim: int | None) -> tuple[int, int]:
        """The sequence's axis of ``t``, and its length."""
        check_floating("t", t)
        seq_dim = self.default_seq_dim if seq_dim is None else seq_dim
        if not -t.ndim <= seq_dim < t.ndim:
            raise ValueError(f"t of shape {tuple(t.shape)} has no axis {seq_dim}")
        return seq_dim, t.shape[seq_dim]

    def _apply(self, fn: Any, recurse: bool = True) -> RotaryEmbedding:
        """Follow ``.to(device)``; a change of dtype never touches the frequencies."""

        def move(x: Tensor) -> Tensor:
            moved: Tensor = fn(x)
            return moved if moved.dtype == x.dtype else x.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *more: Any
    ) -> None:
        if not self.learned_freq:
            drop_saved(state_dict, f"{prefix}freqs", self.freqs, more[-1])
        super()._load_from_state_dict(state_dict, prefix, *more)
