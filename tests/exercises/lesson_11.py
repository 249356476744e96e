"""Seeded answers for lesson 11: misconceptions with their message, other solutions."""

REVIEWED = True

SOLVED = "def solved_at(curve, goal, every):\n    "
BAND = "def band(curves):\n    "
WIN = """
def clear_win(ours, theirs):
    a = [math.inf if s is None else s for s in ours]
    b = [math.inf if s is None else s for s in theirs]
"""
COUNT = "def rope_operations(layers, heads, kv_heads, head_dim):\n    "
RACE = """
def fair_race(train, rates, seeds):
    found = {lr: [train(lr, s) for s in seeds] for lr in rates}
    inf = {lr: [math.inf if s is None else s for s in found[lr]] for lr in rates}
"""

WRONG = {
    "11.1": [
        (
            SOLVED + "found = [n * every for n, a in enumerate(curve) if a >= goal]\n"
            "    return found[0] if found else math.inf",
            "as None",
        ),
        (
            SOLVED + "return next((n for n, a in enumerate(curve) if a >= goal), None)",
            "the entry of the list",
        ),
        (
            SOLVED + "found = [n * every for n, a in enumerate(curve) if a > goal]\n"
            "    return found[0] if found else None",
            "exactly 0.95 counts",
        ),
        (
            SOLVED + "return next((n * every for n, a in enumerate(curve, 1)\n"
            "                 if a >= goal), None)",
            "measured at step 0",
        ),
        (
            SOLVED + "right = torch.tensor(curve, dtype=torch.float64) >= goal\n"
            "    return every * int(right.int().argmax())",
            "never gets to 0.95",
        ),
        (
            SOLVED + "found = [n for n, a in enumerate(curve) if a >= goal]\n"
            "    return found[-1] * every if found else None",
            "asks for the first",
        ),
        (
            SOLVED + "if curve[-1] < goal:\n        return None\n"
            "    return next(n * every for n, a in enumerate(curve) if a >= goal)",
            "did get there",
        ),
        (
            SOLVED + "import bisect\n    n = bisect.bisect_left(curve, goal)\n"
            "    return n * every if n < len(curve) else None",
            "first reaches",
        ),
        (
            SOLVED + "n = sum(a < goal for a in curve)\n"
            "    return n * every if n < len(curve) else None",
            "first reaches",
        ),
        (
            SOLVED + "for n in range(len(curve)):\n"
            "        if all(a >= goal for a in curve[n:]):\n"
            "            return n * every",
            "from which it stays",
        ),
        (
            SOLVED + "best = max(curve)\n"
            "    return curve.index(best) * every if best >= goal else None",
            "first reaches",
        ),
        (
            SOLVED + "curve.sort()\n"
            "    return next((n * every for n, a in enumerate(curve) if a >= goal),\n"
            "                None)",
            "changed curve",
        ),
        (SOLVED + "return 5 * solved(curve)", "does not know that name"),
    ],
    "11.2": [
        (BAND + "return curves.min(0), curves.max(0)", "values and indices"),
        (
            BAND + "return curves.quantile(0.25, 0), curves.quantile(0.75, 0)",
            "quartiles",
        ),
        (
            BAND + "mean = curves.mean(1)\n"
            "    return curves[mean.argmin()], curves[mean.argmax()]",
            "one run, that of seed 1",
        ),
        (BAND + "return {0: curves.amin(0), 1: curves.amax(0)}", "Return two tensors"),
        (BAND + "return curves.amin(1), curves.amax(1)", "for each of the 5 seeds"),
        (BAND + "return curves.min(), curves.max()", "one number"),
        (
            BAND + "mean, std = curves.mean(0), curves.std(0)\n"
            "    return mean - std, mean + std",
            "a standard deviation",
        ),
        (
            BAND + "mean, std = curves.mean(0), curves.std(0)\n"
            "    return mean - 2 * std, mean + 2 * std",
            "a standard deviation",
        ),
        (BAND + "return curves.amax(0), curves.amin(0)", "Put the lowest first"),
        (BAND + "return curves[0], curves[-1]", "one run, that of seed 0"),
        (
            BAND + "last = curves[:, -1].argsort()\n"
            "    return curves[last[0]], curves[last[-1]]",
            "one run, that of seed 1",
        ),
        (
            BAND + "return curves.amin(0).cummax(0).values, curves.amax(0)",
            "the lowest: At point",
        ),
        (
            BAND + "return curves.amin(0), curves.amax(0).cummax(0).values",
            "the highest: At point",
        ),
        (
            BAND + "return curves[:5].amin(0), curves[:5].amax(0)",
            "With 6 seeds",
        ),
        (
            BAND + "curves.clamp_(0.1, 0.9)\n    return curves.amin(0), curves.amax(0)",
            "changed curves",
        ),
        (
            BAND + "ordered = curves.sort(0).values\n"
            "    return ordered[0], ordered[-2]",
            "the highest: At point",
        ),
    ],
    "11.3": [
        (WIN + "    return min(b) - max(a)", "the margin"),
        (WIN + "    return sum(a) / len(a) < sum(b) / len(b)", "compared the means"),
        (WIN + "    return min(a) < min(b)", "the fastest runs alone"),
        (WIN + "    return max(a) < max(b)", "the slowest runs"),
        (WIN + "    return max(a) <= min(b)", "A tie is no win"),
        (WIN + "    return all(x < y for x, y in zip(a, b))", "seed by seed"),
        (WIN + "    return max(b) < min(a)", "sides swapped"),
        (
            WIN + "    mine = [s for s in ours if s is not None]\n"
            "    return max(mine, default=math.inf) < min(b)",
            "win by failing",
        ),
        (
            WIN + "    keep = [[s for s in runs if s is not None] or [math.inf]\n"
            "            for runs in (ours, theirs)]\n"
            "    return max(keep[0]) < min(keep[1])",
            "win by failing",
        ),
        (
            WIN + "    a = [200 if s is None else s for s in ours]\n"
            "    b = [200 if s is None else s for s in theirs]\n"
            "    return max(a) < min(b)",
            "runs of 200 steps",
        ),
        (
            WIN + "    return max(s or math.inf for s in ours) < \\\n"
            "        min(s or math.inf for s in theirs)",
            "A run of 0 steps",
        ),
        (
            WIN + "    a = [999 if s is None else s for s in ours]\n"
            "    b = [999 if s is None else s for s in theirs]\n"
            "    return max(a) < min(b)",
            "So the answer is True",
        ),
        (WIN + "    return sorted(a)[len(a) // 2] < min(b)", "our slowest run"),
        (WIN + "    return a[-1] < min(b)", "our slowest run"),
        (
            WIN + "    ours.sort(key=lambda s: s or 0)\n    return max(a) < min(b)",
            "changed ours",
        ),
    ],
    "11.4": [
        (COUNT + "return layers * kv_heads * head_dim * 3", "only the keys"),
        (COUNT + "return layers * heads * head_dim * 3", "only the queries"),
        (COUNT + "return layers * (heads + kv_heads) * 6", "one pair in each head"),
        (
            COUNT + "return layers * heads * kv_heads * head_dim * 3",
            "the two head counts",
        ),
        (
            COUNT + "return layers * 2 * kv_heads * head_dim * 3",
            "only as many query heads",
        ),
        (COUNT + "return layers * 2 * heads * head_dim // 2 * 6", "as many key heads"),
        (COUNT + "return (heads + kv_heads) * head_dim // 2 * 6", "one layer"),
        (
            COUNT + "return layers * (heads + kv_heads) * head_dim * 6",
            "six operations per feature",
        ),
        (
            COUNT + "return layers * (heads + 2 * kv_heads) * head_dim * 3",
            "turned the values",
        ),
        (
            COUNT + "return layers * (heads + kv_heads) * head_dim * 2",
            "only the products",
        ),
        (COUNT + "return layers * (heads + kv_heads) * head_dim", "only the sums"),
        (COUNT + "return 3360", "you gave 3,360"),
        (
            COUNT + "return layers * (heads + kv_heads) * (head_dim // 4) * 12",
            "of 10 features",
        ),
        (COUNT + "return min(layers, 6) * (heads + kv_heads) * head_dim * 3", "32 lay"),
    ],
    "11.5": [
        (
            RACE + "    best = min(rates, key=lambda lr: sum(inf[lr])\n"
            "               if all(found[lr]) else math.inf)\n"
            "    return best, found[best]",
            "A run of 0 steps counts",
        ),
        (
            RACE + "    def mean(lr):\n"
            "        return math.inf if None in found[lr] else (\n"
            "            sum(found[lr]) // len(seeds))\n"
            "    best = min(rates, key=mean)\n"
            "    return best, found[best]",
            "0.1 has the fewest steps on average",
        ),
        (
            "def fair_race(train, rates, seeds):\n"
            "    found = {lr: [train(lr, s) for s in range(len(seeds))]\n"
            "             for lr in rates}\n"
            "    return 0.01, found[0.01]",
            "You called train(0.003, 0)",
        ),
        (
            RACE + "    best = min(rates, key=lambda lr: min(inf[lr]))\n"
            "    return best, found[best]",
            "single fastest run",
        ),
        (
            RACE + "    best = min(rates, key=lambda lr: max(inf[lr]))\n"
            "    return best, found[best]",
            "by the slowest run",
        ),
        (
            RACE + "    best = min(rates, key=lambda lr: inf[lr][0])\n"
            "    return best, found[best]",
            "first seed alone",
        ),
        (
            RACE
            + "    best = min(rates, key=lambda lr: sum(s or 0 for s in found[lr]))"
            "\n    return best, found[best]",
            "counted as 0",
        ),
        (
            RACE + "    def mean(lr):\n"
            "        kept = [s for s in found[lr] if s is not None] or [math.inf]\n"
            "        return sum(kept) / len(kept)\n"
            "    best = min(rates, key=mean)\n    return best, found[best]",
            "win by failing",
        ),
        (
            RACE + "    best = max(rates, key=lambda lr: sum(inf[lr]))\n"
            "    return best, found[best]",
            "fewer steps are better",
        ),
        (
            RACE + "    best = min(rates, key=lambda lr: sum(inf[lr]))\n"
            "    return best, sorted(found[best])",
            "Its steps for each seed",
        ),
        (
            RACE + "    best = min(rates, key=lambda lr: sum(inf[lr]))\n"
            "    return best, sum(found[best])",
            "one for each seed",
        ),
        (
            RACE + "    best = min(rates, key=lambda lr: sum(inf[lr]))\n"
            "    return found[best], best",
            "Expected one number",
        ),
        (
            RACE + "    best = min(rates, key=lambda lr: sum(inf[lr]))\n"
            "    return rates.index(best), found[best]",
            "you chose 1",
        ),
        (
            "def fair_race(train, rates, seeds):\n"
            "    best = min(rates, key=lambda lr: train(lr, seeds[0]) or math.inf)\n"
            "    return best, [train(best, s) for s in seeds]",
            "nothing was trained",
        ),
        (
            "def fair_race(train, rates, seeds):\n"
            "    best, steps = None, [math.inf]\n"
            "    for lr in rates:\n"
            "        new = [train(lr, s) for s in seeds]\n"
            "        if sum(s or 999 for s in new) > sum(steps):\n"
            "            break\n"
            "        best, steps = lr, new\n"
            "    return best, steps",
            "nothing was trained",
        ),
        (
            "def fair_race(train, rates, seeds):\n"
            "    found = {lr: [train(s, lr) for s in seeds] for lr in rates}\n"
            "    return min(found.items(), key=lambda item: sum(item[1]))",
            "the rate comes first",
        ),
        (
            RACE + "    best = min(rates, key=lambda lr: sum(found[lr]))\n"
            "    return best, found[best]",
            "Your code stopped",
        ),
        (
            RACE + "    rates.sort(key=lambda lr: sum(inf[lr]))\n"
            "    return rates[0], found[rates[0]]",
            "changed rates",
        ),
    ],
}

