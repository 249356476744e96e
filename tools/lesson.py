"""The author's loop for one lesson: run it, solve it, lint it.

    python tools/lesson.py 04          execute lesson 04 in place and write its outputs,
                                       derive and execute its solved notebook, lint both
    python tools/lesson.py lecture     the same for the lecture, which has no exercises
    python tools/lesson.py conform     only write what follows from tags and slide types
    python tools/lesson.py lint        hold every lesson against the contract

The notebook is the source. Executing it never changes a line of code or prose; it
folds the teacher's notes and writes the metadata that a live deck reads (``conform``).
The solved notebook is the lesson with each exercise's stub replaced by its solution.
The lecture keeps the lessons' contract where it fits, and one of its own: one short
cell to a slide, and notes that a substitute can speak from, minute by minute.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from rope_teach.course.exercises import find
from rope_teach.course.handout import fingerprint

LESSONS = Path(__file__).resolve().parent.parent / "lessons"
SECTIONS = ("Predict", "The rule", "Caveats", "Summary", "What breaks next")
SLIDES = {"slide", "subslide", "fragment", "skip", "notes", "-"}
TAGS = {"hide-input", "hide-cell", "side-by-side", "raises-exception"}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
FOLD = "<details><summary>For the teacher</summary>"
# The live deck's stage and look; lessons/rise.css does the rest.
RISE = {
    "width": 1280,
    "height": 720,
    "margin": 0,
    "minScale": 0.2,  # in a pane beside the notebook too
    "center": False,
    "transition": "none",
    "slideNumber": "c/t",
    "theme": "white",  # which asks the internet for no font
}
MINUTE = re.compile(r"\bminutes? \d+", re.IGNORECASE)
LECTURE = "lecture"


def lesson_paths(number: str = "*") -> list[Path]:
    """Return the lessons whose two-digit number is ``number``, or the lecture."""
    name = LECTURE if number == LECTURE else f"{number}_*"
    return sorted(LESSONS.glob(f"{name}.ipynb"))


def solved_path(path: Path) -> Path:
    """Return where the solved notebook of a lesson lies."""
    return path.parent / "solutions" / path.name


# ------------------------------------------------------------------ run and solve


def execute(notebook: NotebookNode, folder: Path) -> float:
    """Run every cell in a fresh kernel, keep the outputs, return the seconds."""
    started = time.perf_counter()
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", coalesce_streams=True
    )
    client.execute(cwd=str(folder))
    seconds = time.perf_counter() - started
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the clock times of this one run
    language = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    notebook.metadata = NotebookNode(
        kernelspec=KERNEL,
        language_info=language,
        rise=RISE,
        rope_teach={"seconds": round(seconds), "fingerprint": fingerprint(notebook)},
    )
    return seconds


def conform(notebook: NotebookNode) -> None:
    """Write what follows from tags and slide types, for every way to show a lesson.

    A figure's code is hidden until a reader asks, in JupyterLab and in the live deck,
    and a hidden cell is on no slide. A teacher's notes are folded.
    """
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "hide-input" in tags:
            cell.metadata.setdefault("jupyter", NotebookNode()).source_hidden = True
        if "hide-cell" in tags:
            cell.metadata.slideshow = NotebookNode(slide_type="skip")
        if slide_type(cell) == "notes" and not cell.source.startswith(FOLD):
            cell.source = f"{FOLD}\n\n{cell.source.strip()}\n\n</details>"
    notebook.metadata.rise = NotebookNode(RISE)


def conform_files(path: Path) -> list[str]:
    """Conform a lesson and its solved notebook where they lie, without running them."""
    for place in (path, solved_path(path)):
        if not place.exists():
            continue
        if place != path and edited_by_hand(place):
            return [f"{place.name}: solved notebook has edits of its own; move it away"]
        before = place.read_text(encoding="utf-8")
        notebook = nbformat.reads(before, as_version=4)
        conform(notebook)
        if "rope_teach" in notebook.metadata:
            notebook.metadata.rope_teach.fingerprint = fingerprint(notebook)
        if nbformat.writes(notebook) + "\n" != before:
            nbformat.write(notebook, place)
            print(f"{place.relative_to(LESSONS.parent)}: conformed")
    return []


def solve(notebook: NotebookNode) -> NotebookNode:
    """Return a copy of a lesson whose stubs hold the solutions, without outputs."""
    solved = copy.deepcopy(notebook)
    for cell in solved.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            key = exercise_key(cell)
            if key:
                call = cell.source.splitlines()[-1]
                cell.source = f"{find(key).solution}\n\n\n{call}"
    return solved


def exercise_key(cell: NotebookNode) -> str | None:
    """Return the exercise whose stub this cell is, or None."""
    for tag in cell.metadata.get("tags", []):
        if tag.startswith("exercise-"):
            return str(tag.removeprefix("exercise-"))
    return None


def sources(notebook: NotebookNode) -> list[str]:
    """Return the cells' sources, by which two notebooks are compared."""
    return [cell.source for cell in notebook.cells]


