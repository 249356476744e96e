"""Seeded answers for lesson 02: misconceptions with their message, another solution."""


def _table(speeds: str, columns: str) -> str:
    return f"""
def build(positions, dim, base):
    i = torch.arange(dim // 2)
    angle = positions[:, None] * ({speeds})
    sin, cos = angle.sin(), angle.cos()
    return {columns}
"""


PAIRS = "torch.stack([sin, cos], -1).flatten(-2)"
THETA = "base ** (-2 * i / dim)"


def _later(sine: str, cosine: str) -> str:
    return f"""
def later(code, steps, theta):
    sin, cos = code[0::2], code[1::2]
    c, s = (steps * theta).cos(), (steps * theta).sin()
    return torch.stack([{sine}, {cosine}], -1).flatten()
"""


REVIEWED = True

WRONG = {
    "2.1": [
        ("hand_number = 20", "counts features"),
        ("hand_number = 9", "on the other side"),
        ("hand_number = (inverse_frequencies(64) - 0.01).abs().argmin()", "2π"),
        ("hand_number = 111.7", "is a wavelength"),
        ("hand_number = 64", "no hand 64"),
        ("hand_number = 3", "Hand 0 is the fastest"),
        ("hand_number = 11", "Hand 11 needs 149.0"),
        ("hand_number = 10.5", "no hand 10.5"),
        ("hand_number = -22", "no hand -22"),
        (
            "hand_number = (wavelengths(inverse_frequencies(64)) - 100).argmin()",
            "Hand 0 needs 6.3",
        ),
        (
            "hand_number = (wavelengths(inverse_frequencies(64)) - 100).abs().min()",
            "no hand 11.",
        ),
        (
            "hand_number = wavelengths(inverse_frequencies(64)) > 100",
            "Expected one number, got 32",
        ),
        ('hand_number = "10"', "quotation marks"),
    ],
    "2.2": [
        (_table(THETA, "torch.cat([sin, cos], -1)"), "All sines come first"),
        (_table(THETA, "torch.stack([cos, sin], -1).flatten(-2)"), "cosine first"),
        (_table(f"({THETA}).flip(0)", PAIRS), "slow to fast"),
        (_table("base ** (2 * i / dim)", PAIRS), "the minus sign in the exponent"),
        (_table("base ** (-i / dim)", PAIRS), "Yours is -i/d"),
        (_table("base ** (-4 * i / dim)", PAIRS), "in there twice"),
        (_table(f"2 * math.pi * {THETA}", PAIRS), "factor of 2π"),
        (_table(THETA, f"{PAIRS}.T"), "are swapped"),
        (_table(THETA, "sin"), "make a table of shape"),
        (_table("10_000 ** (-2 * i / dim)", PAIRS), "The base is an argument"),
        (
            "def build(positions, dim, base):\n"
            "    i = torch.arange(dim)\n"
            "    angle = positions[:, None] * base ** (-i / dim)\n"
            "    return torch.where(i % 2 == 0, angle.sin(), angle.cos())",
            "share an angle",
        ),
        (_table("0.5 * i", PAIRS), "At row 1, column 0 it should be 0.841; yours is 0"),
        (
            "def build(positions, dim, base):\n"
            "    return sinusoidal(positions, dim, base)",
            "what this exercise builds",
        ),
        (
            "its = sinusoidal\ndef build(positions, dim, base):\n"
            "    return its(positions, dim, base)",
            "what this exercise builds",
        ),
        (
            _table(THETA, PAIRS).replace(
                "positions[:", "torch.arange(len(positions))[:"
            ),
            "asked for are [0, 1, 7, 50]",
        ),
        (_table(THETA, f"{PAIRS}.abs()"), "it should be -0.262; yours is 0.262"),
        (_table(THETA, f"{PAIRS}.clamp(min=0)"), "yours is 0."),
        (_table("base ** (-2 * i // dim)", PAIRS), "column 2"),
        (_table(THETA, f"{PAIRS}.flip(0)"), "reverse order"),
        (
            _table(THETA, PAIRS).replace("dim // 2)", "4)"),
            "make a table of shape (3, 6)",
        ),
        (
            _table(THETA, f"{PAIRS}.round(decimals=2)"),
            "it should be 0.841; yours is 0.84",
        ),
        (
            _table(THETA, PAIRS).replace(
                "    sin, cos", "    positions += 1\n    sin, cos"
            ),
            "changed positions",
        ),
        (
            "def build(positions, dim, base):\n"
            "    angle = positions[:, None] * inverse_frequencies(64)[: dim // 2]\n"
            "    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)",
            "At row 1, column 2",
        ),
    ],
    "2.3": [
        (_later("sin * c - cos * s", "cos * c + sin * s"), "the other way"),
        ("def later(code, steps, theta):\n    return code + 0", "came back unchanged"),
        (
            "def later(code, steps, theta):\n"
            "    return code + sinusoidal(torch.tensor(steps), len(code))",
            "sines and cosines do not",
        ),
        (
            _later("sin * c + cos * s", "cos * c - sin * s").replace("steps *", "1 *"),
            "by one token",
        ),
        (_later("sin * c + cos * s", "cos * c + sin * s"), "it should be"),
        (
            _later("sin * c + cos * s", "cos * c - sin * s").replace(
                "(steps *", "(abs(steps) *"
            ),
            "6 tokens further on",
        ),
        (
            """
def later(code, steps, theta):
    for _ in range(steps):
        sin, cos = code[0::2], code[1::2]
        pair = [sin * theta.cos() + cos * theta.sin(),
                cos * theta.cos() - sin * theta.sin()]
        code = torch.stack(pair, -1).flatten()
    return code
""",
            "A negative number of steps goes back",
        ),
        (
            _later("sin * c + cos * s", "cos * c - sin * s").replace(
                "(steps *", "((steps + 1) *"
            ),
            "too far",
        ),
        (_later("cos * c - sin * s", "sin * c + cos * s"), "its cosine first"),
        (
            _later("sin * c + cos * s", "cos * c - sin * s").replace(", -1)", ")"),
            "side by side",
        ),
        (
            """
def later(code, steps, theta):
    table = sinusoidal(torch.arange(100), len(code), dtype=torch.float64)
    here = (table - code).norm(dim=-1).argmin()
    return sinusoidal(here + steps, len(code), dtype=torch.float64)
""",
            "25 tokens after position 1000",
        ),
        (
            """
def later(code, steps, theta):
    here = torch.atan2(code[0], code[1])
    angle = (here + steps) * theta
    return torch.stack([angle.sin(), angle.cos()], -1).flatten()
""",
            "it should be",
        ),
        (
            _later("sin * c + cos * s", "cos * c - sin * s").replace(
                "    return ", "    code[:] = "
            )
            + "    return code",
            "changed code",
        ),
        ("def later(code, steps, theta):\n    return code[0::2]", "come out"),
    ],
    "2.4": [
        (
            "def read(noisy, table):\n"
            "    return table[(table - noisy).norm(dim=-1).argmin()]",
            "returned a code",
        ),
        (
            "def read(noisy, table):\n    return (table - noisy).norm(dim=-1).min()",
            "`argmin` instead",
        ),
        (
            "def read(noisy, table):\n    return (table - noisy).norm(dim=-1).argmax()",
            "farthest",
        ),
        (
            "def read(noisy, table):\n"
            "    return (table - noisy)[:, :2].norm(dim=-1).argmin()",
            "hand 0 alone",
        ),
        (
            "def read(noisy, table):\n    return (table - noisy).abs().argmin()",
            "one distance per row",
        ),
        ("def read(noisy, table):\n    return 1", "was read as 1"),
        (
            "def read(noisy, table):\n"
            "    return (table[:256] - noisy).norm(dim=-1).argmin()",
            "position 499 was read as",
        ),
        (
            "def read(noisy, table):\n"
            "    return (table - noisy).norm(dim=-1).argmin() + 1",
            "position 0 was read as 1",
        ),
        (
            """
def read(noisy, table):
    low, high = 0, len(table) - 1
    while low < high:
        middle = (low + high) // 2
        if (table[middle] - noisy).norm() < (table[middle + 1] - noisy).norm():
            high = middle
        else:
            low = middle + 1
    return low
""",
            "was read as",
        ),
        (
            "def read(noisy, table):\n    return (table - noisy).norm(dim=-1) < 3",
            "Expected one number",
        ),
        (
            "def read(noisy, table):\n    return (table - noisy).sum(-1).argmin()",
            "read as",
        ),
        ("def read(noisy, table):\n    return (table @ noisy).max()", "read as"),
        (
            "def read(noisy, table):\n"
            "    return (table == noisy).all(-1).nonzero().flatten()",
            "Expected one number, got 0",
        ),
    ],
}

