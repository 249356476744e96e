"""Seeded answers for lesson 12: misconceptions with their message, another solution."""

WRONG = {
    "12.1": [
        (
            "def compressed(nats, count):\n    return count * nats / math.log(2)",
            "Eight bits make a byte",
        ),
        (
            "def compressed(nats, count):\n    return count * nats * math.log(2) / 8",
            "multiplied by ln 2",
        ),
        ("def compressed(nats, count):\n    return count * nats / 8", "1.44 bits"),
        (
            "def compressed(nats, count):\n    return nats / math.log(2)",
            "the bits for one byte",
        ),
        (
            "def compressed(nats, count):\n    return count * math.log2(nats) / 8",
            "It already is one",
        ),
        (
            "def compressed(nats, count):\n    return count * (1 - nats / 8)",
            "it takes",
        ),
    ],
    "12.2": [
        (
            "def come_round(head_dim, base, trained):\n"
            "    f = inverse_frequencies(head_dim, base)\n"
            "    return int((1 / f <= trained).sum())",
            "one radian",
        ),
        (
            "def come_round(head_dim, base, trained):\n"
            "    w = wavelengths(inverse_frequencies(head_dim, base))\n"
            "    return int((w > trained).sum())",
            "do *not* come round",
        ),
        (
            "def come_round(head_dim, base, trained):\n"
            "    return sum(2 * math.pi * base ** (i / head_dim) <= trained\n"
            "               for i in range(head_dim // 2))",
            "The exponent is -2i/d",
        ),
        ("def come_round(head_dim, base, trained):\n    return head_dim // 2", "all"),
        (
            "def come_round(head_dim, base, trained):\n"
            "    waves = [2 * math.pi * base ** (2 * i / head_dim)\n"
            "             for i in range(head_dim)]\n"
            "    return sum(wave <= trained for wave in waves)",
            "each hand has two features",
        ),
        (
            "def come_round(head_dim, base, trained):\n    return 2",
            "6 come round",
        ),
    ],
    "12.3": [
        (
            "def cliff(loss, trained, height):\n"
            "    return int((loss > loss[:trained].mean() + height).int().argmax())",
            "nothing comes before it",
        ),
        (
            "def cliff(loss, trained, height):\n"
            "    bad = loss[trained:] > loss[:trained].mean() + height\n"
            "    return int(bad.int().argmax()) if bad.any() else None",
            "Add `trained`",
        ),
        (
            "def cliff(loss, trained, height):\n"
            "    bad = loss[trained:] > loss[:trained].mean() + height\n"
            "    return trained + int(bad.int().argmax())",
            "None where there is none",
        ),
        (
            "def cliff(loss, trained, height):\n"
            "    return trained + int(loss[trained:].argmax())",
            "the worst position",
        ),
        (
            "def cliff(loss, trained, height):\n"
            "    for m in range(trained, len(loss)):\n"
            "        if loss[m] > height:\n            return m",
            "not from 0",
        ),
        (
            "def cliff(loss, trained, height):\n"
            "    for m in range(trained, len(loss)):\n"
            "        if loss[m] > loss[m - 1] + height:\n            return m",
            "not with the position before",
        ),
        (
            "def cliff(loss, trained, height):\n"
            "    for m in range(trained, len(loss)):\n"
            "        if loss[m] > loss[trained - 1] + height:\n            return m",
            "not its last",
        ),
        (
            "def cliff(loss, trained, height):\n"
            "    for m in range(trained, len(loss)):\n"
            "        if loss[m] > loss.mean() + height:\n            return m",
            "the trained part, not its last",
        ),
    ],
    "12.4": [
        (
            "def processed(prompt, steps):\n"
            "    return sum(prompt + s for s in range(steps)), prompt + steps",
            "the last token written",
        ),
        (
            "def processed(prompt, steps):\n"
            "    return prompt * steps, prompt + steps - 1",
            "not what has been written since",
        ),
        (
            "def processed(prompt, steps):\n"
            "    return sum(prompt + s for s in range(steps)), steps",
            "read once, with a cache too",
        ),
        (
            "def processed(prompt, steps):\n"
            "    return prompt + steps - 1, sum(prompt + s for s in range(steps))",
            "the wrong order",
        ),
        (
            "def processed(prompt, steps):\n"
            "    without = sum(prompt + s for s in range(1, steps + 1))\n"
            "    return without, prompt + steps - 1",
            "one token too many",
        ),
    ],
}

OTHER = {
    "12.1": """
def compressed(nats, count):
    return round(count * nats / math.log(256))
""",
    "12.2": """
def come_round(head_dim, base, trained):
    return (wavelengths(inverse_frequencies(head_dim, base)) <= trained).sum()
""",
    "12.3": """
def cliff(loss, trained, height):
    bad = (loss > loss[:trained].mean() + height).nonzero().flatten()
    bad = bad[bad >= trained]
    return bad[0] if len(bad) else None
""",
    "12.4": """
def processed(prompt, steps):
    return [prompt * steps + steps * (steps - 1) // 2, prompt + steps - 1]
""",
}
