"""Build the site to read: `python site/build.py`.

Lessons as they were saved, decks, the package's API, paths, claims and benchmarks, with
a search that needs no server. It goes to `build/site`; open `index.html` there.
`conf.py` has the one address that buttons and links are made from.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import re
import shutil
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import nbformat
from sphinx.cmd.build import main as sphinx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import facts
import figures
import paths
from conf import BRANCH, REPOSITORY

import rope_teach
from slides.build import (
    build_deck,
    build_index,
    copy_assets,
    deck_notebooks,
    lesson_notebooks,
    lesson_title,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOR_LESSONS_ALONE = ("rope_teach.course.exercises", "rope_teach.__main__")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)")
ALL_DECKS = '<p><a href="decks/index.html">Every lesson as a deck</a>, offline.</p>'
IN_COLAB = (
    "<p>Opened in Colab, it needs one cell more, the first: "
    f'<code>%pip install "rope-teach[lessons] @ git+{REPOSITORY}"</code></p>'
)
FLOORS = {
    "The core": r"rope_teach(\.(?!dialects|identify|course)[\w.]+)?",
    "Other libraries' calls": r"rope_teach\.dialects.*",
    "Whose RoPE is this?": r"rope_teach\.identify.*",
    "For lessons": r"rope_teach\.course.*",
}


# ------------------------------------------------------------------------- the pages


def sources() -> dict[str, str]:
    """Each page's file in the repository, and where it goes on the site."""
    patterns = (
        "CONTRIBUTING.md",
        "lessons/*.ipynb",
        "lessons/claims.md",
        "benchmarks/README.md",
        "benchmarks/results/*.md",
    )
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    names = [path.relative_to(ROOT).as_posix() for path in found]
    own = {f"site/{path.name}": path.name for path in HERE.glob("*.md")}
    licences = {name: name for name in ("LICENSE", "lessons/LICENSE", "CITATION.cff")}
    return {"README.md": "index.md", **own, **{n: n for n in names}, **licences}


@cache
def public_modules() -> list[str]:
    """The modules that say which names they offer, without those of the exercises."""
    found = pkgutil.walk_packages(rope_teach.__path__, "rope_teach.")
    names = [m.name for m in found if not m.name.startswith(FOR_LESSONS_ALONE)]
    offer = [name for name in names if hasattr(import_module(name), "__all__")]
    return ["rope_teach", *offer]


def relinked(text: str, source: str, pages: dict[str, str]) -> str:
    """Markdown whose links to files lead to their pages, or to the repository."""
    page = pages[source]

    def target(match: re.Match[str]) -> str:
        words, link = match.groups()
        path, _, anchor = link.partition("#")
        file = os.path.normpath(os.path.join(os.path.dirname(source), path))
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if file in pages:
            to = os.path.relpath(pages[file], os.path.dirname(page))
            return f"[{words}]({to}{'#' if anchor else ''}{anchor})"
        if module in public_modules():
            to = os.path.relpath(f"api/{module}.md", os.path.dirname(page))
            return f"[{words}]({to})"
        return f"[{words}]({REPOSITORY}/blob/{BRANCH}/{file})" if REPOSITORY else words

    return LINK.sub(target, text)


def lesson_page(source: str, pages: dict[str, str], deck: bool) -> str:
    """A lesson without the teacher's notes, with what Colab needs and its deck."""
    notebook = nbformat.read(ROOT / source, as_version=4)
    notebook.cells = [
        cell
        for cell in notebook.cells
        if cell.metadata.get("slideshow", {}).get("slide_type") != "notes"
    ]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = relinked(cell.source, source, pages)
    if deck:
        address = f"../decks/{Path(source).stem}.html"
        link = f'<p><a href="{address}">Open this lesson as slides</a></p>'
        notebook.cells[0].source += f"\n\n{link}"
    if REPOSITORY:
        notebook.cells[0].source += f"\n\n{IN_COLAB}"
    return nbformat.writes(notebook)


def text_page(source: str, pages: dict[str, str]) -> str:
    """A page in Markdown, with its facts and figures."""
    text = (ROOT / source).read_text(encoding="utf-8")
    if not source.endswith(".md"):
        return text
    if source == "site/paths.md":
        text = paths.page()  # times as the lessons say today
    text = relinked(facts.filled(text), source, pages)
    drawn = [figure._repr_mimebundle_() for figure in figures.for_page(source)]
    shown = "\n".join(figure["text/html"] for figure in drawn)
    if shown:  # after the introduction
        text = text.replace("\n## ", f"\n```{{raw}} html\n{shown}\n```\n\n## ", 1)
    return text


