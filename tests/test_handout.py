"""The student edition: complete, trusted, and never over what a student wrote."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.sign import NotebookNotary

from rope_teach import __main__
from rope_teach.course import handout

ROOT = Path(__file__).resolve().parents[1]
NAMES = {path.name for path in handout.LESSONS.glob("[0-9][0-9]_*.ipynb")}
FIRST = "00_start_here.ipynb"


def edit(path, words, cell=-1):
    """Change a notebook as a student does, and save it."""
    notebook = json.loads(path.read_text("utf-8"))
    notebook["cells"][cell]["source"] = words
    path.write_text(json.dumps(notebook), "utf-8")
    return path.read_text("utf-8")


def sources(path):
    return ["".join(c["source"]) for c in json.loads(path.read_text("utf-8"))["cells"]]


@pytest.fixture
def shelf(tmp_path):
    """Three lessons to hand out, that a new edition may change."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in sorted(NAMES)[:3]:
        (folder / name).write_bytes((handout.LESSONS / name).read_bytes())
    (folder / "solutions").mkdir()
    return folder


@pytest.fixture
def jupyter(tmp_path, monkeypatch):
    """Signatures are kept in this folder, not in the tester's own."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))


def test_the_student_edition_is_complete_and_without_solutions(
    tmp_path, capsys, jupyter
):
    mine = tmp_path / "my course"
    assert __main__.main(["lessons", str(mine)]) == 0
    there = {path.name for path in mine.iterdir()}
    beside = {"lecture.ipynb", "rise.css"}
    assert there == NAMES | {n for n in beside if (handout.LESSONS / n).exists()}
    for name in NAMES:
        ours, theirs = sources(handout.LESSONS / name), sources(mine / name)
        changed = [i for i, pair in enumerate(zip(ours, theirs, strict=True))
                   if len(set(pair)) > 1]  # fmt: skip
        set_up, exercise = (theirs[i] for i in changed)  # help, where it fails
        assert "cannot import" in set_up and "NameError" in set_up
        assert exercise.startswith("## Exercise") and "Run All Above" in exercise
        nbformat.validate(nbformat.read(mine / name, as_version=4))
    printed = capsys.readouterr().out
    assert sum(line.endswith("  new") for line in printed.splitlines()) == len(there)


def test_jupyter_trusts_what_was_handed_out_and_nothing_else(shelf, tmp_path, jupyter):
    fates = list(handout.hand_out(tmp_path / "mine", shelf))
    paths = [tmp_path / "mine" / name for name, _ in fates]
    assert "Marked as trusted" in handout.trust(paths)
    trusted = NotebookNotary().check_signature
    assert all(trusted(nbformat.read(path, as_version=4)) for path in paths)
    edit(paths[0], "<script>changed by a stranger</script>")
    assert not trusted(nbformat.read(paths[0], as_version=4))


def test_without_a_place_for_signatures_it_says_what_to_do(
    shelf, monkeypatch, tmp_path
):
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "no folder"))
    said = handout.trust([shelf / FIRST])
    assert "not marked as trusted" in said and "Trust Notebook" in said


def test_handing_out_again_keeps_what_a_student_wrote(shelf, tmp_path):
    mine = tmp_path / "mine"
    names = [name for name, _ in handout.hand_out(mine, shelf)]
    worked_in, untouched, same = (mine / name for name in names)
    words = edit(worked_in, "my answer")
    own = edit(same, "my answer, and no new edition")
    for name in names[:2]:
        edit(shelf / name, "a second edition", cell=0)
    (shelf / "rise.css").write_text("body {}")

    fates = dict(handout.hand_out(mine, shelf))
    beside = worked_in.with_name(f"{worked_in.stem}.new.ipynb")
    assert worked_in.read_text("utf-8") == words
    assert sources(beside)[0] == "a second edition"
    assert sources(untouched)[0] == "a second edition"
    assert same.read_text("utf-8") == own
    assert fates == {
        names[0]: f"kept, because you changed it; the new edition is {beside.name}",
        names[1]: "replaced by the new edition: you had not changed it",
        names[2]: "kept: it is this edition already",
        "rise.css": "new",
    }

    again = dict(handout.hand_out(mine, shelf))
    assert "is still" in again.pop(names[0])
    assert set(again.values()) == {"kept: it is this edition already"}
    assert {p.name for p in mine.iterdir()} == {*names, beside.name, "rise.css"}


def test_a_new_edition_that_a_student_has_worked_in_is_kept_too(shelf, tmp_path):
    mine = tmp_path / "mine"
    name, *_ = [name for name, _ in handout.hand_out(mine, shelf)]
    beside = mine / f"{Path(name).stem}.new.ipynb"
    edit(mine / name, "my answer")
    for edition in ("second", "third", "fourth"):
        edit(shelf / name, edition, cell=0)
        fate = dict(handout.hand_out(mine, shelf))[name]
        if edition == "second":
            mine_too = edit(beside, "more of my answers")
    assert beside.read_text("utf-8") == mine_too
    third = mine / f"{Path(name).stem}.new2.ipynb"
    assert sources(third)[0] == "fourth" and fate.endswith(f"replaced {third.name}")


def test_run_but_not_edited_is_untouched(shelf, tmp_path):
    mine = tmp_path / "mine"
    list(handout.hand_out(mine, shelf))
    path = mine / FIRST
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], 99
    nbformat.write(notebook, path)  # as JupyterLab saves it: other indents, too
    edit(shelf / FIRST, "a second edition", cell=0)
    assert dict(handout.hand_out(mine, shelf))[FIRST].startswith("replaced")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 3}', '{"metadata": {}}'])
def test_a_file_that_is_no_notebook_is_the_student_s_own(content, shelf, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / FIRST).write_text(content)
    fate = dict(handout.hand_out(mine, shelf))[FIRST]
    assert fate.startswith("kept") and (mine / FIRST).read_text() == content


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_nothing_is_written_through_a_link(shelf, tmp_path):
    mine = tmp_path / "mine"
    list(handout.hand_out(mine, shelf))
    elsewhere = (mine / FIRST).rename(tmp_path / "elsewhere.ipynb")
    (mine / FIRST).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    edit(shelf / FIRST, "a second edition", cell=0)
    assert dict(handout.hand_out(mine, shelf))[FIRST].startswith("kept")
    assert elsewhere.read_bytes() == before


def test_places_that_will_not_do_are_refused(shelf, tmp_path, refuses, capsys):
    def to(folder, lessons=shelf):
        return lambda: list(handout.hand_out(folder, lessons))

    refuses(to(shelf), "ValueError: where the lessons come from")
    refuses(to(tmp_path / "x", tmp_path), "FileNotFoundError: there are no lessons in")
    file = tmp_path / "file"
    file.write_text("mine")
    refuses(to(file), "FileExistsError: file")
    assert __main__.main(["lessons", str(file)]) == 2
    assert "file" in capsys.readouterr().out and file.read_text() == "mine"


# --------------------------------------------------------------- from a wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as a wheel unpacks it, in a folder far from the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves things where it builds
    for name in ("rope_teach", "lessons"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
        "--no-build-isolation", "--no-index", "-w", str(folder), str(source),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_carries_the_course_and_not_its_solutions(wheel):
    course = wheel / "rope_teach" / "course"
    assert {path.name for path in (course / "lessons").glob("*.ipynb")} >= NAMES
    assert not (course / "lessons" / "solutions").exists()
    ours = {path.relative_to(ROOT) for path in (ROOT / "rope_teach").rglob("*")
            if path.is_file() and path.parent.name != "__pycache__"}  # fmt: skip
    assert [str(path) for path in ours if not (wheel / path).exists()] == []
    (entry,) = wheel.glob("*.dist-info/entry_points.txt")
    assert "rope-teach = rope_teach.__main__:main" in entry.read_text()


def test_lessons_run_from_a_wheel_in_an_empty_folder(wheel, tmp_path, monkeypatch):
    here = os.pathsep.join([os.environ["PYTHONPATH"].split(os.pathsep)[0], str(wheel)])
    monkeypatch.setenv("PYTHONPATH", here)  # first: the cut network
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "rope_teach", "lessons", "my-course"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in (FIRST, "03_learned_and_biases.ipynb"):  # 03 reads a stored result
        notebook = nbformat.read(tmp_path / "my-course" / name, as_version=4)
        whence = "import rope_teach; print(rope_teach.__file__)"
        notebook.cells.append(nbformat.v4.new_code_cell(whence))
        NotebookClient(notebook, kernel_name="python3", timeout=300).execute(
            cwd=str(tmp_path / "my-course")
        )
        assert str(wheel) in notebook.cells[-1].outputs[0]["text"]
