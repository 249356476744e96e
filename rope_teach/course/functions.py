"""Real tasks without a download: the functions of Python's standard library.

A function's source and the first sentence of its docstring (summarization); a
function's source, a question and the exact span that answers it (question answering).
Every Python installation contains this text. ``functions.txt`` beside this file holds
the digests of the functions that are the same in Python 3.10 to 3.14, and only these
are used, so that every reader has the same task. Lessons 12 to 15.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import textwrap
import warnings
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rope_teach.checks import check_choice
from rope_teach.course.tasks import SPLITS, part_of

__all__ = [
    "KINDS",
    "Function",
    "Question",
    "digest",
    "first_comment",
    "first_match",
    "functions",
    "functions_in",
    "most_common",
    "name_in_words",
    "questions",
    "questions_about",
]

DIGESTS = Path(__file__).with_name("functions.txt")  # a module and its digests a line
KINDS = ("default", "raises", "returns", "set to", "goes through")
# Not the language's own library, or not installed everywhere.
LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3",
    "turtledemo", "ensurepip", "distutils", "tkinter", "pydoc_data", "__pycache__",
}  # fmt: skip


class Function(NamedTuple):
    """A function: its module, name, source without the docstring, and a summary.

    ``summary`` is the first sentence of the docstring; ``code`` keeps its comments.
    """

    module: str
    name: str
    code: str
    summary: str


class Question(NamedTuple):
    """A question about a function, and its answer ``context[start:end]``.

    ``kind`` is one of ``KINDS``; ``start`` and ``end`` count characters.
    """

    kind: str
    context: str
    question: str
    answer: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.answer)


def functions(split: str) -> tuple[Function, ...]:
    """The standard library's documented functions in one of three parts.

    ``split`` is "train", "validation" or "test". A hash of the code decides, so that
    no code is in two of them. All 1,912 were the same in eight releases from
    3.10.13 to 3.14; a security fix may change a few (13 in one patched 3.12), which are
    then left out, with a warning if more than 5 % are missing. Raises ``ValueError``
    for another split. Lessons 14 and 15.

    >>> [len(functions(split)) for split in ("train", "validation", "test")]
    [1500, 178, 234]
    >>> functions("test")[0].summary
    'Add an element.'
    """
    check_choice("split", split, tuple(SPLITS))
    return tuple(f for f in _everything() if part_of(f.code) == split)


@cache
def _everything() -> tuple[Function, ...]:
    modules = {line.split()[0] for line in DIGESTS.read_text().splitlines()}
    known = set(DIGESTS.read_text().split()) - modules
    there = stdlib_functions(modules=modules)
    found = {digest(f): f for f in there if digest(f) in known}
    if len(found) < 0.95 * len(known):
        warnings.warn(
            f"{len(known) - len(found)} of {len(known)} functions are missing from "
            "this Python's standard library, or differ; so will results",
            stacklevel=3,
        )
    return tuple(sorted(found.values()))


def stdlib_functions(
    root: Path | None = None, modules: Container[str] | None = None
) -> Iterator[Function]:
    """Every documented function in the standard library, of ``modules`` or of all.

    ``root`` is its folder, by default this Python's. Functions without a known digest
    are included.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if LEFT_OUT.isdisjoint(place.parts):
            module = ".".join(place.with_suffix("").parts)
            if modules is None or module in modules:
                yield from functions_in(path.read_text("utf-8", "replace"), module)


