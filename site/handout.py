"""Print the course: `python site/handout.py`.

Two PDFs go to `build/handout`: one for students, with the answers of Predict at the end
of each lesson, and one for teachers, with their notes and the solutions. Chromium
prints them; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
import tempfile
from datetime import date
from pathlib import Path

import nbformat
from nbconvert.exporters import HTMLExporter
from nbformat import NotebookNode
from playwright.sync_api import Browser, Page
from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, TextStringObject
from traitlets.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paths import title_slide

from rope_teach.course.exercises import find
from slides.build import EXPORTER, copy_assets, lesson_notebooks
from tests.browser import chromium, find_chromium

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "build" / "handout"
TITLE = "How does a transformer know where its tokens are?"
READERS = ("students", "teachers")
CARD = re.compile(r"<details><summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
FOLD = re.compile(r"</?details>|<summary>.*?</summary>")

# The cells of a deck, without the deck around them.
CELLS = Config(
    EXPORTER,
    HTMLExporter={**EXPORTER.SlidesExporter, "template_name": "deck"},
)
BARE = "{% extends 'index.html.j2' %}{% block header %}{% endblock %}"
BARE += "{% block footer %}{% endblock %}"


# --------------------------------------------------------------------------- one lesson


def kind(cell: NotebookNode) -> str:
    """The slide type of a cell."""
    return str(cell.metadata.get("slideshow", {}).get("slide_type", ""))


def prose(source: str) -> NotebookNode:
    """A new cell of Markdown."""
    return nbformat.v4.new_markdown_cell(source)


def box(name: str, source: str) -> NotebookNode:
    """A cell of Markdown in a box of its own."""
    return prose(f'<div class="{name}">\n\n{source.strip()}\n\n</div>')


def solved(cell: NotebookNode) -> list[NotebookNode]:
    """The solution of the exercise whose stub this cell is, or nothing."""
    tags = cell.metadata.get("tags", [])
    keys = [t.removeprefix("exercise-") for t in tags if t.startswith("exercise-")]
    tasks = [find(key) for key in keys]
    return [
        box("solution", f"**Solution**\n\n```python\n{t.solution}\n```\n\n{t.why}")
        for t in tasks
    ]


def for_students(notebook: NotebookNode) -> None:
    """Take the teacher's notes out, and the answers of Predict to the end."""
    answers = []
    kept = [cell for cell in notebook.cells if kind(cell) != "notes"]
    for cell in kept:
        if cell.cell_type == "markdown" and "## Predict" in cell.source:
            answers += [
                f"**{choice}** {why}" for choice, why in CARD.findall(cell.source)
            ]
            cell.source = CARD.sub(r'<p class="choice">\1</p>', cell.source)
    if answers:
        kept.append(box("answers", "\n\n".join(["## Predict: the answers", *answers])))
    notebook.cells = kept


def for_teachers(notebook: NotebookNode) -> None:
    """Lay the teacher's notes open, and put each solution under its stub."""
    kept = []
    for cell in notebook.cells:
        if kind(cell) == "notes":
            cell = box("note", FOLD.sub("", cell.source))
        kept += [cell, *solved(cell)]
    notebook.cells = kept


def section(path: Path, reader: str) -> str:
    """One lesson as HTML, with its title at the head of each of its pages."""
    notebook = nbformat.read(path, as_version=4)
    for_students(notebook) if reader == "students" else for_teachers(notebook)
    exporter = HTMLExporter(config=CELLS, raw_template=BARE)
    body, _ = exporter.from_notebook_node(notebook)
    body = body.replace("<details>", "<details open>")
    body = re.sub(r'href="(\d\d)_\w+\.ipynb', r'href="#lesson-\1', body)
    number, title = path.stem[:2], title_slide(path).title
    head = f"{number} · {title}".replace('"', r"\"")
    page = f'@page lesson-{number} {{ @top-left {{ content: "{head}" }} }}'
    name = f"lesson-{number}"
    start = f'<section id="{name}" style="page: {name}">'
    return f"<style>{page}</style>\n{start}\n{body}</section>"


# ------------------------------------------------------------------------- the whole


