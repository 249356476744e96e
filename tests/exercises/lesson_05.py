"""Seeded answers for lesson 05: misconceptions with their message, right answers."""

REVIEWED = True

SET_UP = """
import numpy as np
import rope_teach
from rope_teach import rotate_matrix
from rope_teach.rotation import rotation_matrix

def turn_pairs(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    first = a * cos - b * sin
    second = a * sin + b * cos
    return torch.stack([first, second], dim=-1).flatten(-2)
"""

GUARD = "if head_dim % 2: raise ValueError"
PAIRS = "torch.arange(head_dim // 2)"
RIGHT = f"base ** (-2 * {PAIRS} / head_dim)"


def _speeds(value: str, guard: str = GUARD) -> str:
    return f"def speeds(head_dim, base):\n    {guard}\n    return {value}"


def _partner(body: str) -> str:
    return f"def partner(x):\n    {body}"


def _woven(first: str, second: str) -> str:
    return _partner(
        "a, b = x[..., 0::2], x[..., 1::2]\n"
        f"    return torch.stack([{first}, {second}], -1).flatten(-2)"
    )


def _backward(value: str) -> str:
    return f"def backward(g, cos, sin):\n    return {value}"


def _line_up(value: str) -> str:
    return f"def line_up(table):\n    return {value}"


def _head(value: str, pair: str = "torch.arange(x.shape[-1] // 2)") -> str:
    return (
        "def turn_head(x, positions, base=10_000.0):\n"
        f"    theta = base ** (-2 * {pair}.double() / x.shape[-1])\n"
        f"    {value}"
    )


ANGLES = "angle = positions.unsqueeze(-1) * theta"
TURN = "return turn_pairs(x, angle.cos(), angle.sin())"
PARTS = (
    f"{ANGLES}\n    a, b = x[..., 0::2], x[..., 1::2]\n"
    "    c, s = angle.cos(), angle.sin()\n"
)

