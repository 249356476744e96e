"""One notebook, run and judged in a process of its own: ``python -m`` this module.

It reads its job from standard input and tells its parent, line by line, which cell it
starts and how each exercise was judged; each line begins with a secret. The judge is a
copy of the exercises that ``sys.modules`` does not know, loaded before any cell ran:
what a notebook does to ``check`` or to a judge, it does to a copy of its own.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import math
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rope_teach.course.grading import guard

Say = Callable[..., None]
Run = Callable[[str], tuple[dict[str, Any], BaseException | None]]
EXERCISES = "rope_teach.course.exercises"


def main() -> None:
    """Do one job: run its cells in order, and judge the answers of each."""
    job = json.loads(sys.stdin.buffer.readline())
    say = speaker(job["secret"])
    folder = Path(job["folder"])
    guard.build(folder, job["cpu_seconds"], job["memory"])
    judge = Judge([key for _, _, keys, _ in job["cells"] for key in keys])
    run = runner()
    os.dup2(0, 2)  # what went wrong until here, the parent may read
    sys.path[0] = ""  # a notebook imports what lies beside it, as in Jupyter
    for index, source, keys, of_exercise in job["cells"]:
        os.chdir(folder / "work")
        threads = set(sys._current_frames())
        say(cell=index)
        answers, error = run(source)
        for key in keys:
            say(key=key)
            kind, text = "wrong", said_of(error)
            if key in answers:
                kind, text = judge(key, answers[key])
            say(key=key, kind=kind, text=text)
        harm = "left a thread running" if of_exercise and still_running(threads) else ""
        if of_exercise and not works(run, judge):
            harm = "left Python in a state in which no cell is checked"
        if of_exercise and guard.filled(folder):
            harm = "filled the disk"
        if harm:
            say(harm=harm)
            break
    say(done=True)
    os._exit(0)  # at once, whatever a notebook has asked to run at exit


def speaker(secret: str) -> Say:
    """Keep standard output for the parent alone, and return the way to write to it."""
    channel, process = os.dup(1), os.getpid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nowhere, stream)

    def say(**words: Any) -> None:
        if os.getpid() != process:
            os._exit(0)  # a fork of this process, which must not go on like it
        os.write(channel, f"{secret} {json.dumps(words)}\n".encode())

    return say


class Judge:
    """The genuine check, and what it stands on, as they were before any cell ran."""

    def __init__(self, keys: list[str]) -> None:
        exercises = importlib.import_module(EXERCISES)
        for key in keys:
            exercises.find(key)
        self.feedback, self.known = exercises.feedback, keys[0]
        self.close = importlib.import_module(f"{EXERCISES}.comparing").close
        for name in [name for name in sys.modules if name.startswith(EXERCISES)]:
            del sys.modules[name]
        delattr(importlib.import_module("rope_teach.course"), "exercises")
        ours = [m for name, m in sys.modules.items() if name.startswith("rope_teach")]
        shared: list[ModuleType | type] = [
            builtins,
            math,
            torch,
            torch.nn.functional,
            torch.Tensor,
            *ours,
        ]
        pickle.dumps(torch.ones(1))  # leaves a note of its own on the class
        self.methods = set(vars(torch.Tensor))
        self.kept = [(place, tools(place)) for place in shared]

    def __call__(self, key: str, answer: Any) -> tuple[str, str]:
        """Judge an answer as ``check`` does; return kind and text."""
        self.restore()
        try:
            verdict = self.feedback(key, answer)
            kind, text = str(verdict.kind), str(verdict.text)[:2000]
        except BaseException as error:  # what a check lets pass: exit, interrupt
            return "wrong", said_of(error)
        if replaced := self.restore():
            return "wrong", f"Your code replaced {replaced[0]} while it was checked."
        return kind, text

    def works(self) -> bool:
        """Whether a check still knows a stub from an answer, and equal from unequal."""
        self.restore()
        try:
            waiting = self.feedback(self.known, ...).kind == "waiting"
            return waiting and bool(self.close(torch.ones(2) + 1, [2.0, 2.0]))
        except BaseException:
            return False

    def restore(self) -> list[str]:
        """Stop spies, put back what was replaced in torch and its like, and name it."""
        sys.settrace(None)
        sys.setprofile(None)
        replaced = []
        for place, kept in self.kept:
            for name, tool in kept.items():
                if vars(place).get(name) is not tool:
                    setattr(place, name, tool)
                    replaced.append(f"{place.__name__}.{name}")
        for name in set(vars(torch.Tensor)) - self.methods:  # it inherits most of them
            delattr(torch.Tensor, name)
            replaced.append(f"Tensor.{name}")
        return replaced


def tools(place: ModuleType | type) -> dict[str, Any]:
    """The functions and classes of a module, which no lesson replaces."""
    return {name: tool for name, tool in vars(place).items() if callable(tool)}


def said_of(error: BaseException | None) -> str:
    """Say why a cell gave no answer."""
    if error is None:
        return "The cell ended before its check."
    said = str(error)[:500]
    return f"Your code stopped with {type(error).__name__}{said and f': {said}'}"


def runner() -> Run:
    """Return what runs a cell as Jupyter does, and returns its answers by key."""
    import tqdm
    from IPython.core.history import HistoryManager
    from IPython.core.interactiveshell import InteractiveShell

    tqdm.tqdm.monitor_interval = 0  # its thread would look like a student's
    HistoryManager.enabled = False  # type: ignore[assignment]
    shell = InteractiveShell.instance()
    shell.ast_transformers.append(KeepAnswers())
    shell.history_manager.outputs = Forgetful()  # type: ignore[union-attr]
    # The other way to run a command wants a terminal, and that is shut off.
    shell.system = shell.system_raw  # type: ignore[method-assign]

    def run(source: str) -> tuple[dict[str, Any], BaseException | None]:
        answers: dict[str, Any] = {}
        shell.user_ns[ANSWERS] = answers
        try:
            result = shell.run_cell(source, silent=True)
            return answers, result.error_before_exec or result.error_in_exec
        except BaseException as error:  # wild code can stop IPython itself
            return answers, error

    return run


class Forgetful(dict[int, list[Any]]):
    """Keeps nothing of what a cell prints: IPython would, and fill the memory."""

    def __missing__(self, key: int) -> list[Any]:
        return []


ANSWERS = "__answers__"


class KeepAnswers(ast.NodeTransformer):
    """Turn each ``check("4.1", answer)`` of a cell into ``__answers__["4.1"] = ...``.

    So no name that a notebook can bind decides what is judged, and how.
    """

    def visit(self, node: ast.AST) -> Any:
        """Look at the statements of the cell itself, not into functions and classes."""
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                return node
            case ast.Expr(ast.Call(ast.Name("check"), plain, by_name)):
                given = dict(zip(("key", "answer"), plain, strict=False))
                given |= {word.arg: word.value for word in by_name if word.arg}
                match given:
                    case {"key": ast.Constant(key), "answer": answer}:
                        node = ast.copy_location(self.kept(str(key), answer), node)
                return node
        return ast.fix_missing_locations(self.generic_visit(node))

    def kept(self, key: str, answer: ast.expr) -> ast.Assign:
        """Return the statement that keeps an answer; 4.1 is as good as "4.1"."""
        answers = ast.Name(ANSWERS, ast.Load())
        return ast.Assign(
            [ast.Subscript(answers, ast.Constant(key), ast.Store())], answer
        )


def works(run: Run, judge: Judge) -> bool:
    """Whether what the notebook has done leaves cells and checks as they were."""
    judge.restore()
    answers, error = run('check("0.0", 1 + 1)')
    return error is None and answers == {"0.0": 2} and judge.works()


def still_running(before: set[int], patience: float = 2.0) -> bool:
    """Whether a thread that was not there before goes on after ``patience`` seconds."""
    end = time.monotonic() + patience
    while set(sys._current_frames()) - before:
        if time.monotonic() > end:
            return True
        time.sleep(0.02)
    return False


if __name__ == "__main__":
    main()
