"""Six encodings, three seeds: loss by position far past the trained length.

The same small model learns Python source in windows of 64 bytes, and is measured
on other source in windows of 512. Lesson 03 reads the result; a test repeats one
run. About five minutes on one free core:

    python benchmarks/six_encodings.py
"""

import hashlib
import json
import platform
import time
from datetime import date
from typing import Any

import torch
from common import RESULTS, processor, rounded, with_another_past

from rope_teach.course.models import LanguageModel
from rope_teach.course.tasks import (
    TEST_MODULES,
    TRAIN_MODULES,
    python_text,
    text_batches,
    text_windows,
)
from rope_teach.course.training import fit, loss_by_position, seed_everything

RESULT = RESULTS / "six_encodings.json"
TRAINED, MEASURED, BIN = 64, 512, 8
STEPS, BATCH, LR, SEEDS = 400, 16, 1e-2, (0, 1, 2)
MODEL: dict[str, int] = {"vocab": 256, "dim": 64, "layers": 2, "heads": 4}
ENCODINGS: dict[str, dict[str, Any]] = {
    "none": {"encoding": "none"},
    "learned": {"encoding": "learned", "max_len": MEASURED},
    "sinusoidal": {"encoding": "sinusoidal"},
    "ALiBi": {"encoding": "alibi"},
    "RoPE": {"encoding": "rope"},
    "partial RoPE": {"encoding": "rope", "rotary_dim": 8},  # half of each head
}


def run(name: str, seed: int) -> dict[str, Any]:
    """Train one model and measure it; one entry of the result file."""
    started = time.process_time()
    seed_everything(seed)
    model = LanguageModel(**MODEL, **ENCODINGS[name])
    batches = text_batches(python_text(TRAIN_MODULES), BATCH, TRAINED, seed)
    fit(model, batches, STEPS, LR, label=f"{name}, seed {seed}")
    held_out = text_windows(python_text(TEST_MODULES), MEASURED)
    loss = loss_by_position(model, held_out)
    other = loss_by_position(model, with_another_past(held_out))
    return {
        "encoding": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": rounded(loss.unflatten(0, (-1, BIN)).mean(1)),
        "late_loss": round(loss[384:].mean().item(), 4),
        "late_loss_with_another_past": round(other[384:].mean().item(), 4),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def text_facts(modules: tuple[str, ...]) -> dict[str, Any]:
    source = bytes(python_text(modules).tolist())
    return {
        "modules": modules,
        "bytes": len(source),
        "sha256": hashlib.sha256(source).hexdigest(),
    }


def main() -> None:
    torch.set_num_threads(1)
    runs = [run(name, seed) for name in ENCODINGS for seed in SEEDS]
    result = {
        "command": "python benchmarks/six_encodings.py",
        "date": date.today().isoformat(),
        "machine": f"{processor()}, one thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "cpu_seconds": round(sum(run["cpu_seconds"] for run in runs)),
        "settings": {
            "model": MODEL,
            "encodings": ENCODINGS,
            "steps": STEPS,
            "batch": BATCH,
            "lr": LR,
            "seeds": SEEDS,
            "trained_length": TRAINED,
            "measured_length": MEASURED,
            "positions_in_a_bin": BIN,
        },
        "train_text": text_facts(TRAIN_MODULES),
        "test_text": text_facts(TEST_MODULES),
        "runs": runs,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {RESULT.name} after {result['cpu_seconds']} s")


if __name__ == "__main__":
    main()
