"""Call a function that rotates, whatever its signature: tokens in, rotated tokens out.

``find`` yields every way that works, likeliest first. It asks what the caller says
(``call="q, k, cos, sin"``), then the names of the parameters, and then, where names say
nothing, tries what is usual (``GUESSES``), with the axes of x in every usual order.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from rope_teach.frequencies import inverse_frequencies
from rope_teach.identify.isolate import isolated
from rope_teach.pairing import full_table
from rope_teach.tables import angles

__all__ = ["LAYOUTS", "TABLES", "CannotProbe", "Probe", "Subject", "find", "role_of"]

# Of the axes batch, heads, seq and head_dim.
LAYOUTS = ("bhsd", "bshd", "sbhd", "bsd", "shd", "hsd", "sd")
SEQ = 7  # tokens of a first look. Batch, heads and seq all differ, so that none passes
BATCH, HEADS = 2, 3  # for another, and 7 divides no head_dim
HEAD_DIMS = (64, 128, 32, 16, 8, 96, 80, 256, 4, 2, 72, 112, 48, 40, 192, 160)
NAMES = {
    "x": "x t tensor xs",
    "q": "q query queries xq q_states query_states query_layer q_pe q_rope q_rot",
    "k": "k key keys xk k_states key_states key_layer k_pe k_rope k_rot",
    "v": "v value values",
    "positions": "positions position_ids pos_ids input_pos position pos "
    "token_positions segment_pos q_positions positions_q q_pos q_position_ids",
    "positions_of_k": "k_positions positions_k k_pos k_position_ids",
    "start": "start offset start_pos seq_offset position_offset start_position step "
    "cache_position past_length",
    "length": "seq_len seqlen seq_length sequence_length length",
    "cos": "cos",  # and as a part of a name: freqs_cos, cos_cached
    "sin": "sin",
    "cos_sin": "",  # by both parts, in their order: cos_sin_cache, sinusoidal_pos
    "sin_cos": "sinusoidal_pos sinusoidal",
    "tables": "position_embeddings rotary_pos_emb image_rotary_emb",  # (cos, sin)
    "phases": "phases freqs_cis freqs_ci freqs_complex cis rope_cache",
    "freqs": "freqs rotary_freqs angles",
}
ROLES = {name: role for role, names in NAMES.items() for name in names.split()}
ROLES["qkv"] = "three in one"  # for nobody to be taken for x
TABLES = {"cos", "sin", "cos_sin", "sin_cos", "tables", "phases", "freqs"}
PLACES = {"positions", "positions_of_k", "start"}
GUESSES = tuple(tuple(guess.split()) for guess in (
    "x", "x positions", "q k", "x start", "x length", "q k positions",
    "q k positions positions_of_k", "positions q k",
    "x cos sin", "x phases", "positions x", "q k start", "q k cos sin", "q k phases",
    "x freqs", "q k freqs", "x cos_sin", "q k cos_sin", "x tables", "q k tables",
    "x sin cos", "q k sin cos", "q k v cos sin",
))  # fmt: skip

Roles = tuple[tuple[str, str | None], ...]  # of each argument, with its keyword if any
Maker = Callable[[Tensor], Tensor]


class CannotProbe(ValueError):
    """No way was found to call it, or it does not rotate; the message says more."""


@dataclass(frozen=True)
class Subject:
    """A function, and what is known about it before it is called.

    ``build`` makes the function of a copy of ``thing``. ``heads`` are those of q and of
    k where the function fixes them. ``alike`` is true where q and k are one tensor, the
    same in every head. ``layers`` are those of a model that it stands for, and
    ``alternatives`` what else may be meant.
    """

    thing: Any
    name: str
    build: Callable[[Any], Callable[..., Any]] = lambda thing: thing
    head_dim: int | None = None
    layout: str | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    heads: tuple[int, int] | None = None
    alike: bool = False
    arrays: bool = False
    call: str | None = None
    layers: tuple[str, ...] = ()
    alternatives: tuple[Subject, ...] = ()

    def said(self, **known: Any) -> Subject:
        """The same, with what the caller says about it, and None for what not."""
        known = {name: value for name, value in known.items() if value is not None}
        others = tuple(other.said(**known) for other in self.alternatives)
        return replace(self, alternatives=others, **known)

    @property
    def keeps_state(self) -> bool:
        """Whether there is anything that a call could change, such as a table."""
        return isolated(self.thing) is not self.thing

    def fresh(self) -> Callable[..., Any]:
        """The function, over a copy of all that it can change."""
        function = self.build(isolated(self.thing))
        return _with_arrays(function) if self.arrays else function


@dataclass(frozen=True)
class Probe:
    """One way to call a function that rotates.

    ``layout`` is the order of the axes of x. ``table`` says how cos and sin are
    repeated where they are arguments, and ``table_axes`` how many axes they have;
    ``order`` puts reordered outputs back.
    """

    subject: Subject
    function: Callable[..., Any]
    roles: Roles
    head_dim: int
    layout: str
    heads: int = HEADS
    position_axes: int = 1
    table: str = "none"
    table_axes: int = 3
    order: Tensor | None = None
    ahead: int = 0  # of k, where it has positions of its own
    faults: set[str] = field(default_factory=set)  # what was seen in passing, by name
    latest: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # what came out

    @property
    def names(self) -> tuple[str, ...]:
        """What the function is called with: ``("q", "k", "positions")``."""
        return tuple(role for role, _ in self.roles)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What comes out rotated: ``("x",)``, or ``("q", "k")``."""
        return tuple(role for role in self.names if role in "xqk")

    @property
    def noise(self) -> float:
        """How far a result may be off because of the dtype of x."""
        return 4 * torch.finfo(self.subject.dtype).eps

    @property
    def takes_tables(self) -> bool:
        """Whether the caller brings cos and sin, and so the frequencies."""
        return bool(TABLES & set(self.names))

    @property
    def takes_positions(self) -> bool:
        """Whether a token can be put at any position; else row s is position s."""
        return self.takes_tables or bool(PLACES & set(self.names))

    @property
    def sizes(self) -> tuple[int, int]:
        """Sequences and heads of a call that has several of each."""
        return (
            BATCH if "b" in self.layout else 1,
            self.heads if "h" in self.layout else 1,
        )

    def renewed(self, **changes: Any) -> Probe:
        """The same way to call a new copy."""
        made = replace(self, **changes)
        return replace(made, function=made.subject.fresh(), faults=set(), latest=[])

    def run(
        self, given: list[Tensor], positions: Tensor, view: Maker = lambda x: x
    ) -> tuple[Tensor, ...]:
        """Rotate x, or q and k, each ``(batch, heads, seq, head_dim)``.

        ``positions`` are ``(seq,)`` or ``(batch, seq)``; ``view`` lays a tensor out in
        memory anew. Outputs have the shape of the inputs, in float64. Whatever the
        function raises becomes :class:`CannotProbe`.
        """
        default = torch.get_default_dtype()
        try:
            return self._run(given, positions, view)
        except CannotProbe:
            raise
        except (Exception, SystemExit) as error:  # whatever a stranger's code may do
            first = int(positions.flatten()[0]) if positions.numel() else 0
            raise CannotProbe(
                f"{positions.shape[-1]} tokens from position {first} on made it fail "
                f"with {type(error).__name__}: {error}"
            ) from error
        finally:
            torch.set_default_dtype(default)

    def _run(
        self, given: list[Tensor], positions: Tensor, view: Maker
    ) -> tuple[Tensor, ...]:
        dtype, device = self.subject.dtype, self.subject.device
        # An axis of bhsd that the layout lacks is of length 1.
        laid = [torch.einsum(f"bhsd->{self.layout}", x).contiguous() for x in given]
        laid = [view(x.to(device, dtype, copy=True)) for x in laid]
        values = self._values(laid[0], positions)
        values |= {"x": laid[0], "q": laid[0], "k": laid[-1], "v": laid[-1].clone()}
        if len(self.inputs) == 2 and laid[0] is laid[-1]:
            values["k"] = laid[0].clone()
        inputs = [values[role] for role in self.inputs]
        before = [x.clone() for x in inputs]
        plain = [values[role] for role, keyword in self.roles if keyword is None]
        named = {keyword: values[role] for role, keyword in self.roles if keyword}
        result = self.function(*plain, **named)
        if not all(map(torch.equal, inputs, before)):
            self.faults.add("overwritten")
        if result is None and "overwritten" in self.faults:
            result = inputs
        outputs = _tensors(result, len(inputs))
        self._look_at_the_rest(outputs, values["v"], len(inputs))
        if len(inputs) > 1 or len({x.shape for x in outputs}) == len(outputs):
            outputs = outputs[: len(inputs)]
        wanted = [tuple(x.shape) for x in inputs]
        shapes = [tuple(x.shape) for x in outputs]
        if shapes != wanted:
            said = " and ".join(map(str, dict.fromkeys(wanted)))
            raise CannotProbe(
                f"it must return {len(wanted)} of shape {said}, it returned "
                f"{shapes or type(result).__name__}"
            )
        back = "".join(axis for axis in "bhsd" if axis in self.layout)
        outputs = [
            torch.einsum(
                f"{self.layout}->{back}", out.to("cpu", torch.float64, copy=True)
            )
            for out in outputs
        ]
        same = [out.reshape(x.shape) for out, x in zip(outputs, given, strict=False)]
        return tuple(x if self.order is None else x[..., self.order] for x in same)

    def _look_at_the_rest(self, outputs: list[Tensor], v: Tensor, count: int) -> None:
        """Note a value that has turned, and an earlier output that has changed."""
        if "v" in self.names and any(
            x.shape == v.shape and not torch.equal(x, v) for x in outputs[count:]
        ):
            self.faults.add("value_turned")
        changed = (not torch.equal(x, was) for x, was in self.latest)
        if any(changed):
            self.faults.add("reused")
        self.latest[:] = [(x, x.clone()) for x in outputs[:count] if x.isfinite().all()]

    def _values(self, x: Tensor, positions: Tensor) -> dict[str, Any]:
        """A value for the roles that say where tokens are."""
        if positions.ndim == 1 and self.position_axes == 2:
            positions = positions[None]
        positions = positions.to(x.device)
        values = {"start": int(positions.flatten()[0]), "positions": positions}
        values["positions_of_k"] = positions + self.ahead
        values["length"] = positions.shape[-1]
        if not self.takes_tables:
            return values
        if "positions" in self.names:  # they are rows of the tables
            positions = torch.arange(int(positions.max()) + 1, device=x.device)
        table = angles(positions, inverse_frequencies(self.head_dim))
        wide = table
        if self.table in ("half", "interleaved"):
            wide = full_table(table, self.table)  # type: ignore[arg-type]
        made = {
            "cos": wide.cos(),
            "sin": wide.sin(),
            "cos_sin": torch.cat([table.cos(), table.sin()], -1),
            "sin_cos": torch.cat([table.sin(), table.cos()], -1),
        }
        made = {name: part.to(x.dtype) for name, part in made.items()}
        made["phases"] = torch.polar(torch.ones_like(table), table).to(torch.complex64)
        made["freqs"] = wide
        values |= {name: self._table_shape(part) for name, part in made.items()}
        if self.table == "stacked":
            stacked = torch.view_as_real(self._table_shape(made["phases"]))
            values["phases"] = values["freqs"] = stacked
        return values | {"tables": (values["cos"], values["sin"])}

    def _table_shape(self, table: Tensor) -> Tensor:
        """``(seq, r)`` or ``(batch, seq, r)``, with as many axes as it takes."""
        if self.table_axes == 2:
            return table
        table = table if table.ndim == 3 else table[None]
        if self.table_axes == 3:
            return table
        table = torch.einsum("bsd->" + self.layout.replace("h", ""), table)
        return table.unsqueeze(self.layout.index("h")) if "h" in self.layout else table


