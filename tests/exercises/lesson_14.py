"""Seeded answers for lesson 14: misconceptions with their message, another solution."""

WRONG = {
    "14.1": [
        ("def given_from(targets):\n    return targets", "the very word"),
        ("def given_from(targets):\n    return [*targets[1:], 1]", "the other way"),
        ("def given_from(targets):\n    return [1, *targets]", "END is never given"),
        ("def given_from(targets):\n    return targets[:-1]", "START is missing"),
        (
            "def given_from(targets):\n    return [0, *targets[:-1]]",
            "START is 1, you gave [0]",
        ),
        ("def given_from(targets):\n    targets.insert(0, 1)", "`return`"),
    ],
    "14.2": [
        ("score = 8", "by the square root"),
        ("score = 2", "by its square root"),
        (
            "x = torch.tensor([[2.0, 0, 1, 4], [1.0, 3, -2, 2]]).double()\n"
            "a = angles(torch.tensor([4, 9]), inverse_frequencies(4))\n"
            "t = rotate(x, a.cos(), a.sin())\n"
            "score = t[0] @ t[1] / 2",
            "at position 9",
        ),
        ("score = 1", "you gave 1"),
    ],
    "14.3": [
        (
            "def rouge_1(written, wanted):\n"
            "    common = sum(min(written.count(w), wanted.count(w))\n"
            "                 for w in set(written))\n"
            "    return common / len(wanted)",
            "recall alone",
        ),
        (
            "def rouge_1(written, wanted):\n"
            "    common = sum(min(written.count(w), wanted.count(w))\n"
            "                 for w in set(written))\n"
            "    return common / len(written)",
            "precision alone",
        ),
        (
            "def rouge_1(written, wanted):\n"
            "    hits = sum(w in wanted for w in written)\n"
            "    return 2 * hits / (len(written) + len(wanted))",
            "each repetition",
        ),
        (
            "def rouge_1(written, wanted):\n"
            "    common = len(set(written) & set(wanted))\n"
            "    return 2 * common / (len(written) + len(wanted))",
            "as often as both have it",
        ),
        (
            "def rouge_1(written, wanted):\n"
            "    c = sum(min(written.count(w), wanted.count(w))\n"
            "            for w in set(written))\n"
            "    return (c / len(written) + c / len(wanted)) / 2",
            "the plain mean",
        ),
        (
            "def rouge_1(written, wanted):\n"
            "    c = sum(min(written.count(w), wanted.count(w))\n"
            "            for w in set(written))\n"
            "    p, r = c / len(written), c / len(wanted)\n"
            "    return 2 * p * r / (p + r)",
            "both 0 here",
        ),
        (
            "def rouge_1(written, wanted):\n    return float(written == wanted)",
            "exact match",
        ),
    ],
    "14.4": [
        (
            "def best_pair(first, then):\n"
            "    a = int(first.argmax())\n"
            "    return a, int(then[a].argmax())",
            "That is greedy",
        ),
        (
            "def best_pair(first, then):\n"
            "    return divmod(int(then.argmax()), len(first))",
            "most certain second word",
        ),
        (
            "def best_pair(first, then):\n"
            "    joint = first[:, None] + then\n"
            "    return divmod(int(joint.argmax()), len(first))",
            "not added",
        ),
        (
            "def best_pair(first, then):\n"
            "    joint = first[:, None] * then\n"
            "    return divmod(int(joint.argmax()), len(first))[::-1]",
            "written first",
        ),
        (
            "def best_pair(first, then):\n"
            "    return divmod(int((first * then).argmax()), len(first))",
            "which is the row",
        ),
        (
            "def best_pair(first, then):\n    return (first[:, None] * then).argmax()",
            "splits what argmax",
        ),
        ("def best_pair(first, then):\n    return 1, 1", "the likeliest pair is"),
        ("def best_pair(first, then):\n    return 0, 1, 2", "shape (2,)"),
    ],
}

OTHER = {
    "14.1": """
def given_from(targets):
    given = torch.tensor(targets).roll(1)
    given[0] = 1
    return given
""",
    "14.2": """
q, k = torch.tensor([2.0, 0, 1, 4]), torch.tensor([1.0, 3, -2, 2])
score = q @ k / math.sqrt(4)
""",
    "14.3": """
def rouge_1(written, wanted):
    left, common = list(wanted), 0
    for word in written:
        if word in left:
            left.remove(word)
            common += 1
    precision, recall = common / len(written), common / len(wanted)
    return 2 * precision * recall / (precision + recall) if common else 0
""",
    "14.4": """
def best_pair(first, then):
    pairs = [(a, b) for a in range(len(first)) for b in range(len(first))]
    return max(pairs, key=lambda ab: (first[ab[0]].log() + then[ab].log()).item())
""",
}
