"""The exercises of lesson 18: the GPU kernel."""

from __future__ import annotations

import dis
import os
from collections.abc import Callable, Sequence
from types import FunctionType
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
    "A function with a gradient",
    difficulty=4,
    minutes=9,
    hints=(
        "Begin from Scale: forward takes ctx and the four inputs, keeps the tables, "
        "and returns what one_launch returns. A gradient is turned back, by -φ. What "
        "are cos(-φ) and sin(-φ)?",
        "backward(ctx, q_grad, k_grad): cos, sin = ctx.saved_tensors, then one_launch "
        "of both gradients with cos and -sin, and None twice for the tables. Call "
        ".contiguous() on all that goes into one_launch.",
    ),
    solution='''
class Turn(torch.autograd.Function):
    """Turn q and k by cos and sin in one launch, and gradients back."""

    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        return one_launch(q.contiguous(), k.contiguous(), cos, sin)

    @staticmethod
    def backward(ctx, q_grad, k_grad):
        cos, sin = ctx.saved_tensors
        grads = q_grad.contiguous(), k_grad.contiguous()
        return *one_launch(*grads, cos, -sin), None, None
''',
    why="cos(-φ) = cos φ and sin(-φ) = -sin φ. So the kernel is its own gradient, with "
    "the sign of sin changed. It walks addresses, so all that it gets lies in a row.",
)
def a_function_with_a_gradient(turn: Any) -> str:
    expect(
        isinstance(turn, type) and issubclass(turn, torch.autograd.Function),
        "Expected a class that begins with `class Turn(torch.autograd.Function):`.",
    )
    for method in ("forward", "backward"):
        expect(
            getattr(turn, method) is not getattr(torch.autograd.Function, method),
            f"Turn has no {method}. It is a static method, as in Scale.",
        )
    run_apart(_judge_turn, turn)
    return (
        "No feature was saved for it. Longer texts make q and k larger, but all that "
        "training must save for the rotation is still two tables."
    )


def _asks_for_what_it_kept(turn: type) -> bool:
    methods = [getattr(each, "__func__", each) for each in vars(turn).values()]
    codes = [each.__code__ for each in methods if isinstance(each, FunctionType)]
    named = "saved_tensors" in [c for code in codes for c in code.co_consts]
    steps = [step.opname for code in codes for step in dis.get_instructions(code)]
    return named or "STORE_ATTR" in steps or bool(uses(turn, "saved_tensors"))


Turn = Any  # a student's torch.autograd.Function
Tables = tuple[Tensor, Tensor]


def _judge_turn(turn: Turn) -> None:
    """Hold a student's function against what the formula and its gradient give."""
    for seed, sizes in enumerate(((3, 2, 1, 8), (2, 4, 2, 16))):
        x, grads, tables = _tensors(seed, *sizes)
        outs = _forward(turn, x, tables)
        _judge_keeping(outs, x, tables)
        for name, got, given in zip("qk", outs, x, strict=True):
            _judge_forward(name, got, given, *tables)
        expect(
            _asks_for_what_it_kept(turn),
            "Your backward does not ask for `ctx.saved_tensors`, the tables that "
            "belong to these gradients. Tables of other tokens have other angles, and "
            "perhaps another size.",
        )
        back = _back(outs, x, grads, tables)
        for name, mine, grad in zip("qk", back, grads, strict=True):
            expect(
                mine is not None,
                f"The gradient of {name} is None. Only the tables get None.",
            )
            _judge_gradient(name, as_tensor(mine), grad, *tables)
    _judge_layout(turn)
    _judge_calls(turn)
    _judge_overwritten(turn)
    _judge_tables(turn)
    _judge_bfloat16(turn)


