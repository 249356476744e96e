"""Grading: ``rope-teach grade FOLDER`` judges every exercise afresh.

Each notebook runs in a process of its own, in a temporary copy of its folder. Stored
outputs, and the ``check`` that a notebook has imported or written, count for nothing:
the cells run in order, and the genuine judge is asked about each answer. When a cell
kills the process, or takes too long, the notebook runs again without that cell, so it
costs its exercise and no other.

What this protects against: mistakes, and pranks. Endless loops, crashes, exits, huge
allocations, fork bombs, files removed or written, a network asked for, a faked check,
results written by hand. Linux holds these walls in its kernel (see ``guard``; the
report says which ones there are); on macOS there is no limit of memory, on Windows none
of memory and of processing time but the clock's, and on both what C code or another
program does to files is not stopped.

What it does not: a student who sets out to deceive. The answer is judged in the process
in which the student's code runs, and code that finds the judge there, by ``gc`` or by
the interpreter's frames, can change its mind. What such code must name is read off its
text before anything runs (see ``suspicion``). The notebook is run without the cells
that name it first; an answer that is right only with them, and theirs, is reported for
a teacher to look at. Words can be disguised, and an honest student may use one: a
report is a reason to read the cell, not a verdict. Nor is this a container: the code
can read what you can read. For strangers' code, run it in a container or a virtual
machine. And look at an answer that is right without looking right.
"""

from __future__ import annotations

import csv
import io
import json
import os
import queue
import re
import secrets
import shutil
import signal
import site
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from rope_teach.course.grading import guard
from rope_teach.course.grading.suspicion import suspicions
from rope_teach.course.handout import LESSONS, read_notebook

__all__ = ["Limits", "Mark", "grade", "grade_notebook", "main", "report", "students"]

OFFLINE = Path(__file__).parent / "offline"  # its sitecustomize cuts the network
CHECK = re.compile(
    r"""^[ \t]*check\s*\(\s*(?:key\s*=\s*)?["']?(\d+\.\d+)\b""", re.MULTILINE
)
STATES = ("missing", "waiting", "stopped", "wrong", "right")  # the last one counts
SIGNS = dict(zip(STATES, "-·!✗✓", strict=True))
LEGEND = "✓ right, ✗ not yet, ! stopped, · not attempted, - no notebook"
PATIENCE = 120  # s, for a process to start and import torch on a busy machine
HEAVY = 100 << 20  # bytes: a larger file is not copied along
PASSED_ON = re.compile(
    r"PATH|PATHEXT|SYSTEMROOT|SYSTEMDRIVE|COMSPEC|WINDIR|LANG|LC_\w+|TZ|VIRTUAL_ENV|"
    r"LD_LIBRARY_PATH|PYTHON\w+|CONDA_\w+|TRITON_\w+"
)
Place = tuple[int, str | None]  # a cell, and the exercise if its check is running
BEFORE: Place = (-1, None)
Verdict = tuple[str, str, str]  # state, text, suspicion
Cell = tuple[int, str, list[str]]  # its place, its source, the exercises it checks
Work = tuple[int, str, list[str], bool]  # the same, still open; has it an exercise?


@dataclass(frozen=True)
class Limits:
    """What one notebook may use: seconds a cell and a check, minutes and GiB in all."""

    seconds: float = 60
    minutes: float = 10
    memory: float = 8


@dataclass(frozen=True)
class Mark:
    """How one student's exercise was judged; ``state`` is one of ``STATES``.

    ``suspicion`` lists words that reach beyond an answer, in the cells it depends on.
    """

    student: str
    lesson: int
    exercise: str
    state: str
    text: str
    notebook: str = ""
    suspicion: str = ""

    @property
    def mark(self) -> int:
        """1 if the answer is right, else 0."""
        return int(self.state == "right")


# ------------------------------------------------------------------- who, and what


