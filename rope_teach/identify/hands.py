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

import torch
from torch import Tensor

from rope_teach.identify.faults import Broken
from rope_teach.identify.probe import SEQ, CannotProbe, Probe
from rope_teach.identify.rules import too_fast
from rope_teach.pairing import half_to_interleaved, interleaved_to_half

__all__ = ["Hands", "follow_hands", "read_pairs", "rounded_by_bfloat16", "wrap"]

LONGEST = 8_192  # rows in one call
FAR = (65_536, 1_000_000)  # where a position can be given
PATIENCE = 0.5  # seconds of work for one call, before no longer one is tried


@dataclass(frozen=True)
class Hands:
    """What was read of one output: a hand for each pair of features."""

    pairs: Tensor  # (pairs, 2)
    angles: Tensor  # (seq, pairs), modulo a turn, at positions 0, 1, ...
    lengths: Tensor  # (seq, pairs)
    speeds: Tensor  # (pairs,), signed radians per token, within half a turn
    noise: float  # how far an angle may be off for no other reason than rounding

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
        return Hands(
            torch.where(sign[:, None] < 0, pairs.flip(1), pairs),
            self.angles[:, order] * sign,
            self.lengths[:, order],
            self.speeds[order] * sign,
            self.noise,
        )


def read_pairs(probe: Probe) -> tuple[Probe, Tensor]:
    """Which two features turn together: ``(pairs, 2)``; and the probe's true layout.

    Raises ``Broken``, or ``CannotProbe`` where nothing turns.
    """
    probe = _along_one_axis(probe)
    _check_linear(probe)
    _check_tokens_apart(probe)
    matrices = _matrices(probe)
    found = []
    for matrix in matrices:
        pairs = _partners(matrix)
        if pairs is None:
            raise _moved_or_mixed(matrix, matrices)
        if not len(pairs):
            raise Broken("nothing_turns")
        _check_blocks(probe, matrix, pairs)
        found.append(pairs)
    if not torch.equal(found[0], found[-1]):
        raise Broken("other_pairs")
    return probe, found[0]


def follow_hands(probe: Probe, pairs: Tensor) -> list[Hands]:
    """Follow the hands of x, or of q and k, as far as positions go, or ``Broken``."""
    if probe.takes_positions:
        _check_positions_are_used(probe, pairs)
    outputs = zip(_polar(probe, pairs, SEQ), _longest(probe, pairs), strict=True)
    hands = [_hands(probe, pairs, short, long) for short, long in outputs]
    if probe.takes_positions and not probe.takes_tables:
        _check_far(probe, hands)
    return hands


def rounded_by_bfloat16(probe: Probe, hands: Hands) -> bool:
    """Whether bfloat16 inputs make the angles wrong, where float32 inputs do not."""
    seq = min(len(hands.angles), 1024)
    try:
        subject = replace(probe.subject, dtype=torch.bfloat16)
        out = _polar(replace(probe, subject=subject), hands.pairs, seq)[0]
    except CannotProbe:  # it takes no bfloat16
        return False
    return bool(wrap(out.angle() - hands.angles[:seq]).abs().max() > 0.1)


def wrap(angles: Tensor) -> Tensor:
    """Angles modulo a turn, from minus half a turn to half a turn."""
    return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi


# ------------------------------------------------------------ axes, tokens, linearity


def _along_one_axis(probe: Probe) -> Probe:
    """Name the axis along which equal tokens come out different: the sequence."""
    token = torch.linspace(0.5, 1.5, probe.head_dim)
    changing = set()
    first, again = (probe.trial(token.expand(SEQ, -1)) for _ in range(2))
    for out, same in zip(first, again, strict=True):
        if not out.isfinite().all():
            raise Broken("not_finite")
        if not torch.equal(out, same):
            raise CannotProbe("two equal calls differ: dropout? Call .eval() first")
        for axis in range(out.ndim - 1):
            if (out - out.narrow(axis, 0, 1)).abs().max() > 1e-3:
                changing.add(axis)
    if not changing:
        raise CannotProbe("it does not rotate: equal tokens at 0 to 6 come out equal")
    if changing == {probe.layout.index("s")}:
        return probe
    free = not probe.takes_rows and not probe.layout_given
    if len(changing) > 1 or not free:
        raise Broken("across_heads", axes=sorted(changing), layout=probe.layout)
    (axis,), rest = changing, probe.layout.replace("s", "")
    return replace(probe, layout=rest[:axis] + "s" + rest[axis:])


