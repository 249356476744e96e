"""JupyterLab is started for real, and lesson 00 runs to its end in the browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from playwright.sync_api import Browser, Page

from tests.browser import visit

pytestmark = pytest.mark.browser

LESSONS = Path(__file__).parents[1] / "lessons"
START = "00_start_here.ipynb"
PATIENCE = 120  # s, for the server to answer and for the lesson to run


@pytest.fixture
def classroom(tmp_path: Path) -> Path:
    """A copy of the lessons in which lesson 00 has not been run."""
    shutil.copytree(LESSONS, tmp_path / "lessons")
    start = tmp_path / "lessons" / START
    notebook = nbformat.read(start, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, start)
    return tmp_path


@pytest.fixture
def server(classroom: Path) -> Iterator[str]:
    """The address of a JupyterLab that keeps everything it writes in `classroom`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=",
        f"--ServerApp.root_dir={classroom / 'lessons'}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    kept = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    places = {f"JUPYTER_{name}": str(classroom / name) for name in kept}
    places |= {
        "JUPYTERLAB_SETTINGS_DIR": str(classroom / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(classroom / "workspaces"),
        "IPYTHONDIR": str(classroom / "ipython"),
    }
    log = classroom / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=os.environ | places, stdout=output, stderr=output
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_server(address, process, log)
        yield address
    finally:
        process.terminate()  # the server then ends its kernels
        process.wait(timeout=30)


def wait_for_server(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run_all_cells(page: Page, address: str) -> None:
    """Open lesson 00 and click Run > Run All Cells, once the kernel is there."""
    page.goto(f"{address}/lab/tree/{START}")
    page.get_by_text("(ipykernel) | Idle").wait_for(timeout=PATIENCE * 1000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def saved_when_done(page: Page, notebook: Path) -> NotebookNode:
    """Save as a student would, until every cell has run or one has failed."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        saved = nbformat.read(notebook, as_version=4)
        if errors(saved) or all(cell.execution_count for cell in code_cells(saved)):
            return saved
    return saved


def errors(notebook: NotebookNode) -> list[str]:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [
        f"{output.ename}: {output.evalue}"
        for output in outputs
        if output.output_type == "error"
    ]


def test_lesson_00_runs_to_its_end_in_jupyterlab(
    browser: Browser, server: str, classroom: Path
) -> None:
    with visit(browser) as seen:
        run_all_cells(seen.page, server)
        saved = saved_when_done(seen.page, classroom / "lessons" / START)
        assert errors(saved) == []
        counts = [cell.execution_count for cell in code_cells(saved)]
        assert counts == list(range(1, len(counts) + 1))
        figure = seen.page.locator(".jp-OutputArea figure img").first
        figure.scroll_into_view_if_needed()
        assert figure.evaluate("image => image.naturalWidth") > 100
        assert seen.outside == []
