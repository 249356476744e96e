"""The scoreboard of the five wishes: complete in the end, honest on the way."""

from pathlib import Path

import pytest

from rope_teach.course.wishes import VERDICTS, WISHES, board

LESSONS = {
    int(p.name[:2])
    for p in Path(__file__).parents[1].glob("lessons/[0-9][0-9]_*.ipynb")
}


def test_every_verdict_names_a_wish_a_mark_and_a_lesson():
    for wishes in VERDICTS.values():
        assert set(wishes) <= set(WISHES)
        for found in (one for verdicts in wishes.values() for one in verdicts):
            assert found.mark in ("yes", "partly", "no") and found.why
            assert found.lesson in LESSONS


def test_the_whole_board_has_no_gap():
    assert "?" not in str(board())
    assert board()._repr_html_().count("<td>") == 4 * 5


def test_a_lesson_shows_what_was_measured_so_far():
    assert "?" in str(board("RoPE", upto=3))
    assert board("RoPE", upto=2)._repr_html_().count("?") == 5
    early, late = (board("sinusoidal", upto=n).cells["any length"] for n in (2, 3))
    assert early["sinusoidal"].mark == "yes" and late["sinusoidal"].mark == "partly"


def test_an_unknown_encoding_is_named():
    with pytest.raises(ValueError, match=r"'rope' is not on the board.*RoPE"):
        board("rope")
