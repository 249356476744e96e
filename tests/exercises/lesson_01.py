"""Seeded answers for lesson 01: misconceptions with their message, another solution."""

REVIEWED = True

WRONG = {
    "1.1": [
        ('sentence = "the cat saw the dog"', "same sentence"),
        ('sentence = "dog saw cat the"', "wrong number of each"),
        ('sentence = "the cat observed the dog"', "its own vector"),
        ('sentence = "the cat saw"', "is missing"),
        ("sentence = 5", "quotation marks"),
        ('sentence = "The cat saw the dog."', "same sentence"),
        ('sentence = "the dog saw the cat the dog"', "wrong number of each"),
        ('sentence = "thedogsawthecat"', "was not in the sentence"),
        ('sentence = "the dog was seen by the cat"', "was not in the sentence"),
        ('sentence = ""', "is missing"),
        ('sentence = b"the dog saw the cat"', "quotation marks"),
        ('sentence = "a dog saw a cat"', "was not in the sentence"),
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
            "without a mask",
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
        (
            "def may_change(place, seq, layers):\n    return range(place, seq + 1)",
            "the last of 11 tokens has number 10",
        ),
        (
            "def may_change(place, seq, layers):\n    return range(place, seq - 1)",
            "left out the last",
        ),
        (
            "def may_change(place, seq, layers):\n"
            "    return list(range(place, seq))[:5]",
            "Token 2 of 11",
        ),
        (
            "def may_change(place, seq, layers):\n"
            "    return range(place if layers == 1 else 0, seq)",
            "no number of layers",
        ),
        (
            "def may_change(place, seq, layers):\n"
            "    return list(range(place, seq))[::-1]",
            "list them in order",
        ),
        (
            "def may_change(place, seq, layers):\n"
            "    return [i >= place for i in range(seq)]",
            "a yes or no for each token",
        ),
        (
            "def may_change(place, seq, layers):\n    return [3, 4, 5]",
            "you gave [3, 4, 5]",
        ),
        (
            "def may_change(place, seq, layers):\n"
            "    return [i + 1 for i in range(place, seq)]",
            "numbered from 0",
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
        (
            "def unshuffle(y, order):\n    x = y\n"
            "    for i, o in enumerate(order.tolist()):\n        x[o] = y[i]\n"
            "    return x",
            "wrote into y",
        ),
        ("def unshuffle(y, order):\n    return y[order.flip(0)]", "belongs in row"),
        ("def unshuffle(y, order):\n    return y[y[:, 0].argsort()]", "belongs in row"),
        (
            "def unshuffle(y, order):\n    return y[[3, 0, 1, 2][: len(y)]]",
            "must have shape (6, 2)",
        ),
        (
            "def unshuffle(y, order):\n    return y[order.argsort()].mT",
            "must have shape (4, 2)",
        ),
        (
            "def unshuffle(y, order):\n"
            "    return y[order.argsort()] if len(y) < 7 else y[order]",
            "a second time",
        ),
        (
            "def unshuffle(y, order):\n    return y.clamp(min=0)[order.argsort()]",
            "belongs",
        ),
        (
            "def unshuffle(y, order):\n    y[order] = y.clone()\n    return y",
            "belongs to the caller",
        ),
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
            "token 0 outputs 0, ",
        ),
        ("def values(seq):\n    return 1.0", "must have shape"),
        ("def values(seq):\n    return [1.0] + [0.0] * 5", "must have shape (9,)"),
        (
            "def values(seq):\n    return [1.0] + [0.0] * (seq - 2) + [0.5]",
            "token 5 outputs",
        ),
        (
            "def values(seq):\n    v = torch.eye(seq)[0]\n    v[seq // 2] = 0.001\n"
            "    return v",
            "token 3 outputs 0.25025",
        ),
        ("def values(seq):\n    return [1.0] + [0.0] * seq", "must have shape (6,)"),
        ("def values(seq):\n    return -torch.eye(seq)[0]", "outputs -1"),
        (
            "def values(seq):\n    return [1 / seq] * seq",
            "token 0 outputs 0.167",
        ),
        (
            "def values(seq):\n"
            "    return [1.0] + [0.0] * (seq - 1) if seq < 10 else [1.0] * seq",
            "average of ones",
        ),
    ],
}

OTHER = {
    "1.1": [
        'sentence = ["Saw", "the", "cat", "the", "dog"]',
        'sentence = " ".join("the cat saw the dog".split()[::-1])',
        'sentence = "The dog saw the cat."',
        'sentence = "The dog saw the cat!"',
    ],
    "1.2": [
        """
def may_change(place, seq, layers):
    return torch.arange(seq)[place:]
""",
        """
def may_change(place, seq, layers):
    reached = torch.ones(seq, seq).tril().matrix_power(layers)[:, place]
    return reached.nonzero()
""",
        """
def may_change(place, seq, layers):
    return {i for i in range(seq) if i >= place}
""",
    ],
    "1.3": [
        """
def unshuffle(y, order):
    x = torch.empty_like(y)
    x[order] = y
    return x
""",
        """
def unshuffle(y, order):
    return [row for _, row in sorted(zip(order.tolist(), y.tolist()))]
""",
        """
def unshuffle(y, order):
    import numpy as np
    return y.numpy()[np.argsort(order.numpy())]
""",
        """
def unshuffle(y, order):
    return torch.eye(len(order))[order].T @ y
""",
    ],
    "1.4": [
        """
def values(seq):
    return torch.eye(seq)[0]
""",
        """
def values(seq):
    return (m == 0 for m in range(seq))
""",
        """
def values(seq):
    from fractions import Fraction
    outputs = [Fraction(1, m + 1) for m in range(seq)]
    sums = [(m + 1) * out for m, out in enumerate(outputs)]
    return [sums[0]] + [b - a for a, b in zip(sums, sums[1:])]
""",
    ],
}
