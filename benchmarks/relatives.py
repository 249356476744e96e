"""RoPE's relatives, all in one model: loss and accuracy far past the trained length.

Each is the same model of four layers with the same first weights, batches and steps.
Only the clocks differ: fading ones (xPos), fewer (partial rotary), some that stand
still (p-RoPE), layers without any, and none at all. Layers without are tried with full
attention everywhere, and as their papers build them: the layers that turn are local,
and some see everything without position. Local layers with clocks in the global ones,
and local layers alone, tell what is due to which.

Three tasks, trained in rows of 64: Python source; "which token stood 5 places ago?";
and "which of ten marks stood in this row?", which content answers, at any distance.
All are measured up to position 511, as they are and with the blockwise attention that
xPos's paper uses. Each relative has the best of three rates. Lesson 16 reads the
result; a test repeats a part. About 80 minutes of one core, or a few on a GPU:

    python benchmarks/relatives.py --device cuda --workers 6
"""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
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
from torch import Tensor, nn

from rope_teach import RotaryEmbedding
from rope_teach.attention import Attention
from rope_teach.course.masks import blockwise_mask, window_mask
from rope_teach.course.models import LanguageModel
from rope_teach.course.tasks import (
    IGNORE,
    TEST_MODULES,
    Batch,
    copy_batches,
    python_text,
    text_batches,
    text_windows,
)
from rope_teach.course.training import (
    bits_by_position,
    fit,
    loss_of,
    seed_everything,
)
from rope_teach.frequencies import proportional

TRAINED, MEASURED, BIN = 64, 512, 8
WINDOW = TRAINED // 2  # of a local layer: four of them reach 124 tokens back
BATCH, BACK, VOCAB = 16, 5, 10
RATES, SEEDS = (3e-3, 1e-2, 3e-2), (1, 2, 3)
STEPS = {"text": 600, "mark": 200, "5 back": 200}
BUDGETS = (150,)
MODELS = {
    "text": {"vocab": 256, "dim": 64, "layers": 4, "heads": 4},
    "mark": {"vocab": 2 * VOCAB, "dim": 32, "layers": 4, "heads": 2},
    "5 back": {"vocab": VOCAB, "dim": 32, "layers": 4, "heads": 2},
}
HEAD_DIM = 16  # of all
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
    "local": {"global_every": 5},  # no layer is
    "local, every 4th global": {"global_every": 4},
    "local, every 2nd global": {"global_every": 2},
    "local, every 4th global without": {"global_every": 4, "without_every": 4},
    "local, every 2nd global without": {"global_every": 2, "without_every": 2},
    "ALiBi": {"encoding": "alibi"},
}
CONDITIONS = [*itertools.product(STEPS, RELATIVES)]


class Local(Attention):
    """Attention to the newest ``WINDOW`` tokens alone."""

    def forward(self, x: Tensor, mask: Tensor | None = None, **given: Any) -> Tensor:
        return super().forward(x, near(x, mask), **given)

    def weights(self, x: Tensor, mask: Tensor | None = None, **given: Any) -> Tensor:
        return super().weights(x, near(x, mask), **given)


def near(x: Tensor, mask: Tensor | None) -> Tensor:
    window = window_mask(x.shape[1], WINDOW).to(x.device)
    return window if mask is None else window & mask


