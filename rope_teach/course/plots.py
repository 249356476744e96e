"""Every figure in the course, each with alt text and a caption.

A function takes numbers and returns a :class:`Figure`, which a notebook shows as
``<figure><img alt=... ><figcaption>``: the only form whose alt text survives in
JupyterLab, in slides and on web pages. Colours are Okabe and Ito's, darkened until a
thin line stands out from white and from its own band. Lines also differ in style, so
that nothing depends on colour alone. One encoding, rule, dtype or library looks the
same in the whole course: ``FAMILIES`` has the table, and a line's label chooses from
it. Interactive figures are in ``interactive.py``.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
import re
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter
from numpy.typing import ArrayLike, NDArray
from PIL import Image

__all__ = [
    "Figure",
    "lines",
    "bars",
    "heatmaps",
    "clocks",
    "arrows",
    "attention_map",
    "pairs",
    "compared_banks",
    "letters",
    "marks",
    "roofline",
    "flow",
    "scoreboard",
]

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#C65200", "#00795A", "#B8407F"
GOLD, PURPLE, BLACK = "#8A6400", "#6B45B0", "#000000"
TEAL, GREY, SLATE = "#008090", "#666666", "#54677A"
COLOURS = (BLUE, ORANGE, GREEN, PINK, GOLD, PURPLE, BLACK)
LONG, DENSE, TWO_DOTS = (0, (8, 2)), (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1))
STYLES = ("-", "--", "-.", ":", LONG, TWO_DOTS, DENSE)
MARKERS = "osDv^PX"


class Look(NamedTuple):
    """How the line of one label is drawn; its marker shows where points are few."""

    colour: str
    style: Any
    marker: str
    width: float = 2.2


# A label looks like the entry that it begins with: "RoPE, 8 layers" like "RoPE".
FAMILIES: dict[str, dict[str, Look]] = {
    "encodings": {
        "RoPE": Look(BLUE, "-", "o", 3.2),
        "sinusoidal": Look(ORANGE, "--", "s"),
        "learned": Look(GREEN, "-.", "D"),
        "ALiBi": Look(PINK, LONG, "v"),
        "none": Look(GREY, ":", "X"),
        "xPos": Look(GOLD, TWO_DOTS, "^"),
        "partial": Look(PURPLE, "--", "P"),
        "p-RoPE": Look(TEAL, DENSE, "<"),
        "every 2nd layer": Look(BLACK, DENSE, ">"),
    },
    "rules": {
        "no rule": Look(GREY, ":", "X"),
        "PI": Look(ORANGE, "--", "s"),
        "NTK": Look(GREEN, "-.", "D"),
        "dynamic NTK": Look(GOLD, TWO_DOTS, "^"),
        "YaRN": Look(PURPLE, "-", "o", 3.2),
        "Llama 3": Look(PINK, LONG, "v"),
        "LongRoPE": Look(TEAL, DENSE, "P"),
    },
    "dtypes": {
        "float64": Look(GREEN, "-.", "D"),
        "float32": Look(BLUE, "-", "o", 3.2),
        "bfloat16": Look(ORANGE, "--", "s"),
        "float16": Look(PURPLE, LONG, "v"),
    },
    "pairings": {
        "interleaved": Look(GOLD, "--", "s"),
        "half": Look(TEAL, "-", "o"),
    },
    "libraries": {
        "ours": Look(BLUE, "-", "o", 3.2),
        "Hugging Face": Look(ORANGE, "--", "s"),
        "Hugging Face, compiled": Look(GOLD, TWO_DOTS, "^"),
        "Liger": Look(GREEN, "-.", "D"),
        "complex form": Look(PURPLE, LONG, "v"),
        "x-transformers": Look(PINK, ":", "P"),
        "torchtune": Look(TEAL, DENSE, "X"),
    },
}
OTHERS = [Look(*look) for look in zip(COLOURS, STYLES, MARKERS, strict=True)]


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Return how each label of one figure looks: from ``FAMILIES``, or what is left.

    Labels that begin with one entry share its colour and differ in line style.
    """
    known = {label: _known(label) for label in labels}
    taken = {look.colour for look in known.values() if look}
    left = itertools.cycle([o for o in OTHERS if o.colour not in taken] or OTHERS)
    chosen: dict[str, Look] = {}
    for label, entry in known.items():
        look = entry or next(left)
        used = {other.style for other in chosen.values() if other.colour == look.colour}
        free = [style for style in (look.style, *STYLES) if style not in used]
        chosen[label] = look._replace(style=(free or STYLES)[0])
    return chosen


