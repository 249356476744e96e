"""RotaryEmbedding: the module that a model calls on its queries and keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Literal, NamedTuple
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rope_teach import ops
from rope_teach.axes import axial_frequencies
from rope_teach.checks import (
    AXES,
    Layout,
    Pairing,
    axes_of,
    check_choice,
    check_count,
    check_head,
    check_inv_freq,
    check_learned,
    check_norms,
    check_number,
    check_one_length,
    check_out,
    check_pair,
    check_per_sequence,
    check_rotary,
    check_start,
    check_table,
    fit_positions,
    lay_out,
    wrong_type,
)
from rope_teach.frequencies import Scaling, scaled_frequencies
from rope_teach.tables import cos_sin, held_scale, xpos_scale

__all__ = ["RotaryEmbedding", "Tables"]

Values = tuple[float, ...] | tuple[tuple[float, ...], ...]  # an axis: one tuple
Size = tuple[int | None, int | None]  # batch and seq, None if unknown

SMALLEST_TABLE = 2_048
LARGEST_TABLE = 131_072  # positions; beyond, rows are computed when they are needed

OPTIONS = frozenset([
    "head_dim", "base", "rotary_dim", "trailing", "pairing", "layout", "scaling",
    "attention_factor", "axes", "clockwise", "xpos_scale_base", "xpos_origin",
])  # fmt: skip

# Up to torch 2.11 a compiler is told that it exports, whatever it does.
KNOWS_EXPORTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)


class Tables(NamedTuple):
    """Cos and sin for the tokens of one call, made once and used by every layer.

    ``(seq, r/2)``, or ``(batch, seq, r/2)`` where sequences differ. Keys have a table
    of their own if their positions differ from the queries', or their scale (xPos).
    Made by :meth:`RotaryEmbedding.tables`. Lesson 09.
    """

    cos: Tensor
    sin: Tensor
    key_cos: Tensor | None = None
    key_sin: Tensor | None = None

    def of_queries(self) -> tuple[Tensor, Tensor]:
        """The cos and sin that queries are rotated by; torch 2.7 compiles no slice."""
        return self.cos, self.sin

    def of_keys(self) -> tuple[Tensor, Tensor]:
        """The cos and sin that keys are rotated by."""
        if self.key_cos is None or self.key_sin is None:
            return self.cos, self.sin
        return self.key_cos, self.key_sin


class SharedRows:
    """Cos and sin of positions 0, 1, ... on one device, for all that rotate alike.

    Modules with the same frequencies and factor share one, freed with the last of them.
    Rows are added by doubling; ``inv_freq`` serves positions that have none.
    """

    _all: ClassVar[WeakValueDictionary[Any, SharedRows]] = WeakValueDictionary()

    def __init__(self, values: Values, factor: float, device: torch.device) -> None:
        self.device, self.factor = device, factor
        # Outside inference mode, so that training may use what inference made.
        with torch.inference_mode(False), torch.no_grad():
            self.inv_freq = torch.tensor(values, dtype=torch.float64, device=device)
            self.table = torch.empty(0, 2, self.inv_freq.shape[-1], device=device)
        self.is_real = ops.has_memory(self.inv_freq)

    @classmethod
    def of(
        cls, values: Values, factor: float, device: torch.device, rows: int
    ) -> SharedRows:
        """The rows for these frequencies, which another module may have made."""
        key = values, factor, device
        found = cls._all.get(key)
        if found is None:
            found = cls(values, factor, device)
            if found.is_real:
                cls._all[key] = found
        found.reach(rows)
        return found

    def reach(self, end: int) -> Tensor | None:
        """At least ``end`` rows, ``(rows, 2, r/2)``, or None where none can be kept."""
        if end <= self.table.shape[0]:
            return self.table
        if not self.is_real:
            return None
        on_gpu = self.device.type == "cuda"
        if on_gpu and torch.cuda.is_current_stream_capturing():
            return None  # what a graph computes is there only after its replay
        end = int(end)  # a trace has its sizes in tensors
        length = max(SMALLEST_TABLE, 1 << (end - 1).bit_length())
        with torch.inference_mode(False), torch.no_grad():
            positions = torch.arange(length, device=self.device)
            table = ops.cos_sin(positions, self.inv_freq, self.factor)
        if not ops.has_memory(table):
            return None
        if on_gpu:  # other streams read these rows, and may still read the old ones
            torch.cuda.synchronize(self.device)
        self.table = table
        return table

    def at(self, positions: Tensor) -> Tensor | None:
        """The rows of integer positions, or None if one of them has none."""
        if positions.dtype not in (torch.int64, torch.int32):
            return None
        try:
            both = F.embedding(positions, self.table.flatten(-2))
        except IndexError:
            return None
        return both.unflatten(-1, self.table.shape[-2:])


class RotaryEmbedding(nn.Module):
    """Rotate queries and keys by their positions (RoPE).

    Parameters
    ----------
    head_dim
        Features of one attention head.
    base
        Sets the lowest frequency; configurations call it ``rope_theta``.
    rotary_dim
        How many features are rotated, an even number (default: all): the leading ones,
        or the last ones with ``trailing=True``.
    pairing
        ``"interleaved"``: pairs (0, 1)(2, 3)..., as RoFormer, GPT-J, Meta's Llama.
        ``"half"``: pairs (0, r/2)(1, r/2 + 1)..., as GPT-NeoX, Hugging Face's Llama.
        It must be the one that the weights were trained with.
    layout
        ``"bhsd"``, as PyTorch's attention wants tensors: ``(batch, heads, seq,
        head_dim)``; or the same letters in another order, ``"bshd"`` or ``"sbhd"``.
    scaling
        A rule for longer context: ``(rotary_dim, base)`` to inverse frequencies and
        attention factor, such as ``partial(yarn, factor=4, trained_length=4096)``.
    inv_freq, attention_factor
        In place of ``base`` and ``scaling``: radians per token, ``(r/2,)`` or
        ``(axes, r/2)``, and the factor that cos and sin are multiplied by.
    axes
        How many coordinates a position has, 2 for images. Each gets an equal share of
        the pairs, and every call needs ``positions``. See :mod:`rope_teach.axes`.
    learned
        Make the frequencies a parameter, ``frequencies``. It stays float32.
    clockwise
        Rotate by the opposite angles, for weights that were trained so (nanochat).
    xpos_scale_base
        Tokens over which xPos lets scores fade; 512 in its paper. Past
        ``xpos_origin``, in tokens, queries shrink and keys grow, before it the
        reverse. For causal attention only.

    Notes
    -----
    Unless ``learned``, there are no parameters; there are never buffers. Options cannot
    change later, so cached keys stay valid. Angles are computed in float64, and tables
    are float32 (float64 for float64 inputs) whatever ``.half()``, ``.bfloat16()`` or
    autocast surrounds them. Rows are kept, up to 131,072 positions, and shared by all
    modules that rotate alike. With float64 inputs, several axes, learned frequencies or
    xPos, they are computed on each call: share them among layers with :meth:`tables`.

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

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to change an option: the rows that are kept would not follow."""
        if name in OPTIONS and name in self.__dict__:
            raise AttributeError(f"{name} cannot change: make another RotaryEmbedding")
        super().__setattr__(name, value)

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10_000.0,
        rotary_dim: int | None = None,
        trailing: bool = False,
        pairing: Pairing = "interleaved",
        layout: Layout = "bhsd",
        scaling: Scaling | None = None,
        inv_freq: Tensor | None = None,
        attention_factor: float | None = None,
        axes: int = 1,
        learned: bool = False,
        clockwise: bool = False,
        xpos_scale_base: float | None = None,
        xpos_origin: float = 0.0,
    ) -> None:
        super().__init__()
        rotary_dim = check_rotary(head_dim, rotary_dim)
        check_number("base", base, above=0)
        check_count("axes", axes)
        check_number("xpos_origin", xpos_origin)
        check_choice("pairing", pairing, ("interleaved", "half"))
        check_choice("layout", layout, tuple(AXES))
        self.head_dim, self.rotary_dim, self.base = head_dim, rotary_dim, float(base)
        self.pairing, self.layout, self.trailing = pairing, layout, trailing
        self.scaling, self.clockwise = scaling, clockwise
        self.xpos_scale_base, self.xpos_origin = xpos_scale_base, xpos_origin
        self._given = inv_freq is not None
        if self._given and scaling is not None:
            raise ValueError("give inv_freq or scaling, not both")
        if attention_factor is not None and not self._given:
            raise ValueError(
                "attention_factor goes with inv_freq; a scaling rule has its own"
            )
        asked = rotary_dim, self.base, axes, scaling, inv_freq
        if type(torch.empty(0)) is Tensor:
            rows, factor = _frequencies_of(*asked)
        else:  # FakeTensorMode hides values, in its own thread only
            with ThreadPoolExecutor(1) as pool:
                rows, factor = pool.submit(_frequencies_of, *asked).result()
        self.axes = len(rows)
        factor = factor if attention_factor is None else attention_factor
        check_number("attention_factor", factor, above=0)
        self.attention_factor = float(factor)
        # Where one bank of frequencies is dealt out to the axes (M-RoPE), text may have
        # one position, which counts on every axis.
        dealt = all(sum(map(bool, pair)) <= 1 for pair in zip(*rows, strict=True))
        self._takes_text = self._given and self.axes > 1 and dealt
        # Python numbers: no move, cast or fake tensor can change them.
        signed = tuple(tuple(-x if clockwise else x for x in row) for row in rows)
        self._values: Values = signed if self.axes > 1 else signed[0]
        if xpos_scale_base is not None:
            check_number("xpos_scale_base", xpos_scale_base, above=0)
            if self.axes > 1:
                raise ValueError(f"xPos needs one axis, got axes={self.axes}")
        self.register_parameter("frequencies", None)
        if learned:
            self.frequencies = nn.Parameter(torch.empty(self._initial().shape).float())
            self.reset_parameters()
        kept = self.axes == 1 and not learned and xpos_scale_base is None
        self._fewest = SMALLEST_TABLE if kept else 0  # rows that are kept
        self._rows = self._rows_on(torch.empty(0).device, self._fewest)

    def reset_parameters(self) -> None:
        """Set learned frequencies to what the module was made with."""
        if self.frequencies is not None:
            with torch.no_grad():
                self.frequencies.copy_(self._initial())

    @property
    def inv_freq(self) -> Tensor:
        """Radians per token: ``(r/2,)`` or ``(axes, r/2)``; float64, on the CPU.

        Learned frequencies are on their parameter's device.
        """
        if self.frequencies is not None:
            return self.frequencies.double()
        return self._initial()

    def _initial(self) -> Tensor:
        inv_freq = torch.tensor(self._values, dtype=torch.float64, device="cpu")
        return -inv_freq if self.clockwise else inv_freq

    def extra_repr(self) -> str:
        factor = self.attention_factor
        said = {
            "head_dim": self.head_dim,
            "rotary_dim": self.rotary_dim,
            "trailing": self.trailing or None,
            "base": None if self._given else f"{self.base:g}",
            "pairing": repr(self.pairing),
            "layout": repr(self.layout),
            "scaling": self.scaling,
            "inv_freq": tuple(self.inv_freq.shape) if self._given else None,
            "attention_factor": factor if self._given and factor != 1 else None,
            "axes": self.axes if self.axes > 1 else None,
            "learned": True if self.frequencies is not None else None,
            "clockwise": self.clockwise or None,
            "xpos_scale_base": self.xpos_scale_base,
            "xpos_origin": self.xpos_origin or None,
        }
        return ", ".join(f"{k}={v}" for k, v in said.items() if v is not None)

    # ------------------------------------------------------------------ what it does

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        positions: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        start: int | Tensor = 0,
        pad_len: Tensor | None = None,
        tables: Tables | None = None,
        norms: tuple[nn.Module, nn.Module] | None = None,
        out: tuple[Tensor | None, Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys; both in their own dtype, as new tensors.

        Parameters
        ----------
        q, k
            In the module's layout; the numbers of heads may differ.
        positions
            ``(seq,)`` or ``(batch, seq)``, in tokens: integers or floats, negative
            allowed. With several axes ``(seq, axes)``, ``(batch, seq, axes)`` or, as in
            transformers, ``(axes, batch, seq)``; text in a model for images (M-RoPE)
            may leave the axes out. A pair ``(q_positions, k_positions)`` if q and k
            differ. Default: ``start``, ``start + 1``, ...
        start
            Position of the first token: an int, or ``(batch,)``, one for each sequence.
        pad_len
            ``(batch,)``: padding tokens to the left of each sequence, whose first real
            token then has position ``start``.
        tables
            From :meth:`tables`, in place of positions, so that layers share them.
        norms
            ``(q_norm, k_norm)``, which q and k go through first. On a CUDA device two
            ``torch.nn.RMSNorm`` and the rotation are one kernel, which rounds once
            (lesson 18), where heads are a power of two wide and rotated whole, by one
            table for q and k.
        out
            ``(q_out, k_out)``, either of them None: where to write, such as a slot of a
            preallocated cache. Same shape, dtype and device as the input, last stride
            1, no memory shared with an input, and no gradient.

        Raises
        ------
        TypeError, ValueError
            If q or k is not floating or not ``head_dim`` wide, if their devices differ,
            or their lengths without a pair of positions; if positions, norms or out do
            not fit; if a position is so far from ``xpos_origin`` that its scale leaves
            the dtype (NaN where only a GPU or a graph knows the position).
        RuntimeError
            If ``out`` is given and a gradient is asked for.
        """
        self._check(q, k)
        if tables is None:
            tables = self._tables(q, k, positions, start, pad_len)
        else:
            self._check_tables(tables, q, k, positions, start, pad_len)
        if norms is not None:
            check_norms(norms)
            fusible = out is None and tables.key_cos is None and not self.trailing
            if fusible and q.is_cuda and ops.HAS_TRITON:
                from rope_teach.ops import norm  # loaded only when norms are given

                cos, sin = (
                    lay_out(t, self.layout, q.ndim) for t in tables.of_queries()
                )
                turned = norm.normalise_and_rotate(
                    q, k, norms, cos, sin, self.pairing, self.layout
                )
                if turned is not None:
                    return turned
            q, k = norms[0](q).to(q.dtype), norms[1](k).to(k.dtype)
        into = None if out is None else check_out(out, (q, k))
        if tables.key_cos is None and q.ndim == k.ndim:
            q, k = self._turn((q, k), tables.cos, tables.sin, into)
        else:
            (q,) = self._turn((q,), *tables.of_queries(), into and into[:1])
            (k,) = self._turn((k,), *tables.of_keys(), into and into[1:])
        return q, k

    def rotate(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        *,
        start: int | Tensor = 0,
        pad_len: Tensor | None = None,
        tables: Tables | None = None,
        role: Literal["query", "key"] | None = None,
    ) -> Tensor:
        """Rotate one tensor, as :meth:`forward` rotates each of its two.

        ``role``, ``"query"`` or ``"key"``, matters to xPos alone, which needs it.
        """
        check_head("x", x, self.head_dim, self.layout)
        if self.xpos_scale_base is not None and role not in ("query", "key"):
            raise ValueError(
                "xPos scales queries and keys differently: role must be 'query' or "
                f"'key', got {role!r}"
            )
        if tables is None:
            tables = self._tables(x, x, positions, start, pad_len)
        else:
            self._check_tables(tables, x, x, positions, start, pad_len)
        cos, sin = tables.of_keys() if role == "key" else tables.of_queries()
        (turned,) = self._turn((x,), cos, sin)
        return turned

    def tables(
        self,
        positions: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        seq: int | None = None,
        start: int | Tensor = 0,
        pad_len: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tables:
        """Make cos and sin once, for every layer: ``rope(q, k, tables=tables)``.

        ``positions``, ``start`` and ``pad_len`` are as in :meth:`forward`; without
        positions, ``seq`` tokens. ``dtype`` is that of q and k: tables are float64 for
        float64 and float32 for all else. ``device`` is where q and k are (default:
        where the positions are, or the module's rows). Lesson 09.

        >>> rope = RotaryEmbedding(64)
        >>> tables = rope.tables(seq=10)
        >>> q, k = torch.randn(1, 8, 10, 64), torch.randn(1, 2, 10, 64)
        >>> torch.equal(rope(q, k, tables=tables)[0], rope(q, k)[0])
        True
        """
        if positions is None and seq is None:
            raise ValueError("tables needs positions, or seq, the number of tokens")
        if seq is not None:
            check_start("seq", seq)
            if seq < 0:
                raise ValueError(f"seq must not be negative, got {seq}")
        if device is None:
            given = positions if isinstance(positions, (tuple, list)) else [positions]
            found = [x for x in (*given, start, pad_len) if isinstance(x, Tensor)]
            device = found[0].device if found else self._rows.device
        like = torch.empty(0, dtype=dtype, device=device)
        size = None, None if isinstance(positions, (tuple, list)) else seq
        return self._tables(like, like, positions, start, pad_len, (size, size))

    def shares_tables(self, other: object) -> bool:
        """Whether ``tables`` of this module serve the other one as well. Lesson 09."""
        return (
            isinstance(other, RotaryEmbedding)
            and self._rows is other._rows
            and self.frequencies is other.frequencies is None
            and self.xpos_scale_base == other.xpos_scale_base
            and self.xpos_origin == other.xpos_origin
        )

    # ------------------------------------------------------------------ tables

    def _tables(
        self, q: Tensor, k: Tensor, positions: Tensor | tuple[Tensor, Tensor] | None,
        start: int | Tensor, pad_len: Tensor | None,
        sizes: tuple[Size, Size] | None = None,
    ) -> Tables:  # fmt: skip
        """The tables for the tokens of ``q`` and ``k``; ``sizes`` if not theirs."""
        q_size, k_size = sizes or (self._size(q), self._size(k))
        like = q if q.dtype == torch.float64 else k
        if self.xpos_scale_base is not None and q.dtype == torch.float16:
            like = q  # the smallest range decides
        pair: tuple[Tensor | None, Tensor | None]
        if isinstance(positions, (tuple, list)):
            pair = check_pair(positions)
        elif q_size == k_size:
            return self._one_table(positions, start, pad_len, q_size, like)
        else:
            check_one_length(q_size[1], k_size[1], self.layout)
            pair = positions, positions
        queries = self._one_table(pair[0], start, pad_len, q_size, like)
        keys = self._one_table(pair[1], start, pad_len, k_size, like)
        return Tables(*queries.of_queries(), *keys.of_keys())

    def _one_table(
        self, positions: Tensor | None, start: int | Tensor, pad_len: Tensor | None,
        size: Size, like: Tensor,
    ) -> Tables:  # fmt: skip
        """The table of tokens that q and k share, or two with xPos."""
        (batch, seq), device = size, like.device
        if positions is not None:
            if pad_len is not None or isinstance(start, Tensor) or start != 0:
                raise ValueError("give positions, or start and pad_len, not both")
        elif pad_len is None and not isinstance(start, Tensor):
            check_start("start", start, "an int or a (batch,) tensor")
            assert seq is not None
            rows = self._kept(start, start + seq, like)
            if rows is not None:
                return Tables(*rows[start : start + seq].unbind(-2))
            if self.axes > 1 and not self._takes_text:
                raise ValueError(
                    f"a position has {self.axes} coordinates here: give positions "
                    "(seq, axes), as from rope_teach.axes.grid_positions"
                )
            positions = torch.arange(start, start + seq, device=device)
        else:
            given, first, sign = _starts(start, pad_len, batch, device)
            narrow = like.dtype != torch.float64 and not given.requires_grad
            if device.type == "cuda" and self._fewest and narrow:
                both = ops.cos_sin(
                    given, self._frequencies(like), self.attention_factor,
                    first=first, sign=sign, count=seq,
                )  # fmt: skip
                return Tables(*both.unbind(-2))
            tokens = torch.arange(seq or 0, device=device)
            positions = (first + tokens) + sign * given.unsqueeze(-1)
        positions = fit_positions(
            positions, seq, batch, self.axes, self._takes_text, device
        )
        cos, sin = self._cos_sin(positions, like)
        if self.xpos_scale_base is None:
            return Tables(cos, sin)
        scale = self._fade(positions, like.dtype, self.xpos_scale_base).to(cos)
        return Tables(cos * scale, sin * scale, cos / scale, sin / scale)

    def _cos_sin(self, positions: Tensor, like: Tensor) -> Sequence[Tensor]:
        """Rows for any positions: looked up, or computed."""
        wide = like.dtype == torch.float64
        if self._fewest and like.is_cpu and not (wide or torch.compiler.is_compiling()):
            kept = self._rows_for(like)
            found = None if kept is None else kept.at(positions)
            if found is not None:
                return found.unbind(-2)
        inv_freq = self._frequencies(like)
        if wide or ops.ask_for_gradient((inv_freq, positions)):
            dtype = torch.float64 if wide else torch.float32
            return cos_sin(positions, inv_freq, dtype, self.attention_factor)
        return ops.cos_sin(positions, inv_freq, self.attention_factor).unbind(-2)

    def _kept(self, start: int, end: int, like: Tensor) -> Tensor | None:
        """Kept rows that reach from ``start`` to ``end``, or None."""
        if not self._fewest or start < 0 or end > LARGEST_TABLE:
            return None
        rows = None if like.dtype == torch.float64 else self._rows_for(like)
        if rows is None:
            return None
        if not torch.compiler.is_compiling():
            return rows.reach(end)
        # An exported program computes its rows: it may be called with any length.
        exports = KNOWS_EXPORTS and torch.compiler.is_exporting()
        fits = rows.device == like.device and end <= rows.table.shape[0]
        usable = torch.compiler.is_dynamo_compiling() and not exports
        return rows.table if usable and fits else None

    def _frequencies(self, like: Tensor) -> Tensor:
        """The inverse frequencies, negated if clockwise, where ``like`` is."""
        if self.frequencies is not None:
            check_learned(self.frequencies)
            inv_freq = self.frequencies.to(like.device)
            return -inv_freq if self.clockwise else inv_freq
        rows = self._rows_for(like)
        if rows is None:
            return torch.tensor(self._values, dtype=torch.float64, device=like.device)
        return rows.inv_freq.to(like.device)

    def _rows_for(self, like: Tensor) -> SharedRows | None:
        """The rows where ``like`` is; None for a fake, which mixes with fakes alone."""
        if type(like) not in ops.PLAIN or like.is_meta:
            return None
        rows = self._rows
        if torch.compiler.is_compiling():
            return rows if rows.is_real else None
        if rows.device != like.device or not rows.is_real:
            self._rows = self._rows_on(like.device, len(rows.table))
        return self._rows

    def _rows_on(self, device: torch.device, length: int) -> SharedRows:
        """The rows on a device, at least ``length``: a move loses none."""
        length = max(length, self._fewest) if self._fewest else 0
        return SharedRows.of(self._values, self.attention_factor, device, length)

    def _fade(self, positions: Tensor, dtype: torch.dtype, scale_base: float) -> Tensor:
        """What xPos multiplies the table of a query by; see :func:`xpos_scale`."""
        return held_scale(
            xpos_scale(positions, self.rotary_dim, scale_base, self.xpos_origin),
            dtype,
            lambda bits: (
                f"{dtype} holds the scale of xPos up to "
                f"{int(bits / -math.log2(0.4 / 1.4) * scale_base)} tokens from "
                f"xpos_origin={self.xpos_origin:g}, got a position "
                f"{(positions - self.xpos_origin).abs().max():g} away: set xpos_origin "
                "once, near the middle of the positions in use, or a larger "
                "xpos_scale_base"
            ),
        )

    # ------------------------------------------------------------------ the rest

    def _turn(
        self, xs: tuple[Tensor, ...], cos: Tensor, sin: Tensor,
        out: Sequence[Tensor] | None = None,
    ) -> Sequence[Tensor]:  # fmt: skip
        """Rotate tensors that share one table, into new tensors or those of ``out``."""
        pairing, layout = self.pairing, self.layout
        if cos.ndim > 2 or layout != "bhsd":
            cos, sin = (lay_out(table, layout, xs[0].ndim) for table in (cos, sin))
        if not self.trailing:
            return ops.rotate_together(xs, cos, sin, pairing, layout, out)
        rest = self.head_dim - self.rotary_dim
        last = [x[..., rest:] for x in xs]
        into = None if out is None else [y[..., rest:] for y in out]
        turned = ops.rotate_together(last, cos, sin, pairing, layout, into)
        if out is None:
            both = zip(xs, turned, strict=True)
            return [torch.cat([x[..., :rest], part], dim=-1) for x, part in both]
        for x, y in zip(xs, out, strict=True):
            y[..., :rest] = x[..., :rest]
        return out

    def _size(self, x: Tensor) -> tuple[int, int]:
        """Batch (-1 where there is no such axis) and seq of an input."""
        shape = x.shape
        batch_axis, _, seq_axis = axes_of(len(shape), self.layout)
        return shape[batch_axis] if len(shape) == 4 else -1, shape[seq_axis]

    def _check(self, q: Tensor, k: Tensor) -> None:
        """Raise unless q and k are heads of this size on one device."""
        check_head("q", q, self.head_dim, self.layout)
        check_head("k", k, self.head_dim, self.layout)
        if q.device != k.device:
            raise ValueError(
                f"q and k must be on one device, got {q.device} and {k.device}"
            )

    def _check_tables(
        self, tables: Tables, q: Tensor, k: Tensor, positions: Any,
        start: int | Tensor, pad_len: Tensor | None,
    ) -> None:  # fmt: skip
        also = isinstance(start, Tensor) or start != 0
        if also or positions is not None or pad_len is not None:
            raise ValueError("give tables, or positions, start and pad_len, not both")
        if not isinstance(tables, Tables):
            raise wrong_type("tables", "made by RotaryEmbedding.tables", tables)
        q_size, k_size = self._size(q), self._size(k)
        check_table(tables.cos, q, self.rotary_dim, *q_size)
        if tables.key_cos is not None or k_size != q_size:
            check_table(tables.of_keys()[0], k, self.rotary_dim, *k_size)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the rows out of files and copies: loading makes or finds them."""
        return {**self.__dict__, "_rows": self._rows.device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        try:
            self._rows = self._rows_on(state["_rows"], 0)
        except (AssertionError, RuntimeError):  # saved on a device that is not here
            self._rows = self._rows_on(torch.device("cpu"), 0)

    def _apply(self, fn: Any, recurse: bool = True) -> RotaryEmbedding:
        """Follow ``.to(device)``; a change of dtype never touches the frequencies."""

        def move(x: Tensor) -> Tensor:
            moved: Tensor = fn(x)
            return moved if moved.dtype == x.dtype else x.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        if device.type != "meta" and device != self._rows.device:
            self._rows = self._rows_on(device, len(self._rows.table))
        return self


def _frequencies_of(
    rotary_dim: int, base: float, axes: int, scaling: Scaling | None,
    given: Tensor | None,
) -> tuple[list[list[float]], float]:  # fmt: skip
    """Inverse frequencies, a row for each axis, and the attention factor of a rule."""
    if given is not None:
        inv_freq, factor = check_inv_freq(given, rotary_dim // 2, axes), 1.0
    elif rotary_dim % (2 * axes):
        raise ValueError(
            f"rotary_dim={rotary_dim} does not divide into pairs for axes={axes}"
        )
    else:
        inv_freq, factor = scaled_frequencies(rotary_dim // axes, base, scaling)
        inv_freq = axial_frequencies(*[inv_freq] * axes) if axes > 1 else inv_freq
    rows: list[list[float]] = inv_freq.reshape(-1, rotary_dim // 2).tolist()
    return rows, factor


def _starts(
    start: int | Tensor, pad_len: Tensor | None, batch: int | None, device: torch.device
) -> tuple[Tensor, int, int]:
    """Where sequences begin: ``(given, first, sign)`` for ``first + sign * given``."""
    if pad_len is not None:
        pad_len = check_per_sequence("pad_len", pad_len, batch).to(device)
    if isinstance(start, Tensor):
        start = check_per_sequence("start", start, batch).to(device)
        return start if pad_len is None else start - pad_len, 0, 1
    check_start("start", start, "an int or a (batch,) tensor")
    assert pad_len is not None
    return pad_len, start, -1
