"""Read a rotation from outside: its pairs, angles and lengths, or the law it breaks.

From the coarse to the fine. Does the angle run along one axis, is the function linear,
does each token stand by itself? Then its matrices at a few positions, feature by
feature; then one vector at thousands of positions. The first fault raises ``Broken``,
since what comes after it would be read wrongly.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from rope_teach import laws
from rope_teach.frequencies import inverse_frequencies
from rope_teach.identify.faults import Broken
from rope_teach.identify.probe import SEQ, CannotProbe, Probe
from rope_teach.identify.rules import BASES, too_fast
from rope_teach.pairing import half_to_interleaved, interleaved_to_half

__all__ = [
    "Hands", "follow_hands", "read_pairs", "rounded_by_bfloat16", "turns", "wrap",
]  # fmt: skip

PATIENCE = 0.5  # seconds of work for one call, before no longer one is tried


@dataclass(frozen=True)
class Hands:
    """What was read of one output: a hand for each pair of features."""

    pairs: Tensor  # (pairs, 2)
    angles: Tensor  # (seq, pairs), modulo a turn, at positions 0, 1, ...
    lengths: Tensor  # (seq, pairs)
    speeds: Tensor  # (pairs,), signed radians per token, within half a turn
    noise: float  # how far an angle may be off for no other reason than rounding
    rest: float = 1.0  # what all other features are multiplied by

    @property
    def slack(self) -> float:
        """How far a speed may be off, in radians per token."""
        return 2 * self.noise / len(self.angles)

    @property
    def growth(self) -> Tensor:
        """By how much the logarithm of each length grows with a token: ``(pairs,)``."""
        return _growth(self.lengths)

    def take(self, order: Tensor, sign: Tensor) -> Hands:
        """The same hands in another order, clockwise ones with their pair reversed.

        A turn of (a, b) one way is a turn of (b, a) the other way.
        """
        pairs = self.pairs[order]
        return replace(
            self,
            pairs=torch.where(sign[:, None] < 0, pairs.flip(1), pairs),
            angles=self.angles[:, order] * sign,
            lengths=self.lengths[:, order],
            speeds=self.speeds[order] * sign,
        )

    def at(self, positions: Tensor) -> Tensor:
        """Where the hands point, complex ``(*positions.shape, pairs)``, at any."""
        seen = positions.clamp(0, len(self.angles) - 1)
        inside = (seen == positions)[..., None]
        steps = positions.double()[..., None]
        angle = torch.where(
            inside, self.angles[seen], self.angles[0] + steps * self.speeds
        )
        length = self.lengths[0] * (steps * self.growth).exp()
        return torch.polar(torch.where(inside, self.lengths[seen], length), angle)

    def rotate(self, x: Tensor, positions: Tensor, back: bool = False) -> Tensor:
        """What should come out for ``x`` ``(batch, heads, seq, head_dim)``.

        ``back`` turns the other way, as gradients do.
        """
        turn = self.at(positions).conj() if back else self.at(positions)
        turn = turn[:, None] if positions.ndim == 2 else turn
        turned = turns(x.double(), self.pairs) * turn
        out = x.double() * self.rest
        out[..., self.pairs] = torch.view_as_real(turned)
        return out


def read_pairs(probe: Probe) -> tuple[Probe, Tensor, float]:
    """Which two features turn together: ``(pairs, 2)``; and what the rest is times.

    The probe comes back with the ``order`` of its outputs. Raises ``Broken``, or
    ``CannotProbe`` where nothing turns.
    """
    _check_axes(probe)
    _check_by_laws(probe)
    matrices = _matrices(probe)
    order = _common_order(matrices)
    if order is not None:
        probe = replace(probe, order=order)
        matrices = [matrix[:, order] for matrix in matrices]
    found = []
    for matrix in matrices:
        lost = (matrix.abs().amax((0, 1)) < 1e-6).nonzero().flatten().tolist()
        if lost:
            said = ", ".join(map(str, lost[:4])) + ", ..." * (len(lost) > 4)
            raise Broken("lost", features=said)
        pairs = _partners(matrix)
        if pairs is None:
            raise _moved_or_mixed(matrix)
        if not len(pairs):
            raise Broken("nothing_turns")
        _check_blocks(probe, matrix, pairs)
        found.append(pairs)
    if not torch.equal(found[0], found[-1]):
        raise Broken("other_pairs")
    return probe, found[0], _rest(probe, matrices, found[0])


def follow_hands(probe: Probe, pairs: Tensor, rest: float) -> list[Hands]:
    """Follow the hands of x, or of q and k, as far as positions go, or ``Broken``."""
    short = _polar(probe, pairs, SEQ, probe.sizes)
    for out in short:
        _check_counted(out.angle(), probe)
    for one, many in zip(_polar(probe, pairs), short, strict=True):
        if (one - many).abs().max() > 1e-3 + 8 * probe.noise:
            still = _near(one, one[:1])
            raise Broken("one_head" if still else "heads_count", n=probe.sizes[1])
    if probe.takes_positions:
        _check_positions_are_used(probe, pairs)
    outputs = zip(short, _longest(probe, pairs), strict=True)
    hands = [_hands(probe, pairs, few, many, rest) for few, many in outputs]
    after = _polar(probe, pairs, SEQ, probe.sizes)
    if any(_differ(few, many, probe) for few, many in zip(short, after, strict=True)):
        raise Broken("history")
    return hands


def rounded_by_bfloat16(probe: Probe, hands: Hands) -> bool:
    """Whether bfloat16 inputs make the angles wrong, where float32 inputs do not."""
    seq = min(len(hands.angles), 1024)
    try:
        probe = probe.renewed(subject=replace(probe.subject, dtype=torch.bfloat16))
        out = _polar(probe, hands.pairs, seq)[0]
    except CannotProbe:  # it takes no bfloat16
        return False
    return bool(wrap(out.angle() - hands.angles[:seq]).abs().max() > 0.1)


def wrap(angles: Tensor) -> Tensor:
    """Angles modulo a turn, from minus half a turn to half a turn."""
    return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi


def turns(x: Tensor, pairs: Tensor) -> Tensor:
    """Each pair of features as one complex number: ``(..., pairs)``."""
    return torch.view_as_complex(x[..., pairs].contiguous())


def _near(a: Tensor, b: Tensor, allowed: float = 1e-3) -> bool:
    return bool((a - b).abs().max() <= allowed)


def _differ(a: Tensor, b: Tensor, probe: Probe) -> bool:
    return not _near(a, b, 1e-3 * float(a.abs().max()) + 8 * probe.noise)


# ------------------------------------------------------------ axes, tokens, linearity


def _check_axes(probe: Probe) -> None:
    """Equal tokens must come out different along the sequence, and nowhere else."""
    token = torch.linspace(0.5, 1.5, probe.head_dim)
    x = token.expand(*probe.sizes, SEQ, -1)
    first, again = (probe.run([x, x], torch.arange(SEQ)) for _ in range(2))
    still = []
    for out, same in zip(first, again, strict=True):
        if not out.isfinite().all():
            raise Broken("not_finite")
        if not torch.equal(out, same):
            raise CannotProbe(
                "two equal calls differ: dropout? Call .eval() first; or a cache that "
                "counts its calls? Wrap it, and reset it each time"
            )
        still.append(not _check_rows_alike(probe, out, token))
    if all(still):
        raise CannotProbe("it does not rotate: equal tokens at 0 to 6 come out equal")
    if any(still):
        which, other = ("q", "k") if still[0] else ("k", "q")
        raise Broken("one_forgotten", which=which, other=other)


def _check_rows_alike(probe: Probe, out: Tensor, token: Tensor) -> bool:
    """Whether tokens turn along the sequence; all heads and sequences must agree."""
    moving = (out - out[:, :, :1]).abs().amax((-1, -2)) > 1e-3  # (batch, heads)
    if _near(out, out[:1, :1]):
        return bool(moving.any())
    left = ~moving & ((out - token).abs().amax((-1, -2)) < 1e-3)
    if moving.any() and left.any() and (moving | left).all():
        for axis, kind in enumerate(("sequences", "heads")):
            whole = left.all(1 - axis, keepdim=True)
            if torch.equal(left, whole.expand_as(left)):
                which = whole.flatten().nonzero().flatten().tolist()
                raise Broken("left_out", kind=kind, which=which)
    if moving.all() and _near(out[:, :, 0], out[:1, :1, 0]):
        raise Broken("heads_differ")
    apart = (out[0, 0, :, None] - out[0, 0]).abs().amax(-1) + torch.eye(SEQ)
    shifts = range(1, out.shape[1]) if apart.min() > 1e-3 else ()
    if shifts and all(_near(out[:, h, :-h], out[:, 0, h:]) for h in shifts):
        raise Broken("heads_shifted")
    along = [a for i, a in enumerate("bhs") if not _near(out, out.narrow(i, 0, 1))]
    axes = sorted(probe.layout.index(axis) for axis in along)
    raise Broken("across_heads", axes=axes, layout=probe.layout)


def _check_by_laws(probe: Probe) -> None:
    """The laws of ``rope_teach.laws`` that ask for no position in particular."""
    tolerance = 0.03 + 8 * probe.noise  # products in 16 bits pass
    for i in range(len(probe.inputs)):

        def rotate(x: Tensor, positions: Tensor, i: int = i) -> Tensor:
            whole = torch.zeros(int(positions.max()) + 1, x.shape[-1])
            whole = whole.index_copy(0, positions, x.float())[None, None]
            outputs = probe.run([whole, whole], torch.arange(whole.shape[2]))
            return outputs[i][0, 0, positions]

        zero = rotate(torch.zeros(SEQ, probe.head_dim), torch.arange(SEQ))
        if zero.abs().max() > 1e-3:
            raise Broken("added")
        try:
            laws.is_linear(rotate, probe.head_dim, tolerance, (0, 2, 5))
        except laws.LawBroken:
            raise Broken("normalised") from None
        try:
            laws.every_token_by_itself(rotate, probe.head_dim, tolerance / 2)
        except laws.LawBroken as error:
            tokens = ", ".join(map(str, error.tokens))
            fault = "token_moved" if len(error.tokens) == 1 else "tokens_mixed"
            raise Broken(fault, tokens=tokens) from None


def _check_positions_are_used(probe: Probe, pairs: Tensor) -> None:
    try:
        near, far = (_polar(probe, pairs, start=start) for start in (0, 5))
    except CannotProbe:  # its table is shorter than 12 rows
        return
    both = zip(probe.inputs, near, far, strict=True)
    unused = [which for which, a, b in both if not _differ(a, b, probe)]
    if unused:
        given = "start" if "start" in probe.names else "positions tensor"
        missed = "" if len(unused) == len(probe.inputs) else f" for {unused[0]}"
        raise Broken("positions_unused", given=given, missed=missed)


# ---------------------------------------------------------- the matrices, and the pairs


def _matrices(probe: Probe) -> list[Tensor]:
    """The matrix at each of a few positions: ``(SEQ, head_dim, head_dim)``."""
    at_once = probe.head_dim if "b" in probe.layout else 1
    found = []
    for features in torch.eye(probe.head_dim).split(at_once):
        x = features[:, None, None].expand(-1, probe.sizes[1], SEQ, -1)
        outputs = probe.run([x, x], torch.arange(SEQ))
        found.append([out[:, -1].permute(1, 2, 0) for out in outputs])
    return [torch.cat(parts, dim=-1) for parts in zip(*found, strict=True)]


def _common_order(matrices: list[Tensor]) -> Tensor | None:
    """What puts the features of q and of k back, if both come out moved alike.

    Scores are then right, as in DeepSeek-V3: the dot product has no order.
    """
    first, *others = (_reordering(matrix[0]) for matrix in matrices)
    if first is None or not others or others[0] is None:
        return None
    back = first.argsort()
    moved = not torch.equal(first, back.sort().values)
    fits = moved and torch.equal(first, others[0])
    plain = all((m[0].gather(1, first[:, None]) > 0).all() for m in matrices)
    paired = fits and plain and all(_partners(m[:, back]) is not None for m in matrices)
    return back if paired else None


def _partners(matrix: Tensor) -> Tensor | None:
    """Pairs by what is not zero off the diagonal, or None if they overlap."""
    for least in (1e-14, 1e-6):  # a dense product leaves rounding where zeros should be
        joined = matrix.abs().amax(0) > least
        joined = (joined | joined.T) & ~torch.eye(len(joined), dtype=torch.bool)
        if joined.sum(1).max() <= 1:
            return joined.triu().nonzero()
    return None


def _moved_or_mixed(matrix: Tensor) -> Broken:
    """Why features meet more than one other: moved by the way, or mixed."""
    order = _reordering(matrix[0])
    if order is None or _partners(matrix[:, order.argsort()]) is None:
        return Broken("pairs_overlap")
    plain = torch.arange(len(order))
    if torch.equal(order, interleaved_to_half(plain)):
        return Broken("cat_after_interleaved")
    if torch.equal(order, half_to_interleaved(plain)):
        return Broken("stack_after_half")
    moved = int((order != plain).nonzero()[0])
    shown = ", ".join(map(str, order[moved : moved + 4].tolist()))
    return Broken("reordered", first=moved, order=shown)


def _reordering(matrix: Tensor) -> Tensor | None:
    """The order in which features come out at position 0, if they are only moved."""
    order = matrix.abs().argmax(1)
    rest = matrix.scatter(1, order[:, None], 0.0).abs().max()
    return order if len(order.unique()) == len(order) and rest < 1e-3 else None


def _check_blocks(probe: Probe, matrix: Tensor, pairs: Tensor) -> None:
    """Each pair's 2 x 2 block must be ``[[c, -s], [s, c]]``, times a length."""
    a, b = pairs.T
    aa, ab = matrix[:, a, a], matrix[:, a, b]
    ba, bb = matrix[:, b, a], matrix[:, b, b]

    def equal(x: Tensor, y: Tensor) -> bool:
        return _near(x, y, 1e-4 + 4 * probe.noise)

    if equal(aa, bb) and equal(ab, -ba):
        return
    first, second = equal(ba, -ab * aa), equal(ab, -ba * bb)
    reread = (first and equal(bb, aa - ab**2)) or (second and equal(aa, bb - ba**2))
    if reread or "overwritten" in probe.faults:
        raise Broken("overwritten")
    if equal(ab, ba):
        raise Broken("minus_missing" if equal(aa, bb) else "mirror")
    if not ab.any() or not ba.any():
        raise Broken("one_of_two")
    raise Broken(_columns_used(matrix[1], pairs))


