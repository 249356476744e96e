"""Interactive figures with sliders: self-contained HTML, SVG and JavaScript.

They run in JupyterLab, in a live deck and in a static deck, without a kernel or a
network. A static figure with the same message accompanies each. The numbers come
from the same formulas as the package's; `tests/test_interactive.py` moves the
sliders in a real browser and compares.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from string import Template
from typing import Any

__all__ = ["Interactive", "two_arrows", "clock_bank"]


class Interactive:
    """An interactive figure for one cell's output; ``alt`` says what it shows."""

    def __init__(self, name: str, alt: str, body: str, script: str) -> None:
        self.name, self.alt, self.body, self.script = name, alt, body, script

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": self.alt, "text/html": self.html()}

    def html(self) -> str:
        """Return the figure as one HTML element with its script."""
        return PAGE.substitute(
            name=self.name,
            alt=html.escape(self.alt),
            body=self.body,
            script=self.script,
        )


# Keys pressed on a slider must not reach the deck, where they would turn the page.
PAGE = Template(
    """<figure id="$name" class="rope-interactive" aria-label="$alt"
 style="margin:0;background:#fff;color:#1a1a1a;padding:.4em;font-size:20px">
$body
<script>
(() => {
  const root = document.currentScript ? document.currentScript.closest("figure")
    : [...document.querySelectorAll("#$name")].pop();
  const find = (selector) => root.querySelector(selector);
  const value = (name) => Number(find("[name=" + name + "]").value);
  const show = (name, text) => { find("[data-show=" + name + "]").textContent = text; };
$script
  root.querySelectorAll("input").forEach((input) => {
    input.addEventListener("input", draw);
    input.addEventListener("keydown", (event) => event.stopPropagation());
  });
  draw();
})();
</script></figure>"""
)


def slider(name: str, label: str, low: float, high: float, value: float) -> str:
    """Return a labelled range input that shows its value."""
    return (
        f'<label style="display:block">{html.escape(label)}: '
        f'<output data-show="{name}">{value:g}</output><br>'
        f'<input type="range" name="{name}" aria-label="{html.escape(label)}" '
        f'min="{low:g}" max="{high:g}" value="{value:g}" style="width:18em"></label>'
    )


def two_arrows(
    q: tuple[float, float] = (1.0, 0.4),
    k: tuple[float, float] = (0.8, -0.5),
    inv_freq: float = 0.2,
) -> Interactive:
    """A query and a key that turn with their positions, and their dot product.

    One slider moves both tokens along the text, the other moves the key away from
    the query. Only the second changes the dot product. Lesson 04.
    """
    body = (
        '<div style="display:flex;gap:2em;align-items:center;flex-wrap:wrap">'
        '<svg viewBox="-1.5 -1.5 3 3" width="400" height="400" role="img" '
        'aria-label="query and key arrows">'
        '<circle r="1.2" fill="none" stroke="#bbb" stroke-width=".01"/>'
        '<line data-arrow="q" stroke="#0072B2" stroke-width=".06"/>'
        '<line data-arrow="k" stroke="#D55E00" stroke-width=".06" '
        'stroke-dasharray=".12 .05"/>'
        '<text data-name="q" fill="#0072B2" font-size=".2">q</text>'
        '<text data-name="k" fill="#B04A00" font-size=".2">k</text></svg><div>'
        + slider("shift", "Move both tokens: position of the query", 0, 100, 0)
        + slider("distance", "Move the key ahead: distance n - m", 0, 30, 3)
        + '<p>q at <b data-show="m"></b>, k at <b data-show="n"></b></p>'
        '<p style="font-size:1.3em">dot product: <b data-show="dot" role="status"></b>'
        "</p></div></div>"
    )
    script = f"""  const q = {json.dumps(q)}, k = {json.dumps(k)}, step = {inv_freq};
  const turn = ([a, b], t) => [a * Math.cos(t) - b * Math.sin(t),
    a * Math.sin(t) + b * Math.cos(t)];
  const put = (name, [a, b]) => {{
    const line = find("[data-arrow=" + name + "]");
    const text = find("[data-name=" + name + "]");
    line.setAttribute("x2", a); line.setAttribute("y2", -b);
    text.setAttribute("x", 1.2 * a - 0.05); text.setAttribute("y", 0.06 - 1.2 * b);
  }};
  const draw = () => {{
    const m = value("shift"), n = m + value("distance");
    const a = turn(q, m * step), b = turn(k, n * step);
    put("q", a); put("k", b);
    show("shift", m); show("distance", n - m); show("m", m); show("n", n);
    show("dot", (a[0] * b[0] + a[1] * b[1]).toFixed(6));
  }};"""
    alt = (
        "Interactive: arrows of a query and a key. Moving both tokens along the text "
        "turns both arrows and leaves their dot product unchanged; moving the key away "
        "from the query changes it."
    )
    return Interactive("two-arrows", alt, body, script)


def clock_bank(inv_freq: Sequence[float], last: int = 200) -> Interactive:
    """A row of clock hands, one per frequency, and a slider for the position.

    Fast hands tell nearby positions apart, slow hands distant ones. Lessons 02
    and 08.
    """
    hands = [float(f) for f in inv_freq]
    dials = "".join(
        f'<svg viewBox="-1.1 -1.1 2.2 2.2" width="112" height="140" role="img" '
        f'aria-label="hand {i}"><circle r="1" fill="none" stroke="#767676" '
        f'stroke-width=".03"/><line data-hand="{i}" x2="1" y2="0" stroke="#0072B2" '
        f'stroke-width=".09" stroke-linecap="round"/></svg>'
        for i in range(len(hands))
    )
    names = ", ".join(f"hand {i}: {2 * math.pi / f:,.0f}" for i, f in enumerate(hands))
    body = (
        f'<div style="display:flex;flex-wrap:wrap;gap:.5em">{dials}</div>'
        + slider("position", "Position m, in tokens", 0, last, 0)
        + f"<p>Tokens for a full turn: {names}</p>"
    )
    script = f"""  const hands = {json.dumps(hands)};
  const draw = () => {{
    const m = value("position");
    show("position", m);
    hands.forEach((step, i) => {{
      const hand = find("[data-hand='" + i + "']");
      hand.setAttribute("x2", Math.cos(m * step));
      hand.setAttribute("y2", -Math.sin(m * step));
    }});
  }};"""
    alt = (
        f"Interactive: {len(hands)} clock hands. As the position grows, hand 0 turns "
        "fastest and each further hand turns more slowly."
    )
    return Interactive("clock-bank", alt, body, script)
