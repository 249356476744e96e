"""Your own data: pairs, triples or a text, into batches, scores and a saved model.

An example is ``(document, summary)`` or ``(context, question, answer)``. The model
decides what a batch is: a :class:`Summarizer` reads the document and writes the
summary, a :class:`QuestionAnswerer` points at the answer's tokens, a
:class:`LanguageModel`, such as the small one, writes on after a prompt. Four calls do
it all::

    stream = batches(model, examples, tokens)
    fit(model, stream, steps=200)
    evaluate(model, others, tokens)
    save(Path("mine.safetensors"), model)

Lessons 14 and 15.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rope_teach.course.models import (
    LanguageModel,
    QuestionAnswerer,
    Summarizer,
    summarize,
)
from rope_teach.course.small import Tokens, answer_prompt, summary_prompt, write
from rope_teach.course.tasks import END, IGNORE, START, Batch, GivenBatch, padded
from rope_teach.course.training import exact_match, f1, rouge_l

__all__ = ["batches", "evaluate", "text_tokens"]

Example = Sequence[Any]  # texts, and where an answer begins
Row = tuple[list[int], list[int]]  # what the model reads, and what it shall answer


def text_tokens(source: str | Path, tokens: Tokens) -> Tensor:
    """A text, or a file in UTF-8, as token ids ``(seq,)`` for ``text_batches``.

    A ``Path`` is read; a ``str`` is the text itself. Raises ``ValueError`` if there is
    no text in it, or bytes that are not UTF-8, or if it is the name of a file.

    >>> from rope_teach.course.small import Bytes
    >>> text_tokens("hi", Bytes()).tolist()
    [110, 111]
    """
    text = source
    if isinstance(source, Path):
        try:
            text = source.read_text("utf-8-sig")  # Windows may put a mark first
        except UnicodeDecodeError as error:
            raise ValueError(f"{source} is not a text in UTF-8: {error}") from None
    elif not isinstance(source, str):
        raise TypeError(f"source must be a text or a Path, got {source!r:.60}")
    elif len(source) < 256 and Path(source).is_file():
        raise ValueError(f"source must be a text or a Path: write Path({source!r})")
    if not str(text).strip():
        raise ValueError(f"source must contain text, got {source!r}")
    return torch.tensor(tokens.encode(str(text)))


def batches(
    model: nn.Module,
    examples: Iterable[Example],
    tokens: Tokens,
    *,
    batch: int = 16,
    max_len: int = 512,
    seed: int = 0,
) -> Iterator[Batch | GivenBatch]:
    """Endless batches of ``examples`` for :func:`fit`, in a new order each time round.

    Parameters
    ----------
    examples
        ``(document, summary)`` pairs, or ``(context, question, answer)`` triples. A
        fourth entry says at which character the answer begins, where it occurs twice.
    tokens
        ``Bytes()``, or the tokenizer that :func:`load_small` returns.
    batch
        Examples at a time.
    max_len
        The most tokens that the model reads of one example.

    Notes
    -----
    Raises ``ValueError`` at once, naming the example, for an empty text, an answer that
    is not in its context, a text longer than ``max_len``, or examples that this model
    cannot learn; and for a vocabulary that is larger than the model's.
    """
    rows = [
        _row(model, f"examples[{n}]", example, tokens, max_len)
        for n, example in enumerate(_checked(model, examples, tokens))
    ]
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    return _endless(model, rows, batch, seed)


def _endless(
    model: nn.Module, rows: list[Row], batch: int, seed: int
) -> Iterator[Batch | GivenBatch]:
    rng = random.Random(seed)
    while True:
        order = rng.sample(rows, len(rows))
        for n in range(0, len(order), batch):
            read, answers = zip(*order[n : n + batch], strict=True)
            if isinstance(model, Summarizer):
                given = padded([[START, *answer[:-1]] for answer in answers])
                yield (padded(read), given), padded(answers, IGNORE)
            else:
                yield padded(read), padded(answers, IGNORE)


def _checked(
    model: nn.Module, examples: Iterable[Example], tokens: Tokens
) -> Sequence[Example]:
    if not isinstance(model, (LanguageModel, QuestionAnswerer, Summarizer)):
        raise TypeError(
            "model must be a LanguageModel, QuestionAnswerer or Summarizer, got "
            f"{type(model).__name__}"
        )
    needed = ("encode", "decode", "places")
    if isinstance(tokens, type) or not all(hasattr(tokens, n) for n in needed):
        raise TypeError(f"tokens must be a tokenizer, such as Bytes(), got {tokens!r}")
    if len(tokens) > model.vocab:
        raise ValueError(
            f"tokens has {len(tokens)} tokens, more than the model's {model.vocab}: "
            "make the model with vocab=len(tokens)"
        )
    several = isinstance(examples, Iterable) and not isinstance(examples, str)
    listed = list(examples) if several else []
    if not listed:
        raise ValueError(
            f"examples must be a list with at least one example, got {examples!r:.80}"
        )
    shapes = {2: "(document, summary)", 3: "(context, question, answer)"}
    if isinstance(model, Summarizer):
        del shapes[3]
    elif isinstance(model, QuestionAnswerer):
        del shapes[2]
    for n, example in enumerate(listed):
        shape = len(example) if isinstance(example, (list, tuple)) else 0
        if (3 if shape == 4 else shape) not in shapes:
            raise ValueError(
                f"examples[{n}] must be {' or '.join(shapes.values())} for a "
                f"{type(model).__name__}, got {example!r:.80}"
            )
        for text in example[:3]:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"examples[{n}] has an empty text, or {type(text).__name__} where "
                    f"text belongs: {example!r:.80}"
                )
        if shape == 4 and not isinstance(example[3], Integral):
            raise ValueError(
                f"examples[{n}]: where its answer begins must be a whole number, the "
                f"place of a character, got {example[3]!r}"
            )
    return listed


def _row(
    model: nn.Module, name: str, example: Example, tokens: Tokens, max_len: int
) -> Row:
    """What ``model`` reads of an example, and what it shall answer."""
    answer = [*tokens.encode(example[1 if len(example) == 2 else 2]), END]
    if isinstance(model, QuestionAnswerer):
        first, last = _span(name, example, tokens)
        question = [*tokens.encode(example[1]), START]
        read = [*question, *tokens.encode(example[0])]
        answer = [len(question) + first, len(question) + last]
    elif isinstance(model, Summarizer):
        read = tokens.encode(example[0])
    else:
        if len(example) > 2:
            _found(name, example)
        prompt = _prompt(example, tokens)
        read = [*prompt, *answer[:-1]]
        answer = [IGNORE] * (len(prompt) - 1) + answer
    if len(read) > max_len:
        raise ValueError(
            f"{name} has {len(read)} tokens, more than max_len={max_len}: cut the "
            "text, or raise max_len"
        )
    return read, answer


def _prompt(example: Example, tokens: Tokens) -> list[int]:
    if len(example) == 2:
        return summary_prompt(tokens, example[0])
    return answer_prompt(tokens, example[0], example[1])


def _found(name: str, example: Example) -> int:
    """The character at which the answer begins in its context."""
    context, _, answer = example[:3]
    start = example[3] if len(example) > 3 else context.find(answer)
    if start < 0 or context[start : start + len(answer)] != answer:
        raise ValueError(
            f"{name}: the answer {answer!r} is not in its context {context!r:.60}"
            + (f" at character {start}" if len(example) > 3 else "")
        )
    return start


def _span(name: str, example: Example, tokens: Tokens) -> tuple[int, int]:
    """First and last token of the context that hold the answer."""
    start = _found(name, example)
    begins, ends = zip(*tokens.places(example[0]), strict=True)
    last = bisect_left(begins, start + len(example[2])) - 1
    return bisect_right(ends, start), last


# -------------------------------------------------------------------- evaluation


def evaluate(
    model: nn.Module,
    examples: Iterable[Example],
    tokens: Tokens,
    *,
    max_len: int = 512,
    steps: int = 60,
) -> dict[str, Any]:
    """What the model answers to ``examples``, and how good that is, 0 to 1.

    Returns ``"texts"``, and the mean ``"exact_match"``, ``"f1"`` (of words) and
    ``"rouge_l"``. ``steps`` is the most tokens that it writes. Raises as
    :func:`batches` does. Train on other examples than these.
    """
    checked = _checked(model, examples, tokens)
    rows = [
        _row(model, f"examples[{n}]", example, tokens, max_len)
        for n, example in enumerate(checked)
    ]
    model.eval()
    texts: list[str] = []
    for n in range(0, len(checked), 16):
        part, read = checked[n : n + 16], [row for row, _ in rows[n : n + 16]]
        if isinstance(model, QuestionAnswerer):
            texts += _pointed(model, part, read, tokens)
        elif isinstance(model, Summarizer):
            device = model.embed.weight.device
            out = summarize(model, padded(read).to(device), steps)
            texts += [tokens.decode(row) for row in out.tolist()]
        else:
            assert isinstance(model, LanguageModel)
            prompts = [_prompt(example, tokens) for example in part]
            texts += write(model, tokens, prompts, steps)
    wanted = [example[1 if len(example) == 2 else 2] for example in checked]
    measures = {"exact_match": exact_match, "f1": f1, "rouge_l": rouge_l}
    scores: dict[str, Any] = {
        name: sum(map(measure, texts, wanted)) / len(wanted)
        for name, measure in measures.items()
    }
    return {**scores, "texts": texts}


@torch.no_grad()
def _pointed(
    model: QuestionAnswerer,
    examples: Sequence[Example],
    read: list[list[int]],
    tokens: Tokens,
) -> list[str]:
    """The characters that the model points at."""
    spans = model.answer(padded(read).to(model.embed.weight.device)).tolist()
    texts = []
    for example, row, (first, last) in zip(examples, read, spans, strict=True):
        before = row.index(START) + 1
        places = tokens.places(example[0])
        begin, end = places[first - before][0], places[last - before][1]
        texts.append(example[0][begin:end].strip())
    return texts
