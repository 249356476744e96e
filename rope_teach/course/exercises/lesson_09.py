"""The exercises of lesson 09: RoPE inside attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rope_teach.attention import Attention, segment_mask, segment_positions
from rope_teach.course.exercises import as_tensor, close, exercise, expect, expect_shape
from rope_teach.course.exercises import number as one_number
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
    for pads in ([3, 0], [0, 1, 4], [5]):
        slots = torch.arange(7).expand(len(pads), 7)
        before = torch.tensor(pads)[:, None]
        real, right = slots >= before, slots - before
        answer = positions(real.clone())
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
            wanted = right[row, pad:]
            expect(
                close(got[row, pad:], wanted),
                f"Text {row} has {pad} tokens of padding and should get "
                f"{wanted.tolist()}; you gave "
                f"{[round(p, 3) for p in got[row, pad:].tolist()]}.",
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
    rope = RotaryEmbedding(8)
    for old, new in ((6, 4), (5, 1), (0, 3)):
        q, k, raw = torch.randn(3, 2, 3, old + new, 8, generator=generator)
        old_k = rope.rotate(raw[:, :, :old])
        fresh_q, fresh_k = q[:, :, old:], k[:, :, old:]
        answer = step(rope, fresh_q.clone(), fresh_k.clone(), old_k.clone())
        expect(
            isinstance(answer, (tuple, list)) and len(answer) == 2,
            "Return two tensors: the turned queries, and all keys.",
        )
        got_q, got_k = as_tensor(answer[0]), as_tensor(answer[1])
        expect_shape(got_q, tuple(fresh_q.shape))
        expect(
            got_k.shape == k.shape,
            f"There should be {old + new} keys, shape {tuple(k.shape)}; yours have "
            f"{tuple(got_k.shape)}. Tokens are on the third axis: cat with dim=2.",
        )

        def at(x: Tensor, start: int) -> Tensor:
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
            0: "The offset is still missing: the new tokens begin at position 0.",
            old - 1: "Off by one: the last old token already has that position. "
            "Positions count from 0, so the next one is the number of old keys.",
            old + 1: "One off: position " + str(old) + " is left out. After keys 0 to "
            f"{old - 1} comes {old}.",
            2: "You used the batch size, shape[0], as the number of tokens.",
            3: "You used the number of heads, shape[1], as the number of tokens.",
            8: "You used head_dim, shape[3], as the number of tokens.",
            new: "You used the number of new tokens. Count the ones that came before.",
        }
        for start, message in wrong.items():
            expect(start == old or not close(got_q, at(fresh_q, start)), message)
        expect(
            not close(got_k[:, :, old:], fresh_k),
            "The new keys were stored unrotated. Turn them before you store them: "
            "nothing will do it later.",
        )
        expect(
            close(got_q, at(fresh_q, old)),
            f"With {old} old keys the first new query is at position {old}; yours was "
            "turned by something else.",
        )
        expect(
            close(got_k[:, :, old:], at(fresh_k, old)),
            f"With {old} old keys the first new key is at position {old}; yours was "
            "turned by something else.",
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
    for lengths in ([3, 2], [1, 4, 2], [5], [2, 3, 2]):
        seq, names = sum(lengths), torch.arange(len(lengths))
        text = names.repeat_interleave(torch.tensor(lengths))[None]
        answer = pack(list(lengths))
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
        expect(
            close(positions, right),
            f"For lengths {lengths} the positions are {right.tolist()}; you gave "
            f"{[round(p, 3) for p in positions.tolist()]}.",
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
        expect(
            close(mask, allowed),
            f"For lengths {lengths} the mask has {int(allowed.sum())} True entries, "
            f"one triangle per text; yours has {int((mask != 0).sum())}.",
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
        out = causal(x)
        return torch.cat([out[:, :1], out[:, 1:2] + 0.1 * x[:, 3:4], out[:, 2:]], dim=1)

    def alone(x: Tensor) -> Tensor:
        return torch.cat([causal(token) for token in x.split(1, dim=1)], dim=1)

    def halves(x: Tensor) -> Tensor:
        return torch.cat([causal(half) for half in x.chunk(2, dim=1)], dim=1)

    def no_first(x: Tensor) -> Tensor:
        return torch.cat([causal(x[:, :1]), causal(x[:, 1:])], dim=1)

    def no_third(x: Tensor) -> Tensor:
        without = causal(torch.cat([x[:, :2], x[:, 3:]], dim=1))
        return torch.cat([causal(x)[:, :3], without[:, 2:]], dim=1)

    def both_faults(x: Tensor) -> Tensor:
        return torch.cat([both_ways(half) for half in x.chunk(2, dim=1)], dim=1)

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
        "Tokens that never meet": (
            "deaf",
            alone,
            "each token touches its own output and no later one.",
        ),
        "Two halves": (
            "deaf",
            halves,
            "the second half does not depend on the first. No output depends on a "
            "later token.",
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
    }
