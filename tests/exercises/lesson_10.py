"""Seeded answers for lesson 10: misconceptions with their message, another solution."""

REVIEWED = True

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
        (
            "def first_collision(dtype):\n"
            "    stored = torch.arange(1000).to(dtype)\n"
            "    return int((stored[:-1] == stored[1:]).nonzero()[0])",
            "For float16, where positions collide later",
        ),
        (
            "def first_collision(dtype):\n"
            "    for m in range(1000):\n"
            "        a, b = torch.tensor([m, m + 1]).to(dtype)\n"
            "        if a == b:\n"
            "            return m",
            "For torch.float16 your function returns nothing",
        ),
        (
            "def first_collision(dtype):\n"
            "    low, high = 0, 5000\n"
            "    while low < high:\n"
            "        m = (low + high) // 2\n"
            "        a, b = torch.tensor([m, m + 1]).to(dtype)\n"
            "        low, high = (low, m) if a == b else (m + 1, high)\n"
            "    return low",
            "stores 303 as 304, and 304 as 304",
        ),
        (
            "def first_collision(dtype):\n"
            "    return len(torch.arange(5000).to(dtype).unique())",
            "stores 797 as 796, and 798 as 800",
        ),
        (
            "def first_collision(dtype):\n"
            "    stored = torch.arange(5000).to(dtype)\n"
            "    return int((stored[:-1] == stored[1:]).nonzero()[-1])",
            "stores 4998 as 4992",
        ),
        (
            "def first_collision(dtype):\n"
            "    stored = torch.arange(1, 5000).to(dtype)\n"
            "    return int((stored[:-1] == stored[1:]).nonzero()[0])",
            "stores 255 as 255, and 256 as 256",
        ),
    ],
    "10.2": [
        ('colliding = "BCDEF"', "are all closer than a step"),
        ('colliding = "BDF"', "if the surplus bits were cut off"),
        ('colliding = "CEF"', "if midway numbers were rounded up"),
        ('colliding = "ABEF"', "below 256"),
        ('colliding = "BF"', "either side of a power of two"),
        ('colliding = "EF"', "B: 301"),
        ('colliding = "BE"', "16 apart"),
        ('colliding = "BCEF"', "302 is stored exactly"),
        ('colliding = "BDEF"', "1028 is the middle"),
        ('colliding = "XYZ"', "from A to F"),
        ("colliding = 3", "with letters"),
        ("colliding = [301, 302]", "with letters"),
        ('colliding = ""', "with letters"),
        ('colliding = "ABCDEF"', "below 256"),
        ('colliding = "F"', "either side of a power of two"),
        ('colliding = "CDEF"', "B: 301"),
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
            "inv_freq has type torch.bfloat16",
        ),
        ("def steady(inv_freq):\n    return inv_freq", "Expected an nn.Module"),
        ("def steady(inv_freq):\n    return torch.nn.Module", "got type"),
        (
            "def steady(inv_freq):\n"
            "    module = torch.nn.Module()\n"
            "    module.inv_freq = inv_freq.tolist()\n"
            "    return module",
            "of type list",
        ),
        (
            "def steady(inv_freq):\n"
            "    module = torch.nn.Module()\n"
            "    module.inv_freq = inv_freq.float()\n"
            "    return module",
            "Digits are missing before any cast: inv_freq has type torch.float32",
        ),
        (
            "def steady(inv_freq):\n"
            "    module = torch.nn.Module()\n"
            "    module.inv_freq = inverse_frequencies(64)\n"
            "    return module",
            "different speeds",
        ),
        (
            "def steady(inv_freq):\n"
            "    class Method(torch.nn.Module):\n"
            "        def inv_freq(self):\n"
            "            return inv_freq\n"
            "    return Method()",
            "of type method",
        ),
        (
            "def steady(inv_freq):\n"
            "    module = torch.nn.Module()\n"
            "    module.inv_freq = inv_freq.flip(0)\n"
            "    return module",
            "different speeds",
        ),
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
            "At hand 0 it should be",
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
        (
            "def combine(m, fine, coarse):\n"
            "    a, b = m // 1024, m % 1024\n"
            "    (C, S), (c, s) = coarse, fine\n"
            "    cos = C[a] * c[b] - S[a] * s[b]\n"
            "    return cos, (1 - cos ** 2).clamp(0).sqrt()",
            "your cosine is right, but your sine is not",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    a, b = divmod(m, 1000)\n"
            "    (C, S), (c, s) = coarse, fine\n"
            "    return C[a] * c[b] - S[a] * s[b], S[a] * c[b] + C[a] * s[b]",
            "you are off by up to 2",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    a, b = m // 1024, min(m % 1024, 600)\n"
            "    (C, S), (c, s) = coarse, fine\n"
            "    return C[a] * c[b] - S[a] * s[b], S[a] * c[b] + C[a] * s[b]",
            "At position 5,000 you are off",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    a, b = m // 1024, m % 1024\n"
            "    (C, S), (c, s) = coarse, fine\n"
            "    S[a] *= -1\n"
            "    return C[a] * c[b] + S[a] * s[b], C[a] * s[b] - S[a] * c[b]",
            "changed coarse",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    a, b = m // 1024, m % 1024\n"
            "    C, S, c, s = (t.bfloat16() for t in (*coarse, *fine))\n"
            "    return C[a] * c[b] - S[a] * s[b], S[a] * c[b] + C[a] * s[b]",
            "are off by less than 1e-6",
        ),
        (
            "def combine(m, fine, coarse):\n"
            "    angle = m * torch.atan2(fine[1][1], fine[0][1])\n"
            "    return angle.cos(), angle.sin()",
            "you are off by up to",
        ),
    ],
}

OTHER = {
    "10.1": [
        """
def first_collision(dtype):
    return 2 / torch.finfo(dtype).eps
""",
        """
def first_collision(dtype):
    m = torch.tensor(0)
    while m.to(dtype) != (m + 1).to(dtype):
        m += 1
    return m
""",
        """
def first_collision(dtype):
    steps = torch.arange(3000).to(dtype).float().diff()
    return [steps.eq(0).int().argmax()]
""",
    ],
    "10.2": [
        'colliding = ["f", "b", "e"]',
        'colliding = "B, E and F."',
        'colliding = {"F", "E", "B"}',
    ],
    "10.3": [
        """
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
        """
def steady(inv_freq):
    class Recomputed(torch.nn.Module):
        inv_freq = property(lambda self: inv_freq.clone())
    return Recomputed()
""",
        """
def steady(inv_freq):
    module = torch.nn.Linear(2, 2)
    object.__setattr__(module, "inv_freq", inv_freq)
    return module
""",
    ],
    "10.4": [
        """
def combine(m, fine, coarse):
    a, b = divmod(m, 1024)
    turn = torch.complex(*(t[a] for t in coarse)) * torch.complex(*(t[b] for t in fine))
    return [turn.real, turn.imag]
""",
        """
import numpy as np

def combine(m, fine, coarse):
    cos_b, sin_b = (np.asarray(table)[m % 1024] for table in fine)
    cos_a, sin_a = (np.asarray(table)[m // 1024] for table in coarse)
    return np.stack([cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b])
""",
        """
def combine(m, fine, coarse):
    a, b = (torch.atan2(table[1][row].double(), table[0][row].double())
            for table, row in ((coarse, m // 1024), (fine, m % 1024)))
    return (a + b).cos().float(), (a + b).sin().float()
""",
    ],
}
