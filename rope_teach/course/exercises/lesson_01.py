"""The exercises of lesson 01: attention sees a set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from rope_teach.course.exercises.cards import exercise, expect
from rope_teach.course.exercises.comparing import apart, close, expect_shape
from rope_teach.course.exercises.values import as_tensor


@exercise(
    "1.1",
    "Same words, another meaning",
    difficulty=1,
    minutes=2,
    hints=(
        "What does an average of outputs know about the tokens, and what does it not "
        "know?",
        "It knows which words there are and how often each occurs. So use the same "
        "five words, and change who sees whom.",
    ),
    solution='sentence = "the dog saw the cat"',
    why="The same words, each as often, in a different order. With no mask and no "
    "positions every word gets the same output, and an average has no order.",
)
def same_words_another_meaning(sentence: Any) -> str:
    given = "the cat saw the dog"
    expect(
        isinstance(sentence, (str, list, tuple))
        and all(isinstance(word, str) for word in sentence),
        "Expected a sentence in quotation marks.",
    )
    text = sentence if isinstance(sentence, str) else " ".join(sentence)
    words = re.findall(r"[\w'’-]+", text.lower())
    expect(
        words != given.split(),
        "That is the same sentence, so there is no difference to detect.",
    )
    have, need = Counter(words), Counter(given.split())
    expect(
        set(have) != set(need) or have == need,
        "The right words, but the wrong number of each: every token adds to the "
        'average, so a second "the" counts.',
    )
    new, gone = sorted(set(have) - set(need)), sorted(set(need) - set(have))
    expect(
        not new,
        f"{', '.join(new)!r} was not in the sentence. A new word has its own vector, "
        "whatever it means, and changes the average.",
    )
    expect(not gone, f"{', '.join(gone)!r} is missing, and that changes the average.")
    return "One bag of words, two stories. Only the positions can tell them apart."


@exercise(
    "1.2",
    "Who can be reached?",
    difficulty=2,
    minutes=4,
    hints=(
        "In one causal layer, which tokens may look at token `place`?",
        "The token itself and every later one: all of them, in a single layer. So more "
        "layers reach no further tokens.",
    ),
    solution='''
def may_change(place, seq, layers):
    """Return the places whose outputs may change."""
    return list(range(place, seq))
''',
    why="A token looks at itself and at earlier tokens. So in one layer a change "
    "reaches that token and all later ones; no number of layers carries it backwards.",
)
def who_can_be_reached(may_change: Callable[..., Any]) -> str:
    for place, seq, layers in ((2, 11, 1), (3, 9, 2), (0, 5, 3), (4, 5, 2)):
        answer = may_change(place, seq, layers)
        what = f"Token {place} of {seq}, {layers} layer{'s' * (layers > 1)}"
        answer = sorted(answer) if isinstance(answer, (set, frozenset)) else answer
        listed = as_tensor(answer)
        listed = listed.flatten() if listed.shape[1:] == (1,) else listed
        expect(listed.ndim == 1, f"{what}: the answer should be a list of places.")
        got, right = listed.tolist(), list(range(place, seq))
        expect(
            not (len(got) == seq > 2 and set(got) <= {0, 1}),
            f"{what}: you gave a yes or no for each token. List the numbers of those "
            "that may change.",
        )
        _explain_places(got, place, seq, layers, what)
        expect(
            got == right, f"{what}: expected {right}, you gave {[*map(_short, got)]}."
        )
    return (
        "Itself and every later token. The package's tests ask its attention the same "
        "question."
    )


def _short(value: float) -> float:
    return int(value) if value == int(value) else value


def _explain_places(
    got: list[float], place: int, seq: int, layers: int, what: str
) -> None:
    """Raise :class:`Wrong` if ``got`` is what a known misconception gives."""
    right = list(range(place, seq))
    named = {
        "that is true of a network that treats each token on its own. In attention, "
        "later tokens look at this one.": [place],
        "a token also sees itself, so its own output changes.": right[1:],
        f"you followed the mask backwards. Token {place} *looks at* the earlier ones. "
        f"Who looks at token {place}?": list(range(place + 1)),
        "every output would change without a mask. With this one no number of layers "
        "carries anything back to earlier tokens.": list(range(seq)),
        "a layer is not a step of one token. In one layer every later token sees this "
        "one.": right[: layers + 1],
        f"the last of {seq} tokens has number {seq - 1}.": [*right, seq],
        "you left out the last token.": right[:-1],
        "the tokens are numbered from 0.": [i + 1 for i in right],
        "list them in order, the earliest first.": right[::-1],
    }
    for message, wrong in named.items():
        expect(got == right or got != wrong, f"{what}: {message}")


@exercise(
    "1.3",
    "Undo the shuffle",
    difficulty=3,
    minutes=5,
    hints=(
        "Row i of `y` belongs to token `order[i]` of x. To which row of the result "
        "must it go?",
        "Either write row i of `y` into row `order[i]` of a new tensor, or find the "
        "order that undoes `order`: `order.argsort()`.",
    ),
    solution='''
def unshuffle(y, order):
    """Return the rows of y in the order that x had."""
    return y[order.argsort()]
''',
    why="Attention is equivariant, so y is attention(x)[order]. Indexing with the "
    "inverse permutation puts each row back, and argsort is that inverse.",
)
def undo_the_shuffle(unshuffle: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(1)
    for numbers in ([1, 2, 3, 0], [3, 0, 5, 1, 4, 2], [2, 6, 0, 1, 5, 3, 4]):
        order = torch.tensor(numbers)
        x = torch.randn(len(order), 2, generator=generator)
        y = x[order]
        got = as_tensor(unshuffle(y, order.clone()))
        expect(
            got.ndim > 1,
            "You returned an order, or one row. Return all rows of y, back in their "
            "places.",
        )
        expect_shape(got, (len(order), 2))
        expect(
            close(y, x[order]),
            "Your code wrote into y, which still has to be read and belongs to the "
            "caller. Write into a new tensor.",
        )
        expect(
            not close(got, x[order][order]),
            "`y[order]` shuffles a second time. The inverse of a permutation is a "
            "different permutation, unless it only swaps pairs.",
        )
        expect(not close(got, x[order]), "The rows are still shuffled.")
        expect(
            not close(got, x[order].flip(0)),
            "Reversing the rows undoes one particular shuffle, not this one.",
        )
        expect(
            not close(got, x.sort(0).values),
            "You sorted the numbers. Where a row goes depends only on `order`.",
        )
        for row, home in enumerate(numbers):
            expect(
                close(got[home], x[home]),
                f"For order {numbers}, row {row} of y belongs in row {home} of the "
                "result. It is not there.",
            )
    return (
        "The shuffle passed through attention and could be undone on the other side. "
        "That is what equivariant means."
    )


@exercise(
    "1.4",
    "A head that counts",
    difficulty=4,
    minutes=7,
    hints=(
        "Token m sees m + 1 tokens equally, so its output is the average of their "
        "values. Which sum of values gives 1 / (m + 1)?",
        "The sum of the first m + 1 values must be 1 for every m. So the first value "
        "is 1, and no later value may add to it.",
    ),
    solution='''
def values(seq):
    """Return the value of each of the seq tokens."""
    return [1.0] + [0.0] * (seq - 1)
''',
    why="The average over m + 1 tokens divides by m + 1. Put a 1 on the first token, "
    "which every token sees, and it comes out as 1 / (m + 1): the position, read off "
    "the mask.",
)
def a_head_that_counts(values: Callable[..., Any]) -> str:
    for seq in (6, 9, 1, 2, 17):
        got = as_tensor(values(seq)).flatten()
        expect_shape(got, (seq,))
        count = torch.arange(1, seq + 1, dtype=torch.float64)
        expect(
            seq == 1 or not close(got, torch.ones(seq)),
            "The average of ones is 1, however many there are.",
        )
        expect(
            seq == 1 or not close(got, 1 / count),
            "These are the outputs, not the values: the head averages them once more.",
        )
        expect(
            seq == 1 or not (close(got, count) or close(got, count - 1)),
            "You put the position into the values. Their average grows with m; 1 / (m "
            "+ 1) shrinks.",
        )
        output = got.cumsum(0) / count
        for m in range(seq):
            mine, right = apart(float(output[m]), 1 / (m + 1))
            expect(
                close(output[m], 1 / count[m], 1e-6),
                f"With your values for {seq} tokens, token {m} outputs {mine}, the "
                f"average of the first {m + 1}. It should be 1 / {m + 1} = {right}.",
            )
    return (
        "With a marked first token and a causal mask, the model can read its position "
        "as 1 / output. So it can count without any encoding."
    )
