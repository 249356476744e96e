"""Seeded answers for lesson 10: misconceptions with their message, another solution."""

WRONG = {
    "10.1": [
        (
            "def first_collision(dtype):\n"
            "    m = torch.arange(5000)\n"
            "    return int((m.to(dtype).int() != m).nonzero()[0])",
            "the position that was rounded",
        ),
        (
            "def first_collision(dtype):\n    return 1 / torch.finfo(dtype).eps",
            "steps are 1 wide",
        ),
        (
            "def first_collision(dtype):\n    return torch.finfo(dtype).max",
            "Range is not precision",
        ),
        ("def first_collision(dtype):\n    return 256", "float16 keeps more bits"),
        ("def first_collision(dtype):\n    return 4000", "first equal pair"),
        (
            "def first_collision(dtype):\n"
            "    stored = torch.arange(5000).to(dtype)\n"
            "    return stored[:-1] == stored[1:]",
            "Expected one number",
        ),
    ],
    "10.2": [
        ('colliding = "BCDEF"', "closer than a step"),
        ('colliding = "BDF"', "cut off the bits"),
        ('colliding = "CEF"', "midway numbers up"),
        ('colliding = "ABEF"', "below 256"),
        ('colliding = "BF"', "either side of a power of two"),
        ('colliding = "EF"', "B: 301"),
        ('colliding = "BE"', "16 apart"),
        ('colliding = "BCEF"', "302 is stored exactly"),
        ('colliding = "BDEF"', "1028 is the middle"),
        ('colliding = "XYZ"', "from A to F"),
        ("colliding = 3", "with letters"),
    ],
    "10.3": [
        (
            "def steady(inv_freq):\n    return RotaryEmbedding(64)",
            "different speeds",
        ),
        (
            "def steady(inv_freq):\n"
            "    module = torch.nn.Module()\n"
            '    module.register_buffer("inv_freq", inv_freq)\n'
            "    return module",
            "A buffer is cast",
        ),
        (
            "def steady(inv_freq):\n"
            "    module = torch.nn.Module()\n"
            '    module.register_buffer("inv_freq", inv_freq, persistent=False)\n'
            "    return module",
            "persistent=False",
        ),
        (
            "def steady(inv_freq):\n"
            "    module = torch.nn.Module()\n"
            "    module.inv_freq = torch.nn.Parameter(inv_freq, requires_grad=False)\n"
            "    return module",
            "A parameter is cast",
        ),
        (
            "def steady(inv_freq):\n"
            "    class Wide(torch.nn.Module):\n"
            "        def __init__(self):\n"
            "            super().__init__()\n"
            '            self.register_buffer("speeds", inv_freq)\n'
            "        @property\n"
            "        def inv_freq(self):\n"
            "            return self.speeds.double()\n"
            "    return Wide()",
            "cannot bring them back",
        ),
        (
            "def steady(inv_freq):\n"
            "    class Guarded(torch.nn.Module):\n"
            "        def __init__(self):\n"
            "            super().__init__()\n"
            '            self.register_buffer("inv_freq", inv_freq)\n'
            "        def bfloat16(self):\n"
            "            return self\n"
            "        half = bfloat16\n"
            "    return Guarded()",
            "children's",
        ),
        (
            "def steady(inv_freq):\n"
            "    module = torch.nn.Module()\n"
            "    module.inv_freq = inv_freq.bfloat16()\n"
            "    return module",
            "on its way in",
        ),
        ("def steady(inv_freq):\n    return inv_freq", "Expected an nn.Module"),
        ("def steady(inv_freq):\n    return torch.nn.Module()", "no attribute"),
    ],
    "10.4": [
        (
            "def combine(m, fine, coarse):\n"
            "    a, b = m // 1024, m % 1024\n"
            "    (C, S), (c, s) = coarse, fine\n"
            "    return C[a], S[a]",
            "only by 1024 a",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    a, b = m // 1024, m % 1024\n"
            "    (C, S), (c, s) = coarse, fine\n"
            "    return c[b], s[b]",
            "only by b",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    a, b = m // 1024, m % 1024\n"
            "    (C, S), (c, s) = coarse, fine\n"
            "    return C[a] * c[b] - S[a] * s[b], S[a] * c[b] - C[a] * s[b]",
            "your sine is not",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    a, b = m // 1024, m % 1024\n"
            "    (C, S), (c, s) = coarse, fine\n"
            "    return torch.complex(C[a], S[a]) * torch.complex(c[b], s[b])",
            "two parts",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    a, b = m // 1024, m % 1024\n"
            "    return coarse[0][a] + fine[0][b], coarse[1][a] + fine[1][b]",
            "added the cosines",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    a, b = m // 1024, m % 1024\n"
            "    return coarse[0][a] * fine[0][b], coarse[1][a] * fine[1][b]",
            "A turn mixes the two",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    (C, S), (c, s) = coarse, fine\n"
            "    a, b = m // 1024, m % 1024\n"
            "    return C[a]*c[b] + S[a]*s[b], S[a]*c[b] - C[a]*s[b]",
            "turned back by b",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    (C, S), (c, s) = coarse, fine\n"
            "    a, b = m // 1024, m % 1024\n"
            "    return S[a]*c[b] + C[a]*s[b], C[a]*c[b] - S[a]*s[b]",
            "Sine and cosine are swapped",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    (C, S), (c, s) = coarse, fine\n"
            "    b, a = m // 1024, m % 1024\n"
            "    return C[a]*c[b] - S[a]*s[b], S[a]*c[b] + C[a]*s[b]",
            "a and b are swapped",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    angle = torch.tensor(float(m)) * inverse_frequencies(64).float()\n"
            "    return angle.cos(), angle.sin()",
            "the float32 angle again",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    return cos_sin(torch.tensor(m), inverse_frequencies(64))",
            "any bank",
        ),
        (
            "def combine(m, fine, coarse):\n    return fine[0], fine[1]",
            "two tensors of 32",
        ),
    ],
}

OTHER = {
    "10.1": """
def first_collision(dtype):
    return 2 / torch.finfo(dtype).eps
""",
    "10.2": 'colliding = ["f", "b", "e"]',
    "10.3": """
class Steady(torch.nn.Module):
    def __init__(self, inv_freq):
        super().__init__()
        self.register_buffer("inv_freq", inv_freq)

    def _apply(self, fn, recurse=True):
        self.inv_freq = self.inv_freq.to(fn(self.inv_freq).device)
        return self


def steady(inv_freq):
    return Steady(inv_freq)
""",
    "10.4": """
def combine(m, fine, coarse):
    a, b = divmod(m, 1024)
    turn = torch.complex(*(t[a] for t in coarse)) * torch.complex(*(t[b] for t in fine))
    return [turn.real, turn.imag]
""",
}