def build(task: str, relative: str) -> LanguageModel:
    """The model of ``task`` with the clocks of ``relative``; they have no weights."""
    changed = dict(RELATIVES[relative])
    model = LanguageModel(**MODELS[task], encoding=changed.pop("encoding", "rope"))
    dim, heads = MODELS[task]["dim"], MODELS[task]["heads"]
    without_every = changed.pop("without_every", None)
    global_every = changed.pop("global_every", 1)
    if "fraction" in changed:
        changed["scaling"] = partial(proportional, fraction=changed.pop("fraction"))
    for number, block in enumerate(model.blocks, start=1):
        if number % global_every:
            weights = block.attention.state_dict()
            block.attention = Local(dim, heads, encoding="rope")
            block.attention.load_state_dict(weights)
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
        mask = blockwise_mask(tokens.shape[1], TRAINED // 2).to(tokens.device)
        logits: Tensor = self.model(tokens, mask)
        return logits


def mark_batches(batch: int, seq: int, seed: int) -> Iterator[Batch]:
    """Endless batches of "which mark stood in this row?".

    One of ten marks stands somewhere in the first ``TRAINED`` tokens of each row. The
    targets are that mark, wherever it is in the past.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        tokens = torch.randint(VOCAB, (batch, seq), generator=generator)
        place = torch.randint(TRAINED - 1, (batch, 1), generator=generator)
        mark = torch.randint(VOCAB, 2 * VOCAB, (batch, 1), generator=generator)
        tokens.scatter_(1, place, mark)
        yield tokens, torch.where(torch.arange(seq) > place, mark, IGNORE)


def toy_batches(task: str, batch: int, seq: int, seed: int) -> Iterator[Batch]:
    if task == "mark":
        return mark_batches(batch, seq, seed)
    return copy_batches(BACK, batch, seq, VOCAB, seed)


def run(
    task: str,
    relative: str,
    lr: float,
    seed: int,
    steps: int | None = None,
    device: str = "cpu",
) -> Run:
    """Train one model and measure it; one entry of the result file."""
    seed_everything(seed)
    model = build(task, relative)
    if task == "text":
        text, validation = text_and_validation()
        batches = text_batches(text, BATCH, TRAINED, seed)
        unseen = text_windows(validation, TRAINED)
    else:
        batches = toy_batches(task, BATCH, TRAINED, seed)
        unseen = next(toy_batches(task, 200, TRAINED, 1000))
    losses = fit(model, batches, steps or STEPS[task], lr, label=None, device=device)
    with torch.no_grad():
        validation_loss = loss_of(model, moved(unseen, device)).item()
    return {
        "task": task,
        "relative": relative,
        "lr": lr,
        "seed": seed,
        "steps": len(losses),
        "validation": round(validation_loss, 4),
        "loss_while_training": in_parts(losses),
        **(text_results(model, device) if task == "text" else {}),
        **({} if task == "text" else toy_results(task, model, device)),
    }


def text_results(model: LanguageModel, device: str) -> Run:
    """Bits by position; whether the past is read; and how much weight it gets."""

    def measure(windows: Batch, how: nn.Module = model) -> Tensor:
        return bits_by_position(how, moved(windows, device)).cpu()

    test = python_text(TEST_MODULES)
    bits, other = reading(measure, test, MEASURED // 2)
    near, near_other = reading(measure, test, TRAINED // 2)
    held_out = text_windows(test, MEASURED)
    return {
        "bits": {
            "as it is": rounded(in_bins(bits)),
            "blockwise": rounded(in_bins(measure(held_out, Blockwise(model)))),
        },
        "near": mean_from(48, near),
        "near_with_another_past": mean_from(48, near_other),
        "late": mean_from(384, bits),
        "late_with_another_past": mean_from(384, other),
        "far_weight": far_weight(model, held_out[0][:8].to(device)),
    }


@torch.no_grad()
def far_weight(model: LanguageModel, tokens: Tensor) -> list[list[float]]:
    """What the last query gives to keys ``TRAINED`` or more back, by layer and head."""
    x, far = model.embed(tokens), []
    for block in model.blocks:
        weights = block.attention.weights(block.attention_norm(x))[:, :, -1]
        far.append(rounded(weights[..., :-TRAINED].sum(-1).mean(0)))
        x = block(x)
    return far


@torch.no_grad()
def toy_results(task: str, model: LanguageModel, device: str) -> Run:
    """Share of right answers in each bin but the first, which has places without."""
    tokens, targets = moved(next(toy_batches(task, 100, MEASURED, 2000)), device)
    asked = in_bins((targets != IGNORE).double().sum(0))
    right = {}
    for how, each in {"as it is": model, "blockwise": Blockwise(model)}.items():
        hit = in_bins((each(tokens).argmax(-1) == targets).double().sum(0))
        right[how] = rounded((hit / asked)[1:])
    return {"right": right}


def in_bins(x: Tensor) -> Tensor:
    """The mean of each ``BIN`` positions."""
    return x.unflatten(0, (-1, BIN)).mean(1)


def table(runs: list[Run]) -> None:
    """Print what lesson 16 asks, one line a training."""
    for run in runs:
        text = run["task"] == "text"
        each = run["bits"]["as it is"] if text else [0.0, *run["right"]["as it is"]]
        spans = each[1:8], each[8:16], each[16:32], each[32:]
        means = " ".join(f"{sum(span) / len(span):6.2f}" for span in spans)
        read = [
            f"{run[f'{where}_with_another_past'] - run[where]:+.3f}"
            for where in ("near", "late")
            if text
        ]
        name = f"{run['task']:6} {run['relative']:31} {run['lr']:<6} {run['seed']}"
        print(name, means, *read)


def main() -> None:
    asked = options()
    conditions = CONDITIONS[13::16] if asked.quick else CONDITIONS
    with Workers(asked.workers) as workers:
        given = {"device": asked.device, "steps": 20 if asked.quick else None}
        plan = few(asked, RATES, SEEDS, BUDGETS)
        tried, runs, shorter = tuned(workers, run, conditions, *plan, **given)()
    settings = {
        "models": MODELS,
        "relatives": RELATIVES,
        "window": WINDOW,
        "steps": STEPS,
        "budgets": BUDGETS,
        "batch": BATCH,
        "rates": RATES,
        "tuning_seed": TUNING_SEED,
        "seeds": SEEDS,
        "trained_length": TRAINED,
        "measured_length": MEASURED,
        "positions_in_a_bin": BIN,
        "block": TRAINED // 2,
    }
    if not asked.quick:
        facts = {"rates_tried": tried, "shorter_runs": shorter}
        write("relatives", settings, runs, asked.device, **facts)
    table(runs)


if __name__ == "__main__":
    main()