def _known(label: str) -> Look | None:
    """The look of the longest entry with which ``label`` begins."""
    spelt, entries = _spelt(label), ChainMap(*FAMILIES.values())
    begins = [n for n in entries if re.match(re.escape(_spelt(n)) + r"(?!\w)", spelt)]
    return entries[max(begins, key=len)] if begins else None


def _spelt(label: str) -> str:
    return re.sub(r"[\s,]+", " ", label).casefold()


STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "figure.facecolor": "white",  # opaque, so that it is readable on a dark page too
    "legend.frameon": False,
}
BAND = 0.15  # the opacity of the band around a line


class Figure:
    """A drawn figure with alt text, for one cell's output.

    ``axes`` are matplotlib's, so that a lesson can assert on what was drawn;
    ``drawn(label)`` returns the heights of the line or bars with that label.
    """

    def __init__(self, canvas: Canvas, alt: str, caption: str = "") -> None:
        if not alt.strip():
            raise ValueError("alt must say what the figure shows, got an empty string")
        self.canvas, self.alt, self.caption = canvas, " ".join(alt.split()), caption

    @property
    def axes(self) -> list[Axes]:
        return self.canvas.axes

    def drawn(self, label: str) -> NDArray[Any]:
        """Return the y values of the line, or the bar heights, with that ``label``."""
        for axes in self.axes:
            for line in axes.lines:
                if line.get_label() == label:
                    return np.asarray(line.get_ydata())
            for group in axes.containers:
                if group.get_label() == label:
                    return np.asarray([bar.get_height() for bar in group])
        raise KeyError(f"no line or bars are labelled {label!r}")

    def picture(self, dpi: int = 160) -> bytes:
        """Return the picture as lossless WebP with few colours, a third of a PNG.

        The commonest colours stay exact, and those of the lines are among them.
        """
        drawn, small = io.BytesIO(), io.BytesIO()
        with rc_context(STYLE):
            self.canvas.savefig(drawn, format="png", dpi=dpi)
        pixels = np.asarray(Image.open(drawn).convert("RGB")).astype(np.int64)
        packed, place, count = np.unique(
            pixels @ [1 << 16, 1 << 8, 1], return_inverse=True, return_counts=True
        )
        colours = packed[:, None] >> np.array([16, 8, 0]) & 255
        kept = 128 if any(axes.images for axes in self.axes) else 64
        common = colours[np.argsort(-count, kind="stable")[:kept]]
        nearest = ((common**2).sum(1) - 2 * colours @ common.T).argmin(1)
        few = common[nearest][place].reshape(pixels.shape).astype(np.uint8)
        Image.fromarray(few).save(small, "webp", lossless=True, quality=50, method=2)
        return small.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        picture = base64.b64encode(self.picture()).decode()
        caption = (
            self.caption and f"<figcaption>{html.escape(self.caption)}</figcaption>"
        )
        return {
            "text/plain": self.alt,
            "text/html": f'<figure style="margin:0"><img alt="{html.escape(self.alt)}" '
            f'style="max-width:100%" src="data:image/webp;base64,{picture}">'
            f"{caption}</figure>",
        }


def new_canvas(
    width: float = 9.0,
    height: float = 4.0,
    rows: int = 1,
    columns: int = 1,
    **kwargs: Any,
) -> tuple[Canvas, NDArray[Any]]:
    """Return an empty canvas and its axes ``(rows, columns)``."""
    canvas = Canvas(figsize=(width, height), layout="constrained")
    return canvas, canvas.subplots(rows, columns, squeeze=False, **kwargs)


