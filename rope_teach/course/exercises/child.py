"""Run a student's code in a process of its own, where it can hurt nothing.

A kernel that reads past its memory, ``os._exit``, an endless loop: in a notebook each
of them costs the reader all that was computed. Here it costs one check.

A function written in a notebook cannot be imported by another process. So it travels as
the text of its cell, with the functions and the values that it names; everything else
is pickled. That works on every system, where a fork does not.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import linecache
import os
import pickle
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import psutil

from rope_teach.course.exercises.cards import Wrong
from rope_teach.course.exercises.errors import explain
from rope_teach.course.exercises.student_code import inner_function, of_a_notebook

__all__ = ["pack", "run_apart", "unpack"]

START = "import sys; from rope_teach.course.exercises import child; child.serve({!r})"
PACKAGE = "rope_teach."
IMPORTS = 120.0  # seconds that a slow computer may need to load torch


def run_apart(
    function: Callable[..., Any], *args: Any, seconds: float = 20, gigabytes: float = 4
) -> Any:
    """Return ``function(*args)`` as a process of its own computes it.

    Either may be a function, a class or a kernel of a notebook, or hold some. What it
    prints is printed. ``Wrong`` is raised with the words of a ``Wrong`` raised there,
    or with a sentence on an error, a crash, too much time or too much memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            Path(folder, "call").write_bytes(pack((function, args)))
        except Exception as error:
            raise Wrong(
                f"Your code cannot be sent to another process: {error}."
            ) from None
        process = subprocess.Popen(
            [sys.executable, "-c", START.format(folder)],
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            trouble = _watch(process, Path(folder), seconds, gigabytes)
        finally:
            _end(process)
        done = Path(folder, "done")
        if not done.exists():
            raise Wrong(trouble or _how_it_ended(process.returncode))
        kind, value, printed = pickle.loads(done.read_bytes())
    print(printed, end="")
    if kind == "wrong":
        raise Wrong(value)
    return value


def _watch(
    process: subprocess.Popen[bytes], folder: Path, seconds: float, gigabytes: float
) -> str:
    """Wait until the process is done or ends; return what is wrong with it, if so.

    Its seconds are seconds of work, so that a busy computer blames nobody; a process
    that sleeps is given five times as long.
    """
    begin, worked = time.monotonic(), 0.0
    running = False
    while process.poll() is None and not (folder / "done").exists():
        work, memory = _use(process)
        now = time.monotonic()
        if not running and (folder / "started").exists():
            running, begin, worked = True, now, work
        if running and (work - worked > seconds or now - begin > 5 * seconds):
            return (
                f"Your code was still running after {seconds:g} seconds. Does a loop "
                "never end?"
            )
        if not running and now - begin > IMPORTS:
            return "Python did not start in a process of its own. Run the cell again."
        if memory > gigabytes * 2**30:
            return f"Your code asked for more than {gigabytes:g} GB of memory."
        time.sleep(0.02)
    return ""


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    if process.poll() is not None:  # its number may be another process's by now
        return []
    try:
        own = psutil.Process(process.pid)
        return [own, *own.children(recursive=True)]
    except psutil.Error:
        return []


def _use(process: subprocess.Popen[bytes]) -> tuple[float, int]:
    """Seconds of work and bytes of memory of the process and its children."""
    work, memory = 0.0, 0
    for one in _family(process):
        with contextlib.suppress(psutil.Error):
            times = one.cpu_times()
            work += times.user + times.system
            memory += one.memory_info().rss
    return work, memory


def _end(process: subprocess.Popen[bytes]) -> None:
    for one in _family(process):
        with contextlib.suppress(psutil.Error):
            one.kill()
    process.wait()


def _how_it_ended(code: int) -> str:
    if code in (-11, -7, 0xC0000005, -1073741819):  # SIGSEGV, SIGBUS, Windows' own
        return (
            "Your code crashed Python: it read or wrote memory that is not its own. "
            "Check every address. (It ran in a process of its own, so this notebook "
            "lives on.)"
        )
    return (
        f"Your code ended Python (exit code {code}) before it returned anything. (It "
        "ran in a process of its own, so this notebook lives on.)"
    )


# ------------------------------------------------- what travels, and how it is packed


class _Pickler(pickle.Pickler):
    """Pickles things of a notebook by name, and remembers them.

    A judge's own function goes by its name as well: while grading, the judges are a
    copy that ``sys.modules`` does not know.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.found: list[Any] = []

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, ModuleType):
            return __import__("importlib").import_module, (thing.__name__,)
        home = getattr(thing, "__module__", None) or ""
        if isinstance(thing, FunctionType) and home.startswith(PACKAGE):
            if thing.__globals__.get("__name__") == home:  # not one that wraps it
                return pkgutil.resolve_name, (f"{home}:{thing.__qualname__}",)
        if of_a_notebook(thing):
            self.found.append(thing)
            return _recall, (_label(thing),)
        return NotImplemented


def _dump(value: Any) -> tuple[bytes, list[Any]]:
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.found


def pack(call: Any) -> bytes:
    """The call, and the cells and the values that it needs, in the order of use.

    :func:`unpack` gives it back in another process, where no notebook is.
    """
    cells: list[tuple[str, str, str, int]] = []
    plain: dict[str, bytes] = {}
    late: dict[str, bytes] = {}
    seen: set[int] = set()

    def visit(thing: Any) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        code = _code(thing)
        text = "".join(linecache.getlines(code.co_filename))
        for name, value in _needs(thing, text):
            try:
                data, found = _dump(value)
                for each in found:
                    visit(each)
            except Exception:  # a figure, an open file: missed only if it is used
                continue
            if not (found and name == _label(value)):
                (late if found else plain)[name] = data
        cells.append((_label(thing), text, code.co_filename, code.co_firstlineno))

    data, found = _dump(call)
    for each in found:
        visit(each)
    return pickle.dumps((plain, cells, late, data))


def _code(thing: Any) -> CodeType:
    """The code of a function, or of the first method written in a class."""
    thing = inner_function(thing)
    for each in _functions(thing):
        if each is thing or each.__qualname__.startswith(f"{thing.__qualname__}."):
            return each.__code__
    raise TypeError(f"class {thing.__name__} has no method of its own")


def _functions(thing: Any) -> list[FunctionType]:
    """A function itself, or those of a class, static and class methods too."""
    own = vars(thing).values() if isinstance(thing, type) else [thing]
    inside = [inspect.unwrap(getattr(each, "__func__", each)) for each in own]
    return [each for each in inside if isinstance(each, FunctionType)]


def _label(thing: Any) -> str:
    thing = inner_function(thing)
    name = getattr(thing, "__name__", "")
    if name != "<lambda>":
        return name
    line, column = next(_places(thing.__code__))
    return f"lambda_{line}_{column}"


def _places(code: CodeType) -> Iterator[tuple[int, int]]:
    """The line and column of a lambda's first expression, where Python knows it."""
    if hasattr(code, "co_positions"):
        for line, _, column, _ in code.co_positions():
            if line is not None and column is not None and column > 0:
                yield line, column
    yield code.co_firstlineno, 0


def _needs(thing: Any, text: str) -> Iterator[tuple[str, Any]]:
    """The names that the source of ``thing`` uses, with their values."""
    scope: dict[str, Any] = {}
    for function in _functions(inner_function(thing)):
        scope |= function.__globals__
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not bound yet
                scope[name] = cell.cell_contents
    code = _code(thing)
    node = _definition(text, _label(thing), code.co_firstlineno)
    for name in {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}:
        if name in scope:
            yield name, scope[name]


def _definition(text: str, label: str, line: int) -> ast.stmt:
    """The statement of ``text`` that defines ``label``; ``line`` is in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == label:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if first <= line <= (node.end_lineno or line):
                return node
        if isinstance(node, ast.Lambda) and label.startswith("lambda_"):
            wanted = tuple(map(int, label.split("_")[1:]))
            inside = {
                (n.lineno, n.col_offset)
                for n in ast.walk(node.body)
                if isinstance(n, ast.expr)
            }
            if wanted in inside or (wanted[1] == 0 and node.lineno == line):
                name = ast.Name(label, ast.Store())
                return ast.fix_missing_locations(
                    ast.copy_location(ast.Assign([name], node), node)
                )
    raise TypeError(f"the text of {label} is not known; run its cell again")


# -------------------------------------------------------------- in the other process


def _recall(label: str) -> Any:
    return sys.modules["__main__"].__dict__[label]


def unpack(data: bytes) -> Any:
    """The call that :func:`pack` was given; what it needs is defined first."""
    scope = sys.modules["__main__"].__dict__
    plain, cells, late, call = pickle.loads(data)
    scope.update({name: pickle.loads(value) for name, value in plain.items()})
    for label, text, file, line in cells:
        lines = text.splitlines(keepends=True)
        linecache.cache[file] = (len(text), None, lines, file)
        tree = ast.Module([_definition(text, label, line)], [])
        exec(compile(tree, file, "exec"), scope)
    scope.update({name: pickle.loads(value) for name, value in late.items()})
    return pickle.loads(call)


def serve(folder: str) -> None:
    """Run the packed call of ``folder`` and leave there what came of it."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            function, args = unpack(Path(folder, "call").read_bytes())
            Path(folder, "started").touch()
            result = "right", function(*args)
            pickle.dumps(result)
    except Wrong as wrong:
        result = "wrong", str(wrong)
    except BaseException as error:  # SystemExit, too: the reader is told
        result = "wrong", explain(error)
    done = Path(folder, "writing")
    done.write_bytes(pickle.dumps((*result, printed.getvalue()[:4000])))
    done.rename(Path(folder, "done"))
