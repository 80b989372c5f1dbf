"""The whole diagnosis: against stock transformers and runs, on several families, and what is missing by name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from PIL import Image

import damro
from damro.diagnosis import AnnotatedImage, Diagnosis, Settings, scene_images
from damro.diagnosis.asking import YesReader
from damro.diagnosis.diagnose import diagnose
from damro.diagnosis.page import render_page
from damro.diagnosis.reading import Reader, Reading
from damro.diagnosis.verdict import CANNOT_TELL, LIKELY, NO_REASON
from damro.diagnosis.words import caveats, sections, summary
from damro.errors import InputsError, ParameterError, UnsupportedModelError
from damro.eval.pope.rules import parse_answer
from damro.eval.runs.engine import make_engine
from damro.eval.runs.first_token import answer_in_one_token
from damro.images import ImageError
from damro.loading import load_model, prepare_inputs
from tests.chat_models import qwen_processor
from tests.family_models import encoder_processor, family_model
from tests.told import dataset_of, request
from tests.zoo import zoo_model

SCENES = 12
SETTINGS = Settings(matcher="builtin", alpha=(0.5, 2.0), beta=(0.1, 0.3))


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def found(loaded: Any) -> Diagnosis:
    return damro.diagnose(loaded.model, loaded.processor, scene_images(SCENES), SETTINGS)


@pytest.fixture(scope="module")
def scene(found: Diagnosis) -> AnnotatedImage:
    """One whose caption names an object that is not there."""
    assert found.examples[0].hallucinated
    return next(image for image in scene_images(SCENES) if image.name == found.examples[0].name)


@pytest.fixture(scope="module")
def readings(loaded: Any, scene: AnnotatedImage) -> list[Reading]:
    """That scene's first, and those of others."""
    others = [image for image in scene_images(4) if image.name != scene.name]
    read, left_out = Reader(loaded.model, loaded.processor, SETTINGS).read([scene, *others])
    assert not left_out
    return read


def test_a_dozen_images_tell_nothing_yet(found: Diagnosis) -> None:
    assert found.verdict == CANNOT_TELL
    assert found.images == SCENES and not found.left_out and not found.missing and found.unclear == 0
    assert found.outliers.source == "cls" and found.outliers.top_k == 10 and found.outliers.placed == SCENES
    told = found.to_json()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["verdict"] == CANNOT_TELL
    assert {len(claims) for claims in told["claims"].values()} == {6}
    assert told["outliers"]["uniform"] == 10 / 64


@pytest.mark.parametrize("method", ["damro", "random-k", "least-k", "no-image"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.1), (2.0, 0.3)])
def test_accuracy_changes_as_in_a_run(found: Diagnosis, loaded: Any, method: str, alpha: float, beta: float) -> None:
    asked = request("pope", "tiny", method=method, scenes=SCENES, max_new_tokens=1, alpha=alpha, beta=beta)
    dataset = dataset_of(asked)
    engines = {
        name: make_engine(one, loaded, dataset.open_image)
        for name, one in (("greedy", request("pope", "tiny", scenes=SCENES, max_new_tokens=1)), (method, asked))
    }
    right = dict.fromkeys(engines, 0)
    for image in dict.fromkeys(sample.image for sample in dataset.samples):
        samples = [sample for sample in dataset.samples if sample.image == image]
        for name, answers in answer_in_one_token(engines, samples).items():
            for sample, answer in zip(samples, answers, strict=True):
                right[name] += parse_answer(str(answer.text), "pope") == sample.fields["label"]
    assert found.question_room is not None
    place = SETTINGS.alpha.index(alpha), SETTINGS.beta.index(beta)
    change = found.question_room.change[method][place[0]][place[1]]
    assert change == pytest.approx((right[method] - right["greedy"]) / len(dataset.samples))


