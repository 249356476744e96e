"""Every lesson keeps the contract of CONTRIBUTING.md, and the linter can tell."""

import copy
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_output

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import lesson as tool

LESSONS = tool.lesson_paths()
(LECTURE,) = tool.lesson_paths("lecture")
ALL = [*LESSONS, LECTURE]


def test_the_first_nine_lessons_are_there_once():
    numbers = [int(path.name[:2]) for path in LESSONS]
    assert numbers[:9] == list(range(9))
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_contract(path):
    assert tool.lint(path) == []


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_conforms(path):
    for place in (path, tool.solved_path(path))[: 1 if path == LECTURE else 2]:
        notebook = nbformat.read(place, as_version=4)
        tool.conform(notebook)
        same = nbformat.read(place, as_version=4) == notebook
        assert same, "run python tools/lesson.py conform"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "markdown":
            continue
        for target in tool.re.findall(r"\]\(([^)#]+)", cell.source):
            if not target.startswith("https://"):
                assert (path.parent / target).exists(), target


def test_every_solved_notebook_has_its_lesson():
    solved = {path.name for path in (tool.LESSONS / "solutions").glob("*.ipynb")}
    assert solved == {path.name for path in LESSONS}


# ---------------------------------------------------- the linter sees planted faults


def code_cell(notebook):
    return next(c for c in notebook.cells if c.cell_type == "code")


def figure_cell(notebook):
    return next(c for c in notebook.cells if "<img" in str(c.get("outputs", "")))


def long_cell(notebook):
    code_cell(notebook).source += "\nx = 1" * 20


def wide_line(notebook):
    code_cell(notebook).source += "\n# " + "x" * 80


def second_h1(notebook):
    notebook.cells.append(new_markdown_cell("# Again"))


def skipped_level(notebook):
    notebook.cells.append(new_markdown_cell("#### Deep"))


def no_slide_type(notebook):
    code_cell(notebook).metadata.slideshow.slide_type = "slid"


def unknown_tag(notebook):
    code_cell(notebook).metadata.tags = ["nbval-skip"]


def out_of_order(notebook):
    code_cell(notebook).execution_count = 9


def error_output(notebook):
    error = new_output("error", ename="ValueError", evalue="", traceback=[])
    code_cell(notebook).outputs = [error]


def stderr_output(notebook):
    code_cell(notebook).outputs = [new_output("stream", name="stderr", text="careful")]


def bare_picture(notebook):
    code_cell(notebook).outputs = [new_output("display_data", {"image/png": "AAAA"})]


def mute_picture(notebook):
    html = figure_cell(notebook).outputs[-1].data["text/html"]
    figure_cell(notebook).outputs[-1].data["text/html"] = tool.re.sub(
        'alt="[^"]*"', 'alt="figure"', html
    )


def unasserted_figure(notebook):
    cell = figure_cell(notebook)
    cell.source = cell.source.replace("assert", "print")


def no_summary(notebook):
    for cell in notebook.cells:
        cell.source = cell.source.replace("## Summary", "## End")


def three_answers(notebook):
    cell = next(c for c in notebook.cells if "## Predict" in c.source)
    cell.source = cell.source.replace("<details>", "<p>", 1)


def no_notes(notebook):
    notebook.cells = [c for c in notebook.cells if tool.slide_type(c) != "notes"]


def no_exercises(notebook):
    notebook.cells = [c for c in notebook.cells if not tool.exercise_key(c)]


