"""Seeded answers for lesson 03: misconceptions with their message, another solution."""

SET_UP = "from rope_teach.absolute import alibi_slopes"

WRONG = {
    "3.1": [
        ("start = 28", "Rows count from 0"),
        ("start = 31", "Four more come after it"),
        ("start = 26", "a larger start"),
        ("start = 5", "asks for the largest start"),
    ],
    "3.2": [
        (
            "def slopes(heads):\n"
            "    return [2 ** (-8 * h / heads) for h in range(heads)]",
            "starts at 0",
        ),
        (
            "def slopes(heads):\n    return [2.0**-h for h in range(1, heads + 1)]",
            "only for 8 heads",
        ),
        ("def slopes(heads):\n    return -alibi_slopes(heads)", "A slope is positive"),
        ("def slopes(heads):\n    return alibi_slopes(heads).flip(0)", "flattest"),
        (
            "def slopes(heads):\n"
            "    return 2 ** (8 * torch.arange(1, heads + 1) / heads)",
            "minus sign in the exponent",
        ),
        (
            "def slopes(heads):\n    return torch.linspace(0.5, 1 / 256, heads)",
            "first two slopes",
        ),
    ],
    "3.3": [
        ("def is_relative(bias):\n    return torch.equal(bias, bias.T)", "symmetric"),
        (
            "def is_relative(bias):\n    d = bias.diagonal()\n"
            "    return bool((d == d[0]).all())",
            "The other diagonals",
        ),
        ("def is_relative(bias):\n    return True", "symmetric does not mean relative"),
        ("def is_relative(bias):\n    return False", "ALiBi's bias"),
        (
            "def is_relative(bias):\n    return bias[1:, 1:] == bias[:-1, :-1]",
            "one True or False",
        ),
        (
            "def is_relative(bias):\n"
            "    return torch.equal(bias[1], bias[0]) or bias[0, 0] == 0",
            "m · n is symmetric",
        ),
    ],
    "3.4": [
        ("def reach(slope):\n    return 100 / slope", "where the bias is -100"),
        ("def reach(slope):\n    return math.log10(100) / slope", "base 10"),
        ("def reach(slope):\n    return math.log(0.01) / slope", "negative distance"),
        ("def reach(slope):\n    return 0.99 / slope", "in a straight line"),
        ("def reach(slope):\n    return math.log(100) * slope", "multiplied"),
        ("def reach(slope):\n    return 50", "not 1 %"),
    ],
}

OTHER = {
    "3.1": "start = torch.tensor(27)",
    "3.2": """
def slopes(heads):
    first = 2 ** (-8 / heads)
    return torch.tensor([first ** (h + 1) for h in range(heads)])
""",
    "3.3": """
def is_relative(bias):
    seq = len(bias)
    return all(len(set(bias.diagonal(k).tolist())) == 1 for k in range(1 - seq, seq))
""",
    "3.4": """
def reach(slope):
    distance = 0
    while math.exp(-slope * distance) > 0.01:
        distance += 1
    return distance
""",
}
