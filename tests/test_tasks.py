import hashlib
import itertools
from itertools import islice

import pytest
import torch

from rope_teach.course.tasks import (
    IGNORE,
    TEST_MODULES,
    TRAIN_MODULES,
    copy_batches,
    order_batches,
    picture_batches,
    place_batches,
    python_text,
    text_batches,
    text_windows,
)


def test_order_has_one_a_and_one_b_and_the_right_answer():
    tokens, first = next(order_batches(batch=500, seq=9, vocab=6))
    assert tokens.shape == (500, 9) and tokens.max() == 5
    assert ((tokens == 0).sum(1) == 1).all() and ((tokens == 1).sum(1) == 1).all()
    a, b = (tokens == 0).int().argmax(1), (tokens == 1).int().argmax(1)
    assert torch.equal(first, (a < b).long())
    assert 0.4 < first.double().mean() < 0.6


def test_copy_targets_are_the_tokens_from_back_there():
    tokens, targets = next(copy_batches(back=3, batch=5, seq=8))
    assert torch.equal(targets[:, 3:], tokens[:, :-3])
    assert (targets[:, :3] == IGNORE).all()


def test_place_targets_are_the_token_at_that_place():
    tokens, targets = next(place_batches(place=3, batch=5, seq=8))
    assert (targets[:, 3:] == tokens[:, 3:4]).all()
    assert (targets[:, :3] == IGNORE).all()


@pytest.mark.parametrize(("down", "right"), [(2, 1), (2, -1), (-1, 0)])
def test_picture_targets_are_the_colours_over_there(down, right):
    pictures, targets = next(
        picture_batches(down, right, batch=2, height=4, width=5, vocab=6)
    )
    assert pictures.shape == targets.shape == (2, 4, 5) and pictures.max() == 5
    for row, column in itertools.product(range(4), range(5)):
        y, x = row + down, column + right
        inside = 0 <= y < 4 and 0 <= x < 5
        expected = pictures[:, y, x] if inside else torch.tensor([IGNORE] * 2)
        assert torch.equal(targets[:, row, column], expected)


@pytest.mark.parametrize(
    "make", [order_batches, copy_batches, place_batches, picture_batches]
)
def test_a_seed_fixes_every_batch(make):
    a, b, other = ([t for t, _ in islice(make(seed=s), 3)] for s in (5, 5, 6))
    assert all(map(torch.equal, a, b))
    assert not any(map(torch.equal, a, other)) and not torch.equal(a[0], a[1])


def test_text_is_ascii_source_split_by_module():
    train, test = python_text(TRAIN_MODULES), python_text(TEST_MODULES)
    assert not set(TRAIN_MODULES) & set(TEST_MODULES)
    assert 130_000 < len(train) < 160_000 and 50_000 < len(test) < 70_000
    assert train.max() < 128 and b"\r" not in bytes(train.tolist())
    assert bytes(train[:200].tolist()).decode().startswith('"""\nModule difflib')


def test_text_is_the_same_in_every_python():
    digest = hashlib.sha256(bytes(python_text(("this",)).tolist())).hexdigest()
    assert digest == "481d0cb3de511eae0b5713dad18542b07eafd9c013bb7690f7497bad49923a71"


def test_text_batches_predict_the_next_token():
    text = torch.arange(1000)
    tokens, targets = next(text_batches(text, batch=8, seq=20))
    assert tokens.shape == targets.shape == (8, 20)
    assert torch.equal(targets, tokens + 1)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_windows_cover_the_text_once():
    tokens, targets = text_windows(torch.arange(101), 20)
    assert tokens.flatten().tolist() == list(range(100))
    assert torch.equal(targets, tokens + 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: next(order_batches(seq=1)), "ValueError: got seq=1, vocab=10"),
        (
            lambda: next(copy_batches(back=32)),
            "ValueError: between 1 and seq - 1 = 31, got 32",
        ),
        (lambda: next(copy_batches(back=0)), "ValueError: got 0"),
        (
            lambda: next(picture_batches(down=6)),
            "ValueError: down=6, right=1 leads outside every picture of height=6",
        ),
        (
            lambda: python_text(("no_such_module",)),
            "ValueError: no source code for 'no_such",
        ),
        (
            lambda: python_text(("itertools",)),
            "ValueError: no source code for 'itertools'",
        ),
        (
            lambda: text_windows(torch.arange(20), 20),
            "ValueError: more than seq=20 tokens, got shape (20,)",
        ),
        (lambda: next(text_batches(torch.arange(4), seq=4)), "ValueError: seq=4"),
    ],
)
def test_bad_input_is_named(refuses, call, message):
    refuses(call, message)
