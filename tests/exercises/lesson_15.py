"""Seeded answers for lesson 15: misconceptions with their message, other solutions."""

REVIEWED = True
SET_UP = """
import itertools
import numpy as np
from fractions import Fraction
"""

OVER = "def over_text(logits, text):\n    "
SPAN = "def best_span(start, end):\n    "
PAIRS = (
    SPAN + "spans = [(i, j) for i in range(len(start)) for j in range(i, len(end))]\n"
    "    "
)
TENSORS = (
    SPAN + "s, e = torch.tensor(start), torch.tensor(end)\n"
    "    both = s[:, None] + e\n    n = len(s)\n    "
)
ROOM = "def with_room(sentence, room):\n    "

WRONG = {
    "15.1": [
        ("span = (2, 2)", "last mention wins"),
        ("span = (15, 15)", "where ben is"),
        ("span = (10, 12)", "the full stop"),
        ("span = (11, 12)", "count from 1"),
        ("span = (16, 17)", "the whole row"),
        ("span = (8, 9)", "Full stops count"),
        ("span = (10.5, 11)", "whole numbers"),
        ("span = (10, 10)", "two words"),
        ("span = (11, 11)", "two words"),
        ("span = 10", "two numbers"),
        ("span = (6, 6)", 'are "rome"'),
        ("span = (8, 11)", '"anna entered new york"'),
        ("span = (8, 12)", "with other words"),
        ("span = (11, 10)", "no span of it"),
        ("span = (14, 15)", '"reached lima"'),
        ("span = 'new york'", "Expected numbers"),
    ],
    "15.2": [
        (OVER + "return logits", "unchanged"),
        (OVER + "return logits * text", "Multiplying by 0"),
        (OVER + 'return logits.masked_fill(text, float("-inf"))', "hid words"),
        (OVER + "return logits[text]", "2 came back"),
        (
            OVER + "return logits.masked_fill(~text, -math.inf)[None]",
            "must have shape (5,); yours has (1, 5)",
        ),
        (
            OVER + "return torch.where(text, logits, logits.min() - 1)",
            "noticeable",
        ),
        (OVER + "return logits.masked_fill(~text, -5.0)", "noticeable"),
        (OVER + "return logits.masked_fill(~text, -99)", "lower than any other"),
        (OVER + "return logits.masked_fill(~text, -1e4)", "lower than any other"),
        (OVER + "return logits.masked_fill(~text, -1e9)", "lower than any other"),
        (OVER + "return logits - 1e4 * ~text", "lower than any other"),
        (
            OVER + 'return logits.masked_fill(~text, float("-inf")).softmax(0)',
            "You gave probabilities",
        ),
        (OVER + "return logits + ~text * -math.inf", "0 times -inf"),
        (
            OVER + 'return (logits * 2).masked_fill(~text, float("-inf"))',
            "follow the given logits",
        ),
        (OVER + "logits[~text] = -math.inf\n    return logits", "changed logits"),
        (
            OVER + "out = logits.clone()\n    out[:2] = -math.inf\n    return out",
            "masked word has",
        ),
        (
            OVER + "out = logits.clone()\n    out[~text] = logits[text].min() - 40\n"
            "    out[-1] = -math.inf if not text[-1] else out[-1]\n"
            "    return out.clamp(max=1)",
            "follow the given logits",
        ),
    ],
    "15.3": [
        (
            SPAN + "return start.index(max(start)), end.index(max(end))",
            "ends before it starts",
        ),
        (
            SPAN + "i, j = start.index(max(start)), end.index(max(end))\n"
            "    return min(i, j), max(i, j)",
            "swap it if they are in the wrong order",
        ),
        (
            SPAN + "i = start.index(max(start))\n"
            "    return i, end.index(max(end[i:]), i)",
            "best start first",
        ),
        (
            SPAN + "both = [a + b for a, b in zip(start, end)]\n"
            "    return (both.index(max(both)),) * 2",
            "single words",
        ),
        (
            SPAN + "j = end.index(max(end))\n"
            "    return start.index(max(start[:j + 1])), j",
            "best end first",
        ),
        (
            SPAN + "spans = [(i, j) for i in range(len(start))\n"
            "             for j in range(i + 1, len(end))]\n"
            "    return max(spans or [(0, 0)],\n"
            "               key=lambda s: start[s[0]] + end[s[1]])",
            "never point at a single word",
        ),
        (
            PAIRS + "return max(spans, key=lambda s: start[s[0]] * end[s[1]])",
            "the score of a span is the sum",
        ),
        (
            PAIRS + "return max(spans, key=lambda s: end[s[0]] + start[s[1]])",
            "swap the roles",
        ),
        (
            PAIRS + "spans = [s for s in spans if s[1] <= s[0] + 1]\n"
            "    return max(spans, key=lambda s: start[s[0]] + end[s[1]])",
            "at most two words",
        ),
        (
            PAIRS + "spans = [s for s in spans if s[1] <= s[0] + 2]\n"
            "    return max(spans, key=lambda s: start[s[0]] + end[s[1]])",
            "at most three words",
        ),
        (
            PAIRS + "best, found = 0, (0, 0)\n    for i, j in spans:\n"
            "        if start[i] + end[j] > best:\n"
            "            best, found = start[i] + end[j], (i, j)\n    return found",
            "which scores",
        ),
        (
            TENSORS + "return divmod(int(both.triu().argmax()), n)",
            "ends before it starts",
        ),
        (
            PAIRS + "spans = [s for s in spans if s[1] <= s[0] + 4]\n"
            "    return max(spans, key=lambda s: start[s[0]] + end[s[1]])",
            "which scores",
        ),
        (
            PAIRS + "return max(spans, key=lambda s: abs(start[s[0]] + end[s[1]]))",
            "which scores",
        ),
        (
            PAIRS + "a, b = max(spans, key=lambda s: start[s[0]] + end[s[1]])\n"
            "    return a, b + 1",
            "numbered from 0",
        ),
        (
            PAIRS + "return max(spans, key=lambda s: (start[s[0]] + end[s[1]])\n"
            "               / (s[1] - s[0] + 1))",
            "which scores",
        ),
        (SPAN + "return 1, 2", "numbered from 0"),
        (SPAN + "return 0, 0", "which scores"),
    ],
    "15.4": [
        (ROOM + "return torch.arange(len(sentence))", "nothing has moved"),
        (
            ROOM + "moved = torch.tensor([0, *room])\n"
            "    return torch.arange(len(sentence)) + moved[sentence]",
            "before earlier sentences",
        ),
        (ROOM + "return torch.tensor([0, *room]).cumsum(0)[sentence]", "the moves"),
        (
            ROOM + "moved = torch.tensor([*room, 0]).cumsum(0)\n"
            "    return torch.arange(len(sentence)) + moved[sentence]",
            "The question has moved",
        ),
        (
            ROOM + "moved = torch.tensor([0, *room]).cumsum(0)\n"
            "    return torch.arange(1, len(sentence) + 1) + moved[sentence]",
            "one too high",
        ),
        (
            ROOM + "moved = torch.tensor([0, *room]).cumsum(0)\n"
            "    return torch.arange(len(sentence)) - moved[sentence]",
            "it should be",
        ),
        (
            ROOM + "moved = torch.tensor([0, *sorted(room)]).cumsum(0)\n"
            "    return torch.arange(len(sentence)) + moved[sentence]",
            "it should be",
        ),
        (
            ROOM + "moved = torch.tensor([0, *room]).cumsum(0).clamp(max=40)\n"
            "    return torch.arange(len(sentence)) + moved[sentence]",
            "it should be",
        ),
        (
            ROOM + "moved = torch.tensor([0, *room]).cummax(0).values\n"
            "    return torch.arange(len(sentence)) + moved[sentence]",
            "it should be",
        ),
        (
            ROOM + "return torch.arange(len(sentence)) * (1 + sentence)",
            "each step should be 1",
        ),
        (
            ROOM + "sentence += 1\n"
            "    moved = torch.tensor([0, 0, *room]).cumsum(0)\n"
            "    return torch.arange(len(sentence)) + moved[sentence]",
            "changed sentence",
        ),
        (
            ROOM + "room.insert(0, 0)\n    moved = torch.tensor(room).cumsum(0)\n"
            "    return torch.arange(len(sentence)) + moved[sentence]",
            "changed room",
        ),
        (ROOM + "return torch.arange(len(sentence) + sum(room))", "positions"),
    ],
}

