"""Sliders are moved in a real browser; what they show is compared with the package."""

import io
import itertools
import math
import re
from decimal import Decimal, localcontext

import nbformat
import nbformat.v4 as nb
import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from rope_teach import (
    angles,
    cos_sin,
    interleaved_to_half,
    inverse_frequencies,
    rotate,
    wavelengths,
)
from rope_teach.axes import axial_frequencies
from rope_teach.course import interactive
from rope_teach.frequencies import llama3, ntk_aware, position_interpolation, yarn
from rope_teach.rotation import rotation_matrix
from slides.build import build_deck, copy_assets
from tests.browser import go_to, open_deck, slide_problems, visit
from tests.test_slides import axe_problems

pytestmark = pytest.mark.browser

FIGURES = {
    "two_arrows": interactive.two_arrows,
    "clock_bank": lambda: interactive.clock_bank(inverse_frequencies(16, 100)),
    "pairing_orders": interactive.pairing_orders,
    "base_and_wavelengths": interactive.base_and_wavelengths,
    "precision_by_position": interactive.precision_by_position,
    "rules_on_hands": interactive.rules_on_hands,
    "patch_on_grid": interactive.patch_on_grid,
}
f64 = torch.float64


@pytest.fixture(params=FIGURES)
def figure(request):
    return FIGURES[request.param]()


@pytest.fixture
def page(browser):
    """A page that must not complain, nor ask for anything from outside."""
    with visit(browser) as seen:
        yield seen.page
        assert seen.errors == [] and seen.outside == []


@pytest.fixture
def on_page(page):
    """``on_page(figure)`` opens the figure; then call the result to move and read."""

    def open_figure(figure):
        page.set_content(figure.html())
        return lambda **moves: moved(page, moves)

    return open_figure


MOVE = """moves => {
    for (const [name, value] of Object.entries(moves)) {
        const control = document.querySelector(`[name=${name}]`);
        control.value = value;
        if (control.value !== String(value)) throw Error(`${name} is not ${value}`);
        control.dispatchEvent(new Event("input"));
    }
    const places = [...document.querySelectorAll("[data-show], text[data-part]")];
    return places.map((e) => [e.dataset.show ?? e.dataset.part, e.textContent]);
}"""
TIPS = """all => all.map((e) => [e.dataset.part,
    ["x1", "y1", "x2", "y2"].map((name) => Number(e.getAttribute(name)))])"""


def moved(page, moves):
    """Set controls by name; return every text on show, and those of the picture."""
    return next(all_moved(page, [moves]))


def all_moved(page, steps):
    """The same for each of many steps, in one call of the browser."""
    for shown in page.evaluate(f"steps => steps.map({MOVE})", steps):
        texts = dict(shown)
        assert all(texts[name] == text for name, text in shown)  # where shown twice too
        yield texts


def part(page, name, *attributes):
    """Attributes of a part of the picture, as numbers where they are."""
    found = page.locator(f'[data-part="{name}"]').evaluate(
        "(e, names) => names.map((name) => e.getAttribute(name))", attributes
    )
    return [float(x) if re.fullmatch(r"-?[\d.]+", x) else x for x in found]


# --------------------------------------------------------------- what all must do


def test_html_is_small_and_stands_alone(figure):
    text = figure.html()
    assert len(text.encode()) <= 12 * 1024
    assert not re.search(r"\sid=|fetch\(|import\(", text)
    assert re.findall(r"https?:[^' ]*", text) == ["http://www.w3.org/2000/svg"]
    assert figure._repr_mimebundle_()["text/plain"] == figure.alt


# The lines of the still's SVG that the live one does not have, and the reverse.
COMPARE = """still => {
    const live = document.querySelector("svg"), box = document.createElement("p");
    live.removeAttribute("role");
    live.removeAttribute("aria-label");
    box.innerHTML = still;
    const [old, now] = [box.firstChild, live].map((svg) => svg.outerHTML.split("<"));
    return [old.filter((x) => !now.includes(x)), now.filter((x) => !old.includes(x))];
}"""


def test_still_is_what_the_script_draws_at_the_start(figure, on_page, page):
    move, control = on_page(figure), page.locator("input").first
    start = control.input_value()
    control.press("End")
    texts = move(**{control.get_attribute("name"): start})  # there and back
    assert page.evaluate(COMPARE, figure.svg()) == [[], []]
    assert figure.values.items() <= texts.items()


