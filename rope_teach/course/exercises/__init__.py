"""Exercises that check themselves: ``check``, ``hint`` and ``solution``.

A check never raises an exception in a notebook. It gives one of three answers: not
attempted yet; not yet right, naming the misconception; right, and what that means.
Each lesson's exercises live in the module ``lesson_NN`` in this package.
"""

from __future__ import annotations

import copy
import dis
import functools
import html
import importlib
import inspect
import linecache
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["check", "hint", "solution"]


class Wrong(Exception):
    """The answer is wrong; the message names the misconception."""


@dataclass(frozen=True)
class Exercise:
    """One exercise; ``judge(answer)`` raises :class:`Wrong` or says what it means."""

    key: str
    title: str
    difficulty: int
    minutes: int
    hints: tuple[str, str]
    solution: str
    why: str
    judge: Callable[[Any], str]


@dataclass(frozen=True)
class Feedback:
    """What a check, a hint or a solution shows: plain text, and HTML in a notebook."""

    kind: str
    text: str
    code: str = ""
    more: str = ""

    def __str__(self) -> str:
        return "\n\n".join(filter(None, [self.text, self.code, self.more]))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        colour = {"right": "#00664a", "wrong": "#a33b00"}.get(self.kind, "#1f4e79")
        parts = [f"<p style='margin:0'>{html.escape(self.text)}</p>"]
        if self.code:
            # A page's own style for <pre> would lay its dark ground under dark letters.
            parts.append(
                "<pre style='margin:.5em 0;background:#f6f8fa;color:#1a1a1a'>"
                f"{html.escape(self.code)}</pre>"
            )
        if self.more and self.kind == "hint":
            parts.append(
                "<details><summary>Show the second step</summary>"
                f"<p>{html.escape(self.more)}</p></details>"
            )
        elif self.more:
            parts.append(f"<p style='margin:0'>{html.escape(self.more)}</p>")
        box = (
            f"<div class='rope-feedback' role='status' style='border-left:6px solid "
            f"{colour};background:#f6f8fa;color:#1a1a1a;padding:.5em .8em'>"
        )
        return {"text/plain": str(self), "text/html": box + "".join(parts) + "</div>"}


EXERCISES: dict[str, Exercise] = {}


def exercise(
    key: str,
    title: str,
    *,
    difficulty: int,
    minutes: int,
    hints: tuple[str, str],
    solution: str,
    why: str,
) -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
    """Register the decorated judge as exercise ``key`` ("lesson.number")."""

    def register(judge: Callable[[Any], str]) -> Callable[[Any], str]:
        EXERCISES[key] = Exercise(
            key, title, difficulty, minutes, hints, solution.strip(), why, judge
        )
        return judge

    return register


def find(key: str) -> Exercise:
    """Return exercise ``key``; ``KeyError`` names the keys that exist."""
    key = str(key).strip()  # 4.1 is as good as "4.1"
    lesson = key.partition(".")[0]
    if lesson.isdigit():
        try:
            importlib.import_module(f"{__name__}.lesson_{int(lesson):02d}")
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith(__name__):
                raise
    if key not in EXERCISES:
        known = [k for k in EXERCISES if k.startswith(f"{lesson}.")]
        raise KeyError(
            f"there is no exercise {key[:20]!r}; "
            + (f"lesson {lesson} has {', '.join(known)}" if known else "try '4.1'")
        )
    return EXERCISES[key]


