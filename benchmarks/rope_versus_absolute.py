"""Five encodings, one model, two questions: who learns what, how fast, how far.

"Which token stood 5 places ago?" wants a distance, "which token stands at place 3?"
a position. Model, batches and schedule are the same for every encoding.

- *The race* ("5 back"): 200 steps, each encoding with each of four rates and five
  seeds.
- *The long runs* (all other tasks): both questions with and without a causal mask, at
  the best of three rates, with three fresh seeds, up to 2,000 steps. A text may begin
  with a mark, or for control have the mark anywhere else. Without mask and position
  nothing can be learned: the control for everything else.

Lesson 11 reads the result; a test repeats some runs. About 40 minutes of one core:

    python benchmarks/rope_versus_absolute.py
"""

import itertools
from collections.abc import Iterator
from statistics import mean
from typing import Any

import torch
from common import TUNING_SEED, Run, Workers, moved, options, rounded, tuned, write

from rope_teach.course.models import LanguageModel
from rope_teach.course.tasks import Batch, copy_batches, place_batches
from rope_teach.course.training import accuracy, fit, seed_everything

TRAINED, MEASURED = 32, 128
BATCH, VOCAB = 32, 10
MODEL = {"vocab": VOCAB + 1, "dim": 32, "layers": 2, "heads": 2, "max_len": MEASURED}
ENCODINGS = ("none", "learned", "sinusoidal", "alibi", "rope")

STEPS, EVERY = 200, 5  # of the race
RATES, SEEDS = (3e-3, 1e-2, 3e-2, 1e-1), (0, 1, 2, 3, 4)
RACE = [*itertools.product(["5 back"], [True], ENCODINGS, RATES, SEEDS)]

LONG_STEPS, LONG_EVERY = 2000, 25
LONG_RATES, LONG_SEEDS = (3e-3, 1e-2, 3e-2), (1, 2, 3)
SOLVED, IN_A_ROW = 0.99, 4  # a long run stops when that many measurements reach it
CONDITIONS = [
    *itertools.product(["place 3", "5 back, long"], [True, False], ENCODINGS),
    *itertools.product(["place 3, marked"], [True], ENCODINGS),
    ("place 3, marked", False, "rope"),
    *itertools.product(["place 3, mark moved"], [True], ["none", "alibi", "rope"]),
]
CONDITIONS.sort(key=lambda case: case[2] in ("learned", "sinusoidal"))  # soon solved


def marked_batches(*args: int, **kwargs: int) -> Iterator[Batch]:
    """``place_batches`` whose texts begin with a token that stands nowhere else."""
    for tokens, targets in place_batches(*args, **kwargs):
        tokens[:, 0] = VOCAB
        yield tokens, targets


def moved_batches(place: int, *args: int, seed: int) -> Iterator[Batch]:
    """``place_batches`` with that token somewhere behind the place asked for."""
    generator = torch.Generator().manual_seed(seed + 1)
    for tokens, targets in place_batches(place, *args, seed=seed):
        batch, seq = tokens.shape
        mark = torch.randint(place + 1, seq, (batch, 1), generator=generator)
        yield tokens.scatter(1, mark, VOCAB), targets


TASKS = {
    "5 back": (copy_batches, 5),
    "5 back, long": (copy_batches, 5),
    "place 3": (place_batches, 3),
    "place 3, marked": (marked_batches, 3),
    "place 3, mark moved": (moved_batches, 3),
}


class Solved(Exception):
    """Ends a training early."""


