"""The checks are tested themselves: a check that cannot fail teaches nothing.

Each fails kindly on the stub, fails on at least three seeded misconceptions with the
message that names each, passes on its solution and on one right answer of another form.
"""

import ast
import importlib
import math
from pathlib import Path

import pytest
import torch

import rope_teach
from rope_teach import laws
from rope_teach.course import exercises
from rope_teach.course.exercises import EXERCISES, Feedback, feedback, find, is_stub

SEEDED = {
    path.stem: importlib.import_module(f"tests.exercises.{path.stem}")
    for path in sorted((Path(__file__).parent / "exercises").glob("lesson_*.py"))
}
for module in SEEDED:
    importlib.import_module(f"rope_teach.course.exercises.{module}")

KEYS = sorted(EXERCISES, key=lambda key: [int(part) for part in key.split(".")])
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
    exec(getattr(seeded, "SET_UP", ""), namespace)
    exec(code, namespace)
    last = ast.parse(code).body[-1]
    return namespace[last.name if hasattr(last, "name") else last.targets[0].id]


def test_every_lesson_module_has_seeded_answers():
    modules = Path(exercises.__file__).parent.glob("lesson_*.py")
    assert {path.stem for path in modules} == set(SEEDED)


@pytest.mark.parametrize("key", KEYS)
def test_card_is_complete(key):
    task = find(key)
    seeded = SEEDED[f"lesson_{int(key.split('.')[0]):02d}"]
    assert 1 <= task.difficulty <= 5 and 1 <= task.minutes <= 20
    assert all(len(text.split()) > 3 for text in (*task.hints, task.why))
    assert len(seeded.WRONG[key]) >= 3 and seeded.OTHER[key].strip()


@pytest.mark.parametrize("key", KEYS)
def test_solution_passes(key):
    result = feedback(key, answer_of(find(key).solution, key))
    assert result.kind == "right", result.text


@pytest.mark.parametrize("key", KEYS)
def test_another_right_answer_passes(key):
    seeded = SEEDED[f"lesson_{int(key.split('.')[0]):02d}"]
    assert seeded.OTHER[key].strip() != find(key).solution
    result = feedback(key, answer_of(seeded.OTHER[key], key))
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
