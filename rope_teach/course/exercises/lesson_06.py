"""The exercises of lesson 06: the complex form."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import (
    apart,
    difference,
    expect_shape,
    name_mistake,
)
from rope_teach.course.exercises.student_code import torch_calls, untouched, uses
from rope_teach.course.exercises.values import NOTHING, number
from rope_teach.frequencies import inverse_frequencies
from rope_teach.ops import rotate
from rope_teach.rotary import RotaryEmbedding
from rope_teach.rotation import rotate_complex, rotate_matrix
from rope_teach.tables import phases

FEATURES = ("token", "feature")


def _as_complex(value: Any) -> Tensor:
    """A student's value as a complex128 tensor, or :class:`Wrong`."""
    if value is None or value is ...:
        raise Wrong(NOTHING)
    try:
        if hasattr(value, "__array__") and not isinstance(value, Tensor):
            value = value.tolist()
        if isinstance(value, (list, tuple)):
            value = torch.stack([_as_complex(item) for item in value])
        return torch.as_tensor(value).detach().to(torch.complex128)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"Expected numbers, got {type(value).__name__}.") from None


def _pairs(*shape: int, seed: int = 6) -> Tensor:
    """Random pairs in complex64, as a lesson has them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.complex64)


def _parts(z: Tensor) -> Tensor:
    return torch.view_as_real(z.to(torch.complex128))


@exercise(
    "6.1",
    "One number for two turns",
    difficulty=1,
    minutes=2,
    hints=(
        "Turning by 3 tokens is one phase, turning by 4 more is another. What happens "
        "to their angles in a product?",
        "The angles add: 7 tokens of 0.2 radians. Write the phase with cmath.exp.",
    ),
    solution="number = cmath.exp(1j * 7 * 0.2)",
    why="Multiplying phases adds their angles: 0.6 and 0.8 make 1.4.",
)
def one_number_for_two_turns(answer: Any) -> str:
    got = _as_complex(answer)
    expect(got.numel() == 1, f"Expected one number, got {got.numel()}.")
    z, right = complex(got.item()), cmath.exp(1.4j)
    for wrong, message in (
        (
            1.4,
            "1.4 is the angle. The number that turns by that angle is a phase: e to "
            "the iφ.",
        ),
        (1.4j, "1.4i is the exponent, not a phase: it would stretch the pair by 1.4."),
        (math.exp(1.4), "Without the i this is a plain number: it stretches by 4.06."),
        (
            cmath.exp(0.6j) + cmath.exp(0.8j),
            "This is the sum of two phases, with a length of nearly 2. The angles add "
            "when the phases are multiplied.",
        ),
        (
            cmath.exp(0.6j * 0.8),
            "This turns by 0.48, which is 0.6 times 0.8. A product of phases adds the "
            "angles.",
        ),
        (
            cmath.exp(2.4j),
            "This is 12 tokens of 0.2. One turn follows the other, so the tokens add.",
        ),
        (
            cmath.exp(7j),
            "This turns by 7 radians. The hand turns by 0.2 radians per token.",
        ),
        (right.conjugate(), "This turns back by 7 tokens."),
    ):
        expect(abs(z - wrong) > 1e-3, message)
    length, _ = apart(abs(z), 1)
    expect(
        abs(abs(z) - 1) < 2e-3,
        f"Your number has length {length}, so it stretches the pair. A phase has "
        "length 1.",
    )
    angle, wanted = apart(cmath.phase(z), 1.4)
    expect(
        abs(z - right) < 2e-3,
        f"Your phase turns by {angle} radians. Seven tokens are {wanted}.",
    )
    return "Two turns, one number. A table of phases stores exactly this for each hand."


@exercise(
    "6.2",
    "The complex form, for any type",
    difficulty=2,
    minutes=7,
    hints=(
        "Pairs of neighbours: unflatten(-1, (-1, 2)), then view_as_complex. What did "
        "that say about bfloat16?",
        "Start with x.float(), multiply, view_as_real, flatten(-2), and end with "
        ".to(x.dtype).",
    ),
    solution='''
def turn_any(x, turn_by):
    """Return x turned, in the dtype of x."""
    z = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(z * turn_by).flatten(-2).to(x.dtype)
''',
    why="There is no complex bfloat16, so multiply the pairs in float32 and round "
    "once, at the end.",
)
def the_complex_form(turn_any: Callable[..., Any]) -> str:
    taken = uses(turn_any, rotate, rotate_complex, rotate_matrix, RotaryEmbedding)
    expect(not taken, f"You let the package's {taken} turn. Write the form yourself.")
    cases = []
    for *heads, seq, head_dim in ((5, 8), (3, 6), (4, 2), (2, 3, 7, 8), (64, 32)):
        table = phases(torch.arange(1, seq + 1), inverse_frequencies(head_dim))
        pairs = _pairs(*heads, seq, head_dim // 2, seed=seq)
        cases.append((torch.view_as_real(pairs).flatten(-2), table))
    _judge_turn([untouched(turn_any, *case) for case in cases], cases)
    x, table = cases[-1][0].bfloat16(), cases[-1][1]
    try:
        got = untouched(turn_any, x, table)
    except RuntimeError as error:
        raise Wrong(
            f"float32 is right. bfloat16 stops with: {str(error).split('.')[0]}. "
            "Convert to float32 before the complex view."
        ) from None
    expect(
        isinstance(got, Tensor) and got.dtype == torch.bfloat16,
        f"For bfloat16 you returned {getattr(got, 'dtype', type(got).__name__)}. The "
        "caller expects the dtype that went in.",
    )
    expect_shape(got, tuple(x.shape))
    exact = rotate_complex(x.double(), table)
    once = exact.to(torch.bfloat16)
    same = (got == once).double().mean().item()
    errors = apart(*((out - exact).abs().max().item() for out in (got, once)))
    expect(
        same > 0.99,
        f"float32 is right. In bfloat16 only {same:.0%} of the numbers are those of "
        "float32, rounded once at the end. The largest error is {}; rounding once "
        "gives {}.".format(*errors),
    )
    return (
        "One multiplication in float32, rounded once. This is how the package turns "
        "neighbouring features."
    )


def _judge_turn(got: list[Any], cases: list[tuple[Tensor, Tensor]]) -> None:
    for mine, (x, table) in zip(got, cases, strict=True):
        expect(mine is not None, NOTHING)
        expect(
            isinstance(mine, Tensor),
            f"Return a tensor like x; yours is of type {type(mine).__name__}.",
        )
        expect(
            not mine.is_complex(),
            "The result is still complex. view_as_real gives you the two parts again.",
        )
        expect(
            mine.shape != (*table.shape, 2),
            f"The result has shape {tuple(mine.shape)}: the pairs still have their own "
            "axis. flatten(-2) puts them side by side.",
        )
        expect_shape(mine, tuple(x.shape))
        expect(
            mine.dtype == x.dtype,
            f"For {x.dtype} you returned {mine.dtype}. The result has the type of x.",
        )
    right = [rotate_complex(*case) for case in cases]
    halves = [torch.complex(*x.chunk(2, -1)) * table for x, table in cases]
    name_mistake(
        got,
        right,
        {
            "You turn clockwise: by the conjugates of the table.": [
                rotate_complex(x, table.conj()) for x, table in cases
            ],
            "The right numbers in the wrong order: all real parts, then all imaginary "
            "ones. Each pair belongs side by side.": [
                torch.cat([out[..., 0::2], out[..., 1::2]], -1) for out in right
            ],
            "You paired feature i with feature i + d/2: lesson 07. Here the pairs are "
            "neighbours.": [torch.cat([z.real, z.imag], -1) for z in halves],
            "You read the pairs (i, i + d/2), and wrote them back as neighbours.": [
                torch.view_as_real(z).flatten(-2) for z in halves
            ],
            "x came back as it was: nothing is turned.": [x for x, _ in cases],
        },
    )
    for mine, r in zip(got, right, strict=True):
        wrong = difference(mine, r, axes=FEATURES)
        expect(
            not wrong,
            f"This is not each pair of x times turn_by, for x of shape "
            f"{tuple(r.shape)}: {wrong}",
        )


@exercise(
    "6.3",
    "Take the turn back",
    difficulty=2,
    minutes=3,
    hints=(
        "Which number turns by the opposite angle?",
        "The conjugate of a phase. In torch: turn_by.conj().",
    ),
    solution='''
def take_back(z, turn_by):
    """Return the pairs that z was made from."""
    return z * turn_by.conj()
''',
    why="A phase times its conjugate is 1. So the conjugate undoes a turn. It is also "
    "the turn of the gradient in lesson 05.",
)
def take_the_turn_back(take_back: Callable[..., Any]) -> str:
    cases = []
    for seq, hands in ((5, 4), (3, 2), (40, 8)):
        table = phases(torch.arange(1, seq + 1), inverse_frequencies(2 * hands))
        pairs = _pairs(seq, hands, seed=seq)
        cases.append((pairs * table, table, pairs))
    divisions = ["/", "div", "rdiv", "divide", "true_divide", "truediv", "rtruediv"]
    divisions += ["reciprocal", "inv", "solve", "**", "pow", "rpow", "float_power"]
    taken = uses(take_back, *divisions)
    with torch_calls() as called:
        got = [_as_complex(untouched(take_back, z, table)) for z, table, _ in cases]
    taken = taken or next((name for name in divisions if name in called), "")
    for mine, (z, *_) in zip(got, cases, strict=True):
        expect_shape(mine, tuple(z.shape))
    name_mistake(
        [_parts(mine) for mine in got],
        [_parts(pairs) for *_, pairs in cases],
        {
            "You turned again in the same direction. Turning back needs the opposite "
            "angle.": [_parts(z * table) for z, table, _ in cases],
            "The pairs are conjugated: that mirrors them. Conjugate the phases.": [
                _parts(pairs.conj()) for *_, pairs in cases
            ],
            "You conjugated the pairs, and turned them. Conjugate the phases.": [
                _parts(z.conj() * table) for z, table, _ in cases
            ],
            "-turn_by adds half a turn. The opposite angle is the conjugate.": [
                _parts(-z * table) for z, table, _ in cases
            ],
            "z came back unchanged: nothing is undone.": [_parts(z) for z, *_ in cases],
        },
    )
    for mine, (*_, pairs) in zip(got, cases, strict=True):
        wrong = difference(
            _parts(mine), _parts(pairs), 2e-5, axes=("token", "hand", "part")
        )
        expect(not wrong, f"These are not the pairs before the turn. {wrong}")
    expect(
        not taken,
        f"These are the pairs, but by a division or a power ({taken}). There is a "
        "number that turns back, with no division.",
    )
    return (
        "The conjugate turns back. That holds only for length 1: otherwise the inverse "
        "is a different number."
    )


@exercise(
    "6.4",
    "The distance that a pair likes best",
    difficulty=3,
    minutes=5,
    hints=(
        "The score is the real part of q k̄ times a phase. A real part is largest when "
        "the number points right, at angle 0.",
        "The angle of q k̄, plus (m - n) θ, must be 0. So n - m is that angle divided "
        "by θ. cmath.phase gives an angle between -π and π.",
    ),
    solution='''
def best_distance(q, k, theta):
    """Return the distance n - m with the largest score."""
    return cmath.phase(q * k.conjugate()) / theta
''',
    why="The content of q and k sets the angle at distance 0, and the hand changes it "
    "from there. The best distance is where the key has caught up with the query.",
)
def best_distance(best: Callable[..., Any]) -> str:
    cases = [
        (1 + 0.4j, 0.8 - 0.5j, 0.2),
        (0.3 + 1j, -0.2 - 0.9j, 0.05),
        (1 + 0j, 1j, 1.0),
        (cmath.exp(2.5j), cmath.exp(-2.5j), 0.2),
        (-2 - 0.1j, -0.5 + 0.3j, 0.7),
        (1.5j, 1.5j, 0.3),
        (-1 + 0.2j, -1 - 0.9j, 2.0),
        (-0.4 - 0.3j, 2 + 0.1j, 0.01),
    ]
    got = [number(best(*case)) for case in cases]
    right = [cmath.phase(q * k.conjugate()) / theta for q, k, theta in cases]
    name_mistake(
        got,
        right,
        {
            "This is the angle between the two, in radians. How many tokens does the "
            "hand need to turn that far?": [
                r * theta for r, (*_, theta) in zip(right, cases, strict=True)
            ],
            "Right except for the sign: this is m - n. The question asks for n - m.": [
                -r for r in right
            ],
            "This is the angle of q k over theta, without the conjugate. The angle "
            "between two arrows is a difference.": [
                cmath.phase(q * k) / theta for q, k, theta in cases
            ],
            "This is the angle times the speed. Divide the angle by it.": [
                r * theta**2 for r, (*_, theta) in zip(right, cases, strict=True)
            ],
        },
        tolerance=2e-3,
    )
    for mine, r, (q, k, theta) in zip(got, right, cases, strict=True):
        what = f"For q = {q:.3g}, k = {k:.3g}, theta = {theta}"
        turns = (mine - r) * theta / (2 * math.pi)
        expect(
            abs(turns - round(turns)) > 1e-4 or round(turns) == 0,
            f"{what} you gave {mine:.2f}: just as good, but {abs(round(turns))} full "
            "turn(s) further from 0.",
        )
        score = (q * k.conjugate() * cmath.exp(-1j * mine * theta)).real
        expect(
            abs(mine - r) < 2e-3,
            f"{what} the score at {mine:.5g} is {{}}. At another distance it is "
            "{}.".format(*apart(score, abs(q) * abs(k))),
        )
    return (
        "The content chooses the distance, and the hand measures it. A head that looks "
        "at the previous token needs q and k at such an angle."
    )


@exercise(
    "6.5",
    "How far apart were they?",
    difficulty=4,
    minutes=7,
    hints=(
        "second times the conjugate of first has the angle (n - m) θ for each hand. "
        "Which hand has not yet made half a turn after 1000 tokens?",
        "The last hand is the slowest. Get its angle with .angle(), divide by its "
        "speed, and round.",
    ),
    solution='''
def apart(first, second, inv_freq):
    """Return n - m."""
    angle = (second * first.conj()).angle()
    return round(float(angle[-1] / inv_freq[-1]))
''',
    why="Every hand gives the distance up to full turns. The slowest has not made one, "
    "so its angle divided by its speed is the distance.",
)
def how_far_apart(far: Callable[..., Any]) -> str:
    places = ((4, 6), (10, 310), (900, 50), (2, 1002), (7, 7), (1500, 500), (31, 75))
    cases = []
    for seed, (m, n) in enumerate(places):
        inv_freq = inverse_frequencies(8 + 4 * (seed % 3))
        pairs = _pairs(len(inv_freq), seed=seed)
        if seed % 2:  # between m and n the slow hand passes -1: its angle jumps
            middle = (m + n) / 2 * float(inv_freq[-1])
            pairs[-1] = torch.tensor(cmath.exp(1j * (math.pi - middle)))
        first, second = (pairs * phases(torch.tensor(p), inv_freq) for p in (m, n))
        cases.append((first, second, inv_freq))
    got = [number(untouched(far, *case)) for case in cases]
    right = [n - m for m, n in places]
    between = [(second * first.conj()).angle() for first, second, _ in cases]
    speeds = [inv_freq for *_, inv_freq in cases]
    products = [(second * first).angle() for first, second, _ in cases]

    def tokens(angles: list[Tensor], hand: int, whole: bool = True) -> list[float]:
        found = zip(angles, speeds, strict=True)
        exact = [float(angle[hand] / speed[hand]) for angle, speed in found]
        return [round(distance) if whole else distance for distance in exact]

    first_hand = (
        "These are the distances that the first hand alone shows. It is fast, and full "
        "turns do not show. Which hand has not made one?"
    )
    no_conjugate = (
        "This is what second * first gives. Without a conjugate the angles add, and "
        "the content's own angle stays in the result."
    )
    for values in (tokens(between, 0), tokens(between, 0, False)):
        name_mistake(got, right, {first_hand: values}, 1e-2)
    for values in (tokens(products, -1), tokens(products, -1, False)):
        name_mistake(got, right, {no_conjugate: values}, 1e-2)
    name_mistake(
        got,
        right,
        {
            "The right distances with the wrong sign: this is m - n.": [
                -distance for distance in right
            ],
            "These are angles in radians. Divide by the speed.": [
                float(angle[-1]) for angle in between
            ],
            "The sign is missing: n can be before m.": [abs(d) for d in right],
        },
        1e-3,
    )
    for mine, wanted, (m, n) in zip(got, right, places, strict=True):
        whole = mine == round(mine)
        yours = f"{mine:.0f}" if whole else apart(mine, wanted)[0]
        expect(
            whole or round(mine) != wanted,
            f"Turned at {m} and {n}, you found {yours}. Positions are whole numbers: "
            "round.",
        )
        expect(
            mine == wanted,
            f"Turned at {m} and {n}, the distance is {wanted}; you found {yours}.",
        )
    return (
        "The slow hand is enough while its angle is exact. When angles are rounded, it "
        "gives the rough distance, and the faster hands give the last digit."
    )
