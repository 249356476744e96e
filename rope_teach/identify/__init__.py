"""Whose RoPE is this? Probe any function that rotates, and read its conventions.

A rotation acts on each token by itself and is linear, so what it does to basis vectors
at a few positions says all: which features form pairs, by which angle each pair turns,
and so the speeds of the hands, the base and the scaling rule. What is no rotation, or
no RoPE, is reported with the law that it breaks, the likely cause and the fix.

To read it from the start: ``layers`` makes functions of whatever is given, ``isolate``
copies what they could change, ``probe`` finds out how to call them, ``reading`` reads
pairs and angles, ``rules`` names what made them, and ``trials`` holds all that against
inputs that are not as tame. ``faults`` has what can be wrong; here it becomes a
``report``. ``convert`` compares two reports; ``command`` is for a shell.

What cannot be told from outside:

- Names that differ and functions that do not: base 100, and base 10 000 with the
  exponent -i/d; NTK-aware scaling, and a larger base; an offset that q and k share.
  The notes name the other reading.
- What happens past the longest position tried (``longest``), or at any but 0, 1, ...
  where positions cannot be given. A function that keeps a table may answer from it.
- float32 from float64 angles, where a short table or a 16-bit output hides it; the base
  of a single pair; a YaRN that slows no hand by its whole factor, and the parameters
  of LongRoPE: their scaling is ``"unknown"``, and ``inv_freq`` has what was measured.
- Positions with several axes, as images have them.
- Whether one x is rotated for a q, a k or both: reordered outputs are a fault of one
  x alone, and none where q and k are given together.
- Whether the *weights* were trained for these conventions: no function knows that.

Lesson 20.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from rope_teach import laws
from rope_teach.identify.convert import Conversion, conversion
from rope_teach.identify.faults import DOUBTFUL, FAULTS, Broken
from rope_teach.identify.isolate import as_before
from rope_teach.identify.layers import as_subjects
from rope_teach.identify.probe import (
    LAYOUTS,
    SEQ,
    CannotProbe,
    Probe,
    Subject,
    find,
)
from rope_teach.identify.reading import (
    Hands,
    follow_hands,
    read_pairs,
    rounded_by_bfloat16,
    wrap,
)
from rope_teach.identify.report import Report, grouped
from rope_teach.identify.rules import recognize
from rope_teach.identify.trials import try_hard
from rope_teach.tables import xpos_scale

__all__ = ["FAULTS", "CannotProbe", "Conversion", "Report", "conversion", "identify"]

READINGS = 48  # of one function, each with another call or layout


def identify(
    function: Any,
    *,
    call: str | None = None,
    head_dim: int | None = None,
    layout: str | None = None,
    dtype: torch.dtype | None = None,
) -> Report:
    """Find out how ``function`` rotates, or which law it breaks, and why.

    It works on a copy: nothing that is probed changes, nor any random state.

    Parameters
    ----------
    function
        A function of x, of q and k, with positions, a start or tables of cos and sin;
        a module; an attention layer with projections of its own for q and k; a model,
        of which every layer is asked.
    call
        The arguments by role, such as ``"q, k, cos, sin"``, where they are not found
        out: ``x q k v positions positions_of_k start length cos sin cos_sin sin_cos
        tables phases freqs``; ``tables`` are a pair, (cos, sin).
    head_dim, layout
        Features of a head, and the axes of x: ``"bhsd"``, ``"bshd"``, ``"sbhd"``,
        ``"shd"``, ``"hsd"``, ``"bsd"`` or ``"sd"``. Say the layout to find positions
        that run over the heads.
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
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    if head_dim is not None and head_dim < 1:
        raise ValueError(f"head_dim must be a positive number, got {head_dim}")
    with as_before(function):
        kinds = [
            kind.said(call=call, head_dim=head_dim, layout=layout, dtype=dtype)
            for kind in as_subjects(function)
        ]
        if len(kinds) == 1:
            return _answer(kinds[0])
        return grouped([_answer_or_still(kind) for kind in kinds])


