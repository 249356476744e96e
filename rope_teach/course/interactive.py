"""Interactive figures with sliders: self-contained HTML, SVG and JavaScript.

They run in JupyterLab, in decks and on web pages, without a kernel or a network.
Before the script has run, or where a page takes it out, a still picture with its
numbers is there: Python computes it, with the package's own functions, and the script
turns it into the live one. `tests/test_interactive.py` moves every slider in a real
browser and compares what it shows with the package.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, localcontext
from string import Template
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from rope_teach.axes import axial_frequencies, grid_positions
from rope_teach.course.plots import BLUE, GREEN, ORANGE, looks
from rope_teach.frequencies import (
    inverse_frequencies,
    llama3,
    ntk_aware,
    position_interpolation,
    wavelengths,
    yarn,
)
from rope_teach.rotation import rotate_pairs
from rope_teach.tables import angles, cos_sin

__all__ = [
    "Interactive",
    "two_arrows",
    "clock_bank",
    "pairing_orders",
    "base_and_wavelengths",
    "precision_by_position",
    "rules_on_hands",
    "patch_on_grid",
]

Attributes = dict[str, str | float]
INK, PALE = "#1a1a1a", "#ddd"
FACE: Attributes = {"fill": "none", "stroke": "#767676", "stroke_width": 2}
NAME: Attributes = {"font_size": 26, "font_weight": "bold"}
DASHES = {"--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}  # matplotlib's
ROUND: Attributes = {"stroke": BLUE, "stroke_linecap": "round"}


# ------------------------------------------------------------------- the shared frame


class Interactive:
    """An interactive figure for one cell's output.

    ``alt`` says what it shows; ``shown(name)`` returns the text that the still picture
    shows for a slider or a readout, so that a lesson can assert on it.
    """

    def __init__(
        self,
        name: str,
        alt: str,
        *,
        picture: str,
        size: tuple[int, int],
        controls: Sequence[str],
        readout: str,
        values: Mapping[str, str],
        script: str,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.alt, self.picture, self.size = name, alt, picture, size
        self.controls, self.readout, self.values = controls, readout, dict(values)
        self.script, self.data = script, data or {}

    def shown(self, name: str) -> str:
        """Return what the still picture shows for ``name``."""
        return self.values[name]

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": self.alt, "text/html": self.html()}

    def svg(self) -> str:
        """Return the still picture."""
        width, height = self.size
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' "
            f"font-family='sans-serif' font-size='20' text-anchor='middle' "
            f"fill='{INK}'>{self.picture}</svg>"
        )

    def html(self) -> str:
        """Return the figure as one HTML element with its script."""
        width, height = self.size
        live = {
            name: f'<b data-show="{name}">{html.escape(text)}</b>'
            for name, text in self.values.items()
        }
        return PAGE.substitute(
            name=self.name,
            focus=ORANGE,
            alt=html.escape(self.alt),
            still=quote(self.svg(), safe=" '=:/;,.()"),
            width=width,
            height=height,
            controls="".join(self.controls).format_map(live),
            readout=self.readout.format_map(live),
            data=json.dumps(self.data, separators=(",", ":")),
            script=self.script,
        )


# The still is an <img>, since a notebook that is not trusted loses its <svg> and
# <script>. Keys on a control must reach neither the deck, where they would turn the
# page, nor JupyterLab, where they are commands.
PAGE = Template(
    """<figure class="rope-interactive" data-figure="$name"
 style="margin:0;padding:.5em;background:#fff;color:#1a1a1a;color-scheme:light">
<style>
.rope-interactive .stage, .rope-interactive .sliders
 { display: flex; flex-wrap: wrap; gap: .3em 2em; align-items: center; }
.rope-interactive .sliders { align-items: end; }
.rope-interactive :is(svg, img) { display: block; width: 100%; height: auto; }
.rope-interactive .hands { flex: 1 1 22em; font-variant-numeric: tabular-nums; }
.rope-interactive .sliders label { flex: 1 1 9.5em; margin: 0; }
.rope-interactive :is(input, select)
 { width: 100%; box-sizing: border-box; font: inherit; margin: .2em 0; }
.rope-interactive :is(input, select):focus-visible
 { outline: 3px solid $focus; outline-offset: 2px; }
.rope-interactive p { margin: .3em 0; }
@media (prefers-reduced-motion: no-preference) {
 .rope-interactive .moves { transition: transform .35s; } }
</style>
<div class="stage"><div class="picture"
 style="flex:1 1 ${width}px;max-width:${width}px">
