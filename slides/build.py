"""Build every notebook of the course as an offline deck: `python slides/build.py`.

The decks go to `slides/out/` with everything that they load; open `index.html`
there, from a server or straight from the disk.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
from html import escape
from pathlib import Path

import nbformat
from nbconvert.exporters import SlidesExporter
from traitlets.config import Config

HERE = Path(__file__).resolve().parent
LESSONS = HERE.parent / "lessons"

EXPORTER = Config(
    SlidesExporter={
        "template_name": "deck",
        "extra_template_basedirs": [str(HERE)],
        "exclude_anchor_links": True,
    },
    TagRemovePreprocessor={
        "enabled": True,
        "remove_input_tags": {"hide-input"},
        "remove_cell_tags": {"hide-cell"},
    },
)


def lesson_notebooks() -> list[Path]:
    """All lessons, in order."""
    return sorted(LESSONS.glob("[0-9][0-9]_*.ipynb"))


def deck_notebooks() -> list[Path]:
    """All that is shown as a deck: the lecture, then the lessons."""
    return [*LESSONS.glob("lecture.ipynb"), *lesson_notebooks()]


def lesson_title(notebook: Path) -> str:
    """The text of a lesson's H1."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        heading = re.search(r"^# (.+)$", cell.source, re.MULTILINE)
        if cell.cell_type == "markdown" and heading:
            return heading[1].strip()
    raise ValueError(f"{notebook.name} has no H1 (a markdown line '# Title')")


def number_of(notebook: Path) -> str:
    """A lesson's two digits; the lecture has none."""
    return notebook.stem[:2] if notebook.stem[:2].isdigit() else ""


def copy_assets(out: Path) -> None:
    """Copy what a deck loads: our theme, reveal.js, MathJax and the fonts."""
    reveal = package_dir("sphinx_revealjs") / "_static" / "revealjs"
    mathjax = package_dir("sphinx-mathjax-offline") / "static" / "mathjax"
    woff = "output/chtml/fonts/woff-v2"
    sans = "dist/theme/fonts/source-sans-pro"
    mono = "mpl-data/fonts/ttf/DejaVuSansMono.ttf"
    copies = {
        HERE / "deck" / "deck.css": "deck.css",
        HERE / "deck" / "deck.js": "deck.js",
        HERE / "deck" / "clocks.svg": "clocks.svg",
        reveal / "LICENSE": "vendor/reveal/LICENSE",
        reveal / "dist/reveal.css": "vendor/reveal/reveal.css",
        reveal / "dist/reveal.js": "vendor/reveal/reveal.js",
        reveal / "plugin/notes/notes.js": "vendor/reveal/notes.js",
        mathjax / "tex-chtml-full.js": "vendor/mathjax/tex-chtml-full.js",
        package_dir("matplotlib") / mono: "vendor/fonts/DejaVuSansMono.ttf",
    }
    copies |= {f: f"vendor/mathjax/{woff}/{f.name}" for f in (mathjax / woff).iterdir()}
    copies |= {f: f"vendor/fonts/{f.name}" for f in (reveal / sans).glob("*.woff")}
    for source, target in copies.items():
        (out / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / target)


def package_dir(name: str) -> Path:
    """Where a package lies, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed: pip install -e '.[course,slides]'")
    return Path(spec.origin).parent


def build_deck(notebook: Path, out: Path) -> Path:
    """Write one notebook and its figures to `out`; `copy_assets` does the rest."""
    if (notebook.parent / "figures").is_dir():
        shutil.copytree(
            notebook.parent / "figures", out / "figures", dirs_exist_ok=True
        )
    title = lesson_title(notebook)
    label = f"{number_of(notebook) or 'Lecture'} · {title}"
    resources = {"deck": {"title": title, "label": label}}
    html, _ = SlidesExporter(config=EXPORTER).from_filename(str(notebook), resources)
    deck = out / f"{notebook.stem}.html"
    html = re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="\1.html', html)  # other lessons
    deck.write_text(html, encoding="utf-8")
    return deck


def build_index(notebooks: list[Path], out: Path) -> Path:
    """Write the page that lists the decks."""
    rows = "\n".join(
        f'<li><a href="{path.stem}.html"><span>{number_of(path)}</span>'
        f"{escape(lesson_title(path))}</a></li>"
        for path in notebooks
    )
    template = (HERE / "deck" / "list.html").read_text(encoding="utf-8")
    index = out / "index.html"
    index.write_text(template.replace("<!-- decks -->", rows), encoding="utf-8")
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=HERE / "out")
    out = parser.parse_args().out
    copy_assets(out)
    notebooks = deck_notebooks()
    for notebook in notebooks:
        print(build_deck(notebook, out).name)
    print(f"{len(notebooks)} decks: open {build_index(notebooks, out)}")


if __name__ == "__main__":
    main()
