"""Seeded answers for lesson 20: misconceptions with their message, another solution."""

SET_UP = """
from functools import partial
from rope_teach import frequencies
from rope_teach.identify import conversion, identify


def module_like(turn, **change):
    report = identify(turn)
    scaling = None
    if report.scaling:
        rule = getattr(frequencies, report.scaling)
        scaling = partial(rule, **report.parameters)
    return RotaryEmbedding(32, **{"base": report.base, "scaling": scaling, **change})


def order_like(turn):
    return conversion(identify(turn), identify(module_like(turn)))


def each(parts, reorder, **change):
    # all parts reordered by reorder(part, heads)
    heads = len(parts["bias"]) // 32
    moved = {"weight": reorder(parts["weight"], heads),
             "bias": reorder(parts["bias"], heads), "norm": reorder(parts["norm"], 1)}
    return {**moved, **change}
"""

BRING = "def bring_home(q, k, turn):\n"
HOME = BRING + "    order = order_like(turn).projection\n"

WRONG = {
    "20.1": [
        ('fixable = "A"', "B is missing"),
        ('fixable = "AB"', "F is missing"),
        ('fixable = "BF"', "A is missing"),
        ('fixable = "ABCF"', "different speeds"),
        ('fixable = "ABDF"', "16"),
        ('fixable = "ABEF"', "changes no length"),
        ('fixable = "ABG"', "from A to F"),
        ("fixable = 3", "with letters"),
    ],
    "20.2": [
        (
            "def cached_table(kept, make, start, seq, base):\n"
            "    if seq not in kept:\n"
            "        kept[seq] = make(start, seq, base)\n"
            "    return kept[seq]",
            "exhibit 7",
        ),
        (
            "def cached_table(kept, make, start, seq, base):\n"
            "    if (start, base) not in kept:\n"
            "        kept[start, base] = make(start, seq, base)\n"
            "    return kept[start, base]",
            "The length is missing",
        ),
        (
            "def cached_table(kept, make, start, seq, base):\n"
            "    if (start, seq) not in kept:\n"
            "        kept[start, seq] = make(start, seq, base)\n"
            "    return kept[start, seq]",
            "The base is missing",
        ),
        (
            "def cached_table(kept, make, start, seq, base):\n"
            "    return make(start, seq, base)",
            "Is the result stored in kept",
        ),
        (
            "def cached_table(kept, make, start, seq, base):\n"
            "    return kept.setdefault((start, seq, base), make(start, seq, base))",
            "Is the result stored in kept",
        ),
        (
            "def cached_table(kept, make, start, seq, base):\n"
            "    key = f'{start}{seq}{base}'\n"
            "    if key not in kept:\n"
            "        kept[key] = make(start, seq, base)\n"
            "    return kept[key]",
            "digits joined",
        ),
        (
            "def cached_table(kept, make, start, seq, base):\n"
            "    key = start + seq + base\n"
            "    if key not in kept:\n"
            "        kept[key] = make(start, seq, base)\n"
            "    return kept[key]",
            "neither a sum",
        ),
        (
            "ALL = {}\n"
            "def cached_table(kept, make, start, seq, base):\n"
            "    if (start, seq, base) not in ALL:\n"
            "        ALL[start, seq, base] = make(start, seq, base)\n"
            "    return ALL[start, seq, base]",
            "Two models have two dicts",
        ),
    ],
    "20.3": [
        (
            "def base_and_factor(turn):\n"
            "    x = torch.zeros(2, 64)\n"
            "    x[1, :2] = 1\n"
            "    out = turn(x, torch.tensor([0, 1]))[1]\n"
            "    a, b = torch.atan2(out[32:34], out[:2])\n"
            "    return (a / b) ** 64, 1 / a",
            "as its square",
        ),
        (
            "def base_and_factor(turn):\n"
            "    x = torch.zeros(2, 64)\n"
            "    x[1, :2] = 1\n"
            "    out = turn(x, torch.tensor([0, 1]))[1]\n"
            "    a, b = torch.atan2(out[32:34], out[:2])\n"
            "    return b ** -32, 1 / a",
            "speed 1 alone",
        ),
        (
            "def base_and_factor(turn):\n"
            "    x = torch.zeros(2, 64)\n"
            "    x[1, :2] = 1\n"
            "    out = turn(x, torch.tensor([0, 1]))[1]\n"
            "    a, b = torch.atan2(out[32:34], out[:2])\n"
            "    return (a / b) ** 32, a",
            "the speed of hand 0",
        ),
        (
            "def base_and_factor(turn):\n"
            "    x = torch.zeros(2, 64)\n"
            "    x[1, :2] = 1\n"
            "    out = turn(x, torch.tensor([0, 1]))[1]\n"
            "    a, b = torch.atan2(out[32:34], out[:2])\n"
            "    return (a / b) ** 32, 1",
            "you gave 1",
        ),
        (
            "def base_and_factor(turn):\n"
            "    x = torch.zeros(2, 64)\n"
            "    x[1, :2] = 1\n"
            "    out = turn(x, torch.tensor([0, 1]))[1]\n"
            "    a, b = torch.atan2(out[32:34], out[:2])\n"
            "    return (b / a) ** 32, 1 / a",
            "faster speed by the slower",
        ),
        (
            "def base_and_factor(turn):\n"
            "    x = torch.zeros(2, 64)\n"
            "    x[1, :2] = 1\n"
            "    out = turn(x, torch.tensor([0, 1]))[1]\n"
            "    a, b = torch.atan2(out[32:34], out[:2])\n"
            "    return a / b, 1 / a",
            "not the base",
        ),
        (
            "def base_and_factor(turn):\n"
            "    x = torch.zeros(2, 64)\n"
            "    x[1, [0, 2]] = 1\n"
            "    out = turn(x, torch.tensor([0, 1]))[1]\n"
            "    a, b = torch.atan2(out[[1, 3]], out[[0, 2]])\n"
            "    return (a / b) ** 32, 1 / a",
            "feature 32, not 1",
        ),
        ("def base_and_factor(turn):\n    return 10_000, 1", "read the base as 10,000"),
        (
            "def base_and_factor(turn):\n"
            "    r = identify(turn)\n"
            '    return r.base, r.parameters.get("factor", 1.0)',
            "do without identify",
        ),
        (
            "def base_and_factor(turn):\n"
            "    x = torch.zeros(2, 64)\n"
            "    x[1, [0, 2]] = 1\n"
            "    out = turn(x, torch.tensor([0, 1]))[1]\n"
            "    a, b = torch.atan2(out[[1, 3]], out[[0, 2]])\n"
            "    return 1 / b, 1 / a",
            "infinite",
        ),
        (
            "def base_and_factor(turn):\n"
            "    x = torch.zeros(1, 64)\n"
            "    x[0, :2] = 1\n"
            "    out = turn(x, torch.tensor([100]))[0]\n"
            "    a, b = torch.atan2(out[32:34], out[:2]) / 100\n"
            "    return (a / b).abs() ** 32, 1 / a",
            "past half a turn",
        ),
        (
            "def base_and_factor(turn):\n"
            "    x = torch.zeros(1, 64)\n"
            "    x[0, [0, 31]] = 1\n"
            "    out = turn(x, torch.tensor([1]))[0]\n"
            "    a, b = out[[0, 31]].acos()\n"
            "    return (a / b) ** (32 / 31), 1 / a",
            "acos",
        ),
        (
            "def base_and_factor(turn):\n"
            "    x = torch.zeros(2, 64)\n"
            "    x[1, :2] = 1\n"
            "    out = turn(x, torch.tensor([0, 1]))[1]\n"
            "    a, b = torch.atan2(out[32:34], out[:2])\n"
            "    return 1 / a, (a / b) ** 32",
            "swapped",
        ),
        ("def base_and_factor(turn):\n    return 10_000", "two numbers"),
    ],
    "20.4": [
        (BRING + "    return q, k, module_like(turn)", "came back unchanged"),
        (
            BRING + "    return q, k, RotaryEmbedding(32, base=identify(turn).base)",
            "the scaling is not",
        ),
        (BRING + "    return q, k, RotaryEmbedding(32)", "the base is different"),
        (
            BRING + '    return q, k, module_like(turn, pairing="half")',
            "Ours is interleaved",
        ),
        (
            BRING + "    speeds = torch.tensor(identify(turn).inv_freq)\n"
            "    return q, k, RotaryEmbedding(32, inv_freq=speeds)",
            "YaRN supplies its factor",
        ),
        (
            BRING + "    speeds = -torch.tensor(identify(turn).inv_freq)\n"
            "    return q, k, RotaryEmbedding(32, inv_freq=speeds)",
            "negative speeds turn clockwise",
        ),
        (HOME + "    return each(q, order), k, module_like(turn)", "W_k is not"),
        (HOME + "    return q, each(k, order), module_like(turn)", "W_q is not"),
        (
            HOME + "    return (each(q, order, bias=q['bias']), each(k, order),\n"
            "            module_like(turn))",
            "but its bias is not",
        ),
        (
            HOME + "    return (each(q, order), each(k, order, norm=k['norm']),\n"
            "            module_like(turn))",
            "but its norm is not",
        ),
        (
            HOME + "    none = torch.zeros(64)\n"
            "    return (each(q, order), each(k, order, bias=none),\n"
            "            module_like(turn))",
            "but its bias is not",
        ),
        (
            HOME + "    ones = torch.ones(32)\n"
            "    return (each(q, order, norm=ones), each(k, order, norm=ones),\n"
            "            module_like(turn))",
            "but its norm is not",
        ),
        (
            HOME + "    only = {'weight': order(q['weight'], 8)}\n"
            "    return only, each(k, order), module_like(turn)",
            "a dict like the old one",
        ),
        (
            HOME + "    return (each(q, order, norm=q['norm'][:16]), each(k, order),\n"
            "            module_like(turn))",
            "must keep its shape",
        ),
        (
            BRING + "    def home(w, heads):\n"
            "        pairing = identify(turn).pairing\n"
            '        return convert_projection(w, heads, pairing, "interleaved")\n'
            "    return each(q, home), each(k, home), module_like(turn)",
            "turn goes clockwise",
        ),
        (
            BRING + "    def home(w, heads):\n"
            "        return w.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)\n"
            "    return each(q, home), each(k, home), module_like(turn)",
            "half pairs, and your weights still have",
        ),
        (
            BRING + "    def home(w, heads):\n"
            '        return convert_projection(w, heads, "interleaved", "half")\n'
            "    return each(q, home), each(k, home), module_like(turn)",
            "from interleaved to half",
        ),
        (
            BRING + "    back = conversion(identify(module_like(turn)),\n"
            "                      identify(turn)).projection\n"
            "    return each(q, back), each(k, back), module_like(turn)",
            "Which direction",
        ),
        (
            HOME + "    def home(w, heads):\n"
            "        heads = 8 if heads == 2 else heads\n"
            '        w = convert_projection(w, heads, "half", "interleaved")\n'
            "        return w.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)\n"
            "    return each(q, home), each(k, home), module_like(turn)",
            "cut into 8 heads",
        ),
        (BRING + "    return q, k", "three values"),
        (BRING + "    return q, k, turn", "must be a RotaryEmbedding"),
    ],
}

