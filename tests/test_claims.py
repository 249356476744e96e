"""`lessons/claims.md`: each verdict has its slide, and no trial lacks one."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest

from tests.test_setup import ROOT

LESSONS, RESULTS = ROOT / "lessons", ROOT / "rope_teach" / "course" / "results"
PAGE = (LESSONS / "claims.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^### (.+)\n\n((?:(?!^##).*\n?)*)", PAGE, re.M))
FORM = re.compile(
    r'> "(?P<claim>.+)"\n\n'
    r"\*\*Verdict: (?P<verdict>true|false|depends|measured only)\.\*\* (?P<why>.+)\n\n"
    r"- Conditions: (?P<conditions>.+)\n"
    r"- Evidence: \[lesson (?P<number>\d\d)\]\((?P<file>(?P=number)_\w+\.ipynb)\), "
    r"slide \*(?P<slide>[^*]+)\*; (?:computed live|result `(?P<result>\w+\.json)`)\n+"
)
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\d.,]*\d)")


@cache
def cells(file: str) -> list[dict]:
    """A lesson's cells."""
    return json.loads((LESSONS / file).read_text(encoding="utf-8"))["cells"]


def headings(file: str) -> list[str]:
    prose = ("".join(c["source"]) for c in cells(file) if c["cell_type"] == "markdown")
    return re.findall(r"^## (.+)", "\n".join(prose), re.M)


def numbers(text: str) -> set[str]:
    """The numbers in a text, without the commas that group their digits."""
    return {found.replace(",", "") for found in NUMBER.findall(text)}


def shown(file: str) -> set[str]:
    """The numbers that a lesson prints, says, or sets in its code."""
    said = []
    for cell in cells(file):
        said.append("".join(cell["source"]))
        for output in cell.get("outputs", ()):
            said.append("".join(output.get("text", ())))
    return numbers("\n".join(said))


@pytest.mark.parametrize("question", BLOCKS)
def test_a_claim_stands_on_a_slide(question):
    block = FORM.fullmatch(BLOCKS[question])
    assert block, f"{question}: not the form of the other blocks"
    assert question.endswith("?")
    assert block["slide"] in headings(block["file"])
    if block["result"]:
        assert (RESULTS / block["result"]).is_file()
        name = Path(block["result"]).stem
        code = "\n".join("".join(cell["source"]) for cell in cells(block["file"]))
        assert re.search(rf"\b{name}\b", code), f"the lesson does not read {name}"
    quoted = numbers(f"{block['why']} {block['conditions']}")
    assert quoted <= shown(block["file"]), "a number that the lesson does not show"


@pytest.mark.parametrize("lesson", sorted(LESSONS.glob("[0-9]*.ipynb")), ids=str)
def test_each_trial_has_its_claim(lesson):
    trials = {title for title in headings(lesson.name) if title.startswith("On trial")}
    judged = {
        (b["file"], b["slide"]) for b in map(FORM.fullmatch, BLOCKS.values()) if b
    }
    assert trials <= {slide for file, slide in judged if file == lesson.name}


def test_the_contents_lead_to_every_claim():
    def anchor(title: str) -> str:
        return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")

    listed = re.findall(r"^- \[(.+)\]\(#(.+)\)$", PAGE, re.M)
    assert listed == [(question, anchor(question)) for question in BLOCKS]
