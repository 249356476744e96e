"""Seeded answers for lesson 19: misconceptions with their message, another solution."""

REVIEWED = True

SET_UP = """
import torch.distributed as dist
from rope_teach.course.parallel import shard_positions, unshard
"""
ZIGZAG = "def zigzag(seq, rank, world):\n    "
PIECES = ZIGZAG + "p = torch.arange(seq).chunk(2 * world)\n    return "
ORDER = "def in_order(shards):\n    "
HALVES = ORDER + "h, t = zip(*(s.chunk(2) for s in shards))\n    return "
LOSS = "def loss_of_all(means, counts):\n    return "
MERGE = "def merge(out_a, lse_a, out_b, lse_b):\n    "
GATHER = (
    "def all_gather(own):\n    me, world = dist.get_rank(), dist.get_world_size()\n"
)
LSE = MERGE + "lse = torch.logaddexp(lse_a, lse_b)\n    "


def swap(first, second, back="[got, own.clone()] if me else [own.clone(), got]"):
    """Return an all_gather for two processes: what each does, and what it returns."""
    return (
        GATHER + "    own, other = own.contiguous(), 1 - me\n"
        "    got = torch.empty_like(own)\n"
        f"    if me == 0:\n        {first}\n    else:\n        {second}\n"
        f"    return {back}\n"
    )


def speak(part="own.clone(memory_format=torch.contiguous_format)", **lines):
    """Return the broadcasting all_gather with some of its lines replaced."""
    parts = {
        "start": "parts = []",
        "loop": "for source in range(world):",
        "part": f"    part = {part}",
        "call": "    dist.broadcast(part, source)",
        "keep": "    parts.append(part)",
        "end": "return parts",
    } | lines
    return GATHER + "".join(f"    {line}\n" for line in parts.values() if line)


SEND, RECV = "dist.send(own, other)", "dist.recv(got, other)"

