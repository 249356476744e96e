"""The exercises of lesson 09: RoPE inside attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.attention import Attention, segment_mask, segment_positions
from rope_teach.course.exercises.cards import Wrong, exercise, expect
from rope_teach.course.exercises.comparing import close, expect_close, expect_shape
from rope_teach.course.exercises.student_code import untouched
from rope_teach.course.exercises.values import as_tensor
from rope_teach.course.exercises.values import number as one_number
from rope_teach.rotary import RotaryEmbedding


@exercise(
    "9.1",
    "Positions from a mask",
    difficulty=2,
    minutes=4,
    hints=(
        "How many real tokens are there in its row, up to and including each token?",
        "real.cumsum(dim=1) counts them from 1. Positions count from 0.",
    ),
    solution='''
def positions(real):
    """Return positions (batch, seq), 0 at each first real token."""
    return (real.long().cumsum(dim=1) - 1).clamp(min=0)
''',
    why="The running count of real tokens is 1 at the first one. Subtract 1 to get the "
    "position. The padding would get -1; a table has no such row, so it is clamped.",
)
def positions_from_a_mask(positions: Callable[..., Any]) -> str:
    batches = (([3, 0], 7), ([0, 1, 4], 7), ([5], 7), ([2, 11, 0, 8], 12), ([9], 300))
    for pads, seq in batches:
        slots = torch.arange(seq).expand(len(pads), seq)
        before = torch.tensor(pads)[:, None]
        real, right = slots >= before, slots - before
        answer = untouched(positions, real.clone())
        expect(
            _places(answer) != int(real.sum()),
            "You gave numbers for the real tokens only. The padding needs one too, any "
            f"you like: the result has shape {tuple(real.shape)}.",
        )
        got = as_tensor(answer)
        expect_shape(got, tuple(real.shape))

        def same(other: Tensor, got: Tensor = got, real: Tensor = real) -> bool:
            return close(got[real], other[real])

        if any(pads):
            expect(
                not same(slots),
                "These are slots: they count the padding too, so a text with more "
                "padding would begin later. With a learned table you would pick the "
                "wrong rows.",
            )
        expect(
            not same(right + 1),
            "Your texts begin at position 1. RoPE would forgive that, but a learned "
            "table was trained from row 0. No token comes before the first.",
        )
        if len(pads) > 1:
            down = real.long().cumsum(dim=0)
            expect(
                not same(down) and not same(down - 1),
                "You counted down the batch, from text to text. Count along the tokens "
                "of each text: dim=1.",
            )
        expect(
            not same(slots.flip(1)),
            "Your positions count backwards, from the last token to the first.",
        )
        for row, pad in enumerate(pads):
            expect_close(
                got[row, pad:],
                right[row, pad:],
                f"Look at text {row}, which has {pad} tokens of padding, and at its "
                "real tokens alone.",
                axes=("token",),
            )
    return (
        "Each text counts from its own first token. Libraries write this as "
        "`cumsum(-1) - 1`, and must keep counting the same way when they generate."
    )


def _places(answer: Any) -> int:
    """How many numbers an answer holds; its rows may have any length."""
    if isinstance(answer, Tensor):
        return answer.numel()
    if isinstance(answer, (list, tuple)):
        return sum(map(_places, answer))
    return 1


@exercise(
    "9.2",
    "Fix the step",
    difficulty=2,
    minutes=5,
    hints=(
        "How many tokens came before the new ones? The old keys tell you.",
        "Their sequence axis is the third: rope(q, k, start=old_k.shape[2]).",
    ),
    solution='''
def step(rope, q, k, old_k):
    """Return the turned queries, and all keys, the new ones last."""
    q, k = rope(q, k, start=old_k.shape[2])
    return q, torch.cat([old_k, k], dim=2)
''',
    why="The number of stored keys is the number of tokens so far. Positions count "
    "from 0, so that is also the position of the first new token.",
)
def fix_the_step(step: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(0)
    texts = ((6, 4, 1e4), (5, 1, 1e4), (0, 3, 1e4), (11, 3, 300.0), (200, 5, 1e4))
    for old, new, base in texts:
        rope = RotaryEmbedding(8, base=base)
        q, k, raw = torch.randn(3, 2, 3, old + new, 8, generator=generator)
        old_k = rope.rotate(raw[:, :, :old])
        fresh_q, fresh_k = q[:, :, old:], k[:, :, old:]
        answer = untouched(step, rope, fresh_q.clone(), fresh_k.clone(), old_k.clone())
        expect(
            isinstance(answer, (tuple, list)) and len(answer) == 2,
            "Return two tensors: the turned queries, and all keys.",
        )
        got_q, got_k = as_tensor(answer[0]), as_tensor(answer[1])
        expect(
            got_q.shape != k.shape or got_k.shape != fresh_q.shape or old == 0,
            "Return the queries first, then the keys: yours come the other way round.",
        )
        expect_shape(got_q, tuple(fresh_q.shape))
        expect(
            got_k.shape == k.shape,
            f"There should be {old + new} keys, shape {tuple(k.shape)}; yours have "
            f"{tuple(got_k.shape)}. Tokens are on the third axis: cat with dim=2.",
        )

        def at(x: Tensor, start: int, rope: RotaryEmbedding = rope) -> Tensor:
            return rope.rotate(x, start=start)

        expect(
            old == 0
            or close(got_k[:, :, :old], old_k)
            or not close(got_k[:, :, :old], at(old_k, 0)),
            "You turned the old keys again. They were turned when their tokens "
            "arrived, and they keep that angle.",
        )
        expect(
            old == 0 or close(got_k[:, :, :old], old_k),
            "The old keys should come first in your result, unchanged.",
        )
        expect(
            not close(got_q, fresh_q),
            "The queries came back unchanged. They are turned like the new keys.",
        )
        wrong = {
            0: "the offset is still missing.",
            old - 1: "the last old token already has that one. Positions count from "
            "0, so the next one is the number of old keys.",
            old + 1: f"{old} is left out. After keys 0 to {old - 1} comes {old}.",
            2: "there are 2 texts in the batch, and shape[0] counts those.",
            3: "there are 3 heads, and shape[1] counts those.",
            8: "a head has 8 features, and shape[3] counts those.",
            new: f"there are {new} new tokens. Count the ones that came before.",
        }
        for start, why in wrong.items():
            expect(
                start == old or not close(got_q, at(fresh_q, start)),
                f"After {old} old keys your new queries begin at position {start}: "
                + why,
            )
        expect(
            new == 1 or not close(got_q, rope.rotate(fresh_q, torch.full((new,), old))),
            f"All {new} new queries have position {old}. They are {new} tokens, one "
            "after the other.",
        )
        expect(
            base == 1e4
            or not close(got_q, RotaryEmbedding(8).rotate(fresh_q, start=old)),
            f"Turn with the `rope` that you are given. This one has base {base:g}.",
        )
        expect(
            not close(got_k[:, :, old:], fresh_k),
            "The new keys were stored unrotated. Turn them before you store them: "
            "nothing will do it later.",
        )
        for name, mine, fresh in (
            ("query", got_q, fresh_q),
            ("key", got_k[:, :, old:], fresh_k),
        ):
            off = (mine - at(fresh, old)).abs().amax(dim=(0, 1, 3)) > 1e-4
            first = int(off.double().argmax())
            expect(
                not off.any(),
                f"There are {old} old keys, so the new {name} with index {first} is "
                f"at position {old + first}. Yours was not turned by that.",
            )
    return (
        "The keys themselves tell you how long the text is, as long as none were "
        "dropped. A cache that drops keys needs a counter: exercise 9.4."
    )


@exercise(
    "9.3",
    "Pack without leaks",
    difficulty=3,
    minutes=6,
    hints=(
        "Write down, for each token, the number of its text: repeat_interleave does "
        "that.",
        "A query may look at a key that has the same number and does not come later: "
        ".tril().",
    ),
    solution='''
def pack(lengths):
    """Return positions (seq,) and mask (seq, seq) of packed texts."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    text = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return positions, (text[:, None] == text).tril()
