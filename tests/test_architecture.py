"""The house: which module may import which. CONTRIBUTING.md has the map in words."""

import ast
import re
from pathlib import Path

import pytest

import rope_teach

ROOT = Path(rope_teach.__file__).parent

# The first floor in the order in which it reads: each module imports from those before.
CORE = (
    "checks",
    "frequencies",
    "tables",
    "rotation",
    "pairing",
    "axes",
    "ops.cpu",
    "ops.cuda",
    "ops",
    "ops.norm",
    "rotary",
    "absolute",
    "cache",
    "attention",
    "laws",
)


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.stem != "sitecustomize"  # Python itself runs it, and nobody imports it
}


def imports(name):
    """The modules of the package that a module imports, at its top or in a function."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            parts = (node.module or "").split(".")
            if parts[0] != "rope_teach":
                continue
            module = ".".join(parts[1:])
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield inner if inner in MODULES else module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "rope_teach":
                    yield alias.name.partition(".")[2]


def floor(name):
    """Core 0, dialects 1, identify 2 (its command reads configurations), course 3."""
    room = name.split(".")[0]
    return 0 if name in CORE else {"dialects": 1, "identify": 2, "course": 3}.get(room)


BUILDING = [name for name in MODULES if name not in ("", "__main__")]


def test_every_module_has_a_place():
    assert not [name for name in BUILDING if floor(name) is None]
    assert set(CORE) <= set(MODULES)


@pytest.mark.parametrize("name", BUILDING)
def test_arrows_point_downward(name):
    for other in imports(name):
        if other == "":  # the package's own names stand for the core
            assert floor(name) == 3, f"{name} imports rope_teach itself"
            continue
        assert floor(other) <= floor(name), f"{name} imports {other}"
        if floor(name) == 0:
            assert CORE.index(other) < CORE.index(name), f"{name} imports {other}"


def test_there_is_no_cycle():
    arrows = {name: set(imports(name)) - {name, ""} for name in BUILDING}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            path.append(name)
            for other in sorted(arrows[name]):
                visit(other)
            path.pop()
            done.add(name)

    for name in BUILDING:
        visit(name)


def test_the_core_grows_no_longer():
    """The goal is 3,500 lines, an evening's reading; this bound may only go down."""
    lines = {name: len(MODULES[name].read_text().splitlines()) for name in CORE}
    assert sum(lines.values()) <= 4_561, lines


def test_the_top_level_is_small():
    assert len(rope_teach.__all__) == 16


def test_contributing_has_the_map():
    """The modules in the order in which they read, with line counts that are true."""
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| .+ \| (\d+) \|$", text, re.MULTILINE)
    assert tuple(name for name, _ in rows) == CORE
    for name, stated in rows:
        lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
        assert abs(lines - int(stated)) <= 0.1 * lines + 10, f"{name} has {lines} lines"
