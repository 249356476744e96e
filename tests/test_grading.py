"""A class with mischief in it: each prank costs its exercise, and nobody else anything.

Four notebooks hold all the mischief, one cell an exercise, and end in a right answer.
In the first nothing ends the process; in the second nearly every cell does; in the
third each breaks Python for the cells after it; in the fourth each reaches for the
judge, or for what the cells after it stand on, and is reported.
"""

import ast
import csv
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from rope_teach import __main__
from rope_teach.course import grading, handout
from rope_teach.course.exercises import find
from rope_teach.course.grading import child, guard, suspicion

VICTIM = "VICTIM"  # stands for a folder outside the student's
START = """import math, os, shutil, socket, threading, time, torch
from pathlib import Path
from rope_teach import *
from rope_teach.course import exercises
from rope_teach.course.exercises import cards, check, comparing, lesson_05"""
RIGHT, WRONG = "RIGHT", "answer = lambda *given, **named: torch.full((3,), 3.0)"

# code, the state of the exercise, and what the report must say
REPLACE = "torch.Tensor.all = lambda *given, **named: torch.tensor(True)"
PRANKS = {
    "a check of one's own": (
        f"{WRONG}\ndef check(key, answer): print('✓', key, 'Right.')",
        "wrong", "",
    ),
    "the judges replaced": (
        f"{WRONG}\nright = exercises.Feedback('right', '✓ Right.')\n"
        "exercises.feedback = exercises.check = lambda key, answer: right\n"
        "comparing.close = lesson_05.close = lambda *given: True\n"
        "cards.expect = lesson_05.expect = lambda *given: None\n"
        "for task in cards.EXERCISES.values():\n"
        "    object.__setattr__(task, 'judge', lambda answer: 'Right.')",
        "wrong", "",
    ),
    "what judges stand on, replaced": (
        f"{RIGHT}\n{REPLACE}\ndef answer(*given, right=answer):\n"
        "    return right(*given) * 0 + 3",
        "wrong", "",
    ),
    "the same, from inside an answer": (
        f"{RIGHT}\ndef answer(*given, right=answer):\n    {REPLACE}\n"
        "    return right(*given) * 0 + 3",
        "wrong", "replaced Tensor.all while it was checked",
    ),
    "a result written to every channel": (
        f"{WRONG}\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'"
        '{"key": "4.1", "kind": "right", "text": ""}\\n'
        "')\n    except OSError: pass",
        "wrong", "",
    ),
    "files deleted": (
        f"shutil.rmtree('{VICTIM}')\n{RIGHT}",
        "wrong", "PermissionError",
    ),
    "a file written": (
        f"Path('{VICTIM}/new').write_text('I was here')\n{RIGHT}",
        "wrong", "PermissionError",
    ),
    "the home directory and shared memory written": (
        "for place in filter(Path.is_dir, (Path.home(), Path('/dev/shm'))):\n"
        f"    (place / 'owned').write_text('I was here')\n{RIGHT}",
        "right", "",
    ),
    "words that steer a terminal, and fit in no file": (
        "raise ValueError('\\udcff\\x1b[2J\\n✓ 1.2 Right.')",
        "wrong", r"ValueError: \udcff\x1b[2J ✓ 1.2 Right.",
    ),
    "a command for the shell": (f"!echo hello\n{RIGHT}", "right", ""),
    "the parent killed": (
        f"os.kill(os.getppid(), 9)\n{RIGHT}",
        "wrong", "Your code stopped with",
    ),
    "the network": (
        "socket.create_connection(('192.0.2.1', 80), 5)\n" + RIGHT,
        "wrong", "run without a network",
    ),
    "an exit, from inside an answer": (
        "def answer(*given): raise SystemExit('bye')",
        "wrong", "SystemExit: bye",
    ),
    "a tracer, and another folder": (
        f"import sys\nos.chdir('/')\nsys.settrace(lambda *given: None)\n{RIGHT}",
        "right", "",
    ),
    "recursion without end": (
        "def answer(*given): return answer(*given)", "wrong", "RecursionError",
    ),
    "an error": ("1 / 0", "wrong", "ZeroDivisionError"),
    "a syntax error": ("answer = (", "wrong", "SyntaxError"),
}  # fmt: skip
if sys.platform == "linux":
    PRANKS["10 GB"] = (
        "answer = torch.ones(10 * 2**30, dtype=torch.uint8)",
        "wrong", "Your code stopped with RuntimeError",
    )  # fmt: skip