def feedback(key: str, answer: Any) -> Feedback:
    """Judge ``answer`` and return what :func:`check` shows."""
    try:
        task = find(key)
    except KeyError as error:
        return Feedback("unknown", _as_sentence(error))
    if is_stub(answer):
        return Feedback(
            "waiting",
            f"{task.key} {task.title}: not attempted yet. Replace the dots, then run "
            f'this cell again. Stuck? Run hint("{task.key}") in a cell of its own.',
        )
    try:
        meaning = task.judge(answer)
    except Wrong as wrong:
        return Feedback("wrong", f"✗ {task.key} Not yet. {wrong}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a student's code may raise anything, even exit()
        return Feedback("wrong", f"✗ {task.key} Not yet. {explain(error)}")
    return Feedback("right", f"✓ {task.key} Right. {meaning}")


def check(key: str, answer: Any) -> None:
    """Check the answer to exercise ``key`` and show the feedback.

    >>> check("4.1", ...)
    4.1 Undo a turn: not attempted yet. Replace the dots, then run this cell again. \
Stuck? Run hint("4.1") in a cell of its own.
    """
    _show(feedback(key, answer))


def hint(key: str) -> None:
    """Show two hints for exercise ``key``; the second opens with a click."""
    try:
        task = find(key)
    except KeyError as error:
        return _show(Feedback("unknown", _as_sentence(error)))
    first, second = task.hints
    text = f"{task.key} First step: {first}"
    _show(Feedback("hint", text, more=f"Second step: {second}"))


def solution(key: str) -> None:
    """Show a solution to exercise ``key``, and why it is right."""
    try:
        task = find(key)
    except KeyError as error:
        return _show(Feedback("unknown", _as_sentence(error)))
    _show(Feedback("solution", f"{task.key} {task.title}", task.solution, task.why))


def _as_sentence(error: KeyError) -> str:
    text = str(error.args[0])
    return f"{text[0].upper()}{text[1:]}."


def _show(feedback: Feedback) -> None:
    try:
        from IPython import get_ipython
    except ImportError:
        print(feedback)
        return
    if get_ipython() is None:
        print(feedback)
    else:
        from IPython.display import display

        display(feedback)


# ------------------------------------------------ a student's error, in plain words

PLAIN_WORDS = [  # what torch and Python say, and what it means; the first that fits
    (
        r"[sS]calar type|same dtype|dtypes? match|dtype.*(must|should) be",
        "Your code mixes two types of number, for example float32 and float64. Convert "
        "one to the type of the other: b.to(a.dtype).",
    ),
    (
        r"must match|cannot be multiplied|size mismatch|is invalid for input|"
        r"equal size|inconsistent tensor size|do not broadcast|could not be broadcast|"
        r"Expected size|[12]D tensors? expected|must be (a matrix|1D|2D)|expanded size",
        "The shapes do not fit together. Print the .shape of both.",
    ),
    (
        r"Boolean value of Tensor|truth value of an array",
        "`if`, `and`, `or`, `not` take one True or False, not a whole tensor. Use "
        ".all() or .any().",
    ),
    (
        r"cannot be converted to Scalar|only one element tensors|"
        r"only (length-1|0-dimensional) arrays",
        "A tensor of several numbers is used where one number belongs.",
    ),
    (
        r"used as indices must|only integers, slices|indices must be integers",
        "An index must be a whole number. Division gives floats: use //, int() or "
        ".long().",
    ),
    (
        r"out of (range|bounds)",
        "An index leads past the end: places are counted from 0, so the last is "
        "length - 1. Or something has fewer dimensions than the code expects.",
    ),
    (
        r"argument '\w+' \(position \d+\) must be Tensor, not (int|float)",
        "This function of torch takes a tensor. For one number use `math`, or write "
        "torch.tensor(x).",
    ),
    (
        r"'(list|tuple|float|int)' object has no attribute",
        "Only a tensor has that method. Make one with torch.tensor(...).",
    ),
    (r"'NoneType'", "Something is None here. Does a function lack its `return`?"),
    (
        r"refer to a single memory location",
        "Your code writes into a tensor that it still reads from. Use a new tensor, or "
        ".clone() first.",
    ),
    (
        r"does not require grad|in-?place operation|Can't call numpy\(\) on Tensor",
        "The gradient got lost, or a tensor that it needs was written over. Make a new "
        "tensor instead of changing one.",
    ),
    (
        r"positional arguments?( but|:)|unexpected keyword",
        "The check calls your function with the arguments of the stub. Keep them.",
    ),
    (r"is not callable", "Something that is not a function is called with ( )."),
]


def explain(error: BaseException) -> str:
    """Say where a student's code stopped, on which line, and why, in plain words."""
    place = ""
    steps = list(traceback.walk_tb(error.__traceback__))
    for frame, line in steps:
        if frame.f_globals.get("__name__", "__main__") == "__main__":  # not a library
            text = linecache.getline(frame.f_code.co_filename, line).strip()
            place = f" at line {line}" + (f", `{text}`" if text else "")
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, UnboundLocalError):
        why = "A name is used before it gets a value inside the function."
    elif isinstance(error, NameError):
        why = (
            "This notebook does not know that name (yet). Run the cells above, and "
            "check the spelling."
        )
    elif isinstance(error, RecursionError):
        why = "A function calls itself without end."
    elif isinstance(error, (SystemExit, MemoryError)):
        why = "It ends Python, or asks for more memory than there is."
    else:
        why = next((w for p, w in PLAIN_WORDS if re.search(p, str(error))), "")
    last = steps[-1][0].f_globals.get("__name__", "") if steps else ""
    start = f"Your code stopped{place}."
    if last.startswith(__name__):  # the judge itself, at a value that it cannot use
        start = "The check cannot use this answer."
    return f"{start} {why} ({said})".replace("  ", " ")