<img alt="$alt" width="$width" height="$height" src="data:image/svg+xml,$still"></div>
<div class="hands" data-lm-suppress-shortcuts><div class="sliders">$controls</div>
<div class="readout" role="status" aria-live="polite">$readout</div>
<p class="hint" style="font-size:.8em;color:#4d4d4d">A still picture. The sliders
move once this cell has run, with JavaScript on.</p></div></div>
<script>
(() => {
  const waiting = "figure[data-figure=$name]:not([data-live])";
  const root = document.currentScript?.closest("figure")
    ?? [...document.querySelectorAll(waiting)].pop();
  root.dataset.live = "";
  const find = (selector) => root.querySelector(selector);
  const part = (name) => find('[data-part="' + name + '"]');
  const number = (name) => Number(find("[name=" + name + "]").value);
  const show = (name, text) => {
    root.querySelectorAll("[data-show=" + name + "]").forEach(
      (place) => { place.textContent = text; });
    find("input[name=" + name + "]")?.setAttribute("aria-valuetext", text);
  };
  const short = (x) => typeof x === "number" ? String(+x.toFixed(2)) : x;
  const put = (name, changes) => Object.entries(changes).forEach(
    ([key, x]) => part(name).setAttribute(key, short(x)));
  const turn = (name, angle) => {
    const hand = part(name), at = (key) => Number(hand.getAttribute(key));
    const [length, to] = Number.isFinite(angle) ? [at("data-length"), angle] : [0, 0];
    put(name, { x2: at("x1") + length * Math.cos(to),
      y2: at("y1") - length * Math.sin(to) });
  };
  const grouped = (x) => x.toLocaleString("en-US", { maximumFractionDigits: 0 });
  const data = $data;
  const still = find("img"), box = find(".picture");
  box.innerHTML = decodeURIComponent(still.src.slice(still.src.indexOf(",") + 1));
  box.firstChild.setAttribute("role", "img");
  box.firstChild.setAttribute("aria-label", still.alt);
$script
  root.querySelectorAll("input, select").forEach((control) => {
    control.disabled = false;
    control.addEventListener("input", draw);
    control.addEventListener("keydown", (event) => event.stopPropagation());
  });
  find(".hint").textContent = "Drag a slider, or press arrow keys on it.";
  draw();
})();
</script></figure>"""
)


def slider(name: str, label: str, low: int, high: int, value: int) -> str:
    """Return a labelled range input; the value shown is added with the readouts."""
    return (
        f"<label>{html.escape(label)}: {{{name}}}"
        f'<input type="range" name="{name}" aria-label="{html.escape(label)}" '
        f'min="{low}" max="{high}" value="{value}" disabled></label>'
    )


def choice(name: str, label: str, options: Sequence[str], value: str) -> str:
    """Return a labelled list to choose from."""
    listed = "".join(
        f"<option{' selected' if option == value else ''}>{option}</option>"
        for option in options
    )
    return (
        f"<label>{html.escape(label)}:"
        f'<select name="{name}" disabled>{listed}</select></label>'
    )


def short(x: float) -> str:
    """Return a coordinate as the script writes it: two digits, no idle zeros."""
    return f"{round(x, 2) + 0.0:.2f}".rstrip("0").rstrip(".")


def steady(speeds: Sequence[float] | Tensor) -> list[float]:
    """Return twelve digits of each: the last ones differ from machine to machine."""
    return [float(f"{float(speed):.12g}") for speed in speeds]


def tag(kind: str, inside: str = "", /, **attributes: str | float) -> str:
    """Return an SVG element; the script finds it by its ``part``."""
    given = ""
    for name, value in attributes.items():
        name = "data-part" if name == "part" else name.replace("_", "-")
        given += f" {name}='{value if isinstance(value, str) else short(value)}'"
    return f"<{kind}{given}>{inside}</{kind}>" if inside else f"<{kind}{given}/>"


def text(x: float, y: float, words: str, /, **look: str | float) -> str:
    """Return words, centred at x unless their look says otherwise."""
    return tag("text", words, x=x, y=y, **look)


def hand(
    name: str, x: float, y: float, length: float, angle: float, /, **look: str | float
) -> str:
    """Return a line from (x, y) at an angle, counter-clockwise, that can turn."""
    tip = {"x2": x + length * math.cos(angle), "y2": y - length * math.sin(angle)}
    return tag("line", part=name, data_length=length, x1=x, y1=y, **tip, **look)


def level(y: float, label: str, left: float, right: float) -> str:
    """Return a line across the picture, with its label at the left."""
    across = tag("path", d=f"M{left} {y:.0f}H{right}", stroke=PALE)
    return across + text(left - 10, round(y) + 7, label, text_anchor="end")


def stroke(label: str) -> Attributes:
    """Return the colour and the dashes that a label has in ``plots.py``."""
    look = looks([label])[label]
    if look.style == "-":
        return {"stroke": look.colour}
    lengths = DASHES.get(look.style) or look.style[1]
    dashes = " ".join(short(2.5 * length) for length in lengths)
    return {"stroke": look.colour, "stroke_dasharray": dashes}


# ------------------------------------------------------------------------- lesson 04


ARROWS_SCRIPT = """  const draw = () => {
    const m = number("shift"), n = m + number("distance"), angle = {};
    for (const [name, at] of [["q", m], ["k", n]]) {
      angle[name] = data.start[name] + at * data.step;
      turn(name, angle[name]);
      const reach = data.unit * data.length[name] + 20;
      put(name + "-name", { x: 200 + reach * Math.cos(angle[name]),
        y: 197 - reach * Math.sin(angle[name]) });
    }
    show("shift", m); show("distance", n - m); show("n", n);
    show("dot", (data.length.q * data.length.k
      * Math.cos(angle.k - angle.q)).toFixed(6));
  };"""


def two_arrows(
    q: tuple[float, float] = (1.0, 0.4),
    k: tuple[float, float] = (0.8, -0.5),
    inv_freq: float = 0.2,
) -> Interactive:
    """A query and a key that turn with their positions, and their dot product.

    One slider moves both tokens along the text, the other moves the key away from
    the query. Only the second changes the dot product. Lesson 04.
    """
    start = {"q": math.atan2(q[1], q[0]), "k": math.atan2(k[1], k[0])}
    length = {"q": math.hypot(*q), "k": math.hypot(*k)}
    unit = 150 / max(length.values())
    turned = {"q": start["q"], "k": start["k"] + 3 * inv_freq}
    dashed = {"stroke": ORANGE, "stroke_dasharray": "16 7"}
    picture = tag("circle", cx=200, cy=190, r=155, **FACE)
    for name, look in (("q", {"stroke": BLUE}), ("k", dashed)):
        angle, reach = turned[name], unit * length[name]
        picture += hand(name, 200, 190, reach, angle, **look, stroke_width=8)
        across = 200 + (reach + 20) * math.cos(angle)
        up = 197 - (reach + 20) * math.sin(angle)
        picture += text(across, up, name, part=f"{name}-name", **NAME)
    dot = length["q"] * length["k"] * math.cos(turned["k"] - turned["q"])
    return Interactive(
        "two-arrows",
        "Interactive: arrows of a query and a key. Moving both tokens along the text "
        "turns both arrows and leaves their dot product unchanged; moving the key away "
        "from the query changes it.",
        picture=picture,
        size=(400, 380),
        controls=[
            slider("shift", "Position m of q", 0, 100, 0),
            slider("distance", "Distance n − m", 0, 30, 3),
        ],
        readout="<p>q at {shift}, k at {n}</p>"
        '<p style="font-size:1.3em">dot product: {dot}</p>',
        values={"shift": "0", "distance": "3", "n": "3", "dot": f"{dot:.6f}"},
        data={"start": start, "length": length, "unit": unit, "step": inv_freq},
        script=ARROWS_SCRIPT,
    )


# ------------------------------------------------------------------------- lesson 02


CLOCKS_SCRIPT = """  const draw = () => {
    const m = number("position");
    show("position", m);
    data.speeds.forEach((speed, i) => turn("hand" + i, m * speed));
  };"""


def clock_bank(inv_freq: Sequence[float] | Tensor, last: int = 200) -> Interactive:
    """A row of clock hands, one per frequency, and a slider for the position.

    Fast hands tell nearby positions apart, slow hands distant ones. Lessons 02
    and 08.
    """
    speeds = steady(inv_freq)
    picture = ""
    for i, speed in enumerate(speeds):
        x = 70 + 135 * i
        picture += tag("circle", cx=x, cy=100, r=58, **FACE)
        picture += hand(f"hand{i}", x, 100, 56, 0.0, stroke_width=7, **ROUND)
        picture += text(x, 28, f"hand {i}")
        picture += text(x, 190, f"{2 * math.pi / speed:,.0f}")
    return Interactive(
        "clock-bank",
        f"Interactive: {len(speeds)} clock hands. As the position grows, hand 0 turns "
        "fastest and each further hand turns more slowly.",
        picture=picture,
        size=(135 * len(speeds) + 5, 200),
        controls=[slider("position", "Position m, in tokens", 0, last, 0)],
        readout="<p>Below each clock: the tokens for a full turn.</p>",
        values={"position": "0"},
        data={"speeds": speeds},
        script=CLOCKS_SCRIPT,
    )


# ------------------------------------------------------------------------- lesson 07

# Swaps of neighbours that lead from interleaved to half order, one a slider's step.
SWAPS = (1, 3, 2, 5, 4, 3)
PROGRAMS = ("half", "interleaved")
TINTS = ("#dcebf7", "#fbe3d2", "#d8efe6", "#f1dcea")
# Chosen so that 5 tokens apart no wrong order comes within 0.6 of the right score.
QUERY = (-0.2, -0.3, 0.5, 0.8, 0.3, 0.2, 0.3, -0.9)
KEY = (1.0, -1.2, 0.9, 0.8, 0.7, 0.2, 0.2, 0.6)


PAIRING_SCRIPT = """  const slots = { half: (i) => [i, i + 4],
    interleaved: (i) => [2 * i, 2 * i + 1] };
  const rotated = (x, m, slots) => {
    const out = [...x];
    data.speeds.forEach((speed, i) => {
      const [a, b] = slots(i), cos = Math.cos(m * speed), sin = Math.sin(m * speed);
      out[a] = x[a] * cos - x[b] * sin; out[b] = x[a] * sin + x[b] * cos;
    });
    return out;
  };
  const dot = (x, y) => x.reduce((sum, each, i) => sum + each * y[i], 0);
  const score = (q, k, distance, slots) =>
    dot(rotated(q, 0, slots), rotated(k, distance, slots));
  const draw = () => {
    const paired = slots[find("[name=program]").value], turned = {};
    ["q", "k"].forEach((name, row) => {
      const order = [0, 1, 2, 3, 4, 5, 6, 7], steps = number(name);
      data.swaps.slice(0, steps).forEach((at) =>
        [order[at], order[at + 1]] = [order[at + 1], order[at]]);
      order.forEach((feature, slot) => put(name + feature,
        { style: "transform:translate(" + (80 + 105 * slot) + "px,"
          + (20 + 150 * row) + "px)" }));
      let right = 0;
      for (let i = 0; i < 4; i++) {
        const [a, b] = paired(i), [x, y] = [a, b].map((slot) => 125 + 105 * slot);
        const good = order[a] === 2 * i && order[b] === 2 * i + 1;
        const low = 78 + 150 * row, deep = low + (b - a > 1 ? 22 + 12 * i : 30);
        right += good;
        put(name + "-arc" + i, { d: `M${x} ${low}V${deep}H${y}V${low}`,
          stroke: good ? data.right : data.wrong,
          "stroke-dasharray": good ? "none" : "9 6" });
      }
      show(name, steps); show(name + "-right", right);
      turned[name] = order.map((feature) => data.content[name][feature]);
    });
    const distance = number("distance");
    const got = score(turned.q, turned.k, distance, paired);
    const trained = score(data.content.q, data.content.k, distance,
      slots.interleaved);
    show("distance", distance); show("score", got.toFixed(3));
    show("trained", trained.toFixed(3));
    show("off", Math.abs(got - trained).toFixed(3));
  };"""


def pairing_orders() -> Interactive:
    """Features that move between the two orders, and the score they then get.

    A query and a key of 8 features were trained with interleaved pairs. Two sliders
    reorder them, a list chooses which slots the program pairs. Lesson 07.
    """
    start = pairs_and_score(0, 0, "half", 5)
    dashed: Attributes = {"fill": "none", "stroke": ORANGE, "stroke_width": 4,
                          "stroke_dasharray": "9 6"}  # fmt: skip
    picture = ""
    for row, name in enumerate("qk"):
        picture += text(40, 58 + row * 150, name, **NAME)
        picture += "".join(feature(name, row, slot) for slot in range(8))
        for i in range(4):
            picture += tag("path", part=f"{name}-arc{i}", d=arc(row, i), **dashed)
    return Interactive(
        "pairing-orders",
        "Interactive: eight features of a query and of a key, and arcs between the "
        "two that the program turns together. Only if both are reordered for the "
        "program's pairing is each arc right, and the score that of training.",
        picture=picture,
        size=(920, 295),
        controls=[
            slider("q", "Reorder q", 0, 6, 0),
            slider("k", "Reorder k", 0, 6, 0),
            slider("distance", "Key ahead, in tokens", 0, 20, 5),
            choice("program", "The program pairs", PROGRAMS, "half"),
        ],
        readout="<p>Six steps lead to half order. Pairs as trained: q {q-right} of 4, "
        "k {k-right} of 4.</p>"
        "<p>Score: {score}. In training: {trained}. Off by {off}.</p>",
        values={"q": "0", "k": "0", "distance": "5", **start},
        data={
            "swaps": SWAPS,
            "content": {"q": QUERY, "k": KEY},
            "speeds": steady(inverse_frequencies(8)),
            "right": GREEN,
            "wrong": ORANGE,
        },
        script=PAIRING_SCRIPT,
    )


def feature(name: str, row: int, slot: int) -> str:
    """Return the box of one feature, in the slot where training put it."""
    place = f"transform:translate({80 + 105 * slot}px,{20 + 150 * row}px)"
    fill, hand_number = TINTS[slot // 2], f"hand {slot // 2}"
    box = tag("rect", width=90, height=56, rx=8, fill=fill, stroke="#555")
    box += text(45, 26, str(slot), font_size=24, font_weight="bold")
    box += text(45, 48, hand_number, font_size=17)
    return tag("g", box, **{"class": "moves"}, part=f"{name}{slot}", style=place)


def arc(row: int, i: int) -> str:
    """Return the path below slots i and i + 4 of a row."""
    low, x = 78 + 150 * row, 125 + 105 * i
    return f"M{x} {low}V{low + 22 + 12 * i}H{x + 420}V{low}"


def pairs_and_score(q: int, k: int, program: str, distance: int) -> dict[str, str]:
    """Return what the figure of pairings shows after so many steps of reordering."""
    table = cos_sin(torch.tensor([0, distance]), inverse_frequencies(8), torch.float64)
    content, shown = torch.tensor([QUERY, KEY], dtype=torch.float64), {}
    orders = torch.arange(8).repeat(2, 1)
    for name, order, steps in zip("qk", orders, (q, k), strict=True):
        for at in SWAPS[:steps]:
            order[[at, at + 1]] = order[[at + 1, at]]
        pairs = order.view(2, 4).T if program == "half" else order.view(4, 2)
        right = (pairs == torch.arange(8).view(4, 2)).all(dim=-1).sum()
        shown[f"{name}-right"] = str(int(right))
    got = rotate_pairs(content.gather(1, orders), *table, program).prod(dim=0).sum()
    trained = rotate_pairs(content, *table, "interleaved").prod(dim=0).sum()
    numbers = {"score": got, "trained": trained, "off": (got - trained).abs()}
    return shown | {name: f"{number:.3f}" for name, number in numbers.items()}


# ------------------------------------------------------------------------- lesson 08

TICKS = {1: "1", 100: "100", 10**4: "10 k", 10**6: "1 M", 10**8: "100 M"}
BASES = [digit * 10**power for power in range(2, 7) for digit in (1, 2, 5)] + [10**7]


WAVELENGTHS_SCRIPT = """  const height = (tokens) => 260 - 30 * Math.log10(tokens);
  const draw = () => {
    const base = data.bases[number("base")], d = 16 * number("features");
    const context = 2 ** number("context"), hands = d / 2;
    const dots = { true: "", false: "" };
    let done = 0, tokens;
    for (let i = 0; i < hands; i++) {
      tokens = 2 * Math.PI * base ** (2 * i / d);
      const finishes = tokens <= context;
      done += finishes;
      dots[finishes] += "M" + short(100 + 980 * (i + 0.5) / hands) + " "
        + short(height(tokens)) + "h0";
    }
    put("done", { d: dots.true }); put("open", { d: dots.false });
    put("level", { y1: height(context), y2: height(context) });
    put("name", { y: height(context) - 8 });
    part("last").textContent = "hand " + (hands - 1);
    show("base", grouped(base)); show("features", d);
    show("context", grouped(context));
    show("done", done); show("all", hands); show("slowest", grouped(tokens));
  };"""


def base_and_wavelengths() -> Interactive:
    """Wavelength of every hand against a context: which hands finish a turn?

    Sliders choose the base, the features of a head, and the tokens of the context.
    Lesson 08.
    """
    turn = wavelengths(inverse_frequencies(128))
    dots = {True: "", False: ""}
    for i, tokens in enumerate(turn.tolist()):
        x, y = short(100 + 980 * (i + 0.5) / 64), short(log_height(tokens))
        dots[tokens <= 4096] += f"M{x} {y}h0"
    at = log_height(4096)
    line: Attributes = {"x1": 100, "x2": 1080, "y1": at, "y2": at, "stroke": INK}
    done: Attributes = {"d": dots[True], "stroke_width": 9, **ROUND}
    never: Attributes = {"d": dots[False], "stroke": ORANGE, "stroke_width": 9}
    picture = "".join([
        *(level(log_height(n), label, 100, 1080) for n, label in TICKS.items()),
        tag("line", part="level", **line, stroke_width=2, stroke_dasharray="8 5"),
        tag("path", part="done", **done),
        tag("path", part="open", **never, stroke_linecap="square"),
        text(110, at - 8, "context", part="name", text_anchor="start"),
        text(100, 296, "hand 0", text_anchor="start"),
        text(590, 296, "wavelength of each hand, in tokens"),
        text(1080, 296, "hand 63", part="last", text_anchor="end"),
    ])  # fmt: skip
    return Interactive(
        "base-and-wavelengths",
        "Interactive: the wavelength of each hand on a log axis, and a dashed level at "
        "the context. Hands below it (round, blue) finish a turn within the context, "
        "hands above it (square, orange) never do. A larger base lifts the slow end.",
        picture=picture,
        size=(1100, 305),
        controls=[
            slider("base", "Base", 0, len(BASES) - 1, BASES.index(10_000)),
            slider("features", "Features of a head", 1, 16, 8),
            slider("context", "Context, in tokens", 7, 20, 12),
        ],
        readout="<p>{done} of {all} hands finish a turn within {context} tokens.</p>"
        "<p>The slowest needs {slowest} tokens.</p>",
        values={"base": "10,000", "features": "128", "context": "4,096",
                **hands_that_finish(10_000, 128, 4096)},
        data={"bases": BASES},
        script=WAVELENGTHS_SCRIPT,
    )  # fmt: skip


def log_height(tokens: float) -> float:
    """Return the height of a wavelength in the picture."""
    return 260 - 30 * math.log10(tokens)


def hands_that_finish(base: float, head_dim: int, context: int) -> dict[str, str]:
    """Return what the figure of wavelengths shows."""
    turn = wavelengths(inverse_frequencies(head_dim, base))
    return {
        "done": str(int((turn <= context).sum())),
        "all": str(len(turn)),
        "context": f"{context:,}",
        "slowest": f"{turn[-1]:,.0f}",
    }


# ------------------------------------------------------------------------- lesson 10

DASHED: Attributes = {"stroke_width": 3, "stroke_dasharray": "5 5"}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


PRECISION_SCRIPT = """  const f32 = new Float32Array(1);
  const bits = new Uint32Array(f32.buffer);
  const bfloat16 = (x) => {  // keeps 16 of float32's bits; a tie goes to the even one
    f32[0] = x;
    bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
    return f32[0];
  };
  const float16 = (x) => {  // 11 bits from the first 1 on; nothing past 65504
    f32[0] = x;
    if (Math.abs(f32[0]) >= 65520) return Math.sign(x) * Infinity;
    const power = Math.max(((bits[0] >>> 23) & 255) - 127, -14);
    const step = 2 ** (power - 10), steps = Math.abs(f32[0]) / step;
    const down = Math.floor(steps), rest = steps - down;
    const up = rest > 0.5 || (rest === 0.5 && down % 2 === 1);
    return Math.sign(x) * (down + up) * step;
  };
  const types = { float64: (x) => x, float32: Math.fround, bfloat16, float16 };
  const split = (x) => { const big = 134217729 * x, high = big - (big - x);
    return [high, x - high]; };
  const lost = (x, y) => {  // by which x * y was rounded (Dekker)
    const [a, b] = split(x), [c, d] = split(y);
    return ((a * c - x * y) + a * d + b * c) + b * d;
  };
  const small = (x) => x === 0 ? "0" : x >= 0.001 ? x.toFixed(3) : x.toExponential(1);
  const score = (near, far) => near.reduce((sum, angle, i) =>
    sum + Math.cos(angle - far[i]), 0) / near.length;
  const draw = () => {
    const from = 2 ** number("power"), m = from + number("past"), i = number("hand");
    const at = (m, round) => data.speeds.map((speed) => round(round(m) * round(speed)));
    const speed = data.speeds[i], beyond = lost(m, speed) + m * data.rest[i];
    for (const [name, round] of Object.entries(types)) {
      const near = at(m, round), fits = Number.isFinite(round(m));
      turn(name + "-hand", near[i]); turn(name + "-true", m * speed);
      const off = Math.abs(near[i] - m * speed - beyond);
      const text = fits ? ["stores " + grouped(round(m)), "off by " + small(off)
        + " rad", "score " + score(near, at(m - 5, round)).toFixed(3)]
        : ["stores infinity", "no angle", "no score"];
      ["position", "error", "score"].forEach((line, k) =>
        part(name + "-" + line).textContent = text[k]);
    }
    show("power", grouped(from)); show("past", m - from); show("hand", i);
    show("m", grouped(m)); show("angle", (m * speed).toFixed(3));
    show("true", score(data.speeds.map((speed) => 5 * speed),
      data.speeds.map(() => 0)).toFixed(3));
  };"""


def precision_by_position(rotary_dim: int = 64) -> Interactive:
    """One hand in four number types: where each of them puts it, and what a score is.

    Position and speed are rounded to the type, then their product, as in a model cast
    to it. Sliders choose the position (a power of two, and tokens past it) and the
    hand. Lesson 10.
    """
    speeds, rest = exact_speeds(rotary_dim)
    start = rounded_angles(torch.tensor(speeds, dtype=torch.float64), rest, 256 + 1, 0)
    picture = ""
    for column, dtype in enumerate(map(name_of, DTYPES)):
        x = 140 + 275 * column
        angle = float(start[f"{dtype}-angle"])
        picture += text(x, 24, dtype, font_size=24, font_weight="bold")
        picture += tag("circle", cx=x, cy=108, r=70, **FACE)
        look = {"stroke": stroke(dtype)["stroke"], "stroke_linecap": "round"}
        picture += hand(f"{dtype}-hand", x, 108, 66, angle, **look, stroke_width=8)
        picture += hand(f"{dtype}-true", x, 108, 70, 257.0, stroke=INK, **DASHED)
        for line, y in (("position", 205), ("error", 235), ("score", 265)):
            name = f"{dtype}-{line}"
            picture += text(x, y, start[name], part=name)
    return Interactive(
        "precision-by-position",
        "Interactive: one clock hand in float64, float32, bfloat16 and float16, over a "
        "dashed line at the true angle. At 257, bfloat16 stores 256 and its hand is a "
        "radian off. The further the position, the more types lose the hand.",
        picture=picture,
        size=(1100, 275),
        controls=[
            slider("power", "A power of two", 0, 24, 8),
            slider("past", "Tokens past it", 0, 31, 1),
            slider("hand", "Hand", 0, rotary_dim // 2 - 1, 0),
        ],
        readout="<p>Position {m}: the true angle is {angle} rad.</p>"
        "<p>A key with equal content, 5 tokens back, scores {true} of 1.</p>",
        values={"power": "256", "past": "1", "hand": "0", "m": "257",
                "angle": start["angle"], "true": start["true"]},
        data={"speeds": speeds, "rest": rest},
        script=PRECISION_SCRIPT,
    )  # fmt: skip


def name_of(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def rounded_angles(
    inv_freq: Tensor, rest: list[float], m: int, i: int
) -> dict[str, str]:
    """Return what the figure of precision shows at position m for hand i."""
    exact = Decimal(m) * (Decimal(inv_freq[i].item()) + Decimal(rest[i]))
    shown = {"angle": f"{m * inv_freq[i]:.3f}"}
    shown["true"] = f"{(5 * inv_freq).cos().mean():.3f}"
    for dtype in DTYPES:
        places = torch.tensor([[m], [m - 5]]).to(dtype)
        near, far = (places * inv_freq.to(dtype)).double()
        off = abs(float(Decimal(near[i].item()) - exact)) if places[0].isfinite() else 0
        lines = ("stores infinity", "no angle", "no score")
        if places[0].isfinite():
            score = (near - far).cos().mean()
            lines = (f"stores {places[0].item():,.0f}", f"off by {small(off)} rad",
                     f"score {score:.3f}")  # fmt: skip
        keys = [f"{name_of(dtype)}-{line}" for line in ("position", "error", "score")]
        shown |= dict(zip(keys, lines, strict=True))
        shown[f"{name_of(dtype)}-angle"] = str(near[i].item())
    return shown


def small(x: float) -> str:
    """Return an error as the script writes it."""
    if x == 0:
        return "0"
    digits, _, power = f"{x:.1e}".partition("e")
    return f"{x:.3f}" if x >= 0.001 else f"{digits}e{int(power)}"


def exact_speeds(
    rotary_dim: int, base: int = 10_000
) -> tuple[list[float], list[float]]:
    """Return the nearest float64 of each frequency, and what it lacks to the truth."""
    with localcontext() as context:
        context.prec = 50
        powers = [Decimal(-2 * i) / rotary_dim for i in range(rotary_dim // 2)]
        true = [Decimal(base) ** power for power in powers]
        near = [float(speed) for speed in true]
        rest = [speed - Decimal(x) for speed, x in zip(true, near, strict=True)]
    return near, [float(f"{lacking:.4e}") for lacking in rest]


# ------------------------------------------------------------------------- lesson 13

# By factor and trained length: speeds and attention factor.
RULES: dict[str, Callable[[float, int], tuple[Tensor, float]]] = {
    "PI": lambda s, _: position_interpolation(128, 10_000, factor=s),
    "NTK": lambda s, _: ntk_aware(128, 10_000, factor=s),
    "YaRN": lambda s, T: yarn(128, 10_000, factor=s, trained_length=T),
    "Llama 3": lambda s, T: llama3(128, 10_000, factor=s, trained_length=T),
}


SCALING_SCRIPT = """  const base = 1e4, d = 128;
  const pairs = Array.from({ length: 64 }, (_, i) => i);
  const plain = pairs.map((i) => base ** (-2 * i / d));
  const clamp = (x) => Math.min(Math.max(x, 0), 1);
  const blend = (slow, s) => plain.map((f, i) => (1 - slow[i]) * f + slow[i] * f / s);
  const rules = {
    "PI": (s) => plain.map((f) => f / s),
    "NTK": (s) => pairs.map((i) => (base * s ** (d / (d - 2))) ** (-2 * i / d)),
    "YaRN": (s, T) => {
      const pair = (turns) =>
        d * Math.log(T / (turns * 2 * Math.PI)) / (2 * Math.log(base));
      const low = Math.max(Math.floor(pair(32)), 0);
      const high = Math.min(Math.ceil(pair(1)), d - 1);
      return blend(pairs.map((i) =>
        clamp((i - low) / Math.max(high - low, 0.001))), s);
    },
    "Llama 3": (s, T) => blend(plain.map((f) =>
      1 - clamp((T * f / (2 * Math.PI) - 1) / (4 - 1))), s),
  };
  const across = (i) => 70 + 16 * i, up = (x) => 270 - 46 * Math.log2(x);
  const draw = () => {
    const s = number("factor"), T = 2 ** number("length"), hand = number("hand");
    const chosen = find("[name=rule]").value;
    for (const [name, rule] of Object.entries(rules)) {
      const slower = rule(s, T).map((f, i) => plain[i] / f);
      put(name, { "stroke-width": name === chosen ? 6 : 2, points: slower.map(
        (x, i) => short(across(i)) + "," + short(up(x))).join(" ") });
    }
    const speeds = rules[chosen](s, T), slower = speeds.map((f, i) => plain[i] / f);
    const isSlow = plain.map((f) => 2 * Math.PI / f > T);
    const count = (test) => pairs.filter(test).length;
    const edge = Math.min(Math.max(across(d / 2 * Math.log(T / (2 * Math.PI))
      / Math.log(base)), 70), 1078);
    put("slow", { x: edge, width: 1078 - edge });
    put("dot", { cx: across(hand), cy: up(slower[hand]) });
    show("factor", s); show("length", grouped(T)); show("hand", hand);
    show("before", grouped(2 * Math.PI / plain[hand]));
    show("after", grouped(2 * Math.PI / speeds[hand]));
    show("times", slower[hand].toFixed(2));
    show("new", count((i) => isSlow[i] && slower[i] < s * 0.999));
    show("slow", count((i) => isSlow[i])); show("fast", count((i) => !isSlow[i]));
    show("spoilt", count((i) => !isSlow[i] && slower[i] > 1.001));
    show("attention", (chosen === "YaRN" ? 0.1 * Math.log(s) + 1 : 1).toFixed(3));
  };"""


def rules_on_hands() -> Interactive:
    """How many times slower each of 64 hands turns under four rules.

    A list chooses the rule (heads of 128 features, base 10,000), sliders the factor,
    the trained length and the hand to read off. Lesson 13.
    """
    edge = slow_edge(4096)
    picture = tag("rect", part="slow", x=edge, y=40, height=230, width=1078 - edge,
                  fill="#eee")  # fmt: skip
    for times in (1, 2, 4, 8, 16, 32):
        picture += level(times_height(times), str(times), 70, 1078)
    for number, rule in enumerate(RULES):
        x, width = 90 + 140 * number, 6 if rule == "YaRN" else 2
        height = list(map(times_height, slowed(rule, 16, 4096).tolist()))
        points = " ".join(f"{70 + 16 * i},{short(y)}" for i, y in enumerate(height))
        line: Attributes = {"points": points, "fill": "none", **stroke(rule)}
        picture += tag("polyline", part=rule, **line, stroke_width=width)
        picture += tag("path", d=f"M{x} 16h40", **stroke(rule), stroke_width=4)
        picture += text(x + 48, 23, rule, text_anchor="start")
    y = times_height(slowed("YaRN", 16, 4096)[40].item())
    picture += "".join([
        tag("circle", part="dot", cx=710, cy=y, r=10, fill=INK),
        text(70, 300, "hand 0 (fast)", text_anchor="start"),
        text(1078, 300, "hand 63 (slow)", text_anchor="end"),
        text(574, 300, "times slower, hand by hand"),
        text(1078, 23, "grey: never came round", text_anchor="end"),
    ])  # fmt: skip
    return Interactive(
        "rules-on-hands",
        "Interactive: how many times slower each of 64 hands turns under PI, NTK, YaRN "
        "and Llama 3, on a log axis. Grey marks slow hands that never came round in "
        "training. PI slows all alike; YaRN and Llama 3 keep fast hands and slow those "
        "in the grey part by the whole factor.",
        picture=picture,
        size=(1100, 310),
        controls=[
            choice("rule", "Rule", list(RULES), "YaRN"),
            slider("factor", "Factor s", 1, 32, 16),
            slider("length", "Trained length", 9, 15, 12),
            slider("hand", "Hand", 0, 63, 40),
        ],
        readout="<p>Hand {hand}: a turn took {before} tokens, and takes {after}: "
        "{times} times slower.</p><p>Slow hands that still reach new angles: {new} of "
        "{slow}. Fast hands slowed: {spoilt} of {fast}. Attention factor {attention}."
        "</p>",
        values={
            "factor": "16",
            "length": "4,096",
            "hand": "40",
            **hands_under("YaRN", 16, 4096, 40),
        },
        script=SCALING_SCRIPT,
    )


def slow_edge(trained_length: int) -> float:
    """Return where in the picture the hands begin that never came round."""
    hand = 64 * math.log(trained_length / (2 * math.pi)) / math.log(10_000)
    return min(max(70 + 16 * hand, 70), 1078)


def times_height(times: float) -> float:
    """Return the height in the picture of a hand that is so many times slower."""
    return 270 - 46 * math.log2(times)


def slowed(rule: str, factor: float, trained_length: int) -> Tensor:
    """Return how many times slower each hand turns under a rule."""
    return inverse_frequencies(128) / RULES[rule](factor, trained_length)[0]


def hands_under(
    rule: str, factor: float, trained_length: int, i: int
) -> dict[str, str]:
    """Return what the figure of rules shows."""
    speeds, attention = RULES[rule](factor, trained_length)
    turn = wavelengths(inverse_frequencies(128))
    slower = slowed(rule, factor, trained_length)
    slow = turn > trained_length
    return {
        "before": f"{turn[i]:,.0f}",
        "after": f"{wavelengths(speeds)[i]:,.0f}",
        "times": f"{slower[i]:.2f}",
        "new": str(int((slow & (slower < factor * 0.999)).sum())),
        "slow": str(int(slow.sum())),
        "spoilt": str(int((~slow & (slower > 1.001)).sum())),
        "fast": str(int((~slow).sum())),
        "attention": f"{attention:.3f}",
    }


# ------------------------------------------------------------------------- lesson 17

ROWS, DOWN, RIGHT, LEARNED = 6, 2, 1, 13
TITLES = {
    "flat": "flat: 13 tokens on (darker: more attention)",
    "axial": "axial: 2 down, 1 right",
}
FRAME: Attributes = {"fill": "none", "stroke_width": 4}
FRAMES = {"wanted": FRAME | {"stroke": INK, "stroke_dasharray": "7 4"},
          "reached": FRAME | {"stroke": ORANGE}}  # fmt: skip
SHADES = ("#ffffff", "#e3eef6", "#c1daec", "#94c0de", "#5ba0cb", "#2b7db5")


GRID_SCRIPT = """  const mean = (all) => all.reduce((a, b) => a + b, 0) / all.length;
  const waves = (speeds, off) => speeds.map((speed) => Math.cos(off * speed));
  const find_cell = (at, W) => [Math.floor(at / W), at % W];
  const inside = ([r, c], W) => r >= 0 && r < 6 && c >= 0 && c < W;
  const cell = (at, W) => inside(at, W) ? "row " + at[0] + ", column " + at[1]
    : "no cell";
  const draw = () => {
    const W = number("width");
    find("[name=column]").max = W - 1;
    const row = number("row"), column = number("column"), m = row * W + column;
    const like = {
      flat: (r, c) => mean(waves(data.flat, r * W + c - m - 13)),
      axial: (r, c) => mean([...waves(data.axial, r - row - 2),
        ...waves(data.axial, c - column - 1)]),
    };
    const wanted = [row + 2, column + 1];
    const reached = { flat: find_cell(m + 13, W), axial: wanted };
    for (const [kind, left] of [["flat", 20], ["axial", 580]]) {
      const shades = ["", "", "", "", "", ""];
      for (let r = 0; r < 6; r++) for (let c = 0; c < W; c++) {
        const shade = Math.floor(5.9 * Math.exp(12 * (like[kind](r, c) - 1)));
        shades[shade] += "M" + (left + 44 * c) + " " + (32 + 42 * r) + "h42v40h-42z";
      }
      shades.forEach((d, shade) => put(kind + shade, { d }));
      for (const [name, at, inset] of [["wanted", wanted, 2],
          ["reached", reached[kind], 8]])
        put(kind + "-" + name, { x: left + 44 * at[1] + inset,
          y: 32 + 42 * at[0] + inset, opacity: Number(inside(at, W)) });
      put(kind + "-query", { cx: left + 21 + 44 * column, cy: 52 + 42 * row });
      show(kind, inside(wanted, W) ? like[kind](...wanted).toFixed(2) : "none");
    }
    show("width", W); show("row", row); show("column", column);
    show("wanted", cell(wanted, W)); show("reached", cell(reached.flat, W));
  };
  const drag = (event) => {  // a press on a cell moves the query there
    if (!event.buttons) return;
    const at = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(box.firstChild.getScreenCTM().inverse());
    find("[name=row]").value = Math.floor((at.y - 32) / 42);
    find("[name=column]").value = Math.floor((at.x - (at.x < 560 ? 20 : 580)) / 44);
    draw();
  };
  ["pointerdown", "pointermove"].forEach((kind) =>
    box.firstChild.addEventListener(kind, drag));"""


def patch_on_grid() -> Interactive:
    """A query that moves on a picture: what a flat and an axial head then like best.

    Both heads learned, in pictures 6 cells wide, to look 2 below and 1 to the right:
    the flat one as 13 tokens on. Sliders choose the width and the query. Lesson 17.
    """
    start = liked(7, 1, 2)
    picture = ""
    for kind, left in (("flat", 20), ("axial", 580)):
        picture += text(left, 22, TITLES[kind], text_anchor="start")
        scores = liking(kind, 7, 1, 2)
        for shade, colour in enumerate(SHADES):
            cells = "".join(
                f"M{left + 44 * c} {32 + 42 * r}h42v40h-42z"
                for r in range(ROWS)
                for c in range(7)
                if shade_of(scores[7 * r + c].item()) == shade
            )
            look = {"fill": colour, "stroke": "#767676"}
            picture += tag("path", part=f"{kind}{shade}", d=cells, **look)
        for name, cell in target_cells(kind, 7, 1, 2).items():
            inset = 2 if name == "wanted" else 8
            x, y = left + 44 * cell[1] + inset, 32 + 42 * cell[0] + inset
            frame = {"width": 42 - 2 * inset, "height": 40 - 2 * inset, **FRAMES[name]}
            picture += tag("rect", part=f"{kind}-{name}", x=x, y=y, **frame,
                           opacity=inside(cell, 7))  # fmt: skip
        dot: Attributes = {"fill": INK, "stroke": "#fff", "stroke_width": 2}
        picture += tag("circle", part=f"{kind}-query", cx=left + 109, cy=94, r=9, **dot)
    return Interactive(
        "patch-on-grid",
        "Interactive: two copies of a picture 7 cells wide, shaded by how much the "
        "query (a dot) likes each cell. On the left, flat positions lead from the "
        "query 13 tokens on, to another column than the wanted cell (dashed). On the "
        "right, axial positions lead to the wanted cell wherever the query stands.",
        picture=picture,
        size=(1060, 290),
        controls=[
            slider("width", "Width (trained: 6)", 4, 10, 7),
            slider("row", "Row of the query", 0, ROWS - 1, 1),
            slider("column", "Its column", 0, 6, 2),
        ],
        readout="<p>Wanted (dashed): {wanted}. Flat, 13 tokens on, reaches {reached}."
        "</p><p>Score of the wanted cell, at most 1: flat {flat}, axial "
        "{axial}.</p>",
        values={"width": "7", "row": "1", "column": "2", **start},
        data={
            "flat": steady(inverse_frequencies(16)),
            "axial": steady(inverse_frequencies(8, 100)),
        },
        script=GRID_SCRIPT,
    )


def liking(kind: str, width: int, row: int, column: int) -> Tensor:
    """Return the score of each cell, ``(rows * width,)``, as a share of the best."""
    if kind == "flat":
        offsets = torch.arange(ROWS * width) - (row * width + column) - LEARNED
        return angles(offsets, inverse_frequencies(16)).cos().mean(dim=-1)
    bank = inverse_frequencies(8, 100)
    offsets = grid_positions(ROWS, width) - torch.tensor([row + DOWN, column + RIGHT])
    return angles(offsets, axial_frequencies(bank, bank)).cos().mean(dim=-1)


def shade_of(score: float) -> int:
    """Return the shade of a score: a softmax of 12 scores, beside the best possible."""
    return math.floor(5.9 * math.exp(12 * (score - 1)))


def target_cells(
    kind: str, width: int, row: int, column: int
) -> dict[str, tuple[int, int]]:
    """Return the wanted cell and the cell that a head of this kind looks at."""
    wanted = (row + DOWN, column + RIGHT)
    flat = divmod(row * width + column + LEARNED, width)
    return {"wanted": wanted, "reached": flat if kind == "flat" else wanted}


def inside(cell: tuple[int, int], width: int) -> bool:
    """Is this cell in the picture?"""
    return 0 <= cell[0] < ROWS and 0 <= cell[1] < width


def liked(width: int, row: int, column: int) -> dict[str, str]:
    """Return what the figure of the grid shows."""
    shown = {
        name: f"row {cell[0]}, column {cell[1]}" if inside(cell, width) else "no cell"
        for name, cell in target_cells("flat", width, row, column).items()
    }
    wanted = row + DOWN, column + RIGHT
    for kind in ("flat", "axial"):
        scores = liking(kind, width, row, column)
        place = wanted[0] * width + wanted[1]
        shown[kind] = f"{scores[place]:.2f}" if inside(wanted, width) else "none"
    return shown
