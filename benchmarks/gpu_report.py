"""Write results/gpu.md from what gpu.py, gpu_choices.py and fusion.py stored.

    python benchmarks/gpu_report.py

Reads rope_teach/course/results/{gpu,gpu_choices,fusion}.json. It needs no GPU. What the
columns mean, and what was learned on the way: `README.md` beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rope_teach.course.training import stored_result

REPORT = Path(__file__).parent / "results" / "gpu.md"
COPIES = ("copy of q and k", "copy by the driver")
START = ("ours, half", "ours, interleaved")
SHARED = "ours, tables shared by 32 layers"
FORMS = (
    "ours, positions shared",
    "ours, positions per sequence",
    "ours, start per sequence",
    "ours, left padding",
    "ours, packed",
    "ours, two axes",
    "ours, learned, frozen",
)
# What a peer does in the same situation; each way of ours may be taken.
RIVALS = {
    "from start": (START, (
        "Hugging Face", "Hugging Face, compiled", "Liger (in place)",
        "flash-attention, half", "flash-attention, interleaved",
        "torchtune, compiled", "x-transformers")),
    "position per sequence": (FORMS[1:3], (
        "Hugging Face, positions per sequence",
        "Hugging Face, positions per sequence, compiled",
        "flash-attention, start per sequence")),
    "packed": (FORMS[4:5], ("flash-attention, packed",)),
    "tables shared by 32 layers": ((SHARED,), (
        "Hugging Face, tables shared by 32 layers, compiled",
        "Liger (in place), tables shared by 32 layers",
        "flash-attention, start per sequence")),
}  # fmt: skip
COLUMNS = {"gpu": "forward", "gpu_both": "both"}
Rows = dict[tuple[str, str], dict[str, Any]]


class Goal(NamedTuple):
    """One promise: ``measured`` may not exceed ``bound``."""

    what: str
    shape: str
    measured: float | None
    bound: float
    unit: str = "times"


def best(rows: Rows, shape: str, names: tuple[str, ...], column: str) -> float | None:
    """The smallest figure of these contestants, or None where there is none."""
    found = [
        rows[shape, n][column] for n in names if column in rows.get((shape, n), {})
    ]
    return min(found, default=None)


def ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def goals(shapes: list[str], rows: Rows) -> Iterator[Goal]:
    """What the kernel promises, on each shape that it was measured on."""
    for shape in shapes:
        if shape.startswith(("prefill", "train")):
            yield from goals_of_large(shape, rows)
        elif shape.startswith("decode"):
            yield from goals_of_decode(shape, rows)
    for shape in shapes:
        for form, (ours, peers) in RIVALS.items():
            for column, passes in COLUMNS.items():
                theirs = best(rows, shape, peers, column)
                if theirs is not None:
                    own = best(rows, shape, ours, column)
                    what = f"{form}, {passes}: beside the best other library"
                    yield Goal(what, shape, ratio(own, theirs), 1.0)


def goals_of_large(shape: str, rows: Rows) -> Iterator[Goal]:
    """Shapes where bytes decide."""
    for column, passes in COLUMNS.items():
        start = best(rows, shape, START[:1], column)
        copied = best(rows, shape, COPIES, column)
        what = f"from start, {passes}: beside a copy"
        yield Goal(what, shape, ratio(start, copied), 1.02)
        for form in FORMS:
            taken = best(rows, shape, (form,), column)
            what = f"{form.removeprefix('ours, ')}, {passes}: beside start"
            yield Goal(what, shape, ratio(taken, start), 1.06)
        taken = best(rows, shape, (SHARED,), column)
        what = f"tables shared by 32 layers, {passes}: beside start"
        yield Goal(what, shape, ratio(taken, start), 1.01)
    alone = best(rows, shape, ("ours, rotate(q), rotate(k)",), "gpu_both")
    start = best(rows, shape, START[:1], "gpu_both")
    what = "rotate(q), rotate(k), both: beside the module"
    yield Goal(what, shape, ratio(alone, start), 1.05)


def goals_of_decode(shape: str, rows: Rows) -> Iterator[Goal]:
    """One token: launches decide."""
    yield Goal("from start", shape, best(rows, shape, START, "gpu"), 2.2, "µs")
    for form in FORMS:
        taken = best(rows, shape, (form,), "gpu")
        if form != "ours, packed":
            yield Goal(form.removeprefix("ours, "), shape, taken, 3.8, "µs")
    taken = best(rows, shape, (SHARED,), "gpu")
    yield Goal("tables shared by 32 layers", shape, taken, 2.4, "µs")
    own = best(rows, shape, START, "wall")
    copied = best(rows, shape, COPIES, "wall")
    yield Goal("eager wall time: beside a copy", shape, ratio(own, copied), 1.5)
    peers = best(rows, shape, RIVALS["from start"][1], "wall")
    what = "eager wall time: beside the best other library"
    yield Goal(what, shape, ratio(own, peers), 1.0)
    theirs = best(rows, shape, ("Hugging Face, compiled",), "wall")  # tables are ready
    for name, way in (("half", "from start"), ("ready tables", "ready tables")):
        own = best(rows, shape, (f"ours, {name}, compiled",), "wall")
        what = f"compiled wall time, {way}: beside Hugging Face's"
        yield Goal(what, shape, ratio(own, theirs), 1.0)
    direct = best(rows, shape, ("ours, out= into a cache",), "gpu")
    copied = best(rows, shape, ("ours, then a copy into a cache",), "gpu")
    what = "out= into a cache: beside a copy afterwards"
    yield Goal(what, shape, ratio(direct, copied), 1.0)


# ------------------------------------------------------------------------ tables


def markdown(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else (
        f"{value:.2f}")  # fmt: skip


def table_of_goals(found: list[Goal], shapes: list[str]) -> str:
    """A line for each goal; a figure that misses it is bold."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for goal in found:
        line = cells.setdefault((goal.what, f"{goal.bound:g} {goal.unit}"), {})
        if goal.measured is not None:
            figure = f"{goal.measured:.3f}" if goal.unit == "times" else (
                number(goal.measured))  # fmt: skip
            met = goal.measured <= goal.bound
            line[goal.shape] = figure if met else f"**{figure}**"
    body = [
        [*goal, *(line.get(shape, "") for shape in shapes)]
        for goal, line in cells.items()
        if line
    ]
    return markdown(["goal", "at most", *map(short, shapes)], body)


