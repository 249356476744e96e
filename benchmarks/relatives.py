"""RoPE's relatives, all in one model: loss and accuracy far past the trained length.

Each is the same model of four layers with the same first weights, batches and steps.
Only the clocks differ: fading ones (xPos), fewer (partial rotary), some that stand
still (p-RoPE), layers without any, and none at all. Two tasks: Python source in
windows of 64 bytes, and "which token stood 5 places ago?" in rows of 64. Both are
measured up to position 511, as they are and with the blockwise attention that xPos's
paper uses for longer texts. Lesson 16 reads the result; a test repeats a part. About
twenty minutes of one core:

    python benchmarks/relatives.py --jobs 2
"""

import itertools
from functools import partial
from typing import Any

import torch
from common import rounded, run_all, with_another_past, write
from torch import Tensor, nn

from rope_teach import RotaryEmbedding
from rope_teach.course.masks import blockwise_mask
from rope_teach.course.models import LanguageModel
from rope_teach.course.tasks import (
    TEST_MODULES,
    copy_batches,
    python_text,
    text_batches,
    text_windows,
)
from rope_teach.course.training import bits_by_position, fit, seed_everything
from rope_teach.frequencies import proportional

TRAINED, MEASURED, BIN = 64, 512, 8
BATCH, LR, SEEDS = 16, 1e-2, (0, 1, 2)
BACK, VOCAB = 5, 10
STEPS = {"text": 400, "5 back": 200}
MODELS = {
    "text": {"vocab": 256, "dim": 64, "layers": 4, "heads": 4},
    "5 back": {"vocab": VOCAB, "dim": 32, "layers": 4, "heads": 2},
}
HEAD_DIM = 16  # of both
RELATIVES: dict[str, dict[str, Any]] = {
    "RoPE": {},
    "xPos, B = 512": {"xpos_scale_base": 512},
    "xPos, B = 32": {"xpos_scale_base": 32},  # half of T
    "partial 1/2": {"rotary_dim": HEAD_DIM // 2},
    "partial 1/4": {"rotary_dim": HEAD_DIM // 4},
    "p-RoPE 1/2": {"fraction": 1 / 2},
    "p-RoPE 1/4": {"fraction": 1 / 4},
    "every 4th layer without": {"without_every": 4},
    "every 2nd layer without": {"without_every": 2},
    "no layer with": {"without_every": 1},
    "ALiBi": {"encoding": "alibi"},
}
CASES = [*itertools.product(STEPS, RELATIVES, SEEDS)]


def build(task: str, relative: str) -> LanguageModel:
    """The model of ``task`` with the clocks of ``relative``; they have no weights."""
    changed = dict(RELATIVES[relative])
    model = LanguageModel(**MODELS[task], encoding=changed.pop("encoding", "rope"))
    without_every = changed.pop("without_every", None)
    if "fraction" in changed:
        changed["scaling"] = partial(proportional, fraction=changed.pop("fraction"))
    for number, block in enumerate(model.blocks, start=1):
        if changed:
            block.attention.rope = RotaryEmbedding(HEAD_DIM, **changed)
        if without_every and number % without_every == 0:
            block.attention.encoding = "none"
    return model


class Blockwise(nn.Module):
    """A model whose tokens see their own half of a trained length and the last."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        mask = blockwise_mask(tokens.shape[1], TRAINED // 2)
        logits: Tensor = self.model(tokens, mask)
        return logits


def run(
    task: str, relative: str, seed: int, steps: int | None = None
) -> dict[str, Any]:
    """Train one model and measure it; one entry of the result file."""
    seed_everything(seed)
    model = build(task, relative)
    if task == "text":
        batches = text_batches(python_text(), BATCH, TRAINED, seed)
    else:
        batches = copy_batches(BACK, BATCH, TRAINED, VOCAB, seed)
    fit(model, batches, steps or STEPS[task], LR, label=None)
    measured = {"as it is": model, "blockwise": Blockwise(model)}
    result = {"task": task, "relative": relative, "seed": seed}
    if task == "5 back":
        return {**result, "right": {how: right(m) for how, m in measured.items()}}
    held_out = text_windows(python_text(TEST_MODULES), MEASURED)
    bits = {how: bits_by_position(m, held_out) for how, m in measured.items()}
    other = bits_by_position(model, with_another_past(held_out))
    return {
        **result,
        "bits": {how: rounded(in_bins(each)) for how, each in bits.items()},
        "late": round(bits["as it is"][384:].mean().item(), 4),
        "late_with_another_past": round(other[384:].mean().item(), 4),
    }


def in_bins(x: Tensor) -> Tensor:
    """The mean of each ``BIN`` positions."""
    return x.unflatten(0, (-1, BIN)).mean(1)


@torch.no_grad()
def right(model: nn.Module) -> list[float]:
    """Share of right answers in each bin but the first, which has places without."""
    tokens, targets = next(copy_batches(BACK, 100, MEASURED, VOCAB, seed=1000))
    hit = (model(tokens).argmax(-1) == targets).double().mean(0)
    return rounded(in_bins(hit)[1:])


def main() -> None:
    settings = {
        "models": MODELS,
        "relatives": RELATIVES,
        "steps": STEPS,
        "batch": BATCH,
        "lr": LR,
        "seeds": SEEDS,
        "trained_length": TRAINED,
        "measured_length": MEASURED,
        "positions_in_a_bin": BIN,
        "block": TRAINED // 2,
    }
    write("relatives", settings, run_all(run, CASES))


if __name__ == "__main__":
    main()