WRONG = {
    "19.1": [
        (ZIGZAG + "return torch.arange(seq).chunk(world)[rank]", "contiguous cut"),
        (ZIGZAG + "return torch.arange(seq // world)", "count from 0"),
        (PIECES + "torch.cat([p[rank], p[rank + world]])", "r and r + world"),
        (ZIGZAG + "return torch.arange(seq)[rank::world]", "single tokens"),
        (PIECES + "torch.cat([p[rank], p[-1 - rank].flip(0)])", "runs backwards"),
        (PIECES + "torch.cat([p[-1 - rank], p[rank]])", "in another order"),
        (PIECES + "torch.cat([p[rank], p[-rank]])", "off by one"),
        (PIECES + "torch.cat([p[rank], p[world - 1 - rank]])", "first half"),
        (PIECES + "torch.cat([p[rank], p[1]])", "zigzag is"),
        (ZIGZAG + "return shard_positions(seq, rank, world, 'zigzag')", "to build"),
        (PIECES + "torch.cat([p[rank], p[-1 - rank]]) + 0.5", "whole numbers"),
        (PIECES + "torch.stack([p[rank], p[-1 - rank]])", "must have shape"),
        (PIECES + "p[rank]", "must have shape"),
        (PIECES + "torch.cat([p[rank], p[2 * world - 2 - rank]])", "zigzag is"),
        (PIECES + "torch.cat([p[rank], p[-1 - rank]]) + 1", "zigzag is"),
        (PIECES + "torch.cat([p[0], p[-1]])", "zigzag is"),
        (PIECES + "torch.cat([p[rank], p[3 - rank]])", "zigzag is"),
        (
            ZIGZAG + "p = torch.arange(seq).chunk(world)[rank].chunk(2)\n"
            "    return torch.cat([p[0], p[1].flip(0)])",
            "zigzag is",
        ),
        (PIECES + "torch.cat([p[rank], p[-1 - rank][1:]])", "must have shape"),
    ],
    "19.2": [
        (ORDER + "return torch.cat(shards)", "one after another"),
        (HALVES + "torch.cat([*h, *t])", "in rank order"),
        (HALVES + "torch.cat([*h, torch.cat(t).flip(0)])", "token by token"),
        (
            ORDER + "seq, world = sum(map(len, shards)), len(shards)\n"
            "    p = [shard_positions(seq, r, world, 'zigzag') for r in range(world)]\n"
            "    return torch.cat(shards)[torch.cat(p)]",
            "the wrong way round",
        ),
        (
            ORDER + "x = torch.cat(shards)\n    return x[x[:, 0].argsort()]",
            "you sorted",
        ),
        (
            ORDER + "x = torch.cat(shards)\n    return x[x[:, 0].abs().argsort()]",
            "you sorted",
        ),
        (HALVES + "torch.cat([*h, *h])", "missing"),
        (ORDER + "return unshard(shards, 'zigzag', dim=0)", "to build"),
        (HALVES + "torch.cat([*reversed(t), *h])", "come in the order"),
        (HALVES + "torch.cat(h)", "must have shape"),
        (HALVES + "torch.cat([*reversed(h), *t])", "come in the order"),
        (HALVES + "torch.cat([*h, t[-1], *t[:-1]])", "come in the order"),
        (
            ORDER
            + "x = torch.cat(shards)\n    return x[x.abs()[:, 0].argsort()][:, :1]",
            "must have shape",
        ),
        (
            ORDER + "x = torch.cat(shards)\n    return x[x[:, 1].argsort().flip(0)]",
            "you sorted",
        ),
        (
            ORDER + "out = torch.cat(shards)\n    n = len(shards[0]) // 2\n"
            "    shards[0][n:] = 0\n    return out",
            "changed shards",
        ),
    ],
    "19.3": [
        (LOSS + "sum(means) / len(means)", "the mean of the means"),
        (LOSS + "sum(means)", "the sum of the means"),
        (LOSS + "sum(m * c for m, c in zip(means, counts))", "over all tokens"),
        (
            LOSS + "sum(m * c for m, c in zip(means, counts)) / len(means)",
            "not of processes",
        ),
        (LOSS + "sum(means) / sum(counts)", "divided by the tokens"),
        (
            LOSS + "sum(m / c for m, c in zip(means, counts))"
            " / sum(1 / c for c in counts)",
            "counts less",
        ),
        (LOSS + "max(means)", "one process would report"),
        (LOSS + "5.0", "one process would report"),
        (
            LOSS + "(means[0] * counts[0] + means[1] * counts[1]) / sum(counts)",
            "one process would report",
        ),
        (
            LOSS + "sum(m * c for m, c in zip(means, counts)) / (sum(counts) + 1)",
            "one process would report",
        ),
        (
            LOSS + "sum(m * c for m, c in zip(means, counts)) // sum(counts)",
            "one process would report",
        ),
        (
            LOSS + "sum(m * c * c for m, c in zip(means, counts))"
            " / sum(c * c for c in counts)",
            "one process would report",
        ),
    ],
    "19.4": [
        (LSE + "return (out_a + out_b) / 2, lse", "the plain mean"),
        (LSE + "return out_a + out_b, lse", "added the results"),
        (
            LSE + "s = (lse_a / (lse_a + lse_b))[:, None]\n"
            "    return s * out_a + (1 - s) * out_b, lse",
            "They are logarithms",
        ),
        (
            MERGE + "a, b = lse_a.exp()[:, None], lse_b.exp()[:, None]\n"
            "    return (a * out_a + b * out_b) / (a + b), (a + b)[:, 0].log()",
            "Subtract before",
        ),
        (
            LSE + "a, b = (lse_b - lse).exp()[:, None], (lse_a - lse).exp()[:, None]\n"
            "    return a * out_a + b * out_b, lse",
            "weights are swapped",
        ),
        (
            LSE + "a, b = (lse_a - lse).exp()[:, None], (lse_b - lse).exp()[:, None]\n"
            "    return a * out_a + b * out_b, lse_a + lse_b",
            "you added logarithms",
        ),
        (
            LSE + "a, b = (lse_a - lse).exp()[:, None], (lse_b - lse).exp()[:, None]\n"
            "    return a * out_a + b * out_b, torch.maximum(lse_a, lse_b)",
            "the next merge",
        ),
        (
            LSE + "a = (lse_a > lse_b)[:, None]\n"
            "    return torch.where(a, out_a, out_b), lse",
            "dropped the other",
        ),
        (
            LSE + "top = torch.maximum(lse_a, lse_b)\n"
            "    a, b = (lse_a - top).exp(), (lse_b - top).exp()\n"
            "    return a[:, None] * out_a + b[:, None] * out_b, lse",
            "do not sum to 1",
        ),
        (LSE + "return out_a, lse", "both pieces together"),
        (
            MERGE + "w = torch.sigmoid(lse_a - lse_b)[:, None]\n"
            "    lse = torch.logaddexp(lse_a, lse_b).clamp(max=700)\n"
            "    return w * out_a + (1 - w) * out_b, lse",
            "result is right, but L is not",
        ),
        (LSE + "return out_a", "two values"),
        (
            LSE + "out_a *= (lse_a - lse).exp()[:, None]\n"
            "    return out_a + (lse_b - lse).exp()[:, None] * out_b, lse",
            "changed out_a",
        ),
        (
            LSE + "a = (lse_a - lse).exp().mean()\n"
            "    return a * out_a + (1 - a) * out_b, lse",
            "both pieces together",
        ),
        (
            LSE + "a, b = (lse_a - lse).exp()[:, None], (lse_b - lse).exp()[:, None]\n"
            "    return a * out_a + b * out_b, lse.mean()",
            "must have shape",
        ),
        (
            MERGE + "w = torch.stack([lse_a, lse_b]).softmax(0)[..., None]\n"
            "    return w[0] * out_a + w[1] * out_b, (lse_a + lse_b) / 2",
            "the next merge",
        ),
        (
            LSE + "a, b = (lse_a - lse).clamp(-1).exp(), (lse_b - lse).clamp(-1).exp()"
            "\n    return a[:, None] * out_a + b[:, None] * out_b, lse",
            "both pieces together",
        ),
    ],
    "19.5": [
        (swap(f"{SEND}; {RECV}", f"{SEND}; {RECV}"), "`dist.send(own, other); dist"),
        (swap(f"{RECV}; {SEND}", f"{RECV}; {SEND}"), "nothing moves any more"),
        (swap(SEND, RECV), "should hold process 1's tensor"),
        (swap(RECV, SEND, "None if me else [own.clone(), got]"), "returned nothing"),
        (swap(f"{SEND}; {RECV}", f"{RECV}; {SEND}"), "With 3 processes"),
        (
            swap(f"{SEND}; {RECV}", f"{RECV}; {SEND}", "[own.clone(), got]"),
            "process 1 has the tensors in the order [1, 0]",
        ),
        (
            swap(f"{SEND}; {RECV}", f"{RECV}; {SEND}", "[got, own.clone()]"),
            "process 0 has the tensors in the order [1, 0]",
        ),
        (speak("torch.empty(own.shape)"), "has torch.float32 at place"),
        (speak("torch.empty_like(own)"), "should hold process"),
        (
            GATHER + "    parts = [torch.empty(own.shape) for _ in range(world)]\n"
            "    parts[me] = own.clone()\n    for s in range(world):\n"
            "        dist.broadcast(parts[s], s)\n    return parts",
            "torch.empty_like(own) does",
        ),
        (speak("own"), "own itself"),
        (
            speak(
                "part if source != me else part.copy_(own)",
                start="parts, part = [], torch.empty_like(own)",
            ),
            "one tensor several times",
        ),
        (speak("own", keep="    parts.append(part.clone())"), "own was written over"),
        (speak(call="    dist.broadcast(part, 0)"), "tensor at every place"),
        (speak(call=""), "its own tensor at every place"),
        (speak(loop="for source in range(1):"), "a list of 2 tensors"),
        (speak(end="return torch.cat(parts)"), "a list of 2 tensors"),
        (speak(call="    if source == me: dist.broadcast(part, source)"), "broadcast"),
        (
            GATHER + "    parts = [torch.empty_like(own) for _ in range(world)]\n"
            "    dist.all_gather(parts, own.contiguous())\n    return parts",
            "You call all_gather",
        ),
        (
            "def all_gather(own):\n    me = dist.get_rank()\n"
            "    got = torch.empty_like(own)\n    if me == 0:\n"
            "        dist.send(own, 1); dist.recv(got, 1)\n    else:\n"
            "        dist.recv(got, 0); dist.send(own, 0)\n"
            "    return [got, own.clone()] if me else [own.clone(), got]",
            "own.contiguous()",
        ),
        (
            speak(
                "own.clone().contiguous() if source == me else "
                "torch.empty(own.shape, dtype=own.dtype).t().contiguous().t()"
                " if own.ndim == 2 else torch.empty_like(own)"
            ),
            "the wrong order",
        ),
        (
            GATHER + "    parts = [torch.empty_like(own) for _ in range(world)]\n"
            "    parts[me] = own.clone()\n"
            "    for other in range(world):\n        if other != me:\n"
            "            dist.isend(own.contiguous(), other)\n"
            "            dist.irecv(parts[other], other)\n    return parts",
            "only after .wait()",
        ),
        (speak(part="own.clone()", end="return parts[::-1]"), "in the order [1, 0]"),
        (speak(end="import os; os._exit(3)"), "exit code 3"),
        (speak(end="import ctypes; ctypes.string_at(0)"), "SIGSEGV"),
        (speak(call="    while me == 0: pass"), "a loop never end"),
        (speak(call="    dist.broadcast(prt, source)"), "does not know that name"),
        (
            GATHER + "    rows = own.new_zeros(world, *own.shape)\n"
            "    rows[me] = own\n    dist.broadcast(rows, 0)\n    return rows",
            "should hold process",
        ),
    ],
}

