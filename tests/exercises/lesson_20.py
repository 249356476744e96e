"""Seeded answers for lesson 20: misconceptions with their message, another solution."""

REVIEWED = True

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

CACHED = "def cached_table(kept, make, start, seq, base):\n    "
ASKED = """
def base_and_factor(turn):
    x = torch.zeros(2, 64, dtype=torch.float64)
    x[1, :2] = 1
    out = turn(x, torch.tensor([0, 1]))[1]
    a, b = torch.atan2(out[32:34], out[:2])
    return """
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
        ("fixable = [0, 1, 5]", "with letters"),
        ('fixable = {"A": True, "B": True, "C": False, "F": True}', "with letters"),
        ('fixable = "A and B"', "F is missing"),
        ('fixable = ["AB", "X"]', "you gave X"),
        ('fixable = "not c"', "you gave N, O, T"),
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
        (
            CACHED + "key = (start, seq, int(base))\n"
            "    if key not in kept:\n"
            "        kept[key] = make(start, seq, base)\n"
            "    return kept[key]",
            "The base is missing from the key, or does not enter it as it is",
        ),
        (
            CACHED + "key = f'{start},{seq},{base:g}'\n"
            "    if key not in kept:\n"
            "        kept[key] = make(start, seq, base)\n"
            "    return kept[key]",
            "The base is missing",
        ),
        (
            CACHED + "key = (abs(start), seq, base)\n"
            "    if key not in kept:\n"
            "        kept[key] = make(start, seq, base)\n"
            "    return kept[key]",
            "Only the offset tells them apart",
        ),
        (
            CACHED + "key = (start, seq, base)\n"
            "    if key not in kept and len(kept) < 128:\n"
            "        kept[key] = make(start, seq, base)\n"
            "    return kept[key] if key in kept else make(start, seq, base)",
            "does it stay there",
        ),
        (
            CACHED + "key = hash((start, seq, base))\n"
            "    if key not in kept:\n"
            "        kept[key] = make(start, seq, base)\n"
            "    return kept[key]",
            "does not enter it as it is",
        ),
        (
            CACHED + "key = frozenset((start, seq, base))\n"
            "    if key not in kept:\n"
            "        kept[key] = make(start, seq, base)\n"
            "    return kept[key]",
            "they share one key",
        ),
        (
            CACHED + "if (start, base) not in kept or "
            "len(kept[start, base]) < seq:\n"
            "        kept[start, base] = make(start, seq, base)\n"
            "    return kept[start, base][:seq]",
            "other than the table that make returned",
        ),
        (
            CACHED + "key = (start, seq, base)\n"
            "    if key in kept:\n"
            "        return kept.pop(key)\n"
            "    kept[key] = make(start, seq, base)\n"
            "    return kept[key]",
            "does it stay there",
        ),
        (
            CACHED + "key = (start, seq, base)\n"
            "    if key not in kept:\n"
            "        if len(kept) > 3:\n"
            "            kept.clear()\n"
            "        kept[key] = make(start, seq, base)\n"
            "    return kept[key]",
            "does it stay there",
        ),
        (
            CACHED + "if (seq, base) not in kept.get(start, {}):\n"
            "        kept[start] = {(seq, base): make(start, seq, base)}\n"
            "    return kept[start][seq, base]",
            "does it stay there",
        ),
        (
            CACHED + "if (start, seq, base) not in kept:\n"
            "        kept[start, seq, base] = make(0, seq, base)\n"
            "    return kept[start, seq, base]",
            "asks make for",
        ),
        (CACHED + "yield make(start, seq, base)", "something other"),
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
        (
            ASKED + "min([1e4, 5e5, 1e6], key=lambda x: abs(x - (a / b) ** 32)), 1 / a",
            "base 31,416",
        ),
        (
            ASKED
            + "(a / b) ** 32, min([1, 2, 2.5, 4, 8], key=lambda x: abs(x - 1 / a))",
            "read the factor as 2.5",
        ),
        (ASKED + "round(float((a / b) ** 32)), round(float(1 / a))", "factor as 2."),
        (ASKED + "(a / b) ** 16, 1 / a", "as its square root"),
        (ASKED + "(b - a).log(), 1 / a", "came out as nan"),
        (ASKED + '{"base": (a / b) ** 32, "factor": 1 / a}', "not a dict"),
        (ASKED + '"10000", "1"', "quotation marks"),
        (
            ASKED.replace("atan2(out[32:34], out[:2])", "sin(out[32:34])")
            + "(a / b) ** 32, 1 / a",
            "Two things can lose it",
        ),
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
        (
            HOME + "    return (each(q, order), each(k, order),\n"
            "            module_like(turn, clockwise=True))",
            "without clockwise",
        ),
        (
            BRING + "    report = identify(turn)\n"
            "    rope = module_like(turn, clockwise=report.sign < 0)\n"
            "    order = conversion(report, identify(rope)).projection\n"
            "    return each(q, order), each(k, order), rope",
            "without clockwise",
        ),
        (
            HOME + "    return (each(q, order), each(k, order),\n"
            "            module_like(turn, layout='bshd'))",
            "(batch, heads, tokens, 32)",
        ),
        (
            HOME + "    return (each(q, order), each(k, order),\n"
            "            module_like(turn, xpos_scale_base=512))",
            "queries and keys alike",
        ),
        (
            HOME + "    def narrow(parts):\n"
            "        return {name: x.bfloat16() for name, x in parts.items()}\n"
            "    return (narrow(each(q, order)), narrow(each(k, order)),\n"
            "            module_like(turn))",
            "cast to a smaller type",
        ),
        (
            HOME + "    for parts in (q, k):\n"
            "        parts.update(each(parts, order))\n"
            "    return q, k, module_like(turn)",
            "Your code changed q",
        ),
        (
            HOME + "    for parts in (q, k):\n"
            "        for name, x in each(parts, order).items():\n"
            "            parts[name][:] = x\n"
            "    return q, k, module_like(turn)",
            "Your code changed q",
        ),
        (
            HOME + "    return each(k, order), each(q, order), module_like(turn)",
            "must keep its shape",
        ),
        (
            HOME + "    return (each(q, order, norm=q['norm'].flip(0)),\n"
            "            each(k, order), module_like(turn))",
            "but its norm is not",
        ),
        (
            HOME + "    return (each(q, order, weight=2 * order(q['weight'], 8)),\n"
            "            each(k, order), module_like(turn))",
            "W_q is not",
        ),
        (BRING + "    return q, k", "three values"),
        (BRING + "    return q, k, turn", "must be a RotaryEmbedding"),
    ],
}

