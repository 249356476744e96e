"""Train the small real model, measure it, and write rope_teach/course/weights/.

    python benchmarks/small_model.py                 # minutes on one GPU
    python benchmarks/small_model.py --steps 200 --out tiny --device cpu

It learns from the permissively licensed Python packages that are installed beside it,
read from their metadata and listed in the card; never from Python's standard library,
nor from a file that copies a function of it. A batch is a mixture: plain source; a
function, then the first sentence of its docstring; a function, then questions with
their answers. Another machine has other packages and gives other weights: the card says
which were here.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import platform
import random
import time
from collections.abc import Iterable, Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import descend, processor, save
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rope_teach.course import functions as tasks
from rope_teach.course.functions import (
    Function,
    Question,
    functions_in,
    questions_about,
)
from rope_teach.course.models import LanguageModel
from rope_teach.course.small import (
    ANSWER,
    ASK,
    DOC,
    FORMAT,
    SPECIAL,
    WEIGHTS,
    CodeTokens,
    answer_prompt,
    bits_per_byte,
    summary_prompt,
    write,
)
from rope_teach.course.tasks import (
    END,
    TEST_MODULES,
    TRAIN_MODULES,
    python_text,
)
from rope_teach.course.training import RESULTS, exact_match, f1, rouge_l

SIZES = {"vocab": 4096, "dim": 256, "layers": 6, "heads": 8}
SEQ, BATCH, LR = 512, 128, 2e-3
MIXTURE = {"plain": 64, "summaries": 36, "questions": 28}  # rows of a batch
PERMISSIVE = (
    "mit",
    "bsd",
    "apache",
    "isc",
    "python software foundation",
    "psf",
    "0bsd",
)
LEFT_OUT = {"test", "tests", "_vendor", "vendor", "third_party"}  # other licences
HELD_OUT = (*TRAIN_MODULES, *TEST_MODULES)  # the same text in every Python
RESTRICTIVE = ("gpl", "proprietary", "nvidia", "mozilla", "mpl", "cc-by-nc")


def permissive() -> dict[str, metadata.Distribution]:
    """The installed packages whose metadata names a permissive licence, by name."""
    found = {}
    for package in metadata.distributions():
        said = licence(package).lower()
        name = (package.metadata["Name"] or "").lower()
        if any(word in said for word in PERMISSIVE) and not any(
            word in said for word in RESTRICTIVE
        ):
            found[name] = package
    return dict(sorted(found.items()))


def licence(package: metadata.Distribution) -> str:
    """What a package's metadata says of its licence, in a few words."""
    about = package.metadata
    classified = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier") or []
        if line.startswith("License")
    ]
    said = about.get("License-Expression") or ", ".join(classified)
    return said or (about.get("License") or "").split("\n")[0][:60]


