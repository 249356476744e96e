"""RotaryEmbedding: the module that a model calls on its queries and keys."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rope_teach.frequencies import (
    Scaling,
    check_base,
    check_count,
    check_rotary_dim,
    inverse_frequencies,
)
from rope_teach.rotation import (
    Layout,
    Pairing,
    check_choice,
    check_floating,
    check_positions,
    check_start,
    cos_sin,
    rotate,
    rotate_qk,
)

__all__ = ["RotaryEmbedding"]

SMALLEST_TABLE = 2_048
LARGEST_TABLE = 131_072  # positions; beyond, rows are computed when they are needed


class RotaryEmbedding(nn.Module):
    """Rotate queries and keys by their positions (RoPE).

    Parameters
    ----------
    head_dim
        Features of one attention head.
    base
        Sets the slowest frequency; configurations call it ``rope_theta``.
    rotary_dim
        How many leading features are rotated (default: all); even.
    pairing
        ``"interleaved"``: pairs (0, 1)(2, 3)..., as RoFormer, GPT-J, Meta's Llama.
        ``"half"``: pairs (0, r/2)(1, r/2 + 1)..., as GPT-NeoX, Hugging Face's Llama.
        It must be the one that the weights were trained with.
    layout
        ``"bhsd"``: tensors are ``(batch, heads, seq, head_dim)``, as PyTorch's
        attention wants them; ``"bshd"``: ``(batch, seq, heads, head_dim)``.

    There are no parameters and no buffers. Angles are computed in float64, and
    tables are float32 (float64 for float64 inputs) whatever ``.half()``,
    ``.bfloat16()`` or autocast surrounds them. Rows already computed are kept, and
    can never change a result.

    Source: Su et al., RoFormer (2104.09864). Built in lessons 04 to 08.

    >>> rope = RotaryEmbedding(64)
    >>> q, k = torch.randn(1, 8, 10, 64), torch.randn(1, 2, 10, 64)
    >>> q, k = rope(q, k)                                   # positions 0 to 9
    >>> q_next, k_next = rope(q[:, :, :1], k[:, :, :1], start=10)   # one more token
    """

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10_000.0,
        rotary_dim: int | None = None,
        pairing: Pairing = "interleaved",
        layout: Layout = "bhsd",
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        check_count("head_dim", head_dim)
        if rotary_dim is None:
            check_rotary_dim(head_dim, "head_dim")
            rotary_dim = head_dim
        check_rotary_dim(rotary_dim)
        if rotary_dim > head_dim:
            raise ValueError(
                f"rotary_dim must not exceed head_dim={head_dim}, got {rotary_dim}"
            )
        check_base(base)
        check_choice("pairing", pairing, ("interleaved", "half"))
        check_choice("layout", layout, ("bhsd", "bshd"))
        self.head_dim, self.base, self.rotary_dim = head_dim, float(base), rotary_dim
        self.pairing: Pairing = pairing
        self.layout: Layout = layout
        self.scaling = scaling
        self._check_scaling()
        self._seq_axis = -2 if layout == "bhsd" else -3
        self._table = self._build_table(SMALLEST_TABLE, torch.get_default_device())

    @property
    def inv_freq(self) -> Tensor:
        """Radians per token of each pair: ``(rotary_dim / 2,)``, float64."""
        return self._scaled()[0]

    @property
    def attention_factor(self) -> float:
        """By what cos and sin are multiplied: 1, but for some ``scaling`` rules."""
        return self._scaled()[1]

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        positions: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        start: int | Tensor = 0,
        pad_len: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys; both in their own dtype, as new tensors.

        Parameters
        ----------
        q, k
            In the module's layout; the numbers of heads may differ.
        positions
            ``(seq,)`` or ``(batch, seq)``, in tokens: integers or floats, negative
            allowed. A pair ``(q_positions, k_positions)`` when q and k stand at
            different positions. Default: ``start``, ``start + 1``, ...
        start
            Position of the first token: an int, or ``(batch,)``, one a sequence.
        pad_len
            ``(batch,)``: how many padding tokens stand left of each sequence. Its
            first real token then has position ``start``.

        Raises
        ------
        TypeError, ValueError
            If q or k is not floating, does not end in ``head_dim``, or lies on
            another device than its partner; if positions do not fit; if q and k
            differ in length and no pair of positions says where each stands.
        """
        self._check_input("q", q)
        self._check_input("k", k)
        if q.device != k.device:
            raise ValueError(
                f"q and k must be on one device, got {q.device} and {k.device}"
            )
        if isinstance(positions, (tuple, list)):
            if len(positions) != 2:
                raise ValueError(
                    "positions must be a tensor or a pair (q_positions, "
                    f"k_positions), got {len(positions)} items"
                )
            q_positions: Tensor | None = positions[0]
            k_positions: Tensor | None = positions[1]
        else:
            self._check_one_length(q, k)
            q_positions = k_positions = positions
        q_table = self._tables(q, q_positions, start, pad_len)
        shared = (
            q_positions is k_positions
            and q.dtype == k.dtype
            and q.shape[self._seq_axis] == k.shape[self._seq_axis]
        )
        if shared:
            return rotate_qk(q, k, *q_table, self.pairing, self.layout)
        k_table = self._tables(k, k_positions, start, pad_len)
        return self._rotate(q, *q_table), self._rotate(k, *k_table)

    def rotate(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        *,
        start: int | Tensor = 0,
        pad_len: Tensor | None = None,
    ) -> Tensor:
        """Rotate one tensor, as :meth:`forward` rotates each of its two."""
        self._check_input("x", x)
        return self._rotate(x, *self._tables(x, positions, start, pad_len))

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor, first: int) -> Tensor:
        rows = slice(first, first + x.shape[self._seq_axis])
        cos, sin = (cos[rows], sin[rows]) if cos.ndim == 2 else (cos, sin)
        return rotate(x, cos, sin, self.pairing, self.layout)

    def extra_repr(self) -> str:
        return (
            f"head_dim={self.head_dim}, rotary_dim={self.rotary_dim}, "
            f"base={self.base:g}, pairing={self.pairing!r}, layout={self.layout!r}"
            + (f", scaling={self.scaling}" if self.scaling else "")
        )

    # ------------------------------------------------------------------ tables

    def _tables(
        self,
        x: Tensor,
        positions: Tensor | None,
        start: int | Tensor,
        pad_len: Tensor | None,
    ) -> tuple[Tensor, Tensor, int]:
        """Cos and sin for the positions of ``x``, and their first row to use."""
        seq = x.shape[self._seq_axis]
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if positions is None and pad_len is None and not isinstance(start, Tensor):
            check_start("start", start, "an int or a (batch,) tensor")
            kept = self._kept_table(start, start + seq, x, dtype)
            if kept is not None:
                return *kept, start
        if positions is None:
            positions = torch.arange(seq, device=x.device)
            positions = positions + self._per_sequence("start", start, x)
            if pad_len is not None:
                positions = positions - self._per_sequence("pad_len", pad_len, x)
        else:
            if pad_len is not None or isinstance(start, Tensor) or start != 0:
                raise ValueError("give positions, or start and pad_len, not both")
            self._check_positions_fit(positions, x)
        return *self._cos_sin(positions, dtype), 0

    def _cos_sin(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        device = positions.device.type
        inv_freq, factor = self._scaled("cpu" if device == "mps" else positions.device)
        cos, sin = cos_sin(positions, inv_freq, dtype)
        return (cos, sin) if factor == 1 else (cos * factor, sin * factor)

    def _scaled(self, device: torch.device | str | None = None) -> tuple[Tensor, float]:
        """Inverse frequencies and attention factor, by the scaling rule if any."""
        if self.scaling is None:
            inv_freq = inverse_frequencies(self.rotary_dim, self.base, device=device)
            return inv_freq, 1.0
        inv_freq, factor = self.scaling(self.rotary_dim, self.base)
        return inv_freq.to(device=device, dtype=torch.float64), float(factor)

    def _kept_table(
        self, first: int, end: int, x: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor] | None:
        """Return the kept table, grown to have rows ``first`` to ``end``, or None."""
        if first < 0 or end > LARGEST_TABLE or torch.compiler.is_exporting():
            return None
        cos, sin = self._table
        if dtype != cos.dtype or type(x) is not Tensor:  # fake tensors mix with no real
            return None
        if x.device != cos.device or end > cos.shape[0]:
            if inside_a_transform():
                return None
            length = max(SMALLEST_TABLE, 1 << (end - 1).bit_length())
            cos, sin = self._table = self._build_table(length, x.device)
        return cos, sin

    def _build_table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # Outside inference mode, so that training may use rows that inference made.
        with torch.inference_mode(False), torch.no_grad():
            positions = torch.arange(length, device="cpu")
            cos, sin = self._cos_sin(positions, torch.float32)
            return cos.to(device), sin.to(device)

    def _apply(self, fn: Any, recurse: bool = True) -> RotaryEmbedding:
        """Follow ``.to(device)``; a change of dtype never touches the table."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        if device.type != "meta" and device != self._table[0].device:
            self._table = self._build_table(self._table[0].shape[0], device)
        return self

    # ------------------------------------------------------------------ checks

    def _check_scaling(self) -> None:
        if self.scaling is None:
            return
        inv_freq, factor = self.scaling(self.rotary_dim, self.base)
        if inv_freq.shape != (self.rotary_dim // 2,) or not math.isfinite(factor):
            raise ValueError(
                "scaling must return rotary_dim / 2 = "
                f"{self.rotary_dim // 2} inverse frequencies and a finite attention "
                f"factor; it returned shape {tuple(inv_freq.shape)} and {factor}"
            )

    def _check_input(self, name: str, x: Tensor) -> None:
        check_floating(name, x)
        if x.ndim not in (3, 4):
            raise ValueError(
                f"{name} must be (batch, heads, seq, head_dim) in the order of "
                f"layout={self.layout!r}, with or without batch; got {tuple(x.shape)}"
            )
        if x.shape[-1] != self.head_dim:
            raise ValueError(
                f"{name} must end in head_dim={self.head_dim}, got {tuple(x.shape)}"
            )

    def _check_one_length(self, q: Tensor, k: Tensor) -> None:
        q_len, k_len = q.shape[self._seq_axis], k.shape[self._seq_axis]
        if q_len != k_len:
            other = "bshd" if self.layout == "bhsd" else "bhsd"
            raise ValueError(
                f"q has {q_len} positions and k has {k_len} (layout={self.layout!r}). "
                "If that is meant, say where each stands: positions=(q_positions, "
                f"k_positions). If those are heads, the layout is {other!r}"
            )

    def _check_positions_fit(self, positions: Tensor, x: Tensor) -> None:
        check_positions("positions", positions)
        seq = x.shape[self._seq_axis]
        fits = positions.ndim in (1, 2) and positions.shape[-1] == seq
        if positions.ndim == 2:
            fits = fits and x.ndim == 4 and positions.shape[0] in (1, x.shape[0])
        if not fits:
            raise ValueError(
                f"positions must be (seq,) or (batch, seq) with seq={seq} for an input "
                f"of shape {tuple(x.shape)} in layout={self.layout!r}; got "
                f"{tuple(positions.shape)}"
            )
        if positions.device != x.device:
            raise ValueError(
                f"positions must be on the input's device, {x.device}; got "
                f"{positions.device}"
            )

    def _per_sequence(self, name: str, value: int | Tensor, x: Tensor) -> int | Tensor:
        """An int as it is; ``(batch,)`` as ``(batch, 1)``, to add to positions."""
        if not isinstance(value, Tensor):
            check_start(name, value, "an int or a (batch,) tensor")
            return value
        check_positions(name, value)
        if value.ndim == 0:
            return value
        if x.ndim != 4 or value.shape != x.shape[:1]:
            raise ValueError(
                f"{name} must be an int or have shape (batch,); got "
                f"{tuple(value.shape)} for an input of shape {tuple(x.shape)}"
            )
        return value.to(x.device).unsqueeze(1)


def inside_a_transform() -> bool:
    """Whether tensors made now belong to a graph or transform, and must not be kept."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
