"""Seeded answers for lesson 04: misconceptions with their message, right answers."""

REVIEWED = True

SET_UP = """
from rope_teach import angles
from rope_teach.rotation import rotation_matrix
import cmath
import numpy as np
from fractions import Fraction

def turn(pair, angle):
    a, b = pair
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([a * cos - b * sin, a * sin + b * cos])

def turned(pair, position, inv_freq=0.2):
    step = torch.tensor([inv_freq], dtype=torch.float64)
    angle = angles(torch.tensor(position), step)
    return rotation_matrix(angle) @ pair.double()

def rotate(x, positions):
    steps = torch.tensor([0.2], dtype=torch.float64)
    matrices = rotation_matrix(angles(positions, steps))
    return (matrices @ x.unsqueeze(-1)).squeeze(-1)
"""


def _undo(body: str) -> str:
    return f"def undo(pair, angle):\n    {body}"


def _twins(body: str) -> str:
    return f"def twins(distance, period, last):\n    {body}"


def _table(body: str) -> str:
    return f"def score_table(queries, keys, inv_freq):\n    {body}"


def _all(q: str, k: str, then: str = "q @ k.T") -> str:
    return _table(
        f"q = torch.stack([turn(x, {q}) for m, x in enumerate(queries)])\n"
        f"    k = torch.stack([turn(x, {k}) for n, x in enumerate(keys)])\n"
        f"    return {then}"
    )


