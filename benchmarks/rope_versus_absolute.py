"""Five encodings, one model, two tasks: who learns what, how fast, how far.

"Which token stood 5 places ago?" wants a distance, "which token stands at place 3?"
a position. Model, batches, steps and schedule are the same for every encoding, and
each is tried with three learning rates. Lesson 11 reads the result; a test repeats
some runs. About six minutes of one core:

    python benchmarks/rope_versus_absolute.py --jobs 2
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from common import rounded, run_all, write

from rope_teach.course.models import LanguageModel
from rope_teach.course.tasks import Batch, copy_batches, place_batches
from rope_teach.course.training import accuracy, fit, seed_everything

TRAINED, MEASURED, EVERY = 32, 128, 5
STEPS, BATCH, VOCAB = 200, 32, 10
RATES, SEEDS = (3e-3, 1e-2, 3e-2), (0, 1, 2, 3, 4)
MODEL = {"vocab": VOCAB + 1, "dim": 32, "layers": 2, "heads": 2, "max_len": MEASURED}
ENCODINGS = ("none", "learned", "sinusoidal", "alibi", "rope")
CASES = [
    *itertools.product(["5 back"], [True], ENCODINGS, RATES, SEEDS),
    *itertools.product(["place 3"], [True, False], ENCODINGS, [1e-2], SEEDS[:3]),
    *itertools.product(["place 3, marked"], [True], ENCODINGS, [1e-2], SEEDS[:3]),
]


def marked_batches(*args: int, **kwargs: int) -> Iterator[Batch]:
    """``place_batches`` whose texts begin with a token that stands nowhere else."""
    for tokens, targets in place_batches(*args, **kwargs):
        tokens[:, 0] = VOCAB
        yield tokens, targets


TASKS = {
    "5 back": (copy_batches, 5),
    "place 3": (place_batches, 3),
    "place 3, marked": (marked_batches, 3),
}


def run(
    task: str, causal: bool, encoding: str, lr: float, seed: int, steps: int = STEPS
) -> dict[str, Any]:
    """Train one model and measure it; one entry of the result file."""
    batches_of, place = TASKS[task]
    seed_everything(seed)
    model = LanguageModel(**MODEL, encoding=encoding, causal=causal)
    unseen = next(batches_of(place, 100, TRAINED, VOCAB, seed=1000))
    curve: list[float] = []

    def watched() -> Iterator[Batch]:
        for step, batch in enumerate(batches_of(place, BATCH, TRAINED, VOCAB, seed)):
            if step % EVERY == 0:
                curve.append(round(accuracy(model, unseen), 4))
            yield batch

    fit(model, watched(), steps, lr, label=None)
    curve.append(round(accuracy(model, unseen), 4))
    solved = [EVERY * n for n, right in enumerate(curve) if right >= 0.95]
    return {
        "task": task,
        "causal": causal,
        "encoding": encoding,
        "lr": lr,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps_to_95": solved[0] if solved else None,
        "accuracy_while_training": curve,
        "accuracy_by_position": by_position(model, batches_of, place),
    }


@torch.no_grad()
def by_position(model: LanguageModel, batches_of: Any, place: int) -> list[float]:
    """Share of right answers at each position of longer texts."""
    tokens, targets = next(batches_of(place, 400, MEASURED, VOCAB, seed=1000))
    return rounded((model(tokens).argmax(-1) == targets).double().mean(0))


def main() -> None:
    settings = {
        "model": MODEL,
        "steps": STEPS,
        "batch": BATCH,
        "rates": RATES,
        "seeds": SEEDS,
        "trained_length": TRAINED,
        "measured_length": MEASURED,
        "steps_between_measurements": EVERY,
    }
    write("rope_versus_absolute", settings, run_all(run, CASES))


if __name__ == "__main__":
    main()