def run(
    task: str,
    causal: bool,
    encoding: str,
    lr: float,
    seed: int,
    steps: int = STEPS,
    every: int = EVERY,
    device: str = "cpu",
) -> Run:
    """Train one model and measure it; one entry of the result file."""
    batches_of, place = TASKS[task]
    seed_everything(seed)
    model = LanguageModel(**MODEL, encoding=encoding, causal=causal)
    # Each seed has texts of its own, so that no rate is chosen by those that count.
    unseen = next(batches_of(place, 100, TRAINED, VOCAB, seed=1000 + seed))
    unseen = moved(unseen, device)
    curve: list[float] = []

    def watched() -> Iterator[Batch]:
        for step, batch in enumerate(
            batches_of(place, BATCH, TRAINED, VOCAB, seed=seed)
        ):
            if step % every == 0:
                curve.append(round(accuracy(model, unseen), 4))
                if task != "5 back" and min(curve[-IN_A_ROW:]) >= SOLVED:
                    raise Solved
            yield batch

    try:
        fit(model, watched(), steps, lr, label=None, device=device)
        curve.append(round(accuracy(model, unseen), 4))
    except Solved:
        pass
    # The share of wrong answers over all steps, so the rate that learns earliest counts
    # as the best. What stopped early stays where it was.
    all_of_it = len(range(0, steps, every)) + 1
    solved = [every * n for n, right in enumerate(curve) if right >= 0.95]
    return {
        "task": task,
        "causal": causal,
        "encoding": encoding,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps_to_95": solved[0] if solved else None,
        "accuracy": curve[-1],
        "validation": round(1 - mean(curve + curve[-1:] * (all_of_it - len(curve))), 4),
        "accuracy_while_training": curve,
        "accuracy_by_position": by_position(model.cpu(), batches_of, place),
    }


@torch.no_grad()
def by_position(model: LanguageModel, batches_of: Any, place: int) -> list[float]:
    """Share of right answers at each position of longer texts."""
    tokens, targets = next(batches_of(place, 200, MEASURED, VOCAB, seed=2000))
    return rounded((model(tokens).argmax(-1) == targets).double().mean(0))


def luck(task: str) -> float:
    """Share of right answers of naming the token that stood most often so far."""
    batches_of, place = TASKS[task]
    tokens, targets = next(batches_of(place, 2000, TRAINED, VOCAB, seed=3000))
    counts = torch.nn.functional.one_hot(tokens, VOCAB + 1)[..., :VOCAB].cumsum(1)
    return round((counts.argmax(-1) == targets)[:, place:].double().mean().item(), 4)


def table(runs: list[Run]) -> None:
    """Print steps to 95 %, or the accuracy at the end, from lowest to highest."""
    keys = "task", "causal", "encoding", "lr"
    for (task, causal, encoding, lr), seeds in itertools.groupby(
        runs, lambda run: tuple(run[key] for key in keys)
    ):
        found = [(run["accuracy"], run["steps_to_95"]) for run in seeds]
        right, steps = zip(*found, strict=True)
        mask = "causal" if causal else "no mask"
        print(
            f"{task:20} {mask:8} {encoding:11} lr {lr:<6} "
            f"{min(right):4.0%} to {max(right):4.0%}, steps to 95 %: {steps}"
        )


def main() -> None:
    asked = options()
    conditions, rates, seeds, race = CONDITIONS, LONG_RATES, LONG_SEEDS, RACE
    shorter = 1
    if asked.quick:
        conditions, rates, seeds, race = (
            conditions[::12],
            rates[:2],
            seeds[:1],
            race[::33],
        )
        shorter = 20
    with Workers(asked.workers) as workers:
        collect = tuned(
            *(workers, run, conditions, rates, seeds),
            steps=LONG_STEPS // shorter,
            every=LONG_EVERY,
            device=asked.device,
        )
        raced = [
            workers.submit(run, case, steps=STEPS // shorter, device=asked.device)
            for case in race
        ]
        tried, runs, _ = collect()
        raced = [result.get() for result in raced]
    settings = {
        "model": MODEL,
        "steps": STEPS,
        "batch": BATCH,
        "rates": RATES,
        "seeds": SEEDS,
        "trained_length": TRAINED,
        "measured_length": MEASURED,
        "steps_between_measurements": EVERY,
        "long": {
            "steps": LONG_STEPS,
            "rates": LONG_RATES,
            "tuning_seed": TUNING_SEED,
            "seeds": LONG_SEEDS,
            "steps_between_measurements": LONG_EVERY,
            "stops_after": {"accuracy": SOLVED, "measurements": IN_A_ROW},
        },
        "commonest_so_far": {task: luck(task) for task in TASKS},
    }
    if not asked.quick:
        every_run = raced + runs
        write(
            *("rope_versus_absolute", settings, every_run, asked.device),
            rates_tried=tried,
        )
    table(runs)


if __name__ == "__main__":
    main()