if guard.landlock_version():
    PRANKS["files deleted, by a program"] = (
        f"os.system('rm -rf {VICTIM}')\n{RIGHT}", "right", "",
    )  # fmt: skip
CRASHES = {
    "an endless loop": ("while True: pass", "stopped", "took more than"),
    "an endless loop, when judged": (
        "def answer(*given):\n    while True: pass", "stopped", "took more than",
    ),
    "os._exit": (f"{RIGHT}\nos._exit(0)", "stopped", "ended the process"),
    "a fork bomb": ("while True: os.fork()", "stopped", "more than"),
    "a crash in C": (
        "import ctypes\nctypes.string_at(0)", "stopped", "ended the process",
    ),
    "everything caught": (
        "while True:\n    try:\n        time.sleep(1)\n"
        "    except BaseException:\n        pass",
        "stopped", "took more than",
    ),
    "prints without end": (
        "while True: print('x' * 10**6)", "stopped", "took more than",
    ),
    "a thread that strikes later": (
        f"{RIGHT}\ndef strike():\n    time.sleep(4)\n    os._exit(1)\n"
        "threading.Thread(target=strike).start()",
        "right", "",
    ),
}  # fmt: skip
HARM = {  # what a cell leaves behind for those after it
    "no cell is checked any more": (
        f"get_ipython().ast_transformers.clear()\n{RIGHT}", "right", "",
    ),
    "every tensor lies": (
        f"{RIGHT}\nclass Lies(torch.overrides.TorchFunctionMode):\n"
        "    def __torch_function__(self, *given): return torch.tensor(True)\n"
        "Lies().__enter__()",
        "wrong", "",
    ),
    "the next cell strikes": (
        "get_ipython().input_transformers_cleanup.append(lambda lines: os._exit(7))\n"
        f"{RIGHT}",
        "right", "",
    ),
}  # fmt: skip
if guard.namespaces():
    HARM["a disk filled"] = (
        "for i in range(9):\n    with open(str(i), 'wb') as file:\n"
        "        for _ in range(200): file.write(bytes(10**6))",
        "wrong", "No space left",
    )  # fmt: skip
REACHES = {  # what finds its way out of an answer, and the words that it needs
    "an import that explodes, later": (
        "import builtins, sys\nclass Explodes:\n"
        "    def find_spec(self, *given): raise RuntimeError('boom')\n"
        f"{RIGHT}\nsys.meta_path.insert(0, Explodes())",
        "wrong", "builtins, meta_path, sys",
    ),
    "math replaced, for what follows": (f"{RIGHT}\nmath.pi = 3", "right", "math.pi"),
    "a judge found and rewritten": (
        f"{WRONG}\nimport gc\nfor found in gc.get_objects():\n"
        "    if type(found) is type(answer) and found.__name__ == 'feedback':\n"
        "        found.__code__ = (lambda key, answer:\n"
        "            type('', (), {'kind': 'right', 'text': 'Rewritten.'})).__code__",
        "right", "__code__, gc, get_objects",
    ),
}  # fmt: skip
# Solved with START alone, by a function; the judges of 5.4 and 20.2 trust Tensor.all.
KEYS = [
    "1.2", "1.3", "5.4", "20.2", "1.4", "2.2", "2.3", "2.4", "3.2", "3.3", "3.4", "4.4",
    "5.1", "8.1", "8.2", "8.3", "8.4", "8.5", "9.1", "9.3",
]  # fmt: skip
LIMITS = grading.Limits(seconds=10, minutes=10)  # minutes: for a busy machine
pytestmark = pytest.mark.timeout(900)


def stand_alone():
    """Each exercise whose solution needs no more than START, with that solution."""
    found = {}
    for key, stub in grading.stubs().items():
        name = re.search(r"^check\(.+, (\w+)\)", stub, re.MULTILINE)[1]
        found[key] = f"{find(key).solution}\nanswer = {name}"
    return {key: found[key] for key in KEYS}


def notebook(path, sources):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_code_cell(s) for s in sources]), path)