def short(shape: str) -> str:
    return " ".join(shape.split()[:2])


def matrix(rows: Rows, shapes: list[str], columns: tuple[str, str]) -> str:
    """A line for each contestant, a column for each shape: ``forward / both``."""
    names = list(dict.fromkeys(name for _, name in rows))
    body = []
    for name in names:
        cells = [
            " / ".join(
                number(row[column]) for column in columns if column in row
            ) or ("failed" if "trouble" in row else "")
            for row in (rows.get((shape, name), {}) for shape in shapes)
        ]  # fmt: skip
        body.append([name, *cells])
    return markdown(["µs", *map(short, shapes)], body)


def table_of_errors(rows: Rows, shapes: list[str]) -> str:
    names = list(dict.fromkeys(name for _, name in rows))
    found = [[rows.get((shape, name), {}) for shape in shapes] for name in names]
    body = [
        [name, *(f"{row['error']:.1e}" if "error" in row else "" for row in line)]
        for name, line in zip(names, found, strict=True)
    ]
    return markdown(["relative error", *map(short, shapes)], body)


def distances(rows: Rows, shapes: list[str]) -> str:
    """Ours beside the faster copy, and the best of the others beside ours."""
    body = []
    for shape in shapes:
        for form, (ours, peers) in RIVALS.items():
            cells = []
            for column in COLUMNS:
                own = best(rows, shape, ours, column)
                copied = best(rows, shape, COPIES, column)
                theirs = best(rows, shape, peers, column)
                who = [p for p in peers if best(rows, shape, (p,), column) == theirs]
                beside = ratio(own, copied)
                cells.append(f"{beside:.3f}" if beside else "")
                beside = ratio(theirs, own)
                cells.append(f"{beside:.3f} ({who[0]})" if beside else "")
            if any(cells):
                body.append([short(shape), form, *cells])
    head = ["shape", "positions", "forward: ours / copy", "best other / ours"]
    return markdown([*head, "both: ours / copy", "best other / ours"], body)


