"""Look into a student's code: is it written, what does it use, what does it change."""

from __future__ import annotations

import copy
import dis
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rope_teach.course.exercises.cards import Wrong


def is_stub(answer: Any) -> bool:
    """Whether ``answer`` is still the stub: dots, None, or a function with no code.

    A class is a stub as long as each function in it is one.
    """
    if answer is None or answer is ...:
        return True
    if isinstance(answer, type):
        own = [getattr(each, "__func__", each) for each in vars(answer).values()]
        return all(is_stub(each) for each in own if isinstance(each, FunctionType))
    if not isinstance(answer, FunctionType):
        return False
    does_nothing = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    body = list(dis.get_instructions(answer))
    if {step.opname for step in body} - does_nothing:
        return False
    constants = [step.argval for step in body if step.opname.endswith("CONST")]
    return constants[-1:] == [None]  # `return 0` is an answer, a docstring is not


def untouched(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``; :class:`Wrong` if it wrote into one of its arguments."""
    kept = [a.detach().clone() if isinstance(a, Tensor) else _copied(a) for a in args]
    result = function(*args)
    for place, (given, before) in enumerate(zip(args, kept, strict=True)):
        if not _alike(given, before):
            try:
                name = list(inspect.signature(function).parameters)[place]
            except (TypeError, ValueError, IndexError):
                name = f"argument number {place + 1}"
            raise Wrong(
                f"Your code changed {name}, which belongs to the caller. Make a new "
                "value instead of writing into this one (as += and [...] = do)."
            )
    return result


def _copied(value: Any) -> Any:
    plain = isinstance(value, (list, tuple, dict, set)) or hasattr(value, "__array__")
    return copy.deepcopy(value) if plain else value


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        a = a.detach()
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k]) for k in a)
    return a is b or bool(torch.as_tensor(a == b).all())


def of_a_notebook(thing: Any) -> bool:
    """Whether ``thing`` is a function, class or kernel that no module offers."""
    thing = inner_function(thing)
    if not isinstance(thing, (FunctionType, type)):
        return False
    home = sys.modules.get(thing.__module__ or "")
    if home is None or home.__name__ == "__main__":
        return True
    for name in thing.__qualname__.split("."):
        home = getattr(home, name, None)
    return inner_function(home) is not thing


def inner_function(thing: Any) -> Any:
    """The function inside a Triton kernel, or ``thing`` itself."""
    inside = getattr(thing, "fn", None)
    return inside if isinstance(inside, FunctionType) else thing


def uses(answer: Any, *forbidden: Any) -> str:
    """The name of the first ``forbidden`` thing in the code of ``answer``, or nothing.

    A function or a module is found under any name, and in the functions of the notebook
    that ``answer`` calls. A string is the name of a method, or an operator such as "/".
    """
    names = {getattr(each, "__name__", each) for each in forbidden}
    waiting, seen = [answer], set()
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, functools.partial):
            waiting += [thing.func, *thing.args, *thing.keywords.values()]
        thing = getattr(thing, "__func__", thing)
        if any(thing is each for each in forbidden if not isinstance(each, str)):
            return str(thing.__name__)
        if id(thing) in seen or not of_a_notebook(thing):
            continue
        seen.add(id(thing))
        if isinstance(thing, type):
            waiting += vars(thing).values()
            continue
        thing = inner_function(thing)
        known = dict(thing.__globals__)
        known |= inspect.getclosurevars(thing).nonlocals
        for step in _steps(thing.__code__):
            name = step.argval if isinstance(step.argval, str) else ""
            if step.opname.startswith("BINARY_OP"):
                name = step.argrepr.rstrip("=")
            elif step.opname in _OPERATORS:  # Python 3.10
                name = _OPERATORS[step.opname]
            elif "GLOBAL" in step.opname or "DEREF" in step.opname:
                waiting.append(known.get(name))
                continue
            elif step.opname not in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
                continue
            if name in names:
                return name
    return ""


_OPERATORS = {
    f"{kind}_{name}": sign
    for kind in ("BINARY", "INPLACE")
    for name, sign in {"TRUE_DIVIDE": "/", "MATRIX_MULTIPLY": "@"}.items()
}


def _steps(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a function or a loop inside
            yield from _steps(constant)


class torch_calls(TorchFunctionMode):
    """``with torch_calls() as called:`` collects the names of torch's functions.

    Every one that runs inside, by any name and at any depth: "div", "mul", "matmul".
    """

    def __enter__(self) -> set[str]:
        self.names: set[str] = set()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self.names

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(getattr(func, "__name__", "").strip("_"))
        return func(*args, **(kwargs or {}))
