"""Seeded answers for lesson 13: misconceptions with their message, another solution."""

SET_UP = "from rope_teach.frequencies import llama3"

POSITIONS = "def positions_for(length, trained):\n    "
BASE = "def new_base(base, rotary_dim, factor):\n    "
KEPT = """
def kept(rotary_dim, base, trained):
    turn = wavelengths(inverse_frequencies(rotary_dim, base))
"""
MENDED = """
def mended(keys, old, new):
    m = torch.arange(len(keys))
"""

WRONG = {
    "13.1": [
        (POSITIONS + "return torch.arange(length)", "the plain positions"),
        (POSITIONS + "return torch.arange(length) * length / trained", "further out"),
        (POSITIONS + "return torch.arange(length) % trained", "start from 0 again"),
        (
            POSITIONS + "return (torch.arange(length) * trained / length).floor()",
            "share a position",
        ),
        (
            POSITIONS + "return torch.linspace(0, trained - 1, length)",
            "exactly at 63",
        ),
        (
            POSITIONS + "return torch.arange(length) * trained / length",
            "spread the tokens out",
        ),
        (POSITIONS + "return torch.arange(length) / 8", "yours is at 0.125"),
        (
            POSITIONS + "return torch.arange(1, length + 1) / max(1, length / trained)",
            "count from 0",
        ),
        (POSITIONS + "return torch.arange(trained) / 4", "must have shape"),
    ],
    "13.2": [
        (BASE + "return base * factor", "by the factor"),
        (
            BASE + "return base * factor ** ((rotary_dim - 2) / rotary_dim)",
            "upside down",
        ),
        (
            BASE + "return base / factor ** (rotary_dim / (rotary_dim - 2))",
            "hands are faster",
        ),
        (
            BASE + "return (base * factor) ** (rotary_dim / (rotary_dim - 2))",
            "It cancels",
        ),
        (BASE + "return 500_000", "slows the last hand by"),
        (BASE + "return -base", "is positive"),
    ],
    "13.3": [
        (
            KEPT + "    return [i for i, t in enumerate(turn) if trained / t < 4]",
            "the slow hands",
        ),
        (
            KEPT + "    return [i for i, t in enumerate(turn) if t < trained]",
            "came round once",
        ),
        (
            KEPT + "    return [i for i, t in enumerate(turn) if t < 4 * trained]",
            "quarter of it",
        ),
        (
            KEPT + "    return [i for i, t in enumerate(turn) if t < trained / 32]",
            "that is YaRN",
        ),
        (
            KEPT + "    speed = 2 * math.pi / turn\n"
            "    return [i for i, w in enumerate(speed) if 1 / w < trained / 4]",
            "you used 1/θ",
        ),
        (KEPT + "    return turn < trained / 4", "True or False"),
        (
            KEPT + "    return [i + 1 for i, t in enumerate(turn) if trained / t >= 4]",
            "The fastest is hand 0",
        ),
        (KEPT + "    return turn[turn < trained / 4]", "List the numbers i"),
        (KEPT + "    return int((turn < trained / 4).sum())", "list of hands"),
        (KEPT + "    return list(range(len(turn)))", "the answer is hands 0 to"),
        (
            KEPT + "    return [i for i in range(len(turn) - 1, -1, -1)\n"
            "            if turn[i] < trained / 4]",
            "not fastest first",
        ),
    ],
    "13.4": [
        (MENDED + "    return keys", "unchanged from the cache"),
        (
            MENDED + "    return rotate(keys, *cos_sin(m, new, keys.dtype))",
            "on top of the old ones",
        ),
        (
            MENDED + "    return rotate(keys, *cos_sin(m, old - new, keys.dtype))",
            "wrong way",
        ),
        (
            MENDED + "    return rotate(keys, *cos_sin(m, -old, keys.dtype))",
            "not rotated",
        ),
        (
            MENDED + "    tables = cos_sin(m, new - old, keys.dtype)\n"
            '    return rotate(keys, *tables, "half")',
            "interleaved pairs",
        ),
        (
            MENDED + "    return rotate(keys, *cos_sin(m + 1, new - old, keys.dtype))",
            "already at position 0",
        ),
    ],
}

OTHER = {
    "13.1": """
def positions_for(length, trained):
    if length <= trained:
        return list(range(length))
    return [m * trained / length for m in range(length)]
""",
    "13.2": """
def new_base(base, rotary_dim, factor):
    low, high = base, base * factor ** 2
    target = inverse_frequencies(rotary_dim, base)[-1] / factor
    for _ in range(100):
        middle = math.sqrt(low * high)
        slower = inverse_frequencies(rotary_dim, middle)[-1] < target
        low, high = (low, middle) if slower else (middle, high)
    return torch.tensor(high)
""",
    "13.3": """
def kept(rotary_dim, base, trained):
    plain = inverse_frequencies(rotary_dim, base)
    ruled, _ = llama3(rotary_dim, base, trained_length=trained)
    return torch.isclose(plain, ruled).nonzero()
""",
    "13.4": """
def mended(keys, old, new):
    m = torch.arange(len(keys))
    raw = rotate(keys, *cos_sin(m, -old, keys.dtype))
    return rotate(raw, *cos_sin(m, new, keys.dtype))
""",
}
