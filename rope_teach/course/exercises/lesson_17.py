"""The exercises of lesson 17: images and learned rotations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import (
    apart,
    close,
    expect_shape,
    name_mistake,
)
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor, number


@exercise(
    "17.1",
    "What the flat reader sees",
    difficulty=2,
    minutes=4,
    hints=(
        "What is the position of the cell in a sequence that is read row by row? And "
        "which position is 13 tokens further on?",
        "The cell is at row * width + column. Add 13, then divide by the width: the "
        "quotient is the row, the remainder is the column. divmod gives both.",
    ),
    solution='''
def looks_at(row, column, width):
    """Return the row and the column of the cell it looks at."""
    return divmod(row * width + column + 13, width)
''',
    why="The reader knows only positions. 13 tokens further on is always the same "
    "distance, but a different cell for every width.",
)
def what_the_flat_reader_sees(looks_at: Callable[..., Any]) -> str:
    cells = (
        (0, 0, 6),
        (3, 5, 7),
        (0, 0, 7),
        (2, 5, 9),
        (1, 3, 12),
        (4, 2, 5),
        (2, 14, 20),
        (6, 0, 13),
        (1, 3, 40),
        (2, 1, 4),
    )
    for row, column, width in cells:
        what = f"From cell ({row}, {column}) of a picture of width {width},"
        answer = as_tensor(looks_at(row, column, width)).flatten().tolist()
        place = row * width + column + 13
        expect(
            answer != [place],
            f"{what} you gave the position {place}. In which row and column is that?",
        )
        expect(len(answer) == 2, f"{what} you gave {len(answer)} numbers, not two.")
        got = (answer[0], answer[1])
        right = divmod(place, width)
        expect(
            got != (row + 2, column + 1) or got == right,
            f"{what} you went 2 down and 1 to the right. That is where the reader "
            "should look; but it counts 13 tokens.",
        )
        expect(
            got != right[::-1] or got == right,
            f"{what} row and column are swapped: the row comes first.",
        )
        expect(
            got != divmod(row * 6 + column + 13, 6) or got == right,
            f"{what} you counted rows of 6 cells. It was trained on those, but the "
            "rows of this picture are longer.",
        )
        expect(
            all(float(place).is_integer() for place in got),
            f"{what} you gave ({got[0]:g}, {got[1]:g}). Rows and columns are whole "
            "numbers: divide with //.",
        )
        expect(
            0 <= got[1] < width,
            f"{what} you gave column {got[1]:g}. A row has the columns 0 to "
            f"{width - 1}: past either end you are in the next row or the previous "
            "one.",
        )
        expect(
            got != (right[0] + 1, right[1] + 1),
            f"{what} you counted from 1. Rows and columns begin at 0.",
        )
        expect(
            got != (row + 2, right[1]) or got == right,
            f"{what} the column is right, but you went 2 rows down. 13 tokens are "
            "fewer rows when rows are longer.",
        )
        expect(
            got == right,
            f"{what} which is token {place - 13}, it looks at token {place}: cell "
            f"{right}. You gave ({got[0]:g}, {got[1]:g}).",
        )
    return (
        "One distance, but a different cell for every width. A second axis fixes that."
    )


@exercise(
    "17.2",
    "What a table can know",
    difficulty=3,
    minutes=6,
    hints=(
        "Count the cells that ask on size x size, and those among them that both ask "
        "and look inside the trained square. What do the others score on average?",
        "(size - 2) * (size - 1) cells ask. (trained - 2) * (trained - 1) of them are "
        "right, and an eighth of the rest.",
    ),
    solution='''
def share(trained, size):
    """Return the expected share of right answers, 0 to 1."""
    known = (trained - 2) * (trained - 1) / ((size - 2) * (size - 1))
    return known + (1 - known) / 8
''',
    why="A table knows the cells that it was trained on, and where they are relative "
    "to each other. Its other rows are noise. For 6 this gives 0.71, 0.44 and 0.28 at "
    "7, 9 and 12, which is what was measured.",
)
def what_a_table_can_know(share: Callable[..., Any]) -> str:
    for trained, size in ((6, 7), (6, 12), (8, 8), (5, 20), (7, 9), (3, 4)):
        got = number(share(trained, size))
        what = f"Trained on {trained}, asked on {size},"
        asked = (size - 2) * (size - 1)
        known = (trained - 2) * (trained - 1) / asked
        stands = min(trained, size - 2) * min(trained, size - 1) / asked
        looks = [x + (1 - x) / 8 for x in (stands, trained**2 / asked)]
        area = trained**2 / size**2
        square = ((trained - 2) / (size - 2)) ** 2
        right = known + (1 - known) / 8
        expect(
            not any(_near(got, x) for x in (stands, trained**2 / asked, *looks))
            or trained == size,
            f"{what} you counted every trained cell that asks. Some of them look at a "
            "cell outside the trained square, and the table never learned where that "
            "is.",
        )
        expect(
            not 1 < got <= 100,
            f"{what} you gave {got:g}. A share lies between 0 and 1.",
        )
        if trained == size:
            expect(
                _near(got, 1),
                f"{what} every cell was trained, so the share is 1; "
                f"you gave {apart(got, 1.0)[0]}.",
            )
            continue
        expect(
            not _near(got, known),
            f"{what} you left out the guesses: one in eight of the other cells is "
            "right by luck.",
        )
        expect(
            not _near(got, area) and not _near(got, area + (1 - area) / 8),
            f"{what} you compared all cells. Those in the last two rows and in the "
            "last column have no answer to give.",
        )
        expect(
            not _near(got, square) and not _near(got, square + (1 - square) / 8),
            f"{what} you removed two columns. The answer is 2 below, but only 1 to the "
            "right.",
        )
        expect(
            not _near(got, area + (known - area) / 8) and not _near(got, known + 1 / 8),
            f"{what} you gave every cell a guess. Those that know need none.",
        )
        expect(
            _near(got, right),
            f"{what} {(trained - 2) * (trained - 1)} of {(size - 2) * (size - 1)} "
            f"cells know and the others guess: {apart(right, got)[0]}. You gave "
            f"{apart(right, got)[1]}.",
        )
    return "Compare with the row `table` in the lesson: a table knows what it has seen."


def _hands() -> list[tuple[str, Callable[[Any, Any], Any], bool]]:
    """For each hand: its name, its angle, and whether it is relative."""
    turn = 2 * math.pi
    return [
        ("0.3 * row + 0.7 * column", lambda r, c: 0.3 * r + 0.7 * c, True),
        ("0.5 * row - 0.2 * column", lambda r, c: 0.5 * r - 0.2 * c, True),
        ("1 + 0.4 * column", lambda r, c: 1 + 0.4 * c + 0 * r, True),
        ("2 (it never turns)", lambda r, c: 2 + 0 * r + 0 * c, True),
        ("(0.9 * row + 2 * column) % (2π)",
         lambda r, c: (0.9 * r + 2 * c) % turn, True),
        ("(0.5 * row - 0.7 * column) % (2π)",
         lambda r, c: (0.5 * r - 0.7 * c) % turn, True),
        ("π * row - 4 * column", lambda r, c: math.pi * r - 4 * c, True),
        ("0.2 * row * column", lambda r, c: 0.2 * r * c, False),
        ("0.4 * row + 0.1 * column ** 2", lambda r, c: 0.4 * r + 0.1 * c * c, False),
        ("0.1 * row ** 2 + 0.4 * column", lambda r, c: 0.1 * r * r + 0.4 * c, False),
        ("0.5 * abs(row - column)", lambda r, c: 0.5 * abs(r - c), False),
        ("0.3 * (row - 2 * column) ** 2", lambda r, c: 0.3 * (r - 2 * c) ** 2, False),
        ("0.3 * min(row, 5) + 0.2 * column",
         lambda r, c: 0.15 * (r + 5 - abs(r - 5)) + 0.2 * c, False),
        ("0.3 * (row % 2)", lambda r, c: 0.3 * (r % 2) + 0 * c, False),
        ("0.4 * row + 0.6 * (column % 2)",
         lambda r, c: 0.4 * r + 0.6 * (c % 2), False),
        ("0.2 * row + 0.001 * row * column",
         lambda r, c: 0.2 * r + 0.001 * r * c, False),
        ("0.3 * row + 0.7 * column, but 0.5 more at (4, 4)",
         lambda r, c: 0.3 * r + 0.7 * c + 0.5 * ((r == 4) * (c == 4)), False),
        ("0.3 * row + 0.7 * column, but 0.5 more at (8, 2)",
         lambda r, c: 0.3 * r + 0.7 * c + 0.5 * ((r == 8) * (c == 2)), False),
        ("0.3 * row + 0.7 * column, but 0.5 more at (8, 8)",
         lambda r, c: 0.3 * r + 0.7 * c + 0.5 * ((r == 8) * (c == 8)), False),
        ("a free angle for every cell",
         lambda r, c: (7.3 * r * r + 1.7 * c * c * c + 2.9 * r * c) % turn, False),
    ]  # fmt: skip


def _steps(angle: Callable[[Any, Any], Any]) -> str:
    """What the steps of a hand do, as a fact for a message."""
    for name, r, c in (("down", 1, 0), ("to the right", 0, 1)):
        first = angle(r, c) - angle(0, 0)
        for row in range(9 - r):
            for column in range(9 - c):
                step = angle(row + r, column + c) - angle(row, column)
                if abs(math.remainder(step - first, 2 * math.pi)) > 1e-6:
                    return (
                        f"A step {name} turns it by {first:.3f} from (0, 0), and by "
                        f"{step:.3f} from ({row}, {column})."
                    )
    return (
        "Every step down is the same rotation, and every step to the right. (Angles "
        "that differ by whole turns are the same, and floating point numbers differ in "
        "their last digits.)"
    )


@exercise(
    "17.3",
    "A test for the law",
    difficulty=3,
    minutes=6,
    hints=(
        "A score sees the difference of two angles. If only the offset counts, how "
        "much must one step down add, wherever it is? And a step to the right?",
        "Collect angle(r + 1, c) - angle(r, c) for all cells, and the same along c. "
        "All entries of a list must be the same rotation: math.cos(step - first) is 1, "
        "up to rounding.",
    ),
    solution='''
def is_relative(angle):
    """Return whether the hand keeps the relative law."""
    down = [angle(r + 1, c) - angle(r, c)
            for r in range(8) for c in range(9)]
    right = [angle(r, c + 1) - angle(r, c)
             for r in range(9) for c in range(8)]
    return all(math.cos(step - steps[0]) > 1 - 1e-9
               for steps in (down, right) for step in steps)
''',
    why="Any offset is made of steps down and steps to the right. If all steps along "
    "an axis are the same rotation, then equal offsets are too. The cosine ignores "
    "whole turns.",
)
def a_test_for_the_law(is_relative: Callable[..., Any]) -> str:
    answers = []
    for name, angle, _ in _hands():
        got = as_tensor(is_relative(angle))
        expect(
            got.numel() == 1,
            f"Expected True or False for one hand, got {got.numel()} values.",
        )
        answers.append((name, bool(got)))
    if len({answer for _, answer in answers}) == 1:
        raise Wrong(
            f"You say {answers[0][1]} to every hand, whether it is 0.3 * row + 0.7 * "
            "column or a free angle for every cell."
        )
    for (name, angle, relative), (_, answer) in zip(_hands(), answers, strict=True):
        expect(
            answer == relative,
            f"The hand {name} is {'' if relative else 'not '}relative; you say "
            f"{answer}. {_steps(angle)}",
        )
    return "Linear in each coordinate, up to whole turns: that is all the law asks for."


@exercise(
    "17.4",
    "After the image",
    difficulty=2,
    minutes=3,
    hints=(
        "Which is the largest position, on any axis, that the image uses?",
        "It counts from start on each axis, so the longest axis decides: its last cell "
        "is at start + length - 1. The text begins one position later.",
    ),
    solution='''
def text_goes_on_at(start, time, height, width):
    """Return the position of the first word after the image."""
    return start + max(time, height, width)
''',
    why="The largest position used is start + max(...) - 1. From one past that, no "
    "word shares a position with the image.",
)
def after_the_image(text_goes_on_at: Callable[..., Any]) -> str:
    cases = [(4, 1, 4, 6), (2, 1, 24, 24), (3, 9, 2, 3), (7, 1, 8, 5), (0, 2, 2, 2)]
    got = [number(text_goes_on_at(*case)) for case in cases]
    name_mistake(
        got,
        [s + max(sizes) for s, *sizes in cases],
        {
            "You counted every cell, as flat positions do. Cells share rows and "
            "columns.": [s + math.prod(sizes) for s, *sizes in cases],
            "You added up the axes. They count in parallel, each from the start.": [
                s + sum(sizes) for s, *sizes in cases
            ],
            "That is the image's own last position: the word would land on it.": [
                s + max(sizes) - 1 for s, *sizes in cases
            ],
            "You left out where the image starts.": [max(sizes) for _, *sizes in cases],
            "You left out the time. In a video with many frames it is the longest "
            "axis.": [s + max(sizes[1:]) for s, *sizes in cases],
        },
    )
    for (start, *sizes), mine in zip(cases, got, strict=True):
        expect(
            mine == start + max(sizes),
            f"After {sizes[0]} x {sizes[1]} x {sizes[2]} cells from {start} on, the "
            f"largest position is {start + max(sizes) - 1}; you begin the text at "
            f"{mine:g}.",
        )
    return "An image of 24 x 24 cells takes 576 tokens, but only 24 positions."


@exercise(
    "17.5",
    "A second generator that keeps the law",
    difficulty=4,
    minutes=5,
    hints=(
        "Every matrix commutes with its own powers. Which powers of a skew-symmetric "
        "matrix are skew-symmetric too? Transpose A @ A and see.",
        "(A @ A).T = A @ A is symmetric. (A @ A @ A).T = -(A @ A @ A) is skew.",
    ),
    solution='''
def partner(A):
    """Return a skew matrix that commutes with A."""
    return A @ A @ A
''',
    why="A and A³ turn the same planes, each at its own speed: hand i by θ along the "
    "rows and by -θ³ along the columns. Generators that commute are banks of hands, "
    "seen from a different angle.",
)
def a_second_generator(partner: Callable[..., Any]) -> str:
    for size, seed in ((6, 0), (8, 1)):
        random = torch.randn(
            size, size, generator=torch.Generator().manual_seed(seed)
        ).double()
        A = (random - random.T) / 2
        got = as_tensor(untouched(partner, A))
        expect_shape(got, (size, size))
        scale = got.norm()
        expect(
            scale > 1e-9,
            "Zero is skew-symmetric, but then columns do not turn anything.",
        )
        expect(
            not close(got, got.T, 1e-6 * float(scale)),
            "Your matrix is symmetric: it equals its transpose. Its exponential "
            "stretches; it does not turn.",
        )
        expect(
            close(got, -got.T, 1e-6 * float(scale)),
            "Your matrix is not skew-symmetric: B.T must be -B, or exp(B) is not a "
            "rotation.",
        )
        along = (got * A).sum() / A.square().sum()
        expect(
            bool((got - along * A).norm() > 1e-6 * scale),
            f"Your matrix is {along:g} times A. Then a step along the columns is the "
            f"same as {along:g} steps along the rows, and cells get confused.",
        )
        off = (A @ got - got @ A).norm() / (A.norm() * scale)
        expect(
            bool(off < 1e-6),
            f"A B and B A differ by {off:.1g} of their size. Turns along the two "
            "axes do not add up, so scores depend on the place.",
        )
    return "Generators that commute share their planes: hands with one speed per axis."


def _near(got: float, expected: float) -> bool:
    return math.isclose(got, expected, abs_tol=1e-4)
