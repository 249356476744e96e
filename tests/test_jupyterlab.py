"""JupyterLab for real: lesson 00 runs to its end, and live decks fit a projector."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from playwright.sync_api import Browser, Page

from rope_teach.course.exercises import Feedback
from tests.browser import Visit, visit

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import lesson as tool

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
LESSONS = ROOT / "lessons"
START = "00_start_here.ipynb"
PRESENTED = [path for n in ("04", "13", "18", "lecture")
             for path in sorted(LESSONS.glob(f"{n}*.ipynb"))]  # fmt: skip
PATIENCE = 120  # s, for the server to answer and for the lesson to run


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the lessons in which lesson 00 has not been run."""
    room = tmp_path_factory.mktemp("classroom")
    shutil.copytree(LESSONS, room / "lessons")
    for path in [LESSONS / START, *PRESENTED]:
        notebook = nbformat.read(path, as_version=4)
        tool.conform(notebook)
        if path.name == START:
            for cell in code_cells(notebook):
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, room / "lessons" / path.name)
    saving = room / "settings" / "@jupyterlab" / "docmanager-extension"
    saving.mkdir(parents=True)  # each second, to see in a minute what two hours do
    settings = json.dumps({"autosaveInterval": 1})
    (saving / "plugin.jupyterlab-settings").write_text(settings)
    return room


@pytest.fixture(scope="module")
def server(classroom: Path) -> Iterator[str]:
    """The address of a JupyterLab that keeps everything it writes in `classroom`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        f"--config={ROOT / 'tools' / 'jupyter_config.py'}",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=",
        f"--ServerApp.root_dir={classroom / 'lessons'}",
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


def settled(file: Path) -> bytes:
    """What a file holds once nobody is writing it: half of a notebook is none."""
    before, now = b"", file.read_bytes()
    while not now or now != before:
        time.sleep(0.3)
        before, now = now, file.read_bytes()
    return now


def saved_when_done(page: Page, notebook: Path) -> NotebookNode:
    """Save as a student would, until every cell has run or one has failed."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        saved = nbformat.reads(settled(notebook), as_version=4)
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


# ---------------------------------------------------------------------- the live deck

# The themes of the toolbar, which the deck hides, compute a colour from itself: two
# copies of the library fast-foundation call each other until the stack is full, catch
# the error, and write it to the console. No slide is affected.
TOOLBAR = "RangeError: Maximum call stack size exceeded"
# jupyterlab-rise asks for a style sheet of the notebook's own beside rise.css.
NO_SHEET = "Refused to apply style from '{}' because its MIME type ('text/html')"

SLIDE = "section.present section.present"


def present(page: Page, address: str, name: str) -> None:
    """Open a notebook's live deck, and wait until it stands."""
    page.goto(f"{address}/rise/{name}")
    page.wait_for_selector(f".reveal {SLIDE}", timeout=PATIENCE * 1000)
    page.wait_for_selector(".slide-number-b")
    page.wait_for_function("document.fonts.status == 'loaded'")
    for script in ("stage.js", "live.js"):
        page.add_script_tag(path=Path(__file__).with_name(script))


def walk(page: Page, key: str) -> dict[str, list[str]]:
    """Press ``key`` to the end of a deck; return what each slide does wrong."""
    found: dict[str, list[str]] = {}
    before, at = None, page.evaluate("place()")
    while at != before:
        slide, hidden = at
        if slide not in found and not hidden:  # every fragment is there
            found[slide] = page.evaluate("inspectLive()")
        page.keyboard.press(key)
        before, at = at, page.evaluate("place()")
    return found


def complaints(seen: Visit, name: str) -> list[str]:
    """The console's errors, without the two kinds that are explained above."""
    sheet = seen.page.url.split("/rise/")[0] + f"/files/{Path(name).stem}.css"
    known = (TOOLBAR, NO_SHEET.format(sheet))
    return [error for error in seen.errors if not error.startswith(known)]


@contextmanager
def unchanged(page: Page, file: Path) -> Iterator[None]:
    """JupyterLab saves the file at least once, and every byte stays as it was."""
    before, saves = file.read_bytes(), []
    page.on("requestfinished", lambda r: r.method == "PUT" and saves.append(r.url))
    yield
    end = time.monotonic() + PATIENCE
    while not saves and time.monotonic() < end:
        page.wait_for_timeout(200)
    assert any(f"/api/contents/{file.name}" in url for url in saves)
    assert settled(file) == before