def _answer_or_still(subject: Subject) -> Report:
    """A layer's report; one that does not rotate is no fault of its model."""
    try:
        return _answer(subject)
    except CannotProbe as error:
        still = Report(subject.name, "q, k", subject.head_dim or 0, "bhsd")
        return replace(still, notes=(str(error),), layers=subject.layers)


def _answer(subject: Subject) -> Report:
    """The first way to call it that breaks no law; or else what the likeliest breaks.

    Where the fault may come from a wrong guess, the other ways are tried before it is
    believed.
    """
    broken: Report | None = None
    strange: Report | None = None
    error: CannotProbe | None = None
    for number, probe in enumerate(islice(find(subject), READINGS)):
        try:
            with warnings.catch_warnings():
                if number:  # of no interest where the call is a guess
                    warnings.simplefilter("ignore")
                report = _report(probe)
        except CannotProbe as wrong:
            error = error or (wrong if broken is None else None)
            continue
        if not report.correct:
            broken = broken or report
            if report.fault not in DOUBTFUL:
                return report
        elif report.base is not None and report.base < 2:
            strange = strange or report  # are angles taken for positions?
        else:
            both = (report, broken or report)
            ways = [f'call="{r.call}", layout="{r.layout}"' for r in both]
            if broken is not None and ways[0] != ways[1]:
                report.note(
                    f"read with {ways[0]}; with {ways[1]} it breaks {broken.law}: say "
                    "which is meant"
                )
            return report
    if strange is None and error is not None:  # it came before any fault
        raise error
    answer = strange or broken
    assert answer is not None
    return answer


def _report(probe: Probe) -> Report:
    call = ", ".join(probe.names)
    report = Report(probe.subject.name, call, probe.head_dim, probe.layout)
    report.layers = probe.subject.layers
    unsaid = (name for name in ("call", "layout") if not getattr(probe.subject, name))
    report.guessed = tuple(unsaid)
    try:
        _read(probe, report)
    except Broken as broken:
        report.breaks(broken)
        if broken.name in ("cat_after_interleaved", "stack_after_half", "reordered"):
            report.note(
                "if q and k both go through it, their scores are right, as in "
                "DeepSeek-V3: give it both to see, identify(lambda q, k, ...)"
            )
    return report


def _read(probe: Probe, report: Report) -> None:
    """Fill the report, from the coarse to the fine; raise at the first law broken."""
    probe, pairs, rest = read_pairs(probe)
    if probe.order is not None:
        report.output_order = tuple(probe.order.argsort().tolist())
    report.pairs = _as_pairs(pairs)
    width = _name_pairing(pairs, report)
    outputs = follow_hands(probe, pairs, rest)
    report.longest = len(outputs[0].angles) - 1
    outputs = _oriented(outputs, report)
    notes = try_hard(probe, outputs)
    outputs = _without_softmax_scale(outputs, report)
    sign, speeds = _name_rule(probe, outputs[0], width, report)
    offset = _offset(outputs[0], sign * speeds)
    report.position_offset = offset
    _name_lengths(probe, outputs[0], width, report)
    if len(outputs) == 2:
        _check_q_and_k(outputs[0], outputs[1], report)
        ahead = _offset(outputs[1], sign * outputs[0].speeds.abs()) - offset
        if ahead:
            raise Broken("off_by_one", tokens=ahead)
    if not probe.takes_tables:
        report.angle_dtype = _angle_dtype(outputs[0], sign, speeds, offset)
        if outputs[0].noise > 2e-4 + 2 * probe.noise:
            notes.append("cos and sin, or the products, are rounded to 16 bits")
        elif rounded_by_bfloat16(probe, outputs[0]):
            notes.append(
                "bfloat16 inputs get wrong angles: dtype=torch.bfloat16 says which"
            )
    report.note(*notes)


def _as_pairs(pairs: Tensor) -> tuple[tuple[int, int], ...]:
    return tuple((a, b) for a, b in pairs.tolist())