def students(folder: Path) -> dict[str, list[Path]]:
    """Return each student's notebooks: of one folder, or of each folder in it.

    Raises ``FileNotFoundError`` if there is no notebook at all.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"FOLDER must be a folder of notebooks, got {folder}")
    if any(folder.glob("*.ipynb")):
        found = {folder.resolve().name: _notebooks(folder)}
    else:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
        found = {path.name: _notebooks(path) for path in inside if path.name[0] != "."}
    if not any(found.values()):
        raise FileNotFoundError(f"there is no notebook in {folder}")
    return found


def one_or_many(folder: Path) -> str:
    """Return a sentence if one stray notebook makes a class look like one student."""
    alone = sorted(folder.glob("*.ipynb"))
    inside = sum(
        any(path.glob("*.ipynb"))
        for path in folder.iterdir()
        if not _passed_over(path.name)  # JupyterLab keeps checkpoints beside notebooks
    )
    if not alone or inside < 2:
        return ""
    return (
        f"{alone[0].name} lies beside {inside} folders with notebooks, so all of them "
        "count as one student's; if each folder is a student, move it away"
    )


def _notebooks(folder: Path) -> list[Path]:
    paths = sorted(folder.rglob("*.ipynb"))
    return [
        path
        for path in paths
        if not any(map(_passed_over, path.relative_to(folder).parts))
    ]


def _passed_over(name: str) -> bool:
    """Whether a file or folder is hidden, or holds what a student has installed."""
    return name[0] == "." or name == "site-packages"


def stubs(lessons: Path = LESSONS) -> dict[str, str]:
    """Return the cell of each exercise as it is handed out, in the lessons' order."""
    found = {}
    for path in sorted(lessons.glob("[0-9][0-9]_*.ipynb")):
        for _, source, keys in code_cells(path):
            found.update(dict.fromkeys(keys, source.strip()))
    return found


def code_cells(path: Path) -> list[Cell]:
    """Return a notebook's code cells; ``ValueError`` if the file is no notebook."""
    notebook = read_notebook(path) if path.is_file() else None  # no pipe, no device
    if notebook is None:
        raise ValueError(f"{path.name} cannot be read as a notebook")
    sources = [
        "".join(cell["source"])
        for cell in notebook["cells"]
        if cell.get("cell_type") == "code"
    ]
    return [
        (index, source, list(dict.fromkeys(CHECK.findall(source))))
        for index, source in enumerate(sources)
    ]


# --------------------------------------------------------------------- one notebook


def grade_notebook(
    path: Path, given: dict[str, str], limits: Limits = Limits()
) -> dict[str, Verdict]:
    """Judge each exercise that a notebook checks; return its state, text, suspicion.

    Parameters
    ----------
    path
        The notebook. Neither it nor its folder is changed.
    given
        The exercises that count, each with its cell as it was handed out. A notebook
        in which every cell is still like that is not run.
    limits
        What the notebook may use.
    """
    try:
        cells = code_cells(path)
    except ValueError as error:
        return {"": ("stopped", str(error), "")}
    marks: dict[tuple[int, str], Verdict] = {}
    wanted = []
    for index, source, keys in cells:
        for key in [key for key in keys if key in given]:
            if source.strip() == given[key]:
                marks[index, key] = "waiting", "not attempted yet", ""
            else:
                wanted.append((index, key))
    theirs = {p.name.partition(".")[0] for p in path.parent.iterdir()}
    words = suspicions([(source, bool(keys)) for _, source, keys in cells], theirs)
    doubtful = {index: found for index, found in enumerate(words) if found}
    end = time.monotonic() + 60 * limits.minutes
    # First without doubtful cells: an answer that is right then owes them nothing.
    for left_out in [set(doubtful), set()] if doubtful else [set()]:
        open_now = [
            place
            for place in wanted
            if place[0] not in left_out and marks.get(place, ("",))[0] != "right"
        ]
        judged = _judge(path.parent, cells, open_now, left_out, limits, end)
        for place, (state, text) in judged.items():
            found = doubtful.get(place[0], "")
            if state == "right" and not left_out and not found:
                found = "; ".join(w for i, w in doubtful.items() if i < place[0])
            mark = state, text, found
            marks[place] = max(mark, marks.get(place, mark), key=rank)
    best: dict[str, Verdict] = {}
    for (_, key), mark in sorted(marks.items()):
        best[key] = max(mark, best.get(key, mark), key=rank)
    return best


