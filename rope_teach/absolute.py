"""Encodings that are not rotations: sinusoidal, learned, and ALiBi's bias.

They are what RoPE is held against. Built in lessons 02 and 03.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rope_teach.checks import (
    check_base,
    check_count,
    check_embeddings,
    check_rotary_dim,
)
from rope_teach.frequencies import inverse_frequencies
from rope_teach.tables import angles

__all__ = [
    "sinusoidal",
    "SinusoidalEncoding",
    "LearnedEncoding",
    "alibi_slopes",
    "alibi_bias",
]


def sinusoidal(
    positions: Tensor,
    dim: int,
    base: float = 10_000.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sinusoidal code of each position: sin and cos of every hand, interleaved.

    ``positions`` (any shape, in tokens) gives ``(*positions.shape, dim)`` with
    ``[..., 2i] = sin(m inv_freq[i])`` and ``[..., 2i + 1] = cos(m inv_freq[i])``.
    Raises ``ValueError`` for an odd ``dim``.

    Source: Vaswani et al. (1706.03762), section 3.5. Lesson 02.

    >>> sinusoidal(torch.tensor([0, 1]), 4)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    check_rotary_dim(dim, "dim")
    angle = angles(positions, inverse_frequencies(dim, base))
    code = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
    return code.to(device=positions.device, dtype=dtype)


class SinusoidalEncoding(nn.Module):
    """Add the sinusoidal code to token embeddings ``(batch, seq, dim)``.

    ``start`` is the position of the first token; or give all ``positions``,
    ``(seq,)`` or ``(batch, seq)``. No parameters, no longest sequence. Lesson 02.
    """

    def __init__(self, dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        check_rotary_dim(dim, "dim")
        check_base(base)
        self.dim, self.base = dim, base

    def forward(
        self, x: Tensor, start: int = 0, positions: Tensor | None = None
    ) -> Tensor:
        """Add the code of each position to ``x`` ``(batch, seq, dim)``."""
        check_embeddings(x, self.dim, start, positions)
        if positions is None:
            positions = torch.arange(start, start + x.shape[-2], device=x.device)
        return x + sinusoidal(positions, self.dim, self.base, x.dtype)

    def extra_repr(self) -> str:
        return f"{self.dim}, base={self.base}"


class LearnedEncoding(nn.Module):
    """Add a learned row for each position to embeddings ``(batch, seq, dim)``.

    ``start`` is the position of the first token; or give all ``positions``,
    ``(seq,)`` or ``(batch, seq)``, int64. There are ``max_len`` rows and no more: a
    longer sequence raises ``ValueError``. Source: BERT, GPT-2. Lesson 03.
    """

    def __init__(self, max_len: int, dim: int) -> None:
        super().__init__()
        check_count("max_len", max_len)
        check_count("dim", dim)
        self.max_len, self.dim = max_len, dim
        self.weight = nn.Parameter(torch.empty(max_len, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(
        self, x: Tensor, start: int = 0, positions: Tensor | None = None
    ) -> Tensor:
        """Add the row of each position to ``x`` ``(batch, seq, dim)``."""
        check_embeddings(x, self.dim, start, positions)
        if positions is not None and positions.numel():
            first, last = int(positions.min()), int(positions.max())
        else:
            first, last = start, start + x.shape[-2] - 1
        if first < 0 or last >= self.max_len:
            raise ValueError(
                f"positions {first} to {last} were asked for, but this table has "
                f"max_len={self.max_len} rows (0 to {self.max_len - 1}); a learned "
                "encoding has nothing to say past its table"
            )
        return (
            x + self.weight[slice(first, last + 1) if positions is None else positions]
        )

    def extra_repr(self) -> str:
        return f"max_len={self.max_len}, {self.dim}"


def alibi_slopes(heads: int) -> Tensor:
    """ALiBi's slope for each head, ``(heads,)`` float32.

    ``2 ** (-8 h / heads)`` for h = 1..heads when ``heads`` is a power of two;
    otherwise the slopes of the next lower power, then every other slope of the
    next higher one. Source: Press et al. (2108.12409) and its code. Lesson 03.

    >>> alibi_slopes(4)
    tensor([0.2500, 0.0625, 0.0156, 0.0039])
    """
    check_count("heads", heads)
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    if power < heads:
        finer = [2 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1)]
        slopes += finer[0::2][: heads - power]
    return torch.tensor(slopes, dtype=torch.float32)


def alibi_bias(
    heads: int,
    q_len: int,
    k_len: int | None = None,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """ALiBi's bias to add to attention logits: ``-slope * distance``.

    Returns ``(heads, q_len, k_len)`` float32. The last query stands at the last
    key, so that a cached decode step passes ``q_len=1``. The distance is taken
    without its sign; causal models mask the keys that lie ahead. Lesson 03.

    >>> alibi_bias(1, 3)
    tensor([[[-0.0000, -0.0039, -0.0078],
             [-0.0039, -0.0000, -0.0039],
             [-0.0078, -0.0039, -0.0000]]])
    """
    k_len = q_len if k_len is None else k_len
    if not 0 <= q_len <= k_len:
        raise ValueError(
            f"q_len must lie between 0 and k_len, got q_len={q_len}, k_len={k_len}"
        )
    keys = torch.arange(k_len, device=device)
    distance = (keys[k_len - q_len :, None] - keys).abs()
    return -alibi_slopes(heads).to(device)[:, None, None] * distance
