"""A student's error, in plain words."""

from __future__ import annotations

import linecache
import re
import sys
import traceback

PLAIN_WORDS = [  # what torch and Python say, and what it means; the first that fits
    (
        r"[sS]calar type|same dtype|dtypes? match|dtype.*(must|should) be",
        "Your code mixes two types of number, for example float32 and float64. Convert "
        "one to the type of the other: b.to(a.dtype).",
    ),
    (
        r"must match|cannot be multiplied|size mismatch|is invalid for input|"
        r"equal size|inconsistent tensor size|do not broadcast|could not be broadcast|"
        r"Expected size|[12]D tensors? expected|must be (a matrix|1D|2D)|expanded size",
        "The shapes do not fit together. Print the .shape of both.",
    ),
    (
        r"Boolean value of Tensor|truth value of an array",
        "`if`, `and`, `or`, `not` take one True or False, not a whole tensor. Use "
        ".all() or .any().",
    ),
    (
        r"cannot be converted to Scalar|only one element tensors|"
        r"only (length-1|0-dimensional) arrays",
        "A tensor of several numbers is used where one number belongs.",
    ),
    (
        r"used as indices must|only integers, slices|indices must be integers",
        "An index must be a whole number. Division gives floats: use //, int() or "
        ".long().",
    ),
    (
        r"out of (range|bounds)",
        "An index leads past the end: places are counted from 0, so the last is "
        "length - 1. Or something has fewer dimensions than the code expects.",
    ),
    (
        r"argument '\w+' \(position \d+\) must be Tensor, not (int|float)",
        "This function of torch takes a tensor. For one number use `math`, or write "
        "torch.tensor(x).",
    ),
    (
        r"'(list|tuple|float|int)' object has no attribute",
        "Only a tensor has that method. Make one with torch.tensor(...).",
    ),
    (r"'NoneType'", "Something is None here. Does a function lack its `return`?"),
    (
        r"refer to a single memory location",
        "Your code writes into a tensor that it still reads from. Use a new tensor, or "
        ".clone() first.",
    ),
    (
        r"does not require grad|in-?place operation|Can't call numpy\(\) on Tensor",
        "The gradient got lost, or a tensor that it needs was written over. Make a new "
        "tensor instead of changing one.",
    ),
    (
        r"positional arguments?( but|:)|unexpected keyword",
        "The check calls your function with the arguments of the stub. Keep them.",
    ),
    (r"is not callable", "Something that is not a function is called with ( )."),
]


def explain(error: BaseException) -> str:
    """Say where a student's code stopped, on which line, and why, in plain words."""
    place = ""
    steps = list(traceback.walk_tb(error.__traceback__))
    for frame, line in steps:
        if frame.f_globals.get("__name__", "__main__") == "__main__":  # not a library
            text = linecache.getline(frame.f_code.co_filename, line).strip()
            place = f" at line {line}" + (f", `{text}`" if text else "")
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, UnboundLocalError):
        why = "A name is used before it gets a value inside the function."
    elif isinstance(error, NameError):
        why = (
            "This notebook does not know that name (yet). Run the cells above, and "
            "check the spelling."
        )
        if error.name in {"np", "numpy", "F", *sys.stdlib_module_names}:
            why = f"This notebook has not imported `{error.name}` yet."
    elif isinstance(error, RecursionError):
        why = "A function calls itself without end."
    elif isinstance(error, (SystemExit, MemoryError)):
        why = "It ends Python, or asks for more memory than there is."
    else:
        why = next((w for p, w in PLAIN_WORDS if re.search(p, str(error))), "")
    last = steps[-1][0].f_globals.get("__name__", "") if steps else ""
    start = f"Your code stopped{place}."
    if last.startswith(
        __package__ or __name__
    ):  # the judge itself, at a value that it cannot use
        start = "The check cannot use this answer."
    return f"{start} {why} ({said})".replace("  ", " ")