def _tensors(
    seed: int, seq: int, heads: int, kv_heads: int, head_dim: int
) -> tuple[list[Tensor], list[Tensor], Tables]:
    """Leaves q and k, gradients that arrive for them, and the tables."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (seq, heads, head_dim), (seq, kv_heads, head_dim)
    x, grads = (
        [torch.randn(shape, generator=generator) for shape in shapes] for _ in "xg"
    )
    tables = cos_sin(torch.arange(seq) + 3 + seed, inverse_frequencies(head_dim))
    return [each.requires_grad_() for each in x], grads, tables


def _forward(turn: Turn, x: Sequence[Tensor], tables: Tables) -> tuple[Tensor, Tensor]:
    """What ``turn`` returns; :class:`Wrong` if that is no pair, or it wrote into x."""
    given = *x, *tables
    kept = [each.detach().clone() for each in given]
    outs = turn.apply(*given)
    _expect_unchanged(given, kept)
    expect(
        isinstance(outs, (tuple, list))
        and len(outs) == 2
        and all(isinstance(out, Tensor) for out in outs),
        "forward should return two tensors: q and k, turned.",
    )
    for name, out, one in zip("qk", outs, x, strict=True):
        expect(
            out.shape == one.shape,
            f"{name} has shape {tuple(one.shape)}, and comes back as "
            f"{tuple(out.shape)}.",
        )
        expect(
            out.dtype == one.dtype,
            f"{name} is {one.dtype}, and comes back as {out.dtype}. The result has the "
            "input's dtype.",
        )
    return outs[0], outs[1]


def _expect_unchanged(given: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    for name, tensor, before in zip(("q", "k", "cos", "sin"), given, kept, strict=True):
        expect(
            torch.equal(tensor, before),
            f"Your code changed {name}, which belongs to the caller: others still "
            "need it. Make a new tensor.",
        )


def _judge_forward(name: str, got: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    def turned(c: Tensor, s: Tensor) -> Tensor:
        return rotate(x.detach(), c, s, "half", layout="bshd")

    expect(not close(got, x), f"{name} comes back as it was: forward turns nothing.")
    expect(
        not close(got, turned(cos, -sin)),
        f"forward turns {name} back. The sign of sin changes on the way back only.",
    )
    expect_close(
        got,
        turned(cos, sin),
        f"forward does not turn {name} by the tables.",
        axes=("token", "head", "feature"),
    )


def _judge_keeping(outs: Sequence[Tensor], x: Sequence[Tensor], tables: Tables) -> None:
    """Something must be kept for the way back, and nothing as large as q or k."""
    node = outs[0].grad_fn
    expect(
        node is not None,
        "The result has no gradient function: q needs a gradient, so its result does.",
    )
    attributes = [
        each
        for value in vars(node).values()
        for each in (value if isinstance(value, (tuple, list)) else [value])
    ]
    kept = [*node.saved_tensors, *attributes]  # type: ignore[union-attr]
    expect(
        bool(kept),
        "Your forward keeps nothing. When backward begins, the tables of this call are "
        "gone: ctx.save_for_backward(cos, sin).",
    )
    for name, tensor in zip(
        ("q", "k", "the turned q", "the turned k"), (*x, *outs), strict=True
    ):
        size = tensor.nbytes
        expect(
            not any(
                isinstance(each, Tensor)
                and each.shape == tensor.shape
                and close(each, tensor, 0.05)
                for each in kept
            ),
            f"You keep {name} for the way back: here {size} bytes, in training "
            "gigabytes. A rotation is undone with its tables alone.",
        )


def _back(
    outs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    tables: Tables,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``inputs``; :class:`Wrong` with torch's complaint in words."""
    kept = [each.detach().clone() for each in (*grads, *tables)]
    try:
        got = torch.autograd.grad(
            outs, inputs, grads, allow_unused=True, retain_graph=True
        )
    except RuntimeError as error:
        said = str(error)
        if "number of gradients" in said:
            raise Wrong(
                "Return one gradient per input: q, k, cos and sin. The tables get "
                f"None. ({said})"
            ) from None
        if "invalid gradient" in said:
            raise Wrong(
                "A gradient has the shape of its input, and the gradient of q comes "
                f"first. ({said})"
            ) from None
        raise
    for name, tensor, before in zip(
        ("q_grad", "k_grad", "cos", "sin"), (*grads, *tables), kept, strict=True
    ):
        expect(
            torch.equal(tensor, before),
            f"Your code changed {name}, which belongs to the caller: others still "
            "need it. Make a new tensor.",
        )
    return got


def _transposed(x: Tensor) -> Tensor:
    """The same numbers with the heads outside in memory, as SDPA wants them."""
    return x.detach().transpose(0, 1).contiguous().transpose(0, 1)


def _judge_layout(turn: Turn) -> None:
    """The same numbers, laid out otherwise, must be turned alike."""
    x, grads, tables = _tensors(5, 3, 4, 2, 8)
    strided = [_transposed(each).requires_grad_() for each in x]
    plain = _forward(turn, x, tables)
    for name, out, right in zip(
        "qk", _forward(turn, strided, tables), plain, strict=True
    ):
        expect(
            close(out, right),
            f"With {name} of strides {strided[0].stride()} the result is another than "
            "with the same numbers in a row. one_launch walks addresses and asks for "
            "no strides: give it .contiguous() tensors.",
        )
    for what, arriving in (
        ("transposed", [_transposed(grad) for grad in grads]),
        ("as .sum() sends it", [torch.ones(()).expand(out.shape) for out in plain]),
    ):
        in_a_row = _back(plain, x, [a.contiguous() for a in arriving], tables)
        got = _back(plain, x, arriving, tables)
        for name, mine, must, grad in zip("qk", got, in_a_row, arriving, strict=True):
            expect(
                close(mine, must),
                f"A gradient of {name} that arrives {what}, with strides "
                f"{grad.stride()}, is turned otherwise than the same numbers in a row. "
                "one_launch walks addresses and asks for no strides: give it "
                ".contiguous() tensors.",
            )


