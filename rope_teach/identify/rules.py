"""Which rule made these frequencies? Measured speeds of the hands in, a rule out.

The answer has the base, the rule of ``rope_teach.frequencies`` with its parameters, and
the rule's exact speeds; or a known mistake that makes such speeds. Two rules that give
one table cannot be told apart: the notes name the other reading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from rope_teach import frequencies
from rope_teach.frequencies import inverse_frequencies
from rope_teach.identify.faults import Broken
from rope_teach.laws import LENGTHS

__all__ = ["BASES", "Rule", "recognize", "too_fast"]

# What published models use, likeliest first.
BASES = (1e4, 5e5, 1e6, 1e5, 1.5e5, 5e6, 1e7, 1e3)
BLENDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama3", {}),
    ("yarn", {}),
    ("yarn", {"truncate": False}),
    ("yarn", {"ramp": "paper"}),
)
CLOSE = 1e-5  # relative; float32 is off by 1e-7, bfloat16 by 4e-3


@dataclass(frozen=True)
class Rule:
    """What made the frequencies; ``speeds`` are the rule's own, in float64.

    ``fault`` is what is wrong with them, for the caller to raise.
    """

    speeds: Tensor
    base: float | None = None
    scaling: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fault: Broken | None = None


def recognize(
    speeds: Tensor, rotary_dim: int, head_dim: int, slack: float = 0.0
) -> Rule:
    """Find the rule that gives ``speeds``, in radians per token, pair by pair.

    ``speeds`` ``(pairs,)`` are positive; ``slack`` is how far each may be off. Fewer
    than ``rotary_dim / 2`` are those that p-RoPE leaves. Where no rule fits,
    ``scaling`` is ``"unknown"``.
    """
    if len(speeds) == 1:
        return _one_pair(speeds)
    return (
        _one_ratio(speeds, rotary_dim, head_dim, slack)
        or too_fast(speeds)
        or _blended(speeds, rotary_dim, slack)
        or _cast(speeds, rotary_dim, head_dim, slack)
        or _unknown(speeds, rotary_dim)
    )


def _unknown(speeds: Tensor, rotary_dim: int) -> Rule:
    """No rule of ours: learned, searched, or a rule that went wrong in a known way."""
    note = (
        "the speeds follow no known rule: searched for each hand (LongRoPE), learned, "
        "or of your own; inv_freq has them"
    )
    for base in BASES if 2 * len(speeds) == rotary_dim else ():
        slower = inverse_frequencies(rotary_dim, base) / speeds
        if _equal(slower[-1], slower.new_tensor(1.0)) and slower.min() > 1 - CLOSE:
            factor = float(slower[0])
            if factor > 1.5 and ((slower - 1).abs() < CLOSE).sum() > 1:
                fault = Broken("upside_down", base=base, factor=factor)
                return Rule(speeds, base, fault=fault)
        if slower.max() < 1 + CLOSE and _equal(slower[0], slower.new_tensor(1.0)):
            note += (
                f". No hand is slower than base {base:g} has it, and rules for longer "
                "context only slow hands: are factors multiplied that should divide?"
            )
            break
    return Rule(speeds, scaling="unknown", notes=(_irregular(speeds) or note,))


def _irregular(speeds: Tensor) -> str | None:
    """What is odd about speeds of no rule: some repeat, or a few stand out."""
    count = len(speeds)
    for size in (n for n in range(2, count) if count % n == 0):
        first, ups = speeds[::size], speeds[:size]
        if _equal(speeds, first.repeat_interleave(size)):
            return (
                f"hands turn alike {size} by {size}: is each frequency in the list "
                f"{size} times, or are there {size} heads side by side?"
            )
        if _equal(speeds, ups.repeat(count // size)):
            return (
                f"the speeds begin again every {size} pairs: are there heads of "
                f"{2 * size} features side by side?"
            )
    for base in BASES:
        other = ~torch.isclose(speeds, inverse_frequencies(2 * count, base), rtol=CLOSE)
        if 0 < 8 * other.sum() <= count:
            places = other.nonzero().flatten().tolist()
            return f"all hands but {places} turn as base {base:g} has them"
    return None


def _one_pair(speeds: Tensor) -> Rule:
    note = ("one pair turns at speed 1 whatever the base",)
    factor = _snap(1 / float(speeds[0]))
    if factor == 1:
        return Rule(torch.ones_like(speeds), notes=note)
    scaled = {"factor": factor}
    return Rule(speeds, None, "position_interpolation", scaled, notes=note)


def _one_ratio(
    speeds: Tensor, rotary_dim: int, head_dim: int, slack: float
) -> Rule | None:
    """Speeds that fall by one ratio from pair to pair: a base, and one factor."""
    start, step = _line(speeds)
    pair = torch.arange(len(speeds), dtype=torch.float64)
    fitted = (start - step * pair).exp()
    if not _equal(speeds, fitted, slack):
        return None
    base = _round_base(math.exp(min(step * rotary_dim / 2, 700)), rotary_dim * slack)
    factor = _snap(math.exp(-start), slack)
    if step < -CLOSE:  # else all hands turn at one speed
        base = _round_base(1 / base)
        if speeds.max() < 1 + CLOSE:
            return Rule(speeds, base, fault=Broken("slowest_first", base=base))
        return Rule(speeds, base, fault=Broken("positive_power"))
    exact = base ** (-2 * pair / rotary_dim) / factor
    exact = exact if _equal(exact, speeds, slack) else fitted
    if math.isclose(factor, 180 / math.pi, rel_tol=CLOSE):
        return Rule(exact, base, fault=Broken("degrees"))
    if math.isclose(factor, 0.5, rel_tol=CLOSE):
        return Rule(exact, base, fault=Broken("rotated_twice"))
    scaling, parameters, notes = None, {}, _other_names(base, rotary_dim)
    missing = rotary_dim // 2 - len(speeds)
    if missing:
        scaling, parameters = "proportional", {"fraction": 2 * len(speeds) / rotary_dim}
        notes += (
            "one pair alone is not turned: is it left out by a slice?"
            if missing == 1
            else "the slowest hands stand still, as p-RoPE has it, or partial rotary "
            "whose pairs and exponent run over the whole head",
        )
    elif rotary_dim < head_dim and base not in BASES:
        whole = _round_base(base ** (head_dim / rotary_dim))
        if whole in BASES:
            notes = (
                f"the same as rotary_dim={rotary_dim} with base {base:g}. If partial "
                "rotary was meant: the exponent divides by head_dim, and should by "
                "rotary_dim",
            )
            base, scaling = whole, "proportional"
            parameters = {"fraction": rotary_dim / head_dim}
    late = base ** (2 / rotary_dim)
    if math.isclose(factor, late, rel_tol=1e-5) and abs(factor - round(factor)) > 1e-3:
        notes += (
            f"the factor is base ** (2 / {rotary_dim}): does the exponent begin at "
            "2 / d instead of 0?",
        )
    if factor != 1:
        scaling = scaling or "position_interpolation"
        parameters |= {"factor": factor}
        if any(f"NTK-aware scaling by {factor:g} " in note for note in notes):
            notes += (
                f"the base grew by NTK-aware scaling and positions are divided, both "
                f"by {factor:g}: one of the two was meant",
            )
    return Rule(exact, base, scaling, parameters, notes)


def _other_names(base: float, rotary_dim: int) -> tuple[str, ...]:
    """Other readings of a base that no published model uses."""
    if base in BASES:
        return ()
    if base < 2:
        return (
            f"base {base:.4g} gives all hands nearly one speed: is there // for / in "
            "the exponent, or are base and dim swapped?",
        )
    if base > 1e100:
        return (f"base {base:.4g} leaves one hand that turns: look at the exponent",)
    over = "where 2i/d was meant"
    for common in BASES:
        for made, reading in (
            (2 ** math.log(common), f"2 ** ln({common:g}): exp2 where exp was meant?"),
            (math.log(common), f"ln({common:g}): was its logarithm taken twice?"),
            (common**0.5, f"the square root of {common:g}: do the frequencies run over "
             f"i/d {over}, over d instead of d/2?"),
            (common**2 if common in (1e4, 5e5, 1e6) else 0, f"the square of "
             f"{common:g}: does the exponent run over 4i/d {over}?"),
        ):  # fmt: skip
            if math.isclose(base, made, rel_tol=3 * CLOSE):
                return (f"base {base:.7g} is {reading}",)
    for common in BASES if rotary_dim >= 4 and base != float(f"{base:.2g}") else ():
        factor = (base / common) ** ((rotary_dim - 2) / rotary_dim)
        near = round(2 * factor) / 2
        if near > 1 and math.isclose(factor, near, rel_tol=CLOSE):
            return (
                f"base {base:.7g} is what NTK-aware scaling by {near:g} makes of "
                f"{common:g}: one function, two names",
            )
    if base != float(f"{base:.2g}"):
        return (
            f"base {base:.7g} is none that we know of, and no round number: look at "
            "the exponent",
        )
    return ()


def too_fast(speeds: Tensor) -> Rule | None:
    """Name the mistake of hands so fast that they seem to turn otherwise."""
    for base in BASES:
        falling = inverse_frequencies(2 * len(speeds), base)
        if _equal_turns(speeds, 1 / falling):
            return Rule(1 / falling, base, fault=Broken("positive_power"))
        if _equal_turns(speeds, falling * 180 / math.pi):
            return Rule(falling * 180 / math.pi, base, fault=Broken("degrees"))
        factor = round(2 * float(speeds[-1].abs() / falling[-1])) / 2
        if factor > 2 and _equal_turns(speeds, factor * falling):
            fault = Broken("multiplied", factor=factor, base=base)
            return Rule(factor * falling, base, fault=fault)
    if speeds.abs().max() > 2:  # the rules' fastest hand turns by 1
        return Rule(speeds, fault=Broken("for_pixels"))
    return None


def _blended(speeds: Tensor, rotary_dim: int, slack: float) -> Rule | None:
    """YaRN's and Llama 3's rules: the fast hands are those of the base."""
    ratio = float(speeds[0] / speeds[1].clamp_min(1e-12))
    bases = (_round_base(ratio ** (rotary_dim / 2)), *BASES)
    for base in dict.fromkeys(base for base in bases if 1 < base < 1e12):
        plain = inverse_frequencies(rotary_dim, base)
        factor = _snap(float(plain[-1] / speeds[-1]), slack / float(speeds[-1]))
        if (
            len(plain) != len(speeds)
            or factor <= 1
            or not _equal(plain[0], speeds[0], slack)
        ):
            continue
        for (name, more), length in product(BLENDS, LENGTHS):
            parameters = {"factor": factor, "trained_length": length, **more}
            exact, _ = getattr(frequencies, name)(rotary_dim, base, **parameters)
            if _equal(exact, speeds, slack):
                return Rule(exact, base, name, parameters)
    return None


def _cast(speeds: Tensor, rotary_dim: int, head_dim: int, slack: float) -> Rule | None:
    """Speeds that 16 bits hold exactly, whatever rule they had before the cast."""
    for dtype in (torch.bfloat16, torch.float16):
        cast = speeds.to(dtype).double()
        step = torch.finfo(dtype).eps * speeds
        told = (4 * slack < step / 4) & (speeds.log2() % 1 != 0)
        if told.sum() < 3 or not _equal(cast[told], speeds[told], slack):
            continue
        guess = math.exp(min(_line(speeds)[1] * rotary_dim / 2, 700))
        near = [float(f"{guess:.{digits}e}") for digits in range(3)]
        for base in (*BASES, *near, None):
            of = inverse_frequencies(rotary_dim, base or 1.0)[: len(speeds)]
            if base is None or _equal(of.to(dtype).double(), speeds, slack):
                fault = Broken("frequencies_cast", dtype=dtype)
                return Rule(speeds, base, fault=fault)
    return None


# ------------------------------------------------------------------- small tools


def _line(speeds: Tensor) -> tuple[float, float]:
    """Fit ``ln speed = start - step * pair``; fast hands weigh more."""
    pair = torch.arange(len(speeds), dtype=torch.float64)
    logs, weight = speeds.clamp_min(1e-300).log(), speeds / speeds.max()
    columns = torch.stack([torch.ones_like(pair), -pair], dim=1)
    fit = torch.linalg.lstsq(columns * weight[:, None], (logs * weight)[:, None])
    start, step = fit.solution.flatten().tolist()
    return start, step


def _equal(a: Tensor, b: Tensor, slack: float = 0.0) -> bool:
    return torch.allclose(a, b, rtol=CLOSE, atol=slack)


def _equal_turns(seen: Tensor, speeds: Tensor) -> bool:
    """Whether hands of these speeds look as ``seen``, whole turns and sign apart."""
    gap = torch.stack([seen - speeds, seen + speeds]) / (2 * math.pi)
    off = (gap - gap.round()).abs() * 2 * math.pi
    return bool((off <= CLOSE + 1e-6 * speeds).any(0).all())


def _snap(value: float, slack: float = 0.0) -> float:
    """The nearest number of three decimals, if it is near enough to be meant."""
    near = round(value, 3)
    return near if math.isclose(value, near, rel_tol=CLOSE + slack) else value


def _round_base(value: float, slack: float = 0.0) -> float:
    """The nearest number of at most three digits, if it is near enough to be meant."""
    for digits in range(3):
        near = float(f"{value:.{digits}e}")
        if math.isclose(value, near, rel_tol=3 * CLOSE + slack):
            return near
    return value
