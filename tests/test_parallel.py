"""Two real processes: the same results as one, and what a wrong position costs."""

import importlib
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rope_teach.attention import Attention
from rope_teach.course import parallel
from rope_teach.course.models import LanguageModel
from rope_teach.course.parallel import (
    SCHEMES,
    ParallelAttention,
    launch,
    over_processes,
    run_shard,
    shard,
    shard_positions,
    train,
    unshard,
)
from tests.test_exercises import run_cell

SEQ = 16
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


# ---------------------------------------------------------------- shards, one process


def test_positions_of_a_shard():
    assert shard_positions(12, 1, 3).tolist() == [4, 5, 6, 7]
    assert shard_positions(12, 1, 3, "zigzag").tolist() == [2, 3, 8, 9]
    assert shard_positions(6, 0, 1, "zigzag").tolist() == list(range(6))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_token_has_one_owner_and_comes_back(scheme, world):
    x = torch.randn(2, 48, 3)
    shards = [shard(x, rank, world, scheme) for rank in range(world)]
    assert {part.shape for part in shards} == {(2, 48 // world, 3)}
    assert torch.equal(unshard(shards, scheme), x)
    heads = [shard(x.transpose(1, 2), r, world, scheme, dim=-1) for r in range(world)]
    assert torch.equal(unshard(heads, scheme, dim=-1), x.transpose(1, 2))


def pairs(seq, world, scheme):
    """Pairs of query and key that each device computes under a causal mask."""
    owned = [shard_positions(seq, rank, world, scheme) for rank in range(world)]
    return [int((own + 1).sum()) for own in owned]


def test_zigzag_deals_out_causal_work_evenly():
    assert pairs(64, 2, "contiguous") == [528, 1552]
    assert pairs(64, 2, "zigzag") == [1040, 1040]
    assert len(set(pairs(96, 8, "zigzag"))) == 1


def test_wrong_shards_are_refused(refuses):
    refuses(
        lambda: shard_positions(12, 0, 2, "ring"),
        "ValueError: scheme must be 'contiguous' or 'zigzag', got 'ring'",
    )
    refuses(
        lambda: shard_positions(14, 0, 2, "zigzag"),
        "ValueError: seq must be a multiple of 4 for zigzag shards on 2 devices, "
        "got 14",
    )
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        refuses(
            lambda rank=rank, world=world: shard_positions(12, rank, world),
            f"ValueError: rank must lie between 0 and world - 1, got {rank} of {world}",
        )


def test_what_cannot_be_cut_is_refused(refuses):
    for wrong in ({"causal": False}, {"encoding": "alibi"}):
        refuses(
            lambda wrong=wrong: ParallelAttention(Attention(8, 2, **wrong)),
            "ValueError: attention must be causal and without ALiBi, got Attention(",
        )
    refuses(
        lambda: over_processes(nn.Linear(2, 2)),
        "ValueError: model must contain rope_teach's Attention ... got Linear",
    )
    once = over_processes(LanguageModel(5, 8, 1, 2))
    refuses(
        lambda: over_processes(once),
        "ValueError: model must ... not be split already, got LanguageModel",
    )
    mask = torch.ones(4, 4, dtype=torch.bool)
    refuses(
        lambda: once(torch.ones(1, 4).long(), mask),
        "ValueError: mask and cache cannot be split across processes; leave them out",
    )


def test_without_a_group_it_says_who_makes_one(refuses):
    model, tokens = LanguageModel(5, 8, 1, 2), torch.ones(1, 4).long()
    for call in (run_shard, lambda model, x: over_processes(model)(x)):
        refuses(
            lambda call=call: call(model, tokens),
            "RuntimeError: there is no process group ... launch ... torchrun",
        )


# ------------------------------------------------------------------ two processes


def models():
    """Models to cut, in float64, the last a bare attention layer."""
    torch.manual_seed(0)
    rope = LanguageModel(10, 32, 2, 4, kv_heads=2, encoding="rope")
    sines = LanguageModel(10, 32, 2, 4, encoding="sinusoidal")
    layer = Attention(32, 4, encoding="rope")
    return {"rope": rope.double(), "sines": sines.double(), "layer": layer.double()}


def inputs():
    torch.manual_seed(1)
    tokens, targets = torch.randint(10, (2, 2, SEQ))
    return tokens, targets, torch.randn(2, SEQ, 32, dtype=torch.float64)


def restarted(scheme):
    """Positions of the whole sequence such that each device counts from 0."""
    return unshard([torch.arange(SEQ // 2)] * 2, scheme, dim=0)


def gradients(scheme):
    """Gradients of a training step in which the sequence is cut."""
    rank, world = parallel.process()
    tokens, targets = (shard(x, rank, world, scheme) for x in inputs()[:2])
    model = DistributedDataParallel(over_processes(models()["rope"], scheme))
    own = shard_positions(SEQ, rank, world, scheme)
    F.cross_entropy(
        model(tokens, positions=own).flatten(0, 1), targets.flatten()
    ).backward()
    return [parameter.grad for parameter in model.parameters()]


def everything():
    """All that two processes are asked, so that they are started once."""
    tokens, _, x = inputs()
    done = {"losses": train(steps=5, batch=4, seq=32)}
    for scheme in SCHEMES:
        for name, model in models().items():
            given = x if name == "layer" else tokens
            done[name, scheme] = run_shard(model, given, scheme)
            done[name, scheme, "restarted"] = run_shard(
                model, given, scheme, restarted(scheme)
            )
        done["gradients", scheme] = gradients(scheme)
    try:
        train(batch=5)
    except ValueError as error:
        done["error"] = str(error)
    return done


@pytest.fixture(scope="module")
def two():
    return launch(2, everything)


def whole(two, *key):
    return unshard([done[key] for done in two], key[1])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["rope", "sines", "layer"])
def test_two_processes_give_what_one_gives(two, name, scheme):
    tokens, _, x = inputs()
    right = models()[name](x if name == "layer" else tokens)
    torch.testing.assert_close(whole(two, name, scheme), right, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["rope", "sines", "layer"])
def test_positions_that_restart_are_wrong(two, name, scheme):
    tokens, _, x = inputs()
    model, given = models()[name], (x if name == "layer" else tokens)
    wrong = whole(two, name, scheme, "restarted")
    assert (wrong - model(given)).abs().max() > 0.01
    # Only the turning is off: one process with these positions gives the same.
    same = model(given, positions=restarted(scheme))
    torch.testing.assert_close(wrong, same, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_of_a_cut_sequence_are_those_of_the_whole(two, scheme):
    tokens, targets, _ = inputs()
    model = models()["rope"]
    F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
    for done in two:
        for got, parameter in zip(
            done["gradients", scheme], model.parameters(), strict=True
        ):
            torch.testing.assert_close(got, parameter.grad, rtol=0, atol=1e-14)


def test_training_on_two_processes_is_training_on_one(two):
    alone = train(steps=5, batch=4, seq=32)
    assert alone[-1] < alone[0] - 0.2
    for done in two:
        assert done["losses"] == pytest.approx(alone, abs=1e-12)


def test_rows_that_do_not_divide_are_refused(two):
    assert two[0]["error"] == "batch must be a multiple of 2 processes, got 5"


def fail_on_the_second():
    rank, _ = parallel.process()
    if rank == 1:
        raise ValueError("the second has had enough")
    parallel.gather(torch.ones(1), dim=0)  # waits for the second, in vain


def process_and_sum(whole):
    rank, world = parallel.process()
    return (rank, world), shard(whole, rank, world, dim=0).sum().item()


def test_launch_says_which_process_failed_and_why():
    with pytest.raises(RuntimeError) as caught:
        launch(2, fail_on_the_second)
    first, *_, last = str(caught.value).splitlines()
    assert first == "process 1 of 2 stopped with"
    assert last == "ValueError: the second has had enough"


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_only_linux_forks(platform, monkeypatch):
    monkeypatch.setattr(parallel, "sys", SimpleNamespace(platform=platform))
    assert parallel.start_method() == ("forkserver" if platform == "linux" else "spawn")


def test_processes_that_are_spawned_find_each_other(monkeypatch):
    monkeypatch.setattr(parallel, "start_method", lambda: "spawn")
    both = launch(2, process_and_sum, torch.arange(4.0))
    assert both == [((0, 2), 1.0), ((1, 2), 5.0)]


def test_launch_takes_along_what_a_notebook_defines():
    scope = run_cell(CELL, {"torch": torch})
    here, there = launch(2, scope["passed_on"], torch.arange(3.0), lambda x: x + SEQ)
    assert here.tolist() == [0, 0, 0] and there.tolist() == [32, 34, 36]


CELL = """
import torch.distributed as dist
FACTOR = 2

def doubled(x):
    return FACTOR * x

def passed_on(x, change):
    box = torch.zeros(3)
    if dist.get_rank() == 0:
        dist.send(doubled(change(x)), 1)
    else:
        dist.recv(box, 0)
    return box
"""


def test_launch_refuses_what_cannot_travel(refuses):
    notebook = type(sys)("__main__")
    exec("def cell(): pass", vars(notebook))  # a function whose text nobody knows
    for function, args, why in (
        (notebook.cell, (), "got cell: the text of cell is not known"),
        (process_and_sum, ((n for n in range(2)),), "cannot pickle 'generator'"),
    ):
        refuses(
            lambda function=function, args=args: launch(2, function, *args),
            f"ValueError: function and args must be such that ... {why}",
        )


def torchrun(*program: str) -> tuple[list[float], str]:
    """Losses that two processes print, of every start, and what torchrun reports."""
    # A start may fail where many programs ask for free ports at once: it starts again.
    options = "--standalone --local-addr localhost --max-restarts 3 --nproc-per-node 2"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options.split(), *program],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"^step +\d+  loss (\S+)$", done.stdout, re.MULTILINE)
    return list(map(float, losses)), done.stderr


def test_torchrun_trains_on_two_processes():
    losses, report = torchrun("-m", "rope_teach.course.parallel", "--steps", "3")
    if len(losses) > 3:
        warnings.warn(f"it was started again:\n{report}", stacklevel=1)
    # The last start's: one that failed at its very end has printed its losses too.
    assert losses[-3:] == pytest.approx(train(steps=3), abs=1e-11)


def test_torchrun_starts_again_where_a_process_died(tmp_path):
    program = tmp_path / "dies_once.py"
    program.write_text(
        "import os\n"
        "from rope_teach.course.parallel import main\n"
        "main()\n"
        "if os.environ['RANK'] + os.environ['TORCHELASTIC_RESTART_COUNT'] == '10':\n"
        "    os._exit(1)\n"
    )
    losses, report = torchrun(str(program), "--steps", "2")
    assert losses[-2:] == pytest.approx(train(steps=2), abs=1e-11)
    assert "failed (exitcode: 1)" in report


# -------------------------------------------------- the committed result of two GPUs


def test_result_of_two_gpus(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("many_devices")
    result = json.loads(script.RESULT.read_text())
    assert all(result[fact] for fact in ("command", "date", "machine", "versions"))
    assert result["settings"] == {
        "small": script.SMALL,
        "small_seq": script.SMALL_SEQ,
        "large": script.LARGE,
    }
    rounding = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.01}
    for row in result["equality"]:
        for what in ("logits", "gradients"):
            assert (row[what] > 0.01) == row["positions_restart"]
            assert row["positions_restart"] or row[what] < rounding[row["dtype"]]
    lengths = [row["seq"] for row in result["speed"] if row["way"] == "one GPU"]
    assert tuple(lengths) == script.LARGE_SEQS
    assert result["data_parallel"]["largest_difference"] < 1e-12
    assert result["data_parallel"]["first"] == pytest.approx(train(steps=1)[0], abs=0.1)
