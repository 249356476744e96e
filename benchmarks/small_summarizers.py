"""Functions summarized: encoder-decoders with each encoding, and a decoder alone.

All learn from scratch to write the first sentence of a function's docstring, from the
functions that benchmarks/small_model.py reads, with its tokenizer; all are measured on
the standard library's test functions, which none of them saw. The rate is chosen for
each condition by validation; three more seeds follow. Minutes on one GPU:

    python benchmarks/small_summarizers.py --workers 5
"""

import argparse
import math
import multiprocessing
import platform
import random
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import processor, save
from small_model import in_batches, permissive, read_packages, without_copies

from rope_teach.course import functions as tasks
from rope_teach.course.models import LanguageModel, Summarizer, summarize
from rope_teach.course.small import DOC, CodeTokens, load_small, summary_prompt
from rope_teach.course.tasks import END, IGNORE, PAD, START, padded
from rope_teach.course.training import RESULTS, rouge_l

SIZES = {"vocab": 4096, "dim": 256, "heads": 8}
CONDITIONS: dict[str, dict[str, Any]] = {
    "encoder-decoder, RoPE": {"layers": 3, "encoding": "rope"},
    "encoder-decoder, sinusoidal": {"layers": 3, "encoding": "sinusoidal"},
    "encoder-decoder, none": {"layers": 3, "encoding": "none"},
    "decoder only, RoPE": {"layers": 6, "encoding": "rope"},
}
STEPS, BATCH, LONGEST = 1000, 64, 320  # tokens of a code
RATES, SEEDS = (5e-4, 1e-3, 2e-3), (1, 2, 3)
PAIRS = Path(tempfile.gettempdir(), "small_summarizers.pt")

Pair = tuple[list[int], list[int]]  # tokens of a code and of its summary


def model_of(condition: str) -> LanguageModel | Summarizer:
    kind = LanguageModel if condition.startswith("decoder") else Summarizer
    return kind(**SIZES, **CONDITIONS[condition])


def loss_of(
    model: LanguageModel | Summarizer, pairs: list[Pair], device: str
) -> torch.Tensor:
    """Cross-entropy of the summaries alone, whichever the model."""
    with torch.autocast(device, torch.bfloat16):
        if isinstance(model, Summarizer):
            given = padded([[START, *summary] for _, summary in pairs])
            targets = padded([[*summary, END] for _, summary in pairs], IGNORE)
            document = padded([code for code, _ in pairs])
            logits = model(document.to(device), given.to(device))
        else:
            rows = [[*code, DOC, *summary, END] for code, summary in pairs]
            answers = [[IGNORE] * len(code) + [*s, END] for code, s in pairs]
            targets = padded(answers, IGNORE)
            logits = model(padded([row[:-1] for row in rows]).to(device))
    return F.cross_entropy(
        logits.float().flatten(0, 1), targets.to(device).flatten(), ignore_index=IGNORE
    )


def run(
    condition: str, lr: float, seed: int, device: str, steps: int
) -> dict[str, Any]:
    """Train one model; its validation loss and, for the seeds that count, ROUGE-L."""
    started = time.monotonic()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    pairs = torch.load(PAIRS)
    model = model_of(condition).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimizer.param_groups:
            done = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            group["lr"] = lr * min(1, (step + 1) / 100) * done
        loss = loss_of(model, rng.sample(pairs["train"], BATCH), device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        held = pairs["validation"]
        parts = [held[n : n + BATCH] for n in range(0, len(held), BATCH)]
        losses = [float(loss_of(model, part, device)) for part in parts]
    result = {
        "condition": condition, "lr": lr, "seed": seed, "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": round(sum(losses) / len(losses), 4),
    }  # fmt: skip
    if seed in SEEDS:
        result |= written(model, device)
    print(condition, lr, seed, result["validation"], result.get("rouge_l"),
          f"{time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
    return result


def written(model: LanguageModel | Summarizer, device: str) -> dict[str, Any]:
    """ROUGE-L on the standard library's test functions, and some summaries."""
    _, tokens = load_small()
    known = [
        f for f in tasks.functions("test") if len(tokens.encode(f.code)) <= LONGEST
    ]
    if isinstance(model, Summarizer):
        texts = []
        for n in range(0, len(known), BATCH):
            rows = [tokens.encode(f.code) for f in known[n : n + BATCH]]
            out = summarize(model, padded(rows).to(device), steps=40)
            texts += [tokens.decode(row) for row in out.tolist()]
    else:
        prompts = [summary_prompt(tokens, f.code) for f in known]
        texts = in_batches(model, tokens, prompts, 40)
    scores = [rouge_l(t, f.summary) for t, f in zip(texts, known, strict=True)]
    some = [
        {"name": f.name, "written": t, "docstring": f.summary}
        for f, t in list(zip(known, texts, strict=True))[::20]
    ]
    return {
        "functions": len(known),
        "rouge_l": round(sum(scores) / len(scores), 4),
        "examples": some,
    }


def read_pairs(most: int | None) -> None:
    """Functions of the installed packages, in tokens; some put aside to validate."""
    texts, _ = read_packages(permissive())
    texts = sorted(texts)
    random.Random(0).shuffle(texts)
    _, known, _ = without_copies(texts[:most])
    tokens: CodeTokens = load_small()[1]
    code = tokens.tokenizer.encode_batch([f.code for f, _ in known])
    said = tokens.tokenizer.encode_batch([f.summary for f, _ in known])
    both = zip(code, said, strict=True)
    pairs = [(c.ids, s.ids) for c, s in both if len(c.ids) <= LONGEST]
    assert PAD not in pairs[0][0]
    torch.save({"train": pairs[512:], "validation": pairs[:512]}, PAIRS)
    print(len(pairs), "pairs", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--most", type=int)
    parser.add_argument(
        "--result", type=Path, default=RESULTS / "small_summarizers.json"
    )
    given = parser.parse_args()
    started = time.monotonic()
    read_pairs(given.most)
    few = given.steps // 2
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        tried = pool.starmap(
            run, [(c, lr, 0, given.device, few) for c in CONDITIONS for lr in RATES], 1
        )
        best = {
            name: min(
                (t for t in tried if t["condition"] == name),
                key=lambda t: t["validation"],
            )["lr"]
            for name in CONDITIONS
        }
        jobs = [
            (c, best[c], s, given.device, given.steps)
            for s in SEEDS
            for c in CONDITIONS
        ]
        runs = pool.starmap(run, jobs, 1)
    where = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    facts = {
        "command": f"python benchmarks/small_summarizers.py --workers {given.workers}",
        "date": date.today().isoformat(),
        "machine": f"{where}, {processor()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": {**SIZES, "conditions": CONDITIONS, "steps": given.steps,
                     "batch": BATCH, "seeds": SEEDS, "longest_code": LONGEST},
        "seconds": round(time.monotonic() - started),
        "rates_tried": {c: {t["lr"]: t["validation"] for t in tried
                            if t["condition"] == c} for c in CONDITIONS},
    }  # fmt: skip
    save(given.result, facts, runs)
    print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
