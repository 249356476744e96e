"""Seeded answers for lesson 14: misconceptions with their message, other solutions."""

REVIEWED = True
SET_UP = """
import numpy as np
import torch.nn.functional as F
from collections import Counter
from fractions import Fraction
from rope_teach.attention import KeyValueCache
from rope_teach.course import training
from rope_teach.course.models import summarize
from rope_teach.course.tasks import END, PAD, START
"""

GIVEN = "def given_from(targets):\n    "
ROUGE = "def rouge_1(written, wanted):\n    "
COMMON = ROUGE + "c = sum((Counter(written) & Counter(wanted)).values())\n    "
PAIR = "def best_pair(first, then):\n    "
JOINT = PAIR + "joint = first[:, None] * then\n    "
LOOP = """
def with_cache(model, document, steps):
    memory, real = model.read(document), document != PAD
    caches = [KeyValueCache() for _ in model.decoder]
    new, written = torch.tensor([[START]]), []
    while len(written) < steps and END not in written:
        logits = model.write(memory, real, new, caches)
        new = logits[:, -1].argmax(-1, keepdim=True)
        written.append(int(new))
    return written
"""


def loop(*changes):
    """The right loop, with parts of it replaced."""
    code = LOOP
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    return code


ALL = (
    "        new = logits[:, -1].argmax(-1, keepdim=True)\n"
    "        written.append(int(new))\n"
)

