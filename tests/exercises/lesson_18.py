"""Seeded answers for lesson 18: misconceptions with their message, another solution."""

REVIEWED = True

# Without Triton, which exists for Linux only, the whole lesson cannot run.
SET_UP = """
import pytest
pytest.importorskip("triton", reason="Triton is not installed")
import triton.language as tl

def one_launch(q, k, cos, sin):  # like a kernel, it asks for no strides
    assert q.untyped_storage().nbytes() == q.nbytes, "memory that is not its own"
    rows = [torch.as_strided(x, x.shape, x.new_empty(x.shape).stride()) for x in (q, k)]
    return tuple(rotate(x, cos, sin, "half", layout="bshd") for x in rows)
"""

BILL = "def least_bytes(batch, seq, heads, kv_heads, head_dim, itemsize):\n    return "
OWNED = "def owned(heads, block):\n    return "


def turn(
    keep="ctx.save_for_backward(cos, sin)",
    there="return one_launch(q.contiguous(), k.contiguous(), cos, sin)",
    take="cos, sin = ctx.saved_tensors",
    row="q_grad, k_grad = q_grad.contiguous(), k_grad.contiguous()",
    back="*one_launch(q_grad, k_grad, cos, -sin), None, None",
):
    """Return the class Turn with some of its lines replaced."""
    return f"""
class Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin):
        {keep}
        {there}

    @staticmethod
    def backward(ctx, q_grad, k_grad):
        {take}
        {row}
        return {back}
"""


def kernel(**lines):
    """Return the two-load kernel with some of its lines replaced."""
    parts = {
        "t": "t = tl.program_id(0)",
        "i": "i = tl.arange(0, PAIRS)",
        "c": "c = tl.load(cos + t * PAIRS + i)",
        "s": "s = tl.load(sin + t * PAIRS + i)",
        "first": "first = t * 2 * PAIRS + 2 * i",
        "load": "a, b = tl.load(x + first), tl.load(x + first + 1)",
        "one": "tl.store(out + first, a * c - b * s)",
        "two": "tl.store(out + first + 1, a * s + b * c)",
    } | lines
    head = "def turn_neighbours(x, out, cos, sin, PAIRS: tl.constexpr):\n    "
    return head + "\n    ".join(filter(None, parts.values()))


