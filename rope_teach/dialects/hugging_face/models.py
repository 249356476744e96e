"""Our rotation in the place of a transformers model's own."""

from __future__ import annotations

import copy
import inspect
import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rope_teach.checks import Layout, Pairing, check_choice, check_count
from rope_teach.dialects.hugging_face.configuration import described, frequencies
from rope_teach.dialects.hugging_face.functions import (
    apply_rotary_pos_emb_gptj,
)
from rope_teach.ops import rotate
from rope_teach.tables import cos_sin

# Attention calls one of these on (q, k, cos, sin), or on each of q and k.
NAMES = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_interleave")
PAIRINGS: tuple[Pairing, ...] = ("half", "interleaved")
FLAGS = (False, True)
FAR = 1_000  # a position that tells slow frequencies apart
Model = TypeVar("Model", bound=nn.Module)


def swap(
    model: Model, *, length: int | None = None, pairing: Pairing | None = None
) -> Model:
    """Make a transformers model rotate by our tables and our rotation, in place.

    For models whose ``rotary_emb`` makes the tables and whose attention calls
    ``apply_rotary_pos_emb(q, k, cos, sin)``, or on each of q and k, such as Llama,
    Mistral, Qwen, Gemma, Phi, GPT-NeoX, Cohere, GLM and DeepSeek; and for GPT-J.
    Weights, cache and ``generate`` stay as they are, and so do the logits, up to
    rounding. Where the original rounds angles or tables, ours are better: in bfloat16,
    and at long positions.

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
        trial, near position 0 or far, if the model then runs on a few tokens
        otherwise than before, or if the layers are patched already. The model is then
        as it was.

    Notes
    -----
    The trial runs the model twice, on six tokens. Lesson 20.
    """
    if pairing is not None:
        check_choice("pairing", pairing, PAIRINGS)
    if length is not None:
        check_count("length", length)
    layers = [layer for layer in model.modules() if _rotations_named(layer)]
    if any("forward" in vars(layer) for layer in layers):
        raise ValueError(
            "something has replaced the forward of these layers, an earlier swap or a "
            "hook: swap once, and before hooks are added"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "the model has parameters on the meta device: load its weights first, "
            "since a trial must show that nothing changes"
        )
    with _undone_on_error(layers) as changes:
        if layers and all(hasattr(layer, "embed_positions") for layer in layers):
            _swap_gptj(model, layers, pairing or "interleaved", changes)
        else:
            _swap_tables(model, layers, length, pairing, changes)
    return model


# ------------------------------------------------------------------------- the swap


class _Turn(NamedTuple):
    """How one of transformers' functions rotates."""

    pairing: Pairing
    clockwise: bool = False
    trailing: bool = False

    def of(self, x: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Tensor:
        """Rotate ``x`` by tables of one column a pair, ``(batch, seq, r/2)``."""
        layout: Layout = "bhsd" if unsqueeze_dim == 1 else "bshd"
        sin = -sin if self.clockwise else sin
        if not self.trailing:
            return rotate(x, cos, sin, self.pairing, layout)
        rest, last = x.split([x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]], -1)
        return torch.cat([rest, rotate(last, cos, sin, self.pairing, layout)], dim=-1)


def _swap_tables(
    model: nn.Module,
    layers: list[nn.Module],
    length: int | None,
    pairing: Pairing | None,
    changes: dict[tuple[nn.Module, str], nn.Module],
) -> None:
    makers = [
        (parent, name, maker)
        for parent in model.modules()
        for name, maker in parent.named_children()
        if name.startswith("rotary_emb") and hasattr(maker, "config")
    ]
    others = {name for layer in layers for name in _rotations_named(layer)} - {*NAMES}
    if others or not layers or len(makers) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(makers)} rotary_emb with a config and "
            f"{len(layers)} layers that rotate, by {sorted(others) or NAMES[0]}; "
            f"needed is one rotary_emb, and layers that rotate by {NAMES[0]} alone"
        )
    ((parent, name, maker),) = makers
    tables = _Tables(maker, length)
    turns = {layer: _turn_of(layer, maker, tables, length) for layer in layers}
    changes[parent, name] = maker
    setattr(parent, name, copy.deepcopy(maker))  # a call may change it
    before = _said(model)
    setattr(parent, name, tables)
    for layer, turn in turns.items():
        _rebind(layer, turn)
    # Where length matters, six tokens are no sequence of it: only a crash would tell.
    _check_same(model, before, exact=length is None)
    if pairing is not None:
        for layer, turn in turns.items():
            _rebind(layer, turn._replace(pairing=pairing))


@contextmanager
def _undone_on_error(
    layers: list[nn.Module],
) -> Iterator[dict[tuple[nn.Module, str], Any]]:
    """Put back what was changed, if it turns out wrong."""
    changes: dict[tuple[nn.Module, str], Any] = {}
    try:
        yield changes
    except BaseException:
        for (parent, name), old in changes.items():
            setattr(parent, name, old)
        for layer in layers:
            vars(layer).pop("forward", None)
        raise


