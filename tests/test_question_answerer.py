import importlib
import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rope_teach.attention import ENCODINGS
from rope_teach.course.functions import first_match, questions
from rope_teach.course.models import QuestionAnswerer
from rope_teach.course.small import answer_prompt, load_small, write
from rope_teach.course.tasks import (
    PAD,
    START,
    STORY_WORDS,
    stories,
    story_batch,
    story_batches,
)
from rope_teach.course.training import (
    RESULTS,
    exact_match,
    f1,
    fit,
    load,
    loss_of,
    save,
    seed_everything,
)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def small(**kwargs):
    seed_everything(0)
    kwargs = {"encoding": "rope", "max_len": 64} | kwargs
    return QuestionAnswerer(len(STORY_WORDS), 32, 2, 4, **kwargs).eval()


def batch(size=4, sentences=4):
    return next(story_batches("train", size, sentences))


def first(count, split="train", **kwargs):
    return list(itertools.islice(stories(split, **kwargs), count))


# ------------------------------------------------------------------ the model


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_span_lies_in_the_text_alone(encoding):
    tokens, _ = batch()
    logits = small(encoding=encoding)(tokens)
    assert logits.shape == (4, 2, tokens.shape[1])
    begins = (tokens == START).int().argmax(1, keepdim=True)
    places = torch.arange(tokens.shape[1])
    text = (places > begins) & (tokens != PAD)
    assert torch.equal(logits.isfinite(), text[:, None].expand_as(logits))
    assert (logits[~logits.isfinite()] == float("-inf")).all()
    assert text.gather(1, small(encoding=encoding).answer(tokens)).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_padding_changes_nothing(encoding):
    model, (tokens, _) = small(encoding=encoding), batch()
    seq = tokens.shape[1]
    logits, wide = model(tokens), model(F.pad(tokens, (0, 7)))
    torch.testing.assert_close(wide[..., :seq], logits)
    assert (wide[..., seq:] == float("-inf")).all()
    assert torch.equal(model.answer(F.pad(tokens, (0, 7))), model.answer(tokens))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_gradient_everywhere(encoding):
    model, data = small(encoding=encoding), batch()
    loss_of(model, data).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_word_of_question_and_text_reaches_every_logit(encoding):
    model, (tokens, _) = small(encoding=encoding), batch(1, 3)
    logits = model(tokens)
    for place in (0, 2, 6, tokens.shape[1] - 1):  # before and after each logit
        changed = tokens.clone()
        changed[0, place] = 3 + (changed[0, place] - 2) % 20
        moved = (model(changed) - logits)[0, :, 6:].abs()
        assert (moved > 0).float().mean() > 0.9, place


def test_without_position_the_order_of_sentences_says_nothing():
    story = first(1, sentences=4)[0]
    told = [part.strip() + " ." for part in story.text.split(".") if part.strip()]
    swapped = story._replace(text=" ".join(reversed(told)))
    tokens, _ = story_batch([story])
    turned, _ = story_batch([swapped])
    for encoding, sees in (("none", False), ("sinusoidal", True), ("rope", True)):
        one, two = (
            small(encoding=encoding)(t)[0, 0, 6:].sort().values
            for t in (tokens, turned)
        )
        assert (one - two).abs().max().item() > 1e-4 or not sees
        assert sees or torch.allclose(one, two, atol=1e-5)


def test_shifted_positions_change_nothing_for_rope_alone():
    tokens, _ = batch()
    places = torch.arange(tokens.shape[1])
    for encoding, same in (("rope", True), ("learned", False), ("sinusoidal", False)):
        model = small(encoding=encoding, max_len=100)
        near, far = model(tokens), model(tokens, positions=places + 20)
        assert torch.allclose(near, far, atol=1e-5) == same


def test_the_answer_is_the_best_pair_that_does_not_end_before_it_starts():
    model, tokens = small(), torch.tensor([[5, 6, START, 7, 8, 9, PAD]])
    logits = torch.full((1, 2, 7), float("-inf"))
    logits[0, :, 3:6] = torch.tensor([[0.0, 1.0, 3.0], [4.0, 2.5, 0.0]])
    model.forward = lambda tokens: logits
    assert model.answer(tokens).tolist() == [[3, 3]]  # not start 5, end 3


def test_same_seed_same_training(tmp_path):
    def trained():
        model = small()
        fit(model, story_batches("train", 8, 3), 3, label=None)
        return model

    (one, two), (tokens, _) = (trained(), trained()), batch()
    assert torch.equal(one(tokens), two(tokens))
    save(tmp_path / "model.safetensors", one)
    assert torch.equal(load(tmp_path / "model.safetensors")(tokens), one(tokens))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[5, 6, 7]]), "ValueError: a question, START and a text"),
        (torch.tensor([[5, START, PAD]]), "ValueError: a question, START and a text"),
        (torch.tensor([[5, START, 99]]), "ValueError: got 1 to 99"),
        (torch.rand(1, 5), "TypeError: int64 ... torch.float32"),
    ],
)
def test_bad_rows_are_named(refuses, tokens, message):
    refuses(lambda: small()(tokens), message)


# ------------------------------------------------------------------ the stories


