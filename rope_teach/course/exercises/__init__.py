"""Exercises that check themselves: ``check``, ``hint`` and ``solution``.

A check never raises an exception in a notebook. It gives one of three answers: not
attempted yet; not yet right, naming the misconception; right, and what that means.
Each lesson's exercises live in the module ``lesson_NN`` in this package.
"""

from __future__ import annotations

import html
import importlib
from dataclasses import dataclass
from typing import Any

from rope_teach.course.exercises.cards import EXERCISES, Exercise, Wrong
from rope_teach.course.exercises.errors import explain
from rope_teach.course.exercises.student_code import is_stub

__all__ = ["check", "hint", "solution", "solved"]


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


def solved(key: str, answer: Any) -> bool:
    """Whether ``answer`` passes the check of exercise ``key``; if not, say so.

    A later cell asks before it uses a student's function, and falls back on another.

    >>> solved("4.1", ...)
    4.1 is not solved yet: your answer is not used here.
    False
    """
    right = feedback(key, answer).kind == "right"
    if not right:
        print(f"{key} is not solved yet: your answer is not used here.")
    return right


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
