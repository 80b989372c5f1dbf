from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import console_errors, open_chromium, requested_urls
from golden_models import load_golden, make_processor
from PIL import Image

from damro.pages.explain import explain_answers
from damro.pages.explain_page import render_page

PROMPT = "What is <script>document.title = 'hacked'</script> <img src=x onerror=alert(1)>?"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_chromium(tmp_path_factory.mktemp("profile")) as driver:
        picture = Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB")
        explanation = explain_answers(
            load_golden("llava"), make_processor("llava"), picture, PROMPT,
            name="tiny", alpha=2.0, top_k=3, max_new_tokens=10,
        )  # fmt: skip
        page: Path = tmp_path_factory.mktemp("page") / "report.html"
        page.write_text(render_page(explanation), "utf-8")
        driver.get(page.as_uri())
        yield driver


@pytest.fixture
def page(browser: Any) -> Any:
    requested_urls(browser), console_errors(browser)  # forget what was before, the browser's own start among it
    browser.refresh()
    return browser


def current(page: Any) -> list[str]:
    """The articles that can be seen."""
    return [one.get_attribute("id") for one in page.find_elements("css selector", "article") if one.is_displayed()]


def pixels(page: Any) -> list[int]:
    script = "const c = document.getElementById('map');"
    return list(page.execute_script(script + "return [...c.getContext('2d').getImageData(0, 0, 4, 4).data]"))


def test_loads_without_errors_and_without_a_request(page: Any) -> None:
    assert page.title.startswith("What is <script>")
    assert page.execute_script("return document.documentElement.classList.contains('js')")
    assert console_errors(page) == []
    urls = requested_urls(page)
    assert urls and all(url.startswith(("file://", "data:")) for url in urls)


def test_the_policy_stops_what_the_page_did_not_bring(page: Any) -> None:
    page.execute_script("const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i);")
    page.execute_script(
        "const s = document.createElement('script'); s.text = 'window.in = 1'; document.body.append(s);"
    )
    assert page.execute_script("return window.in") is None
    assert any("Content Security Policy" in message for message in console_errors(page))


def test_a_word_under_the_pointer_shows_its_map_and_leaves_it_again(page: Any) -> None:
    from selenium.webdriver import ActionChains

    words = page.find_elements("css selector", "#greedy .word")
    [before], drawn = current(page), pixels(page)
    ActionChains(page).move_to_element(words[2]).perform()
    assert current(page) == ["greedy-2"] != [before]
    assert pixels(page) != drawn
    text = words[2].get_attribute("data-word")
    assert text in page.find_element("id", "legend").text
    assert page.find_element("id", "peak").text == words[2].get_attribute("data-peak")
    ActionChains(page).move_to_element(page.find_element("tag name", "h1")).perform()
    assert current(page) == [before] and pixels(page) == drawn


def test_the_keyboard_reaches_every_word(page: Any) -> None:
    from selenium.webdriver import Keys

    words = page.find_elements("css selector", ".word")
    for _ in range(12):  # past the controls of the picture
        page.switch_to.active_element.send_keys(Keys.TAB)
        if page.switch_to.active_element == words[0]:
            break
    assert page.switch_to.active_element == words[0] and current(page) == ["greedy-0"]
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert page.switch_to.active_element == words[1] and current(page) == ["greedy-1"]
    assert words[1].get_attribute("aria-current") == "true" and words[0].get_attribute("aria-current") is None
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert page.switch_to.active_element == words[0]


def test_the_largest_patch_has_the_brightest_colour(page: Any) -> None:
    page.find_element("id", "show-seen").click()
    assert page.find_element("id", "legend").text.startswith("[CLS] attention, layer 2")
    assert current(page) == []
    colours = pixels(page)
    outlines = page.find_elements("css selector", "#outliers .over")
    cells = [int(o.get_attribute("y")) * 4 + int(o.get_attribute("x")) for o in outlines]
    brightest = colours[cells[0] * 4 : cells[0] * 4 + 3]
    assert brightest == pytest.approx([253, 231, 37], abs=2)  # the last stop of viridis, less what transparency rounds
    for channel in (1, 3):  # the more weight, the greener and the less transparent
        assert sorted(cells, key=lambda cell: -colours[cell * 4 + channel]) == cells


def test_the_cls_map_is_a_switch(page: Any) -> None:
    switch, [before] = page.find_element("id", "show-seen"), current(page)
    switch.click()
    assert switch.is_selected() and current(page) == []
    switch.click()
    assert not switch.is_selected() and current(page) == [before]
    switch.click()
    page.find_element("css selector", "#greedy .word").click()
    assert not switch.is_selected() and current(page) == ["greedy-0"]


def test_on_a_phone_nothing_reaches_over_the_edge_and_the_map_stays_in_view(page: Any) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        page.execute_script("document.querySelector('#damro .word').click(); scrollTo(0, document.body.scrollHeight)")
        top, bottom = page.execute_script(
            "const box = document.getElementById('map').getBoundingClientRect(); return [box.top, box.bottom]"
        )
        assert 0 <= top < bottom <= 844 / 2
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_picture_stands_in_colour_beside_the_map(page: Any) -> None:
    shown = page.execute_script(
        "return ['photo', 'under'].map(i => [document.getElementById(i).naturalWidth,"
        " getComputedStyle(document.getElementById(i)).filter])"
    )
    assert shown[0][0] == shown[1][0] > 0 and [one[1] for one in shown] == ["none", "grayscale(1)"]


def test_switches(page: Any) -> None:
    page.find_element("id", "show-outliers").click()
    assert not page.find_element("id", "outliers").is_displayed()
    page.find_element("id", "show-map").click()
    assert not page.find_element("id", "map").is_displayed()
    page.find_element("id", "smooth").click()
    assert "smooth" in page.find_element("id", "map").get_attribute("class")


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2)."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(page: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    ground = luminance(page.execute_script(style, "body", "backgroundColor"))
    assert (ground < 0.1) == (scheme == "dark")
    for selector in ("h1", ".hint", ".word", "caption", "thead th", ".taken th"):
        ink = luminance(page.execute_script(style, selector, "color"))
        ratio = (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
        assert ratio >= 4.5, selector


def test_without_a_script_everything_can_be_read(page: Any) -> None:
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.refresh()
        articles = page.find_elements("css selector", "article")
        assert len(articles) == 20 and all(one.is_displayed() for one in articles)
        assert page.find_element("css selector", ".taken-out table").is_displayed()
        assert not page.find_element("css selector", ".controls").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
