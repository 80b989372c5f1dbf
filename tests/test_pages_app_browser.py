from __future__ import annotations

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
    return str(browser.find_element("css selector", f"#{name} textarea").get_attribute("value"))


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


def test_a_scene_can_be_chosen_and_is_what_the_model_is_given(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = browser.find_element("css selector", "#image img").get_attribute("src")
    browser.find_elements("css selector", "#scenes button img")[3].click()
    wait_for(browser, lambda: browser.find_element("css selector", "#image img").get_attribute("src") != shown)
    given: list[Image.Image] = []

    def prepare(processor: Any, images: list[Image.Image], *others: Any) -> Any:
        given.extend(images)
        return prepare_inputs(processor, images, *others)

    monkeypatch.setattr("damro.pages.app.prepare_inputs", prepare)
    browser.find_element("id", "ask").click()
    wait_for(browser, lambda: given)
    assert (np.asarray(given[0]) == np.asarray(scene("test", 3).image)).all()


def test_nothing_left_the_machine_and_nothing_was_complained_about(browser: Any) -> None:
    urls = requested_urls(browser)
    home = browser.current_url
    assert [url for url in urls if not url.startswith((home, "data:", "blob:"))] == []
    assert len(urls) > 5
    assert console_errors(browser, ("SEVERE",)) == []  # Gradio's own page warns of a thing or two
