"""Whose RoPE is this? Probe any function that rotates, and read its conventions.

A rotation acts on each token by itself and is linear, so what it does to basis vectors
at a few positions says all: which features form pairs, by which angle each pair turns,
and so the speeds of the hands, the base and the scaling rule. What is no rotation, or
no RoPE, is reported with the law that it breaks, the likely cause and the mend.

To read it from the start: ``layers`` makes a function of whatever is given, ``probe``
finds out how to call it, ``hands`` reads pairs and angles, ``rules`` names what made
them, ``faults`` what can be wrong; here they become a ``report``. ``convert`` compares
two reports.

What cannot be told from outside:

- Names that differ and functions that do not: base 100, and base 10 000 with the
  exponent -i/d; NTK-aware scaling, and a larger base; an offset that q and k share.
  The notes name the other reading.
- What happens past the longest position tried (``longest``), or at any but 0, 1, ...
  where positions cannot be given. A function that keeps a table may answer from it.
- float32 from float64 angles, where a short table or a 16-bit output hides it; the base
  of a single pair; a YaRN that slows no hand by its whole factor, and the parameters
  of LongRoPE: their scaling is ``"unknown"``, and ``inv_freq`` has what was measured.
- Positions with several axes, as images have them; layers that join q and k from parts,
  as DeepSeek's latent attention does (probe the function that they rotate with).
- Whether the *weights* were trained for these conventions: no function knows that.

Lesson 20.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rope_teach.identify.convert import Conversion, conversion
from rope_teach.identify.faults import FAULTS, Broken
from rope_teach.identify.hands import (
    Hands,
    follow_hands,
    read_pairs,
    rounded_by_bfloat16,
    wrap,
)
from rope_teach.identify.layers import as_function
from rope_teach.identify.probe import SEQ, CannotProbe, Probe, find
from rope_teach.identify.report import Report
from rope_teach.identify.rules import Rule, recognize

__all__ = ["FAULTS", "CannotProbe", "Conversion", "Report", "conversion", "identify"]


def identify(
    function: Any,
    *,
    call: str | None = None,
    head_dim: int | None = None,
    layout: str | None = None,
    dtype: torch.dtype | None = None,
) -> Report:
    """Find out how ``function`` rotates, or which law it breaks, and why.

    Parameters
    ----------
    function
        A function of x, of q and k, with positions, a start or tables of cos and sin;
        a module; an attention layer with projections of its own for q and k; a model.
    call
        The arguments by role, such as ``"q, k, cos, sin"``, where they are not found
        out: ``x q k positions start cos sin phases freqs``.
    head_dim, layout
        Features of a head, and the axes of x: ``"bhsd"``, ``"bshd"``, ``"sbhd"``,
        ``"bsd"`` or ``"sd"``. Say the layout to find positions that run over the heads.
    dtype
        Of x. Some libraries take it for their positions: try ``torch.bfloat16``.
        Default: float32, or that of a layer's weights.

    Raises
    ------
    TypeError, CannotProbe
        If ``function`` cannot be called, no way to call it was found, or it does not
        rotate. ``CannotProbe`` is a ``ValueError``.

    Notes
    -----
    Lesson 20.

    Examples
    --------
    >>> from rope_teach import RotaryEmbedding
    >>> report = identify(RotaryEmbedding(64, pairing="half", base=500_000.0))
    >>> report.pairing, report.sign, report.base, report.correct
    ('half', 1, 500000.0, True)
    """
    subject = as_function(function)
    probes = find(subject, call=call, head_dim=head_dim, layout=layout, dtype=dtype)
    reports = []
    for probe in probes:  # more than one where the caller brings tables
        reports.append(_report(probe))
        if reports[-1].correct:
            return reports[-1]
    return reports[0]


def _report(probe: Probe) -> Report:
    call = ", ".join(probe.names)
    facts: dict[str, Any] = {"head_dim": probe.head_dim, "layout": probe.layout}
    facts |= {"notes": (), "scaling": None}
    try:
        _read(probe, facts)
    except Broken as broken:
        facts |= {"fault": broken.name, **broken.fault._asdict()}
    name = probe.subject.name
    return Report(name=name, call=call, **facts)


def _read(probe: Probe, facts: dict[str, Any]) -> None:
    """Fill ``facts``, from the coarse to the fine; raise at the first law broken."""
    probe, pairs = read_pairs(probe)
    facts |= {"layout": probe.layout, "pairs": _as_pairs(pairs)}
    facts |= _name_pairing(pairs)
    outputs = follow_hands(probe, pairs)
    facts["longest"] = len(outputs[0].angles) - 1
    if facts["pairing"] == "another":
        order = outputs[0].speeds.abs().argsort(descending=True)
        sign = outputs[0].speeds[order].sign()
        outputs = [hands.take(order, sign) for hands in outputs]
        facts["pairs"] = _as_pairs(outputs[0].pairs)
    if len(outputs) == 2:
        outputs = _without_softmax_scale(outputs, facts)
    rule = _name_rule(probe, outputs[0], facts)
    facts["position_offset"] = _offset(outputs[0], facts["sign"] * rule.speeds)
    _name_lengths(probe, outputs, facts)
    if len(outputs) == 2:
        _check_q_and_k(outputs[0], outputs[1], facts)
    if not probe.takes_tables:
        facts["angle_dtype"] = _angle_dtype(outputs[0], rule, facts)
        if rounded_by_bfloat16(probe, outputs[0]):
            facts["notes"] += (
                "bfloat16 inputs get wrong angles: dtype=torch.bfloat16 says which",
            )


def _as_pairs(pairs: Tensor) -> tuple[tuple[int, int], ...]:
    return tuple((a, b) for a, b in pairs.tolist())


def _name_pairing(pairs: Tensor) -> dict[str, Any]:
    """Pairing, rotary_dim and where in the head the rotated features begin."""
    first, gap = pairs[:, 0], pairs[:, 1] - pairs[:, 0]
    count, offset, step = len(pairs), int(first.min()), int(gap[0])
    place = torch.arange(count)
    name, width = "another", 2 * count
    if (gap == 1).all() and torch.equal(first, offset + 2 * place):
        name = "interleaved"
    elif (gap == step).all() and torch.equal(first, offset + place) and step >= count:
        name, width = "half", 2 * step
    return {"pairing": name, "rotary_dim": width, "rotary_offset": offset}


def _without_softmax_scale(outputs: list[Hands], facts: dict[str, Any]) -> list[Hands]:
    """Divide out the scale of the attention product, which may come before it."""
    factors = [float(hands.lengths.median()) for hands in outputs]
    scale = facts["head_dim"] ** -0.5
    if not math.isclose(math.prod(factors), scale, rel_tol=1e-3):
        return outputs
    facts["notes"] += ("q and k bring the softmax scale with them, head_dim ** -0.5",)
    return [
        replace(hands, lengths=hands.lengths / factor)
        for hands, factor in zip(outputs, factors, strict=True)
    ]


def _name_rule(probe: Probe, hands: Hands, facts: dict[str, Any]) -> Rule:
    signs = hands.speeds.sign()
    facts["sign"] = int(signs[0])
    speeds = hands.speeds * signs[0]
    rule = recognize(speeds, facts["rotary_dim"], probe.head_dim, hands.slack)
    if probe.takes_tables:
        form = {"half": "repeated by cat", "interleaved": "by repeat_interleave"}
        facts["notes"] += (
            "base and scaling come with the tables that the caller brings, one column "
            f"a pair {form.get(probe.table, '')}".rstrip(),
        )
    else:
        facts |= {"base": rule.base, "scaling": rule.scaling}
        facts["notes"] += rule.notes
        facts["parameters"] = rule.parameters
        facts["inv_freq"] = tuple(rule.speeds.tolist())
    if rule.scaling == "proportional":
        facts["rotary_dim"] = round(2 * len(hands.pairs) / rule.parameters["fraction"])
    if rule.fault is not None:
        raise Broken(rule.fault, **rule.values)
    other = (speeds < -hands.slack).nonzero().flatten().tolist()
    if other:
        raise Broken("signs_differ", hands=other)
    return rule


def _offset(hands: Hands, speeds: Tensor) -> float:
    """The position of the first token: whole, or half as of a pixel's centre."""
    start = hands.angles[0]
    if (start.abs() - math.pi / 2).abs().max() < 0.01:
        raise Broken("swapped")
    if (start.abs() <= 8 * hands.noise).all():
        return 0.0
    places = torch.arange(-8192, 8193, dtype=torch.float64) / 2
    places = places[places.abs().argsort(stable=True)]
    allowed = 8 * hands.noise + 1e-6 * places.abs()[:, None] * speeds.abs()
    fits = (wrap(start - places[:, None] * speeds).abs() <= allowed).all(1).nonzero()
    if not len(fits):
        raise Broken("turned_at_zero")
    return float(places[fits[0, 0]])


