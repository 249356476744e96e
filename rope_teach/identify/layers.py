"""Modules, attention layers and whole models, as functions of x or of q and k.

A module that rotates is one already. A module that makes tables is joined with the
function that stands beside it in its file. In an attention layer, alone or inside a
model, x is put in where the projections of queries and keys end, and caught again where
their product begins; the weights do not matter. All layers of a model are asked in one
run, and those that answer alike are one kind.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rope_teach.identify.isolate import isolated
from rope_teach.identify.probe import LAYOUTS, TABLES, CannotProbe, Subject, role_of

__all__ = ["as_subjects"]

METHODS = ("rotate_queries_or_keys", "rotate_queries_and_keys")
LATENT = ("kv_a_proj_with_mqa", "kv_b_proj")  # DeepSeek: k in two parts
PROJECTIONS = (
    ("q_proj", "k_proj"), ("query", "key"), ("wq", "wk"), ("to_q", "to_k"), ("q", "k"),
    ("query_key_value",), ("qkv_proj",), ("Wqkv",), ("c_attn",), ("qkv",),
    ("q_b_proj", *LATENT), ("q_proj", *LATENT),
)  # fmt: skip
LOOK = 48  # tokens of the run that sorts a model's layers into kinds


def as_subjects(thing: Any) -> list[Subject]:
    """What to call, and what its attributes say: one for each kind of layer.

    Raises ``TypeError`` for a class, or what cannot be called.
    """
    if not callable(thing) or inspect.isclass(thing):
        kind = "a class: give an instance of it" if callable(thing) else "not callable"
        raise TypeError(
            f"identify needs a function or a module that rotates; {thing!r} is {kind}"
        )
    if not isinstance(thing, nn.Module):
        name = getattr(thing, "__qualname__", type(thing).__name__)
        return [Subject(thing, name.rpartition("<locals>.")[2])]
    tensor = next(chain(thing.parameters(), thing.buffers()), torch.empty(0))
    name = type(thing).__qualname__
    subject = Subject(thing, name, head_dim=_width(thing), device=tensor.device)
    for method in METHODS[getattr(thing, "use_xpos", False) :]:
        if hasattr(thing, method):
            return [replace(subject, build=attrgetter(method))]
    layers = list(_layers(thing))
    if layers:
        return _kinds(replace(subject, head_dim=None, dtype=tensor.dtype), layers)
    layout = getattr(thing, "layout", None)
    subject = replace(subject, layout=layout if layout in LAYOUTS else None)
    apply = getattr(sys.modules[type(thing).__module__], "apply_rotary_pos_emb", None)
    if apply is None or any(thing.children()):
        return [subject]
    joined = replace(subject, layout=None, build=lambda tables: _joined(tables, apply))
    first = inspect.signature(thing.forward).parameters
    if "position_ids" in first or "seq_len" in first:  # a maker of tables, by its names
        return [replace(joined, alternatives=(subject,))]
    return [replace(subject, alternatives=(joined,))]


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
        if "position_ids" not in takes:
            return apply_both(q, k, tables(positions))
        rows = positions if positions.ndim == 2 else positions[None]
        return apply_both(q, k, tables(q, rows))

    return by_length if "seq_len" in takes else by_position


# ------------------------------------------------------------------- attention layers


@dataclass(frozen=True)
class _Layer:
    """An attention layer: its path in the model, and which of its modules project."""

    path: str
    names: tuple[str, ...]
    head_dim: int | None
    heads: tuple[int, int] | None  # of q and k, where they are projected apart
    parts: tuple[int, int, int] | None = None  # latent: still, turning, compressed

    @property
    def number(self) -> str:
        """As people call it: ``"3"`` of ``model.layers.3.self_attn``."""
        numbers = re.findall(r"\d+", self.path)
        return numbers[0] if len(numbers) == 1 else self.path


def _layers(model: nn.Module) -> Iterator[_Layer]:
    """All attention layers, each once, in their order."""
    for path, module in model.named_modules():
        for names in sorted(PROJECTIONS, key=len, reverse=True):
            found = [getattr(module, name, None) for name in names]
            if all(isinstance(each, nn.Module) for each in found):
                yield _layer(path, module, names, [_outputs(each) for each in found])
                break


def _layer(
    path: str, module: nn.Module, names: tuple[str, ...], sizes: list[int]
) -> _Layer:
    """A layer, and the heads of its q and k where they are projected apart."""
    if names[1:] == LATENT:
        parts = ("qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank")
        still, turning, rank = (_int(module, part) or 0 for part in parts)
        dim = still + turning  # one turning part of k for all heads
        return _Layer(path, names, dim, (sizes[0] // dim, 1), (still, turning, rank))
    size = _int(module, "head_dim", "head_size", "attention_head_size")
    if not size or len(names) != 2 or any(width % size for width in sizes):
        return _Layer(path, names, size, None)
    out = getattr(module, "o_proj", None)
    gated = isinstance(out, nn.Linear) and sizes[0] == 2 * out.in_features
    # Gated: each head's queries, and as many gates.
    queries = sizes[0] // size // (2 if gated else 1)
    return _Layer(path, names, size, (queries, sizes[1] // size))


def _outputs(projection: Any) -> int:
    """How many features come out; 0 if it does not say."""
    weight = getattr(projection, "weight", None)
    size = _int(projection, "out_features", "nf")
    return size or (0 if weight is None else len(weight))


def _kinds(subject: Subject, layers: list[_Layer]) -> list[Subject]:
    """One subject for the layers that rotate alike, found out in one run of a copy."""
    places = _places(inspect.signature(subject.thing.forward).parameters)
    roles = ["q", "k", *(role_of(place) or "" for place in places)]

    def of(first: _Layer, numbers: tuple[str, ...]) -> Subject:
        return replace(
            subject,
            build=lambda model: _attention(model, first),
            head_dim=first.head_dim,
            layout="bhsd",
            heads=first.heads,
            alike=first.heads is None,
            call=", ".join(roles),
            layers=numbers,
        )

    if len(layers) == 1:
        name = f"{subject.name}.{layers[0].path}".rstrip(".")
        return [replace(of(layers[0], ()), name=name)]
    kinds: dict[Any, list[_Layer]] = {}
    copy = isolated(subject.thing)
    for layer in layers:
        seen = layer.heads, _first_look(subject, copy, layer)
        kinds.setdefault(seen, []).append(layer)
    return [of(kind[0], tuple(each.number for each in kind)) for kind in kinds.values()]


def _first_look(
    subject: Subject, copy: nn.Module, layer: _Layer
) -> tuple[float, ...] | None:
    """What a layer makes of one x at a few positions, or None if it says nothing."""
    dim = layer.head_dim or 64
    x = torch.randn(1, 1, LOOK, dim, generator=torch.Generator().manual_seed(0))
    x = x.to(subject.dtype).to(subject.device)
    function = _attention(copy, layer)
    rows = torch.arange(LOOK, device=x.device)[None]
    takes = "positions" in map(role_of, inspect.signature(function).parameters)
    try:
        outputs = function(x, x, *[rows][:takes])
        return tuple(torch.cat([out.flatten() for out in outputs]).tolist())
    except Exception:  # whatever a stranger's model may raise
        return None


class _Caught(Exception):
    """Queries and keys, on their way into the attention product."""


class _CatchProduct(TorchFunctionMode):
    """Stop at the first product of queries and keys ``(..., seq, head_dim)``."""

    def __init__(self, seq: int, head_dim: int, now: dict[str, Any]) -> None:
        super().__init__()
        self.shape, self.now = (seq, head_dim), now

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
        if (
            self.now["inside"]
            and operands
            and all(x.shape[-2:] == self.shape for x in operands)
        ):
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


def _attention(whole: nn.Module, layer: _Layer) -> Callable[..., Any]:
    """``whole``, a layer or the model around it, as a function of q and k.

    ``whole`` is a copy: what is not asked for is put out of work in it.
    """
    parameters = inspect.signature(whole.forward).parameters
    places = _places(parameters)
    module = whole.get_submodule(layer.path)
    rotary = _rotary_of(module) if "position_embeddings" in parameters else None
    now: dict[str, Any] = {}
    _put_in_place(whole, module, layer, now)
    weight = next(p for p in module.parameters() if p.ndim == 2)
    width = getattr(getattr(whole, "config", None), "hidden_size", weight.shape[-1])

    def rotation(q: Tensor, k: Tensor, *given: Tensor, **named: Tensor) -> Any:
        batch, _, seq, head_dim = q.shape
        now.update(q=q, k=k, inside=False)
        hidden = weight.new_zeros(batch, seq, width)
        values = dict(zip(places, given, strict=False)) | named
        try:
            with _CatchProduct(seq, head_dim, now):
                whole(**_arguments(parameters, hidden, values, rotary))
        except _Caught as caught:
            heads = layer.heads or (None, None)
            return tuple(
                _as_given(x.reshape(batch, -1, seq, head_dim), own, like)
                for x, own, like in zip(caught.args, heads, (q, k), strict=True)
            )
        finally:
            now.clear()
        raise CannotProbe(
            f"no product of queries and keys (..., {seq}, {head_dim}) was seen"
        )

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [inspect.Parameter(name, kind) for name in ("q", "k", *places)]
    rotation.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    return rotation


def _put_in_place(
    whole: nn.Module, module: nn.Module, layer: _Layer, now: dict[str, Any]
) -> None:
    """Let the projections make ``now["q"]`` and ``now["k"]``, while these are there."""

    def asked(act: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: act(*given) if now else None

    for each in whole.modules():
        if type(each) is nn.Linear:  # it costs, and says nothing
            each.forward = partial(_zeros, each.out_features)  # type: ignore
    module.register_forward_pre_hook(asked(lambda *_: now.update(inside=True)))
    one_token = asked(lambda _, given: (given[0][:, :1], *given[1:]))  # will do
    for which, name in enumerate(layer.names):
        projection = getattr(module, name)
        projected = partial(_projected, layer, which)
        projection.register_forward_pre_hook(one_token)
        projection.register_forward_hook(
            asked(lambda _, given, out, made=projected: made(now["q"], now["k"], out))
        )
    for name, norm in module.named_children():
        if "norm" in name:  # of queries or keys, and no part of the rotation
            norm.register_forward_hook(asked(lambda _, given, out: given[0]))


def _projected(
    layer: _Layer, which: int, q: Tensor, k: Tensor, output: Tensor
) -> Tensor:
    """What a projection should have made, so that it is q or k that is rotated."""
    batch, _, seq, head_dim = q.shape
    x = k if which and layer.heads else q
    if layer.parts and which:
        still, _, rank = layer.parts
        if which == 1:  # compressed, and the part of k that turns: one head for all
            x = k[:, :1, :, still:]
            zeros = x.new_zeros(*x.shape[:-1], rank)
            return torch.cat([zeros, x], -1)[:, 0].to(output.dtype)
        own = layer.heads[0] if layer.heads else 1
        values = output.shape[-1] // own - still
        x = F.pad(k[..., :still], (0, values))
        head_dim = still + values
    own = output.shape[-1] // head_dim
    x = x[:, torch.arange(own) * x.shape[1] // own].transpose(1, 2)
    lead = (batch, 1, seq) if output.ndim == 4 else (batch, seq)
    return x.reshape(*lead, -1).to(output.dtype)


def _as_given(x: Tensor, own: int | None, like: Tensor) -> Tensor:
    """The layer's heads, each once, as many as were given."""
    if own and x.shape[1] > own:  # repeated for the queries
        repeats = x.shape[1] // own
        x = x[:, ::repeats] if torch.equal(x[:, 0], x[:, 1]) else x[:, :own]
    return x[:, torch.arange(like.shape[1]) % x.shape[1]]


