"""RoPE past the trained length: where the cliff stands, and which hands make it.

Small models learn Python source in windows of 32, 64 and 128 bytes and are measured on
other source in windows of 512: as they are, with a window, and with hands frozen. They
also write on from short and from long prompts. Lesson 12 reads the result; a test
repeats one run. About three minutes of one core:

    python benchmarks/cliff.py --jobs 2
"""

import itertools
from typing import Any

import torch
from common import rounded, run_all, write
from torch import Tensor, nn

from rope_teach import cos_sin, inverse_frequencies, rotate, wavelengths
from rope_teach.course.masks import window_mask
from rope_teach.course.models import LanguageModel, generate
from rope_teach.course.tasks import (
    TEST_MODULES,
    TRAIN_MODULES,
    python_text,
    text_batches,
    text_windows,
)
from rope_teach.course.training import bits_by_position, fit, seed_everything

MEASURED, BIN, STEPS, BYTES, LR = 512, 8, 400, 1024, 1e-2
SEEDS = (0, 1, 2)
MODEL = {"vocab": 256, "dim": 64, "layers": 2, "heads": 4}
PROMPTS, WRITTEN = (16, 64, 128, 192, 256), 48
CASES = [
    *itertools.product([32, 64, 128], [False], SEEDS),
    *itertools.product([64], [True], SEEDS),
]


class Hands(nn.Module):
    """RoPE with hands of given speeds, in place of an attention's own."""

    def __init__(self, inv_freq: Tensor) -> None:
        super().__init__()
        self.inv_freq = inv_freq

    def forward(
        self, q: Tensor, k: Tensor, positions: Tensor | None = None, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        if positions is None:
            positions = torch.arange(start, start + q.shape[-2])
        tables = cos_sin(positions, self.inv_freq)
        return rotate(q, *tables), rotate(k, *tables)


class Windowed(nn.Module):
    """A model whose tokens see the newest ``window`` tokens alone."""

    def __init__(self, model: LanguageModel, window: int) -> None:
        super().__init__()
        self.model, self.window = model, window

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens, window_mask(tokens.shape[1], self.window))
        return logits


def set_hands(model: LanguageModel, longest: float) -> None:
    """Freeze the hands that need more than ``longest`` tokens for a turn."""
    head_dim = MODEL["dim"] // MODEL["heads"]
    speeds = inverse_frequencies(head_dim)
    speeds = speeds.masked_fill(wavelengths(speeds) > longest, 0)
    for block in model.blocks:
        block.attention.rope = Hands(speeds)


def run(trained: int, frozen: bool, seed: int, steps: int = STEPS) -> dict[str, Any]:
    """Train one model and measure it; one entry of the result file.

    With ``frozen`` it learns without the hands that do not come round in its window.
    """
    seed_everything(seed)
    model = LanguageModel(**MODEL, encoding="rope")
    if frozen:
        set_hands(model, longest=trained)
    text = python_text(TRAIN_MODULES)
    batches = text_batches(text, BYTES // trained, trained, seed)
    fit(model, batches, steps, LR, label=None)
    result = {
        "trained_length": trained,
        "slow_hands_frozen": frozen,
        "seed": seed,
        "bits": {"as it is": bits(model)},
        **writing(model),
    }
    if not frozen:
        result["bits"]["window"] = bits(Windowed(model, trained))
        for name, longest in (("slow", trained), ("slowest", 8 * trained)):
            set_hands(model, longest)
            result["bits"][f"{name} hands frozen"] = bits(model)
    return result


def bits(model: nn.Module) -> list[float]:
    """Bits per byte on unseen text, each the mean of ``BIN`` positions."""
    held_out = text_windows(python_text(TEST_MODULES), MEASURED)
    each = bits_by_position(model, held_out)
    return rounded(each.unflatten(0, (-1, BIN)).mean(1))


def writing(model: LanguageModel) -> dict[str, Any]:
    """What it writes on from prompts of each length, and how much of it is known."""
    text = python_text(TRAIN_MODULES).tolist()
    known = set(zip(*(text[i:] for i in range(4)), strict=False))
    samples, shares = {}, {}
    for length in PROMPTS:
        prompts = text_windows(python_text(TEST_MODULES), length)[0][:32]
        written = generate(model, prompts, WRITTEN)[:, length:]
        fours = [tuple(four) for four in written.unfold(1, 4, 1).flatten(0, 1).tolist()]
        shares[length] = round(sum(four in known for four in fours) / len(fours), 4)
        samples[length] = [
            [bytes(row.tolist()).decode("latin-1") for row in pair]
            for pair in zip(prompts[:4, -32:], written[:4], strict=True)
        ]
    return {"known": shares, "samples": samples}


def main() -> None:
    settings = {
        "model": MODEL,
        "steps": STEPS,
        "bytes_in_a_batch": BYTES,
        "lr": LR,
        "seeds": SEEDS,
        "measured_length": MEASURED,
        "positions_in_a_bin": BIN,
        "prompts": PROMPTS,
        "written": WRITTEN,
    }
    write("cliff", settings, run_all(run, CASES))


if __name__ == "__main__":
    main()
