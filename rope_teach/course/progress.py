"""A progress bar that looks the same on every machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tqdm import tqdm

__all__ = ["progress"]


def progress(steps: int, label: str | None) -> Iterator[int]:
    """Count ``steps`` beside a bar with this label; None hides the bar."""
    # On stdout and without times or losses: on every machine the finished bar is the
    # same text, which notebooks store and tests compare. Thin, since it is no result.
    bar = "{desc} {percentage:3.0f}% {bar:30} {n_fmt}/{total_fmt}"
    try:
        marks = "·─"
        marks.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # Windows, when the output goes to a file
        marks = ".-"
    return iter(
        tqdm(
            range(steps),
            label,
            file=sys.stdout,
            ascii=marks,
            bar_format=bar,
            disable=label is None,
        )
    )
