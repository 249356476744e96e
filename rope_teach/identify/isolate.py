"""Probe a copy, so that nothing the caller owns can change.

A stranger's function may recast its tables, grow a cache or count its calls. What it
holds (a bound method's object, the modules and tensors of a closure, of default
arguments or of the globals that it names) is copied before each way to call it is
tried.
"""

from __future__ import annotations

import copy
import functools
import random
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["as_before", "isolated"]

STATELESS = (
    type, types.ModuleType, types.BuiltinFunctionType, str, bytes, int, float,
    complex, type(None), torch.dtype, torch.device,
)  # fmt: skip


@contextmanager
def as_before() -> Iterator[None]:
    """Leave the random states and the default dtype as they were; build no graph."""
    dtype, of_python = torch.get_default_dtype(), random.getstate()
    numpy = sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy else None
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    try:
        with torch.random.fork_rng(list(devices)), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(of_python)
        if numpy:
            numpy.random.set_state(of_numpy)


def isolated(thing: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy that shares no state with ``thing``; a function without state is itself.

    What cannot be copied, such as an open file or a lock, is shared.
    """
    memo = {} if memo is None else memo
    if id(thing) in memo or isinstance(thing, STATELESS):
        return memo.get(id(thing), thing)
    if isinstance(thing, types.MethodType):
        return types.MethodType(thing.__func__, isolated(thing.__self__, memo))
    if isinstance(thing, types.FunctionType):
        return _function(thing, memo)
    if isinstance(thing, functools.partial):
        plain = [isolated(x, memo) for x in thing.args]
        named = {name: isolated(x, memo) for name, x in thing.keywords.items()}
        return functools.partial(isolated(thing.func, memo), *plain, **named)
    for tensor in _inside(thing, set()):
        if not tensor.is_leaf and id(tensor) not in memo:  # deepcopy refuses it
            memo[id(tensor)] = tensor.detach().clone().requires_grad_()
    try:
        made = copy.deepcopy(thing, memo)
    except Exception:  # whatever a stranger's class may raise
        return thing
    for part in made.modules() if isinstance(made, nn.Module) else ():
        for name, value in list(vars(part).items()):
            if isinstance(value, types.FunctionType):  # deepcopy shares functions
                vars(part)[name] = isolated(value, memo)
    return made


def _inside(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that ``thing`` holds, in containers and attributes of any depth."""
    if id(thing) in seen or isinstance(thing, STATELESS):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        return
    parts = thing
    if not isinstance(thing, (list, tuple, set)):
        named = thing if isinstance(thing, dict) else getattr(thing, "__dict__", {})
        parts = list(named.values())
    for part in parts:
        yield from _inside(part, seen)


def _function(function: types.FunctionType, memo: dict[int, Any]) -> Any:
    """The same code over copies of all that it reaches."""
    memo[id(function)] = function  # should it call itself
    named = _names(function.__code__) & set(function.__globals__)
    reached: list[dict[Any, Any]] = [
        dict(enumerate(map(_content, function.__closure__ or ()))),
        {name: function.__globals__[name] for name in sorted(named)},
        dict(enumerate(function.__defaults__ or ())),
        function.__kwdefaults__ or {},
        dict(vars(function)),
    ]
    copies = [
        {name: isolated(value, memo) for name, value in part.items()}
        for part in reached
    ]
    if all(
        copied[name] is value
        for copied, part in zip(copies, reached, strict=True)
        for name, value in part.items()
    ):
        return function
    cells, names, defaults, keywords, attributes = copies
    made = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        tuple(defaults.values()) or None,
        tuple(map(types.CellType, cells.values())) or None,
    )
    made.__kwdefaults__ = keywords or None
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    made.__dict__.update(attributes)
    memo[id(function)] = made
    return made


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _names(code: types.CodeType) -> set[str]:
    """Global names (and attributes) in a function and in the functions within it."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
