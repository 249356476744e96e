"""The rope parameters of a configuration, for the layers that are meant.

Configurations have spelled them in many ways: here they become one flat dictionary, or
an error that says in the configuration's own words what is missing. Lesson 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rope_teach.dialects.hugging_face import families
from rope_teach.dialects.hugging_face.fields import Fields, number

# Other names that files have for a rope type.
ALIASES = {"mrope": "default", "su": "longrope", "xdrope": "dynamic"}


class DoesNotRotate(ValueError):
    """The layers meant, or the whole model, have no rotation."""


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


# ------------------------------------------------------------------- which layers


def layers_meant(
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
    if own is None and fields("model_type") in families.UNROTATED:
        raise ValueError(
            "the configuration has no layer_types, which say whether layer "
            f"{layer} rotates: give layer_type"
        )
    if layer_type is not None and own is not None and layer_type != own:
        raise ValueError(f"layer {layer} is of type {own!r}, not {layer_type!r}")
    return Fields(config, own or layer_type, layer), own or layer_type


def check_rotates(fields: Fields, model_type: Any, layer_type: str | None) -> None:
    reason = families.ELSEWHERE.get(model_type)
    if reason is not None:
        raise ValueError(f"model_type {model_type!r} {reason}")
    if fields("alibi"):
        raise DoesNotRotate(
            "the configuration's alibi is true: this model does not rotate"
        )
    name, rotating = families.ROTATES_IF.get(
        model_type, ("position_embedding_type", "")
    )
    kind = fields(name)
    other = kind is not None and "ro" not in str(kind)  # rope, rotary
    if kind != rotating if rotating else other:
        raise DoesNotRotate(
            f"the configuration's {name} is {kind!r}: this model does not rotate"
        )
    still = families.UNROTATED.get(model_type)
    window = still != "full_attention" or fields("sliding_window")
    if layer_type is not None and still == layer_type and window:
        raise DoesNotRotate(
            f"the layers of type {layer_type!r} of {model_type!r} do not rotate"
        )


# ------------------------------------------------------------------ its parameters


def parameters_of(
    fields: Fields,
    layer_type: str | None,
    layer: int | None,
    base: float | None,
    length: int | None,
) -> Parameters:
    """The rope parameters of these layers, whichever way they are spelled."""
    return _of_kind(_flat(fields, layer_type, layer, base), fields, length)


def _flat(
    fields: Fields, layer_type: str | None, layer: int | None, base: float | None
) -> dict[str, Any]:
    found = _one_of_two(fields("rope_parameters"), fields("rope_scaling")) or {}
    if not isinstance(found, Mapping):
        raise TypeError(
            "the configuration's rope_parameters, or rope_scaling, must be a "
            f"dictionary, got {found!r:.80}"
        )
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


def _one_of_two(new: Any, old: Any) -> Any:
    """transformers writes rope_parameters, and reads rope_scaling in its place."""
    both = isinstance(new, Mapping) and isinstance(old, Mapping) and new and old
    if both and _plain(new) != _plain(old):
        raise ValueError(
            "the configuration has rope_parameters and rope_scaling that differ, "
            f"{new!s:.80} and {old!s:.80}: remove one"
        )
    return new or old


def _plain(block: Mapping[str, Any]) -> dict[str, Any]:
    named = {"rope_type" if key == "type" else key: x for key, x in block.items()}
    return {key: x for key, x in named.items() if key != "rope_theta" and x is not None}


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
        raise DoesNotRotate(f"the layers of type {layer_type!r} do not rotate")
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
    if flat and fields("model_type") == "deepseek_v4":
        flat.setdefault("attention_factor", 1.0)
    return {"rope_theta": default if value is None else value} | flat


def _layers_own_base(fields: Fields, layer: int | None, base: float | None) -> Any:
    """The base that was asked for, or the layer's in a list; 0 is no rotation."""
    _check_flags(fields, layer)
    bases = fields("layer_rope_theta")
    if base is not None or not isinstance(bases, (list, tuple)):
        return base
    if layer is not None:
        if layer >= len(bases):
            raise ValueError(
                f"layer_rope_theta has {len(bases)} bases, none for layer {layer}"
            )
        if not bases[layer]:
            raise DoesNotRotate(f"layer {layer} does not rotate, says layer_rope_theta")
        return bases[layer]
    each = {value for value in bases if value}
    if len(each) != 1 or not all(bases):
        raise ValueError(
            f"layer_rope_theta has a base for each layer, {bases!s:.80}; say which, by "
            "layer=..."
        )
    return each.pop()


def _check_flags(fields: Fields, layer: int | None) -> None:
    """SmolLM 3 and Llama 4 have a flag for each layer, 0 where it does not rotate."""
    flags, every = fields("no_rope_layers"), fields("no_rope_layer_interval")
    if layer is None or not (flags or every):
        return
    turns = (layer + 1) % every if not flags else layer < len(flags) and flags[layer]
    if not turns:
        raise DoesNotRotate(
            f"layer {layer} does not rotate, says "
            f"{'no_rope_layers' if flags else 'no_rope_layer_interval'}"
        )


def _base(fields: Fields) -> Any:
    """The base outside of the rope parameters, by the names that families have."""
    model_type = fields("model_type")
    names = ["rope_theta", "rotary_emb_base", "rotary_embedding_base"]
    if families.known(model_type):
        names = names[model_type in families.NEOX :][:1]
    found = fields.first(*names)
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


def _share(fields: Fields) -> Any:
    # The families' own names first: the last one may be a default.
    names = ["rotary_pct", "rope_pct", "rotary_emb_fraction", "partial_rotary_factor"]
    model_type = fields("model_type")
    if families.known(model_type):
        names = names[:1] if model_type in families.NEOX else names[-1:]
    return fields.first(*names)
