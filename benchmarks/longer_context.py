"""Rules for longer context: as they are, and after a short fine-tune.

Small models learn Python source in windows of 64 bytes. Then each rule slows their
hands for windows of 256, four times as long. Every rule is measured on other source,
in short and in long windows, before and after the model has seen a few long ones.
Lesson 13 reads the result; a test repeats a part. About three minutes of one core:

    python benchmarks/longer_context.py --jobs 3
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from common import rounded, run_all, write

from rope_teach.course.models import LanguageModel
from rope_teach.course.tasks import (
    TEST_MODULES,
    TRAIN_MODULES,
    python_text,
    text_batches,
    text_windows,
)
from rope_teach.course.training import bits_by_position, fit, seed_everything
from rope_teach.frequencies import (
    Scaling,
    dynamic_ntk,
    llama3,
    ntk_aware,
    position_interpolation,
    yarn,
)

TRAINED, LONGER, BIN = 64, 256, 8
STEPS, LR = 400, 1e-2
TUNED_STEPS, TUNED_LR, BYTES = 40, 1e-3, 1024
SEEDS = (0, 1, 2)
MODEL = {"vocab": 256, "dim": 64, "layers": 2, "heads": 4}

FACTOR = {"factor": LONGER / TRAINED}
BY_PARTS = {**FACTOR, "trained_length": TRAINED}
RULES: dict[str, Scaling | None] = {
    "none": None,
    "PI": partial(position_interpolation, **FACTOR),
    "NTK-aware": partial(ntk_aware, **FACTOR),
    "dynamic NTK": partial(dynamic_ntk, factor=1, trained_length=TRAINED),
    "YaRN": partial(yarn, **BY_PARTS),
    "YaRN, factor 1": partial(yarn, **BY_PARTS, attention_factor=1),
    "YaRN of the paper": partial(yarn, **BY_PARTS, ramp="paper"),
    "Llama 3": partial(llama3, **BY_PARTS),
    "Llama 3, YaRN's factor": partial(yarn, **BY_PARTS, beta_fast=4, ramp="paper"),
}


def run(seed: int, rules: Sequence[str] = tuple(RULES)) -> dict[str, Any]:
    """Train one model and put it under each rule; one entry of the result file."""
    seed_everything(seed)
    trained = LanguageModel(**MODEL, encoding="rope")
    text = python_text(TRAIN_MODULES)
    batches = text_batches(text, BYTES // TRAINED, TRAINED, seed)
    fit(trained, batches, STEPS, LR, label=None)
    measured = {}
    for name in rules:
        long = under(trained, name, LONGER)
        before = measure(long, name)
        batches = text_batches(text, BYTES // LONGER, LONGER, seed)
        fit(long, batches, TUNED_STEPS, TUNED_LR, label=None)
        measured[name] = {"zero-shot": before, "tuned": measure(long, name)}
    return {"seed": seed, "rules": measured}


def under(model: LanguageModel, name: str, length: int) -> LanguageModel:
    """The same weights under a rule; ``length`` is for the rule that depends on it."""
    rule = RULES[name]
    if name == "dynamic NTK":
        rule = partial(rule, length=length)
    other = LanguageModel(**MODEL, encoding="rope", scaling=rule)
    other.load_state_dict(model.state_dict())
    return other


def measure(model: LanguageModel, name: str) -> dict[str, list[float]]:
    """Bits per byte on unseen text in short and long windows, ``BIN`` at a time."""
    bits = {}
    for length in (TRAINED, LONGER):
        held_out = text_windows(python_text(TEST_MODULES), length)
        each = bits_by_position(under(model, name, length), held_out)
        bits[str(length)] = rounded(each.unflatten(0, (-1, BIN)).mean(1))
    return bits


def main() -> None:
    settings = {
        "model": MODEL,
        "trained_length": TRAINED,
        "longer": LONGER,
        "steps": STEPS,
        "lr": LR,
        "tuned_steps": TUNED_STEPS,
        "tuned_lr": TUNED_LR,
        "bytes_in_a_batch": BYTES,
        "seeds": SEEDS,
        "positions_in_a_bin": BIN,
    }
    write("longer_context", settings, run_all(run, [(seed,) for seed in SEEDS]))


if __name__ == "__main__":
    main()
