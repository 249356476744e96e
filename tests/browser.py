"""Chromium for the tests and for `slides/shoot.py`: found, offline, measured."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, Route, sync_playwright

STAGE = {"width": 1280, "height": 720}
LOCAL = ("file:", "data:", "blob:", "about:", "http://127.0.0.1:")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def chromium_or_skip() -> str:
    """The path of Chromium; without one the test skips, or fails where it must run."""
    import pytest  # here, because the handout is printed without it

    path = find_chromium()
    if path is None:
        reason = "no Chromium or Chrome on this machine"
        if os.environ.get("ROPE_TEACH_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{reason}, and ROPE_TEACH_REQUIRE_BROWSER=1 asks for one")
        pytest.skip(reason)
    return path


@contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """Run a headless browser; nothing is downloaded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page, what it asked for outside this machine, and what it complained of."""

    page: Page
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def visit(browser: Browser) -> Iterator[Visit]:
    """Give a page that reaches this machine alone, and records what it tries."""
    page = browser.new_page(viewport=STAGE)
    seen = Visit(page)

    def local_only(route: Route) -> None:
        if route.request.url.startswith(LOCAL):
            route.continue_()
        else:
            seen.outside.append(route.request.url)
            route.abort()

    page.route("**/*", local_only)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on(
        "console",
        lambda message: message.type == "error" and seen.errors.append(message.text),
    )
    yield seen
    page.close()


def open_deck(page: Page, deck: Path) -> int:
    """Open a built deck, wait until it stands, and return how many slides it has."""
    page.goto(deck.resolve().as_uri())
    page.wait_for_selector("body[data-ready]", timeout=30_000)
    page.evaluate("Reveal.configure({fragments: false})")
    page.add_script_tag(path=Path(__file__).with_name("stage.js"))
    return int(page.evaluate("Reveal.getTotalSlides()"))


def go_to(page: Page, number: int) -> None:
    """Show slide `number`, counted from 0 over all slides and subslides."""
    page.evaluate(
        "n => { const at = Reveal.getIndices(Reveal.getSlides()[n]);"
        " Reveal.slide(at.h, at.v); }",
        number,
    )


def slide_problems(page: Page) -> list[str]:
    """What the slide on show does wrong on the stage: `stage.js` has the rules."""
    return list(page.evaluate("inspectSlide(Reveal.getCurrentSlide())"))