def _columns_used(matrix: Tensor, pairs: Tensor) -> str:
    """The two features of a pair meet different columns of the tables: which?"""
    used = pairs.flatten().sort().values
    partner = torch.arange(len(matrix))
    partner[pairs] = pairs.flip(1)
    cos, sin = matrix.diagonal()[used], matrix[used, partner[used]]
    speed, half = torch.atan2(sin.abs(), cos), len(used) // 2

    def alike(x: Tensor, y: Tensor) -> bool:
        return torch.allclose(x, y, rtol=1e-3, atol=1e-7)

    if not alike(cos.square() + sin.square(), torch.ones_like(cos)):
        return "cos_without_sin"
    if alike(speed[0::2], speed[1::2]):
        return "table_interleaved"
    if alike(speed[:half], speed[half:]):
        return "table_half"
    falling = alike(speed[1:] / speed[:-1], (speed[1] / speed[0]).expand(2 * half - 1))
    return "over_d" if falling else "two_angles"


def _rest(probe: Probe, matrices: list[Tensor], pairs: Tensor) -> float:
    """What the features that do not turn are multiplied by: 1, or one same factor."""
    still = torch.ones(probe.head_dim, dtype=torch.bool)
    still[pairs] = False
    if not still.any():
        return 1.0
    seen = torch.stack(matrices).diagonal(dim1=2, dim2=3)[..., still]
    factor = seen.flatten()[0]
    turns_by_halves = (seen[:, 1] < 0).any() and (seen[:, 2] > 0).all()
    if torch.allclose(seen.abs(), torch.ones_like(seen)) and turns_by_halves:
        raise Broken("for_pixels")  # a hand that makes half a turn a token
    if (seen - factor).abs().max() > 1e-3 + 8 * probe.noise:
        raise Broken("rest_changed", factors="factors that depend on the token")
    turned = matrices[0][0, pairs[:, 0]].norm(dim=-1).median()
    if min((factor - 1).abs(), (factor - turned).abs()) > 1e-3 + 8 * probe.noise:
        raise Broken("rest_changed", factors=f"{float(factor):.4g}")
    return float(factor)


