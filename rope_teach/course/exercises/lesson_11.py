"""The exercises of lesson 11: RoPE versus absolute encodings, fairly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rope_teach.course.exercises import (
    Wrong,
    as_tensor,
    close,
    exercise,
    expect,
    expect_shape,
    number,
)


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
    curve = [0.1, 0.4, 0.95, 0.9, 1.0, 0.98]
    first = number(solved_at(curve, 0.95, 5))
    expect(first != 2, "That is the entry of the list. It was measured at step 10.")
    expect(
        first != 20,
        "A run has solved it when it *reaches* the goal: exactly 0.95 counts.",
    )
    expect(first != 15, "The first entry was measured at step 0, not at step `every`.")
    expect(
        first != 25,
        "That is the last time it was above the goal. The question asks for the first.",
    )
    expect(
        first == 10,
        f"The curve {curve}, measured every 5 steps, reaches 0.95 at step 10; you gave "
        f"{first:g}.",
    )
    never = solved_at([0.1, 0.2, 0.3], 0.95, 5)
    expect(
        never != float("inf"),
        "This run never gets there. The lesson's figures and tables show that as None, "
        "not as infinity.",
    )
    if never is not None:
        raise Wrong(
            f"This run never gets there, but you gave step {number(never):g}. In an "
            "average it would look like a fast run. Return None."
        )
    for curve, goal, every, right in (
        ([1.0, 1.0], 0.5, 10, 0),
        ([0.2, 0.6, 0.4, 0.9], 0.5, 20, 20),
    ):
        got = solved_at(list(curve), goal, every)
        expect(
            got is not None and number(got) == right,
            f"The curve {curve}, measured every {every} steps, reaches {goal} at step "
            f"{right}; you say {got}.",
        )
    return (
        "One number per run, and None for those that never get there: count those too."
    )


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
    for seeds, points in ((5, 8), (3, 21)):
        curves = torch.rand(seeds, points, generator=generator, dtype=torch.float64)
        result = band(curves.clone())
        expect(result is not None, "Your function returns nothing. Is there a return?")
        for part in result if isinstance(result, tuple) else ():
            expect(
                not isinstance(part, (torch.return_types.min, torch.return_types.max)),
                "Along an axis, `min` returns values and indices. Take `.values`, or "
                "use `amin`.",
            )
        expect(
            not isinstance(result, dict),
            "Return two tensors: the lowest, then the highest.",
        )
        try:
            low, high = (as_tensor(part) for part in result)
        except (TypeError, ValueError):
            raise Wrong("Return two tensors: the lowest, then the highest.") from None
        expect(
            low.shape != (seeds,),
            f"You have one value for each of the {seeds} seeds: its lowest in "
            "training. The band needs one for each point.",
        )
        expect(
            low.numel() > 1,
            "That is one number for everything. The band needs one for each point.",
        )
        expect_shape(low, (points,))
        expect_shape(high, (points,))
        spread, mean = curves.std(0), curves.mean(0)
        expect(
            not any(
                close(low, middle - width)
                for middle in (mean, curves.median(0).values)
                for width in (spread, spread / seeds**0.5, curves.std(0, correction=0))
            ),
            "That is a centre and a standard deviation. It can leave the range of the "
            "runs, and even go above 100 %. Return the lowest and the highest.",
        )
        expect(
            not close(low, curves.quantile(0.25, 0)),
            "Those are quartiles: half of the seeds lie outside. A band that hides no "
            "seed goes from the lowest to the highest.",
        )
        expect(
            not close(low, curves[curves.mean(1).argmin()]),
            "You drew the worst run and the best one. At each point a different seed "
            "may be the lowest.",
        )
        expect(
            not close(low, curves.amax(0)),
            "The right values, but the highest comes first. Put the lowest first.",
        )
        expect(
            close(low, curves.amin(0)) and close(high, curves.amax(0)),
            f"With {seeds} seeds the band at the first point goes from "
            f"{curves[:, 0].min():.2f} to {curves[:, 0].max():.2f}; yours goes from "
            f"{low[0]:.2f} to {high[0]:.2f}.",
        )
    return "That is what `bands=` in this lesson's figures takes."


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
    for ours, theirs, right, what in (
        (
            [20, 25, 30],
            [60, 65, 80],
            True,
            "The ranges do not overlap, so this is a win.",
        ),
        (
            [20, 70, 25],
            [60, 65, 80],
            False,
            "One of ours took 70 steps and loses against 60. The mean hides that run.",
        ),
        (
            [20, 25, 70],
            [60, 65, 80],
            False,
            "Compare every run with every run, not seed by seed: ours of 70 loses "
            "against theirs of 60.",
        ),
        (
            [20, 60, 50],
            [60, 65, 80],
            False,
            "60 against 60 is a tie: our slowest run does not beat their fastest.",
        ),
        (
            [60, 55, 58],
            [20, 70, 80],
            False,
            "One of theirs took 20 steps and beats all of ours.",
        ),
        ([70, 80], [20, 30], False, "Fewer steps are better: here they won."),
        (
            [20, None, 30],
            [60, 65, 80],
            False,
            "One of ours never got there. Do not leave it out, or a method could win "
            "by failing.",
        ),
        (
            [20, 30],
            [None, None],
            True,
            "None of theirs ever got there, and all of ours did: that is a win.",
        ),
        (
            [None, None],
            [None, None],
            False,
            "No run got there, so neither side won.",
        ),
    ):
        answer = clear_win(list(ours), list(theirs))
        expect(answer is not None, "Your function returns nothing. Is there a return?")
        got = number(answer * 1)  # True counts as 1
        expect(
            got in (0, 1),
            f"Expected True or False, got {got:g}. Did you return the margin?",
        )
        if bool(got) != right:
            raise Wrong(f"ours {ours}, theirs {theirs}: {what}")
    return "Where the ranges overlap, say so, or run more seeds."


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
    for case in ((5, 12, 4, 16), (32, 32, 8, 128), (2, 2, 2, 16)):
        layers, heads, kv_heads, size = case
        got = number(rope_operations(*case))
        pairs = (heads + kv_heads) * size // 2
        right = layers * pairs * 6
        named = {
            layers
            * heads
            * size
            * 6: "turned as many key heads as query heads. With grouped queries there "
            "are fewer key heads.",
            layers
            * (heads + 2 * kv_heads)
            * size
            * 3: "turned the values too. They stay as they are: lesson 09.",
            layers * heads * size * 3: "turned only the queries. The keys are turned "
            "too.",
            layers * kv_heads * size * 3: "turned only the keys. The queries are "
            "turned too.",
            layers * kv_heads * size * 6: "turned only as many query heads as there "
            "are key heads.",
            layers * (heads + kv_heads) * 6: "counted one pair in each head. It has "
            "head_dim / 2.",
            layers * heads * kv_heads * size * 3: "multiplied the two head counts. "
            "Each head is turned on its own: add them.",
            pairs * 6: "counted one layer. RoPE works in every layer.",
            2 * right: "counted six operations per feature. A pair costs six.",
            layers * pairs * 4: "counted only the products: a pair has two sums too.",
            layers * pairs * 2: "counted only the sums: a pair has four products too.",
        }
        for value, message in named.items():
            expect(value == right or got != value, f"You {message}")
        expect(
            got == right,
            f"{layers} layers, {heads} query heads, {kv_heads} key heads of {size} "
            f"features: {right:,} operations; you gave {got:,.0f}.",
        )
    return "The cost grows with q and k. Fewer key heads, less to turn."
