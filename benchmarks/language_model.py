"""Lessons 11 to 13 on a larger scale: 25 million parameters, text of 50 megabytes.

A language model learns Python source in windows of 512 bytes, once with each encoding
and seed, and reads windows eight times as long. Then each rule for longer context takes
the RoPE models four and eight times as far, as they are and after a short fine-tune.
Every model is measured by position and by retrieval: constants stand hidden in the
text, and at its end their values are asked for. All GPUs of the machine work at once:

    python benchmarks/language_model.py              # minutes, on NVIDIA GPUs
    python benchmarks/language_model.py --smoke      # how long that would take
    python benchmarks/language_model.py --tiny       # every step of it, on a CPU

The text is the source of Python and of PyTorch as they are installed, so that nothing
is fetched; the result has its size and its hash.
"""

import argparse
import functools
import hashlib
import math
import multiprocessing
import platform
import sysconfig
import tempfile
import time
import traceback
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Run, processor, rounded, save
from torch import Tensor

from rope_teach import RotaryEmbedding, inverse_frequencies
from rope_teach.attention import ENCODINGS
from rope_teach.course import training
from rope_teach.course.models import LanguageModel
from rope_teach.course.tasks import Batch
from rope_teach.frequencies import (
    Scaling,
    dynamic_ntk,
    llama3,
    longrope,
    ntk_aware,
    position_interpolation,
    yarn,
)

RULES = (
    "none",
    "PI",
    "NTK-aware",
    "dynamic NTK",
    "YaRN",
    "YaRN of the paper",
    "Llama 3",
    "LongRoPE",
)
TRAINED, STRETCHES, SEEDS = 512, (4, 8), (0, 1, 2)
BIN, DEPTHS = 64, 8  # positions in a bin; equal parts of a text that hide constants
ASKED = 4  # constants in a document
DEFINITION, QUESTION = len("\nABCDEF = 123456\n"), len("\nassert ABCDEF == 123456")


@dataclass(frozen=True)
class Plan:
    """How large the model is, how long it learns and on how much it is measured."""

    model: dict[str, int] = field(
        default_factory=lambda: {"vocab": 256, "dim": 512, "layers": 8, "heads": 8}
    )
    steps: int = 1500
    tuned_steps: int = 75
    lr: float = 1e-3
    tuned_lr: float = 2e-4
    bytes_in_a_batch: int = 65_536
    windows: int = 128  # of the longest length, held out
    search: tuple[int, int] = (6, 8)  # LongRoPE: generations, children in each


TINY = Plan(
    model={"vocab": 256, "dim": 32, "layers": 2, "heads": 2},
    steps=4,
    tuned_steps=2,
    bytes_in_a_batch=8 * TRAINED,
    windows=16,
    search=(1, 2),
)
LONGEST = TRAINED * max(STRETCHES)


# -------------------------------------------------------------------------- text

# Other people's packages, tests, and files that programs wrote.
LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "testing", "encodings",
    "pydoc_data", "serialized_patterns", "artifacts",
}  # fmt: skip


@functools.cache
def texts() -> tuple[Tensor, Tensor]:
    """Bytes to learn from, and windows of ``LONGEST + 1`` of other files.

    A window lies in one file. The name of a file decides whether it is held out.
    """
    learnt, windows = [], []
    for root in (Path(sysconfig.get_path("stdlib")), Path(torch.__file__).parent):
        for file in sorted(root.rglob("*.py")):
            name = file.relative_to(root)
            if LEFT_OUT.intersection(name.parts):
                continue
            source = file.read_bytes()
            if zlib.crc32(name.as_posix().encode()) % 20:
                learnt.append(source)
            elif len(source) > LONGEST:
                windows.append(as_bytes(source).unfold(0, LONGEST + 1, LONGEST + 1))
    return as_bytes(b"\n".join(learnt)), torch.cat(windows)


def as_bytes(source: bytes) -> Tensor:
    return torch.frombuffer(bytearray(source), dtype=torch.uint8)


def held_out(plan: Plan) -> Tensor:
    """As many windows as the plan wants, from all over the text held out."""
    windows = texts()[1]
    some = torch.linspace(0, len(windows) - 1, min(plan.windows, len(windows))).long()
    return windows[some].long()


