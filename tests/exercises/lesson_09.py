"""Seeded answers for lesson 09: misconceptions with their message, another solution."""

REVIEWED = True

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

LOOK = """def diagnose(forward, x):
    verdict, whole = "right", forward(x)
    for t in range(x.shape[1]):
        y = x.clone()
        {change}
        moved = ((forward(y) - whole){seen}.abs() > 1e-5).any(-1)
        if moved[:t].any():
            return "leaks"
        if not moved[t:].all():
            verdict = "deaf"
    return verdict
"""

WRONG = {
    "9.1": [
        (
            "def positions(real):\n"
            "    first = (~real)[0].sum()\n"
            "    return (torch.arange(real.shape[1]) - first).expand(real.shape)",
            "At token 0 it should be 0; yours is -3",
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
        (
            "def positions(real):\n"
            "    pads = (~real).sum(1, keepdim=True)\n"
            "    return (torch.arange(real.shape[1]) - pads).float() / 1.001",
            "At token 1 it should be 1; yours is 0.999",
        ),
        (
            "def positions(real):\n    return (real.long().cumsum(1) - 1).clamp(0, 3)",
            "At token 4 it should be 4; yours is 3",
        ),
        (
            "def positions(real):\n    return (real.long().cumsum(1) - 1) % 8",
            "At token 8 it should be 8; yours is 0",
        ),
        (
            "def positions(real):\n"
            "    return torch.arange(real.shape[1]) - real.sum(1, keepdim=True)",
            "yours is -1",
        ),
        (
            "def positions(real):\n"
            "    out = real.long().cumsum(1) - 1\n"
            "    out[:, -1] = 0\n"
            "    return out",
            "At token 3 it should be 3; yours is 0",
        ),
        (
            "def positions(real):\n"
            "    real[:, 0] = True\n"
            "    return real.long().cumsum(1) - 1",
            "changed real",
        ),
        (
            "def positions(real):\n"
            "    first = real.long().argmax(1)\n"
            "    return torch.arange(real.shape[1]) - first",
            "shapes do not fit",
        ),
        (
            "def positions(real):\n    return real.cumsum(1, dtype=torch.int8) - 1",
            "At token 128 it should be 128; yours is -128",
        ),
        (
            "def positions(real):\n    return real.long()",
            "At token 0 it should be 0; yours is 1",
        ),
    ],
    "9.2": [
        (
            STEP + "    turned = rope(q, k, start=old_k.shape[2])\n"
            "    q.copy_(turned[0]), k.copy_(turned[1])\n" + JOIN,
            "changed q",
        ),
        (
            STEP + "    q, k = rope(q, k, start=old_k.shape[2])\n"
            "    return q, torch.cat([old_k, k], dim=2)[:, :, -16:]",
            "There should be 205 keys",
        ),
        (
            STEP + "    q, k = rope(q, k, start=len(old_k))\n" + JOIN,
            "2 texts in the batch",
        ),
        (
            STEP + "    here = torch.full((q.shape[2],), old_k.shape[2])\n"
            "    q, k = rope.rotate(q, here), rope.rotate(k, here)\n" + JOIN,
            "All 4 new queries have position 6",
        ),
        (
            STEP + "    n, new = old_k.shape[2], q.shape[2]\n"
            "    here = n + torch.arange(new).flip(0)\n"
            "    q, k = rope.rotate(q, here), rope.rotate(k, here)\n" + JOIN,
            "the new query with index 0 is at position 6",
        ),
        (
            STEP + "    n, new = old_k.shape[2], q.shape[2]\n"
            "    here = (n + torch.arange(new)).clamp(max=n + 1)\n"
            "    q, k = rope.rotate(q, here), rope.rotate(k, here)\n" + JOIN,
            "the new query with index 2 is at position 8",
        ),
        (
            STEP + "    q, k = rope(q, k, start=-old_k.shape[2])\n" + JOIN,
            "the new query with index 0 is at position 6",
        ),
        (
            STEP + "    n = old_k.shape[2]\n"
            "    q, k = rope.rotate(q, start=n), rope.rotate(k, start=max(n - 1, 0))\n"
            + JOIN,
            "the new key with index 0 is at position 6",
        ),
        (
            STEP + "    q, k = rope(q, k, start=old_k.shape[2])\n"
            "    return torch.cat([old_k, k], dim=2), q",
            "the queries first",
        ),
        (
            STEP + "    q, k = rope(q, k, start=old_k.shape[2])\n"
            "    return q, torch.cat([old_k, k], dim=1)",
            "shapes do not fit",
        ),
        (
            STEP + "    n = old_k.shape[2]\n"
            "    here = torch.arange(n, n + q.shape[2])\n"
            "    table = cos_sin(here, inverse_frequencies(q.shape[3]))\n"
            "    return rotate(q, *table), torch.cat([old_k, rotate(k, *table)], 2)",
            "the `rope` that you are given",
        ),
        (
            STEP + "    q, k = rope(q, k, start=q.shape[2])\n" + JOIN,
            "there are 4 new tokens",
        ),
        (
            STEP + "    k = rope.rotate(k, start=old_k.shape[2])\n" + JOIN,
            "came back unchanged",
        ),
        (STEP + "    q, k = rope(q, k)\n" + JOIN, "still missing"),
        (
            STEP + "    q, k = rope(q, k, start=max(0, old_k.shape[2] - 1))\n" + JOIN,
            "already has that one",
        ),
        (
            STEP + "    q, k = rope(q, k, start=old_k.shape[2] + 1)\n" + JOIN,
            "is left out",
        ),
        (STEP + "    q, k = rope(q, k, start=old_k.shape[1])\n" + JOIN, "heads"),
        (
            STEP + "    q, k = rope(q, k, start=q.shape[3])\n" + JOIN,
            "a head has 8 features",
        ),
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
            "    blocks = []\n"
            "    while lengths:\n"
            "        n = lengths.pop(0)\n"
            "        blocks.append(torch.ones(n, n).tril())\n"
            "    mask = torch.block_diag(*blocks).bool()\n"
            "    return mask.sum(1) - 1, mask",
            "changed lengths",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    apart = torch.arange(len(p))[:, None] - torch.arange(len(p))\n"
            "    return p, (apart >= 0) & (apart < lengths[0])",
            "query 3 may not look at key 1",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    t = (p == 0).cumsum(0) % 2\n"
            "    return p, (t[:, None] == t).tril()",
            "query 5 may not look at key 0",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    t = (p == 0).cumsum(0)\n"
            "    mask = (t[:, None] == t).tril()\n"
            "    mask[-1] = True\n"
            "    return p, mask",
            "query 4 may not look at key 0",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    t = (p == 0).cumsum(0)\n"
            "    mask = (t[:, None] == t).tril()\n"
            "    mask[-1, -2] = False\n"
            "    return p, mask",
            "query 4 may look at key 3",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n).flip(0) for n in lengths])\n"
            "    t = torch.arange(len(lengths))\n"
            "    t = t.repeat_interleave(torch.tensor(lengths))\n"
            "    return p, (t[:, None] == t).tril()",
            "At token 0 it should be 0; yours is 2",
        ),
        (
            "def pack(lengths):\n"
            "    p = torch.cat([torch.arange(n) for n in lengths])\n"
            "    t = (p == 0).cumsum(0)\n"
            "    return p, (t[:, None] == t).tril()[None, None]",
            "must have shape",
        ),
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
        ("position = 36", "the next is not 36"),
        ("position = -100", "the next is not -100"),
        ('position = "100"', "Remove the quotation marks"),
        ("position = list(range(100))", "Expected one number, got 100"),
    ],
    "9.5": [
        (  # as many as it should touch, whichever they are
            "def diagnose(forward, x):\n"
            "    seq = x.shape[1]\n"
            "    many = [len(outputs_touched(forward, x, t)) for t in range(seq)]\n"
            "    if any(n > seq - t for t, n in enumerate(many)):\n"
            "        return 'leaks'\n"
            "    right = all(n == seq - t for t, n in enumerate(many))\n"
            "    return 'right' if right else 'deaf'",
            "not the right ones",
        ),
        (LOOK.format(change="y[:, t, 0] += 1", seen="[0]"), "A narrow leak"),
        (LOOK.format(change="y[:, t] += 1", seen="[0, :, :1]"), "A narrow leak"),
        (LOOK.format(change="y[:, t] *= 2", seen="[0]"), "Healthy attention"),
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
        (
            "def diagnose(forward, x):\n"
            "    verdict = 'right'\n"
            "    for t in range(x.shape[1]):\n"
            "        touched = outputs_touched(forward, x, t)\n"
            "        if touched and touched[0] < t:\n"
            "            verdict = 'leaks'\n"
            "        elif touched != list(range(t, x.shape[1])):\n"
            "            verdict = 'deaf'\n"
            "    return verdict",
            "A leak first, a deaf output last",
        ),
        (
            "def diagnose(forward, x):\n"
            "    for t in range(6):\n"
            "        if outputs_touched(forward, x, t)[0] < t:\n"
            '            return "leaks"\n'
            "    for t in range(6):\n"
            "        if outputs_touched(forward, x, t) != list(range(t, x.shape[1])):\n"
            '            return "deaf"\n'
            '    return "right"',
            "A leak at one place, 9 tokens",
        ),
        (
            "def diagnose(forward, x):\n"
            "    for t in range(x.shape[1]):\n"
            "        near = outputs_touched(forward, x, t)[:2]\n"
            "        if near[0] < t:\n"
            '            return "leaks"\n'
            "        if near != list(range(t, x.shape[1]))[:2]:\n"
            '            return "deaf"\n'
            '    return "right"',
            "Neighbours only",
        ),
        ('def diagnose(forward, x):\n    return "right"', "Attention without a mask"),
        (
            "def diagnose(forward, x):\n"
            "    x.requires_grad_()\n"
            "    forward(x)[0, 0].sum().backward()\n"
            "    late = x.grad[0, 1:].abs().sum()\n"
            '    return "leaks" if late > 0 else "right"',
            "Tokens that never meet",
        ),
    ],
}

