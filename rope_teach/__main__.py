"""The command line: ``rope-teach COMMAND``, or ``python -m rope_teach COMMAND``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rope_teach.identify import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="rope-teach",
        description="A course about how a transformer knows where its tokens are.",
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    commands.add_parser(
        "doctor",
        help="check that this machine can run the course, and say what to fix",
    )
    lessons = commands.add_parser(
        "lessons",
        help="copy the lessons into a folder, without overwriting your work",
        description="Copy the lessons into FOLDER. Run it again to get new editions; "
        "lessons that you have changed are left as they are.",
    )
    lessons.add_argument(
        "folder", nargs="?", default="my-course", type=Path, metavar="FOLDER"
    )
    _add_grade(commands)
    probe = commands.add_parser(
        "identify",
        help="say how a function rotates, or which law it breaks, and why",
        description="Say how something rotates: a function, a module, a class, a "
        "config.json or a checkpoint.",
    )
    command.add_arguments(probe)
    given = parser.parse_args(arguments)
    if given.command == "identify":
        return command.run(given)
    return _of_course(given)


def _add_grade(commands: Any) -> None:
    grade = commands.add_parser(
        "grade",
        help="judge every exercise in a folder, or in a class of folders",
        description="Run each notebook in FOLDER in a process of its own and judge its "
        "exercises. FOLDER is one student's, or holds one folder per student. Nothing "
        "in it is changed. Run the code of strangers in a container.",
    )
    add = grade.add_argument
    add("folder", nargs="?", default=".", type=Path, metavar="FOLDER")
    add("--lessons", nargs="+", type=int, default=[], metavar="N", help="only these")
    add("--csv", type=Path, metavar="FILE", help="write a line per exercise")
    add("--json", type=Path, metavar="FILE", help="write the same as JSON")
    add(
        "--seconds", type=positive(float), default=60, help="for a cell or a check (60)"
    )
    add("--minutes", type=positive(float), default=10, help="for a notebook (10)")
    add("--memory", type=positive(float), default=8, help="of a process, in GiB (8)")
    jobs = max(1, (os.cpu_count() or 1) // 2)
    add("--jobs", type=positive(int), default=jobs, help=f"notebooks at once ({jobs})")


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return an argparse type: a number of this kind that is above 0."""

    def read(text: str) -> float:
        if not (number := kind(text)) > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return number

    read.__name__ = kind.__name__  # argparse: invalid int value
    return read


def _of_course(given: argparse.Namespace) -> int:
    """Run a command that needs the course extra; the rest does not."""
    try:
        from rope_teach.course import doctor, grading, handout
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    if given.command == "doctor":
        return doctor.main()
    if given.command == "lessons":
        return handout.main(given.folder)
    limits = grading.Limits(given.seconds, given.minutes, given.memory)
    return grading.main(
        given.folder, given.lessons, limits, given.jobs, given.csv, given.json
    )


if __name__ == "__main__":
    sys.exit(main())
