"""Functions summarized: encoder-decoders with each encoding, and a decoder alone.

All learn from scratch to write the first sentence of a function's docstring, from the
functions that benchmarks/small_model.py reads, with its tokenizer; all are measured on
the standard library's test functions, which none of them saw. The rate is chosen for
each condition by validation; three more seeds follow. Minutes on one GPU:

    python benchmarks/small_summarizers.py --workers 5
"""

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from common import TUNING_SEED, Run, Workers, descend, options, tuned, write
from small_model import in_batches, permissive, read_packages, without_copies

from rope_teach.course import functions as tasks
from rope_teach.course.models import LanguageModel, Summarizer, summarize
from rope_teach.course.small import DOC, CodeTokens, load_small, summary_prompt
from rope_teach.course.tasks import END, IGNORE, PAD, START, padded
from rope_teach.course.training import rouge_l

SIZES = {"vocab": 4096, "dim": 256, "heads": 8}
CONDITIONS: dict[str, dict[str, Any]] = {
    "encoder-decoder, RoPE": {"layers": 3, "encoding": "rope"},
    "encoder-decoder, sinusoidal": {"layers": 3, "encoding": "sinusoidal"},
    "encoder-decoder, none": {"layers": 3, "encoding": "none"},
    "decoder only, RoPE": {"layers": 6, "encoding": "rope"},
}
STEPS, BATCH, LONGEST = 800, 64, 320  # tokens of a code
RATES, SEEDS = (5e-4, 1e-3, 2e-3), (1, 2, 3)

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
    condition: str,
    lr: float,
    seed: int,
    pairs: Path,
    device: str,
    steps: int = STEPS,
    batch: int = BATCH,
    most: int | None = None,
) -> Run:
    """Train one model; its validation loss and, for the seeds that count, ROUGE-L.

    The trainings that choose a rate take half the steps.
    """
    steps = steps // 2 if seed == TUNING_SEED else steps
    torch.manual_seed(seed)
    rng = random.Random(seed)
    known = torch.load(pairs)
    model = model_of(condition).to(device)

    def loss_at(step: int) -> torch.Tensor:
        return loss_of(model, rng.sample(known["train"], batch), device)

    for _ in descend(model, loss_at, steps, lr, warm_up=100):
        pass
    model.eval()
    with torch.no_grad():
        held = known["validation"][:most]
        parts = [held[n : n + BATCH] for n in range(0, len(held), BATCH)]
        losses = [float(loss_of(model, part, device)) for part in parts]
    return {
        "condition": condition,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": round(sum(losses) / len(losses), 4),
        **({} if seed == TUNING_SEED else written(model, device, most)),
    }


def written(
    model: LanguageModel | Summarizer, device: str, most: int | None
) -> dict[str, Any]:
    """ROUGE-L on the standard library's test functions, and some summaries."""
    _, tokens = load_small()
    known = [
        f for f in tasks.functions("test") if len(tokens.encode(f.code)) <= LONGEST
    ][:most]
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


def read_pairs(path: Path, most: int | None) -> None:
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
    torch.save({"train": pairs[512:], "validation": pairs[:512]}, path)
    print(len(pairs), "pairs", flush=True)


def main() -> None:
    asked = options(device="cuda")
    conditions, rates, seeds, steps = [*CONDITIONS], RATES, SEEDS, STEPS
    if asked.quick:
        conditions, rates, seeds, steps = conditions[::3], RATES[:1], SEEDS[:1], 4
    with TemporaryDirectory() as folder, Workers(asked.workers) as workers:
        pairs = Path(folder, "pairs.pt")
        read_pairs(pairs, 600 if asked.quick else None)
        given = {"pairs": pairs, "device": asked.device, "steps": steps}
        given |= {"batch": 4, "most": 4} if asked.quick else {}
        each = [(condition,) for condition in conditions]
        tried, runs, _ = tuned(workers, run, each, rates, seeds, **given)()
    settings = {
        **SIZES,
        "conditions": CONDITIONS,
        "steps": STEPS,
        "batch": BATCH,
        "seeds": SEEDS,
        "longest_code": LONGEST,
    }
    if not asked.quick:
        write("small_summarizers", settings, runs, asked.device, rates_tried=tried)
    for result in runs:
        print(*(result[k] for k in ("condition", "lr", "seed", "rouge_l")))


if __name__ == "__main__":
    main()
