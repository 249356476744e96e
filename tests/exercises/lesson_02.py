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


WRONG = {
    "2.1": [
        ("hand_number = 20", "counts features"),
        ("hand_number = 9", "on the other side"),
        ("hand_number = (inverse_frequencies(64) - 0.01).abs().argmin()", "2π"),
        ("hand_number = 111.7", "is a wavelength"),
        ("hand_number = 64", "no hand 64"),
        ("hand_number = 3", "Hand 0 is the fastest"),
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
        (_table("0.5 * i", PAIRS), "the row of position 1"),
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
        (_later("sin * c + cos * s", "cos * c + sin * s"), "the code should be"),
        (
            _later("sin * c + cos * s", "cos * c - sin * s").replace(
                "    return ", "    code[:] = "
            )
            + "    return code",
            "You wrote into",
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
    ],
}

OTHER = {
    "2.1": "hand_number = 10",
    "2.2": """
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
    "2.3": """
def later(code, steps, theta):
    hands = torch.complex(code[1::2].double(), code[0::2].double())
    hands = hands * torch.exp(1j * steps * theta)
    return torch.stack([hands.imag, hands.real], -1).flatten()
""",
    "2.4": """
def read(noisy, table):
    return (table @ noisy).argmax().item()
""",
}