class _Tables(nn.Module):
    """In place of ``rotary_emb``: one column a pair, from angles in float64."""

    def __init__(self, maker: nn.Module, length: int | None) -> None:
        super().__init__()
        config = maker.config
        parameters = getattr(config, "rope_parameters", None) or {}
        keys = [key for key, value in parameters.items() if isinstance(value, Mapping)]
        if any(hasattr(maker, f"{key}_inv_freq") for key in keys):
            keys = [key for key in keys if hasattr(maker, f"{key}_inv_freq")]
        # The trial settles how these are applied, and whether what is left matters.
        read = partial(described, config, length=length, pairing="half")
        self.rules = {key: frequencies(read(key)[1]) for key in keys or [None]}
        self.layer_types = getattr(maker, "layer_types", None)  # LFM 3 asks for them
        # These are no buffers: a change of the model's dtype must not reach them.

    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        inv_freq, factor = self.rules[layer_type]
        if inv_freq.ndim == 2:  # time, height, width: (3, batch, seq), or one for all
            axes = inv_freq.shape[0]
            position_ids = position_ids.expand(axes, -1, -1).movedim(0, -1)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        cos, sin = cos_sin(position_ids, inv_freq, dtype)
        return cos * factor, sin * factor


def _rotations_named(layer: nn.Module) -> list[str]:
    """Which functions to rotate a layer's ``forward`` calls."""
    code = getattr(inspect.unwrap(type(layer).forward), "__code__", None)
    names = code.co_names if code else ()
    return [name for name in names if name.startswith("apply_rotary")]


def _rebind(
    layer: nn.Module, turn: _Turn, ours: Callable[..., Any] | None = None
) -> None:
    """Give one layer its ``forward`` anew, in which their names mean ours."""
    forward = inspect.unwrap(type(layer).forward)
    scope = dict(forward.__globals__)
    for name in _rotations_named(layer):
        one = next(iter(inspect.signature(scope[name]).parameters)) in ("x", "tensor")
        scope[name] = ours or (turn.of if one else partial(_both, turn=turn))
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


def _both(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    unsqueeze_dim: int = 1,
    *,
    turn: _Turn,
) -> tuple[Tensor, Tensor]:
    return turn.of(q, cos, sin, unsqueeze_dim), turn.of(k, cos, sin, unsqueeze_dim)


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


def _swap_gptj(
    model: Any,
    layers: list[Any],
    pairing: Pairing,
    changes: dict[tuple[nn.Module, str], Any],
) -> None:
    """GPT-J and CodeGen: each layer has a table of its own, sines first."""
    inv_freq, _ = frequencies(described(model.config)[1])
    old = layers[0].embed_positions
    cos, sin = cos_sin(torch.arange(len(old), device=old.device), inv_freq)
    table = torch.cat([sin, cos], dim=-1)
    rows = torch.arange(len(old), device=old.device).unsqueeze(-1)
    allowed = 1e-5 + rows * 2 * torch.finfo(old.dtype).eps  # angles in their dtype
    if table.shape != old.shape or ((table - old).abs() > allowed).any():
        raise ValueError(
            f"{type(layers[0]).__name__} has a table of shape {tuple(old.shape)} that "
            f"its configuration does not describe: by what we read, it rotates "
            f"{2 * len(inv_freq)} features"
        )
    before = _said(model)
    for layer in layers:
        changes[layer, "embed_positions"] = layer.embed_positions
        layer.embed_positions = table.to(layer.embed_positions.device)
    for way in ("interleaved", pairing):
        ours = partial(apply_rotary_pos_emb_gptj, pairing=way)
        for layer in layers:
            _rebind(layer, _Turn(way), ours)
        if way == "interleaved":
            _check_same(model, before, exact=True)


# ------------------------------------------------------------------------ the trials


def _turn_of(
    layer: nn.Module, maker: nn.Module, tables: _Tables, length: int | None
) -> _Turn:
    """How a layer's own function rotates, as a trial shows."""
    scope = inspect.unwrap(type(layer).forward).__globals__
    names = _rotations_named(layer)
    flag = getattr(maker.config, "rope_interleave", None)
    if len(set(names)) > 1 and flag is not None:  # the code chooses by it
        names = [name for name in names if name.endswith("_interleave") == flag]
    found = {_turn_by(scope[name], maker, tables, length) for name in names}
    if len(found) != 1 or None in found:
        raise ValueError(
            f"{type(layer).__name__} does not rotate (q, k, cos, sin) as we read its "
            "configuration, in either pairing; the model is as it was"
        )
    (turn,) = found
    assert turn is not None
    return turn


