"""What ``identify`` says of everything installed that rotates, as a table.

    python benchmarks/identify.py > benchmarks/results/identify.md

Functions: every module-level rotation of the installed transformers, with a textbook
formula as a second opinion on the pairing. Models: a toy of each family in ``MODELS``.
Other libraries: their modules as they come. Faults: those planted in ``tests.broken``.
Limits: from the docstring of ``rope_teach.identify``.
"""

import importlib
import logging
import pathlib
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for tests.broken

from rope_teach import rotate
from rope_teach.identify import CannotProbe, Report, identify
from rope_teach.identify.report import ranges
from rope_teach.pairing import full_table, interleaved_to_half
from rope_teach.tables import cos_sin

NAME = re.compile(r"^def (\w*(?:apply_rot|rotary_emb|rotate_queries)\w*)\(", re.M)
SIZES = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "intermediate_size": 64, "vocab_size": 64, "head_dim": 16,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 4,
}  # fmt: skip
EXPERTS = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
OLD = {"n_layer": 2, "n_head": 4, "n_embd": 64, "rotary_dim": 8}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen3": {}, "gemma3_text": {"num_hidden_layers": 7}, "cohere2": {},
    "modernbert": {"num_key_value_heads": None}, "smollm3": {}, "exaone4": {},
    "llama4_text": EXPERTS | {"intermediate_size_mlp": 64}, "gpt_oss": EXPERTS,
    "deepseek_v2": LATENT | {"q_lora_rank": None}, "qwen3_next": EXPERTS,
    "deepseek_v3": LATENT | {"q_lora_rank": 32}, "gpt_neox": {}, "phi3": {}, "glm": {},
    "gptj": OLD, "codegen": OLD, "nanochat": {}, "persimmon": {}, "stablelm": {},
    "roformer": {"embedding_size": 64}, "esm": {"position_embedding_type": "rotary"},
}  # fmt: skip


def transformers_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every module-level function of the installed transformers that rotates."""
    root = pathlib.Path(importlib.import_module("transformers").__file__ or "").parent
    for path in sorted((root / "models").glob("*/modeling_*.py")):
        family = path.parent.name
        for name in NAME.findall(path.read_text()):
            module = f"transformers.models.{family}.{path.stem}"
            yield f"{family}.{name}", getattr(importlib.import_module(module), name)


def textbook(function: Callable[..., Any]) -> str | None:
    """The pairing by comparison with a formula, for functions of q, k, cos and sin."""
    q, k = torch.randn(2, 1, 2, 5, 16)
    cos, sin = cos_sin(torch.arange(5), 10_000.0 ** -(torch.arange(0, 16, 2) / 16))
    for pairing in ("half", "interleaved"):
        expected = rotate(q, cos, sin, pairing)
        for form in ("half", "interleaved", None):
            tables = [full_table(t, form) if form else t for t in (cos, sin)]
            try:
                out = function(q, k, *(t[None] for t in tables))[0]
            except Exception:  # another form
                continue
            if same(out, expected) or same(out, interleaved_to_half(expected)):
                return pairing
    return None


def same(a: Any, b: Tensor) -> bool:
    return (
        isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
    )


def asked(thing: Any) -> tuple[Report | None, str]:
    """A report and one line of it."""
    try:
        report = identify(thing)
    except (CannotProbe, TypeError) as error:
        return None, "no answer: " + str(error).partition(";")[0][:90]
    kinds = [report, *report.others]
    if not report.layers or not report.others:
        return report, report.brief()
    lines = (f"{ranges(kind.layers)}: {kind.brief()}" for kind in kinds)
    return report, "; ".join(lines)


def functions() -> None:
    counts: Counter[str] = Counter()
    odd = []
    for name, function in transformers_functions():
        report, said = asked(function)
        if report is None or not report.correct:
            kind = "no answer" if report is None else "broken"
            odd.append((name, said))
        else:
            other = textbook(function)
            kind = f"correct, {report.pairing}"
            kind += ", as the formula" if other == report.pairing else ""
            if other not in (None, report.pairing):
                odd.append((name, f"{report.pairing}, but the formula says {other}"))
        counts[kind] += 1
    print(f"\n## Functions of transformers: {counts.total()}\n")
    print("| answer | functions |\n|---|---|")
    for kind, count in counts.most_common():
        print(f"| {kind} | {count} |")
    print("\n| not called correct | why |\n|---|---|")
    for name, said in odd:
        print(f"| {name} | {said} |")


def models() -> None:
    from transformers import AutoConfig, AutoModel

    print("\n## Whole models of transformers, at toy size\n")
    print("| model | what each kind of layer does |\n|---|---|")
    for family, more in MODELS.items():
        config = AutoConfig.for_model(family, **SIZES | more)
        print(f"| {family} | {asked(AutoModel.from_config(config).eval())[1]} |")


def others() -> None:
    makers = {
        "torchtune": ("torchtune.modules", "RotaryPositionalEmbeddings"),
        "x-transformers": ("x_transformers.x_transformers", "RotaryEmbedding"),
        "rotary-embedding-torch": ("rotary_embedding_torch", "RotaryEmbedding"),
    }
    print("\n## Other libraries\n\n| library | answer | notes |\n|---|---|---|")
    for name, (module, made) in makers.items():
        try:
            found = getattr(importlib.import_module(module), made)(64)
        except (ImportError, PackageNotFoundError):
            continue
        report, said = asked(found)
        notes = "; ".join(report.notes) if report else ""
        print(f"| {name} {version(name)} | {said} | {notes} |")


def faults() -> None:
    from tests.broken import BROKEN

    named = 0
    for function, options, fault, _ in BROKEN:
        named += identify(function, **options).fault == fault
    print(f"\n## Planted faults\n\n{named} of {len(BROKEN)} get their name.")


def limits() -> None:
    """What the docstring says that no probe can tell, so that it is said once."""
    text = str(sys.modules["rope_teach.identify"].__doc__)
    told = text.partition("What cannot be told from outside:\n")[2]
    print("\n## What it cannot tell\n" + told.rpartition("\nLesson")[0].rstrip())


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    started = time.time()
    print("# What identify says of what is installed\n")
    installed = f"torch {version('torch')} and transformers {version('transformers')}"
    print(f"Made by `python benchmarks/identify.py`, with {installed}.")
    for part in (functions, models, others, faults, limits):
        part()
    print(f"\n{time.time() - started:.0f} s in all, on one thread.", file=sys.stderr)


if __name__ == "__main__":
    main()
