"""Figures draw what they are given, with alt text, the same bytes each time."""

import numpy as np
import pytest

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
    picture = FIGURES[name]().png()
    assert picture == FIGURES[name]().png()
    assert picture.startswith(b"\x89PNG")


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


def test_lines_differ_in_more_than_colour():
    axes = FIGURES["lines"]().axes[0]
    styles = [line.get_linestyle() for line in axes.lines[:2]]
    assert styles[0] != styles[1]