OTHER = {
    "19.1": [
        """
def zigzag(seq, rank, world):
    size = seq // world // 2
    first = [rank * size + n for n in range(size)]
    return first + [seq - (rank + 1) * size + n for n in range(size)]
""",
        """
def zigzag(seq, rank, world):
    n = torch.arange(seq)
    piece = n // (seq // (2 * world))
    return n[torch.minimum(piece, 2 * world - 1 - piece) == rank].float()
""",
    ],
    "19.2": [
        """
def in_order(shards):
    world, size = len(shards), len(shards[0]) // 2
    whole = torch.empty(2 * world * size, shards[0].shape[1])
    for rank, part in enumerate(shards):
        end = len(whole) - rank * size
        whole[rank * size:(rank + 1) * size] = part[:size]
        whole[end - size:end] = part[size:]
    return whole
""",
        """
def in_order(shards):
    n = len(shards[0]) // 2
    pairs = [(p[:n].tolist(), p[n:].tolist()) for p in shards]
    whole = []
    for first, last in reversed(pairs):
        whole = first + whole + last
    return whole
""",
    ],
    "19.3": [
        """
def loss_of_all(means, counts):
    means, counts = torch.tensor(means), torch.tensor(counts)
    return (means * counts / counts.sum()).sum()
""",
        """
def loss_of_all(means, counts):
    from fractions import Fraction
    tokens = [Fraction(m) for m, c in zip(means, counts) for _ in range(c)]
    return sum(tokens) / len(tokens)
""",
    ],
    "19.4": [
        """
def merge(out_a, lse_a, out_b, lse_b):
    out_a, lse_a, out_b, lse_b = (x.float() for x in (out_a, lse_a, out_b, lse_b))
    top = torch.maximum(lse_a, lse_b)
    a, b = torch.exp(lse_a - top), torch.exp(lse_b - top)
    out = (a.unsqueeze(1) * out_a + b.unsqueeze(1) * out_b) / (a + b).unsqueeze(1)
    return [out, top + torch.log(a + b)]
""",
        """
def merge(out_a, lse_a, out_b, lse_b):
    both = torch.stack([lse_a, lse_b])
    share = both.softmax(0)
    out = torch.einsum("pq,pqd->qd", share, torch.stack([out_a, out_b]))
    return out.numpy(), both.logsumexp(0).numpy()
""",
    ],
    "19.5": [
        # No message but one sum: what a process does not have is zero there.
        GATHER
        + """
    rows = own.new_zeros(world, *own.shape)
    rows[me] = own
    dist.all_reduce(rows)
    return rows
""",
        # Process 0 collects everything, then tells everybody.
        GATHER
        + """
    own = own.contiguous()
    parts = [torch.zeros_like(own) for _ in range(world)]
    parts[me].copy_(own)
    if me:
        dist.send(own, 0)
    else:
        for other in range(1, world):
            dist.recv(parts[other], other)
    for part in parts:
        dist.broadcast(part, 0)
    return tuple(parts)
""",
        # Both directions at once, without a thought for who is first.
        GATHER
        + """
    own = own.contiguous()
    parts = [own.clone() if r == me else torch.empty_like(own) for r in range(world)]
    works = [w for r in range(world) if r != me
             for w in (dist.isend(own, r), dist.irecv(parts[r], r))]
    for work in works:
        work.wait()
    return parts
""",
    ],
}