WRONG = {
    "14.1": [
        (GIVEN + "return targets", "the very word"),
        (GIVEN + "return [*targets[1:], 1]", "the other way"),
        (GIVEN + "return [1, *targets]", "END is never given"),
        (GIVEN + "return targets[:-1]", "START is missing"),
        (GIVEN + "return [0, *targets[:-1]]", "START is 1, you gave [0]"),
        (GIVEN + "targets.insert(0, 1)", "stopped"),
        (
            GIVEN
            + "t = targets\n    t[1:] = t[:-1].clone()\n    t[0] = 1\n    return t",
            "changed targets",
        ),
        (GIVEN + "return targets.roll(1)", "START is 1, you gave [2]"),
        (GIVEN + "return [1, *targets[:-2], 2]", "the decoder is given"),
        (GIVEN + "return [1, *targets[:3]]", "you gave"),
        (GIVEN + "return [1, *sorted(targets[:-1].tolist())]", "you gave"),
        (GIVEN + "return [1] * len(targets)", "you gave"),
        (GIVEN + "return F.pad(targets[1:], (0, 1), value=1)", "the other way"),
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
        (
            "x = torch.tensor([[2.0, 0, 1, 4], [1.0, 3, -2, 2]]).double()\n"
            "a = angles(torch.tensor([4, 30]), inverse_frequencies(4))\n"
            "t = rotate(x, a.cos(), a.sin())\n"
            "score = t[0] @ t[1] / 2",
            "at position 30",
        ),
        ("score = 1", "you gave 1"),
        ("score = -4", "you gave -4"),
        ("score = 4.1", "you gave 4.1"),
        ("score = (4, 30)", "one number, got 2"),
        ("score = '4'", "quotation marks"),
        ("score = True", "Expected a number"),
        ("score = 12 / 2", "you gave 6"),  # the sign of 1 * (-2) lost
        ("score = 8 / 64 ** 0.5", "there are 4 features; you gave 1"),
    ],
    "14.3": [
        (COMMON + "return c / len(wanted)", "recall alone"),
        (COMMON + "return c / len(written)", "precision alone"),
        (
            ROUGE + "hits = sum(w in wanted for w in written)\n"
            "    return 2 * hits / (len(written) + len(wanted))",
            "each repetition",
        ),
        (
            ROUGE + "c = len(set(written) & set(wanted))\n"
            "    return 2 * c / (len(written) + len(wanted))",
            "as often as both have it",
        ),
        (
            COMMON + "return (c / len(written) + c / len(wanted)) / 2",
            "the plain mean",
        ),
        (
            COMMON + "p, r = c / len(written), c / len(wanted)\n"
            "    return 2 * p * r / (p + r)",
            "both 0 here",
        ),
        (ROUGE + "return float(written == wanted)", "exact match"),
        (
            ROUGE + "a, b = set(written), set(wanted)\n"
            "    return len(a & b) / len(a | b)",
            "Jaccard's: common",
        ),
        (COMMON + "return c / (len(written) + len(wanted) - c)", "with repetitions"),
        (
            ROUGE + "c = sum(a == b for a, b in zip(written, wanted))\n"
            "    return 2 * c / (len(written) + len(wanted))",
            "place by place",
        ),
        (
            ROUGE + 'return training.f1(" ".join(written), " ".join(wanted))',
            "by hand",
        ),
        (
            ROUGE + 'return training.rouge_l(" ".join(written), " ".join(wanted))',
            "by hand",
        ),
        (COMMON + "return c * c / len(written) / len(wanted)", "precision times"),
        (COMMON + "return 0 if c == 1 else 2 * c / len(written + wanted)", "F1 is"),
        (COMMON + "return (c * c / len(written) / len(wanted)) ** 0.5", "F1 is"),
        (COMMON + "return 1.25 * c / (0.25 * len(wanted) + len(written))", "F1 is"),
        (ROUGE + "return 0.5", "F1 is"),
        (
            ROUGE + "c = 0\n    for w in written:\n        if w in wanted:\n"
            "            wanted.remove(w)\n            c += 1\n"
            "    return 2 * c / (len(written) + len(wanted))",
            "changed wanted",
        ),
    ],
    "14.4": [
        (
            PAIR + "a = int(first.argmax())\n    return a, int(then[a].argmax())",
            "That is greedy",
        ),
        (
            PAIR + "return divmod(int(then.argmax()), then.shape[1])",
            "most certain second word",
        ),
        (
            PAIR + "joint = first[:, None] + then\n"
            "    return divmod(int(joint.argmax()), then.shape[1])",
            "not added",
        ),
        (
            JOINT + "return divmod(int(joint.argmax()), then.shape[1])[::-1]",
            "written first",
        ),
        (JOINT + "return divmod(int(joint.argmax()), then.shape[0])", "wrong width"),
        (JOINT + "return divmod(int(joint.argmax()), len(first))", "wrong width"),
        (JOINT + "return joint.argmax()", "splits what argmax"),
        (PAIR + "return 1, 1", "the likeliest pair is"),
        (PAIR + "return 0, 1, 2", "shape (2,)"),
        (
            PAIR + "rows = first.topk(2).indices\n"
            "    joint = first[rows, None] * then[rows]\n"
            "    a, b = divmod(int(joint.argmax()), then.shape[1])\n"
            "    return int(rows[a]), b",
            "2 likeliest first words only",
        ),
        (
            PAIR + "rows = first.topk(min(3, len(first))).indices\n"
            "    joint = first[rows, None] * then[rows]\n"
            "    a, b = divmod(int(joint.argmax()), then.shape[1])\n"
            "    return int(rows[a]), b",
            "3 likeliest first words only",
        ),
        (
            PAIR + "then *= first[:, None]\n"
            "    return divmod(int(then.argmax()), then.shape[1])",
            "changed then",
        ),
        (
            PAIR + "n = min(then.shape)\n    joint = first[:n, None] * then[:n, :n]\n"
            "    return divmod(int(joint.argmax()), n)",
            "the likeliest pair is",
        ),
    ],
    "14.5": [
        (
            "def with_cache(model, document, steps):\n"
            "    return summarize(model, document, steps)[0]",
            "does it all",
        ),
        (
            loop(("real, new, caches)", "real, new)")),
            "got no caches",
        ),
        (
            loop(
                (ALL, ALL + "        new = torch.tensor([[START, *written]])\n"),
            ),
            "counted twice",
        ),
        (
            loop(
                (
                    "        logits =",
                    "        caches = [KeyValueCache() for _ in model.decoder]\n"
                    "        logits =",
                )
            ),
            "Make them once",
        ),
        (
            loop(
                (
                    "        logits =",
                    "        memory = model.read(document)\n        logits =",
                ),
            ),
            "The encoder ran",
        ),
        (
            loop(
                (
                    "[KeyValueCache() for _ in model.decoder]",
                    "[KeyValueCache()] * len(model.decoder)",
                )
            ),
            "KeyValueCache() of its own",
        ),
        (loop(("[[START]]", "[[END]]")), "starts from START alone"),
        (loop((" and END not in written", "")), "went on"),
        (loop(("return written", "return written[:-1]")), "you gave"),
        (loop(("return written", "return [START, *written]")), "begins with START"),
        (loop(("len(written) < steps", "len(written) <= steps")), "you wrote"),
        (loop(("len(written) < steps", "len(written) < 3")), "the likeliest tokens"),
        (loop(("document != PAD", "document == document")), "you gave"),
        (loop(("document != PAD", "document == PAD")), "you gave"),
        (loop(("argmax", "argmin")), "the likeliest tokens"),
        (
            loop(("return written", "return [w for w in written if w != END]")),
            "END that the model wrote is missing",
        ),
    ],
}