def _tensors(result: Any, count: int) -> list[Tensor]:
    """What came out, in a container or stacked."""
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, Tensor) and count == 2 and len(result) == 2:
        result = result.unbind(0)
    if not isinstance(result, (tuple, list, Iterator)):
        result = [result]
    return [x for x in result if isinstance(x, Tensor)]


# ------------------------------------------------------------------ finding the call


def find(subject: Subject) -> Iterator[Probe]:
    """Every way to call ``subject`` that runs and keeps shapes, likeliest first.

    What else may be meant by it comes after it, and arrays where tensors do not work.
    Of several widths of a head, only the first that works is tried with each set of
    roles. Raises :class:`CannotProbe` if no call works.
    """
    errors: list[tuple[Probe, Exception]] = []
    found = False
    ways = (
        (replace(meant, arrays=arrays), roles)
        for arrays in (False, True)
        for meant in (subject, *subject.alternatives)
        for roles in _possible_roles(meant.fresh(), meant.call)
    )
    for meant, roles in ways:
        if meant.arrays and found:
            return
        width = None
        for probe in _forms(meant, roles):
            if width not in (None, probe.head_dim):
                continue
            try:
                x = torch.ones(*probe.sizes, SEQ, probe.head_dim)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a guess may well be warned of
                    probe.run([x, x], torch.arange(SEQ))
            except CannotProbe as error:
                errors.append((probe, error))
            else:
                width, found = probe.head_dim, True
                yield probe.renewed()
    if not found:
        raise _no_call(errors)


