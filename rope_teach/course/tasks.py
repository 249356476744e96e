"""Data: toy tasks whose answers depend on position, and real text.

Batches are pairs ``(tokens, targets)`` of int64. ``tokens`` is ``(batch, seq)``, or
``(batch, height, width)`` for pictures. ``targets`` has the same shape, with one answer
per token (``IGNORE`` where there is none), or ``(batch,)``, one per sequence. Built in
lessons 01, 03 and 17.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
import zlib
from collections.abc import Iterator, Sequence
from importlib.abc import InspectLoader
from typing import NamedTuple

import torch
from torch import Tensor

from rope_teach.checks import check_choice

__all__ = [
    "END",
    "IGNORE",
    "PAD",
    "REPORT_WORDS",
    "START",
    "STORY_WORDS",
    "TEST_MODULES",
    "TRAIN_MODULES",
    "Batch",
    "GivenBatch",
    "Story",
    "Words",
    "copy_batches",
    "order_batches",
    "padded",
    "picture_batches",
    "place_batches",
    "python_text",
    "report_batches",
    "reports",
    "stories",
    "story_batch",
    "story_batches",
    "text_batches",
    "text_windows",
]

Batch = tuple[Tensor, Tensor]
GivenBatch = tuple[tuple[Tensor, Tensor], Tensor]  # the model's input is a pair
IGNORE = -100  # what cross_entropy skips by default
PAD, START, END = 0, 1, 2  # the first tokens of every word vocabulary

# Modules whose source is the same, byte for byte, in Python 3.10 to 3.13, so that
# every reader trains on the same text.
TRAIN_MODULES = ("difflib", "optparse")
TEST_MODULES = ("tracemalloc", "xml.sax.handler", "json", "pyclbr")


def order_batches(
    batch: int = 64, seq: int = 16, vocab: int = 10, seed: int = 0
) -> Iterator[Batch]:
    """Endless batches of "does A come before B?".

    Token 0 is A and token 1 is B; each occurs once among random other tokens.
    Targets ``(batch,)``: 1 if A comes first, else 0; both are equally likely.
    Lesson 01.

    >>> tokens, first = next(order_batches(batch=1, seq=6))
    >>> tokens, first
    (tensor([[6, 9, 7, 2, 0, 1]]), tensor([1]))
    """
    if seq < 2 or vocab < 3:
        raise ValueError(
            "seq must be at least 2 and vocab at least 3 (A, B and others), got "
            f"seq={seq}, vocab={vocab}"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(batch)
    while True:
        tokens = torch.randint(2, vocab, (batch, seq), generator=generator)
        a, b = torch.rand(batch, seq, generator=generator).argsort()[:, :2].T
        tokens[rows, a], tokens[rows, b] = 0, 1
        yield tokens, (a < b).long()


def copy_batches(
    back: int = 5, batch: int = 64, seq: int = 32, vocab: int = 10, seed: int = 0
) -> Iterator[Batch]:
    """Endless batches of "which token was ``back`` places ago?".

    Tokens are random. Targets ``(batch, seq)``: the token ``back`` places earlier,
    ``IGNORE`` for the first ``back``. Lessons 01 and 11.

    >>> tokens, targets = next(copy_batches(back=2, batch=1, seq=6))
    >>> tokens, targets
    (tensor([[4, 9, 3, 0, 3, 9]]), tensor([[-100, -100,    4,    9,    3,    0]]))
    """
    if not 0 < back < seq:
        raise ValueError(f"back must be between 1 and seq - 1 = {seq - 1}, got {back}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        tokens = torch.randint(vocab, (batch, seq), generator=generator)
        targets = tokens.roll(back, dims=1)
        targets[:, :back] = IGNORE
        yield tokens, targets


def place_batches(
    place: int = 3, batch: int = 64, seq: int = 32, vocab: int = 10, seed: int = 0
) -> Iterator[Batch]:
    """Endless batches of "which token is at this place in the text?".

    Like :func:`copy_batches`, but the place is counted from the start of the text: the
    answer is the token at index ``place``, and ``IGNORE`` before it. Lesson 11.

    >>> tokens, targets = next(place_batches(place=2, batch=1, seq=6))
    >>> tokens, targets
    (tensor([[4, 9, 3, 0, 3, 9]]), tensor([[-100, -100,    3,    3,    3,    3]]))
    """
    if not 0 <= place < seq:
        raise ValueError(
            f"place must be between 0 and seq - 1 = {seq - 1}, got {place}"
        )
    generator = torch.Generator().manual_seed(seed)
    while True:
        tokens = torch.randint(vocab, (batch, seq), generator=generator)
        targets = tokens[:, place : place + 1].repeat(1, seq)
        targets[:, :place] = IGNORE
        yield tokens, targets


def picture_batches(
    down: int = 2,
    right: int = 1,
    batch: int = 32,
    height: int = 6,
    width: int = 6,
    vocab: int = 8,
    seed: int = 0,
) -> Iterator[Batch]:
    """Endless batches of "what colour is the cell ``down`` and ``right`` of here?".

    Like :func:`copy_batches`, in two dimensions: pictures ``(batch, height, width)`` of
    random colours, and for each cell the colour of the cell it looks at, ``IGNORE``
    where that is outside. Negative numbers look up and to the left. Lesson 17.

    >>> pictures, targets = next(picture_batches(1, 1, batch=1, height=2, width=3))
    >>> pictures, targets
    (tensor([[[4, 7, 5],
             [0, 3, 3]]]), tensor([[[   3,    3, -100],
             [-100, -100, -100]]]))
    """
    if abs(down) >= height or abs(right) >= width:
        raise ValueError(
            f"down={down}, right={right} leads outside every picture of "
            f"height={height}, width={width}"
        )
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(height) + down, torch.arange(width) + right
    outside = ((rows < 0) | (rows >= height))[:, None] | (columns < 0)
    outside = outside | (columns >= width)
    while True:
        pictures = torch.randint(vocab, (batch, height, width), generator=generator)
        targets = pictures.roll((-down, -right), dims=(1, 2))
        yield pictures, targets.masked_fill(outside, IGNORE)


def python_text(modules: tuple[str, ...] = TRAIN_MODULES) -> Tensor:
    """Source code of standard library modules as byte values: ``(bytes,)`` int64.

    Every Python installation contains this text, so no download is needed.
    Lessons 03 and 12.

    >>> bytes(python_text(("this",))[:39].tolist()).decode()
    's = \"\"\"Gur Mra bs Clguba, ol Gvz Crgref'
    """
    text = "\n".join(_source(name) for name in modules)
    return torch.tensor(list(text.encode()))


def text_batches(
    text: Tensor, batch: int = 16, seq: int = 64, seed: int = 0
) -> Iterator[Batch]:
    """Endless batches of random windows of ``text``, each with its next tokens.

    Targets ``(batch, seq)`` are the tokens one position later. Lessons 03 and 12.
    """
    _check_length(text, seq)
    generator = torch.Generator().manual_seed(seed)
    windows = text.unfold(0, seq + 1, 1)
    while True:
        rows = torch.randint(len(windows), (batch,), generator=generator)
        yield windows[rows, :-1], windows[rows, 1:]


def text_windows(text: Tensor, seq: int) -> Batch:
    """Consecutive windows that cover ``text``, as one batch for evaluation."""
    _check_length(text, seq)
    windows = text.unfold(0, seq + 1, seq)
    return windows[:, :-1], windows[:, 1:]


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    loader = spec.loader if spec else None
    source = loader.get_source(module) if isinstance(loader, InspectLoader) else None
    if source is None:
        raise ValueError(f"this Python installation has no source code for {module!r}")
    return source


def _check_length(text: Tensor, seq: int) -> None:
    if text.ndim != 1 or not 0 < seq < len(text):
        raise ValueError(
            f"text must be one sequence of more than seq={seq} tokens, got shape "
            f"{tuple(text.shape)}"
        )


class Words:
    """A tokenizer for known words: each word or punctuation mark is a token.

    ``vocabulary`` comes after ``PAD``, ``START`` and ``END``, which are tokens 0, 1
    and 2. A word outside it raises ``ValueError``.

    >>> words = Words(("sail", "holds", "."))
    >>> words.encode("sail holds .")
    [3, 4, 5]
    >>> words.decode([3, 4, 5, END, 0])
    'sail holds .'
    """

    def __init__(self, vocabulary: tuple[str, ...]) -> None:
        self.vocabulary = ("<pad>", "<start>", "<end>", *vocabulary)
        self.number = {word: n for n, word in enumerate(self.vocabulary)}

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """Token ids of the words in ``text``, which are separated by spaces."""
        unknown = [word for word in text.split() if word not in self.number]
        if unknown:
            raise ValueError(f"the vocabulary does not contain {unknown[0]!r}")
        return [self.number[word] for word in text.split()]

    def decode(self, tokens: Sequence[int]) -> str:
        """The words up to the first ``END``; padding and ``START`` are left out."""
        kept = itertools.takewhile(lambda token: token != END, tokens)
        return " ".join(self.vocabulary[n] for n in kept if n not in (PAD, START))


def padded(
    rows: Sequence[Sequence[int]], filler: int = PAD, left: bool = False
) -> Tensor:
    """Rows of tokens as one tensor, padded on the right or on the ``left``.

    >>> padded([[5, 6, 7], [8]]).tolist(), padded([[5, 6, 7], [8]], left=True).tolist()
    ([[5, 6, 7], [8, 0, 0]], [[5, 6, 7], [0, 0, 8]])
    """
    longest = max(map(len, rows))
    gaps = ([filler] * (longest - len(row)) for row in rows)
    both = zip(rows, gaps, strict=True)
    return torch.tensor(
        [[*gap, *row] if left else [*row, *gap] for row, gap in both], dtype=torch.long
    )


THINGS = (
    "engine", "mast", "rudder", "anchor", "pump", "sail", "compass", "boiler", "hull",
    "lamp", "winch", "radio",
)  # fmt: skip
STATES = (
    "fails", "cracks", "holds", "leaks", "jams", "rattles", "smokes", "bends", "sticks",
    "shakes", "cools", "works",
)  # fmt: skip
REPORT_WORDS = Words((".", "!", *THINGS, *STATES))
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}


def part_of(text: str) -> str:
    """The split that a text belongs to: a hash decides, so no text is in two."""
    number = zlib.crc32(text.encode()) % 10
    return next(split for split, numbers in SPLITS.items() if number in numbers)


def reports(
    split: str, sentences: int = 8, most: int = 3, seed: int = 0
) -> Iterator[tuple[str, str]]:
    """Endless entries of a ship's log, each with its summary.

    1 to ``most`` of the ``sentences`` end with "!". The summary repeats these, in
    order. A hash of the report's text puts it in "train", "validation" or "test", so
    no report is in two of them. Lesson 14.

    >>> report, summary = next(reports("train", sentences=4))
    >>> report
    'sail smokes ! hull fails . hull sticks . rudder leaks .'
    >>> summary
    'sail smokes .'
    """
    check_choice("split", split, tuple(SPLITS))
    if not 1 <= most <= sentences:
        raise ValueError(
            f"most must be between 1 and sentences={sentences}, got {most}"
        )
    rng = random.Random(f"{split} {seed}")
    while True:
        facts = [f"{rng.choice(THINGS)} {rng.choice(STATES)}" for _ in range(sentences)]
        urgent = sorted(rng.sample(range(sentences), rng.randint(1, most)))
        marks = ["!" if n in urgent else "." for n in range(sentences)]
        report = " ".join(map(" ".join, zip(facts, marks, strict=True)))
        if part_of(report) == split:
            yield report, " ".join(f"{facts[n]} ." for n in urgent)


def report_batches(
    split: str, batch: int = 64, sentences: int = 8, most: int = 3, seed: int = 0
) -> Iterator[GivenBatch]:
    """Endless batches ``((document, given), targets)`` of :func:`reports`.

    Targets ``(batch, summary)`` are the summary and ``END``, then ``IGNORE``;
    ``given`` is ``START`` and the summary: the targets, one place later. Lesson 14.
    """
    stream = reports(split, sentences, most, seed)
    while True:
        pairs = list(itertools.islice(stream, batch))
        documents = [REPORT_WORDS.encode(report) for report, _ in pairs]
        targets = [[*REPORT_WORDS.encode(summary), END] for _, summary in pairs]
        given = [[START, *row[:-1]] for row in targets]
        yield (padded(documents), padded(given)), padded(targets, IGNORE)


PEOPLE = ("anna", "ben", "clara", "david", "emma", "felix")
CITIES = (
    "oslo", "rome", "cairo", "lima", "new york", "new delhi", "cape town", "hong kong",
)  # fmt: skip
ARRIVALS = ("reached", "entered")
STORY_WORDS = Words(
    tuple(
        dict.fromkeys(
            " ".join((*PEOPLE, *ARRIVALS, *CITIES, "where is now ? .")).split()
        )
    )
)


class Story(NamedTuple):
    """A question and a text that contains its answer.

    The answer is words ``start`` to ``end`` of the text, counted from 0 and inclusive,
    in sentence number ``needle``.
    """

    question: str
    text: str
    answer: str
    start: int
    end: int
    needle: int


def stories(
    split: str, sentences: int = 4, needle: int | None = None, seed: int = 0
) -> Iterator[Story]:
    """Endless stories of three people who travel: where is one of them now?

    The last mention wins: earlier cities of the same person are wrong, although they
    are in the text. ``needle`` is the sentence that contains the answer, drawn
    uniformly unless given. A hash of the story's text puts it in "train",
    "validation" or "test", so no text is in two of them. Lesson 15.

    >>> story = next(stories("train", sentences=3))
    >>> story.text
    'david reached rome . david reached oslo . emma entered lima .'
    >>> story.question, story.answer, story.needle
    ('where is david now ?', 'oslo', 1)
    """
    check_choice("split", split, tuple(SPLITS))
    if sentences < 1 or not 0 <= (needle or 0) < sentences:
        raise ValueError(
            f"needle must be one of {sentences} sentences, counted from 0, got {needle}"
        )
    rng = random.Random(f"{split} {seed}")
    while True:
        depth = rng.randrange(sentences) if needle is None else needle
        story = _story(rng, sentences, depth)
        if part_of(story.text) == split:
            yield story


def _story(rng: random.Random, sentences: int, needle: int) -> Story:
    asked, *others = rng.sample(PEOPLE, 3)
    # Before the needle, about half of the sentences are about the person in question.
    people = [rng.choice((asked, asked, *others)) for _ in range(needle)]
    people += [asked, *(rng.choice(others) for _ in range(sentences - needle - 1))]
    cities = [rng.choice(CITIES) for _ in people]
    told = [
        f"{person} {rng.choice(ARRIVALS)} {city} ."
        for person, city in zip(people, cities, strict=True)
    ]
    start = len(" ".join(told[:needle]).split()) + 2  # after the person and the verb
    answer = cities[needle]
    end = start + len(answer.split()) - 1
    return Story(f"where is {asked} now ?", " ".join(told), answer, start, end, needle)


def story_batches(
    split: str,
    batch: int = 32,
    sentences: int = 4,
    needle: int | None = None,
    seed: int = 0,
) -> Iterator[Batch]:
    """Endless batches of :func:`stories` for :class:`QuestionAnswerer`.

    A row is the question, ``START`` and the text. Targets ``(batch, 2)`` are the
    places in the row where the answer starts and ends. Lesson 15.
    """
    stream = stories(split, sentences, needle, seed)
    while True:
        yield story_batch(list(itertools.islice(stream, batch)))


def story_batch(drawn: Sequence[Story]) -> Batch:
    """These stories as one batch, as :func:`story_batches` yields them."""
    rows, spans = [], []
    for story in drawn:
        question = [*STORY_WORDS.encode(story.question), START]
        rows.append([*question, *STORY_WORDS.encode(story.text)])
        spans.append([len(question) + story.start, len(question) + story.end])
    return padded(rows), torch.tensor(spans)
