"""The site and the handout: complete, no broken link, nothing from a network."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
import subprocess
import sys
import types
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from rope_teach.course.exercises import find
from rope_teach.dialects.hugging_face import families
from slides.build import lesson_notebooks
from tests import test_architecture
from tests.browser import visit
from tests.test_setup import ROOT

bs4 = pytest.importorskip("bs4")
pypdf = pytest.importorskip("pypdf")
pytest.importorskip("myst_nb")
pytest.importorskip("sphinx_book_theme")

sys.path.insert(0, str(ROOT / "site"))
build, facts, handout, paths = map(
    importlib.import_module, ("build", "facts", "handout", "paths")
)
REPOSITORY = "https://github.com/someone/rope_teach"
LESSONS = lesson_notebooks()
IDS = [lesson.stem for lesson in LESSONS]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built once without its decks, which are tested as such."""
    out = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, ROOT / "site" / "build.py", "--no-decks", out],
        env={**os.environ, "REPOSITORY": REPOSITORY, "JUPYTERHUB": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[str, bs4.BeautifulSoup]:
    """Every page of the site by its path."""
    return {
        path.relative_to(site).as_posix(): bs4.BeautifulSoup(
            path.read_text(encoding="utf-8"), "html.parser"
        )
        for path in sorted(site.rglob("*.html"))
        if "decks" not in path.parts and "_static" not in path.parts
    }


# ---------------------------------------------------------------------- the lessons


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))  # no ligatures


def cells(lesson: Path, notes: bool) -> Iterator[nbformat.NotebookNode]:
    for cell in nbformat.read(lesson, as_version=4).cells:
        if (cell.metadata.slideshow.slide_type == "notes") == notes:
            yield cell


@pytest.mark.parametrize("lesson", LESSONS, ids=IDS)
def test_lesson_is_there_with_every_output(lesson, pages):
    page = pages[f"lessons/{lesson.stem}.html"]
    text = squeezed(page.get_text())
    alts = [squeezed(image.get("alt", "")) for image in page.find_all("img")]
    printed = drawn = 0
    for cell in cells(lesson, notes=False):
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                assert squeezed(output.text) in text
                printed += 1
            for image in bs4.BeautifulSoup(
                output.get("data", {}).get("text/html", ""), "html.parser"
            ).find_all("img"):
                assert squeezed(image["alt"]) in alts
                drawn += 1
    assert printed > 3 and drawn > 0
    assert "nodescriptionhasbeenprovided" not in "".join(alts).lower()


@pytest.mark.parametrize("lesson", LESSONS, ids=IDS)
def test_teachers_notes_are_nowhere(lesson, pages, site):
    shown = squeezed(pages[f"lessons/{lesson.stem}.html"].get_text())
    source = nbformat.read(site / "_sources" / "lessons" / lesson.name, as_version=4)
    kept = squeezed("".join(cell.source for cell in source.cells))
    notes = [squeezed(cell.source) for cell in cells(lesson, notes=True)]
    assert notes
    assert not [n for n in notes if n in kept]
    minutes = [n[n.index("Minute") :][:40] for n in notes if "Minute" in n]
    assert minutes
    assert not [m for m in minutes if m in shown]


def test_solutions_are_nowhere(site):
    assert not [path for path in site.rglob("*") if "solutions" in path.parts]


def test_a_lesson_leads_to_its_slides():
    found = build.sources()
    name = f"lessons/{LESSONS[4].name}"
    with_deck = build.lesson_page(name, found, deck=True)
    assert f"../decks/{LESSONS[4].stem}.html" in with_deck
    assert "../decks/" not in build.lesson_page(name, found, deck=False)


def test_launch_buttons_open_the_lesson_itself(pages):
    page = pages[f"lessons/{IDS[5]}.html"]
    assert f'%pip install "rope-teach[lessons] @ git+{REPOSITORY}"' in page.get_text()
    links = {link["href"] for link in page.select("a[href]")}
    file = f"lessons/{IDS[5]}.ipynb"
    colab = (
        f"https://colab.research.google.com/github/someone/rope_teach/blob/main/{file}"
    )
    assert colab in links
    binder = "https://mybinder.org/v2/gh/someone/rope_teach/main?urlpath=lab/tree/"
    assert binder + file in links
    (hub,) = [link for link in links if "nbgitpuller" in link]
    assert unquote(hub).endswith(
        f"?repo={REPOSITORY}&branch=main&urlpath=lab/tree/rope_teach/{file}"
    )