def table_of_choices(stored: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """A line for each choice: one figure for each of ``kinds``, by shape."""
    found = {(row["shape"], row["name"]): row["gpu"] for row in stored["rows"]}
    shapes = list(dict.fromkeys(shape for shape, _ in found))
    ends = tuple(f", {kind}" for kind in kinds)
    names = dict.fromkeys(
        name.rsplit(", ", 1)[0] for _, name in found if name.endswith(ends)
    )
    body = [
        [name, *(" / ".join(number(found.get((shape, f"{name}, {kind}")))
                            for kind in kinds) for shape in shapes)]
        for name in names
    ]  # fmt: skip
    return markdown([" / ".join(kinds), *map(short, shapes)], body)


def origin(stored: dict[str, Any]) -> str:
    its = stored["machine"]
    return (
        f"`{its['command']}`, {its['date']}: {its['gpu']}, torch {its['torch']}, "
        f"Triton {its['triton']}, Python {its['python']}."
    )


def by_name(stored: dict[str, Any]) -> tuple[list[str], Rows]:
    rows = {(row["shape"], row["name"]): row for row in stored["rows"]}
    return list(dict.fromkeys(shape for shape, _ in rows)), rows


def report(
    main: dict[str, Any], choices: dict[str, Any], fusion: dict[str, Any]
) -> str:
    """The whole page."""
    shapes, rows = by_name(main)
    found = list(goals(shapes, rows))
    measured = [goal for goal in found if goal.measured is not None]
    met = sum(goal.measured <= goal.bound for goal in measured)  # type: ignore[operator]
    failed = [
        f"- {short(row['shape'])}, {row['name']}: {row['trouble']}"
        for row in main["rows"]
        if "trouble" in row
    ]
    fused_shapes, fused = by_name(fusion)
    kernel = table_of_choices(choices, ("half", "interleaved"))
    rows_alone = table_of_choices(choices, ("rows",))
    parts = [
        "# The CUDA path on one GPU",
        "Written by `benchmarks/gpu_report.py`; do not edit. Microseconds, less is "
        "better. How it is measured: [README](../README.md).",
        origin(main),
        "Shapes: " + "; ".join(shapes) + " (batch x tokens, heads of q / of k, "
        "features of a head).",
        f"## Goals: {met} of {len(measured)} met (a figure in bold misses its goal)",
        table_of_goals(found, shapes),
        "## GPU time, forward / forward and backward",
        matrix(rows, shapes, ("gpu", "gpu_both")),
        "## Distance to the copy, and to the best other library",
        distances(rows, shapes),
        "## Wall time of a call, forward / forward and backward",
        matrix(rows, shapes, ("wall", "wall_both")),
        "## Error against float64",
        table_of_errors(rows, shapes),
        "Failed:\n\n" + "\n".join(failed) if failed else "",
        "## Each choice in the kernel, made otherwise",
        origin(choices),
        kernel,
        "The kernel that writes the rows of given positions, alone:\n\n" + rows_alone
        if ", rows" in str(choices["rows"]) else "",
        "## Norm and rotation in one kernel, forward / forward and backward",
        origin(fusion),
        matrix(fused, fused_shapes, ("gpu", "gpu_both")),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    stored = [stored_result(name) for name in ("gpu", "gpu_choices", "fusion")]
    REPORT.write_text(report(*stored))
    print(f"wrote {REPORT}")
