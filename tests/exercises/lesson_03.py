"""Seeded answers for lesson 03: misconceptions with their message, another solution."""

REVIEWED = True

SET_UP = "from rope_teach.absolute import alibi_slopes"


def _attention(scores: str = "", bias: str = "", mask: str = "", mix: str = "") -> str:
    return f"""
def attend(q, k, v, slopes):
    m, n = torch.arange(q.shape[1])[:, None], torch.arange(q.shape[1])
    scores = {scores or "q @ k.mT / q.shape[-1] ** 0.5"}
    scores = scores {bias or "- slopes[:, None, None] * (m - n).abs()"}
    scores = scores{mask or ".masked_fill(n > m, -math.inf)"}
    return {mix or "scores.softmax(-1) @ v"}
"""


WRONG = {
    "3.1": [
        ("start = 28", "Rows count from 0"),
        ("start = 31", "Four more come after it"),
        ("start = 26", "a larger start"),
        ("start = 5", "there is a larger start"),
        ("start = 32", "Four more come after it"),
        ("start = 0", "there is a larger start"),
        ("start = 29", "the last token is at 33"),
        ("start = -5", "the largest start"),
        ("start = 26.5", "whole number"),
        ("start = list(range(28))", "Expected one number, got 28"),
    ],
    "3.2": [
        (
            "def slopes(heads):\n"
            "    return [2 ** (-8 * h / heads) for h in range(heads)]",
            "starts at 0",
        ),
        (
            "def slopes(heads):\n    return [2.0**-h for h in range(1, heads + 1)]",
            "only for 8 heads",
        ),
        (
            "def slopes(heads):\n"
            "    return [-(2 ** (-8 * h / heads)) for h in range(1, heads + 1)]",
            "A slope is positive",
        ),
        (
            "def slopes(heads):\n"
            "    return [2 ** (-8 * h / heads) for h in range(heads, 0, -1)]",
            "flattest",
        ),
        (
            "def slopes(heads):\n"
            "    return 2 ** (8 * torch.arange(1, heads + 1) / heads)",
            "minus sign in the exponent",
        ),
        (
            "def slopes(heads):\n    return torch.linspace(0.5, 1 / 256, heads)",
            "With 8 heads: At place 1 it should be 0.25; yours is 0.429",
        ),
        (
            "def slopes(heads):\n    return alibi_slopes(heads)",
            "Use the formula",
        ),
        (
            "from rope_teach import absolute\n"
            "def slopes(heads):\n    return list(absolute.alibi_slopes(heads))",
            "Use the formula",
        ),
        (
            "def slopes(heads):\n"
            "    return [2 ** (-8 * h // heads) for h in range(1, heads + 1)]",
            "With 16 heads: At place 0 it should be 0.707; yours is 0.5",
        ),
        (
            "def slopes(heads):\n"
            "    return [2 ** (-8 * h / heads) for h in range(1, heads)]",
            "8 heads have 8 slopes; you gave 7",
        ),
        (
            "def slopes(heads):\n"
            "    return [round(2 ** (-8 * h / heads), 2) for h in range(1, heads + 1)]",
            "With 8 heads: At place 2",
        ),
        (
            "def slopes(heads):\n"
            "    return [math.exp(-8 * h / heads) for h in range(1, heads + 1)]",
            "it should be 0.5; yours is 0.368",
        ),
    ],
    "3.3": [
        (
            "def is_relative(bias):\n"
            "    return bool(bias[0, 0] == bias[1, 1] and bias[0, 1] == bias[1, -1])",
            "ALiBi's bias",
        ),
        (
            "def is_relative(bias):\n    b = bias[:2]\n"
            "    return torch.equal(b[1:, 1:], b[:-1, :-1])",
            "One entry is off",
        ),
        (
            "def is_relative(bias):\n    b = bias[-2:]\n"
            "    return torch.equal(b[1:, 1:], b[:-1, :-1])",
            "row 0, column 0",
        ),
        (
            "def is_relative(bias):\n"
            "    return torch.equal(bias.triu()[1:, 1:], bias.triu()[:-1, :-1])",
            "row 1, column 0",
        ),
        (
            "def is_relative(bias):\n"
            "    return torch.equal(bias.tril()[1:, 1:], bias.tril()[:-1, :-1])",
            "row 0, column 1",
        ),
        (
            "def is_relative(bias):\n"
            "    b = bias[:4, :4]\n    return torch.equal(b[1:, 1:], b[:-1, :-1])",
            "row 0, column 3",
        ),
        (
            "def is_relative(bias):\n    m = torch.arange(len(bias))\n"
            "    bias -= 1\n    return torch.equal(bias[1:, 1:], bias[:-1, :-1])",
            "changed bias",
        ),
        (
            "def is_relative(bias):\n"
            "    return bias[0].tolist() == sorted(bias[0].tolist(), reverse=True)",
            "may treat before and after differently",
        ),
        (
            "def is_relative(bias):\n"
            "    return torch.allclose(bias[1:, 1:], bias[:-1, :-1], atol=1)",
            "the key's position",
        ),
        (
            "def is_relative(bias):\n"
            "    d = bias.diagonal\n"
            "    return all(d(k).unique().numel() == 1 for k in (-1, 0, 1))",
            "row 0, column 2",
        ),
        ("def is_relative(bias):\n    return torch.equal(bias, bias.T)", "symmetric"),
        (
            "def is_relative(bias):\n    d = bias.diagonal()\n"
            "    return bool((d == d[0]).all())",
            "The other diagonals",
        ),
        ("def is_relative(bias):\n    return True", "symmetric does not mean relative"),
        ("def is_relative(bias):\n    return False", "ALiBi's bias"),
        (
            "def is_relative(bias):\n    return bias[1:, 1:] == bias[:-1, :-1]",
            "one True or False",
        ),
        (
            "def is_relative(bias):\n"
            "    return torch.equal(bias[1], bias[0]) or bias[0, 0] == 0",
            "m · n is symmetric",
        ),
        (
            "def is_relative(bias):\n"
            "    return torch.allclose(bias[1:, 1:], bias[:-1, :-1], atol=0.1)",
            "off, by 0.02",
        ),
        (
            "def is_relative(bias):\n"
            "    n, most = len(bias), 0.05 * bias.std()\n"
            "    rows = (bias.diagonal(k) for k in range(1 - n, n))\n"
            "    return all(row.std(correction=0) < most for row in rows)",
            "off, by 0.02",
        ),
        (
            "def is_relative(bias):\n"
            "    return torch.equal(bias[2:, 2:], bias[:-2, :-2])",
            "For 2 tokens",
        ),
        (
            "def is_relative(bias):\n"
            "    n = len(bias)\n"
            "    rows = (bias.diagonal(k) for k in range(1 - n, n))\n"
            "    return all(bool(row[0] == row[-1]) for row in rows)",
            "off, by 0.02",
        ),
    ],
    "3.4": [
        ("def reach(slope):\n    return 100 / slope", "where the bias is -100"),
        ("def reach(slope):\n    return math.log10(100) / slope", "base 10"),
        ("def reach(slope):\n    return math.log(0.01) / slope", "negative distance"),
        ("def reach(slope):\n    return 0.99 / slope", "in a straight line"),
        ("def reach(slope):\n    return math.log(100) * slope", "multiplied"),
        ("def reach(slope):\n    return 50", "not 1 %"),
        ("def reach(slope):\n    return math.log(99) / slope", "two weights together"),
        ("def reach(slope):\n    return math.log(101) / slope", "0.99 % of"),
        (
            "def reach(slope):\n    return min(math.log(100) / slope, 1000)",
            "With slope 0.0039",
        ),
        ("def reach(slope):\n    return math.log(100) / slope + 2", "not 1 %"),
        (
            "def reach(slope):\n    return {0.5: 9.21, 1/16: 73.68}.get(slope, 1179)",
            "With slope 0.037",
        ),
        ("def reach(slope):\n    return [math.log(100) / slope] * 2", "got 2"),
        ("def reach(slope):\n    return math.log2(100) / slope", "base 2"),
    ],
    "3.5": [
        (_attention(mask=""".clone()"""), "look ahead"),
        (_attention(bias="+ 0"), "without a slope"),
        (_attention(bias="+ slopes[:, None, None] * (m - n).abs()"), "*raises*"),
        (_attention(scores="q @ k.mT"), "not divided"),
        (_attention(scores="q @ k.mT / q.shape[-1]"), "not by its root"),
        (
            _attention(
                bias="- slopes[:, None, None] * (m - n).abs() / q.shape[-1] ** 0.5"
            ),
            "together with the scores",
        ),
        (_attention(mask=".tril()"), "gets a score of 0"),
        (_attention(mix="scores.softmax(-2).nan_to_num() @ v"), "over the queries"),
        (_attention(mask=".softmax(-1).tril()", mix="scores @ v"), "add up to 1"),
        (_attention(bias="- slopes[0] * (m - n).abs()"), "slope of the first"),
        (_attention(bias="- slopes.flip(0)[:, None, None] * (m - n).abs()"), "reverse"),
        (_attention(bias="- slopes[:, None, None] * (m - n) ** 2"), "square"),
        (_attention(mask=".masked_fill(n < m, -math.inf)"), "shows the later ones"),
        (_attention(mask=".masked_fill(n >= m, -math.inf)"), "head 0, token 0"),
        (_attention(mix="scores.softmax(-1)"), "must have shape (2, 5, 4)"),
        (_attention(mix="(scores.softmax(-1) @ v).transpose(0, 1)"), "must have shape"),
        (_attention(bias="- slopes * (m - n).abs()"), "shapes do not fit"),
        (_attention(scores="q.double() @ k.mT"), "mixes two types of number"),
        (
            _attention().replace(
                "    scores = q", "    q /= q.shape[-1] ** 0.5\n    scores = q"
            ),
            "changed q",
        ),
        (
            """
def attend(q, k, v, slopes):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
""",
            "without a slope",
        ),
        (
            _attention(mask=".masked_fill(n > m, -5.0)"),
            "it should be",
        ),
        (
            _attention(scores="q @ k.mT / q.shape[1] ** 0.5"),
            "it should be",
        ),
    ],
}

