"""The exercises of lesson 14: reading one text, writing another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach import angles, inverse_frequencies, rotate
from rope_teach.course.exercises import (
    Wrong,
    as_tensor,
    exercise,
    expect,
    expect_shape,
    number,
)
from rope_teach.course.training import f1

START, END = 1, 2  # as in rope_teach.course.tasks


@exercise(
    "14.1",
    "One place late",
    difficulty=1,
    minutes=4,
    hints=(
        "Which token has the decoder seen before it writes the first word?",
        "Put 1 (START) in front, and drop the last target: nothing follows it.",
    ),
    solution='''
def given_from(targets):
    """Return what the decoder is given, as long as `targets`."""
    return [1, *targets[:-1]]
''',
    why="At each place the decoder has seen START and the words before it, and its "
    "target is the next word. One row of words serves as both, shifted by one place.",
)
def one_place_late(given_from: Callable[..., Any]) -> str:
    for targets in ([10, 22, 3, 2], [8, 19, 3, 12, 25, 3, 2]):
        answer = given_from(list(targets))
        expect(
            answer is not None, "Your function returns nothing. Is there a `return`?"
        )
        got = [int(token) for token in as_tensor(answer).flatten().tolist()]
        expect(
            got != targets,
            "Given and targets are the same row. At each place the decoder would see "
            "the very word that it has to predict: there is nothing left to learn.",
        )
        expect(
            got != [*targets[1:], START] and got[: len(targets) - 1] != targets[1:],
            "You shifted the other way: at each place the decoder would be given a "
            "word from the future.",
        )
        expect(
            got != [START, *targets],
            f"The beginning is right, but there are {len(got)} tokens for "
            f"{len(targets)} targets. END is never given: nothing is written after it.",
        )
        expect(
            got != targets[:-1],
            "START is missing: with nothing given at all, the decoder has no place "
            "from which to write the first word.",
        )
        expect(
            got[:1] == [START] or got[1:] != targets[:-1],
            f"Right except for the first token: START is 1, you gave {got[:1]}.",
        )
        expect(
            got == [START, *targets[:-1]],
            f"For the targets {targets} the decoder is given {[START, *targets[:-1]]}; "
            f"you gave {got}.",
        )
    return "START and all but the last target. The causal mask does the rest."


@exercise(
    "14.2",
    "A score between two texts",
    difficulty=2,
    minutes=4,
    hints=(
        "Which of the positions 4, 9 and 30 does cross-attention without rotation "
        "know?",
        "None of them. The score is the plain dot product of q and k divided by the "
        "square root of the number of features: (2·1 + 0·3 + 1·(-2) + 4·2) / √4.",
    ),
    solution="score = (2 * 1 + 0 * 3 + 1 * (-2) + 4 * 2) / 4 ** 0.5",
    why="The two tokens are in different texts, so no angle enters: q·k = 8, divided "
    "by the square root of 4 features. Moving the report from 9 to 30 changes nothing.",
)
def score_between_two_texts(score: Any) -> str:
    got = number(score)
    expect(
        abs(got - 8) > 1e-3,
        "8 is the dot product. Attention divides it by the square root of the number "
        "of features.",
    )
    expect(
        abs(got - 2) > 1e-3,
        "You divided by the number of features. Divide by its square root.",
    )
    rotated = {_rotated_score(4, 9): "9", _rotated_score(4, 30): "30"}
    for value, place in rotated.items():
        expect(
            min(abs(got - value), abs(got - 2 * value)) > 2e-2,
            "That is the score with both tokens turned, the report's at position "
            f"{place}. Positions in two texts are not on one line: nothing is turned.",
        )
    expect(
        abs(got - 4) < 1e-3,
        "q·k is 2·1 + 0·3 + 1·(-2) + 4·2 = 8, and there are 4 features; you gave "
        f"{got:g}.",
    )
    return "4, wherever the report begins. That is the whole point."


def _rotated_score(m: int, n: int) -> float:
    pair = torch.tensor([[2.0, 0, 1, 4], [1.0, 3, -2, 2]]).double()
    angle = angles(torch.tensor([m, n]), inverse_frequencies(4))
    turned = rotate(pair, angle.cos(), angle.sin())
    return float(turned[0] @ turned[1]) / 2


@exercise(
    "14.3",
    "ROUGE-1 by hand",
    difficulty=3,
    minutes=8,
    hints=(
        "How many words do both have? A word that one side has more often counts only "
        "as often as the other side has it.",
        "common = the sum over words of min(count in one, count in the other). The "
        "harmonic mean of precision and recall is 2·common / (words of both texts).",
    ),
    solution='''
def rouge_1(written, wanted):
    """Return F1 of the words of two lists, between 0 and 1."""
    common = sum(min(written.count(word), wanted.count(word))
                 for word in set(written))
    return 2 * common / (len(written) + len(wanted))
''',
    why="Precision is common / written, recall common / wanted; their harmonic mean is "
    "2·common over all words. The minimum keeps a repeated word from counting too "
    "often.",
)
def rouge_1_by_hand(rouge_1: Callable[..., Any]) -> str:
    cases = (
        (["mast", "cracks"], ["mast", "cracks"]),
        (["mast", "cracks", "pump", "jams"], ["pump", "jams"]),
        (["pump", "jams"], ["mast", "cracks", "pump", "jams", "sail", "holds"]),
        (["pump", "pump", "pump"], ["pump", "jams"]),
        (["jams", "pump"], ["pump", "jams"]),
        (["pump", "jams", "pump"], ["pump", "leaks", "pump", "jams"]),
        (["mast"], ["pump", "jams"]),
    )
    for written, wanted in cases:
        right = f1(" ".join(written), " ".join(wanted))
        what = f'For "{" ".join(written)}" against "{" ".join(wanted)}"'
        try:
            got = number(rouge_1(list(written), list(wanted)))
        except ZeroDivisionError:
            raise Wrong(
                f"{what} you divide by zero. Precision and recall are both 0 here, "
                "and so is F1."
            ) from None
        hits = sum(word in wanted for word in written)
        common = right * (len(written) + len(wanted)) / 2
        names = {
            "that is exact match; words in common should count even when others "
            "differ": float(written == wanted),
            "you counted each repetition as a hit; a word counts at most as often as "
            "it is wanted": 2 * hits / (len(written) + len(wanted)),
            "that is recall alone; a text that says everything would score 1": common
            / len(wanted),
            "that is precision alone; a text of one safe word would score 1": common
            / len(written),
            "that is the plain mean of precision and recall; the harmonic mean is "
            "2 · P · R / (P + R)": common * (1 / len(written) + 1 / len(wanted)) / 2,
            "you counted each word once; a word counts as often as both have it": 2
            * len({*written} & {*wanted})
            / (len(written) + len(wanted)),
        }
        for name, value in names.items():
            expect(
                abs(got - value) > 1e-6 or abs(got - right) < 1e-6,
                f"{what} you gave {got:.3f}: {name}.",
            )
        expect(
            abs(got - right) < 1e-6,
            f"{what} F1 is {right:.3f}; you gave {got:.3f}.",
        )
    return 'And "jams pump" scores 1 against "pump jams". So read the texts, too.'


@exercise(
    "14.4",
    "Two beams",
    difficulty=4,
    minutes=10,
    hints=(
        "Greedy keeps only the best first word. With two beams, both first words stay. "
        "What is the probability of each pair of words?",
        "For each first word a and next word b, compute first[a] * then[a, b]. Take "
        "the largest of all the products.",
    ),
    solution='''
def best_pair(first, then):
    """Return (a, b): the likeliest pair of words, as two numbers."""
    joint = first[:, None] * then
    best = int(joint.argmax())
    return best // joint.shape[1], best % joint.shape[1]
''',
    why="A summary's probability is the product of the probabilities of its words. "
    "Enough beams keep every first word, and the best product wins, not the best first "
    "factor.",
)
def two_beams(best_pair: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(3)
    cases = [(torch.tensor([0.6, 0.4]), torch.tensor([[0.5, 0.5], [0.1, 0.9]]))]
    for _ in range(20):
        cases.append(
            (
                torch.randn(5, generator=generator).softmax(0),
                (3 * torch.randn(5, 5, generator=generator)).softmax(1),
            )
        )
    pairs = [as_tensor(best_pair(*case)) for case in cases]
    for pair in pairs:
        expect(
            pair.numel() != 1,
            "That is one number. Which two words does it stand for? divmod(number, "
            "columns) splits what argmax of a matrix returns.",
        )
        expect_shape(pair, (2,))
    got = [(int(a), int(b)) for a, b in pairs]

    def always(rule: Callable[[Tensor, Tensor], Tensor]) -> list[tuple[int, int]]:
        """The pair with the largest entry of what ``rule`` makes of each case."""
        return [divmod(int(rule(*case).argmax()), len(case[0])) for case in cases]

    best = always(lambda first, then: first[:, None] * then)
    expect(
        got != [(b, a) for a, b in best],
        "The right two words in the wrong order: the first word is written first.",
    )
    expect(
        got != always(lambda f, t: torch.where((f == f.max())[:, None], t, -1.0)),
        "That is greedy: the likeliest first word, then the likeliest after it. For "
        "(0.6, 0.4), starting with the second word leads to 0.4 · 0.9 = 0.36, starting "
        "with the first to 0.6 · 0.5 = 0.30.",
    )
    expect(
        got != always(lambda first, then: then),
        "You took the most certain second word, however unlikely the first word before "
        "it. Multiply the two.",
    )
    expect(
        got != always(lambda first, then: first[:, None] + then),
        "Probabilities of words in a row are multiplied, not added. (Their logarithms "
        "are added.)",
    )
    expect(
        got != always(lambda first, then: first * then),
        "You multiplied each *column* by the probability of its word. first belongs to "
        "the first word, which is the row: first[:, None].",
    )
    for (a, b), (c, d), (first, then) in zip(best, got, cases, strict=True):
        expect(
            (a, b) == (c, d),
            f"With {len(first)} words: the likeliest pair is {(a, b)}, with "
            f"probability {first[a] * then[a, b]:.2f}; you gave {(c, d)}.",
        )
    return (
        "That is beam search with all beams kept. `summarize(..., beams=3)` keeps "
        "three at each step."
    )
