"""Figures draw what they are given, with alt text, the same bytes each time."""

import io
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from rope_teach.course import plots

FIGURES = {
    "lines": lambda: plots.lines(
        [1, 2, 3],
        {"a": [1, 2, 4], "b": [0, 1, 0]},
        xlabel="x",
        ylabel="y",
        alt="a rises",
        bands={"a": ([0, 1, 3], [2, 3, 5])},
        marks={"T": 2},
        logy=False,
    ),
    "bars": lambda: plots.bars(
        {"none": 0.5, "causal": 1.0},
        ylabel="accuracy",
        alt="causal wins",
        spread={"none": (0.4, 0.6)},
        line=("chance", 0.5),
    ),
    "heatmaps": lambda: plots.heatmaps(
        {"left": np.eye(3), "right": -np.eye(3)}, alt="two diagonals", numbers="{:.0f}"
    ),
    "clocks": lambda: plots.clocks([[0.0, 1.0], [2.0, 3.0]], alt="four hands"),
    "arrows": lambda: plots.arrows({"one": {"q": (1.0, 0.0)}}, alt="an arrow"),
    "pairs": lambda: plots.pairs({"half": [0, 1, 0, 1]}, alt="four boxes"),
    "compared_banks": lambda: plots.compared_banks(
        ["one", "two"], [1.0, 0.5], 0, 1, alt="two banks"
    ),
    "roofline": lambda: plots.roofline(
        [1e9, 1e6], {"copy": [1e-3, 1e-6], "ours": [2e-3, 2e-6]}, roof="copy", alt="two"
    ),
    "letters": lambda: plots.letters(
        {"0 to 2": "a$\n"}, [[0.0, 4.0, 9.0]], label="loss", top=8.0, alt="three"
    ),
    "attention_map": lambda: plots.attention_map(
        [[0.9, 0.1], [0.2, 0.8]], ["pump", "."], ["pump", "jams"], alt="a map"
    ),
    "scoreboard": lambda: plots.scoreboard(
        {"one": "promises much", "two": "promises little"},
        {"loss": {"one": 2.0, "two": 1.0}, "share": {"one": 0.5}},
        best={"loss": "low", "share": "high"},
        alt="two rows",
    ),
    "marks": lambda: plots.marks(
        {"seen": [("one", "b")], "unseen": [("two", "a")]},
        ["one", "two"],
        ["a", "b"],
        alt="two marks",
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_shown_as_a_figure_with_alt_text(name):
    figure = FIGURES[name]()
    shown = figure._repr_mimebundle_()
    assert shown["text/plain"] == figure.alt
    assert f'alt="{figure.alt}"' in shown["text/html"]
    picture = FIGURES[name]().picture()
    assert picture == FIGURES[name]().picture()
    assert Image.open(io.BytesIO(picture)).format == "WEBP"


def test_alt_text_is_demanded_and_escaped():
    with pytest.raises(ValueError, match="alt must say"):
        plots.arrows({"one": {"q": (1.0, 0.0)}}, alt="  ")
    shown = plots.arrows({"one": {"q": (1.0, 0.0)}}, alt='a < b "so"')
    assert "a &lt; b &quot;so&quot;" in shown._repr_mimebundle_()["text/html"]


def test_what_was_drawn_can_be_asked_for():
    assert FIGURES["lines"]().drawn("b").tolist() == [0, 1, 0]
    assert FIGURES["bars"]().drawn("bars").tolist() == [0.5, 1.0]
    with pytest.raises(KeyError, match="no line or bars are labelled 'c'"):
        FIGURES["lines"]().drawn("c")


def test_a_hand_at_angle_zero_points_right_and_turns_counter_clockwise():
    axes = plots.clocks([[0.0, np.pi / 2]], alt="two hands").axes[0]
    (right, up) = (line for line in axes.lines if len(line.get_xdata()) == 2)
    assert np.allclose(right.get_xydata(), [[0, 0], [0.4, 0]])
    assert np.allclose(up.get_xydata(), [[1, 0], [1, 0.4]])


# ------------------------------------------------------------------ how it looks

LOOKS = {
    f"{family}: {name}": look
    for family, entries in plots.FAMILIES.items()
    for name, look in entries.items()
} | {f"others: {look.colour}": look for look in plots.OTHERS}
FAMILIES = [*(list(f.values()) for f in plots.FAMILIES.values()), plots.OTHERS]


def drawn_with(labels, **kwargs):
    series = {label: [1.0, 2.0, 4.0] for label in labels}
    return plots.lines([1, 2, 3], series, xlabel="x", ylabel="y", alt="x", **kwargs)


def light(colour):
    """The intensities of red, green and blue, linear, as WCAG 2 defines them."""
    c = np.asarray(colour)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The contrast of two colours, from 1 to 21 (WCAG 2)."""
    a, b = (light(c) @ [0.2126, 0.7152, 0.0722] + 0.05 for c in (one, other))
    return max(a / b, b / a)


def lab(colour):
    """A colour as CIE L*a*b*, in which a distance of 2 can just be seen."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722],
              [0.0193, 0.1192, 0.9505]]  # fmt: skip
    x, y, z = np.cbrt(np.array(to_xyz) @ light(colour) / [0.9505, 1.0, 1.089] + 1e-3)
    return np.array([116 * y, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("name", LOOKS)
def test_a_line_stands_out_from_white_and_from_its_own_band(name):
    colour = np.array(to_rgb(LOOKS[name].colour))
    band = plots.BAND * colour + 1 - plots.BAND
    assert min(contrast(colour, (1, 1, 1)), contrast(colour, band)) >= 3


@pytest.mark.parametrize("looks", FAMILIES, ids=[*plots.FAMILIES, "others"])
def test_no_two_of_one_family_look_alike(looks):
    for one, other in itertools.combinations(looks, 2):
        apart = np.linalg.norm(lab(to_rgb(one.colour)) - lab(to_rgb(other.colour)))
        assert apart > 20, (one, other)
        assert one.marker != other.marker
        # Two share a style only if they are far apart for every kind of eye.
        assert one.style != other.style or apart > 60, (one, other)


@pytest.mark.parametrize(
    ("label", "entry"),
    {
        "rope": "RoPE",
        "RoPE, 8 layers": "RoPE",
        "RoPE,\nmarked start": "RoPE",
        "NTK-aware": "NTK",
        "dynamic NTK": "dynamic NTK",
        "Hugging Face\ncompiled": "Hugging Face, compiled",
        "ours, half": "ours",
    }.items(),
)
def test_a_label_looks_like_the_entry_with_which_it_begins(label, entry):
    (wanted,) = (f[entry] for f in plots.FAMILIES.values() if entry in f)
    assert plots.looks(["unseen", label])[label] == wanted


@pytest.mark.parametrize("label", ["pieces", "ropes", "halfway", "a RoPE"])
def test_other_labels_get_what_the_known_ones_leave(label):
    chosen = plots.looks([label, "RoPE"])
    assert chosen["RoPE"] == plots.FAMILIES["encodings"]["RoPE"]
    assert chosen[label].colour != chosen["RoPE"].colour


def test_lines_of_one_figure_never_look_the_same():
    labels = ["RoPE", "RoPE, gaps", "RoPE, both", "none", *map(str, range(12))]
    lines = drawn_with(labels).axes[0].lines
    kinds = {(line.get_color(), str(line._dash_pattern)) for line in lines}
    assert len(kinds) == len(labels)
    assert lines[0].get_color() == lines[1].get_color() == plots.BLUE


def test_bars_take_the_colours_of_the_lines():
    figure = plots.bars({"RoPE": 1.0, "16 bytes": 0.5}, ylabel="y", alt="two bars")
    colours = [bar.get_facecolor()[:3] for bar in figure.axes[0].patches]
    assert colours == [to_rgb(plots.BLUE), to_rgb(plots.SLATE)]


def test_the_style_reaches_what_is_drawn():
    axes = drawn_with(["sinusoidal", "learned"]).axes[0]
    legend = axes.get_legend()
    assert not legend.get_frame_on()
    assert {text.get_fontsize() for text in legend.get_texts()} == {13.0}
    assert {line.get_linewidth() for line in axes.lines} == {2.2}


def test_the_picture_keeps_the_colours_of_the_lines():
    labels = [*plots.FAMILIES["encodings"], *"abcd"]
    bands = {label: ([0, 1, 3], [2, 3, 5]) for label in labels}
    series = {label: np.array([1.0, 2, 4]) + i for i, label in enumerate(labels)}
    figure = plots.lines(
        [1, 2, 3], series, xlabel="x", ylabel="y", alt="many", bands=bands
    )
    picture = Image.open(io.BytesIO(figure.picture())).convert("RGB")
    kept = {colour for _, colour in picture.getcolors()}
    for line in figure.axes[0].lines:
        assert tuple(round(255 * c) for c in to_rgb(line.get_color())) in kept
    assert len(kept) <= 64
