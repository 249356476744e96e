"""The facts of "Ask the course", each computed by the package when the site is built.

`ask.md` names them in double braces: `{{families}}` is what `families()` returns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from paths import lessons

from rope_teach import RotaryEmbedding, inverse_frequencies, wavelengths
from rope_teach.course.training import stored_result
from rope_teach.dialects import gguf
from rope_teach.dialects.hugging_face import convert_checkpoint, rotary_embedding
from rope_teach.dialects.hugging_face import families as hf
from rope_teach.dialects.hugging_face.scaling import RULES
from rope_teach.frequencies import yarn

ROOT = Path(__file__).resolve().parents[1]

# What each rope_type needs to be said; the rule behind it is then read off.
NEEDED = {
    "linear": {},
    "dynamic": {},
    "yarn": {"original_max_position_embeddings": 4_096},
    "longrope": {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32,
                 "original_max_position_embeddings": 4_096},
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 4_096},
    "proportional": {"partial_rotary_factor": 0.5},
}  # fmt: skip


def table(*rows: tuple[object, ...]) -> str:
    """A Markdown table; the first row is its head."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


# ----------------------------------------------------------------------- who pairs how


def llama() -> str:
    """The pairing of Llama in each of its files."""
    theirs = hf.interleaved("llama", None)
    return table(
        ("files", "pairing of q and k"),
        ("Hugging Face's (`model_type` llama)", "interleaved" if theirs else "half"),
        ("llama.cpp's (GGUF, architecture llama)", gguf.pairing("llama")),
    )


def particulars(model_type: str) -> str:
    """What else a configuration of this type does not say."""
    said = []
    if share := hf.DEFAULTS.get((model_type, "partial_rotary_factor")):
        said.append(f"rotates {share:.0%} of a head unless told otherwise")
    if model_type in hf.ROTARY_DIM:
        said.append("rotates `rotary_dim` features of a head")
    if model_type in hf.FLAGGED:
        said.append("half if `rope_interleave` is false")
    if model_type in hf.CLOCKWISE:
        said.append("turns clockwise")
    if model_type in hf.TRAILING:
        said.append("rotates the last features of a head")
    if model_type in hf.UNROTATED:
        layers = hf.UNROTATED[model_type].replace("_", " ")
        said.append(f"layers of {layers} do not rotate")
    if model_type in hf.MULTIMODAL:
        how, sections = hf.MULTIMODAL[model_type]
        said.append(f"several coordinates, {how}" + f" {sections}" * bool(sections))
    return "; ".join(said)


def model_types() -> str:
    """Every ``model_type`` of transformers, and how it rotates."""
    types = sorted(hf.INTERLEAVED | hf.FLAGGED | hf.HALF)
    pairings = ["interleaved" if hf.interleaved(t, None) else "half" for t in types]
    rows = [
        (f"`{name}`", pairing, particulars(name))
        for name, pairing in zip(types, pairings, strict=True)
    ]
    return table(("model type", "pairing", "besides"), *rows)


def architectures() -> str:
    """Every architecture of llama.cpp, and its pairing."""
    names = sorted(gguf.INTERLEAVED | gguf.HALF)
    rows = ((f"`{name}`", gguf.pairing(name)) for name in names)
    return table(("architecture", "pairing"), *rows)


def how_many() -> str:
    """The two pairings, counted."""
    half, flagged = len(hf.HALF), len(hf.INTERLEAVED | hf.FLAGGED)
    return f"{half} of {half + flagged} model types pair halves, {flagged} neighbours"


def gptj() -> str:
    """The weights of a GPT-J's attention that a conversion reorders."""
    config = {"model_type": "gptj", "n_embd": 64, "n_head": 4, "rotary_dim": 8}
    names = [f"{name}_proj" for name in ("q", "k", "v", "out")]
    keys = {name: f"transformer.h.0.attn.{name}.weight" for name in names}
    before = {key: torch.randn(64, 64) for key in keys.values()}
    after = convert_checkpoint(before, config=config, target="half")
    new = [n for n in names if not torch.equal(before[keys[n]], after[keys[n]])]
    return " and ".join(f"`{name}`" for name in new)