# ------------------------------------------------- one vector at thousands of positions


def _polar(
    probe: Probe,
    pairs: Tensor,
    seq: int = SEQ,
    sizes: tuple[int, int] = (1, 1),
    start: int = 0,
) -> list[Tensor]:
    """Where the hands of the last head point: complex ``(seq, pairs)`` an output."""
    x = torch.zeros(*sizes, seq, probe.head_dim)
    x[..., pairs[:, 0]] = 1.0  # what comes out is cos and sin
    outputs = probe.run([x, x], torch.arange(start, start + seq))
    return [turns(out[-1, -1], pairs) for out in outputs]


def _check_counted(seen: Tensor, probe: Probe) -> None:
    """Positions must not be those of the heads, or of the sequences, repeated."""
    step = wrap(seen[1] - seen[0])
    for kind, count in zip(("sequences", "heads"), probe.sizes, strict=True):
        places = torch.arange(SEQ)[:, None] % count
        if count > 1 and _stand_at(places, seen - seen[0], step, 0.02):
            raise Broken("counted_elsewhere", kind=kind)


def _stand_at(
    places: Tensor | int, angles: Tensor, speeds: Tensor, allowed: float
) -> bool:
    """Whether hands of these speeds stand at ``places``."""
    return bool(wrap(angles - places * speeds).abs().max() <= allowed)