OTHER = {
    "20.1": 'fixable = ["b", "f", "a"]',
    "20.2": """
def cached_table(kept, make, start, seq, base):
    tables = kept.setdefault(base, {}).setdefault(seq, {})
    if start not in tables:
        tables[start] = make(start, seq, base)
    return tables[start]
""",
    "20.3": """
def base_and_factor(turn):
    x = torch.zeros(3, 64, dtype=torch.float64)
    x[2, 0] = x[2, 16] = 1
    out = turn(x, torch.tensor([0, 1, 2]))[2]
    fast = math.atan2(out[32], out[0]) / 2
    middle = math.atan2(out[48], out[16]) / 2
    return [(fast / middle) ** 2, 1 / fast]
""",
    "20.4": [
        """
def bring_home(q, k, turn):
    report = identify(turn)
    first, second = torch.tensor(report.pairs).T
    if report.sign < 0:
        first, second = second, first
    order = torch.stack([first, second], dim=1).flatten()
    one = torch.zeros(1, 32).index_fill(1, torch.tensor([0]), 1)
    length = turn(one, torch.tensor([0])).norm()  # YaRN's factor, into the gains
    def home(parts):
        return {"weight": parts["weight"].view(-1, 32, 64)[:, order].reshape(-1, 64),
                "bias": parts["bias"].view(-1, 32)[:, order].flatten().numpy(),
                "norm": (parts["norm"] * length)[order].double()}
    rope = RotaryEmbedding(32, inv_freq=torch.tensor(report.inv_freq))
    return home(q), home(k), rope
""",
        """
def bring_home(q, k, turn):
    rope = module_like(turn)
    order = list(order_like(turn).permutation)
    def home(parts):
        rows = [32 * (n // 32) + order[n % 32] for n in range(len(parts["bias"]))]
        return {"bias": parts["bias"][rows].tolist(), "norm": parts["norm"][order],
                "weight": torch.stack([parts["weight"][row] for row in rows])}
    return [home(q), home(k), rope]
""",
    ],
}
