"""The exercises of lesson 04: one clock hand."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises.cards import exercise, expect
from rope_teach.course.exercises.comparing import (
    apart,
    difference,
    expect_close,
    expect_shape,
    name_mistake,
)
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor, number


def _turn(pair: Tensor, angle: float) -> Tensor:
    a, b = pair
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([a * cos - b * sin, a * sin + b * cos])


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
    pairs = torch.randn(5, 2, generator=torch.Generator().manual_seed(4))
    angles = (0.5, -1.3, 2.0, 7.9, -0.07)
    cases = [(_turn(x, a), a, x) for x, a in zip(pairs, angles, strict=True)]
    try:
        got = [as_tensor(untouched(undo, turned, angle)) for turned, angle, _ in cases]
    except (IndexError, ValueError) as error:
        inside = traceback.extract_tb(error.__traceback__)[-1].name
        expect(
            inside != "rotation_matrix",
            "rotation_matrix takes a tensor with an angle for each pair, here one: "
            "torch.tensor([...]), with the brackets.",
        )
        raise
    expect(
        any(answer.shape != (1, 2) for answer in got),
        "A pair has shape (2,); yours has (1, 2). Take the row out of its table.",
    )
    for answer in got:
        expect_shape(answer, (2,))
    name_mistake(
        got,
        [x for *_, x in cases],
        {
            "You turned again in the same direction: the pair is now two angles away "
            "from where it started.": [_turn(t, a) for t, a, _ in cases],
            "A minus sign in front of the pair is half a turn, whatever the angle was. "
            "The minus sign belongs to the angle.": [-t for t, *_ in cases],
            "The pair came back unchanged: nothing is undone.": [t for t, *_ in cases],
            "The two features are swapped. That mirrors the pair; it does not turn it "
            "back.": [_turn(t.flip(0), a) for t, a, _ in cases],
            "Both features are swapped and the angle is negated. The angle alone is "
            "enough.": [_turn(t.flip(0), -a) for t, a, _ in cases],
            "This takes the angle in degrees. Here it is in radians.": [
                _turn(t, -math.radians(a)) for t, a, _ in cases
            ],
        },
        tolerance=2e-3,
    )
    for answer, (_, angle, before) in zip(got, cases, strict=True):
        expect_close(
            answer,
            before,
            f"A pair was turned by {angle:g}. This is not the pair as it was:",
            2e-3,
            axes=("feature",),
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
    distance, wanted = apart(got - 50, 7)
    expect(
        abs(got - 57) < 1e-4,
        f"There the distance is {distance}. It was 9 - 2 = {wanted}.",
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
    "π / 10. Its odd multiples give zero too, after more turning.",
)
def blind_at_distance_five(inv_freq: Any) -> str:
    got = number(inv_freq)
    score, quarters = math.cos(5 * got), 5 * got / (math.pi / 2)
    expect(
        got != 0,
        "At speed 0 the hand never turns, and every distance has the same score.",
    )
    expect(
        not math.isclose(got, 18, rel_tol=1e-3),
        "18 radians per token are nearly three full turns. Did you mean degrees? "
        "Angles here are in radians.",
    )
    expect(
        abs(score) > 2e-4 or got > 0,
        "The score at distance 5 is zero, but this hand turns backwards. Give the "
        "smallest positive speed.",
    )
    expect(
        abs(score) > 2e-4 or quarters < 2,
        f"The score at distance 5 is zero, but after {quarters:.0f} quarter turns. A "
        "slower hand does it too.",
    )
    expect(
        abs(score) > 2e-3 or abs(score) < 2e-4,
        f"Very close: the score at distance 5 is {score:.4f} of its largest value. "
        "Write the speed with math.pi.",
    )
    expect(
        abs(score) < 2e-4,
        f"At {got:g} radians per token the hand has made {quarters:.3g} quarter turns "
        f"at distance 5, and the score is {score:.3f} of its largest value.",
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
    cases = [(3, 12, 40), (17, 12, 40), (0, 10, 30), (6, 12, 30), (4, 1000, 1996)]
    cases += [(101, 7, 18), (45, 9, 31), (5, 8, 3), (9, 16, 9)]
    got = [_listed(twins(*case)) for case in cases]
    right = [_twins(*case) for case in cases]
    for case, answer in zip(cases, got, strict=True):
        expect(answer.ndim < 2, "Give one list of distances, not a table.")
        expect(
            bool((answer == answer.round()).all()),
            f"{_case(*case)} you list distances that are not whole numbers.",
        )
    name_mistake(
        got,
        right,
        {
            "You found the full turns, but not the mirror images: a cosine is the same "
            "for x and -x.": [
                [d for d in range(last + 1) if d % period == distance % period]
                for distance, period, last in cases
            ],
            "You found whole turns after `distance`. A cosine is the same for x and "
            "-x, too, and there may be distances before it.": [
                list(range(distance, last + 1, period))
                for distance, period, last in cases
            ],
            "You found the mirror images, but not the full turns.": [
                [d for d in range(last + 1) if (d + distance) % period == 0]
                for distance, period, last in cases
            ],
            "You stopped after one turn: the hand keeps turning.": [
                [d for d in both if d <= period]
                for both, (_, period, _) in zip(right, cases, strict=True)
            ],
            "You left out `last` itself: range(last) stops one short of it.": [
                [d for d in both if d < last]
                for both, (*_, last) in zip(right, cases, strict=True)
            ],
            "Distance 0 is missing where it belongs.": [
                [d for d in both if d > 0] for both in right
            ],
        },
    )
    for case, answer, both in zip(cases, got, right, strict=True):
        mine = [int(d) for d in answer.flatten()]
        extra = [d for d in mine if d not in both]
        missing = [d for d in both if d not in mine]
        expect(
            not extra,
            f"{_case(*case)} you list {extra[0] if extra else ''}, which has another "
            "score or is out of range.",
        )
        expect(
            not missing,
            f"{_case(*case)} {missing[0] if missing else ''} is missing: its score is "
            "the same.",
        )
        expect(
            sorted(set(mine)) == sorted(mine),
            f"{_case(*case)} you list a distance twice.",
        )
        expect(mine == both, "The right distances, but not in increasing order.")
    return (
        "One hand confuses these distances. A bank of hands at many speeds does not: "
        "lesson 05."
    )


def _listed(answer: Any) -> Tensor:
    expect(
        not isinstance(answer, (set, frozenset)),
        "A set has no order. sorted(...) makes a list of it.",
    )
    if isinstance(answer, Iterable) and not hasattr(answer, "__array__"):
        answer = answer if isinstance(answer, str) else list(answer)
    marks = answer if isinstance(answer, list) else []
    expect(
        not any(isinstance(mark, bool) for mark in marks)
        and str(getattr(answer, "dtype", "")) not in ("bool", "torch.bool"),
        "You gave True or False for each distance. List the distances themselves.",
    )
    return as_tensor(answer)


def _twins(distance: int, period: int, last: int) -> list[int]:
    same = {distance % period, -distance % period}
    return [d for d in range(last + 1) if d % period in same]


def _case(distance: int, period: int, last: int) -> str:
    return f"For distance {distance}, period {period}, up to {last}:"


@exercise(
    "4.5",
    "All scores at once",
    difficulty=4,
    minutes=10,
    hints=(
        "Turn first, compare afterwards: one loop over the tokens turns all queries, "
        "another turns all keys. What is then left to do for row m and column n?",
        "torch.stack([turn(q, m * inv_freq) for m, q in enumerate(queries)]) holds the "
        "turned queries (seq, 2). All dot products at once: queries @ keys.T.",
    ),
    solution='''
def score_table(queries, keys, inv_freq):
    """Return the scores (seq, seq) of all turned pairs."""
    q = torch.stack([turn(x, m * inv_freq) for m, x in enumerate(queries)])
    k = torch.stack([turn(x, n * inv_freq) for n, x in enumerate(keys)])
    return q @ k.T
''',
    why="Each token is turned once, by its own position: 2 seq turns for seq * seq "
    "scores. The product of the two tables then holds every pair of tokens.",
)
def all_scores_at_once(score_table: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(45)
    cases = []
    for seq, inv_freq in ((5, 0.2), (7, 0.93), (1, 0.4), (12, 1.7)):
        q, k = torch.randn(2, seq, 2, generator=generator, dtype=torch.float64)
        cases.append((q, k, inv_freq))
    got = [as_tensor(untouched(score_table, *case)) for case in cases]
    for answer, (q, *_) in zip(got, cases, strict=True):
        expect(
            answer.shape != q.shape or len(q) == 2,
            f"The result has a pair for each token, {tuple(answer.shape)}. Wanted is a "
            "score for each query and each key.",
        )
        expect_shape(answer, (len(q), len(q)))
    right = [_scores(*case) for case in cases]
    name_mistake(
        got,
        right,
        {
            "These are the scores before any turn.": [q @ k.T for q, k, _ in cases],
            "Rows and columns are swapped: row m belongs to query m.": [
                scores.T for scores in right
            ],
            "Only the queries are turned.": [_turned(q, s) @ k.T for q, k, s in cases],
            "Only the keys are turned.": [q @ _turned(k, s).T for q, k, s in cases],
            "Queries and keys turn in opposite directions: nothing is relative then.": [
                _turned(q, s) @ _turned(k, -s).T for q, k, s in cases
            ],
            "Both turn clockwise. The sign is +: counter-clockwise.": [
                _scores(q, k, -s) for q, k, s in cases
            ],
            "You turned at 0.2 radians per token. The speed is an argument.": [
                _scores(q, k, 0.2) for q, k, _ in cases
            ],
            "The scores above the diagonal are missing: here every query meets every "
            "key.": [scores.tril() for scores in right],
            "These are the shares after softmax. Return the scores themselves.": [
                scores.softmax(-1) for scores in right
            ],
            "You divided by the square root of 2, as attention does. Return the plain "
            "dot products.": [scores / 2**0.5 for scores in right],
        },
    )
    for answer, scores, (q, _, inv_freq) in zip(got, right, cases, strict=True):
        wrong = difference(answer, scores)
        expect(not wrong, f"For {len(q)} tokens and speed {inv_freq:g}: {wrong}")
    return (
        "Each token was turned once, by its own position, and every score knows the "
        "distance. The next slide draws your table."
    )


def _turned(pairs: Tensor, inv_freq: float) -> Tensor:
    return torch.stack([_turn(x, m * inv_freq) for m, x in enumerate(pairs)])


def _scores(queries: Tensor, keys: Tensor, inv_freq: float) -> Tensor:
    return _turned(queries, inv_freq) @ _turned(keys, inv_freq).T
