"""Seeded answers for lesson 08: misconceptions with their message, another solution."""

REVIEWED = True

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
        (WAVELENGTH + "return 360 * base ** (2 * i / rotary_dim)", "were 360"),
        (
            WAVELENGTH + "return 2 * math.pi * base ** (2 * i // rotary_dim)",
            "needs 198.692 tokens; you gave 6.283",
        ),
        (
            WAVELENGTH + "return 2 * math.pi * base ** (2 * i / (rotary_dim - 2))",
            "tokens; you gave 325",
        ),
        (
            WAVELENGTH + "return 2 * math.pi * 10_000 ** (2 * i / rotary_dim)",
            "base 500,000 needs",
        ),
        (
            WAVELENGTH + "return 6.28 * base ** (2 * i / rotary_dim)",
            "needs 198.692 tokens; you gave 198.591",
        ),
        (
            WAVELENGTH + "return [2 * math.pi * base ** (2 * j / rotary_dim)\n"
            "            for j in range(i)]",
            "Expected one number",
        ),
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
        (
            BASE + "return (context / 2 / math.pi) ** (1 + 2 / rotary_dim)",
            "round after 3,702 tokens",
        ),
        (
            BASE + "return (context / math.pi) ** (rotary_dim / (rotary_dim - 2))",
            "round after 8,192 tokens",
        ),
        (
            BASE + "return (context * 2 * math.pi) ** (rotary_dim / (rotary_dim - 2))",
            "round after 161,704 tokens",
        ),
        (
            BASE + "return (context / 2 / math.pi) ** (8 / 7)",
            "rotary_dim=128 and a context of 131072",
        ),
        (
            BASE + "return 1.02 * (context / 2 / math.pi) "
            "** (rotary_dim / (rotary_dim - 2))",
            "brings the slowest hand round after",
        ),
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
        (QUERY + "return 2 * key", "scores highest at 0"),
        (QUERY + TABLE + "return -rotate(key, cos, sin)", "For distance 37"),
        (QUERY + TABLE + "return rotate(key, cos, sin).flip(0)", "For distance 37"),
        (
            QUERY + "cos, sin = cos_sin(torch.tensor(37), inv_freq)\n"
            "    return rotate(key, cos, sin)",
            "For distance 1500 your query scores highest at 37",
        ),
        (
            QUERY + "cos, sin = cos_sin(torch.tensor(min(distance, 2047)), inv_freq)\n"
            "    return rotate(key, cos, sin)",
            "For distance 4095 your query scores highest at 2047",
        ),
        (
            QUERY
            + "inv_freq = inverse_frequencies(128, 500_000)\n    "
            + TABLE
            + "return rotate(key, cos, sin)",
            "For distance 37",
        ),
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
        (
            TERRITORY + "    return [i for i, t in enumerate(turn)\n"
            "            if t > trained and length > trained][:-1]",
            "you gave 17, from 46 to 62",
        ),
        (
            TERRITORY + "    return [i + 1 for i, t in enumerate(turn)\n"
            "            if t > trained and length > trained]",
            "from 47 to 64",
        ),
        (
            TERRITORY + "    return [i for i, t in enumerate(turn)\n"
            "            if t > trained and length > trained][::-1]",
            "not fastest first",
        ),
        (
            TERRITORY + "    turn = wavelengths(inverse_frequencies(dim)).tolist()\n"
            "    return [i for i, t in enumerate(turn) if t > trained < length]",
            "the answer is hands 8 to 15",
        ),
        (
            TERRITORY + "    if length > trained:\n"
            "        return [i for i, t in enumerate(turn) if t > trained]",
            "return an empty list",
        ),
        (
            TERRITORY + "    return [i for i, t in enumerate(turn)\n"
            "            if t > trained and length > trained + 1]",
            "1,025 tokens the answer is",
        ),
        (TERRITORY + "    return len(turn)", "list of hands"),
    ],
    "8.5": [
        (
            HOLDS + "    return min(b for b in bases\n"
            "               if mean(b, torch.tensor(context - 1)) >= 0)",
            "but below zero at distance",
        ),
        (HOLDS + "    return max(bases)", "is smaller and holds too"),
        (
            HOLDS + "    best = max(bases)\n"
            "    for base in sorted(bases, reverse=True):\n"
            "        if mean(base, everywhere).min() < 0:\n"
            "            return best\n"
            "        best = base\n"
            "    return best",
            "its lowest mean at distances",
        ),
        (HOLDS + "    return 1_000_000", "below zero at distance 6,235"),
        (HOLDS + "    return 10_000", "is not one of"),
        (
            HOLDS + "    bases = sorted(bases)\n"
            "    low, high = 0, len(bases) - 1\n"
            "    while low < high:\n"
            "        middle = (low + high) // 2\n"
            "        if mean(bases[middle], everywhere).min() >= 0:\n"
            "            high = middle\n"
            "        else:\n"
            "            low = middle + 1\n"
            "    return bases[low]",
            "500,000 is smaller and holds too",
        ),
        (
            HOLDS + "    return next(b for b in sorted(bases)\n"
            "                if mean(b, torch.arange(context + 1)).min() >= 0)",
            "1,000,000 is smaller and holds too",
        ),
        (
            HOLDS + "    return next(b for b in sorted(bases)\n"
            "                if mean(b, torch.arange(context - 1)).min() >= 0)",
            "at distance 6,235 its mean is",
        ),
        (
            HOLDS + "    return next(b for b in sorted(bases)\n"
            "                if mean(b, everywhere[::10]).min() >= 0)",
            "but below zero at distance 6,235",
        ),
        (
            HOLDS + "    return next(b for b in bases\n"
            "                if mean(b, everywhere).min() >= 0)",
            "is smaller and holds too",
        ),
        (
            HOLDS + "    return next(b for b in sorted(bases)\n"
            "                if mean(b, everywhere).min() >= -0.01)",
            "at distance 6,462 its mean is",
        ),
        (
            HOLDS + "    return [b for b in sorted(bases)\n"
            "            if mean(b, everywhere).min() >= 0]",
            "Expected one number, got 2",
        ),
        (
            HOLDS + "    return next(b for b in sorted(bases)\n"
            "                if mean(b, everywhere[context // 2 :]).min() >= 0)",
            "base 10,000 is above zero at the last distance, 183",
        ),
    ],
}