WRONG = {
    "5.1": [
        (_speeds("base ** (-torch.arange(head_dim) / head_dim)"), "each feature"),
        (_speeds(f"base ** (-{PAIRS} / head_dim)"), "feature 2i"),
        (_speeds(f"base ** (-4 * {PAIRS} / head_dim)"), "d counts features"),
        (_speeds(f"base ** (2 * {PAIRS} / head_dim)"), "speed up"),
        (_speeds(f"({RIGHT}).flip(0)"), "slowest first"),
        (_speeds(f"10_000 ** (-2 * {PAIRS} / head_dim)"), "base is an argument"),
        (_speeds(RIGHT, "pass"), "no partner"),
        (_speeds(RIGHT, "assert head_dim % 2 == 0"), "stops with AssertionError"),
        (_speeds(f"base ** (-2 * ({PAIRS} + 1) / head_dim)"), "Hands count from 0"),
        (_speeds("torch.ones(head_dim // 2)"), "hand 1 should turn"),
        (_speeds("inverse_frequencies(head_dim, base)"), "inverse_frequencies"),
        (
            _speeds("rope_teach.inverse_frequencies(head_dim, base)"),
            "the package's inverse_frequencies",
        ),
        (
            _speeds("RotaryEmbedding(head_dim, base=base).inv_freq"),
            "Write the formula yourself",
        ),
        (_speeds(f"({RIGHT}).clamp(min=1e-4)"), "base=500000 hand"),
        (_speeds(f"({RIGHT}).round(decimals=5)"), "should turn by"),
        (_speeds(RIGHT, "if head_dim == 7: raise ValueError"), "head_dim=1"),
        (
            _speeds("base ** -torch.linspace(0, 1, head_dim // 2)"),
            "i ends at d/2 - 1",
        ),
        (_speeds(f"2 * math.pi / ({RIGHT})"), "wavelengths"),
        (_speeds("[1.0, 0.1, 0.01, 0.001]"), "must have shape (3,)"),
    ],
    "5.2": [
        (_woven("b", "a"), "changed no sign"),
        (_woven("b", "-a"), "clockwise"),
        (_woven("-a", "b"), "kept their places"),
        (
            _partner(
                "a, b = x[..., 0::2], x[..., 1::2]\n    return torch.cat([-b, a], -1)"
            ),
            "wrong order",
        ),
        (
            _partner("a, b = x.chunk(2, -1)\n    return torch.cat([-b, a], -1)"),
            "lesson 07",
        ),
        (
            _partner("x[..., 0::2] = -x[..., 1::2]\n    return x"),
            "changed x",
        ),
        (_partner("return -x"), "not the formula's turn"),
        (_woven("-b.abs()", "a"), "not the formula's turn"),
        (_woven("-b.clamp(-1, 1)", "a"), "not the formula's turn"),
        (
            _partner(
                "y = x.clone()\n"
                "    y[..., 0], y[..., 1] = -x[..., 1], x[..., 0]\n"
                "    return y"
            ),
            "At feature 2 it should be",
        ),
        (_partner("return torch.stack([-x[..., 1::2], x[..., 0::2]], -1)"), "shape"),
        (
            _partner("return torch.stack([-x[1::2], x[0::2]], -1).flatten()"),
            "line 2",
        ),
    ],
    "5.3": [
        (_backward("turn_pairs(g, cos, sin)"), "turned g forward"),
        (_backward("turn_pairs(g, -cos, sin)"), "sign of the cosine"),
        (_backward("-turn_pairs(g, cos, sin)"), "both signs"),
        (_backward("turn_pairs(g, sin, cos)"), "swapped the tables"),
        (_backward("g"), "only at position 0"),
        (_backward("turn_pairs(g, 1 / cos, sin)"), "not what autograd gives"),
        (_backward("turn_pairs(g, cos, -sin.abs())"), "not what autograd gives"),
        (_backward("turn_pairs(g, cos.abs(), -sin)"), "not what autograd gives"),
        (_backward("rotate(g, cos, -sin, pairing='half')"), "lesson 07"),
        (_backward("turn_pairs(g, cos, -sin)[:5]"), "must have shape"),
        (
            "def backward(g, cos, sin):\n"
            "    sin *= -1\n"
            "    return turn_pairs(g, cos, sin)",
            "changed sin",
        ),
        (
            "def backward(g, cos, sin):\n"
            "    x = torch.zeros_like(g).requires_grad_()\n"
            "    turn_pairs(x, cos, sin).backward(g)\n"
            "    return x.grad",
            "Do without autograd",
        ),
    ],
    "5.4": [
        (_line_up("table"), "differently in every head"),
        (_line_up("table.unsqueeze(0)"), "in front"),
        (_line_up("table.unsqueeze(-1)"), "hands along"),
        (_line_up("table.T"), "transposed"),
        (_line_up("table.unsqueeze(0).unsqueeze(-1)"), "does not line up"),
        (_line_up("table.flip(0).unsqueeze(1)"), "their own positions"),
        (_line_up("table.unsqueeze(1).expand(-1, 3, -1)"), "does not line up"),
        (_line_up("table.unsqueeze(1)[:1]"), "their own positions"),
        (_line_up("table.mean(0, keepdim=True).unsqueeze(1)"), "their own positions"),
        (_line_up("table.reshape(5, 1, 4)"), "reshape"),
        (_line_up("table.unsqueeze(1).round(decimals=2)"), "their own positions"),
        (_line_up("table.T.reshape(len(table), 1, -1)"), "their own positions"),
        (
            "def line_up(table):\n    return table[:, None].tolist()",
            "return a tensor, not a list",
        ),
        (
            "def line_up(table):\n    return table[:, None].expand(-1, 6, -1)",
            "does not line up",
        ),
    ],
    "5.5": [
        (
            _head("angle = torch.arange(len(x)).unsqueeze(-1) * theta; " + TURN),
            "by 0, 1, 2",
        ),
        (_head("angle = -positions.unsqueeze(-1) * theta; " + TURN), "clockwise"),
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
            _head(PARTS + "    return torch.cat([a * c - b * s, a * s + b * c], -1)"),
            "stack and flatten",
        ),
        (_head(f"theta = theta ** 0.5; {ANGLES}; {TURN}"), "not by the angles"),
        (_head("base = 10_000.0; theta = base ** (-2 * torch.arange(x.shape[-1] // 2)"
               f".double() / x.shape[-1]); {ANGLES}; {TURN}"), "always turn as with"),
        (_head("angle = positions * theta; " + TURN), "RuntimeError"),
        (_head("rope = RotaryEmbedding(x.shape[-1], base=base)\n"
               "    return rope.rotate(x[None], positions)[0]"), "rotate turn"),
        (_head("return rotate(x, *cos_sin(positions, theta))"), "package's rotate"),
        (
            _head(
                PARTS + "    first, second = a * c + b * s, a * s + b * c\n"
                "    return torch.stack([first, second], -1).flatten(-2)"
            ),
            "law is broken",
        ),
        (_head("positions = positions + 1; " + f"{ANGLES}; {TURN}"), "law is broken"),
        (_head("positions = positions.clamp(max=99); " + f"{ANGLES}; {TURN}"),
         "For 8 features and the positions [0, 1, 2, 10, 300]"),
        (_head("positions = positions.abs() % 256; " + f"{ANGLES}; {TURN}"),
         "For 8 features"),
        (_head("angle = positions.unsqueeze(-1).bfloat16() * theta.bfloat16()\n"
               f"    {TURN}"), "For 8 features"),
        (_head(f"{ANGLES}; return turn_pairs(x[:, :8], angle.cos()[:, :4],"
               " angle.sin()[:, :4])"), "must have shape (4, 16)"),
    ],
}  # fmt: skip