def read_packages(
    packages: dict[str, metadata.Distribution],
) -> tuple[list[str], list[dict[str, Any]]]:
    """Every source file of ordinary size, and what each package gave."""
    texts: dict[str, None] = {}
    listed = []
    for name, package in packages.items():
        size = 0
        for path in package.files or []:
            if path.suffix != ".py" or LEFT_OUT & set(path.parts):
                continue
            try:
                text = Path(str(path.locate())).read_text("utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if 500 < len(text) < 200_000 and text not in texts:
                texts[text] = None
                size += len(text)
        if size:
            said = {"licence": licence(package), "bytes": size}
            listed.append({"name": name, "version": package.version, **said})
    return list(texts), listed


Known = tuple[Function, list[Question]]


def learned_from(text: str) -> list[Known]:
    """The documented functions in a file, each with the questions about it."""
    return [(f, list(questions_about(f.code))) for f in functions_in(text)]


def without_copies(texts: list[str]) -> tuple[list[str], list[Known], int]:
    """The files that hold no function of the standard library, and what is in them.

    The last number counts the files left out.
    """
    with multiprocessing.Pool() as pool:
        found = pool.map(learned_from, texts, chunksize=20)
    standard = standard_library()
    own = [not any(plain(f.code) in standard for f, _ in each) for each in found]
    known = {
        f.code: (f, qs) for each in itertools.compress(found, own) for f, qs in each
    }
    return [*itertools.compress(texts, own)], [*known.values()], own.count(False)


def plain(code: str) -> str:
    return "".join(code.split())


def standard_library() -> set[str]:
    """Functions of the standard library that are long enough to be nobody else's."""
    codes = (plain(f.code) for f in tasks.stdlib_functions())
    return {code for code in codes if len(code) > 150}


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab"],
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    some = random.Random(0).sample(texts, min(4000, len(texts)))
    tokenizer.train_from_iterator(some, trainer)
    return tokenizer


def streams(
    texts: list[str], known: list[Known], tokenizer: Tokenizer
) -> dict[str, torch.Tensor]:
    """Three long rows of tokens, one for each part of the mixture."""
    rng = random.Random(0)

    def encoded(rows: Iterable[str]) -> Iterator[list[int]]:
        return (each.ids for each in tokenizer.encode_batch(list(rows)))

    code = list(encoded(f.code for f, _ in known))
    summaries = encoded(f.summary for f, _ in known)
    asked = encoded(
        text for _, qs in known for q in qs for text in (q.question, q.answer)
    )
    questions = []
    for row, (_, qs) in zip(code, known, strict=True):
        both = [[ASK, *next(asked), ANSWER, *next(asked), END] for _ in qs]
        rng.shuffle(both)
        if both:
            questions.append([*row, *(token for each in both for token in each)])
    both = zip(code, summaries, strict=True)
    return {
        "plain": flat([*row, END] for row in encoded(texts)),
        "summaries": flat([*row, DOC, *summary, END] for row, summary in both),
        "questions": flat(questions),
    }


def flat(rows: Iterable[list[int]]) -> torch.Tensor:
    return torch.tensor([t for row in rows for t in row], dtype=torch.int16)


def batch_of(data: dict[str, torch.Tensor], seq: int, rows: int) -> torch.Tensor:
    """About ``rows`` random windows of ``seq + 1`` tokens, in the mixture's shares."""
    whole = sum(MIXTURE.values())
    parts = []
    for name, share in MIXTURE.items():
        stream = data[name]
        first = torch.randint(
            len(stream) - seq - 1, (rows * share // whole,), device=stream.device
        )
        parts.append(
            stream[first[:, None] + torch.arange(seq + 1, device=stream.device)]
        )
    return torch.cat(parts).long()


def train(
    model: LanguageModel,
    data: dict[str, torch.Tensor],
    steps: int,
    *,
    lr: float = LR,
    seq: int = SEQ,
    rows: int = BATCH,
    warm_up: int = 300,
    compiled: bool = True,
    say: int = 2000,
) -> list[float]:
    """In mixed precision; the loss at each mark."""
    device = next(model.parameters()).device
    run = torch.compile(model) if compiled else model
    losses = []
    steps_of = descend(
        model,
        lambda step: next_token_loss(run, batch_of(data, seq, rows)),
        steps,
        lr,
        warm_up,
        weight_decay=0.1,
        fused=device.type == "cuda",
    )
    for step, loss in enumerate(steps_of, start=1):
        if step % say == 0 or step == steps:
            losses.append(round(loss.item(), 4))
            print(f"step {step} of {steps}: loss {losses[-1]}", flush=True)
    return losses


def next_token_loss(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each token but the first, in mixed precision."""
    with torch.autocast(rows.device.type, torch.bfloat16):
        logits = model(rows[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


# ------------------------------------------------------------------- measuring


def measure(model: LanguageModel, tokens: CodeTokens) -> dict[str, Any]:
    """Held-out figures: bits by length, summaries and answers beside baselines."""
    text = "\n".join(f.code for f in tasks.functions("test"))
    whole = bytes(python_text(HELD_OUT).tolist()).decode()
    bits = {}
    for seq in (512, 1024, 2048):
        by_place = bits_per_byte(model, tokens, whole, seq)
        quarters = [round(float(part.mean()), 3) for part in by_place.chunk(4)]
        bits[seq] = {"mean": round(float(by_place.mean()), 3), "quarters": quarters}
    return {
        "held_out_text": {"modules": HELD_OUT, "bytes": len(whole.encode())},
        "bits_per_byte": bits,
        "bits_per_byte_of_test_functions": round(
            float(bits_per_byte(model, tokens, text).mean()), 3
        ),
        "summaries": summaries(model, tokens),
        "answers": answers(model, tokens),
    }


def in_batches(model, tokens, prompts, steps) -> list[str]:  # type: ignore
    """What the model writes, prompts of like length together."""
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    out = [""] * len(prompts)
    for start in range(0, len(order), 32):
        chosen = order[start : start + 32]
        texts = write(model, tokens, [prompts[n] for n in chosen], steps)
        for n, text in zip(chosen, texts, strict=True):
            out[n] = text
    return out


def summaries(model: LanguageModel, tokens: CodeTokens) -> dict[str, Any]:
    known = tasks.functions("test")
    written = in_batches(
        model, tokens, [summary_prompt(tokens, f.code) for f in known], 40
    )
    told = {
        "model": written,
        "name in words": [tasks.name_in_words(f) for f in known],
        "first comment": [tasks.first_comment(f) for f in known],
    }
    scores = {
        who: round(sum(map(rouge_l, texts, (f.summary for f in known))) / len(known), 3)
        for who, texts in told.items()
    }
    examples = [
        {"name": f.name, "written": w, "docstring": f.summary}
        for f, w in list(zip(known, written, strict=True))[::20]
    ]
    return {"functions": len(known), "rouge_l": scores, "examples": examples}


def answers(model: LanguageModel, tokens: CodeTokens) -> dict[str, Any]:
    asked = tasks.questions("test")
    prompts = [answer_prompt(tokens, q.context, q.question) for q in asked]
    usual = tasks.most_common(tasks.questions("train"))
    told = {
        "model": in_batches(model, tokens, prompts, 30),
        "most common": [usual[q.kind] for q in asked],
        "first match": [tasks.first_match(q) for q in asked],
    }
    scores: dict[str, Any] = {}
    for who, texts in told.items():
        pairs = list(zip(asked, texts, strict=True))
        by_kind = {
            kind: mean(t.strip() == q.answer for q, t in pairs if q.kind == kind)
            for kind in tasks.KINDS
        }
        scores[who] = {
            "same characters": mean(t.strip() == q.answer for q, t in pairs),
            "exact_match": mean(exact_match(t, q.answer) for q, t in pairs),
            "f1": mean(f1(t, q.answer) for q, t in pairs),
            "by kind": by_kind,
        }
    return {"questions": len(asked), "scores": scores}


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return round(sum(listed) / len(listed), 3)


# --------------------------------------------------------------------- writing


def store(model: LanguageModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model in 16 bits, and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer.to_str()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    facts = {
        "format": FORMAT,
        "config": {**model.config, "scaling": None},
        "tokenizer": hashlib.sha256(text.encode()).hexdigest(),
    }
    tensors = {k: v.half().cpu().contiguous() for k, v in model.state_dict().items()}
    path = folder / "model.safetensors"
    save_file(tensors, path, {"rope_teach": json.dumps(facts)})
    path.chmod(0o644)


CARD = """# The small real model

A decoder with RoPE that reads and writes Python: {parameters:,} parameters in 16 bits,
{layers} layers of {dim} features, {heads} heads of {head_dim}, base 10,000, interleaved
pairs, trained on windows of {seq} tokens. Its tokenizer is a byte-level BPE with
{vocab:,} tokens. `rope_teach.course.small.load_small()` loads both.

**Trained** by `{command}`, seed {seed}, {steps:,} steps of {batch} windows,
{minutes} minutes on {machine}; Python {python}, torch {torch}, {date}.

**Data**: {files:,} source files, {size:.0f} MB, of the {count} permissively licensed
packages below, as they were installed; {copies} files that copy a function of the
standard library were left out, and so were tests and vendored code. A batch has {plain}
windows of plain source, {summaries} of functions followed by `<doc>` and the first
sentence of their docstring, {questions} of functions followed by `<ask>`, a question,
`<answer>` and the answer. The weights are under this package's licence; the packages
keep theirs, listed below. **Never trained on**: Python's standard library, which
everybody has, and on which all numbers below were measured.

**Bits per byte** on {modules} (8 is a blind guess):

| tokens in a window | mean | by quarter of the window |
|---|---|---|
{bits}

**Summaries** of {functions} functions, ROUGE-L with the docstring's first sentence:
{rouge}.

**Answers** to {asked} questions about functions (F1 of words; the same characters):
{answers}.

**What it cannot do.** It does not know what code does: its summaries are fluent guesses
from names and shapes. It cannot follow instructions or chat. Past {seq} tokens it falls
apart, which is why lessons 12 and 13 use it. It repeats its training data's habits, and
may repeat pieces of it. It is for teaching only.

| package | version | licence | bytes of source |
|---|---|---|---|
{packages}
"""


def card(facts: dict[str, Any], packages: list[dict[str, Any]]) -> str:
    """The model's card, from the result file alone."""
    settings, measured = facts["settings"], facts["measured"]
    rouge, scores = measured["summaries"]["rouge_l"], measured["answers"]["scores"]
    return CARD.format(
        **{k: settings[k] for k in ("layers", "dim", "heads", "seq", "vocab", "steps")},
        **settings["mixture"],
        **facts["versions"],
        **{k: facts[k] for k in ("parameters", "command", "seed", "minutes")},
        head_dim=settings["dim"] // settings["heads"],
        batch=settings["batch"],
        machine=facts["machine"],
        date=facts["date"],
        files=facts["data"]["files"],
        size=facts["data"]["bytes"] / 1e6,
        copies=facts["data"]["copies_left_out"],
        count=len(packages),
        modules=", ".join(measured["held_out_text"]["modules"]),
        bits="\n".join(
            f"| {n} | {b['mean']} | {', '.join(map(str, b['quarters']))} |"
            for n, b in measured["bits_per_byte"].items()
        ),
        functions=measured["summaries"]["functions"],
        rouge=", ".join(f"{who} {score}" for who, score in rouge.items()),
        asked=measured["answers"]["questions"],
        answers=", ".join(
            f"{who} {s['f1']}; {s['same characters']}" for who, s in scores.items()
        ),
        packages="\n".join(
            f"| {p['name']} | {p['version']} | {p['licence']} | {p['bytes']:,} |"
            for p in packages
        ),
    )


def write_card(result: Path, folder: Path) -> None:
    stored = json.loads(result.read_text("utf-8"))
    (folder / "card.md").write_text(card(stored, stored["runs"]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--result", type=Path, default=RESULTS / "small_model.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--most", type=int, help="read this many files, for a trial")
    given = parser.parse_args()
    started = time.monotonic()

    def say(*words: Any) -> None:
        print(f"{time.monotonic() - started:5.0f} s", *words, flush=True)

    random.seed(given.seed)
    torch.manual_seed(given.seed)
    texts, packages = read_packages(permissive())
    random.shuffle(texts)
    texts, known, copies = without_copies(texts[: given.most])
    size = sum(map(len, texts))
    say(f"{len(texts)} files, {size / 1e6:.0f} MB, {len(packages)} packages")
    say(f"{len(known)} functions; {copies} files copy the standard library")
    tokenizer = train_tokenizer(texts)
    data = streams(texts, random.sample(known, len(known)), tokenizer)
    data = {name: stream.to(given.device) for name, stream in data.items()}
    say("tokens:", {k: f"{len(v) / 1e6:.1f} M" for k, v in data.items()})
    model = LanguageModel(**SIZES, encoding="rope", tied=True).to(given.device)
    trained = time.monotonic()
    losses = train(model, data, given.steps, compiled=not given.eager)
    minutes = (time.monotonic() - trained) / 60
    say(f"trained for {minutes:.1f} minutes")
    model.eval()
    store(model, tokenizer, given.out)
    measured = measure(model, CodeTokens(tokenizer))
    say(json.dumps(measured, indent=1))
    where = given.device
    if where == "cuda":
        where = torch.cuda.get_device_name()
    facts = {
        "command": "python benchmarks/small_model.py",
        "date": date.today().isoformat(),
        "machine": f"{where}, {processor()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seed": given.seed,
        "settings": {**SIZES, "seq": SEQ, "batch": BATCH, "lr": LR,
                     "steps": given.steps, "mixture": MIXTURE},
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": round(minutes, 1),
        "data": {"files": len(texts), "bytes": size, "copies_left_out": copies,
                 "tokens": {k: len(v) for k, v in data.items()},
                 "functions": {s: len(tasks.functions(s)) for s in tasks.SPLITS}},
        "losses": losses,
        "measured": measured,
    }  # fmt: skip
    save(given.result, facts, packages)
    write_card(given.result, given.out)
    say("wrote", given.out, given.result)


if __name__ == "__main__":
    main()