def wordy(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source += " word" * 80


def slow(notebook):
    notebook.metadata.rope_teach.seconds = 61


def stored_widget(notebook):
    notebook.metadata.widgets = {}


def remote_picture(notebook):
    notebook.cells.append(new_markdown_cell("![a picture](https://example.org/a.png)"))


FAULTS = {
    long_cell: "at most 20",
    wide_line: "over 79 columns",
    second_h1: "one H1",
    skipped_level: "skips a level",
    no_slide_type: "slide type 'slid'",
    unknown_tag: "unknown tag",
    out_of_order: "not executed",
    error_output: "stopped with ValueError",
    stderr_output: "writes to stderr",
    bare_picture: "without alt text",
    mute_picture: "says nothing",
    unasserted_figure: "asserts nothing",
    no_summary: "needs the sections",
    three_answers: "four answers",
    no_notes: "speaker notes",
    no_exercises: "wants 3 to 5",
    wordy: "at most 75 words",
    slow: "took 61 s",
    stored_widget: "state of a widget",
    remote_picture: "from the network",
}


@pytest.fixture(scope="module")
def model():
    (path,) = tool.lesson_paths("04")
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_linter_sees(fault, model):
    notebook = copy.deepcopy(model)
    assert list(tool.problems(notebook)) == []
    fault(notebook)
    assert any(FAULTS[fault] in problem for problem in tool.problems(notebook))


def full_cell(notebook):
    code_cell(notebook).source = "x = 1\n" * 13


def second_cell(notebook):
    place = notebook.cells.index(code_cell(notebook))
    notebook.cells.insert(place, copy.deepcopy(notebook.cells[place]))


def no_cell(notebook):
    notebook.cells.remove(code_cell(notebook))


def last_note(notebook):
    return [c for c in notebook.cells if tool.slide_type(c) == "notes"][-1]


def silent_slide(notebook):
    notebook.cells.remove(last_note(notebook))


def clock_goes_back(notebook):
    last_note(notebook).source = "Minute 1. To sum up."


def overtime(notebook):
    last_note(notebook).source = "Minute 61. To sum up."


LECTURE_FAULTS = {
    full_cell: "13 lines, at most 12",
    second_cell: "2 code cells, wants one",
    no_cell: "0 code cells, wants one",
    silent_slide: "each slide needs a note",
    clock_goes_back: "each slide needs a note",
    overtime: "starts in minute 61 of 60",
    skipped_level: "skips a level",
    error_output: "stopped with ValueError",
    mute_picture: "says nothing",
    unasserted_figure: "asserts nothing",
    wordy: "at most 75 words",
    slow: "took 61 s",
}


@pytest.mark.parametrize("fault", LECTURE_FAULTS, ids=lambda fault: fault.__name__)
def test_linter_sees_in_the_lecture(fault):
    notebook = nbformat.read(LECTURE, as_version=4)
    assert list(tool.lecture_problems(notebook)) == []
    fault(notebook)
    found = list(tool.lecture_problems(notebook))
    assert any(LECTURE_FAULTS[fault] in problem for problem in found), found


@pytest.fixture
def course(tmp_path, model, monkeypatch):
    """A course of one lesson that runs in no time."""
    path = tmp_path / "lessons" / "04_x.ipynb"
    path.parent.mkdir()
    nbformat.write(model, path)
    monkeypatch.setattr(tool, "LESSONS", path.parent)
    monkeypatch.setattr(tool.NotebookClient, "execute", lambda *_, **__: None)
    tool.run(path)
    return path


def test_conforming_changes_what_follows_from_tags_and_no_more(model):
    notebook = copy.deepcopy(model)
    helper = code_cell(notebook)
    helper.metadata.tags = ["hide-cell"]
    notebook.cells.append(
        new_markdown_cell(
            "Minute 9. Ask.", metadata={"slideshow": {"slide_type": "notes"}}
        )
    )
    before = copy.deepcopy(notebook)
    tool.conform(notebook)
    for old, new in zip(before.cells, notebook.cells, strict=True):
        if tool.slide_type(old) == "notes":
            assert new.source.startswith(tool.FOLD)
            assert new.source.count("<details>") == 1
        else:
            assert new.source == old.source
        hidden = "hide-input" in new.metadata.get("tags", [])
        assert new.metadata.get("jupyter", {}).get("source_hidden", False) == hidden
    assert notebook.cells[-1].source == f"{tool.FOLD}\n\nMinute 9. Ask.\n\n</details>"
    assert tool.slide_type(helper) == "skip"
    assert notebook.metadata.rise == tool.RISE
    twice = copy.deepcopy(notebook)
    tool.conform(twice)
    assert twice == notebook


def test_conforming_keeps_the_outputs_and_the_solved_notebook(course):
    notebook = nbformat.read(course, as_version=4)
    notes = next(c for c in notebook.cells if tool.slide_type(c) == "notes")
    notes.source = "Minute 1. Ask."
    nbformat.write(notebook, course)
    assert tool.conform_files(course) == []
    conformed = nbformat.read(course, as_version=4)
    assert tool.FOLD in str(tool.sources(conformed))
    assert [c.get("outputs") for c in conformed.cells] == [
        c.get("outputs") for c in notebook.cells
    ]
    assert not tool.edited_by_hand(tool.solved_path(course))
    before = course.read_bytes()
    assert tool.conform_files(course) == []
    assert course.read_bytes() == before


def test_a_solved_notebook_follows_its_lesson(course):
    notebook = nbformat.read(course, as_version=4)
    notebook.cells[0].source += " More."
    nbformat.write(notebook, course)
    assert any("not this lesson solved" in problem for problem in tool.lint(course))
    tool.run(course)
    assert "More." in tool.solved_path(course).read_text()


def test_an_edited_solved_notebook_is_not_overwritten(course):
    solved = tool.solved_path(course)
    notebook = nbformat.read(solved, as_version=4)
    notebook.cells[0].source += " My own notes."
    nbformat.write(notebook, solved)
    before = solved.read_text()
    assert "edits of its own" in tool.run(course)[0]
    assert solved.read_text() == before


def test_a_wrong_solution_is_seen(course):
    solved = tool.solved_path(course)
    solved.write_text(solved.read_text().replace("✓", "✗"))
    assert any("solution of 4.1 is not right" in p for p in tool.lint(course))
