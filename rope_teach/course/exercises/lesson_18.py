"""The exercises of lesson 18: the GPU kernel."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises import (
    Wrong,
    as_tensor,
    close,
    exercise,
    expect,
    number,
)
from rope_teach.frequencies import inverse_frequencies
from rope_teach.ops import rotate
from rope_teach.tables import cos_sin


@exercise(
    "18.1",
    "The bill",
    difficulty=1,
    minutes=4,
    hints=(
        "How many features do q and k have together, over all sequences and tokens?",
        "batch · seq · (heads + kv_heads) · head_dim features. Each is read once and "
        "written once, and takes itemsize bytes.",
    ),
    solution='''
def least_bytes(batch, seq, heads, kv_heads, head_dim, itemsize):
    """Return the bytes read and written, without the tables."""
    features = batch * seq * (heads + kv_heads) * head_dim
    return 2 * features * itemsize
''',
    why="Each feature of q and k is read once and written once. Copying both moves "
    "just as many bytes, which is why a copy is the yardstick.",
)
def the_bill(least_bytes: Callable[..., Any]) -> str:
    for shape in ((1, 3, 8, 2, 128, 4), (64, 1, 32, 8, 128, 2), (3, 5, 6, 6, 64, 2)):
        batch, seq, heads, kv_heads, head_dim, itemsize = shape
        got = number(least_bytes(*shape))
        token = 2 * (heads + kv_heads) * head_dim * itemsize
        right = batch * seq * token
        what = f"For batch {batch}, seq {seq}, {heads} and {kv_heads} heads"
        for wrong, message in (
            (right // 2, "only one direction. Features are read and written."),
            (
                2 * batch * seq * heads * head_dim * itemsize,
                "only q. The keys are turned too, and they have kv_heads heads.",
            ),
            (
                4 * batch * seq * heads * head_dim * itemsize,
                "k as large as q. With grouped queries, k has kv_heads heads.",
            ),
            (
                3 * batch * seq * (heads + kv_heads) * head_dim * itemsize,
                "three passes. The formula needs each feature twice, but a kernel "
                "reads it once and keeps it.",
            ),
            (
                5 * right,
                "the five operations of the textbook. The question asks what has to "
                "move.",
            ),
            (
                2 * batch * seq * (heads + 2 * kv_heads) * head_dim * itemsize,
                "the values too. They are not turned.",
            ),
            (8 * right, "bits. itemsize is in bytes."),
            (right // itemsize, "features. A feature takes itemsize bytes."),
            (token * seq, "one sequence. The batch has several."),
            (token * batch, "one token of each sequence. There are seq of them."),
        ):
            expect(
                got != wrong or wrong == right,
                f"{what}: {got:,.0f} counts {message}",
            )
        expect(
            got == right,
            f"{what} with {head_dim} features of {itemsize} bytes, {right:,} bytes "
            f"must move; you gave {got:,.0f}.",
        )
    return (
        "Divide by the memory bandwidth in bytes per second, and you know how fast a "
        "rotation can possibly be."
    )


@exercise(
    "18.2",
    "Who owns which heads?",
    difficulty=2,
    minutes=4,
    hints=(
        "Program `share` begins at head share · block. Where does it end if the heads "
        "run out?",
        "range(0, heads, block) gives the first head of each program. It ends at "
        "min(begin + block, heads): that is the mask.",
    ),
    solution='''
def owned(heads, block):
    """Return a list of heads for each program of a token."""
    return [list(range(begin, min(begin + block, heads)))
            for begin in range(0, heads, block)]
''',
    why="The number of programs is heads / block, rounded up, so that no head is left "
    "out. The mask cuts off the last block where the heads end.",
)
def who_owns_which_heads(owned: Callable[..., Any]) -> str:
    for heads, block in ((6, 4), (8, 4), (5, 2), (3, 8)):
        got = owned(heads, block)
        expect(got is not None, "Your function returns nothing. Is there a `return`?")
        try:
            got = [[int(head) for head in program] for program in got]
        except TypeError:
            raise Wrong(
                "Return a list of lists: for each program, the list of its heads."
            ) from None
        right = [
            list(range(begin, min(begin + block, heads)))
            for begin in range(0, heads, block)
        ]
        what = f"{heads} heads in blocks of {block}: {got}"
        everyone = sorted(head for program in got for head in program)
        expect(
            everyone != list(range(1, heads + 1)),
            f"{what}. The first head is number 0.",
        )
        expect(
            not any(head >= heads for head in everyone),
            f"{what}. There is no head {max(everyone, default=0)}: this program would "
            "overwrite part of the next token. The mask prevents that.",
        )
        expect([] not in got, f"{what}. A program without heads is idle: leave it out.")
        expect(
            not heads % block or got != right[: heads // block],
            f"{what}. No program owns the last heads: heads // block rounds down, and "
            "the rest is never turned.",
        )
        expect(
            len(set(everyone)) == len(everyone),
            f"{what}. Two programs own the same head, so it is turned twice.",
        )
        expect(
            everyone == list(range(heads)),
            f"{what}. Some heads belong to no program.",
        )
        expect(
            all(program[-1] - program[0] == len(program) - 1 for program in got),
            f"{what}. You dealt out the heads in turn. A block owns neighbours, so "
            "that one load fetches them together.",
        )
        expect(
            got == right,
            f"{what}. Every head has an owner, but the blocks should be {right}.",
        )
    return (
        "A grid rounded up and a mask: that is how nearly every kernel deals with "
        "sizes that do not divide evenly."
    )


GUARD = 4096  # numbers on each side of a tensor, so that stray writes are noticed


def _guarded(inner: Tensor, around: float) -> tuple[Tensor, Tensor]:
    """A copy of ``inner`` with ``around`` on both sides, and the whole buffer."""
    whole = torch.full((inner.numel() + 2 * GUARD,), around)
    middle = whole[GUARD : GUARD + inner.numel()].view(inner.shape)
    return middle.copy_(inner), whole


def _run(kernel: Callable[..., Any], x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Run an undecorated kernel in the interpreter, one program per row."""
    try:
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError:
        raise Wrong(
            "Triton is not installed here; it is available only for Linux. Open the "
            "lesson there or in a hosted notebook."
        ) from None
    kernel = getattr(kernel, "fn", kernel)  # the student may have written @triton.jit
    given = [_guarded(tensor, torch.nan)[0] for tensor in (x, cos, sin)]
    out, whole = _guarded(torch.full_like(x, torch.nan), 0.0)
    before = [tensor.clone() for tensor in given]
    InterpretedFunction(kernel)[(len(x),)](given[0], out, *given[1:], cos.shape[1])
    expect(
        all(map(torch.equal, given, before)),
        "Your kernel writes into x or the tables. The result belongs in out.",
    )
    count = out.numel()
    around = torch.cat([whole[:GUARD], whole[GUARD + count :]])
    expect(
        not around.any(),
        "Your kernel writes outside out. Row t begins at out + t * 2 * PAIRS and ends "
        "before the next.",
    )
    return out


