"""Seeded answers for lesson 06: misconceptions with their message, right answers."""

REVIEWED = True

SET_UP = (
    "import cmath\nimport numpy as np\nfrom rope_teach.rotation import rotate_complex"
)


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


def _search(places: str, key: str = "gap") -> str:
    return (
        "def apart(first, second, inv_freq):\n"
        "    def gap(d):\n"
        "        phase = torch.polar(torch.ones_like(inv_freq), d * inv_freq)\n"
        "        return float((first * phase - second).abs().sum())\n"
        f"    return min({places}, key={key})"
    )


REAL = "torch.view_as_real(z * turn_by).flatten(-2)"
PHASE = "cmath.phase(q * k.conjugate())"

WRONG = {
    "6.1": [
        ("number = 7 * 0.2", "is the angle"),
        ("number = 1.4j", "the exponent"),
        ("number = math.exp(1.4)", "Without the i"),
        ("number = cmath.exp(0.6j) + cmath.exp(0.8j)", "sum of two phases"),
        ("number = cmath.exp(1j * 0.6 * 0.8)", "0.6 times 0.8"),
        ("number = cmath.exp(1j * 3 * 4 * 0.2)", "12 tokens"),
        ("number = cmath.exp(-1.4j)", "turns back"),
        ("number = cmath.exp(7j)", "by 7 radians"),
        ("number = cmath.exp(1j)", "turns by 1 radians"),
        ("number = 1 + 1j", "has length 1.41"),
        ("number = 2 * cmath.exp(1.4j)", "has length 2,"),
        ("number = cmath.exp(1.405j)", "turns by 1.405 radians"),
        ("number = cmath.exp(6 * 0.2j)", "turns by 1.2 radians"),
        ("number = (math.cos(1.4), math.sin(1.4))", "one number, got 2"),
    ],
    "6.2": [
        (_turn(REAL), "bfloat16 stops with"),
        (_turn(REAL, "x.float()"), "the dtype that went in"),
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
            "wrote them back as neighbours",
        ),
        ("def turn_any(x, turn_by):\n    return x", "nothing is turned"),
        (
            "def turn_any(x, turn_by):\n"
            "    z = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))\n"
            "    z *= turn_by\n"
            "    return torch.view_as_real(z).flatten(-2).to(x.dtype)",
            "changed x",
        ),
        (
            "def turn_any(x, turn_by):\n"
            "    c, s = turn_by.real.to(x.dtype), turn_by.imag.to(x.dtype)\n"
            "    a, b = x[..., 0::2], x[..., 1::2]\n"
            "    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)",
            "rounded once at the end",
        ),
        (
            "def turn_any(x, turn_by):\n"
            "    t = torch.view_as_real(turn_by).to(x.dtype).float()\n"
            "    z = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))\n"
            "    z = z * torch.view_as_complex(t)\n"
            "    return torch.view_as_real(z).flatten(-2).to(x.dtype)",
            "rounded once at the end",
        ),
        (
            "def turn_any(x, turn_by):\n    return rotate_complex(x, turn_by)",
            "rotate_complex turn",
        ),
        (_turn(REAL + ".clamp(-2, 2).to(x.dtype)", "x.float()"), "not each pair"),
        (_turn(REAL + ".double()", "x.float()"), "The result has the type of x"),
        (_turn(REAL + ".numpy()", "x.float()"), "Return a tensor"),
        (
            _turn(
                "torch.view_as_real(z * turn_by[:1]).flatten(-2).to(x.dtype)",
                "x.float()",
            ),
            "not each pair",
        ),
        (
            """
def turn_any(x, turn_by):
    z = torch.complex(x.float()[:, 0::2], x.float()[:, 1::2]) * turn_by
    return torch.stack([z.real, z.imag], -1).flatten(-2).to(x.dtype)
""",
            "shapes do not fit",
        ),
        (
            """
def turn_any(x, turn_by):
    z = torch.view_as_complex(x.half().unflatten(-1, (-1, 2))) * turn_by
    return torch.view_as_real(z).flatten(-2).to(x.dtype)
""",
            "it should be",
        ),
    ],
    "6.3": [
        (_back("z * turn_by"), "same direction"),
        (_back("z.conj() * turn_by"), "Conjugate the phases"),
        (_back("(z * turn_by.conj()).conj()"), "mirrors"),
        (_back("-z * turn_by"), "adds half a turn"),
        (_back("z"), "nothing is undone"),
        (_back("z - turn_by"), "not the pairs"),
        (_back("(z * turn_by.conj())[:1]"), "must have shape"),
        (_back("z / turn_by"), "by a division or a power (/)"),
        (_back("z * turn_by.reciprocal()"), "reciprocal"),
        (_back("torch.div(z, turn_by)"), "division or a power (div)"),
        (_back("z * turn_by ** -1"), "(**)"),
        (_back("z.mul(torch.pow(turn_by, -1))"), "(pow)"),
        (_back("np.divide(z.numpy(), turn_by.numpy())"), "(divide)"),
        (_back("turn_by.__rtruediv__(z)"), "(rdiv)"),
        (_back("z.mul_(turn_by.conj())"), "changed z"),
        (_back("z * turn_by.conj()[:1]"), "not the pairs"),
        (_back("z * turn_by.conj().real"), "not the pairs"),
        (
            "def take_back(z, turn_by):\n"
            "    return torch.linalg.solve(turn_by.diag_embed(), z[..., None])[..., 0]",
            "(solve)",
        ),
    ],
    "6.4": [
        (_best(PHASE), "in radians"),
        (_best("cmath.phase(k * q.conjugate()) / theta"), "except for the sign"),
        (_best("cmath.phase(q * k) / theta"), "without the conjugate"),
        (_best(f"({PHASE} + 2 * math.pi) / theta"), "1 full turn(s)"),
        (_best("0"), "At another distance"),
        (_best(f"round({PHASE} / theta)"), "At another distance"),
        (_best("(cmath.phase(q) - cmath.phase(k)) / theta"), "1 full turn(s)"),
        (_best(f"{PHASE} * theta"), "Divide the angle"),
        (_best(f"abs({PHASE} / theta)"), "At another distance"),
        (_best(f"max(-20, min(20, {PHASE} / theta))"), "theta = 0.05"),
        (_best(f"({PHASE} / theta) % (2 * math.pi / theta)"), "full turn(s)"),
        (_best(f"({PHASE} + math.pi) / theta"), "At another distance"),
        (
            _best(
                "max(range(-400, 400), key=lambda d:"
                " (q * k.conjugate() * cmath.exp(-1j * d * theta)).real)"
            ),
            "At another distance",
        ),
    ],
    "6.5": [
        (_apart("round(float(-angle[-1] / inv_freq[-1]))"), "wrong sign"),
        (_apart("round(float(angle[0] / inv_freq[0]))"), "the first hand alone shows"),
        (
            _apart("round(float((second * first).angle()[-1] / inv_freq[-1]))"),
            "the angles add",
        ),
        (_apart("float(angle[-1])"), "Divide by the speed"),
        (_apart("float(angle[-1] / inv_freq[-1]) + 0.2"), "whole numbers"),
        (_apart("float(angle[-1] / inv_freq[-1])"), "whole numbers"),
        (_apart("5"), "the distance is 2"),
        (_apart("abs(round(float(angle[-1] / inv_freq[-1])))"), "sign is missing"),
        (_apart("round(float(angle[-1] / 0.001))"), "the distance is"),
        (_apart("round(float(angle[1] / inv_freq[1]))"), "the distance is"),
        (_apart("round(float((angle / inv_freq).mean()))"), "the distance is"),
        (
            _apart("round(float((second.angle() - first.angle())[-1] / inv_freq[-1]))"),
            "the distance is",
        ),
        (_search("range(-1000, 1000)"), "the distance is 1000"),
        (_search("range(0, 1001)"), "the distance is -850"),
        (_search("range(-100, 101)"), "the distance is 300"),
        (_search("range(-1000, 1001)", "lambda d: -gap(d)"), "the distance is 2"),
    ],
}