OTHER = {
    "8.1": [
        """
def wavelength(i, rotary_dim, base):
    return wavelengths(inverse_frequencies(rotary_dim, base))[i]
""",
        """
import numpy as np

def wavelength(i, rotary_dim, base):
    return np.float32(np.exp(np.log(2 * np.pi) + 2 * i / rotary_dim * np.log(base)))
""",
        """
def wavelength(i, rotary_dim, base):
    tokens = 2 * math.pi
    for _ in range(i):
        tokens *= base ** (2 / rotary_dim)
    return [tokens]
""",
    ],
    "8.2": [
        """
def smallest_base(rotary_dim, context):
    low, high = 1.0, float(context) ** 2
    for _ in range(200):
        middle = math.sqrt(low * high)
        slowest = wavelengths(inverse_frequencies(rotary_dim, middle))[-1]
        low, high = (middle, high) if slowest < context else (low, middle)
    return high
""",
        """
def smallest_base(rotary_dim, context):
    turns = torch.tensor(context / math.tau, dtype=torch.float32)
    return (turns.log() / (1 - 2 / rotary_dim)).exp()
""",
        """
def smallest_base(rotary_dim, context):
    return math.ceil((context / math.tau) ** (1 / (1 - 2 / rotary_dim)))
""",
    ],
    "8.3": [
        """
def query_for(key, distance):
    a, b = key[0::2], key[1::2]
    angle = distance * inverse_frequencies(128)
    first = a * angle.cos() - b * angle.sin()
    second = a * angle.sin() + b * angle.cos()
    return 3 * torch.stack([first, second], dim=-1).flatten()
""",
        """
def query_for(key, distance):
    hands = torch.view_as_complex(key.view(-1, 2).float())
    turn = torch.polar(torch.ones(64), (distance * inverse_frequencies(128)).float())
    return torch.view_as_real(hands * turn).flatten().tolist()
""",
        """
def query_for(key, distance):
    return rotate(key, *cos_sin(torch.tensor(distance), inverse_frequencies(128),
                                torch.float64)).numpy()
""",
    ],
    "8.4": [
        """
def new_territory(config, length):
    dim = round(config["head_dim"] * config["partial_rotary_factor"])
    speed = inverse_frequencies(dim, config["rope_theta"])
    trained = config["max_position_embeddings"]
    still_turning = (trained * speed < 2 * math.pi) & (length > trained)
    return still_turning.nonzero()
""",
        """
import numpy as np

def new_territory(config, length):
    dim = int(config["head_dim"] * config["partial_rotary_factor"])
    turn = 2 * np.pi * config["rope_theta"] ** (2 * np.arange(dim // 2) / dim)
    trained = config["max_position_embeddings"]
    return np.flatnonzero((turn > trained) & (length > trained))
""",
        """
def new_territory(config, length):
    dim = int(config["head_dim"] * config["partial_rotary_factor"])
    trained = config["max_position_embeddings"]
    if length <= trained:
        return ()
    exponent = math.log(trained / math.tau) / math.log(config["rope_theta"])
    return range(math.ceil(exponent * dim / 2), dim // 2)
""",
    ],
    "8.5": [
        """
def first_that_holds(bases, rotary_dim, context):
    good = []
    for base in bases:
        cos, _ = cos_sin(torch.arange(context), inverse_frequencies(rotary_dim, base))
        if not (cos.sum(-1) < 0).any():
            good.append(base)
    return torch.tensor(min(good))
""",
        """
import numpy as np

def first_that_holds(bases, rotary_dim, context):
    bases.sort()
    for base in bases:
        speeds = base ** (-2 * np.arange(rotary_dim // 2) / rotary_dim)
        if (np.cos(np.outer(np.arange(context), speeds)).sum(1) >= 0).all():
            return float(base)
""",
    ],
}