@rc_context(STYLE)
def lines(
    x: ArrayLike,
    series: Mapping[str, ArrayLike],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    caption: str = "",
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    marks: Mapping[str, float] | None = None,
    levels: Mapping[str, float] | None = None,
    logx: bool = False,
    logy: bool = False,
    ylim: tuple[float, float] | None = None,
    height: float = 4.0,
) -> Figure:
    """Draw a line for each label, with its band (low, high) where ``bands`` has one.

    ``marks`` are named vertical lines, ``levels`` named horizontal ones.
    """
    canvas, [[axes]] = new_canvas(height=height)
    for label, look in looks(series).items():
        y = np.asarray(series[label])
        axes.plot(
            x, y, label=label, color=look.colour, linestyle=look.style,
            linewidth=look.width, zorder=look.width,
            marker=look.marker if len(y) <= 12 else "",
        )  # fmt: skip
        if bands and label in bands:
            axes.fill_between(x, *bands[label], color=look.colour, alpha=BAND,
                              linewidth=0)  # fmt: skip
    for label, place in (marks or {}).items():
        axes.axvline(place, color=GREY, linewidth=1.4)
        axes.annotate(
            label, (place, 1.0), xycoords=("data", "axes fraction"),
            xytext=(0, 3), textcoords="offset points", ha="center", color="#444444",
        )  # fmt: skip
    for label, place in (levels or {}).items():
        axes.axhline(place, color=GREY, linewidth=1.4)
        axes.annotate(
            label, (0.0, place), xycoords=("axes fraction", "data"),
            xytext=(4, 2), textcoords="offset points", color="#444444", zorder=4,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if logx:
        axes.set_xscale("log")
    if logy:
        axes.set_yscale("log")
    axes.set_ylim(ylim)  # after the scale, since it turns off automatic limits
    if len(series) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return Figure(canvas, alt, caption)


@rc_context(STYLE)
def bars(
    values: Mapping[str, float],
    *,
    ylabel: str,
    alt: str,
    caption: str = "",
    spread: Mapping[str, tuple[float, float]] | None = None,
    line: tuple[str, float] | None = None,
    number: str = "{:.2f}",
    ylim: tuple[float, float] | None = None,
    height: float = 4.0,
) -> Figure:
    """Draw one bar per label with its number; ``spread`` (low, high) as a whisker.

    ``line`` draws a named horizontal line, for example chance.
    """
    canvas, [[axes]] = new_canvas(height=height)
    known = map(_known, values)
    colours = [look.colour if look else SLATE for look in known]
    drawn = axes.bar(
        list(values), list(values.values()), color=colours, width=0.6, label="bars"
    )
    numbers = {label: number.format(v) for label, v in values.items()}
    spread = spread or {}
    axes.bar_label(
        drawn, ["" if n in spread else numbers[n] for n in values], padding=3
    )
    for place, label in enumerate(values):
        if label in spread:
            axes.vlines(place, *spread[label], color=BLACK, linewidth=2)
            above = place, max(values[label], *spread[label])
            axes.annotate(numbers[label], above, (0, 3), textcoords="offset points",
                          ha="center")  # fmt: skip
    if line:
        chance = axes.axhline(line[1], color=ORANGE, linestyle="--", label=line[0])
        axes.legend(handles=[chance], loc="upper right")
    axes.set(ylabel=ylabel, ylim=ylim)
    axes.grid(visible=False, axis="x")
    return Figure(canvas, alt, caption)


@rc_context(STYLE)
def heatmaps(
    matrices: Mapping[str, ArrayLike],
    *,
    alt: str,
    caption: str = "",
    xlabel: str = "",
    ylabel: str = "",
    diverging: bool = True,
    numbers: str = "",
    height: float = 4.0,
) -> Figure:
    """Draw matrices side by side on one scale; ``numbers`` formats each entry.

    Diverging colours put white at zero; otherwise dark is low and light is high.
    """
    arrays = {title: np.asarray(matrix) for title, matrix in matrices.items()}
    top = max(float(np.abs(a).max()) for a in arrays.values()) or 1.0
    low = -top if diverging else min(float(a.min()) for a in arrays.values())
    high = top if diverging else max(float(a.max()) for a in arrays.values())
    canvas, axes = new_canvas(height=height, columns=len(arrays))
    for place, (title, array) in zip(axes[0], arrays.items(), strict=True):
        image = place.imshow(
            array, cmap="RdBu_r" if diverging else "cividis", vmin=low, vmax=high,
            aspect="auto" if array.shape[0] != array.shape[1] else "equal",
        )  # fmt: skip
        place.set(title=title, xlabel=xlabel, ylabel=ylabel)
        place.grid(visible=False)
        if numbers:
            _write_numbers(place, array, numbers, low, high, diverging)
    canvas.colorbar(image, ax=list(axes[0]), shrink=0.85)
    return Figure(canvas, alt, caption)


def _write_numbers(
    axes: Axes,
    array: NDArray[Any],
    numbers: str,
    low: float,
    high: float,
    diverging: bool,
) -> None:
    middle = (low + high) / 2
    for (row, column), value in np.ndenumerate(array):
        strong = (
            abs(value - middle) > 0.3 * (high - low) if diverging else value < middle
        )
        axes.text(
            column, row, numbers.format(value), ha="center", va="center", fontsize=11,
            color="white" if strong else "black",
        )  # fmt: skip


@rc_context(STYLE)
def clocks(
    angles: ArrayLike,
    *,
    alt: str,
    caption: str = "",
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    scale: float = 1.05,
    colour_rows: bool = False,
) -> Figure:
    """Draw a bank of clock hands: ``angles`` ``(rows, hands)`` in radians.

    A hand at angle 0 points right and turns counter-clockwise, as in mathematics.
    Each column has its own colour, or each row with ``colour_rows``.
    """
    grid = np.atleast_2d(np.asarray(angles, dtype=float))
    height, width = grid.shape
    canvas, [[axes]] = new_canvas(
        min(11.0, scale * width + 1.6), min(5.4, scale * height + 0.6)
    )
    for (row, column), angle in np.ndenumerate(grid):
        colour = COLOURS[(row if colour_rows else column) % 7]
        _dial(axes, (column, -row), [angle], colour)
    axes.set_aspect("equal")
    axes.set(xlim=(-0.6, width - 0.4), ylim=(0.4 - height, 0.6))
    axes.set_xticks(range(width), columns or [f"hand {i}" for i in range(width)])
    axes.set_yticks(range(0, -height, -1), rows or [f"m = {m}" for m in range(height)])
    axes.xaxis.tick_top()
    _bare(axes)
    return Figure(canvas, alt, caption)


@rc_context(STYLE)
def arrows(
    panels: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    alt: str,
    caption: str = "",
    height: float = 3.8,
) -> Figure:
    """Draw named two-dimensional arrows from the origin, one panel per title."""
    canvas, axes = new_canvas(height=height, columns=len(panels))
    tips = np.array([tip for panel in panels.values() for tip in panel.values()])
    room = 0.25 * np.hypot(*tips.T).max()  # around the arrows, for their names
    low, high = np.minimum(tips.min(0), 0) - room, np.maximum(tips.max(0), 0) + room
    for place, (title, panel) in zip(axes[0], panels.items(), strict=True):
        for number, (label, (a, b)) in enumerate(panel.items()):
            place.annotate(
                "", (a, b), (0, 0),
                arrowprops={"arrowstyle": "-|>", "color": COLOURS[number], "lw": 2.6},
            )  # fmt: skip
            place.text(
                1.12 * a, 1.12 * b, label, color=COLOURS[number],
                ha="center", va="center", fontweight="bold",
            )  # fmt: skip
        place.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), title=title)
        place.set_aspect("equal")
        place.set(xticks=[], yticks=[])
        place.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        place.axvline(0, color=GREY, linewidth=0.8, zorder=0)
        _bare(place)
    return Figure(canvas, alt, caption)


