"""Every deck in a real browser: it fits the stage, needs no network, reads well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import nbformat.v4 as nb
import pytest
from nbformat import NotebookNode
from playwright.sync_api import Browser, Page

from slides.build import build_deck, build_index, copy_assets, deck_notebooks
from tests.browser import (
    Visit,
    go_to,
    open_deck,
    slide_problems,
    visit,
)

pytestmark = pytest.mark.browser

LESSONS = deck_notebooks()
AXE = files("axe_playwright_python") / "axe.min.js"
RULES = {
    "runOnly": ["wcag2a", "wcag2aa"],
    "resultTypes": ["violations"],
    "preload": False,  # would fetch the style sheets again, which file:// refuses
}
NO_ALT = "No description has been provided for this image"  # nbconvert's stand-in


@pytest.fixture(scope="module")
def decks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All decks, built once."""
    out = tmp_path_factory.mktemp("decks")
    copy_assets(out)
    for lesson in LESSONS:
        build_deck(lesson, out)
    build_index(LESSONS, out)
    return out


# ---------------------------------------------------------------- every lesson's deck


@dataclass
class Report:
    """What a walk through one deck found; every list of a good deck is empty."""

    off_stage: list[str] = field(default_factory=list)
    inaccessible: list[str] = field(default_factory=list)
    unnumbered: list[str] = field(default_factory=list)
    badly_set: list[str] = field(default_factory=list)
    undescribed: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def inspect(deck: Path, browser: Browser) -> Report:
    """Walk through a deck, slide by slide."""
    report = Report()
    with visit(browser) as seen:
        page, total = seen.page, open_deck(seen.page, deck)
        for number in range(total):
            go_to(page, number)
            name = f"slide {number + 1}: "
            report.off_stage += [name + p for p in slide_problems(page)]
            shown = page.locator(".slide-number").inner_text().split()
            if shown != [str(number + 1), "/", str(total)]:
                report.unnumbered.append(f"{name}shows {shown}")
        report.badly_set = math_problems(page)
        report.undescribed = undescribed_images(page)
        lay_open(page)
        report.inaccessible = axe_problems(page)
        report.outside, report.errors = seen.outside, seen.errors
    return report


def lay_open(page: Page) -> None:
    """Show all slides, fragments and cards at once, as axe-core wants to see them."""
    page.goto(page.url.split("#")[0] + "?print-pdf")
    page.wait_for_selector("body[data-ready]")
    page.evaluate("""() => {
        const each = (what, act) => document.querySelectorAll(what).forEach(act);
        each("section", (e) => { e.hidden = false; e.removeAttribute("aria-hidden"); });
        each(".fragment", (e) => e.classList.remove("fragment"));
        each("details", (e) => { e.name = ""; e.open = true; });
    }""")


def axe_problems(page: Page) -> list[str]:
    """What axe-core calls critical or serious in the page on show."""
    page.add_script_tag(content=AXE.read_text(encoding="utf-8"))
    answer = page.evaluate("rules => axe.run(document, rules)", RULES)
    return [
        f"{found['id']}: {node['html'][:120]}"
        for found in answer["violations"]
        if found["impact"] in ("critical", "serious")
        for node in found["nodes"]
    ]


def math_problems(page: Page) -> list[str]:
    """Formulas that MathJax could not read, and dollars that it left standing."""
    broken = page.locator("mjx-merror").evaluate_all(
        "all => all.map(e => e.dataset.mjxError)"
    )
    prose = page.locator(".cell.markdown :is(p, li, td, th, summary)")
    left = prose.evaluate_all(
        r"all => all.map(e => e.innerText || '').filter(t => /\$[^$]+\$/.test(t))"
    )
    return [*broken, *left]


def undescribed_images(page: Page) -> list[str]:
    """The images without alt text."""
    alts = page.locator("img").evaluate_all("all => all.map(e => e.alt.trim())")
    return [alt or "empty alt" for alt in alts if alt in ("", NO_ALT)]


