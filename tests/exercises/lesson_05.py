"""Seeded answers for lesson 05: misconceptions with their message, another solution."""

SET_UP = """
def turn_pairs(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    first = a * cos - b * sin
    second = a * sin + b * cos
    return torch.stack([first, second], dim=-1).flatten(-2)
"""


def _speeds(value: str, guard: str = "if head_dim % 2: raise ValueError") -> str:
    return f"def speeds(head_dim, base):\n    {guard}\n    return {value}"


def _head(value: str, pair: str = "torch.arange(x.shape[-1] // 2)") -> str:
    return (
        "def turn_head(x, positions, base=10_000.0):\n"
        f"    theta = base ** (-2 * {pair}.double() / x.shape[-1])\n"
        f"    {value}"
    )


ANGLES = "angle = positions.unsqueeze(-1) * theta"
TURN = "return turn_pairs(x, angle.cos(), angle.sin())"

WRONG = {
    "5.1": [
        (_speeds("base ** (-torch.arange(head_dim) / head_dim)"), "each feature"),
        (_speeds("base ** (-torch.arange(head_dim // 2) / head_dim)"), "feature 2i"),
        (_speeds("base ** (2 * torch.arange(head_dim // 2) / head_dim)"), "speed up"),
        (
            _speeds("(base ** (-2 * torch.arange(head_dim // 2) / head_dim)).flip(0)"),
            "slowest first",
        ),
        (
            _speeds("10_000 ** (-2 * torch.arange(head_dim // 2) / head_dim)"),
            "base is an argument",
        ),
        (
            _speeds("base ** (-2 * torch.arange(head_dim // 2) / head_dim)", "pass"),
            "no partner",
        ),
        (
            _speeds(
                "base ** (-2 * torch.arange(head_dim // 2) / head_dim)",
                "assert head_dim % 2 == 0",
            ),
            "stops with AssertionError",
        ),
        (
            _speeds("base ** (-2 * torch.arange(1, head_dim // 2 + 1) / head_dim)"),
            "Hands count from 0",
        ),
        (_speeds("torch.ones(head_dim // 2)"), "hand 1 should turn"),
    ],
    "5.2": [
        (
            "def partner(x):\n"
            "    return torch.stack([x[..., 1::2], x[..., 0::2]], -1).flatten(-2)",
            "changed no sign",
        ),
        (
            "def partner(x):\n"
            "    return torch.stack([x[..., 1::2], -x[..., 0::2]], -1).flatten(-2)",
            "clockwise",
        ),
        (
            "def partner(x):\n"
            "    return torch.cat([-x[..., 1::2], x[..., 0::2]], -1)",
            "wrong order",
        ),
        (
            "def partner(x):\n"
            "    a, b = x.chunk(2, -1)\n"
            "    return torch.cat([-b, a], -1)",
            "lesson 07",
        ),
        (
            "def partner(x):\n"
            "    x[..., 0::2] = -x[..., 1::2]\n"
            "    return x",
            "changed its input",
        ),
        ("def partner(x):\n    return -x", "for (1, 2) yours is (-1, -2)"),
    ],
    "5.3": [
        (
            "def backward(g, cos, sin):\n    return turn_pairs(g, cos, sin)",
            "turned g forward",
        ),
        (
            "def backward(g, cos, sin):\n    return turn_pairs(g, -cos, sin)",
            "sign of the cosine",
        ),
        (
            "def backward(g, cos, sin):\n    return -turn_pairs(g, cos, sin)",
            "both signs",
        ),
        (
            "def backward(g, cos, sin):\n    return turn_pairs(g, sin, cos)",
            "swapped the tables",
        ),
        ("def backward(g, cos, sin):\n    return g", "only at position 0"),
        (
            "def backward(g, cos, sin):\n    return turn_pairs(g, 1 / cos, sin)",
            "not what autograd gives",
        ),
    ],
    "5.4": [
        ("def line_up(table):\n    return table", "differently in every head"),
        ("def line_up(table):\n    return table.unsqueeze(0)", "in front"),
        ("def line_up(table):\n    return table.unsqueeze(-1)", "hands along"),
        ("def line_up(table):\n    return table.T", "transposed"),
        (
            "def line_up(table):\n    return table.unsqueeze(0).unsqueeze(-1)",
            "does not line up",
        ),
        (
            "def line_up(table):\n    return table.flip(0).unsqueeze(1)",
            "their own positions",
        ),
    ],
    "5.5": [
        (
            _head("angle = torch.arange(len(x)).unsqueeze(-1) * theta; " + TURN),
            "0, 1, 2, 10, 300",
        ),
        (
            _head("angle = -positions.unsqueeze(-1) * theta; " + TURN),
            "clockwise",
        ),
        (
            _head(
                f"{ANGLES}\n    a, b = x.chunk(2, -1)\n"
                "    c, s = angle.cos(), angle.sin()\n"
                "    return torch.cat([a * c - b * s, a * s + b * c], -1)"
            ),
            "lesson 07",
        ),
        (
            _head("theta = torch.ones(x.shape[-1] // 2); " + f"{ANGLES}; {TURN}"),
            "the same speed",
        ),
        (
            _head(
                f"{ANGLES}\n    a, b = x[..., 0::2], x[..., 1::2]\n"
                "    c, s = angle.cos(), angle.sin()\n"
                "    return torch.cat([a * c - b * s, a * s + b * c], -1)"
            ),
            "stack and flatten",
        ),
        (_head(f"theta = theta ** 0.5; {ANGLES}; {TURN}"), "not by the angles"),
        (_head("base = 10_000.0; theta = base ** (-2 * torch.arange(x.shape[-1] // 2)"
               f".double() / x.shape[-1]); {ANGLES}; {TURN}"), "as before"),
        (_head("angle = positions * theta; " + TURN), "RuntimeError"),
    ],
}  # fmt: skip

OTHER = {
    "5.1": """
def speeds(head_dim, base):
    if head_dim < 2 or head_dim % 2 == 1:
        raise ValueError("even, please")
    return [math.exp(-i / head_dim * math.log(base)) for i in range(0, head_dim, 2)]
""",
    "5.2": """
def partner(x):
    out = torch.empty_like(x)
    out[..., 0::2], out[..., 1::2] = -x[..., 1::2], x[..., 0::2]
    return out
""",
    "5.3": """
def backward(g, cos, sin):
    c, d = g[..., 0::2], g[..., 1::2]
    return torch.stack([c * cos + d * sin, d * cos - c * sin], -1).flatten(-2)
""",
    "5.4": "def line_up(table):\n    return table[None, :, None, :]",
    "5.5": """
def turn_head(x, positions, base=10_000.0):
    rope = RotaryEmbedding(x.shape[-1], base=base)
    return rope.rotate(x.unsqueeze(0), positions)[0]
""",
}
