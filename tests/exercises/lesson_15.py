"""Seeded answers for lesson 15: misconceptions with their message, another solution."""

WRONG = {
    "15.1": [
        ("span = (2, 2)", "last mention wins"),
        ("span = (15, 15)", "where ben is"),
        ("span = (10, 12)", "the full stop"),
        ("span = (11, 12)", "count from 0"),
        ("span = (16, 17)", "the text only"),
        ("span = (8, 9)", "left out the full stops"),
        ("span = (10.5, 11)", "whole numbers"),
        ("span = (10, 10)", "two words"),
        ("span = 10", "two numbers"),
        ("span = (6, 6)", "are not the answer"),
    ],
    "15.2": [
        ("def over_text(logits, text):\n    return logits", "unchanged"),
        ("def over_text(logits, text):\n    return logits * text", "Multiplying by 0"),
        (
            "def over_text(logits, text):\n"
            '    return logits.masked_fill(text, float("-inf"))',
            "hid the text",
        ),
        ("def over_text(logits, text):\n    return logits[text]", "2 came back"),
        (
            "def over_text(logits, text):\n    return logits.masked_fill(~text, -5.0)",
            "noticeable",
        ),
        (
            "def over_text(logits, text):\n    return logits.masked_fill(~text, -99)",
            "lower than any other",
        ),
        (
            "def over_text(logits, text):\n"
            '    return logits.masked_fill(~text, float("-inf")).softmax(0)',
            "You gave probabilities",
        ),
        (
            "def over_text(logits, text):\n    return logits + ~text * -math.inf",
            "0 times -inf",
        ),
        (
            "def over_text(logits, text):\n"
            '    return (logits * 2).masked_fill(~text, float("-inf"))',
            "follow the given logits",
        ),
    ],
    "15.3": [
        (
            "def best_span(start, end):\n"
            "    return start.index(max(start)), end.index(max(end))",
            "ends before it starts",
        ),
        (
            "def best_span(start, end):\n"
            "    i, j = start.index(max(start)), end.index(max(end))\n"
            "    return min(i, j), max(i, j)",
            "swapped",
        ),
        (
            "def best_span(start, end):\n"
            "    i = start.index(max(start))\n"
            "    return i, end.index(max(end[i:]), i)",
            "best start first",
        ),
        (
            "def best_span(start, end):\n"
            "    both = [a + b for a, b in zip(start, end)]\n"
            "    return (both.index(max(both)),) * 2",
            "more than one word",
        ),
        (
            "def best_span(start, end):\n"
            "    j = end.index(max(end))\n"
            "    return start.index(max(start[:j + 1])), j",
            "the best end first",
        ),
        (
            "def best_span(start, end):\n"
            "    spans = [(i, j) for i in range(len(start))\n"
            "             for j in range(i + 1, len(end))]\n"
            "    return max(spans, key=lambda s: start[s[0]] + end[s[1]])",
            "may be the same",
        ),
        (
            "def best_span(start, end):\n"
            "    spans = [(i, j) for i in range(len(start))\n"
            "             for j in range(i, len(end))]\n"
            "    return max(spans, key=lambda s: start[s[0]] * end[s[1]])",
            "score of a span is the sum",
        ),
        ("def best_span(start, end):\n    return 1, 2", "the best span is"),
    ],
    "15.4": [
        (
            "def word_f1(given, wanted):\n"
            "    a, b = given.split(), wanted.split()\n"
            "    return len(set(a) & set(b)) / len(a)",
            "precision",
        ),
        (
            "def word_f1(given, wanted):\n"
            "    a, b = given.split(), wanted.split()\n"
            "    return len(set(a) & set(b)) / len(b)",
            "recall",
        ),
        (
            "def word_f1(given, wanted):\n    return float(given == wanted)",
            "exact match",
        ),
        (
            "def word_f1(given, wanted):\n"
            "    a, b = given.split(), wanted.split()\n"
            "    return 2 * sum(w in b for w in a) / (len(a) + len(b))",
            "repeated word twice",
        ),
        (
            "def word_f1(given, wanted):\n"
            "    a, b = given.split(), wanted.split()\n"
            "    return 2 * len(set(a) & set(b)) / (len(a) + len(b))",
            "counted each word once",
        ),
        (
            "def word_f1(given, wanted):\n"
            "    a, b = given.split(), wanted.split()\n"
            "    c = sum(min(a.count(w), b.count(w)) for w in set(a))\n"
            "    return (c / len(a) + c / len(b)) / 2",
            "the plain mean",
        ),
        (
            "def word_f1(given, wanted):\n"
            "    a, b = given.split(), wanted.split()\n"
            "    c = sum(min(a.count(w), b.count(w)) for w in set(a))\n"
            "    p, r = c / len(a), c / len(b)\n"
            "    return 2 * p * r / (p + r)",
            "both 0 here",
        ),
        ("def word_f1(given, wanted):\n    return 0.3", "F1 is"),
    ],
}

OTHER = {
    "15.1": "span = torch.tensor([10, 11])",
    "15.2": """
def over_text(logits, text):
    return torch.where(text, logits, torch.tensor(-1e9))
""",
    "15.3": """
def best_span(start, end):
    s, e = torch.tensor(start), torch.tensor(end)
    both = (s[:, None] + e).masked_fill(
        torch.ones(len(s), len(e)).tril(-1).bool(), -1e9)
    return torch.unravel_index(both.argmax(), both.shape)
""",
    "15.4": """
def word_f1(given, wanted):
    left, common = wanted.split(), 0
    for word in given.split():
        if word in left:
            left.remove(word)
            common += 1
    p, r = common / len(given.split()), common / len(wanted.split())
    return 2 * p * r / (p + r) if common else 0.0
""",
}
