"""Compare an answer with the right one, and say in words where the two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rope_teach.course.exercises.cards import expect
from rope_teach.course.exercises.values import as_tensor


def close(got: Any, expected: Any, tolerance: float = 1e-4) -> bool:
    """Whether two values have the same shape and agree to within ``tolerance``."""
    a, b = as_tensor(got), as_tensor(expected)
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance).all())


def expect_shape(got: Tensor, shape: tuple[int, ...]) -> None:
    """Raise :class:`Wrong` unless ``got`` has ``shape``."""
    expect(
        tuple(got.shape) == shape,
        f"The result must have shape {shape}; yours has {tuple(got.shape)}.",
    )


def apart(a: float, b: float) -> tuple[str, str]:
    """Two unlike numbers in print, with as many digits as it takes to tell them apart.

    >>> apart(0.84147, 0.84149)
    ('0.84147', '0.84149')
    """
    for digits in (3, 5, 7, 10, 13, 17):
        one, other = f"{a:.{digits}g}", f"{b:.{digits}g}"
        if one != other:
            break
    return one, other


def difference(
    got: Any,
    expected: Any,
    tolerance: float = 1e-4,
    axes: tuple[str, ...] = ("row", "column"),
) -> str:
    """Where two values first differ, as a sentence; empty if they are close.

    ``axes`` are the names of the last dimensions.

    >>> difference([[1, 2], [3, 5]], [[1, 2], [3, 4]])
    'At row 1, column 1 it should be 4; yours is 5.'
    """
    a, b = as_tensor(got), as_tensor(expected)
    if a.shape != b.shape:
        return f"It should have shape {tuple(b.shape)}; yours has {tuple(a.shape)}."
    off = ~((a - b).abs() <= tolerance)  # so that nan differs
    if not off.any():
        return ""
    place = off.nonzero()[0].tolist()
    mine, right = apart(float(a[tuple(place)]), float(b[tuple(place)]))
    axes = ("place",) if len(place) == 1 and axes == ("row", "column") else axes
    names = ("index",) * (len(place) - len(axes)) + axes[-len(place) :]
    where = ", ".join(f"{n} {i}" for n, i in zip(names, place, strict=False))
    return f"{f'At {where} it' if place else 'It'} should be {right}; yours is {mine}."


def expect_close(
    got: Any, expected: Any, what: str = "", tolerance: float = 1e-4, **axes: Any
) -> None:
    """Raise :class:`Wrong` with the first :func:`difference`, after ``what``."""
    found = difference(got, expected, tolerance, **axes)
    expect(not found, f"{what} {found}".strip())


def name_mistake(
    got: Sequence[Any],
    right: Sequence[Any],
    mistakes: Mapping[str, Sequence[Any]],
    tolerance: float = 1e-4,
) -> None:
    """Raise :class:`Wrong` with the message of the mistake that ``got`` shows.

    ``got`` and ``right`` hold a value for each case that a judge tried; ``mistakes``
    the values of each mistake, under its message. Only a mistake that explains every
    case is named, and none whose values are right.
    """

    def alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
        pairs = zip(one, other, strict=True)
        return all(close(a, b, tolerance) for a, b in pairs)

    for message, values in mistakes.items():
        expect(not alike(got, values) or alike(values, right), message)