@pytest.fixture(scope="module", params=LESSONS, ids=lambda lesson: lesson.stem)
def report(request: pytest.FixtureRequest, browser: Browser, decks: Path) -> Report:
    return inspect(decks / f"{request.param.stem}.html", browser)


def test_slides_fit_the_stage(report: Report) -> None:
    assert report.off_stage == []


def test_axe_finds_nothing_serious(report: Report) -> None:
    assert report.inaccessible == []


def test_every_slide_has_its_number(report: Report) -> None:
    assert report.unnumbered == []


def test_mathematics_is_set(report: Report) -> None:
    assert report.badly_set == []


def test_every_image_has_alt_text(report: Report) -> None:
    assert report.undescribed == []


def test_nothing_is_asked_of_the_network(report: Report) -> None:
    assert report.outside == []


def test_no_javascript_errors(report: Report) -> None:
    assert report.errors == []


def test_index_leads_to_every_deck(browser: Browser, decks: Path) -> None:
    assert LESSONS, "there are no lessons"
    with visit(browser) as seen:
        seen.page.goto((decks / "index.html").as_uri())
        links = seen.page.locator("main ol a")
        names = links.evaluate_all("all => all.map(a => a.getAttribute('href'))")
        assert names == [f"{lesson.stem}.html" for lesson in LESSONS]
        assert all((decks / name).is_file() for name in names)
        assert seen.outside == seen.errors == []


# ---------------------------------------------- what the inspection itself must catch


def slide(source: str, kind: str = "slide") -> NotebookNode:
    return nb.new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}})


def code(source: str, *outputs: NotebookNode, tags: str = "") -> NotebookNode:
    return nb.new_code_cell(
        source, outputs=list(outputs), metadata={"tags": tags.split()}
    )


def html(text: str) -> NotebookNode:
    return nb.new_output("display_data", data={"text/html": text})


def make_deck(out: Path, *cells: NotebookNode) -> Path:
    notebook = nb.new_notebook(cells=[slide("# A sample\n\nFor $x$."), *cells])
    path = out / "99_sample.ipynb"
    path.write_text(nb.writes(notebook), encoding="utf-8")
    return build_deck(path, out)


LONG = "\n".join(f"- line {n}" for n in range(20))
WIDE = "x = " + " + ".join(str(n) for n in range(50))
TABLE = "\n".join("|" + word * 40 for word in ("wide|", "-|", "cell|"))
CDN = '<script src="https://cdn.example.org/x.js"></script>'
PALE = '<p style="color:#ccc">pale</p>'
PICTURE = (
    '<img alt="{}" src="data:image/svg+xml,<svg xmlns=%22http://www.w3.org/2000/svg%22'
    ' width=%2299%22 height=%2299%22/>">'
)

