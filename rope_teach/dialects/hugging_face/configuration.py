"""A transformers configuration as our :class:`RotaryEmbedding`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rope_teach.checks import Layout, Pairing
from rope_teach.dialects.hugging_face import families
from rope_teach.dialects.hugging_face.fields import Fields, number
from rope_teach.dialects.hugging_face.scaling import (
    ALIASES,
    Parameters,
    of_odd_width,
    scaling_rule,
)
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
    rope.notes = tuple(notes)  # type: ignore[assignment]
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
    fields, layer_type = _layers(config, layer_type, layer)
    model_type = fields("model_type")
    _check_rotates(fields, model_type, layer_type)
    parameters = _parameters(fields, layer_type, base, layer)
    given = _of_kind(parameters, fields, length)
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


# ------------------------------------------------------------------- which layers


def _layers(
    config: Any, layer_type: str | None, layer: int | None
) -> tuple[Fields, str | None]:
    """The fields of the layers meant, and their type."""
    fields = Fields(config, layer_type)
    if layer is None:
        return fields, layer_type
    types = fields("layer_types")
    count = len(types) if types else fields("num_hidden_layers")
    if type(layer) is not int or not 0 <= layer < (count or layer + 1):
        raise ValueError(
            f"layer must be an int from 0 to {(count or 1) - 1}, got {layer!r}"
        )
    own = types[layer] if types else None
    if layer_type is not None and own is not None and layer_type != own:
        raise ValueError(f"layer {layer} is of type {own!r}, not {layer_type!r}")
    return Fields(config, own or layer_type, layer), own or layer_type


def _check_rotates(fields: Fields, model_type: Any, layer_type: str | None) -> None:
    reason = families.ELSEWHERE.get(model_type)
    if reason is not None:
        raise ValueError(f"model_type {model_type!r} {reason}")
    if fields("alibi"):
        raise ValueError(
            "the configuration's alibi is true: this model does not rotate"
        )
    name, rotating = families.ROTATES_IF.get(
        model_type, ("position_embedding_type", "")
    )
    kind = fields(name)
    other = kind is not None and "ro" not in str(kind)  # rope, rotary
    if kind != rotating if rotating else other:
        raise ValueError(
            f"the configuration's {name} is {kind!r}: this model does not rotate"
        )
    still = families.UNROTATED.get(model_type)
    window = still != "full_attention" or fields("sliding_window")
    if layer_type is not None and still == layer_type and window:
        raise ValueError(
            f"the layers of type {layer_type!r} of {model_type!r} do not rotate"
        )


# ------------------------------------------------------------------ its parameters


def _parameters(
    fields: Fields, layer_type: str | None, base: float | None, layer: int | None
) -> dict[str, Any]:
    """One flat dictionary, whichever way the configuration spells it."""
    found = fields("rope_parameters") or fields("rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise TypeError(
            "the configuration's rope_parameters, or rope_scaling, must be a "
            f"dictionary, got {found!r:.80}"
        )
    fields.read |= {"rope_scaling"}
    if not found and fields("model_type") in families.SCALED:
        raise ValueError(
            f"models of model_type {fields('model_type')!r} scale by default, and this "
            "configuration has no rope_parameters, or rope_scaling, that say by what"
        )
    if any(isinstance(value, Mapping) for value in found.values()):
        found = _nested(found, layer_type)
        flat = {key: value for key, value in found.items() if value is not None}
    else:
        flat = {key: value for key, value in found.items() if value is not None}
        flat = _older(fields, flat, layer_type)
    outside = {"partial_rotary_factor": _share(fields), "rope_theta": _base(fields)}
    flat = {k: v for k, v in outside.items() if v is not None} | flat
    if trained := fields("original_max_position_embeddings"):
        flat["original_max_position_embeddings"] = trained
    own = _layers_own_base(fields, layer, base)
    if own is not None:
        flat["rope_theta"] = own
    if "rope_theta" not in flat:
        raise ValueError(_no_base(fields))
    return flat


def _nested(found: Mapping[str, Any], layer_type: str | None) -> Mapping[str, Any]:
    """The parameters of one type of layer."""
    types = {k: v for k, v in found.items() if isinstance(v, Mapping) or v is None}
    if layer_type not in types:
        raise ValueError(
            f"layer_type must be one of {sorted(types)}, each of which has rope "
            f"parameters of its own; got {layer_type!r}"
        )
    own = types[layer_type]
    if own is None:
        raise ValueError(f"the layers of type {layer_type!r} do not rotate")
    assert isinstance(own, Mapping)
    return own


def _older(
    fields: Fields, flat: dict[str, Any], layer_type: str | None
) -> dict[str, Any]:
    """Of one set of parameters, what is meant for this type of layer."""
    older = families.OLDER_LAYERS.get(str(fields("model_type")))
    if older is None and fields("rope_local_base_freq") is not None:
        older = families.OLDER_LAYERS["gemma3_text"]
    if older is None:
        types = fields("layer_types")
        if layer_type is not None and layer_type not in (types or ()):
            raise ValueError(
                "this configuration has one set of rope parameters for all layers, and "
                f"no layer_type {layer_type!r} (its layer_types are {types})"
            )
        return flat
    if layer_type not in older:
        raise ValueError(
            f"layer_type must be one of {sorted(older)}, since this model rotates each "
            f"in its own way; got {layer_type!r}"
        )
    name, default, scaled = older[layer_type]
    for other in older.values():
        fields.read.add(other[0])
    value = fields(name)
    flat = flat if scaled else {}
    return {"rope_theta": default if value is None else value} | flat


def _layers_own_base(fields: Fields, layer: int | None, base: float | None) -> Any:
    """The base that was asked for, or the layer's in a list; 0 is no rotation."""
    if layer is not None and (flags := fields("no_rope_layers")) and not flags[layer]:
        raise ValueError(f"layer {layer} does not rotate, says no_rope_layers")
    fields("no_rope_layers")
    bases = fields("layer_rope_theta")
    if base is not None or not isinstance(bases, (list, tuple)):
        return base
    if layer is not None:
        if layer >= len(bases):
            raise ValueError(
                f"layer_rope_theta has {len(bases)} bases, none for layer {layer}"
            )
        if not bases[layer]:
            raise ValueError(f"layer {layer} does not rotate, says layer_rope_theta")
        return bases[layer]
    each = {value for value in bases if value}
    if len(each) != 1 or not all(bases):
        raise ValueError(
            f"layer_rope_theta has a base for each layer, {bases!s:.80}; say which, by "
            "layer=..."
        )
    return each.pop()


