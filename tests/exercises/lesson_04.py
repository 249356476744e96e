"""Seeded answers for lesson 04: misconceptions with their message, another solution."""

SET_UP = """
def turn(pair, angle):
    a, b = pair
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([a * cos - b * sin, a * sin + b * cos])
"""

WRONG = {
    "4.1": [
        ("def undo(pair, angle):\n    return turn(pair, angle)", "same direction"),
        ("def undo(pair, angle):\n    return -pair", "half a turn"),
        ("def undo(pair, angle):\n    return pair", "nothing is undone"),
        ("def undo(pair, angle):\n    return turn(pair.flip(0), angle)", "mirrors"),
        ("def undo(pair, angle):\n    pair = turn(pair, -angle)", "`return`"),
        ("def undo(pair, angle):\n    return pair[2]", "IndexError"),
    ],
    "4.2": [
        ("key_position = 50 - 7", "sign of the distance"),
        ("key_position = 9", "the query moved away"),
        ("key_position = 7", "7 is the distance"),
        ("key_position = 48", "how far the query moved"),
        ("key_position = 60", "distance is 10"),
    ],
    "4.3": [
        ("inv_freq = math.pi / 2", "after 1 token"),
        ("inv_freq = math.pi / 5", "half a turn"),
        ("inv_freq = 18", "wrong unit"),
        ("inv_freq = 0", "never turns"),
        ("inv_freq = 0.1", "its largest value"),
    ],
    "4.4": [
        (
            "def twins(distance, period, last):\n"
            "    return list(range(distance, last + 1, period))",
            "not the mirror images",
        ),
        (
            "def twins(distance, period, last):\n"
            "    return sorted({distance, period - distance})",
            "stopped after one turn",
        ),
        (
            "def twins(distance, period, last):\n"
            "    return list(range(0, last + 1, distance))",
            "multiples of the distance",
        ),
        (
            "def twins(distance, period, last):\n"
            "    same = {distance % period, -distance % period}\n"
            "    return [d for d in range(last) if d % period in same]",
            "stops one short of it",
        ),
        (
            "def twins(distance, period, last):\n    return [distance]",
            "the twins are",
        ),
    ],
}

OTHER = {
    "4.1": """
def undo(pair, angle):
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, s], [-s, c]], dtype=pair.dtype) @ pair
""",
    "4.2": "key_position = torch.tensor(57.0)",
    "4.3": "inv_freq = 3 * math.pi / 10",
    "4.4": """
def twins(distance, period, last):
    wanted = math.cos(2 * math.pi * distance / period)
    return [d for d in range(last + 1)
            if abs(math.cos(2 * math.pi * d / period) - wanted) < 1e-9]
""",
}