def _no_call(errors: list[tuple[Probe, Exception]]) -> CannotProbe:
    """What was tried, what happened at first, and what the caller can do."""
    wrap = "wrap it: identify(lambda q, k, positions: ...)"
    if not errors:
        return CannotProbe(
            "it has no arguments that could be x, or q and k, with positions or tables "
            f"and nothing else; {wrap}"
        )
    tried = dict.fromkeys(f"({', '.join(probe.names)})" for probe, _ in errors)
    probe, first = errors[0]
    return CannotProbe(
        f"no call worked; tried {' '.join(tried)}. The first, with head_dim="
        f"{probe.head_dim} and layout={probe.layout!r}: {first}. You can say how to "
        'call it, call="q, k, cos, sin", head_dim=..., layout=..., dtype=..., or '
        f"{wrap}"
    )


def _with_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, if it takes and returns the arrays of numpy, or of JAX."""

    def tensor(result: Any) -> Any:
        if isinstance(result, (tuple, list)):
            return [tensor(part) for part in result]
        return result if result is None else torch.tensor(result.__array__())

    def called(*plain: Any, **named: Any) -> Any:
        given = [x.numpy() if isinstance(x, Tensor) else x for x in plain]
        more = {k: x.numpy() if isinstance(x, Tensor) else x for k, x in named.items()}
        return tensor(function(*given, **more))

    return called


def _forms(subject: Subject, roles: Roles) -> Iterator[Probe]:
    """Every form that the arguments may have, likeliest first."""
    names = {role for role, _ in roles}
    width, layout = subject.head_dim, subject.layout
    repeated = names & {"cos", "sin", "tables", "freqs"}
    forms = ["half", "interleaved", "one a pair"] if repeated else ["none"]
    forms += ["stacked"] if names & {"phases", "freqs"} else []  # (..., r / 2, 2)
    for dim, axes, heads, position_axes, table_axes, table in product(
        HEAD_DIMS if width is None else (width,),
        LAYOUTS if layout is None else (layout,),
        # Positions laid along the heads need as many heads as tokens to run at all.
        (HEADS, SEQ) if layout and not subject.heads else (HEADS,),
        (1, 2) if "positions" in names else (1,),
        (3, 2, 4) if names & TABLES else (3,),
        forms,
    ):
        yield Probe(
            subject, subject.fresh(), roles, dim, axes, heads, position_axes, table,
            table_axes,
        )  # fmt: skip


def _possible_roles(function: Callable[..., Any], call: str | None) -> Iterator[Roles]:
    """What each argument may be, likeliest first; see the top of this module."""
    if call is not None:
        names = [name.strip() for name in call.split(",")]
        unknown = [name for name in names if name not in NAMES]
        if unknown or not {"x", "q", "k"} & set(names):
            raise ValueError(
                f"call may name {', '.join(NAMES)}, with x, q or k among them; got "
                f"{unknown or names}"
            )
        yield tuple((name, None) for name in names)
        return
    signature = _signature(function)
    seen: dict[Roles, None] = {}
    named = _roles_by_name(signature, PLACES)
    if named:
        required = tuple(role for role in named if role[1] is None)
        seen |= dict.fromkeys((named, required))
        seen |= dict.fromkeys([_roles_by_name(signature, TABLES) or named])
    for guess in GUESSES:
        if _agrees(signature, guess):
            seen.setdefault(tuple((role, None) for role in guess))
    yield from (roles for roles in seen if {"x", "q"} & set(dict(roles)))


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    forward = function.forward if isinstance(function, nn.Module) else function
    try:
        return inspect.signature(forward)
    except (TypeError, ValueError):  # of a builtin
        kind = inspect.Parameter.VAR_POSITIONAL
        return inspect.Signature([inspect.Parameter("arguments", kind)])


def _agrees(signature: inspect.Signature, guess: tuple[str, ...]) -> bool:
    """Whether it can be called so, and no parameter's name says otherwise."""
    try:
        bound = signature.bind(*guess).arguments
    except TypeError:
        return False
    said = ((role_of(name), role) for name, role in bound.items())
    return all(
        name is None or not isinstance(role, str) or _class(name) == _class(role)
        for name, role in said
    )


