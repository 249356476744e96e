"""The committed results of lessons 03, 11, 12, 16, 17 are what their scripts give."""

import importlib
import json
from pathlib import Path
from statistics import mean

import pytest
import torch

from rope_teach.course.training import RESULTS, seed_everything

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def scripts_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def kept(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def plain(value):
    """As JSON gives it back: lists for tuples, texts for keys."""
    return json.loads(json.dumps(value))


def is_tuned(result, conditions, keys):
    """Each condition has a rate of its own, chosen by trainings that do not count."""
    tuning_seed = result["settings"].get("long", result["settings"])["tuning_seed"]
    tried = {tuple(each["condition"]): each for each in result["rates_tried"]}
    assert list(tried) == conditions
    for condition, each in tried.items():
        scores = {float(lr): score for lr, score in each["validation"].items()}
        found = {lr: score for lr, score in scores.items() if score is not None}
        assert each["best"] == min(found, key=found.get)
        assert each["at_the_edge"] == (each["best"] in (min(scores), max(scores)))
        runs = [r for r in result["runs"] if tuple(r[k] for k in keys) == condition]
        assert {run["lr"] for run in runs} == {each["best"]}
        seeds = [run["seed"] for run in runs]
        assert len(set(seeds)) >= 3 and tuning_seed not in seeds
    assert not any("diverged" in run for run in result["runs"])
    assert all(result[fact] for fact in ("command", "date", "machine", "versions"))


def test_fair_race_is_of_this_script():
    script, result = (
        importlib.import_module("rope_versus_absolute"),
        kept("rope_versus_absolute"),
    )
    settings = result["settings"]
    assert settings["model"] == script.MODEL and settings["steps"] == script.STEPS
    assert settings["long"]["steps"] == script.LONG_STEPS
    keys = ("task", "causal", "encoding", "lr", "seed")
    done = [tuple(run[key] for key in keys) for run in result["runs"]]
    assert done[: len(script.RACE)] == script.RACE
    is_tuned(result, script.CONDITIONS, keys[:3])


def test_what_cannot_be_learned_was_not():
    """Without mask and position a model sees a set: the control of lesson 11."""
    result = kept("rope_versus_absolute")
    luck = result["settings"]["commonest_so_far"]
    for run in result["runs"]:
        if run["encoding"] == "none" and not run["causal"]:
            assert run["accuracy"] < max(0.35, luck[run["task"]] + 0.1), run["task"]


@pytest.mark.parametrize(
    ("encoding", "task"),
    [("rope", "5 back"), ("learned", "5 back"), ("learned", "place 3")],
)
def test_fair_race_comes_out_again(encoding, task):
    script = importlib.import_module("rope_versus_absolute")
    old = next(
        run
        for run in kept("rope_versus_absolute")["runs"]
        if (run["encoding"], run["task"], run["causal"]) == (encoding, task, True)
        and (task != "5 back" or run["lr"] == 1e-2)
    )
    every = script.EVERY if task == "5 back" else script.LONG_EVERY
    case = task, True, encoding, old["lr"], old["seed"], old["steps"], every
    new = script.run(*case)
    assert new["parameters"] == old["parameters"]
    # Other machines round otherwise: a measurement or two, and the last answers.
    assert abs(new["steps_to_95"] - old["steps_to_95"]) <= 2 * every
    assert new["accuracy"] == pytest.approx(old["accuracy"], abs=0.1)


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
    is_tuned(result, script.CONDITIONS, ("task", "relative"))


def test_local_layers_alone_read_nothing_far():
    """Four windows of 32 tokens end before the text that was replaced: the control."""
    for run in kept("relatives")["runs"]:
        if run["relative"] == "local" and run["task"] == "text":
            assert run["late_with_another_past"] == pytest.approx(run["late"], abs=2e-4)
            assert run["near_with_another_past"] > run["near"]


def test_relatives_begin_with_the_same_weights():
    script = importlib.import_module("relatives")
    seed_everything(0)
    plain = script.build("text", "RoPE").state_dict()
    for relative in script.RELATIVES:
        seed_everything(0)
        other = script.build("text", relative)
        same = other.state_dict()
        assert all(torch.equal(plain[name], same[name]) for name in plain), relative


def test_local_layers_end_at_their_window():
    script = importlib.import_module("relatives")
    seed_everything(0)
    tokens = torch.randint(256, (1, 200))
    changed = tokens.clone()
    changed[:, :40] = 0
    for relative, reads in (
        ("local", False),
        ("local, every 4th global", True),
        ("local, every 2nd global without", True),
    ):
        model = script.build("text", relative)
        with torch.no_grad():
            last = [model(each)[0, -1] for each in (tokens, changed)]
        assert torch.equal(*last) != reads, relative


@pytest.mark.parametrize(
    ("task", "relative", "within", "beyond"),
    [
        ("5 back", "xPos, B = 32", 0.05, 0.1),
        ("text", "local, every 2nd global without", 0.15, 0.5),
    ],
)
def test_relatives_come_out_again(task, relative, within, beyond):
    script = importlib.import_module("relatives")
    old = next(
        run
        for run in kept("relatives")["shorter_runs"]
        if (run["task"], run["relative"]) == (task, relative)
    )
    new = script.run(task, relative, old["lr"], old["seed"], old["steps"])
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


def test_six_encodings_are_of_this_script():
    script, result = importlib.import_module("six_encodings"), kept("six_encodings")
    settings = result["settings"]
    assert settings["model"] == script.MODEL and settings["steps"] == script.STEPS
    assert settings["encodings"] == script.ENCODINGS
    is_tuned(result, [(name,) for name in script.ENCODINGS], ("encoding",))


def test_another_past_is_hardly_noticed_even_where_it_could_be():
    """So that far text changes nothing says little, which is what lesson 03 says."""
    for run in kept("six_encodings")["runs"]:
        changed = run["near_loss_with_another_past"] - run["near_loss"]
        assert abs(changed) < 0.04, run


def test_six_encodings_come_out_again():
    script = importlib.import_module("six_encodings")
    old = next(
        run
        for run in kept("six_encodings")["shorter_runs"]
        if (run["encoding"], run["steps"]) == ("RoPE", script.BUDGETS[0])
    )
    new = script.run("RoPE", old["lr"], old["seed"], old["steps"])
    assert new["parameters"] == old["parameters"]
    # Other machines round otherwise, and training makes that grow: within the
    # trained length it stays small, past it seeds themselves differ by half a nat.
    assert mean(new["loss"][:8]) == pytest.approx(mean(old["loss"][:8]), abs=0.1)
    assert mean(new["loss"][32:]) == pytest.approx(mean(old["loss"][32:]), abs=0.6)
