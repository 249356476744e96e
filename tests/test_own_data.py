"""A reader's own data: one call each, and a clear error for what cannot be learned."""

import itertools
import math

import pytest
import torch

from rope_teach.course.models import LanguageModel, QuestionAnswerer, Summarizer
from rope_teach.course.own_data import batches, evaluate, text_tokens
from rope_teach.course.small import Bytes, load_small
from rope_teach.course.tasks import END, IGNORE, START, text_batches
from rope_teach.course.training import (
    exact_match,
    f1,
    fit,
    load,
    rouge_l,
    save,
    seed_everything,
)

MAILS = [
    (f"Dear all, the {what} meeting moves to {day}. Bring {it}.", f"{what} on {day}")
    for what in ("budget", "sales", "garden")
    for day, it in (("Monday", "notes"), ("Friday", "cups"), ("Sunday", "a dog"))
]
ASKED = [(mail, "When?", title.split()[-1]) for mail, title in MAILS]
TOKENS = Bytes()


def model_of(kind):
    seed_everything(0)
    return kind(len(TOKENS), dim=32, encoding="rope")


@pytest.mark.parametrize(
    ("kind", "examples", "measure"),
    [
        (Summarizer, MAILS, "rouge_l"),
        (QuestionAnswerer, ASKED, "exact_match"),
        (LanguageModel, MAILS, "rouge_l"),
        (LanguageModel, ASKED, "f1"),
    ],
)
def test_data_of_another_kind_is_learned_and_saved(kind, examples, measure, tmp_path):
    model = model_of(kind)
    before = evaluate(model, examples, TOKENS, steps=24)
    fit(model, batches(model, examples, TOKENS, batch=9), 70, lr=1e-2, label=None)
    after = evaluate(model, examples, TOKENS, steps=24)
    assert after[measure] > before[measure] + 0.3
    assert len(after["texts"]) == len(examples)
    save(tmp_path / "mine.safetensors", model)
    again = evaluate(load(tmp_path / "mine.safetensors"), examples, TOKENS, steps=24)
    assert again == after