OTHER = {
    "20.1": ['fixable = ["b", "f", "a"]', 'fixable = "A, B and F"'],
    "20.2": [
        """
def cached_table(kept, make, start, seq, base):
    tables = kept.setdefault(base, {}).setdefault(seq, {})
    if start not in tables:
        tables[start] = make(start, seq, base)
    return tables[start]
""",
        """
def cached_table(kept, make, start, seq, base):
    try:
        return kept[f"{base}/{start}/{seq}"]
    except KeyError:
        return kept.setdefault(f"{base}/{start}/{seq}", make(start, seq, base))
""",
    ],
    "20.3": [
        """
def base_and_factor(turn):
    x = torch.zeros(3, 64, dtype=torch.float64)
    x[2, 0] = x[2, 16] = 1
    out = turn(x, torch.tensor([0, 1, 2]))[2]
    fast = math.atan2(out[32], out[0]) / 2
    middle = math.atan2(out[48], out[16]) / 2
    return [(fast / middle) ** 2, 1 / fast]
""",
        """
def base_and_factor(turn):
    import numpy as np  # a line through the logarithms of all speeds
    out = turn(torch.cat([torch.ones(1, 32), torch.zeros(1, 32)], 1), torch.tensor([1]))
    speeds = torch.atan2(out[0, 32:], out[0, :32]).double()
    slope, start = np.polyfit(np.arange(32), speeds.log().numpy(), 1)
    return np.exp([-32 * slope, -start])
""",
    ],
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