def _zeros(width: int, x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], width)


def _places(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """The arguments that say where tokens are: required tables, or positions."""
    if "position_embeddings" in parameters:
        return ["position_ids"]
    tables = [
        name for name, parameter in parameters.items()
        if role_of(name) in TABLES and parameter.default is parameter.empty
    ]  # fmt: skip
    return tables or [name for name in parameters if role_of(name) == "positions"][:1]


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
    if "inputs_embeds" in parameters:
        known["inputs_embeds"] = hidden
    else:
        tokens = hidden.new_zeros(hidden.shape[:2], dtype=torch.long)
        known |= {"input_ids": tokens, "tokens": tokens}
    for name, value in places.items():
        rows = role_of(name) == "positions"
        known[name] = value.expand(len(hidden), -1) if rows else value
    if rotary is not None:
        known["position_embeddings"] = rotary(hidden, known["position_ids"])
    return given | {name: value for name, value in known.items() if name in parameters}


def _rotary_of(layer: Any) -> Callable[..., Any]:
    """The layer's rotary embedding, made as its model would make it."""
    beside = vars(sys.modules[type(layer).__module__])
    for name in sorted(name for name in beside if name.endswith("RotaryEmbedding")):
        made = beside[name](config=layer.config)
        kinds = getattr(layer.config, "layer_types", None)
        if "layer_type" in inspect.signature(made.forward).parameters and kinds:
            return partial(made, layer_type=kinds[layer.layer_idx])
        return made
    raise CannotProbe(
        f"{type(layer).__name__} wants position_embeddings, and no RotaryEmbedding "
        "stands beside it: probe the whole model"
    )
