"""The rope types of a transformers configuration, as our rules for longer context."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from rope_teach.frequencies import (
    Scaling,
    dynamic_ntk,
    llama3,
    longrope,
    position_interpolation,
    proportional,
    yarn,
)

Read = Callable[[str], Any]  # from the name of a configuration's field to its value

# By rope_type: our rule, what it must be told, and what it may be told.
RULES: dict[str, tuple[Callable[..., tuple[Tensor, float]], list[str], list[str]]] = {
    "linear": (position_interpolation, ["factor"], []),
    "dynamic": (dynamic_ntk, ["factor", "trained_length", "length"], []),
    "yarn": (
        yarn,
        ["factor", "trained_length"],
        ["beta_fast", "beta_slow", "truncate", "attention_factor"],
    ),
    "longrope": (
        longrope,
        ["short_factors", "long_factors", "factor", "trained_length", "length"],
        [],
    ),
    "llama3": (
        llama3,
        ["factor", "low_freq_factor", "high_freq_factor", "trained_length"],
        [],
    ),
    "proportional": (proportional, ["fraction"], ["factor"]),
}

WHERE = {  # what our name is there
    "trained_length": "original_max_position_embeddings, or max_position_embeddings",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
    "length": "the argument length, the most tokens that a sequence will have",
}


def scaling_rule(
    kind: str, parameters: dict[str, Any], read: Read, length: int | None
) -> Scaling | None:
    """The rule that transformers calls ``kind``, told what ``parameters`` say.

    ``read`` looks up what stands beside them. Returns None where nothing is scaled, and
    raises ``ValueError`` if the type is unknown or something that it needs is missing.
    """
    if kind in ("default", "mrope"):
        return None
    if kind not in RULES:
        raise ValueError(
            f"rope_type must be one of {['default', *RULES]}, got {kind!r}; give "
            "RotaryEmbedding a scaling or an inv_freq of your own"
        )
    longest = read("max_position_embeddings")
    trained = parameters.get("original_max_position_embeddings", longest)
    told = {
        "trained_length": longest if kind == "dynamic" else trained,
        "length": length,
        "fraction": parameters.get("partial_rotary_factor", 1.0),
        "short_factors": parameters.get("short_factor"),
        "long_factors": parameters.get("long_factor"),
    }
    if kind in ("yarn", "longrope") and longest and trained:
        told["factor"] = max(1.0, longest / trained)
    told |= parameters
    if kind == "yarn":
        told["attention_factor"] = _yarn_attention(told)
    rule, needed, optional = RULES[kind]
    for name in needed:
        if told.get(name) is None:
            raise ValueError(
                f"rope_type {kind!r} needs {WHERE.get(name, name)}; got {parameters}"
            )
    names = [*needed, *(name for name in optional if told.get(name) is not None)]
    scaling: Scaling = partial(rule, **{name: told[name] for name in names})
    if kind == "longrope" and "attention_factor" in told:
        return partial(_with_factor, scaling=scaling, factor=told["attention_factor"])
    return scaling


def _yarn_attention(told: dict[str, Any]) -> float | None:
    """DeepSeek's form, a quotient of two factors; else what is given, if anything."""
    mscale, all_dim = told.get("mscale"), told.get("mscale_all_dim")
    if "attention_factor" in told or not (mscale and all_dim and "factor" in told):
        return told.get("attention_factor")
    log = 0.1 * math.log(max(told["factor"], 1.0))
    return float((mscale * log + 1) / (all_dim * log + 1))


def _with_factor(
    rotary_dim: int, base: float, *, scaling: Scaling, factor: float
) -> tuple[Tensor, float]:
    """A rule with another attention factor than its own."""
    return scaling(rotary_dim, base)[0], factor