def batches(plan: Plan, length: int, seed: int) -> Iterator[Batch]:
    """Endless batches of windows of text; constants are hidden in a quarter of them."""
    text = texts()[0]
    generator = torch.Generator().manual_seed(seed)
    rows = plan.bytes_in_a_batch // length
    while True:
        first = torch.randint(len(text) - length, (rows, 1), generator=generator)
        tokens = text[first + torch.arange(length + 1)].long()
        hide(tokens[: max(1, rows // 4)], generator)
        yield tokens[:, :-1], tokens[:, 1:]


def hide(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Write constants over each row of bytes, and at its end questions about them.

    Returns ``(rows, ASKED)``: how deep the constant of each question stands, from 0
    at the start of the text to 1 at its end.
    """
    rows, length = tokens.shape
    names = torch.randint(65, 91, (rows, ASKED, 6), generator=generator)
    values = torch.randint(48, 58, (rows, ASKED, 6), generator=generator)
    end = length - ASKED * QUESTION
    slot = end // ASKED
    drawn = torch.randint(slot - DEFINITION + 1, (rows, ASKED), generator=generator)
    first = slot * torch.arange(ASKED) + drawn
    places = first[..., None] + torch.arange(DEFINITION)
    definitions = spelled("\n", names, " = ", values, "\n")
    tokens.scatter_(1, places.flatten(1), definitions.flatten(1))
    order = torch.rand(rows, ASKED, generator=generator).argsort(1)
    asked = order[..., None].expand(-1, -1, 6)
    questions = spelled(
        "\nassert ", names.gather(1, asked), " == ", values.gather(1, asked)
    )
    tokens[:, end:] = questions.flatten(1)
    return first.gather(1, order) / end


def spelled(*parts: str | Tensor) -> Tensor:
    """Join texts and tensors of bytes ``(rows, ASKED, n)`` along their last axis."""
    shape = next(part.shape[:2] for part in parts if isinstance(part, Tensor))
    return torch.cat(
        [
            as_bytes(part.encode()).long().expand(*shape, -1)
            if isinstance(part, str)
            else part
            for part in parts
        ],
        dim=-1,
    )


# ------------------------------------------------------------------------- rules


def scaling(
    rule: str, stretch: int, length: int, factors: Sequence[float] = ()
) -> Scaling | None:
    """A rule by its name; ``length`` and ``factors`` are for those that need them."""
    factor = {"factor": stretch}
    parts = {**factor, "trained_length": TRAINED}
    by_length = {"trained_length": TRAINED, "length": length}
    lists = {"short_factors": [1.0] * len(factors), "long_factors": factors}
    rules: dict[str, Scaling | None] = {
        "none": None,
        "PI": partial(position_interpolation, **factor),
        "NTK-aware": partial(ntk_aware, **factor),
        "dynamic NTK": partial(dynamic_ntk, factor=1, **by_length),
        "YaRN": partial(yarn, **parts),
        "YaRN of the paper": partial(yarn, **parts, ramp="paper"),
        "Llama 3": partial(llama3, **parts),
        "LongRoPE": partial(longrope, **lists, **by_length),
    }
    return rules[rule]


def set_rule(model: LanguageModel, rule: Scaling | None) -> None:
    """Turn all hands of ``model`` by a rule; no weight changes."""
    weight, head_dim = model.embed.weight, model.blocks[0].attention.head_dim
    rope = RotaryEmbedding(head_dim, base=model.config["base"], scaling=rule)
    rope.to(weight.device)
    # Rows for all lengths now: a compiled step reads a table that is there, and so
    # it is the same step under every rule.
    rope.rotate(weight.new_zeros(1, LONGEST, head_dim))
    for block in model.blocks:
        block.attention.rope = rope


def search(model: LanguageModel, plan: Plan, stretch: int, seed: int) -> list[float]:
    """LongRoPE's factors: how many times slower each hand turns, found by trial.

    As in its paper other rules are the first parents, children are drawn around the
    best so far, no factor is smaller than that of a faster hand, and the loss on long
    windows decides. They are windows to learn from, not those that are held out.
    """
    generator = torch.Generator().manual_seed(seed)
    length = TRAINED * stretch
    trial = next(batches(plan, length, seed=1000 + seed))
    bank = model.blocks[0].attention.head_dim, model.config["base"]

    def scored(factors: Tensor) -> tuple[float, Tensor]:
        set_rule(model, scaling("LongRoPE", stretch, length, factors.tolist()))
        return by_position(model, *trial).mean().item(), factors

    rules = [scaling(name, stretch, length) for name in ("PI", "NTK-aware", "YaRN")]
    best = [scored(inverse_frequencies(*bank) / rule(*bank)[0]) for rule in rules]
    generations, children = plan.search
    for _ in range(generations):
        for n in range(children):
            parent = best[n % len(rules)][1]
            noise = 0.2 * torch.randn(len(parent), generator=generator)
            best.append(scored((parent * noise.exp()).clamp(1, stretch).sort().values))
        best = sorted(best, key=itemgetter(0))[: len(rules)]
    return [round(factor, 4) for factor in best[0][1].tolist()]


# --------------------------------------------------------------------- measuring


def by_position(model: LanguageModel, tokens: Tensor, targets: Tensor) -> Tensor:
    """Bits per byte at each position, in the arithmetic of the training."""
    device = model.embed.weight.device
    with eager(), torch.autocast(device.type, torch.bfloat16):
        bits = training.bits_by_position(model, (tokens.to(device), targets.to(device)))
    return bits.float().cpu()


def bits(model: LanguageModel, plan: Plan, length: int) -> list[float]:
    """Bits per byte in windows of ``length``, each the mean of ``BIN`` positions."""
    windows = held_out(plan).unfold(1, length + 1, length).flatten(0, 1)
    parts = windows.split(max(1, plan.bytes_in_a_batch // length))
    total = sum(
        len(part) * by_position(model, part[:, :-1], part[:, 1:]) for part in parts
    )
    return rounded((total / len(windows)).unflatten(0, (-1, BIN)).mean(1))


@torch.no_grad()
def retrieval(model: LanguageModel, plan: Plan, length: int) -> list[float]:
    """Share of constants whose six digits are all right, by depth.

    With the right digits before it, each digit is right just when greedy decoding
    would write the whole number.
    """
    tokens = held_out(plan)[:, : length + 1].clone()
    depth = hide(tokens, torch.Generator().manual_seed(1000))
    device = model.embed.weight.device
    right = []
    for part in tokens.split(max(1, plan.bytes_in_a_batch // length)):
        with eager(), torch.autocast(device.type, torch.bfloat16):
            likeliest = model.eval()(part[:, :-1].to(device)).argmax(-1).cpu()
        hits = likeliest == part[:, 1:]
        asked = hits[:, -ASKED * QUESTION :].unflatten(1, (ASKED, QUESTION))
        right.append(asked[..., -6:].all(-1))
    part_of = (depth * DEPTHS).long().flatten()
    hits = torch.cat(right).flatten().float()
    return rounded(torch.stack([hits[part_of == n].mean() for n in range(DEPTHS)]))


def measure(model: LanguageModel, plan: Plan, lengths: Sequence[int]) -> Run:
    return {
        "bits": {str(n): bits(model, plan, n) for n in lengths},
        "retrieval": {str(n): retrieval(model, plan, n) for n in lengths},
    }


def eager() -> Any:
    """Measure without compiling: each shape comes a few times only."""
    return torch.compiler.set_stance("force_eager")


# -------------------------------------------------------------------------- jobs


def train(plan: Plan, kept: str, encoding: str, seed: int) -> Run:
    """Train a model and measure it, also in longer windows than it learned from."""
    training.seed_everything(seed)
    limit = {"max_len": TRAINED} if encoding == "learned" else {}
    model = LanguageModel(**plan.model, encoding=encoding, **limit)
    model.to(training.best_device())
    if encoding == "rope":
        set_rule(model, None)
    result = learn(model, plan, TRAINED, seed, plan.steps, plan.lr)
    if encoding == "rope":
        training.save(checkpoint(kept, seed), model)
    # A learned table has no row for a position past those that it was trained for.
    longest = TRAINED if encoding == "learned" else LONGEST
    lengths = [n for n in (TRAINED, 2 * TRAINED, 4 * TRAINED, LONGEST) if n <= longest]
    return {
        "encoding": encoding,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        **result,
        **measure(model, plan, lengths),
    }


def extend(plan: Plan, kept: str, rule: str, stretch: int, seed: int) -> Run:
    """Put the trained RoPE model under a rule; measure, fine-tune, measure again."""
    training.seed_everything(seed)
    model = training.load(checkpoint(kept, seed)).to(training.best_device())
    longer = TRAINED * stretch
    found = search(model, plan, stretch, seed) if rule == "LongRoPE" else []

    def measured() -> Run:
        """A rule may depend on the length, so each is measured by itself."""
        results = []
        for length in (TRAINED, longer):
            set_rule(model, scaling(rule, stretch, length, found))
            results.append(measure(model, plan, [length]))
        return {k: results[0][k] | results[1][k] for k in results[0]}

    before = measured()  # leaves the model under the rule for the longer length
    result = learn(model, plan, longer, 100 + seed, plan.tuned_steps, plan.tuned_lr)
    return {
        "rule": rule,
        "stretch": stretch,
        "seed": seed,
        **({"factors": found} if found else {}),
        **result,
        "zero-shot": before,
        "tuned": measured(),
    }


def checkpoint(kept: str, seed: int) -> Path:
    return Path(kept, f"rope_{seed}.safetensors")


def learn(
    model: LanguageModel, plan: Plan, length: int, seed: int, steps: int, lr: float
) -> Run:
    """Train in mixed precision; return the loss and how fast it went."""
    if model.embed.weight.is_cuda:
        for block in model.blocks:  # alike, so one of them is compiled for all
            block.compile(dynamic=False, fullgraph=True)
    began: list[float] = []

    def watched() -> Iterator[Batch]:
        for batch in batches(plan, length, seed):
            began.append(time.perf_counter())
            yield batch

    losses = training.fit(model, watched(), steps, lr, label=None, dtype=torch.bfloat16)
    last = losses[-max(1, steps // 10) :]
    step = torch.tensor(began).double().diff().median().item()
    return {
        "training_bits": round(sum(last) / len(last) / math.log(2), 4),
        "steps": steps,
        "seconds_a_step": round(step, 4),
    }


def timed(job: Any, *arguments: Any) -> Run:
    began = time.perf_counter()
    result = job(*arguments)
    return {**result, "seconds": round(time.perf_counter() - began, 1)}


def start_worker(devices: Any) -> None:
    """Give this process a GPU of its own; without one, one thread."""
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # encodings and lengths, all wanted
    number = devices.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(number)


# -------------------------------------------------------------------- everything


def jobs(seeds: Sequence[int], rules: Sequence[str]) -> list[tuple[Any, ...]]:
    """RoPE comes first, since the rules wait for it."""
    others = [encoding for encoding in ENCODINGS if encoding != "rope"]
    return [
        *((train, "rope", seed) for seed in seeds),
        *((train, encoding, seed) for seed in seeds for encoding in others),
        *(
            (extend, rule, stretch, seed)
            for seed in seeds
            for rule in rules
            for stretch in STRETCHES
        ),
    ]


def run_all(
    plan: Plan, waiting: list[tuple[Any, ...]], seconds: float, facts: Run, out: Path
) -> list[Run]:
    """Run all jobs that fit into ``seconds``, one a GPU; write after each."""
    began, workers = time.monotonic(), max(1, torch.cuda.device_count())
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for number in range(workers):
        devices.put(number)
    runs: list[Run] = []
    longest: dict[Any, float] = {}  # seconds, of each kind of job
    running: dict[Future[Run], tuple[Any, ...]] = {}
    pool = ProcessPoolExecutor(workers, context, start_worker, (devices,))
    with tempfile.TemporaryDirectory() as kept, pool:
        while waiting or running:
            left = seconds - (time.monotonic() - began)
            waiting = [job for job in waiting if longest.get(job[0], 0) <= left]
            for job in [job for job in waiting if ready(job, kept)]:
                if len(running) < workers:
                    waiting.remove(job)
                    kind, *arguments = job
                    future = pool.submit(timed, kind, plan, kept, *arguments)
                    running[future] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                job = running.pop(future)
                if error := future.exception():
                    traceback.print_exception(error)
                    continue
                result = future.result()
                longest[job[0]] = max(result["seconds"], longest.get(job[0], 0))
                runs.append(result)
                facts["seconds"] = round(time.monotonic() - began)
                save(out, facts, runs)
                line = in_short(result)
                print(f"{facts['seconds']:4} s:", *job[1:], line, flush=True)
    return runs


def ready(job: tuple[Any, ...], kept: str) -> bool:
    return job[0] is train or checkpoint(kept, job[-1]).exists()


def in_short(run: Run) -> str:
    """Time, bits and retrieval, for the eye that watches."""
    words = [f"{run['seconds']} s, {run['seconds_a_step']} s a step"]
    measured = run.get("tuned", run)
    for length, curve in measured["bits"].items():
        found = sum(measured["retrieval"][length]) / DEPTHS
        words.append(f"{length}: {sum(curve) / len(curve):.3f} bits, {found:.2f} found")
    return "; ".join(words)


def project(runs: list[Run], devices: int) -> None:
    """Say how long everything would take, from short runs of each kind of job."""
    known = {}
    for run in runs:
        name = run.get("encoding", run.get("rule")), run.get("stretch")
        step = run["seconds_a_step"]
        more = run["seconds"] - run["steps"] * step
        known[name] = step, more
        rate = Plan.bytes_in_a_batch / step / 1e6
        print(*filter(None, name), f"{rate:.2f} MB a second, {more:.0f} s beside")
    for steps in (1000, 1500, 2000, 2500, 3000):
        total = 0.0
        for kind, name, *rest in jobs(SEEDS, RULES):
            stretch = rest[0] if kind is extend else None
            step, more = known.get((name, stretch), known.get(("YaRN", stretch)))
            total += more + step * (steps if kind is train else tuned(steps))
        shares = [f"{total / n:.0f} s on {n} GPUs" for n in sorted({1, 2, 4, devices})]
        print(f"--steps {steps}: {', '.join(shares)}, and a tail")


def tuned(steps: int) -> int:
    """Steps of a fine-tune: a twentieth of the training."""
    return max(10, steps // 20)


def describe(plan: Plan) -> Run:
    """What the result says of itself beside the runs."""
    learnt, windows = texts()
    gpus = torch.cuda.device_count()
    gpu = f"{gpus} x {torch.cuda.get_device_name()}, " if gpus else ""
    return {
        "command": f"python benchmarks/language_model.py --steps {plan.steps}",
        "date": date.today().isoformat(),
        "machine": gpu + processor(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
        "text": {
            "bytes": len(learnt),
            "sha256": hashlib.sha256(learnt.numpy()).hexdigest(),
            "windows_held_out": len(windows),
            "sha256_held_out": hashlib.sha256(windows.numpy()).hexdigest(),
        },
        "settings": {
            **asdict(plan),
            "trained_length": TRAINED,
            "stretches": STRETCHES,
            "seeds": SEEDS,
            "rules": RULES,
            "positions_in_a_bin": BIN,
            "depths": DEPTHS,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=Plan.steps, help="of a training")
    parser.add_argument("--seconds", type=float, default=math.inf,
                        help="begin no job that would end later")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS / "language_model.json")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--smoke", action="store_true", help="a few steps of each job")
    how.add_argument("--tiny", action="store_true", help="a few steps, a tiny model")
    options = parser.parse_args()
    plan = replace(Plan(), steps=options.steps, tuned_steps=tuned(options.steps))
    seeds, rules = SEEDS, RULES
    if options.smoke or options.tiny:
        seeds, rules = SEEDS[:1], ("YaRN", "LongRoPE")
        plan = TINY if options.tiny else replace(plan, steps=20, tuned_steps=10)
    todo = jobs(seeds, rules)
    runs = run_all(plan, todo, options.seconds, describe(plan), options.out)
    if len(runs) < len(todo):
        raise SystemExit(f"{len(todo) - len(runs)} of {len(todo)} jobs are missing")
    if options.smoke:
        project(runs, max(1, torch.cuda.device_count()))


if __name__ == "__main__":
    main()
