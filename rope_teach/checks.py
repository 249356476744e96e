"""Argument checks: each error names the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Pairing = Literal["interleaved", "half"]
Layout = Literal["bhsd", "bshd", "sbhd"]

# Which axes are batch, heads and seq, counted from the last one.
AXES = {"bhsd": (-4, -3, -2), "bshd": (-4, -2, -3), "sbhd": (-3, -2, -4)}


def wrong_type(name: str, expected: str, value: object) -> TypeError:
    """The error to raise where ``value`` is not what ``expected`` says."""
    kind = type(value).__name__
    got = f"{kind} ({value!r:.100})"
    if isinstance(value, Tensor):
        got = f"{value.dtype} ({kind})"
    return TypeError(f"{name} must be {expected}, got {got}")


def wrong_shape(name: str, expected: str, x: Tensor) -> ValueError:
    """The error to raise where the shape of ``x`` is not the expected one."""
    return ValueError(f"{name} must be {expected}, got {tuple(x.shape)}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        expected = " or ".join(map(repr, choices))
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_floating(name: str, x: Tensor) -> None:
    """Raise ``TypeError`` unless ``x`` is a real floating-point tensor."""
    if not isinstance(x, Tensor):
        raise wrong_type(name, "a torch.Tensor", x)
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        raise wrong_type(name, "a real floating-point tensor of 16 bits or more", x)


def check_positions(name: str, positions: Tensor) -> None:
    """Raise ``TypeError`` unless ``positions`` can hold token positions exactly."""
    if not isinstance(positions, Tensor):
        raise wrong_type(name, "a torch.Tensor", positions)
    if positions.is_complex() or positions.dtype == torch.bool:
        raise wrong_type(name, "integers or floats", positions)
    if positions.is_floating_point() and positions.dtype.itemsize < 4:
        raise TypeError(
            f"{name} must not be {positions.dtype}: it cannot hold every whole number "
            f"past {2 / torch.finfo(positions.dtype).eps:.0f}; use int64 or float32"
        )


def without_wrapping(positions: Tensor) -> Tensor:
    """Integers as int64: narrow and unsigned ones wrap around in sums."""
    return positions if positions.is_floating_point() else positions.long()


def check_integers(name: str, positions: Tensor) -> None:
    """Raise ``TypeError`` unless ``positions`` are int64 or int32, which can index."""
    indices = (torch.int64, torch.int32)
    if not isinstance(positions, Tensor) or positions.dtype not in indices:
        raise wrong_type(name, "int64 or int32", positions)


def check_start(name: str, start: int, expected: str = "an int") -> None:
    """Raise ``TypeError`` unless ``start`` is an int."""
    if isinstance(start, bool) or not isinstance(start, (int, torch.SymInt)):
        raise wrong_type(name, expected, start)


def check_rotary_dim(rotary_dim: int, name: str = "rotary_dim") -> None:
    """Raise unless ``rotary_dim`` is a positive even int."""
    check_start(name, rotary_dim)
    if rotary_dim <= 0 or rotary_dim % 2:
        raise ValueError(
            f"{name} must be even and positive, because features are rotated in "
            f"pairs; got {rotary_dim}"
        )


def check_count(name: str, value: int) -> None:
    """Raise unless ``value`` is a positive int."""
    check_start(name, value)
    if value < 1:
        raise ValueError(f"{name} must be positive, got {value}")


def check_number(name: str, value: float, above: float = -math.inf) -> None:
    """Raise unless ``value`` is a finite number ``above`` that one, which may be 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(name, "a number", value)
    if not above < value < math.inf:  # a compiler cannot trace math.isfinite
        needed = "positive and finite" if above == 0 else "finite"
        raise ValueError(f"{name} must be {needed}, got {value}")


def check_factor(factor: float) -> None:
    """Raise ``ValueError`` unless ``factor`` is a finite number of at least 1."""
    if not 1 <= factor < math.inf:
        raise ValueError(f"factor must be finite and at least 1, got {factor}")


def check_divides(name: str, whole: int, part_name: str, part: int) -> None:
    """Raise unless ``whole`` divides into ``part`` equal parts."""
    check_count(name, whole)
    check_count(part_name, part)
    if whole % part:
        raise ValueError(
            f"{name}={whole} does not divide into {part_name}={part} equal parts"
        )


def check_embeddings(
    x: Tensor, dim: int, start: int, positions: Tensor | None = None
) -> None:
    """Raise unless ``x`` is floating ``(..., seq, dim)`` and its positions fit it."""
    check_floating("x", x)
    if x.ndim < 2 or x.shape[-1] != dim:
        raise wrong_shape("x", f"(batch, seq, dim) with dim={dim}", x)
    check_start("start", start)
    if positions is not None:
        check_token_positions(positions, x.shape[:-1])
        if start != 0:
            raise ValueError("give positions, or start, not both")