def _longest(probe: Probe, pairs: Tensor) -> list[Tensor]:
    """Where the hands point along the longest sequence that the function takes."""
    long = _polar(probe, pairs)
    for seq in (2**power for power in range(5, 14)):
        started = time.process_time()
        try:
            tried = _polar(probe, pairs, seq)
        except CannotProbe:  # past its longest table
            break
        if not all(out.isfinite().all() for out in tried):
            _check_left_float32(tried, long)
            break
        long = tried
        if time.process_time() - started > PATIENCE:
            break
    return long


def _check_left_float32(tried: list[Tensor], long: list[Tensor]) -> None:
    """Outputs that are not finite must have grown before, as those of xPos do."""
    for out, before in zip(tried, long, strict=True):
        bad = ~out.isfinite().all(-1)
        if bad.any() and before.abs().max() < 1e3 * before.abs().min():
            at = int(bad.nonzero()[0])
            raise Broken("not_finite_far", at=at, last=at - 1)


def _hands(
    probe: Probe, pairs: Tensor, short: Tensor, long: Tensor, rest: float
) -> Hands:
    """Read one output; in a short call and in a long one, tokens must turn alike."""
    angles, lengths = long.angle(), long.abs()
    allowed = 1e-4 + 8 * probe.noise
    if wrap(short.angle() - angles[:SEQ]).abs().max() > allowed:
        raise Broken(_why_length_matters(short.angle(), angles))
    if (short.abs() / lengths[:SEQ] - 1).abs().max() > allowed:
        raise Broken("length_sets_scale")
    noise = probe.noise + _check_lengths(long, probe)
    return Hands(pairs, angles, lengths, _speeds(angles, noise), noise, rest)