def _base(fields: Fields) -> Any:
    """The base outside of the rope parameters, by the names that families have."""
    found = fields.first("rope_theta", "rotary_emb_base", "rotary_embedding_base")
    if found is not None:
        return found
    # GPT-J and CodeGen have it in their code.
    return 10_000.0 if fields("model_type") in ("gptj", "codegen") else None


def _no_base(fields: Fields) -> str:
    parts = [
        name
        for name in ("text_config", "language_config", "llm_config", "thinker_config")
        if fields(name) is not None
    ]
    if parts:
        return (
            f"config has no rope_theta, but a part of it, {parts[0]}, may: pass that "
            f"part, config[{parts[0]!r}] or config.{parts[0]}"
        )
    return (
        "config has no rope_theta, inside rope_parameters or beside it; does this "
        "model rotate? (of a multimodal one, pass the text part; where the code "
        "has the base, pass base=10_000.0 or what it says)"
    )


def _of_kind(
    parameters: dict[str, Any], fields: Fields, length: int | None
) -> Parameters:
    """The parameters, under transformers' present name of their type."""
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if not isinstance(kind, str):
        raise TypeError(f"the configuration's rope_type must be a name, got {kind!r}")
    kind = ALIASES.get(kind, kind)
    if kind == "yarn" and fields("model_type") in families.PHI:
        kind = "longrope"
    if not _scaled(fields, kind):
        kind, parameters = "default", {"rope_theta": parameters["rope_theta"]}
    return Parameters(kind, parameters, fields, length)


def _scaled(fields: Fields, kind: str) -> bool:
    """Whether the rope type is meant for these layers: Molmo 2 lists those."""
    listed = fields("rope_scaling_layers")
    if listed is None or kind == "default":
        return True
    if fields.layer is None:
        raise ValueError(
            f"rope_scaling_layers says which layers are scaled, {listed!s:.80}: say "
            "which is meant, by layer=..."
        )
    return fields.layer in listed


# ---------------------------------------------------------------------- its widths


def _widths(fields: Fields, given: Parameters, head_dim: int | None) -> tuple[int, int]:
    """Features of a head, and how many of them are rotated."""
    model_type = fields("model_type")
    latent = fields("qk_rope_head_dim")
    if latent is not None and model_type not in families.TRAILING:
        given.get("partial_rotary_factor")
        latent = int(number("qk_rope_head_dim", latent, whole=True, least=1))
        return head_dim or latent, latent
    found = int(number("head_dim", head_dim or _head_dim(fields), whole=True, least=1))
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


def _share(fields: Fields) -> Any:
    # The families' own names first: the other one may be a default.
    names = ("rotary_pct", "rope_pct", "rotary_emb_fraction", "partial_rotary_factor")
    return fields.first(*names)


# ----------------------------------------------------------------- how pairs are dealt


def _pairing(fields: Fields, pairing: Pairing | None, notes: list[str]) -> Pairing:
    """That of the type; for a configuration without a type, a guess that says so."""
    model_type, flag = fields("model_type"), fields("rope_interleave")
    if pairing is not None:
        return pairing
    if not families.known(model_type):
        if model_type is not None or fields("qk_rope_head_dim") is not None:
            latent = " (latent attention occurs with either)"
            raise ValueError(
                f"model_type {model_type!r} is not known, and a configuration does not "
                "say which features are rotated together: pass pairing='half' (as "
                "Llama in transformers) or 'interleaved' (as GPT-J, and DeepSeek)"
                + (latent if fields("qk_rope_head_dim") is not None else "")
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