def _check_linear(probe: Probe) -> None:
    x, y = _sample(2, SEQ, probe.head_dim)
    if any(out.abs().max() > 1e-3 for out in probe.rows(torch.zeros_like(x))):
        raise Broken("added")
    sums = zip(probe.rows(x), probe.rows(y), probe.rows(2 * x + y), strict=True)
    if any(_differ(2 * a + b, both, probe) for a, b, both in sums):
        raise Broken("normalised")


def _check_tokens_apart(probe: Probe) -> None:
    (x,) = _sample(1, SEQ, probe.head_dim)
    changed = x.clone()
    changed[3] += 1
    for before, after in zip(probe.rows(x), probe.rows(changed), strict=True):
        moved = ((before - after).abs().amax(1) > 1e-3).nonzero().flatten().tolist()
        if moved != [3]:
            raise Broken("tokens_mixed", tokens=moved)


def _check_positions_are_used(probe: Probe, pairs: Tensor) -> None:
    x = _firsts(pairs, SEQ, probe.head_dim)
    for near, later in zip(probe.rows(x, 0), probe.rows(x, 5), strict=True):
        if not _differ(near, later, probe):
            given = "start" if "start" in probe.names else "positions tensor"
            raise Broken("positions_unused", given=given)


def _sample(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _differ(a: Tensor, b: Tensor, probe: Probe) -> bool:
    return bool((a - b).abs().max() > 1e-3 * a.abs().max() + 8 * probe.noise)


# ---------------------------------------------------------- the matrices, and the pairs


def _matrices(probe: Probe) -> list[Tensor]:
    """The matrix at each of a few positions: ``(SEQ, head_dim, head_dim)``."""
    columns = [probe.rows(row.expand(SEQ, -1)) for row in torch.eye(probe.head_dim)]
    return [torch.stack(column, dim=-1) for column in zip(*columns, strict=True)]


def _partners(matrix: Tensor) -> Tensor | None:
    """Pairs by what is not zero off the diagonal, or None if they overlap."""
    for least in (1e-14, 1e-6):  # a dense product leaves rounding where zeros should be
        joined = matrix.abs().amax(0) > least
        joined = (joined | joined.T) & ~torch.eye(len(joined), dtype=torch.bool)
        if joined.sum(1).max() <= 1:
            return joined.triu().nonzero()
    return None


def _moved_or_mixed(matrix: Tensor, matrices: list[Tensor]) -> Broken:
    """Why features meet more than one other: moved by the way, or mixed."""
    order = _reordering(matrix[0])
    if order is None or _partners(matrix[:, order.argsort()]) is None:
        return Broken("pairs_overlap")
    plain = torch.arange(len(order))
    if torch.equal(order, interleaved_to_half(plain)):
        orders = [_reordering(each[0]) for each in matrices]
        alike = all(each is not None and each.equal(order) for each in orders)
        both = alike and len(matrices) == 2
        return Broken("both_cat" if both else "cat_after_interleaved")
    if torch.equal(order, half_to_interleaved(plain)):
        return Broken("stack_after_half")
    return Broken("reordered", order=", ".join(map(str, order[:4].tolist())))


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
        return bool((x - y).abs().max() <= 1e-4 + 4 * probe.noise)

    if equal(aa, bb) and equal(ab, -ba):
        return
    if "overwritten" in probe.faults:
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


# ------------------------------------------------- one vector at thousands of positions


def _firsts(pairs: Tensor, seq: int, head_dim: int) -> Tensor:
    """Rows with 1 at the first feature of each pair: what comes out is cos and sin."""
    x = torch.zeros(seq, head_dim)
    x[:, pairs[:, 0]] = 1.0
    return x


def _polar(probe: Probe, pairs: Tensor, seq: int, start: int = 0) -> list[Tensor]:
    """Where the hands point: complex ``(seq, pairs)`` for each output."""
    outputs = probe.rows(_firsts(pairs, seq, probe.head_dim), start)
    return [torch.complex(out[:, pairs[:, 0]], out[:, pairs[:, 1]]) for out in outputs]


def _longest(probe: Probe, pairs: Tensor) -> list[Tensor]:
    """Where the hands point along the longest sequence that the function takes."""
    long = _polar(probe, pairs, SEQ)
    seq = 32
    while seq <= LONGEST:
        started = time.process_time()
        try:
            tried = _polar(probe, pairs, seq)
        except CannotProbe:  # past its longest table
            break
        if not all(out.isfinite().all() for out in tried):  # xPos has left float32
            break
        long = tried
        if time.process_time() - started > PATIENCE:
            break
        seq *= 2
    return long


def _hands(probe: Probe, pairs: Tensor, short: Tensor, long: Tensor) -> Hands:
    """Read one output; in a short call and in a long one, tokens must turn alike."""
    angles, lengths = long.angle(), long.abs()
    allowed = 1e-4 + 8 * probe.noise
    if wrap(short.angle() - angles[:SEQ]).abs().max() > allowed:
        raise Broken("length_sets_speed")
    if (short.abs() / lengths[:SEQ] - 1).abs().max() > allowed:
        raise Broken("length_sets_scale")
    noise = probe.noise + _check_lengths(lengths, probe)
    return Hands(pairs, angles, lengths, _speeds(angles, noise), noise)


def _growth(lengths: Tensor) -> Tensor:
    return (lengths[-1] / lengths[0]).log() / (len(lengths) - 1)


def _check_lengths(lengths: Tensor, probe: Probe) -> float:
    """Lengths may be constant, or grow evenly as xPos does; return their rounding."""
    position = torch.arange(len(lengths))[:, None]
    uneven = ((lengths / lengths[0]).log() - _growth(lengths) * position).abs()
    allowed = 0.01 + 8 * probe.noise  # tables in 16 bits are off by so much
    if uneven.max() <= allowed:
        return float(uneven.max()) if float(uneven.max()) > 1e-5 else 0.0
    wrong = (lengths / lengths[0] - 1).abs() > allowed
    first = int(wrong.any(1).nonzero()[0])
    if first >= SEQ:
        raise Broken("table_ends", first=first)
    alike = torch.allclose(lengths, lengths[:, :1].expand_as(lengths), rtol=1e-3)
    raise Broken("token_scaled" if alike else "cos_without_sin")


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
            if rule is not None and rule.fault:
                raise Broken(rule.fault)
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

    def like(position: Tensor) -> bool:
        gap = wrap(seen - speeds * position).abs()
        return bool((gap <= 0.05 + 16 * noise).all())

    if first >= SEQ and like(position.clamp(max=first - 1)):
        return Broken("clamped", last=first - 1, rows=first)
    if first >= 2 and like(position % first):
        return Broken("restarted", rows=first)
    angle = (position * speeds).abs().clamp_min(1e-9)
    error = (wrap(seen - position * speeds).abs() - 16 * noise) / angle
    for dtype, whole in ((torch.float16, 2048), (torch.bfloat16, 256)):
        if error[SEQ:].max() <= 1.5 * torch.finfo(dtype).eps:
            name = str(dtype).removeprefix("torch.")
            return Broken("positions_rounded", dtype=name, whole=whole, after=whole + 1)
    return Broken("uneven", first=first)


def _check_far(probe: Probe, hands: list[Hands]) -> None:
    """Where a position can be given, look far past the longest sequence."""
    for start in FAR:
        try:
            far = _polar(probe, hands[0].pairs, 1, start)
        except CannotProbe:  # past its longest table
            return
        for hand, out in zip(hands, far, strict=True):
            if not out.isfinite().all() or out.abs().min() < 1e-6:
                return
            gap = wrap(out[0].angle() - hand.angles[0] - hand.speeds * start).abs()
            of_speeds = 3 * hand.slack + 5e-7 * hand.speeds.abs()
            allowed = 0.01 + 8 * hand.noise + start * of_speeds
            if (gap > allowed).any():
                raise Broken("length_sets_speed")