OTHER = {
    "2.1": [
        "hand_number = 10",
        "import numpy as np\n"
        "turn = 2 * np.pi * 10_000 ** (np.arange(32) / 32)\n"
        "hand_number = np.abs(turn - 100).argmin()",
        "hand_number = min(range(32), "
        "key=lambda i: abs(2 * math.pi * 10_000 ** (i / 32) - 100))",
    ],
    "2.2": [
        """
def build(positions, dim, base):
    rows = []
    for m in positions.tolist():
        row = []
        for i in range(dim // 2):
            angle = m / base ** (2 * i / dim)
            row += [math.sin(angle), math.cos(angle)]
        rows.append(row)
    return rows
""",
        """
def build(positions, dim, base):
    import numpy as np
    z = np.exp(1j * np.outer(positions.numpy(), base ** (-np.arange(0, dim, 2) / dim)))
    return np.stack([z.imag, z.real], -1).reshape(len(positions), dim)
""",
        """
def build(positions, dim, base):
    angle = torch.outer(positions.double(), inverse_frequencies(dim, base))
    return torch.stack([angle, angle + math.pi / 2], -1).flatten(-2).sin()
""",
    ],
    "2.3": [
        """
def later(code, steps, theta):
    hands = torch.complex(code[1::2].double(), code[0::2].double())
    hands = hands * torch.exp(1j * steps * theta)
    return torch.stack([hands.imag, hands.real], -1).flatten()
""",
        """
def later(code, steps, theta):
    angle = torch.atan2(code[0::2], code[1::2]) + steps * theta
    return torch.stack([angle.sin(), angle.cos()], -1).flatten().float()
""",
        """
def later(code, steps, theta):
    moved = []
    for i, speed in enumerate(theta.tolist()):
        phi = math.atan2(code[2 * i], code[2 * i + 1]) + steps * speed
        moved += [math.sin(phi), math.cos(phi)]
    return moved
""",
    ],
    "2.4": [
        """
def read(noisy, table):
    return (table @ noisy).argmax().item()
""",
        """
def read(noisy, table):
    return min(range(len(table)), key=lambda m: (table[m] - noisy).abs().sum())
""",
        """
def read(noisy, table):
    import numpy as np
    return np.square(table.numpy() - noisy.numpy()).sum(-1).argmin()
""",
    ],
}