def test_a_text_file_is_learned(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("the quick brown fox — jumps. " * 20, encoding="utf-8")
    text = text_tokens(path, TOKENS)
    assert torch.equal(text, text_tokens(path.read_text("utf-8"), TOKENS))
    model = model_of(LanguageModel)
    losses = fit(model, text_batches(text, 8, 32), 40, lr=1e-2, label=None)
    assert losses[-1] < 0.5 * losses[0]
    for empty in ("", "  \n"):
        path.write_text(empty)
        for source in (empty, path):
            with pytest.raises(ValueError, match="source must contain text"):
                text_tokens(source, TOKENS)
    path.write_bytes("\ufeffГолос\r\nмоя\r\n".encode())  # as Windows writes it
    assert TOKENS.decode(text_tokens(path, TOKENS).tolist()) == "Голос\nмоя\n"
    with pytest.raises(ValueError, match=r"write Path\('.*notes.txt'\)"):
        text_tokens(str(path), TOKENS)
    for wrong in (None, b"text"):
        with pytest.raises(TypeError, match="source must be a text or a Path"):
            text_tokens(wrong, TOKENS)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text in UTF-8"):
        text_tokens(path, TOKENS)


def test_what_a_batch_holds():
    text, title = "ab cd", "cd"
    (document, given), targets = next(
        batches(model_of(Summarizer), [(text, title)], TOKENS)
    )
    assert document[0].tolist() == TOKENS.encode(text)
    assert given[0].tolist() == [START, *TOKENS.encode(title)]
    assert targets[0].tolist() == [*TOKENS.encode(title), END]
    rows, spans = next(
        batches(model_of(QuestionAnswerer), [(text, "?", title)], TOKENS)
    )
    first, last = spans[0].tolist()
    assert TOKENS.decode(rows[0, first : last + 1].tolist()) == title
    rows, targets = next(batches(model_of(LanguageModel), [(text, title)], TOKENS))
    counted = targets[0][targets[0] != IGNORE].tolist()
    assert counted == [*TOKENS.encode(title), END]
    assert rows.shape == targets.shape


def test_every_example_comes_once_a_round_in_a_new_order():
    model = model_of(Summarizer)
    stream = batches(model, MAILS, TOKENS, batch=2, seed=1)
    rounds = [
        [
            TOKENS.decode(row.tolist())
            for (d, _), _ in itertools.islice(stream, 5)
            for row in d
        ]
        for _ in range(2)
    ]
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(text for text, _ in MAILS)
    assert rounds[0] != rounds[1]


@pytest.mark.parametrize("answer", ["naïve", "é", "🙂 ok", "e x"])
@pytest.mark.parametrize("kind", ["bytes", "code"])
def test_a_span_survives_letters_of_many_bytes(kind, answer):
    tokens = Bytes() if kind == "bytes" else load_small()[1]
    context = "The x naïve 🙂 ok é"
    model = QuestionAnswerer(len(tokens), dim=16, encoding="rope")
    rows, spans = next(batches(model, [(context, "which?", answer)], tokens))
    first, last = spans[0].tolist()
    assert answer in tokens.decode(rows[0, first : last + 1].tolist())


def test_an_answer_that_occurs_twice_can_be_placed():
    context = "a cat and a cat"
    model = model_of(QuestionAnswerer)
    at = [
        next(batches(model, [(context, "?", "cat", *start)], TOKENS))[1][0, 0].item()
        for start in ((), (2,), (12,))
    ]
    assert at[0] == at[1] == at[2] - 10
    with pytest.raises(ValueError, match="at character 5"):
        batches(model, [(context, "?", "cat", 5)], TOKENS)


@pytest.mark.parametrize(
    ("kind", "examples", "message"),
    [
        (Summarizer, [], "at least one example"),
        (Summarizer, "text", "at least one example"),
        (Summarizer, ["text"], r"examples\[0\] must be \(document, summary\)"),
        (Summarizer, ASKED, r"examples\[0\] must be \(document, summary\)"),
        (QuestionAnswerer, MAILS, r"must be \(context, question, answer\)"),
        (LanguageModel, [("a",)], r"\(document, summary\) or \(context, question"),
        (Summarizer, [("a", "b"), ("", "b")], r"examples\[1\] has an empty text"),
        (Summarizer, [("a", " \n")], r"examples\[0\] has an empty text"),
        (QuestionAnswerer, [("a", "", "a")], r"examples\[0\] has an empty text"),
        (QuestionAnswerer, [("ab", "?", "c")], r"'c' is not in its context 'ab'"),
        (LanguageModel, [("ab", "?", "c")], r"'c' is not in its context 'ab'"),
        (Summarizer, [("a" * 513, "b")], r"examples\[0\] has 513 tokens"),
        (LanguageModel, [("a" * 510, "bcd")], r"has 51. tokens, more than max_len=512"),
        (QuestionAnswerer, [("a" * 512, "?", "a")], "cut the text, or raise max_len"),
        (Summarizer, [("a", None)], r"has an empty text, or NoneType where text"),
        (Summarizer, [("a", math.nan)], r"has an empty text, or float where text"),
        (Summarizer, [("a", "b"), None], r"examples\[1\] must be .*, got None"),
        (Summarizer, [{"text": "a", "title": "b"}], r"must be \(document, summary\)"),
        (Summarizer, ("one", "pair"), r"examples\[0\] must be .*, got 'one'"),
        (Summarizer, None, "at least one example, got None"),
        (QuestionAnswerer, [("a", "?", "a", 0, 1)], r"must be \(context, question"),
        (
            QuestionAnswerer,
            [("a", "?", "a", math.nan)],
            "begins must be a whole number",
        ),
        (QuestionAnswerer, [("a", "?", "a", -1)], "at character -1"),
        (QuestionAnswerer, [("a\r\nb", "?", "a\nb")], "is not in its context"),
    ],
)
def test_what_cannot_be_learned_is_refused_at_once(kind, examples, message):
    model = model_of(kind)
    with pytest.raises(ValueError, match=message):
        batches(model, examples, TOKENS)
    with pytest.raises(ValueError, match=message):
        evaluate(model, examples, TOKENS)


def test_a_generator_is_read_once_and_trains_as_a_list_does():
    model = model_of(Summarizer)
    one, two = (
        next(batches(model, examples, TOKENS, batch=4))
        for examples in (MAILS, (mail for mail in MAILS))
    )
    assert torch.equal(one[1], two[1])
    scores = [
        evaluate(model, examples, TOKENS, steps=3)
        for examples in (MAILS[:2], iter(MAILS[:2]))
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        ("Привет, мир", "привет мир!", 1),
        ("привет", "пока", 0),
        ("東京", "東京", 1),
        ("東京", "大阪", 0),
        ("🙂", "🙃", 0),
        ("()", "[]", 0),
        ('""', "'?'", 0),
    ],
)
def test_words_of_any_script_are_compared(said, wanted, right):
    assert exact_match(said, wanted) == f1(said, wanted) == right
    assert rouge_l(said, wanted) == right


def test_two_words_that_differ_share_no_pair_of_words():
    assert f1("mast", "pump", n=2) == f1("yes", "no", n=2) == 0
    assert f1("", "") == f1("", "", n=2) == rouge_l("", "") == 1


def test_special_tokens_in_a_text_are_text():
    model, pieces = load_small()
    context = "first <start> then <end> and <pad> or <answer>"
    pointer = QuestionAnswerer(len(pieces), dim=16, encoding="rope")
    rows, spans = next(batches(pointer, [(context, "<ask>?", "<end>")], pieces))
    first, last = spans[0].tolist()
    assert rows[0].tolist().count(START) == 1
    assert pieces.decode(rows[0, first : last + 1].tolist()).strip() == "<end>"
    rows, targets = next(batches(model, [(context, "a <end> of it")], pieces))
    assert (targets == END).sum() == 1 and not (rows == END).any()


def test_a_vocabulary_that_does_not_fit_is_refused():
    small = Summarizer(100, encoding="rope")
    with pytest.raises(ValueError, match="262 tokens, more than the model's 100"):
        batches(small, MAILS, TOKENS)
    with pytest.raises(TypeError, match="model must be a LanguageModel"):
        batches(torch.nn.Linear(1, 1), MAILS, TOKENS)
    for wrong in ("bytes", Bytes, None):
        with pytest.raises(TypeError, match=r"tokens must be a tokenizer, such as B"):
            batches(model_of(Summarizer), MAILS, wrong)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        batches(model_of(Summarizer), MAILS, TOKENS, batch=0)