# -------------------------------------------------------- helpers for the judges


def is_stub(answer: Any) -> bool:
    """Whether ``answer`` is still the stub: dots, None, or a function with no code."""
    if answer is None or answer is ...:
        return True
    if not isinstance(answer, FunctionType):
        return False
    does_nothing = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    body = list(dis.get_instructions(answer))
    if {step.opname for step in body} - does_nothing:
        return False
    constants = [step.argval for step in body if step.opname.endswith("CONST")]
    return constants[-1:] == [None]  # `return 0` is an answer, a docstring is not


NUMBERS = (bool, int, float, complex, Tensor)


def as_tensor(value: Any) -> Tensor:
    """A student's value as a float64 tensor; :class:`Wrong` if that is impossible."""
    if value is None or value is ...:
        raise Wrong("Your function returns nothing. Is there a `return`?")
    try:
        if isinstance(value, (Iterator, range, ValuesView)):
            value = list(value)
        if hasattr(value, "__array__") and not isinstance(value, Tensor):
            value = value.tolist()  # numpy, also of objects, or one that is read-only
        elif not isinstance(value, NUMBERS) and hasattr(value, "__float__"):
            value = float(value)  # Fraction, Decimal: a number is a number
        if isinstance(value, (list, tuple)) and not all(
            isinstance(item, (int, float)) for item in value
        ):
            value = torch.stack([as_tensor(item) for item in value])
        if not isinstance(value, Tensor):  # torch would round 0.1 to float32
            value = torch.as_tensor(value, dtype=torch.complex128)
        tensor = value.detach()
        if tensor.is_complex():
            expect(not tensor.imag.any(), "Expected real numbers, got complex ones.")
            tensor = tensor.real
        return tensor.to(torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        quoted = " Remove the quotation marks." if isinstance(value, str) else ""
        raise Wrong(f"Expected numbers, got {type(value).__name__}.{quoted}") from None


def close(got: Any, expected: Any, tolerance: float = 1e-4) -> bool:
    """Whether two values have the same shape and agree to within ``tolerance``."""
    a, b = as_tensor(got), as_tensor(expected)
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance).all())


def expect(condition: bool, message: str) -> None:
    """Raise :class:`Wrong` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise Wrong(message)


def expect_shape(got: Tensor, shape: tuple[int, ...]) -> None:
    """Raise :class:`Wrong` unless ``got`` has ``shape``."""
    expect(
        tuple(got.shape) == shape,
        f"The result must have shape {shape}; yours has {tuple(got.shape)}.",
    )


def number(value: Any) -> float:
    """A student's answer as one number, or :class:`Wrong`."""
    tensor = as_tensor(value)
    expect(tensor.numel() == 1, f"Expected one number, got {tensor.numel()}.")
    expect(
        not isinstance(value, bool) and getattr(value, "dtype", 0) is not torch.bool,
        f"Expected a number, got {bool(tensor)}.",
    )
    result = float(tensor)
    expect(math.isfinite(result), f"Expected a finite number, got {result}.")
    return result


