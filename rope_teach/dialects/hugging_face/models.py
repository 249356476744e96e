"""Our rotation in the place of a transformers model's own."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rope_teach.checks import Pairing
from rope_teach.dialects.hugging_face.configuration import rotary_embedding
from rope_teach.dialects.hugging_face.functions import (
    apply_rotary_pos_emb_gptj,
    apply_tables,
)
from rope_teach.tables import cos_sin

NAME = "apply_rotary_pos_emb"
PAIRINGS: tuple[Pairing, ...] = ("half", "interleaved")
Model = TypeVar("Model", bound=nn.Module)


def swap(
    model: Model, *, length: int | None = None, pairing: Pairing | None = None
) -> Model:
    """Make a transformers model rotate by our tables and our rotation, in place.

    For models whose ``rotary_emb`` makes the tables and whose attention calls
    ``apply_rotary_pos_emb(q, k, cos, sin)``, such as Llama, Mistral, Qwen, Gemma, Phi,
    GPT-NeoX, Cohere and GLM; and for GPT-J. Weights, cache and ``generate`` stay as
    they are, and so do the logits, up to rounding. Where the original rounds angles or
    tables, ours are better: in bfloat16, and at long positions.

    Parameters
    ----------
    model
        Of transformers; changed and returned. No other model of its class is. Save it
        by its state dict or ``save_pretrained``: whole, it refuses to be pickled.
    length
        As in :func:`rotary_embedding`. With the types that need it, the logits are
        transformers' own for sequences of this length.
    pairing
        For weights in another order than the model's own, such as Meta's in Llama.

    Raises
    ------
    ValueError
        If nothing to replace is found, if our rotation differs from the model's in a
        trial, or if the layers are patched already. The model is then as it was.

    Notes
    -----
    Lesson 20.
    """
    named = {layer: _rotations_named(layer) for layer in model.modules()}
    layers = [layer for layer, names in named.items() if names]
    if any("forward" in vars(layer) for layer in layers):
        raise ValueError(
            "something has replaced the forward of these layers, an earlier swap or a "
            "hook: swap once, and before hooks are added"
        )
    if layers and all(hasattr(layer, "embed_positions") for layer in layers):
        return _swap_gptj(model, layers, pairing or "interleaved")
    makers = [
        (parent, name, maker)
        for parent in model.modules()
        for name, maker in parent.named_children()
        if name.startswith("rotary_emb") and hasattr(maker, "config")
    ]
    others = {name for layer in layers for name in named[layer]} - {NAME}
    if others or not layers or len(makers) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(makers)} rotary_emb with a config and "
            f"{len(layers)} layers that rotate, by {sorted(others) or NAME}; needed is "
            f"one rotary_emb, and layers that rotate by {NAME} alone"
        )
    ((parent, name, maker),) = makers
    tables = _Tables(maker.config, length)
    own = _pairing_of(layers[0], maker, tables, length)
    setattr(parent, name, tables)
    for layer in layers:
        _rebind(layer, partial(apply_tables, pairing=pairing or own))
    return model


class _Tables(nn.Module):
    """In place of ``rotary_emb``: one column a pair, from angles in float64."""

    def __init__(self, config: Any, length: int | None) -> None:
        super().__init__()
        parameters = getattr(config, "rope_parameters", None) or {}
        nested = [
            key for key, value in parameters.items() if isinstance(value, Mapping)
        ]
        ropes = {
            layer_type: rotary_embedding(config, layer_type, length=length)
            for layer_type in nested or [None]
        }
        # No buffers: a change of the model's dtype must not reach them.
        self.rules = {t: (r.inv_freq, r.attention_factor) for t, r in ropes.items()}

    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        inv_freq, factor = self.rules[layer_type]
        if inv_freq.ndim == 2:  # time, height, width: (3, batch, seq), or one for all
            position_ids = position_ids.expand(3, -1, -1).movedim(0, -1)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        cos, sin = cos_sin(position_ids, inv_freq, dtype)
        return cos * factor, sin * factor


def _rotations_named(layer: nn.Module) -> list[str]:
    """Which functions to rotate a layer's ``forward`` calls."""
    code = getattr(inspect.unwrap(type(layer).forward), "__code__", None)
    names = code.co_names if code else ()
    return [name for name in names if name.startswith("apply_rotary")]