def run(path: Path) -> list[str]:
    """Execute a lesson and its solved notebook, write both, return what is wrong."""
    lesson = nbformat.read(path, as_version=4)
    conform(lesson)
    written = [(lesson, path)]
    if path.stem != LECTURE:
        written.append((solve(lesson), solved_path(path)))
    for notebook, place in written:
        if place != path and edited_by_hand(place):
            return [f"{place.name}: solved notebook has edits of its own; move it away"]
        seconds = execute(notebook, place.parent)
        place.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, place)
        print(f"{place.relative_to(LESSONS.parent)}: {seconds:.0f} s")
    return lint(path)


def edited_by_hand(path: Path) -> bool:
    """Whether a solved notebook holds other cells than this tool wrote into it."""
    if not path.exists():
        return False
    notebook = nbformat.read(path, as_version=4)
    kept = notebook.metadata.get("rope_teach", {}).get("fingerprint")
    return bool(kept != fingerprint(notebook))


# --------------------------------------------------------------------------- lint


def lint(path: Path) -> list[str]:
    """Return where a lesson or its solved notebook breaks the contract."""
    notebook = nbformat.read(path, as_version=4)
    contract = lecture_problems if path.stem == LECTURE else problems
    found = [f"{path.stem}: {problem}" for problem in contract(notebook)]
    if path.stat().st_size > 300_000:
        found.append(f"{path.stem}: {path.stat().st_size:,} bytes, at most 300,000")
    if path.stem == LECTURE:
        return found
    if not solved_path(path).exists():
        return [*found, f"{path.stem}: no solved notebook"]
    solved = nbformat.read(solved_path(path), as_version=4)
    if sources(solved) != sources(solve(notebook)):
        found.append(f"{path.stem}: the solved notebook is not this lesson solved")
    found += [f"solutions/{path.stem}: {p}" for p in run_problems(solved)]
    for cell in solved.cells:
        if (key := exercise_key(cell)) and "✓" not in str(cell.outputs):
            found.append(f"solutions/{path.stem}: the solution of {key} is not right")
    return found


