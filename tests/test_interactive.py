"""The sliders are moved in a real browser; what they show is compared with torch."""

import math

import pytest
import torch

from rope_teach import angles
from rope_teach.course import interactive
from rope_teach.rotation import rotation_matrix
from tests.browser import visit

pytestmark = pytest.mark.browser


def move(page, name, value):
    page.locator(f"[name={name}]").fill(str(value))


def test_two_arrows_show_the_dot_product_of_the_package(browser):
    q, k, step = (1.0, 0.4), (0.8, -0.5), torch.tensor([0.2], dtype=torch.float64)
    with visit(browser) as seen:
        seen.page.set_content(interactive.two_arrows(q, k, 0.2).html())
        for m, distance in ((0, 3), (77, 3), (100, 30), (5, 0)):
            move(seen.page, "shift", m)
            move(seen.page, "distance", distance)
            turn = rotation_matrix(angles(torch.tensor([m, m + distance]), step))
            rows = turn @ torch.tensor([q, k], dtype=torch.float64)[..., None]
            shown = float(seen.page.locator("[data-show=dot]").inner_text())
            assert shown == pytest.approx((rows[0] * rows[1]).sum().item(), abs=1e-6)
        assert seen.errors == [] and seen.outside == []


def test_clock_bank_turns_each_hand_at_its_speed(browser):
    speeds = [1.0, 0.1, 0.01]
    with visit(browser) as seen:
        seen.page.set_content(interactive.clock_bank(speeds, last=50).html())
        move(seen.page, "position", 37)
        for i, speed in enumerate(speeds):
            hand = seen.page.locator(f"[data-hand='{i}']")
            tip = [float(hand.get_attribute(side)) for side in ("x2", "y2")]
            assert tip == pytest.approx([math.cos(37 * speed), -math.sin(37 * speed)])
        assert seen.errors == [] and seen.outside == []


def test_two_figures_of_a_kind_on_one_page_do_not_meet(browser):
    with visit(browser) as seen:
        figure = interactive.clock_bank([1.0]).html()
        seen.page.set_content(figure + figure)
        seen.page.locator("input").nth(1).fill("9")
        shown = seen.page.locator("[data-show=position]")
        assert shown.all_inner_texts() == ["0", "9"]


def test_a_key_on_a_slider_does_not_turn_the_page(browser):
    with visit(browser) as seen:
        seen.page.set_content(interactive.clock_bank([1.0]).html())
        seen.page.evaluate("""() => {
            window.heard = [];
            document.addEventListener("keydown", (event) => heard.push(event.key));
        }""")
        seen.page.locator("input").focus()
        seen.page.keyboard.press("ArrowRight")
        assert seen.page.locator("[data-show=position]").inner_text() == "1"
        assert seen.page.evaluate("heard") == []
