"""Seeded answers for lesson 13: misconceptions with their message, other solutions."""

REVIEWED = True
SET_UP = "import numpy as np\nfrom rope_teach.frequencies import position_interpolation"

POSITIONS = "def positions_for(length, trained):\n    "
BASE = "def new_base(base, rotary_dim, factor):\n    "
SLOW = """
def slow(inv_freq, factor, trained, turns):
    made = trained / wavelengths(inv_freq)
    slower = inv_freq / factor
    """
FIXED = """
def fixed(keys, old, new):
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
        (POSITIONS + "return torch.arange(length) / 8", "yours is 0.125"),
        (
            POSITIONS + "p = torch.arange(length) / max(1, length / trained)\n"
            "    p[length // 2] += 0.1\n    return p",
            "At token 128 it should be",
        ),
        (
            POSITIONS + "return torch.arange(length) / max(1, length // trained)",
            "length=96",
        ),
        (
            POSITIONS + "p = torch.arange(length)\n"
            "    return p if length < 200 else p * trained / length",
            "length=96",
        ),
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
        (BASE + "return base * factor ** (rotary_dim / (rotary_dim - 1))", "last hand"),
        (BASE + "return base * factor ** (16 / 14)", "rotary_dim=128"),
        (BASE + "return 1e4 * factor ** (rotary_dim / (rotary_dim - 2))", "500,000"),
        (
            BASE + "return base * (factor + 0.02) ** (rotary_dim / (rotary_dim - 2))",
            "not 4",
        ),
    ],
    "13.3": [
        (SLOW + "return slower", "That is PI"),
        (SLOW + "return inv_freq", "changed no speed"),
        (SLOW + "return torch.where(made < turns, inv_freq, slower)", "too few turns"),
        (
            SLOW + "return torch.where(made >= turns, inv_freq, inv_freq * factor)",
            "became faster",
        ),
        (
            SLOW + "made = trained * inv_freq\n"
            "    return torch.where(made >= turns, inv_freq, slower)",
            "*radians*",
        ),
        (SLOW + "return torch.where(made >= 1, inv_freq, slower)", "turns=4"),
        (SLOW + "return torch.where(made >= max(1, turns), inv_freq, slower)", "0.2"),
        (SLOW + "return torch.where(made.round() >= turns, inv_freq, slower)", "makes"),
        (
            SLOW + "return torch.where(made >= turns, inv_freq, inv_freq / 4)",
            "factor 8",
        ),
        (
            SLOW + "first = int((made >= turns).sum())\n"
            "    return torch.cat([inv_freq[:first], slower[first:]])",
            "makes",
        ),
        (
            SLOW + "inv_freq[made < turns] /= factor\n    return inv_freq",
            "changed inv_freq",
        ),
        (
            SLOW + "keep = ((made - turns) / 3).clamp(0, 1)\n"
            "    return keep * inv_freq + (1 - keep) * slower",
            "times slower",
        ),
        (SLOW + "return made >= turns", "turns"),
        (SLOW + "return torch.where(made >= turns, inv_freq, 0.0)", "times slower"),
    ],
    "13.4": [
        (FIXED + "    return keys", "unchanged from the cache"),
        (
            FIXED + "    return rotate(keys, *cos_sin(m, new, keys.dtype))",
            "on top of the old ones",
        ),
        (
            FIXED + "    return rotate(keys, *cos_sin(m, old - new, keys.dtype))",
            "wrong way",
        ),
        (
            FIXED + "    return rotate(keys, *cos_sin(m, -old, keys.dtype))",
            "not rotated",
        ),
        (
            FIXED + "    tables = cos_sin(m, new - old, keys.dtype)\n"
            '    return rotate(keys, *tables, "half")',
            "interleaved pairs",
        ),
        (
            FIXED + "    return rotate(keys, *cos_sin(m + 1, new - old, keys.dtype))",
            "position 0 needs no turn",
        ),
        (
            FIXED + "    m = m.clamp(max=10)\n"
            "    return rotate(keys, *cos_sin(m, new - old, keys.dtype))",
            "first the one at position 11",
        ),
        (
            FIXED + "    turned = rotate(keys, *cos_sin(m, new - old, keys.dtype))\n"
            "    return torch.cat([turned[:1], keys[1:]])",
            "unchanged",
        ),
        (
            FIXED + "    keys *= 1\n    keys += rotate(keys, *cos_sin(m, new - old,\n"
            "        keys.dtype)) - keys\n    return keys",
            "changed keys",
        ),
    ],
}

OTHER = {
    "13.1": [
        POSITIONS + "if length <= trained:\n        return list(range(length))\n"
        "    return [m * trained / length for m in range(length)]",
        POSITIONS + "return np.arange(length) * min(1, trained / length)",
        POSITIONS + "from fractions import Fraction\n"
        "    s = max(Fraction(1), Fraction(length, trained))\n"
        "    return (m / s for m in range(length))",
    ],
    "13.2": [
        BASE + "low, high = base, base * factor ** 2\n"
        "    target = inverse_frequencies(rotary_dim, base)[-1] / factor\n"
        "    for _ in range(100):\n"
        "        middle = math.sqrt(low * high)\n"
        "        slower = inverse_frequencies(rotary_dim, middle)[-1] < target\n"
        "        low, high = (low, middle) if slower else (middle, high)\n"
        "    return torch.tensor(high)",
        BASE + "return math.exp(math.log(base)\n"
        "        + math.log(factor) / (1 - 2 / rotary_dim))",
        BASE + "return np.float32(base) * np.float32(factor) ** (\n"
        "        rotary_dim / (rotary_dim - 2))",
    ],
    "13.3": [
        SLOW + "keep = (made >= turns).double()\n"
        "    return keep * inv_freq + (1 - keep) * slower",
        SLOW + "return [f if trained * f >= 2 * math.pi * turns else f / factor\n"
        "            for f in inv_freq.tolist()]",
        SLOW + "f = inv_freq.float().numpy()\n"
        "    return np.where(trained * f / (2 * np.pi) < turns, f / factor, f)",
        SLOW + "out = inv_freq.clone()\n"
        "    out[made < turns] /= factor\n    return out",
    ],
    "13.4": [
        FIXED + "    raw = rotate(keys, *cos_sin(m, -old, keys.dtype))\n"
        "    return rotate(raw, *cos_sin(m, new, keys.dtype))",
        FIXED + "    z = torch.view_as_complex(keys.double().unflatten(-1, (-1, 2)))\n"
        "    angle = m[:, None] * (new - old)\n"
        "    z = z * torch.polar(torch.ones_like(angle), angle)\n"
        "    return torch.view_as_real(z).flatten(-2)",
        FIXED + "    a = m[:, None].numpy() * (new - old).numpy()\n"
        "    k = keys.numpy().copy()\n"
        "    k[:, 0::2], k[:, 1::2] = (\n"
        "        k[:, 0::2] * np.cos(a) - k[:, 1::2] * np.sin(a),\n"
        "        k[:, 0::2] * np.sin(a) + k[:, 1::2] * np.cos(a))\n"
        "    return k",
    ],
}
