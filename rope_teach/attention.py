"""Attention: queries meet keys, with whichever encoding tells them where they are.

RoPE and ALiBi act here, inside every layer. Sinusoidal and learned encodings are
added to the embeddings before the first layer, so :class:`LanguageModel` does that.
Built in lessons 01, 03 and 09.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rope_teach.absolute import alibi_bias
from rope_teach.checks import (
    check_choice,
    check_divides,
    check_floating,
    check_mask,
    check_start,
)
from rope_teach.frequencies import Scaling
from rope_teach.rotary import RotaryEmbedding

__all__ = [
    "ENCODINGS",
    "Attention",
    "KeyValueCache",
    "blockwise_mask",
    "segment_mask",
    "segment_positions",
    "window_mask",
]

ENCODINGS = ("none", "learned", "sinusoidal", "rope", "alibi")


class Attention(nn.Module):
    """Multi-head attention over ``(batch, seq, dim)``.

    Parameters
    ----------
    dim
        Features of a token; ``head_dim`` is ``dim / heads``.
    heads, kv_heads
        Query heads, and heads of keys and values (default: as many). Fewer is
        grouped-query attention: each serves ``heads / kv_heads`` query heads.
    encoding
        One of ``ENCODINGS``. Only ``"rope"`` and ``"alibi"`` act here.
    causal
        Whether a token sees itself and earlier tokens alone. ALiBi without it
        uses the distance without its sign.
    rotary_dim, base, scaling
        Of :class:`RotaryEmbedding`, for ``"rope"`` alone. For any other of its
        arguments (several axes, learned frequencies, xPos), set ``attention.rope``
        to a module of your own; each layer may have another.

    Notes
    -----
    Raises ``ValueError`` where the sizes do not divide or a name is unknown.
    Source: Vaswani et al. (1706.03762), section 3.2; grouped-query: 2305.13245.
    Lesson 09.

    Examples
    --------
    >>> attention = Attention(64, heads=4, kv_heads=2, encoding="rope")
    >>> attention(torch.randn(2, 10, 64)).shape
    torch.Size([2, 10, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        encoding: str = "none",
        causal: bool = True,
        rotary_dim: int | None = None,
        base: float = 10_000.0,
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        check_divides("dim", dim, "heads", heads)
        check_divides("heads", heads, "kv_heads", kv_heads)
        check_choice("encoding", encoding, ENCODINGS)
        for name, value in (("rotary_dim", rotary_dim), ("scaling", scaling)):
            if value is not None and encoding != "rope":
                raise ValueError(f"{name} needs encoding='rope', got {encoding!r}")
        self.dim, self.heads, self.kv_heads = dim, heads, kv_heads
        self.head_dim = dim // heads
        self.encoding, self.causal = encoding, causal
        self.query = nn.Linear(dim, heads * self.head_dim, bias=False)
        self.key = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(heads * self.head_dim, dim, bias=False)
        if encoding == "rope":
            self.rope = RotaryEmbedding(
                self.head_dim, rotary_dim=rotary_dim, base=base, scaling=scaling
            )

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Mix the tokens of ``x`` ``(batch, seq, dim)``; the same shape comes back.

        Parameters
        ----------
        mask
            Boolean; broadcasts to ``(batch, heads, queries, keys)``, where the keys
            are the cached ones, then those of ``x``. A query sees a key where it is
            True. Padding is ``real[:, None, None]`` with ``real`` ``(batch, keys)``.
            A causal module hides later tokens in any case. A query that sees
            nothing returns zeros.
        positions
            ``(seq,)`` or ``(batch, seq)``, in tokens, for RoPE. Default: 0, 1, ...,
            or on from the cache's last token.
        cache
            What earlier tokens left behind. It takes in those of ``x``.
        context
            ``(batch, keys, dim)``: keys and values come from these tokens instead
            (cross-attention). Two texts share no positions, so this needs
            ``encoding="none"`` and ``causal=False``.
        """
        self._check_input("x", x)
        if context is not None:
            self._check_context(context, cache)
        source = x if context is None else context
        q, k = self._queries_and_keys(x, source, positions, cache)
        v = self._split(self.value(source), self.kv_heads)
        if cache is not None:
            k, v = cache.append(k, v, positions)
        mixed = self._mix(q, k, v, mask).transpose(1, 2).flatten(2)
        out: Tensor = self.out(mixed)
        return out

    @torch.no_grad()
    def weights(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Return how much each query takes of each key: ``(batch, heads, seq, keys)``.

        For figures; :meth:`forward` never builds this matrix.
        """
        self._check_input("x", x)
        if context is not None:
            self._check_context(context, None)
        source = x if context is None else context
        q, k = self._queries_and_keys(x, source, positions, None)
        # Where the values are the rows of the identity, the result is the weights.
        identity = torch.eye(k.shape[2], dtype=x.dtype, device=x.device)
        return self._mix(q, k, identity.expand(*k.shape[:2], -1, -1), mask)

    def extra_repr(self) -> str:
        return f"encoding={self.encoding!r}, causal={self.causal}"

    def _queries_and_keys(
        self,
        x: Tensor,
        source: Tensor,
        positions: Tensor | None,
        cache: KeyValueCache | None,
    ) -> tuple[Tensor, Tensor]:
        q = self._split(self.query(x), self.heads)
        k = self._split(self.key(source), self.kv_heads)
        if self.encoding != "rope":
            return q, k
        # Never the values: lesson 09 shows why.
        if positions is None and cache is not None:
            return self.rope(q, k, start=cache.next)
        return self.rope(q, k, positions)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        bias = self._bias(q, k.shape[2], mask)
        flag = self.causal and bias is None
        if q.shape[2] == 1:  # as a step of its own: an exporter knows no `and` of sizes
            flag = False
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=bias,
            is_causal=flag,
            enable_gqa=self.kv_heads < self.heads,
        )

    def _bias(self, q: Tensor, k_len: int, mask: Tensor | None) -> Tensor | None:
        """What is added to the logits; None where the causal flag says it all."""
        q_len = q.shape[2]
        # One query, the last token, may see every key; the flag knows square only.
        flag_serves = not self.causal or q_len in (1, k_len)
        if mask is None and self.encoding != "alibi" and flag_serves:
            return None
        seen = torch.ones(q_len, k_len, dtype=torch.bool, device=q.device)
        seen = seen.tril(k_len - q_len) if self.causal else seen
        if mask is not None:
            check_mask(mask, (q.shape[0], self.heads, q_len, k_len))
            seen = seen & mask
        bias = q.new_zeros(q_len, k_len)
        if self.encoding == "alibi":  # it counts tokens, so it needs no positions
            bias = alibi_bias(self.heads, q_len, k_len, device=q.device).to(q)
        return bias.masked_fill(~seen, float("-inf"))

    def _check_input(self, name: str, x: Tensor) -> None:
        check_floating(name, x)
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(
                f"{name} must be (batch, seq, dim) with dim={self.dim}, "
                f"got {tuple(x.shape)}"
            )

    def _check_context(self, context: Tensor, cache: KeyValueCache | None) -> None:
        self._check_input("context", context)
        if self.encoding != "none" or self.causal or cache is not None:
            raise ValueError(
                "context needs encoding='none', causal=False and no cache, got "
                f"encoding={self.encoding!r}, causal={self.causal}, cache={cache}"
            )

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """``(batch, seq, heads * head_dim)`` to ``(batch, heads, seq, head_dim)``."""
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)


