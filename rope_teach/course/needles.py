"""Does a model find what stands far back? A constant hidden in real text, then asked.

Lessons 12 and 13.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

import torch
from torch import Tensor

from rope_teach.course.models import LanguageModel
from rope_teach.course.small import Tokens, answer_prompt

__all__ = ["found", "needles"]

VALUES = (
    "timeout", "encoding", "parent", "buffer", "message", "pattern", "version",
    "header", "column", "server", "width", "record", "target", "option", "symbol",
    "module",
)  # fmt: skip


def needles(
    tokens: Tokens,
    text: str | Sequence[int],
    seq: int,
    depth: float | None = None,
    count: int = 32,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Windows of ``text`` that hide ``choice_abc = timeout``, and end in a question.

    ``depth`` is where it stands: 0 at the beginning, 1 right before the question, None
    anywhere. The question is one that the small model knows:
    ``<ask>what is choice_abc set to?<answer>timeout``. ``text`` may be token ids.

    Returns token ids ``(count, seq)`` and a mask of the same shape, True at the
    answer's tokens. Raises ``ValueError`` for a depth outside 0 to 1 or a text shorter
    than ``seq`` tokens.
    """
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"depth must be between 0 and 1, got {depth}")
    stream = tokens.encode(text) if isinstance(text, str) else text
    if len(stream) <= seq:
        raise ValueError(f"text must have more than {seq} tokens, got {len(stream)}")
    rng = random.Random(f"{seed} {seq}")
    rows, answers = [], []
    for _ in range(count):
        name = "choice_" + "".join(rng.choices(string.ascii_lowercase, k=3))
        value = rng.choice(VALUES)
        hidden = tokens.encode(f"\n{name} = {value}\n")
        asked = answer_prompt(tokens, "", f"what is {name} set to?")
        answer = tokens.encode(value)
        room = seq - len(hidden) - len(asked) - len(answer)
        if room < 0:
            raise ValueError(f"seq must be at least {seq - room} here, got {seq}")
        first = rng.randrange(len(stream) - room)
        body = [int(token) for token in stream[first : first + room]]
        cut = round((rng.random() if depth is None else depth) * room)
        rows.append([*body[:cut], *hidden, *body[cut:], *asked, *answer])
        answers.append([False] * (seq - len(answer)) + [True] * len(answer))
    return torch.tensor(rows), torch.tensor(answers)


@torch.no_grad()
def found(model: LanguageModel, ids: Tensor, answers: Tensor) -> float:
    """Share of the hidden constants that greedy writing would repeat in full.

    With the right tokens before it, each token is the most likely one just when greedy
    writing gives the whole answer.
    """
    device = next(model.parameters()).device
    right = []
    for rows, asked in zip(ids.split(8), answers.split(8), strict=True):
        likely = model(rows[:, :-1].to(device)).argmax(-1).cpu()
        right.append(((likely == rows[:, 1:]) | ~asked[:, 1:]).all(1))
    return torch.cat(right).double().mean().item()
