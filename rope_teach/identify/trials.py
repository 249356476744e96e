"""Hold a reading against inputs that are not as tame as those it was read from.

What a rotation does to equal tokens from position 0 on says how it is meant. Whether it
also does so where q and k, heads and sequences differ, where positions come in any
order, where memory is strided or there is a single token, is tried here: for each of
these the reading says what must come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rope_teach.identify.faults import Broken
from rope_teach.identify.probe import SEQ, CannotProbe, Maker, Probe
from rope_teach.identify.reading import Hands, turns, wrap

__all__ = ["try_hard"]

FAR = (124_114, 1_000_000)  # where a position can be given; no power of 2 divides it
ROWS = [[5, 0, 3, 3, 9, 1, 21], [2, 17, 6, 30, 4, 8, 11]]  # in no order, two alike
VIEWS: dict[str, Maker] = {
    "a transposed view": lambda x: x.transpose(0, -2).contiguous().transpose(0, -2),
    "a slice of wider rows": lambda x: F.pad(x, (3, 2), value=7.0)[..., 3:-2],
    "features two steps apart": lambda x: torch.stack([x, x + 7], -1)[..., 0],
}
NOWHERE = -(10**6)
SIZES = ((3, 3, 3), (5, 12, 10))  # sequences, heads, tokens: alike, then more of each


def try_hard(probe: Probe, hands: list[Hands]) -> list[str]:
    """Raise ``Broken`` where a prediction fails; return notes on what it refuses."""
    trial = _Trial(probe, hands)
    trial.holds("inputs_mixed", torch.arange(SEQ))
    for name, view in VIEWS.items():
        trial.holds("strides_ignored", torch.arange(SEQ), view=view, memory=name)
    trial.holds("one_token", torch.tensor([5 if probe.takes_positions else 0]))
    trial.holds("large_changed", torch.arange(SEQ), size=1000.0)
    for batch, heads, seq in SIZES:
        trial.holds(
            "other_sizes", torch.arange(seq), sizes=(batch, heads), seq=seq,
            batch=batch, n=heads,
        )  # fmt: skip
    notes = _try_gradient(trial)
    if probe.takes_positions:
        _try_positions(trial)
    if "positions" in probe.names and not probe.takes_tables:
        notes += _try_strange_positions(trial)
    if len(probe.inputs) == 2 and probe.subject.heads is None and "h" in probe.layout:
        seen = trial.holds("fewer_keys", torch.arange(SEQ), heads=(6, 3))
        notes += [] if seen else ["it fails where k has fewer heads than q"]
    trial.holds("history", torch.arange(SEQ))
    for fault in ("value_turned", "reused"):
        if fault in probe.faults:
            raise Broken(fault)
    return notes + ["it writes over its input"] * ("overwritten" in probe.faults)


@dataclass(frozen=True)
class _Trial:
    """A probe, what was read of it, and how far both may differ."""

    probe: Probe
    hands: list[Hands]
    seed: torch.Generator = field(
        default_factory=lambda: torch.Generator().manual_seed(0)
    )

    def holds(
        self,
        fault: str,
        positions: Tensor,
        *,
        view: Maker = lambda x: x,
        heads: tuple[int, int] | None = None,
        sizes: tuple[int, int] | None = None,
        size: float = 1.0,
        sure: bool = True,
        **values: Any,
    ) -> bool:
        """Whether the function takes it; ``Broken`` if what comes out is wrong.

        If it is not ``sure`` that the function takes such positions, only those of
        another row are ``Broken``.
        """
        given = [size * x for x in self.inputs(positions.shape[-1], heads, sizes)]
        try:
            outputs = self.probe.run(given, positions, view)
        except CannotProbe:
            return False
        both = zip(self.hands, given, strict=False)
        expected = [hand.rotate(x, positions) for hand, x in both]
        if all(map(self.equal, outputs, expected)):
            return True
        broken = self._by_content(outputs, expected)
        if fault not in ("history", "other_sizes"):  # these say more than a place
            broken = broken or self._by_place(given, positions, outputs)
        if sure:
            raise broken or Broken(fault, **values)
        if broken is not None and broken.name in ("first_row", "other_row"):
            raise broken
        return False

    def inputs(
        self,
        seq: int,
        heads: tuple[int, int] | None = None,
        sizes: tuple[int, int] | None = None,
    ) -> list[Tensor]:
        """Random q and k, different in every head, row and token where that may be."""
        subject, (batch, several) = self.probe.subject, self.probe.sizes
        if sizes:
            axes = zip("bh", sizes, strict=True)
            batch, several = (n if a in self.probe.layout else 1 for a, n in axes)
        heads = heads or subject.heads or (several, several)
        if subject.alike:
            heads = (1, 1)
        shapes = [(batch, own, seq, self.probe.head_dim) for own in heads]
        given = [torch.randn(shape, generator=self.seed) for shape in shapes]
        if subject.alike:
            return [given[0].expand(-1, several, -1, -1)]
        return given[: len(self.probe.inputs)]

    def equal(self, out: Tensor, expected: Tensor) -> bool:
        """Whether two tensors differ by no more than rounding explains."""
        allowed = 2e-3 + 16 * self.probe.noise + 8 * self.hands[0].noise
        scale = expected.abs().amax(-1, keepdim=True).clamp_min(1)
        return bool(((out - expected).abs() <= allowed * scale).all())

    def _by_content(
        self, outputs: Sequence[Tensor], expected: list[Tensor]
    ) -> Broken | None:
        """Name it where it is q and k that came to the wrong places."""
        if len(expected) < 2 or expected[0].shape != expected[1].shape:
            return None
        of_q, of_k = ([self.equal(out, x) for out in outputs] for x in expected)
        if of_k[0] and of_q[1]:
            return Broken("q_and_k_swapped")
        if all(of_q):
            return Broken("one_for_both", which="k", other="q")
        if all(of_k):
            return Broken("one_for_both", which="q", other="k")
        for out, own, other in zip(outputs, expected, expected[::-1], strict=True):
            from_other, from_own = (
                ((out - x).abs() < 1e-2).flatten(0, 2).all(0) for x in (other, own)
            )
            if (from_other & ~from_own).any():
                return Broken("crossed")
        return None

    def _by_place(
        self, given: list[Tensor], positions: Tensor, outputs: Sequence[Tensor]
    ) -> Broken | None:
        """Name it by the positions at which tokens seem to stand."""
        inputs = self.probe.inputs if self.probe.takes_positions else ()
        counted = torch.arange(positions.shape[-1])
        for which, x, out, hand in zip(
            inputs, given, outputs, self.hands, strict=False
        ):
            seen = _places(x, out, hand)
            meant = positions.expand(len(x), -1)[:, None].expand(seen.shape)
            by_head = (seen != seen[:, :1]).any()
            if torch.equal(seen, meant) or by_head or (seen == NOWHERE).any():
                continue
            for name, place in {
                "first_row": meant[:1],
                "other_row": meant.roll(1, 0),
                "negative_clamped": meant.clamp(min=0),
                "negative_mirrored": meant.abs(),
                "first_position": meant[..., :1] + counted,
                "offset_twice": meant + meant[..., :1],
                "counted": counted,
            }.items():
                if (seen == place).all():
                    return Broken(name, which=which)
            at, asked = seen[0, 0].tolist(), meant[0, 0].tolist()
            return Broken("other_places", at=at, which=which, given=asked)
        return None


def _places(x: Tensor, out: Tensor, hand: Hands) -> Tensor:
    """At which position each token seems to stand: ``(batch, heads, seq)``."""
    turn = turns(out, hand.pairs) / turns(x, hand.pairs)
    places = torch.arange(-64, 160)
    gap = wrap(turn.angle()[..., None, :] - hand.at(places).angle()).abs().amax(-1)
    best = gap.min(-1)
    return torch.where(best.values < 0.02, places[best.indices], NOWHERE)


def _try_gradient(trial: _Trial) -> list[str]:
    """Gradients must be turned back; return a note where none comes."""
    subject = trial.probe.subject
    if subject.heads or subject.alike:  # a layer: its copy runs without gradients
        return []
    positions = torch.arange(SEQ)
    given = [x.requires_grad_() for x in trial.inputs(SEQ)]
    weights = trial.inputs(SEQ)
    try:
        with torch.enable_grad():
            outputs = trial.probe.run(given, positions)
            found = torch.autograd.grad(outputs, given, [w.double() for w in weights])
    except CannotProbe:  # it is not for gradients
        return []
    except RuntimeError:  # of autograd
        return ["no gradient comes back: it is detached, or made without autograd"]
    both = zip(trial.hands, weights, strict=False)
    expected = [hand.rotate(w, positions, back=True) for hand, w in both]
    if not all(map(trial.equal, found, expected)):
        raise Broken("gradient")
    return []


# ------------------------------------------------------------------------- positions


def _try_positions(trial: _Trial) -> None:
    """Positions in any order, one row a sequence, and far ones."""
    probe = trial.probe
    if "start" in probe.names:
        trial.holds("positions_not_followed", torch.arange(5, 5 + SEQ))
    else:
        rows = torch.tensor(ROWS).clamp(max=len(trial.hands[0].angles) - 1)
        trial.holds("positions_not_followed", rows[0])
        # All that a careless cache may have for a key is as it was.
        trial.holds("history", rows[0, [0, 4, 5, 2, 1, 3, 6]])
        looked_up = not probe.takes_tables or "positions" in probe.names
        if "b" in probe.layout and (looked_up or probe.table_axes > 2):
            usual = probe.takes_tables or probe.position_axes == 2
            sure = usual and probe.layout != "sbhd"
            trial.holds("rows_not_followed", rows, sure=sure)
            if not probe.takes_tables:  # as in decoding
                trial.holds("rows_not_followed", rows[:, :1], sure=sure)
    if "positions_of_k" in probe.names and not probe.takes_tables:
        _check_positions_of_k(trial)
    if not probe.takes_tables:
        _check_far(trial)


def _check_positions_of_k(trial: _Trial) -> None:
    """Where k has positions of its own, each must follow its own."""
    given, positions = trial.inputs(SEQ), torch.arange(SEQ)
    try:
        outputs = trial.probe.renewed(ahead=3).run(given, positions)
    except CannotProbe:
        return
    both = zip(trial.hands, given, (positions, positions + 3), strict=True)
    expected = [hand.rotate(x, at) for hand, x, at in both]
    for which, out, right in zip("qk", outputs, expected, strict=True):
        if not trial.equal(out, right):
            other = {"q": "k", "k": "q"}[which]
            raise Broken("positions_of_other", which=which, other=other)


def _check_far(trial: _Trial) -> None:
    """Where a position can be given, look far past the longest sequence."""
    for start in FAR:
        x = trial.inputs(1)
        try:
            outputs = trial.probe.run(x, torch.tensor([start]))
        except CannotProbe:  # past its longest table
            return
        for given, out, hand in zip(x, outputs, trial.hands, strict=False):
            turned = turns(out, hand.pairs)
            if not out.isfinite().all() or turned.abs().max() < 1e-6:
                if hand.growth.abs().max() > 1e-5:  # xPos has left float32
                    return
                last = len(hand.angles) - 1
                raise Broken("not_finite_far", at=start, last=last)
            angle = (turned / turns(given, hand.pairs)).angle()
            gap = wrap(angle - hand.angles[0] - hand.speeds * start).abs()
            of_speeds = 3 * hand.slack + 5e-7 * hand.speeds.abs()
            if (gap > 0.01 + 64 * hand.noise + start * of_speeds).any():
                raise _why_far(trial, x, outputs, hand, angle, start)


def _why_far(
    trial: _Trial,
    x: list[Tensor],
    outputs: Sequence[Tensor],
    hand: Hands,
    angle: Tensor,
    start: int,
) -> Broken:
    """Why a far position is not turned as near ones say."""
    for rows in (2**n for n in range(13, 20)):
        wanted = hand.at(torch.tensor(start % rows)).angle()
        if wrap(angle - wanted).abs().max() < 0.02:
            return Broken("restarted", rows=rows)
    if all(map(trial.equal, trial.probe.run(x, torch.tensor([start + 1])), outputs)):
        return Broken("stuck", at=start, next=start + 1)
    pair = trial.probe.run(
        [x.expand(-1, -1, 2, -1) for x in x], start + torch.arange(2)
    )
    seen = turns(pair[0][0, 0], hand.pairs)
    if wrap((seen[1] / seen[0]).angle() - hand.speeds).abs().max() < 0.02:
        return Broken("overflow", which=start)
    return Broken("length_sets_speed")


def _try_strange_positions(trial: _Trial) -> list[str]:
    """Negative positions must turn back, or be refused; so with fractions."""
    probe, notes = trial.probe, []
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
