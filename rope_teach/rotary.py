"""RotaryEmbedding: the module that a model calls on its queries and keys."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rope_teach.axes import axial_frequencies
from rope_teach.checks import (
    Layout,
    Pairing,
    check_base,
    check_choice,
    check_count,
    check_floating,
    check_positions,
    check_rotary_dim,
    check_start,
)
from rope_teach.frequencies import Scaling, inverse_frequencies
from rope_teach.rotation import Norms, normalise, repeat_qk, rotate, rotate_qk
from rope_teach.tables import cos_sin, xpos_scale

__all__ = ["RotaryEmbedding"]

Role = Literal["query", "key"]

SMALLEST_TABLE = 2_048
LARGEST_TABLE = 131_072  # positions; beyond, rows are computed when they are needed
XPOS_BITS = {torch.float16: 12, torch.float64: 960}  # of scale; 4 are left for features


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
    scaling
        A rule for longer context: ``(rotary_dim, base)`` to inverse frequencies and
        attention factor, such as ``partial(yarn, factor=4, trained_length=4096)``.
    inv_freq
        Frequencies of your own in place of ``base`` and ``scaling``: ``(r/2,)``, or
        ``(axes, r/2)`` when positions have several coordinates.
    axes
        How many coordinates a position has, 2 for images: each gets an equal share
        of the pairs, by ``base`` and ``scaling``. ``rotary_dim`` must divide by
        ``2 * axes``, and every call needs ``positions``. See :mod:`rope_teach.axes`.
    learned
        Make the frequencies a parameter, ``frequencies``. It stays float32.
    xpos_scale_base
        Tokens over which xPos lets scores fade; 512 in its paper. Past
        ``xpos_origin``, in tokens, queries shrink and keys grow, before it the
        reverse. The origin is one for the life of the module, so cached keys stay
        valid. For causal attention alone.

    Notes
    -----
    Unless ``learned``, there are no parameters; there are never buffers. Angles are
    computed in float64, and tables are float32 (float64 for float64 inputs) whatever
    ``.half()``, ``.bfloat16()`` or autocast surrounds them. Rows already computed are
    kept, and can never change a result: up to 64 MB at 131,072 positions and head_dim
    128, so layers of one model may share one module. With several axes, learned
    frequencies or xPos nothing is kept: every call computes its rows.

    Source: Su et al., RoFormer (2104.09864). Built in lessons 04 to 08; scaling in
    13, xPos in 16, axes and learned frequencies in 17.

    Examples
    --------
    >>> rope = RotaryEmbedding(64)
    >>> q, k = torch.randn(1, 8, 10, 64), torch.randn(1, 2, 10, 64)
    >>> q, k = rope(q, k)                                   # positions 0 to 9
    >>> q_next, k_next = rope(q[:, :, :1], k[:, :, :1], start=10)   # one more token

    Patches of an image, 2 rows of 5:

    >>> from rope_teach.axes import grid_positions
    >>> rope = RotaryEmbedding(64, axes=2, base=100)
    >>> q, k = rope(q, k, grid_positions(2, 5))
    """

    _table: tuple[Tensor, Tensor]
    _last_call: tuple[Any, int, Any]

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10_000.0,
        rotary_dim: int | None = None,
        pairing: Pairing = "interleaved",
        layout: Layout = "bhsd",
        scaling: Scaling | None = None,
        inv_freq: Tensor | None = None,
        axes: int = 1,
        learned: bool = False,
        xpos_scale_base: float | None = None,
        xpos_origin: float = 0.0,
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
        check_count("axes", axes)
        check_choice("pairing", pairing, ("interleaved", "half"))
        check_choice("layout", layout, ("bhsd", "bshd"))
        self.head_dim, self._base, self.rotary_dim = head_dim, float(base), rotary_dim
        self._pairing, self._layout = pairing, layout
        self._scaling, self.axes = scaling, axes
        self.xpos_scale_base, self.xpos_origin = xpos_scale_base, xpos_origin
        self._seq_axis = -2 if layout == "bhsd" else -3
        self.frequencies: Tensor | None = None  # None: by the rule, when needed
        self._factor = 1.0
        self._ruled: Tensor | None = None  # what the scaling rule gives
        if inv_freq is None:
            self._ask_rule()
        else:
            self._take(inv_freq)
        if learned:
            begin, self._factor = self._scaled()
            begin = begin.to(torch.get_default_device(), torch.float32)
            self.frequencies = nn.Parameter(begin)
        if xpos_scale_base is not None:
            xpos_scale(torch.zeros(1), rotary_dim, xpos_scale_base)  # checks it
        # A table has a row for each position, and holds what no training step moves.
        self._keeps_rows = self.axes == 1 and not learned and xpos_scale_base is None
        self._keep(self._build_table(SMALLEST_TABLE, torch.get_default_device()))

    @property
    def base(self) -> float:
        """As it was given; another base is another module, since rows are kept."""
        return self._base

    @property
    def pairing(self) -> Pairing:
        """As it was given."""
        return self._pairing

    @property
    def layout(self) -> Layout:
        """As it was given."""
        return self._layout

    @property
    def scaling(self) -> Scaling | None:
        """As it was given; the rule is asked once."""
        return self._scaling

    @property
    def inv_freq(self) -> Tensor:
        """Radians per token: ``(r/2,)``, or ``(axes, r/2)`` with axes; float64."""
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
        norms: Norms | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys; both in their own dtype, as new tensors.

        Parameters
        ----------
        q, k
            In the module's layout; the numbers of heads may differ.
        positions
            ``(seq,)`` or ``(batch, seq)``, in tokens: integers or floats, negative
            allowed; with several axes ``(seq, axes)`` or ``(batch, seq, axes)``.
            A pair ``(q_positions, k_positions)`` when q and k stand at different
            positions. Default: ``start``, ``start + 1``, ...
        start
            Position of the first token: an int, or ``(batch,)``, one a sequence.
        pad_len
            ``(batch,)``: how many padding tokens stand left of each sequence. Its
            first real token then has position ``start``.
        norms
            Two modules that q and k go through first, for models that normalise each
            head: ``(q_norm, k_norm)``. On a CUDA device two ``torch.nn.RMSNorm`` and
            the rotation are one kernel, which rounds once (lesson 18), where heads are
            a power of two wide and rotated whole, by one table for q and k.

        Raises
        ------
        TypeError, ValueError
            If q or k is not floating, does not end in ``head_dim``, or lies on
            another device than its partner; if positions do not fit; if q and k
            differ in length and no pair of positions says where each stands; if a
            position is so far from ``xpos_origin`` that its scale leaves the dtype;
            if norms are no pair of modules.
        """
        if norms is not None:
            self._check_norms(norms)
        kind = None
        if positions is None and pad_len is None and not torch.compiler.is_compiling():
            if type(q) is type(k) is Tensor and type(start) is int:
                strides = q.is_cuda and (q.stride(), k.stride())  # the kernel asks them
                kind = (
                    q.shape, k.shape, q.dtype, k.dtype, q.device, k.device, strides
                )  # fmt: skip
                known, last_start, again = self._last_call
                if kind == known and 0 <= start <= last_start:  # all is checked
                    return again(q, k, start, norms)
        q_positions, k_positions = self._check_partners(q, k, positions)
        q_table = self._tables(q, q_positions, start, pad_len, "query")
        if q_positions is k_positions and self._share_a_table(q, k):
            cos, sin, first = q_table
            turned = rotate_qk(q, k, cos, sin, first, self.pairing, self.layout, norms)
            if kind is not None and cos is self._table[0]:
                last_start = cos.shape[0] - q.shape[self._seq_axis]
                again = repeat_qk(q, k, cos, sin, self.pairing, self.layout)
                self._last_call = (kind, last_start, again)
            return turned
        k_table = self._tables(k, k_positions, start, pad_len, "key")
        if norms is not None:
            q, k = normalise(q, k, norms)
        return self._rotate(q, *q_table), self._rotate(k, *k_table)

    def rotate(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        *,
        start: int | Tensor = 0,
        pad_len: Tensor | None = None,
        role: Role | None = None,
    ) -> Tensor:
        """Rotate one tensor, as :meth:`forward` rotates each of its two.

        ``role``, ``"query"`` or ``"key"``, matters to xPos alone, which needs it.
        """
        self._check_input("x", x)
        if self.xpos_scale_base is not None and role not in ("query", "key"):
            raise ValueError(
                f"xPos scales queries and keys apart: role must be 'query' or 'key', "
                f"got {role!r}"
            )
        return self._rotate(x, *self._tables(x, positions, start, pad_len, role))

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor, first: int) -> Tensor:
        rows = slice(first, first + x.shape[self._seq_axis])
        cos, sin = (cos[rows], sin[rows]) if cos.ndim == 2 else (cos, sin)
        return rotate(x, cos, sin, self.pairing, self.layout)

    def extra_repr(self) -> str:
        learned = isinstance(self.frequencies, nn.Parameter)
        given = self.frequencies is not None and not learned
        said = {
            "head_dim": self.head_dim,
            "rotary_dim": self.rotary_dim,
            "base": None if given else f"{self.base:g}",
            "pairing": repr(self.pairing),
            "layout": repr(self.layout),
            "scaling": self.scaling,
            "inv_freq": tuple(self.inv_freq.shape) if given else None,
            "axes": self.axes if self.axes > 1 else None,
            "learned": learned or None,
            "xpos_scale_base": self.xpos_scale_base,
        }
        return ", ".join(f"{k}={v}" for k, v in said.items() if v is not None)

    # ------------------------------------------------------------------ tables

    def _tables(
        self,
        x: Tensor,
        positions: Tensor | None,
        start: int | Tensor,
        pad_len: Tensor | None,
        role: Role | None,
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
            if self.axes > 1:
                raise ValueError(
                    f"a position has {self.axes} coordinates here: give positions "
                    "(seq, axes), as from rope_teach.grid_positions"
                )
            positions = torch.arange(seq, device=x.device)
            positions = positions + self._per_sequence("start", start, x)
            if pad_len is not None:
                positions = positions - self._per_sequence("pad_len", pad_len, x)
        else:
            if pad_len is not None or isinstance(start, Tensor) or start != 0:
                raise ValueError("give positions, or start and pad_len, not both")
            self._check_positions_fit(positions, x)
        cos, sin = self._cos_sin(positions, dtype)
        if self.xpos_scale_base is not None:
            scale = self._fade(positions, x.dtype, self.xpos_scale_base)
            scale = (scale if role == "query" else 1 / scale).to(cos)
            cos, sin = cos * scale, sin * scale
        return cos, sin, 0

    def _cos_sin(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        device = positions.device.type
        inv_freq, factor = self._scaled("cpu" if device == "mps" else positions.device)
        cos, sin = cos_sin(positions, inv_freq, dtype)
        return (cos, sin) if factor == 1 else (cos * factor, sin * factor)

    def _scaled(self, device: torch.device | str | None = None) -> tuple[Tensor, float]:
        """Inverse frequencies and attention factor: kept ones, or by the rule."""
        if self.frequencies is not None:
            if self.frequencies.dtype.itemsize == 2:
                raise TypeError(
                    f"frequencies must be float32, got {self.frequencies.dtype}: "
                    "angles would be wrong by turns; keep them out of mixed precision"
                )
            return self.frequencies.to(device=device, dtype=torch.float64), self._factor
        if self._ruled is None:
            share = self.rotary_dim // self.axes
            inv_freq = inverse_frequencies(share, self.base, device=device)
        else:
            inv_freq = self._ruled.to(device=device)
        if self.axes > 1:
            inv_freq = axial_frequencies(*[inv_freq] * self.axes)
        return inv_freq, self._factor

    def _fade(self, positions: Tensor, dtype: torch.dtype, scale_base: float) -> Tensor:
        """What xPos multiplies the table of a query by; see :func:`xpos_scale`."""
        scale = xpos_scale(positions, self.rotary_dim, scale_base, self.xpos_origin)
        bits = XPOS_BITS.get(dtype, 96)
        fits = (scale.log2().abs() <= bits).all(dim=-1, keepdim=True)
        if inside_a_transform():  # nothing may be raised here: NaN cannot be missed
            return torch.where(fits, scale, math.nan)
        if not fits.all():
            reach = int(bits / -math.log2(0.4 / 1.4) * scale_base)
            raise ValueError(
                f"{dtype} holds the scale of xPos up to {reach} tokens from "
                f"xpos_origin={self.xpos_origin:g}, got a position "
                f"{(positions - self.xpos_origin).abs().max():g} away: set xpos_origin "
                "amid the positions that occur, once, or a larger xpos_scale_base"
            )
        return scale

    def _kept_table(
        self, first: int, end: int, x: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor] | None:
        """Return the kept table, grown to have rows ``first`` to ``end``, or None."""
        # is_exporting() is true under torch.compile too, up to torch 2.11.
        if not self._keeps_rows or torch.compiler._is_exporting_flag:
            return None
        if first < 0 or end > LARGEST_TABLE:
            return None
        cos, sin = self._table
        if dtype != cos.dtype or type(x) is not Tensor:  # fake tensors mix with no real
            return None
        if x.device != cos.device or end > cos.shape[0]:
            if inside_a_transform():
                return None
            length = max(SMALLEST_TABLE, 1 << (end - 1).bit_length())
            cos, sin = self._keep(self._build_table(length, x.device))
        return cos, sin

    def _keep(self, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        # What the last call's kind was, and what serves the next of its kind: in a
        # decode loop every check is skipped, half of what a call costs on a GPU.
        self._last_call = (None, -1, None)
        self._table = table
        return table

    def _build_table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if not self._keeps_rows:
            return torch.empty(0, device=device), torch.empty(0, device=device)
        # Outside inference mode, so that training may use rows that inference made.
        with torch.inference_mode(False), torch.no_grad():
            positions = torch.arange(length, device="cpu")
            cos, sin = self._cos_sin(positions, torch.float32)
            return cos.to(device), sin.to(device)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the rows out of files and copies: they are computed when needed."""
        no_rows = tuple(table[:0].clone() for table in self._table)
        return {**self.__dict__, "_table": no_rows, "_last_call": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._keep(self._build_table(SMALLEST_TABLE, self._table[0].device))

    def _apply(self, fn: Any, recurse: bool = True) -> RotaryEmbedding:
        """Follow ``.to(device)``; a change of dtype never touches the frequencies."""

        def move(x: Tensor) -> Tensor:
            moved: Tensor = fn(x)
            return moved if moved.dtype == x.dtype else x.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        if device.type != "meta" and device != self._table[0].device:
            self._keep(self._build_table(self._table[0].shape[0], device))
        return self

    # ------------------------------------------------------------------ checks

    def _check_partners(
        self, q: Tensor, k: Tensor, positions: Tensor | tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the positions of ``q`` and of ``k``, once the two fit together."""
        self._check_input("q", q)
        self._check_input("k", k)
        if q.device != k.device:
            raise ValueError(
                f"q and k must be on one device, got {q.device} and {k.device}"
            )
        if not isinstance(positions, (tuple, list)):
            self._check_one_length(q, k)
            return positions, positions
        if len(positions) != 2:
            raise ValueError(
                "positions must be a tensor or a pair (q_positions, k_positions), got "
                f"{len(positions)} items"
            )
        return positions[0], positions[1]

    def _share_a_table(self, q: Tensor, k: Tensor) -> bool:
        """Whether rows for the positions of ``q`` serve ``k`` as well."""
        return (
            self.xpos_scale_base is None
            and q.dtype == k.dtype
            and q.shape[:-3] == k.shape[:-3]
            and q.shape[self._seq_axis] == k.shape[self._seq_axis]
        )

    def _check_norms(self, norms: Any) -> None:
        if not (
            isinstance(norms, (tuple, list))
            and len(norms) == 2
            and all(isinstance(norm, nn.Module) for norm in norms)
        ):
            raise TypeError(
                "norms must be a pair of modules (q_norm, k_norm), got "
                f"{type(norms).__name__} ({norms!r})"
            )

    def _take(self, inv_freq: Tensor) -> None:
        """Keep given frequencies, out of reach of ``.half()`` and the state dict."""
        check_floating("inv_freq", inv_freq)
        if self.scaling is not None:
            raise ValueError("give inv_freq or scaling, not both")
        axes, pairs = (1, *inv_freq.shape)[-2:] if inv_freq.ndim in (1, 2) else (0, 0)
        if pairs != self.rotary_dim // 2 or self.axes not in (1, axes):
            raise ValueError(
                f"inv_freq must be (r/2,) or (axes, r/2) with r/2 = rotary_dim / 2 = "
                f"{self.rotary_dim // 2}, got {tuple(inv_freq.shape)} with "
                f"axes={self.axes}"
            )
        if inv_freq.is_meta:
            raise ValueError("inv_freq must have values, got a tensor on meta")
        if not inv_freq.isfinite().all():
            raise ValueError("inv_freq must be finite")
        kept = inv_freq.detach().double()
        self.frequencies = kept.flatten() if axes == 1 else kept.clone()
        self.axes = axes

    def _ask_rule(self) -> None:
        """Check the rule, and keep what it says: it may not change its mind."""
        if self.rotary_dim % (2 * self.axes):
            raise ValueError(
                f"rotary_dim={self.rotary_dim} does not divide into pairs for "
                f"axes={self.axes}"
            )
        if self.scaling is None:
            return
        if not callable(self.scaling):
            raise TypeError(
                "scaling must be a rule such as partial(yarn, factor=4, "
                f"trained_length=4096), got {type(self.scaling).__name__}"
            )
        share = self.rotary_dim // self.axes
        with torch.device("cpu"):  # values are needed, where a module is made on meta
            answer = self.scaling(share, self.base)
        inv_freq, factor = answer if isinstance(answer, tuple) else (answer, None)
        if (
            not isinstance(inv_freq, Tensor)
            or inv_freq.shape != (share // 2,)
            or not inv_freq.isfinite().all()
            or not isinstance(factor, (int, float))
            or not math.isfinite(factor)
        ):
            raise ValueError(
                "scaling must return a tuple of rotary_dim / 2 = "
                f"{share // 2} finite inverse frequencies and a finite attention "
                f"factor; it returned {answer!s:.200}"
            )
        self._ruled, self._factor = inv_freq.double(), float(factor)

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
        seq, shape = x.shape[self._seq_axis], positions.shape
        if self.axes > 1:
            shape = shape[:-1] if shape[-1:] == (self.axes,) else shape[:0]
        fits = len(shape) in (1, 2) and shape[-1] == seq
        if len(shape) == 2:
            fits = fits and x.ndim == 4 and shape[0] in (1, x.shape[0])
        if not fits:
            one, more = ("(seq,)", "") if self.axes == 1 else ("(seq, axes)", ", axes")
            raise ValueError(
                f"positions must be {one} or (batch, seq{more}) with seq={seq}"
                + (f" and axes={self.axes}" if self.axes > 1 else "")
                + f" for an input of shape {tuple(x.shape)} in layout="
                f"{self.layout!r}; got {tuple(positions.shape)}"
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
