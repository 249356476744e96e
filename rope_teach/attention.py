"""Attention: queries meet keys, with whichever encoding tells them where they are.

RoPE and ALiBi act here, inside every layer. Sinusoidal and learned encodings are
added to the embeddings before the first layer, so :class:`LanguageModel` does that.
Built in lessons 01 and 03.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rope_teach.absolute import alibi_bias
from rope_teach.rotary import RotaryEmbedding
from rope_teach.rotation import check_choice, check_floating

__all__ = ["ENCODINGS", "Attention"]

ENCODINGS = ("none", "learned", "sinusoidal", "rope", "alibi")


class Attention(nn.Module):
    """Multi-head self-attention over ``(batch, seq, dim)``.

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
    rotary_dim, base
        Of :class:`RotaryEmbedding`, for ``"rope"`` alone.

    Raises ``ValueError`` where the sizes do not divide or a name is unknown.
    Source: Vaswani et al. (1706.03762), section 3.2; grouped-query: 2305.13245.

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
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        check_divides("dim", dim, "heads", heads)
        check_divides("heads", heads, "kv_heads", kv_heads)
        check_choice("encoding", encoding, ENCODINGS)
        if rotary_dim is not None and encoding != "rope":
            raise ValueError(f"rotary_dim needs encoding='rope', got {encoding!r}")
        self.dim, self.heads, self.kv_heads = dim, heads, kv_heads
        self.head_dim = dim // heads
        self.encoding, self.causal = encoding, causal
        self.query = nn.Linear(dim, heads * self.head_dim, bias=False)
        self.key = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(heads * self.head_dim, dim, bias=False)
        if encoding == "rope":
            self.rope = RotaryEmbedding(self.head_dim, rotary_dim=rotary_dim, base=base)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens of ``x`` ``(batch, seq, dim)``; the same shape comes back.

        ``mask`` is boolean and broadcasts to ``(batch, heads, seq, seq)``, queries
        before keys; a query sees a key where it is True. Padding is
        ``real[:, None, None, :]`` with ``real`` ``(batch, seq)``. A causal module
        hides later tokens in any case. A query that sees nothing returns zeros.
        """
        self._check_input(x)
        values = self._split(self.value(x), self.kv_heads)
        mixed = self._attend(x, values, mask).transpose(1, 2).flatten(2)
        out: Tensor = self.out(mixed)
        return out

    @torch.no_grad()
    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return how much each query takes of each key: ``(batch, heads, seq, seq)``.

        For figures; :meth:`forward` never builds this matrix.
        """
        self._check_input(x)
        batch, seq, _ = x.shape
        # Where the values are the rows of the identity, the result is the weights.
        identity = torch.eye(seq, dtype=x.dtype, device=x.device)
        return self._attend(x, identity.expand(batch, self.kv_heads, -1, -1), mask)

    def extra_repr(self) -> str:
        return f"encoding={self.encoding!r}, causal={self.causal}"

    def _attend(self, x: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        q = self._split(self.query(x), self.heads)
        k = self._split(self.key(x), self.kv_heads)
        if self.encoding == "rope":
            q, k = self.rope(q, k)  # never the values: lesson 09 shows why
        bias = self._bias(x, mask)
        return F.scaled_dot_product_attention(
            q,
            k,
            values,
            attn_mask=bias,
            is_causal=self.causal and bias is None,
            enable_gqa=self.kv_heads < self.heads,
        )

    def _bias(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """What is added to the logits; None where the causal flag says it all."""
        if mask is None and self.encoding != "alibi":
            return None
        seq = x.shape[1]
        seen = torch.ones(seq, seq, dtype=torch.bool, device=x.device)
        seen = seen.tril() if self.causal else seen
        if mask is not None:
            if mask.dtype != torch.bool:
                raise TypeError(f"mask must be boolean, got {mask.dtype}")
            seen = seen & mask
        bias = x.new_zeros(seq, seq)
        if self.encoding == "alibi":
            bias = alibi_bias(self.heads, seq).to(x)
        return bias.masked_fill(~seen, float("-inf"))

    def _check_input(self, x: Tensor) -> None:
        check_floating("x", x)
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(
                f"x must be (batch, seq, dim) with dim={self.dim}, got {tuple(x.shape)}"
            )

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """``(batch, seq, heads * head_dim)`` to ``(batch, heads, seq, head_dim)``."""
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)


def check_divides(name: str, whole: int, part_name: str, part: int) -> None:
    """Raise ``ValueError`` unless ``whole`` divides into ``part`` equal parts."""
    for label, size in ((name, whole), (part_name, part)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{label} must be a positive int, got {size!r}")
    if whole % part:
        raise ValueError(
            f"{name}={whole} does not divide into {part_name}={part} equal parts"
        )