def _name_pairing(pairs: Tensor, report: Report) -> int:
    """Pairing, and where the rotated features begin; returns their number."""
    first, gap = pairs[:, 0], pairs[:, 1] - pairs[:, 0]
    count, offset, step = len(pairs), int(first.min()), int(gap[0])
    place = torch.arange(count)
    name, width = "another", 2 * count
    if (gap == step).all():
        _check_none_is_still(first, step, report.head_dim)
    if (gap == 1).all() and torch.equal(first, offset + 2 * place):
        name = "interleaved"
    elif (gap == step).all() and torch.equal(first, offset + place) and step >= count:
        name, width = "half", 2 * step
    report.pairing, report.rotary_dim, report.rotary_offset = name, width, offset
    return width


def _check_none_is_still(first: Tensor, step: int, head_dim: int) -> None:
    """A pair or two that stand still among others that turn are no rule's."""
    stride, start = (2 if step == 1 else 1), int(first.min())
    if step > 1:  # the halves of a head may begin no later
        start = min(start, max(0, head_dim - 2 * step))
    turning = {*first.tolist(), *(first + step).tolist()}
    still = set(range(start, int(first.max()), stride)) - turning
    if still and 8 * len(still) <= len(first):
        raise Broken("hand_still", pairs=[(a, a + step) for a in sorted(still)])


def _oriented(outputs: list[Hands], report: Report) -> list[Hands]:
    """Pairs of no name are put fastest first, and turned counter-clockwise."""
    if report.pairing != "another":
        return outputs
    order = outputs[0].speeds.abs().argsort(descending=True)
    sign = outputs[0].speeds[order].sign()
    outputs = [hands.take(order, sign) for hands in outputs]
    report.pairs = _as_pairs(outputs[0].pairs)
    return outputs


def _without_softmax_scale(outputs: list[Hands], report: Report) -> list[Hands]:
    """Divide out the scale of the attention product, which may come before it."""
    factors = [float(hands.lengths.median()) for hands in outputs]
    scale = report.head_dim**-0.5
    if len(outputs) < 2 or not math.isclose(math.prod(factors), scale, rel_tol=1e-3):
        return outputs
    report.note("q and k bring the softmax scale with them, head_dim ** -0.5")
    return [
        replace(hands, lengths=hands.lengths / factor)
        for hands, factor in zip(outputs, factors, strict=True)
    ]


def _name_rule(
    probe: Probe, hands: Hands, width: int, report: Report
) -> tuple[int, Tensor]:
    """Sign, base and scaling; the rule's own speeds, in radians per token."""
    sign = 1 if int(hands.speeds.sign().sum()) >= 0 else -1
    report.sign = sign
    rule = recognize(hands.speeds.abs(), width, probe.head_dim, hands.slack)
    if rule.scaling == "proportional":
        report.rotary_dim = round(2 * len(hands.pairs) / rule.parameters["fraction"])
    other = (hands.speeds * sign < -hands.slack).nonzero().flatten().tolist()
    if other and not rule.fault:
        raise Broken("signs_differ", hands=other)
    if probe.takes_tables:
        form = {"half": "repeated by cat", "interleaved": "by repeat_interleave"}
        report.note(
            "base and scaling come with the tables that the caller brings, one column "
            f"a pair {form.get(probe.table, '')}".rstrip()
        )
    else:
        report.base, report.scaling = rule.base, rule.scaling
        report.parameters = rule.parameters
        report.inv_freq = tuple(rule.speeds.tolist())
        report.note(*rule.notes)
    if rule.fault is not None:
        raise rule.fault
    return sign, rule.speeds


