"""Seeded answers for lesson 06: misconceptions with their message, another solution."""

SET_UP = "import cmath"


def _turn(value: str, before: str = "x") -> str:
    return (
        "def turn_any(x, turn_by):\n"
        f"    z = torch.view_as_complex({before}.unflatten(-1, (-1, 2)))\n"
        f"    return {value}"
    )


def _back(value: str) -> str:
    return f"def take_back(z, turn_by):\n    return {value}"


def _best(value: str) -> str:
    return f"def best_distance(q, k, theta):\n    return {value}"


def _apart(value: str) -> str:
    return (
        "def apart(first, second, inv_freq):\n"
        "    angle = (second * first.conj()).angle()\n"
        f"    return {value}"
    )


WRONG = {
    "6.1": [
        ("number = 7 * 0.2", "is the angle"),
        ("number = 1.4j", "the exponent"),
        ("number = math.exp(1.4)", "Without the i"),
        ("number = cmath.exp(0.6j) + cmath.exp(0.8j)", "added the two phases"),
        ("number = cmath.exp(1j * 0.6 * 0.8)", "multiplied the angles"),
        ("number = cmath.exp(1j * 3 * 4 * 0.2)", "12 tokens"),
        ("number = cmath.exp(-1.4j)", "turns back"),
        ("number = cmath.exp(7j)", "by 7 radians"),
        ("number = cmath.exp(1j)", "turns by 1.00"),
        ("number = 1 + 1j", "has length 1.414"),
    ],
    "6.2": [
        (_turn("torch.view_as_real(z * turn_by).flatten(-2)"), "bfloat16 stops with"),
        (
            _turn("torch.view_as_real(z * turn_by).flatten(-2)", "x.float()"),
            "the dtype that went in",
        ),
        (_turn("z * turn_by"), "still complex"),
        (_turn("torch.view_as_real(z * turn_by)"), "flatten(-2)"),
        (_turn("torch.view_as_real(z * turn_by.conj()).flatten(-2)"), "clockwise"),
        (
            _turn("torch.cat([(z * turn_by).real, (z * turn_by).imag], -1)"),
            "wrong order",
        ),
        (
            "def turn_any(x, turn_by):\n"
            "    z = torch.complex(*x.float().chunk(2, -1)) * turn_by\n"
            "    return torch.cat([z.real, z.imag], -1).to(x.dtype)",
            "lesson 07",
        ),
        (
            "def turn_any(x, turn_by):\n"
            "    z = torch.complex(*x.float().chunk(2, -1)) * turn_by\n"
            "    return torch.view_as_real(z).flatten(-2).to(x.dtype)",
            "lesson 07",
        ),
        ("def turn_any(x, turn_by):\n    return x", "nothing is turned"),
    ],
    "6.3": [
        (_back("z * turn_by"), "same direction"),
        (_back("z.conj() * turn_by"), "mirrors"),
        (_back("-z * turn_by"), "adds half a turn"),
        (_back("z"), "nothing is undone"),
        (_back("z - turn_by"), "not the pairs"),
        (_back("(z * turn_by.conj())[:1]"), "must have shape"),
    ],
    "6.4": [
        (_best("cmath.phase(q * k.conjugate())"), "the angle, in radians"),
        (_best("cmath.phase(k * q.conjugate()) / theta"), "except for the sign"),
        (_best("cmath.phase(q * k) / theta"), "without the conjugate"),
        (
            _best("(cmath.phase(q * k.conjugate()) + 2 * math.pi) / theta"),
            "1 full turn(s)",
        ),
        (_best("0"), "A different distance gives"),
        (
            _best("round(cmath.phase(q * k.conjugate()) / theta)"),
            "A different distance",
        ),
    ],
    "6.5": [
        (_apart("round(float(-angle[-1] / inv_freq[-1]))"), "wrong sign"),
        (_apart("round(float(angle[0] / inv_freq[0]))"), "does not show them"),
        (
            _apart("round(float((second * first).angle()[-1] / inv_freq[-1]))"),
            "the angles add",
        ),
        (_apart("float(angle[-1])"), "Divide by the speed"),
        (_apart("float(angle[-1] / inv_freq[-1]) + 0.2"), "whole numbers"),
        (_apart("5"), "the distance is 2"),
    ],
}

OTHER = {
    "6.1": "number = torch.polar(torch.tensor(1.0), torch.tensor(1.4))",
    "6.2": """
def turn_any(x, turn_by):
    a, b = x.float()[..., 0::2], x.float()[..., 1::2]
    z = torch.complex(a, b) * turn_by
    return torch.stack([z.real, z.imag], dim=-1).flatten(-2).to(x.dtype)
""",
    "6.3": _back("z / turn_by"),
    "6.4": """
def best_distance(q, k, theta):
    between = math.atan2(q.imag, q.real) - math.atan2(k.imag, k.real)
    return math.remainder(between, 2 * math.pi) / theta
""",
    "6.5": """
def apart(first, second, inv_freq):
    def gap(d):
        turned = first * torch.polar(torch.ones_like(inv_freq), d * inv_freq)
        return float((turned - second).abs().sum())
    return min(range(-1000, 1001), key=gap)
""",
}
