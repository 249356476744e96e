"""The five wishes of lesson 01, and what each lesson found out about an encoding.

One table for the whole course: lessons 02 to 09 show the part that they have earned,
lessons 11 and 21 all of it. A verdict names the lesson that measured it; a later lesson
may take an earlier one back.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

__all__ = ["VERDICTS", "WISHES", "Board", "Verdict", "board"]

WISHES = {
    "unique": "Two positions, two codes.",
    "bounded": "A far position is no louder than a near one.",
    "same step, same change": "From 3 to 4 as from 103 to 104.",
    "any length": "Position 7 has one code in every text, and no text is too long.",
    "distance and direction": "When two tokens meet, they feel how far and which way.",
}


@dataclass(frozen=True)
class Verdict:
    """What lesson ``lesson`` found: ``mark`` is "yes", "partly" or "no"."""

    lesson: int
    mark: str
    why: str


VERDICTS: dict[str, dict[str, tuple[Verdict, ...]]] = {
    "the number": {
        "unique": (Verdict(2, "yes", "it is the position"),),
        "bounded": (Verdict(2, "no", "it drowns the word"),),
    },
    "a fraction": {
        "bounded": (Verdict(2, "yes", "between 0 and 1"),),
        "any length": (Verdict(2, "no", "7 means something else in each text"),),
    },
    "binary": {
        "unique": (Verdict(2, "yes", "one pattern each"),),
        "bounded": (Verdict(2, "yes", "zeros and ones"),),
        "same step, same change": (Verdict(2, "no", "one bit flips, or all"),),
    },
    "sinusoidal": {
        "unique": (Verdict(2, "yes", "fast hands and slow ones"),),
        "bounded": (Verdict(2, "yes", "all codes are equally long"),),
        "same step, same change": (Verdict(2, "yes", "the same rotation"),),
        "any length": (
            Verdict(2, "yes", "the formula has no length in it"),
            Verdict(3, "partly", "defined there, but not learned"),
        ),
        "distance and direction": (Verdict(2, "partly", "in one term of four"),),
    },
    "learned": {
        "unique": (Verdict(3, "yes", "a row each"),),
        "bounded": (Verdict(3, "partly", "nothing asks for it"),),
        "same step, same change": (Verdict(3, "no", "no row knows the next"),),
        "any length": (Verdict(3, "no", "the table ends"),),
        "distance and direction": (Verdict(3, "no", "not before training"),),
    },
    "ALiBi": {
        "unique": (Verdict(3, "partly", "no code, but a bias for each distance"),),
        "bounded": (Verdict(3, "yes", "far tokens only get quieter"),),
        "same step, same change": (Verdict(3, "yes", "one slope"),),
        "any length": (Verdict(3, "yes", "its loss stays low here"),),
        "distance and direction": (
            Verdict(3, "partly", "distance; the mask adds direction"),
        ),
    },
    "RoPE": {
        "unique": (
            Verdict(4, "no", "one hand comes round again"),
            Verdict(5, "partly", "four hands tell 0 from 44"),
            Verdict(8, "yes", "fast hands and slow ones"),
        ),
        "bounded": (Verdict(4, "yes", "a turn keeps every length"),),
        "same step, same change": (Verdict(4, "yes", "the same turn"),),
        "any length": (Verdict(3, "partly", "defined there, but not learned"),),
        "distance and direction": (Verdict(4, "yes", "the score has nothing else"),),
    },
}


@dataclass(frozen=True)
class Board:
    """What is known: wishes down, encodings across. Text, and a table in a notebook."""

    cells: dict[str, dict[str, Verdict | None]]

    def __str__(self) -> str:
        width = max(len(name) for row in self.cells.values() for name in row)
        lines = []
        for wish, row in self.cells.items():
            lines.append(wish)
            for name, found in row.items():
                said = f"{found.mark}, {found.why}" if found else "?"
                lines.append(f"  {name:{width}}  {said}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        names = next(iter(self.cells.values()))
        head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in names)
        rows = []
        for wish, row in self.cells.items():
            said = "".join(
                f"<td><b>{v.mark}</b>, {html.escape(v.why)}</td>" if v else "<td>?</td>"
                for v in row.values()
            )
            rows.append(f"<tr><th scope='row'>{wish}</th>{said}</tr>")
        return (
            "<table class='rope-wishes' style='font-size:.85em'>"
            f"<thead><tr><th>wish</th>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )


def board(*encodings: str, upto: int = 99) -> Board:
    """Return what the lessons up to ``upto`` found out about ``encodings``.

    Without names: the four that the course compares. Lessons 02 to 11, and 21.

    >>> print(board("sinusoidal", upto=1))  # doctest: +ELLIPSIS
    unique
      sinusoidal  ?
    ...
    """
    encodings = encodings or ("learned", "sinusoidal", "ALiBi", "RoPE")
    for name in encodings:
        if name not in VERDICTS:
            raise ValueError(
                f"encodings: {name!r} is not on the board; expected some of "
                f"{', '.join(VERDICTS)}"
            )

    def latest(name: str, wish: str) -> Verdict | None:
        known = [v for v in VERDICTS[name].get(wish, ()) if v.lesson <= upto]
        return max(known, key=lambda v: v.lesson, default=None)

    return Board({w: {name: latest(name, w) for name in encodings} for w in WISHES})
