"""An exercise's card: what the lesson shows of it, and the judge of its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Wrong(Exception):
    """The answer is wrong; the message names the misconception."""


def expect(condition: bool, message: str) -> None:
    """Raise :class:`Wrong` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise Wrong(message)


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
