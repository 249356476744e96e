"""What ``import rope_teach`` costs and pulls, and what its names promise."""

import inspect
import re
import subprocess
import sys

import pytest

import rope_teach
from rope_teach import laws

PROBE = """
import sys
import torch
before = set(sys.modules)
import rope_teach
print("\\n".join(set(sys.modules) - before))
"""


def test_the_import_adds_the_package_and_nothing_heavy():
    """A time would depend on the machine; the number of modules does not."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True
    )
    added = set(run.stdout.split())
    assert {"rope_teach", "rope_teach.rotary"} <= added
    others = {name for name in added if name.partition(".")[0] != "rope_teach"}
    assert not others
    upstairs = "laws", "identify", "dialects", "course"
    assert not {f"rope_teach.{name}" for name in upstairs} & added


def public():
    for module in (rope_teach, laws):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield pytest.param(value, id=name)


@pytest.mark.parametrize("value", list(public()))
def test_docstrings_say_what_it_is(value):
    first = inspect.getdoc(value).splitlines()[0]
    assert first[0].isupper() and first.rstrip()[-1] in ".`:"
    assert len(first) <= 88


@pytest.mark.parametrize("name", rope_teach.__all__)
def test_docstrings_of_the_package_have_their_parts(name):
    value = getattr(rope_teach, name)
    text = inspect.getdoc(value)
    assert re.search(r"[Ll]essons? \d\d", text), "name the lesson"
    assert re.search(r"``\(|:func:|head_dim", text), "state a shape, or whose it is"
    if inspect.isfunction(value):
        assert ">>> " in text, "show an example"
        takes = inspect.signature(value)
        assert takes.return_annotation is not inspect.Signature.empty


def test_names_are_sorted_and_public_where_they_live():
    assert rope_teach.__all__ == sorted(rope_teach.__all__)
    for name in rope_teach.__all__:
        home = sys.modules[getattr(rope_teach, name).__module__]
        assert home.__name__.startswith("rope_teach."), f"{name} is not ours"
        assert name in home.__all__, f"{home.__name__} keeps {name} to itself"


@pytest.mark.parametrize("name", ["laws", "identify", "dialects", "course"])
def test_what_the_core_does_not_need_is_found_when_it_is_asked_for(name):
    code = f"import rope_teach, rope_teach.{name}; print(rope_teach.{name}.__name__)"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [f"rope_teach.{name}"]
