"""The command line: ``python -m rope_teach doctor`` and ``... identify``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch

from rope_teach.identify import identify
from rope_teach.identify.probe import LAYOUTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rope_teach",
        description="A course about how a transformer knows where its tokens are.",
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    commands.add_parser(
        "doctor",
        help="check that this machine can run the course, and say what to fix",
    )
    probe = commands.add_parser(
        "identify",
        help="say how a function rotates, or which law it breaks, and why",
        description="Exit status: 0 a correct RoPE, 1 it breaks a law, 2 no answer.",
    )
    probe.add_argument(
        "target",
        metavar="package.module:function",
        help="a function, an instance, or a class to be made with its head_dim",
    )
    probe.add_argument("--call", help='the arguments, as "q, k, cos, sin"')
    probe.add_argument("--head-dim", type=int, help="features of a head")
    probe.add_argument("--layout", choices=LAYOUTS, help="the axes of x")
    probe.add_argument(
        "--dtype",
        choices=("float64", "float32", "float16", "bfloat16"),
        help="of x; default: float32, or that of a layer's weights",
    )
    probe.add_argument("--json", action="store_true", help="print the data")
    given = parser.parse_args(arguments)
    if given.command == "doctor":
        return _doctor()
    return _identify(given)


def _doctor() -> int:
    try:
        from rope_teach.course import (
            doctor,  # needs the course extra; the rest does not
        )
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    return doctor.main()


def _identify(given: argparse.Namespace) -> int:
    try:
        report = identify(
            _load(given.target, given.head_dim),
            call=given.call,
            head_dim=given.head_dim,
            layout=given.layout,
            dtype=getattr(torch, given.dtype) if given.dtype else None,
        )
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        print(f"cannot identify {given.target}: {error}", file=sys.stderr)
        return 2
    print(report.json() if given.json else report)
    return 0 if report.correct else 1


def _load(target: str, head_dim: int | None) -> Any:
    """Import what ``package.module:name`` names; a class is made for one head."""
    module, colon, names = target.partition(":")
    if not (module and colon and names):
        raise ValueError("expected package.module:function")
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a stranger's module may raise
        raise ImportError(f"{type(error).__name__}: {error}") from error
    for name in names.split("."):
        found = getattr(found, name)
    if not inspect.isclass(found):
        return found
    make: Any = found
    try:
        return make(head_dim or 64)
    except Exception as error:
        raise TypeError(
            f"the class cannot be made by {names}({head_dim or 64}) ({error}); name an "
            "instance of it, in a module of your own"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
