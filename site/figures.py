"""The figures of the benchmarks' pages, drawn from the stored results."""

from __future__ import annotations

from typing import Any

from rope_teach.course import plots
from rope_teach.course.training import stored_result

COPY = "copy of q and k"
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
    """GPU time of the forward pass, for each shape as a multiple of a copy."""
    times = {(row["shape"], row["name"]): row["gpu"] for row in stored["rows"]}
    shapes = [shape["name"] for shape in stored["shapes"]]
    canvas, [panels] = plots.new_canvas(
        3.4 + 2.3 * len(shapes),
        0.45 * len(names) + 1.6,
        columns=len(shapes),
        sharey=True,
    )
    said = []
    for shape, axes in zip(shapes, panels, strict=True):
        found = {name: times[shape, name] / times[shape, COPY]
                 for name in names if (shape, name) in times}  # fmt: skip
        drawn = axes.barh(list(found), list(found.values()), color=plots.BLUE)
        axes.bar_label(drawn, [f"{value:.2f}" for value in found.values()], padding=3)
        axes.axvline(1.0, color=plots.ORANGE, linestyle="--")
        axes.set_xlim(0, 1.35 * max(found.values()))
        axes.set_title(" ".join(shape.split()[:2]))
        axes.grid(visible=False, axis="y")
        said.append(f"{shape}: " + ", ".join(f"{n} {v:.2f}" for n, v in found.items()))
    panels[0].invert_yaxis()
    canvas.supxlabel("GPU time, as a multiple of copying q and k (less is better)")
    where = stored["machine"]["gpu"]
    alt = (
        f"GPU time of the forward pass on one {where}; a copy is 1. {'. '.join(said)}."
    )
    return plots.Figure(canvas, alt, f"{stored['machine']['command']}, on one {where}.")


def for_page(page: str) -> list[plots.Figure]:
    """The figures that belong on a page."""
    if page != "benchmarks/results/gpu.md":
        return []
    fused = stored_result("fusion")
    names = tuple(dict.fromkeys(row["name"] for row in fused["rows"]))
    return [
        beside_a_copy(stored_result("gpu"), SHOWN),
        beside_a_copy(fused, tuple(name for name in names if name != COPY)),
    ]
