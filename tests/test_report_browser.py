"""report.html in a browser: at desktop and phone width, light and dark, with and without a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import console_errors, open_chromium, requested_urls
from PIL import Image
from test_pages_explain_browser import luminance

from damro.eval.benchmark import Records, find_benchmark
from damro.eval.chair.benchmark import ChairScoring
from damro.eval.pope.benchmark import PopeScoring
from damro.eval.report.comparison import Comparison, compare
from damro.eval.report.facts import Origin
from damro.eval.report.html import Page, render, write_report

EVIL = "<script>document.title = 'hacked'</script> <img src=x onerror=alert(1)>"
COUNT = 120
WIDTHS = {"desktop": 1280, "phone": 390}
SIDES = ("better", "worse")


def captions(text: str) -> Records:
    """Captions of which all but every third are `text`."""
    return {
        str(n): {
            "image_id": n,
            "image": f"{n}.jpg",
            "prompt": "Describe.",
            "answer": text if n % 3 else "A cat.",
            "id": n,
        }
        for n in range(COUNT)
    }


def chair() -> Comparison:
    runs = {
        "greedy": captions("A cat and a bus."),
        "damro": captions("A cat and a dog."),
        "random-k:alpha=0.5": captions("A cat beside a bus."),
        "sample": captions(f"A bus, a train, {EVIL}."),
    }
    truth = {str(n): ["cat", "dog"] for n in range(COUNT)}
    return compare(find_benchmark("chair"), "org/model", runs, ChairScoring("builtin", truth=truth))


def pope() -> Comparison:
    fields = {"split": "s", "question": "Is there a bus in the image?", "label": "no"}
    records = {str(n): {**fields, "image": f"{n}.jpg", "answer": "Yes" if n % 4 else "No"} for n in range(20)}
    return compare(find_benchmark("pope"), "m", {"greedy": records}, PopeScoring())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pages")
    write_report(chair(), place / "chair.html", Origin("damro run chair", {}, lambda name: Image.new("RGB", (64, 48))))
    write_report(pope(), place / "pope.html")
    (place / "both.html").write_text(render(Page("both", ["Read me."], comparisons=[chair(), pope()])), "utf-8")
    return place


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, folder: Path) -> Any:
    return show(browser, folder / "chair.html")


def show(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> Any:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    requested_urls(browser), console_errors(browser)  # forget what was before
    browser.get(path.as_uri())
    return browser


def texts(page: Any, selector: str) -> list[str]:
    return [" ".join(one.text.split()) for one in page.find_elements("css selector", selector)]


def choose(page: Any, selector: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(page.find_element("css selector", selector)).select_by_visible_text(text)


def tick(page: Any, kind: str) -> None:
    page.find_element("css selector", f"#kinds input[value={kind}]").click()


def told(page: Any) -> str:
    return str(page.find_element("id", "told").text)


def test_loads_without_errors_and_without_a_request(page: Any) -> None:
    assert page.title == "CHAIR: org/model"
    # The browser's own first page may still be at work.
    assert [error for error in console_errors(page) if "chrome" not in error] == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    urls = [one["request"]["url"] for one in sent if one["documentURL"] == page.current_url]
    assert urls and all(url.startswith(("file://", "data:")) for url in urls)
    page.execute_script(
        "const s = document.createElement('script'); s.text = 'window.in = 1'; document.body.append(s);"
    )
    assert page.execute_script("return window.in") is None


def test_cards_tell_what_each_method_does(page: Any) -> None:
    titles = texts(page, ".card h3")
    assert titles == [f"{name} against greedy" for name in ("damro", "random-k:alpha=0.5", "sample")]
    first, second, _ = [one.text for one in page.find_elements("css selector", ".card")]
    assert "helps · CHAIRi" in first and "helps · recall" in first
    assert "cannot be told · CHAIRi" in second
    assert "hurts · CHAIRi" in texts(page, ".card")[2]


def test_better_and_worse_are_told_without_colour(page: Any) -> None:
    rows = page.find_elements("css selector", "tbody tr:has(td small)")
    better, worse = ([one.text for one in page.find_elements("css selector", f"td.{kind} small")] for kind in SIDES)
    assert len(rows) == 3 and better and worse
    assert all(text.startswith("▲ ") for text in better) and all(text.startswith("▼ ") for text in worse)
    assert not any(text[0] in "▲▼" for text in texts(page, "td[class=''] small"))
    assert "▲ better, ▼ worse than greedy." in texts(page, ".hint")


def test_samples_are_shown_before_their_pictures_are_there(page: Any) -> None:
    kinds = page.execute_script("return [...document.scripts].map((one) => one.id || one.className || one.type)")
    assert kinds == ["data", "", *["images"] * (len(kinds) - 2)] and len(kinds) == 2 + -(-COUNT // 50)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", ["chair", "pope", "both"])
def test_nothing_is_wider_than_the_window(browser: Any, folder: Path, name: str, width: int) -> None:
    page = show(browser, folder / f"{name}.html", width)
    page.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_zero_stands_below_the_zero_line(browser: Any, folder: Path, width: int) -> None:
    page = show(browser, folder / "chair.html", width)
    middle = "const box = arguments[0].getBoundingClientRect(); return box.left + box.width / 2"
    panel = page.find_element("css selector", ".panel")
    zeros = [page.execute_script(middle, one) for one in panel.find_elements("css selector", ".zero")]
    (label,) = [one for one in panel.find_elements("css selector", ".axis .strip span") if one.text == "0"]
    assert zeros == pytest.approx([page.execute_script(middle, label)] * 3, abs=1.5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(browser: Any, folder: Path, scheme: str) -> None:
    page = show(browser, folder / "chair.html", scheme=scheme)
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    ground = luminance(page.execute_script(style, "body", "backgroundColor"))
    assert (ground < 0.1) == (scheme == "dark")
    for selector in ("h1", ".hint", ".helps .word", ".hurts .word", ".cannot .word", ".num", ".gained", ".lost", ".id"):
        ink = luminance(page.execute_script(style, selector, "color"))
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5, selector
    marked = luminance(page.execute_script(style, "mark", "backgroundColor"))
    ink = luminance(page.execute_script(style, "mark", "color"))
    assert (max(ink, marked) + 0.05) / (min(ink, marked) + 0.05) >= 4.5


def test_samples_are_filtered_by_what_became_of_them(page: Any) -> None:
    changed = COUNT - len(range(0, COUNT, 3))
    assert told(page).startswith(f"{changed} of {COUNT} samples. Asked: Describe.")
    tick(page, "same")
    assert told(page).startswith(f"{COUNT} of {COUNT}")
    choose(page, "#method", "damro")
    counts = ["▲ gained 80", "▼ lost 0", "other words 0", "unchanged 40"]
    assert texts(page, "#kinds label") == counts
    tick(page, "same"), tick(page, "gained")
    assert told(page).startswith("0 of")
    choose(page, "#method", "random-k:alpha=0.5")
    assert told(page).startswith(f"{changed} of")  # the same objects in other words
    choose(page, "#method", "sample")
    assert texts(page, "#list .lost")[0] == "▼ lost"


def test_samples_are_found_by_their_words(page: Any) -> None:
    search = page.find_element("id", "search")
    search.send_keys("17.JPG")
    assert told(page).startswith("1 of") and texts(page, ".sample .id")[-1] == "17 · 17.jpg"
    search.clear()
    search.send_keys("onerror")
    assert told(page).startswith(f"{COUNT - COUNT // 3} of")


def test_hallucinated_words_are_marked_and_nothing_else_is_markup(page: Any) -> None:
    sample = page.find_element("css selector", ".sample")
    answers = sample.find_elements("css selector", ".answer")
    marked = [[one.text for one in answer.find_elements("css selector", "mark")] for answer in answers]
    assert marked == [["bus"], [], ["bus"], ["bus", "train"]]
    assert EVIL in sample.text and not sample.find_elements("css selector", "script, img[src=x]")
    assert sample.find_element("tag name", "img").get_attribute("naturalWidth") == "64"
    assert "Truth: cat, dog" in sample.text


def test_a_few_samples_are_drawn_at_first_and_more_on_the_way_down(page: Any) -> None:
    tick(page, "same")
    wait_for(page, 40)
    for drawn in (80, 120):
        page.execute_script("document.querySelector('#list').lastElementChild.scrollIntoView()")
        wait_for(page, drawn)


def wait_for(page: Any, count: int) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 20).until(lambda it: len(it.find_elements("css selector", ".sample")) == count)


def test_objects_are_told_by_method(page: Any) -> None:
    rows = [row.text.split() for row in page.find_elements("css selector", "section:has(#objects) tbody tr")]
    changed = str(COUNT - COUNT // 3)
    assert rows == [["bus", changed, "0", changed, changed], ["train", "0", "0", "0", changed]]


def test_a_run_alone_shows_what_is_wrong(browser: Any, folder: Path) -> None:
    page = show(browser, folder / "pope.html")
    assert texts(page, "#kinds label") == ["✗ wrong 15", "✓ right 5"]
    assert told(page).startswith("15 of 20") and not page.find_elements("css selector", ".panel, .card")
    assert not page.find_element("id", "set").is_displayed()
    assert console_errors(page) == []


def test_of_several_comparisons_one_is_chosen(browser: Any, folder: Path) -> None:
    page = show(browser, folder / "both.html")
    assert texts(page, ".lead p") == ["Read me."] and len(page.find_elements("id", "objects")) == 1
    choose(page, "#set", "POPE, m")
    assert told(page).startswith("15 of 20") and "no picture" in texts(page, ".sample")[0]


def test_without_a_script_all_but_the_samples_can_be_read(browser: Any, folder: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page = show(browser, folder / "chair.html")
        assert page.find_element("css selector", "noscript p").is_displayed()
        assert not page.find_element("css selector", ".controls").is_displayed()
        for selector in (".card", ".panel", "tbody td", "#facts"):
            assert page.find_element("css selector", selector).is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
