"""A transformers configuration as our :class:`RotaryEmbedding`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from rope_teach.checks import Layout, Pairing
from rope_teach.dialects.hugging_face import families
from rope_teach.dialects.hugging_face.fields import Fields, number
from rope_teach.dialects.hugging_face.parameters import (
    Parameters,
    check_rotates,
    layers_meant,
    parameters_of,
)
from rope_teach.dialects.hugging_face.scaling import of_odd_width, scaling_rule
from rope_teach.frequencies import inverse_frequencies
from rope_teach.rotary import RotaryEmbedding


class ConfigurationWarning(UserWarning):
    """Something in a configuration was guessed, or not used."""


def rotary_embedding(
    config: Any,
    layer_type: str | None = None,
    *,
    layer: int | None = None,
    length: int | None = None,
    head_dim: int | None = None,
    base: float | None = None,
    pairing: Pairing | None = None,
    layout: Layout = "bhsd",
) -> RotaryEmbedding:
    """Build the :class:`RotaryEmbedding` that a transformers configuration describes.

    Parameters
    ----------
    config
        A configuration object, or the dictionary of a ``config.json``; with
        transformers 5's ``rope_parameters`` or the older ``rope_theta`` and
        ``rope_scaling``.
    layer_type, layer
        Which layers, where they differ: by type, ``"full_attention"``,
        ``"sliding_attention"``..., or the number of one layer.
    length
        Tokens to be served, which the types ``dynamic`` and ``longrope`` depend on.
        transformers changes the angles when a sequence outgrows the trained length, so
        that cached keys no longer fit; here one length holds for a whole sequence.
    head_dim, base, pairing
        To be given where the configuration does not tell, or tells wrong: older files,
        as of Llama 2 and Falcon, leave the base to the code, and none has the pairing.
        By default that is the ``model_type``'s.

    Returns
    -------
    RotaryEmbedding
        With a tuple of sentences, ``notes``: what was guessed, and which fields were
        not used. Each is a :class:`ConfigurationWarning` too. Of multi-head latent
        attention it rotates the ``qk_rope_head_dim`` features alone.

    Raises
    ------
    TypeError, ValueError
        If ``config`` is a name, there are no rope parameters, one is missing, the
        ``rope_type`` or the ``model_type`` is unknown (pass ``pairing``, and it is not
        asked for), or the layers meant do not rotate.

    Notes
    -----
    The frequencies are those of transformers to the rounding of float32, in float64.
    Three cases differ: where layer types have parameters of their own, transformers
    overlooks YaRN's ``truncate: false``; its Phi-3.5-MoE never uses the long list; and
    it gives OLMo 3's sliding layers the base 500,000 whatever ``rope_theta`` says.
    Lesson 20.

    Examples
    --------
    >>> config = {"model_type": "llama", "head_dim": 64, "rope_theta": 500000.0}
    >>> rope = rotary_embedding(config)
    >>> rope.base, rope.pairing
    (500000.0, 'half')
    """
    head_dim, options, notes = described(
        config,
        layer_type,
        layer=layer,
        length=length,
        head_dim=head_dim,
        base=base,
        pairing=pairing,
    )
    rope = RotaryEmbedding(head_dim, layout=layout, **options)
    rope.notes = tuple(notes)
    for note in notes:
        warnings.warn(note, ConfigurationWarning, stacklevel=2)
    return rope


def described(
    config: Any,
    layer_type: str | None = None,
    *,
    layer: int | None = None,
    length: int | None = None,
    head_dim: int | None = None,
    base: float | None = None,
    pairing: Pairing | None = None,
) -> tuple[int, dict[str, Any], list[str]]:
    """``head_dim`` and the other arguments of a :class:`RotaryEmbedding`, and notes.

    Arguments and errors are those of :func:`rotary_embedding`.
    """
    fields, layer_type = layers_meant(config, layer_type, layer)
    model_type = fields("model_type")
    check_rotates(fields, model_type, layer_type)
    given = parameters_of(fields, layer_type, layer, base, length)
    head_dim, width = _widths(fields, given, head_dim)
    rotary_dim, scaling = width, scaling_rule(given, width)
    if width % 2 and given.kind == "default" and width < head_dim:
        rotary_dim, scaling = width + 1, of_odd_width(width)
    notes: list[str] = []
    options: dict[str, Any] = {
        "base": _positive("rope_theta", given.get("rope_theta")),
        "rotary_dim": rotary_dim,
        "pairing": _pairing(fields, pairing, notes),
        "scaling": scaling,
    }
    dealt = _coordinates(model_type, given, rotary_dim // 2)
    if dealt is not None:
        options |= _spread(options, *dealt)
    if model_type in families.CLOCKWISE:
        options["clockwise"] = True
    if model_type in families.TRAILING:
        options["trailing"] = True
    return head_dim, options, notes + _unused(fields, given)


def frequencies(options: dict[str, Any]) -> tuple[Tensor, float]:
    """What these arguments come to: frequencies and attention factor."""
    if "inv_freq" in options:
        return options["inv_freq"], options.get("attention_factor", 1.0)
    rotary_dim, base, scaling = (options[k] for k in ("rotary_dim", "base", "scaling"))
    if scaling is None:
        return inverse_frequencies(rotary_dim, base), 1.0
    found: tuple[Tensor, float] = scaling(rotary_dim, base)
    return found


def _positive(name: str, value: Any) -> float:
    found = float(number(name, value))
    if found <= 0:
        raise ValueError(f"the configuration's {name} must be positive, got {value!r}")
    return found


# ---------------------------------------------------------------------- its widths


def _widths(fields: Fields, given: Parameters, head_dim: int | None) -> tuple[int, int]:
    """Features of a head, and how many of them are rotated."""
    model_type = fields("model_type")
    latent = fields("qk_rope_head_dim")
    apart = model_type not in families.TRAILING
    if latent is not None and (apart or not given.get("partial_rotary_factor")):
        given.get("partial_rotary_factor")
        latent = int(number("qk_rope_head_dim", latent, whole=True, least=1))
        return (head_dim or latent if apart else _head_dim(fields)), latent
    width = _head_dim(fields) if head_dim is None else head_dim
    found = int(number("head_dim", width, whole=True, least=1))
    if given.kind == "proportional":  # that rule takes the share itself
        return found, found
    known = families.known(model_type)
    if (not known or model_type in families.ROTARY_DIM) and fields("rotary_dim"):
        given.get("partial_rotary_factor")
        return found, int(
            number("rotary_dim", fields("rotary_dim"), whole=True, least=1)
        )
    share = given.maybe("partial_rotary_factor", 1.0)
    if known and given.kind == "default" and model_type not in families.PARTIAL:
        given.left |= {"partial_rotary_factor"} if share != 1 else set()
        return found, found
    width = int(found * share)
    if not 0 < width <= found:
        raise ValueError(
            "the configuration's partial_rotary_factor must be above 0 and at most 1, "
            f"got {share:g}, for a head_dim of {found}"
        )
    return found, width


def _head_dim(fields: Fields) -> Any:
    wide = fields("global_head_dim")  # Gemma 4, in older files
    if wide is not None and fields.layer_type == "full_attention":
        return wide
    found = fields.first(*families.HEAD_WIDTHS)
    if found is not None:
        return found
    needed = families.HEAD_DIM_NEEDED.get(fields("model_type"))
    if needed is not None:
        raise ValueError(f"config has no {needed}, which its model_type needs")
    width, heads = fields.first(*families.WIDTHS), fields.first(*families.HEADS)
    if not width or not heads:
        raise ValueError(
            "config must have head_dim, or hidden_size and num_attention_heads; pass "
            "its text part if it has several, or head_dim=..."
        )
    width = number("hidden_size", width, whole=True, least=1)
    return width // number("num_attention_heads", heads, whole=True, least=1)


# ----------------------------------------------------------------- how pairs are dealt


def _pairing(fields: Fields, pairing: Pairing | None, notes: list[str]) -> Pairing:
    """That of the type; for a configuration without a type, a guess that says so."""
    model_type, flag = fields("model_type"), fields("rope_interleave")
    if pairing is not None:
        return pairing
    if not families.known(model_type):
        latent = fields("qk_rope_head_dim") is not None
        if model_type is not None or latent:
            raise ValueError(
                f"model_type {model_type!r} is not known, and a configuration does not "
                "say which features are rotated together: pass pairing='half' (as "
                "Llama in transformers) or 'interleaved' (as GPT-J, and DeepSeek)"
                + latent
                * ". qk_rope_head_dim says multi-head latent attention, which "
                "occurs with either"
            )
        notes.append(
            "the pairing 'half' is a guess: the configuration has no model_type; pass "
            "pairing= to settle it"
        )
    return "interleaved" if families.interleaved(model_type, flag) else "half"


def _coordinates(
    model_type: Any, given: Parameters, pairs: int
) -> tuple[Tensor, int] | None:
    """Which coordinate of a position turns each pair, and how many there are.

    None where a position has but one.
    """
    usual = "in turn" if given.get("mrope_interleaved") else "blocks"
    arrangement, default = families.MULTIMODAL.get(str(model_type), (usual, None))
    sections = given.get("mrope_section") or given.get("xdrope_section") or default
    if sections is None:
        return None
    if arrangement == "rows and columns":
        return torch.arange(pairs) % 2, 2
    sections = [int(number("mrope_section", x, whole=True, least=0)) for x in sections]
    owner = torch.zeros(pairs, dtype=torch.long)
    if arrangement == "in turn":  # what the others leave is the first one's
        for axis in range(1, len(sections)):
            owner[axis : len(sections) * sections[axis] : len(sections)] = axis
        return owner, len(sections)
    if sum(sections) != pairs:
        raise ValueError(
            f"the configuration's mrope_section must sum to rotary_dim / 2 = {pairs}, "
            f"got {sections}"
        )
    if arrangement == "two in turn, then time":
        owner[: pairs - sections[2]] = 1 + torch.arange(pairs - sections[2]) % 2
        return owner, 3
    blocks = torch.arange(len(sections)) % 3
    return blocks.repeat_interleave(torch.tensor(sections)), 3


def _spread(options: dict[str, Any], owners: Tensor, count: int) -> dict[str, Any]:
    """Frequencies ``(count, r/2)``, in place of the rule that makes them."""
    inv_freq, factor = frequencies(options)
    axes = torch.arange(count).unsqueeze(1)
    spread = torch.where(owners == axes, inv_freq.double(), 0.0)
    found: dict[str, Any] = {"inv_freq": spread, "scaling": None}
    return found | ({"attention_factor": factor} if factor != 1 else {})


# ------------------------------------------------------------------------ what is left


def _unused(fields: Fields, given: Parameters) -> list[str]:
    """A sentence for each key that nothing has read and that may matter."""
    inside = [
        f"{name} of the rope parameters is not used by rope_type {given.kind!r}"
        for name in sorted(given.left)
    ]
    return inside + [f"the field {name} is not used" for name in fields.unread()]
