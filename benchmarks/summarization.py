"""Summaries of a ship's log: four encodings, longer reports, what helps and harms.

One small encoder-decoder learns reports of 8 sentences and is measured on reports of
8, 16 and 32. Each condition has the best of at least three rates, chosen by the loss on
validation reports. Lesson 14 reads the result; a test repeats one run. About 30 minutes
of one core:

    python benchmarks/summarization.py
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    TUNING_SEED,
    Run,
    Workers,
    few,
    in_parts,
    options,
    tuned,
    write,
)
from torch import Tensor

from rope_teach.attention import Attention, KeyValueCache
from rope_teach.course.models import Summarizer, summarize
from rope_teach.course.tasks import REPORT_WORDS, padded, report_batches, reports
from rope_teach.course.training import (
    AnyBatch,
    exact_match,
    f1,
    fit,
    loss_of,
    rouge_l,
    seed_everything,
)
from rope_teach.rotary import RotaryEmbedding, Tables

TRAINED, MEASURED, FACT = 8, (8, 16, 32), 3  # sentences; a sentence has 3 tokens
STEPS, BUDGETS, BATCH = 500, (300,), 32
MORE_STEPS = 250  # on longer reports, where that is the remedy
RATES, SEEDS, REPORTS = (1e-3, 2e-3, 4e-3), (1, 2, 3), 300
LEARNED = 5e-3  # nats of validation: a better rate would hardly show
MODEL = {"vocab": len(REPORT_WORDS), "max_len": FACT * max(MEASURED)}
CONDITIONS = [
    ("then longer reports", "rope"),
    ("rotated cross-attention", "rope"),
    ("random places", "rope"),
    *itertools.product(["plain"], ["rope", "learned", "sinusoidal", "none"]),
]


class RotatedCross(Attention):
    """Cross-attention that turns both texts by their places: lesson 14 says no."""

    def _queries_and_keys(
        self,
        x: Tensor,
        source: Tensor,
        positions: Tensor | None,
        tables: Tables | None,
        cache: KeyValueCache | None,
    ) -> tuple[Tensor, Tensor]:
        q, k = super()._queries_and_keys(x, source, positions, tables, cache)
        rope = RotaryEmbedding(self.head_dim)
        places = (torch.arange(n, device=x.device) for n in (x.shape[1], k.shape[2]))
        return rope(q, k, tuple(places))


def model_of(kind: str, encoding: str) -> Summarizer:
    model = Summarizer(**MODEL, encoding=encoding)
    if kind == "rotated cross-attention":
        for block in model.decoder:
            plain = block.cross
            block.cross = RotatedCross(plain.dim, plain.heads, causal=False)
            block.cross.load_state_dict(plain.state_dict())
    return model


def batches_of(kind: str, split: str, batch: int, seed: int) -> Iterator[AnyBatch]:
    """Reports of 8 sentences, as they are or at random places."""
    short = report_batches(split, batch, TRAINED, seed=seed)
    return at_random_places(short, seed) if kind == "random places" else short


def longer_reports(split: str, batch: int, seed: int) -> Iterator[AnyBatch]:
    """Batches of 8, 16 or 32 sentences, as chance has it."""
    streams = [report_batches(split, batch, n, seed=seed) for n in MEASURED]
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
        yield (document, given, random_places(len(document), generator)), targets


def random_places(rows: int, generator: torch.Generator) -> Tensor:
    """Positions of the tokens of short reports, in the room that long ones take."""
    slots = torch.rand(rows, max(MEASURED), generator=generator)
    chosen = slots.argsort(dim=1)[:, :TRAINED].sort(dim=1).values
    return (FACT * chosen[:, :, None] + torch.arange(FACT)).flatten(1)


def run(
    kind: str,
    encoding: str,
    lr: float,
    seed: int,
    steps: int = STEPS,
    device: str = "cpu",
) -> Run:
    """Train one model and measure it; one entry of the result file."""
    seed_everything(seed)
    model = model_of(kind, encoding)
    batches = batches_of(kind, "train", BATCH, seed)
    losses = fit(model, batches, steps, lr, label=None, device=device)
    unseen = [next(batches_of(kind, "validation", REPORTS, seed=1000))]
    if kind == "then longer reports":
        more = longer_reports("train", BATCH, seed + 100)
        losses += fit(model, more, MORE_STEPS, lr, label=None, device=device)
        stream = longer_reports("validation", REPORTS // 6, seed=1000)
        unseen = list(itertools.islice(stream, 6))
    with torch.no_grad():
        validation = [loss_of(model.cpu(), batch).item() for batch in unseen]
    return {
        "kind": kind,
        "encoding": encoding,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": round(sum(validation) / len(validation), 5),
        "loss_while_training": in_parts(losses),
        "scores": {str(n): scores(model, n) for n in MEASURED},
        "moved": scores(model, TRAINED, moved=FACT * TRAINED),
        "spread": scores(model, TRAINED, spread=True),
    }


def scores(
    model: Summarizer, sentences: int, moved: int = 0, spread: bool = False
) -> dict[str, Any]:
    """Greedy summaries of unseen reports.

    ``moved`` puts padding before each one; ``spread`` gives its sentences random places
    in the room of the longest report.
    """
    pairs = list(itertools.islice(reports("test", sentences), REPORTS))
    document = padded([REPORT_WORDS.encode(report) for report, _ in pairs])
    generator = torch.Generator().manual_seed(0)
    places = random_places(len(document), generator) if spread else None
    written = written_by(model, F.pad(document, (moved, 0)), places).tolist()
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


def written_by(
    model: Summarizer, document: Tensor, places: Tensor | None = None
) -> Tensor:
    """Greedy summaries. Rotated cross-attention needs all places, so no cache."""
    rotated = isinstance(model.decoder[0].cross, RotatedCross)
    return summarize(model, document, 15, cache=not rotated, positions=places)


def mean(values: Iterator[float]) -> float:
    kept = list(values)
    return round(sum(kept) / len(kept), 4)


def table(runs: list[Run]) -> None:
    """Print the exact match of each training, by sentences, and moved."""
    for run in runs:
        exact = [run["scores"][str(n)]["exact"] for n in MEASURED]
        marks = " ".join(f"{mark:.2f}" for mark in (*exact, run["moved"]["exact"]))
        name = f"{run['kind']:24} {run['encoding']:10} {run['lr']:<6} {run['seed']}"
        print(name, marks, f"{run['validation']:.4f}")


def main() -> None:
    asked = options()
    conditions = CONDITIONS[::3] if asked.quick else CONDITIONS
    given = {"steps": 20 if asked.quick else STEPS, "device": asked.device}
    given |= {"extend": 2, "enough": LEARNED}
    with Workers(asked.workers) as workers:
        plan = few(asked, RATES, SEEDS, BUDGETS)
        tried, runs, shorter = tuned(workers, run, conditions, *plan, **given)()
    settings = {
        "model": MODEL,
        "steps": STEPS,
        "budgets": BUDGETS,
        "more_steps": MORE_STEPS,
        "batch": BATCH,
        "rates": RATES,
        "tuning_seed": TUNING_SEED,
        "seeds": SEEDS,
        "trained_sentences": TRAINED,
        "measured_sentences": MEASURED,
        "tokens_in_a_sentence": FACT,
        "reports": REPORTS,
        "moved_tokens": FACT * TRAINED,
    }
    if not asked.quick:
        facts = {"rates_tried": tried, "shorter_runs": shorter}
        write("summarization", settings, runs, asked.device, **facts)
    table(runs)


if __name__ == "__main__":
    main()