def contents(notebooks: list[Path], reader: str) -> str:
    """The first page: what this is, and each lesson with its times and its page."""
    rows = []
    for path in notebooks:
        lesson, number = title_slide(path), path.stem[:2]
        rows.append(
            f'<tr><td>{number}</td><td><a href="#lesson-{number}">'
            f"{html.escape(lesson.title)}</a></td><td>{lesson.minutes} + "
            f'{lesson.exercises} min</td><td class="page"></td></tr>'
        )
    return (
        f"<header><h1>{TITLE}</h1><p>The lessons of rope_teach, for {reader}. "
        f"Printed on {date.today():%d %B %Y}. Text and figures: CC BY 4.0; code: MIT."
        "</p></header>"
        "<table><thead><tr><th>lesson</th><th></th><th>lesson + exercises</th>"
        f"<th>page</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def document(notebooks: list[Path], reader: str) -> str:
    """All lessons as one page of HTML."""
    sections = "\n".join(section(path, reader) for path in notebooks)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{TITLE} For {reader}</title>"
        '<link rel="stylesheet" href="handout.css"><script>window.MathJax = '
        '{tex: {inlineMath: [["$", "$"]]}, chtml: {fontURL: '
        '"vendor/mathjax/output/chtml/fonts/woff-v2"}}</script>'
        '<script src="vendor/mathjax/tex-chtml-full.js"></script></head>'
        f"<body>{contents(notebooks, reader)}\n{sections}</body></html>"
    )


def first_pages(pdf: Path) -> list[int]:
    """The page on which each lesson begins, in the order of the lessons."""
    reader = PdfReader(pdf)
    places = sorted(reader.named_destinations.items())
    return [
        reader.get_destination_page_number(place) + 1
        for name, place in places
        if name.startswith("/lesson-")
    ]


def tidy_outline(pdf: Path, titles: list[str]) -> None:
    """Name each lesson once: Chromium names some twice, where a page has a new head."""
    twice = {title * 2: title for title in titles}
    writer = PdfWriter(clone_from=pdf)
    entry = writer.get_outline_root()["/First"]
    while entry:
        item = entry.get_object()
        title = str(item["/Title"])
        item[NameObject("/Title")] = TextStringObject(twice.get(title, title))
        entry = item.get("/Next")
    writer.write(pdf)


def print_pdf(page: Page, source: Path, pdf: Path) -> None:
    """Print a page of HTML twice: page numbers are known after the first time."""
    page.goto(source.as_uri())
    page.evaluate("MathJax.startup.promise.then(() => document.fonts.ready)")
    for last in (False, True):
        page.pdf(
            path=pdf,
            prefer_css_page_size=True,
            print_background=True,
            outline=True,
            tagged=True,
        )
        if not last:
            page.evaluate(
                "numbers => document.querySelectorAll('td.page').forEach("
                "(cell, i) => { cell.textContent = numbers[i]; })",
                first_pages(pdf),
            )


def print_handouts(notebooks: list[Path], out: Path, browser: Browser) -> list[Path]:
    """Write both PDFs to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    titles = [title_slide(path).title for path in notebooks]
    printed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_assets(folder)
        css = (HERE / "static" / "handout.css").read_text(encoding="utf-8")
        (folder / "handout.css").write_text(css, encoding="utf-8")
        page = browser.new_page()
        for reader in READERS:
            source = folder / f"{reader}.html"
            source.write_text(document(notebooks, reader), encoding="utf-8")
            printed.append(out / f"rope_teach_for_{reader}.pdf")
            print_pdf(page, source, printed[-1])
            tidy_outline(printed[-1], titles)
        page.close()
    return printed


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=OUT)
    parser.add_argument("--lessons", default="", help="numbers, such as 04,05")
    arguments = parser.parse_args()
    browser_path = find_chromium()
    if browser_path is None:
        raise SystemExit(
            "no Chromium or Chrome on this machine, which prints the pages"
        )
    wanted = tuple(filter(None, arguments.lessons.split(",")))
    notebooks = [p for p in lesson_notebooks() if not wanted or p.stem[:2] in wanted]
    with chromium(browser_path) as browser:
        printed = print_handouts(notebooks, arguments.out, browser)
    for pdf in printed:
        pages = len(PdfReader(pdf).pages)
        print(f"{pdf}: {pages} pages, {pdf.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
