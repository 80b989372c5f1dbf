from __future__ import annotations

import base64
import io
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_models import FAMILIES, load_golden, make_processor, save_golden
from PIL import Image

import damro
from damro import DAMROProcessor
from damro.errors import ParameterError, UnsupportedModelError
from damro.eval.chair.matchers import load_matcher
from damro.loading import load_model, prepare_inputs
from damro.pages.explain import Explanation, bare, explain_answers, spell_token
from damro.pages.explain_page import pack_map, percent, render_page
from tests.family_models import family_model, needs_capped, received_by_eager, siglip_processor

PROMPT = "What is <script>alert(1)</script> & 'this'?"
PICTURE = Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB")


class Page(HTMLParser):
    """What is in a page: elements with their attributes, text, and the text of some elements by class."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, of: str = "") -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag and of in (attrs.get("class") or "")]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> tuple[Any, Any, Explanation]:
    model, processor = load_golden(request.param), make_processor(request.param)
    explanation = explain_answers(
        model, processor, PICTURE, PROMPT, name="<tiny>", alpha=2.0, top_k=3, max_new_tokens=12
    )
    return model, processor, explanation


@pytest.fixture(scope="module")
def page(case: tuple[Any, Any, Explanation]) -> str:
    return render_page(case[2])


def test_both_answers_are_what_generate_gives(case: tuple[Any, Any, Explanation]) -> None:
    model, processor, explanation = case
    inputs = prepare_inputs(processor, [PICTURE], [PROMPT], model)
    start = inputs["input_ids"].shape[1]
    contrast = DAMROProcessor(model, inputs, alpha=2.0, top_k=3)
    greedy = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, start:]
    damro = model.generate(**inputs, max_new_tokens=12, do_sample=False, logits_processor=contrast)[0, start:]
    assert explanation.greedy.steps.tokens.tolist() == greedy.tolist()
    assert explanation.damro.steps.tokens.tolist() == damro.tolist()
    assert explanation.vit.outliers.indices.tolist() == contrast.outliers.tolist()
    assert greedy.tolist() != damro.tolist(), "the two must differ for the page to have something to show"
    # Greedy search takes the likeliest token; DAMRO the likeliest after contrast, so nothing was more likely.
    assert not explanation.greedy.steps.vetoed.any()
    chosen = explanation.damro.steps.contrast[:, None]
    assert bool((explanation.damro.steps.candidate_contrast <= chosen + 1e-5).all())


def test_words_that_differ_are_those_outside_the_longest_alignment(case: tuple[Any, Any, Explanation]) -> None:
    explanation = case[2]
    kept = [
        [word.text for word, differs in zip(answer.words, answer.differs, strict=True) if not differs]
        for answer in (explanation.greedy, explanation.damro)
    ]
    assert [bare(word) for word in kept[0]] == [bare(word) for word in kept[1]]
    assert any(explanation.greedy.differs) or any(explanation.damro.differs)


def test_the_page_asks_for_nothing_outside_itself(page: str) -> None:
    parsed = Page(page)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in parsed.elements}
    addresses = [attrs[key] or "" for _, attrs in parsed.elements for key in ("src", "href", "action") if key in attrs]
    assert addresses and all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp|import\(", page)
    [policy] = [attrs["content"] or "" for attrs in parsed.all("meta") if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_text_of_the_prompt_and_the_model_is_escaped(page: str) -> None:
    parsed = Page(page)
    assert "<script>alert" not in page and len(parsed.all("script")) == 1
    assert PROMPT in parsed.text and "<tiny>" in parsed.text
    assert not [attrs for _, attrs in parsed.elements if any(key.startswith("on") for key in attrs)]


def test_every_word_leads_to_its_steps(case: tuple[Any, Any, Explanation], page: str) -> None:
    explanation = case[2]
    parsed = Page(page)
    words = parsed.all("a", "word")
    assert len(words) == len(explanation.greedy.words) + len(explanation.damro.words)
    targets = {attrs["id"] for attrs in parsed.all("article")}
    assert {(attrs["href"] or "")[1:] for attrs in words} == targets
    marked = [("differs" in (attrs["class"] or "")) for attrs in words]
    assert marked == [*explanation.greedy.differs, *explanation.damro.differs]
    # A map is one byte a patch, scaled to its own peak.
    maps = torch.cat([explanation.greedy.maps, explanation.damro.maps])
    for attrs, one in zip(words, maps, strict=True):
        cells = torch.tensor(list(base64.b64decode(attrs["data-map"] or "")))
        assert (cells / 255 - one.flatten() / one.max()).abs().max() <= 0.5 / 255 + 1e-6
        assert float(attrs["data-peak"] or 0) == pytest.approx(float(one.max()), rel=0.01)


def test_words_that_are_gone_are_listed_without_a_script(case: tuple[Any, Any, Explanation], page: str) -> None:
    greedy, contrasted = case[2].greedy, case[2].damro
    section = page[page.index('class="taken-out"') : page.index('class="words"')]
    listed = re.findall(r'<tr><th scope="row"><b>(.*?)</b></th><td class="number">(.*?)</td>', section)
    left = {bare(word.text) for word in contrasted.words}
    expected = list(dict.fromkeys(bare(word.text) for word in greedy.words if bare(word.text) not in left | {""}))
    assert [unescape(text).lower() for text, _ in listed] == expected != []
    first = next(word for word in greedy.words if bare(word.text) == expected[0])
    assert unescape(listed[0][1]) == percent(float(greedy.steps.full[first.tokens[0]].exp()))
    assert "not in the picture" not in page  # nobody knows


def test_what_is_not_in_the_picture_is_crossed_out_and_named() -> None:
    model, processor = load_model("tiny")
    matcher = load_matcher("builtin")

    def judge(text: str) -> list[tuple[int, int, bool]]:
        return [(found.start, found.end, found.name in ("chair", "knife")) for found in matcher.find(text)]

    explained = damro.explain(model, processor, "tiny:3", "What is in this picture?", judge=judge)
    assert explained.greedy.text == "A restaurant with a chair, a knife and a fork."
    there = dict(zip((bare(word.text) for word in explained.greedy.words), explained.greedy.in_picture, strict=True))
    assert there == {
        "a": None, "restaurant": None, "with": None, "and": None, "chair": True, "knife": True, "fork": False,
    }  # fmt: skip
    gone = {word.text: word.in_picture for word in explained.gone()}
    assert gone == {"with": None, "chair": True}  # a thing that is there was lost, and the fork stayed
    parsed = Page(explained.to_html())
    assert [attrs["data-word"] for attrs in parsed.all("a", "absent")] == ["fork.", "fork"]
    assert "chair" in parsed.text and "in the picture" in parsed.text and "no thing" in parsed.text


def test_an_explanation_saves_and_shows_itself(case: tuple[Any, Any, Explanation], page: str, tmp_path: Path) -> None:
    assert case[2].save(tmp_path / "page.html").read_text("utf-8") == page
    [frame] = [attrs for name, attrs in Page(case[2]._repr_html_()).elements if name == "iframe"]
    assert frame["srcdoc"] == page


def test_explain_takes_a_file_and_names_the_model(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "picture.png")
    folder = save_golden("llava", tmp_path / "some-llava")
    model, processor = load_model(folder)
    explained = damro.explain(model, processor, tmp_path / "picture.png", "What", max_new_tokens=2, top_k=2)
    assert explained.model == "some-llava" and len(explained.greedy.steps.tokens) == 2


def test_the_picture_is_what_the_tower_saw(case: tuple[Any, Any, Explanation], page: str) -> None:
    [image] = [attrs for attrs in Page(page).all("img") if attrs["alt"]]
    picture = Image.open(io.BytesIO(base64.b64decode((image["src"] or "").split(",")[1])))
    assert picture.size == case[2].picture.size
    model = case[0]
    # LLaVA crops the square out of the middle; the others squeeze the whole image, LLaVA-NeXT is stretched back.
    assert picture.size == ((56, 42) if model.config.model_type == "llava_next" else (56, 56))
    want = PICTURE.crop((10, 0, 70, 60)) if model.config.model_type == "llava" else PICTURE
    difference = torch.tensor(list(want.resize(picture.size, Image.Resampling.BICUBIC).tobytes())).float()
    difference -= torch.tensor(list(picture.tobytes())).float()
    assert difference.abs().mean() < 6


def test_an_answer_of_nothing_is_said_to_be_nothing() -> None:
    model, processor = load_golden("llava"), make_processor("llava")
    torch.nn.init.zeros_(model.lm_head.weight)  # all tokens are alike, the first is <pad>, which has no text
    explanation = explain_answers(model, processor, PICTURE, "What", name="tiny", max_new_tokens=3)
    assert explanation.greedy.words == () and explanation.greedy.text == ""
    html = render_page(explanation)
    assert "(nothing)" in html and "Nothing: every word" in html


@pytest.mark.parametrize("name", ["paligemma", "llava_siglip"])
def test_without_cls_the_page_shows_and_names_the_attention_received(name: str) -> None:
    model, processor = family_model(name), siglip_processor(name)
    explanation = explain_answers(
        model, processor, PICTURE, "What is this?", name="tiny", alpha=2.0, beta=0.1, top_k=3, max_new_tokens=4
    )
    html = render_page(explanation)
    parsed = Page(html)
    heads = "mean" if name == "paligemma" else "merged"
    assert f"attention received, layer 3, heads {heads}" in parsed.text
    assert "The outlier patches receive the most attention." in parsed.text
    # It is said once that there is no [CLS], and nothing else bears the name.
    assert parsed.text.count("[CLS]") == parsed.text.count("has no [CLS]") == 1
    written = re.sub(r'base64,[^"]*|data-map="[^"]*"', "", html)
    assert "CLS" not in written.replace("has no [CLS]", "")
    inputs = prepare_inputs(processor, [PICTURE], ["What is this?"], model)
    contrast = DAMROProcessor(model, inputs, alpha=2.0, beta=0.1, top_k=3)
    places = [(int(attrs["y"] or 0), int(attrs["x"] or 0)) for attrs in parsed.all("rect", "over")]
    assert places == [(index // 4, index % 4) for index in contrast.outliers[0].tolist()]
    if heads == "mean":
        expected = received_by_eager(name, inputs["pixel_values"])[0]
        assert contrast.outliers[0].tolist() == expected.topk(3).indices.tolist()
        [button] = [attrs for attrs in parsed.all("input") if attrs.get("id") == "show-seen"]
        cells = torch.tensor(list(base64.b64decode(button["data-map"] or "")))
        assert (cells / 255 - expected / expected.max()).abs().max() <= 0.5 / 255 + 1e-5


def test_with_cls_the_page_names_it(case: tuple[Any, Any, Explanation], page: str) -> None:
    text = Page(page).text
    assert f"[CLS] attention, layer {case[2].vit.layer}" in text and "[CLS] map" in text
    assert "[CLS] attends to the outlier patches most." in text and "receive" not in text


OPTIONS: dict[str, Any] = {"name": "tiny", "alpha": 2.0, "beta": 0.1, "top_k": 3}


def generate_nothing(*values: Any, **options: Any) -> Any:
    raise AssertionError("an answer was generated")


def test_layers_that_are_not_there_are_refused_before_anything_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_golden("llava")
    monkeypatch.setattr(type(model), "generate", generate_nothing)
    with pytest.raises(ParameterError, match="language model's 3 layers .* got 3"):
        explain_answers(model, make_processor("llava"), PICTURE, "What", layers=[3], **OPTIONS)


@needs_capped
def test_soft_capped_scores_are_refused_before_anything_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    soft_capped = family_model("paligemma2")
    monkeypatch.setattr(type(soft_capped), "generate", generate_nothing)
    with pytest.raises(UnsupportedModelError, match="without soft-capped scores"):
        explain_answers(soft_capped, siglip_processor("paligemma"), PICTURE, "What", **OPTIONS)


def test_small_things() -> None:
    assert pack_map(torch.zeros(2, 2)) == {"cells": "AAAAAA==", "peak": "0"}
    assert spell_token(make_processor("llava").tokenizer, 2) == "</s>"
    with pytest.raises(ParameterError, match="max_new_tokens must be at least 1, got 0"):
        explain_answers(load_golden("llava"), make_processor("llava"), PICTURE, "What", name="", max_new_tokens=0)