@exercise(
    "18.3",
    "A kernel for neighbours",
    difficulty=3,
    minutes=8,
    hints=(
        "Go through turn_head line by line. Only two things change: there are no "
        "heads, and the partner of feature 2i is not PAIRS further on, but next to it.",
        "i = tl.arange(0, PAIRS); the tables are at t * PAIRS + i; first = t * 2 * "
        "PAIRS + 2 * i; load a at first and b at first + 1, and store the two turned "
        "features in the same places of out.",
    ),
    solution='''
def turn_neighbours(x, out, cos, sin, PAIRS: tl.constexpr):
    """Load the pairs of one row, turn them, store them in out."""
    t = tl.program_id(0)
    i = tl.arange(0, PAIRS)
    c = tl.load(cos + t * PAIRS + i)
    s = tl.load(sin + t * PAIRS + i)
    both = t * 2 * PAIRS + tl.arange(0, 2 * PAIRS)
    a, b = tl.split(tl.reshape(tl.load(x + both), (PAIRS, 2)))
    turned = tl.join(a * c - b * s, a * s + b * c)
    tl.store(out + both, tl.reshape(turned, (2 * PAIRS,)))
''',
    why="One load of neighbours, and tl.split separates the pairs on the chip. Two "
    "loads with a stride of 2 give the same numbers but request twice the memory.",
)
def a_kernel_for_neighbours(kernel: Callable[..., Any]) -> str:
    for rows, head_dim in ((1, 8), (3, 16)):
        generator = torch.Generator().manual_seed(head_dim)
        x = torch.randn(rows, head_dim, generator=generator)
        tables = cos_sin(torch.arange(2, 2 + rows), inverse_frequencies(head_dim))
        got = _run(kernel, x, *tables)
        _judge_rows(got, x, *tables)
    return "You wrote a kernel, and no GPU was needed. On a GPU it would run unchanged."


