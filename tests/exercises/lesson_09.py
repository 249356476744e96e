"""Seeded answers for lesson 09: misconceptions with their message, another solution."""

SET_UP = """
def outputs_touched(forward, x, token):
    changed = x.clone()
    changed[:, token] += 1
    moved = (forward(changed) - forward(x)).abs().amax(dim=(0, 2))
    return (moved > 1e-5).nonzero().flatten().tolist()
"""

STEP = "def step(rope, q, k, old_k):\n"
JOIN = "    return q, torch.cat([old_k, k], dim=2)"
ONE_TOKEN = """def diagnose(forward, x):
    touched = outputs_touched(forward, x, token=3)
    if touched and touched[0] < 3:
        return "leaks"
    return "right" if touched == list(range(3, x.shape[1])) else "deaf"
"""

WRONG = {
    "9.1": [
        (
            "def positions(real):\n"
            "    first = (~real)[0].sum()\n"
            "    return (torch.arange(real.shape[1]) - first).expand(real.shape)",
            "Text 1 has 0 tokens",
        ),
        (
            "def positions(real):\n"
            "    return [torch.arange(int(row.sum())) for row in real]",
            "real tokens only",
        ),
        (
            "def positions(real):\n"
            "    return torch.arange(real.shape[1]).expand(real.shape)",
            "These are slots",
        ),
        (
            "def positions(real):\n    return real.long().cumsum(dim=1)",
            "begin at position 1",
        ),
        (
            "def positions(real):\n    return real.long().cumsum(dim=0) - 1",
            "down the batch",
        ),
        (
            "def positions(real):\n    return real * torch.arange(real.shape[1])",
            "These are slots",
        ),
        (
            "def positions(real):\n"
            "    return real.long().flip(1).cumsum(dim=1).flip(1) - 1",
            "count backwards",
        ),
        (
            "def positions(real):\n    return real.long().cumsum(dim=1)[0] - 1",
            "must have shape (2, 7)",
        ),
        ("def positions(real):\n    return real.long()", "should get [0, 1, 2, 3]"),
    ],
    "9.2": [
        (
            STEP + "    q, k = rope(q, k, start=len(old_k))\n" + JOIN,
            "the batch",
        ),
        (
            STEP + "    q, k = rope(q, k, start=q.shape[2])\n" + JOIN,
            "number of new tokens",
        ),
        (
            STEP + "    k = rope.rotate(k, start=old_k.shape[2])\n" + JOIN,
            "came back unchanged",
        ),
        (STEP + "    q, k = rope(q, k)\n" + JOIN, "still missing"),
        (
            STEP + "    q, k = rope(q, k, start=max(0, old_k.shape[2] - 1))\n" + JOIN,
            "already has that position",
        ),
        (
            STEP + "    q, k = rope(q, k, start=old_k.shape[2] + 1)\n" + JOIN,
            "is left out",
        ),
        (STEP + "    q, k = rope(q, k, start=old_k.shape[1])\n" + JOIN, "heads"),
        (STEP + "    q, k = rope(q, k, start=q.shape[3])\n" + JOIN, "head_dim"),
        (
            STEP + "    n = old_k.shape[2]\n"
            "    k = torch.cat([old_k, k], dim=2)\n"
            "    return rope.rotate(q, start=n), rope.rotate(k)",
            "turned the old keys again",
        ),
        (
            STEP + "    q = rope.rotate(q, start=old_k.shape[2])\n" + JOIN,
            "stored unrotated",
        ),
        (
            STEP + "    q, k = rope(q, k, start=old_k.shape[2])\n    return q, k",
            "There should be 10 keys",
        ),
        (
            STEP + "    q, k = rope(q, k, start=old_k.shape[2])\n"
            "    return q, torch.cat([k, old_k], dim=2)",
            "should come first",
        ),
    ],
    "9.3": [
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    return p, p[:, None] >= p",
            "compared positions",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    sizes = torch.tensor(lengths)\n"
            "    t = sizes.repeat_interleave(sizes)\n"
            "    return p, (t[:, None] == t).tril()",
            "still two texts",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    blocks = [torch.ones(n, n).tril(-1) for n in lengths]\n"
            "    return p, torch.block_diag(*blocks)",
            "look at itself",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    blocks = [torch.ones(n, n).tril() for n in lengths]\n"
            "    return p, torch.block_diag(*blocks).log()",
            "numbers to add",
        ),
        (
            "def pack(lengths):\n"
            "    n = sum(lengths)\n"
            "    return torch.arange(n), torch.ones(n, n).tril().bool()",
            "through the whole row",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    return p, torch.ones(len(p), len(p)).tril().bool()",
            "read the texts packed before",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    return p, torch.block_diag(*[torch.ones(n, n) for n in lengths])",
            "later tokens of its own text",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    blocks = [torch.ones(n, n).tril() for n in lengths]\n"
            "    return p, torch.block_diag(*blocks) == 0",
            "True where looking is forbidden",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    blocks = [torch.ones(n, n).triu() for n in lengths]\n"
            "    return p, torch.block_diag(*blocks)",
            "Rows and columns",
        ),
        (
            "def pack(lengths):\n"
            "    names = torch.arange(len(lengths))\n"
            "    t = names.repeat_interleave(torch.tensor(lengths))\n"
            "    return t, (t[:, None] == t).tril()",
            "number of each token's text",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(1, n + 1) for n in lengths])\n"
            "    return p, torch.ones(len(p), len(p))",
            "not from 1",
        ),
        (
            "def pack(lengths):\n"
            "    return torch.cat([torch.arange(n) for n in lengths])",
            "two tensors",
        ),
    ],
    "9.4": [
        ("position = 32", "a query at 32"),
        ("position = 33", "does not move any token"),
        ("position = 68", "the oldest key"),
        ("position = 99", "comes after it"),
        ("position = 101", "The first token was at 0"),
        ("position = 132", "count them twice"),
        ("position = 0", "the next is not"),
    ],
    "9.5": [
        (
            "def diagnose(forward, x):\n"
            "    seq = x.shape[1]\n"
            "    if outputs_touched(forward, x, seq - 1) != [seq - 1]:\n"
            '        return "leaks"\n'
            "    first = outputs_touched(forward, x, 0)\n"
            '    return "right" if len(first) == seq else "deaf"',
            "A leak in the middle",
        ),
        (
            "def diagnose(forward, x):\n"
            "    seq = x.shape[1]\n"
            "    for t in range(seq):\n"
            "        if outputs_touched(forward, x, t)[0] < t:\n"
            '            return "leaks"\n'
            "    first = outputs_touched(forward, x, 0)\n"
            '    return "right" if len(first) == seq else "deaf"',
            "Token 2 unheard",
        ),
        (ONE_TOKEN, "A leak at one place"),
        (
            "def diagnose(forward, x):\n"
            "    for t in range(x.shape[1]):\n"
            "        touched = outputs_touched(forward, x, t)\n"
            "        if touched[0] < t:\n"
            '            return "leaks"\n'
            "        if touched != list(range(t, x.shape[1])):\n"
            '            return "deaf"\n'
            '    return "right"',
            "Two faults at once",
        ),
        (
            "def diagnose(forward, x):\n"
            "    for t in range(x.shape[1]):\n"
            "        if outputs_touched(forward, x, t)[0] < t:\n"
            '            return "leaks"\n'
            '    return "right"',
            "Tokens that never meet",
        ),
        (
            "def diagnose(forward, x):\n"
            "    before = forward(x)\n"
            "    for t in range(x.shape[1]):\n"
            "        x[:, t] += 1\n"
            "        if ((forward(x) - before)[:, :t].abs() > 1e-5).any():\n"
            '            return "leaks"\n'
            '    return "deaf"',
            "You changed x itself",
        ),
        (
            "def diagnose(forward, x):\n"
            "    same = forward(x).shape == x.shape\n"
            '    return "right" if same else "deaf"',
            "Attention without a mask",
        ),
        ("def diagnose(forward, x):\n    return True", "you returned True"),
    ],
}

OTHER = {
    "9.1": """
def positions(real):
    pads = real.int().argmax(dim=1, keepdim=True)
    return torch.arange(real.shape[1]) - pads
""",
    "9.2": """
def step(rope, q, k, old_k):
    places = torch.arange(q.shape[2]) + old_k.shape[2]
    turned = rope.rotate(k, places)
    return [rope.rotate(q, places), torch.cat((old_k, turned), -2)]
""",
    "9.3": """
def pack(lengths):
    positions, blocks = [], []
    for length in lengths:
        positions += range(length)
        blocks.append(torch.ones(length, length).tril())
    return positions, torch.block_diag(*blocks)
""",
    "9.4": "position = torch.tensor(100)",
    "9.5": """
def diagnose(forward, x):
    steps = torch.eye(x.shape[1])[..., None]
    moves = [forward(x + step) - forward(x) for step in steps]
    feels = (torch.cat(moves).abs().sum(-1) > 1e-5).T  # outputs by tokens
    if feels.triu(1).any():
        return "leaks"
    return "right" if torch.equal(feels, torch.ones_like(feels).tril()) else "deaf"
""",
}