def digest(folder):
    """Everything in a folder: names, contents and times of change."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path} {path.stat().st_mtime_ns}".encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


def write_mischief(path, cases, victim):
    """One cell an exercise, then a right answer; return which key is whose."""
    solutions = stand_alone()
    assert len(cases) < len(KEYS)
    cells, whose = [START], {}
    for key, (name, (code, *_)) in zip(KEYS, cases.items(), strict=False):
        code = code.replace(RIGHT, solutions[key]).replace(VICTIM, str(victim))
        cells.append(f'{code}\n\n\ncheck("{key}", answer)')
        whose[name] = key
    last = KEYS[-1]
    notebook(path, [*cells, f'{solutions[last]}\n\n\ncheck("{last}", answer)'])
    return whose


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A class of five, graded once: the key of each case, and the marks."""
    folder = tmp_path_factory.mktemp("class")
    victim = tmp_path_factory.mktemp("precious")
    (victim / "thesis.txt").write_text("two years of work")
    whose = write_mischief(folder / "mallory" / "pranks.ipynb", PRANKS, victim)
    whose |= write_mischief(
        folder / "trudy" / "deep" / "crashes.ipynb", CRASHES, victim
    )
    whose |= write_mischief(folder / "oscar" / "harm.ipynb", HARM, victim)
    whose |= write_mischief(folder / "eve" / "reaches.ipynb", REACHES, victim)
    stub = grading.stubs()["4.2"]
    notebook(folder / "ada" / "04_her_own.ipynb", [
        START, stub, 'key_position = 57\n\n\ncheck("4.2", key_position)',
    ])  # fmt: skip
    (folder / "ada" / "05_half_saved.ipynb").write_text('{"cells": [')
    before = digest(folder), digest(victim), digest(Path(grading.__file__).parent)
    marks = grading.grade(folder, limits=LIMITS, jobs=2)
    assert before[:2] == (digest(folder), digest(victim))
    if guard.namespaces():
        assert not Path("/dev/shm/owned").exists()
    by_key = {(mark.student, mark.exercise): mark for mark in marks}
    return whose, by_key, marks


@pytest.mark.parametrize("name", PRANKS)
def test_a_prank_costs_its_exercise(name, graded):
    whose, by_key, _ = graded
    mark = by_key["mallory", whose[name]]
    _, state, text = PRANKS[name]
    assert mark.state == state, mark
    assert text in mark.text


def test_what_reaches_for_the_judge_is_reported(graded):
    whose, by_key, marks = graded
    table = grading.report(marks)
    for name, (_, state, words) in REACHES.items():
        mark = by_key["eve", whose[name]]
        assert (mark.state, mark.suspicion) == (state, words)
        assert f"? eve, {mark.exercise}: look at the code, it names {words}" in table
    assert not by_key["eve", KEYS[-1]].suspicion


@pytest.mark.parametrize(
    "check",
    [
        "check( '4.2' , answer );",
        "check(4.2, answer)  # a number will do",
        'check(key="4.2", answer=answer)',
        'with torch.no_grad():\n    check("4.2", answer)',
    ],
)
def test_a_check_may_be_written_in_another_way(check):
    tree = child.KeepAnswers().visit(ast.parse(check))
    kept = {"__answers__": {}, "answer": 57, "torch": torch}
    exec(compile(tree, "cell", "exec"), kept)
    assert kept["__answers__"] == {"4.2": 57}
    assert grading.CHECK.findall(check) == ["4.2"]


def test_no_lesson_and_no_solution_is_suspected():
    for path in sorted(handout.LESSONS.glob("[0-9][0-9]_*.ipynb")):
        cells = [(source, bool(keys)) for _, source, keys in grading.code_cells(path)]
        for key in re.findall(r'check\("([0-9.]+)"', str(cells)):
            cells.append((find(key).solution, True))
        assert not any(suspicion.suspicions(cells)), path.name


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import theirs.own", "theirs"),
        ("%run theirs.py", "%run"),
        ("%timeit 1 + 1\n!ls\nx = torch.compile(model).eval()", ""),
        ("getattr(check, '__globals__')", "__globals__"),
        ("torch.add = torch.sub", "torch.add"),
        (r"exec('\d')", "exec"),  # Python warns of it, and the teacher need not know
        ("model.weight = answer = (", ""),
        ("from rope_teach.course.exercises import check, hint", ""),
    ],
)
@pytest.mark.filterwarnings("error")
def test_suspicious_words(source, words):
    cells = [("import torch", False), (source, True)]
    assert suspicion.suspicions(cells, {"theirs", "model"}) == ["", words]


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_costs_its_exercise(name, graded):
    whose, by_key, _ = graded
    mark = by_key["trudy", whose[name]]
    _, state, text = CRASHES[name]
    assert mark.state == state, mark
    assert text in mark.text