# ----------------------------------------------------------------- what a field means


def rope_types() -> str:
    """Each ``rope_type`` and the function that it asks for."""
    rows = []
    for kind in RULES:
        scaling = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0}
        config = {"model_type": "llama", "head_dim": 64, "hidden_size": 4_096,
                  "num_attention_heads": 64, "max_position_embeddings": 16_384,
                  "rope_parameters": scaling | NEEDED[kind]}  # fmt: skip
        rule = rotary_embedding(config, length=16_384).scaling.func
        what = rule.__doc__.splitlines()[0].replace("``", "`")
        rows.append((f"`{kind}`", f"`{rule.__name__}`", what))
    return table(("`rope_type`", "`rope_teach.frequencies.`", "what it does"), *rows)


def yarn_factors() -> str:
    """YaRN's attention factor by scale, and what it does to a score."""
    rows = []
    for scale in (2, 4, 8, 16, 32):
        _, factor = yarn(128, 10_000, factor=scale, trained_length=4_096)
        rows.append((scale, f"{factor:.3f}", f"{factor**2:.3f}"))
    return table(("scale *s*", "cos and sin times", "scores times"), *rows)


def reach() -> str:
    """The longest wavelength by base and head size."""
    widths = (64, 128, 256)
    rows = [("base (`rope_theta`)", *(f"{width} features" for width in widths))]
    for base in (10_000.0, 500_000.0, 1_000_000.0):
        longest = [wavelengths(inverse_frequencies(w, base)).max() for w in widths]
        rows.append((f"{base:,.0f}", *(f"{value:,.0f}" for value in longest)))
    return table(*rows)


# -------------------------------------------------------------------------- numbers


def parameters() -> str:
    """How many weights RoPE adds."""
    return str(sum(p.numel() for p in RotaryEmbedding(128).parameters()))


def places() -> str:
    """How many of 4,096 positions each type of number can tell apart."""
    types = (torch.bfloat16, torch.float16, torch.float32)
    positions = torch.arange(4_096)
    counts = [positions.to(kind).unique().numel() for kind in types]
    names = [str(kind).removeprefix("torch.") for kind in types]
    rows = [(name, f"{count:,}") for name, count in zip(names, counts, strict=True)]
    return table(("positions in", "different ones among 4,096"), *rows)


def beside_a_copy() -> str:
    """The rotation's GPU time as a multiple of copying q and k, by shape."""
    stored = stored_result("gpu")
    rows = {(row["shape"], row["name"]): row for row in stored["rows"]}
    found = []
    for shape in (shape["name"] for shape in stored["shapes"]):
        copy, ours = rows[shape, "copy of q and k"], rows.get((shape, "ours, half"))
        if ours:
            found.append((shape, f"{ours['gpu'] / copy['gpu']:.2f}"))
    return table((f"shape, on one {stored['machine']['gpu']}", "time / copy"), *found)


def planted_faults() -> str:
    """How many planted faults ``identify`` names."""
    report = (ROOT / "benchmarks/results/identify.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^(\d+ of \d+) get their name\.$", report, re.MULTILINE)
    return found


def lesson_times() -> str:
    """How long lessons and their exercises take, from the shortest to the longest."""
    taught = sorted(lesson.minutes for lesson in lessons().values())
    practised = sorted(lesson.exercises for lesson in lessons().values())
    return (
        f"A lesson takes {taught[0]} to {taught[-1]} minutes, and its exercises "
        f"{practised[0]} to {practised[-1]} more"
    )


FACTS: dict[str, Callable[[], str]] = {
    fact.__name__: fact
    for fact in (
        llama, model_types, architectures, how_many, gptj, rope_types, yarn_factors,
        reach, parameters, places, beside_a_copy, planted_faults, lesson_times,
    )
}  # fmt: skip


def filled(text: str) -> str:
    """Put each fact where the text names it; an unknown name raises ``KeyError``."""
    return re.sub(r"\{\{(\w+)\}\}", lambda name: FACTS[name[1]](), text)
