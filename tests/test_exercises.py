"""The checks are tested themselves: a check that cannot fail teaches nothing.

Each fails kindly on the stub, fails on at least three seeded misconceptions with the
message that names each, passes on its solution and on one right answer of another form.
"""

import ast
import importlib
import linecache
import math
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import rope_teach
from rope_teach import laws
from rope_teach.course import exercises
from rope_teach.course.exercises import Feedback, feedback, find
from rope_teach.course.exercises.cards import EXERCISES, Wrong
from rope_teach.course.exercises.child import run_apart
from rope_teach.course.exercises.comparing import apart, difference
from rope_teach.course.exercises.errors import explain
from rope_teach.course.exercises.student_code import (
    is_stub,
    torch_calls,
    untouched,
    uses,
)
from rope_teach.course.exercises.values import number, truth

SEEDED = {
    path.stem: importlib.import_module(f"tests.exercises.{path.stem}")
    for path in sorted((Path(__file__).parent / "exercises").glob("lesson_*.py"))
}
for module in SEEDED:
    importlib.import_module(f"rope_teach.course.exercises.{module}")

KEYS = sorted(EXERCISES, key=lambda key: [int(part) for part in key.split(".")])


def listed(answers) -> list[str]:
    return [answers] if isinstance(answers, str) else list(answers)


OTHER = [
    pytest.param(key, code, id=f"{key} other {place}")
    for seeded in SEEDED.values()
    for key, answers in seeded.OTHER.items()
    for place, code in enumerate(listed(answers))
]
WRONG = [
    pytest.param(key, code, message, id=f"{key} {message}")
    for seeded in SEEDED.values()
    for key, answers in seeded.WRONG.items()
    for code, message in answers
]


def answer_of(code: str, key: str):
    """Run an answer as its lesson would, and return the last name that it binds."""
    namespace = {"math": math, "torch": torch, "laws": laws}
    namespace |= {name: getattr(rope_teach, name) for name in rope_teach.__all__}
    seeded = SEEDED[f"lesson_{int(key.split('.')[0]):02d}"]
    run_cell(getattr(seeded, "SET_UP", ""), namespace)
    run_cell(code, namespace)
    last = ast.parse(code).body[-1]
    return namespace[last.name if hasattr(last, "name") else last.targets[0].id]


def run_cell(code: str, namespace: dict) -> dict:
    """Run a cell as a notebook does: its text can be read again from its functions."""
    file = f"<cell {len(CELLS)}>"
    CELLS.append(code)
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    exec(compile(code, file, "exec"), namespace)
    return namespace


CELLS: list[str] = []


def test_every_lesson_module_has_seeded_answers():
    modules = Path(exercises.__file__).parent.glob("lesson_*.py")
    assert {path.stem for path in modules} == set(SEEDED)


@pytest.mark.parametrize("key", KEYS)
def test_card_is_complete(key):
    task = find(key)
    seeded = SEEDED[f"lesson_{int(key.split('.')[0]):02d}"]
    assert 1 <= task.difficulty <= 5 and 1 <= task.minutes <= 20
    assert all(len(text.split()) > 3 for text in (*task.hints, task.why))
    reviewed = getattr(seeded, "REVIEWED", False)  # against the second edition's rules
    assert len(seeded.WRONG[key]) >= (8 if reviewed else 3)
    assert len(listed(seeded.OTHER[key])) >= (2 if reviewed else 1)


@pytest.mark.parametrize("key", KEYS)
def test_solution_passes(key):
    result = feedback(key, answer_of(find(key).solution, key))
    assert result.kind == "right", result.text


@pytest.mark.parametrize(("key", "code"), OTHER)
def test_another_right_answer_passes(key, code):
    assert code.strip() and code.strip() != find(key).solution
    result = feedback(key, answer_of(code, key))
    assert result.kind == "right", result.text


@pytest.mark.parametrize(("key", "code", "message"), WRONG)
def test_misconception_is_named(key, code, message):
    result = feedback(key, answer_of(code, key))
    assert result.kind == "wrong"
    assert message in result.text


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "junk", ["text", [], {}, lambda *_: 1 / 0, float("nan"), torch]
)
def test_junk_is_answered_not_raised(key, junk):
    assert feedback(key, junk).kind == "wrong"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("stub", [None, ...])