def test_log_probabilities_are_those_of_stock_transformers(loaded: Any, readings: list[Reading]) -> None:
    model, processor = loaded.model, loaded.processor
    asked = next(one for one in readings if one.answers)
    image = next(one for one in scene_images(SCENES) if one.name == asked.name).open_image()
    yes = YesReader(processor.tokenizer)
    for answer in asked.answers[:3]:
        inputs = prepare_inputs(processor, [image], [answer.question.prompt], model)
        logits = model(**inputs).logits[0, -1]
        assert answer.says_yes == (processor.decode(logits.argmax()).strip().lower() == "yes")
        kept = dict(zip(answer.step.tokens.tolist(), answer.step.full.tolist(), strict=True))
        for token, value in kept.items():
            assert logits[token].item() == pytest.approx(value, abs=1e-3)
        text_only = inputs["input_ids"][inputs["input_ids"] != model.config.image_token_id][None]
        no_image = model(input_ids=text_only, attention_mask=torch.ones_like(text_only)).logits[0, -1]
        expected = torch.log_softmax(no_image, dim=-1)[yes.tokens].logsumexp(dim=-1)
        assert answer.yes[3] == pytest.approx(expected.item(), abs=1e-3)
        processed = damro.DAMROProcessor(model, inputs)
        embeds = processed.branch.prompt.inputs_embeds
        outliers = model.language_model if hasattr(model, "language_model") else model.model.language_model
        hidden = outliers(inputs_embeds=embeds).last_hidden_state[0, -1]
        expected = torch.log_softmax(model.lm_head(hidden), dim=-1)[yes.tokens].logsumexp(dim=-1)
        assert answer.yes[0] == pytest.approx(expected.item(), abs=1e-3)


def test_the_caption_is_greedy_and_its_words_are_found(
    loaded: Any, scene: AnnotatedImage, readings: list[Reading]
) -> None:
    model, processor = loaded.model, loaded.processor
    inputs = prepare_inputs(processor, [scene.open_image()], ["Generate a short caption of this image."], model)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=64)
    caption = readings[0].caption
    assert caption is not None
    new = ids[0, inputs["input_ids"].shape[1] :]
    assert caption.text == processor.decode(new, skip_special_tokens=True)
    assert caption.open_steps.shape == (len(new), 2)
    assert {word.hallucinated for word in caption.named} >= {True}
    for word in caption.named:
        assert word.hallucinated == (word.mention.name not in scene.objects)
        assert caption.text[word.mention.start : word.mention.end] == word.mention.word
    logits = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0]
    start = inputs["input_ids"].shape[1] - 1
    steps = {tuple(word.step.tokens.tolist()): word.step.full for word in caption.named}
    matched = 0
    for place in range(start, len(logits)):
        for tokens, full in steps.items():
            matched += torch.allclose(logits[place, list(tokens)], torch.from_numpy(full), atol=1e-3)
    assert matched >= len(steps)
    for word in caption.named:
        assert word.kinds[word.step.full.argmax()] == (-1 if word.hallucinated else 1)  # greedy search chose it


def test_flagged_patches_are_damros(loaded: Any, scene: AnnotatedImage, readings: list[Reading]) -> None:
    inputs = prepare_inputs(loaded.processor, [scene.open_image()], ["What is this?"], loaded.model)
    assert readings[0].look.flagged.tolist() == damro.outlier_view(loaded.model, inputs).outliers[0].tolist()
    assert readings[0].look.chance == 10 / 64


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_it_all_and_loads_nothing(found: Diagnosis) -> None:
    page = Page(render_page(found, "tiny"))
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.tags.count("img") == 3 + 3 * len(found.examples) and "script" not in page.tags
    for line in (*summary(found), *(line for lines in sections(found).values() for line in lines)):
        assert line in page.text
    assert "damro diagnose: tiny" in page.text and found.verdict in page.text
    assert page.tags.count("mark") >= 1


def test_what_a_model_says_is_text_on_the_page(found: Diagnosis) -> None:
    evil = "<script>alert(1)</script> & a <b>cat</b>"
    example = replace(found.examples[0], name=evil, caption=evil, hallucinated=((2, 8),), objects=(evil,))
    told = replace(found, examples=(example,), left_out={evil: evil}, missing={"following": evil})
    html = render_page(told, evil)
    page = Page(html)
    assert "script" not in page.tags and "b" not in page.tags
    assert "<script" not in html and page.text.count("alert(1)") >= 5


def test_every_number_comes_with_its_interval(found: Diagnosis) -> None:
    lines = [line for of_part in sections(found).values() for line in of_part]
    assert len(lines) > 15
    assert sum(len(re.findall(r"\([+-]?\d+\.\d+ to [+-]?\d+\.\d+\)", line)) for line in lines) > 30
    assert not re.search(r"nan|inf\b|None", " ".join(lines))


