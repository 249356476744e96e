"""Probe a copy, so that nothing the caller owns can change.

A stranger's function may recast its tables, grow a cache or count its calls. What it
holds (a bound method's object, the modules and tensors of a closure, of default
arguments or of the globals that it names) is copied before each way to call it is
tried. What its code reaches without holding it, the attributes of a class or the
globals of a module, is put back at the end.
"""

from __future__ import annotations

import copy
import functools
import operator
import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rope_teach import ops

__all__ = ["as_before", "isolated"]

STATELESS = (
    type, types.ModuleType, types.BuiltinFunctionType, str, bytes, int, float,
    complex, type(None), torch.dtype, torch.device,
)  # fmt: skip
PLAIN = (dict, list, tuple, set)
FUNCTIONS = (types.FunctionType, functools.partial)  # which deepcopy shares
NAMED = (type, types.ModuleType, *FUNCTIONS, property)
# Of these, no code is followed: it leads to all that the process holds.
LIBRARIES = {
    "IPython", "_pytest", "einops", "ipykernel", "jax", "matplotlib", "numpy", "pandas",
    "pytest", "rope_teach", "scipy", "sympy", "tensorflow", "torch", "tqdm",
    "transformers", "triton", *sys.stdlib_module_names,
}  # fmt: skip
MISSING = object()


@contextmanager
def as_before(thing: Any) -> Iterator[None]:
    """Leave random states, default dtype, globals and classes as they were; no graph.

    Globals and classes are those that the code of ``thing`` reaches.
    """
    dtype, of_python = torch.get_default_dtype(), random.getstate()
    numpy = sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy else None
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    undo = [_undo(*each) for each in _reached(thing)]
    try:
        with torch.random.fork_rng(list(devices)), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(of_python)
        if numpy:
            numpy.random.set_state(of_numpy)
        for each in undo:
            each()