def test_stub_is_waiting(key, stub):
    assert feedback(key, stub).kind == "waiting"


def test_what_is_a_stub():
    def dots(x):
        """Say what to do."""
        ...

    def nothing_returned(x):
        x = x + 1

    def zero(x):
        return 0

    assert is_stub(dots)
    assert not any(map(is_stub, (nothing_returned, zero, lambda x: x, 0, [], "")))


def test_unknown_exercise_names_those_there_are():
    with pytest.raises(KeyError, match=r"no exercise '4\.9'.*4\.1, 4\.2"):
        find("4.9")
    with pytest.raises(KeyError, match="no exercise 'x'"):
        find("x")


def test_hint_and_solution_show_everything(capsys):
    exercises.hint("4.1")
    assert "First step" in (shown := capsys.readouterr().out) and "Second" in shown
    exercises.solution("4.1")
    assert find("4.1").solution in (shown := capsys.readouterr().out)
    assert find("4.1").why in shown


def test_feedback_escapes_what_a_student_wrote():
    shown = Feedback("wrong", "<script>alert(1)</script>")._repr_mimebundle_()
    assert "<script>" not in shown["text/html"]


def test_a_key_may_be_a_number_and_a_wrong_one_is_answered(capsys):
    exercises.check(4.1, ...)
    assert "4.1 Undo a turn: not attempted yet" in capsys.readouterr().out
    for ask in (lambda k: exercises.check(k, 3), exercises.hint, exercises.solution):
        ask("4.7")
        assert capsys.readouterr().out.startswith(
            "There is no exercise '4.7'; lesson 4"
        )
    exercises.check(torch.zeros(3), "4.1")  # the two swapped
    assert "try '4.1'" in capsys.readouterr().out


# ----------------------------------------------------------- the toolkit of the judges


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "undefined_name",
            "at line 2, `return undefined_name`. This notebook does not",
        ),
        ("torch.eye(2).double() @ torch.ones(2)", "mixes two types of number"),
        ("torch.eye(2) @ torch.ones(3)", "shapes do not fit"),
        ("torch.ones(2) + torch.ones(3)", "shapes do not fit"),
        ("1 if torch.ones(2) > 0 else 0", "not a whole tensor"),
        ("torch.ones(2)[0.5]", "whole number"),
        ("torch.ones(2)[2]", "places are counted from 0"),
        ("torch.cos(1.0)", "takes a tensor"),
        ("[1.0].cos()", "Only a tensor has that method"),
        ("f()", "calls itself without end"),
        ("exit()", "ends Python"),
        ("sys.exit(3)", "ends Python"),
        ("torch.ones(2).backward()", "The gradient got lost"),
    ],
)
def test_an_error_is_explained_with_its_line(body, said):
    scope = run_cell(f"def f():\n    return {body}\n", {"torch": torch, "sys": sys})
    with pytest.raises(BaseException) as caught:
        scope["f"]()
    text = explain(caught.value)
    assert said in text and "line 2" in text and caught.type.__name__ in text


def test_a_module_that_is_not_imported_is_named():
    scope = run_cell("def f():\n    return cmath.pi\n", {})
    with pytest.raises(NameError) as caught:
        scope["f"]()
    assert "has not imported `cmath` yet" in explain(caught.value)


@pytest.mark.parametrize(
    ("answer", "said"), [(57, ""), (..., "not used"), (9, "not used"), (math, "not")]
)
def test_a_later_cell_asks_whether_an_answer_may_be_used(answer, said, capsys):
    assert exercises.solved("4.2", answer) is (answer == 57)
    assert said in capsys.readouterr().out


def test_interrupting_a_check_interrupts_it():
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feedback("1.2", stop)


@pytest.mark.parametrize(
    "three",
    [
        3,
        3.0,
        Fraction(3),
        Decimal(3),
        np.float16(3),
        np.array([3]),
        torch.tensor(3),
        torch.tensor([3.0], dtype=torch.bfloat16),
        torch.tensor(3.0, requires_grad=True),
    ],
)
def test_a_number_is_a_number(three):
    assert number(three) == 3


@pytest.mark.parametrize("junk", [True, torch.tensor(True), "3", [3, 3], math.inf, 3j])
def test_what_is_no_number(junk):
    with pytest.raises(Wrong, match="Expected"):
        number(junk)