def _class(role: str) -> int | str:
    """Names are loose: x may be a q, one table another, and a start a position."""
    loose = {"x", "q"}, TABLES - {"cos", "sin"}, PLACES
    return next((i for i, roles in enumerate(loose) if role in roles), role)


def role_of(name: str) -> str | None:
    """What a parameter of this name is, or None if the name says nothing."""
    parts = [part for part in name.split("_") if part in ("cos", "sin")]
    if parts in (["cos"], ["sin"], ["cos", "sin"], ["sin", "cos"]):
        return "_".join(parts)
    return ROLES.get(name)


def _roles_by_name(signature: inspect.Signature, wanted: set[str]) -> Roles | None:
    """Roles of the parameters, the optional ones by keyword; None if one is strange.

    Of the optional ones, k is taken beside q, and what is ``wanted``.
    """
    roles: dict[str, str | None] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        role = role_of(name) or (None if roles else "x")
        if name == "t" and {"x", "q"} & set(roles):  # a time, then
            role = "positions"
        if parameter.default is parameter.empty:
            if role is None or role in roles:
                return None
            roles[role] = name if parameter.kind is parameter.KEYWORD_ONLY else None
        elif role == "k" and "q" in roles:
            roles[role] = name
        elif role in wanted and not (PLACES | TABLES - wanted) & set(roles):
            roles[role] = name
    return tuple(roles.items()) or None
