"""A transformers configuration as our :class:`RotaryEmbedding`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rope_teach.axes import multimodal_frequencies
from rope_teach.checks import Layout, Pairing
from rope_teach.dialects.hugging_face.scaling import Read, scaling_rule
from rope_teach.rotary import RotaryEmbedding

# Values of model_type that rotate (0, 1)(2, 3)... A configuration does not say so.
INTERLEAVED = {
    "codegen", "cohere", "cohere2", "cohere2_moe", "deepseek_v2", "deepseek_v4",
    "ernie4_5", "ernie4_5_moe", "glm", "glm4", "gptj", "helium", "llama4_text",
    "moonshine", "moonshine_streaming",
}  # fmt: skip
# These do, unless their flag rope_interleave is false. All others pair the halves.
FLAGGED = {"axk1", "deepseek_v3", "glm4_moe_lite", "mistral4", "youtu"}


def rotary_embedding(
    config: Any,
    layer_type: str | None = None,
    *,
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
    layer_type
        Which of the layer types, where each has parameters of its own:
        ``"full_attention"``, ``"sliding_attention"``...
    length
        Tokens to be served, which the types ``dynamic`` and ``longrope`` depend on.
        transformers changes the angles when a sequence outgrows the trained length, so
        that cached keys no longer fit; here one length holds for a whole sequence.
    head_dim, base, pairing
        To be given where the configuration does not tell, or tells wrong: older files,
        as of Llama 2 and Falcon, leave the base to the code. By default the pairing is
        that of the ``model_type``, where that is known to be interleaved, and else
        ``"half"``.

    Raises
    ------
    TypeError, ValueError
        If ``config`` is a name, there are no rope parameters, one is missing, or the
        type is unknown.

    Notes
    -----
    The frequencies are those of transformers to the rounding of float32, in float64.
    One case differs: where layer types have parameters of their own, transformers
    overlooks YaRN's ``truncate: false``. Lesson 20.

    Examples
    --------
    >>> rope = rotary_embedding({"head_dim": 64, "rope_theta": 500000.0})
    >>> rope.base, rope.pairing
    (500000.0, 'half')
    """
    read = _reader(config, layer_type)
    parameters = _parameters(read, layer_type, base)
    # DeepSeek rotates apart from the rest of its heads, and its older files say so only
    # here.
    head_dim = (
        head_dim or read("head_dim") or read("qk_rope_head_dim") or _divided(read)
    )
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    fraction = parameters.get("partial_rotary_factor", 1.0)
    if kind == "proportional":  # that rule takes the share itself
        fraction = 1.0
    rotary_dim = read("rotary_dim") or int(head_dim * fraction)
    interleaved = read("rope_interleave")
    if interleaved is None:
        interleaved = read("model_type") in INTERLEAVED | FLAGGED
    rope = RotaryEmbedding(
        head_dim,
        base=parameters["rope_theta"],
        rotary_dim=rotary_dim,
        pairing=pairing or ("interleaved" if interleaved else "half"),
        layout=layout,
        scaling=scaling_rule(kind, parameters, read, length),
    )
    if "mrope_section" in parameters:
        return _with_sections(rope, parameters)
    return rope


def _with_sections(
    rope: RotaryEmbedding, parameters: dict[str, Any]
) -> RotaryEmbedding:
    """The same with three coordinates a position, as in Qwen's multimodal models."""
    if rope.attention_factor != 1:
        raise ValueError(
            f"mrope_section and an attention factor cannot be joined, got {parameters}"
        )
    inv_freq = multimodal_frequencies(
        rope.inv_freq,
        parameters["mrope_section"],
        interleaved=parameters.get("mrope_interleaved", False),
    )
    return RotaryEmbedding(
        rope.head_dim,
        base=rope.base,
        rotary_dim=rope.rotary_dim,
        pairing=rope.pairing,
        layout=rope.layout,
        inv_freq=inv_freq,
    )


def _reader(config: Any, layer_type: str | None) -> Read:
    """A function from a field's name to its value, or None."""
    if isinstance(config, str):
        raise TypeError(
            f"config must be a configuration or its dictionary, got the name {config!r}"
        )
    if isinstance(config, Mapping):
        return config.get
    if layer_type is not None and getattr(config, "is_heterogeneous", False):
        config = config.per_layer_config[layer_type]  # Gemma 4: heads of two sizes
    return lambda name: getattr(config, name, None)


def _divided(read: Read) -> int:
    width = read("hidden_size") or read("n_embd")
    heads = read("num_attention_heads") or read("n_head")
    if not width or not heads:
        raise ValueError(
            "config must have head_dim, or hidden_size and num_attention_heads; pass "
            "its text part if it has several, or head_dim=..."
        )
    return int(width // heads)


def _parameters(
    read: Read, layer_type: str | None, base: float | None
) -> dict[str, Any]:
    """One flat dictionary, whichever way the configuration spells it."""
    found = read("rope_parameters") or read("rope_scaling") or {}
    nested = {key: value for key, value in found.items() if isinstance(value, Mapping)}
    if nested:
        if layer_type not in nested:
            raise ValueError(
                f"layer_type must be one of {sorted(nested)}, each of which has rope "
                f"parameters of its own; got {layer_type!r}"
            )
        found = nested[layer_type]
    elif local := read("rope_local_base_freq"):  # Gemma 3 until transformers 5
        if layer_type not in ("full_attention", "sliding_attention"):
            raise ValueError(
                "layer_type must be 'full_attention' or 'sliding_attention', since "
                f"this configuration has a base for each; got {layer_type!r}"
            )
        if layer_type == "sliding_attention":
            return {"rope_theta": local}
    flat = {key: value for key, value in found.items() if value is not None}
    # Older configurations hold these outside, and Phi-3 its trained length still.
    outside = {
        "rope_theta": read("rope_theta") or read("rotary_emb_base"),
        "partial_rotary_factor": read("partial_rotary_factor") or read("rotary_pct"),
    }
    if read("rotary_dim"):  # GPT-J has no more than this
        outside["rope_theta"] = outside["rope_theta"] or 10_000.0
    flat = {key: value for key, value in outside.items() if value} | flat
    if trained := read("original_max_position_embeddings"):
        flat["original_max_position_embeddings"] = trained
    if base is not None:
        flat["rope_theta"] = base
    if "rope_theta" not in flat:
        raise ValueError(
            "config has no rope_theta, inside rope_parameters or beside it; does this "
            "model rotate? (of a multimodal one, pass the text part; where the code "
            "has the base, pass base=10_000.0 or what it says)"
        )
    return flat
