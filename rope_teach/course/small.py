"""The small real model: 5.8 million parameters that read and write Python.

``weights/`` holds it, its tokenizer, and a card that says what it was trained on, how,
and what it can do; ``benchmarks/small_model.py`` made all three. It never saw Python's
standard library, which every reader has: everybody's held-out text. Lessons 07, 10,
12 to 15, and 20.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from rope_teach.course.models import LanguageModel, generate
from rope_teach.course.tasks import END, padded
from rope_teach.course.training import loss_by_position, read, rebuilt

__all__ = [
    "ANSWER",
    "ASK",
    "DOC",
    "FORMAT",
    "SPECIAL",
    "WEIGHTS",
    "Bytes",
    "CodeTokens",
    "Tokens",
    "answer_prompt",
    "bits_per_byte",
    "load_small",
    "summary_prompt",
    "write",
]

WEIGHTS = Path(__file__).with_name("weights")
FORMAT = 1  # raised when an older package could not read the files any more
SPECIAL = ("<pad>", "<start>", "<end>", "<doc>", "<ask>", "<answer>")
DOC, ASK, ANSWER = 3, 4, 5  # after PAD, START and END


class Tokens(Protocol):
    """What turns text into token ids and back: words, bytes, or pieces of code."""

    def __len__(self) -> int:
        """Size of the vocabulary."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text up to the first ``END``."""

    def places(self, text: str) -> list[tuple[int, int]]:
        """For each token of ``text``, the characters that it covers: from, to."""


class Bytes:
    """A tokenizer for any text in any language: each byte of its UTF-8 is a token.

    Bytes come after the special tokens, which are the small model's.

    >>> Bytes().encode("hé"), len(Bytes())
    ([110, 201, 175], 262)
    >>> Bytes().decode([110, 201, 175, END, 0]), Bytes().places("hé")
    ('hé', [(0, 1), (1, 2), (1, 2)])
    """

    def __len__(self) -> int:
        return len(SPECIAL) + 256

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        return [len(SPECIAL) + byte for byte in text.encode()]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text up to the first ``END``, without other special tokens."""
        kept = takewhile(lambda token: token != END, tokens)
        some = bytes(t - len(SPECIAL) for t in kept if len(SPECIAL) <= t < len(self))
        return some.decode("utf-8", "replace")

    def places(self, text: str) -> list[tuple[int, int]]:
        """For each token of ``text``, the characters that it covers: from, to."""
        return [(n, n + 1) for n, c in enumerate(text) for _ in c.encode()]


class CodeTokens:
    """The small model's tokenizer: 4,096 pieces of Python source, found by BPE.

    Any text can be encoded, and comes back as it was: what is not a known piece becomes
    bytes, and ``<end>`` in a text is five characters, not ``END``. Source: byte pair
    encoding, Sennrich et al. (1508.07909). Lesson 12.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # read them in a text as text

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        return list(self.tokenizer.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text up to the first ``END``, without other special tokens."""
        tokens = [int(token) for token in tokens]
        if END in tokens:
            tokens = tokens[: tokens.index(END)]
        return str(self.tokenizer.decode(tokens))

    def places(self, text: str) -> list[tuple[int, int]]:
        """For each token of ``text``, the characters that it covers: from, to."""
        return list(self.tokenizer.encode(text).offsets)


def load_small(folder: Path = WEIGHTS) -> tuple[LanguageModel, CodeTokens]:
    """The small real model and its tokenizer, in a second, on the CPU.

    Raises ``FileNotFoundError`` if a file is missing, and ``ValueError`` if one is
    damaged, or made for another version of this package, or if the tokenizer has
    another vocabulary than the model.

    >>> model, tokens = load_small()
    >>> sum(p.numel() for p in model.parameters()), len(tokens)
    (5778176, 4096)
    """
    for name in ("model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing; install the package again, or run "
                "benchmarks/small_model.py, which makes it"
            )
    path = folder / "model.safetensors"
    try:
        tensors, facts = read(path)
    except ValueError as error:
        raise ValueError(f"{error}; install the package again") from None
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {facts.get('format')}, this package reads {FORMAT}; "
            "both come with the same version of rope_teach"
        )
    text = (folder / "tokenizer.json").read_bytes()
    if hashlib.sha256(text).hexdigest() != facts["tokenizer"]:
        raise ValueError(
            f"{folder / 'tokenizer.json'} is not the tokenizer that this model was "
            "trained with; install the package again"
        )
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    model = rebuilt(path, LanguageModel, facts["config"], weights)
    return model.eval(), CodeTokens(Tokenizer.from_str(text.decode()))


# --------------------------------------------------------------- using the model


def summary_prompt(tokens: Tokens, code: str) -> list[int]:
    """What the model was taught to continue with a summary of ``code``."""
    return [*tokens.encode(code), DOC]


def answer_prompt(tokens: Tokens, code: str, question: str) -> list[int]:
    """What the model was taught to continue with the answer to ``question``."""
    return [*tokens.encode(code), ASK, *tokens.encode(question), ANSWER]


def write(
    model: LanguageModel,
    tokens: Tokens,
    prompts: Sequence[str | Sequence[int]],
    steps: int = 60,
    **options: Any,
) -> list[str]:
    r"""What the model writes after each of ``prompts``, which may differ in length.

    A prompt is text, or token ids as :func:`summary_prompt` gives them. ``options`` are
    those of :func:`~rope_teach.course.models.generate`; writing stops at ``END`` unless
    ``stop`` says otherwise.

    >>> model, tokens = load_small()
    >>> write(model, tokens, ["def add(a, b):\n    return a +"], steps=1)
    [' b']
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of prompts, got one: {prompts!r:.60}")
    rows = [tokens.encode(p) if isinstance(p, str) else list(p) for p in prompts]
    if not rows or not all(rows):
        raise ValueError("prompts must hold at least one token each")
    device = next(model.parameters()).device
    given = padded(rows, left=True).to(device)
    real = torch.tensor(
        [
            [n >= given.shape[1] - len(row) for n in range(given.shape[1])]
            for row in rows
        ]
    ).to(device)
    options = {"stop": (END,), **options}
    even = bool(real.all())
    out = generate(model, given, steps, real=None if even else real, **options)
    stop, texts = set(options["stop"]), []
    for row in out[:, given.shape[1] :].tolist():
        ends = [n for n, token in enumerate(row) if token in stop]
        texts.append(tokens.decode(row[: ends[0] + 1] if ends else row))
    return texts


@torch.no_grad()
def bits_per_byte(
    model: LanguageModel, tokens: Tokens, text: str, seq: int = 512
) -> Tensor:
    """Bits that the model needs for each byte of ``text``, by place: ``(seq,)``.

    The text is read in windows of ``seq`` tokens; entry p is the mean over windows of
    what token p costs, divided by the bytes of a mean token. The mean of it all is the
    model's bits per byte: 8 is a blind guess. Lesson 12.
    """
    ids = torch.tensor(tokens.encode(text), device=next(model.parameters()).device)
    if len(ids) <= seq:
        raise ValueError(f"text must have more than seq={seq} tokens, got {len(ids)}")
    windows = ids[: (len(ids) - 1) // seq * seq + 1].unfold(0, seq + 1, seq)
    losses = [
        loss_by_position(model, (rows[:, :-1], rows[:, 1:])) * len(rows)
        for rows in windows.split(8)
    ]
    nats = torch.stack(losses).sum(0) / len(windows)
    return nats / math.log(2) * len(ids) / len(text.encode())