WRONG = {
    "18.1": [
        (
            BILL + "2 * batch * seq * (heads + 2 * kv_heads) * head_dim * itemsize",
            "the values too",
        ),
        (
            BILL + "16 * batch * seq * (heads + kv_heads) * head_dim * itemsize",
            "counts bits",
        ),
        (BILL + "batch * seq * (heads + kv_heads) * head_dim * itemsize", "read and"),
        (BILL + "2 * batch * seq * heads * head_dim * itemsize", "only q"),
        (BILL + "4 * batch * seq * heads * head_dim * itemsize", "as large as q"),
        (BILL + "2 * batch * seq * (heads + kv_heads) * head_dim", "features."),
        (
            BILL + "10 * batch * seq * (heads + kv_heads) * head_dim * itemsize",
            "five operations",
        ),
        (
            BILL + "3 * batch * seq * (heads + kv_heads) * head_dim * itemsize",
            "three passes",
        ),
        (BILL + "2 * seq * (heads + kv_heads) * head_dim * itemsize", "one sequence"),
        (BILL + "2 * batch * (heads + kv_heads) * head_dim * itemsize", "one token"),
        (BILL + "30720", "1,310,720"),
        (
            BILL + "2 * batch * seq * (heads + kv_heads) * (head_dim // 128) * 128"
            " * itemsize",
            "you gave 0",
        ),
        (
            BILL + "2 * batch * seq * (heads + max(kv_heads, 2)) * head_dim * itemsize",
            "must move",
        ),
        (BILL + "2 * batch * seq * (heads + kv_heads) * head_dim * 2", "must move"),
        (
            BILL + "2 * batch * seq * (heads * kv_heads) * head_dim * itemsize",
            "must move",
        ),
        (BILL + "f'{2 * batch * seq} bytes'", "quotation marks"),
    ],
    "18.2": [
        (
            OWNED + "[head // block for head in range(heads)]",
            "list of lists",
        ),
        (
            OWNED + "[list(range(b + 1, min(b + block, heads) + 1))"
            " for b in range(0, heads, block)]",
            "is number 0",
        ),
        (
            OWNED + "[list(range(n, heads, block)) for n in range(min(block, heads))]",
            "are not neighbours",
        ),
        (
            OWNED + "[list(range(b, b + block)) for b in range(0, heads, block)]",
            "The mask",
        ),
        (
            OWNED + "[list(range(n * block, (n + 1) * block))"
            " for n in range(heads // block)]",
            "rounds down",
        ),
        (
            OWNED + "[list(range(b, min(b + block, heads)))"
            " for b in range(0, heads + block, block)]",
            "is idle",
        ),
        (
            OWNED + "[list(range(n, heads, -(-heads // block)))"
            " for n in range(-(-heads // block))]",
            "are not neighbours",
        ),
        (OWNED + "[list(range(heads))]", "the blocks should be"),
        (OWNED + "[list(range(heads)), [heads - 1]]", "own the same head"),
        (OWNED + "[list(range(1, heads))]", "belong to no program"),
        (
            OWNED + "[list(range(b, min(b + block, heads)))[::-1]"
            " for b in range(0, heads, block)]",
            "not in order",
        ),
        (
            OWNED + "[list(range(b, min(b + block, heads)))"
            " for b in range(0, heads, block)][::-1]",
            "not in order",
        ),
        (
            OWNED + "[[0, 1, 2, 3], [4, 5]]",
            "belong to no program",
        ),
        (
            OWNED + "[[h / 1 + 0.5 for h in range(b, min(b + block, heads))]"
            " for b in range(0, heads, block)]",
            "whole numbers",
        ),
        (
            OWNED + "[list(range(b, min(b + block, heads - 1)))"
            " for b in range(0, heads, block)]",
            "belong to no program",
        ),
    ],
    "18.3": [
        (
            kernel(
                one="a = a * c - b * s",
                two="b = a * s + b * c\n    tl.store(out + first, a)\n"
                "    tl.store(out + first + 1, b)",
            ),
            "a different name",
        ),
        (
            kernel(
                first="first = t * 2 * PAIRS + i",
                load="a, b = tl.load(x + first), tl.load(x + first + PAIRS)",
                two="tl.store(out + first + PAIRS, a * s + b * c)",
            ),
            "the half pairing",
        ),
        (
            kernel(
                one="tl.store(out + first, a * c + b * s)",
                two="tl.store(out + first + 1, b * c - a * s)",
            ),
            "clockwise",
        ),
        (kernel(t="t = 0"), "Only the first row"),
        (
            kernel(c="c = tl.load(cos + i)", s="s = tl.load(sin + i)"),
            "first row of the tables",
        ),
        (
            kernel(
                one="tl.store(out + t * 2 * PAIRS + i, a * c - b * s)",
                two="tl.store(out + t * 2 * PAIRS + PAIRS + i, a * s + b * c)",
            ),
            "wrong places",
        ),
        (kernel(two=""), "never written"),
        (kernel(one="", two=""), "tl.store"),
        (kernel(two="tl.store(out + first + 1, a * s - b * c)"), "the second are not"),
        (kernel(one="tl.store(out + first, a * c + b * s)"), "the first are not"),
        (
            kernel(one="tl.store(out + first, a)", two="tl.store(out + first + 1, b)"),
            "nothing is turned",
        ),
        (
            kernel(one="tl.store(out + first - 1, a * c - b * s)"),
            "at place -1 of out",
        ),
        (kernel(one="tl.store(x + first, a * c - b * s)"), "into x"),
        (kernel(s="s = c"), "not the pairs"),
        (kernel(i="i = torch.arange(PAIRS)"), "Your code stopped"),
        (kernel(first="first = t * 100000 + 2 * i"), "far outside all tensors"),
        (
            kernel(
                c="c = tl.load(cos + t * 2 * PAIRS + i)",
                s="s = tl.load(sin + t * 2 * PAIRS + i)",
            ),
            "of cos, which ends at",
        ),
        (kernel(load="a, b = x[t, 0::2], x[t, 1::2]"), "are addresses, not tensors"),
        (
            kernel(
                c="c, s = tuple([tl.load(p + t * PAIRS + i) for p in (cos, sin)])",
                s="",
                two="tl.store(out + first + 1, a * s + b * c)\n"
                "    for place in tuple([first]):\n        pass",
            ),
            "refuses `c, s = tuple(",
        ),
        (
            kernel(
                t="while True:\n        t = tl.program_id(0)\n        break",
            ),
            "Break",
        ),
        (kernel(two="while True:\n        pass"), "still running"),
        (
            kernel(
                one="tl.store(out + first, tl.where(t < 4, a * c - b * s, a))",
            ),
            "the first are not",
        ),
        (
            kernel(s="s = tl.abs(tl.load(sin + t * PAIRS + i))"),
            "turned by the tables",
        ),
    ],
    "18.4": [
        (turn(back="*one_launch(k_grad, q_grad, cos, -sin), None, None"), "q comes"),
        (turn(back="*one_launch(q_grad, k_grad, sin, cos), None, None"), "cos, sin"),
        (turn(back="*one_launch(q_grad, k_grad, cos, sin), None, None"), "forward aga"),
        (turn(back="*one_launch(q_grad, k_grad, -cos, -sin), None, None"), "both sig"),
        (
            turn(back="*one_launch(q_grad, k_grad, -cos, sin), None, None"),
            "sign of cos",
        ),
        (turn(back="one_launch(q_grad, k_grad, cos, -sin)"), "one gradient per input"),
        (turn(back="*one_launch(q_grad, k_grad, cos, -sin), None"), "per input"),
        (
            turn(back="*one_launch(q_grad, k_grad, cos, -sin), cos, sin"),
            "a gradient for cos",
        ),
        (turn(back="None, None, None, None"), "is None"),
        (turn(back="q_grad, k_grad, None, None"), "unturned"),
        (
            turn(back="*one_launch(2 * q_grad, k_grad, cos, -sin), None, None"),
            "incoming gradient",
        ),
        (
            turn(back="*one_launch(q_grad, k_grad, cos, -sin.abs()), None, None"),
            "incoming gradient",
        ),
        (
            turn(back="one_launch(q_grad, k_grad, cos, -sin)[0], k_grad, None, None"),
            "The gradient of k came through unturned",
        ),
        (
            turn(back="*one_launch(q_grad, k_grad, cos, sin.neg_()), None, None"),
            "changed sin",
        ),
        (turn(row=""), "arrives transposed"),
        (turn(row="k_grad = k_grad.contiguous()"), "gradient of q that arrives"),
        (turn(row="q_grad, k_grad = q_grad.clone(), k_grad.clone()"), "transposed"),
        (turn(there="return one_launch(q, k, cos, sin)"), "in a row"),
        (turn(there="return one_launch(k, q, cos, sin)"), "comes back as"),
        (turn(there="return one_launch(q, k, cos, -sin)"), "forward turns q back"),
        (turn(there="return q.clone(), k.clone()"), "forward turns nothing"),
        (turn(there="return one_launch(q, k, cos, sin)[0]"), "two tensors"),
        (turn(there="return one_launch(q.float(), k.float(), cos, sin)"), "in a row"),
        (
            turn(
                there="q, k = q.float().contiguous(), k.float().contiguous()\n"
                "        return one_launch(q, k, cos, sin)"
            ),
            "the input's dtype",
        ),
        (
            turn(
                there="for x, y in zip((q, k), one_launch(q, k, cos, sin)):\n"
                "            x.copy_(y)\n        return q, k"
            ),
            "changed q",
        ),
        (turn(keep="ctx.save_for_backward(q, k, cos, sin)"), "You keep q"),
        (turn(keep="ctx.save_for_backward(cos, sin)\n        ctx.q = q"), "You keep q"),
        (turn(keep="pass"), "keeps nothing"),
        (
            turn(keep="global kept\n        kept = cos, sin", take="cos, sin = kept"),
            "keeps nothing",
        ),
        (
            turn(
                keep="ctx.save_for_backward(cos, sin)\n        Turn.kept = cos, sin",
                take="cos, sin = Turn.kept",
            ),
            "tables of the other call",
        ),
        (
            turn(keep="ctx.tables = cos, sin", take="cos, sin = ctx.tables"),
            "silently wrong",
        ),
        (
            turn(
                keep="ctx.save_for_backward(cos, sin)\n"
                "        ctx.set_materialize_grads(False)"
            ),
            "set_materialize_grads decides",
        ),
        (
            turn(
                back="*(g if n else None for g, n in zip(one_launch(q_grad, k_grad, "
                "cos, -sin), [ctx.needs_input_grad[0]] * 2)), None, None"
            ),
            "If k alone needs a gradient, it gets None",
        ),
        (
            "back = cos_sin(-torch.arange(5, 13), inverse_frequencies(64))\n\n"
            + turn(take="", back="*one_launch(q_grad, k_grad, *back), None, None"),
            "does not ask for `ctx.saved_tensors`",
        ),
        ("import ctypes\n\n" + turn(row="ctypes.string_at(0)"), "crashed Python"),
        (turn().partition("    @staticmethod\n    def backward")[0], "has no backward"),
        (turn().replace("torch.autograd.Function", "object"), "Expected a class"),
        (
            "def Turn(q, k, cos, sin):\n    return one_launch(q, k, cos, sin)",
            "Expected a class",
        ),
    ],
}