def rank(mark: Verdict) -> tuple[int, bool]:
    """What makes one verdict on an exercise count before another."""
    return STATES.index(mark[0]), not mark[2]


def _judge(
    folder: Path,
    cells: list[Cell],
    wanted: list[tuple[int, str]],
    left_out: set[int],
    limits: Limits,
    end: float,
) -> dict[tuple[int, str], tuple[str, str]]:
    """Judge what is wanted, in as many runs as it takes."""
    marks: dict[tuple[int, str], tuple[str, str]] = {}
    skipped = set(left_out)
    while open_now := [place for place in wanted if place not in marks]:
        last = open_now[-1][0]
        job = [
            (i, source, [key for key in keys if (i, key) in open_now], bool(keys))
            for i, source, keys in cells[: last + 1]
            if i not in skipped
        ]
        culprit, reason = _run(folder, job, limits, end, marks)
        blamed = [
            place
            for place in open_now
            if culprit is None or place == culprit or culprit == (place[0], None)
        ]
        for place in blamed:
            marks.setdefault(place, ("stopped", reason))
        if culprit and culprit[1] is None:  # not the check: the cell itself
            skipped.add(culprit[0])
    return marks


def _run(
    folder: Path,
    cells: list[Work],
    limits: Limits,
    end: float,
    marks: dict[tuple[int, str], tuple[str, str]],
) -> tuple[Place | None, str]:
    """Run cells once and enter each verdict; return where it stopped, and why."""
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        place = Path(name)
        _copy(folder, place / "work")
        job = {
            "secret": secret,
            "folder": name,
            "cells": cells,
            "cpu_seconds": int(60 * limits.minutes) + 1,
            "memory": int(limits.memory * (1 << 30)),
        }
        process = _start(place, job)
        try:
            where, why = _listen(process, secret, limits, end, marks)
        finally:
            _kill(process)
        if where == BEFORE:
            said = (place / "start" / "errors").read_text(errors="replace")
            raise RuntimeError(f"a process for grading {why}, before any cell\n{said}")
        return where, why


def _listen(
    process: subprocess.Popen[bytes],
    secret: str,
    limits: Limits,
    end: float,
    marks: dict[tuple[int, str], tuple[str, str]],
) -> tuple[Place | None, str]:
    said: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_hear, args=(process, secret, said), daemon=True).start()
    at, patience = BEFORE, float(PATIENCE)
    while True:
        left = end - time.monotonic()
        try:
            words = said.get(timeout=max(0, min(patience, left)))
        except queue.Empty:
            if left < patience:
                return None, f"the notebook took more than {limits.minutes:g} minutes"
            return at, f"took more than {patience:g} seconds"
        if words is None:
            return at, _death(process)
        patience = limits.seconds
        if "done" in words:
            return None, "the notebook ended before it"
        if "harm" in words:
            return (at[0], None), words["harm"]
        if "kind" in words:
            text = re.sub(rf"^[✓✗] {re.escape(words['key'])} ", "", words["text"])
            marks[at[0], words["key"]] = words["kind"], text
        at = words.get("cell", at[0]), None if "kind" in words else words.get("key")


