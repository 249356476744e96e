"""The command line: ``python -m rope_teach doctor`` and ``... identify``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rope_teach.identify import command


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
        description="Say how something rotates: a function, a module, a class, a "
        "config.json or a checkpoint.",
    )
    command.add_arguments(probe)
    given = parser.parse_args(arguments)
    if given.command == "doctor":
        return _doctor()
    return command.run(given)


def _doctor() -> int:
    try:
        from rope_teach.course import (
            doctor,  # needs the course extra; the rest does not
        )
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())
