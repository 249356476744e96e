"""The small real model at four times its length: each rule as it is, and fine-tuned.

It learned windows of 512 tokens. Each rule slows its hands for 2,048. Measured are bits
per byte of Python it never saw, by place, in windows of 512 and 2,048, and how many
hidden constants it finds, by depth; before and after a short fine-tune on windows of
2,048, half of which hide a constant too. The rate is chosen for each rule by
validation, and three seeds follow. Minutes on one GPU, with the packages that
benchmarks/small_model.py reads:

    python benchmarks/small_model_longer.py --workers 5
"""

import argparse
import json
import math
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import processor, save
from small_model import HELD_OUT, flat, permissive, read_packages

from rope_teach.course.models import LanguageModel
from rope_teach.course.needles import found, needles
from rope_teach.course.small import CodeTokens, bits_per_byte, load_small
from rope_teach.course.tasks import END, python_text
from rope_teach.course.training import RESULTS
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
STREAM = Path(tempfile.gettempdir(), "small_model_stream.pt")
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
    losses = []
    for part in rows.split(8):
        with torch.autocast(part.device.type, torch.bfloat16):
            logits = model(part[:, :-1])
        losses.append(
            F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten())
        )
    return float(torch.stack(losses).mean())


def windows(stream: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(stream) - LONGER - 1, (count,), generator=generator)
    return stream[first[:, None] + torch.arange(LONGER + 1)].long()


def measure(
    model: LanguageModel, tokens: CodeTokens, name: str, factors: Sequence[float]
) -> dict[str, Any]:
    """Bits by place and constants found, in short and long windows of unseen text."""
    text = bytes(python_text(HELD_OUT).tolist()).decode()
    result: dict[str, Any] = {"bits": {}, "found": {}}
    for length in (TRAINED, LONGER):
        there = under(model, rule_of(name, length, factors))
        by_place = bits_per_byte(there, tokens, text, length)
        means = by_place.unflatten(0, (-1, BIN)).mean(1)
        result["bits"][length] = [round(x, 4) for x in means.tolist()]
        result["found"][length] = [
            round(found(there, *needles(tokens, text, length, depth, 48)), 4)
            for depth in DEPTHS
        ]
    return result


def run(name: str, lr: float, seed: int, device: str, whole: bool) -> dict[str, Any]:
    """Fine-tune under one rule; its validation loss, and all figures if ``whole``."""
    started = time.monotonic()
    torch.manual_seed(seed)
    model, tokens = load_small()
    stream = torch.load(STREAM)
    model.to(device)
    factors: list[float] = []
    if name == "LongRoPE":
        factors = search(
            model, windows(stream["train"], 32, 1000 + seed).to(device), seed
        )
    result: dict[str, Any] = {"rule": name, "lr": lr, "seed": seed, "factors": factors}
    if whole:
        result["as it is"] = measure(model, tokens, name, factors)
    tuned = under(model, rule_of(name, LONGER, factors)).train()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=lr, betas=(0.9, 0.95))
    count = STEPS * ROWS // 2
    both = (
        windows(stream["train"], count, seed),
        needles(tokens, stream["train"], LONGER + 1, None, count, seed)[0],
    )
    rows = torch.stack(both, dim=1).flatten(0, 1).to(device).split(ROWS)
    for step, part in enumerate(rows):
        for group in optimizer.param_groups:
            done = 0.5 + 0.5 * math.cos(math.pi * step / STEPS)
            group["lr"] = lr * min(1, (step + 1) / 20) * done
        with torch.autocast(part.device.type, torch.bfloat16):
            logits = tuned(part[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
    held = windows(stream["validation"], 64, 0).to(device)
    result["validation"] = round(loss_of(tuned.eval(), held), 4)
    if whole:
        result["tuned"] = measure(tuned, tokens, name, factors)
    print(name, lr, seed, result["validation"], f"{time.monotonic() - started:.0f} s",
          flush=True)  # fmt: skip
    return result


def read_stream(most: int | None) -> None:
    """Tokens of the packages that the model learned from, and some put aside."""
    texts, _ = read_packages(permissive())
    _, tokens = load_small()
    rows = [
        [*e.ids, END] for e in tokens.tokenizer.encode_batch(sorted(texts)[::4][:most])
    ]
    cut = len(rows) * 19 // 20
    torch.save({"train": flat(rows[:cut]), "validation": flat(rows[cut:])}, STREAM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--most", type=int)
    parser.add_argument(
        "--result", type=Path, default=RESULTS / "small_model_longer.json"
    )
    given = parser.parse_args()
    started = time.monotonic()
    read_stream(given.most)
    print(f"{time.monotonic() - started:.0f} s to read", flush=True)
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        tried = pool.starmap(
            run, [(r, lr, 0, given.device, False) for r in RULES for lr in RATES], 1
        )
        best = {
            rule: min(
                (t for t in tried if t["rule"] == rule), key=lambda t: t["validation"]
            )
            for rule in RULES
        }
        jobs = [(r, best[r]["lr"], s, given.device, True) for s in SEEDS for r in RULES]
        runs = pool.starmap(run, jobs, 1)
    where = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    facts = {
        "command": f"python benchmarks/small_model_longer.py --workers {given.workers}",
        "date": date.today().isoformat(),
        "machine": f"{where}, {processor()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": {"trained_length": TRAINED, "longer": LONGER, "steps": STEPS,
                     "rows": ROWS, "seeds": SEEDS, "depths": DEPTHS, "search": SEARCH,
                     "positions_in_a_bin": BIN, "held_out": HELD_OUT},
        "seconds": round(time.monotonic() - started),
        "rates_tried": {r: {t["lr"]: t["validation"] for t in tried if t["rule"] == r}
                        for r in RULES},
    }  # fmt: skip
    save(given.result, facts, runs)
    print(f"{time.monotonic() - started:.0f} s in all")
    for r in runs:
        for when in ("as it is", "tuned"):
            means = {n: sum(b) / len(b) for n, b in r[when]["bits"].items()}
            print(r["rule"], r["seed"], when, json.dumps(means), r[when]["found"])


if __name__ == "__main__":
    main()
