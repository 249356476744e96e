"""The GPU's language models: the script does what it says, the result fits together."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from rope_teach.course.models import LanguageModel
from rope_teach.course.training import RESULTS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RESULT = RESULTS / "language_model.json"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("language_model")


# ------------------------------------------------------------------ the script


def test_each_question_has_its_constant_at_the_depth_it_says(script):
    tokens = torch.full((50, 513), ord("x"))
    depths = script.hide(tokens, torch.Generator().manual_seed(0))
    for row, depth in zip(tokens, depths, strict=True):
        text = bytes(row.tolist()).decode()
        end = text.index("\nassert")
        asked = re.findall(r"\nassert ([A-Z]{6}) == (\d{6})", text[end:])
        assert len(asked) == script.ASKED
        for (name, value), share in zip(asked, depth.tolist(), strict=True):
            assert text.index(f"\n{name} = {value}\n") == round(share * end)
    assert depths.min() < 0.05 and depths.max() > 0.9


class Looks(torch.nn.Module):
    """Answers questions from the constants in the newest ``window`` bytes."""

    def __init__(self, window):
        super().__init__()
        self.embed, self.window = torch.nn.Embedding(1, 1), window

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, 256)
        for row, text in enumerate(tokens.tolist()):
            text = bytes(text).decode("latin-1")
            for found in re.finditer(r"assert ([A-Z]{6}) == \d{0,6}", text):
                seen = text[max(0, found.end() - self.window) : found.start()]
                constant = re.search(rf"\n{found[1]} = (\d{{6}})", seen)
                first = found.start() + len("assert ABCDEF == ") - 1
                for n, digit in enumerate(constant[1] if constant else ""):
                    if first + n < len(text):
                        logits[row, first + n, ord(digit)] = 1
        return logits


def test_retrieval_counts_what_a_perfect_reader_finds(script):
    everything = script.retrieval(Looks(10_000), script.TINY, 512)
    assert everything == [1.0] * script.DEPTHS
    newest = script.retrieval(Looks(300), script.TINY, 512)
    assert newest[0] == newest[1] == 0 and newest[-1] == 1


def test_what_is_held_out_is_not_learnt(script):
    learnt, windows = script.texts()
    learnt = learnt.numpy().tobytes()
    middles = [row[2000:2500].numpy().tobytes() for row in windows[::20]]
    assert sum(middle in learnt for middle in middles) == 0


def test_one_compiled_step_serves_every_rule(script):
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    model = LanguageModel(**script.TINY.model, encoding="rope")
    for block in model.blocks:
        block.compile(dynamic=False, fullgraph=True, backend=counted)
    for rule in ("none", "PI", "YaRN"):
        script.set_rule(model, script.scaling(rule, 4, 2048))
        model(torch.zeros(1, 16, dtype=torch.long)).sum().backward()
    assert len(graphs) == 1


def test_tiny_run_has_what_the_result_has(script, tmp_path):
    trained = script.train(script.TINY, str(tmp_path), "rope", 0)
    extended = script.extend(script.TINY, str(tmp_path), "LongRoPE", 4, 0)
    assert extended["factors"] == sorted(extended["factors"])
    assert trained["training_bits"] < 8.3
    # Its short list changes nothing within the trained length.
    short = extended["zero-shot"]["bits"]["512"]
    assert short == pytest.approx(trained["bits"]["512"], abs=0.02)
    of_gpu = {run.get("rule", run.get("encoding")): run for run in kept()["runs"]}
    for new, old in ((trained, of_gpu["rope"]), (extended, of_gpu["LongRoPE"])):
        assert new.keys() | {"seconds"} == old.keys()
    assert trained["bits"].keys() == of_gpu["rope"]["bits"].keys()


# ------------------------------------------------------------------ the result


def kept():
    return json.loads(RESULT.read_text())


def of(runs, **wanted):
    return [run for run in runs if wanted.items() <= run.items()]


def test_result_is_of_this_script_and_whole(script):
    result = kept()
    settings, runs = result["settings"], result["runs"]
    assert settings["model"] == script.Plan().model
    assert settings["tuned_steps"] == script.tuned(settings["steps"])
    assert "H200" in result["machine"]
    jobs = script.jobs(script.SEEDS, script.RULES)
    assert len(runs) == len(jobs)
    for kind, name, *rest in jobs:
        if kind is script.train:
            (run,) = of(runs, encoding=name, seed=rest[0])
            assert 20e6 < run["parameters"] < 60e6
            assert run["steps"] == settings["steps"]
            measured = {512: run} if name == "learned" else {4096: run}
        else:
            (run,) = of(runs, rule=name, stretch=rest[0], seed=rest[1])
            assert run["steps"] == settings["tuned_steps"]
            measured = {512 * rest[0]: run["zero-shot"], 512: run["tuned"]}
        for length, of_run in measured.items():
            curve = of_run["bits"][str(length)]
            assert len(curve) == length // script.BIN
            assert 0.3 < min(curve) and max(curve) < 20
            shares = of_run["retrieval"][str(length)]
            assert len(shares) == script.DEPTHS
            assert all(0 <= share <= 1 for share in shares)
        if name == "learned":
            assert run["bits"].keys() == {"512"}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("stretch", [4, 8])
def test_rules_that_change_nothing_changed_nothing(stretch, seed):
    runs, longer = kept()["runs"], str(512 * stretch)

    def before(rule, length):
        (run,) = of(runs, rule=rule, stretch=stretch, seed=seed)
        return pytest.approx(run["zero-shot"]["bits"][length], abs=0.01)

    (plain,) = of(runs, encoding="rope", seed=seed)
    assert plain["bits"][longer] == before("none", longer)
    for rule in ("none", "dynamic NTK", "LongRoPE"):
        assert plain["bits"]["512"] == before(rule, "512")
    (ntk,) = of(runs, rule="NTK-aware", stretch=stretch, seed=seed)
    assert ntk["zero-shot"]["bits"][longer] == before("dynamic NTK", longer)


def test_longrope_slows_no_hand_less_than_a_faster_one():
    for run in of(kept()["runs"], rule="LongRoPE"):
        factors = run["factors"]
        assert factors == sorted(factors)
        assert factors[0] >= 1 and factors[-1] <= run["stretch"]