def _why_length_matters(short: Tensor, long: Tensor) -> str:
    """The speeds depend on the length, or the first token's place does."""
    steps = [wrap(seen[:SEQ].diff(dim=0)) for seen in (short, long)]
    if (steps[0] - steps[1]).abs().max() > 1e-3:
        return "length_sets_speed"
    speeds = steps[0].mean(0)
    counted_back = all(
        _stand_at(1 - len(seen), seen[0], speeds, 1e-2 * len(seen))
        for seen in (short, long)
    )
    return "reversed" if counted_back else "length_moves_tokens"


def _growth(lengths: Tensor) -> Tensor:
    return (lengths[-1] / lengths[0]).log() / (len(lengths) - 1)


def _check_lengths(seen: Tensor, probe: Probe) -> float:
    """Lengths may be constant, or grow evenly as xPos does; return their rounding."""
    lengths = seen.abs()
    position = torch.arange(len(lengths))[:, None]
    uneven = (lengths / lengths[0]).log() - _growth(lengths) * position
    worst = float(uneven.abs().max())
    allowed = 0.01 + 8 * probe.noise  # tables in 16 bits are off by so much
    if worst <= allowed:
        return worst if worst > 1e-5 else 0.0
    wrong = (lengths / lengths[0] - 1).abs() > allowed
    first = int(wrong.any(1).nonzero()[0])
    _check_parts(seen / lengths[0])
    alike = torch.allclose(lengths, lengths[:, :1].expand_as(lengths), rtol=1e-3)
    if alike and uneven[:SEQ].abs().max() > 1e-4:
        raise Broken("token_scaled")
    if first >= SEQ:
        raise Broken("table_ends", first=first)
    # Where x itself is left in, hands turn around a point away from the middle.
    side = (lengths[1] ** 2 - lengths[0] ** 2) / (2 * (seen[1] - seen[0]).real)
    around = (seen - side[0]).abs()
    if _near(around, around[:1].expand_as(around)):
        raise Broken("left_in", share=float(side[0]))
    raise Broken("cos_without_sin")


