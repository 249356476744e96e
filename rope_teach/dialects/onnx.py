"""The ONNX standard's operator ``RotaryEmbedding`` (opset 23), and export to it.

The operator takes half-width tables and rotates; it knows no base and no scaling rule.
Lesson 20.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rope_teach.checks import (
    Layout,
    Pairing,
    axes_of,
    check_count,
    check_floating,
    check_one_length,
    check_pair,
    check_positions,
    check_start,
)
from rope_teach.ops import rotate
from rope_teach.rotary import RotaryEmbedding
from rope_teach.tables import cos_sin

__all__ = ["rotary_embedding", "exportable", "ExportableRotary"]

Module = TypeVar("Module", bound=nn.Module)


def rotary_embedding(
    X: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: bool | int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Rotate ``X`` as the operator says, with its names and defaults.

    Parameters
    ----------
    X
        ``(batch, heads, seq, head_dim)``, or ``(batch, seq, heads * head_dim)`` with
        ``num_heads``.
    cos_cache, sin_cache
        ``(positions, r/2)`` with ``position_ids``, ``(batch, seq, r/2)`` without.
    position_ids
        ``(batch, seq)``: the row of the tables that belongs to each token.
    interleaved
        1: pairs (0, 1)(2, 3)...; 0: pairs (0, r/2)(1, r/2 + 1)...
    num_heads
        Heads of a three-dimensional ``X``.
    rotary_embedding_dim
        ``r``, the rotated features of each head; 0 means all.

    Returns
    -------
    Tensor
        Like ``X``, in its dtype.

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit each other, or a position is not a row of the tables.

    Notes
    -----
    Ours differs from the reference evaluator in what that lets pass: position -1 reads
    the last row there, and 16-bit inputs are rounded at every step; here once.

    Source: the ONNX specification, operator RotaryEmbedding, version 23. Lesson 20.

    Examples
    --------
    >>> X = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    >>> cos, sin = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> rotary_embedding(X, cos, sin, torch.tensor([[0]]), interleaved=1)
    tensor([[[[-2.,  1.,  3.,  4.]]]])
    """
    check_floating("X", X)
    if X.ndim == 3:
        check_count("num_heads", num_heads)  # the standard: required for this shape
        if X.shape[2] % num_heads:
            raise ValueError(
                f"X of shape {tuple(X.shape)} does not divide into num_heads="
                f"{num_heads} heads"
            )
        heads = X.unflatten(2, (num_heads, -1))
    elif X.ndim == 4:
        heads = X
    else:
        raise ValueError(
            "X must be (batch, heads, seq, head_dim) or (batch, seq, heads * "
            f"head_dim), got {tuple(X.shape)}"
        )
    pairs = (rotary_embedding_dim or heads.shape[-1]) / 2
    for name, cache in (("cos_cache", cos_cache), ("sin_cache", sin_cache)):
        check_floating(name, cache)
        if cache.ndim != (3 if position_ids is None else 2) or cache.shape[-1] != pairs:
            axes = "(batch, seq" if position_ids is None else "(positions"
            raise ValueError(
                f"{name} must be {axes}, r/2 = {pairs:g}) "
                f"{'without' if position_ids is None else 'with'} position_ids, got "
                f"{tuple(cache.shape)}"
            )
    layout: Layout = "bshd" if X.ndim == 3 else "bhsd"
    if position_ids is not None:
        if cos_cache.shape != sin_cache.shape:
            raise ValueError(
                "cos_cache and sin_cache must have one shape, got "
                f"{tuple(cos_cache.shape)} and {tuple(sin_cache.shape)}"
            )
        _check_rows(position_ids, cos_cache.shape[0])
        position_ids = position_ids.long()  # uint8 would index as a mask
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]
    pairing: Pairing = "interleaved" if interleaved else "half"
    return rotate(heads, cos_cache, sin_cache, pairing, layout).reshape(X.shape)


def exportable(module: Module, length: int) -> Module | ExportableRotary:
    """Copy ``module`` so that each rotation in it exports as the standard's operator.

    Every :class:`RotaryEmbedding` inside becomes an :class:`ExportableRotary` with
    tables of ``length`` positions; ``module`` itself may be one. Then
    ``torch.onnx.export(exportable(model, 4096).eval(), ..., dynamo=True,
    opset_version=23)`` writes one node ``RotaryEmbedding`` for each rotated tensor,
    where the formula becomes 8 or, interleaved, 15. It needs onnxscript. Raises
    ``ValueError`` if there is nothing to replace. Lesson 20.

    >>> model = nn.ModuleDict({"rope": RotaryEmbedding(64)})
    >>> exportable(model, length=128)
    ModuleDict(
      (rope): ExportableRotary(rotary_dim=64, length=128)
    )
    """
    if isinstance(module, RotaryEmbedding):
        return ExportableRotary(module, length)
    module = copy.deepcopy(module)
    twins: dict[tuple[object, ...], ExportableRotary] = {}
    for path, child in list(module.named_modules(remove_duplicate=False)):
        if isinstance(child, RotaryEmbedding):
            # Layers that rotate alike share one pair of tables in the file.
            alike = (str(child), *child.inv_freq.flatten().tolist())
            if alike not in twins:
                twins[alike] = ExportableRotary(child, length)
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, twins[alike])
    if not twins:
        raise ValueError(
            f"module must be or contain a RotaryEmbedding; {type(module).__name__} "
            "has none"
        )
    return module


