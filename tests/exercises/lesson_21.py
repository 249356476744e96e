"""Seeded answers for lesson 21: misconceptions with their message, other solutions."""

REVIEWED = True

KEY = "def key_for(q, distance, inv_freq):\n    "
FIRST = """
def first_negative(base):
    bank = inverse_frequencies(64, base)
    mean = angles(torch.arange(20_000), bank).cos().mean(-1)
    return (mean < 0).nonzero()[0].item()
"""
TURNED = (
    KEY + "k = rotate(q, *cos_sin(torch.tensor(distance), inv_freq, q.dtype))\n    "
)
CHOOSE = "def choose(measured):\n    "

WRONG = {
    "21.1": [
        (
            'broken = {"A": "identity_at_zero", "B": "identity_at_zero", '
            '"C": "is_linear"}',
            "A: it obeys identity_at_zero: sin 0 is 0",
        ),
        (
            'broken = {"A": "norm_is_kept", "B": "norm_is_kept", "C": "is_linear"}',
            "B: it obeys norm_is_kept: its numbers are right",
        ),
        (
            'broken = {"A": "norm_is_kept", "B": "only_the_difference_counts", '
            '"C": "is_linear"}',
            "reordered alike",
        ),
        (
            'broken = {"A": "norm_is_kept", "B": "identity_at_zero", '
            '"C": "every_pair_turns"}',
            "each feature does change",
        ),
        (
            'broken = {"A": "norm", "B": "identity_at_zero", "C": "is_linear"}',
            "there is no law 'norm'",
        ),
        (
            'broken = {"A": "norm_is_kept", "B": ..., "C": "is_linear"}',
            "B is still missing",
        ),
        (
            'broken = dict.fromkeys("ABC", "turns_add_up")',
            "B: turns_add_up is right, but you have named it",
        ),
        ('broken = {"A": ["norm_is_kept"], "B": 1, "C": 1}', "there is no law ["),
        ('broken = "norm_is_kept"', "a dict of three"),
        (
            'broken = {"A": "is_linear", "B": "identity_at_zero", "C": "norm_is_kept"}',
            "A: it obeys is_linear",
        ),
        (
            'broken = {"A": "norm_is_kept", "B": "identity_at_zero", '
            '"C": "every_token_by_itself"}',
            "C: it obeys every_token_by_itself",
        ),
        (
            'broken = {"A": laws.check_all, "B": "identity_at_zero", "C": "is_linear"}',
            "there is no law 'check_all'",
        ),
        (
            'broken = {"A": "norm_is_kept()", "B": "identity_at_zero", '
            '"C": "is_linear"}',
            "there is no law 'norm_is_kept()'",
        ),
        ('broken = ["norm_is_kept", "identity_at_zero", "is_linear"]', "a dict of"),
    ],
    "21.2": [
        (KEY + "return q", "at distance 0"),
        (
            KEY + "return rotate(q, *cos_sin(torch.tensor(-distance), inv_freq, "
            "q.dtype))",
            "wrong way",
        ),
        (
            KEY + "return 9 * rotate(q, *cos_sin(torch.tensor(distance), inv_freq, "
            "q.dtype))",
            "a longer key",
        ),
        (
            KEY + "return rotate(q, *cos_sin(torch.tensor(distance), inv_freq, "
            'q.dtype), pairing="half")',
            "with half pairs",
        ),
        (
            KEY + "return rotate(q, *cos_sin(torch.tensor(distance + 1), inv_freq, "
            "q.dtype))",
            "scores best 38 tokens before",
        ),
        (KEY + "return q[:4]", "must have shape"),
        (
            KEY + "bank = inverse_frequencies(len(q))\n"
            "    return rotate(q, *cos_sin(torch.tensor(distance), bank, q.dtype))",
            "The speeds are in inv_freq",
        ),
        (
            TURNED + "k = k.clone()\n    k[len(q) // 2:] = 0  # fast hands alone\n"
            "    return k * q.norm() / k.norm()",
            "Another key of this length reaches",
        ),
        (
            TURNED + "k = k * (torch.arange(len(q)) < 2)\n"
            "    return k * q.norm() / k.norm()",
            "Another key of this length reaches",
        ),
        (TURNED + "return k.sign() * q.norm() / len(q) ** 0.5", "Another key of this"),
        (TURNED + "q.copy_(k)\n    return q", "Your code changed q"),
        (TURNED + "return k / k.norm()", "your key has length 1"),
        (TURNED + "return k.bfloat16()", "your key has length 4.7"),
        (
            KEY + "return rotate(q, *cos_sin(torch.tensor(min(distance, 1024)), "
            "inv_freq, q.dtype))",
            "scores best 1024 tokens before",
        ),
        (TURNED + "yield k", "must have shape"),
    ],
    "21.3": [
        (FIRST + "choice = (1_000_000, first_negative(1_000_000))", "not always"),
        (FIRST + "choice = (200_000, first_negative(200_000))", "up to a point"),
        ("choice = (500_000, 8192)", "The base is right"),
        ("choice = (2_000_000, 19_505)", "not one of the three"),
        ("choice = (500_000, ...)", "still missing"),
        ("choice = 500_000", "two numbers"),
        ("choice = (500_000, 9938)", "counting from 0"),
        ("choice = (500_000, 9936)", "counting from 0"),
        ("choice = (9937, 500_000)", "Does the base come first"),
        ("choice = {500_000, 9937}", "two numbers"),
        ("choice = (500_000, None)", "still missing"),
        ("choice = ([500_000, 1_000_000], [9937, 6235])", "Expected one number, got 2"),
        ('choice = ("500,000", "9,937")', "quotation marks"),
        (
            "bank = inverse_frequencies(64, 500_000)\n"
            "mean = angles(torch.arange(20_000), bank).cos().mean(-1)\n"
            "choice = (500_000, mean.argmin())",
            "is lowest, but",
        ),
        (
            "speeds = 500_000.0 ** (-torch.arange(32) / 64)\n"
            "mean = (torch.arange(20_000)[:, None] * speeds).cos().mean(-1)\n"
            "choice = (500_000, (mean < 0).nonzero()[0].item())",
            "it should be -2i/d",
        ),
    ],
    "21.4": [
        (
            CHOOSE + 'return max(measured, key=lambda r: measured[r]["found"])',
            "and the limit is 1.05",
        ),
        (
            CHOOSE + 'return min(measured, key=lambda r: measured[r]["short bits"])',
            "the fewest bits",
        ),
        (
            CHOOSE + 'limit = measured["none"]["short bits"] + 0.05\n'
            "    return next(r for r in measured if r != 'none'\n"
            '                and measured[r]["short bits"] <= limit)',
            "a is allowed too",
        ),
        (
            CHOOSE + 'limit = measured["none"]["short bits"] + 0.05\n'
            "    return max(r['found'] for r in measured.values()\n"
            '               if r["short bits"] <= limit)',
            "the name of a rule",
        ),
        (
            CHOOSE + 'limit = measured["none"]["short bits"] * 1.05\n'
            '    rules = [r for r in measured if measured[r]["short bits"] <= limit]\n'
            '    return max(rules, key=lambda r: measured[r]["found"])',
            "and the limit is 2.05",
        ),
        (
            CHOOSE + 'bits = {r: row["short bits"] for r, row in measured.items()}\n'
            '    rules = [r for r in bits if abs(bits[r] - bits["none"]) <= 0.05]\n'
            '    return max(rules, key=lambda r: measured[r]["found"])',
            "b is allowed too",
        ),
        (CHOOSE + 'return "LongRoPE"', "the name of a rule"),
        (
            CHOOSE + 'limit = measured["none"]["short bits"] + 0.05\n'
            '    rules = [r for r in measured if measured[r]["short bits"] < limit]\n'
            '    return max(rules, key=lambda r: measured[r]["found"])',
            "at most 0.05 allows just that",
        ),
        (
            CHOOSE + 'limit = measured["none"]["short bits"] + 0.05\n'
            "    for r in list(measured):\n"
            '        if measured[r]["short bits"] > limit:\n'
            "            measured.pop(r)\n"
            '    return max(measured, key=lambda r: measured[r]["found"])',
            "Your code changed measured",
        ),
        (
            CHOOSE + 'rules = [r for r in measured if measured[r]["short bits"] <= 1]\n'
            '    return sorted(rules, key=lambda r: measured[r]["found"])[-1]',
            "the fewest bits",
        ),
        (
            CHOOSE + 'rules = [r for r in measured if measured[r]["short bits"] < 2]\n'
            '    return sorted(rules, key=lambda r: measured[r]["found"])[-1]',
            "the limit is 1.05",
        ),
        (
            CHOOSE + 'none = measured["none"]\n'
            '    rules = [r for r in measured if measured[r]["found"] > none["found"]\n'
            '             and measured[r]["short bits"] <= none["short bits"] + 0.05]\n'
            '    return sorted(rules, key=lambda r: measured[r]["found"])[-1]',
            "IndexError: list index out of range. A rule is always left",
        ),
        (
            CHOOSE + 'limit = measured["none"]["short bits"] + 0.05\n'
            '    return max((measured[r]["found"], r) for r in measured\n'
            '               if measured[r]["short bits"] <= limit)',
            "the name of a rule",
        ),
        (
            CHOOSE + 'limit = measured["none"]["short bits"] + 0.05\n'
            '    rules = [r for r in measured if r != "none"\n'
            '             and measured[r]["short bits"] <= limit]\n'
            '    rules.sort(key=lambda r: measured[r]["found"])\n'
            "    return rules[-1]",
            "none is allowed too",
        ),
        (
            CHOOSE + 'limit = measured["none"]["short bits"] + 0.05\n'
            '    rules = [r for r in measured if measured[r]["short bits"] <= limit\n'
            '             and r != "none"]\n'
            '    return max(rules, key=lambda r: measured[r]["found"])',
            "none is allowed too",
        ),
        (
            CHOOSE + 'limit = measured["none"]["short bits"] + 0.05\n'
            '    rules = [r for r in measured if measured[r]["short bits"] <= limit\n'
            '             and measured[r]["found"] > measured["none"]["found"]]\n'
            '    return max(rules, key=lambda r: measured[r]["found"])',
            "A rule is always left",
        ),
        (
            CHOOSE + 'limit = measured["none"]["short bits"] + 0.05\n'
            '    rules = [r for r in measured if measured[r]["short bits"] <= limit]\n'
            '    return min(rules, key=lambda r: measured[r]["found"])',
            "the fewest bits",
        ),
        (
            CHOOSE + "return max(measured, key=lambda r: "
            'measured[r]["found"] - measured[r]["short bits"])',
            "the limit is 1.05",
        ),
        (
            CHOOSE + 'limit = min(r["short bits"] for r in measured.values()) + 0.05\n'
            '    rules = [r for r in measured if measured[r]["short bits"] <= limit]\n'
            '    return max(rules, key=lambda r: measured[r]["found"])',
            "the fewest bits",
        ),
    ],
}

