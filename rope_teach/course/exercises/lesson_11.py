"""The exercises of lesson 11: RoPE versus absolute encodings, fairly."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import (
    close,
    expect_close,
    expect_shape,
    name_mistake,
)
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor, number


@exercise(
    "11.1",
    "When was it solved?",
    difficulty=1,
    minutes=4,
    hints=(
        "Walk along the curve with `enumerate`. Which step does entry n stand for?",
        "Entry n was measured at step `n * every`. Return that for the first entry "
        "that is at least `goal`; after the loop, return None.",
    ),
    solution='''
def solved_at(curve, goal, every):
    """Return the first step with accuracy >= goal, or None."""
    for n, right in enumerate(curve):
        if right >= goal:
            return n * every
    return None
''',
    why="The first entry is step 0, before any training. A run that never gets there "
    "has no number of steps: None, not the last step and not zero.",
)
def when_was_it_solved(solved_at: Callable[..., Any]) -> str:
    cases: list[tuple[list[float], float, int]] = [
        ([0.1, 0.4, 0.95, 0.9, 1.0, 0.98], 0.95, 5),
        ([1.0, 1.0], 0.5, 10),
        ([0.2, 0.6, 0.4, 0.9], 0.5, 20),
        ([0.1, 0.7, 0.8, 0.3, 0.2], 0.7, 4),  # lost again at the end
        ([0.3, 0.9, 0.2, 0.1, 0.95, 0.1, 0.1], 0.9, 7),
        ([0.1, 0.2, 0.3], 0.95, 5),
        ([0.6, 0.1, 0.4, 0.62], 0.75, 100),
    ]
    got: list[float | None] = []
    for curve, goal, every in cases:
        answer = untouched(solved_at, list(curve), goal, every)
        what = f"The curve {curve}, measured every {every} steps,"
        if answer is None:
            got.append(None)
            continue
        if isinstance(answer, float) and math.isinf(answer):
            raise Wrong(
                f"{what} gave infinity at the goal {goal}. The lesson's figures and "
                "tables show a run that never gets there as None."
            )
        step = number(answer)
        expect(
            max(curve) >= goal,
            f"{what} never gets to {goal}, but you gave step {step:g}. In an average "
            "it would look like a run that got there. Return None.",
        )
        got.append(step)
    name_mistake(
        [-1 if step is None else step for step in got],
        [_first(*case) for case in cases],
        {
            message: [mistake(*case) for case in cases]
            for message, mistake in SLIPS.items()
        },
    )
    for (curve, goal, every), said in zip(cases, got, strict=True):
        right = _first(curve, goal, every)
        expect(
            (-1 if said is None else said) == right,
            f"The curve {curve}, measured every {every} steps, first reaches {goal} at "
            f"step {right}; you say {said if said is None else f'{said:g}'}.",
        )
    return (
        "One number per run, and None for those that never get there: count those too."
    )


def _where(curve: list[float], goal: float) -> list[int]:
    return [n for n, right in enumerate(curve) if right >= goal]


def _first(curve: list[float], goal: float, every: int) -> int:
    """The right answer, -1 for never."""
    found = _where(curve, goal)
    return found[0] * every if found else -1


def _above(curve: list[float], goal: float, every: int) -> int:
    found = [n for n, right in enumerate(curve) if right > goal]
    return found[0] * every if found else -1


def _for_good(curve: list[float], goal: float, every: int) -> int:
    below = [n for n, right in enumerate(curve) if right < goal]
    first = below[-1] + 1 if below else 0
    return first * every if first < len(curve) else -1


SLIPS: dict[str, Callable[[list[float], float, int], float]] = {
    "You gave the entry of the list. Entry n was measured at step n * every.": (
        lambda curve, goal, _: _first(curve, goal, 1)
    ),
    "A run has solved it when it *reaches* the goal: exactly 0.95 counts.": _above,
    "The first entry was measured at step 0, not at step `every`.": (
        lambda curve, goal, every: (
            _first(curve, goal, every) + every * (max(curve) >= goal)
        )
    ),
    "You gave the last time it was at the goal. The question asks for the first.": (
        lambda curve, goal, every: (
            _where(curve, goal)[-1] * every if _where(curve, goal) else -1
        )
    ),
    "You gave the moment from which it stays above the goal. A curve may fall again: "
    "the question asks when it first gets there.": _for_good,
    "A run that gets there and falls again did get there.": (
        lambda curve, goal, every: (
            _first(curve, goal, every) if curve[-1] >= goal else -1
        )
    ),
}


@exercise(
    "11.2",
    "Draw the band",
    difficulty=2,
    minutes=4,
    hints=(
        "Each column of `curves` is one moment, for all seeds. Along which axis do you "
        "look for the lowest?",
        "`torch.amin` and `torch.amax` take an axis. The seeds are axis 0.",
    ),
    solution='''
def band(curves):
    """Return two tensors (points,): the lowest and the highest."""
    return curves.amin(0), curves.amax(0)
''',
    why="A band from the lowest to the highest hides no seed. With five seeds that is "
    "more honest than a standard deviation, which needs many.",
)
def draw_the_band(band: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(0)
    for seeds, points in ((5, 8), (3, 21), (6, 6), (1, 4)):
        curves = torch.rand(seeds, points, generator=generator)
        result = untouched(band, curves)
        expect(result is not None, "Your function returns nothing. Is there a return?")
        for part in result if isinstance(result, tuple) else ():
            expect(
                not isinstance(part, (torch.return_types.min, torch.return_types.max)),
                "Along an axis, `min` returns values and indices. Take `.values`, or "
                "use `amin`.",
            )
        try:
            expect(not isinstance(result, dict), "")
            low, high = (as_tensor(part) for part in result)
        except (TypeError, ValueError, Wrong):
            raise Wrong("Return two tensors: the lowest, then the highest.") from None
        expect(
            low.shape != (seeds,) or seeds == points,
            f"You have one value for each of the {seeds} seeds. The band needs one for "
            f"each of the {points} points.",
        )
        expect(
            low.numel() > 1,
            "That is one number for everything. The band needs one for each point.",
        )
        expect_shape(low, (points,))
        expect_shape(high, (points,))
        if seeds > 1:
            _name_bands(low, curves)
        what = f"With {seeds} seeds and {points} points, the"
        expect_close(low, curves.amin(0), f"{what} lowest:", axes=("point",))
        expect_close(high, curves.amax(0), f"{what} highest:", axes=("point",))
    return "That is what `bands=` in this lesson's figures takes."


def _name_bands(low: Tensor, curves: Tensor) -> None:
    """Name what was drawn in place of the lowest of several seeds."""
    seeds, mean = len(curves), curves.mean(0)
    widths = curves.std(0), curves.std(0) / seeds**0.5, curves.std(0, correction=0)
    expect(
        not any(
            close(low, middle - times * width)
            for middle in (mean, curves.median(0).values)
            for width in widths
            for times in (1, 2)
        ),
        "That is a centre and a standard deviation. It can leave the range of the "
        "runs, and even go above 100 %. Return the lowest and the highest.",
    )
    expect(
        not close(low, curves.quantile(0.25, 0)),
        "Those are quartiles: they leave seeds outside. A band that hides no seed goes "
        "from the lowest to the highest.",
    )
    one = next((seed for seed, run in enumerate(curves) if close(low, run)), None)
    expect(
        one is None or close(low, curves.amin(0)),
        f"Your lowest is one run, that of seed {one}. At each point a different seed "
        "may be the lowest.",
    )
    expect(
        not close(low, curves.amax(0)),
        "The highest comes first. Put the lowest first.",
    )


@exercise(
    "11.3",
    "A clear win",
    difficulty=2,
    minutes=4,
    hints=(
        "Which of our runs and which of theirs make the hardest pair?",
        "Our slowest against their fastest. A run that never gets there is slower than "
        "any number: use `math.inf` for it.",
    ),
    solution='''
def clear_win(ours, theirs):
    """Return True if each of ours beats each of theirs."""
    ours = [math.inf if s is None else s for s in ours]
    theirs = [math.inf if s is None else s for s in theirs]
    return max(ours) < min(theirs)
''',
    why="If the slowest of ours beats the fastest of theirs, no choice of seeds could "
    "have reversed the result. Means can hide that.",
)
def a_clear_win(clear_win: Callable[..., Any]) -> str:
    cases = [*CLEAR_CASES, *_random_wins(40)]
    got: list[float | None] = []
    for ours, theirs in cases:
        answer = untouched(clear_win, list(ours), list(theirs))
        value = as_tensor(answer)
        expect(
            value.numel() == 1 and float(value) in (0, 1),
            f"Expected True or False, got {value.flatten().tolist()[:3]}. Did you "
            "return the margin?",
        )
        got.append(float(value))
    right = [_wins(*case) for case in cases]
    # What a None or a 0 did is for last: without them a mistake is easier to tell.
    plain = [n for n, (a, b) in enumerate(cases) if all([*a, *b])]
    for kept, slips in ((plain, WINS), (range(len(cases)), WINS | LOST)):
        name_mistake(
            [got[n] for n in kept],
            [right[n] for n in kept],
            {m: [float(slip(*cases[n])) for n in kept] for m, slip in slips.items()},
        )
    for (ours, theirs), mine, truly in zip(cases, got, right, strict=True):
        slowest, fastest = max(_inf(ours)), min(_inf(theirs))
        expect(
            bool(mine) == truly,
            f"ours {ours}, theirs {theirs}: our slowest run {_steps(slowest)}, their "
            f"fastest {_steps(fastest)}. So the answer is {truly}; you say "
            f"{bool(mine)}.",
        )
    return "Where the ranges overlap, say so, or run more seeds."


Runs = list[float | None]
CLEAR_CASES: list[tuple[Runs, Runs]] = [
    ([20, 25, 30], [60, 65, 80]),
    ([20, 70, 25], [60, 65, 80]),
    ([20, 60, 50], [60, 65, 80]),  # a tie is no win
    ([60, 55, 58], [20, 70, 80]),
    ([70, 80], [20, 30]),
    ([20, None, 30], [60, 65, 80]),
    ([20, None], [300, 400]),
    ([20, 30], [None, None]),
    ([500, 7000], [None]),
    ([None, None], [None, None]),
    ([0, 5], [10]),  # solved before any training
    ([5, 10], [0, 40]),
    ([0], [0]),
    ([30], [None, 40, 35]),
    ([200], [None, None, 200]),
]


def _inf(runs: Runs) -> list[float]:
    return [math.inf if s is None else s for s in runs]


def _steps(count: float) -> str:
    return "never gets there" if math.isinf(count) else f"needs {count:g} steps"


def _wins(ours: Runs, theirs: Runs) -> bool:
    return max(_inf(ours)) < min(_inf(theirs))


def _random_wins(count: int) -> list[tuple[Runs, Runs]]:
    draw = random.Random(0)

    def some(low: int, lost: float) -> Runs:
        return [
            None if draw.random() < lost else draw.randrange(low, low + 60, 5)
            for _ in range(draw.randrange(2, 6))
        ]

    return [
        (some(5, lost), some(draw.choice([5, 25, 60]), lost))
        for lost in (0.0, 0.0, 0.2)
        for _ in range(count // 2)
    ]


def _finished(runs: Runs) -> list[float]:
    return [s for s in runs if s is not None] or [math.inf]


WINS: dict[str, Callable[[Runs, Runs], bool]] = {
    "You compared the means. A mean can hide a run that lost.": (
        lambda a, b: sum(_inf(a)) / len(a) < sum(_inf(b)) / len(b)
    ),
    "You compared the fastest runs alone. Our slowest has to win too.": (
        lambda a, b: min(_inf(a)) < min(_inf(b))
    ),
    "You compared the slowest runs. Our slowest has to beat their fastest.": (
        lambda a, b: max(_inf(a)) < max(_inf(b))
    ),
    "A tie is no win: our slowest run must be faster than their fastest.": (
        lambda a, b: max(_inf(a)) <= min(_inf(b))
    ),
    "You compared seed by seed. Every run of ours must beat every run of theirs.": (
        lambda a, b: all(x < y for x, y in zip(_inf(a), _inf(b), strict=False))
    ),
    "Fewer steps are better: you have the two sides swapped.": (
        lambda a, b: max(_inf(b)) < min(_inf(a))
    ),
}
LOST: dict[str, Callable[[Runs, Runs], bool]] = {
    "You left out the runs that never got there. So a method could win by failing.": (
        lambda a, b: max(_finished(a)) < min(_finished(b))
    ),
    "You took the runs that never got there for runs of 200 steps.": (
        lambda a, b: (
            max(200 if s is None else s for s in a)
            < min(200 if s is None else s for s in b)
        )
    ),
    "A run of 0 steps counts: it was right before any training. `or` drops a 0.": (
        lambda a, b: max(s or math.inf for s in a) < min(s or math.inf for s in b)
    ),
}


@exercise(
    "11.4",
    "Grouped queries pay less",
    difficulty=3,
    minutes=5,
    hints=(
        "How many pairs does one head have, and what does each pair cost? Which heads "
        "are turned?",
        "A pair costs 4 products and 2 sums, and a head has `head_dim / 2` pairs. "
        "Query heads and key heads are turned, in every layer; values are not.",
    ),
    solution='''
def rope_operations(layers, heads, kv_heads, head_dim):
    """Return the products and sums for one token."""
    pairs = (heads + kv_heads) * head_dim // 2
    return layers * pairs * 6
''',
    why="Each of the heads + kv_heads turned vectors has head_dim / 2 pairs at 6 "
    "operations each. With a quarter of the key heads, a model pays 5/8 of the full "
    "price.",
)
def grouped_queries_pay_less(rope_operations: Callable[..., Any]) -> str:
    cases = [(5, 12, 4, 16), (32, 32, 8, 128), (2, 2, 2, 16), (7, 9, 3, 10)]
    got = [number(rope_operations(*case)) for case in cases]
    right = [3 * n * (h + k) * d for n, h, k, d in cases]
    name_mistake(
        got,
        right,
        {
            message: [slip(*case) for case in cases]
            for message, slip in OPERATIONS.items()
        },
    )
    for (layers, heads, kv_heads, size), mine, truly in zip(
        cases, got, right, strict=True
    ):
        expect(
            mine == truly,
            f"{layers} layers, {heads} query heads, {kv_heads} key heads of {size} "
            f"features: {truly:,} operations; you gave {mine:,.10g}.",
        )
    return "The cost grows with q and k. Fewer key heads, less to turn."


OPERATIONS: dict[str, Callable[[int, int, int, int], int]] = {
    "You turned as many key heads as query heads. With grouped queries there are "
    "fewer key heads.": lambda n, h, k, d: 6 * n * h * d,
    "You turned the values too. They stay as they are: lesson 09.": (
        lambda n, h, k, d: 3 * n * (h + 2 * k) * d
    ),
    "You turned only the queries. The keys are turned too.": (
        lambda n, h, k, d: 3 * n * h * d
    ),
    "You turned only the keys. The queries are turned too.": (
        lambda n, h, k, d: 3 * n * k * d
    ),
    "You turned only as many query heads as there are key heads.": (
        lambda n, h, k, d: 6 * n * k * d
    ),
    "You counted one pair in each head. It has head_dim / 2.": (
        lambda n, h, k, d: 6 * n * (h + k)
    ),
    "You multiplied the two head counts. Each head is turned on its own: add them.": (
        lambda n, h, k, d: 3 * n * h * k * d
    ),
    "You counted one layer. RoPE works in every layer.": (
        lambda n, h, k, d: 3 * (h + k) * d
    ),
    "You counted six operations per feature. A pair costs six.": (
        lambda n, h, k, d: 6 * n * (h + k) * d
    ),
    "You counted only the products: a pair has two sums too.": (
        lambda n, h, k, d: 2 * n * (h + k) * d
    ),
    "You counted only the sums: a pair has four products too.": (
        lambda n, h, k, d: n * (h + k) * d
    ),
}


@exercise(
    "11.5",
    "A fair race",
    difficulty=3,
    minutes=7,
    hints=(
        "Collect first, decide later: a dictionary with a list of steps for each rate. "
        "What should the cost of a list with a None in it be?",
        "`found = {lr: [train(lr, seed) for seed in seeds] for lr in rates}`. The cost "
        "of a rate is the sum of its steps, with math.inf for None; `min(rates, "
        "key=...)` finds the cheapest.",
    ),
    solution='''
def fair_race(train, rates, seeds):
    """Return the best rate, and the list of its steps."""
    found = {lr: [train(lr, seed) for seed in seeds] for lr in rates}

    def cost(lr):
        return sum(math.inf if s is None else s for s in found[lr])

    best = min(rates, key=cost)
    return best, found[best]
''',
    why="Each side gets its own best rate, from one list, over all seeds: items 2 and "
    "3 of the checklist. A run that never gets there costs more than any number.",
)
def a_fair_race(fair_race: Callable[..., Any]) -> str:
    asked = [_asked(fair_race, table) for table in RACES]
    name_mistake(
        [lr for lr, _ in asked],
        [_best(table) for table in RACES],
        {m: [slip(table) for table in RACES] for m, slip in RATES.items()},
    )
    for table, (lr, steps) in zip(RACES, asked, strict=True):
        best = _best(table)
        expect(
            lr == best,
            f"The runs {table}: {best} has the fewest steps on average, with every "
            f"run there; you chose {lr:g}.",
        )
        expect(
            len(steps) == len(table[best])
            and not any(s is None for s in steps)
            and close(steps, table[best]),
            f"The best rate is {best}. Its steps for each seed are {table[best]}; you "
            f"gave {steps}.",
        )
    return "This is how the table of this lesson was made. Now let yours decide below."


def _asked(fair_race: Callable[..., Any], table: Race) -> tuple[float, list[Any]]:
    """What the answer returns for ``table``, once it has tried every entry."""
    all_rates, all_seeds = list(table), [7, 3, 11, 4][: len(next(iter(table.values())))]
    tried = set()

    def known(lr: Any) -> float:
        near = (r for r in all_rates if math.isclose(r, float(lr), rel_tol=1e-5))
        return next(near, float(lr))

    def train(lr: Any, seed: Any) -> float | None:
        pair = known(lr), int(seed)
        if pair[0] not in all_rates or seed not in all_seeds:
            raise Wrong(
                f"You called train({float(lr):g}, {float(seed):g}). The rates are "
                f"{all_rates}, the seeds {all_seeds}, and the rate comes first."
            )
        tried.add(pair)
        return table[pair[0]][all_seeds.index(pair[1])]

    def call(rates: list[float], seeds: list[int]) -> Any:
        return fair_race(train, rates, seeds)

    result = untouched(call, list(all_rates), list(all_seeds))
    expect(
        isinstance(result, (tuple, list)) and len(result) == 2,
        "Return two things: the best rate, and the list of its steps.",
    )
    for lr in all_rates:
        for seed in all_seeds:
            expect(
                (lr, seed) in tried,
                f"With the rates {all_rates} and the seeds {all_seeds}, nothing was "
                f"trained at {lr} with seed {seed}. It could have been the best.",
            )
    number(result[0])
    expect(
        hasattr(result[1], "__iter__"),
        "The second thing that you return must be the list of steps, one for each "
        "seed.",
    )
    return known(result[0]), list(result[1])


Race = dict[float, Runs]
RACES: list[Race] = [
    {0.003: [50, 45, 55], 0.01: [30, 25, 35], 0.03: [20, 90, 40], 0.1: [60, 20, 65]},
    {0.1: [10, 15, None], 0.03: [40, 45, 50], 0.01: [30, 70, 80]},
    {0.01: [40, 20], 0.02: [60, 30], 0.05: [25, 25], 0.2: [15, 65]},
    {0.5: [None, None], 0.001: [300, 800], 0.2: [5, None]},
    {0.02: [25, 5, 90, 30], 0.3: [35, 40, 30, 35]},
    {0.1: [0, 30], 0.2: [20, 15]},
    {0.01: [10, 90, 90], 0.02: [40, 5, 95], 0.03: [50, 40, 30]},
    {0.1: [20, 60], 0.2: [45, 45]},
    {0.2: [20, 21], 0.1: [20, 20]},
]


def _best(table: Race) -> float:
    return min(table, key=lambda lr: sum(_inf(table[lr])))


def _first_of(cost: Callable[[Runs], float]) -> Callable[[Race], float]:
    return lambda table: min(table, key=lambda lr: cost(table[lr]))


RATES: dict[str, Callable[[Race], float]] = {
    "You chose the rate with the single fastest run. The average over all seeds "
    "decides.": _first_of(lambda runs: min(_inf(runs))),
    "You chose by the slowest run. The average decides.": _first_of(
        lambda runs: max(_inf(runs))
    ),
    "You chose by the first seed alone.": _first_of(lambda runs: _inf(runs)[0]),
    "You left out the runs that never got there: a rate could win by failing.": (
        _first_of(lambda runs: sum(_finished(runs)) / len(_finished(runs)))
    ),
    "A run that never gets there counted as 0 steps.": _first_of(
        lambda runs: sum(s or 0 for s in runs)
    ),
    "A run of 0 steps counts: it was right before any training. `all(steps)` and `or` "
    "drop a 0.": _first_of(lambda runs: sum(s or math.inf for s in runs)),
    "You chose the slowest rate: fewer steps are better.": (
        lambda table: max(table, key=lambda lr: sum(_inf(table[lr])))
    ),
}
