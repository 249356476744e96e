"""Pictures of other sizes: which encodings still find "2 below, 1 to the right"?

A model learns the question on pictures of 6 x 6 cells and is asked it on larger ones.
The rotations differ in three things, in every combination: whether a hand listens to
one axis or to both, the base, and whether the frequencies learn. Lesson 17 reads the
result; a test repeats some runs. About ten minutes of one core:

    python benchmarks/images.py --jobs 2
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from common import run_all, write
from torch import Tensor

from rope_teach import RotaryEmbedding, inverse_frequencies
from rope_teach.axes import (
    axial_frequencies,
    grid_positions,
    mixed_frequencies,
    pixel_frequencies,
    pixel_positions,
)
from rope_teach.course.models import LanguageModel, PictureReader
from rope_teach.course.tasks import picture_batches
from rope_teach.course.training import accuracy, fit, seed_everything

TRAINED, MEASURED, PICTURES = 6, (6, 7, 9, 12), 100
STEPS, LR, SEEDS = 200, 1e-2, (0, 1, 2, 3, 4)
LAYERS = (1, 2)
MODEL: dict[str, int] = {"vocab": 8, "dim": 64, "heads": 4}
HEAD_DIM = MODEL["dim"] // MODEL["heads"]
# Encoding, base of its frequencies, whether they learn.
ENCODINGS = [
    ("flat", 10_000.0, False),
    ("table", None, False),
    ("table, stretched", None, False),
    ("pixel", None, False),
    *itertools.product(["axial", "mixed"], [10.0, 100.0], [False, True]),
]
CASES = [
    (*encoding, layers, seed)
    for layers in LAYERS
    for encoding in ENCODINGS
    for seed in SEEDS
]


def run(
    encoding: str, base: float | None, learned: bool, layers: int, seed: int
) -> dict[str, Any]:
    """Train one model and measure it; one entry of the result file."""
    seed_everything(seed)
    model = reader(encoding, base, learned, layers)
    begin = frequencies(model)
    batches = picture_batches(height=TRAINED, width=TRAINED, seed=seed)
    fit(model, batches, STEPS, LR, label=None)
    moved = [
        (now - before).abs().max().item()
        for now, before in zip(frequencies(model), begin, strict=True)
    ]
    return {
        "encoding": encoding,
        "base": base,
        "learned": learned,
        "layers": layers,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "frequencies_moved": round(max(moved, default=0.0), 4),
        "accuracy": [round(measured(model, encoding, size), 4) for size in MEASURED],
    }


def reader(
    encoding: str, base: float | None, learned: bool, layers: int
) -> PictureReader:
    """A model that is not trained yet."""
    table = encoding.startswith("table")
    model = LanguageModel(
        **MODEL,
        layers=layers,
        encoding="learned" if table else "rope",
        max_len=max(MEASURED) ** 2,
        causal=False,
    )
    if table:
        return PictureReader(model, row_of_table)
    for block in model.blocks:
        block.attention.rope = RotaryEmbedding(
            HEAD_DIM, inv_freq=first_frequencies(encoding, base), learned=learned
        )
    return PictureReader(model, PLACES[encoding])


def first_frequencies(encoding: str, base: float | None) -> Tensor:
    if encoding == "flat":
        return inverse_frequencies(HEAD_DIM, base)
    if encoding == "mixed":
        return mixed_frequencies(inverse_frequencies(HEAD_DIM, base))
    if encoding == "pixel":
        return axial_frequencies(*[pixel_frequencies(HEAD_DIM // 2)] * 2)
    return axial_frequencies(*[inverse_frequencies(HEAD_DIM // 2, base)] * 2)


def row_by_row(height: int, width: int) -> Tensor:
    return torch.arange(height * width)


def row_of_table(height: int, width: int) -> Tensor:
    """One row of the table for each cell, the same in pictures of any size."""
    return grid_positions(height, width) @ torch.tensor([max(MEASURED), 1])


PLACES = {
    "flat": row_by_row,
    "pixel": pixel_positions,
    "axial": grid_positions,
    "mixed": grid_positions,
}


def frequencies(model: PictureReader) -> list[Tensor]:
    """The frequencies of each layer, where they learn."""
    return [
        parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if name.endswith("frequencies")
    ]


@torch.no_grad()
def measured(model: PictureReader, encoding: str, size: int) -> float:
    """Share of right answers on pictures of ``size`` rows and columns."""
    pictures = next(picture_batches(batch=PICTURES, height=size, width=size, seed=1000))
    if encoding != "table, stretched":
        return accuracy(model, pictures)
    table = model.model.position.weight
    trained = table.clone()
    table[row_of_table(size, size)] = stretched(trained, size)
    right = accuracy(model, pictures)
    table.copy_(trained)
    return right


def stretched(table: Tensor, size: int) -> Tensor:
    """The trained rows, interpolated to a larger grid: what vision models do."""
    rows = table[row_of_table(TRAINED, TRAINED)].T
    grid = rows.unflatten(1, (TRAINED, TRAINED)).unsqueeze(0)
    return F.interpolate(grid, (size, size), mode="bicubic").flatten(2)[0].T


def main() -> None:
    settings = {
        "model": MODEL,
        "layers": LAYERS,
        "steps": STEPS,
        "lr": LR,
        "seeds": SEEDS,
        "trained_size": TRAINED,
        "measured_sizes": MEASURED,
        "pictures": PICTURES,
    }
    write("images", settings, run_all(run, CASES))


if __name__ == "__main__":
    main()
