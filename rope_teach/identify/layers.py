"""Modules, attention layers and whole models, as functions of x or of q and k.

A module that rotates is one already. A module that makes tables is joined with the
function that stands beside it in its file. In an attention layer, alone or inside a
model, x is put in where the projections of queries and keys end, and caught again where
their product begins; the weights do not matter.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rope_teach.identify.probe import CannotProbe, Subject

__all__ = ["as_function"]

METHODS = ("rotate_queries_or_keys", "rotate_queries_and_keys")
PROJECTIONS = (  # after the norms of queries and keys, where a layer has them
    ("q_norm", "k_norm"), ("q_proj", "k_proj"), ("query", "key"), ("wq", "wk"),
    ("to_q", "to_k"), ("query_key_value",), ("qkv_proj",), ("Wqkv",), ("c_attn",),
    ("qkv",),
)  # fmt: skip


def as_function(thing: Any) -> Subject:
    """What to call, and what its attributes say about it. ``TypeError`` for a class."""
    if not callable(thing) or inspect.isclass(thing):
        kind = "a class: give an instance of it" if callable(thing) else "not callable"
        raise TypeError(
            f"identify needs a function or a module that rotates; {thing!r} is {kind}"
        )
    if not isinstance(thing, nn.Module):
        return Subject(thing)
    tensor = next(chain(thing.parameters(), thing.buffers()), torch.empty(0))
    layout = getattr(thing, "layout", None)
    for method in METHODS[getattr(thing, "use_xpos", False) :]:
        if hasattr(thing, method):
            return Subject(getattr(thing, method), _width(thing), device=tensor.device)
    for layer, names in product(thing.modules(), PROJECTIONS):
        projections = [getattr(layer, name, None) for name in names]
        if all(isinstance(projection, nn.Module) for projection in projections):
            function = _attention(thing, layer, projections)
            return Subject(function, _width(layer), None, tensor.dtype, tensor.device)
    apply = getattr(sys.modules[type(thing).__module__], "apply_rotary_pos_emb", None)
    if apply is not None:
        return Subject(_joined(thing, apply), _width(thing), device=tensor.device)
    return Subject(thing, _width(thing), layout, device=tensor.device)


def _width(module: nn.Module) -> int | None:
    for name in ("head_dim", "head_size", "dim"):
        if isinstance(getattr(module, name, None), int):
            return int(getattr(module, name))
    for name in ("inv_freq", "freqs"):
        if isinstance(getattr(module, name, None), Tensor):
            return 2 * int(getattr(module, name).shape[-1])
    return None


def _joined(tables: nn.Module, apply: Callable[..., Any]) -> Callable[..., Any]:
    """A module that makes tables, and the function that applies them."""
    takes = inspect.signature(tables.forward).parameters
    takes_q_and_k = "k" in inspect.signature(apply).parameters

    def apply_both(q: Tensor, k: Tensor, made: Any) -> Any:
        if takes_q_and_k:
            return apply(q, k, *made)
        freqs, scale = made  # xPos
        return apply(q, freqs, scale), apply(k, freqs, 1 / scale)

    def by_length(q: Tensor, k: Tensor) -> Any:
        return apply_both(q, k, tables(q.shape[-2], device=q.device))

    def by_position(q: Tensor, k: Tensor, positions: Tensor) -> Any:
        takes_x = "position_ids" in takes
        made = tables(q, positions[None]) if takes_x else tables(positions)
        return apply_both(q, k, made)

    return by_length if "seq_len" in takes else by_position


# ------------------------------------------------------------------- attention layers


class _Caught(Exception):
    """Queries and keys, on their way into the attention product."""


class _CatchProduct(TorchFunctionMode):
    """Stop at the first product of queries and keys ``(..., seq, head_dim)``."""

    def __init__(self, seq: int, head_dim: int) -> None:
        super().__init__()
        self.shape = (seq, head_dim)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key"), args, strict=False)) | kwargs
            raise _Caught(given["query"], given["key"])
        if func in (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__):
            q, k = args[0], args[1].mT
            if q.shape[-2:] == k.shape[-2:] == self.shape:
                raise _Caught(q, k)
        return func(*args, **kwargs)


def _attention(
    whole: nn.Module, layer: nn.Module, projections: Sequence[Any]
) -> Callable[..., Any]:
    """``whole``, a layer or the model around it, as a function of q and k.

    Both are one tensor: a probe never gives two, and projections may be fused.
    """
    parameters = inspect.signature(whole.forward).parameters
    rotary = _rotary_of(layer) if "position_embeddings" in parameters else None

    def rotation(q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        batch, heads, seq, head_dim = q.shape

        def put(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            own = output.numel() // (batch * seq * head_dim)  # heads of its own
            x = q[:, :1].transpose(1, 2).expand(-1, -1, own, -1)
            return x.reshape(output.shape).to(output.dtype)

        weight = next(p for p in layer.parameters() if p.ndim == 2)
        hidden = weight.new_zeros(batch, seq, weight.shape[-1])
        arguments = _arguments(parameters, hidden, positions.expand(batch, -1), rotary)
        hooks = [module.register_forward_hook(put) for module in projections]
        try:
            with _CatchProduct(seq, head_dim):
                whole(**arguments)
        except _Caught as caught:
            own = [x.numel() // q[:, 0].numel() for x in caught.args]
            return tuple(
                x.reshape(batch, n, seq, head_dim)[:, torch.arange(heads) % n]
                for x, n in zip(caught.args, own, strict=True)
            )
        finally:
            for hook in hooks:
                hook.remove()
        raise CannotProbe("no attention product of queries and keys was seen")

    if {"positions", "position_ids", "position_embeddings"} & set(parameters):
        return rotation
    return lambda q, k: rotation(q, k, torch.arange(q.shape[2], device=q.device))


def _arguments(
    parameters: Mapping[str, inspect.Parameter],
    hidden: Tensor,
    positions: Tensor,
    rotary: Callable[..., Any] | None,
) -> dict[str, Any]:
    """What a layer or a model asks for; a mask, or what else it requires, is None."""
    given: dict[str, Any] = dict.fromkeys(
        name for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    )  # fmt: skip
    known: dict[str, Any] = dict.fromkeys(("hidden_states", "x"), hidden)
    known |= dict.fromkeys(("positions", "position_ids"), positions)
    if "inputs_embeds" in parameters:
        known["inputs_embeds"] = hidden
    else:
        known |= dict.fromkeys(("input_ids", "tokens"), torch.zeros_like(positions))
    if rotary is not None:
        known["position_embeddings"] = rotary(hidden, positions)
    return given | {name: value for name, value in known.items() if name in parameters}


def _rotary_of(layer: Any) -> Callable[..., Any]:
    """The layer's rotary embedding, made as its model would make it."""
    beside = sys.modules[type(layer).__module__]
    for name in dir(beside):
        if name.endswith("RotaryEmbedding"):
            return getattr(beside, name)(config=layer.config)
    raise CannotProbe(
        f"{type(layer).__name__} wants position_embeddings, and no RotaryEmbedding "
        "stands beside it: probe the whole model"
    )