@pytest.mark.parametrize("name", HARM)
def test_a_broken_python_costs_its_exercise(name, graded):
    whose, by_key, _ = graded
    mark = by_key["oscar", whose[name]]
    assert mark.state == HARM[name][1], mark


@pytest.mark.parametrize("student", ["mallory", "trudy", "oscar", "eve"])
def test_what_comes_after_mischief_is_judged(student, graded):
    assert graded[1][student, KEYS[-1]].state == "right"


def test_a_second_cell_counts_and_a_broken_file_is_named(graded):
    _, by_key, marks = graded
    assert by_key["ada", "4.2"].mark == 1
    assert by_key["ada", "5.2"].state == "missing"
    assert "05_half_saved.ipynb cannot be read" in by_key["ada", "5.2"].text
    table = grading.report(marks)
    assert table.splitlines()[0].split()[:1] == ["student"]
    assert "1/5" in next(line for line in table.splitlines() if line.startswith("ada "))
    assert "trudy, 1.2: took more than 10 seconds" in table


def test_a_judge_may_send_an_answer_to_a_process_of_its_own(tmp_path):
    pytest.importorskip("triton")
    notebook(tmp_path / "18.ipynb", [
        f"{START}\nimport triton\nimport triton.language as tl",
        f'{find("18.3").solution}\n\n\ncheck("18.3", turn_neighbours)',
    ])  # fmt: skip
    marks = grading.grade_notebook(tmp_path / "18.ipynb", grading.stubs())
    assert marks["18.3"][0] == "right", marks


# ------------------------------------------------------------- what is quick to ask


@pytest.fixture
def handed_out(tmp_path):
    """A class of two, who have not begun."""
    for student in ("ada", "bob"):
        list(handout.hand_out(tmp_path / "class" / student))
    return tmp_path / "class"


def test_what_nobody_touched_is_not_run(handed_out, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grading, "_start", None)  # it would raise
    files = tmp_path / "marks.csv", tmp_path / "marks.json"
    command = ["grade", str(handed_out), "--lessons", "4", "5", "--jobs", "1"]
    given = ["--csv", str(files[0]), "--json", str(files[1])]
    assert __main__.main(command + given) == 0
    table = capsys.readouterr().out
    assert "student    4    5   all\nada        ·    ·     0\nbob" in table
    with files[0].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows == [
        {name: str(value) for name, value in row.items()}
        for row in json.loads(files[1].read_text("utf-8"))
    ]
    assert len(rows) == 2 * 10 and {row["state"] for row in rows} == {"waiting"}
    assert rows[0]["student"] == "ada" and rows[0]["exercise"] == "4.1"


def test_one_student_s_exercises_are_listed(handed_out, monkeypatch, capsys):
    monkeypatch.setattr(grading, "_start", None)
    assert __main__.main(["grade", str(handed_out / "ada"), "--lessons", "4"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("· 4.1   not attempted yet\n")
    assert "0 of 5 right" in table


def test_a_stray_notebook_beside_a_class_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grading, "_start", None)
    for name in ("ada/a", "bob/a", "ada/.ipynb_checkpoints/a", "ada/old/a"):
        notebook(tmp_path / f"{name}.ipynb", [grading.stubs()["4.2"]])
    assert grading.one_or_many(tmp_path / "ada") == ""  # one folder is no class
    main = ["grade", str(tmp_path), "--lessons", "4"]
    assert __main__.main(main) == 0 and capsys.readouterr().err == ""
    notebook(tmp_path / "demo.ipynb", ["1 + 1"])
    assert __main__.main(main) == 0
    assert "demo.ipynb lies beside 2 folders" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="no pipes among files there")