OTHER = {
    "5.1": [
        """
def speeds(head_dim, base):
    if head_dim < 2 or head_dim % 2 == 1:
        raise ValueError("even, please")
    return [math.exp(-i / head_dim * math.log(base)) for i in range(0, head_dim, 2)]
""",
        """
def speeds(head_dim, base):
    pairs, left = divmod(head_dim, 2)
    if left:
        raise ValueError(head_dim)
    return np.float32(base) ** (-np.arange(pairs, dtype=np.float32) / pairs)
""",
        """
def speeds(head_dim, base):
    if head_dim & 1:
        raise ValueError("odd")
    ratio = base ** (-2 / head_dim)
    made = torch.full((head_dim // 2,), ratio, dtype=torch.float64)
    return made.cumprod(0) / ratio
""",
        _speeds("1.0 / (base ** (torch.arange(0, head_dim, 2).float() / head_dim))"),
    ],
    "5.2": [
        """
def partner(x):
    out = torch.empty_like(x)
    out[..., 0::2], out[..., 1::2] = -x[..., 1::2], x[..., 0::2]
    return out
""",
        """
def partner(x):
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(z * 1j).flatten(-2)
""",
        _partner("return turn_pairs(x, torch.tensor(0.0), torch.tensor(1.0))"),
        """
def partner(x):
    d = x.shape[-1]
    order = [i + 1 if i % 2 == 0 else i - 1 for i in range(d)]
    signs = np.tile([-1.0, 1.0], d // 2)
    return x.numpy()[..., order] * signs
""",
    ],
    "5.3": [
        """
def backward(g, cos, sin):
    c, d = g[..., 0::2], g[..., 1::2]
    return torch.stack([c * cos + d * sin, d * cos - c * sin], -1).flatten(-2)
""",
        _backward("rotate(g, cos, -sin)"),
        """
def backward(g, cos, sin):
    z = torch.complex(g[..., 0::2], g[..., 1::2]) * torch.complex(cos, -sin)
    return torch.view_as_real(z).flatten(-2)
""",
        """
def backward(g, cos, sin):
    flip = g[..., 1::2].clone(), g[..., 0::2].clone()
    swapped = turn_pairs(torch.stack(flip, -1).flatten(-2), cos, sin)
    return torch.stack([swapped[..., 1::2], swapped[..., 0::2]], -1).flatten(-2)
""",
    ],
    "5.4": [
        _line_up("table[None, :, None, :]"),
        _line_up("table.unsqueeze(-2)"),
        _line_up("torch.stack([table], dim=1).double()"),
        _line_up("np.expand_dims(table.numpy(), 1)"),
    ],
    "5.5": [
        """
def turn_head(x, positions, base=10_000.0):
    d = x.shape[-1]
    theta = inverse_frequencies(d, base)
    matrix = rotation_matrix(angles(positions, theta)).float()
    return torch.einsum("sij,sj->si", matrix, x)
""",
        """
def turn_head(x, positions, base=10_000.0):
    table = phases(positions, inverse_frequencies(x.shape[-1], base))
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(z * table).flatten(-2)
""",
        """
def turn_head(x, positions, base=10_000.0):
    x, m = np.asarray(x.tolist()), np.asarray(positions.tolist())
    d = x.shape[-1]
    angle = np.outer(m, base ** (-np.arange(0, d, 2) / d))
    out = np.empty_like(x)
    out[:, 0::2] = x[:, 0::2] * np.cos(angle) - x[:, 1::2] * np.sin(angle)
    out[:, 1::2] = x[:, 0::2] * np.sin(angle) + x[:, 1::2] * np.cos(angle)
    return out
""",
        """
def turn_head(x, positions, base=10_000.0):
    rows = []
    for row, m in zip(x, positions):
        d, turned = len(row), []
        for i in range(d // 2):
            angle = m.item() * base ** (-2 * i / d)
            c, s = math.cos(angle), math.sin(angle)
            a, b = row[2 * i], row[2 * i + 1]
            turned += [a * c - b * s, a * s + b * c]
        rows.append(torch.stack(turned))
    return torch.stack(rows)
""",
        _head("cos, sin = cos_sin(positions, theta); return turn_pairs(x, cos, sin)"),
    ],
}