OTHER = {
    "18.1": [
        BILL + "sum(2 * batch * seq * h * head_dim * itemsize"
        " for h in (heads, kv_heads))",
        """
def least_bytes(batch, seq, heads, kv_heads, head_dim, itemsize):
    q = torch.empty(batch, seq, heads, head_dim, dtype=torch.int8)
    k = torch.empty(batch, seq, kv_heads, head_dim, dtype=torch.int8)
    return torch.tensor(2.0 * (q.nbytes + k.nbytes) * itemsize)
""",
    ],
    "18.2": [
        """
def owned(heads, block):
    return torch.arange(heads).split(block)
""",
        """
def owned(heads, block):
    programs = {}
    for head in range(heads):
        programs.setdefault(head // block, []).append(float(head))
    return programs.values()
""",
    ],
    "18.3": [
        "import triton\n\n\n@triton.jit\n" + kernel(),
        """
def turn_neighbours(x, out, cos, sin, PAIRS: tl.constexpr):
    t = tl.program_id(0)
    f = tl.arange(0, 2 * PAIRS)
    row = t * PAIRS + f // 2
    sign = tl.where(f % 2 == 0, -1.0, 1.0)
    own = tl.load(x + t * 2 * PAIRS + f)
    other = tl.load(x + t * 2 * PAIRS + (f ^ 1))
    turned = own * tl.load(cos + row) + sign * other * tl.load(sin + row)
    tl.store(out + t * 2 * PAIRS + f, turned)
""",
    ],
    "18.4": [
        # setup_context, and the formula for the way back.
        """
from torch.autograd.function import once_differentiable


class Turn(torch.autograd.Function):
    @staticmethod
    def forward(q, k, cos, sin):
        return one_launch(*(x.contiguous() for x in (q, k)), cos, sin)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        cos, sin = [t.repeat(1, 2).unsqueeze(1) for t in ctx.saved_tensors]
        halves = [g.chunk(2, dim=-1) for g in grads]
        rolled = [torch.cat([b, -a], dim=-1) for a, b in halves]
        turned = [g * cos + r * sin for g, r in zip(grads, rolled)]
        return *(t.to(g.dtype) for t, g in zip(turned, grads)), None, None
""",
        # Features the other way round; copies of the tables as attributes.
        """
class Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        q, k, ctx.cos, ctx.sin = [x.clone().contiguous() for x in inputs]
        return one_launch(q, k, ctx.cos, ctx.sin)

    @staticmethod
    def backward(ctx, q_grad, k_grad):
        flat = [x.flip(-1).contiguous() for x in (q_grad, k_grad, ctx.cos, ctx.sin)]
        return tuple(x.flip(-1) for x in one_launch(*flat)) + (None, None)
""",
    ],
}
