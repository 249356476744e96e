"""The small real model at four times its length: the script, and what it stored."""

import importlib
import json
from itertools import product
from pathlib import Path
from statistics import mean

import pytest

from rope_teach.course.needles import found, needles
from rope_teach.course.small import bits_per_byte, load_small
from rope_teach.course.tasks import TEST_MODULES, python_text
from rope_teach.course.training import RESULTS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
WHEN, LENGTHS = ("as it is", "tuned"), ("512", "2048")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("small_model_longer")


@pytest.fixture(scope="module")
def kept():
    return json.loads((RESULTS / "small_model_longer.json").read_text())


def of(kept, **wanted):
    return [run for run in kept["runs"] if wanted.items() <= run.items()]


def tried(kept):
    """The validation loss at each rate, by rule."""
    return {each["condition"][0]: each["validation"] for each in kept["rates_tried"]}


def test_result_is_of_this_script_and_whole(script, kept):
    settings = kept["settings"]
    assert (settings["trained_length"], settings["longer"]) == (512, script.LONGER)
    assert (settings["steps"], settings["rows"]) == (script.STEPS, script.ROWS)
    assert settings["depths"] == list(script.DEPTHS)
    ran = {(run["rule"], run["seed"]) for run in kept["runs"]}
    assert ran == set(product(script.RULES, script.SEEDS))
    for run, when, length in product(kept["runs"], WHEN, LENGTHS):
        assert len(run[when]["bits"][length]) == int(length) // script.BIN
        assert len(run[when]["found"][length]) == len(script.DEPTHS)
        assert all(0 <= share <= 1 for share in run[when]["found"][length])
    for run in kept["runs"]:  # the rate is the one that validation chose
        scores = tried(kept)[run["rule"]]
        assert float(min(scores, key=scores.get)) == run["lr"]


def test_seeds_move_only_what_is_drawn(kept):
    for rule in tried(kept):
        before = [run["as it is"] for run in of(kept, rule=rule)]
        assert (before[0] == before[1] == before[2]) == (rule != "LongRoPE")
    short = [of(kept, rule=r, seed=1)[0]["as it is"]["bits"]["512"]
             for r in ("no rule", "dynamic NTK", "LongRoPE")]  # fmt: skip
    assert short[0] == short[1] == short[2]


def test_longrope_slows_no_hand_less_than_a_faster_one(kept):
    for run in of(kept, rule="LongRoPE"):
        assert run["factors"] == sorted(run["factors"])
        assert 1 <= run["factors"][0] and run["factors"][-1] <= 4


def test_what_a_rule_saves_comes_out_again(script, kept):
    """In two windows, against the mean over all: texts differ, what is saved less."""
    model, tokens = load_small()
    text = bytes(python_text(TEST_MODULES).tolist()).decode()[:16_000]

    def again(rule):
        there = script.under(model, script.rule_of(rule, script.LONGER))
        return bits_per_byte(there, tokens, text, script.LONGER)[512:].mean()

    def stored(rule):
        return mean(of(kept, rule=rule)[0]["as it is"]["bits"]["2048"][16:])

    saved = again("no rule") - again("YaRN")
    assert saved == pytest.approx(stored("no rule") - stored("YaRN"), abs=0.1)


def test_constants_are_found_again(script, kept):
    model, tokens = load_small()
    text = bytes(python_text(script.HELD_OUT).tolist()).decode()
    share = found(model, *needles(tokens, text, 512, 0.65, 48))
    stored = of(kept, rule="no rule")[0]["as it is"]["found"]["512"][2]
    assert share == pytest.approx(stored, abs=2.5 / 48)  # a GPU may round otherwise


def test_what_the_lesson_says(kept):
    def bits(rule, when, length):
        return [mean(run[when]["bits"][length]) for run in of(kept, rule=rule)]

    ahead = [a - b for rule in ("PI", "NTK", "YaRN", "Llama 3", "LongRoPE")
             for a, b in zip(bits("no rule", "tuned", "2048"),
                             bits(rule, "tuned", "2048"), strict=True)]  # fmt: skip
    assert 0.009 < min(ahead) and max(ahead) < 0.033
    for run in of(kept, rule="no rule"):
        assert max(run["tuned"]["found"]["2048"][:2]) < 0.1
        assert min(run["tuned"]["found"]["512"]) > 0.8
