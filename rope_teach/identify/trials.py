"""Hold a reading against inputs that are not as tame as those it was read from.

What a rotation does to equal tokens from position 0 on says how it is meant. Whether it
also does so where q and k, heads and sequences differ, where positions come in any
order, where memory is strided or there is a single token, is tried here: for each of
these the reading says what must come out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rope_teach.identify.faults import Broken
from rope_teach.identify.probe import SEQ, CannotProbe, Maker, Probe
from rope_teach.identify.reading import Hands, wrap

__all__ = ["try_hard"]

FAR = (124_114, 1_000_000)  # where a position can be given; no power of 2 divides it
ROWS = [[5, 0, 3, 3, 9, 1, 21], [2, 17, 6, 30, 4, 8, 11]]  # in no order, two alike


def try_hard(probe: Probe, hands: list[Hands]) -> list[str]:
    """Raise ``Broken`` where a prediction fails; return notes on what it refuses."""
    trial = _Trial(probe, hands)
    trial.holds("inputs_mixed", torch.arange(SEQ))
    for name, view in VIEWS.items():
        trial.holds("strides_ignored", torch.arange(SEQ), view=view, memory=name)
    trial.holds("one_token", torch.tensor([5 if probe.takes_positions else 0]))
    notes = []
    if probe.takes_positions:
        _try_positions(trial)
        notes += _try_strange_positions(trial)
    if len(probe.inputs) == 2 and probe.subject.heads is None and "h" in probe.layout:
        seen = trial.holds("fewer_keys", torch.arange(SEQ), heads=(6, 3))
        notes += [] if seen else ["it fails where k has fewer heads than q"]
    trial.holds("history", torch.arange(SEQ))
    return notes


class _Trial:
    """A probe, what was read of it, and how far both may differ."""

    def __init__(self, probe: Probe, hands: list[Hands]) -> None:
        self.probe, self.hands = probe, hands
        self.seed = torch.Generator().manual_seed(0)

    def holds(
        self,
        fault: str,
        positions: Tensor,
        *,
        view: Maker = lambda x: x,
        heads: tuple[int, int] | None = None,
        sure: bool = True,
        **values: str,
    ) -> bool:
        """Whether the function takes it; ``Broken`` if what comes out is wrong.

        If it is not ``sure`` that the function takes such positions, only those of
        another row are ``Broken``.
        """
        given = self.inputs(positions.shape[-1], heads)
        try:
            outputs = self.probe.run(given, positions, view)
        except CannotProbe:
            return False
        expected = [
            hand.rotate(x, positions)
            for hand, x in zip(self.hands, given, strict=False)
        ]
        if all(map(self.equal, outputs, expected)):
            return True
        for named in (self._by_content, self._by_place):
            broken = named(given, positions, outputs, expected)
            if broken is not None and (sure or broken.name in OF_OTHER_ROWS):
                raise broken
        if sure:
            raise Broken(fault, **values)
        return False

    def inputs(self, seq: int, heads: tuple[int, int] | None = None) -> list[Tensor]:
        """Random q and k, different in every head, row and token where that may be."""
        subject, (batch, several) = self.probe.subject, self.probe.sizes
        heads = heads or subject.heads or (several, several)
        size = (batch, 1 if subject.alike else heads[0], seq, self.probe.head_dim)
        q = torch.randn(size, generator=self.seed)
        if subject.alike:
            q = q.expand(-1, several, -1, -1)
        if subject.alike or len(self.probe.inputs) == 1:
            return [q]
        return [q, torch.randn(batch, heads[1], *size[2:], generator=self.seed)]

    def equal(self, out: Tensor, expected: Tensor) -> bool:
        """Whether two tensors differ by no more than rounding explains."""
        allowed = 2e-3 + 16 * self.probe.noise + 8 * self.hands[0].noise
        scale = expected.abs().amax(-1, keepdim=True).clamp_min(1)
        return bool(((out - expected).abs() <= allowed * scale).all())

    def _by_content(
        self,
        given: list[Tensor],
        positions: Tensor,
        outputs: Sequence[Tensor],
        expected: list[Tensor],
    ) -> Broken | None:
        """Name it where it is q and k that came to the wrong places."""
        if len(expected) < 2 or expected[0].shape != expected[1].shape:
            return None
        (q, k), (to_q, to_k) = expected, outputs
        if self.equal(to_q, k) and self.equal(to_k, q):
            return Broken("q_and_k_swapped")
        if self.equal(to_q, q) and self.equal(to_k, q):
            return Broken("one_for_both", which="k", other="q")
        if self.equal(to_k, k) and self.equal(to_q, k):
            return Broken("one_for_both", which="q", other="k")
        for own, other, out in ((q, k, to_q), (k, q, to_k)):
            from_other, from_own = (
                ((out - x).abs() < 1e-2).flatten(0, 2).all(0) for x in (other, own)
            )
            if (from_other & ~from_own).any():
                return Broken("crossed")
        return None

    def _by_place(
        self,
        given: list[Tensor],
        positions: Tensor,
        outputs: Sequence[Tensor],
        expected: list[Tensor],
    ) -> Broken | None:
        """Name it by the positions at which tokens seem to stand."""
        if not self.probe.takes_positions:
            return None
        seq = positions.shape[-1]
        for which, x, out, hand in zip(
            self.probe.inputs, given, outputs, self.hands, strict=False
        ):
            seen = _places(x, out, hand)
            meant = positions.expand(len(x), seq)[:, None].expand(seen.shape)
            by_head = (seen != seen[:, :1]).any()
            if torch.equal(seen, meant) or by_head or (seen == NOWHERE).any():
                continue
            for name, place in {
                "first_row": meant[:1].expand_as(meant),
                "other_row": meant.roll(1, 0),
                "negative_clamped": meant.clamp(min=0),
                "negative_mirrored": meant.abs(),
                "first_position": meant[..., :1] + torch.arange(seq),
                "offset_twice": meant + meant[..., :1],
                "counted": torch.arange(seq).expand_as(meant),
            }.items():
                if torch.equal(seen, place):
                    return Broken(name, which=which)
            return Broken("other_places", at=seen[0, 0].tolist(), which=which,
                          given=meant[0, 0].tolist())  # fmt: skip
        return None


NOWHERE = -(10**6)
OF_OTHER_ROWS = "first_row", "other_row"


def _places(x: Tensor, out: Tensor, hand: Hands) -> Tensor:
    """At which position each token seems to stand: ``(batch, heads, seq)``."""
    a, b = hand.pairs.T
    turn = torch.complex(out[..., a], out[..., b]) / torch.complex(x[..., a], x[..., b])
    places = torch.arange(-64, 160)
    wanted = hand.at(places)
    gap = wrap(turn.angle()[..., None, :] - wanted.angle()).abs().amax(-1)
    best = gap.min(-1)
    return torch.where(best.values < 0.02, places[best.indices], NOWHERE)


# ------------------------------------------------------------------------- positions


def _try_positions(trial: _Trial) -> None:
    """Positions in any order, one row a sequence, and far ones."""
    probe, longest = trial.probe, len(trial.hands[0].angles)
    if "start" in probe.names:
        trial.holds("positions_not_followed", torch.arange(5, 5 + SEQ))
    else:
        rows = torch.tensor(ROWS).clamp(max=longest - 1)
        trial.holds("positions_not_followed", rows[0])
        if "b" in probe.layout:
            _try_rows(trial, rows)
    if not probe.takes_tables:
        _check_far(trial)


def _try_rows(trial: _Trial, rows: Tensor) -> None:
    """Positions of their own for each sequence, if it takes them in any form."""
    probe = trial.probe
    if probe.takes_tables and probe.table_axes == 2 and "positions" not in probe.names:
        return
    rows_are_usual = probe.takes_tables or probe.position_axes == 2
    sure = rows_are_usual and probe.layout != "sbhd"
    trial.holds("rows_not_followed", rows, sure=sure)


def _check_far(trial: _Trial) -> None:
    """Where a position can be given, look far past the longest sequence."""
    probe = trial.probe
    for start in FAR:
        x = trial.inputs(1)
        try:
            outputs = probe.run(x, torch.tensor([start]))
        except CannotProbe:  # past its longest table
            return
        for given, out, hand in zip(x, outputs, trial.hands, strict=False):
            a, b = hand.pairs.T
            turned = torch.complex(out[..., a], out[..., b])
            if not out.isfinite().all() or turned.abs().max() < 1e-6:
                return
            turn = turned / torch.complex(given[..., a], given[..., b])
            gap = wrap(turn.angle() - hand.angles[0] - hand.speeds * start).abs()
            of_speeds = 3 * hand.slack + 5e-7 * hand.speeds.abs()
            allowed = 0.01 + 64 * hand.noise + start * of_speeds
            if (gap > allowed).any():
                raise _why_far(probe, x, outputs, hand, turn, start)


def _why_far(
    probe: Probe,
    x: list[Tensor],
    outputs: Sequence[Tensor],
    hand: Hands,
    turn: Tensor,
    start: int,
) -> Broken:
    """Why a far position is not turned as near ones say."""
    for rows in (2**n for n in range(13, 20)):
        wanted = hand.at(torch.tensor(start % rows))
        if wrap(turn.angle() - wanted.angle()).abs().max() < 0.02:
            return Broken("restarted", rows=rows)
    after = probe.run(x, torch.tensor([start + 1]))
    if all(
        torch.allclose(a, b, atol=1e-4) for a, b in zip(outputs, after, strict=True)
    ):
        return Broken("stuck", at=start, next=start + 1)
    return Broken("length_sets_speed")


def _try_strange_positions(trial: _Trial) -> list[str]:
    """Negative positions must turn back, or be refused; so with fractions."""
    probe = trial.probe
    if probe.takes_tables or "positions" not in probe.names:
        return []
    notes = []
    try:
        trial.holds("negative_wrapped", torch.arange(SEQ) - 3)
    except Broken as broken:
        if broken.name in ("negative_clamped", "negative_mirrored"):
            raise
        if not probe.subject.keeps_state:  # it makes its table anew, of no set length
            raise Broken("negative_wrapped") from None
        notes.append("negative positions index its table from the end")
    if probe.noise > 1e-3:  # 16 bits cannot tell
        return notes
    x = trial.inputs(1)
    try:
        between, whole = (probe.run(x, torch.tensor([at])) for at in (2.5, 2.0))
    except CannotProbe:
        return notes
    if all(map(trial.equal, between, whole)):
        notes.append("fractions of positions are cut off")
    return notes


# ---------------------------------------------------------------------- memory


def _transposed(x: Tensor) -> Tensor:
    """The same values, with the first two axes the other way round in memory."""
    return x.transpose(0, -2).contiguous().transpose(0, -2)


def _in_wider_rows(x: Tensor) -> Tensor:
    """A slice of a wider tensor: an offset, and gaps between rows."""
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 5), 7.0)
    wide[..., 3:-2] = x
    return wide[..., 3:-2]


def _every_second(x: Tensor) -> Tensor:
    """Features two steps apart in memory."""
    return torch.stack([x, torch.full_like(x, 7.0)], -1)[..., 0]


VIEWS: dict[str, Maker] = {
    "a transposed view": _transposed,
    "a slice of wider rows": _in_wider_rows,
    "features two steps apart": _every_second,
}