OTHER = {
    "15.1": [
        "span = torch.tensor([10, 11])",
        "span = [Fraction(10), 11.0]",
        "span = iter(np.array([10, 11], dtype=np.int8))",
    ],
    "15.2": [
        OVER + "return torch.where(text, logits, -math.inf)",
        OVER + "low = torch.finfo(logits.dtype).min\n"
        "    return torch.where(text, logits, torch.tensor(low))",
        OVER + "return np.where(text, logits.numpy(), -np.inf)",
        OVER + "return [x if t else -math.inf\n"
        "            for x, t in zip(logits.tolist(), text.tolist())]",
        OVER + "return logits + torch.log(text.float())",
    ],
    "15.3": [
        TENSORS + "hidden = torch.ones(n, n).tril(-1).bool()\n"
        "    both = both.masked_fill(hidden, -math.inf)\n"
        "    return torch.unravel_index(both.argmax(), both.shape)",
        SPAN + "pairs = itertools.combinations_with_replacement(range(len(end)), 2)\n"
        "    return list(max(pairs, key=lambda s: start[s[0]] + end[s[1]]))",
        SPAN + "best, i, found = -math.inf, 0, None\n"
        "    for j in range(len(end)):\n"
        "        i = j if start[j] > start[i] else i\n"
        "        if start[i] + end[j] > best:\n"
        "            best, found = start[i] + end[j], (i, j)\n"
        "    return found",
    ],
    "15.4": [
        """
def with_room(sentence, room):
    places, at = [], 0
    for n, s in enumerate(sentence.tolist()):
        if n and s != sentence[n - 1]:
            at += room[s - 1]
        places.append(at)
        at += 1
    return places
""",
        """
def with_room(sentence, room):
    steps = np.ones(len(sentence), dtype=int)
    steps[0] = 0
    edges = np.flatnonzero(np.diff(sentence.numpy())) + 1
    steps[edges] += np.array(room, dtype=int)
    return steps.cumsum()
""",
        ROOM + "moved = torch.tensor([0, *room]).float().cumsum(0)\n"
        "    return torch.arange(len(sentence)) + moved.index_select(0, sentence)",
    ],
}
