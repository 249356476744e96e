"""The environment check behind ``python -m rope_teach doctor``.

Each check yields findings: what was checked, what was found and, if something is
wrong, the command that fixes it. Requirements and their minimum versions are read
from the installed package itself, so nothing is written down twice.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from torch import Tensor

from rope_teach import laws
from rope_teach.checks import Pairing
from rope_teach.course.handout import LESSONS, PACKAGE
from rope_teach.rotary import RotaryEmbedding

__all__ = ["CHECKS", "Finding", "examine", "main"]

IN_REPOSITORY = (PACKAGE.parent / "Makefile").is_file()
INSTALL = "run: make course (or the pip command in README)"
START_AFRESH = "delete the folder .venv, then run: make course"
if not IN_REPOSITORY:
    INSTALL = "install again, as README says for a hosted notebook or without make"
    START_AFRESH = "make a new virtual environment and install the course there"


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``fix`` says how to fix it when it is not OK."""

    status: Literal["OK", "WARN", "FAIL"]
    what: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{f'[{self.status}]':6} {self.what}: {self.found}"
        return f"{line}\n       {self.fix}" if self.fix else line


def python() -> Iterator[Finding]:
    """Does the course support this Python version?"""
    version = ".".join(map(str, sys.version_info[:3]))
    bounds = SpecifierSet(metadata.metadata("rope-teach")["Requires-Python"])
    yield _compare("Python", version, bounds, START_AFRESH)


def requirements() -> Iterator[Finding]:
    """Are torch and everything the lessons use installed, and recent enough?"""
    extras = ("lessons",) if in_notebook() else ("lessons", "course")
    for line in metadata.requires("rope-teach") or []:
        needed = Requirement(line)
        asked = needed.marker is None or any(
            needed.marker.evaluate({"extra": extra}) for extra in extras
        )
        if not asked or needed.name == "rope-teach":  # one extra in another
            continue
        try:
            version = metadata.version(needed.name)
            yield _compare(needed.name, version, needed.specifier, INSTALL)
        except metadata.PackageNotFoundError:
            yield Finding("FAIL", needed.name, "not installed", INSTALL)


def rotation() -> Iterator[Finding]:
    """Does the rotation obey its laws, on each device and in both pairings?"""
    devices = {"cpu": f"cpu (threads: {torch.get_num_threads()})"}
    if torch.cuda.is_available():
        devices["cuda"] = torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU (mps)"
    for device, described in devices.items():
        what = f"rotation on {described}"
        try:
            laws.check_all(_rotate_on(device, "interleaved"))
            laws.check_all(_rotate_on(device, "half"))
        except Exception as error:  # a broken law, or whatever a GPU driver raises
            fix = START_AFRESH
            if device == "cuda":
                fix = "update the GPU driver, or hide the GPU: CUDA_VISIBLE_DEVICES=''"
            yield Finding("FAIL", what, _first_line(error), fix)
        else:
            obeyed = f"obeys {len(laws.LAWS)} laws, interleaved and half"
            yield Finding("OK", what, obeyed)


def figures() -> Iterator[Finding]:
    """Can matplotlib draw text and a formula to an image, without a screen?"""
    import numpy as np
    from matplotlib.figure import Figure

    figure, picture = Figure(figsize=(2, 1)), io.BytesIO()
    figure.text(0.1, 0.4, r"turned by $m\,\theta_i$")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is only a warning
        figure.savefig(picture, format="rgba")
    pixels = np.frombuffer(picture.getvalue(), np.uint8).reshape(-1, 4)
    if (pixels[:, :3] < 128).any():
        yield Finding("OK", "figures", "text and formulas can be drawn")
    else:
        yield Finding("FAIL", "figures", "text is not drawn", START_AFRESH)


def in_notebook() -> bool:
    """Whether this runs in a notebook, whose Jupyter is then there and works."""
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def kernel() -> Iterator[Finding]:
    """Does the notebook kernel run this Python and import this package?"""
    if in_notebook():
        yield Finding("OK", "Jupyter kernel", "this notebook runs in it")
        return
    from jupyter_client.manager import start_new_kernel

    where = str(LESSONS) if LESSONS.is_dir() else tempfile.gettempdir()
    manager, client = start_new_kernel(
        kernel_name="python3", cwd=where, stderr=subprocess.DEVNULL
    )
    try:
        reply = client.execute_interactive(
            "import sys, rope_teach",
            user_expressions={"found": "sys.prefix, rope_teach.__file__"},
            output_hook=lambda message: None,
            timeout=60,
        )["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if reply["status"] != "ok":
        found = f"{reply['ename']}: {reply['evalue']}"
        yield Finding("FAIL", "Jupyter kernel", found, START_AFRESH)
        return
    answer = reply["user_expressions"]["found"]["data"]["text/plain"]
    prefix, package = ast.literal_eval(answer)
    if prefix != sys.prefix:
        found = f"runs the Python in {prefix}"
        fix = f'run: "{sys.executable}" -m ipykernel install --sys-prefix'
        yield Finding("FAIL", "Jupyter kernel", found, fix)
    elif Path(package).resolve().parent != PACKAGE:
        found = f"imports {package}, not {PACKAGE}"
        yield Finding("FAIL", "Jupyter kernel", found, START_AFRESH)
    else:
        yield Finding("OK", "Jupyter kernel", "runs this Python and this rope_teach")


def lessons() -> Iterator[Finding]:
    """Are the lessons in the repository, or in the wheel?"""
    notebooks = sorted(LESSONS.glob("[0-9][0-9]_*.ipynb"))
    if notebooks:
        found = f"{len(notebooks)} found, starting with {notebooks[0].name}"
        yield Finding("OK", "lessons", found)
    else:
        fix = "the package works; to get the lessons, install it again"
        yield Finding("WARN", "lessons", f"none in {LESSONS}", fix)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python,
    requirements,
    rotation,
    figures,
    kernel,
    lessons,
)


def examine() -> Iterator[Finding]:
    """Run every check; a check that cannot finish is itself a finding."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            yield Finding("FAIL", check.__name__, _first_line(error), INSTALL)


def main() -> int:
    """Print each finding as it arrives; return 0 if nothing failed, else 1."""
    failed = 0
    for finding in examine():
        print(finding, flush=True)
        failed += finding.status == "FAIL"
    if failed == 1:
        print("\n1 problem found.")
    elif failed:
        print(
            f"\n{failed} problems found. Start with the first: it may cause the others."
        )
    else:
        print("\nEverything is fine: the lessons will run here.")
    return 1 if failed else 0


def _rotate_on(device: str, pairing: Pairing) -> laws.Rotation:
    rope = RotaryEmbedding(8, pairing=pairing)

    def rotate(x: Tensor, positions: Tensor) -> Tensor:
        x = x.float().to(device)  # Apple's GPU has no float64
        return rope.rotate(x[None, None], positions.to(device))[0, 0].cpu()

    return rotate


def _compare(name: str, version: str, bounds: SpecifierSet, fix: str) -> Finding:
    if bounds.contains(version, prereleases=True):
        return Finding("OK", name, version)
    return Finding("FAIL", name, f"{version}, but the course needs {bounds}", fix)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
