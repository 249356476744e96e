"""What the result scripts share: many trainings at once, and where they ran."""

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rope_teach.course.tasks import Batch, python_text, text_windows
from rope_teach.course.training import RESULTS

Run = dict[str, Any]
TUNING_SEED = 0  # of the trainings that choose a rate; no result counts them


def arguments() -> argparse.ArgumentParser:
    """What every result script can be told."""
    parser = argparse.ArgumentParser()
    help_ = "trainings at once (default: one a core)"
    parser.add_argument(
        *("--workers", "--jobs"), type=int, default=os.cpu_count(), help=help_
    )
    return parser


def options(device: str = "cpu") -> argparse.Namespace:
    """What a script that tunes its rates can be told besides."""
    parser = arguments()
    help_ = f"where to train: cpu or cuda (default: {device})"
    parser.add_argument("--device", default=device, help=help_)
    help_ = "a few steps of a few trainings, and nothing is written"
    parser.add_argument("--quick", action="store_true", help=help_)
    return parser.parse_args()


def few(
    asked: argparse.Namespace,
    rates: Sequence[float],
    seeds: Sequence[int],
    budgets: Sequence[int],
) -> tuple[Sequence[float], Sequence[int], Sequence[int]]:
    """What ``tuned`` tries: all of it, or with ``--quick`` one rate and one seed."""
    return (rates[1:2], seeds[:1], ()) if asked.quick else (rates, seeds, budgets)


