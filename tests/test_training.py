import itertools
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from rope_teach.course.models import LanguageModel
from rope_teach.course.tasks import IGNORE, copy_batches, order_batches
from rope_teach.course.training import (
    RESULTS,
    accuracy,
    bits_by_position,
    fit,
    load,
    loss_by_position,
    loss_of,
    save,
    seed_everything,
    stored_result,
)
from rope_teach.frequencies import llama3, longrope, ntk_aware, yarn

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


class Fixed(nn.Module):
    """A model that answers the same logits whatever it reads."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, tokens):
        return self.logits.expand(*tokens.shape, -1)


def trained(seed=0, steps=60, **kwargs):
    seed_everything(seed)
    model = LanguageModel(10, 32, 1, 2, encoding="rope", **kwargs)
    losses = fit(model, copy_batches(2, seq=12, seed=seed), steps, 1e-2, label=None)
    return model, losses


def test_fit_learns_to_copy():
    model, losses = trained()
    assert len(losses) == 60 and losses[-1] < 0.1 * losses[0]
    assert accuracy(model, next(copy_batches(2, seq=12, seed=9))) > 0.99


def test_a_seed_fixes_the_whole_training():
    (one, losses), (two, again) = trained(steps=5), trained(steps=5)
    assert losses == again
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    assert trained(seed=1, steps=5)[1] != losses


def test_loss_is_in_nats_and_skips_what_has_no_answer():
    batch = torch.zeros(1, 3, dtype=torch.long), torch.tensor([[IGNORE, 0, 1]])
    assert loss_of(Fixed([0.0, 0.0]), batch).item() == pytest.approx(math.log(2))
    assert accuracy(Fixed([1.0, 0.0]), batch) == 0.5


def test_one_answer_a_sequence_is_read_from_the_mean():
    class Last(Fixed):
        def forward(self, tokens):
            logits = torch.zeros(*tokens.shape, 2)
            logits[:, -1, 1] = 8.0
            return logits

    batch = torch.zeros(1, 4, dtype=torch.long), torch.tensor([1])
    expected = math.log(1 + math.exp(-2.0))  # 8 in one of 4 tokens is 2 in the mean
    assert loss_of(Last([0.0]), batch).item() == pytest.approx(expected)
    assert accuracy(Last([0.0]), batch) == 1


def test_loss_by_position_is_the_loss_of_each_column():
    model, batch = trained(steps=5)[0], next(copy_batches(2, seq=12, seed=3))
    loss = loss_by_position(model, batch)
    assert loss.shape == (12,) and not loss.requires_grad
    for place in (2, 11):
        column = batch[1].clone()
        column[:, :place] = column[:, place + 1 :] = IGNORE
        assert loss[place].item() == pytest.approx(
            loss_of(model, (batch[0], column)).item(), abs=1e-5
        )


def test_a_position_that_nobody_asks_for_has_no_loss():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    targets = torch.tensor([[IGNORE, 0, 0], [IGNORE, IGNORE, 0]])
    loss = loss_by_position(Fixed([0.0, 0.0]), (tokens, targets))
    assert loss[0].isnan() and loss[1:].tolist() == pytest.approx([math.log(2)] * 2)


def test_bits_are_the_loss_in_base_two():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    blind = bits_by_position(Fixed([0.0] * 256), (tokens, tokens + 7))
    assert blind.tolist() == pytest.approx([8.0] * 3)
    even = bits_by_position(Fixed([math.log(2), 0.0, 0.0]), (tokens, tokens))
    assert even.tolist() == pytest.approx([1.0] * 3)  # p is 2 of 4


def test_a_loss_that_is_not_finite_stops(refuses):
    model = Fixed([math.nan] * 10)
    refuses(
        lambda: fit(model, copy_batches(), 3, label=None),
        "FloatingPointError: the loss is nan at step 0; a lower lr",
    )


def test_too_few_batches_stop(refuses):
    few = itertools.islice(order_batches(batch=2), 2)
    refuses(
        lambda: fit(Fixed([0.0, 0.0]), few, 3, label=None),
        "ValueError: batches ended at step 2 of 3",
    )


def test_the_bar_ends_the_same_on_every_machine(capsys):
    fit(Fixed([0.0] * 10), copy_batches(batch=1), 7, label="copy")
    out, err = capsys.readouterr()
    assert out.rpartition("\r")[2] == f"copy 100% {'─' * 30} 7/7\n"
    assert err == ""


# ------------------------------------------------------- a file holds the rule, too


LISTS = {"short_factors": [1.0] * 8, "long_factors": (1.0,) * 4 + (8.0,) * 4}


@pytest.mark.parametrize(
    "rule",
    [
        None,
        llama3,
        partial(yarn, factor=4, trained_length=12),
        partial(longrope, **LISTS, trained_length=12, length=48),
    ],
)
def test_a_model_comes_back_under_its_rule(tmp_path, rule):
    model, path = trained(steps=1, scaling=rule)[0], tmp_path / "model.safetensors"
    save(path, model)
    again, (tokens, _) = load(path), next(copy_batches(2, seq=12))
    assert torch.equal(again(tokens), model.eval()(tokens))
    before, after = (each.blocks[0].attention.rope for each in (model, again))
    assert torch.equal(before.inv_freq, after.inv_freq)
    assert before.attention_factor == after.attention_factor


def test_training_goes_on_under_the_same_rule_alone(tmp_path, refuses):
    def go_on(steps, **kwargs):
        rule = partial(longrope, **LISTS | kwargs, trained_length=12, length=48)
        seed_everything(0)
        model, batches = (
            LanguageModel(10, encoding="rope", scaling=rule),
            copy_batches(),
        )
        return fit(model, batches, steps, label=None, checkpoint=tmp_path / "c")

    assert go_on(2) == go_on(2)  # a tuple comes back as a list, and is the same rule
    refuses(lambda: go_on(2, long_factors=[1.0] * 8), "ValueError: c ... scaling=")


@pytest.mark.parametrize(
    "rule",
    [
        lambda rotary_dim, base: ntk_aware(rotary_dim, base, factor=4),
        partial(yarn, factor=torch.tensor(4.0), trained_length=12),
    ],
)
def test_a_rule_that_no_file_can_hold_is_refused_at_once(tmp_path, refuses, rule):
    model = LanguageModel(10, encoding="rope", scaling=rule)
    message = "ValueError: a rule in rope_teach.frequencies ... got"
    refuses(lambda: save(tmp_path / "m", model), message)
    checkpoint = {"label": None, "checkpoint": tmp_path / "m"}
    refuses(lambda: fit(model, iter([]), 1, **checkpoint), message)


# -------------------------------------------------------------- what was measured


def test_stored_result_reads_what_the_benchmark_wrote(tmp_path, monkeypatch):
    stored = json.loads((RESULTS / "cliff.json").read_text())
    assert stored_result("cliff") == stored
    monkeypatch.chdir(tmp_path)  # a copy of the lesson elsewhere finds it too
    assert stored_result("cliff") == stored


def test_stored_result_says_which_there_are(refuses):
    refuses(
        lambda: stored_result("clif"),
        "FileNotFoundError: name must be one of the stored results ( ... cliff, ... ), "
        "got 'clif'",
    )
