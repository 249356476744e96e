"""Six encodings: loss by position far past the trained length, and who reads it.

The same small model learns Python source in windows of 64 bytes, with the best of three
rates for each encoding, and is measured on other source in windows of 512. Whether the
far past is read, another text in its place shows: the loss of what follows changes, or
does not. The same is done within the trained length, where it can be read. Lesson 03
reads the result; a test repeats one run. About 20 minutes of one core:

    python benchmarks/six_encodings.py
"""

import hashlib
from typing import Any

from common import (
    TUNING_SEED,
    Run,
    Workers,
    few,
    in_parts,
    mean_from,
    moved,
    options,
    reading,
    rounded,
    text_and_validation,
    tuned,
    write,
)
from torch import Tensor

from rope_teach.course.models import LanguageModel
from rope_teach.course.tasks import (
    TEST_MODULES,
    TRAIN_MODULES,
    Batch,
    python_text,
    text_batches,
    text_windows,
)
from rope_teach.course.training import fit, loss_by_position, seed_everything

TRAINED, MEASURED, BIN = 64, 512, 8
STEPS, BUDGETS, BATCH = 800, (100, 300), 16
RATES, SEEDS = (3e-3, 1e-2, 3e-2), (1, 2, 3)
MODEL: dict[str, int] = {"vocab": 256, "dim": 64, "layers": 2, "heads": 4}
ENCODINGS: dict[str, dict[str, Any]] = {
    "none": {"encoding": "none"},
    "learned": {"encoding": "learned", "max_len": MEASURED},
    "sinusoidal": {"encoding": "sinusoidal"},
    "ALiBi": {"encoding": "alibi"},
    "RoPE": {"encoding": "rope"},
    "partial RoPE": {"encoding": "rope", "rotary_dim": 8},  # half of each head
}


def run(
    name: str, lr: float, seed: int, steps: int = STEPS, device: str = "cpu"
) -> Run:
    """Train one model and measure it; one entry of the result file."""
    text, validation = text_and_validation()
    seed_everything(seed)
    model = LanguageModel(**MODEL, **ENCODINGS[name])
    batches = text_batches(text, BATCH, TRAINED, seed)
    losses = fit(model, batches, steps, lr, label=None, device=device)

    def measure(windows: Batch) -> Tensor:
        return loss_by_position(model, moved(windows, device)).cpu()

    test = python_text(TEST_MODULES)
    loss, other = reading(measure, test, MEASURED // 2)
    near, near_other = reading(measure, test, TRAINED // 2)
    return {
        "encoding": name,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": round(
            measure(text_windows(validation, TRAINED)).mean().item(), 4
        ),
        "loss_while_training": in_parts(losses),
        "loss": rounded(loss.unflatten(0, (-1, BIN)).mean(1)),
        "near_loss": mean_from(48, near),
        "near_loss_with_another_past": mean_from(48, near_other),
        "late_loss": mean_from(384, loss),
        "late_loss_with_another_past": mean_from(384, other),
    }


def text_facts(modules: tuple[str, ...]) -> dict[str, Any]:
    source = bytes(python_text(modules).tolist())
    return {
        "modules": modules,
        "bytes": len(source),
        "sha256": hashlib.sha256(source).hexdigest(),
    }


def table(runs: list[Run]) -> None:
    """Print the mean loss of some spans, and what another past changes."""
    print(f"{'':24}  0-63 64-127 128-255 256-511  another past: near   far")
    for run in runs:
        bins = run["loss"]
        spans = bins[:8], bins[8:16], bins[16:32], bins[32:]
        means = " ".join(f"{sum(span) / len(span):6.2f}" for span in spans)
        near, far = (
            run[f"{where}_loss_with_another_past"] - run[f"{where}_loss"]
            for where in ("near", "late")
        )
        name = f"{run['encoding']:12} {run['lr']:<6} {run['seed']}"
        print(f"{name:24} {means} {near:+18.3f} {far:+6.3f}")


def main() -> None:
    asked = options()
    steps = STEPS // 20 if asked.quick else STEPS
    conditions = [(name,) for name in ENCODINGS][:: 3 if asked.quick else 1]
    with Workers(asked.workers) as workers:
        given = {"steps": steps, "device": asked.device}
        plan = few(asked, RATES, SEEDS, BUDGETS)
        tried, runs, shorter = tuned(workers, run, conditions, *plan, **given)()
    settings = {
        "model": MODEL,
        "encodings": ENCODINGS,
        "steps": STEPS,
        "budgets": BUDGETS,
        "batch": BATCH,
        "rates": RATES,
        "tuning_seed": TUNING_SEED,
        "seeds": SEEDS,
        "trained_length": TRAINED,
        "measured_length": MEASURED,
        "positions_in_a_bin": BIN,
    }
    facts = {
        "rates_tried": tried,
        "shorter_runs": shorter,
        "train_text": text_facts(TRAIN_MODULES),
        "test_text": text_facts(TEST_MODULES),
    }
    if not asked.quick:
        write("six_encodings", settings, runs, asked.device, **facts)
    table(runs)


if __name__ == "__main__":
    main()
