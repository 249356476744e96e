"""Seeded answers for lesson 16: misconceptions with their message, other solutions."""

REVIEWED = True

SET_UP = """
from rope_teach.frequencies import proportional
from rope_teach.tables import xpos_scale
"""

HALF = """
def half_faded(i, d, B):
    zeta = (2 * i + 0.4 * d) / (1.4 * d)
"""
MENDED = """
def with_new_origin(keys, old, new, B):
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
        (HALF + "    return int(B) * math.log(0.5) / math.log(zeta) + 3", "is left at"),
        (HALF + "    return 283.25", "is left at your distance"),
        (
            HALF + "    return B * math.log(0.5) / math.log(max(zeta, 0.3))",
            "is left at your distance",
        ),
        (
            "def half_faded(i, d, B):\n"
            "    zeta = (2 * i + 0.4 * d) / (1.4 * d)\n"
            "    return B * math.log10(0.5) / math.log(zeta)",
            "is left at your distance",
        ),
        (
            "def half_faded(i, d, B):\n"
            "    return next(x for x in range(1000)\n"
            "                if xpos_scale(torch.tensor(x), d, B)[0] < 0.5)",
            "is left at your distance",
        ),
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
            "of key",
        ),
        (MENDED + "    return keys * zeta", "(RuntimeError"),
        (MENDED + "    return keys[:, ::2] * zeta", "must have shape"),
        (
            MENDED + "    keys *= (zeta ** ((new - old) / B)).repeat_interleave(2)\n"
            "    return keys",
            "changed keys",
        ),
        (
            MENDED + "    out = keys.clone()\n"
            "    out[1:] *= (zeta ** ((new - old) / B)).repeat_interleave(2)\n"
            "    return out",
            "of key 0",
        ),
        (
            MENDED + "    out = keys * (zeta ** ((new - old) / B))"
            ".repeat_interleave(2)\n"
            "    out[4] = keys[4]\n    return out",
            "of key 4 needs",
        ),
        (
            MENDED + "    power = max(new - old, 0) / B\n"
            "    return keys * (zeta ** power).repeat_interleave(2)",
            "unchanged from the cache",
        ),
        (
            MENDED + "    power = int((new - old) / B)\n"
            "    return keys * (zeta ** power).repeat_interleave(2)",
            "unchanged from the cache",
        ),
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
        (SLOWEST + "return base", "it needs 3.53e+04 tokens"),
        (SLOWEST + "return 35332.9", "turn for 'default'"),
        (
            SLOWEST + "turning = int(factor * d / 2)\n"
            "    rotary_dim = 2 * turning if kind == 'default' else d\n"
            "    return wavelengths(inverse_frequencies(rotary_dim, 1e4))[turning - 1]",
            "base 1,000,000",
        ),
        (
            SLOWEST + "turning = int(factor * d / 2)\n"
            "    dim = 2 * turning if kind == 'default' else d\n"
            "    return wavelengths(inverse_frequencies(dim, base))[turning - 2]",
            "it needs",
        ),
        (
            SLOWEST + "turning = int(d / 8)\n"
            "    dim = 2 * turning if kind == 'default' else d\n"
            "    return wavelengths(inverse_frequencies(dim, base))[turning - 1]",
            "factor 0.5",
        ),
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
        (LONGEST + "return 9063", "too long"),
        (LONGEST + "return 1.9 * B * math.log(most) / math.log(3.5)", "so do more"),
        (LONGEST + "return 4 * B * math.log(most) / math.log(3.5)", "too long"),
        (LONGEST + "return math.log(most) / math.log(3.5)", "so do more"),
        (LONGEST + "return 2 * 32 * math.log(most) / math.log(3.5)", "so do more"),
    ],
}

OTHER = {
    "16.1": [
        """
def half_faded(i, d, B):
    distance = torch.linspace(0, 20 * B, 2_000_001, dtype=torch.float64)
    zeta = (2 * i + 0.4 * d) / (1.4 * d)
    return distance[(zeta ** (distance / B) - 0.5).abs().argmin()]
""",
        """
def half_faded(i, d, B):
    tokens = 0
    while xpos_scale(torch.tensor(float(tokens)), d, B)[i] > 0.5:
        tokens += 1
    return tokens
""",
        """
def half_faded(i, d, B):
    import numpy as np
    zeta = np.float32(2 * i + 0.4 * d) / np.float32(1.4 * d)
    return -B / np.log2(zeta)
""",
    ],
    "16.2": [
        """
def with_new_origin(keys, old, new, B):
    d = keys.shape[-1]
    ratio = (xpos_scale(torch.tensor(0), d, B, old)
             / xpos_scale(torch.tensor(0), d, B, new))
    return (keys.unflatten(-1, (-1, 2)) * ratio[:, None]).flatten(-2)
""",
        """
def with_new_origin(keys, old, new, B):
    import numpy as np
    rows, d = keys.tolist(), keys.shape[-1]
    factor = [((f - f % 2 + 0.4 * d) / (1.4 * d)) ** ((new - old) / B)
              for f in range(d)]
    return np.array([[x * y for x, y in zip(row, factor)] for row in rows])
""",
        """
def with_new_origin(keys, old, new, B):
    d, out = keys.shape[-1], keys.clone()
    for i in range(d // 2):
        zeta = (2 * i + 0.4 * d) / (1.4 * d)
        out[:, 2 * i:2 * i + 2] /= zeta ** ((old - new) / B)
    return out
""",
    ],
    "16.3": [
        """
def slowest_turn(kind, d, base, factor):
    if kind == "proportional":
        bank = proportional(d, base, fraction=factor)[0]
        return 2 * math.pi / float(bank[bank > 0].min())
    return float(wavelengths(inverse_frequencies(int(d * factor), base)).max())
""",
        """
def slowest_turn(kind, d, base, factor):
    last = factor * d - 2
    return 2 * math.pi * base ** (last / (factor * d if kind == "default" else d))
""",
    ],
    "16.4": [
        """
def longest_text(most, B):
    reach = 0
    while 3.5 ** ((reach + 1) / B) <= most:
        reach += 1
    return 2 * reach + 1
""",
        """
def longest_text(most, B):
    from fractions import Fraction
    return 2 * Fraction(B) * Fraction(math.log(most, 3.5))
""",
        """
def longest_text(most, B):
    return torch.tensor([most]).log() * B * 2 / torch.tensor(3.5).log()
""",
    ],
}