def _offset(hands: Hands, speeds: Tensor) -> float:
    """The position of the first token: whole, or half as of a pixel's centre."""
    start = hands.angles[0]
    if (start.abs() - math.pi / 2).abs().max() < 0.01:
        raise Broken("swapped")
    if (start.abs() <= 8 * hands.noise).all():
        return 0.0
    places = torch.arange(-8192, 8193, dtype=torch.float64) / 2
    allowed = 8 * hands.noise + 1e-6 * places.abs()[:, None] * speeds.abs()
    fits = (wrap(start - places[:, None] * speeds).abs() <= allowed).all(1)
    if not fits.any():
        raise Broken("turned_at_zero")
    return float(min(places[fits].tolist(), key=abs))


def _name_lengths(probe: Probe, hands: Hands, width: int, report: Report) -> None:
    """What cos and sin are multiplied by: nothing, a rule's factor, or xPos."""
    if hands.growth.abs().max() > 1e-5:
        _name_xpos(hands, width, report)
        return
    factor = float(hands.lengths.median())
    if math.isclose(factor, 1, abs_tol=1e-4 + hands.noise):
        if report.scaling == "yarn":
            report.note("YaRN without its attention factor")
        return
    report.attention_factor = factor
    if probe.takes_tables:
        return
    if report.scaling == "yarn":
        _name_yarn_factor(factor, report)
    elif report.scaling != "unknown":
        rule = laws.legal_factor(factor)
        if rule is None:
            raise Broken("scaled", factor=factor)
        hands_alike = "no hand is slowed" if report.scaling is None else "all alike"
        report.scaling = rule
        report.note(f"cos and sin have {rule}'s factor, {factor:.5g}; {hands_alike}")


def _name_yarn_factor(factor: float, report: Report) -> None:
    scale = math.log(report.parameters["factor"])
    usual = 0.1 * scale + 1
    if math.isclose(factor, usual**2, rel_tol=1e-4):
        raise Broken("yarn_twice", factor=usual)
    if math.isclose(factor, usual, rel_tol=1e-4):
        return
    note = f"the attention factor {factor:.5g} is not YaRN's {usual:.5g}"
    if math.isclose(factor, 0.1 * usual * scale + 1, rel_tol=1e-4):
        note += (
            ", which is put twice in its own logarithm: 0.1 * factor * ln(scale) + 1"
        )
    report.note(note)


def _name_xpos(hands: Hands, width: int, report: Report) -> None:
    shrinks = xpos_scale(torch.tensor(1), width, scale_base=1.0).log()
    bases = shrinks[: len(hands.pairs)] / hands.growth
    if not torch.allclose(bases, bases[:1].expand(len(bases)), rtol=1e-2):
        raise Broken("token_scaled")
    report.xpos_scale_base = round(abs(float(bases[0])), 1)
    origin = -float(hands.lengths[0, 0].log() / hands.growth[0])
    report.xpos_origin = round(origin, 2) + 0.0


def _check_q_and_k(q: Hands, k: Hands, report: Report) -> None:
    """Queries and keys must turn alike, and xPos must cancel between them."""
    allowed = 1e-4 * q.speeds.abs() + q.noise
    if ((q.speeds + k.speeds).abs() <= allowed).all():
        raise Broken("other_signs")
    if ((q.speeds - k.speeds).abs() > allowed).any():
        raise Broken("other_speeds")
    if report.xpos_scale_base is None:
        if (q.lengths - k.lengths).abs().max() > 1e-2:
            raise Broken("other_lengths")
    elif (q.growth + k.growth).abs().max() > 1e-5:
        raise Broken("xpos_not_inverted")


def _angle_dtype(hands: Hands, sign: int, speeds: Tensor, offset: float) -> str | None:
    """In which dtype the angles seem to be computed: by their error far from 0."""
    position = torch.arange(len(hands.angles))[:, None] + offset
    angle = position * speeds
    error = wrap(hands.angles - sign * angle).abs() - 2 * hands.noise
    if (error > 0).any():
        relative = float((error / angle.abs().clamp_min(1e-3))[SEQ:].max())
        return "float32" if relative < 2e-5 else "16 bits"
    in_float32 = (position.float() * speeds.float()).double()
    would_be_seen = (in_float32 - angle).abs().max() > 4 * hands.noise
    return "float64" if would_be_seen else None