OTHER = {
    "11.1": [
        """
def solved_at(curve, goal, every):
    reached = [n for n in range(len(curve)) if curve[n] >= goal]
    return torch.tensor(every * reached[0]) if reached else None
""",
        """
def solved_at(curve, goal, every):
    import numpy as np
    reached = np.flatnonzero(np.asarray(curve) >= goal) * float(every)
    return min(reached, default=None)
""",
        """
def solved_at(curve, goal, every):
    steps = iter(range(0, every * len(curve), every))
    for right in curve:
        step = next(steps)
        if not right < goal:
            return step
""",
    ],
    "11.2": [
        """
def band(curves):
    ordered = curves.sort(0).values
    return [ordered[0], ordered[-1]]
""",
        """
def band(curves):
    return curves.aminmax(dim=0)
""",
        """
def band(curves):
    points = list(zip(*curves.tolist()))
    return (min(p) for p in points), map(max, points)
""",
    ],
    "11.3": [
        """
def clear_win(ours, theirs):
    return all(a is not None and (b is None or a < b) for a in ours for b in theirs)
""",
        """
def clear_win(ours, theirs):
    import numpy as np
    ours = np.array(ours, dtype=float)    # None becomes nan
    theirs = np.nan_to_num(np.array(theirs, dtype=float), nan=np.inf)
    return (ours[:, None] < theirs).all()
""",
        """
def clear_win(ours, theirs):
    if None in ours:
        return 0
    kept = [s for s in theirs if s is not None]
    return int(not kept or sorted(ours)[-1] < sorted(kept)[0])
""",
    ],
    "11.4": [
        """
def rope_operations(layers, heads, kv_heads, head_dim):
    def turned(count):
        return 4 * count * (head_dim / 2) + 2 * count * (head_dim / 2)
    return layers * (turned(heads) + turned(kv_heads))
""",
        """
def rope_operations(layers, heads, kv_heads, head_dim):
    total = 0
    for _ in range(layers):
        for head in (*range(heads), *range(kv_heads)):
            for pair in range(0, head_dim, 2):
                total += 6
    return torch.tensor([total])
""",
        """
def rope_operations(layers, heads, kv_heads, head_dim):
    from fractions import Fraction
    return Fraction(head_dim, 2) * 6 * layers * (heads + kv_heads)
""",
    ],
    "11.5": [
        """
def fair_race(train, rates, seeds):
    best, record = None, math.inf
    for lr in reversed(rates):
        steps = []
        for seed in seeds:
            needed = train(lr=lr, seed=seed)
            steps.append(math.inf if needed is None else needed)
        if sum(steps) / len(steps) < record:
            best, record, kept = lr, sum(steps) / len(steps), tuple(steps)
    return [best, kept]
""",
        """
def fair_race(train, rates, seeds):
    import numpy as np
    table = np.array([[train(lr, s) for s in seeds] for lr in rates], dtype=float)
    means = np.nan_to_num(table.mean(1), nan=np.inf)
    return rates[means.argmin()], table[means.argmin()]
""",
        """
def fair_race(train, rates, seeds):
    table = torch.tensor([[train(lr, s) if train(lr, s) is not None else 1e9
                           for s in seeds] for lr in rates])
    row = table.sum(1).argmin()
    return torch.tensor(rates)[row], table[row]
""",
    ],
}
