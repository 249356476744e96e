"""LanguageModel: the small transformer that the lessons train.

Built in lessons 01 and 03.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rope_teach.absolute import LearnedEncoding, SinusoidalEncoding
from rope_teach.attention import Attention

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
        causal: bool = True,
        rotary_dim: int | None = None,
        base: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.vocab = vocab
        self.embed = nn.Embedding(vocab, dim)
        nn.init.normal_(self.embed.weight, std=START)
        self.position: nn.Module = nn.Identity()
        if encoding == "sinusoidal":
            self.position = SinusoidalEncoding(dim)
        elif encoding == "learned":
            if max_len is None:
                raise ValueError("encoding='learned' needs max_len, its number of rows")
            self.position = LearnedEncoding(max_len, dim)
            nn.init.normal_(self.position.weight, std=START)
        self.blocks = nn.Sequential(
            *(
                Block(
                    Attention(
                        dim,
                        heads,
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

    def forward(self, tokens: Tensor) -> Tensor:
        self._check_tokens(tokens)
        x: Tensor = self.position(self.embed(tokens))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits

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

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        x = x + self.network(self.network_norm(x))
        return x
