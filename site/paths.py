"""The paths through the course: `python site/paths.py` writes `site/paths.md`.

Times come from the title slides of the lessons, so they follow when a lesson changes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import nbformat

HERE = Path(__file__).resolve().parent
LESSONS = HERE.parent / "lessons"
PAGE = HERE / "paths.md"

INTRODUCTION = """
# Paths through the course

Nobody has to take all of it. Each path says how long its lessons take when a teacher
leads them, and how long students then need for the exercises. The times are those on
the lessons' title slides.
"""


class Course(NamedTuple):
    """One path: what it is for, and the lessons of each session."""

    title: str
    words: str
    sessions: list[str]


COURSES = [
    Course(
        "An afternoon: four lessons",
        "For people who know attention and want to understand RoPE. Begin lesson 04 "
        "with the first figure of lesson 02: a position as a row of clock hands.",
        ["01", "04", "05", "09"],
    ),
    Course(
        "A workshop: six sessions",
        "From why position matters to a real bug in a real checkpoint.",
        ["01 04", "05 07", "08 10", "09 11", "12 13", "14 20"],
    ),
    Course(
        "The course: twelve sessions",
        "Every lesson, in order. Exercises are homework.",
        ["00 01", "02 03", "04 05", "06 07", "08", "09", "10 11", "12 13", "14 15",
         "16 17", "18 19", "20 21"],
    ),
    Course(
        "For engineers: six lessons",
        "For people who know RoPE and have to make it right and fast: pairings, "
        "caches and padding, precision, longer context, kernels, other people's code.",
        ["07", "09", "10", "13", "18", "20"],
    ),
]  # fmt: skip


class Lesson(NamedTuple):
    """What a lesson's title slide says."""

    file: str
    title: str
    minutes: int
    exercises: int


def title_slide(path: Path) -> Lesson:
    """Read a lesson's title and times."""
    text = nbformat.read(path, as_version=4).cells[0].source
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    minutes = re.search(r"\b(\d+) minutes", text)
    exercises = re.search(r"\b(\d+) for the exercises", text)
    if not title or not minutes:
        raise ValueError(f"{path.name}: the title slide has no H1 or no 'N minutes'")
    rest = int(exercises[1]) if exercises else 0
    return Lesson(path.name, title[1].strip(), int(minutes[1]), rest)


def lessons() -> dict[str, Lesson]:
    """All lessons, by number."""
    return {p.name[:2]: title_slide(p) for p in sorted(LESSONS.glob("[0-9]*.ipynb"))}


def duration(minutes: int) -> str:
    """Minutes as a person says them."""
    hours, rest = divmod(minutes, 60)
    if not hours:
        return f"{rest} min"
    return f"{hours} h {rest:02d} min" if rest else f"{hours} h"


def table(course: Course, all_lessons: dict[str, Lesson]) -> str:
    """The sessions of a path with their times, and the sums."""
    rows = [
        "| session | lessons | lessons take | exercises take |",
        "|---|---|---|---|",
    ]
    taught = practised = 0
    for number, session in enumerate(course.sessions, 1):
        chosen = [all_lessons[key] for key in session.split()]
        links = ", ".join(
            f"[{c.file[:2]} {c.title}](../lessons/{c.file})" for c in chosen
        )
        minutes, rest = sum(c.minutes for c in chosen), sum(c.exercises for c in chosen)
        times = f"{duration(minutes)} | {duration(rest)}"
        rows.append(f"| {number} | {links} | {times} |")
        taught, practised = taught + minutes, practised + rest
    rows.append(f"| **all** | | **{duration(taught)}** | **{duration(practised)}** |")
    return "\n".join(rows)


def page() -> str:
    """The text of `paths.md`."""
    found = lessons()
    parts = [INTRODUCTION.strip()]
    lecture = LESSONS / "lecture.ipynb"
    if lecture.exists():
        said = title_slide(lecture)
        parts.append(
            f"## One lecture: {duration(said.minutes)}\n\nThe whole subject in one "
            f"talk: [{said.title}](../lessons/{lecture.name}). It ends in a map from "
            "each slide to its lesson."
        )
    for course in COURSES:
        parts += [f"## {course.title}", course.words, table(course, found)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print("wrote", PAGE)