def problems(notebook: NotebookNode) -> Iterator[str]:
    """Yield every way in which a lesson breaks the contract."""
    yield from common_problems(notebook)
    yield from shape_problems(notebook)
    yield from exercise_problems(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    lengths = [lines_of_code(cell.source) for cell in code]
    if median(lengths) > 6:
        yield f"code cells have a median of {median(lengths)} lines, at most 6"
    if sum(length <= 15 for length in lengths) < 0.9 * len(lengths):
        yield "less than 90 % of the code cells have at most 15 lines"


def lecture_problems(notebook: NotebookNode) -> Iterator[str]:
    """Yield every way in which the lecture breaks its contract."""
    yield from common_problems(notebook)
    decks = list(slides_of(notebook))
    for number, slide in enumerate(decks, 1):
        code = [cell for cell in slide if cell.cell_type == "code"]
        if len(code) != (number not in (1, len(decks))):  # the title and the map
            yield f"slide {number}: {len(code)} code cells, wants one"
        for cell in code:
            if lines_of_code(cell.source) > 12:
                yield f"slide {number}: {lines_of_code(cell.source)} lines, at most 12"
    total = re.search(r"\b(\d+) minutes", notebook.cells[0].source)
    starts = [started(slide) for slide in decks]
    if starts != sorted(set(starts)) or starts[:1] != [0]:
        yield f"each slide needs a note 'Minute N.', later than the last: {starts}"
    elif total and starts[-1] >= int(total[1]):
        yield f"the last slide starts in minute {starts[-1]} of {total[1]}"


def slides_of(notebook: NotebookNode) -> Iterator[list[NotebookNode]]:
    """Yield the cells of each slide, with its notes."""
    starts = [n for n, cell in enumerate(notebook.cells) if slide_type(cell) == "slide"]
    for first, last in itertools.pairwise([*starts, len(notebook.cells)]):
        yield notebook.cells[first:last]


def started(slide: list[NotebookNode]) -> int:
    """Return the minute at which the one note of a slide begins, or -1."""
    notes = [cell.source for cell in slide if slide_type(cell) == "notes"]
    found = [re.match(rf"(?:{FOLD}\s+)?Minute (\d+)\. ", note) for note in notes]
    return int(found[0][1]) if len(found) == 1 and found[0] else -1


def common_problems(notebook: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with a notebook, be it a lesson or the lecture."""
    yield from run_problems(notebook)
    yield from heading_problems(notebook)
    for number, cell in enumerate(notebook.cells):
        for problem in cell_problems(cell):
            yield f"cell {number}: {problem}"
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    if sum(words(cell.source) <= 75 for cell in prose) < 0.9 * len(prose):
        long = [c.source.splitlines()[0] for c in prose if words(c.source) > 75]
        yield f"less than 90 % of the prose cells have at most 75 words: {long}"


def run_problems(notebook: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with how a notebook was run and saved."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "not executed from top to bottom; run tools/lesson.py"
    if "widgets" in notebook.metadata:
        yield "stores the state of a widget"
    seconds = notebook.metadata.get("rope_teach", {}).get("seconds")
    if seconds is None or seconds > 60:
        yield f"took {seconds} s, at most 60"
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield f"cell {number}: stopped with {output.ename}"
            if output.get("name") == "stderr":
                yield f"cell {number}: writes to stderr"
            yield from figure_problems(number, output)


def figure_problems(number: int, output: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with the pictures in one output."""
    data = output.get("data", {})
    if "image/png" in data or "image/svg+xml" in data:
        yield f"cell {number}: a figure without alt text; return it from plots.py"
    for image in re.findall(r"<img\b[^>]*>", data.get("text/html", "")):
        alt = re.search(r'alt="([^"]*)"', image)
        if not alt or len(alt[1].split()) < 5:
            yield f"cell {number}: a picture whose alt text says nothing"


def heading_problems(notebook: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with the title slide and the headings."""
    heads = all_headings(notebook)
    if [h for h in heads if h.startswith("# ")] != heads[:1]:
        yield "needs one H1, at its top"
    for before, after in itertools.pairwise(heads):
        if level(after) > level(before) + 1:
            yield f"heading {after!r} skips a level"
    for word in ("minutes", "Builds on"):
        if word not in notebook.cells[0].source:
            yield f"the title slide does not say {word!r}"


def shape_problems(notebook: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with a lesson's sections, predictions and notes."""
    titles = [h.lstrip("# ") for h in all_headings(notebook)]
    places = [next((i for i, t in enumerate(titles) if t.startswith(s)), -1)
              for s in SECTIONS]  # fmt: skip
    if -1 in places or places != sorted(places):
        yield f"needs the sections {', '.join(SECTIONS)}, in this order"
    prose = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    predictions = [text for text in prose if "## Predict" in text]
    for text in predictions:
        if text.count("<details>") != 4:
            yield f"a prediction needs four answers in <details>: {text[:40]!r}"
    notes = [c.source for c in notebook.cells if slide_type(c) == "notes"]
    if len([note for note in notes if MINUTE.search(note)]) < 3:
        yield "needs at least three speaker notes with their minute ('minute 4')"


def exercise_problems(notebook: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with the exercises of a lesson."""
    stubs = [cell for cell in notebook.cells if exercise_key(cell)]
    if not 3 <= len(stubs) <= 5:
        yield f"has {len(stubs)} exercises, wants 3 to 5"
    for cell in stubs:
        key = exercise_key(cell) or ""
        task = find(key)
        if f'check("{key}", ' not in cell.source.splitlines()[-1]:
            yield f"exercise {key}: the check's call must be the stub's last line"
        card = f"difficulty {task.difficulty} of 5 · {task.minutes} minutes"
        heading = f"## Exercise {key} · {task.title}"
        if not any(heading in c.source and card in c.source for c in notebook.cells):
            yield f"exercise {key}: no slide with {heading!r} and {card!r}"


def cell_problems(cell: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with one cell by itself."""
    if slide_type(cell) not in SLIDES:
        yield f"slide type {slide_type(cell)!r}"
    for tag in cell.metadata.get("tags", []):
        if tag not in TAGS and not tag.startswith("exercise-"):
            yield f"unknown tag {tag!r}"
    lines = cell.source.splitlines()
    if cell.cell_type == "code":
        if lines_of_code(cell.source) > 20:
            yield f"{lines_of_code(cell.source)} lines of code, at most 20"
        if any(len(line) > 79 for line in lines):
            yield "a line of code over 79 columns"
        shown = [str(o.get("data", {}).get("text/html", "")) for o in cell.outputs]
        drawn = any("<img" in t and "rope-interactive" not in t for t in shown)
        if drawn and "assert" not in cell.source:  # a browser tests what moves
            yield "shows a figure and asserts nothing on it"
    elif "![" in cell.source and re.search(r"!\[\s*\]", cell.source):
        yield "a picture without alt text"
    elif "http" in cell.source and re.search(r"<img|!\[[^]]*\]\(http", cell.source):
        yield "a picture from the network"


def slide_type(cell: NotebookNode) -> str:
    """Return the cell's place in the deck, or '' if it has none."""
    return str(cell.metadata.get("slideshow", {}).get("slide_type", ""))


def all_headings(notebook: NotebookNode) -> list[str]:
    """Return every heading of a notebook's prose, in order."""
    prose = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    return [line for text in prose for line in headings(text)]


def headings(text: str) -> list[str]:
    """Return the headings of a prose cell, outside code."""
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [line for line in plain.splitlines() if re.match(r"#{1,6} ", line)]


def level(heading: str) -> int:
    """Return 1 for H1, 2 for H2, ..."""
    return len(heading) - len(heading.lstrip("#"))


def lines_of_code(source: str) -> int:
    """Count the lines that are not blank."""
    return sum(bool(line.strip()) for line in source.splitlines())


def words(text: str) -> int:
    """Count the words that a slide shows; what a click unfolds does not count."""
    text = re.sub(r"</summary>.*?</details>", "", text, flags=re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$|```.*?```|<[^>]+>", " ", text, flags=re.DOTALL)
    return len(re.findall(r"\w[\w'’-]*", text))


# ------------------------------------------------------------------------ command


def main() -> int:
    """Run the command line; return 1 if a contract is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "lesson", help="two digits, for example 04; or lecture, conform, or lint"
    )
    choice = parser.parse_args().lesson
    act = {"lint": lint, "conform": conform_files}.get(choice, run)
    paths = lesson_paths(choice if act is run else "*")
    if act is not run:
        paths += lesson_paths(LECTURE)
    if not paths:
        parser.error(f"no lesson {choice!r} in {LESSONS}")
    found = [problem for path in paths for problem in act(path)]
    print("\n".join(found) or "The contract is kept.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