def check_token_positions(positions: Tensor, tokens: tuple[int, ...]) -> None:
    """Raise unless there is a position for each of ``tokens``, ``(batch, seq)``."""
    check_positions("positions", positions)
    shape, one_row = positions.shape, (1,)[: len(tokens) - 1]
    if shape[-1:] != tokens[-1:] or shape[:-1] not in ((), one_row, tokens[:-1]):
        expected = f"(seq,) or (batch, seq) = {tuple(tokens)}"
        raise wrong_shape("positions", expected, positions)


def check_mask(mask: Tensor, shape: tuple[int, int, int, int]) -> None:
    """Raise unless ``mask`` is boolean and broadcasts to ``shape``."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise wrong_type("mask", "boolean", mask)
    sizes = zip(mask.shape[::-1], shape[::-1], strict=False)
    if mask.ndim > 4 or any(got not in (1, size) for got, size in sizes):
        raise ValueError(
            f"mask must broadcast to (batch, heads, queries, keys) = {shape}, got "
            f"{tuple(mask.shape)}; cached tokens are keys too"
        )


# ------------------------------------------------------- tables and the axes of x


def align_table(table: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """View ``table`` so that it broadcasts against the pairs of ``x``, or raise.

    ``(seq, r/2)`` and ``(batch, seq, r/2)`` are laid along the axes of ``x`` that
    they name, never along the heads because the sizes happen to agree.
    """
    check_choice("layout", layout, tuple(AXES))
    if table.device != x.device:
        raise ValueError(f"the table is on {table.device}, but x is on {x.device}")
    shape = tuple(table.shape)
    if not shape or not x.ndim:
        raise _misfit(f"is {shape}", x, layout, "needs a feature axis, as tables do")
    if 2 * shape[-1] > x.shape[-1]:
        raise ValueError(
            f"the table is {shape[-1]} wide, enough for {2 * shape[-1]} features, but "
            f"x has head_dim {x.shape[-1]}; tables hold one column a pair "
            "(rope_teach.pairing.half_table narrows a repeated one)"
        )
    if len(shape) == 1:
        return table
    if len(shape) == x.ndim > 3:
        if any(shape[axis] not in (1, x.shape[axis]) for axis in range(3)):
            raise _misfit(f"is {shape}, to align by axes", x, layout, "does not match")
        return table
    if (len(shape), x.ndim) != (3, 4) and not len(shape) == 2 <= x.ndim:
        needed = "needs (seq, r/2) or, for a 4-D x, (batch, seq, r/2)"
        raise _misfit(f"is {shape}", x, layout, needed)
    batch_axis, _, seq_axis = axes_of(x.ndim, layout)
    if len(shape) == 3 and shape[0] not in (1, x.shape[batch_axis]):
        has = f"has batch {x.shape[batch_axis]}"
        raise _misfit(f"has batch {shape[0]}", x, layout, has)
    if shape[-2] != x.shape[seq_axis]:
        other = "bshd" if layout == "bhsd" else "bhsd"
        has = f"has {x.shape[seq_axis]}; is x in layout={other!r}?"
        raise _misfit(f"has {shape[-2]} positions", x, layout, has)
    return lay_out(table, layout, x.ndim)


def _misfit(table: str, x: Tensor, layout: Layout, has: str) -> ValueError:
    x_is = f"x of shape {tuple(x.shape)} with layout={layout!r}"
    return ValueError(f"the table {table}, but {x_is} {has}")


def axes_of(ndim: int, layout: Layout) -> tuple[int, int, int]:
    """Which axes of an input are batch, heads and seq, counted from the last one."""
    if ndim == 3 and layout == "sbhd":
        layout = "bshd"  # without a batch both are (seq, heads, head_dim)
    return AXES[layout if ndim > 2 else "bhsd"]


def lay_out(table: Tensor, layout: Layout, ndim: int) -> Tensor:
    """View ``(seq, r/2)`` or ``(batch, seq, r/2)`` along the axes of an input.

    ``ndim`` is the input's. Unlike :func:`align_table`, this checks nothing.
    """
    if layout == "bhsd" or ndim < 3:
        return table.unsqueeze(-3) if table.ndim == 3 else table
    if layout == "sbhd" and ndim > 3:
        table = table.transpose(0, 1) if table.ndim == 3 else table.unsqueeze(-2)
    return table.unsqueeze(-2)


# ------------------------------------------------------- of the rotary module


def check_rotary(head_dim: int, rotary_dim: int | None) -> int:
    """Return the number of rotated features, all by default, or raise."""
    check_count("head_dim", head_dim)
    if rotary_dim is None:
        check_rotary_dim(head_dim, "head_dim")
        return head_dim
    check_rotary_dim(rotary_dim)
    if rotary_dim > head_dim:
        raise ValueError(
            f"rotary_dim must not exceed head_dim={head_dim}, got {rotary_dim}"
        )
    return rotary_dim


def check_head(name: str, x: Tensor, head_dim: int, layout: Layout) -> None:
    """Raise unless ``x`` is floating, with heads of ``head_dim`` features."""
    check_floating(name, x)
    if x.ndim not in (3, 4) or x.shape[-1] != head_dim:
        axes = "(batch, heads, seq, head_dim), with or without batch, in the order of"
        raise wrong_shape(name, f"{axes} layout={layout!r} with head_dim={head_dim}", x)


def check_one_length(q_seq: int | None, k_seq: int | None, layout: Layout) -> None:
    """Raise unless q and k have as many tokens."""
    if q_seq != k_seq:
        other = "bshd" if layout == "bhsd" else "bhsd"
        raise ValueError(
            f"q has {q_seq} positions and k has {k_seq} (layout={layout!r}). "
            "If that is meant, give the positions of both: positions=(q_positions, "
            f"k_positions). If those are heads, the layout is {other!r}"
        )


def check_pair(positions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the positions of q and of k, or raise unless there are two."""
    if not isinstance(positions, (tuple, list)):
        raise wrong_type("positions", "a tensor or a pair of tensors", positions)
    if len(positions) != 2:
        raise ValueError(
            "positions must be a tensor or a pair (q_positions, k_positions), got "
            f"{len(positions)} items"
        )
    return positions[0], positions[1]