def _name_lengths(probe: Probe, outputs: list[Hands], facts: dict[str, Any]) -> None:
    """What cos and sin are multiplied by: nothing, YaRN's factor, or xPos."""
    hands = outputs[0]
    growth = hands.growth
    if growth.abs().max() > 1e-5:
        _name_xpos(hands, facts)
        return
    factor = float(hands.lengths.median())
    if math.isclose(factor, 1, abs_tol=1e-4 + hands.noise):
        if facts["scaling"] == "yarn":
            facts["notes"] += ("YaRN without its attention factor",)
        return
    facts["attention_factor"] = factor
    usual = 0.1 * math.log(facts.get("parameters", {}).get("factor", 1)) + 1
    if facts["scaling"] == "yarn" and math.isclose(factor, usual**2, rel_tol=1e-4):
        raise Broken("yarn_twice", factor=usual)
    if facts["scaling"] not in ("yarn", "unknown") and not probe.takes_tables:
        raise Broken("scaled", factor=factor)


def _name_xpos(hands: Hands, facts: dict[str, Any]) -> None:
    pair = torch.arange(len(hands.pairs), dtype=torch.float64)
    width = facts["rotary_dim"]
    bases = ((2 * pair + 0.4 * width) / (1.4 * width)).log() / hands.growth
    if not torch.allclose(bases, bases[:1].expand(len(bases)), rtol=1e-2):
        raise Broken("token_scaled")
    facts["xpos_scale_base"] = round(abs(float(bases[0])), 1)
    origin = -float(hands.lengths[0, 0].log() / hands.growth[0])
    facts["xpos_origin"] = round(origin, 2) + 0.0


