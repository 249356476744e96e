"""Inverse frequencies: the angle of each pair per token, and rules for longer context.

At position m, pair i rotates by the angle m * inv_freq[i]. Built in lessons 02 and 08.

The rules for longer context return inverse frequencies and an attention factor, by
which cos and sin are multiplied (1 except for YaRN and LongRoPE). Their first arguments
are ``rotary_dim`` and ``base``, so that a module takes any of them, or your own:
``RotaryEmbedding(128, scaling=partial(yarn, factor=4, trained_length=4096))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rope_teach.checks import (
    check_choice,
    check_count,
    check_factor,
    check_number,
    check_rotary_dim,
)

__all__ = [
    "Scaling",
    "inverse_frequencies",
    "wavelengths",
    "position_interpolation",
    "ntk_aware",
    "dynamic_ntk",
    "yarn",
    "llama3",
    "longrope",
    "proportional",
]

Scaling = Callable[[int, float], tuple[Tensor, float]]


def inverse_frequencies(
    rotary_dim: int, base: float = 10_000.0, *, device: torch.device | str | None = None
) -> Tensor:
    """Angle per token of each pair of features: ``base ** (-2i / rotary_dim)``.

    ``rotary_dim``, the number of rotated features, gives ``(rotary_dim / 2,)`` float64,
    in radians per token, highest first. ``base``, in configurations ``rope_theta``,
    sets the lowest. Raises ``TypeError`` or ``ValueError`` unless ``rotary_dim`` is a
    positive even int, and ``base`` positive and finite.
    Source: Su et al., RoFormer (2104.09864), equation 15. Lessons 02 and 08.

    >>> inverse_frequencies(8)
    tensor([1.0000, 0.1000, 0.0100, 0.0010], dtype=torch.float64)
    """
    check_rotary_dim(rotary_dim)
    check_number("base", base, above=0)
    pair = torch.arange(rotary_dim // 2, dtype=torch.float64, device=device)
    return float(base) ** (-2.0 * pair / rotary_dim)


def scaled_frequencies(
    rotary_dim: int, base: float, scaling: Scaling | None = None
) -> tuple[Tensor, float]:
    """Inverse frequencies and attention factor of a rule; without one, plain and 1.

    Returns ``(rotary_dim / 2,)`` float64 on the CPU, and a float. Raises ``TypeError``
    if ``scaling`` cannot be called, ``ValueError`` if its result is not such a pair.
    Lesson 13.

    >>> scaled_frequencies(4, 10_000.0)
    (tensor([1.0000, 0.0100], dtype=torch.float64), 1.0)
    """
    with torch.device("cpu"):  # values are needed where a module is made on meta
        if scaling is None:
            return inverse_frequencies(rotary_dim, base), 1.0
        if not callable(scaling):
            raise TypeError(
                "scaling must be a rule such as partial(yarn, factor=4, "
                f"trained_length=4096), got {type(scaling).__name__}"
            )
        answer = scaling(rotary_dim, base)
    inv_freq, factor = answer if isinstance(answer, tuple) else (answer, None)
    fits = isinstance(inv_freq, Tensor) and inv_freq.shape == (rotary_dim // 2,)
    finite = fits and bool(inv_freq.isfinite().all())
    if not (finite and isinstance(factor, (int, float)) and math.isfinite(factor)):
        raise ValueError(
            f"scaling must return a tuple of rotary_dim / 2 = {rotary_dim // 2} finite "
            f"inverse frequencies and a finite attention factor, got {answer!s:.200}"
        )
    return inv_freq.double().cpu(), float(factor)


def wavelengths(inv_freq: Tensor) -> Tensor:
    """Tokens in a full turn of each pair: ``2 pi / inv_freq``, infinite for 0.

    ``inv_freq`` ``(rotary_dim / 2,)``, in radians per token, gives the same shape, in
    tokens. Lesson 08.

    >>> wavelengths(inverse_frequencies(4)).round()
    tensor([  6., 628.], dtype=torch.float64)
    """
    return 2 * math.pi / inv_freq


# ------------------------------------------------------ rules for longer context


def position_interpolation(
    rotary_dim: int, base: float, *, factor: float
) -> tuple[Tensor, float]:
    """Divide every frequency by ``factor``: position m then looks like m / factor.

    Returns ``(rotary_dim / 2,)`` float64, and 1. Source: Chen et al. (2306.15595).
    Lesson 13.

    >>> position_interpolation(4, 10_000.0, factor=4)[0]
    tensor([0.2500, 0.0025], dtype=torch.float64)
    """
    check_factor(factor)
    return inverse_frequencies(rotary_dim, base) / factor, 1.0


def ntk_aware(rotary_dim: int, base: float, *, factor: float) -> tuple[Tensor, float]:
    """Raise the base: the lowest frequency is divided by ``factor``, the highest stays.

    ``base * factor ** (d / (d - 2))``; ``rotary_dim`` must be at least 4. Returns
    ``(rotary_dim / 2,)`` float64, and 1.
    Source: bloc97's post of 2023, and section 3.1 of YaRN (2309.00071). Lesson 13.

    >>> ntk_aware(4, 10_000.0, factor=4)[0]
    tensor([1.0000, 0.0025], dtype=torch.float64)
    """
    check_factor(factor)
    check_rotary_dim(rotary_dim)
    check_number("base", base, above=0)
    if rotary_dim < 4:
        raise ValueError(
            "NTK rules need rotary_dim >= 4, because a larger base does not change the "
            f"first pair; got {rotary_dim}"
        )
    larger = float(base * factor ** (rotary_dim / (rotary_dim - 2)))
    return inverse_frequencies(rotary_dim, larger), 1.0


def dynamic_ntk(
    rotary_dim: int, base: float, *, factor: float, trained_length: int, length: int
) -> tuple[Tensor, float]:
    """NTK-aware for one ``length`` in tokens: nothing changes up to ``trained_length``.

    The length belongs to the rule: keys cached under one length do not fit queries
    under another. Returns ``(rotary_dim / 2,)`` float64, and 1. Source: emozilla's post
    of 2023; the formula is Hugging Face's ``dynamic``. Lesson 13.

    >>> dynamic_ntk(4, 10_000.0, factor=4, trained_length=64, length=64)[0]
    tensor([1.0000, 0.0100], dtype=torch.float64)
    """
    check_factor(factor)
    check_count("trained_length", trained_length)
    check_count("length", length)
    stretch = 1 + factor * (max(length, trained_length) / trained_length - 1)
    return ntk_aware(rotary_dim, base, factor=stretch)


def yarn(
    rotary_dim: int,
    base: float,
    *,
    factor: float,
    trained_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    ramp: str = "code",
    truncate: bool = True,
    attention_factor: float | None = None,
) -> tuple[Tensor, float]:
    """Keep high frequencies, divide low ones by ``factor``, blend those between.

    Pairs that make more than ``beta_fast`` turns in ``trained_length`` tokens stay,
    those with fewer than ``beta_slow`` are divided. Between them ``ramp="code"`` blends
    linearly in the pair's number, as the authors' code and Hugging Face do (between
    whole pairs, unless ``truncate=False``); ``"paper"`` in the number of turns: up to
    67 % lower, with 128 features, factor 16 and 4,096 tokens. Returns ``(rotary_dim /
    2,)`` float64, and ``attention_factor`` (default: ``0.1 ln(factor) + 1``). Raises
    ``ValueError`` for numbers out of range.
    Source: Peng et al. (2309.00071), sections 3.2 and 3.4. Lesson 13.

    >>> yarn(8, 10_000.0, factor=4, trained_length=64)[0]
    tensor([1.0000e+00, 6.2500e-02, 2.5000e-03, 2.5000e-04], dtype=torch.float64)
    """
    check_factor(factor)
    check_count("trained_length", trained_length)
    check_choice("ramp", ramp, ("code", "paper"))
    if not beta_fast > beta_slow > 0:
        raise ValueError(
            "beta_fast must exceed beta_slow, and beta_slow must exceed 0: they count "
            f"turns in trained_length tokens; got {beta_fast} and {beta_slow}"
        )
    if base <= 1:
        raise ValueError(f"base must exceed 1, got {base}")
    inv_freq = inverse_frequencies(rotary_dim, base)
    if ramp == "paper":
        turns = trained_length / wavelengths(inv_freq)
        slow = 1 - ((turns - beta_slow) / (beta_fast - beta_slow)).clamp(0, 1)
    else:
        periods = [trained_length / (n * math.tau) for n in (beta_fast, beta_slow)]
        low, high = (rotary_dim * math.log(n) / (2 * math.log(base)) for n in periods)
        if truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        pair = torch.arange(rotary_dim // 2, dtype=torch.float64)
        slow = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)
    if attention_factor is None:
        attention_factor = 0.1 * math.log(factor) + 1
    return (1 - slow) * inv_freq + slow * inv_freq / factor, attention_factor


def llama3(
    rotary_dim: int,
    base: float,
    *,
    factor: float = 8.0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    trained_length: int = 8192,
) -> tuple[Tensor, float]:
    """Llama 3.1's rule: YaRN's blend by turns, between 1 and 4; attention factor 1.

    Returns ``(rotary_dim / 2,)`` float64, and 1. Source: ``apply_scaling`` in Meta's
    llama-models repository. Lesson 13.

    >>> inv_freq, _ = llama3(128, 500_000.0)
    >>> (inverse_frequencies(128, 500_000.0) / inv_freq)[[0, 32, 63]]
    tensor([1.0000, 2.6945, 8.0000], dtype=torch.float64)
    """
    inv_freq, _ = yarn(
        rotary_dim, base, factor=factor, trained_length=trained_length, ramp="paper",
        beta_fast=high_freq_factor, beta_slow=low_freq_factor,
    )  # fmt: skip
    return inv_freq, 1.0


def longrope(
    rotary_dim: int,
    base: float,
    *,
    short_factors: Sequence[float],
    long_factors: Sequence[float],
    trained_length: int,
    length: int,
    factor: float | None = None,
) -> tuple[Tensor, float]:
    """Divide each frequency by a factor of its own, found by search: two lists.

    The long list serves a ``length`` past ``trained_length``; as in
    :func:`dynamic_ntk` the length belongs to the rule. Returns ``(rotary_dim / 2,)``
    float64, and ``sqrt(1 + ln(factor) / ln(trained_length))``; ``factor`` (default:
    ``length / trained_length``) counts as 1 if it is below.
    Source: Ding et al. (2402.13753) and its code. Lesson 13.

    >>> lists = {"short_factors": [1.0, 1.0], "long_factors": [1.0, 8.0]}
    >>> longrope(4, 10_000.0, **lists, trained_length=64, length=512)[0]
    tensor([1.0000, 0.0013], dtype=torch.float64)
    """
    check_count("trained_length", trained_length)
    check_count("length", length)
    factors = short_factors if length <= trained_length else long_factors
    inv_freq = inverse_frequencies(rotary_dim, base)
    if len(factors) != len(inv_freq):
        raise ValueError(
            f"short_factors and long_factors need rotary_dim / 2 = {len(inv_freq)} "
            f"numbers each, got {len(factors)}"
        )
    if not all(math.isfinite(each) and each > 0 for each in factors):
        raise ValueError(
            f"short_factors and long_factors must be positive, got {list(factors)}"
        )
    if trained_length < 2:
        raise ValueError(
            f"trained_length must be at least 2 (its log divides), got {trained_length}"
        )
    factor = length / trained_length if factor is None else factor
    ratio = math.log(max(1.0, factor)) / math.log(trained_length)
    return inv_freq / torch.tensor(factors, dtype=torch.float64), math.sqrt(1 + ratio)


def proportional(
    rotary_dim: int, base: float, *, fraction: float, factor: float = 1.0
) -> tuple[Tensor, float]:
    """Set low frequencies to 0: only the highest ``fraction`` of pairs turns (p-RoPE).

    Unlike partial rotary (``rotary_dim < head_dim``), pairs that turn keep the
    frequencies of the full head, divided by ``factor``. Returns ``(rotary_dim / 2,)``
    float64, and 1. Source: Barbero et al. (2410.06205); Hugging Face's
    ``proportional``. Lesson 16.

    >>> proportional(8, 10_000.0, fraction=0.5)[0]
    tensor([1.0000, 0.1000, 0.0000, 0.0000], dtype=torch.float64)
    """
    check_factor(factor)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    inv_freq = inverse_frequencies(rotary_dim, base) / factor
    inv_freq[int(fraction * rotary_dim // 2) :] = 0.0
    return inv_freq, 1.0
