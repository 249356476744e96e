"""The figures of the benchmarks' pages, drawn from the stored results."""

from __future__ import annotations

from typing import Any

from rope_teach.course import plots
from rope_teach.course.training import stored_result

COPY = "copy of q and k"
DRAWN = ("prefill bf16", "train bf16", "decode bf16")
SHOWN = (
    "ours, half",
    "Liger (in place)",
    "flash-attention, half",
    "Hugging Face, compiled",
    "torchtune, compiled",
    "x-transformers",
    "Hugging Face",
)


def beside_a_copy(stored: dict[str, Any], names: tuple[str, ...]) -> plots.Figure:
    """GPU time of the forward pass, for a few shapes, as a multiple of a copy."""
    times = {(row["shape"], row["name"]): row["gpu"] for row in stored["rows"]}
    shapes = [s["name"] for s in stored["shapes"] if s["name"].startswith(DRAWN)]
    height = 0.45 * len(names) + 1.6
    canvas, [panels] = plots.new_canvas(11, height, columns=len(shapes), sharey=True)
    said = []
    for shape, axes in zip(shapes, panels, strict=True):
        found = {name: times[shape, name] / times[shape, COPY]
                 for name in names if (shape, name) in times}  # fmt: skip
        axes.plot(list(found.values()), list(found), "o", color=plots.BLUE)
        for name, value in found.items():
            axes.annotate(
                f"{value:.2f}", (value, name), xytext=(7, -4), fontsize=11,
                textcoords="offset points",
            )  # fmt: skip
        axes.axvline(1.0, color=plots.ORANGE, linestyle="--")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(0.4, 3 * max(found.values()))
        axes.set_title(" ".join(shape.split()[:2]))
        said.append(f"{shape}: " + ", ".join(f"{n} {v:.2f}" for n, v in found.items()))
    panels[0].invert_yaxis()
    canvas.supxlabel("GPU time as a multiple of copying q and k (less is better)")
    where = stored["machine"]["gpu"]
    alt = f"GPU time, forward, on one {where}; a copy is 1. {'. '.join(said)}."
    return plots.Figure(canvas, alt, f"{stored['machine']['command']}, on one {where}.")


def for_page(page: str) -> list[plots.Figure]:
    """The figures that belong on a page."""
    if page != "benchmarks/results/gpu.md":
        return []
    fused = stored_result("fusion")
    names = dict.fromkeys(row["name"] for row in fused["rows"] if row["name"] != COPY)
    return [
        beside_a_copy(stored_result("gpu"), SHOWN),
        beside_a_copy(fused, tuple(names)),
    ]
