"""The committed results of lessons 11, 12, 16 and 17 are what their scripts give."""

import importlib
import json
from pathlib import Path
from statistics import mean

import pytest

from rope_teach.course.training import RESULTS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def scripts_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def kept(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def plain(value):
    """As JSON gives it back: lists for tuples, texts for keys."""
    return json.loads(json.dumps(value))


def test_fair_race_is_of_this_script():
    script, result = (
        importlib.import_module("rope_versus_absolute"),
        kept("rope_versus_absolute"),
    )
    settings = result["settings"]
    assert settings["model"] == script.MODEL and settings["steps"] == script.STEPS
    keys = ("task", "causal", "encoding", "lr", "seed")
    assert [tuple(run[key] for key in keys) for run in result["runs"]] == script.CASES


@pytest.mark.parametrize(
    ("encoding", "task"),
    [("rope", "5 back"), ("learned", "5 back"), ("rope", "place 3")],
)
def test_fair_race_comes_out_again(encoding, task):
    script = importlib.import_module("rope_versus_absolute")
    new = script.run(task, True, encoding, 1e-2, seed=0)
    old = next(
        run
        for run in kept("rope_versus_absolute")["runs"]
        if run["encoding"] == encoding and run["task"] == task and run["lr"] == 1e-2
    )
    assert new["parameters"] == old["parameters"]
    # Other machines round otherwise: a step of measuring or two, and the last answers.
    if old["steps_to_95"] is None:
        assert new["steps_to_95"] is None
    else:
        assert abs(new["steps_to_95"] - old["steps_to_95"]) <= 10
    last = "accuracy_while_training"
    assert new[last][-1] == pytest.approx(old[last][-1], abs=0.1)


def test_cliff_is_of_this_script():
    script, result = importlib.import_module("cliff"), kept("cliff")
    settings = result["settings"]
    assert settings["model"] == script.MODEL and settings["steps"] == script.STEPS
    assert plain(settings["prompts"]) == plain(script.PROMPTS)
    keys = ("trained_length", "slow_hands_frozen", "seed")
    assert [tuple(run[key] for key in keys) for run in result["runs"]] == script.CASES


def test_cliff_comes_out_again():
    new = importlib.import_module("cliff").run(32, False, seed=0)
    old = kept("cliff")["runs"][0]
    assert (old["trained_length"], old["seed"]) == (32, 0)
    for how, within, beyond in (("as it is", 0.2, 0.8), ("window", 0.2, 0.2)):
        a, b = new["bits"][how], old["bits"][how]
        assert mean(a[:4]) == pytest.approx(mean(b[:4]), abs=within)
        assert mean(a[32:]) == pytest.approx(mean(b[32:]), abs=beyond)
    assert new["known"][256] == pytest.approx(old["known"]["256"], abs=0.3)


def test_relatives_are_of_this_script():
    script, result = importlib.import_module("relatives"), kept("relatives")
    settings = result["settings"]
    assert settings["models"] == script.MODELS and settings["steps"] == script.STEPS
    assert settings["relatives"] == script.RELATIVES
    keys = ("task", "relative", "seed")
    assert [tuple(run[key] for key in keys) for run in result["runs"]] == script.CASES


@pytest.mark.parametrize(
    ("task", "relative", "within", "beyond"),
    [
        ("5 back", "xPos, B = 32", 0.02, 0.05),
        ("text", "xPos, B = 32", 0.15, 0.2),
    ],
)
def test_relatives_come_out_again(task, relative, within, beyond):
    script, case = importlib.import_module("relatives"), (task, relative, 0)
    new, old = script.run(*case), kept("relatives")["runs"][script.CASES.index(case)]
    measure = "bits" if task == "text" else "right"
    for how, far in (("as it is", beyond), ("blockwise", within)):
        a, b = new[measure][how], old[measure][how]
        assert mean(a[:7]) == pytest.approx(mean(b[:7]), abs=within)
        assert mean(a[31:]) == pytest.approx(mean(b[31:]), abs=far)


def test_pictures_are_of_this_script():
    script, result = importlib.import_module("images"), kept("images")
    settings = result["settings"]
    assert settings["model"] == script.MODEL and settings["steps"] == script.STEPS
    assert tuple(settings["measured_sizes"]) == script.MEASURED
    keys = ("encoding", "base", "learned", "layers", "seed")
    assert [tuple(run[key] for key in keys) for run in result["runs"]] == script.CASES


@pytest.mark.parametrize(
    ("encoding", "base", "learned"),
    [("flat", 10_000.0, False), ("axial", 10.0, False), ("mixed", 10.0, True)],
)
def test_pictures_come_out_again(encoding, base, learned):
    case = (encoding, base, learned, 1, 0)
    script = importlib.import_module("images")
    new, old = script.run(*case), kept("images")["runs"][script.CASES.index(case)]
    assert new["parameters"] == old["parameters"]
    assert (new["frequencies_moved"] > 0) == learned
    # Other machines round otherwise; the larger the picture, the more that shows.
    for now, then, apart in zip(
        new["accuracy"], old["accuracy"], (0.02, 0.05, 0.1, 0.2), strict=True
    ):
        assert now == pytest.approx(then, abs=apart)
