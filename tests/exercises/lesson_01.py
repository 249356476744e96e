"""Seeded answers for lesson 01: misconceptions with their message, another solution."""

WRONG = {
    "1.1": [
        ('sentence = "the cat saw the dog"', "same sentence"),
        ('sentence = "dog saw cat the"', "wrong number of each"),
        ('sentence = "the cat observed the dog"', "its own vector"),
        ('sentence = "the cat saw"', "is missing"),
        ("sentence = 5", "quotation marks"),
    ],
    "1.2": [
        ("def may_change(place, seq, layers):\n    return [place]", "on its own"),
        (
            "def may_change(place, seq, layers):\n"
            "    return list(range(place + 1, seq))",
            "also sees itself",
        ),
        (
            "def may_change(place, seq, layers):\n    return list(range(place + 1))",
            "backwards",
        ),
        (
            "def may_change(place, seq, layers):\n    return list(range(seq))",
            "The mask is causal",
        ),
        (
            "def may_change(place, seq, layers):\n"
            "    return list(range(place, min(seq, place + layers + 1)))",
            "not a step of one token",
        ),
        (
            "def may_change(place, seq, layers):\n    return seq - place",
            "a list of places",
        ),
    ],
    "1.3": [
        ("def unshuffle(y, order):\n    return order.argsort()", "returned an order"),
        ("def unshuffle(y, order):\n    return y[order]", "a second time"),
        ("def unshuffle(y, order):\n    return y", "still shuffled"),
        ("def unshuffle(y, order):\n    return y.flip(0)", "Reversing the rows"),
        ("def unshuffle(y, order):\n    return y.sort(0).values", "sorted the numbers"),
        ("def unshuffle(y, order):\n    return y[:2]", "must have shape"),
        ("def unshuffle(y, order):\n    return y.roll(1, 0)", "belongs in row"),
    ],
    "1.4": [
        ("def values(seq):\n    return torch.ones(seq)", "average of ones"),
        (
            "def values(seq):\n    return [1 / (m + 1) for m in range(seq)]",
            "averages them once more",
        ),
        ("def values(seq):\n    return torch.arange(seq)", "grows with m"),
        (
            "def values(seq):\n    return [0.0] * (seq - 1) + [1.0]",
            "token 0 outputs 0.000",
        ),
        ("def values(seq):\n    return 1.0", "must have shape"),
    ],
}

OTHER = {
    "1.1": 'sentence = ["Saw", "the", "cat", "the", "dog"]',
    "1.2": """
def may_change(place, seq, layers):
    return torch.arange(seq)[place:]
""",
    "1.3": """
def unshuffle(y, order):
    x = torch.empty_like(y)
    x[order] = y
    return x
""",
    "1.4": """
def values(seq):
    return torch.eye(seq)[0]
""",
}