@pytest.mark.parametrize("sentences", [1, 6, 24])
def test_the_last_mention_wins(sentences):
    for story in first(200, sentences=sentences):
        told = story.text.split(" . ")
        asked = story.question.split()[2]
        mentions = [n for n, line in enumerate(told) if line.startswith(asked)]
        assert len(told) == sentences and mentions[-1] == story.needle
        words = story.text.split()
        assert words[story.start : story.end + 1] == story.answer.split()
        assert " ".join(told[story.needle].split()[2:]).rstrip(" .") == story.answer


def test_the_first_mention_and_the_last_sentence_are_mostly_wrong():
    drawn = first(500)
    told = [story.text.rstrip(" .").split(" . ") for story in drawn]
    asked = [story.question.split()[2] for story in drawn]
    opening = [
        next(line for line in lines if line.startswith(name))
        for lines, name in zip(told, asked, strict=True)
    ]
    for lines in (opening, [lines[-1] for lines in told]):
        right = [
            line.endswith(story.answer)
            for line, story in zip(lines, drawn, strict=True)
        ]
        assert sum(right) / len(right) < 0.6
    depths = [sum(story.needle == n for story in drawn) for n in range(4)]
    assert min(depths) > 90


def test_targets_point_at_the_answer():
    drawn = first(20, sentences=5, needle=2)
    tokens, spans = story_batch(drawn)
    for row, (start, end), story in zip(
        tokens.tolist(), spans.tolist(), drawn, strict=True
    ):
        assert STORY_WORDS.decode(row[start : end + 1]) == story.answer
        assert story.needle == 2
    again = next(story_batches("train", 20, 5, needle=2))
    assert all(map(torch.equal, (tokens, spans), again))


def test_no_text_is_in_two_splits():
    seen = [
        {story.text for story in first(2000, split, sentences=2)}
        for split in ("train", "validation", "test")
    ]
    assert all(len(texts) > 500 for texts in seen)
    assert not any(a & b for a, b in itertools.combinations(seen, 2))


def test_seeds_and_splits_give_other_stories():
    assert first(3) == first(3)
    assert first(3) != first(3, seed=1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"split": "dev"}, "ValueError: split must be ... got 'dev'"),
        ({"sentences": 0}, "ValueError: 0 sentences"),
        ({"needle": 4}, "ValueError: one of 4 sentences, counted from 0, got 4"),
        ({"needle": -1}, "ValueError: got -1"),
    ],
)
def test_bad_stories_are_named(refuses, kwargs, message):
    refuses(lambda: first(1, **({"split": "train"} | kwargs)), message)


# ---------------------------------------------------------------- the results


@pytest.fixture(scope="module")
def results():
    return json.loads((RESULTS / "question_answering.json").read_text())


def exact(results, kind, encoding, sentences):
    return [
        sum(run["scores"][str(sentences)]["exact"]) / 4
        for run in results["runs"]
        if (run["kind"], run["encoding"]) == (kind, encoding)
    ]


def test_gaps_mend_what_long_stories_break(results):
    assert min(exact(results, "plain", "rope", 4)) > 0.95
    assert max(exact(results, "plain", "rope", 16)) < 0.6
    assert min(exact(results, "random places", "rope", 16)) > 0.7
    assert max(exact(results, "plain", "none", 4)) < 0.4


def test_the_results_can_be_repeated(results, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("question_answering")
    stored = results["settings"]
    assert (stored["steps"], stored["rates"]) == (script.STEPS, [*script.RATES])
    done = [((r["kind"], r["encoding"]), r["seed"]) for r in results["runs"]]
    assert done == [*itertools.product(script.CONDITIONS, script.SEEDS)]
    kept = next(r for r in results["shorter_runs"] if r["kind"] == "random places")
    new = script.run("random places", "rope", kept["lr"], kept["seed"], kept["steps"])
    for sentences, scores in new["scores"].items():
        wanted = sum(kept["scores"][sentences]["exact"]) / 4
        assert sum(scores["exact"]) / 4 == pytest.approx(wanted, abs=0.1)


def test_each_condition_has_the_rate_that_validation_chose(results):
    best = {tuple(each["condition"]): each for each in results["rates_tried"]}
    for run in (*results["runs"], *results["shorter_runs"]):
        tried = best[run["kind"], run["encoding"]]
        scores = {float(lr): v for lr, v in tried["validation"].items()}
        assert run["lr"] == tried["best"] == min(scores, key=scores.get)
        assert len(scores) >= 3 and run["seed"] != results["settings"]["tuning_seed"]


def test_the_small_models_answers_can_be_repeated():
    kept = json.loads((RESULTS / "small_answers.json").read_text())["runs"]
    model, tokens = load_small()
    known = {(q.question, q.answer): q for q in questions("test")}
    for row in kept[::70]:  # of every length
        q = known[row["question"], row["answer"]]
        prompt = answer_prompt(tokens, q.context, q.question)
        (text,) = write(model, tokens, [prompt], 40)
        assert exact_match(text, q.answer) == row["exact"]["model"]
        assert f1(first_match(q), q.answer) == pytest.approx(
            row["f1"]["first match"], abs=1e-3
        )