def _rebind(layer: nn.Module, ours: Callable[..., Any]) -> None:
    """Give one layer its ``forward`` anew, in which ``NAME`` means ``ours``."""
    forward = inspect.unwrap(type(layer).forward)
    scope = {**forward.__globals__, NAME: ours}
    del scope["__name__"]  # by which torch.compile would look ours up in their module
    copied = types.FunctionType(
        forward.__code__,
        scope,
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    copied.__kwdefaults__ = forward.__kwdefaults__
    layer.forward = _Forward(copied, layer)


class _Forward:
    """A layer's new ``forward``. Pickled as a method, it would come back as the old."""

    def __init__(self, function: Callable[..., Any], layer: nn.Module) -> None:
        self.function, self.layer = function, layer
        self.__signature__ = inspect.signature(types.MethodType(function, layer))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.layer, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Forward:
        return _Forward(self.function, copy.deepcopy(self.layer, memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a swapped model cannot be pickled whole: save its state dict, or by "
            "save_pretrained, and swap again after loading"
        )


def _pairing_of(
    layer: nn.Module, maker: nn.Module, tables: _Tables, length: int | None
) -> Pairing:
    """The pairing by which our rotation is the layer's own, as a trial shows."""
    theirs = inspect.unwrap(type(layer).forward).__globals__[NAME]
    maker = copy.deepcopy(maker)  # those for longer context change when called
    device = next(layer.parameters()).device
    positions = torch.tensor([[0, 1, 2, 3, (length or 5) - 1]], device=device)
    if any(inv_freq.ndim == 2 for inv_freq, _ in tables.rules.values()):
        positions = torch.stack([positions, positions + 1, positions + 2])
    takes_q_and_k = list(inspect.signature(theirs).parameters)[:4]
    for pairing in PAIRINGS if takes_q_and_k == ["q", "k", "cos", "sin"] else ():
        if all(
            _agree(theirs, maker, tables, positions, layer_type, pairing)
            for layer_type in tables.rules
        ):
            return pairing
    raise ValueError(
        f"{type(layer).__name__} does not rotate (q, k, cos, sin) as we read its "
        "configuration, in either pairing; the model is as it was"
    )


def _agree(
    theirs: Callable[..., Any],
    maker: nn.Module,
    tables: _Tables,
    positions: Tensor,
    layer_type: str | None,
    pairing: Pairing,
) -> bool:
    """Whether both rotate alike near position 0, where no rounding tells them apart."""
    which = () if layer_type is None else (layer_type,)
    ours = tables(positions.float(), positions, *which)
    size = 2 * ours[0].numel()
    x = torch.linspace(-1, 1, size, device=positions.device)
    x = x.view(1, 1, positions.shape[-1], -1)
    try:
        expected, _ = theirs(x, x, *maker(x[0], positions, *which))
    except (RuntimeError, TypeError):  # tables of another width, or for other inputs
        return False
    got, _ = apply_tables(x, x, *ours, pairing=pairing)
    return torch.allclose(got[:, :, :4], expected[:, :, :4], atol=0.02)


def _swap_gptj(model: Model, layers: list[Any], pairing: Pairing) -> Model:
    """GPT-J and CodeGen: each layer has a table of its own, sines first."""
    rope = rotary_embedding(model.config)
    old = layers[0].embed_positions
    cos, sin = cos_sin(torch.arange(len(old), device=old.device), rope.inv_freq)
    table = torch.cat([sin, cos], dim=-1)
    if table.shape != old.shape or (table - old)[:4].abs().max() > 0.02:
        raise ValueError(
            f"{type(layers[0]).__name__} has a table of shape {tuple(old.shape)} that "
            f"its configuration does not describe, of which we read {rope}"
        )
    for layer in layers:
        layer.embed_positions = table.to(layer.embed_positions.device)
        _rebind(layer, partial(apply_rotary_pos_emb_gptj, pairing=pairing))
    return model