def isolated(thing: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy that shares no state with ``thing``; a function without state is itself.

    What cannot be copied, such as an open file or a lock, is shared. What
    ``torch.compile`` made, which keeps to its original, is undone.
    """
    memo = {} if memo is None else memo
    thing = getattr(thing, "_torchdynamo_orig_callable", thing)
    thing = getattr(thing, "_orig_mod", thing)
    if id(thing) in memo or isinstance(thing, STATELESS):
        return memo.get(id(thing), thing)
    if isinstance(thing, types.MethodType):
        return types.MethodType(thing.__func__, isolated(thing.__self__, memo))
    if isinstance(thing, types.FunctionType):
        return _function(thing, memo)
    if hasattr(thing, "cache_parameters"):  # of functools.lru_cache
        made = functools.lru_cache(**thing.cache_parameters())
        return made(isolated(thing.__wrapped__, memo))
    if isinstance(thing, functools.partial):
        plain = [isolated(x, memo) for x in thing.args]
        named = {name: isolated(x, memo) for name, x in thing.keywords.items()}
        return functools.partial(isolated(thing.func, memo), *plain, **named)
    for part in _inside(thing):
        if isinstance(part, Tensor) and not part.is_leaf:  # deepcopy refuses it
            memo.setdefault(id(part), part.detach().clone().requires_grad_())
        elif not isinstance(part, (Tensor, *PLAIN)) and _is_a_handle(part):
            memo[id(part)] = part
    try:
        made = copy.deepcopy(thing, memo)
    except Exception:  # whatever a stranger's class may raise
        return thing
    for part in list(_inside(made)):
        _isolate_functions(part, memo)
    return made


def _is_a_handle(part: Any) -> bool:
    """A lock, a file, a pool of threads: what the standard library will not copy."""
    if type(part).__module__.partition(".")[0] not in sys.stdlib_module_names:
        return False
    try:
        copy.deepcopy(part)
    except Exception:
        return True
    return False


def _isolate_functions(part: Any, memo: dict[int, Any]) -> None:
    """Functions in a container or in attributes, which deepcopy shares."""
    held = _held(part)
    pairs = held.items() if isinstance(held, dict) else enumerate(held)
    for name, value in list(pairs):
        if isinstance(value, FUNCTIONS) and not isinstance(held, (tuple, set)):
            held[name] = isolated(value, memo)


def _held(part: Any) -> Any:
    """The container itself, or the attributes of an object."""
    return part if isinstance(part, PLAIN) else getattr(part, "__dict__", {})


def _inside(thing: Any) -> Iterator[Any]:
    """``thing``, and what it holds in containers and attributes of any depth."""
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, STATELESS):
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, (list, tuple, set)):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
        elif not isinstance(part, (Tensor, *FUNCTIONS)) and hasattr(part, "__dict__"):
            waiting += [] if _is_a_handle(part) else vars(part).values()


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
    """Global names (and attributes) in a function and in the functions within it.

    Not those that pytest wrote into it (``@pytest_ar``): they lead to all of pytest.
    """
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    own = {name for name in code.co_names if name.isidentifier()}
    return own.union(*map(_names, inner))


# ------------------------------------------------- what code reaches without holding it


def _reached(thing: Any) -> Iterator[tuple[Any, str]]:
    """Globals of a module, and attributes of a class, that its code names."""
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        part = waiting.pop()
        waiting += [part.__self__] if isinstance(part, types.MethodType) else []
        part = getattr(part, "__wrapped__", getattr(part, "__func__", part))
        if id(part) in seen or _of_a_library(part):
            continue
        seen.add(id(part))
        found: list[tuple[Any, str]] = []
        if isinstance(part, types.FunctionType):
            waiting += map(_content, part.__closure__ or ())
            names = _names(part.__code__)
            spaces = [part.__globals__]
            modules = (part.__globals__.get(name) for name in names)
            spaces += [vars(m) for m in modules if isinstance(m, types.ModuleType)
                       and not _of_a_library(m)]  # fmt: skip
            found = [(space, name) for space in spaces for name in names]
        elif isinstance(part, type):
            own = [getattr(f, "__func__", f) for f in vars(part).values()]
            codes = [f.__code__ for f in own if isinstance(f, types.FunctionType)]
            names = set(vars(part)).union(*map(_names, codes))
            found = [(part, name) for name in names - {"__dict__", "__weakref__"}]
            waiting += part.__mro__[1:]
        elif isinstance(part, property):
            waiting += [part.fget, part.fset]
        else:
            waiting += [type(part), *filter(callable, _inside(part))]
        yield from found
        waiting += [_look(*each) for each in found]


def _of_a_library(part: Any) -> bool:
    named = "__name__" if isinstance(part, types.ModuleType) else "__module__"
    name = getattr(part if isinstance(part, NAMED) else type(part), named, None)
    return str(name).partition(".")[0] in LIBRARIES


def _look(space: Any, name: str) -> Any:
    return (vars(space) if isinstance(space, type) else space).get(name, MISSING)


def _undo(space: Any, name: str) -> Callable[[], None]:
    """What puts back a global or an attribute, and what it holds."""
    of_class = isinstance(space, type)
    put, drop = (setattr, delattr) if of_class else (operator.setitem, operator.delitem)
    before = _look(space, name)
    kept = [_kept(part) for part in _inside(before)]

    def undo() -> None:
        if _look(space, name) is not before:
            drop(space, name) if before is MISSING else put(space, name, before)
        for put_back in kept:
            put_back()

    return undo


def _kept(part: Any) -> Callable[[], Any]:
    """What gives a container, a tensor or an object the content that it has now."""
    if isinstance(part, Tensor):
        if part.is_meta or type(part) not in ops.PLAIN:  # no content: meta, a fake
            return lambda: None
        tensor = part.detach().clone()
        return lambda: _refill(part, tensor)
    held = _held(part)
    if isinstance(held, (tuple, types.MappingProxyType)):
        return lambda: None
    content = held.copy()

    def put_back() -> None:
        # Untouched while it is as it was: another thread may be using it.
        if not _same(held, content):
            held.clear()
            (held.extend if isinstance(held, list) else held.update)(content)

    return put_back


def _same(held: Any, content: Any) -> bool:
    """Whether both hold the very same objects, in the same order where there is one."""
    now = held.copy()  # in one step, whatever other threads do
    if isinstance(now, set):
        return bool(now == content)
    if isinstance(now, dict):
        now, content = ([x for pair in d.items() for x in pair] for d in (now, content))
    return [*map(id, now)] == [*map(id, content)]


def _refill(tensor: Tensor, content: Tensor) -> None:
    if (tensor.dtype, tensor.shape) != (content.dtype, content.shape):
        tensor.data = content
    elif not torch.equal(tensor, content):
        tensor.data.copy_(content)