def test_without_javascript_the_still_shows_its_numbers(figure, browser):
    shots = []
    for javascript in (False, True):
        context = browser.new_context(java_script_enabled=javascript)
        page = context.new_page()
        page.set_content(figure.html())
        picture = page.get_by_role("img", name=figure.alt)
        shots.append(picture.screenshot())
        if not javascript:
            for name, text in figure.values.items():
                assert set(page.locator(f"[data-show={name}]").all_inner_texts()) == {
                    text
                }
            assert page.locator("input:enabled, select:enabled").count() == 0
            assert "once this cell has run" in page.locator("figure").inner_text()
        context.close()
    still, live = (Image.open(io.BytesIO(shot)).convert("L") for shot in shots)
    low, high = still.getextrema()
    assert still.size == live.size and high - low > 150  # there is ink on it
    assert ImageStat.Stat(ImageChops.difference(still, live)).mean[0] < 1


@pytest.mark.parametrize("stage", ["font:24px sans-serif;width:1152px", "width:860px"])
def test_no_move_changes_the_size(stage, figure, page):
    """Neither in a deck nor in a notebook."""
    body = f"<body style='{stage}'>{figure.html()}"
    page.set_content(body.replace("<script>", "<script type='no'>"))
    size = page.locator("figure").bounding_box()
    page.set_content(body)
    assert page.locator("figure").bounding_box() == size
    for control in page.locator("input").all():
        for end in ("Home", "End"):
            control.press(end)
            assert page.locator("figure").bounding_box() == size


def test_no_wrong_order_looks_right(on_page, page):
    on_page(interactive.pairing_orders())
    for program, right in (("half", (6, 6)), ("interleaved", (0, 0))):
        orders = list(itertools.product(range(7), repeat=2))
        steps = [{"q": q, "k": k, "program": program} for q, k in orders]
        for order, shown in zip(orders, all_moved(page, steps), strict=True):
            assert (float(shown["off"]) < 0.6) == (order == right)


def test_every_slider_moves_by_keyboard_and_says_its_value(figure, page):
    page.set_content(figure.html())
    page.evaluate("""() => {
        window.heard = [];
        document.addEventListener("keydown", (event) => heard.push(event.key));
    }""")
    for control in page.locator("input").all():
        name = control.get_attribute("name")
        shown = page.locator(f"[data-show={name}]").first
        control.press("Home")
        before = shown.inner_text()
        control.press("ArrowRight")
        assert shown.inner_text() != before
        assert control.get_attribute("aria-valuetext") == shown.inner_text()
        assert control.get_attribute("aria-label")
        assert control.evaluate("e => getComputedStyle(e).outlineWidth") == "3px"
    assert page.evaluate("heard") == []  # else the deck would turn the page


def test_every_slider_moves_by_mouse(figure, page):
    page.set_content(figure.html())
    for control in page.locator("input").all():
        box = control.bounding_box()
        middle = box["y"] + box["height"] / 2
        for side, end in ((2, "min"), (box["width"] - 2, "max")):
            page.mouse.move(box["x"] + box["width"] / 2, middle)
            page.mouse.down()
            page.mouse.move(box["x"] + side, middle, steps=3)
            page.mouse.up()
            assert control.input_value() == control.get_attribute(end)


def test_two_figures_of_a_kind_on_one_page_do_not_meet(figure, page):
    page.set_content(figure.html() + figure.html())
    first, second = page.locator("figure").all()
    before = first.inner_text(), first.locator("svg").inner_html()
    second.locator("input").last.press("Home")
    second.locator("input").first.press("End")
    assert (first.inner_text(), first.locator("svg").inner_html()) == before
    assert second.inner_text() != before[0]


def test_scripts_started_late_find_their_own_figure(figure, page):
    """Where a page runs scripts by itself, they do not know which one they are."""
    page.set_content(2 * figure.html().replace("<script>", "<script type='no'>"))
    page.evaluate("""() => document.querySelectorAll("script").forEach(
        (script) => new Function(script.textContent)())""")
    assert page.locator("svg").count() == 2
    assert page.locator("input:disabled, select:disabled").count() == 0


def test_axe_finds_nothing_serious(figure, page):
    page.set_content(
        "<html lang=en><title>t</title><body style='background:#111;color:#eee'>"
        f"<main><h1>h</h1>{figure.html()}</main>"
    )
    assert axe_problems(page) == []
    white = "rgb(255, 255, 255)"  # of its own, also on a dark page
    colour = page.locator("figure").evaluate("e => getComputedStyle(e).backgroundColor")
    assert colour == white