OTHER = {
    "3.1": [
        "start = torch.tensor(27)",
        "start = max(m for m in range(40) if m + 4 in range(32))",
    ],
    "3.2": [
        """
def slopes(heads):
    first = 2 ** (-8 / heads)
    return torch.tensor([first ** (h + 1) for h in range(heads)])
""",
        """
def slopes(heads):
    import numpy as np
    return 0.5 ** (8 * np.arange(1, heads + 1) / heads)
""",
        """
def slopes(heads):
    return (math.exp(-8 * math.log(2) * h / heads) for h in range(1, heads + 1))
""",
    ],
    "3.3": [
        """
def is_relative(bias):
    seq = len(bias)
    return all(len(set(bias.diagonal(k).tolist())) == 1 for k in range(1 - seq, seq))
""",
        """
def is_relative(bias):
    return (bias[1:, 1:] == bias[:-1, :-1]).all()
""",
        """
def is_relative(bias):
    import numpy as np
    b = bias.numpy()
    seen = {}
    for (m, n), value in np.ndenumerate(b):
        if seen.setdefault(n - m, value) != value:
            return np.bool_(False)
    return np.bool_(True)
""",
    ],
    "3.4": [
        """
def reach(slope):
    distance = 0
    while math.exp(-slope * distance) > 0.01:
        distance += 1
    return distance
""",
        """
def reach(slope):
    return math.floor(math.log(100) / slope)
""",
        """
def reach(slope):
    return torch.tensor(100.0).log() / slope
""",
    ],
    "3.5": [
        """
def attend(q, k, v, slopes):
    n = torch.arange(q.shape[1])
    bias = (slopes[:, None] * n)[:, None].repeat(1, len(n), 1)
    bias = bias.masked_fill(n > n[:, None], -math.inf)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
""",
        """
def attend(q, k, v, slopes):
    out = torch.zeros_like(v)
    for h in range(len(q)):
        for m in range(q.shape[1]):
            scores = k[h, : m + 1] @ q[h, m] / q.shape[-1] ** 0.5
            weights = (scores - slopes[h] * torch.arange(m, -1, -1)).exp()
            out[h, m] = weights @ v[h, : m + 1] / weights.sum()
    return out
""",
        """
def attend(q, k, v, slopes):
    q, k, v, slopes = (t.double().numpy() for t in (q, k, v, slopes))
    import numpy as np
    m = np.arange(q.shape[1])
    weights = np.exp(q @ k.swapaxes(1, 2) / q.shape[-1] ** 0.5
                     - slopes[:, None, None] * abs(m[:, None] - m))
    weights = np.tril(weights)
    return weights / weights.sum(-1, keepdims=True) @ v
""",
        """
def attend(q, k, v, slopes):
    n = torch.arange(q.shape[1])
    bias = (slopes[:, None, None] * n).expand(-1, len(n), -1)  # one number a key
    bias = bias.masked_fill(n > n[:, None], -math.inf)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias)
""",
    ],
}