WRONG = {
    "4.1": [
        (_undo("return turn(pair, angle)"), "same direction"),
        (_undo("return -pair"), "half a turn"),
        (_undo("return pair"), "nothing is undone"),
        (_undo("return turn(pair.flip(0), angle)"), "mirrors"),
        (_undo("return turn(pair.flip(0), -angle)"), "angle alone is enough"),
        (_undo("pair = turn(pair, -angle)"), "`return`"),
        (_undo("return pair[2]"), "IndexError"),
        (
            _undo("return rotation_matrix(torch.tensor(-angle)) @ pair"),
            "with the brackets",
        ),
        (_undo("return turn(pair, -angle)[None]"), "A pair has shape (2,)"),
        (_undo("return turn(pair, -math.radians(angle))"), "in degrees"),
        (_undo("return turn(pair, -abs(angle))"), "not the pair as it was"),
        (_undo("return turn(pair, -angle).clamp(-1, 1)"), "not the pair as it was"),
        (_undo("return pair / pair.norm()"), "not the pair as it was"),
        (_undo("pair[:] = turn(pair, -angle)\n    return pair"), "changed pair"),
        (_undo("return turn(pair, -angle)[:1]"), "must have shape (2,)"),
        (_undo("return torch.tensor([0.6, -1.2])"), "not the pair as it was"),
    ],
    "4.2": [
        ("key_position = 50 - 7", "sign of the distance"),
        ("key_position = 9", "the query moved away"),
        ("key_position = 7", "7 is the distance"),
        ("key_position = 48", "how far the query moved"),
        ("key_position = 60", "the distance is 10"),
        ("key_position = 56", "the distance is 6"),
        ("key_position = 57 + 10 * math.pi", "the distance is 38.4"),
        ("key_position = (50, 57)", "one number"),
        ("key_position = '57'", "quotation marks"),
    ],
    "4.3": [
        ("inv_freq = math.pi / 2", "after 5 quarter turns"),
        ("inv_freq = 3 * math.pi / 10", "after 3 quarter turns"),
        ("inv_freq = 7 * math.pi / 10", "after 7 quarter turns"),
        ("inv_freq = -math.pi / 10", "turns backwards"),
        ("inv_freq = math.pi / 5", "2 quarter turns at distance 5"),
        ("inv_freq = 18", "in radians"),
        ("inv_freq = 0", "never turns"),
        ("inv_freq = 0.1", "its largest value"),
        ("inv_freq = math.pi / 2 / 6", "0.833 quarter turns"),
        ("inv_freq = 0.314", "Very close"),
        ("inv_freq = [math.pi / 10, 3 * math.pi / 10]", "one number"),
    ],
    "4.4": [
        (_twins("return list(range(distance, last + 1, period))"), "whole turns after"),
        (
            _twins("return list(range(distance % period, last + 1, period))"),
            "not the mirror images",
        ),
        (_twins("return sorted({distance, period - distance})"), "is missing"),
        (_twins("return list(range(0, last + 1, distance or 1))"), "you list 0"),
        (
            _twins(
                "same = {distance % period, -distance % period}\n"
                "    return [d for d in range(last) if d % period in same]"
            ),
            "stops one short of it",
        ),
        (
            _twins(
                "same = {distance % period, -distance % period}\n"
                "    return [d for d in range(1, last + 1) if d % period in same]"
            ),
            "Distance 0 is missing",
        ),
        (
            _twins(
                "same = {distance % period, -distance % period}\n"
                "    return [d for d in range(min(period, last) + 1)"
                " if d % period in same]"
            ),
            "stopped after one turn",
        ),
        (
            _twins(
                "same = {distance % period, -distance % period}\n"
                "    return {d: 1 for d in range(last, -1, -1) if d % period in same}"
                ".keys()"
            ),
            "not in increasing order",
        ),
        (
            _twins(
                "same = {distance % period, -distance % period}\n"
                "    return [d for d in range(last, -1, -1) if d % period in same]"
            ),
            "not in increasing order",
        ),
        (
            _twins(
                "return [d for d in range(last + 1)"
                " if d % period in (distance, period - distance)]"
            ),
            "For distance 17, period 12, up to 40: 5 is missing",
        ),
        (
            _twins(
                "want = math.cos(2 * math.pi * distance / period)\n"
                "    return [d for d in range(last + 1)"
                " if abs(math.cos(2 * math.pi * d / period) - want) < 0.05]"
            ),
            "another score",
        ),
        (
            _twins(
                "return sorted([*range(distance % period, last + 1, period),"
                " *range(-distance % period, last + 1, period)])"
            ),
            "you list a distance twice",
        ),
        (_twins("return [distance]"), "is missing"),
        (_twins("return set(range(distance, last, period))"), "no order"),
        (
            _twins(
                "d = torch.arange(last + 1)\n"
                "    return (d % period == distance) | (d % period == -distance)"
            ),
            "True or False",
        ),
        (_twins("return [3, 9, 15, 21, 27, 33, 39]"), "For distance 17"),
    ],
    "4.5": [
        (_table("return queries @ keys.T"), "before any turn"),
        (_all("m * inv_freq", "n * inv_freq", "(q @ k.T).T"), "Rows and columns"),
        (_all("m * inv_freq", "0"), "Only the queries"),
        (_all("0", "n * inv_freq"), "Only the keys"),
        (_all("m * inv_freq", "-n * inv_freq"), "opposite directions"),
        (_all("-m * inv_freq", "-n * inv_freq"), "Both turn clockwise"),
        (_all("m * 0.2", "n * 0.2"), "The speed is an argument"),
        (
            _table(
                "m = torch.arange(len(keys))\n"
                "    return rotate(queries, m) @ rotate(keys, m).T"
            ),
            "The speed is an argument",
        ),
        (_all("m * inv_freq", "n * inv_freq", "(q @ k.T).tril()"), "are missing"),
        (_all("m * inv_freq", "n * inv_freq", "(q @ k.T).softmax(-1)"), "softmax"),
        (_all("m * inv_freq", "n * inv_freq", "q @ k.T / 2 ** 0.5"), "square root"),
        (_all("m * inv_freq", "n * inv_freq", "q * k"), "a pair for each token"),
        (_all("m * inv_freq", "n * inv_freq", "(q * k).sum(-1)"), "must have shape"),
        (_all("m + inv_freq", "n + inv_freq"), "For 5 tokens and speed 0.2: At row"),
        (_all("m * inv_freq", "(n + 1) * inv_freq"), "For 5 tokens"),
        (_all("min(m, 9) * inv_freq", "min(n, 9) * inv_freq"), "For 12 tokens"),
        (
            _table(
                "q = [turn(x, m * inv_freq) for m, x in enumerate(queries)]\n"
                "    return torch.stack(q) @ torch.stack(q).T"
            ),
            "For 5 tokens",
        ),
        (
            _table(
                "for m in range(len(keys)):\n"
                "        queries[m] = turn(queries[m], m * inv_freq)\n"
                "        keys[m] = turn(keys[m], m * inv_freq)\n"
                "    return queries @ keys.T"
            ),
            "changed queries",
        ),
    ],
}