def _start(place: Path, job: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a process for ``job`` in an empty folder, with a home that is its own."""
    import matplotlib

    for name in ("home", "start", "tmp"):
        (place / name).mkdir()
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    environment = {k: v for k, v in os.environ.items() if PASSED_ON.fullmatch(k)} | {
        "HOME": str(place / "home"),
        "USERPROFILE": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "TEMP": str(place / "tmp"),
        "TMP": str(place / "tmp"),
        "PYTHONPATH": os.pathsep.join([str(OFFLINE), *filter(None, inherited)]),
        "PYTHONUSERBASE": site.getuserbase(),  # where pip install --user puts things
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_NO_INDEX": "1",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # fonts are listed there already
        "CUDA_VISIBLE_DEVICES": "",
        **dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
        ),
    }
    process = subprocess.Popen(
        [*guard.namespaces(), sys.executable, "-m", "rope_teach.course.grading.child"],
        cwd=place / "start",
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(place / "start" / "errors").open("wb"),
        start_new_session=True,
    )
    assert process.stdin
    try:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.close()
    except OSError:
        pass  # it has died already: what is heard from it says so
    return process


def _hear(
    process: subprocess.Popen[bytes],
    secret: str,
    said: queue.Queue[dict[str, Any] | None],
) -> None:
    """Pass on the lines that begin with the secret; None when there are no more."""
    stream: IO[bytes] = process.stdout  # type: ignore[assignment]
    while line := stream.readline(1 << 16):
        word, _, rest = line.partition(b" ")
        if word == secret.encode():
            said.put(json.loads(rest))
    said.put(None)


def _death(process: subprocess.Popen[bytes]) -> str:
    try:
        status = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "closed its channel and went on"
    if status == guard.TOO_MANY:
        return f"started more than {guard.MOST_STARTS} programs"
    number = -status if status < 0 else status - 128
    names = {int(s): s.name for s in signal.Signals}
    return f"ended the process ({names.get(number, f'exit status {status}')})"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # all of it has ended
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def _copy(folder: Path, target: Path) -> None:
    """Copy what a notebook may read: plain files of a bearable size, links as links."""

    def not_for_us(where: str, names: list[str]) -> Iterator[str]:
        for name in names:
            found = os.lstat(os.path.join(where, name))
            kind = stat.S_IFMT(found.st_mode)
            if (
                _passed_over(name)
                or kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
                or found.st_size > HEAVY
            ):
                yield name

    try:
        shutil.copytree(
            folder, target, symlinks=True, ignore=lambda *at: set(not_for_us(*at))
        )
    except shutil.Error:
        pass  # what cannot be read cannot be copied; the rest is there


# ---------------------------------------------------------------------- many, and all


def grade(
    folder: Path,
    lessons: Iterable[int] = (),
    limits: Limits = Limits(),
    jobs: int = 1,
) -> list[Mark]:
    """Judge one student's folder, or each folder in it; return a mark an exercise.

    Raises ``FileNotFoundError`` if there is no notebook, ``ValueError`` for a lesson
    that does not exist, and ``RuntimeError`` if no process for grading can start.

    Parameters
    ----------
    folder
        Of one student, or of students' folders. Nothing in it is changed.
    lessons
        The numbers of the lessons that count; none for all.
    limits
        What each notebook may use.
    jobs
        How many notebooks run at once.
    """
    from tqdm import tqdm

    given, chosen = stubs(), set(lessons)
    if unknown := chosen - {_lesson(key) for key in given}:
        last = max(map(_lesson, given), default=-1)
        raise ValueError(f"lessons must be in 0 to {last}, got {min(unknown)}")
    given = {k: v for k, v in given.items() if not chosen or _lesson(k) in chosen}
    of_student = students(folder)
    work = [(name, path) for name, paths in of_student.items() for path in paths]
    judge = partial(grade_notebook, given=given, limits=limits)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        results = pool.map(judge, [path for _, path in work])
        results = tqdm(results, total=len(work), unit="notebook", disable=None)
        try:
            judged = list(zip(work, results, strict=True))
        finally:  # an interrupt waits for what is running, and starts no more
            pool.shutdown(cancel_futures=True)
    best: dict[tuple[str, str], Mark] = {}
    unread: dict[str, str] = defaultdict(str)
    for (name, path), marks in judged:
        for key, (state, text, words) in marks.items():
            if not key:
                unread[name] += f"; {text}"
                continue
            said = [_plain(each) for each in (text, path.name, words)]
            mark = Mark(_plain(name), _lesson(key), key, state, *said)
            kept = best.setdefault((name, key), mark)
            if rank((state, "", words)) > rank((kept.state, "", kept.suspicion)):
                best[name, key] = mark
    return [
        best.get((name, key))
        or Mark(
            _plain(name),
            _lesson(key),
            key,
            "missing",
            _plain(f"in no notebook{unread[name]}"),
        )
        for name in of_student
        for key in given
    ]


def _plain(text: str) -> str:
    """Return one line without what would steer a terminal or fit in no file."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def _lesson(key: str) -> int:
    return int(key.partition(".")[0])


def report(marks: list[Mark]) -> str:
    """Return a table: an exercise a line for one student, a student a line for more."""
    names = list(dict.fromkeys(mark.student for mark in marks))
    there = {mark.lesson for mark in marks if mark.state != "missing"}
    shown = [mark for mark in marks if mark.lesson in there]
    lines = []
    if len(names) == 1:
        lines += [f"{SIGNS[m.state]} {m.exercise:5} {m.text}" for m in shown]
    else:
        width = max(map(len, [*names, "student"]))
        lines += [" ".join([f"{'student':{width}}", *(f"{n:>4}" for n in sorted(there)),
                            "  all"])]  # fmt: skip
        for name in names:
            of_this = [mark for mark in shown if mark.student == name]
            cells = [
                _share([m for m in of_this if m.lesson == n]) for n in sorted(there)
            ]
            total = sum(mark.mark for mark in of_this)
            row = [f"{name:{width}}", *(f"{cell:>4}" for cell in cells), f"{total:5}"]
            lines.append(" ".join(row))
        lines += [
            f"{m.student}, {m.exercise}: {m.text}"
            for m in shown
            if m.state == "stopped"
        ]
    lines += [
        f"? {m.student}, {m.exercise}: look at the code, it names {m.suspicion}"
        for m in shown
        if m.suspicion
    ]
    right = sum(mark.mark for mark in shown)
    lines += ["", f"{right} of {len(shown)} right. {LEGEND}"]
    return "\n".join(lines)


def _share(marks: list[Mark]) -> str:
    """The right ones of a lesson's exercises; a sign if none was even tried."""
    states = {mark.state for mark in marks}
    if states <= {"missing", "waiting"}:
        return SIGNS["missing" if states == {"missing"} else "waiting"]
    return f"{sum(mark.mark for mark in marks)}/{len(marks)}"


def rows(marks: list[Mark]) -> list[dict[str, Any]]:
    """Return the marks for machines: one dictionary an exercise."""
    return [
        {**{k: v for k, v in asdict(mark).items() if k != "text"}, "mark": mark.mark,
         "text": mark.text}
        for mark in marks
    ]  # fmt: skip


def _no_formula(value: Any) -> Any:
    """Keep a spreadsheet from computing what a student's name or code begins with."""
    return f"'{value}" if str(value).startswith(("=", "+", "-", "@")) else value


def main(
    folder: Path,
    lessons: Iterable[int] = (),
    limits: Limits = Limits(),
    jobs: int = 1,
    csv_file: Path | None = None,
    json_file: Path | None = None,
) -> int:
    """Grade, print the table, write the files; return the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console that has no ✓
    try:
        for path in filter(None, (csv_file, json_file)):
            path.open("a").close()  # not only after an hour's work
        if folder.is_dir() and (doubt := one_or_many(folder)):
            print(f"rope-teach grade: {_plain(doubt)}", file=sys.stderr)
        marks = grade(folder, lessons, limits, jobs)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"rope-teach grade: {error}", file=sys.stderr)
        return 2
    print(report(marks))
    print(guard.held())
    table = rows(marks)
    if csv_file:
        with csv_file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(table[0]))
            writer.writeheader()
            writer.writerows(
                {k: _no_formula(v) for k, v in row.items()} for row in table
            )
    if json_file:
        text = json.dumps(table, indent=1, ensure_ascii=False)
        json_file.write_text(f"{text}\n", encoding="utf-8")
    return 0
