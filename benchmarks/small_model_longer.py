"""The small real model at four times its length: each rule as it is, and fine-tuned.

It learned windows of 512 tokens. Each rule slows its hands for 2,048. Measured are bits
per byte of Python it never saw, by place, in windows of 512 and 2,048, and how many
hidden constants it finds, by depth; before and after a short fine-tune on windows of
2,048, half of which hide a constant too. The rate is chosen for each rule by
validation, and three seeds follow. Minutes on one GPU, with the packages that
benchmarks/small_model.py reads:

    python benchmarks/small_model_longer.py --workers 5
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import TUNING_SEED, Run, Workers, descend, options, tuned, write
from small_model import (
    HELD_OUT,
    flat,
    next_token_loss,
    permissive,
    read_packages,
)

from rope_teach.course.models import LanguageModel
from rope_teach.course.needles import found, needles
from rope_teach.course.small import CodeTokens, bits_per_byte, load_small
from rope_teach.course.tasks import END, python_text
from rope_teach.frequencies import (
    Scaling,
    dynamic_ntk,
    inverse_frequencies,
    llama3,
    longrope,
    ntk_aware,
    position_interpolation,
    yarn,
)

TRAINED, LONGER, BIN = 512, 2048, 32
DEPTHS = (0.05, 0.35, 0.65, 0.95)
STEPS, ROWS, RATES, SEEDS = 200, 16, (1e-4, 3e-4, 1e-3), (1, 2, 3)
PARTS = {"factor": LONGER / TRAINED, "trained_length": TRAINED}
SEARCH = {"generations": 6, "children": 8}


def rule_of(name: str, length: int, factors: Sequence[float] = ()) -> Scaling | None:
    """A rule by name; ``length`` and ``factors`` are for those that need them."""
    by_length = {"trained_length": TRAINED, "length": length}
    lists = {"short_factors": [1.0] * len(factors), "long_factors": list(factors)}
    rules: dict[str, Scaling | None] = {
        "no rule": None,
        "PI": partial(position_interpolation, factor=PARTS["factor"]),
        "NTK": partial(ntk_aware, factor=PARTS["factor"]),
        "dynamic NTK": partial(dynamic_ntk, factor=1, **by_length),
        "YaRN": partial(yarn, **PARTS),
        "Llama 3": partial(llama3, **PARTS),
        "LongRoPE": partial(longrope, **lists, **by_length),
    }
    return rules[name]


RULES = ("no rule", "PI", "NTK", "dynamic NTK", "YaRN", "Llama 3", "LongRoPE")


def under(model: LanguageModel, rule: Scaling | None) -> LanguageModel:
    """The same weights, and its hands turned by a rule."""
    config = {**model.config, "scaling": rule}
    other = LanguageModel(**config).to(model.embed.weight.device)
    other.load_state_dict(model.state_dict())
    return other.eval()


def search(model: LanguageModel, trial: torch.Tensor, seed: int) -> list[float]:
    """LongRoPE's factors: other rules are parents, the loss on long windows decides.

    No factor is smaller than that of a faster hand (Ding et al., 2402.13753). The
    windows are from the training text.
    """
    generator = torch.Generator().manual_seed(seed)
    bank = model.blocks[0].attention.head_dim, model.config["base"]
    plain = inverse_frequencies(*bank)

    def scored(factors: torch.Tensor) -> tuple[float, list[float]]:
        rule = rule_of("LongRoPE", LONGER, factors.tolist())
        return loss_of(under(model, rule), trial), factors.tolist()

    parents = ("PI", "NTK", "YaRN")
    best = [scored(plain / rule_of(name, LONGER)(*bank)[0]) for name in parents]
    for _ in range(SEARCH["generations"]):
        for n in range(SEARCH["children"]):
            noise = 0.2 * torch.randn(len(plain), generator=generator)
            child = torch.tensor(best[n % 3][1]) * noise.exp()
            best.append(scored(child.clamp(1, PARTS["factor"]).sort().values))
        best = sorted(best)[:3]
    return [round(factor, 4) for factor in best[0][1]]


@torch.no_grad()
def loss_of(model: LanguageModel, rows: torch.Tensor) -> float:
    return float(torch.stack([next_token_loss(model, r) for r in rows.split(8)]).mean())


def windows(stream: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(stream) - LONGER - 1, (count,), generator=generator)
    return stream[first[:, None] + torch.arange(LONGER + 1)].long()


def measure(
    model: LanguageModel,
    tokens: CodeTokens,
    name: str,
    factors: Sequence[float],
    quick: bool,
) -> dict[str, Any]:
    """Bits by place and constants found, in short and long windows of unseen text."""
    text = bytes(python_text(HELD_OUT)[: 12_000 if quick else None].tolist()).decode()
    result: dict[str, Any] = {"bits": {}, "found": {}}
    for length in (TRAINED, LONGER):
        there = under(model, rule_of(name, length, factors))
        by_place = bits_per_byte(there, tokens, text, length)
        means = by_place.unflatten(0, (-1, BIN)).mean(1)
        result["bits"][length] = [round(x, 4) for x in means.tolist()]
        result["found"][length] = [
            round(
                found(there, *needles(tokens, text, length, depth, 1 if quick else 48)),
                4,
            )
            for depth in DEPTHS
        ]
    return result


def run(
    name: str,
    lr: float,
    seed: int,
    stream: Path,
    device: str,
    steps: int = STEPS,
    quick: bool = False,
) -> Run:
    """Fine-tune under one rule; measure all of it, if its seed counts."""
    torch.manual_seed(seed)
    model, tokens = load_small()
    texts = torch.load(stream)
    model.to(device)
    factors: list[float] = []
    if name == "LongRoPE":
        trial = windows(texts["train"], 32, 1000 + seed).to(device)
        factors = search(model, trial, seed)
    result: Run = {"rule": name, "lr": lr, "seed": seed, "factors": factors}
    whole = seed != TUNING_SEED
    if whole:
        result["as it is"] = measure(model, tokens, name, factors, quick)
    taught = under(model, rule_of(name, LONGER, factors)).train()
    rows_at_once = 2 if quick else ROWS
    count = steps * rows_at_once // 2
    both = (
        windows(texts["train"], count, seed),
        needles(tokens, texts["train"], LONGER + 1, None, count, seed)[0],
    )
    rows = torch.stack(both, dim=1).flatten(0, 1).to(device).split(rows_at_once)

    def loss_at(step: int) -> torch.Tensor:
        return next_token_loss(taught, rows[step])

    for _ in descend(taught, loss_at, steps, lr, warm_up=20):
        pass
    held = windows(texts["validation"], 2 if quick else 64, 0).to(device)
    result["validation"] = round(loss_of(taught.eval(), held), 4)
    if whole:
        result["tuned"] = measure(taught, tokens, name, factors, quick)
    return result


def read_stream(path: Path, share: int) -> None:
    """Tokens of one in ``share`` files that the model learned from; some put aside."""
    texts, _ = read_packages(permissive())
    _, tokens = load_small()
    encoded = tokens.tokenizer.encode_batch(sorted(texts)[::share])
    rows = [[*each.ids, END] for each in encoded]
    cut = len(rows) * 19 // 20
    torch.save({"train": flat(rows[:cut]), "validation": flat(rows[cut:])}, path)


def table(runs: list[Run]) -> None:
    """Print mean bits per byte and the share of constants found, by length."""
    for run in runs:
        for when in ("as it is", "tuned"):
            means = [
                f"{n}: {sum(b) / len(b):.3f}" for n, b in run[when]["bits"].items()
            ]
            print(run["rule"], run["seed"], when, *means, run[when]["found"])


def main() -> None:
    asked = options(device="cuda")
    rules, rates, seeds, steps, share = RULES, RATES, SEEDS, STEPS, 4
    if asked.quick:
        rules, rates, seeds, steps, share = RULES[:1], RATES[:1], SEEDS[:1], 2, 80
    with TemporaryDirectory() as folder, Workers(asked.workers) as workers:
        stream = Path(folder, "stream.pt")
        read_stream(stream, share)
        given = {
            "stream": stream,
            "device": asked.device,
            "steps": steps,
            "quick": asked.quick,
        }
        conditions = [(rule,) for rule in rules]
        tried, runs, _ = tuned(workers, run, conditions, rates, seeds, **given)()
    settings = {
        "trained_length": TRAINED,
        "longer": LONGER,
        "steps": STEPS,
        "rows": ROWS,
        "seeds": SEEDS,
        "depths": DEPTHS,
        "search": SEARCH,
        "positions_in_a_bin": BIN,
        "held_out": HELD_OUT,
    }
    if not asked.quick:
        write("small_model_longer", settings, runs, asked.device, rates_tried=tried)
    table(runs)


if __name__ == "__main__":
    main()
