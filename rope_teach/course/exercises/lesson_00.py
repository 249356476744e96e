"""The exercises of lesson 00: first steps, and how to use a check."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from rope_teach.course.exercises.cards import exercise, expect
from rope_teach.course.exercises.comparing import close, expect_close
from rope_teach.course.exercises.values import as_tensor, number


@exercise(
    "0.1",
    "How far apart?",
    difficulty=1,
    minutes=2,
    hints=(
        'Positions count from 0: "The" is 0, the first "dog" is 1. Where is the other?',
        "The second dog is at position 4. Subtract the position of the first.",
    ),
    solution="distance = 4 - 1",
    why="The dogs are at positions 1 and 4. Each of the second dog's hands has turned "
    "3 steps further than the same hand of the first.",
)
def how_far_apart(distance: Any) -> str:
    got = number(distance)
    expect(
        got != 2,
        "There are two words between the dogs. The distance counts the steps from one "
        "dog to the other.",
    )
    expect(
        got != 0,
        "The two dogs are the same word in two places. Count the steps between the "
        "places.",
    )
    expect(got != 5, "5 is the sum of the positions 1 and 4. Take their difference.")
    expect(
        got != 4,
        "4 is the position of the second dog. How far is it from the first one?",
    )
    expect(
        got != -3,
        "The right size, but the wrong direction. Going from the first dog to the "
        "second, the position increases.",
    )
    expect(
        got == 3,
        f"From position 1, {got:g} steps take you to position {1 + got:g}. Where is "
        "the second dog?",
    )
    return "Three steps, and still three when the whole sentence moves."


@exercise(
    "0.2",
    "Turn it to position 5",
    difficulty=1,
    minutes=2,
    hints=(
        "The lesson has a function that takes a vector and a position.",
        "Call that function with the two hands and the number 5: `rope(two_hands, "
        "...)`.",
    ),
    solution="turned = rope(two_hands, 5)",
    why="Both hands start out pointing right. At position 5 the fast one has turned by "
    "5 radians, the slow one by 5 · 0.01.",
)
def turn_it_to_position_five(turned: Any) -> str:
    got = as_tensor(turned)
    expect(
        tuple(got.shape) == (4,),
        "Two hands take 4 numbers, turned or not. Your result has shape "
        f"{tuple(got.shape)}.",
    )
    start = torch.tensor([1.0, 0.0, 1.0, 0.0])
    expect(
        not close(got, start),
        "The hands have not moved: that is position 0, where nothing has turned yet.",
    )
    expect(
        not close(got, 5 * start),
        "You multiplied by 5. That makes the hands longer. A position turns them.",
    )
    expect(
        not close(got, start + 5),
        "You added 5. Some encodings add a position; this one turns by it.",
    )
    for other in (1, 4, 6, -5):
        expect(
            not close(got, _two_hands(other)),
            f"Those are the hands at position {other}. The question asks for position "
            "5.",
        )
    half, fast, slow = _two_hands(2.5), _two_hands(5)[:2], _two_hands(5)[2:]
    named = {
        "Those are the hands at position 2.5: half the way.": half,
        "The fast hand has turned, the slow one has not.": [*fast, 1.0, 0.0],
        "The slow hand has turned, the fast one has not.": [1.0, 0.0, *slow],
        "Your pairs are (sin, cos). The first number of a pair is its cosine: a hand "
        "that has not turned is (1, 0).": [*fast[::-1], *slow[::-1]],
        "All cosines come first. Here the two numbers of a hand are side by side.": [
            fast[0], slow[0], fast[1], slow[1],
        ],
        "Those hands have turned by 5 degrees and 0.05 degrees. The angles are in "
        "radians.": _two_hands(math.radians(5)),
    }  # fmt: skip
    for message, wrong in named.items():
        expect(not close(got, wrong), message)
    short = getattr(turned, "dtype", None) is torch.bfloat16
    expect_close(
        got,
        _two_hands(5),
        "At position 5, the pairs are (cos 5, sin 5) and (cos 0.05, sin 0.05).",
        8e-3 if short else 1e-3,  # any arithmetic will do, but not 0.28 for 0.284
    )
    return "The first hand has turned by 5 radians, the second by 0.05."


def _two_hands(position: float) -> list[float]:
    angles = (position, 0.01 * position)
    return [f(angle) for angle in angles for f in (math.cos, math.sin)]


@exercise(
    "0.3",
    "What stays?",
    difficulty=2,
    minutes=4,
    hints=(
        "Try it: print each of the four for m = 1, n = 4, then for m = 11, n = 14.",
        "Turning changes where a hand points, but not how long it is. And a score "
        "stays the same only if both vectors were turned.",
    ),
    solution='same = "BC"',
    why="B compares two vectors that turn together, so only n - m matters. C is a "
    "length, and turning changes no length. A points somewhere else, and in D only q "
    "turns.",
)
def what_stays(same: Any) -> str:
    try:
        words = re.findall(r"\w+", same if isinstance(same, str) else " ".join(same))
    except TypeError:
        words = []
    chosen = {c for word in words if word.lower() != "and" for c in word.upper()}
    expect(
        bool(chosen) and chosen <= set("ABCD"),
        f'Write the letters of your choice, for example "AD". You gave {same!r}.',
    )
    expect(
        "A" not in chosen,
        "A: the query itself keeps turning, so its numbers are different at each "
        "position. Print rope(q, 1) and rope(q, 11).",
    )
    expect(
        "D" not in chosen,
        "D: only the query was turned; the key stayed behind. So this score depends on "
        "where the query is.",
    )
    expect("B" in chosen, "One is missing: think of the rule of this lesson.")
    expect("C" in chosen, "One is missing: what does a turn do to a length?")
    return (
        "The score of two turned vectors, and a length. The whole course rests on "
        "these two facts."
    )
