"""What ``identify`` found: data, and a text to read aloud."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rope_teach.identify.faults import Broken, meaning

__all__ = ["Report", "grouped", "ranges"]


@dataclass
class Report:
    """What :func:`identify` found; ``str`` of it is the report to read aloud.

    ``law`` is None for a correct RoPE; otherwise it is the law broken, ``cause`` the
    likely reason, ``fix`` what to change, and ``fault`` the name of all that in
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
    fix: str | None = None
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
        """Enter the law that is broken, its cause and its fix."""
        self.fault, (self.law, self.cause, self.fix) = broken.name, broken.fault

    def as_dict(self) -> dict[str, Any]:
        """The data, as plain lists and numbers."""
        return asdict(self)

    def json(self) -> str:
        """The data as JSON."""
        return json.dumps(self.as_dict(), indent=2)

    def __str__(self) -> str:
        called = f"{self.name}, called with ({self.call})"
        if not self.others:
            right = "a correct RoPE" if self.law is None else "it breaks a law"
            verdict = right if self.rotates else "no rotation"
            return "\n".join([f"{called}: {verdict}.", *self._details()])
        kinds = [self, *self.others]
        right = "all correct" if self.correct else "not all correct"
        lines = [f"{called}: {len(kinds)} kinds of layers, {right}."]
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

    def _details(self) -> list[str]:
        facts = self._facts()
        if self.law is not None:
            said = {"call": f'call="{self.call}"', "layout": f'layout="{self.layout}"'}
            given = " and ".join(said[name] for name in self.guessed)
            how = "If that is wrong, say how: identify(f, call=..., layout=...)"
            facts = {
                "law broken": f"{self.law}: {meaning(self.law)}",
                "likely cause": self.cause,
                "fix": self.fix,
                "guessed": given and f"{given}. {how}",
                **facts,
            }
        lines = [f"  {title:<15} {text}" for title, text in facts.items() if text]
        return [*lines, *(f"  note: {note}." for note in self.notes)]

    def _facts(self) -> dict[str, Any]:
        """The lines of the report; those that have nothing to say are empty."""
        facts: dict[str, Any] = {}
        if self.pairing is not None and self.rotary_dim is not None:
            pairs, first = list(map(str, self.pairs[:3])), self.rotary_offset
            pairs += ["..."] if len(self.pairs) > 3 else []
            facts["pairing"] = f"{self.pairing}: {', '.join(pairs)}"
            facts["rotated"] = f"{self.rotary_dim} of {self.head_dim} features"
            facts["rotated"] += f", from feature {first} on" if first else ""
            if self.output_order:
                shown = ", ".join(map(str, self.output_order[:4]))
                facts["come out as"] = f"features {shown}, ... of q and k alike"
            axis = self.layout.index("s")
            facts["axes of x"] = f"{self.layout}: positions run along axis {axis}"
        given = ", ".join(f"{k} {v}" for k, v in self.parameters.items())
        scale, start = self.xpos_scale_base, self.position_offset
        factor, dtype = self.attention_factor, self.angle_dtype
        return facts | {
            "sign": {1: "+, counter-clockwise", -1: "-, clockwise"}.get(self.sign or 0),
            "base": self.base is not None and f"{self.base:.7g}",
            "scaling": self.scaling and f"{self.scaling} ({given})".replace(" ()", ""),
            "cos and sin": factor != 1 and f"times {factor:.5g}",
            "xPos": scale and f"scale base {scale:g}, origin {self.xpos_origin:g}",
            "first position": start is not None and f"{start:g}",
            "angles": dtype and f"{dtype}; tried to position {self.longest}",
        }


def grouped(layers: list[Report]) -> Report:
    """One report of a model: layers that rotate alike together, the commonest first."""
    kinds: list[Report] = []
    for layer in layers:
        same = next((kind for kind in kinds if _alike(kind, layer)), None)
        if same is None:
            kinds.append(layer)
        else:
            same.layers += layer.layers
    kinds.sort(key=lambda kind: (not kind.rotates, -len(kind.layers)))
    first, *others = kinds
    first.others = tuple(others)
    return first


def _alike(a: Report, b: Report) -> bool:
    same = {name: getattr(b, name) for name in ("name", "layers", "others", "longest")}
    return replace(a, **same) == b


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
