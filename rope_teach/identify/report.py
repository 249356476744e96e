"""What ``identify`` found: data, and a text to read aloud."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rope_teach.identify.faults import meaning

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """What :func:`identify` found; ``str`` of it is the report to read aloud.

    ``law`` is None for a correct RoPE; otherwise it is the law broken, ``cause`` the
    likely reason, ``mend`` what to change, and ``fault`` the name of all that in
    ``FAULTS``. What could not be read is None.

    ``pairs`` has the two features of each hand, fastest first; ``inv_freq`` their
    speeds in radians per token, without sign. ``scaling`` and ``parameters`` name a
    function of ``rope_teach.frequencies`` and its arguments. Lesson 20.
    """

    name: str
    call: str
    head_dim: int
    layout: str
    pairing: str | None = None
    pairs: tuple[tuple[int, int], ...] = ()
    rotary_dim: int | None = None
    rotary_offset: int | None = None
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

    @property
    def correct(self) -> bool:
        """Whether no law is broken."""
        return self.law is None

    def as_dict(self) -> dict[str, Any]:
        """The data, as plain lists and numbers."""
        return asdict(self)

    def json(self) -> str:
        """The data as JSON."""
        return json.dumps(self.as_dict(), indent=2)

    def __str__(self) -> str:
        verdict = "a correct RoPE" if self.correct else "it breaks a law"
        lines = [f"{self.name}, called with ({self.call}): {verdict}."]
        if self.law is not None:
            lines += [
                f"  law broken      {self.law}: {meaning(self.law)}",
                f"  likely cause    {self.cause}",
                f"  mend            {self.mend}",
            ]
        lines += [f"  {title:<15} {text}" for title, text in self._facts().items()]
        return "\n".join([*lines, *(f"  note: {note}." for note in self.notes)])

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