@rc_context(STYLE)
def pairs(rows: Mapping[str, Sequence[int]], *, alt: str, caption: str = "") -> Figure:
    """Draw rows of features as boxes; boxes with the same number share a clock hand."""
    width = max(len(row) for row in rows.values())
    canvas, [[axes]] = new_canvas(9.0, 1.1 * len(rows) + 0.8)
    for place, row in enumerate(rows.values()):
        for feature, hand in enumerate(row):
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (feature, -place), 0.92, 0.72, color=COLOURS[hand % 7], alpha=0.85
                )
            )
            axes.text(
                feature + 0.46, 0.36 - place, f"hand {hand}",
                ha="center", va="center", color="white", fontweight="bold", fontsize=12,
                bbox={"facecolor": "#222222", "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
    axes.set(xlim=(-0.1, width), ylim=(0.9 - len(rows), 0.85))
    axes.set_xticks([i + 0.46 for i in range(width)], [str(i) for i in range(width)])
    axes.set_yticks([0.36 - i for i in range(len(rows))], list(rows))
    axes.set_xlabel("feature of the head")
    _bare(axes)
    return Figure(canvas, alt, caption)


def _bare(axes: Axes) -> None:
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


@rc_context(STYLE)
def compared_banks(
    words: Sequence[str],
    inv_freq: ArrayLike,
    m: int,
    n: int,
    *,
    alt: str,
    caption: str = "",
) -> Figure:
    """Draw a bank of hands under each word, and words ``m`` and ``n`` compared.

    ``inv_freq`` ``(hands,)`` is in radians per token. In the last column the two
    hands share a dial, with the angle between them shaded and its cosine written
    beside it; below them is the sum of the cosines. Lesson 00.
    """
    steps = np.asarray(inv_freq, dtype=float)
    gap = 1.35  # between words; a dial is one unit wide
    last, bottom = gap * (len(words) + 0.2), -len(steps)
    canvas, [[axes]] = new_canvas(11.0, 5.0)
    for place, word in enumerate(words):
        chosen = place in (m, n)
        weight = "bold" if chosen else "normal"
        axes.text(gap * place, 0.72, word, ha="center", fontweight=weight, fontsize=15)
        axes.text(
            gap * place, bottom + 0.25, f"m = {place}", ha="center", color="#444444"
        )
        for row, step in enumerate(steps):
            alpha = 1.0 if chosen else 0.3
            _dial(axes, (gap * place, -row), [place * step], COLOURS[row], alpha)
    for row, step in enumerate(steps):
        turns = [m * step, n * step]
        _dial(axes, (last, -row), turns, COLOURS[row])
        wedge = matplotlib.patches.Wedge(
            (last, -row),
            0.3,
            *np.degrees(sorted(turns)),
            color=COLOURS[row],
            alpha=0.25,
        )
        axes.add_patch(wedge)
        cosine = math.cos(turns[1] - turns[0])
        axes.text(last + 0.6, -row, f"cos = {cosine:.2f}", va="center")
    title = f"{words[m]} and {words[n]}"
    axes.text(last, 0.72, title, ha="center", fontweight="bold", fontsize=15)
    score = np.cos((n - m) * steps).sum()
    axes.text(last, bottom + 0.25, f"score = {score:.2f}", ha="center",
              fontweight="bold")  # fmt: skip
    axes.set(xlim=(-0.5, last + 1.7), ylim=(bottom + 0.1, 1.0), xticks=[], yticks=[])
    axes.set_aspect("equal")
    _bare(axes)
    return Figure(canvas, alt, caption)


def _dial(
    axes: Axes,
    centre: tuple[float, float],
    angles: Sequence[float],
    colour: str,
    alpha: float = 1.0,
) -> None:
    x, y = centre
    axes.add_patch(
        matplotlib.patches.Circle(centre, 0.42, fill=False, color=GREY, alpha=alpha)
    )
    for angle, style in zip(angles, ("-", (0, (2, 1))), strict=False):
        axes.plot(
            [x, x + 0.4 * math.cos(angle)], [y, y + 0.4 * math.sin(angle)],
            color=colour, linestyle=style, linewidth=3, alpha=alpha,
            solid_capstyle="round",
        )  # fmt: skip
    axes.plot(x, y, "o", color=BLACK, markersize=3, alpha=alpha)


@rc_context(STYLE)
def roofline(
    moved: ArrayLike,
    seconds: Mapping[str, ArrayLike],
    *,
    roof: str,
    alt: str,
    caption: str = "",
    height: float = 4.4,
) -> Figure:
    """Draw the bytes per second that each label reaches, against the bytes to move.

    ``moved`` ``(workloads,)`` is the least that each workload must read and write,
    ``seconds[label]`` ``(workloads,)`` the time it took. The label ``roof``, a copy,
    is drawn as the roof over the others. Lesson 18.
    """
    size = np.asarray(moved, dtype=float)
    order = np.argsort(size, kind="stable")
    canvas, [[axes]] = new_canvas(height=height)
    chosen = {roof: Look(GREY, "-", "o", 7)} | looks(n for n in seconds if n != roof)
    for label, took in seconds.items():
        look = chosen[label]
        axes.plot(
            size[order],
            (size / np.asarray(took, dtype=float) / 1e12)[order],
            label=label,
            color=look.colour,
            linestyle=look.style,
            linewidth=look.width,
            alpha=0.4 if label == roof else 1.0,
            marker=look.marker,
            markersize=7,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="bytes that must move",
        ylabel="reached (TB per second)",
    )
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower right", ncols=2, fontsize=11)
    return Figure(canvas, alt, caption)


@rc_context(STYLE)
def flow(
    boxes: Mapping[str, tuple[float, float, str]],
    links: Sequence[tuple[str, str]],
    *,
    alt: str,
    caption: str = "",
    marked: Sequence[str] = (),
    height: float = 4.4,
) -> Figure:
    """Draw named boxes ``(column, row, text)`` and the arrows that join them.

    Row 0 is at the top. The ``marked`` boxes are highlighted. Lesson 09.
    """
    canvas, [[axes]] = new_canvas(11.0, height)
    drawn = {
        name: axes.text(
            column, -row, text,
            ha="center", va="center", fontsize=12, linespacing=1.5,
            color="white" if name in marked else "black",
            fontweight="bold" if name in marked else "normal",
            bbox={
                "boxstyle": "round,pad=0.5",
                "facecolor": BLUE if name in marked else "#eef3f8",
                "edgecolor": GREY,
            },
        )
        for name, (column, row, text) in boxes.items()
    }  # fmt: skip
    centre = {name: (column, -row) for name, (column, row, _) in boxes.items()}
    for start, end in links:
        axes.annotate(
            "", centre[end], centre[start],
            arrowprops={
                "arrowstyle": "-|>", "color": "#444444", "lw": 1.8,
                "patchA": drawn[start].get_bbox_patch(),
                "patchB": drawn[end].get_bbox_patch(),
            },
        )  # fmt: skip
    columns, rows, _ = zip(*boxes.values(), strict=True)
    axes.set(xlim=(min(columns) - 0.6, max(columns) + 0.6), xticks=[], yticks=[])
    axes.set_ylim(-max(rows) - 0.6, 0.6 - min(rows))
    _bare(axes)
    return Figure(canvas, alt, caption)


@rc_context(STYLE)
def attention_map(
    weights: ArrayLike,
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    alt: str,
    caption: str = "",
    height: float = 4.4,
) -> Figure:
    """Draw ``weights`` ``(queries, keys)`` with the words of both texts; dark is high.

    Lesson 14.
    """
    canvas, [[axes]] = new_canvas(11.0, height)
    image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(keys)), keys, rotation=60, ha="right", fontsize=12)
    axes.set_yticks(range(len(queries)), queries, fontsize=12)
    axes.set(xlabel="word read", ylabel="word written")
    axes.grid(visible=False)
    canvas.colorbar(image, ax=axes, shrink=0.85, label="share of attention")
    return Figure(canvas, alt, caption)


