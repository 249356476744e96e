"""The exercises of lesson 15: spans, start and end, and positions with gaps."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises.cards import exercise, expect
from rope_teach.course.exercises.comparing import close, expect_close, expect_shape
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor

STORY = (
    "anna reached oslo . ben entered rome . anna entered new york . ben reached lima ."
)


def _pair(answer: Any) -> tuple[int, int]:
    values = as_tensor(answer).flatten().tolist()
    expect(
        len(values) == 2,
        f"A span is two numbers, start and end; you gave {len(values)}.",
    )
    expect(
        all(value == value // 1 for value in values),
        f"A span is two whole numbers: places of words. You gave {values}.",
    )
    return int(values[0]), int(values[1])


@exercise(
    "15.1",
    "Point at the answer",
    difficulty=1,
    minutes=3,
    hints=(
        "Find the last sentence about anna, then count its words from the start of "
        "the text. The first word is number 0, and a full stop counts.",
        "The first two sentences have 4 words each, so anna's last sentence begins at "
        "word 8; her city comes right after two more words.",
    ),
    solution="span = (10, 11)",
    why="anna's last sentence begins at word 8. Two words later come new and york.",
)
def point_at_the_answer(span: Any) -> str:
    start, end = _pair(span)
    words = STORY.split()
    expect(
        (start, end) != (2, 2),
        "That is anna's first city. She travelled on: the last mention wins.",
    )
    expect(
        (start, end) != (15, 15),
        "That is the last city in the text, but it is where ben is.",
    )
    expect(
        (start, end) != (10, 12),
        "The end is part of the span here. Word 12 is the full stop.",
    )
    expect(
        (start, end) != (11, 12),
        "Those are the two words if you count from 1. In this course positions count "
        "from 0.",
    )
    expect(
        (start, end) != (16, 17),
        "Those are the places in the whole row of the lesson, question and START "
        "included. Here they are not part of the text.",
    )
    expect(
        (start, end) != (8, 9),
        'Words 8 and 9 are "anna entered". Full stops count as words; without them you '
        "would arrive here.",
    )
    expect(
        (start, end) not in ((10, 10), (11, 11)),
        "The city has two words, and you point at one of them.",
    )
    expect(
        not (8 <= start <= 10 and 11 <= end <= 12) or (start, end) == (10, 11),
        "The answer lies in your span, with other words: anna is in new york, not in "
        f'"{" ".join(words[start : end + 1])}".',
    )
    inside = 0 <= start <= end < len(words)
    pointed = f'"{" ".join(words[start : end + 1])}"' if inside else "no span of it"
    expect(
        (start, end) == (10, 11),
        f"Counted from 0, words {start} to {end} of this text are {pointed}.",
    )
    return "Two numbers stand for two words, and the model never has to write them."


@exercise(
    "15.2",
    "Not in the question",
    difficulty=2,
    minutes=4,
    hints=(
        "What must a logit be for its softmax to be exactly 0?",
        "Put -inf wherever `text` is False: logits.masked_fill does this.",
    ),
    solution='''
def over_text(logits, text):
    """Return the logits so that only words of the text can win."""
    return logits.masked_fill(~text, float("-inf"))
''',
    why="exp(-inf) is 0, so a masked word has no probability, whatever the others are.",
)
def not_in_the_question(over_text: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(15)
    first = torch.tensor([False, False, True, True, False])
    cases = [
        (torch.tensor([3.0, 0.5, 1.0, 2.0, 4.0]), first),
        (torch.tensor([3.0, -0.5, -1.0, -2.0, -4.0]), first),
        (torch.tensor([900.0, -200.0, -300.0, -300.5, 0.0]), first),
        (torch.tensor([5.0, 1.0, -3e30, -4e30, 2.0]), first),
    ]
    for size in (4, 9, 17):  # the text may lie anywhere, also at the start
        text = torch.rand(size, generator=generator) < 0.5
        text[size // 2], text[size // 3] = True, False
        cases.append((10 * torch.randn(size, generator=generator), text))
    for logits, text in cases:
        got = as_tensor(untouched(over_text, logits.clone(), text.clone()))
        expect(
            got.numel() == len(logits),
            f"{len(logits)} logits went in and {got.numel()} came back. Keep every "
            "place, or the places no longer match the words.",
        )
        expect_shape(got, tuple(logits.shape))
        expect(
            not close(got, logits),
            "The logits came back unchanged: a word of the question can still win.",
        )
        expect(
            not close(got, logits * text),
            "Multiplying by 0 gives 0, and 0 is more than any negative logit. The "
            "question still wins where all logits of the text are negative.",
        )
        expect(
            not got.isnan().any(),
            "Some logits are nan: 0 times -inf is not 0. Choose between the two with "
            "masked_fill or torch.where.",
        )
        expect(
            not torch.isneginf(got[text]).any(),
            "You hid words of the text: `text` is True where the answer may be.",
        )
        expect(
            not close(got.sum(), 1.0) or bool((got < 0).any()),
            "You gave probabilities. Return logits; the softmax comes later.",
        )
        expect(
            bool(got[~text].max() < got[text].max()),
            f"The text's best logit is {got[text].max():g}, but a masked word has "
            f"{got[~text].max():g} and wins. Which logit is lower than any other?",
        )
        chance = got.softmax(0)
        expect(
            bool((chance[~text] < 1e-12).all()),
            "The masked places still have a noticeable probability. Which logit "
            "gives exactly none?",
        )
        wanted = logits.double().masked_fill(~text, -math.inf).softmax(0)
        expect(
            close(chance, wanted),
            "Within the text the probabilities should follow the given logits.",
        )
    return (
        "Masked before the softmax, the question gets no probability, not even in "
        "training."
    )


@exercise(
    "15.3",
    "The best span",
    difficulty=3,
    minutes=6,
    hints=(
        "Which pairs (i, j) are spans at all? Score each by start[i] + end[j].",
        "Use two loops, the second starting at i; keep the pair with the highest sum.",
    ),
    solution='''
def best_span(start, end):
    """Return (i, j), i <= j, with the highest start[i] + end[j]."""
    spans = [(i, j) for i in range(len(start))
             for j in range(i, len(end))]
    return max(spans, key=lambda s: start[s[0]] + end[s[1]])
''',
    why="The logits of start and end add up, and only pairs in the right order count.",
)
def the_best_span(best_span: Callable[..., Any]) -> str:
    rng = random.Random(15)
    cases = [
        ([1.0, 2.0, 5.0], [4.0, 3.5, -1.0]),
        ([0.0, 3.0, 1.0], [0.0, 2.0, 1.0]),
        ([4.0, 0.0, 4.5, 0.0], [0.0, 3.0, 0.0, 1.0]),
        ([-3.0, -1.0, -4.0], [-2.0, -5.0, -1.5]),
        ([3.0, 6.0], [3.0, 1.0]),
    ]
    for shift in (0, -20, 0, 8) * 12:
        size = rng.randint(1, 12)
        start, end = (
            [shift + n / 10 for n in rng.sample(range(-50, 51), size)] for _ in range(2)
        )
        if _clear(start, end):
            cases.append((start, end))
    got = [_pair(untouched(best_span, list(s), list(e))) for s, e in cases]
    for (start, end), (i, j) in zip(cases, got, strict=True):
        expect(
            i <= j,
            f"For start {start} and end {end} you gave {(i, j)}: it ends before it "
            "starts. Two separate maxima do not yet make a span.",
        )
        expect(
            0 <= i and j < len(start),
            f"With {len(start)} words, numbered from 0, you gave {(i, j)}.",
        )
    for name, rule in NOT_BEST.items():  # named only if every case agrees
        expect(
            got != [_best(s, e, rule) for s, e in cases]
            or got == [_best(s, e, _sum) for s, e in cases],
            name,
        )
    for (start, end), mine in zip(cases, got, strict=True):
        right = _best(start, end, _sum)
        sums = [start[a] + end[b] for a, b in (right, mine)]
        expect(
            mine == right,
            f"For start {start} and end {end} you gave {mine}, which scores "
            f"{sums[1]:.1f}; {right} scores {sums[0]:.1f}.",
        )
    return "This is what `QuestionAnswerer.answer` does, for a whole batch."


Rule = Callable[[list[float], list[float], int, int], Any]


def _best(start: list[float], end: list[float], rule: Rule) -> tuple[int, int]:
    spans = [(i, j) for i in range(len(start)) for j in range(i, len(end))]
    return max(spans, key=lambda s: rule(start, end, *s))


def _sum(start: list[float], end: list[float], i: int, j: int) -> float:
    return start[i] + end[j]


def _clear(start: list[float], end: list[float]) -> bool:
    """Whether one span is the best by far, so that rounding decides nothing."""
    spans = [(i, j) for i in range(len(start)) for j in range(i, len(end))]
    sums = sorted(start[i] + end[j] for i, j in spans)
    return len(sums) < 2 or sums[-1] - sums[-2] > 0.05


NOT_BEST: dict[str, Rule] = {
    "You multiply the two logits. Two negative ones have a large product; the score of "
    "a span is the sum.": lambda s, e, i, j: s[i] * e[j],
    "You never point at a single word, or only if nothing else is left. Start and end "
    "may be the same.": lambda s, e, i, j: (i < j, s[i] + e[j]),
    "You only point at single words. A span may be longer.": lambda s, e, i, j: (
        i == j,
        s[i] + e[j],
    ),
    "You only look at spans of at most two words. A span may be "
    "longer.": lambda s, e, i, j: (j <= i + 1, s[i] + e[j]),
    "You only look at spans of at most three words. A span may be "
    "longer.": lambda s, e, i, j: (j <= i + 2, s[i] + e[j]),
    "You choose the best start first, and then an end after it. Another pair may score "
    "more in total.": lambda s, e, i, j: (s[i], e[j]),
    "You choose the best end first, and then a start before it. Another pair may score "
    "more in total.": lambda s, e, i, j: (e[j], s[i]),
    "You swap the roles: end[i] + start[j]. Each logit is about one "
    "end of the span.": lambda s, e, i, j: e[i] + s[j],
    "You take the pair of two separate maxima and swap it if they are in the wrong "
    "order. Each logit is about one role.": lambda s, e, i, j: (
        (i, j) == tuple(sorted((s.index(max(s)), e.index(max(e)))))
    ),
}


@exercise(
    "15.4",
    "Room between sentences",
    difficulty=3,
    minutes=8,
    hints=(
        "A free place before sentence 1 moves every later sentence, too. How far has "
        "sentence 3 moved in all?",
        "Sentence s has moved by room[0] + ... + room[s - 1], the question by 0: "
        "cumsum. Add that to 0, 1, 2, ..., looked up for each token by its sentence.",
    ),
    solution='''
def with_room(sentence, room):
    """Return the position of each token: (seq,), whole numbers."""
    moved = torch.tensor([0, *room]).cumsum(0)
    return torch.arange(len(sentence)) + moved[sentence]
''',
    why="Within a sentence every step is 1, as in a real text. Between sentences the "
    "room adds up, as if other sentences stood there.",
)
def room_between_sentences(with_room: Callable[..., Any]) -> str:
    rng = random.Random(4)
    cases: list[tuple[list[int], list[int]]] = [([6, 4, 5, 4], [10, 0, 3])]
    for count in (1, 2, 3, 4, 6, 4, 5):
        sizes = [rng.randint(2, 6) for _ in range(count + 1)]
        cases.append((sizes, [rng.randint(0, 30) for _ in range(count)]))
    answers: list[Tensor] = []
    for sizes, room in cases:
        sentence = torch.repeat_interleave(torch.tensor(sizes))
        got = as_tensor(untouched(with_room, sentence, list(room))).flatten()
        expect(
            len(got) == len(sentence),
            f"There are {len(sentence)} tokens, and you gave {len(got)} positions.",
        )
        answers.append(got)
    for name, rule in NOT_ROOM.items():  # named only if every case agrees
        same = [
            close(got, rule(torch.repeat_interleave(torch.tensor(sizes)), room))
            for got, (sizes, room) in zip(answers, cases, strict=True)
        ]
        expect(not all(same), name)
    for got, (sizes, room) in zip(answers, cases, strict=True):
        sentence = torch.repeat_interleave(torch.tensor(sizes))
        inside = sentence.diff() == 0
        what = f"With sentences of {sizes} tokens and room {room}:"
        expect(
            bool((got.diff()[inside] == 1).all()),
            f"{what} within a sentence, or the question, each step should be 1.",
        )
        expect_close(got, _positions(sentence, room), what)
    return "The lesson uses your positions on the next slide."


def _moved(sentence: Tensor, room: list[int], add: bool = True) -> Tensor:
    moved = torch.tensor([0, *room])
    return (moved.cumsum(0) if add else moved)[sentence]


def _positions(sentence: Tensor, room: list[int]) -> Tensor:
    return torch.arange(len(sentence)) + _moved(sentence, room)


NOT_ROOM: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "Those are 0, 1, 2, ...: nothing has moved.": lambda sentence, room: torch.arange(
        len(sentence)
    ),
    "Each sentence moves by the room before itself only. The room before earlier "
    "sentences has moved it, too.": lambda sentence, room: (
        torch.arange(len(sentence)) + _moved(sentence, room, add=False)
    ),
    "Those are the moves. Add them to the places 0, 1, 2, ...": _moved,
    "The question has moved, too, by the first room. It stays where it "
    "is.": lambda sentence, room: (
        torch.arange(len(sentence)) + torch.tensor([*room, 0]).cumsum(0)[sentence]
    ),
    "The places are one too high: they count from 0.": lambda sentence, room: (
        _positions(sentence, room) + 1
    ),
}
