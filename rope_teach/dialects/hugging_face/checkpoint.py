"""The weights of a model, from one pairing to the other."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rope_teach.checks import Pairing, check_choice, check_count
from rope_teach.dialects.hugging_face.configuration import (
    ConfigurationWarning,
    described,
)
from rope_teach.dialects.hugging_face.parameters import DoesNotRotate
from rope_teach.pairing import convert_projection

Fused = Literal["flat", "grouped"]

# What a tensor of an attention layer is, by its name below the layer: in the words of
# transformers, of Meta and of llama.cpp.
ROLES = {
    "q": r"q_proj|wq|attn_q",
    "k": r"k_proj|wk|attn_k",
    "v": r"v_proj|wv|attn_v",
    "o": r"o_proj|out_proj|dense|wo|Wo|attn_output",
    "fused": r"qkv_proj|query_key_value|Wqkv|wqkv|attn_qkv|c_attn|qkv",
    "q norm": r"(?:attn_)?(?:q|query)_?(?:layer_?)?(?:norm|ln)",
    "k norm": r"(?:attn_)?(?:k|key)_?(?:layer_?)?(?:norm|ln)",
    "latent": r"(?:attn_)?(?:q_[ab]|kv_[ab]|k_b|v_b|kv)(?:_\w+)?|w(?:kv|q)_[ab]",
}
NAME = re.compile(
    r"^(?P<layer>(?:.*\.)?)(?:"
    + "|".join(f"(?P<r{i}>{names})" for i, names in enumerate(ROLES.values()))
    + r")\.(?P<kind>.+)$"
)
PLAIN = re.compile(r"(?:linear\.|norms\.\d+\.)?(?:weight|bias)")
# Beside q and k, these change nothing that a new order of their rows could touch.
PASSENGERS = re.compile(
    r"(?:rotary_emb\.)?inv_freq|(?:masked_)?bias|dense_bias|sinks?|.*gate.*|g_proj\..*"
    r"|(?:rotary_emb|attn_norm|attn_norm_2|attn_sinks|attn_sub_norm)\..*|lambda_\w+"
    r"|groupnorm\..*|A|dt_proj\..*"
)
# An attention layer that has one of these is linear, and does not rotate.
LINEAR = re.compile(r"(?:A_log|dt_bias|slope_rate|ssm_\w+(?:\.\w+)?)")
ELSEWHERE = re.compile(r"(?:^|\.)(?:vision|visual|audio|image)\w*\.")
# How fused tensors lie, where the name of the tensor and its neighbour settle it.
LYING: dict[tuple[str, str], Fused] = {
    ("qkv_proj", "o_proj"): "flat",  # Phi-3; CodeGen's has an out_proj
    ("Wqkv", "Wo"): "flat",
    ("Wqkv", "out_proj"): "flat",
    ("attn_qkv", "attn_output"): "flat",
    ("query_key_value", "dense"): "grouped",
}


class Part(NamedTuple):
    """One tensor of an attention layer."""

    name: str  # in the state dict
    role: str
    word: str  # the name of its module
    kind: str  # what it is of the module: weight, bias
    tensor: Tensor


class Order(NamedTuple):
    """What is to be done to the rows of each head."""

    head_dim: int
    source: Pairing
    target: Pairing
    rotary_dim: int | None

    def of(self, rows: Tensor) -> Tensor:
        """Rows ``(heads * head_dim, ...)`` in the new order."""
        heads = rows.shape[0] // self.head_dim
        return convert_projection(rows, heads, *self[1:])


def convert_checkpoint(
    state_dict: Mapping[str, Tensor],
    *,
    target: Pairing,
    head_dim: int | None = None,
    source: Pairing | None = None,
    rotary_dim: int | None = None,
    config: Any = None,
    fused: Fused | None = None,
) -> dict[str, Tensor]:
    """Reorder all q and k weights of a model for the other pairing.

    Meta's Llama, GPT-J and llama.cpp's ``llama`` are ``"interleaved"``; Hugging Face's
    Llama and GPT-NeoX are ``"half"``. Names stay as they are. The model that takes the
    new weights must rotate by ``target``.

    Parameters
    ----------
    state_dict
        With q and k apart, in the names of transformers (``q_proj``), Meta (``wq``) or
        GGUF (``attn_q``), or fused with v. Weights, biases, and norms of q and k, are
        reordered; of a doubled ``q_proj``, as in Qwen3-Next, the query and not the
        gate; linear attention is left as it is. Not changed. Give the text part of a
        multimodal model.
    head_dim
        Features of a head. It tells how many heads each tensor has, so that grouped
        keys are reordered by their own number.
    source, target
        The pairing that the weights were trained with, and the one wanted.
    rotary_dim
        Rotated features of each head, the first ones (default: all).
    config
        In place of ``head_dim``, ``source`` and ``rotary_dim``: a configuration, as
        for :func:`rotary_embedding`. It is needed where layers differ in them, as in
        Gemma 4, Laguna and Step 3.5: the weights alone do not tell.
    fused
        How the rows of a fused tensor lie, where its name does not settle it:
        ``"flat"``, all of q, of k, of v, as Phi-3 and ChatGLM; ``"grouped"``, for each
        head of k its heads of q, then k and v, as GPT-NeoX, Falcon and InternLM 2.

    Returns
    -------
    dict
        All names of ``state_dict``; tensors that do not change are shared with it.

    Raises
    ------
    ValueError
        If no q or no k is found, if one is in a form that cannot be reordered (a
        latent, quantized, an adapter), or if something beside them may depend on
        their order. The message names the tensor.

    Notes
    -----
    Source: the identity of :func:`rope_teach.convert_projection`. Lesson 20.

    Examples
    --------
    >>> import torch
    >>> state = {f"{name}_proj.bias": torch.arange(4.0) for name in "qkv"}
    >>> new = convert_checkpoint(state, head_dim=4, source="half", target="interleaved")
    >>> new["k_proj.bias"], new["v_proj.bias"]
    (tensor([0., 2., 1., 3.]), tensor([0., 1., 2., 3.]))
    """
    check_choice("target", target, ("interleaved", "half"))
    if fused is not None:
        check_choice("fused", fused, ("flat", "grouped"))
    order_of = _orders(head_dim, source, target, rotary_dim, config)
    converted = dict(state_dict)
    layers = _attention_layers(state_dict)
    for layer, parts in layers.items():
        order = order_of(layer)
        if order is None:
            continue
        _check_layer(layer, parts, order.head_dim)
        heads = _query_heads(parts, order.head_dim)
        for part in parts:
            if part.role in ("q", "k", "q norm", "k norm"):
                converted[part.name] = _reordered(part, order, heads)
            elif part.role == "fused":
                converted[part.name] = _reordered_fused(part, parts, order, fused)
    if not layers:
        raise ValueError(
            "state_dict must have q and k, apart (q_proj and k_proj, wq and wk, attn_q "
            f"and attn_k) or fused; its {len(state_dict)} names have neither"
        )
    return converted


def _orders(
    head_dim: int | None,
    source: Pairing | None,
    target: Pairing,
    rotary_dim: int | None,
    config: Any,
) -> Callable[[str], Order | None]:
    """From the name of a layer to its order; None where it does not rotate."""
    given = {"head_dim": head_dim, "source": source, "rotary_dim": rotary_dim}
    if config is None:
        if head_dim is None or source is None:
            raise ValueError(f"give head_dim and source, or config; got {given}")
        check_count("head_dim", head_dim)
        check_choice("source", source, ("interleaved", "half"))
        order = Order(head_dim, source, target, rotary_dim)
        return lambda layer: order
    if any(value is not None for value in given.values()):
        raise ValueError(f"config settles these, so leave them out; got {given}")
    return partial(_order_by_config, config=config, target=target)


def _order_by_config(layer: str, *, config: Any, target: Pairing) -> Order | None:
    number = re.findall(r"(?:^|\.)(\d+)\.", layer)
    try:
        head_dim, options, notes = described(
            config, layer=int(number[-1]) if number else None, length=1
        )
    except DoesNotRotate:
        return None
    for note in notes:
        warnings.warn(note, ConfigurationWarning, stacklevel=4)
    if options.get("trailing"):
        raise ValueError("the last features of a head are rotated: not served")
    return Order(head_dim, options["pairing"], target, options["rotary_dim"])


def _attention_layers(state_dict: Mapping[str, Tensor]) -> dict[str, list[Part]]:
    """The tensors of each layer that has q or k, linear attention left out."""
    found: dict[str, list[Part]] = defaultdict(list)
    for name, tensor in state_dict.items():
        match = NAME.match(name)
        if match is None:
            continue
        words = zip(ROLES, match.groups()[1:-1], strict=True)
        role, word = next((r, w) for r, w in words if w is not None)
        found[match["layer"]].append(Part(name, role, word, match["kind"], tensor))
    with_q_or_k = {
        layer: parts
        for layer, parts in found.items()
        if {"q", "k", "fused", "latent"} & {part.role for part in parts}
    }
    for name, tensor in state_dict.items():
        layer = _layer_of(name, with_q_or_k)
        if layer is not None and all(name != part.name for part in found[layer]):
            part = Part(name, "beside", "", name.removeprefix(layer), tensor)
            with_q_or_k[layer].append(part)
    return {
        layer: parts
        for layer, parts in with_q_or_k.items()
        if not any(p.role == "beside" and LINEAR.fullmatch(p.kind) for p in parts)
    }


def _layer_of(name: str, layers: Mapping[str, object]) -> str | None:
    """The attention layer that a tensor lies in; GGUF has no module for it."""
    prefix = name
    while prefix:
        prefix = prefix.rstrip(".").rpartition(".")[0]
        prefix = prefix + "." if prefix else ""
        if prefix in layers:
            of_a_block = re.search(r"(?:^|\.)blk\.\d+\.$", prefix)
            inside = name.removeprefix(prefix).startswith(("attn_", "ssm_"))
            return prefix if inside or not of_a_block else None
    return None


# -------------------------------------------------------------------------- refusals


def _check_layer(layer: str, parts: list[Part], head_dim: int) -> None:
    """Raise unless all that depends on the order of q and k is known."""
    if ELSEWHERE.search(layer):
        raise ValueError(
            f"{layer}* is not text: its heads and its rotation are others; give the "
            "text part of the model alone"
        )
    sizes = {head_dim}
    for part in parts:
        if part.role == "latent":
            raise ValueError(
                f"{part.name} cannot be reordered: q or k is made from a latent, or "
                "fused with something else than both"
            )
        if part.role in ("q", "k", "fused", "q norm", "k norm"):
            _check_rows(part, head_dim)
            sizes.add(part.tensor.numel() if "norm" in part.role else len(part.tensor))
    roles = {part.role for part in parts}
    if "fused" not in roles and not {"q", "k"} <= roles:
        raise ValueError(
            f"the layer {layer}* has {' and '.join(sorted(roles & {'q', 'k'}))} alone: "
            "the one is worth nothing without the other"
        )
    for part in parts:
        if part.role != "beside" or PASSENGERS.fullmatch(part.kind):
            continue
        if sizes & set(part.tensor.shape):
            raise ValueError(
                f"{part.name} of shape {tuple(part.tensor.shape)} stands beside q and "
                "k, and may depend on the order of their features: not known"
            )


def _check_rows(part: Part, head_dim: int) -> None:
    shape = tuple(part.tensor.shape)
    if not PLAIN.fullmatch(part.kind) or not part.tensor.is_floating_point():
        raise ValueError(
            f"{part.name} ({part.tensor.dtype}) cannot be reordered: q and k must be "
            "neither quantized nor an adapter (merge it first)"
        )
    rows = part.tensor.numel() if "norm" in part.role else (*shape, 0)[0]
    if not rows or rows % head_dim:
        raise ValueError(
            f"{part.name} of shape {shape} does not divide into heads of "
            f"head_dim={head_dim}"
        )


def _query_heads(parts: list[Part], head_dim: int) -> int | None:
    """Heads of the queries, as the output projection has it; None without one.

    That has a column for each feature of a head of v, which may be narrower than k's.
    """
    size = {p.role: p.tensor.shape for p in parts if p.kind.endswith("weight")}
    if not {"q", "k", "o"} <= size.keys() or len(size["o"]) != 2:
        return None
    rows = {role: size[role][0] for role in ("q", "k")}
    columns, kv_heads = size["o"][1], rows["k"] // head_dim
    width = size.get("v", size["k"])[0] // kv_heads
    for doubled in (1, 2):
        heads = rows["q"] // head_dim // doubled
        if heads * width == columns and heads % kv_heads == 0:
            _check_norms(parts, head_dim, heads, kv_heads)
            return heads
    names = ", ".join(p.name for p in parts if p.role == "q" and p.kind == "weight")
    raise ValueError(
        f"{names} has {rows['q']} rows, which fit no number of heads of head_dim="
        f"{head_dim} beside k's {rows['k']} rows and the output's {columns} columns"
    )


def _check_norms(parts: list[Part], head_dim: int, heads: int, kv_heads: int) -> None:
    for part in parts:
        count = {"q norm": heads, "k norm": kv_heads}.get(part.role)
        per_head = re.match(r"norms\.\d+\.", part.kind)
        if count and part.tensor.numel() not in (head_dim, count * head_dim):
            raise ValueError(
                f"{part.name} has {part.tensor.numel()} features, neither head_dim="
                f"{head_dim} nor that of all {count} heads"
            )
        if per_head and part.tensor.numel() != head_dim:
            raise ValueError(f"{part.name} must have head_dim={head_dim} features")


# -------------------------------------------------------------------------- reordering


def _reordered(part: Part, order: Order, heads: int | None) -> Tensor:
    tensor = part.tensor
    if "norm" in part.role:
        return order.of(tensor.flatten()).view_as(tensor)
    doubled = heads is not None and len(tensor) == 2 * heads * order.head_dim
    if part.role == "k" or not doubled:
        return order.of(tensor)
    assert heads is not None
    both = tensor.unflatten(0, (heads, 2, order.head_dim)).clone()  # query, gate
    query = order.of(both[:, 0].flatten(0, 1))
    both[:, 0] = query.unflatten(0, (heads, order.head_dim))
    return both.flatten(0, 2)


def _reordered_fused(
    part: Part, parts: list[Part], order: Order, fused: Fused | None
) -> Tensor:
    outputs = [p for p in parts if p.role == "o" and p.tensor.ndim == 2]
    if not outputs:
        raise ValueError(
            f"{part.name} cannot be taken apart without the output projection beside "
            "it, whose columns tell how many heads q has"
        )
    heads = outputs[0].tensor.shape[1] // order.head_dim
    kv_heads, odd = divmod(len(part.tensor) // order.head_dim - heads, 2)
    if odd or kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"{part.name} has {len(part.tensor)} rows, which are not {heads} heads of "
            f"q and as many of k as of v, of head_dim={order.head_dim}"
        )
    lying = fused or LYING.get((part.word, outputs[0].word))
    # With heads of k between one and all, Falcon's and ChatGLM's names are the same.
    ambiguous = lying == "grouped" and fused is None and 1 < kv_heads < heads
    if lying is None or ambiguous:
        raise ValueError(
            f"{part.name} does not tell how its rows lie: give fused='flat' (all of q, "
            "then k, then v) or 'grouped' (the heads of q, k and v of each head of k)"
        )
    if lying == "flat":
        widths = [heads, kv_heads, kv_heads]
        q, k, v = part.tensor.split([n * order.head_dim for n in widths])
        return torch.cat([order.of(q), order.of(k), v])
    each = part.tensor.unflatten(0, (kv_heads, heads // kv_heads + 2, order.head_dim))
    new = order.of(part.tensor).view_as(each).clone()
    new[:, -1] = each[:, -1]  # v
    return new.flatten(0, 2)
