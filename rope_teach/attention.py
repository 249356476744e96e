"""Attention with any position encoding; masks and positions of packed sequences.

RoPE and ALiBi act here, inside every layer. Sinusoidal and learned encodings are added
to the embeddings, by the model. Built in lessons 01, 03 and 09.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rope_teach.absolute import alibi_bias
from rope_teach.cache import KeyValueCache
from rope_teach.checks import (
    check_choice,
    check_divides,
    check_floating,
    check_integers,
    check_mask,
    check_start,
    check_token_positions,
    fit_positions,
    wrong_shape,
)
from rope_teach.frequencies import Scaling
from rope_teach.rotary import RotaryEmbedding, Tables

__all__ = [
    "ENCODINGS",
    "Attention",
    "KeyValueCache",
    "packed_positions",
    "segment_mask",
    "segment_positions",
]

Heads = tuple[Tensor, Tensor, Tensor]  # q, k and v, (batch, heads, seq, head_dim)
ENCODINGS = ("none", "learned", "sinusoidal", "rope", "alibi")


class Attention(nn.Module):
    """Multi-head attention over ``(batch, seq, dim)``, with ``head_dim = dim / heads``.

    Parameters
    ----------
    kv_heads
        Heads of keys and values (default: ``heads``). With fewer, each is shared by
        ``heads / kv_heads`` query heads: grouped-query attention (2305.13245).
    encoding
        One of ``ENCODINGS``. Only ``"rope"`` and ``"alibi"`` act here.
    causal
        Whether a token sees only itself and earlier tokens.
    rotary_dim, base, scaling
        As in :class:`RotaryEmbedding`; only for ``"rope"``. For its other arguments set
        ``attention.rope`` to a module of your own; layers may differ.

    Notes
    -----
    Raises ``ValueError`` where the sizes do not divide or a name is unknown.
    Source: Vaswani et al. (1706.03762), section 3.2. Lesson 09.

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
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
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
        tables: Tables | None = None,
        cache: KeyValueCache | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Attend over the tokens of ``x`` ``(batch, seq, dim)``; returns that shape.

        Parameters
        ----------
        mask
            Boolean; broadcasts to ``(batch, heads, queries, keys)``, the keys being the
            cached ones, then those of ``x``. True where a query sees a key. For padding
            give ``real[:, None, None]``, where ``real`` ``(batch, keys)`` is True for
            real tokens. A causal module always hides later tokens. A query that sees
            nothing returns zeros.
        positions
            ``(seq,)`` or ``(batch, seq)``, in tokens, for RoPE and ALiBi; with several
            axes as in :meth:`RotaryEmbedding.forward`. Default: 0, 1, ..., or the
            positions after the cached ones.
        tables
            Cos and sin of these positions, by :meth:`RotaryEmbedding.tables`: layers
            can share them. For ``"rope"`` only.
        cache
            Keys and values of earlier tokens; those of ``x`` are appended.
        context
            ``(batch, keys, dim)``: keys and values come from these tokens instead
            (cross-attention). The positions of two texts are unrelated, so this needs
            ``encoding="none"`` and ``causal=False``.
        """
        source = self._source(x, context, cache, mask)
        if cache is not None:
            cache.claim(self)
        q, k = self._queries_and_keys(x, source, positions, tables, cache)
        heads = q, k, self._split(self.value(source), self.kv_heads)
        if cache is not None:
            heads = self._cached(cache, heads, positions)
        mixed = self._mix(heads, mask, positions, cache)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
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
        """Return the weight of each key for each query: ``(batch, heads, seq, keys)``.

        For figures; :meth:`forward` never builds this matrix.
        """
        source = self._source(x, context, None, mask)
        q, k = self._queries_and_keys(x, source, positions, None, None)
        # Where the values are the rows of the identity, the result is the weights.
        identity = torch.eye(k.shape[2], dtype=x.dtype, device=x.device)
        heads = q, k, identity.expand(*k.shape[:2], -1, -1)
        return self._mix(heads, mask, positions, None)

    def extra_repr(self) -> str:
        return f"encoding={self.encoding!r}, causal={self.causal}"

    def _source(
        self, x: Tensor, context: Tensor | None, cache: KeyValueCache | None,
        mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The tokens that keys and values come from; raise for unfit input."""
        for name, given in (("x", x), ("context", x if context is None else context)):
            check_floating(name, given)
            if given.ndim != 3 or given.shape[-1] != self.dim:
                raise wrong_shape(name, f"(batch, seq, dim) with dim={self.dim}", given)
        if mask is not None:  # before a cache takes the tokens in
            k_len = given.shape[1] + (0 if cache is None else cache.length)
            check_mask(mask, (x.shape[0], self.heads, x.shape[1], k_len))
        if context is None:
            return x
        if self.encoding != "none" or self.causal or cache is not None:
            raise ValueError(
                "context needs encoding='none', causal=False and no cache, got "
                f"encoding={self.encoding!r}, causal={self.causal}, cache={cache}"
            )
        return context

    def _queries_and_keys(
        self, x: Tensor, source: Tensor, positions: Tensor | None,
        tables: Tables | None, cache: KeyValueCache | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        q = self._split(self.query(x), self.heads)
        k = self._split(self.key(source), self.kv_heads)
        if self.encoding != "rope":
            return q, k
        # Never the values: lesson 09 shows why.
        options: dict[str, Any] = {}
        if tables is not None:
            options["tables"], positions = tables, None
        elif cache is not None and positions is None:
            options["start"] = cache.next
        writes = not torch.is_grad_enabled() and isinstance(self.rope, RotaryEmbedding)
        if cache is not None and writes:  # no copy: rotated into the cache's memory
            options["out"] = (None, cache.slot(k))
        return self.rope(q, k, positions, **options)

    def _cached(
        self, cache: KeyValueCache, heads: Heads, positions: Tensor | None
    ) -> Heads:
        """Append to ``cache``; return q, and all keys and values, old and new."""
        q, k, v = heads
        axes = getattr(self.rope, "axes", 1) if self.encoding == "rope" else 1
        if positions is not None and axes > 1:
            batch, _, seq, _ = q.shape
            places = fit_positions(positions, seq, batch, axes, True, q.device)
            positions = places.amax(-1)  # text follows the largest coordinate
        k, v = cache.append(k, v, positions, keep_positions=self.encoding == "alibi")
        saved = torch.is_grad_enabled() and q.requires_grad
        if saved and not (k.requires_grad or v.requires_grad):
            k, v = k.clone(), v.clone()  # autograd rejects memory written to later
        return q, k, v

    def _alibi(
        self, q: Tensor, k: Tensor, positions: Tensor | None, keys: Tensor | None
    ) -> Tensor:
        """The bias at ``positions``, of all cached ``keys``, or of the last tokens."""
        batch, _, q_len, _ = q.shape
        if keys is not None:
            last = keys[:, k.shape[2] - q_len :]
            return alibi_bias(self.heads, positions=(last, keys))
        if positions is None:
            return alibi_bias(self.heads, q_len, k.shape[2], device=q.device)
        check_token_positions(positions, (batch, q_len))
        return alibi_bias(self.heads, positions=positions)

    def _mix(
        self,
        heads: Heads,
        mask: Tensor | None,
        positions: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """Mix the values by attention: ``(batch, heads, queries, head_dim)``."""
        q, k, v = heads
        q_len, k_len, bias = q.shape[2], k.shape[2], None
        if self.encoding == "alibi":
            bias = self._alibi(q, k, positions, cache.positions if cache else None)
        # `is_causal` is right for a square; one query, the last token, sees every key.
        flag_is_enough = not self.causal or q_len in (1, k_len)
        if mask is not None or bias is not None or not flag_is_enough:
            seen = torch.ones(q_len, k_len, dtype=torch.bool, device=q.device)
            seen = seen.tril(k_len - q_len) if self.causal else seen
            if mask is not None:
                seen = seen & mask
            bias = q.new_zeros(q_len, k_len) if bias is None else bias.to(q)
            bias = bias.masked_fill(~seen, float("-inf"))
        flag = self.causal and bias is None
        if q_len == 1:  # not part of the line above: exporters cannot trace that
            flag = False
        return F.scaled_dot_product_attention(
            q, k, v, bias, is_causal=flag, enable_gqa=self.kv_heads < self.heads
        )

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """``(batch, seq, heads * head_dim)`` to ``(batch, heads, seq, head_dim)``."""
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)


def segment_positions(segments: Tensor) -> Tensor:
    """Positions that restart wherever a new segment begins: ``(batch, seq)`` int64.

    ``segments`` ``(batch, seq)`` says which of several packed sequences each token
    belongs to, or in a padded batch which tokens are real. Lesson 09.

    >>> segment_positions(torch.tensor([[7, 7, 7, 8, 8]]))
    tensor([[0, 1, 2, 0, 1]])
    """
    _check_segments(segments)
    place = torch.arange(segments.shape[1], device=segments.device)
    begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    return place - (place * begins).cummax(dim=1).values


def packed_positions(cu_seqlens: Tensor, total: int | None = None) -> Tensor:
    """Positions of sequences packed end to end, from where each begins: ``(total,)``.

    ``cu_seqlens`` ``(sequences + 1,)``, int32 or int64, is what flash-attention takes:
    0, then the number of tokens up to the end of each sequence. ``total`` (by default
    the last entry) may be larger: the tokens after the last sequence count from 0 too.
    Give it in a compiled model, and on a GPU, where the host would wait for the value;
    entries are not checked there. Raises ``TypeError`` for another dtype,
    ``ValueError`` for entries that cannot be cumulative lengths. Lesson 09.

    A mask is ``segment_mask((positions == 0).cumsum(0)[None])``.

    >>> packed_positions(torch.tensor([0, 3, 5]))
    tensor([0, 1, 2, 0, 1])
    """
    check_integers("cu_seqlens", cu_seqlens)
    if cu_seqlens.ndim != 1 or not len(cu_seqlens):
        raise wrong_shape("cu_seqlens", "(sequences + 1,)", cu_seqlens)
    begins = cu_seqlens.long()
    is_known = begins.device.type == "cpu" and not torch.compiler.is_compiling()
    if total is None or is_known:
        end = int(begins[-1])
        total = end if total is None else total
        check_start("total", total)
        if begins[0] != 0 or (begins.diff() < 0).any() or total < end:
            raise ValueError(
                "cu_seqlens must rise from 0 to at most total, as cumulative lengths "
                f"do; got total={total} and {begins.tolist()!s:.200}"
            )
    place = torch.arange(total, device=begins.device)
    return place - begins[torch.searchsorted(begins, place, right=True) - 1]


def segment_mask(segments: Tensor) -> Tensor:
    """Mask by which a token sees only its own segment: ``(batch, 1, seq, seq)``.

    ``segments`` ``(batch, seq)`` as in :func:`segment_positions`. Lesson 09.

    >>> segment_mask(torch.tensor([[7, 7, 8]]))[0, 0].int()
    tensor([[1, 1, 0],
            [1, 1, 0],
            [0, 0, 1]], dtype=torch.int32)
    """
    _check_segments(segments)
    return segments[:, None, :, None] == segments[:, None, None, :]


def _check_segments(segments: Tensor) -> None:
    if segments.ndim != 2:
        raise wrong_shape("segments", "(batch, seq)", segments)