class ExportableRotary(nn.Module):
    """A :class:`RotaryEmbedding` whose rotation of a tensor exports as one operator.

    Parameters
    ----------
    rope
        The module to stand in for: any pairing, scaling and frequencies, with the batch
        first; leading features, one axis of positions, and no xPos.
    length
        Rows of the tables: positions 0 to ``length - 1`` can be used.

    Notes
    -----
    The tables are computed in float64 and held in float32. The operator wants them in
    the dtype of its input: in a 16-bit model each entry is rounded once, whatever its
    position. Going backward raises.

    Lesson 20.

    Examples
    --------
    >>> rope = ExportableRotary(RotaryEmbedding(64), length=128)
    >>> q = k = torch.randn(1, 2, 10, 64)
    >>> q, k = rope(q, k, torch.arange(10))
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, rope: RotaryEmbedding, length: int) -> None:
        super().__init__()
        check_count("length", length)
        if rope.axes > 1 or rope.xpos_scale_base is not None:
            raise ValueError(
                "the operator has one table for positions on one axis: neither several "
                f"axes nor xPos can be exported to it, got {rope}"
            )
        if rope.trailing or rope.layout == "sbhd":
            raise ValueError(
                "the operator rotates leading features of (batch, heads, seq, head_dim)"
                f": neither trailing nor layout='sbhd' can be exported, got {rope}"
            )
        self.head_dim, self.rotary_dim = rope.head_dim, rope.rotary_dim
        self.layout, self.interleaved = rope.layout, rope.pairing == "interleaved"
        self.length = length
        cos, sin = cos_sin(torch.arange(length), rope.inv_freq.detach().cpu())
        sin = -sin if rope.clockwise else sin
        self.register_buffer("cos", cos * rope.attention_factor, persistent=False)
        self.register_buffer("sin", sin * rope.attention_factor, persistent=False)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        positions: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        start: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Rotate ``(batch, heads, seq, head_dim)`` as :class:`RotaryEmbedding` does.

        Or ``(batch, seq, heads, head_dim)``, by its layout. ``positions`` are
        integers, ``(seq,)`` or ``(batch, seq)``, or a pair of them for q and k. There
        is no ``pad_len``, and ``start`` is one for all: give positions, 0 for padding.

        Raises ``ValueError`` for a position without a row, unless in a graph.
        """
        check_start("start", start)
        if positions is not None and start != 0:
            raise ValueError("give positions, or start, not both")
        pair: Any = positions
        if not isinstance(positions, (tuple, list)):
            seq_axis = axes_of(4, self.layout)[2]
            check_one_length(q.shape[seq_axis], k.shape[seq_axis], self.layout)
            pair = positions, positions
        pair = check_pair(pair)
        return self._rotate(q, pair[0], start), self._rotate(k, pair[1], start)

    def _rotate(self, x: Tensor, positions: Tensor | None, start: int) -> Tensor:
        if x.ndim != 4 or x.shape[-1] != self.head_dim:
            raise ValueError(
                f"q and k must have four axes in layout={self.layout!r} and end in "
                f"head_dim={self.head_dim}, got {tuple(x.shape)}"
            )
        x = x.transpose(1, 2) if self.layout == "bshd" else x
        batch, heads, seq, _ = x.shape
        if positions is None:
            positions = torch.arange(start, start + seq, device=x.device)
        if not torch.compiler.is_compiling():  # a graph cannot ask for values
            _check_rows(positions, self.length, "positions")
        positions = positions.long()  # uint8 would index as a mask
        rotated = torch.onnx.ops.rotary_embedding(
            x,
            self.cos.to(x.dtype),
            self.sin.to(x.dtype),
            positions.expand(batch, seq),
            interleaved=self.interleaved,
            num_heads=heads,
            rotary_embedding_dim=self.rotary_dim % self.head_dim,  # 0: all
        )
        return rotated.transpose(1, 2) if self.layout == "bshd" else rotated

    def extra_repr(self) -> str:
        return f"rotary_dim={self.rotary_dim}, length={self.length}"


def _check_rows(position_ids: Tensor, rows: int, name: str = "position_ids") -> None:
    check_positions(name, position_ids)
    if position_ids.is_floating_point():
        raise TypeError(f"{name} must be integers, got {position_ids.dtype}")
    if torch.compiler.is_compiling() or not position_ids.numel():
        return  # a graph cannot ask for values
    ids = position_ids.long()  # some unsigned types have no min
    try:
        fits = bool((ids.min() >= 0) & (ids.max() < rows))
    except RuntimeError:  # on meta, a fake, or a batch inside vmap
        return
    if not fits:
        raise ValueError(
            f"{name} must be rows of the tables, 0 to {rows - 1}, got "
            f"{ids.min()} to {ids.max()}"
        )