def truth(value: Any) -> bool:
    """A student's answer as True or False, or :class:`Wrong`."""
    tensor = as_tensor(value)
    one = tensor.numel() == 1 and float(tensor) in (0, 1)
    got = f"{tensor.numel()} values" if tensor.numel() != 1 else f"{float(tensor):g}"
    expect(one, f"Expected one True or False, got {got}.")
    return bool(tensor)


def hand_numbers(got: Any) -> list[int]:
    """A student's list of hand numbers, or :class:`Wrong`."""
    listed = as_tensor(got)
    if listed.ndim == 2 and listed.shape[1] == 1:  # as nonzero() returns them
        listed = listed.flatten()
    expect(
        listed.ndim == 1,
        f"Expected a list of hands, got {type(got).__name__}. Which hands?",
    )
    items = got if isinstance(got, (list, tuple)) else [got]
    expect(
        not any(
            isinstance(i, bool) or str(getattr(i, "dtype", "")).endswith("bool")
            for i in items
        ),
        "You gave True or False for each hand. List the numbers of the ones that are "
        "True: nonzero() finds them.",
    )
    expect(
        bool((listed == listed.round()).all()),
        "These are speeds or wavelengths. List the numbers i of the hands.",
    )
    return [int(i) for i in listed]


def apart(a: float, b: float) -> tuple[str, str]:
    """Two unlike numbers in print, with as many digits as it takes to tell them apart.

    >>> apart(0.84147, 0.84149)
    ('0.84147', '0.84149')
    """
    for digits in (3, 5, 7, 10, 13, 17):
        one, other = f"{a:.{digits}g}", f"{b:.{digits}g}"
        if one != other:
            break
    return one, other


def difference(
    got: Any,
    expected: Any,
    tolerance: float = 1e-4,
    axes: tuple[str, ...] = ("row", "column"),
) -> str:
    """Where two values first differ, as a sentence; empty if they are close.

    ``axes`` are the names of the last dimensions.

    >>> difference([[1, 2], [3, 5]], [[1, 2], [3, 4]])
    'At row 1, column 1 it should be 4; yours is 5.'
    """
    a, b = as_tensor(got), as_tensor(expected)
    if a.shape != b.shape:
        return f"It should have shape {tuple(b.shape)}; yours has {tuple(a.shape)}."
    off = ~((a - b).abs() <= tolerance)  # so that nan differs
    if not off.any():
        return ""
    place = off.nonzero()[0].tolist()
    mine, right = apart(float(a[tuple(place)]), float(b[tuple(place)]))
    axes = ("place",) if len(place) == 1 and axes == ("row", "column") else axes
    names = ("index",) * (len(place) - len(axes)) + axes[-len(place) :]
    where = ", ".join(f"{n} {i}" for n, i in zip(names, place, strict=False))
    return f"{f'At {where} it' if place else 'It'} should be {right}; yours is {mine}."


def expect_close(
    got: Any, expected: Any, what: str = "", tolerance: float = 1e-4, **axes: Any
) -> None:
    """Raise :class:`Wrong` with the first :func:`difference`, after ``what``."""
    found = difference(got, expected, tolerance, **axes)
    expect(not found, f"{what} {found}".strip())


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


def name_mistake(
    got: Sequence[Any],
    right: Sequence[Any],
    mistakes: Mapping[str, Sequence[Any]],
    tolerance: float = 1e-4,
) -> None:
    """Raise :class:`Wrong` with the message of the mistake that ``got`` shows.

    ``got`` and ``right`` hold a value for each case that a judge tried; ``mistakes``
    the values of each mistake, under its message. Only a mistake that explains every
    case is named, and none whose values are right.
    """

    def alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
        pairs = zip(one, other, strict=True)
        return all(close(a, b, tolerance) for a, b in pairs)

    for message, values in mistakes.items():
        expect(not alike(got, values) or alike(values, right), message)
