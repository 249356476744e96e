"""The benchmark scripts, without timing: who is right, and what they write."""

import importlib
import itertools
import math
from pathlib import Path

import pytest
import torch

from rope_teach import RotaryEmbedding, angles, inverse_frequencies
from rope_teach.course.training import stored_result


def script(monkeypatch, name):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module(name)


@pytest.fixture
def gpu(monkeypatch):
    module = script(monkeypatch, "gpu")
    monkeypatch.setattr(module, "DEVICE", "cpu")
    torch.manual_seed(0)
    return module


def shapes(gpu):
    yield gpu.Shape("tiny fp32", 3, 20, 4, 2, 16, torch.float32)
    yield gpu.Shape("tiny bf16", 1, 20, 4, 4, 16)
    yield gpu.Shape("decode", 3, 1, 4, 2, 16, backward=False, start=4095)
    yield gpu.Shape("partial", 2, 20, 4, 2, 16, rotary_dim=8)


@pytest.mark.parametrize("which", range(4))
def test_each_contestant_on_the_gpu_is_right_at_its_positions(gpu, which):
    shape = list(shapes(gpu))[which]
    seen = set()
    for name, case, turn in gpu.contestants(shape):
        if "compiled" in name or name.startswith(("flash", "Liger")):
            continue  # a minute of compiling; and these need a GPU
        seen.add(name)
        gpu.error(turn, case, shape)
        if shape.backward and case.backward:
            (turn,) = gpu.in_layers(turn, 1)
            _, grads = gpu.step(turn, *gpu.inputs_and_gradients(shape, True))
            assert all(grad.isfinite().all() for grad in grads)
    ways = {"positions per sequence", "left padding", "two axes", "xPos"}
    assert {f"ours, {way}" for way in ways} < seen
    assert ("ours, packed" in seen) == (shape.seq > 1)


def test_a_contestant_at_other_positions_is_wrong(gpu):
    shape = next(shapes(gpu))
    at = gpu.Positions(shape)
    case = gpu.Case("half", at.rows)
    rope = RotaryEmbedding(16, pairing="half")
    gpu.error(lambda q, k: rope(q, k, at.rows), case, shape)
    wrong = {
        "first right, last wrong": torch.cat([at.rows[:-1], at.rows[-1:] + 1]),
        "a token late": at.rows + 1,
    }
    for positions in wrong.values():
        with pytest.raises(ValueError, match="wrong by"):
            gpu.error(lambda q, k, p=positions: rope(q, k, p), case, shape)
    with pytest.raises(ValueError, match="wrong by nan"):
        gpu.error(lambda q, k: (q * math.nan, k * math.nan), case, shape)


def test_shared_tables_are_made_once_for_every_32_calls(gpu):
    made = itertools.count()
    shared = gpu.Shared(lambda: next(made))
    assert list(gpu.in_layers(shared, 65)) == [0] * 32 + [1] * 32 + [2]
    assert list(gpu.in_layers(abs, 3)) == [abs] * 3


def test_packed_positions_begin_anew_with_each_document(gpu):
    at = gpu.Positions(gpu.Shape("any", 3, 20, 4, 2, 16))
    ends = at.cu_seqlens.tolist()
    assert ends[0] == 0 and ends[-1] == 60 and len(ends) > 3
    lengths = [b - a for a, b in itertools.pairwise(ends)]
    assert at.packed.tolist() == [t for length in lengths for t in range(length)]
    assert at.max_seqlen == max(lengths)


def test_each_way_of_positions_on_the_cpu_is_right(monkeypatch):
    cpu = script(monkeypatch, "cpu")
    monkeypatch.setattr(cpu, "PREFILL", (2, 2, 20, 64))
    monkeypatch.setattr(cpu, "DECODE", (3, 2, 1, 64))
    monkeypatch.setattr(cpu, "compare", lambda call, *_: call() and "1.00")
    lines = list(cpu.time_ways(1))
    assert all(line.count("1.00") == 4 for line in lines)
    assert sum("rope_teach" in line for line in lines) == 7
    rope = RotaryEmbedding(64, pairing="half")
    late = ("late", torch.arange(20), lambda q, k: rope(q, k, start=1))
    monkeypatch.setattr(cpu, "ways", lambda *_: iter([late]))
    with pytest.raises(ValueError, match="wrong by"):
        list(cpu.time_ways(1))