@pytest.mark.parametrize("path", PRESENTED, ids=lambda path: path.stem)
def test_live_deck(path: Path, browser: Browser, server: str, classroom: Path) -> None:
    file = classroom / "lessons" / path.name
    cells = nbformat.read(file, as_version=4).cells
    slides = sum(tool.slide_type(cell) in ("slide", "subslide") for cell in cells)
    with visit(browser) as seen, unchanged(seen.page, file):
        present(seen.page, server, path.name)
        there = walk(seen.page, "Space")
        seen.page.set_viewport_size({"width": 1920, "height": 1080})
        seen.page.wait_for_function(
            "document.querySelector('.reveal').offsetWidth > 1900"
        )
        seen.page.keyboard.press("Shift+Space")  # reveal.js measures when it turns
        assert seen.page.evaluate("Reveal.getScale()") > 1.48  # and type with it
        back = walk(seen.page, "Shift+Space")
        assert len(there) == slides == len(back) + 1
        problems = [f"{n}: {p}" for way in (there, back) for n in way for p in way[n]]
        assert problems == []
        assert seen.page.locator("jp-toolbar:visible, .jp-Toolbar:visible").count() == 0
        assert seen.outside == []
        assert complaints(seen, path.name) == []


@pytest.fixture
def own_copy(request: pytest.FixtureRequest, classroom: Path) -> Path:
    """A lesson of this test's own: two pages that save one file ask which is right."""
    path = classroom / "lessons" / f"{request.node.name}.ipynb"
    shutil.copyfile(path.with_name(PRESENTED[0].name), path)
    return path


def test_without_its_style_sheet_a_live_deck_fails(
    browser: Browser, server: str, own_copy: Path
) -> None:
    with visit(browser) as seen:
        present(seen.page, server, own_copy.name)
        sheet = "document.getElementById('rise-custom-css').disabled"
        seen.page.evaluate(f"{sheet} = true")
        found = str(walk(seen.page, "Space"))
        for problem in ("prose of", "code of", "runs over the bottom"):
            assert problem in found


def test_alt_r_leaves_the_file_alone(
    browser: Browser, server: str, own_copy: Path
) -> None:
    with visit(browser) as seen, unchanged(seen.page, own_copy):
        seen.page.goto(f"{server}/lab/workspaces/present/tree/{own_copy.name}")
        seen.page.get_by_text("(ipykernel) | Idle").wait_for(timeout=PATIENCE * 1000)
        end = time.monotonic() + PATIENCE
        while not seen.page.locator("iframe").count() and time.monotonic() < end:
            seen.page.locator(".jp-Notebook h1").first.click()
            seen.page.keyboard.press("Alt+r")
            seen.page.wait_for_timeout(5000)  # JupyterLab may not have listened yet
        deck = seen.page.frame_locator("iframe")
        deck.locator(f".reveal {SLIDE} h1").wait_for(timeout=PATIENCE * 1000)
        assert seen.outside == []


def test_a_cell_of_a_live_deck_is_edited_and_run(
    browser: Browser, server: str, own_copy: Path
) -> None:
    with visit(browser) as seen:
        present(seen.page, server, own_copy.name)
        seen.page.keyboard.press("Space")
        seen.page.locator(f"{SLIDE} .jp-CodeCell .cm-content").first.click()
        seen.page.keyboard.press("Control+a")
        seen.page.keyboard.type("print(6 * 7)")
        seen.page.keyboard.press("Control+Enter")  # Shift+Enter would turn the page
        shown = seen.page.locator(f"{SLIDE} .jp-OutputArea-output pre")
        shown.get_by_text("42").wait_for(timeout=PATIENCE * 1000)
        seen.page.keyboard.press("Space")  # the deck has its keys back
        seen.page.wait_for_selector("#slide-2-0.present")
        assert complaints(seen, own_copy.name) == []


def test_a_solution_is_legible_on_a_dark_page(browser: Browser) -> None:
    shown = Feedback("solution", "4.1", "x = 1", "Why.")._repr_mimebundle_()
    dark = "<style>body, pre { background: #111; color: #eee; }</style>"
    with visit(browser) as seen:
        seen.page.set_content(dark + shown["text/html"])
        for part in ("pre", ".rope-feedback"):
            style = seen.page.locator(part).evaluate(
                "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
            )
            assert style == ["rgb(26, 26, 26)", "rgb(246, 248, 250)"]
