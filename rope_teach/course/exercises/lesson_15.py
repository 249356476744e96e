"""The exercises of lesson 15: spans, start and end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from rope_teach.course.exercises import (
    Wrong,
    as_tensor,
    close,
    exercise,
    expect,
    number,
)


def _pair(answer: Any) -> tuple[int, int]:
    values = as_tensor(answer).flatten().tolist()
    expect(
        len(values) == 2,
        f"A span is two numbers, start and end; you gave {len(values)}.",
    )
    expect(
        all(value == int(value) for value in values),
        f"A span is two whole numbers: places of words. You gave {values}.",
    )
    return int(values[0]), int(values[1])


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, abs_tol=1e-4)


@exercise(
    "15.1",
    "Point at the answer",
    difficulty=1,
    minutes=3,
    hints=(
        "Find the last sentence about anna, then count its words from the start of "
        "the text. The first word is number 0, and a full stop counts.",
        "The first three sentences have 4, 4 and 5 words: anna's last city comes "
        "right after two more words.",
    ),
    solution="span = (10, 11)",
    why="anna's last sentence begins at word 8. Two words later come new and york.",
)
def point_at_the_answer(span: Any) -> str:
    start, end = _pair(span)
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
        "Positions count from 0 in this course: you are one word too far.",
    )
    expect(
        (start, end) not in ((16, 17), (15, 16), (14, 15)),
        "Count in the text only: the question and START are not part of it here.",
    )
    expect(
        (start, end) != (8, 9),
        "You left out the full stops. Each one counts as a word.",
    )
    expect(
        (start, end) != (10, 10),
        "The city has two words: the end is one word after the start.",
    )
    expect(
        (start, end) == (10, 11),
        f"Words {start} to {end} are not the answer. Number the words from 0, "
        "including the full stops.",
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
    text = torch.tensor([False, False, True, True, False])
    for logits in (
        torch.tensor([3.0, 0.5, 1.0, 2.0, 4.0]),
        torch.tensor([3.0, -0.5, -1.0, -2.0, -4.0]),
        torch.tensor([900.0, -200.0, -300.0, -300.5, 0.0]),
    ):
        got = as_tensor(over_text(logits.clone(), text)).to(torch.float64)
        expect(
            got.shape == logits.shape,
            f"{len(logits)} logits went in and {got.numel()} came back. Keep every "
            "place, or the places no longer match the words.",
        )
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
            "You hid the text and kept the rest: `text` is True where the answer "
            "may be.",
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
        expect(
            not (got[~text].isfinite().all() and got[~text].max() > -50),
            "The masked places still have a noticeable probability. Which logit "
            "gives exactly none?",
        )
        chance = got.softmax(0)
        wanted = logits.masked_fill(~text, -math.inf).softmax(0)
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
    for start, end in (
        ([1.0, 2.0, 5.0], [4.0, 3.5, -1.0]),
        ([0.0, 3.0, 1.0], [0.0, 2.0, 1.0]),
        ([4.0, 0.0, 4.5, 0.0], [0.0, 3.0, 0.0, 1.0]),
        ([-3.0, -1.0, -4.0], [-2.0, -5.0, -1.5]),
    ):
        got = _pair(best_span(list(start), list(end)))
        spans = [(i, j) for i in range(len(start)) for j in range(i, len(end))]
        right = max(spans, key=lambda s: start[s[0]] + end[s[1]])
        times = max(spans, key=lambda s: start[s[0]] * end[s[1]])
        longer = max(
            (s for s in spans if s[0] < s[1]), key=lambda s: start[s[0]] + end[s[1]]
        )
        first = max(range(len(start)), key=start.__getitem__)
        last = max(range(len(end)), key=end.__getitem__)
        what = f"start {start} and end {end}"
        expect(
            got[0] <= got[1],
            f"For {what} you gave {got}: it ends before it starts. Two separate maxima "
            "do not yet make a span.",
        )
        expect(
            got == right or got != (last, first),
            f"For {what} you swapped the two maxima. That makes a different span: each "
            "logit is about one role.",
        )
        expect(
            got == right or got != times or min(start) > -2,
            f"For {what} you gave {got}: two negative logits have a large product. The "
            "score of a span is the sum.",
        )
        expect(
            got == right or got != longer,
            f"For {what} the best span is one word: start and end may be the same.",
        )
        expect(
            right[0] == right[1] or got[0] != got[1],
            f"For {what} a span of more than one word scores higher.",
        )
        expect(
            got == right or got[0] != first,
            f"For {what} you chose the best start first, and then an end after it. "
            "Another pair scores more in total.",
        )
        expect(
            got == right or got[1] != last,
            f"For {what} you chose the best end first, and then a start before it. "
            "Another pair scores more in total.",
        )
        expect(got == right, f"For {what} the best span is {right}; you gave {got}.")
    return "This is what `QuestionAnswerer.answer` does, for a whole batch."


@exercise(
    "15.4",
    "Half right",
    difficulty=2,
    minutes=4,
    hints=(
        "How many words have the two answers in common? Precision divides that by the "
        "number of words given, recall by the number of words wanted.",
        "2 · common / (words given + words wanted).",
    ),
    solution='''
def word_f1(given, wanted):
    """Return the F1 of two answers, each a text of words."""
    a, b = given.split(), wanted.split()
    common = sum(min(a.count(w), b.count(w)) for w in set(a))
    return 2 * common / (len(a) + len(b))
''',
    why="The harmonic mean of common/given and common/wanted is "
    "2·common / (given + wanted).",
)
def half_right(word_f1: Callable[..., Any]) -> str:
    for given, wanted, common in (
        ("york", "new york", 1),
        ("new delhi", "new york", 1),
        ("oslo", "new york", 0),
        ("reached new york", "new york", 2),
        ("new new", "new york", 1),
        ("new york new", "new delhi new", 2),
        ("cape town", "cape town", 2),
    ):
        a, b = len(given.split()), len(wanted.split())
        right = 2 * common / (a + b)
        what = f'"{given}" against "{wanted}"'
        try:
            got = number(word_f1(given, wanted))
        except ZeroDivisionError:
            raise Wrong(
                f"For {what} you divide by zero. Precision and recall are both 0 here, "
                "and so is F1."
            ) from None
        expect(
            _same(got, right) or not _same(got, common / a),
            f"For {what} you gave the precision, {got:.2f}. The missing words count "
            "too.",
        )
        expect(
            _same(got, right) or not _same(got, common / b),
            f"For {what} you gave the recall, {got:.2f}. The extra words count too.",
        )
        expect(
            _same(got, right) or not _same(got, (common / a + common / b) / 2),
            f"For {what} you gave {got:.2f}, the plain mean of precision and recall. "
            "The harmonic mean is 2 · P · R / (P + R).",
        )
        once = len({*given.split()} & {*wanted.split()})
        expect(
            _same(got, right) or not _same(got, 2 * once / (a + b)),
            f"For {what} you counted each word once. It counts as often as both have "
            "it.",
        )
        repeated = sum(word in wanted.split() for word in given.split())
        expect(
            _same(got, right) or not _same(got, 2 * repeated / (a + b)),
            f"For {what} you counted a repeated word twice, but it was wanted once.",
        )
        expect(
            _same(got, right) or got not in (0, 1),
            f"For {what} you gave {got:g}, which is exact match. F1 gives part of a "
            "point for part of the words.",
        )
        expect(
            _same(got, right),
            f"For {what} F1 is {right:.2f}; you gave {got:.2f}.",
        )
    return "Half the words are not half the truth: new delhi is not new york."