class KeyValueCache:
    """The keys and values of earlier tokens, of one attention layer.

    Keys are kept as they were rotated when their token came, and never turned
    again. ``next`` is the position of the next token: an int, or ``(batch,)`` where
    sequences differ. It counts on when old keys are dropped.

    Parameters
    ----------
    start
        Position of the first token.

    Notes
    -----
    Lesson 09.

    Examples
    --------
    >>> attention, cache = Attention(64, heads=4, encoding="rope"), KeyValueCache()
    >>> prompt = attention(torch.randn(1, 10, 64), cache=cache)
    >>> one_more = attention(torch.randn(1, 1, 64), cache=cache)
    >>> cache
    KeyValueCache(length=11, next=11)
    """

    def __init__(self, start: int = 0) -> None:
        check_start("start", start)
        self.next: int | Tensor = start
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return 0 if self.keys is None else self.keys.shape[2]

    def append(
        self, keys: Tensor, values: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take in ``(batch, kv_heads, seq, head_dim)`` each; return all that is held.

        ``positions`` are those at which the keys were rotated, by default
        ``next``, ``next + 1``, ... Raises ``ValueError`` if they do not continue
        where the cache stands, or if a shape does not continue what it holds.
        """
        seq = keys.shape[2]
        if self.keys is None or self.values is None:
            if self.next != 0:  # a start that was given
                self._check_next(positions)
            self.keys, self.values = keys, values
        else:
            self._check_continues(keys)
            self._check_next(positions)
            self.keys = torch.cat([self.keys, keys], dim=2)
            self.values = torch.cat([self.values, values], dim=2)
        if positions is None:
            self.next = self.next + seq
        elif seq:
            self.next = positions[..., -1] + 1
        return self.keys, self.values

    def keep(self, newest: int) -> None:
        """Drop all but the ``newest`` tokens; ``next`` stays where it is."""
        if not isinstance(newest, int) or newest < 0:
            raise ValueError(f"newest must be an int from 0 on, got {newest!r}")
        if self.keys is not None and self.values is not None:
            old = max(0, self.length - newest)
            self.keys, self.values = self.keys[:, :, old:], self.values[:, :, old:]

    def _check_continues(self, keys: Tensor) -> None:
        assert self.keys is not None
        (batch, heads, _, size), new = self.keys.shape, tuple(keys.shape)
        if new != (batch, heads, new[2], size):
            raise ValueError(
                f"the cache holds keys (batch={batch}, kv_heads={heads}, seq, "
                f"head_dim={size}), got {new}"
            )

    def _check_next(self, positions: Tensor | None) -> None:
        if positions is None or not positions.shape[-1]:
            return
        if (positions[..., 0] != self.next).any():
            raise ValueError(
                f"the next position is {self.next}, got positions that begin with "
                f"{positions[..., 0].tolist()}; leave positions out, and the cache "
                "counts on"
            )

    def __repr__(self) -> str:
        return f"KeyValueCache(length={self.length}, next={self.next})"


def segment_positions(segments: Tensor) -> Tensor:
    """Positions that restart wherever a new segment begins: ``(batch, seq)`` int64.

    ``segments`` ``(batch, seq)`` says which of several packed sequences each token
    belongs to; for a batch that is padded, which tokens are real. Lesson 09.

    >>> segment_positions(torch.tensor([[7, 7, 7, 8, 8]]))
    tensor([[0, 1, 2, 0, 1]])
    """
    place = torch.arange(segments.shape[1], device=segments.device)
    begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    return place - (place * begins).cummax(dim=1).values


def segment_mask(segments: Tensor) -> Tensor:
    """Mask by which a token sees its own segment alone: ``(batch, 1, seq, seq)``.

    ``segments`` ``(batch, seq)`` as in :func:`segment_positions`. Lesson 09.

    >>> segment_mask(torch.tensor([[7, 7, 8]]))[0, 0].int()
    tensor([[1, 1, 0],
            [1, 1, 0],
            [0, 0, 1]], dtype=torch.int32)
    """
    return segments[:, None, :, None] == segments[:, None, None, :]


def window_mask(q_len: int, window: int, k_len: int | None = None) -> Tensor:
    """Mask by which a token sees the newest ``window`` tokens up to itself.

    Returns ``(q_len, k_len)``. The last query stands at the last key, so a cached
    step passes its cache's length too. Lesson 12.

    >>> window_mask(3, 2).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    k_len = q_len if k_len is None else k_len
    seen = torch.ones(q_len, k_len, dtype=torch.bool)
    newest = k_len - q_len
    return seen.tril(newest) & seen.triu(newest - window + 1)


def blockwise_mask(seq: int, block: int) -> Tensor:
    """Mask by which a token sees its own block and the one before: ``(seq, seq)``.

    For a causal model whose trained length is twice ``block``: no token then sees
    farther than in training. Source: blockwise causal attention, Sun et al.
    (2212.10554). Lesson 16.

    >>> blockwise_mask(5, 2).int()
    tensor([[1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [0, 0, 1, 1, 1]], dtype=torch.int32)
    """
    number = torch.arange(seq) // block
    near = number[:, None] - number <= 1
    return near.tril()