def _turn_by(
    theirs: Callable[..., Any], maker: nn.Module, tables: _Tables, length: int | None
) -> _Turn | None:
    taken = list(inspect.signature(theirs).parameters)
    if taken[:4] != ["q", "k", "cos", "sin"] and taken[:3] != ["x", "cos", "sin"]:
        return None
    # As it was made: casts that came after are what ours do better than.
    maker = copy.deepcopy(maker)  # those for longer context change when called
    device = next((b.device for b in maker.buffers()), torch.device("cpu"))
    rounded = _rounding(maker, tables) > 1e-5
    last = (length or FAR) - 1
    far = [] if rounded else [min(last, FAR), last]
    positions = torch.tensor([[0, 1, 2, 3, *far]], device=device)
    if any(inv_freq.ndim == 2 for inv_freq, _ in tables.rules.values()):
        axes = next(inv_freq.shape[0] for inv_freq, _ in tables.rules.values())
        positions = torch.stack([positions + axis for axis in range(axes)])
    for clockwise, trailing, pairing in itertools.product(FLAGS, FLAGS, PAIRINGS):
        turn = _Turn(pairing, clockwise, trailing)
        try:
            if all(
                _agree(theirs, maker, tables, positions, kind, turn, rounded)
                for kind in tables.rules
            ):
                return turn
        except (RuntimeError, TypeError, ValueError):  # of another width, or inputs
            continue
    return None


def _rounding(maker: nn.Module, tables: _Tables) -> float:
    """The rounding of the maker's frequencies, 1e-5 at least; raise if that is not all.

    A model that was cast to 16 bits has rounded them, and keeps them so when cast back.
    """
    coarsest = 1e-5
    for kind, (ours, _) in tables.rules.items():
        theirs = getattr(maker, f"{kind}_inv_freq" if kind else "inv_freq", None)
        kinds = getattr(maker, "rope_type", None)
        rule = kinds[kind] if isinstance(kinds, dict) else kinds
        if not isinstance(theirs, Tensor) or rule in ("longrope", "dynamic"):
            continue  # made elsewhere, or for each call: the trial must do
        ours = (ours.sum(0) if ours.ndim == 2 else ours).float()
        theirs = theirs.float().cpu()
        gap = float("inf")
        if ours.shape == theirs.shape:
            cast = (ours, ours.bfloat16().float(), ours.half().float())
            gaps = [((theirs - x).abs() / x.abs().clamp(1e-30)).max() for x in cast]
            gap = float(gaps[0])
            if min(gaps[1:]) < 1e-5 < gap:
                coarsest = max(coarsest, gap)
                continue
        if gap > 1e-5:
            raise ValueError(
                f"{type(maker).__name__} does not rotate (q, k, cos, sin) as we read "
                f"its configuration: of {len(theirs)} frequencies, {len(ours)} as we "
                f"read it, some differ by {gap:.2%}; the model is as it was"
            )
    return coarsest


def _agree(
    theirs: Callable[..., Any],
    maker: nn.Module,
    tables: _Tables,
    positions: Tensor,
    layer_type: str | None,
    turn: _Turn,
    rounded: bool,
) -> bool:
    """Whether both give the same scores, of other values in q and in k."""
    which = () if layer_type is None else (layer_type,)
    ours = tables(positions.float(), positions, *which)
    generator = torch.Generator().manual_seed(0)
    seq, width = positions.shape[-1], 2 * ours[0].shape[-1]
    table = maker(torch.empty(1, 1, 1, device=positions.device), positions, *which)
    both = next(iter(inspect.signature(theirs).parameters)) == "q"
    for wider in (2, 1):  # features beyond the rotated, where the function takes such
        q, k = torch.randn(2, 1, 1, seq, wider * width, generator=generator)
        q, k = q.to(positions.device), k.to(positions.device)
        try:
            expected = (
                theirs(q, k, *table) if both else [theirs(x, *table) for x in (q, k)]
            )
            break
        except RuntimeError:
            if wider == 1:
                raise
    got = turn.of(q, *ours), turn.of(k, *ours)
    gap = (got[0] @ got[1].mT - expected[0] @ expected[1].mT).abs().max()
    return bool(gap < (0.03 if rounded else 2e-3) * width**0.5)


@torch.no_grad()
def _said(model: nn.Module) -> Tensor | None:
    """What the model says to six tokens; None if it cannot be called with tokens."""
    try:
        return _run(model)
    except Exception:  # it needs images, or an encoder: nothing to hold ours against
        return None


def _run(model: Any) -> Tensor:
    embedding = model.get_input_embeddings()
    tokens = torch.arange(1, 7, device=embedding.weight.device)
    tokens = (tokens % embedding.weight.shape[0])[None]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            out = model(input_ids=tokens, use_cache=False)[0]
    finally:
        for module, flag in training.items():
            module.training = flag
    if not isinstance(out, Tensor):
        raise TypeError(f"the model returned {type(out).__name__}")
    return out.double()


def _check_same(model: nn.Module, before: Tensor | None, exact: bool) -> None:
    """Raise unless the model runs as it did, and says the same."""
    if before is None:
        return
    try:
        after = _run(model)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} rotates by something else than its one "
            f"rotary_emb; with ours it raises {type(error).__name__}: {error}. The "
            "model is as it was"
        ) from error
    rounded = any(p.dtype.itemsize < 4 for p in model.parameters())
    allowed = (0.25 if rounded else 5e-3) * max(float(before.std()), 1e-6)
    gap = float((after - before).abs().max())
    if exact and not gap <= allowed:
        raise ValueError(
            f"{type(model).__name__} says something else with our rotation, by "
            f"{gap:.3g} where {allowed:.3g} is allowed; the model is as it was"
        )
