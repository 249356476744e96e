"""Modules, attention layers and whole models, as functions of x or of q and k.

A module that rotates is one already. A module that makes tables is joined with the
function that stands beside it in its file. In an attention layer, alone or inside a
model, x is put in where the projections of queries and keys end, and caught again where
their product begins; the weights do not matter.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rope_teach.identify.probe import TABLES, CannotProbe, Subject, role_of

__all__ = ["as_function"]

METHODS = ("rotate_queries_or_keys", "rotate_queries_and_keys")
PROJECTIONS = (
    ("q_proj", "k_proj"), ("query", "key"), ("wq", "wk"), ("to_q", "to_k"), ("q", "k"),
    ("query_key_value",), ("qkv_proj",), ("Wqkv",), ("c_attn",), ("qkv",),
)  # fmt: skip


def as_function(thing: Any) -> Subject:
    """What to call, and what its attributes say about it. ``TypeError`` for a class."""
    if not callable(thing) or inspect.isclass(thing):
        kind = "a class: give an instance of it" if callable(thing) else "not callable"
        raise TypeError(
            f"identify needs a function or a module that rotates; {thing!r} is {kind}"
        )
    if not isinstance(thing, nn.Module):
        name = getattr(thing, "__qualname__", type(thing).__name__)
        return Subject(thing, name.rpartition("<locals>.")[2])
    tensor = next(chain(thing.parameters(), thing.buffers()), torch.empty(0))
    layout = getattr(thing, "layout", None)
    name, width = type(thing).__qualname__, _width(thing)
    for method in METHODS[getattr(thing, "use_xpos", False) :]:
        if hasattr(thing, method):
            return Subject(getattr(thing, method), name, width, device=tensor.device)
    for (path, layer), names in product(thing.named_modules(), PROJECTIONS):
        projections = [getattr(layer, name, None) for name in names]
        if all(isinstance(projection, nn.Module) for projection in projections):
            return Subject(
                _attention(thing, layer, projections),
                f"{name}.{path}".rstrip("."),
                _int(layer, "head_dim", "head_size", "attention_head_size"),
                dtype=tensor.dtype,
                device=tensor.device,
            )
    apply = getattr(sys.modules[type(thing).__module__], "apply_rotary_pos_emb", None)
    if apply is not None and not any(thing.children()):
        return Subject(_joined(thing, apply), name, width, device=tensor.device)
    return Subject(thing, name, width, layout, device=tensor.device)


def _width(module: nn.Module) -> int | None:
    speeds = getattr(module, "inv_freq", getattr(module, "freqs", None))
    said = _int(module, "head_dim", "head_size", "dim")
    return 2 * speeds.shape[-1] if isinstance(speeds, Tensor) and not said else said


def _int(module: nn.Module, *names: str) -> int | None:
    """The first of these attributes that is an int."""
    values = (getattr(module, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


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
        operands: Sequence[Tensor] = ()
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key"), args, strict=False)) | kwargs
            operands = given["query"], given["key"]
        elif func in PRODUCTS:
            operands = args[0], args[1].mT if args[1].ndim > 1 else args[1]
        elif func is torch.einsum:
            operands = _of_einsum(*args)
        if operands and all(x.shape[-2:] == self.shape for x in operands):
            raise _Caught(*operands)
        return func(*args, **kwargs)


PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)


def _of_einsum(equation: Any, *given: Any) -> Sequence[Tensor]:
    """q and k of ``"b h i d, b h j d -> b h i j"``, with the sequence before d."""
    terms = re.findall("[A-Za-z]+", str(equation).replace(" ", ""))
    tensors = given[0] if isinstance(given[0], (list, tuple)) else given
    if [len(term) for term in terms[:-1]] != [x.ndim for x in tensors]:
        return ()  # an ellipsis, or no output
    if len(terms) != 3:
        return ()
    left, right, out = terms
    both = [axis for axis in left if axis in right and axis in out]

    def laid(term: str, tensor: Tensor) -> Tensor:
        own = [axis for axis in term if axis in out and axis not in both]
        rest = [axis for axis in term if axis not in out]
        return tensor.permute([term.index(axis) for axis in (*both, *own, *rest)])

    return [laid(left, tensors[0]), laid(right, tensors[1])]


def _attention(
    whole: nn.Module, layer: nn.Module, projections: Sequence[Any]
) -> Callable[..., Any]:
    """``whole``, a layer or the model around it, as a function of q and k.

    Both are one tensor: a probe never gives two, and projections may be fused.
    """
    parameters = inspect.signature(whole.forward).parameters
    places = _places(parameters)
    rotary = _rotary_of(layer) if "position_embeddings" in parameters else None
    norms = [module for name, module in layer.named_children() if "norm" in name]
    weight = next(p for p in layer.parameters() if p.ndim == 2)

    def rotation(q: Tensor, k: Tensor, *given: Tensor, **named: Tensor) -> Any:
        batch, heads, seq, head_dim = q.shape

        def put(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            own = output.numel() // (batch * head_dim)  # heads of its own
            x = q[:, :1].transpose(1, 2).expand(-1, -1, own, -1)
            return x.reshape(batch, seq, *output.shape[2:]).to(output.dtype)

        hidden = weight.new_zeros(batch, seq, weight.shape[-1])
        values = dict(zip(places, given, strict=False)) | named
        arguments = _arguments(parameters, hidden, values, rotary)
        hooks = [module.register_forward_pre_hook(_one_token) for module in projections]
        hooks += [module.register_forward_hook(put) for module in projections]
        hooks += [norm.register_forward_hook(_leave_out) for norm in norms]
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
        raise CannotProbe(
            f"no product of queries and keys (..., {seq}, {head_dim}) was seen"
        )

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    arguments = [inspect.Parameter(name, kind) for name in ("q", "k", *places)]
    rotation.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    return rotation


def _one_token(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook: what is replaced by ``put`` need not be computed for every token."""
    return (inputs[0][:, :1], *inputs[1:])