def _check_parts(seen: Tensor) -> None:
    """Is one of cosine and sine right, and the other of angles in 16 bits?"""
    position = torch.arange(len(seen), dtype=torch.float64)[:, None]
    for base, dtype in product(BASES, (torch.bfloat16, torch.float16)):
        angle = position * inverse_frequencies(2 * seen.shape[1], base)
        cast = angle.to(dtype).double()
        of_sine = torch.complex(angle.cos(), cast.sin())
        of_cosine = torch.complex(cast.cos(), angle.sin())
        for part, made in (("sine", of_sine), ("cosine", of_cosine)):
            if _near(made, seen, 0.01):
                raise Broken("part_rounded", part=part, dtype=dtype)


def _speeds(angles: Tensor, noise: float) -> Tensor:
    """Radians per token of each hand, by ever longer looks; all steps must be equal."""
    steps = torch.polar(torch.ones_like(angles[1:]), angles.diff(dim=0))
    speeds = steps[: SEQ - 1].mean(0).angle()
    end = SEQ
    while True:
        position = torch.arange(end)[:, None]
        gap = wrap(angles[:end] - angles[0] - speeds * position)
        wrong = gap.abs() > 1e-4 + 8 * noise + 2e-6 * position * speeds.abs()
        if wrong.any():
            rule = too_fast(speeds)  # float32 cannot follow such hands for long
            if rule is not None and rule.fault and gap[:SEQ].abs().max() < 0.1:
                raise rule.fault
            first = int(wrong.any(1).nonzero()[0])
            raise _uneven_steps(angles - angles[0], speeds, first, noise)
        speeds = speeds + gap[-1] / (end - 1)
        if end == len(angles):
            return speeds
        end = min(2 * end, len(angles))


def _uneven_steps(seen: Tensor, speeds: Tensor, first: int, noise: float) -> Broken:
    """Why the hands leave their even pace at position ``first``."""
    seen = seen[: max(4 * first, 4 * SEQ)]
    position = torch.arange(len(seen), dtype=torch.float64)[:, None]

    def like(places: Tensor) -> bool:
        return _stand_at(places, seen, speeds, 0.05 + 16 * noise)

    if first >= SEQ and like(position.clamp(max=first - 1)):
        return Broken("clamped", last=first - 1, rows=first)
    if first >= 2 and like(position % first):
        return Broken("restarted", rows=first)
    if like((position + first) % (2 * first) - first):
        return Broken("overflow", which=first)
    angle = (position * speeds).abs().clamp_min(1e-9)
    error = (wrap(seen - position * speeds).abs() - 16 * noise) / angle
    for dtype, whole in ((torch.float16, 2048), (torch.bfloat16, 256)):
        if error[SEQ:].numel() and error[SEQ:].max() <= 1.5 * torch.finfo(dtype).eps:
            after = whole + 1
            return Broken("positions_rounded", dtype=dtype, whole=whole, after=after)
    return Broken("uneven", first=first)