def test_motion_is_reduced_where_it_is_asked_for(page):
    seconds = "e => getComputedStyle(e).transitionDuration"
    for wish, expected in (("reduce", "0s"), ("no-preference", "0.35s")):
        page.emulate_media(reduced_motion=wish)
        page.set_content(interactive.pairing_orders().html())
        assert page.locator(".moves").first.evaluate(seconds) == expected


def test_every_figure_fits_its_slide(page, tmp_path):
    kind = {"slideshow": {"slide_type": "slide"}}
    cells = [nb.new_markdown_cell("# A sample", metadata=kind)]
    for name, make in FIGURES.items():
        output = nb.new_output("display_data", data=make()._repr_mimebundle_())
        cells += [
            nb.new_markdown_cell(f"## {name}", metadata=kind),
            nb.new_code_cell("f", outputs=[output], metadata={"tags": ["hide-input"]}),
            nb.new_markdown_cell("One line of prose after the figure."),
        ]
    path = tmp_path / "99_sample.ipynb"
    path.write_text(nbformat.writes(nb.new_notebook(cells=cells)), encoding="utf-8")
    copy_assets(tmp_path)
    for number in range(1, open_deck(page, build_deck(path, tmp_path))):
        go_to(page, number)
        assert slide_problems(page) == []
        page.locator(".present input").first.press("ArrowRight")
        assert page.locator(".slide-number").inner_text().startswith(f"{number + 1}")


# -------------------------------------------------- the numbers are the package's


def test_two_arrows_show_the_dot_product_of_the_package(on_page):
    q, k, step = (1.0, 0.4), (0.8, -0.5), torch.tensor([0.2], dtype=f64)
    move = on_page(interactive.two_arrows(q, k, 0.2))
    for m, distance in ((0, 3), (77, 3), (100, 30), (5, 0)):
        shown = move(shift=m, distance=distance)
        turns = rotation_matrix(angles(torch.tensor([m, m + distance]), step))
        rows = turns @ torch.tensor([q, k], dtype=f64)[..., None]
        dot = (rows[0] * rows[1]).sum().item()
        assert float(shown["dot"]) == pytest.approx(dot, abs=1e-6)
        assert (shown["shift"], shown["n"]) == (str(m), str(m + distance))


def test_two_arrows_point_where_the_package_turns_them(on_page, page):
    on_page(interactive.two_arrows((1.0, 0.0), (0.0, 2.0), 0.5))(shift=3, distance=4)
    for name, start, m in (("q", (1.0, 0.0), 3), ("k", (0.0, 2.0), 7)):
        turn = rotation_matrix(torch.tensor([0.5 * m], dtype=f64))
        x, y = (turn @ torch.tensor(start, dtype=f64)).tolist()
        tip = [200 + 75 * x, 190 - 75 * y]  # the longest arrow is 150 long
        assert part(page, name, "x2", "y2") == pytest.approx(tip, abs=0.01)


def test_clock_bank_turns_each_hand_at_its_speed(on_page, page):
    speeds = [1.0, 0.1, 0.01]
    on_page(interactive.clock_bank(speeds, last=50))(position=37)
    for i, speed in enumerate(speeds):
        x, y, *tip = part(page, f"hand{i}", "x1", "y1", "x2", "y2")
        angle = 37 * speed
        right = [x + 56 * math.cos(angle), y - 56 * math.sin(angle)]
        assert tip == pytest.approx(right, abs=0.01)


ORDERS = [(0, 0), (6, 6), (6, 0), (0, 6), (3, 3), (2, 5)]


@pytest.mark.parametrize("program", ["half", "interleaved"])
def test_pairing_orders_score_as_the_package_rotates(program, on_page, page):
    move = on_page(interactive.pairing_orders())
    content = torch.tensor([interactive.QUERY, interactive.KEY], dtype=f64)
    trained_pairs = torch.arange(8).view(4, 2)
    for distance in (0, 5, 20):
        table = cos_sin(torch.tensor([0, distance]), inverse_frequencies(8), f64)
        trained = rotate(content, *table, "interleaved").prod(0).sum().item()
        for q, k in ORDERS:
            shown = move(q=q, k=k, distance=distance, program=program)
            orders = [order_on_show(page, name) for name in "qk"]
            arranged = content.gather(1, torch.tensor(orders))
            score = rotate(arranged, *table, program).prod(0).sum().item()
            assert float(shown["score"]) == pytest.approx(score, abs=6e-4)
            assert float(shown["trained"]) == pytest.approx(trained, abs=6e-4)
            off = abs(score - trained)
            assert float(shown["off"]) == pytest.approx(off, abs=6e-4)
            for name, order in zip("qk", orders, strict=True):
                order = torch.tensor(order)
                pairs = order.view(2, 4).T if program == "half" else order.view(4, 2)
                right = (pairs == trained_pairs).all(-1).sum().item()
                assert shown[f"{name}-right"] == str(right)


