"""The exercises of lesson 14: reading one text, writing another."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rope_teach import angles, inverse_frequencies, rotate
from rope_teach.course import training
from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import expect_shape
from rope_teach.course.exercises.student_code import untouched, uses
from rope_teach.course.exercises.values import as_tensor, number
from rope_teach.course.models import Summarizer, summarize
from rope_teach.course.tasks import END, PAD, START


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
    rng = random.Random(14)
    rows = [[*rng.sample(range(5, 29), n), END] for n in (3, 6, 1, 9, 12)]
    for targets in [*rows, [END]]:
        answer = untouched(given_from, torch.tensor(targets))
        got = [int(token) for token in as_tensor(answer).flatten().tolist()]
        right = [START, *targets[:-1]]
        expect(
            got != targets,
            "Given and targets are the same row. At each place the decoder would see "
            "the very word that it has to predict: there is nothing left to learn.",
        )
        expect(
            len(targets) == 1 or got[: len(targets) - 1] != targets[1:],
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
            got == right,
            f"For the targets {targets} the decoder is given {right}; you gave {got}.",
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
        "2 is the dot product divided by the number of features. Divide by its square "
        "root.",
    )
    for place in (9, 30):
        value = _rotated_score(4, place)
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
    found = uses(rouge_1, training.f1, training.rouge_l)
    expect(not found, f"`{found}` does it all. Write this one by hand.")
    rng = random.Random(3)
    words = ["mast", "pump", "sail", "jams", "leaks"]
    cases = [
        ("mast cracks".split(), "mast cracks".split()),
        ("mast cracks pump jams".split(), "pump jams".split()),
        ("pump jams".split(), "mast cracks pump jams sail holds".split()),
        ("pump pump pump".split(), "pump jams".split()),
        ("jams pump".split(), "pump jams".split()),
        ("pump jams pump".split(), "pump leaks pump jams".split()),
        ("mast".split(), "pump jams".split()),
    ]
    for _ in range(20):
        sizes = rng.randint(1, 7), rng.randint(1, 7)
        cases.append((rng.choices(words, k=sizes[0]), rng.choices(words, k=sizes[1])))
    got = []
    for written, wanted in cases:
        try:
            got.append(number(untouched(rouge_1, list(written), list(wanted))))
        except ZeroDivisionError:
            raise Wrong(
                f"{_against(written, wanted)} you divide by zero. Precision and recall "
                "are both 0 here, and so is F1."
            ) from None
    for name, rule in NOT_ROUGE.items():  # named only if every case agrees
        values = [rule(*case) for case in cases]
        expect(
            any(abs(a - b) > 1e-6 for a, b in zip(got, values, strict=True)),
            f"Your results are those of another measure: {name}",
        )
    for mine, case in zip(got, cases, strict=True):
        right = _f1(_common(*case), *case)
        expect(
            abs(mine - right) < 1e-3,
            f"{_against(*case)} F1 is {right:.3f}; you gave {mine:.3f}.",
        )
    return 'And "jams pump" scores 1 against "pump jams". So read the texts, too.'


Words = Sequence[str]


def _against(written: Words, wanted: Words) -> str:
    return f'For "{" ".join(written)}" against "{" ".join(wanted)}"'


def _common(written: Words, wanted: Words) -> int:
    return (Counter(written) & Counter(wanted)).total()


def _f1(common: float, written: Words, wanted: Words) -> float:
    return 2 * common / (len(written) + len(wanted))


NOT_ROUGE: dict[str, Callable[[Words, Words], float]] = {
    "exact match. Words in common should count even when others differ.": lambda a, b: (
        float(a == b)
    ),
    "each repetition is a hit. A word counts at most as often as it is "
    "wanted.": lambda a, b: _f1(sum(word in b for word in a), a, b),
    "recall alone. A text that says everything would score 1.": lambda a, b: (
        _common(a, b) / len(b)
    ),
    "precision alone. A text of one safe word would score 1.": lambda a, b: (
        _common(a, b) / len(a)
    ),
    "the plain mean of precision and recall. The harmonic mean is "
    "2 · P · R / (P + R).": lambda a, b: _common(a, b) * (1 / len(a) + 1 / len(b)) / 2,
    "each word counts once. It should count as often as both have it.": lambda a, b: (
        _f1(len({*a} & {*b}), a, b)
    ),
    "Jaccard's: common words over all different words.": lambda a, b: (
        len({*a} & {*b}) / len({*a} | {*b})
    ),
    "Jaccard's, with repetitions: common words over the words of both "
    "together.": lambda a, b: _common(a, b) / (len(a) + len(b) - _common(a, b)),
    "words are compared place by place. For ROUGE-1 the order does not "
    "count.": lambda a, b: _f1(sum(x == y for x, y in zip(a, b, strict=False)), a, b),
    "ROUGE-L, which looks at the order.": lambda a, b: training.rouge_l(
        " ".join(a), " ".join(b)
    ),
    "precision times recall.": lambda a, b: _common(a, b) ** 2 / len(a) / len(b),
}


@exercise(
    "14.4",
    "Two beams",
    difficulty=4,
    minutes=10,
    hints=(
        "Greedy keeps only the best first word. Here every first word stays. "
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
    even = torch.full((4, 5), 0.2)
    even[3] = torch.tensor([0.05, 0.05, 0.8, 0.05, 0.05])  # after the least likely
    cases.append((torch.tensor([0.28, 0.26, 0.24, 0.22]), even))
    for rows, columns in [(5, 5), (6, 4), (4, 7), (9, 3), (3, 9)] * 8:
        first = (torch.randn(rows, generator=generator) / 4).softmax(0)
        then = (3 * torch.randn(rows, columns, generator=generator)).softmax(1)
        cases.append((first, then))
    pairs = [as_tensor(untouched(best_pair, *case)) for case in cases]
    for pair in pairs:
        expect(
            pair.numel() != 1,
            "That is one number. Which two words does it stand for? divmod(number, "
            "columns) splits what argmax of a matrix returns.",
        )
        expect_shape(pair.flatten(), (2,))
    got = [(int(pair.flatten()[0]), int(pair.flatten()[1])) for pair in pairs]

    def always(rule: Callable[[Tensor, Tensor], Tensor]) -> list[tuple[int, int]]:
        """The pair with the largest entry of what ``rule`` makes of each case."""
        return [divmod(int(rule(*case).argmax()), case[1].shape[1]) for case in cases]

    best = always(lambda first, then: first[:, None] * then)
    among = [case[0].argsort(descending=True).tolist() for case in cases]
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
    flat = [int((first[:, None] * then).argmax()) for first, then in cases]
    rows_for_columns = [
        divmod(k, case[1].shape[0]) for k, case in zip(flat, cases, strict=True)
    ]
    expect(
        got == best or got != rows_for_columns,
        "The right entry, read with the wrong width: divide by the number of columns, "
        "which is not always the number of rows.",
    )
    for kept in (2, 3):
        narrow = always(
            lambda f, t, kept=kept: torch.where(  # type: ignore[misc]
                (f >= f.sort(descending=True).values[:kept][-1])[:, None],
                f[:, None] * t,
                -1.0,
            )
        )
        expect(
            got == best or got != narrow,
            f"You went on with the {kept} likeliest first words only. Here the "
            "likeliest pair of all is asked for: keep every first word.",
        )
    for (a, b), mine, (first, then), ranks in zip(best, got, cases, among, strict=True):
        expect(
            (a, b) == mine,
            f"With {len(first)} first and {then.shape[1]} next words: the likeliest "
            f"pair is {(a, b)}, with probability {first[a] * then[a, b]:.2f}, and its "
            f"first word is number {ranks.index(a) + 1} by likelihood; you gave "
            f"{mine}.",
        )
    return (
        "That is beam search with all beams kept. `summarize(..., beams=3)` keeps "
        "three at each step."
    )


@exercise(
    "14.5",
    "Write with a cache",
    difficulty=4,
    minutes=12,
    hints=(
        "What changes from one step to the next: the report, the decoder's caches, or "
        "the newest token? Make before the loop what does not change.",
        "Before the loop: memory, real, one cache per block, and new = [[START]]. In "
        "it: logits = model.write(memory, real, new, caches), then "
        "new = logits[:, -1].argmax(-1, keepdim=True). Stop at END.",
    ),
    solution='''
def with_cache(model, document, steps):
    """Return the summary of `document` (1, seq): at most `steps` ids."""
    memory, real = model.read(document), document != PAD
    caches = [KeyValueCache() for _ in model.decoder]
    new, written = torch.tensor([[START]]), []
    while len(written) < steps and END not in written:
        logits = model.write(memory, real, new, caches)
        new = logits[:, -1].argmax(-1, keepdim=True)
        written.append(int(new))
    return written
''',
    why="The report is read once. The caches hold the keys of the words so far, each "
    "turned at its own place, so only the newest word goes in; its place is the number "
    "of words in the cache.",
)
def write_with_a_cache(with_cache: Callable[..., Any]) -> str:
    found = uses(with_cache, summarize)
    expect(not found, "`summarize` does it all. Write the loop yourself.")
    for seed, padding, steps in CASES_OF_LOOP:
        model = _Recorder(seed)
        document = _report(seed, padding)
        right = summarize(model, document, steps)[0].tolist()
        model.recorded = []
        model.reads = 0
        answer = untouched(with_cache, model, document, steps)
        got = [int(token) for token in as_tensor(answer).flatten().tolist()]
        _expect_fed_well(model)
        expect(
            got[:1] != [START] or right[:1] == [START],
            "Your summary begins with START, which is given and not written.",
        )
        expect(
            got != right[:-1] or right[-1] != END,
            "The END that the model wrote is missing: it belongs to the summary, and "
            "tells a reader that it is complete.",
        )
        expect(
            END not in got[:-1],
            f"The model wrote END after {got.index(END) + 1 if END in got else 0} "
            f"tokens, and your loop went on to {len(got)}.",
        )
        expect(
            len(got) <= steps,
            f"steps is {steps}, and you wrote {len(got)} tokens.",
        )
        expect(
            got == right,
            f"With steps={steps} the likeliest tokens are {right}; you gave {got}."
            + (
                " This report contains padding. Does the decoder know which places "
                "are real?"
                if padding
                else ""
            ),
        )
    return (
        "One token goes in at each step, however long the summary is. The lesson uses "
        "your loop on the next slide."
    )


CASES_OF_LOOP = [  # seed, padding, steps: some end early, some are cut
    (0, 0, 9), (3, 4, 12), (12, 0, 12), (13, 4, 10), (5, 3, 9), (6, 0, 9), (0, 5, 1),
]  # fmt: skip


def _report(seed: int, padding: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 9, (1, 7), generator=generator)
    return torch.cat([tokens, torch.full((1, padding), PAD)], dim=1)


class _Recorder(Summarizer):
    """An untrained summarizer that notes what it is given."""

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(9, 32, 2, 2, encoding="rope")
            for weight in self.parameters():
                if weight.ndim == 2:
                    weight.data *= 3  # so that what it writes is not always the same
        self.recorded: list[tuple[list[int], list[Any]]] = []
        self.reads = 0
        self.requires_grad_(False)

    def read(self, document: Tensor, positions: Tensor | None = None) -> Tensor:
        self.reads += 1
        return super().read(document, positions)

    def write(
        self, memory: Tensor, real: Tensor, given: Tensor, caches: Any = None
    ) -> Tensor:
        self.recorded.append((given.flatten().tolist(), list(caches or [])))
        return super().write(memory, real, given, caches)


def _expect_fed_well(model: _Recorder) -> None:
    """What must hold of the calls, whatever came out."""
    expect(model.reads > 0, "model.read was never called: nobody read the report.")
    expect(bool(model.recorded), "model.write was never called: nothing was written.")
    expect(
        model.reads == 1,
        f"The encoder ran {model.reads} times. The report does not change: read it "
        "once, before the loop.",
    )
    for step, (given, caches) in enumerate(model.recorded):
        expect(
            bool(caches),
            f"At step {step} model.write got no caches, so it knows only the tokens "
            "of this call.",
        )
        expect(
            step > 0 or given == [START],
            f"The first call was given {given}. The decoder starts from START alone, "
            f"which is {START}.",
        )
        expect(
            len(given) == 1,
            f"At step {step} you gave {len(given)} tokens. The caches already hold the "
            "earlier ones, so they would be counted twice: give the newest only.",
        )
    for (_, before), (_, after) in pairwise(model.recorded):
        expect(
            [id(cache) for cache in before] == [id(cache) for cache in after],
            "A later call got other caches than the one before it, so the words in "
            "between are forgotten. Make them once, before the loop.",
        )
