"""Photograph one lesson's slides: `python slides/shoot.py 04 OUTDIR`.

Writes a PNG of each slide and `sheet.png` with all of them, and prints what runs
over the stage or is clipped. Any notebook's path works in place of the number.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from slides.build import build_deck, copy_assets, deck_notebooks
from tests.browser import (
    chromium,
    find_chromium,
    go_to,
    open_deck,
    slide_problems,
    visit,
)

COLUMNS, THUMB = 4, (480, 270)


def find_notebook(name: str) -> Path:
    """The notebook at a path, the lesson with a number, or the lecture."""
    if name.endswith(".ipynb"):
        return Path(name)
    for notebook in deck_notebooks():
        if notebook.name.startswith(name):
            return notebook
    raise SystemExit(f"no lesson {name}; there are {deck_notebooks()}")


def shoot(deck: Path, out: Path, browser_path: str) -> list[Path]:
    """Write `out/NN.png` for each slide and print each slide's problems."""
    shots = []
    with chromium(browser_path) as browser, visit(browser) as seen:
        for number in range(open_deck(seen.page, deck)):
            go_to(seen.page, number)
            shots.append(out / f"{number + 1:02d}.png")
            seen.page.screenshot(path=shots[-1])
            for problem in slide_problems(seen.page):
                print(f"slide {number + 1}: {problem}")
        for complaint in seen.outside + seen.errors:
            print(f"deck: {complaint}")
    return shots


def contact_sheet(shots: list[Path]) -> Image.Image:
    """All slides in one picture."""
    rows = -(-len(shots) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * THUMB[0], rows * THUMB[1]), "#888888")
    for place, shot in enumerate(shots):
        row, column = divmod(place, COLUMNS)
        thumb = Image.open(shot).resize((THUMB[0] - 4, THUMB[1] - 4))
        sheet.paste(thumb, (column * THUMB[0] + 2, row * THUMB[1] + 2))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lesson", help="number such as 04, lecture, or a path")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    browser_path = find_chromium()
    if browser_path is None:
        raise SystemExit("no Chromium or Chrome on this machine")
    deck_dir = arguments.out / "deck"
    copy_assets(deck_dir)
    deck = build_deck(find_notebook(arguments.lesson), deck_dir)
    shots = shoot(deck, arguments.out, browser_path)
    contact_sheet(shots).save(arguments.out / "sheet.png")
    print(f"{len(shots)} slides in {arguments.out}, all in sheet.png")


if __name__ == "__main__":
    main()
