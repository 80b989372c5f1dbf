from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import console_errors, open_chromium, requested_urls
from golden_models import load_golden, make_processor
from gradio_server import serving
from PIL import Image

from damro.loading import prepare_inputs
from damro.pages.app_examples import OUTCOMES, PROMPT
from damro.pages.app_texts import BUSY, MEANINGS, only_words
from damro.pages.explain import bare
from damro.tiny import scene

pytest.importorskip("gradio", reason="gradio is not installed")

# Gradio's server leaves sockets and event loops to the garbage collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model, processor = load_golden("llava"), make_processor("llava")
    with open_chromium(tmp_path_factory.mktemp("profile")) as driver, serving(model, processor) as address:
        requested_urls(driver)  # forget the browser's own start
        driver.get(address)
        yield driver


def wait_for(browser: Any, condition: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60, poll_frequency=0.2).until(lambda driver: condition())


def text_of(browser: Any, name: str) -> str:
    return str(browser.find_element("css selector", f"#{name} p").text)


def set_number(browser: Any, name: str, value: str) -> None:
    from selenium.webdriver import Keys

    box = browser.find_element("css selector", f"#{name} input[type=number]")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(value, Keys.ENTER, Keys.TAB)


def test_upload_ask_and_move_a_slider(browser: Any, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(photo)
    find = browser.find_element
    wait_for(browser, lambda: browser.find_elements("css selector", "#image img"))
    scene = find("css selector", "#image img").get_attribute("src")
    find("css selector", "#image button[aria-label='Remove Image']").click()
    wait_for(browser, lambda: browser.find_elements("css selector", "#image input[type=file]"))
    find("css selector", "#image input[type=file]").send_keys(str(photo))
    wait_for(browser, lambda: browser.find_elements("css selector", "#image img"))
    assert find("css selector", "#image img").get_attribute("src") != scene

    set_number(browser, "length", "12")
    find("id", "ask").click()
    wait_for(browser, lambda: len(text_of(browser, "damro").split()) == 12)
    greedy, first = text_of(browser, "greedy"), text_of(browser, "damro")
    assert len(greedy.split()) == 12 and greedy != first
    wait_for(browser, lambda: browser.find_elements("css selector", "#map img"))
    wait_for(browser, lambda: len(browser.find_elements("css selector", "#taken tbody tr")) > 0)
    assert "load_model" in find("id", "code").text

    handle = find("css selector", "#alpha input[type=range]")
    from selenium.webdriver import ActionChains

    ActionChains(browser).drag_and_drop_by_offset(handle, 1 - handle.size["width"] // 2, 0).perform()
    wait_for(browser, lambda: text_of(browser, "damro") == greedy)  # without a contrast DAMRO is greedy search
    assert "alpha=0" in find("id", "code").text


def test_an_example_asks_at_once_with_the_presets_and_the_pixels_of_its_scene(
    browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def prepare(processor: Any, images: list[Image.Image], prompts: list[str], *others: Any) -> Any:
        given.extend([*images, *prompts])
        return prepare_inputs(processor, images, prompts, *others)

    monkeypatch.setattr("damro.pages.app_answers.prepare_inputs", prepare)
    labels = [found.text for found in browser.find_elements("css selector", "#scenes .caption-label")]
    assert labels == [f"scene {number}" for number in OUTCOMES["llava"]]
    browser.find_elements("css selector", "#scenes button img")[3].click()
    wait_for(browser, lambda: given)
    assert (np.asarray(given[0]) == np.asarray(scene("test", 13).image)).all() and given[1] == PROMPT
    wait_for(browser, lambda: "In the picture: potted plant" in browser.find_element("id", "about").text)
    wait_for(browser, lambda: re.search(r"alpha=2(\.0)?,", browser.find_element("id", "code").text))
    wait_for(browser, lambda: browser.find_element("id", "note").text.strip() not in ("", BUSY))
    alpha = browser.find_element("css selector", "#alpha input[type=number]").get_attribute("value")
    assert float(alpha) == 2


def test_words_of_one_answer_alone_are_marked_in_more_than_colour(browser: Any) -> None:
    note = browser.find_element("id", "note").text
    for name, said in (("greedy", "Greedy search"), ("damro", "DAMRO")):
        marks = browser.find_elements("css selector", f"#{name} mark")
        words = only_words(text_of(browser, name), text_of(browser, "damro" if name == "greedy" else "greedy"))
        assert words and list(dict.fromkeys(bare(mark.text) for mark in marks)) == words
        assert f"{said} alone says: {', '.join(words)}." in note
        style = marks[0].value_of_css_property
        assert style("text-decoration-style") == "wavy" and int(style("font-weight")) >= 600


def test_every_parameter_is_explained(browser: Any) -> None:
    for name, meaning in MEANINGS.items():
        assert meaning in browser.find_element("id", name).text


def boxes(browser: Any) -> dict[str, Any]:
    return {name: browser.find_element("id", name).rect for name in ("question", "answers", "settings", "evidence")}


def test_on_a_phone_the_answers_come_before_the_sliders(browser: Any) -> None:
    wide = boxes(browser)
    assert wide["answers"]["x"] > wide["question"]["x"] + wide["question"]["width"] - 1
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        narrow = boxes(browser)
        assert sorted(narrow, key=lambda name: narrow[name]["y"]) == ["question", "answers", "settings", "evidence"]
        assert len({box["x"] for box in narrow.values()}) == 1
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_error_is_told_once_and_the_terminal_is_left_alone(browser: Any, capfd: pytest.CaptureFixture[str]) -> None:
    from selenium.webdriver import Keys

    before = text_of(browser, "damro")
    box = browser.find_element("css selector", "#prompt textarea")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(Keys.DELETE)
    browser.find_element("id", "ask").click()
    told = "image and prompt must both be given"
    wait_for(browser, lambda: told in browser.find_element("tag name", "body").text)
    assert browser.find_element("tag name", "body").text.count(told) == 1
    shown = browser.find_elements("css selector", "#parts .error")
    assert [part.text for part in shown if part.is_displayed()] == [] and text_of(browser, "damro") == before
    assert "Traceback" not in (written := capfd.readouterr()).err + written.out


def luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_answers_and_small_print_are_legible_on_light_and_on_dark(browser: Any, scheme: str) -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get(browser.current_url)
    wait_for(browser, lambda: browser.find_elements("css selector", "#damro h3"))
    paper = luminance(browser.find_element("id", "damro").value_of_css_property("background-color"))
    assert (paper < 0.05) == (scheme == "dark")
    for place in ("#damro h3", "#damro p", "#alpha [data-testid=block-info]"):
        ink = luminance(browser.find_element("css selector", place).value_of_css_property("color"))
        low, high = sorted((ink, paper))
        assert (high + 0.05) / (low + 0.05) > 4.5, place
    low, high = sorted((luminance("rgb(128, 128, 128)"), paper))  # the map's writing
    assert (high + 0.05) / (low + 0.05) > 3.5


def test_nothing_left_the_machine_and_nothing_was_complained_about(browser: Any) -> None:
    urls = requested_urls(browser)
    home = browser.current_url
    assert [url for url in urls if not url.startswith((home, "data:", "blob:"))] == []
    assert len(urls) > 5
    assert console_errors(browser, ("SEVERE",)) == []  # Gradio's own page warns of a thing or two