class Workers:
    """Processes that train, each on one thread: ``submit``, then ``get`` the result.

    A training on one thread gives the same result however many run beside it.
    """

    def __init__(self, number: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pool = spawn.Pool(number, torch.set_num_threads, (1,))

    def submit(
        self, run: Callable[..., Run], case: tuple[Any, ...], **given: Any
    ) -> Any:
        return self.pool.apply_async(timed, (run, case, given))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.terminate()
        self.pool.join()


def run_all(run: Callable[..., Run], cases: Sequence[tuple[Any, ...]]) -> list[Run]:
    """Return ``run(*case)`` for each case, in order, several of them at once."""
    with Workers(arguments().parse_args().workers) as workers:
        waiting = [workers.submit(run, case) for case in cases]
        return [result.get() for result in waiting]


def tuned(
    workers: Workers,
    run: Callable[..., Run],
    conditions: Sequence[tuple[Any, ...]],
    rates: Sequence[float],
    seeds: Sequence[int],
    budgets: Sequence[int] = (),
    extend: int = 0,
    enough: float = 0.0,
    **given: Any,
) -> Callable[[], tuple[list[Run], list[Run], list[Run]]]:
    """Train each condition with the rate that suits it best; return how to collect.

    ``run(*condition, lr, seed, **given)`` is called with each rate and ``TUNING_SEED``,
    then with the rate of the lowest ``"validation"`` and each of ``seeds``, and with
    their first for each of ``budgets``, which are other numbers of steps. Where the
    best rate is the first or last of those tried, the next one is tried too, up to
    ``extend`` times, unless the task is learned: a validation below ``enough``. Calling
    what comes back waits for all that, and returns the rates tried, the runs, and those
    of the other budgets. Name the longest conditions first.
    """

    def trial(condition: tuple[Any, ...], lr: float) -> Any:
        return workers.submit(run, (*condition, lr, TUNING_SEED), **given)

    trying = {
        condition: {lr: trial(condition, lr) for lr in rates}
        for condition in conditions
    }

    def collect() -> tuple[list[Run], list[Run], list[Run]]:
        tried, waiting, others = [], [], []
        for condition, results in trying.items():
            scores = {lr: result.get()["validation"] for lr, result in results.items()}
            for _ in range(extend):
                lr = past_the_edge(scores)
                if lr is not None and scores[best_rate(scores)] > enough:
                    scores[lr] = trial(condition, lr).get()["validation"]
            best = best_rate(scores)
            tried.append(
                {
                    "condition": condition,
                    "validation": {str(lr): scores[lr] for lr in sorted(scores)},
                    "best": best,
                    "at_the_edge": past_the_edge(scores) is not None,
                }
            )
            # Submitted while other conditions still try theirs, so that no core waits.
            waiting += [
                workers.submit(run, (*condition, best, seed), **given) for seed in seeds
            ]
            others += [
                workers.submit(
                    run, (*condition, best, seeds[0]), **{**given, "steps": budget}
                )
                for budget in budgets
            ]
        runs, shorter = ([each.get() for each in part] for part in (waiting, others))
        return tried, runs, shorter

    return collect


def best_rate(scores: dict[float, float | None]) -> float:
    """The rate of the lowest score; a training that diverged has none, or NaN."""
    found = {
        lr: score
        for lr, score in scores.items()
        if score is not None and math.isfinite(score)
    }
    return min(found, key=found.__getitem__)


def past_the_edge(scores: dict[float, float | None]) -> float | None:
    """The rate that comes next if the best one is the lowest or highest tried."""
    rates, best = sorted(scores), best_rate(scores)
    if len(rates) > 1 and best in (rates[0], rates[-1]):
        neighbour = rates[1] if best == rates[0] else rates[-2]
        return float(f"{best * best / neighbour:.2g}")
    return None


def timed(run: Callable[..., Run], case: tuple[Any, ...], given: Run) -> Run:
    started, began = time.process_time(), time.monotonic()
    try:
        result = run(*case, **given)
    except FloatingPointError as error:  # the rate was too high
        result = {"case": case, "validation": None, "diverged": str(error)}
    seconds = round(time.process_time() - started, 1)
    print(*case, f"{seconds} s of a core, {time.monotonic() - began:.0f} s", flush=True)
    return {**result, "cpu_seconds": seconds}


def write(
    script: str,
    settings: dict[str, Any],
    runs: list[Run],
    device: str = "cpu",
    **facts: Any,
) -> None:
    """Write the result file of ``benchmarks/<script>.py``."""
    gpu = f", {torch.cuda.get_device_name()}" if device.startswith("cuda") else ""
    result = {
        "command": " ".join(["python", f"benchmarks/{script}.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": f"{processor()}, one thread a training{gpu}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "cpu_seconds": round(sum(run["cpu_seconds"] for run in runs)),
        "settings": settings,
        **facts,
    }
    save(RESULTS / f"{script}.json", result, runs)
    print(f"wrote {script}.json after {result['cpu_seconds']} s of one core")


def save(path: Path, facts: dict[str, Any], runs: list[Run]) -> None:
    """Write facts and runs, one run a line; the file appears whole or not at all."""
    entries = [
        f" {json.dumps(name)}: {in_lines(fact)}"
        for name, fact in {**facts, "runs": runs}.items()
    ]
    part = path.with_suffix(".part")
    part.write_text("{\n" + ",\n".join(entries) + "\n}\n")
    part.replace(path)


def in_lines(fact: Any) -> str:
    """As JSON; runs, or whatever else is a list of dictionaries, one a line."""
    if isinstance(fact, list) and fact and all(isinstance(each, dict) for each in fact):
        return "[\n" + ",\n".join(f"  {json.dumps(each)}" for each in fact) + "\n ]"
    return json.dumps(fact, indent=1).replace("\n", "\n ")


def descend(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    steps: int,
    lr: float,
    warm_up: int,
    **adamw: Any,
) -> Iterator[Tensor]:
    """Train on the GPU's terms: yields each step's loss, and never waits for it.

    AdamW with a warm-up and cosine decay to zero, as the small real model had it.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), **adamw)
    for step in range(steps):
        for group in optimizer.param_groups:
            done = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            group["lr"] = lr * min(1, (step + 1) / warm_up) * done
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.detach()


def rounded(x: Tensor) -> list[float]:
    return [round(value, 4) for value in x.tolist()]


def text_and_validation() -> tuple[Tensor, Tensor]:
    """The text to train on, and the last 16 KiB of it, by which rates are chosen."""
    text = python_text()
    return text[:-16_384], text[-16_384:]


def with_another_past(batch: Batch, replaced: int) -> Batch:
    """The same windows, but their first ``replaced`` tokens come from the next one."""
    tokens, targets = batch
    past = torch.arange(tokens.shape[1]) < replaced
    return torch.where(past, tokens.roll(1, dims=0), tokens), targets


def reading(
    measure: Callable[[Batch], Tensor], text: Tensor, replaced: int
) -> tuple[Tensor, Tensor]:
    """The loss by position in windows of ``text``, and with another first half.

    The windows are twice as long as what is ``replaced``. A model that reads that far
    back loses by it; where the two are equal, it does not.
    """
    windows = text_windows(text, 2 * replaced)
    return measure(windows), measure(with_another_past(windows, replaced))


def mean_from(first: int, losses: Tensor) -> float:
    return round(losses[first:].mean().item(), 4)


def in_parts(losses: list[float], size: int = 50) -> list[float]:
    """The mean of each ``size`` steps: whether training was done."""
    parts = [losses[i : i + size] for i in range(0, len(losses), size)]
    return [round(sum(part) / len(part), 4) for part in parts]


def moved(batch: Batch, device: str) -> Batch:
    return batch[0].to(device), batch[1].to(device)


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
    return names[0].partition(": ")[2] if names else platform.machine()
