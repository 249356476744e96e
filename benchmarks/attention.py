"""What position costs inside attention: each encoding as a multiple of having none.

    python benchmarks/attention.py > benchmarks/results/attention.md

One layer of a language model, with its position code: a forward pass over a text, and
one step of decoding with a cache of the same length. One thread, and the time of this
process; each sample lies between two of the model without positions, and the cell is
the median of the ratios with its quartiles.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from datetime import date
from statistics import quantiles

import torch
from common import processor

from rope_teach.course.models import LanguageModel

SETTINGS = {"dim": 512, "layers": 1, "heads": 8, "max_len": 4096}
ENCODINGS = {
    "sinusoidal": {"encoding": "sinusoidal"},
    "learned": {"encoding": "learned"},
    "ALiBi": {"encoding": "alibi"},
    "RoPE": {"encoding": "rope"},
    "RoPE, a quarter of each head": {"encoding": "rope", "rotary_dim": 16},
}
SAMPLES = 15


def forward(model: LanguageModel, length: int) -> Callable[[], object]:
    """A pass over ``length`` tokens."""
    tokens = torch.randint(256, (1, length))
    return lambda: model(tokens)


def decode(model: LanguageModel, length: int) -> Callable[[], object]:
    """One more token after ``length`` cached ones; the cache is put back each time."""
    caches = model.caches()
    model(torch.randint(256, (1, length)), caches=caches)
    token = torch.randint(256, (1, 1))
    kept = [dict(vars(cache)) for cache in caches]

    def step() -> None:
        for cache, state in zip(caches, kept, strict=True):
            vars(cache).update(state)
        model(token, caches=caches)

    return step


def seconds(call: Callable[[], object]) -> float:
    """Time of one call: as many calls as fill 20 ms."""
    call()
    started, calls = time.process_time(), 0
    while time.process_time() - started < 0.02:
        call()
        calls += 1
    return (time.process_time() - started) / calls


def ratio(call: Callable[[], object], none: Callable[[], object]) -> str:
    """The cell: median and quartiles of paired samples."""
    samples = []
    for _ in range(SAMPLES):
        before, own, after = seconds(none), seconds(call), seconds(none)
        samples.append(2 * own / (before + after))
    low, middle, high = quantiles(samples, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("# What position costs inside attention, as a multiple of no positions\n")
    print(
        f"{date.today()}; {processor()}, 1 thread; Python {platform.python_version()};"
    )
    print(f"torch {torch.__version__}; {SETTINGS}. Median (quartiles) of {SAMPLES}.\n")
    columns = [(kind, length) for kind in (forward, decode) for length in (128, 2048)]
    names = [f"{kind.__name__}, {length} tokens" for kind, length in columns]
    print("| encoding |", " | ".join(names), "|")
    print("|---" * (len(columns) + 1) + "|")
    none = LanguageModel(256, encoding="none", **SETTINGS).eval()
    for name, encoding in ENCODINGS.items():
        model = LanguageModel(256, **encoding, **SETTINGS).eval()
        cells = [
            ratio(kind(model, length), kind(none, length)) for kind, length in columns
        ]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
