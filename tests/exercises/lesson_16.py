"""Seeded answers for lesson 16: misconceptions with their message, another solution."""

SET_UP = """
from rope_teach.frequencies import proportional
from rope_teach.tables import xpos_scale
"""

HALF = """
def half_faded(i, d, B):
    zeta = (2 * i + 0.4 * d) / (1.4 * d)
"""
MENDED = """
def mended(keys, old, new, B):
    d = keys.shape[-1]
    zeta = (2 * torch.arange(d // 2) + 0.4 * d) / (1.4 * d)
    n = torch.arange(len(keys))[:, None]
"""
SLOWEST = "def slowest_turn(kind, d, base, factor):\n    "
LONGEST = "def longest_text(most, B):\n    "

WRONG = {
    "16.1": [
        (HALF + "    return B * math.log(2) / math.log(zeta)", "is negative"),
        (HALF + "    return math.log(0.5) / math.log(zeta)", "in units of B"),
        (HALF + "    return B * math.log(zeta) / math.log(0.5)", "upside down"),
        (HALF + "    return B / 2", "half of B"),
        (
            "def half_faded(i, d, B):\n"
            "    zeta = (i + 0.4 * d) / (1.4 * d)\n"
            "    return B * math.log(0.5) / math.log(zeta)",
            "steps of 2",
        ),
        (HALF + "    return B * 0.5 / (1 - zeta)", "straight line"),
        (HALF + "    return B * 0.5 / zeta", "is left at your distance"),
    ],
    "16.2": [
        (MENDED + "    return keys", "unchanged from the cache"),
        (
            MENDED + "    return keys * (zeta ** ((old - new) / B))"
            ".repeat_interleave(2)",
            "the wrong direction",
        ),
        (
            MENDED + "    return keys * (zeta ** ((n - old) / B))"
            ".repeat_interleave(2, -1)",
            "stopped there",
        ),
        (
            MENDED + "    return keys / (zeta ** ((n - new) / B))"
            ".repeat_interleave(2, -1)",
            "on top of",
        ),
        (
            MENDED + "    return keys * (zeta ** ((new - old) / B)).repeat(2)",
            "features 0 and 1",
        ),
        (
            MENDED + "    return keys * (zeta ** (new - old)).repeat_interleave(2)",
            "left B out",
        ),
        (
            MENDED + "    return keys * zeta[0] ** ((new - old) / B)",
            "needs the factor 0.755",
        ),
        (MENDED + "    return keys * zeta", "(RuntimeError"),
        (MENDED + "    return keys[:, ::2] * zeta", "must have shape"),
    ],
    "16.3": [
        (
            SLOWEST + "return wavelengths(inverse_frequencies("
            "int(factor * d), base))[-1]",
            "turn for 'default'",
        ),
        (
            SLOWEST + "return wavelengths(proportional("
            "d, base, fraction=factor)[0])[int(factor * d / 2) - 1]",
            "turn for 'proportional'",
        ),
        (
            SLOWEST + "return wavelengths(inverse_frequencies(d, base))[-1]",
            "full bank",
        ),
        (
            SLOWEST + "if kind == 'default':\n"
            "        return wavelengths("
            "inverse_frequencies(int(factor * d), base))[-1]\n"
            "    return wavelengths(proportional(d, base, fraction=factor)[0])[-1]",
            "stands still",
        ),
        (
            SLOWEST + "return inverse_frequencies(int(factor * d), base)[-1]",
            "you gave the speed",
        ),
        (
            SLOWEST + "return 1 / inverse_frequencies(int(factor * d), base)[-1]",
            "you gave 1/θ",
        ),
        (
            SLOWEST + "turning = int(factor * d)\n"
            "    rotary_dim = turning if kind == 'default' else d\n"
            "    speeds = inverse_frequencies(rotary_dim, base)\n"
            "    return wavelengths(speeds)[min(turning, len(speeds)) - 1]",
            "d / 2 hands",
        ),
        (SLOWEST + "return 2 * math.pi * base", "one hand too far"),
        (SLOWEST + "return base", "it needs 35,332.9 tokens"),
    ],
    "16.4": [
        (
            LONGEST + "return B * math.log(most) / math.log(3.5)",
            "one side of the origin",
        ),
        (LONGEST + "return 2 * B * math.log(most)", "by a factor of e"),
        (LONGEST + "return 2 * B * math.log2(most)", "doubled in B"),
        (LONGEST + "return B * most", "in proportion"),
        (
            LONGEST + "return 2 * B * math.log(most) / -math.log(20.4 / 22.4)",
            "too long",
        ),
        (
            LONGEST + "return 2 * B * math.log(most) / math.log(0.4 / 1.4)",
            "zeta below 1",
        ),
        (LONGEST + "return B", "so do more"),
    ],
}

OTHER = {
    "16.1": """
def half_faded(i, d, B):
    distance = torch.linspace(0, 20 * B, 2_000_001, dtype=torch.float64)
    zeta = (2 * i + 0.4 * d) / (1.4 * d)
    return distance[(zeta ** (distance / B) - 0.5).abs().argmin()]
""",
    "16.2": """
def mended(keys, old, new, B):
    d = keys.shape[-1]
    ratio = (xpos_scale(torch.tensor(0), d, B, old)
             / xpos_scale(torch.tensor(0), d, B, new))
    return (keys.unflatten(-1, (-1, 2)) * ratio[:, None]).flatten(-2)
""",
    "16.3": """
def slowest_turn(kind, d, base, factor):
    if kind == "proportional":
        bank = proportional(d, base, fraction=factor)[0]
        return 2 * math.pi / float(bank[bank > 0].min())
    return float(wavelengths(inverse_frequencies(int(d * factor), base)).max())
""",
    "16.4": """
def longest_text(most, B):
    reach = 0
    while 3.5 ** ((reach + 1) / B) <= most:
        reach += 1
    return 2 * reach + 1
""",
}
