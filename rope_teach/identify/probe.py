"""Call a function that rotates, whatever its signature: rows in, rotated rows out.

``find`` looks for the way. It asks, in this order: what the caller says
(``call="q, k, cos, sin"``); the names of the parameters; then, where it does not know
the names, what works: ``(x)``, ``(x, positions)``, ``(q, k)``, ``(x, start)``,
``(q, k, positions)``, ``(x, cos, sin)``, ``(q, k, start)``, ``(q, k, cos, sin)``. Each
is tried with the axes of x in every usual order, until what comes back has the shape of
x.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from rope_teach.frequencies import inverse_frequencies
from rope_teach.pairing import full_table
from rope_teach.tables import angles

__all__ = ["TABLES", "CannotProbe", "Probe", "Subject", "find", "role_of"]

LAYOUTS = ("bhsd", "bshd", "sbhd", "bsd", "sd")  # batch, heads, seq, head_dim
SEQ = 7  # tokens of a first look. Batch, heads and seq all differ, so that none passes
BATCH, HEADS = 2, 3  # for another, and 7 divides no head_dim
HEAD_DIMS = (64, 128, 32, 16, 8, 96, 80, 256, 4, 2)
NAMES = {
    "x": "x t tensor xs",
    "q": "q query queries xq q_states query_states",
    "k": "k key keys xk k_states key_states",
    "positions": "positions position_ids pos_ids input_pos position pos "
    "token_positions segment_pos",
    "start": "start offset start_pos seq_offset position_offset start_position",
    "cos": "cos",  # and as a part of a name: freqs_cos, cos_cached
    "sin": "sin",
    "phases": "phases freqs_cis freqs_complex",
    "freqs": "freqs rotary_freqs angles",
}
ROLES = {name: role for role, names in NAMES.items() for name in names.split()}
TABLES = {"cos", "sin", "phases", "freqs"}
GUESSES = (
    ("x",), ("x", "positions"), ("q", "k"), ("x", "start"), ("q", "k", "positions"),
    ("x", "cos", "sin"), ("q", "k", "start"), ("q", "k", "cos", "sin"),
)  # fmt: skip

Roles = tuple[tuple[str, str | None], ...]  # of each argument, with its keyword if any


class CannotProbe(ValueError):
    """No way was found to call it, or it does not rotate; the message says more."""


@dataclass(frozen=True)
class Subject:
    """A function, and what is known about it before it is called."""

    function: Callable[..., Any]
    name: str
    head_dim: int | None = None
    layout: str | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Probe:
    """One way to call a function that rotates.

    ``layout`` is the order of the axes of x. ``table`` says how cos and sin are
    repeated where they are arguments, and ``table_axes`` how many axes they have.
    """

    subject: Subject
    roles: Roles
    head_dim: int
    layout: str
    layout_given: bool = False
    heads: int = HEADS
    position_axes: int = 1
    table: str = "none"
    table_axes: int = 3
    faults: set[str] = field(default_factory=set)  # "overwritten": x was, in a call

    @property
    def names(self) -> tuple[str, ...]:
        """What the function is called with: ``("q", "k", "positions")``."""
        return tuple(role for role, _ in self.roles)

    @property
    def noise(self) -> float:
        """How far a result may be off because of the dtype of x."""
        return 4 * torch.finfo(self.subject.dtype).eps

    @property
    def takes_tables(self) -> bool:
        """Whether the caller brings cos and sin, and so the frequencies."""
        return bool(TABLES & set(self.names))

    @property
    def takes_rows(self) -> bool:
        """Whether positions or tables, one row a token, say which axis is theirs."""
        return self.takes_tables or "positions" in self.names

    @property
    def takes_positions(self) -> bool:
        """Whether a token can be put at any position; else row s is position s."""
        return self.takes_rows or "start" in self.names

    def rows(self, x: Tensor, start: int = 0) -> tuple[Tensor, ...]:
        """Rotate ``x`` ``(seq, head_dim)``, whose first row stands at ``start``.

        One float64 tensor of that shape for each output: of x, or of q and of k. Only
        a function that ``takes_positions`` can start elsewhere than at 0.
        """
        try:
            outputs = self._run(self._laid_out(x, 1, 1), start)
        except Exception as error:  # whatever a stranger's code may raise
            raise CannotProbe(
                f"{len(x)} tokens from position {start} on made it fail with "
                f"{type(error).__name__}: {error}"
            ) from error
        return tuple(out.reshape(x.shape) for out in outputs)

    def trial(self, x: Tensor) -> tuple[Tensor, ...]:
        """Rotate ``x`` ``(7, head_dim)`` in several heads and sequences, all alike.

        The outputs keep all axes, in the order of ``layout``.
        """
        return self._run(self._laid_out(x, BATCH, self.heads), 0)

    def _laid_out(self, rows: Tensor, batch: int, heads: int) -> Tensor:
        sizes = {"b": batch, "h": heads, "s": len(rows), "d": self.head_dim}
        along = rows.reshape([sizes[a] if a in "sd" else 1 for a in self.layout])
        whole = along.expand([sizes[a] for a in self.layout]).contiguous()
        return whole.to(dtype=self.subject.dtype, device=self.subject.device)

    @torch.no_grad()
    def _run(self, x: Tensor, start: int) -> tuple[Tensor, ...]:
        """Call the function on ``x`` in its layout; the outputs, in float64."""
        values = self._values(x, start)
        plain = [values[role] for role, keyword in self.roles if keyword is None]
        named = {keyword: values[role] for role, keyword in self.roles if keyword}
        result = self.subject.function(*plain, **named)
        inputs = [values[role] for role in "xqk" if role in self.names]
        if any(not torch.equal(given, x) for given in inputs):
            self.faults.add("overwritten")
        if result is None and self.faults:
            result = inputs
        wanted = len(inputs)
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        shapes = [tuple(x.shape) for x in outputs if isinstance(x, Tensor)][:wanted]
        if shapes != [tuple(x.shape)] * wanted:
            raise CannotProbe(
                f"it must return {wanted} of shape {tuple(x.shape)}, it returned "
                f"{shapes or type(result).__name__}"
            )
        return tuple(out.to("cpu", torch.float64) for out in outputs[:wanted])

    def _values(self, x: Tensor, start: int) -> dict[str, Any]:
        """A value for every role."""
        seq = x.shape[self.layout.index("s")]
        positions = torch.arange(start, start + seq, device=x.device)
        values: dict[str, Any] = {role: x.clone() for role in "xqk"}
        values["start"] = start
        values["positions"] = positions if self.position_axes == 1 else positions[None]
        if not self.takes_tables:
            return values
        if "positions" in self.names:  # they are rows of the tables
            positions = torch.arange(start + seq, device=x.device)
        table = angles(positions, inverse_frequencies(self.head_dim))
        if self.table in ("half", "interleaved"):
            table = full_table(table, self.table)  # type: ignore[arg-type]
        shape = {3: (1, *table.shape), 2: tuple(table.shape)}
        sizes = {"s": len(table), "d": table.shape[-1]}
        aligned = tuple(sizes.get(axis, 1) for axis in self.layout)
        table = table.reshape(shape.get(self.table_axes, aligned))
        cos, sin = table.cos().to(x.dtype), table.sin().to(x.dtype)
        phases = torch.polar(torch.ones_like(table), table).to(torch.complex64)
        return values | {"cos": cos, "sin": sin, "phases": phases, "freqs": table}


# ------------------------------------------------------------------ finding the call


def find(
    subject: Subject,
    *,
    call: str | None = None,
    head_dim: int | None = None,
    layout: str | None = None,
    dtype: torch.dtype | None = None,
) -> list[Probe]:
    """All ways to call ``subject`` that differ in nothing but how its tables repeat.

    The first is the one to take, unless its tables do not fit. Raises
    :class:`CannotProbe` if no call works.
    """
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    subject = replace(subject, dtype=dtype or subject.dtype)
    in_numpy = replace(subject, function=_with_arrays(subject.function))
    errors: list[tuple[Probe, Exception]] = []
    possible = list(_possible_roles(subject.function, call))
    for either, roles in product((subject, in_numpy), possible):
        found: list[Probe] = []
        for probe in _forms(either, roles, head_dim, layout):
            if found and replace(found[0], table=probe.table) != probe:
                continue
            try:
                probe.trial(torch.ones(SEQ, probe.head_dim))
                found.append(probe)
            except Exception as error:  # whatever a stranger's code may raise
                errors.append((probe, error))
        if found:
            return found
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
        f"{probe.head_dim} and layout={probe.layout!r}, failed with "
        f"{type(first).__name__}: {first}. You can say how to call it, "
        f'call="q, k, cos, sin", head_dim=..., layout=..., or {wrap}'
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


def _forms(
    subject: Subject, roles: Roles, head_dim: int | None, layout: str | None
) -> Iterator[Probe]:
    """Every form that the arguments may have, likeliest first."""
    names = {role for role, _ in roles}
    width = head_dim or subject.head_dim
    known = layout or subject.layout
    for dim, heads, axes, position_axes, table_axes, table in product(
        HEAD_DIMS if width is None else (width,),
        # Positions laid along the heads need as many heads as tokens to run at all.
        (HEADS,) if layout is None else (HEADS, SEQ),
        LAYOUTS if known is None else (known,),
        (1, 2) if "positions" in names else (1,),
        (3, 2, 4) if names & TABLES else (3,),
        ("half", "interleaved", "one a pair") if names & TABLES else ("none",),
    ):
        yield Probe(
            subject, roles, dim, axes, known is not None, heads, position_axes, table,
            table_axes,
        )  # fmt: skip


def _possible_roles(function: Callable[..., Any], call: str | None) -> Iterator[Roles]:
    """What each argument may be, likeliest first; see the top of this module."""
    if call is not None:
        names = [name.strip() for name in call.split(",")]
        unknown = [name for name in names if name not in NAMES]
        if unknown:
            raise ValueError(f"call may name {', '.join(NAMES)}; got {unknown}")
        yield tuple((name, None) for name in names)
        return
    forward = function.forward if isinstance(function, nn.Module) else function
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # of a builtin
        signature = inspect.Signature(
            [inspect.Parameter("arguments", inspect.Parameter.VAR_POSITIONAL)]
        )
    named = _roles_by_name(signature)
    if named:
        required = tuple(role for role in named if role[1] is None)
        yield from dict.fromkeys(
            roles for roles in (named, required) if {"x", "q"} & set(dict(roles))
        )
        return
    for guess in GUESSES:
        try:
            signature.bind(*guess)
        except TypeError:
            continue
        yield tuple((role, None) for role in guess)


def role_of(name: str) -> str | None:
    """What a parameter of this name is, or None if the name says nothing."""
    parts = {"cos", "sin"} & set(name.split("_"))
    return parts.pop() if len(parts) == 1 else ROLES.get(name)


def _roles_by_name(signature: inspect.Signature) -> Roles | None:
    """Roles of the parameters, the optional ones by keyword; None if one is strange."""
    roles: dict[str, str | None] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        role = role_of(name) or (None if roles else "x")
        if parameter.default is parameter.empty:
            if role is None or role in roles:
                return None
            roles[role] = name if parameter.kind is parameter.KEYWORD_ONLY else None
        elif role in ("positions", "start") and not {"positions", *TABLES} & set(roles):
            roles[role] = name
    return tuple(roles.items()) or None
