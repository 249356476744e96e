"""A student's value, in whatever form it came, as the judges compare it."""

from __future__ import annotations

import math
from collections.abc import Iterator, ValuesView
from typing import Any

import torch
from torch import Tensor

from rope_teach.course.exercises.cards import Wrong, expect

NOTHING = (
    "Your function returned nothing here. Does every way through it end in a `return`?"
)
NUMBERS = (bool, int, float, complex, Tensor)


def as_tensor(value: Any) -> Tensor:
    """A student's value as a float64 tensor; :class:`Wrong` if that is impossible."""
    if value is None or value is ...:
        raise Wrong(NOTHING)
    try:
        if isinstance(value, (Iterator, range, ValuesView)):
            value = list(value)
        if hasattr(value, "__array__") and not isinstance(value, Tensor):
            value = value.tolist()  # numpy, also of objects, or one that is read-only
        elif not isinstance(value, NUMBERS) and hasattr(value, "__float__"):
            value = float(value)  # Fraction, Decimal: a number is a number
        if isinstance(value, (list, tuple)) and not all(
            isinstance(item, (int, float)) for item in value
        ):
            value = torch.stack([as_tensor(item) for item in value])
        if not isinstance(value, Tensor):  # torch would round 0.1 to float32
            value = torch.as_tensor(value, dtype=torch.complex128)
        tensor = value.detach()
        if tensor.is_complex():
            expect(not tensor.imag.any(), "Expected real numbers, got complex ones.")
            tensor = tensor.real
        return tensor.to(torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        quoted = " Remove the quotation marks." if isinstance(value, str) else ""
        raise Wrong(f"Expected numbers, got {type(value).__name__}.{quoted}") from None


def number(value: Any) -> float:
    """A student's answer as one number, or :class:`Wrong`."""
    tensor = as_tensor(value)
    expect(tensor.numel() == 1, f"Expected one number, got {tensor.numel()}.")
    expect(
        not isinstance(value, bool) and getattr(value, "dtype", 0) is not torch.bool,
        f"Expected a number, got {bool(tensor)}.",
    )
    result = float(tensor)
    expect(math.isfinite(result), f"Expected a finite number, got {result}.")
    return result


def truth(value: Any) -> bool:
    """A student's answer as True or False, or :class:`Wrong`."""
    tensor = as_tensor(value)
    one = tensor.numel() == 1 and float(tensor) in (0, 1)
    got = f"{tensor.numel()} values" if tensor.numel() != 1 else f"{float(tensor):g}"
    expect(one, f"Expected one True or False, got {got}.")
    return bool(tensor)


def hand_numbers(got: Any) -> list[int]:
    """A student's list of hand numbers, or :class:`Wrong`."""
    listed = as_tensor(got)
    if listed.ndim == 2 and listed.shape[1] == 1:  # as nonzero() returns them
        listed = listed.flatten()
    expect(
        listed.ndim == 1,
        f"Expected a list of hands, got {type(got).__name__}. Which hands?",
    )
    items = got if isinstance(got, (list, tuple)) else [got]
    expect(
        not any(
            isinstance(i, bool) or str(getattr(i, "dtype", "")).endswith("bool")
            for i in items
        ),
        "You gave True or False for each hand. List the numbers of the ones that are "
        "True: nonzero() finds them.",
    )
    expect(
        bool((listed == listed.round()).all()),
        "These are speeds or wavelengths. List the numbers i of the hands.",
    )
    return [int(i) for i in listed]
