"""Where is Anna now? Four encodings, longer stories, and one remedy.

One small model learns stories of 4 sentences and is measured on 4, 8 and 16, with the
answer in each quarter of the story. Each condition has the best of at least three
rates, chosen by the loss on validation stories. Lesson 15 reads the result; a test
repeats a short run. The model has three blocks: with two, not every seed leaves its
plateau in time. About 30 minutes of one core:

    python benchmarks/question_answering.py
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
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

from rope_teach.attention import segment_mask
from rope_teach.course.models import QuestionAnswerer
from rope_teach.course.tasks import (
    START,
    STORY_WORDS,
    stories,
    story_batch,
    story_batches,
)
from rope_teach.course.training import (
    AnyBatch,
    exact_match,
    f1,
    fit,
    loss_of,
    seed_everything,
)

TRAINED, MEASURED, DEPTHS = 4, (4, 8, 16), 4  # sentences, of 4 or 5 tokens
STEPS, BUDGETS, BATCH = 800, (400,), 32
LONG_STEPS = 3200  # for the conditions that 800 steps leave on their way
RATES, SEEDS, STORIES = (1e-3, 2e-3, 4e-3), (1, 2, 3), 75
LEARNED = 5e-3  # nats of validation: a better rate would hardly show
MODEL = {"vocab": len(STORY_WORDS), "layers": 3, "max_len": 6 + 5 * max(MEASURED)}
CONDITIONS = [
    ("random places", "rope"),
    *itertools.product(["plain"], ["rope", "learned", "sinusoidal"]),
    ("apart", "rope"),
    ("plain", "none"),
]
ON_THEIR_WAY = [("apart", "rope"), ("plain", "sinusoidal"), ("plain", "learned")]


class Apart(QuestionAnswerer):
    """Question and text are read on their own, and meet in the last product alone."""

    def forward(self, tokens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        own = segment_mask((tokens == START).cumsum(1))
        return super().forward(tokens, own, **kwargs)


class Placed(QuestionAnswerer):
    """Takes ``(tokens, positions)`` as a batch gives them."""

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor:
        return super().forward(tokens, positions=positions)


MODELS = {"apart": Apart, "random places": Placed}


def batches_of(kind: str, split: str, batch: int, seed: int) -> Iterator[AnyBatch]:
    """Stories of 4 sentences, as they are or at random places."""
    short = story_batches(split, batch, TRAINED, seed=seed)
    return at_random_places(short, seed) if kind == "random places" else short


def at_random_places(batches: Iterator[AnyBatch], seed: int) -> Iterator[AnyBatch]:
    """Short stories whose sentences get places that only long stories have.

    Sentences stay whole and in order; between them is room for others. After
    Ruoss et al. (2305.16843).
    """
    generator = torch.Generator().manual_seed(seed)
    (stop,) = STORY_WORDS.encode(".")
    room = 5 * (max(MEASURED) - TRAINED)
    for tokens, spans in batches:
        before = (tokens == stop).cumsum(1) - (tokens == stop).int()
        sentence = (before + 1).clamp(max=TRAINED) * ((tokens == START).cumsum(1) > 0)
        gaps = torch.randint(room + 1, (len(tokens), TRAINED), generator=generator)
        gaps = torch.cat([torch.zeros(len(tokens), 1), gaps.sort().values], 1).long()
        places = torch.arange(tokens.shape[1]) + gaps.gather(1, sentence)
        yield (tokens, places), spans


def run(
    kind: str,
    encoding: str,
    lr: float,
    seed: int,
    steps: int = STEPS,
    device: str = "cpu",
) -> Run:
    """Train one model and measure it; one entry of the result file."""
    if encoding == "none":  # no budget tells it whose city is whose
        steps //= 2
    seed_everything(seed)
    model = MODELS.get(kind, QuestionAnswerer)(**MODEL, encoding=encoding)
    batches = batches_of(kind, "train", BATCH, seed)
    losses = fit(model, batches, steps, lr, label=None, device=device)
    unseen = next(batches_of(kind, "validation", DEPTHS * STORIES, seed=1000))
    with torch.no_grad():
        validation = loss_of(model.cpu(), unseen).item()
    return {
        "kind": kind,
        "encoding": encoding,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": round(validation, 5),
        "loss_while_training": in_parts(losses),
        "scores": {str(n): scores(model, n) for n in MEASURED},
    }


def scores(model: QuestionAnswerer, sentences: int) -> dict[str, list[float]]:
    """Exact match and F1 on unseen stories, from the start to the end of the story."""
    found: dict[str, list[float]] = {"exact": [], "f1": []}
    for depth in range(DEPTHS):
        needle = round(depth * (sentences - 1) / (DEPTHS - 1))
        drawn = stories("test", sentences, needle, seed=depth)
        pairs = answered(model, list(itertools.islice(drawn, STORIES)))
        for name, score in (("exact", exact_match), ("f1", f1)):
            total = sum(score(got, wanted) for got, wanted in pairs)
            found[name].append(round(total / STORIES, 4))
    return found


def answered(model: QuestionAnswerer, drawn: list[Any]) -> list[tuple[str, str]]:
    """The model's answer and the right one, in words."""
    tokens, _ = story_batch(drawn)
    spans = model.eval().answer(tokens).tolist()
    return [
        (STORY_WORDS.decode(row[start : end + 1]), story.answer)
        for row, (start, end), story in zip(tokens.tolist(), spans, drawn, strict=True)
    ]


def four_times_as_long(workers: Workers, tried: list[Run], device: str) -> list[Run]:
    """Those that had not arrived, each at the rate that suited it, with all seeds."""
    best = {tuple(each["condition"]): each["best"] for each in tried}
    waiting = [
        workers.submit(run, (*case, best[case], seed), steps=LONG_STEPS, device=device)
        for case in ON_THEIR_WAY
        for seed in SEEDS
    ]
    return [each.get() for each in waiting]


def table(runs: list[Run]) -> None:
    """Print the exact match of each training, by sentences."""
    for run in runs:
        exact = [sum(run["scores"][str(n)]["exact"]) / DEPTHS for n in MEASURED]
        name = f"{run['kind']:14} {run['encoding']:10} {run['lr']:<6} {run['seed']}"
        marks = " ".join(f"{mark:.2f}" for mark in exact)
        print(name, marks, f"{run['validation']:.4f}")


def main() -> None:
    asked = options()
    conditions = CONDITIONS[::3] if asked.quick else CONDITIONS
    given = {"steps": 20 if asked.quick else STEPS, "device": asked.device}
    given |= {"extend": 2, "enough": LEARNED}
    with Workers(asked.workers) as workers:
        plan = few(asked, RATES, SEEDS, BUDGETS)
        tried, runs, shorter = tuned(workers, run, conditions, *plan, **given)()
        longer = [] if asked.quick else four_times_as_long(workers, tried, asked.device)
    settings = {
        "model": MODEL,
        "steps": STEPS,
        "budgets": BUDGETS,
        "long_steps": LONG_STEPS,
        "batch": BATCH,
        "rates": RATES,
        "tuning_seed": TUNING_SEED,
        "seeds": SEEDS,
        "trained_sentences": TRAINED,
        "measured_sentences": MEASURED,
        "stories_at_each_depth": STORIES,
    }
    if not asked.quick:
        facts = {"rates_tried": tried, "shorter_runs": shorter, "longer_runs": longer}
        write("question_answering", settings, runs, asked.device, **facts)
    table(runs)


if __name__ == "__main__":
    main()