@rc_context(STYLE)
def letters(
    rows: Mapping[str, str],
    values: Sequence[ArrayLike],
    *,
    top: float,
    label: str = "",
    alt: str,
    caption: str = "",
) -> Figure:
    """Draw text letter by letter; the larger its value (0 to ``top``), the darker.

    ``rows`` names each row of text, ``values`` has one number per letter of a row. A
    line break is shown as a bent arrow; ``label`` adds a scale. Lesson 12.
    """
    canvas, [[axes]] = new_canvas(12.5, 0.5 * len(rows) + 0.9)
    shade = matplotlib.colormaps["Oranges"]
    width = max(map(len, rows.values()))
    for place, (text, row) in enumerate(zip(rows.values(), values, strict=True)):
        for column, value in enumerate(np.asarray(row, dtype=float) / top):
            colour = shade(0.85 * min(1.0, max(0.0, float(value))))
            cell = (column - 0.5, -place - 0.45)
            axes.add_patch(
                matplotlib.patches.Rectangle(cell, 1, 0.9, color=colour, linewidth=0)
            )
            axes.text(
                column, -place, text[column].replace("\n", "↵").replace("$", r"\$"),
                ha="center", va="center", family="monospace", fontsize=14,
                color="white" if value > 0.8 else "black",
            )  # fmt: skip
    axes.set(xlim=(-0.6, width - 0.4), ylim=(0.5 - len(rows), 0.5), xticks=[])
    axes.set_yticks(range(0, -len(rows), -1), list(rows))
    _bare(axes)
    if label:
        scale = matplotlib.cm.ScalarMappable(
            matplotlib.colors.Normalize(0, top),
            matplotlib.colors.ListedColormap(shade(np.linspace(0, 0.85, 128))),
        )
        canvas.colorbar(scale, ax=axes, label=label, aspect=10)
    return Figure(canvas, alt, caption)


