"""What in a cell reaches beyond an answer: its text is read, before anything runs.

An answer runs in the process that judges it, so a student who sets out to can change
the judge's mind. Such code names what leads out of an answer: ``gc``, ``sys``,
``__globals__``, ``exec``. An honest answer seldom does, so a teacher looks at it.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable

__all__ = ["suspicions"]

LESSONS_DO = {"exercises", "inspect", "sys"}  # in cells that check nothing
REACHING = LESSONS_DO | set(
    "builtins codecs ctypes gc importlib IPython marshal pickle "
    "compile delattr eval exec globals setattr vars get_objects get_referrers "
    "meta_path path_hooks settrace setprofile ast_transformers "
    "input_transformers_cleanup input_transformers_post __enter__ grading "
    "f_back f_globals f_locals tb_frame gi_frame cell_contents __base__ __bases__ "
    "__builtins__ __closure__ __code__ __defaults__ __dict__ __getattribute__ "
    "__globals__ __import__ __loader__ __mro__ __self__ __spec__ __subclasses__ "
    "__traceback__ __wrapped__".split()
)
METHODS = {"compile", "eval"}  # torch has them, and a model
CHECKS = "from rope_teach.course.exercises import"
RUNS_A_FILE = re.compile(r"^[ \t]*%(?:run|load\w*)\b", re.MULTILINE)
COMMAND = re.compile(r"^([ \t]*)[%!].*", re.MULTILINE)


def suspicions(cells: list[tuple[str, bool]], beside: Iterable[str] = ()) -> list[str]:
    """Return for each cell the words in it that reach beyond an answer.

    Parameters
    ----------
    cells
        The sources of a notebook's cells, each with whether it checks an exercise.
    beside
        Names of a student's own modules: what these do, nobody has read.
    """
    trees = [_parsed(source) for source, _ in cells]
    modules = {
        (name.asname or name.name).partition(".")[0]
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    found = []
    for (source, checks), tree in zip(cells, trees, strict=True):
        reaching = REACHING - (set() if checks else LESSONS_DO)
        words = {*_words(tree, reaching, set(beside), modules)}
        words.update(RUNS_A_FILE.findall(source))
        found.append(", ".join(sorted(words)))
    return found


def _parsed(source: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on a student's strings
            return ast.parse(COMMAND.sub(r"\1pass", source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])  # it does not run, either


def _words(
    tree: ast.Module, reaching: set[str], beside: set[str], modules: set[str]
) -> Iterable[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names) | ast.ImportFrom(names=names):
                if not ast.unparse(node).startswith(CHECKS):
                    words = [getattr(node, "module", None) or ""]
                    words += [name.name for name in names]
                    yield from reaching.intersection(".".join(words).split("."))
                    yield from beside.intersection(w.partition(".")[0] for w in words)
            case ast.Name(name) | ast.Constant(str(name)) if name in reaching:
                yield name
            case ast.Attribute(attr=name) if name in reaching - METHODS:
                yield name
            case ast.Attribute(ast.Name(name), ctx=ast.Store() | ast.Del()):
                if name in modules:  # math.pi = 3: for every exercise that follows
                    yield ast.unparse(node)
