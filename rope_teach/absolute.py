"""Encodings that are not rotations: sinusoidal, learned, and ALiBi's bias.

RoPE is compared with them. Built in lessons 02 and 03.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rope_teach.checks import (
    check_count,
    check_embeddings,
    check_integers,
    check_number,
    check_pair,
    check_positions,
    check_rotary_dim,
    check_start,
    without_wrapping,
)
from rope_teach.frequencies import inverse_frequencies
from rope_teach.ops import has_memory
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
    """Sinusoidal code of each position: sin and cos of each angle, interleaved.

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
    ``(seq,)`` or ``(batch, seq)``. No parameters, and no maximum length. Lesson 02.
    """

    def __init__(self, dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        check_rotary_dim(dim, "dim")
        check_number("base", base, above=0)
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

    ``start`` and ``positions`` as in :class:`SinusoidalEncoding`, but int64 or int32.
    There are ``max_len`` rows and no more: a longer sequence raises ``ValueError``. A
    compiled or exported model cannot look at the positions it is given, and adds NaN to
    tokens outside the table. The result has the wider dtype of ``x`` and the table.
    Source: BERT, GPT-2. Lesson 03.
    """

    def __init__(self, max_len: int, dim: int) -> None:
        super().__init__()
        check_count("max_len", max_len)
        check_count("dim", dim)
        self.max_len, self.dim = max_len, dim
        self.weight = nn.Parameter(torch.empty(max_len, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the rows anew, with a standard deviation of 0.02."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(
        self, x: Tensor, start: int = 0, positions: Tensor | None = None
    ) -> Tensor:
        """Add the row of each position to ``x`` ``(batch, seq, dim)``."""
        check_embeddings(x, self.dim, start, positions)
        if positions is None:
            end = start + x.shape[-2]
            self._check_range(start, end - 1)
            return x + self.weight[start:end]
        check_integers("positions", positions)
        positions = positions.long()
        if torch.compiler.is_compiling() or not (
            positions.is_meta or has_memory(positions)
        ):
            # A graph cannot raise for an index, and -1 would read the last row.
            known = (positions >= 0) & (positions < self.max_len)
            rows = self.weight[positions.clamp(0, self.max_len - 1)]
            return x + rows.masked_fill(~known.unsqueeze(-1), math.nan)
        if positions.numel() and not positions.is_meta:
            self._check_range(*torch.stack(positions.aminmax()).tolist())
        return x + self.weight[positions]

    def _check_range(self, first: int, last: int) -> None:
        if first < 0 or last >= self.max_len:
            raise ValueError(
                f"positions {first} to {last} were asked for, but this table has "
                f"max_len={self.max_len} rows (0 to {self.max_len - 1}); a learned "
                "encoding has nothing to say past its table"
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
    power = 1 << (heads.bit_length() - 1)
    exact = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    finer = [2 ** (-4 * h / power) for h in range(1, 2 * (heads - power), 2)]
    return torch.tensor(exact + finer, dtype=torch.float32)


def alibi_bias(
    heads: int,
    q_len: int | None = None,
    k_len: int | None = None,
    *,
    positions: Tensor | tuple[Tensor, Tensor] | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """ALiBi's bias to add to attention logits: ``-slope * distance``.

    From lengths: ``(heads, q_len, k_len)`` float32. The last query is at the last key,
    so a cached decode step passes ``q_len=1``. From ``positions``, one tensor or a
    pair for queries and keys, each ``(seq,)`` or ``(batch, seq)``: the same shape, or
    ``(batch, heads, q_len, k_len)``, in float64 if they are. The distance is unsigned;
    causal models mask the keys ahead. Raises ``TypeError`` or ``ValueError`` if neither
    or both are given, or if they do not fit together. Source: Press et al.
    (2108.12409). Lesson 03.

    >>> alibi_bias(1, 3)
    tensor([[[-0.0000, -0.0039, -0.0078],
             [-0.0039, -0.0000, -0.0039],
             [-0.0078, -0.0039, -0.0000]]])
    >>> alibi_bias(1, positions=torch.tensor([7, 0, 1]))[0, 0]
    tensor([-0.0000, -0.0273, -0.0234])
    """
    if positions is None:
        positions = _last_positions(q_len, k_len, device)
    elif not (q_len is None and k_len is None and device is None):
        raise ValueError("give positions, or q_len, k_len and device, not both")
    pair = (positions, positions) if isinstance(positions, Tensor) else positions
    q, k = check_pair(pair)
    check_positions("positions", q)
    check_positions("positions", k)
    batches = {len(x) for x in (q, k) if x.ndim == 2} - {1}
    if not {q.ndim, k.ndim} <= {1, 2} or len(batches) > 1:
        raise ValueError(
            "positions must be (seq,) or (batch, seq), with one batch for both, got "
            f"{tuple(q.shape)} and {tuple(k.shape)}"
        )
    q, k = without_wrapping(q), without_wrapping(k)
    distance = (q.unsqueeze(-1) - k.unsqueeze(-2)).abs().unsqueeze(-3)
    return -alibi_slopes(heads).to(distance.device)[:, None, None] * distance


def _last_positions(
    q_len: int | None, k_len: int | None, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """Positions of queries and keys, aligned at the last token."""
    if q_len is None:
        raise ValueError("alibi_bias needs q_len or positions, got neither")
    k_len = q_len if k_len is None else k_len
    for name, value in (("q_len", q_len), ("k_len", k_len)):
        check_start(name, value, "an int (positions are given as positions=...)")
    if not 0 <= q_len <= k_len:
        raise ValueError(
            f"q_len must lie between 0 and k_len, got q_len={q_len}, k_len={k_len}"
        )
    k = torch.arange(k_len, device=device)
    return k[k_len - q_len :], k
