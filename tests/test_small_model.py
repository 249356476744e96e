"""The small real model: it loads or says why not, and does what its card says."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rope_teach.course import functions as tasks
from rope_teach.course import needles, small
from rope_teach.course.models import LanguageModel, generate, sample
from rope_teach.course.tasks import END, PAD, padded, python_text
from rope_teach.course.training import read, rouge_l, stored_result

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import small_model

CARD = small.WEIGHTS / "card.md"


@pytest.fixture(scope="module")
def loaded():
    return small.load_small()


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(small.WEIGHTS, tmp_path / "weights")
    return tmp_path / "weights"


# ---------------------------------------------------------------------- loading


def test_it_is_at_most_12_megabytes():
    assert sum(path.stat().st_size for path in small.WEIGHTS.iterdir()) < 12e6


def test_the_card_says_what_the_result_file_holds():
    stored = stored_result("small_model")
    assert CARD.read_text("utf-8") == small_model.card(stored, stored["runs"])
    assert not any("gpl" in p["licence"].lower() for p in stored["runs"])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        small.load_small(copy)


@pytest.mark.parametrize("keep", [0, 5, 4000, 5_000_000])
def test_a_file_that_was_cut_is_refused(copy, keep):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is damaged"):
        small.load_small(copy)


def test_another_tokenizer_is_refused(copy):
    path = copy / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("def", "fed", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="not the tokenizer that this model"):
        small.load_small(copy)


def rewritten(copy, tensors=None, **changed):
    path = copy / "model.safetensors"
    _, facts = read(path)
    facts = json.dumps({**facts, **changed})
    save_file(tensors or load_file(path), path, {"rope_teach": facts})


def test_another_format_is_refused(copy):
    rewritten(copy, format=2)
    with pytest.raises(ValueError, match=r"has format 2, this package reads 1"):
        small.load_small(copy)


def test_other_shapes_are_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    rewritten(copy, {k: v[:4000] if "embed" in k else v for k, v in tensors.items()})
    with pytest.raises(ValueError, match="does not fit its own configuration"):
        small.load_small(copy)


def test_a_stranger_s_file_is_refused(copy):
    save_file({"x": torch.zeros(1)}, copy / "model.safetensors")
    with pytest.raises(ValueError, match="was not written by rope_teach; install"):
        small.load_small(copy)


@pytest.mark.parametrize(
    "text", ["", "x = 'é→🙂'\n", "\t\r\n  a", "naïve   spaces", "a <start> <end>b"]
)
@pytest.mark.parametrize("kind", ["code", "bytes"])
def test_any_text_comes_back(loaded, kind, text):
    tokens = loaded[1] if kind == "code" else small.Bytes()
    ids = tokens.encode(text)
    assert tokens.decode(ids) == text
    assert tokens.decode([*ids, END, PAD, 99]) == text
    places = tokens.places(text)
    assert len(places) == len(ids)
    covered = {n for begin, end in places for n in range(begin, end)}
    assert covered == set(range(len(text)))


# ----------------------------------------------- a part of the card, measured again


def test_bits_per_byte_again(loaded):
    text = bytes(python_text(("pyclbr",)).tolist()).decode()
    known = stored_result("small_model")["measured"]["bits_per_byte"]
    quarters = small.bits_per_byte(*loaded, text, 1024).unflatten(0, (4, -1)).mean(1)
    assert (quarters - torch.tensor(known["1024"]["quarters"])).abs().max() < 0.35
    assert quarters[3] > quarters[1] + 0.8  # the cliff
    with pytest.raises(ValueError, match="more than seq=512 tokens"):
        small.bits_per_byte(*loaded, "x = 1")


def test_summaries_again(loaded):
    model, tokens = loaded
    stored = stored_result("small_model")["measured"]["summaries"]
    known = {f.name: f for f in tasks.functions("test")}
    some = [e for e in stored["examples"] if known[e["name"]].summary == e["docstring"]]
    prompts = [small.summary_prompt(tokens, known[e["name"]].code) for e in some[:4]]
    written = small.write(model, tokens, prompts, 40)
    scores = [rouge_l(w, e["written"]) for w, e in zip(written, some, strict=False)]
    assert sum(scores) / len(scores) > 0.8  # in other arithmetic a word may differ


def test_answers_again(loaded):
    model, tokens = loaded
    asked = tasks.questions("test")[:24]
    prompts = [small.answer_prompt(tokens, q.context, q.question) for q in asked]
    written = small.write(model, tokens, prompts, 24)
    right = sum(w == q.answer for w, q in zip(written, asked, strict=True))
    assert right > 16


def test_it_finds_what_is_near(loaded):
    model, tokens = loaded
    text = bytes(python_text(("pyclbr",)).tolist()).decode()
    near = needles.found(model, *needles.needles(tokens, text, 256, 0.9, 16))
    far = needles.found(model, *needles.needles(tokens, text, 1024, 0.1, 8))
    assert near > 0.4 and far < 0.2


def test_needles_stand_where_they_should(loaded):
    _, tokens = loaded
    text = "x = 1\n" * 400
    for depth in (0, 0.5, 1):
        ids, answers = needles.needles(tokens, text, 200, depth, 3)
        assert ids.shape == answers.shape == (3, 200)
        for row, answer in zip(ids, answers, strict=True):
            read = tokens.tokenizer.decode(row.tolist(), skip_special_tokens=False)
            value = tokens.decode(row[answer].tolist())
            assert f" = {value}\n" in read and read.endswith(f"<answer>{value}")
            assert abs(read.index("choice_") / read.index("<ask>") - depth) < 0.15
    with pytest.raises(ValueError, match="depth must be between 0 and 1"):
        needles.needles(tokens, text, 200, 1.5)
    with pytest.raises(ValueError, match="more than 9999 tokens"):
        needles.needles(tokens, text, 9999)


# ------------------------------------------------------------------------ writing


def test_prompts_of_unlike_lengths_write_as_if_alone(loaded):
    model, tokens = loaded
    prompts = ["def add(a, b):\n    return a", "import os\n\n", "class Cache(dict):"]
    together = small.write(model, tokens, prompts, 12)
    assert together == [small.write(model, tokens, [p], 12)[0] for p in prompts]
    assert together == small.write(model, tokens, prompts, 12, cache=False)


def test_a_prompt_ends_where_it_would_alone(loaded, refuses):
    model, tokens = loaded
    stop = tuple(tokens.encode(")"))
    prompts = ["x = foo(a", "class Foo(object):\n    def __init__(self, x, y"]
    alone = [small.write(model, tokens, [p], 20, stop=stop)[0] for p in prompts]
    assert small.write(model, tokens, prompts, 20, stop=stop) == alone
    refuses(
        lambda: small.write(model, tokens, "def add"),
        "TypeError: prompts must be a list of prompts",
    )


def test_a_seed_repeats_and_another_does_not(loaded):
    model, tokens = loaded
    hot = {"temperature": 1.5, "steps": 20, "stop": ()}
    one, again, other = (
        small.write(model, tokens, ["def "], **hot, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again != other


def test_no_prompt_is_refused(loaded):
    for prompts in ([], [""], ["x", ""]):
        with pytest.raises(ValueError, match="prompts must hold"):
            small.write(*loaded, prompts)


def test_a_stop_token_ends_a_row_and_all_rows_end_the_writing():
    torch.manual_seed(0)
    model = LanguageModel(6, dim=16, layers=1, heads=2, encoding="rope")
    given = torch.tensor([[1, 2], [3, 4], [5, 0]])
    free = generate(model, given, 30, temperature=2, seed=3)
    ended = generate(model, given, 30, temperature=2, seed=3, stop=(2, 5))
    assert free.shape == (3, 32)
    for row, whole in zip(ended[:, 2:].tolist(), free[:, 2:].tolist(), strict=True):
        first = next((n for n, t in enumerate(row) if t in (2, 5)), len(row) - 1)
        assert row[: first + 1] == whole[: first + 1]
        assert set(row[first:]) == {row[first]}
    with pytest.raises(ValueError, match="between 0 and 5, got"):
        generate(model, given, 3, stop=[6])


def test_what_is_drawn_has_the_chances_asked_for():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20_000, 4)
    chance = torch.Generator().manual_seed(0)

    def shares(**options):
        drawn = sample(logits, **options, generator=chance)
        return drawn.bincount(minlength=4) / len(drawn)

    for temperature in (0.5, 1.0, 2.0):
        expected = (logits[0] / temperature).softmax(-1)
        assert (shares(temperature=temperature) - expected).abs().max() < 0.015
    assert shares(temperature=0).tolist() == [1, 0, 0, 0]
    assert (shares(top_k=2)[:2] - logits[0, :2].softmax(-1)).abs().max() < 0.015
    assert shares(top_k=2)[2:].sum() == 0 and shares(top_k=9)[3] > 0
    # 0.644 + 0.237 = 0.88: both are needed for 0.7, the third for 0.9
    assert shares(top_p=0.7)[2:].sum() == 0 < shares(top_p=0.7)[1]
    assert shares(top_p=0.9)[3] == 0 < shares(top_p=0.9)[2]
    assert shares(top_p=0.01).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0"),
    ],
)
def test_impossible_sampling_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(1, 3), **options)


def test_padding_on_either_side():
    assert padded([[1], [2, 3]]).tolist() == [[1, 0], [2, 3]]
    assert padded([[1], [2, 3]], left=True).tolist() == [[0, 1], [2, 3]]


# ----------------------------------------------------------------------- the tasks


def test_parts_share_no_function():
    parts = {split: tasks.functions(split) for split in tasks.SPLITS}
    codes = [{f.code for f in part} for part in parts.values()]
    assert (
        not codes[0] & codes[1] and not codes[0] & codes[2] and not codes[1] & codes[2]
    )
    sizes = [len(part) for part in parts.values()]
    assert sum(sizes) > 0.95 * 1912 and min(sizes) > 150


def test_no_summary_is_in_its_code_and_every_answer_is():
    for split in tasks.SPLITS:
        assert all(f.summary not in f.code for f in tasks.functions(split))
        for q in tasks.questions(split):
            assert q.context[q.start : q.end] == q.answer and q.kind in tasks.KINDS


def test_a_question_has_one_answer():
    code = "def f(a=1):\n    x = a\n    x = 2\n    y = 3\n    return y"
    asked = {q.question: q.answer for q in tasks.questions_about(code)}
    assert asked == {
        "what is the default of a?": "1",
        "what does it return at the end?": "y",
        "what is y set to?": "3",
    }


@pytest.mark.parametrize(
    "code",
    ["", "x = 1", "def f(:", "class A: pass", "def f():\n    return\n"],
)
def test_code_without_answers_asks_nothing(code):
    assert list(tasks.questions_about(code)) == []


def test_positions_count_characters_not_bytes():
    code = "def grüßen(wen='Jürgen'):\n    ß = 'é'; x = wen\n    return x"
    for asked in tasks.questions_about(code):
        assert code[asked.start : asked.end] == asked.answer


def test_baselines_that_hurt():
    known, asked = tasks.functions("test"), tasks.questions("test")
    stored = stored_result("small_model")["measured"]
    rouge = stored["summaries"]["rouge_l"]
    named = sum(rouge_l(tasks.name_in_words(f), f.summary) for f in known) / len(known)
    assert abs(named - rouge["name in words"]) < 0.01 < rouge["model"] - named
    usual = tasks.most_common(tasks.questions("train"))
    right = sum(usual[q.kind] == q.answer for q in asked) / len(asked)
    scores = stored["answers"]["scores"]
    assert abs(right - scores["most common"]["same characters"]) < 0.02
    right = sum(tasks.first_match(q) == q.answer for q in asked) / len(asked)
    assert abs(right - scores["first match"]["same characters"]) < 0.02