def digest(function: Function) -> str:
    """Twelve hexadecimal digits that change with the function's text."""
    text = "\0".join(function)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def functions_in(source: str, module: str = "") -> Iterator[Function]:
    """The documented functions and methods in Python ``source``, as a task needs them.

    Kept are codes of 60 to 1200 characters with at least one statement beside the
    docstring, whose first sentence has 15 to 120 characters and begins with a capital.
    Source that does not parse yields nothing.

    >>> source = '''
    ... def double(x):
    ...     "Return twice the number that is given."
    ...     # Adding is cheaper than multiplying was, long ago.
    ...     return x + x
    ... '''
    >>> print(*next(functions_in(source))[1:], sep=": ")
    double: def double(x):
        # Adding is cheaper than multiplying was, long ago.
        return x + x: Return twice the number that is given.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            summary = _first_sentence(ast.get_docstring(node) or "")
            if summary and len(node.body) > 1:
                code = _without_docstring(node, lines)
                if 60 <= len(code) <= 1200:
                    yield Function(module, node.name, code, summary)


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=\.) ", paragraph)[0]
    fits = 15 <= len(sentence) <= 120 and sentence[0].isupper()
    return sentence if fits else ""


def _without_docstring(
    node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]
) -> str:
    said = node.body[0]
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    kept = lines[first : said.lineno - 1] + lines[said.end_lineno : node.end_lineno]
    code = "\n".join(line.rstrip() for line in kept).expandtabs()
    return textwrap.dedent(code).strip("\n")


# --------------------------------------------------------------------- questions


def questions(split: str) -> tuple[Question, ...]:
    """Questions about the functions of ``split``, each with the span that answers it.

    At most one of each kind for a function. Lesson 15.

    >>> [len(questions(split)) for split in ("train", "validation", "test")]
    [1850, 206, 279]
    >>> asked = questions("test")[3]
    >>> asked.question, asked.answer
    ('what does the loop over name go through?', 'cls.__dict__')
    >>> asked.context[asked.start : asked.end] == asked.answer
    True
    """
    return tuple(q for f in functions(split) for q in questions_about(f.code))


def questions_about(code: str) -> Iterator[Question]:
    r"""Questions that the source of one function answers, at most one of each kind.

    An answer is one expression of at most 40 characters on one line. A question is
    asked only if the source has one answer: a name that is set twice is left out.

    >>> code = "def double(x, times=2):\n    return x * times"
    >>> for asked in questions_about(code):
    ...     print(asked.question, "->", asked.answer, asked.start)
    what is the default of times? -> 2 20
    what does it return at the end? -> x * times 35
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    if not tree.body or not isinstance(
        function := tree.body[0], (ast.FunctionDef, ast.AsyncFunctionDef)
    ):
        return
    found = list(_answers(function, code))
    seen = Counter((kind, name) for kind, name, _ in found)
    asked = set()
    lines = code.split("\n")
    for kind, name, node in found:
        answer = ast.get_source_segment(code, node)
        alone = seen[kind, name] == 1
        if kind in asked or not alone or not answer or not 0 < len(answer) <= 40:
            continue
        if "\n" in answer or answer == name:
            continue
        before = sum(len(line) + 1 for line in lines[: node.lineno - 1])
        column = len(lines[node.lineno - 1].encode()[: node.col_offset].decode())
        asked.add(kind)
        yield Question(kind, code, WORDS[kind].format(name), answer, before + column)


WORDS = {
    "default": "what is the default of {}?",
    "raises": "what does it raise if {}?",
    "returns": "what does it return at the end?",
    "set to": "what is {} set to?",
    "goes through": "what does the loop over {} go through?",
}


def _answers(
    function: ast.FunctionDef | ast.AsyncFunctionDef, code: str
) -> Iterator[tuple[str, str, ast.expr]]:
    """Kind, name asked for and answering expression."""
    given = function.args
    named = [*given.posonlyargs, *given.args]
    defaults = given.defaults
    for name, value in zip(named[len(named) - len(defaults) :], defaults, strict=True):
        yield "default", name.arg, value
    for name, keyword in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        if keyword is not None:
            yield "default", name.arg, keyword
    if isinstance(last := function.body[-1], ast.Return) and last.value is not None:
        yield "returns", "", last.value
    for node in _own_nodes(function.body):
        if isinstance(node, ast.If) and isinstance(first := node.body[0], ast.Raise):
            raised = first.exc.func if isinstance(first.exc, ast.Call) else first.exc
            condition = ast.get_source_segment(code, node.test) or ""
            if raised is not None and len(condition) <= 40 and "\n" not in condition:
                yield "raises", condition, raised
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield "set to", node.targets[0].id, node.value
        elif isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            yield "goes through", node.target.id, node.iter


def _own_nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Nodes in the order of the source, without those of functions inside."""
    for node in body:
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _own_nodes(ast.iter_child_nodes(node))


# --------------------------------------------------------------------- baselines


def name_in_words(function: Function) -> str:
    """A summary for nothing: the function's name, split into words.

    >>> name_in_words(Function("", "loadTestsFromModule", "", ""))
    'load Tests From Module'
    """
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", function.name))


def first_comment(function: Function) -> str:
    """A summary for nothing: the first comment in the source, else its name."""
    found = re.search(r"^\s*#+\s*(\S.*)", function.code, re.MULTILINE)
    return found[1] if found else name_in_words(function)


def most_common(known: Sequence[Question]) -> dict[str, str]:
    """The most common answer to each kind of question among those ``known``."""
    return {
        kind: Counter(q.answer for q in known if q.kind == kind).most_common(1)[0][0]
        for kind in dict.fromkeys(q.kind for q in known)
    }


def first_match(question: Question) -> str:
    r"""What follows the first mention of the word that the question is about.

    >>> code = "def double(x, times=2):\n    return x * times"
    >>> [first_match(asked) for asked in questions_about(code)]
    ['2', 'x * times']
    """
    place = {"default": 5, "raises": 3, "returns": 3, "set to": 2, "goes through": 5}
    name = question.question.rstrip("?").split()[place[question.kind]]
    found = re.search(rf"\b{re.escape(name)}\b\W*([^\n,():]*)", question.context)
    return found[1].strip() if found else ""
