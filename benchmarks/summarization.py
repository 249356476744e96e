"""Summaries of a ship's log: four encodings, longer reports, what helps and harms.

One small encoder-decoder learns reports of 8 sentences and is measured on reports of
8, 16 and 32. Lesson 14 reads the result; a test repeats one run. About ten
minutes of one core:

    python benchmarks/summarization.py --jobs 2
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from common import run_all, write
from torch import Tensor

from rope_teach.attention import Attention, KeyValueCache
from rope_teach.course.models import Summarizer, summarize
from rope_teach.course.tasks import REPORT_WORDS, padded, report_batches, reports
from rope_teach.course.training import (
    AnyBatch,
    exact_match,
    f1,
    fit,
    rouge_l,
    seed_everything,
)
from rope_teach.rotary import RotaryEmbedding

TRAINED, MEASURED, FACT = 8, (8, 16, 32), 3  # sentences; a sentence has 3 tokens
STEPS, BATCH, LR, REPORTS, SEEDS = 300, 32, 5e-3, 300, (0, 1, 2)
LONG_STEPS, LONG_SEEDS = 1200, (0, 1)  # four times the steps: do random places help?
MORE_STEPS, MORE_LR = 250, 3e-3  # on longer reports, where that is the remedy
MODEL = {"vocab": len(REPORT_WORDS), "max_len": FACT * max(MEASURED)}
ENCODINGS = ("none", "learned", "sinusoidal", "rope")
CASES = [
    *itertools.product(["plain"], ENCODINGS, SEEDS),
    *itertools.product(["rotated cross-attention"], ["rope"], SEEDS),
    *itertools.product(["random places"], ["rope"], SEEDS),
    *itertools.product(["then longer reports"], ["rope"], SEEDS),
    *itertools.product(["plain, long", "random places, long"], ["rope"], LONG_SEEDS),
]


class RotatedCross(Attention):
    """Cross-attention that turns both texts by their places: lesson 14 says no."""

    def _queries_and_keys(
        self,
        x: Tensor,
        source: Tensor,
        positions: Tensor | None,
        cache: KeyValueCache | None,
    ) -> tuple[Tensor, Tensor]:
        q, k = super()._queries_and_keys(x, source, positions, cache)
        rope = RotaryEmbedding(self.head_dim)
        return rope(q, k, (torch.arange(x.shape[1]), torch.arange(source.shape[1])))


def model_of(kind: str, encoding: str) -> Summarizer:
    model = Summarizer(**MODEL, encoding=encoding)
    if kind == "rotated cross-attention":
        for block in model.decoder:
            plain = block.cross
            block.cross = RotatedCross(plain.dim, plain.heads, causal=False)
            block.cross.load_state_dict(plain.state_dict())
    return model


def longer_reports(seed: int) -> Iterator[AnyBatch]:
    """Batches of 8, 16 or 32 sentences, as chance has it."""
    streams = [report_batches("train", BATCH, n, seed=seed) for n in MEASURED]
    choose = random.Random(seed).choice
    while True:
        yield next(choose(streams))


def at_random_places(batches: Iterator[AnyBatch], seed: int) -> Iterator[AnyBatch]:
    """Short reports whose sentences get places that only long reports have.

    Sentences stay whole and in order; between them is room for others. After
    Ruoss et al. (2305.16843).
    """
    generator = torch.Generator().manual_seed(seed)
    for (document, given), targets in batches:
        slots = torch.rand(len(document), max(MEASURED), generator=generator)
        chosen = slots.argsort(dim=1)[:, :TRAINED].sort(dim=1).values
        places = FACT * chosen[:, :, None] + torch.arange(FACT)
        yield (document, given, places.flatten(1)), targets


def run(kind: str, encoding: str, seed: int) -> dict[str, Any]:
    """Train one model and measure it; one entry of the result file."""
    seed_everything(seed)
    model = model_of(kind, encoding)
    batches: Iterator[AnyBatch] = report_batches("train", BATCH, TRAINED, seed=seed)
    if kind.startswith("random places"):
        batches = at_random_places(batches, seed)
    steps = LONG_STEPS if kind.endswith("long") else STEPS
    fit(model, batches, steps, LR, label=None)
    if kind == "then longer reports":
        fit(model, longer_reports(seed + 100), MORE_STEPS, MORE_LR, label=None)
    return {
        "kind": kind,
        "encoding": encoding,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": {str(n): scores(model, n) for n in MEASURED},
        "moved": scores(model, TRAINED, moved=FACT * TRAINED),
    }


def scores(model: Summarizer, sentences: int, moved: int = 0) -> dict[str, Any]:
    """Greedy summaries of unseen reports; ``moved`` puts padding before each one."""
    pairs = list(itertools.islice(reports("test", sentences), REPORTS))
    document = padded([REPORT_WORDS.encode(report) for report, _ in pairs])
    written = summarize(model, F.pad(document, (moved, 0)), steps=15).tolist()
    texts = [
        (REPORT_WORDS.decode(row), summary)
        for row, (_, summary) in zip(written, pairs, strict=True)
    ]
    facts = [summary.count(".") for _, summary in pairs]
    return {
        **{
            name: mean(score(*pair) for pair in texts)
            for name, score in (
                ("exact", exact_match),
                ("rouge1", f1),
                ("rougeL", rouge_l),
            )
        },
        "exact_by_facts": [
            mean(
                exact_match(*t)
                for t, n in zip(texts, facts, strict=True)
                if n == wanted
            )
            for wanted in (1, 2, 3)
        ],
    }


def mean(values: Iterator[float]) -> float:
    kept = list(values)
    return round(sum(kept) / len(kept), 4)


def main() -> None:
    settings = {
        "model": MODEL,
        "steps": STEPS,
        "long_steps": LONG_STEPS,
        "batch": BATCH,
        "lr": LR,
        "more_steps": MORE_STEPS,
        "more_lr": MORE_LR,
        "seeds": SEEDS,
        "trained_sentences": TRAINED,
        "measured_sentences": MEASURED,
        "tokens_in_a_sentence": FACT,
        "reports": REPORTS,
        "moved_tokens": FACT * TRAINED,
    }
    write("summarization", settings, run_all(run, CASES))


if __name__ == "__main__":
    main()
