"""The exercises of lesson 18: the GPU kernel."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import FunctionType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.child import run_apart
from rope_teach.course.exercises.comparing import close, expect_close, name_mistake
from rope_teach.course.exercises.student_code import inner_function, uses
from rope_teach.course.exercises.values import as_tensor, number
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
    shapes = (
        (1, 3, 8, 2, 128, 4),
        (64, 1, 32, 8, 128, 2),
        (3, 5, 6, 6, 64, 2),
        (2, 7, 12, 1, 96, 1),
    )
    got = [number(least_bytes(*shape)) for shape in shapes]
    right = [2 * b * s * (h + kv) * d * size for b, s, h, kv, d, size in shapes]
    mistakes: dict[str, Callable[..., float]] = {
        "only one direction. Features are read and written.": (
            lambda b, s, h, kv, d, z: b * s * (h + kv) * d * z
        ),
        "only q. The keys are turned too, and they have kv_heads heads.": (
            lambda b, s, h, kv, d, z: 2 * b * s * h * d * z
        ),
        "k as large as q. With grouped queries, k has kv_heads heads.": (
            lambda b, s, h, kv, d, z: 4 * b * s * h * d * z
        ),
        "three passes. The formula needs each feature twice, but a kernel reads it "
        "once and keeps it.": lambda b, s, h, kv, d, z: 3 * b * s * (h + kv) * d * z,
        "the five operations of the textbook. The question asks what has to move.": (
            lambda b, s, h, kv, d, z: 10 * b * s * (h + kv) * d * z
        ),
        "the values too. They are not turned.": (
            lambda b, s, h, kv, d, z: 2 * b * s * (h + 2 * kv) * d * z
        ),
        "bits. itemsize is in bytes.": (
            lambda b, s, h, kv, d, z: 16 * b * s * (h + kv) * d * z
        ),
        "features. A feature takes itemsize bytes.": (
            lambda b, s, h, kv, d, z: 2 * b * s * (h + kv) * d
        ),
        "one sequence. The batch has several.": (
            lambda b, s, h, kv, d, z: 2 * s * (h + kv) * d * z
        ),
        "one token of each sequence. There are seq of them.": (
            lambda b, s, h, kv, d, z: 2 * b * (h + kv) * d * z
        ),
    }
    name_mistake(
        got,
        right,
        {
            f"For {_named(shapes[0])}: {got[0]:,.0f} counts {what}": [
                count(*shape) for shape in shapes
            ]
            for what, count in mistakes.items()
        },
    )
    for mine, must, shape in zip(got, right, shapes, strict=True):
        expect(
            mine == must,
            f"For {_named(shape)}, {must:,} bytes must move; you gave {mine:,.0f}.",
        )
    return (
        "Divide by the memory bandwidth in bytes per second, and you know how fast a "
        "rotation can possibly be."
    )


def _named(shape: tuple[int, ...]) -> str:
    batch, seq, heads, kv_heads, head_dim, itemsize = shape
    return (
        f"batch {batch}, seq {seq}, {heads} and {kv_heads} heads with {head_dim} "
        f"features of {itemsize} bytes"
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
    for heads, block in ((6, 4), (8, 4), (5, 2), (3, 8), (11, 3), (1, 1)):
        got = owned(heads, block)
        expect(got is not None, "Your function returns nothing. Is there a `return`?")
        try:
            got = [[number(head) for head in program] for program in got]
        except (TypeError, Wrong):
            raise Wrong(
                "Return a list of lists: for each program, the list of its heads."
            ) from None
        expect(
            all(head.is_integer() for program in got for head in program),
            f"Heads have whole numbers; you gave {got}.",
        )
        got = [[int(head) for head in program] for program in got]
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
            all(max(p) - min(p) == len(p) - 1 for p in got),
            f"{what}. A program's heads are not neighbours. A block owns neighbours, "
            "so that one load fetches them together.",
        )
        expect(
            sorted(sorted(program) for program in got) != right or got == right,
            f"{what}. The blocks are right, but not in order.",
        )
        expect(
            got == right,
            f"{what}. Every head has an owner, but the blocks should be {right}.",
        )
    return (
        "A grid rounded up and a mask: that is how nearly every kernel deals with "
        "sizes that do not divide evenly."
    )


def _need_triton() -> None:
    try:
        import triton  # noqa: F401
    except ImportError:
        raise Wrong(
            "Triton is not installed here; it is available only for Linux. Open the "
            "lesson there or in a hosted notebook."
        ) from None


GAP = 4096  # numbers between two tensors, so that a stray address is noticed


def _far_apart(*tensors: Tensor) -> list[Tensor]:
    """Copies of ``tensors`` in one buffer, with a gap around each."""
    sizes = [-(-t.numel() // 8) * 8 + GAP for t in tensors]  # each begins a piece
    parts = torch.full((sum(sizes) + GAP,), torch.nan)[GAP:].split(sizes)
    return [
        part[: t.numel()].view(t.shape).copy_(t)
        for part, t in zip(parts, tensors, strict=True)
    ]


class _Memory:
    """The memory of an interpreted kernel: counts bytes, refuses stray addresses."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors
        self.bytes = 0
        self.complaint = ""

    def look(self, verb: str, places: Any, mask: Any, row: int) -> None:
        """Count the pieces of 32 bytes at ``places``; :class:`Wrong` if out of bounds.

        The tensors lie far apart, so a place a little outside belongs to the nearest.
        """
        asked = places.data[mask.data].astype(np.int64).ravel()
        self.bytes += 32 * len(np.unique(asked // 32))
        for address in asked:
            offset = {n: int(address) - t.data_ptr() for n, t in self.tensors.items()}
            name = min(
                offset, key=lambda n: abs(offset[n] - self.tensors[n].nbytes / 2)
            )
            count, place = self.tensors[name].numel(), offset[name] // 4
            inside = 0 <= place < count
            if inside and verb == "writes" and name != "out":
                self.refuse(
                    f"Your kernel writes into {name}. The result belongs in out."
                )
            if not inside:
                where = f"at place {place:,} of {name}, which ends at {count - 1:,}"
                if abs(place) > GAP:
                    where = "far outside all tensors"
                self.refuse(
                    f"Program {row} {verb} {where}. Row t of x and out begins at "
                    "t * 2 * PAIRS, row t of cos and sin at t * PAIRS."
                )

    def refuse(self, complaint: str) -> None:
        self.complaint = complaint  # Triton wraps an error in its own
        raise Wrong(complaint)


def _interpret(kernel: Any, cases: list[tuple[Tensor, ...]]) -> list[tuple[Any, ...]]:
    """For each (x, cos, sin): what the kernel left in out, and the bytes it moved."""
    from triton.runtime.interpreter import InterpretedFunction, interpreter_builder

    load = interpreter_builder.create_masked_load
    store = interpreter_builder.create_masked_store
    results = []
    for x, cos, sin in cases:
        out = torch.full_like(x, torch.nan)
        x, out, cos, sin = _far_apart(x, out, cos, sin)
        memory = _Memory(x=x, out=out, cos=cos, sin=sin)

        def watched(verb: str, do: Any, memory: _Memory = memory) -> Any:
            def access(places: Any, *rest: Any) -> Any:
                mask = rest[0] if verb == "reads" else rest[1]
                row = interpreter_builder.grid_idx[0]
                memory.look(verb, places, mask, row)
                return do(places, *rest)

            return access

        with patch.multiple(
            interpreter_builder,
            create_masked_load=watched("reads", load),
            create_masked_store=watched("writes", store),
        ):
            try:
                run = InterpretedFunction(inner_function(kernel))
                run[(len(x),)](x, out, cos, sin, cos.shape[1])
            except Exception as error:
                raise _in_plain_words(error, memory.complaint) from None
        results.append((out.clone(), memory.bytes))
    return results


def _in_plain_words(error: Exception, complaint: str) -> Exception:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if complaint:
        return Wrong(complaint)
    if "tensor index" in str(error) or "not subscriptable" in str(error):
        return Wrong(
            "An index [...] has no such meaning in a kernel. x, out, cos and sin are "
            "addresses, not tensors: tl.load(x + places) fetches what lies there, and "
            f"tl.store(out + places, values) writes. ({cause})"
        )
    return cause


def _compile(kernel: Any, pairs: int) -> tuple[str, str]:
    """Compile for a GPU that need not be here: "done", "refused" or "skipped", why."""
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, CompilationError
        from triton.runtime.jit import JITFunction

        function = JITFunction(inner_function(kernel))
        *pointers, last = function.params
        fixed = last.is_constexpr
        signature = {p.name: "*fp32" for p in pointers}
        signature[last.name] = "constexpr" if fixed else "i32"
        source = ASTSource(function, signature, {last.name: pairs} if fixed else {})
    except Exception as error:  # another system, or a Triton with other names
        return "skipped", str(error)
    try:
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
    except CompilationError as error:
        lines = str(error).splitlines()
        marks = [n for n, line in enumerate(lines) if line.strip() == "^"]
        at = f"`{lines[marks[-1] - 1].strip()}`: " if marks and marks[-1] else ""
        return "refused", at + " ".join(lines[marks[-1] + 1 if marks else 0 :])
    except Exception as error:  # no assembler for this target here
        return "skipped", str(error)
    return "done", ""


def _run(kernel: Any, cases: list[tuple[Tensor, ...]]) -> tuple[Any, ...]:
    return _interpret(kernel, cases), _compile(kernel, 16)


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
    _need_triton()
    expect(
        isinstance(inner_function(kernel), FunctionType),
        "Expected a kernel: a function of (x, out, cos, sin, PAIRS).",
    )
    cases = []
    for rows, head_dim in ((1, 8), (3, 32), (5, 16)):
        generator = torch.Generator().manual_seed(head_dim)
        x = torch.randn(rows, head_dim, generator=generator)
        tables = cos_sin(torch.arange(2, 2 + rows), inverse_frequencies(head_dim))
        cases.append((x, *tables))
    with patch.dict(os.environ, TRITON_INTERPRET="1"):
        results, (verdict, reason) = run_apart(_run, kernel, cases)
    for case, (got, _) in zip(cases, results, strict=True):
        _judge_rows(got, *case)
    if verdict == "refused":  # perhaps only since the interpreter was on
        with patch.dict(os.environ, TRITON_INTERPRET="0"):
            verdict, reason = run_apart(_compile, kernel, 16)
    expect(
        verdict != "refused",
        "In the interpreter, which is Python, your numbers are right. But Triton's "
        f"compiler, which makes the program for a GPU, refuses {reason}",
    )
    moved = results[1][1] // 3
    least = sum(t.nbytes for t in cases[1]) // 3 + 4 * 32
    compiled = (
        "It compiles for a GPU, too."
        if verdict == "done"
        else ("(Triton cannot compile for a GPU here, so that was not tried.)")
    )
    more = (
        "that is the least possible."
        if moved == least
        else (
            f"{least} would do. Two loads with a step of 2 ask for every piece twice; "
            "tl.split takes one load apart."
            if moved == least + 2 * 4 * 32
            else f"{least} would do."
        )
    )
    return (
        f"You wrote a kernel, and no GPU was needed. {compiled} A row of 32 features "
        f"asks memory for {moved} bytes: {more}"
    )


def _judge_rows(got: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    right = rotate(x, cos, sin)
    expect(not got.isnan().all(), "out is unchanged: is there a tl.store?")
    expect(
        len(x) == 1 or not got[1:].isnan().all(),
        "Only the first row was written. A program learns which row it has from "
        "tl.program_id(0).",
    )
    missing = got.isnan().nonzero().tolist()
    expect(
        not missing,
        f"{len(missing)} of {got.numel()} features of out were never written, or came "
        f"out as nan. The first is in row {(missing or [[0]])[0][0]}, feature "
        f"{(missing or [[0]])[0][-1]}.",
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
    expect_close(
        got,
        right,
        "These are not the pairs of x turned by the tables.",
        axes=("row", "feature"),
    )


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
    cases = []
    for seq, heads, kv_heads, head_dim in ((3, 2, 1, 8), (2, 4, 2, 16)):
        tables = cos_sin(torch.arange(3, 3 + seq), inverse_frequencies(head_dim))
        shapes = (seq, heads, head_dim), (seq, kv_heads, head_dim)
        grads = [torch.randn(shape, generator=generator) for shape in shapes]
        cases.append((grads, tables))
    try:
        answers = run_apart(_turn_back, backward, cases)
        for got, (grads, tables) in zip(answers, cases, strict=True):
            _judge_gradients(got, grads, tables)
    except Wrong as wrong:
        if not isinstance(backward, FunctionType) or _asks_for_tables(backward):
            raise
        raise Wrong(
            "Your function does not ask for `ctx.saved_tensors`, the tables that "
            "belong to these gradients. Tables of other tokens have other angles, and "
            f"perhaps another size. What came of it: {wrong}"
        ) from None
    return (
        "No feature was saved for it. Longer texts make q and k larger, but all that "
        "training must save for the rotation is still two tables."
    )


def _asks_for_tables(backward: FunctionType) -> bool:
    named = backward.__code__.co_consts  # getattr(ctx, "saved_tensors")
    return bool(uses(backward, "saved_tensors")) or "saved_tensors" in named


def _turn_back(backward: Callable[..., Any], cases: list[Any]) -> list[Any]:
    """What ``backward`` returns for each case, and whether it spoiled its input."""
    answers = []
    for grads, tables in cases:
        given = [tensor.clone() for tensor in (*grads, *tables)]
        got = backward(SimpleNamespace(saved_tensors=tuple(given[2:])), *given[:2])
        for name, tensor, kept in zip(
            ("q_grad", "k_grad", "cos", "sin"), given, (*grads, *tables), strict=True
        ):
            expect(
                torch.equal(tensor, kept),
                f"Your code changed {name}, which belongs to the caller: others still "
                "need it. Make a new tensor.",
            )
        answers.append(got)
    return answers


def _judge_gradients(
    got: Any, grads: Sequence[Tensor], tables: tuple[Tensor, Tensor]
) -> None:
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
        "The last two belong to cos and sin. The tables are not trained: return None.",
    )
    for name, mine, grad in zip("qk", got, grads, strict=False):
        expect(
            mine is not None,
            f"The gradient of {name} is None. Only the tables get None.",
        )
        mine, other = as_tensor(mine), {"q": grads[1], "k": grads[0]}[name]
        expect(
            mine.shape != other.shape,
            "q and k are swapped: the gradient of q comes first.",
        )
        _judge_gradient(name, mine, grad, *tables)


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
    expect_close(
        got,
        turned(cos, -sin),
        f"The gradient of {name} is not the incoming gradient turned back.",
        axes=("token", "head", "feature"),
    )
