"""What every correct RoPE obeys, as functions that raise with a diagnosis.

Each law takes ``rotate(x, positions)``, any function from a float64 ``x`` ``(seq,
head_dim)`` and integer positions ``(seq,)`` to the rotated ``(seq, head_dim)``, and
raises :class:`LawBroken` with what was measured and the likely cause. The attention
factors of YaRN and LongRoPE and the growth of xPos are divided out first
(:func:`without_scaling`). Built in lessons 04 to 07.

>>> from rope_teach import RotaryEmbedding
>>> rope = RotaryEmbedding(8)
>>> check_all(lambda x, positions: rope.rotate(x[None, None], positions)[0, 0])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

__all__ = [
    "LawBroken",
    "identity_at_zero",
    "norm_is_kept",
    "only_the_difference_counts",
    "turns_add_up",
    "opposite_turn_undoes",
    "is_linear",
    "every_token_by_itself",
    "every_pair_turns",
    "LAWS",
    "check_all",
    "legal_factor",
    "without_scaling",
]

Rotation = Callable[[Tensor, Tensor], Tensor]
Sides = tuple[Tensor, Tensor]
Law = Callable[..., None]
TOLERANCE = 1e-4  # angles in float32 pass
FACTORS = [*range(2, 11), 12, 16, 20, 24, 25, 30, 32, 40, 48, 50, 64, 80, 100, 128, 256]
LENGTHS = [n * 2**k for n in (1, 3) for k in range(4, 21)] + [1_000, 2_000, 10_000]


class LawBroken(AssertionError):
    """A rotation breaks a law; the message has the error and the likely cause.

    ``tokens`` are those that changed where :func:`every_token_by_itself` is broken.
    """

    tokens: tuple[int, ...] = ()


def legal_factor(factor: float) -> str | None:
    """Which rule multiplies cos and sin by ``factor``: ``"yarn"``, ``"longrope"``.

    YaRN's is ``0.1 ln s + 1``, and LongRoPE's ``sqrt(1 + ln s / ln T)``, for the
    factors s and trained lengths T that are in use. None if it is neither. Lesson 13.

    >>> legal_factor(0.1 * math.log(16) + 1), legal_factor(1.2)
    ('yarn', None)
    """
    squares = (1 + math.log(s) / math.log(T) for s, T in product(FACTORS, LENGTHS))
    rules = {
        "yarn": (0.1 * math.log(s) + 1 for s in FACTORS),
        "longrope": map(math.sqrt, squares),
    }
    for rule, factors in rules.items():
        if any(math.isclose(factor, usual, rel_tol=1e-5) for usual in factors):
            return rule
    return None


def without_scaling(rotate: Rotation, head_dim: int) -> Rotation:
    """The rotation alone: YaRN's or LongRoPE's factor and xPos's growth divided out.

    Any other factor or growth is left where it is, for the laws to find.
    """

    def lengths(position: int) -> Tensor:
        x = torch.eye(head_dim, dtype=torch.float64)
        positions = torch.full((head_dim,), position)
        return rotate(x, positions).double().norm(dim=-1)

    try:
        lengths_at_zero = lengths(0)
        growth = (lengths(8) / lengths_at_zero).log() / 8
    except Exception:  # the laws say what is wrong
        return rotate
    factor, grows = float(lengths_at_zero.median()), _is_xpos(growth)
    legal = _is_constant(lengths_at_zero, 1e-4) and legal_factor(factor) is not None
    if not (legal or grows):
        return rotate

    def alone(x: Tensor, positions: Tensor) -> Tensor:
        out = rotate(x, positions) / (factor if legal else 1.0)
        return out * (-growth * positions[:, None]).exp() if grows else out

    return alone


def _is_constant(x: Tensor, tolerance: float) -> bool:
    return torch.allclose(x, x[:1].expand_as(x), rtol=tolerance)


def _is_xpos(growth: Tensor) -> bool:
    """Whether lengths grow, or shrink, as the scale of xPos does, pair by pair."""
    pairs = growth[growth.abs() > 1e-7].abs().sort(descending=True).values
    count = len(pairs) // 2
    if count == 0 or not growth.isfinite().all():
        return False
    if not torch.allclose(pairs[::2], pairs[1::2], rtol=1e-3):
        return False
    zeta = (torch.arange(count, dtype=torch.float64) / count + 0.4) / 1.4
    return _is_constant(-zeta.log() / pairs[::2], 1e-2)


# ------------------------------------------- laws by which two tensors are equal


def _law(must: str, cause: str) -> Callable[[Callable[..., Sides]], Law]:
    """A law about the rotation alone, made from the two sides that must be equal."""

    def made_from(sides: Callable[..., Sides]) -> Law:
        def law(rotate: Rotation, head_dim: int = 8) -> None:
            got, expected = sides(without_scaling(rotate, head_dim), head_dim)
            _expect_equal(got, expected, must, cause)

        # Not functools.wraps, which would give the signature of `sides`.
        law.__name__, law.__doc__ = sides.__name__, sides.__doc__
        return law

    return made_from


@_law(
    "at position 0 the output must be the input",
    "features are reordered (cat where the pairs should be put back with stack and "
    "flatten?), positions start at 1, or the given positions are not used",
)
def identity_at_zero(rotate: Rotation, head_dim: int) -> Sides:
    """At position 0 no hand has turned: the output is the input."""
    x = _sample(3, head_dim)
    return _run(rotate, x, torch.zeros(3, dtype=torch.long)), x


@_law(
    "the norm of each token must stay the same",
    "the two features of a pair get different angles (is the table repeated for one "
    "pairing and the rotation written for the other?), or one of the four signs is "
    "wrong",
)
def norm_is_kept(rotate: Rotation, head_dim: int) -> Sides:
    """A rotation changes no length."""
    x = _sample(5, head_dim)
    turned = _run(rotate, x, torch.tensor([0, 1, 7, 100, 1000]))
    return turned.norm(dim=-1), x.norm(dim=-1)


@_law(
    "q at m and k at n must give one dot product wherever n - m is the same",
    "the turn is not the same for each step of one token: are positions or angles "
    "rounded (bfloat16 cannot tell 256 from 257), or clamped to a longest length?",
)
def only_the_difference_counts(rotate: Rotation, head_dim: int) -> Sides:
    """The dot product of a query at m and a key at n depends on n - m alone."""
    pair = torch.nn.functional.normalize(_sample(2, head_dim), dim=-1)
    places = [torch.tensor([3, 8]) + shift for shift in (0, 1, 10, 1000)]
    scores = torch.stack([_run(rotate, pair, m).prod(dim=0).sum() for m in places])
    return scores, scores[0].expand_as(scores)


@_law(
    "turning by m and then by n must equal turning by m + n",
    "the angle is not proportional to the position, or the output has its features in "
    "another order, so that the second turn meets the wrong pairs",
)
def turns_add_up(rotate: Rotation, head_dim: int) -> Sides:
    """Turning by m and then by n is turning by m + n."""
    x, m, n = _sample(3, head_dim), torch.tensor([1, 5, 40]), torch.tensor([2, 9, 7])
    return _run(rotate, _run(rotate, x, m), n), _run(rotate, x, m + n)


@_law(
    "turning by m and then by -m must give the input back",
    "negative positions are not turned the other way: do they index a table from its "
    "end?",
)
def opposite_turn_undoes(rotate: Rotation, head_dim: int) -> Sides:
    """Turning by m and then by -m gives the input back."""
    x, m = _sample(3, head_dim), torch.tensor([1, 12, 500])
    return _run(rotate, _run(rotate, x, m), -m), x


# ------------------------------------------- laws that ask something else


def is_linear(
    rotate: Rotation,
    head_dim: int = 8,
    tolerance: float = TOLERANCE,
    positions: Sequence[int] = (2, 30, 400),
) -> None:
    """The rotation of a sum is the sum of the rotations."""
    x, y = _sample(2 * len(positions), head_dim).chunk(2)
    m = torch.tensor(positions)
    _expect_equal(
        _run(rotate, 2 * x + y, m),
        2 * _run(rotate, x, m) + _run(rotate, y, m),
        "rotate(2x + y) must equal 2 rotate(x) + rotate(y)",
        "something is added to the features, which a rotation never does; or they are "
        "scaled by their own size",
        tolerance,
    )


def every_token_by_itself(
    rotate: Rotation, head_dim: int = 8, tolerance: float = 1e-9
) -> None:
    """Changing token 3 changes output 3 and no other."""
    x, m = _sample(6, head_dim), torch.arange(6)
    changed = x + (m == 3)[:, None]
    change = (_run(rotate, x, m) - _run(rotate, changed, m)).abs().amax(dim=-1)
    outputs = (change > tolerance).nonzero().flatten().tolist()
    if outputs != [3]:
        broken = LawBroken(
            f"changing token 3 must change output 3 alone; it changed {outputs}. "
            "Likely cause: two axes are swapped or flattened together"
        )
        broken.tokens = tuple(outputs)
        raise broken


def every_pair_turns(
    rotate: Rotation, head_dim: int = 8, turning: int | None = None
) -> None:
    """At a position past 0, every feature takes part in a turn.

    Partial rotary and p-RoPE turn fewer: give their number, ``turning``.
    """
    x = torch.eye(head_dim, dtype=torch.float64)
    turned = _run(rotate, x, torch.full((head_dim,), 3))
    still = ((turned - x).abs().amax(dim=-1) < 1e-9).nonzero().flatten().tolist()
    if len(still) != head_dim - (head_dim if turning is None else turning):
        wanted = "" if turning is None else f", and {turning} of {head_dim} should turn"
        raise LawBroken(
            f"features {still} do not turn at position 3{wanted}. Likely cause: only "
            "part of the head is rotated, or positions are not used"
        )


# The order matters: the first broken law gives the most specific diagnosis.
LAWS: dict[str, Law] = {
    "is_linear": is_linear,
    "every_token_by_itself": every_token_by_itself,
    "identity_at_zero": identity_at_zero,
    "norm_is_kept": norm_is_kept,
    "turns_add_up": turns_add_up,
    "opposite_turn_undoes": opposite_turn_undoes,
    "only_the_difference_counts": only_the_difference_counts,
    "every_pair_turns": every_pair_turns,
}


def check_all(
    rotate: Rotation, head_dim: int = 8, *, turning: int | None = None
) -> None:
    """Check ``rotate`` against every law; raise :class:`LawBroken` at the first.

    ``turning`` as in :func:`every_pair_turns`.
    """
    for law in LAWS.values():
        more = (turning,) if law is every_pair_turns else ()
        law(rotate, head_dim, *more)


def _sample(rows: int, head_dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, head_dim, generator=generator, dtype=torch.float64)


def _run(rotate: Rotation, x: Tensor, positions: Tensor) -> Tensor:
    given = x.clone()
    out = rotate(given, positions)
    if not torch.equal(given, x):
        raise LawBroken(
            "the rotation must leave its input as it is. Likely cause: a feature is "
            "overwritten in place and then read again, already turned"
        )
    is_tensor = isinstance(out, Tensor)
    if not is_tensor or out.shape != x.shape:
        must = f"keep the shape {tuple(x.shape)}" if is_tensor else "return a tensor"
        got = tuple(out.shape) if is_tensor else type(out).__name__
        raise LawBroken(f"the rotation must {must}, it returned {got}")
    return out.to(torch.float64)


def _expect_equal(
    got: Tensor, expected: Tensor, law: str, cause: str, tolerance: float = TOLERANCE
) -> None:
    error = (got - expected).abs().max().item()
    if not error <= tolerance:  # written so that NaN fails
        raise LawBroken(f"{law}; it is off by {error:.2g}. Likely cause: {cause}")
