"""The command line: ``python -m rope_teach doctor``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rope_teach import doctor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rope_teach",
        description="A course about how a transformer knows where its tokens are.",
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    commands.add_parser(
        "doctor",
        help="check that this machine can run the course, and say what to mend",
    )
    parser.parse_args(arguments)
    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())
