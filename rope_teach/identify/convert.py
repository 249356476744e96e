"""From one convention to another: the permutation of features, if there is one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rope_teach.identify.report import Report

__all__ = ["Conversion", "conversion"]


@dataclass(frozen=True)
class Conversion:
    """How to go from one function to another, or why there is no way.

    Feature i of the target is feature ``permutation[i]`` of the source; ``reason`` says
    why ``permutation`` is None. Lesson 20.
    """

    permutation: tuple[int, ...] | None
    reason: str | None = None

    def activations(self, x: Tensor) -> Tensor:
        """Reorder the last axis of q or k, ``(..., head_dim)``."""
        return x[..., self._order(x.device)]

    def projection(self, weight: Tensor, heads: int) -> Tensor:
        """Reorder the rows of a q or k projection, or its bias, head by head.

        ``weight`` is ``(heads * head_dim, in_features)`` or ``(heads * head_dim,)``;
        ``heads`` are those of this tensor, as in ``convert_projection``.
        """
        order = self._order(weight.device)
        if weight.shape[0] != heads * len(order):
            raise ValueError(
                f"weight must have heads * head_dim = {heads} * {len(order)} rows, got "
                f"{weight.shape[0]}"
            )
        return weight.unflatten(0, (heads, -1))[:, order].flatten(0, 1)

    def _order(self, device: torch.device) -> Tensor:
        if self.permutation is None:
            raise ValueError(f"there is no conversion: {self.reason}")
        return torch.tensor(self.permutation, device=device)


def conversion(source: Report, target: Report) -> Conversion:
    """Find the permutation that makes ``target`` do to q and k what ``source`` did.

    Reorder q and k, or the rows of their projections, and scores stay the same. Pairs
    may stand elsewhere and may turn the other way (their two features then change
    places). Speeds cannot be fixed by a permutation, nor can anything broken.
    Lesson 20.

    >>> from rope_teach import RotaryEmbedding
    >>> from rope_teach.identify import identify
    >>> meta = identify(RotaryEmbedding(8))
    >>> hugging_face = identify(RotaryEmbedding(8, pairing="half"))
    >>> conversion(meta, hugging_face).permutation
    (0, 2, 4, 6, 1, 3, 5, 7)
    """
    reason = _no_conversion(source, target)
    if reason is not None:
        return Conversion(None, reason)
    order = [-1] * source.head_dim
    for (a, b), (c, d) in zip(source.pairs, target.pairs, strict=True):
        order[c], order[d] = (a, b) if source.sign == target.sign else (b, a)
    still = iter(sorted(set(range(source.head_dim)) - set(order)))
    return Conversion(tuple(next(still) if i < 0 else i for i in order))


def _no_conversion(source: Report, target: Report) -> str | None:
    for which, report in (("source", source), ("target", target)):
        if not isinstance(report, Report):
            raise TypeError(f"{which} must be a Report of identify, got {report!r}")
        if not report.correct:
            return f"the {which} breaks {report.law}: {report.cause}"
    if source.head_dim != target.head_dim or len(source.pairs) != len(target.pairs):
        return (
            f"{2 * len(source.pairs)} of {source.head_dim} features are rotated in the "
            f"source, {2 * len(target.pairs)} of {target.head_dim} in the target"
        )
    tables_are_brought = not (source.inv_freq and target.inv_freq)
    speeds = zip(source.inv_freq, target.inv_freq, strict=False)
    if not tables_are_brought and not all(_close(a, b, 1e-5) for a, b in speeds):
        said = [
            " ".join(str(word) for word in ("base", r.base, r.scaling) if word)
            for r in (source, target)
        ]
        return f"other speeds ({said[0]}; {said[1]}), which no permutation changes"
    for name in ("attention_factor", "xpos_scale_base", "xpos_origin"):
        a, b = getattr(source, name), getattr(target, name)
        if not _close(a, b, 1e-3):
            return f"{name} is {a} in the source and {b} in the target"
    return None


def _close(a: float | None, b: float | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=tolerance)