def _leave_out(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Any:
    """A hook: norms of queries and keys are no part of the rotation."""
    return inputs[0]


def _places(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """The arguments that say where tokens are: required tables, or positions."""
    tables = [
        name for name, parameter in parameters.items()
        if role_of(name) in TABLES and parameter.default is parameter.empty
    ]  # fmt: skip
    positions = [name for name in parameters if role_of(name) == "positions"]
    if "position_embeddings" in parameters:
        return ["position_ids"]
    return tables or positions[:1]


def _arguments(
    parameters: Mapping[str, inspect.Parameter],
    hidden: Tensor,
    places: dict[str, Tensor],
    rotary: Callable[..., Any] | None,
) -> dict[str, Any]:
    """What a layer or a model asks for; a mask, or what else it requires, is None."""
    given: dict[str, Any] = dict.fromkeys(
        name for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    )  # fmt: skip
    known: dict[str, Any] = dict.fromkeys(("hidden_states", "x", "y"), hidden)
    for name, value in places.items():
        known[name] = value
        if role_of(name) == "positions":
            known[name] = value.expand(len(hidden), -1)
    if "inputs_embeds" in parameters:
        known["inputs_embeds"] = hidden
    else:
        tokens = hidden.new_zeros(hidden.shape[:2], dtype=torch.long)
        known |= dict.fromkeys(("input_ids", "tokens"), tokens)
    if rotary is not None:
        known["position_embeddings"] = rotary(hidden, known["position_ids"])
    return given | {name: value for name, value in known.items() if name in parameters}


def _rotary_of(layer: Any) -> Callable[..., Any]:
    """The layer's rotary embedding, made as its model would make it."""
    beside = sys.modules[type(layer).__module__]
    for name in dir(beside):
        if name.endswith("RotaryEmbedding"):
            made = getattr(beside, name)(config=layer.config)
            kinds = getattr(layer.config, "layer_types", None)
            if "layer_type" in inspect.signature(made.forward).parameters and kinds:
                return partial(made, layer_type=kinds[layer.layer_idx])
            return made
    raise CannotProbe(
        f"{type(layer).__name__} wants position_embeddings, and no RotaryEmbedding "
        "stands beside it: probe the whole model"
    )