def _check_q_and_k(q: Hands, k: Hands, facts: dict[str, Any]) -> None:
    """Queries and keys must turn alike, and xPos must cancel between them."""
    allowed = 1e-4 * q.speeds.abs() + q.noise
    if ((q.speeds + k.speeds).abs() <= allowed).all():
        raise Broken("other_signs")
    if ((q.speeds - k.speeds).abs() > allowed).any():
        raise Broken("other_speeds")
    ahead = _offset(k, facts["sign"] * q.speeds.abs()) - facts["position_offset"]
    if ahead:
        raise Broken("off_by_one", tokens=ahead)
    if facts.get("xpos_scale_base") is None:
        if (q.lengths - k.lengths).abs().max() > 1e-2:
            raise Broken("other_lengths")
    elif (q.growth + k.growth).abs().max() > 1e-5:
        raise Broken("xpos_not_inverted")


def _angle_dtype(hands: Hands, rule: Rule, facts: dict[str, Any]) -> str | None:
    """In which dtype the angles seem to be computed: by their error far from 0."""
    position = torch.arange(len(hands.angles))[:, None] + facts["position_offset"]
    angle = position * rule.speeds
    error = wrap(hands.angles - facts["sign"] * angle).abs() - 2 * hands.noise
    if (error > 0).any():
        relative = float((error / angle.abs().clamp_min(1e-3))[SEQ:].max())
        return "float32" if relative < 2e-5 else "16 bits"
    in_float32 = (position.float() * rule.speeds.float()).double()
    would_be_seen = (in_float32 - angle).abs().max() > 4 * hands.noise
    return "float64" if would_be_seen else None