def test_truth_is_one_value():
    assert truth(True) and truth(np.bool_(True)) and truth(torch.tensor([1]))
    assert not truth(0)
    for junk in (0.5, [True, True], "yes"):
        with pytest.raises(Wrong, match="Expected"):
            truth(junk)


def test_unlike_values_never_look_alike():
    assert apart(1.0, 1 + 1e-12)[0] != apart(1.0, 1 + 1e-12)[1]
    assert difference([1.0, 2.0, 3.0], [1.0, 2.00011, 3.5]) == (
        "At place 1 it should be 2.0001; yours is 2."
    )
    assert "row 1, column 0" in difference(torch.eye(2), [[1, 0], [2, 2]])
    assert "index 1, row 0, column 0" in difference(
        torch.zeros(2, 1, 1), [[[0.0]], [[1.0]]]
    )
    assert difference([1.0], [1.0, 2.0]).startswith("It should have shape (2,)")
    assert difference(float("nan"), 1.0) == "It should be 1; yours is nan."
    assert difference(Fraction(1, 3), 1 / 3) == ""


@pytest.mark.parametrize("x", [torch.tensor([1.0, torch.nan]), [1.0, 2.0], np.ones(2)])
def test_an_argument_that_is_overwritten_is_named(x):
    def overwrites(first, x):
        x[0] = 5
        return x

    with pytest.raises(Wrong, match="changed x"):
        untouched(overwrites, 1, x)
    assert untouched(lambda first, x: x[0], 1, x) == x[0]


def test_a_forbidden_function_is_found_under_any_name():
    cell = """
other_name = inverse_frequencies

def helper(d):
    return other_name(d)

def direct(d):
    return inverse_frequencies(d)

def by_helper(d):
    return [helper(each) for each in [d]][0]

def by_module(d):
    return rope_teach.inverse_frequencies(d)

def divided(d):
    return 1 / d

def own(d):
    inverse_frequencies = d
    return inverse_frequencies
"""
    scope = {"rope_teach": rope_teach, "torch": torch}
    scope["inverse_frequencies"] = forbidden = rope_teach.inverse_frequencies
    run_cell(cell, scope)
    for name in ("direct", "by_helper", "by_module", "other_name"):
        assert uses(scope[name], forbidden) == "inverse_frequencies", name
    assert uses(scope["divided"], "/") == "/"
    assert uses(scope["own"], forbidden, "/") == ""
    with torch_calls() as called:
        scope["direct"](8)
    assert "arange" in called and "matmul" not in called


CELL = """
import ctypes, os, torch
SCALE = torch.tensor([2.0, 3.0])

class Times:
    def __init__(self, by):
        self.by = by

    def of(self, x):
        return self.by * x

def scaled(x):
    return SCALE * x

def answer(x, times=Times(2)):
    print("seen")
    return times.of(scaled(x)) if x.numel() else answer(x)

quick = lambda x: scaled(x) + 1

def crash(x):
    ctypes.string_at(0)

def leave(x):
    os._exit(3)

def loop(x):
    while True:
        pass

def much(x):
    return torch.ones(10 * 2**28)

def fault(x):
    return missing
"""


def test_a_function_of_a_notebook_runs_in_a_process_of_its_own(capsys):
    scope = run_cell(CELL, {})
    got = run_apart(ask_both, scope["answer"], scope["quick"])
    assert torch.equal(got[0], torch.tensor([4.0, 6.0]))
    assert torch.equal(got[1], torch.tensor([3.0, 4.0]))
    assert capsys.readouterr().out == "seen\n"


def ask_both(one, other):
    return one(torch.ones(2)), other(torch.ones(2))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("crash", "crashed Python"),
        ("leave", "exit code 3"),
        ("loop", "still running after 4 seconds"),
        ("much", "more than 2 GB"),
        ("fault", "`return missing`. This notebook does not know that name"),
    ],
)
def test_no_code_of_a_student_ends_the_notebook(name, said):
    scope = run_cell(CELL, {})
    seconds = 4 if name == "loop" else 120  # a slow machine fills memory slowly
    with pytest.raises(Wrong, match=said):
        run_apart(scope[name], torch.ones(2), seconds=seconds, gigabytes=2)