def test_a_schools_own_hub_takes_the_button():
    code = "import conf; print(conf.html_theme_options['launch_buttons'])"
    hub = "https://hub.example.org"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "site",
        env={**os.environ, "REPOSITORY": REPOSITORY, "JUPYTERHUB": hub + "/"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"'jupyterhub_url': '{hub}'" in done.stdout


# --------------------------------------------------------------------------- links


def test_no_link_is_broken(pages, site):
    broken = []
    places = {
        name: {tag["id"] for tag in page.select("[id]")} for name, page in pages.items()
    }
    for name, page in pages.items():
        for tag in page.select("a[href], link[href], script[src], img[src]"):
            link = urlsplit(tag.get("href") or tag.get("src"))
            if link.scheme:
                continue
            file = (
                (site / name).parent / unquote(link.path) if link.path else site / name
            )
            target = os.path.relpath(file, site)
            if not file.is_file():
                broken.append(f"{name}: {link.path}")
            elif link.fragment and target in pages:
                if unquote(link.fragment) not in places[target]:
                    broken.append(f"{name}: {link.geturl()}")
    assert broken == []


def test_nothing_is_loaded_from_a_network(pages):
    tags = "script[src], img[src], iframe[src], link[rel=stylesheet], link[rel=icon]"
    for page in pages.values():
        loads = [tag.get("src") or tag.get("href") for tag in page.select(tags)]
        assert loads
        assert not [load for load in loads if load.startswith(("http", "//"))]


def test_files_that_are_no_page_lead_to_the_repository():
    text = "[a script](gpu.py) [a page](README.md) [a module](../rope_teach/laws.py)"
    found = {"benchmarks/README.md": "benchmarks/README.md"}
    linked = build.relinked(text, "benchmarks/README.md", found)
    assert "[a page](README.md)" in linked
    assert "[a module](../api/rope_teach.laws.md)" in linked
    assert "gpu.py" not in linked or f"{build.REPOSITORY}/blob" in linked


# --------------------------------------------------------------------------- the API


def public_names() -> Iterator[tuple[str, object]]:
    """Each public function and class, and the module that offers it."""
    for module in map(importlib.import_module, build.public_modules()):
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if isinstance(thing, (type, types.FunctionType)):
                yield f"{module.__name__}.{name}", thing


NAMES = dict(public_names())


def test_every_module_that_offers_names_has_a_page_and_a_row(pages):
    modules = [
        f"rope_teach.{name}"
        for name, path in test_architecture.MODULES.items()
        if "__all__ = " in path.read_text(encoding="utf-8")
        and name
        and not name.startswith("course.exercises")
    ]
    assert len(modules) > 20
    listed = {link["href"] for link in pages["api/index.html"].select("table a")}
    assert {f"{module}.html" for module in ["rope_teach", *modules]} == listed
    assert {f"api/{name}" for name in listed} <= set(pages)


def test_every_public_name_has_its_place(pages):
    def has_a_place(name: str) -> bool:
        return pages[f"api/{name.rpartition('.')[0]}.html"].find(id=name) is not None

    assert len(NAMES) > 100
    assert not [name for name in NAMES if not has_a_place(name)]


# The laws are all of one lesson, and what is under `ops` is not for callers.
NAME_THEIR_LESSONS = {*test_architecture.CORE, "course.parallel"} - {
    "laws",
    *(name for name in test_architecture.CORE if name.startswith("ops")),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_explained(name):
    words = inspect.getdoc(NAMES[name])
    assert words and len(words.splitlines()[0]) > 20
    module = NAMES[name].__module__.partition(".")[2]
    if module in NAME_THEIR_LESSONS:
        assert re.search(r"[Ll]essons? \d\d|Built in", words), "no lesson is named"


def test_no_sentence_became_a_parameter(pages):
    """A docstring's closing words need a heading, or they are taken for names."""
    found = []
    for name, page in pages.items():
        if name.startswith("api/"):
            found += [tag.get_text() for tag in page.select("dl.field-list strong")]
    assert len(found) > 50
    assert not [name for name in found if re.search(r"[.:;] |\.$|Source", name)]


# ------------------------------------------------------------------- ask the course


def rows(page: bs4.BeautifulSoup) -> list[list[str]]:
    return [
        [cell.get_text() for cell in row.find_all(["td", "th"])]
        for row in page.find_all("tr")
    ]


def test_every_fact_is_asked_for_and_filled_in(pages):
    asked = re.findall(r"\{\{(\w+)\}\}", (ROOT / "site/ask.md").read_text("utf-8"))
    assert sorted(asked) == sorted(facts.FACTS)
    assert "{{" not in pages["ask.html"].get_text()


def test_every_model_type_has_its_row(pages):
    found = {row[0]: row[1:] for row in rows(pages["ask.html"]) if len(row) == 3}
    assert families.HALF | families.INTERLEAVED | families.FLAGGED <= set(found)
    assert found["llama"] == ["half", ""]
    assert found["gptj"][0] == "interleaved"
    assert found["deepseek_v3"] == [
        "interleaved",
        "half if rope_interleave is false",
    ]
    assert "clockwise" in found["nanochat"][1]


def test_numbers_of_the_answers(pages):
    found = {row[0]: row[1:] for row in rows(pages["ask.html"])}
    assert found["bfloat16"] == ["769"]
    widest = math.tau * 500_000 ** (126 / 128)
    assert found["500,000"][1] == f"{widest:,.0f}"
    factor = 0.1 * math.log(16) + 1
    assert found["16"] == [f"{factor:.3f}", f"{factor**2:.3f}"]
    assert "q_proj and k_proj are reordered" in pages["ask.html"].get_text()
    assert found["yarn"][0] == "yarn" and found["linear"][0] == "position_interpolation"
    assert found["Hugging Face’s (model_type llama)"] == ["half"]
    assert found["llama.cpp’s (GGUF, architecture llama)"] == ["interleaved"]


def test_benchmarks_have_their_figures(pages):
    figures = pages["benchmarks/results/gpu.html"].select("figure img")
    assert len(figures) == 2
    assert all("a copy is 1" in image["alt"] for image in figures)


# ----------------------------------------------------------------------- the paths


def test_paths_follow_from_the_title_slides():
    stored = paths.PAGE.read_text(encoding="utf-8")
    assert stored == paths.page(), "run: python site/paths.py"


def test_paths_link_every_lesson_that_they_name():
    stored = paths.PAGE.read_text(encoding="utf-8")
    sessions = " ".join(" ".join(each.sessions) for each in paths.COURSES).split()
    assert stored.count("](../lessons/") >= len(sessions)


def test_paths_are_what_they_say():
    afternoon, workshop, course, engineers = paths.COURSES
    assert len(afternoon.sessions) == 4
    assert len(workshop.sessions) == 6
    assert len(course.sessions) == 12
    assert " ".join(course.sessions).split() == sorted(paths.lessons())
    assert engineers.sessions == ["07", "09", "10", "13", "18", "20"]
    for each in paths.COURSES:  # nobody meets a lesson before the one it builds on
        order = " ".join(each.sessions).split()
        assert order == sorted(order) or each is workshop


def test_times_are_read_and_added(tmp_path):
    title = "# A\n\n*45 minutes, 30 with six; 33 for the exercises. Builds on 01.*"
    for name in ("01_a.ipynb", "02_b.ipynb"):
        cell = nbformat.v4.new_markdown_cell(title)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / name)
    lesson = paths.title_slide(tmp_path / "01_a.ipynb")
    assert lesson == ("01_a.ipynb", "A", 45, 33)
    both = {"01": lesson, "02": paths.title_slide(tmp_path / "02_b.ipynb")}
    table = paths.table(paths.Course("T", "W", ["01 02"]), both)
    assert table.endswith("| **all** | | **1 h 30 min** | **1 h 06 min** |")


# ---------------------------------------------------------------------- in a browser

LOOKED_AT = [
    "index.html",
    f"lessons/{IDS[7]}.html",
    f"lessons/{IDS[16]}.html",
    "api/index.html",
    "api/rope_teach.rotary.html",
    "ask.html",
    "paths.html",
    "benchmarks/results/gpu.html",
    "search.html?q=interleaved",
]


@pytest.mark.browser
@pytest.mark.parametrize("name", LOOKED_AT)
def test_page_in_a_browser(name, site, browser):
    """No error, nothing from outside, nothing that axe calls serious, formulas set."""
    from tests.test_slides import axe_problems

    with visit(browser) as seen:
        seen.page.goto(site.as_uri() + "/" + name)
        if seen.page.locator("script[src*=mathjax]").count():
            seen.page.evaluate("MathJax.startup.promise")
        assert axe_problems(seen.page) == []
        assert seen.page.locator("mjx-merror").count() == 0
        prose = seen.page.locator(".bd-article :is(p, li, td, summary)")
        shown = prose.evaluate_all("all => all.map(e => e.innerText || '')")
        assert not [text for text in shown if re.search(r"\$[^$]+\$", text)]
        seen.page.set_viewport_size({"width": 390, "height": 844})  # a phone
        assert seen.page.evaluate("document.documentElement.scrollWidth") == 390
        assert seen.outside == seen.errors == []


@pytest.mark.browser
def test_search_answers_without_a_server(site, browser):
    with visit(browser) as seen:
        for asked, answer in (
            ("grouped query", IDS[9]),
            ("convert_checkpoint", "api/"),
            ("which pairing does Llama use?", "ask.html"),
            ("what does YaRN's attention factor do?", "ask.html"),
            ("how do I convert GPT-J weights?", "ask.html#how-do-i-convert-gpt-j"),
        ):
            seen.page.goto(f"{site.as_uri()}/search.html?q={asked}")
            results = seen.page.locator("#search-results li a")
            results.first.wait_for()
            links = results.evaluate_all("all => all.map(a => a.getAttribute('href'))")
            assert any(answer in link for link in links[:3])
        seen.page.goto(f"{site.as_uri()}/search.html?q=xyzzyx")
        seen.page.get_by_text("did not match any documents").wait_for()
        assert seen.outside == seen.errors == []


# ---------------------------------------------------------------------- the handout


@pytest.fixture(scope="module")
def printed(tmp_path_factory, browser) -> dict[str, pypdf.PdfReader]:
    """Two lessons, printed for each reader."""
    files = handout.print_handouts(
        LESSONS[4:6], tmp_path_factory.mktemp("handout"), browser
    )
    return dict(zip(handout.READERS, map(pypdf.PdfReader, files), strict=True))


def text_of(reader: pypdf.PdfReader) -> str:
    return squeezed("".join(page.extract_text() for page in reader.pages))


@pytest.mark.browser
@pytest.mark.parametrize("who", handout.READERS)
def test_handout_has_a_title_pages_and_lessons(printed, who):
    reader = printed[who]
    assert reader.metadata.title == f"{handout.TITLE} For {who}"
    for page in reader.pages:  # A4, in points
        assert [page.mediabox.width, page.mediabox.height] == pytest.approx(
            [595, 842], abs=2
        )
    texts = [page.extract_text() for page in reader.pages]
    for number, text in enumerate(texts, 1):
        assert str(number) in text.split()
    titles = [paths.title_slide(lesson).title for lesson in LESSONS[4:6]]
    outline = [entry.title for entry in reader.outline if not isinstance(entry, list)]
    assert outline == [handout.TITLE, *titles]
    heads = [next(t for t in titles if squeezed(t) in squeezed(text[:200]))
             for text in texts[1:]]  # fmt: skip
    starts = [heads.index(title) + 2 for title in titles]
    listed = re.findall(r"\+ \d+ min (\d+)", texts[0])
    assert [int(page) for page in listed] == starts


@pytest.mark.browser
def test_students_get_the_answers_last_and_no_notes(printed):
    text = text_of(printed["students"])
    for lesson in LESSONS[4:6]:
        (predict,) = [c for c in cells(lesson, False) if "## Predict" in c.source]
        cards = handout.CARD.findall(predict.source)
        assert len(cards) == 4
        for choice, why in cards:
            plain = squeezed(re.sub(r"[*`$]", "", why))[:30]
            assert text.index(squeezed(choice)) < text.index(plain)
            assert text.index("Predict:theanswers") < text.index(plain)
    assert not re.search(r"Minute\d+\.", text)
    assert squeezed(find("4.1").solution) not in text


@pytest.mark.browser
def test_teachers_get_notes_and_solutions(printed):
    text = text_of(printed["teachers"])
    notes = [note for lesson in LESSONS[4:6] for note in cells(lesson, True)]
    assert text.count("Minute") >= len(notes) > 6
    assert squeezed(find("4.1").solution) in text
    assert squeezed(find("5.1").solution) in text
