"""Build the pages of the package's API from its docstrings: `python tools/api.py`.

They go to `build/api/`; open `index.html` there. They load nothing from a network.
"""

from __future__ import annotations

import argparse
import pkgutil
from pathlib import Path

import pdoc

import rope_teach

OUT = Path(__file__).resolve().parent.parent / "build" / "api"
FOR_LESSONS_ALONE = ("rope_teach.course.exercises", "rope_teach.__main__")


def public_modules() -> list[str]:
    """All modules of the package by name, without those that only lessons call."""
    found = pkgutil.walk_packages(rope_teach.__path__, "rope_teach.")
    names = [m.name for m in found if not m.name.startswith(FOR_LESSONS_ALONE)]
    return ["rope_teach", *names]


def build(out: Path) -> Path:
    """Write the pages to ``out``; return the first one."""
    pdoc.render.configure(docformat="numpy", show_source=False)
    pdoc.pdoc(*public_modules(), output_directory=out)
    return out / "index.html"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    print("open", build(parser.parse_args().out))
