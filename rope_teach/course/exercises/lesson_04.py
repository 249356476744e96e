"""The exercises of lesson 04: one clock hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from rope_teach.course.exercises import as_tensor, close, exercise, expect, number


def _turn(a: float, b: float, angle: float) -> tuple[float, float]:
    cos, sin = math.cos(angle), math.sin(angle)
    return a * cos - b * sin, a * sin + b * cos


@exercise(
    "4.1",
    "Undo a turn",
    difficulty=1,
    minutes=3,
    hints=(
        "Which angle, added to `angle`, makes no turn at all?",
        "Turn again, by the negative angle. cos stays the same, sin changes sign.",
    ),
    solution='''
def undo(pair, angle):
    """Return the pair that turn(..., angle) started from."""
    return turn(pair, -angle)
''',
    why="Turns add up, so angle and -angle make 0. The matrix of the inverse is the "
    "transpose: the two sines swap places.",
)
def undo_a_turn(undo: Callable[..., Any]) -> str:
    for a, b, angle in ((1.0, 0.0, 0.5), (0.6, -1.2, 2.0)):
        across, up = _turn(a, b, angle)
        turned = torch.tensor([across, up], dtype=torch.float64)
        got = as_tensor(undo(turned, angle))
        expect(
            not close(got, _turn(across, up, angle)),
            "You turned again in the same direction: the pair is now two angles away "
            "from where it started.",
        )
        expect(
            not close(got, -turned),
            "A minus sign in front of the pair is half a turn, whatever the angle was. "
            "The minus sign belongs to the angle.",
        )
        expect(
            not close(got, turned),
            "The pair came back unchanged: nothing is undone.",
        )
        swapped = _turn(up, across, angle)
        expect(
            not close(got, swapped),
            "The two features are swapped. That mirrors the pair; it does not turn it "
            "back.",
        )
        expect(
            close(got, (a, b)),
            f"({a}, {b}) turned by {angle} should come back as ({a}, {b}); you gave "
            f"({', '.join(f'{v:.3f}' for v in got.flatten().tolist())}).",
        )
    return (
        "The opposite angle undoes a turn. The gradient of RoPE is exactly this "
        "function: lesson 05."
    )


@exercise(
    "4.2",
    "Follow the query",
    difficulty=1,
    minutes=2,
    hints=(
        "What is the only thing that the score depends on?",
        "The distance n - m was 9 - 2. Keep it, with its sign, from the new position.",
    ),
    solution="key_position = 50 + (9 - 2)",
    why="The score depends only on n - m = 7. So the key moves as far as the query: to "
    "57.",
)
def follow_the_query(position: Any) -> str:
    got = number(position)
    expect(
        got != 43,
        "At 43 the key is 7 tokens before the query; it was 7 after it. The sign of "
        "the distance matters: -7 turns the other way.",
    )
    expect(
        got != 9,
        "The key stayed at 9 and the query moved away. The distance is now -41, so the "
        "angle between the arrows is different.",
    )
    expect(got != 7, "7 is the distance. The question asks for the key's position.")
    expect(
        got != 48,
        "48 is how far the query moved. The key moves just as far, but from where it "
        "was.",
    )
    expect(
        got == 57,
        f"At {got:g} the distance is {got - 50:g}. It was 9 - 2 = 7.",
    )
    return "Both moved by 48. The distance stayed 7, and so did the score."


@exercise(
    "4.3",
    "Blind at distance 5",
    difficulty=2,
    minutes=4,
    hints=(
        "Two arrows have a dot product of zero when they are at right angles.",
        "After 5 tokens the hand must have turned a quarter of a circle: 5 θ = π / 2.",
    ),
    solution="inv_freq = math.pi / 2 / 5",
    why="Equal pairs score |q|² cos(5 θ). The cosine is zero at a quarter turn, so θ = "
    "π / 10. Odd multiples of it work too.",
)
def blind_at_distance_five(inv_freq: Any) -> str:
    got = number(inv_freq)
    expect(
        got != 0,
        "At speed 0 the hand never turns, and every distance has the same score.",
    )
    expect(
        not math.isclose(got, math.pi / 2, rel_tol=1e-3),
        "π/2 per token is a quarter turn after 1 token. The right angle should come "
        "after 5 tokens.",
    )
    expect(
        not math.isclose(got, math.pi / 5, rel_tol=1e-3),
        "π/5 gives half a turn after 5 tokens: the arrows point in opposite directions "
        "and the score is at its lowest, not zero.",
    )
    expect(
        not math.isclose(got, 18, rel_tol=1e-3),
        "18 degrees is the right angle in the wrong unit. Angles here are in radians.",
    )
    score = math.cos(5 * got)
    expect(
        abs(score) < 1e-3,
        f"At {got:g} radians per token, the score at distance 5 is {score:.3f} of its "
        "largest value.",
    )
    return (
        "A quarter turn in 5 tokens. At distance 10 the arrows point in opposite "
        "directions."
    )


@exercise(
    "4.4",
    "What one hand confuses",
    difficulty=3,
    minutes=6,
    hints=(
        "Equal pairs score cos(distance · θ). For which angles is the cosine the same?",
        "A cosine repeats after a full turn, and it is the same for x and -x. So "
        "include both `distance` and `period - distance`, plus any number of full "
        "turns.",
    ),
    solution='''
def twins(distance, period, last):
    """Return the distances 0..last that score like `distance`."""
    same = {distance % period, -distance % period}
    return [d for d in range(last + 1) if d % period in same]
''',
    why="cos x = cos y when y = ±x plus whole turns. So one hand confuses distances "
    "that are a full turn apart and, with equal pairs, a distance with its mirror "
    "image.",
)
def what_one_hand_confuses(twins: Callable[..., Any]) -> str:
    for distance, period, last in ((3, 12, 40), (5, 8, 30), (0, 10, 30)):
        got = [int(d) for d in as_tensor(twins(distance, period, last)).flatten()]
        turns = [d for d in range(last + 1) if d % period == distance % period]
        mirror = {distance % period, -distance % period}
        right = [d for d in range(last + 1) if d % period in mirror]
        what = f"distance {distance}, period {period}, up to {last}"
        expect(
            got != turns or turns == right,
            f"For {what} you found the full turns, but not the mirror images: a cosine "
            f"is the same for x and -x, so {period - distance} belongs there too.",
        )
        expect(
            got != [d for d in right if d <= period],
            f"For {what} you stopped after one turn: the hand keeps turning.",
        )
        expect(
            got != [d for d in right if d < last] or last not in right,
            f"For {what} you left out {last} itself: range(last) stops one short of "
            "it.",
        )
        expect(
            not distance or got != list(range(0, last + 1, distance)),
            f"For {what} you listed multiples of the distance. Twice the distance is "
            "twice the angle, which has a different cosine.",
        )
        expect(
            sorted(got) == right, f"For {what} the twins are {right}; you gave {got}."
        )
        expect(got == right, "The right distances, but not in order.")
    return (
        "One hand confuses these distances. A bank of hands at many speeds does not: "
        "lesson 05."
    )