def order_on_show(page, name):
    """The features of a row, from left to right."""
    places = page.locator(f"g[data-part^={name}]").evaluate_all(
        "all => all.map((e) => new DOMMatrix(e.style.transform).e)"
    )
    return sorted(range(8), key=lambda feature: places[feature])


def test_six_steps_lead_to_half_order_and_to_the_score_of_training(on_page, page):
    shown = on_page(interactive.pairing_orders())(q=6, k=6, program="half")
    half = interleaved_to_half(torch.arange(8)).tolist()
    assert order_on_show(page, "q") == order_on_show(page, "k") == half
    assert shown["off"] == "0.000" and shown["score"] == shown["trained"]
    shown = moved(page, {"k": 0})
    assert float(shown["off"]) > 0.1 and shown["q-right"] == "4"
    dashes = {part(page, f"k-arc{i}", "stroke-dasharray")[0] for i in range(4)}
    assert dashes == {"9 6"}


@pytest.mark.parametrize("base", [100, 10_000, 500_000, 10**7])
def test_wavelengths_and_finished_hands_are_the_package_s(base, on_page, page):
    move = on_page(interactive.base_and_wavelengths())
    for d, power in ((16, 7), (128, 12), (64, 20), (256, 17)):
        place = interactive.BASES.index(base)
        shown = move(base=place, features=d // 16, context=power)
        turn = wavelengths(inverse_frequencies(d, base))
        assert shown["base"] == f"{base:,}" and shown["features"] == str(d)
        assert shown["context"] == f"{2**power:,}"
        assert shown["done"] == str((turn <= 2**power).sum().item())
        assert shown["all"] == str(d // 2)
        slowest = float(shown["slowest"].replace(",", ""))
        assert slowest == pytest.approx(turn[-1].item(), abs=0.51)
        dots = "".join(str(part(page, name, "d")[0]) for name in ("done", "open"))
        heights = [float(y) for y in re.findall(r" ([\d.-]+)h0", dots)]
        right = (260 - 30 * turn.log10()).tolist()
        assert heights == pytest.approx(right, abs=0.01)


PLACES = [(0, 0), (7, 31), (8, 1), (8, 3), (11, 1), (12, 27), (15, 31), (16, 0),
          (20, 13), (24, 1), (24, 31)]  # fmt: skip


def test_precision_is_that_of_torch(on_page, page):
    move = on_page(interactive.precision_by_position())
    speeds = torch.tensor(interactive.exact_speeds(64)[0], dtype=f64)
    assert torch.allclose(speeds, inverse_frequencies(64), rtol=1e-15, atol=0)
    for (power, past), i in itertools.product(PLACES, (0, 1, 9, 31)):
        m = 2**power + past
        shown = move(power=power, past=past, hand=i)
        tips = dict(page.locator("line[data-part$=-hand]").evaluate_all(TIPS))
        assert shown["m"] == f"{m:,}"
        assert shown["true"] == f"{(5 * speeds).cos().mean():.3f}"
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            name = str(dtype).removeprefix("torch.")
            places = torch.tensor([[m], [m - 5]]).to(dtype)
            near, far = (places * speeds.to(dtype)).double()
            texts = [shown[f"{name}-{line}"] for line in ("position", "error", "score")]
            if m >= 65520 and dtype == torch.float16:
                assert texts == ["stores infinity", "no angle", "no score"]
                continue
            assert texts[0] == f"stores {places[0].item():,.0f}"
            error, right = float(texts[1].split()[2]), error_of(near[i].item(), m, i)
            digits = {"abs": 6e-4} if right >= 1e-3 else {"rel": 0.06, "abs": 0}
            assert error == pytest.approx(right, **digits)
            score = (near - far).cos().mean().item()
            assert float(texts[2].split()[1]) == pytest.approx(score, abs=6e-4)
            x, y, *tip = tips[f"{name}-hand"]
            angle = near[i].item()
            end = [x + 66 * math.cos(angle), y - 66 * math.sin(angle)]
            assert tip == pytest.approx(end, abs=0.02)


def error_of(angle, m, i):
    """The error of an angle, against fifty digits, which no float holds."""
    with localcontext() as context:
        context.prec = 50
        exact = m * Decimal(10_000) ** (Decimal(-2 * i) / 64)
        return float(abs(Decimal(angle) - exact))


RULES = {
    "PI": lambda s, T: position_interpolation(128, 1e4, factor=s),
    "NTK": lambda s, T: ntk_aware(128, 1e4, factor=s),
    "YaRN": lambda s, T: yarn(128, 1e4, factor=s, trained_length=T),
    "Llama 3": lambda s, T: llama3(128, 1e4, factor=s, trained_length=T),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_those_of_frequencies(rule, on_page, page):
    move = on_page(interactive.rules_on_hands())
    plain = inverse_frequencies(128)
    before = wavelengths(plain)
    for s, power in ((1, 12), (2, 9), (7, 15), (16, 12), (32, 13)):
        T = 2**power
        speeds, attention = RULES[rule](s, T)
        slower, after, slow = plain / speeds, wavelengths(speeds), before > T
        points = None
        for hand in (0, 20, 33, 45, 63):
            shown = move(rule=rule, factor=s, length=power, hand=hand)
            points = part(page, rule, "points")[0]
            for name, right in (
                ("before", before[hand]), ("after", after[hand]),
                ("times", slower[hand]), ("attention", attention),
            ):  # fmt: skip
                digits = {"times": 0.006, "attention": 6e-4}.get(name, 0.51)
                number = float(shown[name].replace(",", ""))
                assert number == pytest.approx(float(right), abs=digits), name
        heights = [float(point.split(",")[1]) for point in points.split()]
        right = (270 - 46 * slower.log2()).tolist()
        assert heights == pytest.approx(right, abs=0.01)
        assert shown["slow"] == str(slow.sum().item())
        assert shown["fast"] == str((~slow).sum().item())
        reach_new = slow & (slower < 0.999 * s)
        assert shown["new"] == str(reach_new.sum().item())
        assert shown["spoilt"] == str((~slow & (slower > 1.001)).sum().item())


def test_attention_of_a_grid_is_that_of_the_package(on_page, page):
    move = on_page(interactive.patch_on_grid())
    bank = inverse_frequencies(8, 100)
    axial, flat = axial_frequencies(bank, bank), inverse_frequencies(16)
    for width, row, column in ((6, 0, 0), (7, 1, 2), (7, 3, 5), (10, 2, 7), (4, 3, 0)):
        shown = move(width=width, row=row, column=column)
        wanted = (row + 2, column + 1)
        token = row * width + column
        ahead = wanted[0] * width + wanted[1] - token - 13
        scores = {
            "flat": angles(torch.tensor(ahead), flat).cos().mean().item(),
            "axial": angles(torch.tensor([0, 0]), axial).cos().mean().item(),
        }
        for kind, score in scores.items():
            assert float(shown[kind]) == pytest.approx(score, abs=6e-3)
        reached = divmod(token + 13, width)
        name = f"row {reached[0]}, column {reached[1]}"
        assert shown["reached"] == (name if reached[0] < 6 else "no cell")
        assert shown["wanted"] == f"row {wanted[0]}, column {wanted[1]}"
        assert (shown["reached"] == shown["wanted"]) == (width == 6)


def test_a_wanted_cell_outside_the_picture_is_not_scored(on_page):
    shown = on_page(interactive.patch_on_grid())(width=8, row=5, column=7)
    assert shown["wanted"] == shown["reached"] == "no cell"
    assert shown["flat"] == shown["axial"] == "none"


def test_a_narrower_picture_takes_the_query_along(on_page):
    move = on_page(interactive.patch_on_grid())
    move(width=10, column=9)
    assert move(width=5)["column"] == "4"


def test_a_press_on_a_cell_moves_the_query_there(on_page, page):
    move = on_page(interactive.patch_on_grid())
    box = page.locator("svg").bounding_box()
    scale = box["width"] / 1060
    page.mouse.click(box["x"] + scale * (580 + 44 * 4 + 20), box["y"] + scale * 180)
    shown = move()
    assert (shown["row"], shown["column"]) == ("3", "4")
    assert part(page, "flat-query", "cx", "cy") == [20 + 21 + 44 * 4, 52 + 42 * 3]
