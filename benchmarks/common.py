"""What the result scripts share: many trainings at once, and where they ran."""

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from rope_teach.course.tasks import Batch
from rope_teach.course.training import RESULTS

Run = dict[str, Any]


def run_all(run: Callable[..., Run], cases: Sequence[tuple[Any, ...]]) -> list[Run]:
    """Return ``run(*case)`` for each case, in order; ``--jobs N`` of them at once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    jobs = parser.parse_args().jobs
    pool = multiprocessing.get_context("spawn").Pool(jobs, one_thread)
    waiting = [pool.apply_async(timed, (run, case)) for case in cases]
    pool.close()
    done = [result.get() for result in waiting]
    pool.join()
    return done


def one_thread() -> None:
    """A training on one thread gives the same result however many run beside it."""
    torch.set_num_threads(1)


def timed(run: Callable[..., Run], case: tuple[Any, ...]) -> Run:
    started = time.process_time()
    result = run(*case)
    seconds = round(time.process_time() - started, 1)
    print(*case, f"{seconds} s", flush=True)
    return {**result, "cpu_seconds": seconds}


def write(script: str, settings: dict[str, Any], runs: list[Run]) -> None:
    """Write the result file of ``benchmarks/<script>.py``."""
    result = {
        "command": f"python benchmarks/{script}.py",
        "date": date.today().isoformat(),
        "machine": f"{processor()}, one thread a training",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "cpu_seconds": round(sum(run["cpu_seconds"] for run in runs)),
        "settings": settings,
    }
    save(RESULTS / f"{script}.json", result, runs)
    print(f"wrote {script}.json after {result['cpu_seconds']} s of one core")


def save(path: Path, facts: dict[str, Any], runs: list[Run]) -> None:
    """Write facts and runs, one run a line; the file appears whole or not at all."""
    lines = ",\n".join(f"  {json.dumps(run)}" for run in runs)
    text = json.dumps({**facts, "runs": []}, indent=1)
    part = path.with_suffix(".part")
    part.write_text(text.replace('"runs": []', f'"runs": [\n{lines}\n ]') + "\n")
    part.replace(path)


def rounded(x: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in x.tolist()]


def with_another_past(batch: Batch) -> Batch:
    """The same windows, but their first 256 tokens come from the next window."""
    tokens, targets = batch
    past = torch.arange(tokens.shape[1]) < 256
    return torch.where(past, tokens.roll(1, dims=0), tokens), targets


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
    return names[0].partition(": ")[2] if names else platform.machine()
