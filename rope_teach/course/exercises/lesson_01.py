"""The exercises of lesson 01: attention sees a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from rope_teach.course.exercises import as_tensor, close, exercise, expect, expect_shape


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
    words = text.lower().replace(".", " ").replace(",", " ").split()
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
    for place, seq, layers in ((3, 6, 1), (3, 6, 2), (0, 5, 3), (4, 5, 2)):
        answer = as_tensor(may_change(place, seq, layers))
        what = f"Token {place} of {seq}, {layers} layer{'s' * (layers > 1)}"
        expect(answer.ndim == 1, f"{what}: the answer should be a list of places.")
        got = answer.tolist()
        last = place == seq - 1
        expect(
            got != [place] or last,
            f"{what}: that is true of a network that treats each token on its own. In "
            "attention, later tokens look at this one.",
        )
        expect(
            got != list(range(place + 1, seq)),
            f"{what}: a token also sees itself, so its own output changes.",
        )
        expect(
            got != list(range(place + 1)) or last,
            f"{what}: you followed the mask backwards. Token {place} *looks at* the "
            f"earlier ones. Who looks at token {place}?",
        )
        expect(
            got != list(range(seq)) or place == 0,
            f"{what}: without a mask every output would change. The mask is causal.",
        )
        expect(
            got != list(range(place, min(seq, place + layers + 1)))
            or got == list(range(place, seq)),
            f"{what}: a layer is not a step of one token. In one layer every later "
            "token sees this one.",
        )
        expect(
            got == list(range(place, seq)),
            f"{what}: expected {list(range(place, seq))}, you gave "
            f"{[int(value) for value in got]}.",
        )
    return (
        "Itself and every later token. The package's tests ask its attention the same "
        "question."
    )


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
    for order in (torch.tensor([1, 2, 3, 0]), torch.tensor([3, 0, 5, 1, 4, 2])):
        x = torch.arange(2.0 * len(order)).view(-1, 2).cos()
        got = as_tensor(unshuffle(x[order], order.clone()))
        expect(
            got.ndim > 1,
            "You returned an order, or one row. Return all rows of y, back in their "
            "places.",
        )
        expect_shape(got, (len(order), 2))
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
        expect(
            close(got, x),
            f"For order {order.tolist()}, row 0 of y belongs in row {int(order[0])} of "
            "the result.",
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
    for seq in (6, 9):
        got = as_tensor(values(seq)).flatten()
        expect_shape(got, (seq,))
        count = torch.arange(1, seq + 1, dtype=torch.float64)
        expect(
            not close(got, torch.ones(seq)),
            "The average of ones is 1, however many there are.",
        )
        expect(
            not close(got, 1 / count),
            "These are the outputs, not the values: the head averages them once more.",
        )
        expect(
            not close(got, count) and not close(got, count - 1),
            "You put the position into the values. Their average grows with m; 1 / (m "
            "+ 1) shrinks.",
        )
        output = got.cumsum(0) / count
        for m in range(seq):
            expect(
                close(output[m], 1 / count[m]),
                f"With your values, token {m} outputs {output[m]:.3f}, the average of "
                f"the first {m + 1} values. It should be 1 / {m + 1}.",
            )
    return (
        "With a marked first token and a causal mask, the model can read its position "
        "as 1 / output. So it can count without any encoding."
    )