OTHER = {
    "6.1": [
        "number = torch.polar(torch.tensor(1.0), torch.tensor(1.4))",
        "number = complex(math.cos(1.4), math.sin(1.4))",
        "number = np.complex64(np.exp(1.4j))",
        "number = cmath.exp(0.6j) * cmath.exp(0.8j)",
        "number = [0.17 + 0.9854j]",
        "number = cmath.exp((1.4 - 2 * math.pi) * 1j)",
    ],
    "6.2": [
        """
def turn_any(x, turn_by):
    a, b = x.float()[..., 0::2], x.float()[..., 1::2]
    z = torch.complex(a, b) * turn_by
    return torch.stack([z.real, z.imag], dim=-1).flatten(-2).to(x.dtype)
""",
        """
def turn_any(x, turn_by):
    z = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turn_by
    return torch.view_as_real(z).flatten(-2).type_as(x)
""",
        """
def turn_any(x, turn_by):
    c, s = turn_by.real, turn_by.imag
    a, b = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2).to(x.dtype)
""",
        """
def turn_any(x, turn_by):
    z = x.float().numpy().view(np.complex64) * turn_by.numpy()
    return torch.from_numpy(z.view(np.float32)).to(x.dtype)
""",
    ],
    "6.3": [
        _back("z * torch.polar(turn_by.abs(), -turn_by.angle())"),
        _back("(z.conj() * turn_by).conj()"),
        _back("torch.complex(turn_by.real, -turn_by.imag).mul(z).to(torch.complex128)"),
        _back("z.numpy() * np.conj(turn_by.numpy())"),
        _back("[[a * b.conj() for a, b in zip(*rows)] for rows in zip(z, turn_by)]"),
    ],
    "6.4": [
        """
def best_distance(q, k, theta):
    between = math.atan2(q.imag, q.real) - math.atan2(k.imag, k.real)
    return math.remainder(between, 2 * math.pi) / theta
""",
        """
def best_distance(q, k, theta):
    angle = cmath.phase(q) - cmath.phase(k)
    while angle > math.pi:
        angle -= 2 * math.pi
    while angle < -math.pi:
        angle += 2 * math.pi
    return torch.tensor(angle, dtype=torch.float32) / theta
""",
        _best("cmath.log(q / k).imag / theta"),
        _best("-np.angle(k * np.conj(q)) / theta"),
    ],
    "6.5": [
        _search("range(-1000, 1001)"),
        _apart("torch.round(angle[-1] / inv_freq.min()).long()"),
        _apart("np.rint(angle.numpy() / inv_freq.numpy())[-1]"),
        """
def apart(first, second, inv_freq):
    slow = second[-1] / first[-1]
    return int(round(cmath.phase(slow.item()) / inv_freq[-1].item()))
""",
    ],
}