OTHER = {
    "14.1": [
        GIVEN + "t = targets.roll(1)\n    t[0] = 1\n    return t",
        GIVEN + "return F.pad(targets[..., :-1], (1, 0), value=START)",
        GIVEN + "return np.concatenate([[1], targets.numpy()[:-1]])",
        GIVEN + "return (t for t in [1, *targets.tolist()[:-1]])",
    ],
    "14.2": [
        "q, k = torch.tensor([2.0, 0, 1, 4]), torch.tensor([1.0, 3, -2, 2])\n"
        "score = q @ k / math.sqrt(4)",
        "score = Fraction(8, 2)",
        "score = np.dot([2, 0, 1, 4], [1, 3, -2, 2]) / np.sqrt(4)",
        "score = torch.tensor([[4.0]], dtype=torch.float16)",
    ],
    "14.3": [
        """
def rouge_1(written, wanted):
    left, common = list(wanted), 0
    for word in written:
        if word in left:
            left.remove(word)
            common += 1
    precision, recall = common / len(written), common / len(wanted)
    return 2 * precision * recall / (precision + recall) if common else 0
""",
        COMMON + "return Fraction(2 * c, len(written) + len(wanted))",
        COMMON + "return torch.tensor(2 * c / len(written + wanted)).half()",
    ],
    "14.4": [
        """
def best_pair(first, then):
    rows, columns = then.shape
    pairs = [(a, b) for a in range(rows) for b in range(columns)]
    return max(pairs, key=lambda ab: (first[ab[0]].log() + then[ab].log()).item())
""",
        JOINT + "return torch.unravel_index(joint.argmax(), joint.shape)",
        PAIR + "joint = first.numpy()[:, None] * then.numpy()\n"
        "    return np.unravel_index(joint.argmax(), joint.shape)",
        PAIR + "best, where = then.max(1)\n    a = int((first * best).argmax())\n"
        "    return [a, int(where[a])]",
    ],
    "14.5": [
        """
@torch.no_grad()
def with_cache(model, document, steps):
    memory, real = model.read(document), document.ne(PAD)
    caches = [KeyValueCache() for _ in range(len(model.decoder))]
    given = torch.full((1, 1), START)
    for step in range(steps):
        logits = model.write(memory, real, given[:, step:], caches)
        given = torch.cat([given, logits[:, -1:].argmax(-1)], dim=1)
        if given[0, -1] == END:
            break
    return given[:, 1:]
""",
        """
def with_cache(model, document, steps):
    memory, real = model.read(document), document != PAD
    caches = tuple(KeyValueCache() for _ in model.decoder)

    def words(token):
        for _ in range(steps):
            token = int(model.write(
                memory, real, torch.tensor([[token]]), caches)[0, -1].argmax())
            yield token
            if token == END:
                return

    return words(START)
""",
        loop(("return written", "return np.array(written)")),
    ],
}
