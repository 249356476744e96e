"""What ``identify`` found: data, and a text to read aloud."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rope_teach.identify.faults import Broken, meaning

__all__ = ["Report", "grouped", "ranges"]


@dataclass
class Report:
    """What :func:`identify` found; ``str`` of it is the report to read aloud.

    ``law`` is None for a correct RoPE; otherwise it is the law broken, ``cause`` the
    likely reason, ``mend`` what to change, and ``fault`` the name of all that in
    ``FAULTS``. What could not be read is None.

    ``pairs`` has the two features of each hand, fastest first; ``inv_freq`` their
    speeds in radians per token, without sign. ``scaling`` and ``parameters`` name a
    function of ``rope_teach.frequencies`` and its arguments. ``output_order`` is the
    order in which features of q and k both come out, if it is not the one in which
    they went in. ``guessed`` has what nobody said: ``"call"``, ``"layout"``. Of a
    model, ``layers`` are those that this report is about, and ``others`` the reports of
    all further kinds of layers. Lesson 20.
    """

    name: str
    call: str
    head_dim: int
    layout: str
    pairing: str | None = None
    pairs: tuple[tuple[int, int], ...] = ()
    rotary_dim: int | None = None
    rotary_offset: int | None = None
    output_order: tuple[int, ...] | None = None
    sign: int | None = None
    base: float | None = None
    scaling: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    attention_factor: float = 1.0
    xpos_scale_base: float | None = None
    xpos_origin: float | None = None
    position_offset: float | None = None
    inv_freq: tuple[float, ...] = ()
    angle_dtype: str | None = None
    longest: int | None = None
    fault: str | None = None
    law: str | None = None
    cause: str | None = None
    mend: str | None = None
    notes: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    others: tuple[Report, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether no law is broken, in no kind of layer."""
        return self.law is None and all(other.correct for other in self.others)

    @property
    def rotates(self) -> bool:
        """Whether anything turns: some layers of some models have no rotation."""
        return bool(self.pairs) or self.law is not None

    def note(self, *notes: str) -> None:
        """Add what a reader should know, and no law says."""
        self.notes += notes

    def breaks(self, broken: Broken) -> None:
        """Enter the law that is broken, its cause and its mend."""
        self.fault, (self.law, self.cause, self.mend) = broken.name, broken.fault

    def as_dict(self) -> dict[str, Any]:
        """The data, as plain lists and numbers."""
        return asdict(self)

    def json(self) -> str:
        """The data as JSON."""
        return json.dumps(self.as_dict(), indent=2)

    def __str__(self) -> str:
        if not self.others:
            return "\n".join(
                [f"{self._called()}: {self._verdict()}.", *self._details()]
            )
        kinds = [self, *self.others]
        right = "all correct" if self.correct else "not all correct"
        lines = [f"{self._called()}: {len(kinds)} kinds of layers, {right}."]
        lines += [f"  layers {ranges(kind.layers)}: {kind.brief()}" for kind in kinds]
        for kind in kinds:
            details = kind._details()
            lines += [f"layers {ranges(kind.layers)}:", *details] if details else []
        return "\n".join(lines)

    def brief(self) -> str:
        """One line: the pairing, the base and the scaling, or the law broken."""
        if not self.rotates:
            return "no rotation"
        if self.law is not None:
            return f"breaks {self.law}: {self.cause}"
        words = [self.pairing, "clockwise" if self.sign == -1 else None]
        words += [f"{self.rotary_dim} of {self.head_dim}"]
        words += [f"base {self.base:.7g}" if self.base else None, self.scaling]
        return ", ".join(word for word in words if word)

    def _called(self) -> str:
        return f"{self.name}, called with ({self.call})"

    def _verdict(self) -> str:
        if not self.rotates:
            return "no rotation"
        return "a correct RoPE" if self.law is None else "it breaks a law"

    def _details(self) -> list[str]:
        lines = []
        if self.law is not None:
            lines += [
                f"  law broken      {self.law}: {meaning(self.law)}",
                f"  likely cause    {self.cause}",
                f"  mend            {self.mend}",
            ]
            lines += [f"  guessed         {self._guesses()}"] if self.guessed else []
        lines += [f"  {title:<15} {text}" for title, text in self._facts().items()]
        return [*lines, *(f"  note: {note}." for note in self.notes)]

    def _guesses(self) -> str:
        said = {"call": f'call="{self.call}"', "layout": f'layout="{self.layout}"'}
        given = " and ".join(said[name] for name in self.guessed)
        return f"{given}. If that is wrong, say how: identify(f, call=..., layout=...)"

    def _facts(self) -> dict[str, str]:
        """The lines of the report that have something to say."""
        facts: dict[str, str] = {}
        if self.pairing is not None and self.rotary_dim is not None:
            pairs = ", ".join(map(str, self.pairs[:3]))
            more = ", ..." if len(self.pairs) > 3 else ""
            first = self.rotary_offset or 0
            facts["pairing"] = f"{self.pairing}: {pairs}{more}"
            facts["rotated"] = f"{self.rotary_dim} of {self.head_dim} features"
            facts["rotated"] += f", from feature {first} on" if first else ""
            if self.output_order:
                shown = ", ".join(map(str, self.output_order[:4]))
                facts["come out as"] = f"features {shown}, ... of q and k alike"
            seq = self.layout.index("s")
            facts["axes of x"] = f"{self.layout}: positions run along axis {seq}"
        if self.sign is not None:
            clock = "+, counter-clockwise" if self.sign > 0 else "-, clockwise"
            facts["sign"] = clock
        if self.base is not None:
            facts["base"] = f"{self.base:.7g}"
        if self.scaling is not None:
            given = ", ".join(f"{k} {v}" for k, v in self.parameters.items())
            facts["scaling"] = f"{self.scaling} ({given})" if given else self.scaling
        if self.attention_factor != 1:
            facts["cos and sin"] = f"times {self.attention_factor:.5g}"
        if self.xpos_scale_base is not None:
            scale, origin = self.xpos_scale_base, self.xpos_origin
            facts["xPos"] = f"scale base {scale:g}, origin {origin:g}"
        if self.position_offset is not None:
            facts["first position"] = f"{self.position_offset:g}"
        if self.angle_dtype is not None:
            facts["angles"] = f"{self.angle_dtype}; tried to position {self.longest}"
        return facts


def grouped(layers: list[Report]) -> Report:
    """One report of a model: layers that rotate alike together, the commonest first."""
    kinds: list[Report] = []
    for layer in layers:
        for kind in kinds:
            if _alike(kind, layer):
                kind.layers += layer.layers
                break
        else:
            kinds.append(layer)
    kinds.sort(key=lambda kind: (not kind.rotates, -len(kind.layers)))
    first, *others = kinds
    first.others = tuple(others)
    return first


def _alike(a: Report, b: Report) -> bool:
    apart = "name", "layers", "others", "longest"
    mine = [f.name for f in fields(Report) if f.name not in apart]
    return all(getattr(a, name) == getattr(b, name) for name in mine)


def ranges(layers: tuple[str, ...]) -> str:
    """``("0", "1", "2", "5")`` as ``"0-2, 5"``."""
    runs: list[list[str]] = []
    for layer in layers:
        last = runs[-1][-1] if runs else ""
        if layer.isdigit() and last.isdigit() and int(layer) == int(last) + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(r[0] if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