''',
    why="Positions restart with each text. A query may look at keys of its own text, "
    "but only at itself and earlier ones.",
)
def pack_without_leaks(pack: Callable[..., Any]) -> str:
    for lengths in ([3, 2], [1, 4, 2], [5], [2, 3, 2], [4, 1, 3, 3, 6, 2]):
        seq, names = sum(lengths), torch.arange(len(lengths))
        text = names.repeat_interleave(torch.tensor(lengths))[None]
        answer = untouched(pack, list(lengths))
        expect(
            isinstance(answer, (tuple, list)) and len(answer) == 2,
            "Return two tensors: the positions, and the mask.",
        )
        positions, mask = as_tensor(answer[0]), as_tensor(answer[1])
        expect_shape(positions, (seq,))
        expect_shape(mask, (seq, seq))
        right, together = segment_positions(text)[0], segment_mask(text)[0, 0]
        expect(
            len(lengths) == 1 or not close(positions, torch.arange(seq)),
            "Your positions run through the whole row. Each text must begin at 0.",
        )
        expect(
            len(lengths) == 1 or not close(positions, text[0]),
            "That is the number of each token's text, not its position in it.",
        )
        expect(not close(positions, right + 1), "Positions count from 0, not from 1.")
        expect_close(
            positions,
            right,
            f"Look at the positions for lengths {lengths}.",
            axes=("token",),
        )
        expect(
            bool(((mask == 0) | (mask == 1)).all()),
            "Your mask holds numbers to add to the scores. The exercise asks for True "
            "and False: True where a query may look.",
        )
        causal = torch.ones(seq, seq).tril()
        allowed = together.tril()
        expect(
            len(lengths) == 1 or not close(mask, causal),
            "This mask is causal and nothing more: each text can read the texts packed "
            "before it.",
        )
        expect(
            not close(mask, together),
            "The texts are separated, but a query sees later tokens of its own text. "
            "The model is causal.",
        )
        expect(
            not close(mask, 1 - allowed.double()),
            "Your mask is True where looking is forbidden. Here, as in PyTorch's "
            'scaled_dot_product_attention, True means "may look".',
        )
        expect(
            not close(mask, allowed.T),
            "Rows and columns are swapped: rows are queries, columns are keys.",
        )
        expect(
            not close(mask, allowed.tril(-1)),
            "A token may look at itself: the diagonal belongs to the mask.",
        )
        expect(
            close(mask, allowed) or not close(mask, right[:, None] >= right),
            "You compared positions, and they restart. So a query also sees the "
            "beginning of the other texts: compare the texts too.",
        )
        size = torch.tensor(lengths)[text[0]]
        expect(
            close(mask, allowed) or not close(mask, (size[:, None] == size).tril()),
            "Two texts of the same length are still two texts. Number them.",
        )
        off = (mask != allowed).nonzero()
        if len(off):
            query, key = off[0].tolist()
            may = "may" if allowed[query, key] else "may not"
            raise Wrong(
                f"For lengths {lengths} query {query} {may} look at key {key}, and "
                "your mask says the opposite."
            )
    return (
        "One triangle per text along the diagonal. With RoPE the positions need not "
        "restart: this mask is enough to make each text behave as if it were alone."
    )


@exercise(
    "9.4",
    "The next position",
    difficulty=1,
    minutes=2,
    hints=(
        "Which positions did the 100 tokens have? Which of those belonged to the last "
        "32?",
        "The kept keys were turned for positions 68 to 99, and will not turn again.",
    ),
    solution="position = 100",
    why="Tokens 0 to 99 have been seen. The next is 100, however many keys are left.",
)
def the_next_position(position: Any) -> str:
    got = one_number(position)
    expect(
        got != 32,
        "32 is the number of keys that are left. They are at positions 68 to 99: a "
        "query at 32 would come before all of them.",
    )
    expect(
        got not in (31, 33),
        "You counted the keys that are left. Dropping keys does not move any token.",
    )
    expect(got != 68, "68 is the position of the oldest key that is still there.")
    expect(
        got != 99,
        "99 is the position of the last token so far. The next one comes after it.",
    )
    expect(
        got != 101,
        "The first token was at 0, so the hundredth was at 99. What comes next?",
    )
    expect(got != 132, "The 32 are among the 100: do not count them twice.")
    expect(got == 100, f"Tokens 0 to 99 have been seen, so the next is not {got:g}.")
    return (
        "The counter keeps going. The nearest key is one step back, at 99, just as if "
        "nothing had been dropped."
    )


@exercise(
    "9.5",
    "A doctor for attention",
    difficulty=4,
    minutes=8,
    hints=(
        "Change every token, one at a time, and compare two lists: the outputs that "
        "changed, and those that should have, which are the token's own and all later "
        "ones.",
        "If an output before the token changed, it leaks. If no token leaks, is an "
        "output missing that should have changed? The lesson's outputs_touched gives "
        "the first list.",
    ),
    solution='''