OTHER = {
    "9.1": [
        """
def positions(real):
    pads = real.int().argmax(dim=1, keepdim=True)
    return torch.arange(real.shape[1]) - pads
""",
        """
def positions(real):
    rows = []
    for row in real.tolist():
        seen = 0
        rows.append([])
        for is_text in row:
            rows[-1].append(seen if is_text else 999)
            seen += is_text
    return rows
""",
        """
import numpy as np

def positions(real):
    return np.cumsum(real.numpy(), axis=1, dtype=np.int16) - 1
""",
    ],
    "9.2": [
        """
def step(rope, q, k, old_k):
    places = torch.arange(q.shape[2]) + old_k.shape[2]
    turned = rope.rotate(k, places)
    return [rope.rotate(q, places), torch.cat((old_k, turned), -2)]
""",
        """
def step(rope, q, k, old_k):
    before = torch.zeros_like(old_k)
    turned = [rope.rotate(torch.cat([before, x], 2))[:, :, old_k.shape[2]:]
              for x in (q, k)]
    return turned[0], torch.cat([old_k, turned[1]], 2)
""",
        """
def step(rope, q, k, old_k):
    keys, queries = old_k, []
    for one_q, one_k in zip(q.split(1, 2), k.split(1, 2)):
        one_q, one_k = rope(one_q, one_k, start=keys.shape[2])
        queries.append(one_q)
        keys = torch.cat([keys, one_k], 2)
    return torch.cat(queries, 2).double(), keys.double()
""",
    ],
    "9.3": [
        """
def pack(lengths):
    positions, blocks = [], []
    for length in lengths:
        positions += range(length)
        blocks.append(torch.ones(length, length).tril())
    return positions, torch.block_diag(*blocks)
""",
        """
import numpy as np

def pack(lengths):
    text = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return positions, np.tril(text[:, None] == text)
""",
        """
def pack(lengths):
    place = torch.cat([torch.arange(length) for length in lengths])
    back = torch.arange(len(place))[:, None] - torch.arange(len(place))
    return place, (back >= 0) & (back <= place[:, None])
""",
    ],
    "9.4": [
        "position = torch.tensor(100)",
        "from fractions import Fraction\nposition = Fraction(100)",
        "import numpy as np\nposition = np.float32([99 + 1])",
    ],
    "9.5": [
        """
def diagnose(forward, x):
    steps = torch.eye(x.shape[1])[..., None]
    moves = [forward(x + step) - forward(x) for step in steps]
    feels = (torch.cat(moves).abs().sum(-1) > 1e-5).T  # outputs by tokens
    if feels.triu(1).any():
        return "leaks"
    return "right" if torch.equal(feels, torch.ones_like(feels).tril()) else "deaf"
""",
        """
def diagnose(forward, x):
    whole, seq = forward(x), x.shape[1]
    for end in range(1, seq):
        if not torch.allclose(forward(x[:, :end]), whole[:, :end], atol=1e-5):
            return "leaks"
    heard = all(outputs_touched(forward, x, t) == list(range(t, seq))
                for t in range(seq))
    return "right" if heard else "deaf"
""",
        """
def diagnose(forward, x):
    total = lambda given: forward(given)[0].square().sum(-1)
    with torch.enable_grad():
        slope = torch.autograd.functional.jacobian(total, x)[:, 0]
    feels = slope.abs().sum(-1) > 1e-7
    late = ~torch.ones(len(feels), len(feels)).tril().bool()
    if (feels & late).any():
        return "leaks"
    return "right" if (feels | late).all() else "deaf"
""",
    ],
}