def _judge_calls(turn: Turn) -> None:
    """Two calls at once, and calls of which only a part needs a gradient."""
    x, grads, first = _tensors(6, 3, 2, 1, 8)
    second = cos_sin(torch.arange(40, 43), inverse_frequencies(8))
    calls = [(_forward(turn, x, tables), tables) for tables in (first, second)]
    for outs, (cos, sin) in calls:
        got = _back(outs, x, grads, (cos, sin))[0]
        other = second if cos is first[0] else first
        by_other = rotate(grads[0], other[0], -other[1], "half", layout="bshd")
        expect(
            got is not None and not close(got, by_other),
            "Turned twice before the way back, by two pairs of tables: a gradient was "
            "turned back by the tables of the other call. What belongs to a call is "
            "kept in its ctx.",
        )
        _judge_gradient("q", got, grads[0], cos, sin)  # type: ignore[arg-type]
    for place, name in enumerate("qk"):
        alone = [each.detach() for each in x]
        alone[place].requires_grad_()
        outs = _forward(turn, alone, first)
        (got,) = _back(outs, [alone[place]], grads, first)
        expect(got is not None, f"If {name} alone needs a gradient, it gets None.")
        _judge_gradient(name, got, grads[place], *first)  # type: ignore[arg-type]
        outs = _forward(turn, x, first)
        try:
            used = torch.autograd.grad(outs[place], x, grads[place])[place]
        except (TypeError, AttributeError) as error:
            raise Wrong(
                f"Only the turned {name} was used, and your backward stopped at the "
                "gradient of the other, which should be zeros. set_materialize_grads "
                f"decides whether it is None. ({error})"
            ) from None
        _judge_gradient(name, used, grads[place], *first)


def _judge_overwritten(turn: Turn) -> None:
    """Tables that are written over before the way back: an error, or a right result."""
    x, grads, (cos, sin) = _tensors(7, 3, 2, 1, 8)
    right = rotate(grads[0], cos, -sin, "half", layout="bshd")
    outs = _forward(turn, x, (cos, sin))
    cos.neg_()
    sin.add_(1)
    try:
        got = torch.autograd.grad(outs, x, grads)[0]
    except RuntimeError:
        return
    expect(
        close(got, right),
        "Between the two ways the check wrote over cos and sin, and your gradient is "
        "silently wrong. ctx.save_for_backward(cos, sin) notices this and stops; an "
        "attribute of ctx does not.",
    )


def _judge_tables(turn: Turn) -> None:
    """A table that somebody trains gets no gradient rather than a false one."""
    x, grads, (cos, sin) = _tensors(8, 3, 2, 1, 8)
    c, s = (table.clone().requires_grad_() for table in (cos, sin))
    got = _back(_forward(turn, x, (c, s)), [c, s], grads, (c, s))
    for name, mine in zip(("cos", "sin"), got, strict=True):
        expect(
            mine is None,
            f"You return a gradient for {name}. The tables are not trained: return "
            "None for them.",
        )


def _judge_bfloat16(turn: Turn) -> None:
    x, grads, (cos, sin) = _tensors(9, 3, 2, 1, 8)
    short = [each.detach().bfloat16().requires_grad_() for each in x]
    arriving = [grad.bfloat16() for grad in grads]
    outs = _forward(turn, short, (cos, sin))
    got = _back(outs, short, arriving, (cos, sin))
    for what, mine, given, s in (
        *(("", out, each, sin) for out, each in zip(outs, short, strict=True)),
        *(("the gradient of ", g, a, -sin) for g, a in zip(got, arriving, strict=True)),
    ):
        right = rotate(given.detach().float(), cos, s, "half", layout="bshd")
        expect(
            mine is not None and close(mine, right, 0.06),
            f"In bfloat16 {what or 'the result of '}q or k is off by more than a "
            "rounding.",
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
    expect_close(
        got,
        turned(cos, -sin),
        f"The gradient of {name} is not the incoming gradient turned back.",
        axes=("token", "head", "feature"),
    )