OTHER = {
    "21.1": [
        """
from rope_teach import laws
broken = {"A": laws.only_the_difference_counts, "B": laws.turns_add_up,
          "C": laws.norm_is_kept}
""",
        """
broken = dict(zip("CBA", ["is_linear", laws.opposite_turn_undoes, "turns_add_up"]))
""",
    ],
    "21.2": [
        """
def key_for(q, distance, inv_freq):
    pairs = torch.view_as_complex(q.unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.exp(1j * distance * inv_freq)
    return torch.view_as_real(turned).flatten()
""",
        """
def key_for(q, distance, inv_freq):
    key = []
    for i, speed in enumerate(inv_freq.tolist()):
        a, b = q[2 * i : 2 * i + 2].tolist()
        length, angle = math.hypot(a, b), math.atan2(b, a) + distance * speed
        key += [length * math.cos(angle), length * math.sin(angle)]
    return key
""",
    ],
    "21.3": [
        "choice = torch.tensor([500_000, 9937])",
        "import numpy as np\nchoice = np.array([500_000, 9937])",
    ],
    "21.4": [
        """
def choose(measured):
    base = measured["none"]["short bits"]
    ranked = sorted(measured.items(), key=lambda row: -row[1]["found"])
    return next(r for r, row in ranked if row["short bits"] - base <= 0.05)
""",
        """
def choose(measured):
    best = "none"
    for rule, row in measured.items():
        cost = row["short bits"] - measured["none"]["short bits"]
        if cost <= 0.05 and row["found"] > measured[best]["found"]:
            best = rule
    return best
""",
    ],
}
