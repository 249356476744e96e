"""The API's pages: every public name is there, explained, and nothing is fetched."""

import importlib
import inspect
import re
import sys
import types

import pytest

from tests import test_architecture
from tests.test_setup import ROOT

sys.path.insert(0, str(ROOT / "tools"))
api = importlib.import_module("api")


def public_names():
    """Each public function and class, and the module that offers it."""
    for module in map(importlib.import_module, api.public_modules()):
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if isinstance(thing, (type, types.FunctionType)):
                yield f"{module.__name__}.{name}", thing


NAMES = dict(public_names())


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    index = api.build(tmp_path_factory.mktemp("api"))
    return {
        page.relative_to(index.parent).as_posix(): page.read_text()
        for page in index.parent.rglob("*.html")
    }


def test_every_module_has_a_page(pages):
    hidden = ("", "__main__", "course.exercises")
    for name in test_architecture.MODULES:
        if name not in hidden and not name.startswith("course.exercises."):
            assert f"rope_teach/{name.replace('.', '/')}.html" in pages


def test_every_public_name_has_its_place(pages):
    def has_a_place(name):
        module, _, own = name.rpartition(".")
        return f'id="{own}"' in pages[f"{module.replace('.', '/')}.html"]

    assert len(NAMES) > 100
    assert not [name for name in NAMES if not has_a_place(name)]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_explained(name):
    words = inspect.getdoc(NAMES[name])
    assert words and len(words.splitlines()[0]) > 20
    module = NAMES[name].__module__.partition(".")[2]
    if module in NAME_THEIR_LESSONS:
        assert re.search(r"[Ll]essons? \d\d|Built in", words), "no lesson is named"


# The laws are all of one lesson, and what is under `ops` is not for callers.
NAME_THEIR_LESSONS = {*test_architecture.CORE, "course.parallel"} - {
    "laws",
    *(name for name in test_architecture.CORE if name.startswith("ops")),
}


def test_no_sentence_became_a_parameter(pages):
    """A docstring's closing words need a heading, or they are taken for names."""
    names = re.findall(r"<li><strong>(.*?)</strong>", "".join(pages.values()))
    assert len(names) > 50
    assert not [n for n in names if re.search(r"[.:;] |\.$|Source", n)]


def test_pages_load_nothing_from_a_network(pages):
    for page in pages.values():
        loads = re.findall(r'(?:src|<link[^>]*href)="([^"]+)"', page)
        assert not [url for url in loads if url.startswith(("http", "//"))]