def test_every_choice_of_the_rows_is_exact(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    choices = script(monkeypatch, "gpu_choices")
    positions = torch.tensor([[3, 0, 1_000_000], [7, -2, 5]])
    inv_freq = inverse_frequencies(16)
    angle = angles(positions, inv_freq)
    for name in choices.CHANGES_OF_ROWS:
        module = choices.changed(name, tmp_path, choices.CHANGES_OF_ROWS)
        rows = module.cos_sin(positions, inv_freq, 1.0, 0, 1, None)
        assert (rows[:, :, 0] - angle.cos()).abs().max() < 1e-6, name
        assert (rows[:, :, 1] - angle.sin()).abs().max() < 1e-6, name
    monkeypatch.setitem(choices.CHANGES_OF_ROWS, "gone", [("no such text", "")])
    with pytest.raises(ValueError, match="'gone': the kernel no longer has"):
        choices.changed("gone", tmp_path, choices.CHANGES_OF_ROWS)


def test_the_report_says_which_goals_are_met(monkeypatch):
    report = script(monkeypatch, "gpu_report")
    shape = "train bf16 4x4096 32/32 128"
    figures = {
        "copy of q and k": (150.0, 260.0),
        "copy by the driver": (131.0, None),
        "ours, half": (130.0, 270.0),
        "ours, positions per sequence": (140.0, 280.0),
        "Liger (in place)": (139.0, 269.0),
    }
    rows = {}
    for name, (forward, both) in figures.items():
        rows[shape, name] = {"gpu": forward}
        if both is not None:
            rows[shape, name]["gpu_both"] = both
    found = {g.what: g for g in report.goals([shape], rows) if g.measured is not None}
    expected = {
        "from start, forward: beside a copy": 130 / 131,  # the faster copy
        "from start, both: beside a copy": 270 / 260,
        "positions per sequence, forward: beside start": 140 / 130,
        "positions per sequence, both: beside start": 280 / 270,
        "from start, forward: beside the best other library": 130 / 139,
        "from start, both: beside the best other library": 270 / 269,
    }
    assert {what: goal.measured for what, goal in found.items()} == expected
    page = report.table_of_goals(list(found.values()), [shape])
    assert "| from start, forward: beside a copy | 1.02 times | 0.992 |" in page
    assert "| from start, both: beside a copy | 1.02 times | **1.038** |" in page
    assert "1.06 times | **1.077** |" in page and "1.06 times | 1.037 |" in page


def test_the_stored_report_is_what_the_script_writes(monkeypatch):
    report = script(monkeypatch, "gpu_report")
    stored = [stored_result(name) for name in ("gpu", "gpu_choices", "fusion")]
    assert report.REPORT.read_text() == report.report(*stored)


def test_cross_attention_that_rotates_both_texts(monkeypatch):
    """It overrides a part of `Attention`, and must follow when that changes."""
    layer = script(monkeypatch, "summarization").RotatedCross(32, 4, causal=False)
    x, context = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    q, k = (
        projected.unflatten(-1, (4, 8)).transpose(1, 2)
        for projected in (layer.query(x), layer.key(context))
    )
    q, k = RotaryEmbedding(8)(q, k, (torch.arange(3), torch.arange(5)))
    weights = (q @ k.mT / 8**0.5).softmax(-1)
    torch.testing.assert_close(layer.weights(x, context=context), weights)
    assert layer(x, context=context).shape == x.shape


class AtOnce:
    """Workers that train when they are asked to."""

    def submit(self, run, case, **given):
        class Result:
            def get(self):
                return run(*case, **given)

        return Result()


def test_the_best_rate_is_looked_for_past_the_edge(monkeypatch):
    common = script(monkeypatch, "common")
    tried = []

    def run(name, lr, seed, steps=9):
        tried.append((name, lr, seed, steps))
        if lr > 0.05:
            return {"validation": None}  # diverged
        best = {"low": 1e-4, "inside": 2e-3, "high": 0.032}[name]
        return {"validation": abs(math.log(lr / best)), "lr": lr, "steps": steps}

    conditions, rates = [("low",), ("inside",), ("high",)], (1e-3, 2e-3, 4e-3)
    found = common.tuned(AtOnce(), run, conditions, rates, (1, 2), (3,), extend=2)
    facts, runs, shorter = found()
    assert [fact["best"] for fact in facts] == [2.5e-4, 2e-3, 0.016]
    assert [fact["at_the_edge"] for fact in facts] == [True, False, True]
    assert [len(fact["validation"]) for fact in facts] == [5, 3, 5]
    assert [run["lr"] for run in runs] == [2.5e-4] * 2 + [2e-3] * 2 + [0.016] * 2
    assert [run["steps"] for run in shorter] == [3, 3, 3]
    assert {seed for _, _, seed, _ in tried} == {common.TUNING_SEED, 1, 2}
    known = common.tuned(AtOnce(), run, [("high",)], rates, (1,), (), 2, 2.1)()[0]
    assert known[0]["best"] == 4e-3 and known[0]["at_the_edge"]
    assert common.best_rate({1e-3: None, 2e-3: math.nan, 4e-3: 7.0}) == 4e-3
    assert common.past_the_edge({0.02: 1.0, 0.04: 0.5, 0.08: None}) is None