def test_what_is_no_plain_file_waits_for_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "_start", None)
    os.mkfifo(tmp_path / "pipe.ipynb")
    (tmp_path / "endless.ipynb").symlink_to("/dev/zero")
    (tmp_path / "folder.ipynb").mkdir()
    notebook(tmp_path / "env" / "site-packages" / "theirs.ipynb", ['check("4.2", 57)'])
    text = grading.grade(tmp_path, [4])[0].text
    for name in ("pipe", "endless", "folder"):
        assert f"{name}.ipynb cannot be read" in text
    assert "theirs" not in text


def test_a_name_steers_no_terminal_and_no_spreadsheet(tmp_path, capsys):
    name = "=1+1,\n\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}ada"
    for student in (name, "bob"):
        notebook(tmp_path / "class" / student / "a.ipynb", [grading.stubs()["4.2"]])
    table = tmp_path / "marks.csv"
    assert __main__.main(["grade", str(tmp_path / "class"), "--csv", str(table)]) == 0
    plain = r"=1+1, \x1b[2J\u202eada"
    assert f"{plain}    ·     0\n" in capsys.readouterr().out
    with table.open(encoding="utf-8", newline="") as stream:
        assert {row["student"] for row in csv.DictReader(stream)} == {
            f"'{plain}",
            "bob",
        }


def test_a_process_that_cannot_start_is_not_the_student_s_fault(
    tmp_path, monkeypatch, capsys
):
    notebook(tmp_path / "a.ipynb", ['check("4.2", 57)'])
    monkeypatch.setattr(guard, "namespaces", lambda: ("false",))
    assert __main__.main(["grade", str(tmp_path)]) == 2
    assert "before any cell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "must be a folder of notebooks, got nowhere"),
        (["."], "there is no notebook in ."),
        ([".", "--lessons", "4", "99"], "lessons must be in 0 to"),
        ([".", "--csv", "nowhere/marks.csv"], "nowhere"),
    ],
)
def test_what_cannot_be_graded_is_said(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["grade", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--jobs", "--seconds", "--minutes", "--memory"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_limits_are_positive_numbers(option, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["grade", ".", option, value])
    assert option in capsys.readouterr().err


# ------------------------------------------- the wall that every system has: Python's


@pytest.fixture
def hook(tmp_path):
    return guard.watch(tmp_path / "inside")


@pytest.mark.parametrize(
    ("event", "given"),
    [
        ("open", ("PATH", "w", os.O_WRONLY)),
        ("open", ("PATH", None, os.O_CREAT)),
        ("os.remove", ("PATH", -1)),
        ("os.rename", ("PATH", "PATH", -1, -1)),
        ("os.truncate", ("PATH", 0)),
        ("os.symlink", ("anything", "PATH", -1)),
        ("shutil.rmtree", ("PATH", None)),
    ],
)
def test_files_change_inside_only(event, given, hook, tmp_path):
    for place, refused in [("inside", False), ("inside/..", True), ("insider", True)]:
        path = str(tmp_path / place / "x")
        arguments = tuple(path if item == "PATH" else item for item in given)
        if refused:
            with pytest.raises(PermissionError, match="nothing may change"):
                hook(event, arguments)
        else:
            hook(event, arguments)
    hook("open", (str(tmp_path / "x"), "r", os.O_RDONLY))  # reading is no change


def test_a_file_moved_out_is_refused_as_well(hook, tmp_path):
    inside, outside = str(tmp_path / "inside" / "x"), str(tmp_path / "x")
    for paths in ((inside, outside), (outside, inside)):
        with pytest.raises(PermissionError):
            hook("os.rename", (*paths, -1, -1))


def test_starts_are_counted_and_the_parent_is_safe(hook, monkeypatch):
    for victim in (os.getppid(), -1, -os.getppid()):
        with pytest.raises(PermissionError, match="may be ended"):
            hook("os.kill", (victim, 9))
    for _ in range(guard.MOST_STARTS):
        hook("os.fork", ())
    monkeypatch.setattr(os, "_exit", ended := Mock())
    hook("subprocess.Popen", ("ls", [], None, None))
    ended.assert_called_once_with(guard.TOO_MANY)
