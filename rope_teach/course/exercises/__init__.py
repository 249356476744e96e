"""Exercises that check themselves: ``check``, ``hint`` and ``solution``.

A check never raises an exception in a notebook. It gives one of three answers: not
attempted yet; not yet right, naming the misconception; right, and what that means.
Each lesson's exercises live in the module ``lesson_NN`` in this package.
"""

from __future__ import annotations

import dis
import html
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

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
    lesson = str(key).partition(".")[0]
    if lesson.isdigit():
        try:
            importlib.import_module(f"{__name__}.lesson_{int(lesson):02d}")
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith(__name__):
                raise
    if key not in EXERCISES:
        known = [k for k in EXERCISES if k.startswith(f"{lesson}.")]
        raise KeyError(
            f"there is no exercise {key!r}; "
            + (f"lesson {lesson} has {', '.join(known)}" if known else "try '4.1'")
        )
    return EXERCISES[key]


def feedback(key: str, answer: Any) -> Feedback:
    """Judge ``answer`` and return what :func:`check` shows."""
    task = find(key)
    if is_stub(answer):
        return Feedback(
            "waiting",
            f"{key} {task.title}: not attempted yet. Replace the dots, then run this "
            f'cell again. Stuck? Run hint("{key}") in a cell of its own.',
        )
    try:
        meaning = task.judge(answer)
    except Wrong as wrong:
        return Feedback("wrong", f"✗ {key} Not yet. {wrong}")
    except Exception as error:  # a student's code may raise anything
        return Feedback(
            "wrong",
            f"✗ {key} Not yet. Your code stopped with {type(error).__name__}: {error}",
        )
    return Feedback("right", f"✓ {key} Right. {meaning}")


def check(key: str, answer: Any) -> None:
    """Check the answer to exercise ``key`` and show the feedback.

    >>> check("4.1", ...)
    4.1 Undo a turn: not attempted yet. Replace the dots, then run this cell again. \
Stuck? Run hint("4.1") in a cell of its own.
    """
    _show(feedback(key, answer))


def hint(key: str) -> None:
    """Show two hints for exercise ``key``; the second opens with a click."""
    first, second = find(key).hints
    _show(Feedback("hint", f"{key} First step: {first}", more=f"Second step: {second}"))


def solution(key: str) -> None:
    """Show a solution to exercise ``key``, and why it is right."""
    task = find(key)
    _show(Feedback("solution", f"{key} {task.title}", task.solution, task.why))


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


def as_tensor(value: Any) -> Tensor:
    """A student's value as a float64 tensor; :class:`Wrong` if that is impossible."""
    if value is None or value is ...:
        raise Wrong("Your function returns nothing. Is there a `return`?")
    try:
        if isinstance(value, (list, tuple)) and any(
            isinstance(item, Tensor) for item in value
        ):
            value = torch.stack([torch.as_tensor(item) for item in value])
        return torch.as_tensor(value).detach().to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
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
    result = float(tensor)
    expect(math.isfinite(result), f"Expected a finite number, got {result}.")
    return result


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
            isinstance(i, bool) or getattr(i, "dtype", 0) is torch.bool for i in items
        ),
        "You gave True or False for each hand. List the numbers of the ones that are "
        "True: nonzero() finds them.",
    )
    expect(
        bool((listed == listed.round()).all()),
        "These are speeds or wavelengths. List the numbers i of the hands.",
    )
    return [int(i) for i in listed]