def module_page(name: str) -> str:
    """A module's names, from its docstrings."""
    head = "---\norphan: true\n---\n\n"  # the index leads here, not the navigation
    return f"{head}# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"


def first_line(name: str) -> str:
    """What a module says of itself, in one line."""
    return (import_module(name).__doc__ or "").strip().splitlines()[0]


def api_index() -> str:
    """The page that lists the modules, floor by floor."""
    text = ["# The package", "", "Each module's page comes from its docstrings.", ""]
    modules = public_modules()
    for title, pattern in FLOORS.items():
        names = [name for name in modules if re.fullmatch(pattern, name)]
        rows = [f"| [{name}]({name}.md) | {first_line(name)} |" for name in names]
        text += [f"## {title}", "", "| module | what it is |", "|---|---|", *rows, ""]
    return "\n".join(text)


def toctree(caption: str, pages: dict[str, str]) -> str:
    """The part of the navigation that lists ``pages``, each with its name there."""
    entries = "\n".join(f"{name} <{page}>" for page, name in pages.items())
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def navigation(pages: list[str]) -> str:
    """What stands at the side of each page."""
    course = {
        "paths.md": "Paths",
        "ask.md": "Ask the course",
        "lessons/claims.md": "Claims on trial",
        "lessons/lecture.ipynb": "The lecture",
    }
    lessons = {
        path.relative_to(ROOT).as_posix(): f"{path.name[:2]} {lesson_title(path)}"
        for path in lesson_notebooks()
    }
    package = {"api/index.md": "What the package offers"}
    package |= {
        page: f"Benchmarks: {Path(page).stem.replace('_', ' ')}"
        for page in pages
        if page.startswith("benchmarks/")
    }
    package["CONTRIBUTING.md"] = "Contributing"
    return "\n".join([
        toctree("The course", {page: course[page] for page in course if page in pages}),
        toctree("Lessons", lessons),
        toctree("The package", package),
    ])  # fmt: skip


def lay_out(stage: Path, decks: bool) -> None:
    """Write all that Sphinx reads to ``stage``."""
    pages = sources()
    with_deck = {path.name for path in deck_notebooks()} if decks else set()
    made = {"api/index.md": api_index()}
    made |= {f"api/{name}.md": module_page(name) for name in public_modules()}
    for source, page in pages.items():
        if source.endswith(".ipynb"):
            made[page] = lesson_page(source, pages, Path(source).name in with_deck)
        else:
            made[page] = text_page(source, pages)
    if decks:
        made["paths.md"] += f"\n## Slides\n\n{ALL_DECKS}\n"
    made["index.md"] += "\n" + navigation(list(pages.values()))
    for page, text in made.items():
        path = stage / page
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")  # Sphinx reads what is new


# ---------------------------------------------------------------------------- the site


def build(out: Path, stage: Path, decks: bool = True) -> int:
    """Write the site to ``out``; return what Sphinx returns, 0 if all is well."""
    lay_out(stage, decks)
    copy_assets(out / "decks")
    if decks:
        notebooks = deck_notebooks()
        for notebook in notebooks:
            build_deck(notebook, out / "decks")
        build_index(notebooks, out / "decks")
    strict = ["-q", "-W", "--keep-going"]
    places = ["-c", str(HERE), "-d", str(stage.parent / "doctrees")]
    return sphinx([*strict, *places, str(stage), str(out)])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "build" / "site")
    parser.add_argument(
        "--no-decks", action="store_true", help="lessons as pages alone"
    )
    arguments = parser.parse_args()
    stage = arguments.out.parent / "site-source"
    shutil.rmtree(stage, ignore_errors=True)
    failed = build(arguments.out, stage, decks=not arguments.no_decks)
    if not failed:
        print("open", arguments.out / "index.html")
    if not REPOSITORY:
        print("No repository is named, so no page has launch buttons: make site "
              "REPOSITORY=https://github.com/OWNER/NAME")  # fmt: skip
    return failed


if __name__ == "__main__":
    sys.exit(main())
