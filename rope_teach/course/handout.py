"""The student edition: ``rope-teach lessons FOLDER`` hands the lessons out.

A lesson carries the fingerprint of the cells that it was handed out with. So handing
out again can tell a lesson that nobody edited, which is replaced by its new edition,
from one that holds a student's work, which is never touched: the new edition is
written beside it. Lessons are found in the wheel, or in the repository.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rope_teach

__all__ = ["LESSONS", "fingerprint", "hand_out", "main", "read_notebook"]

PACKAGE = Path(rope_teach.__file__).resolve().parent
PLACES = (PACKAGE / "course" / "lessons", PACKAGE.parent / "lessons")
LESSONS = next((place for place in PLACES if place.is_dir()), PLACES[0])
PATTERNS = ("[0-9][0-9]_*.ipynb", "lecture.ipynb", "rise.css")
Notebook = dict[str, Any]

IF_IT_FAILS = """

<details><summary>It says <i>No module named</i> or <i>cannot import</i>?</summary>

This notebook runs in a Python that does not have the course, or has an old one. In the
terminal where `rope-teach` works, run

    python -m ipykernel install --user --name rope-teach

(After `make course`, write `.venv/bin/python`.) Then choose *Kernel*, *Change
Kernel…*, *rope-teach*. In a hosted notebook, run the `%pip install` line that your
teacher gave you, then restart the kernel.
</details>"""

IF_A_NAME_IS_MISSING = """

<details><summary>It says <i>NameError: name … is not defined</i>?</summary>

A cell above yours has not run since the kernel started. Choose *Run*, *Run All Above
Selected Cell*, then run yours again.
</details>"""


def fingerprint(notebook: Notebook) -> str:
    """Return a digest of a notebook's cells, without their outputs."""
    sources = ("".join(cell["source"]) for cell in notebook["cells"])
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def hand_out(folder: Path, lessons: Path = LESSONS) -> Iterator[tuple[str, str]]:
    """Write the student edition into ``folder``; yield each file and its fate.

    A file that a student may have changed is never written over. Raises
    ``FileNotFoundError`` if this installation has no lessons, ``FileExistsError`` if
    ``folder`` is a file, and ``ValueError`` if it is the folder of the lessons.

    Parameters
    ----------
    folder
        Where the student works; made if it is not there.
    lessons
        Where the lessons come from.
    """
    sources = sorted(path for pattern in PATTERNS for path in lessons.glob(pattern))
    if not any(path.suffix == ".ipynb" for path in sources):
        raise FileNotFoundError(f"there are no lessons in {lessons}; install again")
    if folder.resolve() == lessons.resolve():
        raise ValueError(f"{folder} is where the lessons come from; name another one")
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        text = source.read_text(encoding="utf-8")
        if source.suffix == ".ipynb":
            text = student_edition(text)
        yield source.name, _place(text, folder / source.name)


def student_edition(text: str) -> str:
    """Return a lesson as students get it: with help if a cell fails, and signed."""
    notebook = json.loads(text)
    cells = notebook["cells"]
    runs = [i for i, cell in enumerate(cells) if cell["cell_type"] == "code"]
    checks = [i for i in runs if "\ncheck(" in "".join(cells[i]["source"])]
    for first, text in (
        (runs, IF_IT_FAILS + IF_A_NAME_IS_MISSING),
        (checks, IF_A_NAME_IS_MISSING),  # the day after, many begin here
    ):
        if first and first[0]:  # help stands above the cell that may fail
            above = cells[first[0] - 1]
            above["source"] = "".join(above["source"]) + text
    ours = notebook["metadata"].setdefault("rope_teach", {})
    ours["fingerprint"] = fingerprint(notebook)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _place(text: str, target: Path) -> str:
    """Write ``text`` to ``target``, or beside it; return what happened."""
    if not _exists(target):
        _write(target, text)
        return "new"
    if _same_edition(target, text):
        return "kept: it is this edition already"
    if _untouched(target):
        _write(target, text)
        return "replaced by the new edition: you had not changed it"
    number = 1
    while True:
        name = f"{target.stem}.new{number if number > 1 else ''}{target.suffix}"
        beside = target.with_name(name)
        if not _exists(beside):
            _write(beside, text)
            return f"kept, because you changed it; the new edition is {name}"
        if _same_edition(beside, text):
            return f"kept, because you changed it; the new edition is still {name}"
        if _untouched(beside):
            _write(beside, text)
            return f"kept, because you changed it; the new edition replaced {name}"
        number += 1


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()  # a broken link is somebody's, too


def _write(path: Path, text: str) -> None:
    """Write all or nothing: a full disk must not leave half a notebook."""
    half = path.with_name(f".{path.name}.part")
    half.write_bytes(text.encode())  # the same bytes on every system
    half.replace(path)


def _same_edition(path: Path, text: str) -> bool:
    """Whether a file began as ``text``, whatever was written into it since."""
    if path.suffix != ".ipynb":
        return path.is_file() and path.read_bytes() == text.encode()
    handed = _handed_out(read_notebook(path))
    return handed is not None and handed == _handed_out(json.loads(text))


def _untouched(path: Path) -> bool:
    """Whether a notebook still has the cells that it was handed out with."""
    notebook = None if path.is_symlink() else read_notebook(path)
    return notebook is not None and _handed_out(notebook) == fingerprint(notebook)


def _handed_out(notebook: Notebook | None) -> str | None:
    kept = notebook["metadata"].get("rope_teach", {}) if notebook else {}
    return kept.get("fingerprint")


def read_notebook(path: Path) -> Notebook | None:
    """Return what is in a notebook's file, or None if it is not a notebook."""
    try:
        notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
        fingerprint(notebook), notebook["metadata"].get("rope_teach", {}).get("")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return notebook


def trust(paths: list[Path]) -> str:
    """Sign notebooks as this user's own, so that JupyterLab runs what they show.

    JupyterLab takes the scripts out of a notebook that is not signed: the interactive
    figures would be still. Returns one sentence that says how it went.
    """
    try:
        import nbformat
        from nbformat.sign import NotebookNotary

        notebooks = [nbformat.read(path, as_version=4) for path in paths]
        notary = NotebookNotary()
        for notebook in notebooks:
            notary.sign(notebook)
        if not all(map(NotebookNotary().check_signature, notebooks)):
            raise OSError("Jupyter cannot store signatures here")
    except Exception as error:  # no Jupyter, or nowhere to keep a signature
        return (
            f"The lessons are not marked as trusted ({error}). If an interactive "
            "figure stays still, open the command palette and choose Trust Notebook."
        )
    return (
        f"Marked as trusted for you on this machine: {len(paths)} notebooks, so their "
        "interactive figures move at once."
    )


def main(folder: Path) -> int:
    """Hand out, and print what happened to each file; return the exit status."""
    try:
        fates = list(hand_out(folder))
    except (OSError, ValueError) as error:
        print(f"rope-teach lessons: {error}")
        return 2
    width = max(len(name) for name, _ in fates)
    for name, fate in fates:
        print(f"{name:{width}}  {fate}")
    fresh = [name for name, fate in fates if fate.startswith(("new", "replaced"))]
    beside = [fate.split()[-1] for _, fate in fates if fate.endswith(".ipynb")]
    notebooks = [folder / name for name in fresh + beside if name.endswith(".ipynb")]
    if notebooks:
        print(f"\n{trust(notebooks)}")
    print(f"\nStart with: jupyter lab {folder / '00_start_here.ipynb'}")
    return 0
