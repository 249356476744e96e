"""Seeded answers for lesson 08: misconceptions with their message, another solution."""

WAVELENGTH = "def wavelength(i, rotary_dim, base):\n    "
BASE = "def smallest_base(rotary_dim, context):\n    "
QUERY = "def query_for(key, distance):\n    inv_freq = inverse_frequencies(128)\n    "
TABLE = "cos, sin = cos_sin(torch.tensor(distance), inv_freq, key.dtype)\n    "
TERRITORY = """
def new_territory(config, length):
    trained, base = config["max_position_embeddings"], config["rope_theta"]
    dim = int(config["head_dim"] * config["partial_rotary_factor"])
    turn = wavelengths(inverse_frequencies(dim, base)).tolist()
"""
HOLDS = """
def first_that_holds(bases, rotary_dim, context):
    def mean(base, m):
        inv_freq = inverse_frequencies(rotary_dim, base)
        return angles(m, inv_freq).cos().mean(-1)
    everywhere = torch.arange(context)
"""

WRONG = {
    "8.1": [
        (WAVELENGTH + "return base ** (-2 * i / rotary_dim)", "its speed"),
        (WAVELENGTH + "return base ** (2 * i / rotary_dim)", "turned by 1 radian"),
        (
            WAVELENGTH + "return 2 * math.pi * base ** (-2 * i / rotary_dim)",
            "divide by the speed",
        ),
        (WAVELENGTH + "return 2 * math.pi * base ** (i / rotary_dim)", "not i/d"),
        (WAVELENGTH + "return 2 * math.pi * base", "tokens; you gave"),
    ],
    "8.2": [
        (BASE + "return context / (2 * math.pi)", "hand d/2 - 1"),
        (
            BASE + "return context ** (rotary_dim / (rotary_dim - 2))",
            "left out the 2π",
        ),
        (BASE + "return context", "left out the 2π"),
        (
            BASE + "return (context / 2 / math.pi) ** (1 - 2 / rotary_dim)",
            "upside down",
        ),
        (BASE + "return 10_000", "brings the slowest hand round"),
        (BASE + "return -context", "is positive"),
    ],
    "8.3": [
        (QUERY + "return key", "the key itself"),
        (QUERY + TABLE + "return rotate(key, cos, -sin)", "key backwards"),
        (QUERY + TABLE + 'return rotate(key, cos, sin, "half")', "half pairs"),
        (
            QUERY + "cos, sin = cos_sin(torch.tensor(distance - 1), inv_freq)\n"
            "    return rotate(key, cos, sin)",
            "scores highest at 36",
        ),
        (QUERY + "return key[:64]", "must have shape"),
    ],
    "8.4": [
        (
            TERRITORY + "    if length <= trained:\n        return []\n"
            "    return [i for i, t in enumerate(turn) if t <= trained]",
            "listed the fast hands",
        ),
        (
            TERRITORY + "    return [i for i, t in enumerate(turn) if t > trained]",
            "no longer than the trained length",
        ),
        (
            TERRITORY
            + '    turn = wavelengths(inverse_frequencies(config["head_dim"], '
            "base)).tolist()\n"
            "    return [i for i, t in enumerate(turn) if t > trained]",
            "only 32 of 64 features",
        ),
        (
            TERRITORY + "    return [i for i, t in enumerate(turn) if t > length]",
            "compared with the new length",
        ),
        (
            TERRITORY + "    return [i for i, t in enumerate(turn)\n"
            "            if t / (2 * math.pi) > trained]",
            "compared 1/θ",
        ),
        (
            TERRITORY + "    return [i for i, t in enumerate(turn)\n"
            "            if trained < t <= length]",
            "left out the hands",
        ),
        (
            TERRITORY + "    return torch.tensor(turn) > trained",
            "True or False",
        ),
        (TERRITORY + "    return [t > trained for t in turn]", "True or False"),
        (TERRITORY + "    return [t + 0.5 for t in turn]", "speeds or wavelengths"),
        (TERRITORY + "    return range(dim)", "the answer is hands"),
        (TERRITORY + "    return len(turn)", "list of hands"),
    ],
    "8.5": [
        (
            HOLDS + "    return min(b for b in bases\n"
            "               if mean(b, torch.tensor(context - 1)) >= 0)",
            "dips below zero at distance",
        ),
        (HOLDS + "    return max(bases)", "is smaller and holds too"),
        (
            HOLDS + "    best = max(bases)\n"
            "    for base in sorted(bases, reverse=True):\n"
            "        if mean(base, everywhere).min() < 0:\n"
            "            return best\n"
            "        best = base\n"
            "    return best",
            "says nothing about the smaller ones",
        ),
        (HOLDS + "    return 1_000_000", "does not hold"),
        (HOLDS + "    return 10_000", "is not one of"),
    ],
}

OTHER = {
    "8.1": """
def wavelength(i, rotary_dim, base):
    return wavelengths(inverse_frequencies(rotary_dim, base))[i]
""",
    "8.2": """
def smallest_base(rotary_dim, context):
    low, high = 1.0, float(context) ** 2
    for _ in range(200):
        middle = math.sqrt(low * high)
        slowest = wavelengths(inverse_frequencies(rotary_dim, middle))[-1]
        low, high = (middle, high) if slowest < context else (low, middle)
    return high
""",
    "8.3": """
def query_for(key, distance):
    a, b = key[0::2], key[1::2]
    angle = distance * inverse_frequencies(128)
    first = a * angle.cos() - b * angle.sin()
    second = a * angle.sin() + b * angle.cos()
    return 3 * torch.stack([first, second], dim=-1).flatten()
""",
    "8.4": """
def new_territory(config, length):
    dim = round(config["head_dim"] * config["partial_rotary_factor"])
    speed = inverse_frequencies(dim, config["rope_theta"])
    trained = config["max_position_embeddings"]
    still_turning = (trained * speed < 2 * math.pi) & (length > trained)
    return still_turning.nonzero()
""",
    "8.5": """
def first_that_holds(bases, rotary_dim, context):
    good = []
    for base in bases:
        cos, _ = cos_sin(torch.arange(context), inverse_frequencies(rotary_dim, base))
        if not (cos.sum(-1) < 0).any():
            good.append(base)
    return torch.tensor(min(good))
""",
}