@rc_context(STYLE)
def scoreboard(
    rows: Mapping[str, str],
    columns: Mapping[str, Mapping[str, float]],
    *,
    best: Mapping[str, str],
    alt: str,
    caption: str = "",
    number: str = "{:.2f}",
) -> Figure:
    """Draw a table of results: ``rows`` name a method and, in small type, its promise.

    ``columns`` map a title to the available results, ``best`` the same title to
    ``"low"`` or ``"high"``. The darker a cell, the better within its column; the best
    is bold, and a dash marks what was not measured. Lesson 21.
    """
    canvas, [[axes]] = new_canvas(12.5, 0.62 * len(rows) + 1.1)
    shade = matplotlib.colormaps["Blues"]
    for place, (title, values) in enumerate(columns.items()):
        low, high = min(values.values()), max(values.values())
        lead, last = (high, low) if best[title] == "high" else (low, high)
        for row, name in enumerate(rows):
            value = values.get(name)
            good = 0.0 if value is None else (value - last) / ((lead - last) or 1.0)
            cell = (place - 0.48, -row - 0.46)
            axes.add_patch(
                matplotlib.patches.Rectangle(cell, 0.96, 0.92, color=shade(0.7 * good))
            )
            axes.text(
                place, -row, "–" if value is None else number.format(value),
                ha="center", va="center", color="white" if good > 0.75 else "black",
                fontsize=15, fontweight="bold" if value == lead else "normal",
            )  # fmt: skip
        axes.text(place, 0.62, title, ha="center", va="bottom", fontsize=11.5)
    for row, (name, promise) in enumerate(rows.items()):
        axes.text(
            -0.62, -row + 0.02, name, ha="right", va="bottom", fontsize=14,
            fontweight="bold",
        )  # fmt: skip
        axes.text(-0.62, -row - 0.04, promise, ha="right", va="top", fontsize=11.5)
    axes.set(xlim=(-2.4, len(columns) - 0.5), ylim=(0.5 - len(rows), 1.5))
    axes.set(xticks=[], yticks=[])
    _bare(axes)
    return Figure(canvas, alt, caption)


@rc_context(STYLE)
def marks(
    kinds: Mapping[str, Sequence[tuple[str, str]]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    alt: str,
    caption: str = "",
) -> Figure:
    """Draw a table with marks at ``(row, column)``; each kind has its own shape.

    Lesson 20.
    """
    canvas, [[axes]] = new_canvas(11.5, 0.28 * len(rows) + 1.7)
    for number, (label, places) in enumerate(kinds.items()):
        axes.plot(
            [columns.index(column) for _, column in places],
            [-rows.index(row) for row, _ in places],
            "osD^"[number], label=label, color=COLOURS[number], markersize=11,
            fillstyle="full" if number == 0 else "none", markeredgewidth=2,
        )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="left")
    axes.set_yticks(range(0, -len(rows), -1), list(rows))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set(xlim=(-0.6, len(columns) - 0.4), ylim=(0.4 - len(rows), 0.6))
    axes.legend(loc="best", fontsize=13)
    return Figure(canvas, alt, caption)