def _judge_rows(got: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    right = rotate(x, cos, sin)
    expect(not got.isnan().all(), "out is unchanged: is there a tl.store?")
    expect(
        len(x) == 1 or not got[1:].isnan().all(),
        "Only the first row was written. A program learns which row it has from "
        "tl.program_id(0).",
    )
    missing = int(got.isnan().sum())
    expect(
        missing == 0,
        f"{missing} of {got.numel()} features of out were never written, or were "
        "computed from numbers outside x or the tables. A pair is two features.",
    )
    expect(not close(got, x), "x came back unchanged: nothing is turned.")
    expect(
        not close(got, rotate(x, cos, sin, "half")),
        "You paired feature i with i + PAIRS: the half pairing. Neighbours are 2i and "
        "2i + 1.",
    )
    expect(
        not close(got, rotate(x, cos, -sin)),
        "You turned clockwise: the minus sign belongs to the first feature, a cos - b "
        "sin.",
    )
    first = rotate(x, cos[:1].expand_as(cos), sin[:1].expand_as(sin))
    expect(
        len(x) == 1 or not close(got, first),
        "Every row was turned by the first row of the tables. Row t has its own row "
        "there: cos + t * PAIRS.",
    )
    halves = torch.cat([right[:, 0::2], right[:, 1::2]], dim=-1)
    expect(
        not close(got, halves),
        "The right numbers in the wrong places: all first features, then all second "
        "ones. Each goes back to where it came from.",
    )
    overwritten = right[:, 0::2] * sin + x[:, 1::2] * cos
    expect(
        not close(got[:, 1::2], overwritten),
        "The second feature was computed from the first one *after turning*. It needs "
        "a as it was loaded: give the turned one a different name.",
    )
    expect(
        close(got[:, 0::2], right[:, 0::2]) or not close(got[:, 1::2], right[:, 1::2]),
        "The second features are right, but the first are not: a cos - b sin.",
    )
    expect(
        close(got[:, 1::2], right[:, 1::2]) or not close(got[:, 0::2], right[:, 0::2]),
        "The first features are right, but the second are not: a sin + b cos.",
    )
    expect(close(got, right), "These are not the pairs of x turned by the tables.")


@exercise(
    "18.4",
    "Backward by the sign",
    difficulty=3,
    minutes=5,
    hints=(
        "The gradient is turned back, by -φ. What are cos(-φ) and sin(-φ)?",
        "cos, sin = ctx.saved_tensors; the gradients are one_launch(q_grad, k_grad, "
        "cos, -sin), then None twice for the tables.",
    ),
    solution='''
def backward(ctx, q_grad, k_grad):
    """Return the gradients of q, k, cos and sin."""
    cos, sin = ctx.saved_tensors
    return *one_launch(q_grad, k_grad, cos, -sin), None, None
''',
    why="cos(-φ) = cos φ and sin(-φ) = -sin φ. So the kernel is its own gradient, with "
    "the sign of sin changed.",
)
def backward_by_the_sign(backward: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(18)
    for seq, heads, kv_heads, head_dim in ((3, 2, 1, 8), (2, 4, 2, 16)):
        tables = cos_sin(torch.arange(1, 1 + seq), inverse_frequencies(head_dim))
        grads = [
            torch.randn(seq, h, head_dim, generator=generator)
            for h in (heads, kv_heads)
        ]
        got = backward(SimpleNamespace(saved_tensors=tables), *grads)
        expect(got is not None, "Your function returns nothing. Is there a `return`?")
        expect(
            isinstance(got, (tuple, list)) and len(got) != 2,
            "Return one gradient per input: q, k, cos and sin. The tables get None.",
        )
        expect(
            len(got) == 4,
            f"The forward has four inputs; you returned {len(got)} values.",
        )
        expect(
            got[2] is None and got[3] is None,
            "The last two belong to cos and sin. The tables are not trained: return "
            "None.",
        )
        for name, mine, grad in zip("qk", got, grads, strict=False):
            expect(
                mine is not None,
                f"The gradient of {name} is None. Only the tables get None.",
            )
            other = {"q": grads[1], "k": grads[0]}[name]
            expect(
                as_tensor(mine).shape != other.shape or heads == kv_heads,
                "q and k are swapped: the gradient of q comes first.",
            )
            _judge_gradient(name, as_tensor(mine), grad, *tables)
    return (
        "No feature was saved for it. Longer texts make q and k larger, but all that "
        "training must save for the rotation is still two tables."
    )


def _judge_gradient(
    name: str, got: Tensor, grad: Tensor, cos: Tensor, sin: Tensor
) -> None:
    def turned(c: Tensor, s: Tensor) -> Tensor:
        return rotate(grad, c, s, "half", layout="bshd")

    expect(
        not close(got, turned(cos, sin)),
        f"The gradient of {name} is turned forward again. It has to turn back.",
    )
    expect(not close(got, grad), f"The gradient of {name} came through unturned.")
    expect(
        not close(got, turned(-cos, -sin)),
        f"You changed both signs: that turns {name} by another half circle, not back.",
    )
    expect(
        not close(got, turned(sin, cos)),
        "cos and sin are swapped. They were saved in the order cos, sin.",
    )
    expect(
        not close(got, turned(-cos, sin)),
        "You changed the sign of cos. cos(-φ) is cos φ; it is sin that changes.",
    )
    expect(
        close(got, turned(cos, -sin)),
        f"The gradient of {name} is not the incoming gradient turned back.",
    )