OTHER = {
    "4.1": [
        """
def undo(pair, angle):
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, s], [-s, c]], dtype=pair.dtype) @ pair
""",
        _undo("return rotation_matrix(torch.tensor([-angle])) @ pair"),
        _undo("return turned(pair, -1, angle)"),
        """
def undo(pair, angle):
    z = complex(*pair.tolist()) * cmath.exp(-1j * angle)
    return z.real, z.imag
""",
        _undo("return np.array(turn(pair, 2 * math.pi - angle))"),
        _undo("return turn(pair.half(), -angle)"),
        _undo("return turn(turn(turn(pair, angle), -angle), -angle)"),
    ],
    "4.2": [
        "key_position = torch.tensor(57.0)",
        "key_position = Fraction(57)",
        "key_position = np.int32(57)",
        "key_position = [57]",
    ],
    "4.3": [
        "inv_freq = torch.tensor(0.1 * math.pi)",
        "inv_freq = math.acos(0) / 5",
        "inv_freq = np.float32(np.pi / 10)",
        "inv_freq = 0.314159",
        "inv_freq = math.radians(18)",
    ],
    "4.4": [
        """
def twins(distance, period, last):
    wanted = math.cos(2 * math.pi * distance / period)
    return [d for d in range(last + 1)
            if abs(math.cos(2 * math.pi * d / period) - wanted) < 1e-9]
""",
        """
def twins(distance, period, last):
    d = torch.arange(last + 1)
    return d[((d - distance) % period == 0) | ((d + distance) % period == 0)]
""",
        """
def twins(distance, period, last):
    for d in range(last + 1):
        if (d * d - distance * distance) % period == 0 and (
                (d - distance) % period == 0 or (d + distance) % period == 0):
            yield d
""",
        _twins(
            "return np.array(sorted({*range(distance % period, last + 1, period),"
            " *range(-distance % period, last + 1, period)}), dtype=float)"
        ),
    ],
    "4.5": [
        """
def score_table(queries, keys, inv_freq):
    return [[turn(q, m * inv_freq) @ turn(k, n * inv_freq)
             for n, k in enumerate(keys)] for m, q in enumerate(queries)]
""",
        """
def score_table(queries, keys, inv_freq):
    q, k = torch.view_as_complex(queries), torch.view_as_complex(keys)
    m = torch.arange(len(q)).double()
    turns = torch.polar(torch.ones_like(m), m * inv_freq)
    return torch.outer(q * turns, (k * turns).conj()).real
""",
        """
def score_table(queries, keys, inv_freq):
    out = np.zeros((len(queries), len(keys)), dtype=np.float32)
    for m, q in enumerate(queries):
        for n, k in enumerate(keys):
            out[m, n] = q @ turn(k, (n - m) * inv_freq)
    return out
""",
        """
def score_table(queries, keys, inv_freq):
    q = torch.stack([turned(x, m, inv_freq) for m, x in enumerate(queries)])
    k = torch.stack([turned(x, m, inv_freq) for m, x in enumerate(keys)])
    return torch.einsum("md,nd->mn", q, k)
""",
        _all("(m + 1) * inv_freq", "(n + 1) * inv_freq"),
    ],
}