PLANTED = {
    "a long slide": ("off_stage", "bottom", [slide(LONG)]),
    "a wide line of code": ("off_stage", "clips", [slide("## W"), code(WIDE)]),
    "a wide table": ("off_stage", "right", [slide(TABLE)]),
    "a wide formula": ("off_stage", "right", [slide(f"## F\n\n$$ {WIDE} $$")]),
    "a tall card": (
        "off_stage",
        '"open me" open',
        [slide(f"<details><summary>open me</summary>\n\n{LONG}\n\n</details>")],
    ),
    "a squeezed figure": (
        "off_stage",
        "bottom",
        [slide(LONG[:150]), code("f", html(f"<figure>{PICTURE.format('a')}</figure>"))],
    ),
    "a script from outside": ("outside", "cdn.example.org", [code("f", html(CDN))]),
    "a script that fails": (
        "errors",
        "boom",
        [code("f", html("<script>throw Error('boom')</script>"))],
    ),
    "a formula with a typo": ("badly_set", "\\wrog", [slide("$\\wrog{x}$")]),
    "a formula not closed": ("badly_set", "sqrt", [slide("$\\sqrt{x$")]),
    "an image without alt": (
        "undescribed",
        NO_ALT,
        [code("f", html(PICTURE.replace('alt="{}"', "")))],
    ),
    "pale letters": (
        "inaccessible",
        "color-contrast",
        [slide("## P"), code("f", html(PALE))],
    ),
    "a slider without a label": (
        "inaccessible",
        "label",
        [code("f", html('<input type="range">'))],
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name: str, browser: Browser, decks: Path) -> None:
    kind, words, cells = PLANTED[name]
    found = vars(inspect(make_deck(decks, *cells), browser))
    assert any(words in problem for problem in found.pop(kind)), found


# -------------------------------------------------------------- what a deck must do

CARDS = (
    "## Predict\n\n<details><summary>One</summary>No.</details>\n"
    "<details><summary>Two</summary>Yes: $a^2$.</details>"
)
NOTES = """<details><summary>For the teacher</summary>

Minute 3. Ask the *class*.

</details>"""
SLIDER = '<label>turn <input type="range" value="50"></label>'


@pytest.fixture
def sample(browser: Browser, decks: Path) -> Iterator[Visit]:
    """A deck with one slide for each thing that a deck does."""
    cells = [
        slide(NOTES, "notes"),
        slide(CARDS),
        slide("## Slider"),
        code("hidden_source = 1", html(SLIDER), tags="hide-input"),
        code("hidden_cell = 1", tags="hide-cell"),
        slide("Not in class.", "skip"),
        slide("## Beside", "subslide"),
        code("figure", html(f"<figure>{PICTURE.format('a')}</figure>"),
             tags="side-by-side"),
        slide("Then this.", "fragment"),
    ]  # fmt: skip
    with visit(browser) as seen:
        assert open_deck(seen.page, make_deck(decks, *cells)) == 4
        yield seen
        assert seen.outside == seen.errors == []


def page_number(page: Page) -> str:
    return page.locator(".slide-number").inner_text().split()[0]


def test_cells_go_where_their_metadata_says(sample: Visit) -> None:
    text = sample.page.locator(".slides").evaluate("e => e.textContent")
    assert "hidden_source" not in text and "hidden_cell" not in text
    assert "Not in class" not in text
    assert "Minute 3" in sample.page.locator("aside.notes").text_content()
    assert sample.page.locator(".fragment").text_content().strip() == "Then this."


def test_code_and_its_figure_stand_side_by_side(sample: Visit) -> None:
    go_to(sample.page, 3)
    source = sample.page.locator(".present .input").bounding_box()
    figure = sample.page.locator(".present figure").bounding_box()
    assert source["x"] + source["width"] <= figure["x"]
    assert source["y"] < figure["y"] + figure["height"]


def test_cards_open_by_keyboard_one_at_a_time(sample: Visit) -> None:
    page = sample.page
    go_to(page, 1)
    page.locator("summary:not(aside summary)").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    cards = "details[open]:not(aside details)"  # not a speaker's notes
    page.wait_for_function(f"document.querySelectorAll('{cards}').length == 1")
    assert page.locator(cards).inner_text().startswith("Two")
    assert page_number(page) == "2"
    page.keyboard.press("PageDown")
    assert page_number(page) == "3"


def test_slider_keeps_its_arrows_and_leaves_the_clicker_its_keys(sample: Visit) -> None:
    page = sample.page
    go_to(page, 2)
    page.locator("input").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("input").input_value() == "51"
    assert page_number(page) == "3"
    page.keyboard.press("PageDown")
    assert page_number(page) == "4"


def test_speaker_notes_open_without_a_network(sample: Visit) -> None:
    with sample.page.expect_popup() as popup:
        sample.page.keyboard.press("s")
    notes = popup.value.locator(".speaker-controls-notes .value")
    notes.get_by_text("Minute 3").wait_for()  # unfolded
    assert notes.locator("em").inner_text() == "class"


def test_axe_finds_nothing_serious_around_the_stage(sample: Visit) -> None:
    assert axe_problems(sample.page) == []


def test_deck_prints_one_page_a_slide(sample: Visit) -> None:
    lay_open(sample.page)
    assert sample.page.locator(".pdf-page").count() == 4
    sections = sample.page.locator(".pdf-page section")
    assert sections.first.bounding_box()["height"] == pytest.approx(720, abs=1)
