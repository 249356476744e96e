"""LanguageModel: the small transformer that the lessons train.

Built in lessons 01 and 03.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rope_teach.absolute import LearnedEncoding, SinusoidalEncoding
from rope_teach.attention import Attention, KeyValueCache, segment_positions

__all__ = ["LanguageModel"]

START = 0.3  # tokens and learned positions start equally loud; a sine has 0.7


class LanguageModel(nn.Module):
    """A transformer from token ids ``(batch, seq)`` to logits ``(batch, seq, vocab)``.

    Parameters
    ----------
    vocab
        Number of different tokens.
    dim, layers, heads
        Features of a token, blocks, heads of each block.
    encoding
        ``"none"``, ``"learned"``, ``"sinusoidal"``, ``"rope"`` or ``"alibi"``.
    max_len
        Rows of the learned encoding, the only one that needs it. A longer
        sequence raises ``ValueError``.
    kv_heads
        Heads of keys and values (default: as many as ``heads``).
    causal
        Whether a token sees itself and earlier tokens alone.
    rotary_dim, base
        Of :class:`RotaryEmbedding`, for ``"rope"`` alone.

    Token ids that are not integers raise ``TypeError``; ids outside the
    vocabulary raise ``ValueError``.

    >>> model = LanguageModel(256, encoding="rope")
    >>> model(torch.tensor([[72, 105, 33]])).shape
    torch.Size([1, 3, 256])
    """

    def __init__(
        self,
        vocab: int,
        dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        *,
        encoding: str = "none",
        max_len: int | None = None,
        kv_heads: int | None = None,
        causal: bool = True,
        rotary_dim: int | None = None,
        base: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.vocab = vocab
        self.embed = nn.Embedding(vocab, dim)
        nn.init.normal_(self.embed.weight, std=START)
        self.position = added_position(encoding, dim, max_len)
        self.blocks = nn.Sequential(
            *(
                Block(
                    Attention(
                        dim,
                        heads,
                        kv_heads=kv_heads,
                        encoding=encoding,
                        causal=causal,
                        rotary_dim=rotary_dim,
                        base=base,
                    )
                )
                for _ in range(layers)
            )
        )
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """Logits ``(batch, seq, vocab)`` of ``tokens`` ``(batch, seq)``.

        ``mask`` and ``positions`` as in :class:`Attention`, here for any encoding;
        ``caches`` from :meth:`caches`, one a block.
        """
        self._check_tokens(tokens)
        each_cache = [None] * len(self.blocks) if caches is None else caches
        if len({id(cache) for cache in caches or self.blocks}) != len(self.blocks):
            raise ValueError(
                f"caches must be {len(self.blocks)} different caches, one a block: "
                "model.caches() makes them"
            )
        x = self._add_position(self.embed(tokens), positions, each_cache[0])
        for block, cache in zip(self.blocks, each_cache, strict=True):
            x = block(x, mask, positions=positions, cache=cache)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def caches(self, start: int = 0) -> list[KeyValueCache]:
        """Empty caches, one a block; ``start`` is the position of the first token."""
        return [KeyValueCache(start) for _ in self.blocks]

    def _add_position(
        self, x: Tensor, positions: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        if isinstance(self.position, nn.Identity):
            return x
        if positions is None and cache is not None:
            places = torch.arange(x.shape[1], device=x.device)
            first = torch.as_tensor(cache.next, device=x.device)
            positions = first.unsqueeze(-1) + places
        added: Tensor = self.position(x, positions=positions)
        return added

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.dtype != torch.long or tokens.ndim != 2:
            raise TypeError(
                "tokens must be int64 of shape (batch, seq), got "
                f"{tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < self.vocab:
            raise ValueError(
                f"token ids must lie between 0 and {self.vocab - 1}, got "
                f"{tokens.min()} to {tokens.max()}"
            )


class Block(nn.Module):
    """Attention, then a small network on each token; each adds to its input."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        dim = attention.dim
        self.attention_norm, self.network_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.attention = attention
        self.network = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        x = x + self.attention(
            self.attention_norm(x), mask, positions=positions, cache=cache
        )
        x = x + self.network(self.network_norm(x))
        return x


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Tensor,
    steps: int,
    *,
    real: Tensor | None = None,
    cache: bool = True,
) -> Tensor:
    """Append the likeliest next token, ``steps`` times: ``(batch, seq + steps)``.

    Parameters
    ----------
    real
        ``(batch, seq)`` bool, False for the padding of shorter prompts. It must
        stand on the left: the next token follows the last one. Positions count
        from each prompt's first real token.
    cache
        Whether to keep keys and values, or to read everything again each step. The
        result is the same.

    Lesson 09.
    """
    if real is not None and not bool(real[:, -1].all()):
        raise ValueError("padding must stand on the left, got a prompt that ends in it")
    caches = model.caches() if cache else None
    for _ in range(steps):
        known = caches[0].length if caches else 0
        mask = positions = None
        if real is not None:
            mask, positions = real[:, None, None], segment_positions(real)[:, known:]
        logits = model(tokens[:, known:], mask, positions=positions, caches=caches)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
        real = real if real is None else F.pad(real, (0, 1), value=True)
    return tokens


def added_position(encoding: str, dim: int, max_len: int | None) -> nn.Module:
    """What adds the position to the embeddings; RoPE and ALiBi act in attention."""
    if encoding == "sinusoidal":
        return SinusoidalEncoding(dim)
    if encoding != "learned":
        return nn.Identity()
    if max_len is None:
        raise ValueError("encoding='learned' needs max_len, its number of rows")
    table = LearnedEncoding(max_len, dim)
    nn.init.normal_(table.weight, std=START)
    return table