def check_per_sequence(name: str, value: Tensor, batch: int | None) -> Tensor:
    """Return ``value``, or raise unless it has one number, or one for each sequence."""
    if not isinstance(value, Tensor):
        raise wrong_type(name, "a (batch,) tensor", value)
    check_positions(name, value)
    fits = value.ndim == 0 or batch is None or value.shape[0] == batch
    if value.ndim > 1 or not fits:
        sizes = "an input without a batch" if batch == -1 else f"batch={batch}"
        raise ValueError(
            f"{name}, if a tensor, must have shape (batch,) or (); got "
            f"{tuple(value.shape)} for {sizes}"
        )
    return value if value.dtype == torch.int32 else without_wrapping(value)


def check_norms(norms: Any) -> None:
    """Raise ``TypeError`` unless ``norms`` is a pair of modules."""
    found = norms if isinstance(norms, (tuple, list)) else ()
    if len(found) != 2 or not all(isinstance(norm, nn.Module) for norm in found):
        raise wrong_type("norms", "a pair of modules (q_norm, k_norm)", norms)


def check_inv_freq(inv_freq: Tensor, pairs: int, axes: int) -> Tensor:
    """Return given frequencies as float64 on the CPU, ``(r/2,)`` or ``(axes, r/2)``."""
    check_floating("inv_freq", inv_freq)
    found = 1 if inv_freq.ndim == 1 else len(inv_freq) if inv_freq.ndim == 2 else 0
    if not found or inv_freq.shape[-1] != pairs or axes not in (1, found):
        expected = f"(r/2,) or (axes, r/2) with r/2 = {pairs} and axes={axes}"
        raise wrong_shape("inv_freq", expected, inv_freq)
    try:
        finite = bool(inv_freq.isfinite().all())
    except RuntimeError:  # on meta, or a fake
        raise ValueError(
            "inv_freq must have values, got a tensor on "
            f"{inv_freq.device} ({type(inv_freq).__name__})"
        ) from None
    if not finite:
        raise ValueError("inv_freq must be finite")
    kept = inv_freq.detach().to(device="cpu", dtype=torch.float64)
    return kept.flatten() if found == 1 else kept


def check_learned(frequencies: Tensor) -> None:
    """Raise ``TypeError`` if learned frequencies were rounded to 16 bits."""
    if frequencies.dtype.itemsize == 2:
        raise TypeError(
            f"frequencies must be float32, got {frequencies.dtype}: angles would be "
            "wrong by whole turns; keep them out of mixed precision"
        )


