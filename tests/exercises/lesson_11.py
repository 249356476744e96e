"""Seeded answers for lesson 11: misconceptions with their message, another solution."""

WRONG = {
    "11.1": [
        (
            "def solved_at(curve, goal, every):\n"
            "    found = [n * every for n, a in enumerate(curve) if a >= goal]\n"
            "    return found[0] if found else math.inf",
            "not as infinity",
        ),
        (
            "def solved_at(curve, goal, every):\n"
            "    return next((n for n, a in enumerate(curve) if a >= goal), None)",
            "the entry of the list",
        ),
        (
            "def solved_at(curve, goal, every):\n"
            "    found = [n * every for n, a in enumerate(curve) if a > goal]\n"
            "    return found[0] if found else None",
            "exactly 0.95 counts",
        ),
        (
            "def solved_at(curve, goal, every):\n"
            "    return next((n * every for n, a in enumerate(curve, 1) if a >= goal),"
            " None)",
            "measured at step 0",
        ),
        (
            "def solved_at(curve, goal, every):\n"
            "    right = torch.tensor(curve, dtype=torch.float64) >= goal\n"
            "    return every * int(right.int().argmax())",
            "never gets there",
        ),
        (
            "def solved_at(curve, goal, every):\n"
            "    return max(n for n, a in enumerate(curve) if a >= goal) * every",
            "asks for the first",
        ),
    ],
    "11.2": [
        (
            "def band(curves):\n    return curves.min(0), curves.max(0)",
            "values and indices",
        ),
        (
            "def band(curves):\n"
            "    return curves.quantile(0.25, 0), curves.quantile(0.75, 0)",
            "quartiles",
        ),
        (
            "def band(curves):\n"
            "    mean = curves.mean(1)\n"
            "    return curves[mean.argmin()], curves[mean.argmax()]",
            "the worst run",
        ),
        (
            "def band(curves):\n    return {0: curves.amin(0), 1: curves.amax(0)}",
            "Return two tensors",
        ),
        (
            "def band(curves):\n    return curves.amin(1), curves.amax(1)",
            "for each of the 5 seeds",
        ),
        ("def band(curves):\n    return curves.min(), curves.max()", "one number"),
        (
            "def band(curves):\n    mean, std = curves.mean(0), curves.std(0)\n"
            "    return mean - std, mean + std",
            "a standard deviation",
        ),
        (
            "def band(curves):\n    return curves.amax(0), curves.amin(0)",
            "Put the lowest first",
        ),
        (
            "def band(curves):\n    return curves[0], curves[-1]",
            "the band at the first point",
        ),
    ],
    "11.3": [
        (
            "def clear_win(ours, theirs):\n"
            "    return (theirs[0] or 999) - (ours[0] or 999)",
            "the margin",
        ),
        (
            "def clear_win(ours, theirs):\n"
            "    mean = lambda runs: sum(x or 999 for x in runs) / len(runs)\n"
            "    return mean(ours) < mean(theirs)",
            "The mean hides that run",
        ),
        (
            "def clear_win(ours, theirs):\n"
            "    return min(x or 999 for x in ours) < min(x or 999 for x in theirs)",
            "loses against 60",
        ),
        (
            "def clear_win(ours, theirs):\n    slow = max(x or 999 for x in ours)\n"
            "    return slow <= min(x or 999 for x in theirs)",
            "a tie",
        ),
        (
            "def clear_win(ours, theirs):\n"
            "    return all((a or 999) < (b or 999) for a, b in zip(ours, theirs))",
            "seed by seed",
        ),
        (
            "def clear_win(ours, theirs):\n"
            "    mine = [x for x in ours if x is not None]\n"
            "    return max(mine, default=999) < min(x or 999 for x in theirs)",
            "win by failing",
        ),
    ],
    "11.4": [
        (
            "def rope_operations(layers, heads, kv_heads, head_dim):\n"
            "    return layers * kv_heads * head_dim * 3",
            "only the keys",
        ),
        (
            "def rope_operations(layers, heads, kv_heads, head_dim):\n"
            "    return layers * (heads + kv_heads) * 6",
            "one pair in each head",
        ),
        (
            "def rope_operations(layers, heads, kv_heads, head_dim):\n"
            "    return layers * heads * kv_heads * head_dim * 3",
            "the two head counts",
        ),
        (
            "def rope_operations(layers, heads, kv_heads, head_dim):\n"
            "    return layers * 2 * kv_heads * head_dim * 3",
            "only as many query heads",
        ),
        (
            "def rope_operations(layers, heads, kv_heads, head_dim):\n"
            "    return layers * 2 * heads * head_dim // 2 * 6",
            "as many key heads",
        ),
        (
            "def rope_operations(layers, heads, kv_heads, head_dim):\n"
            "    return (heads + kv_heads) * head_dim // 2 * 6",
            "one layer",
        ),
        (
            "def rope_operations(layers, heads, kv_heads, head_dim):\n"
            "    return layers * (heads + kv_heads) * head_dim * 6",
            "six operations per feature",
        ),
        (
            "def rope_operations(layers, heads, kv_heads, head_dim):\n"
            "    return layers * (heads + 2 * kv_heads) * head_dim * 3",
            "turned the values",
        ),
        (
            "def rope_operations(layers, heads, kv_heads, head_dim):\n"
            "    return layers * (heads + kv_heads) * head_dim * 2",
            "only the products",
        ),
    ],
}

OTHER = {
    "11.1": """
def solved_at(curve, goal, every):
    reached = [n for n in range(len(curve)) if curve[n] >= goal]
    return torch.tensor(every * reached[0]) if reached else None
""",
    "11.2": """
def band(curves):
    ordered = curves.sort(0).values
    return [ordered[0], ordered[-1]]
""",
    "11.3": """
def clear_win(ours, theirs):
    return all(a is not None and (b is None or a < b) for a in ours for b in theirs)
""",
    "11.4": """
def rope_operations(layers, heads, kv_heads, head_dim):
    def turned(count):
        return 4 * count * (head_dim / 2) + 2 * count * (head_dim / 2)
    return layers * (turned(heads) + turned(kv_heads))
""",
}
