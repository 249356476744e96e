"""The rope types of a transformers configuration, as our rules for longer context.

Each rule takes what it knows out of ``given.left``; the rest is reported. Lesson 20.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rope_teach.dialects.hugging_face.fields import Fields, number, numbers
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

# Keys that are there for something else than these angles, or say again what stands
# beside them.
UNTOLD = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section",
    "mrope_interleaved", "max_position_embeddings", "original_max_position_embeddings",
    "llama_4_scaling_beta",
}  # fmt: skip


class Parameters:
    """The rope parameters, flat; and what of them nobody has used."""

    def __init__(
        self, kind: str, values: dict[str, Any], fields: Fields, length: int | None
    ) -> None:
        self.kind, self.values, self.length = kind, values, length
        self.left = set(values) - UNTOLD
        self.longest = fields("max_position_embeddings")

    def get(self, name: str) -> Any:
        """The value as it stands, or None."""
        self.left.discard(name)
        return self.values.get(name)

    def needed(self, name: str) -> Any:
        """The value that the type cannot do without."""
        value = self.get(name)
        if value is None:
            raise ValueError(
                f"rope_type {self.kind!r} needs {name}; got {self.values!s:.200}"
            )
        return value

    def number(self, name: str, **limits: Any) -> Any:
        """The same, as a number."""
        return number(name, self.needed(name), **limits)

    def maybe(self, name: str, default: Any = None, **limits: Any) -> Any:
        """The number, or ``default`` where it is missing or null."""
        value = self.get(name)
        return default if value is None else number(name, value, **limits)

    def trained(self) -> int:
        """Tokens that the model was trained for."""
        name = "original_max_position_embeddings"
        value = self.maybe(name, whole=True, least=1)
        return self.longest_or(name) if value is None else int(value)

    def longest_or(self, name: str = "") -> int:
        """``max_position_embeddings``, which must be there."""
        if self.longest is None:
            wanted = f"{name}, or " if name else ""
            raise ValueError(
                f"rope_type {self.kind!r} needs {wanted}max_position_embeddings; got "
                f"{self.values!s:.200}"
            )
        return int(number("max_position_embeddings", self.longest, whole=True, least=1))

    def served(self) -> int:
        """The argument ``length``."""
        if self.length is None:
            raise ValueError(
                f"rope_type {self.kind!r} needs the argument length, the most tokens "
                "that a sequence will have"
            )
        return self.length

    def stretch(self) -> float:
        """``factor``, or how far past its training the model goes."""
        factor = self.maybe("factor", least=0)
        if factor is None:
            factor = self.longest / self.trained() if self.longest else None
        if factor is None:
            raise ValueError(
                f"rope_type {self.kind!r} needs factor, or max_position_embeddings "
                f"beside original_max_position_embeddings; got {self.values!s:.200}"
            )
        return float(factor)


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
# Other names that files have for them.
ALIASES = {"mrope": "default", "su": "longrope", "xdrope": "dynamic"}


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