@pytest.mark.parametrize("family", ["llava_next", "instructblip"])
def test_other_families_are_diagnosed(family: str) -> None:
    model, processor = load_model(f"tiny:{family}", device="cpu")
    found = diagnose(model, processor, scene_images(2), SETTINGS)
    assert (found.family, found.images, found.missing) == (family, 2, {})
    assert found.outliers.top_k == {"llava_next": 10, "instructblip": 4}[family]
    assert found.following is not None and found.questions is not None and found.captions is not None
    assert found.verdict == CANNOT_TELL


def pictures(count: int) -> list[AnnotatedImage]:
    """Pictures without places."""

    def draw(number: int) -> Image.Image:
        return Image.effect_mandelbrot((80, 60), (-2 + number / 9, -1.5, 1, 1.5), 20).convert("RGB")

    objects = [frozenset({"cat", "dog"}), frozenset({"dog", "car"}), frozenset({"cat", "bus"})]
    return [AnnotatedImage(f"{number}", partial(draw, number), objects[number % 3]) for number in range(count)]


def test_a_model_without_a_module_says_what_is_missing() -> None:
    found = diagnose(zoo_model("qwen2_5_vl"), qwen_processor(), pictures(3), replace(SETTINGS, top_k=3))
    assert found.outliers.source == "received" and found.outliers.top_k == 3
    assert found.following is not None and found.captions is not None
    assert found.questions is None and "token that spells yes" in found.missing["questions"]
    assert "background" in found.missing
    told = " ".join(caveats(found))
    assert "no [CLS]" in told and "not the paper's method" in told
    assert "The paper has no alpha, beta and top-k for qwen2_5_vl" in told
    assert "Where flagged patches lie is not told" in told
    assert "Yes/no questions are not told" in told
    page = render_page(found, "qwen")
    assert "attention received" in page and "[CLS] attention" not in page


def test_an_encoder_decoder_is_not_followed() -> None:
    found = diagnose(family_model("blip-2-t5"), encoder_processor("blip-2-t5"), pictures(2), replace(SETTINGS, top_k=3))
    assert found.following is None and "following" in found.missing
    assert found.captions is not None
    assert render_page(found, "blip")


def test_images_that_cannot_be_read_are_left_out(loaded: Any) -> None:
    def broken() -> Image.Image:
        raise ImageError("image must be a file that Pillow can open, got 'x'")

    bad = AnnotatedImage("bad", broken, frozenset({"cat"}))
    found = diagnose(loaded.model, loaded.processor, [bad, *scene_images(2)], SETTINGS)
    assert found.images == 2 and found.left_out == {"bad": "image must be a file that Pillow can open, got 'x'"}
    assert "Left out are 1 images (bad: image must be" in " ".join(caveats(found))
    with pytest.raises(ImageError, match="Pillow can open"):
        diagnose(loaded.model, loaded.processor, [bad, replace(bad, name="worse")], SETTINGS)


def test_what_no_diagnosis_can_be_made_of_is_refused(loaded: Any) -> None:
    model, processor = loaded
    images = scene_images(2)
    with pytest.raises(InputsError, match="samples must be at least two images, got 1"):
        diagnose(model, processor, images[:1])
    with pytest.raises(InputsError, match="got one twice"):
        diagnose(model, processor, [images[0], images[0]])
    with pytest.raises(ParameterError, match="top_k must be a whole number from 1 to the 64 patches"):
        diagnose(model, processor, images, Settings(top_k=65))
    with pytest.raises(ParameterError, match="layer must name one of the ViT's 6 layers"):
        diagnose(model, processor, images, Settings(layer=6))
    with pytest.raises(ParameterError, match="layers must name some of the language model's"):
        diagnose(model, processor, images, Settings(layers=(99,)))
    with pytest.raises(UnsupportedModelError):
        diagnose(torch.nn.Linear(1, 1), processor, images)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "top_k", "expected"), [("llava", 10, NO_REASON), ("flawed", 6, LIKELY)])
def test_the_verdict_on_embedded_models_agrees_with_runs(name: str, top_k: int, expected: str) -> None:
    model, processor = load_model(f"tiny:{name}", device="cpu")
    found = diagnose(model, processor, scene_images(150), Settings(matcher="builtin", top_k=top_k))
    assert found.verdict == expected, summary(found)