def diagnose(forward, x):
    """Return "right", "leaks" or "deaf"."""
    seq, verdict = x.shape[1], "right"
    for token in range(seq):
        touched = outputs_touched(forward, x, token)
        if touched and touched[0] < token:
            return "leaks"
        if touched != list(range(token, seq)):
            verdict = "deaf"
    return verdict
''',
    why="Causal attention lets token n touch output n and all later ones. An output "
    "before n that changes is a leak; one after it that does not is deaf to token n.",
)
def a_doctor_for_attention(diagnose: Callable[..., Any]) -> str:
    generator = torch.Generator().manual_seed(0)
    for seq in (6, 9):
        x = torch.randn(1, seq, 16, generator=generator)
        x[:, 2] = 0  # a token of zeros, as padding often is
        given = x.clone()
        for name, (verdict, forward, meaning) in _patients(seq).items():
            got = diagnose(forward, x)
            expect(
                torch.equal(x, given),
                "You changed x itself. Work on x.clone(); otherwise the next "
                "comparison starts from a text that has already changed.",
            )
            expect(
                isinstance(got, str) and got in ("right", "leaks", "deaf"),
                f'Return "right", "leaks" or "deaf"; you returned {got!r}.',
            )
            expect(
                got == verdict,
                f"{name}, {seq} tokens: {meaning} So it is {verdict!r}; you said "
                f"{got!r}.",
            )
    return (
        "No weights, no training, no reference: you asked what may depend on what. "
        "This course tests its own attention in the same way."
    )


Patient = tuple[str, Callable[[Tensor], Tensor], str]


@torch.no_grad()
def _patients(seq: int) -> dict[str, Patient]:
    """Healthy and faulty attention by name: verdict, forward and what to look at."""
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    causal = Attention(16, 2, encoding="rope")
    both_ways = Attention(16, 2, encoding="rope", causal=False)
    torch.set_rng_state(torch_state)

    def one_leak(x: Tensor) -> Tensor:
        out = causal(x)
        return torch.cat([out[:, :1] + 0.1 * x[:, -1:], out[:, 1:]], dim=1)

    def middle_leak(x: Tensor) -> Tensor:
        out = causal(x).clone()
        out[:, 1:2] += 0.1 * x[:, 3:4].sum(1, keepdim=True)
        return out

    def narrow_leak(x: Tensor) -> Tensor:
        out = causal(x).clone()
        out[:, 2:3, -1] += 0.1 * x[:, 4:5, -1].sum(1, keepdim=True)
        return out

    def backwards(x: Tensor) -> Tensor:
        return causal(x).flip(1)

    def leak_then_deaf(x: Tensor) -> Tensor:
        out = causal(x).clone()
        out[:, :1] += 0.1 * x[:, 1:2].sum(1, keepdim=True)
        if x.shape[1] > 4:
            last = causal(torch.cat([x[:, :-2], x[:, -1:]], dim=1))[:, -1:]
            out = torch.cat([out[:, :-1], last], dim=1)
        return out

    def alone(x: Tensor) -> Tensor:
        return torch.cat([causal(token) for token in x.split(1, dim=1)], dim=1)

    def pieces(x: Tensor) -> Tensor:
        return torch.cat([causal(third) for third in x.split(3, dim=1)], dim=1)

    def neighbours(x: Tensor) -> Tensor:
        near = torch.ones(x.shape[1], x.shape[1]).tril().triu(-1).bool()
        return causal(x, near)

    def no_first(x: Tensor) -> Tensor:
        return torch.cat([causal(x[:, :1]), causal(x[:, 1:])], dim=1)

    def no_third(x: Tensor) -> Tensor:
        without = causal(torch.cat([x[:, :2], x[:, 3:]], dim=1))
        return torch.cat([causal(x)[:, :3], without[:, 2:]], dim=1)

    def both_faults(x: Tensor) -> Tensor:
        return torch.cat([both_ways(part) for part in x.split(3, dim=1)], dim=1)

    return {
        "Healthy attention": ("right", causal, "token n touches n and all later ones."),
        "Attention without a mask": (
            "leaks",
            both_ways,
            "every output depends on every token, including later ones.",
        ),
        "A leak at one place": (
            "leaks",
            one_leak,
            "only the last token shows it, in output 0. Change every token in turn.",
        ),
        "A leak in the middle": (
            "leaks",
            middle_leak,
            "only token 3 shows it, in output 1. Change every token in turn.",
        ),
        "A narrow leak": (
            "leaks",
            narrow_leak,
            "only the last feature of token 4 shows it, in the last feature of output "
            "2. Change every feature of a token, and look at every feature.",
        ),
        "Outputs in reverse order": (
            "leaks",
            backwards,
            "each token touches as many outputs as it should, but not the right ones.",
        ),
        "Tokens that never meet": (
            "deaf",
            alone,
            "each token touches its own output and no later one.",
        ),
        "Pieces of three": (
            "deaf",
            pieces,
            "a piece does not depend on the pieces before it. No output depends on a "
            "later token.",
        ),
        "Neighbours only": (
            "deaf",
            neighbours,
            "a token touches the output after its own, and none further on.",
        ),
        "The first token unheard": (
            "deaf",
            no_first,
            "only token 0 shows it. Change every token in turn.",
        ),
        "Token 2 unheard": (
            "deaf",
            no_third,
            "only token 2 shows it. Change every token in turn.",
        ),
        "Two faults at once": (
            "leaks",
            both_faults,
            "outputs depend on later tokens, and some miss earlier ones. A leak takes "
            "precedence.",
        ),
        "A leak first, a deaf output last": (
            "leaks",
            leak_then_deaf,
            "output 0 feels token 1, and the last output misses the token before it. A "
            "leak takes precedence.",
        ),
    }