def fit_positions(
    positions: Tensor, seq: int | None, batch: int | None, axes: int, takes_text: bool,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """Return positions as ``(seq,)`` or ``(batch, seq)``, or raise; axes come last.

    ``seq`` and ``batch`` are the input's: None if unknown, a batch of -1 if absent.
    """
    check_positions("positions", positions)
    if positions.device != device:
        raise ValueError(
            f"positions must be on the input's device, {device}; got {positions.device}"
        )

    def fits(sizes: tuple[int, ...]) -> bool:
        # Not `seq in (None, sizes[-1])`: a compiler compares symbols by identity there.
        if len(sizes) not in (1, 2) or not (seq is None or seq == sizes[-1]):
            return False
        one = len(sizes) == 1 or batch is None or sizes[0] == 1
        return (one or sizes[0] == batch) and not (len(sizes) == 2 and batch == -1)

    shape = tuple(positions.shape)
    forms = {
        "(..., seq, axes)": axes > 1 and shape[-1:] == (axes,) and fits(shape[:-1]),
        "(axes, batch, seq)": axes > 1 and shape[:-2] == (axes,) and fits(shape[1:]),
        "(..., seq) of text": (axes == 1 or takes_text) and fits(shape),
    }
    found = [form for form, it_fits in forms.items() if it_fits]
    if len(found) > 1:
        raise ValueError(
            f"positions of shape {shape} can be read as {' and as '.join(found)}: add "
            "a batch axis if there is none, or rotate the sequences one by one"
        )
    if not found:
        several = "(seq, axes) or (batch, seq, axes)"
        expected = several if axes > 1 else "(seq,) or (batch, seq)"
        sizes = {"seq": seq, "batch": batch, "axes": axes}.items()
        known = ", ".join(f"{n}={size}" for n, size in sizes if size not in (None, -1))
        raise wrong_shape("positions", f"{expected} with {known}", positions)
    if found[0] == "(axes, batch, seq)":
        return positions.movedim(0, -1)
    if found[0] == "(..., seq) of text" and axes > 1:
        return positions.unsqueeze(-1).expand(*shape, axes)
    return positions


def check_table(cos: Tensor, x: Tensor, rotary_dim: int, batch: int, seq: int) -> None:
    """Raise unless a ready table fits ``x``, which has ``batch`` and ``seq``."""
    shape = cos.shape
    fits = len(shape) < 3 or (batch != -1 and shape[0] in (1, batch))
    if not fits or shape[-2:] != (seq, rotary_dim // 2):
        raise ValueError(
            f"tables were made for {tuple(shape)}, but an input of shape "
            f"{tuple(x.shape)} needs (seq, r/2) or (batch, seq, r/2) with seq={seq}, "
            f"r/2={rotary_dim // 2}"
        )
    if cos.device != x.device:
        raise ValueError(
            f"tables are on {cos.device}, but the input is on {x.device}: make them "
            "with tables(..., device=...)"
        )


def check_out(out: Any, xs: Sequence[Tensor]) -> list[Tensor]:
    """Return ``out`` with new memory for None, or raise unless it can take ``xs``."""
    if not isinstance(out, (tuple, list)) or len(out) != len(xs):
        raise wrong_type("out", "a pair (q_out, k_out), either of them None", out)
    taken, eager = [*xs], not torch.compiler.is_compiling()
    for into, x in zip(out, xs, strict=True):
        if into is None:
            taken.append(torch.empty_like(x))
            continue
        if not isinstance(into, Tensor):
            raise TypeError(f"out must hold tensors, got {type(into).__name__}")
        for what in ("shape", "dtype", "device"):
            wanted, got = getattr(x, what), getattr(into, what)
            if wanted != got:
                if what == "shape":
                    wanted, got = tuple(wanted), tuple(got)
                raise ValueError(
                    f"out must have the input's {what}, {wanted}, got {got}"
                )
        if into.numel() and (into.stride(-1) != 1 or (eager and overlaps_itself(into))):
            raise ValueError(
                "out must have a last stride of 1 and must not overlap itself, got "
                f"strides {into.stride()}"
            )
        if eager and any(overlaps(into, t) for t in taken):
            raise ValueError(
                "out shares memory with an input or the other out: features could be "
                "overwritten before they are read"
            )
        taken.append(into)
    return taken[len(xs) :]


def overlaps_itself(x: Tensor) -> bool:
    """Whether an axis of ``x`` steps no further than the smaller steps reach."""
    reach = 0
    for step, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and step <= reach:
            return True
        reach += (size - 1) * step
    return False


def overlaps(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors share an element; with two dtypes, whether a storage."""
    has_memory = {type(a), type(b)} <= {Tensor, nn.Parameter}  # a fake has none
    if not has_memory or not (a.numel() and b.numel()) or a.device.type == "meta":
        return False
    try:
        if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
            return False
    except RuntimeError:  # nor does a tensor of a transform
        return False
    if a.element_size() != b.element_size():
        return True  # their strides count different units
    ends = []  # one past the last element of each, in the storage
    for x in (a, b):
        steps = zip(x.shape, x.stride(), strict=True)
        ends.append(x.storage_offset() + sum((n - 1) * step for n, step in steps) + 1)
    if ends[0] <= b.storage_offset() or ends[1] <= a.storage_offset():
        return False
    seen = torch.zeros(max(ends), dtype=torch.bool, device="cpu")
    seen.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(seen.as_strided(b.shape, b.stride(), b.storage_offset()).any())
