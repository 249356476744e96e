"""The rope types of a transformers configuration, as our rules for longer context.

Each rule takes what it knows out of ``given.left``; the rest is reported. Lesson 20.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rope_teach.dialects.hugging_face.fields import number, numbers
from rope_teach.dialects.hugging_face.parameters import Parameters
from rope_teach.frequencies import (
    Scaling,
    dynamic_ntk,
    llama3,
    longrope,
    ntk_aware,
    position_interpolation,
    proportional,
    yarn,
)


def _linear(given: Parameters, rotary_dim: int) -> Scaling:
    return partial(position_interpolation, factor=given.number("factor", least=1))


def _dynamic(given: Parameters, rotary_dim: int) -> Scaling:
    alpha = given.maybe("alpha", least=1)
    if alpha is not None:  # HunYuan's: fixed, whatever the length
        for name in ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            given.left.discard(name)  # they are in its files, and mean nothing there
        return partial(ntk_aware, factor=alpha)
    return partial(
        dynamic_ntk,
        factor=given.number("factor", least=1),
        trained_length=given.longest_or(),
        length=given.served(),
    )


def _yarn(given: Parameters, rotary_dim: int) -> Scaling:
    fast, slow = given.maybe("beta_fast") or 32.0, given.maybe("beta_slow") or 1.0
    if not fast > slow > 0:
        raise ValueError(
            "the configuration's beta_fast must exceed its beta_slow, and both 0; got "
            f"{fast:g} and {slow:g}"
        )
    factor = given.stretch()
    number("factor", factor, least=1)
    truncate = given.get("truncate")
    return partial(
        yarn,
        factor=factor,
        trained_length=given.trained(),
        beta_fast=fast,
        beta_slow=slow,
        truncate=truncate is None or bool(truncate),
        attention_factor=_yarn_attention(given, factor),
    )


def _yarn_attention(given: Parameters, factor: float) -> float | None:
    """What is given; else DeepSeek's quotient, where both of its numbers are."""
    explicit = given.maybe("attention_factor", least=0)
    mscale = given.values.get("mscale"), given.values.get("mscale_all_dim")
    if explicit is None and not all(mscale):
        return None  # one alone does nothing in transformers: it stays among the left
    over, under = given.maybe("mscale", 1.0), given.maybe("mscale_all_dim", 1.0)
    if explicit is not None:
        return float(explicit)
    log = 0.1 * math.log(factor)
    return float((over * log + 1) / (under * log + 1))


def _longrope(given: Parameters, rotary_dim: int) -> Scaling:
    trained, length, factor = given.trained(), given.served(), given.stretch()
    number("original_max_position_embeddings", trained, least=2)  # its log divides
    short, long = (
        numbers(name, given.needed(name), rotary_dim // 2)
        for name in ("short_factor", "long_factor")
    )
    attention = given.maybe("attention_factor", least=0)
    # Phi-3.5-MoE has a factor for either list.
    mscales = [given.maybe(f"{side}_mscale", least=0) for side in ("short", "long")]
    mscale = mscales[length > trained]
    attention = attention if mscale is None else mscale
    rule: Scaling = partial(
        longrope,
        short_factors=short,
        long_factors=long,
        factor=max(factor, 1.0),
        trained_length=trained,
        length=length,
    )
    if attention is None:
        return rule
    return partial(_with_factor, scaling=rule, factor=float(attention))


def _llama3(given: Parameters, rotary_dim: int) -> Scaling:
    low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
    if not high > low > 0:
        raise ValueError(
            "the configuration's high_freq_factor must exceed its low_freq_factor, and "
            f"both 0; got {high:g} and {low:g}"
        )
    return partial(
        llama3,
        factor=given.number("factor", least=1),
        low_freq_factor=low,
        high_freq_factor=high,
        trained_length=given.trained(),
    )


def _proportional(given: Parameters, rotary_dim: int) -> Scaling:
    fraction = given.maybe("partial_rotary_factor", 1.0)
    factor = given.maybe("factor", 1.0, least=1)
    return partial(proportional, fraction=fraction, factor=factor)


RULES: dict[str, Callable[[Parameters, int], Scaling]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}


def scaling_rule(given: Parameters, rotary_dim: int) -> Scaling | None:
    """The rule that the configuration describes, or None where nothing is scaled.

    Raises ``ValueError`` if the type is unknown or something that it needs is missing.
    """
    if given.kind == "default":
        return None
    if given.kind not in RULES:
        images = ", which is for images (see rope_teach.axes)"
        raise ValueError(
            f"the configuration's rope_type must be one of {['default', *RULES]}, got "
            f"{given.kind!r}{images * (given.kind == 'axial')}; give RotaryEmbedding a "
            "scaling or an inv_freq of your own"
        )
    return RULES[given.kind](given, rotary_dim)


def of_odd_width(width: int) -> Scaling:
    """transformers' frequencies where the rotated share of a head is odd.

    It rounds the share up to whole pairs and still divides by the odd number.
    """
    return partial(_odd, width=width)


def _odd(rotary_dim: int, base: float, *, width: int) -> tuple[Tensor, float]:
    pair = torch.arange(rotary_dim // 2, dtype=torch.float64)
    return float(base) ** (-2 * pair / width), 1.0


def _with_factor(
    rotary_dim: int, base: float, *, scaling: Scaling, factor: float
) -> tuple[Tensor, float]:
    """A rule with another attention factor than its own."""
    return scaling(rotary_dim, base)[0], factor
