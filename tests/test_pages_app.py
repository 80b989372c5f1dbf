from __future__ import annotations

import contextlib
import io
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_models import load_golden, make_processor, save_golden
from gradio_server import collected_leftovers, serving
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed")

from damro import DAMROProcessor, tiny
from damro.errors import InputsError, ParameterError
from damro.eval.chair.matchers import load_matcher
from damro.figures import draw_overlay
from damro.images import ImageError, ImageSizeError, load_image
from damro.loading import prepare_inputs
from damro.methods.presets import starting_preset
from damro.pages.app import build_app
from damro.pages.app_answers import PROMPT_LIMIT, answer_request, stream_answer
from damro.pages.app_examples import OUTCOMES, PROMPT, list_examples
from damro.pages.app_texts import only_words, tell_difference, write_answer, write_recipe, write_taken
from damro.tiny import scene
from tests.family_models import (
    encoder_processor,
    family_model,
    received_by_eager,
    siglip_processor,
)

# Gradio's server leaves sockets and event loops to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_golden("llava"), make_processor("llava")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "image.png"
    Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(path)
    return path


def generated(model: Any, processor: Any, photo: Path, processors: list[Any], length: int) -> str:
    inputs = prepare_inputs(processor, [Image.open(photo)], ["What is this?"], model)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=length, logits_processor=processors)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_both_answers_stream_and_end_as_generate_ends(loaded: tuple[Any, Any], photo: Path) -> None:
    model, processor = loaded
    inputs = prepare_inputs(processor, [Image.open(photo)], ["What is this?"], model)
    contrast = DAMROProcessor(model, inputs, alpha=2.0, beta=0.1, top_k=3)
    shown = list(answer_request(model, processor, "golden", str(photo), "What is this?", 2.0, 0.1, 3, 10))
    greedy, damro, picture, taken, code, complete = shown[-1]
    assert [state.complete for state in shown] == [False] * (len(shown) - 1) + [complete] and complete
    assert greedy == generated(model, processor, photo, [], 10)
    assert damro == generated(model, processor, photo, [contrast], 10)
    assert greedy != damro and taken
    # Each text only grows, and DAMRO's begins when greedy search's is complete.
    for column in (0, 1):
        texts = [state[column] for state in shown]
        assert all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))
        assert len(set(texts)) > 3
    assert all(state[0] == greedy for state in shown if state[1])
    assert picture.size[0] > 300 and "DAMROProcessor" in code
    place, out, *_ = taken[0]
    assert isinstance(place, int) and out not in damro.split()[place - 1 : place]


def test_the_python_gives_the_same_answer(
    loaded: tuple[Any, Any], photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded
    folder = save_golden("llava", tmp_path / "it's")
    *_, (_, damro, _, _, code, _) = answer_request(
        model, processor, str(folder), str(photo), "What is 'this'?\n\"", 1.5, 0.1, 3, 8
    )
    monkeypatch.chdir(photo.parent)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "recipe", "exec"), {})
    assert printed.getvalue().strip() == damro
    assert write_recipe("a", "b", 1.0, 0.1, 2, 3).isascii()


@pytest.mark.parametrize("name", ["paligemma", "llava_siglip"])
def test_without_cls_the_map_shows_and_names_the_attention_received(
    name: str, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, Any]] = []

    def draw(image: Any, values: Any, **options: Any) -> Any:
        drawn.append((values, options))
        return draw_overlay(image, values, **options)

    monkeypatch.setattr("damro.pages.app_answers.draw_overlay", draw)
    model, processor = family_model(name), siglip_processor(name)
    *_, (greedy, damro, picture, _, _, _) = answer_request(
        model, processor, "tiny", str(photo), "What is this?", 2.0, 0.1, 3, 6
    )
    assert greedy == generated(model, processor, photo, [], 6)
    inputs = prepare_inputs(processor, [Image.open(photo)], ["What is this?"], model)
    contrast = DAMROProcessor(model, inputs, alpha=2.0, beta=0.1, top_k=3)
    assert damro == generated(model, processor, photo, [contrast], 6)
    [(values, options)] = drawn
    heads = "mean" if name == "paligemma" else "merged"
    assert options["title"] == f"attention received, layer 3, heads {heads}, tiny"
    assert options["outliers"] == [(index // 4, index % 4) for index in contrast.outliers[0].tolist()]
    if heads == "mean":
        expected = received_by_eager(name, inputs["pixel_values"])[0]
        torch.testing.assert_close(values.flatten(), expected, atol=1e-6, rtol=1e-4)
    assert picture.size[0] > 300


def opened(model: Any, processor: Any) -> tuple[str, dict[str, Any]]:
    """The page's head, and its named parts."""
    with collected_leftovers():
        page = build_app(model, processor, "tiny")
        parts = list(page.blocks.values())
        [head] = [part.value for part in parts if type(part).__name__ == "Markdown"]
        named = {part.elem_id: part for part in parts if getattr(part, "elem_id", None)}
        page.close()
    return head, named


def test_a_family_of_the_paper_has_its_values(loaded: tuple[Any, Any]) -> None:
    head, parts = opened(*loaded)
    assert "no preset" not in head and "CLS" not in head
    assert [parts[name].value for name in ("alpha", "beta", "top-k")] == [2.0, 0.1, 10]
    assert parts["map"].label == "[CLS] attention and outlier patches"


@pytest.mark.parametrize("name", ["paligemma", "blip-2-t5"])
def test_a_family_without_a_preset_opens_and_says_so(name: str) -> None:
    processor = siglip_processor(name) if name == "paligemma" else encoder_processor(name)
    model = family_model(name)
    head, parts = opened(model, processor)
    assert f"The paper has no preset for {model.config.model_type}" in head and "2, 0.1 and 10" in head
    assert [parts[name].value for name in ("alpha", "beta", "top-k")] == [2.0, 0.1, 10]
    received = name == "paligemma"
    assert parts["map"].label == f"{'attention received' if received else '[CLS] attention'} and outlier patches"
    assert ("ranked by the attention they receive, which is not the paper's method" in head) == received


def test_the_model_is_given_the_pixels_of_the_scene_and_of_the_upload(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    part = opened(*loaded)[1]["image"]
    for number in (18, 3):  # the scene that the page opens with, and one that was chosen, go the way of every output
        picture = scene("test", number).image
        path = part.preprocess(part.postprocess(picture))
        assert (np.asarray(load_image(path)) == np.asarray(picture)).all()
    assert (np.asarray(load_image(part.value["path"])) == np.asarray(scene("test", 18).image)).all()
    grey = np.asarray(scene("test", 0).image.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(grey).save(tmp_path / "grey.jpg", quality=60)
    Image.fromarray(np.stack([grey] * 4, -1)).save(tmp_path / "clear.png")
    for name in ("sixteen.png", "grey.jpg", "clear.png"):
        uploaded = part.preprocess(part.data_model(path=str(tmp_path / name), orig_name=name))
        assert Path(uploaded).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", sorted(OUTCOMES))
def test_the_examples_do_what_is_said_of_them(checkpoint: str, tmp_path: Path) -> None:
    model, processor = tiny.load(checkpoint)
    start = starting_preset(model.config.model_type)
    find = load_matcher("builtin").find
    for number, outcome in OUTCOMES[checkpoint].items():
        picture = scene("test", number)
        picture.image.save(tmp_path / "scene.png")
        *_, end = answer_request(model, processor, "tiny", str(tmp_path / "scene.png"), PROMPT, *start, 64)
        greedy, damro = ({found.name for found in find(text)} for text in (end.greedy, end.damro))
        there = {thing.name for thing in picture.objects}
        told = tuple(set(names) for names in outcome)
        assert (greedy - damro, damro - greedy, (greedy & damro) - there) == told, (number, end.greedy, end.damro)
        assert any(told) or end.greedy == end.damro


def test_nothing_is_said_of_what_other_models_and_drawn_answers_do() -> None:
    for examples in (list_examples("llava-hf/llava-1.5-7b-hf", greedy=True), list_examples("tiny", greedy=False)):
        assert all(example.label.startswith("scene ") and "DAMRO" not in example.about for example in examples)
    assert any(example.label.startswith("harms") for example in list_examples("tiny", greedy=True))


def test_words_of_one_answer_alone_are_marked_and_all_is_escaped() -> None:
    first, second = "A <b>cat</b>, a dog.", "a Dog and"
    assert only_words(first, second) == ["b>cat</b"]
    assert (
        write_answer("<i>", first, second) == "<h3>&lt;i&gt;</h3><p>A <mark>&lt;b&gt;cat&lt;/b&gt;,</mark> a dog.</p>"
    )
    assert "<mark>" not in write_answer("Greedy", first) and "<b>" not in write_answer("Greedy", first)
    assert tell_difference("Greedy", first, first) == "Both answers are the same."
    assert tell_difference("Greedy", "", second) == "DAMRO alone says: a, dog, and."
    assert "<b>&lt;s&gt;</b>" in write_taken([[1, "<s>", "1%", "2%", "<", "3%", "4%"]]) and write_taken([]) == ""


def test_the_map_has_no_paper_and_grey_writing(loaded: tuple[Any, Any], photo: Path) -> None:
    picture = next(answer_request(*loaded, "golden", str(photo), "What is this?", 2.0, 0.1, 3, 4)).picture
    pixels = np.asarray(picture.convert("RGBA"))
    assert pixels[0, 0, 3] == 0 and pixels[pixels.shape[0] // 2, pixels.shape[1] // 2, 3] == 255
    margin = pixels[: pixels.shape[0] // 30]  # the title alone
    written = margin[margin[..., 3] > 250]
    assert len(written) > 20 and (written[:, :3] == 128).all()


def test_leaving_stops_the_generation(loaded: tuple[Any, Any], photo: Path) -> None:
    model, processor = loaded
    inputs = prepare_inputs(processor, [Image.open(photo)], ["What is this?"], model)
    tokens: list[int] = []
    before = threading.active_count()
    stream = stream_answer(model, processor, inputs, 400, [], tokens)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    assert 0 < len(tokens) < 400


def test_errors_of_the_generation_reach_the_one_who_waits(loaded: tuple[Any, Any], photo: Path) -> None:
    model, processor = loaded
    inputs = prepare_inputs(processor, [Image.open(photo)], ["What is this?"], model)

    def broken(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken processor")

    with pytest.raises(RuntimeError, match="broken processor"):
        list(stream_answer(model, processor, inputs, 4, [broken]))
    with pytest.raises(InputsError, match="image and prompt must both be given"):
        next(answer_request(model, processor, "golden", None, "What", 1.0, 0.1, 3, 4))
    with pytest.raises(ParameterError, match="alpha must be"):
        next(answer_request(model, processor, "golden", str(photo), "What", -1.0, 0.1, 3, 4))
    with pytest.raises(ImageError):
        next(answer_request(model, processor, "golden", __file__, "What", 1.0, 0.1, 3, 4))


@pytest.fixture(scope="module")
def address(loaded: tuple[Any, Any]) -> Iterator[str]:
    with serving(*loaded) as found:
        yield found


def status(url: Any) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


def test_no_file_of_this_machine_is_served(address: str) -> None:
    assert status(address) == 200
    here = Path(__file__)
    readme = str(here.parents[1] / "README.md")
    for path in ("/etc/passwd", str(here), readme, "README.md", "../README.md", "/proc/self/environ"):
        for route in ("gradio_api/file=", "gradio_api/file/", "file="):
            assert status(f"{address}{route}{urllib.parse.quote(path)}") in (403, 404, 405), path


def test_the_environment_opens_no_files(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", str(tmp_path))
    with serving(*loaded) as found:
        assert status(found) == 200
        assert status(f"{found}gradio_api/file={urllib.parse.quote(str(tmp_path / 'secret.txt'))}") == 403


def test_only_its_own_hosts_are_answered(address: str) -> None:
    port = urllib.parse.urlsplit(address).port
    for name, expected in (("127.0.0.1", 200), ("localhost", 200), ("[::1]", 200), ("evil.example", 421), ("", 421)):
        for path in ("", "config", "gradio_api/info"):
            host = f"{name}:{port}" if name else ""
            assert status(urllib.request.Request(address + path, headers={"Host": host})) == expected, (name, path)


def test_the_server_itself_limits_prompt_and_pixels(loaded: tuple[Any, Any], photo: Path, tmp_path: Path) -> None:
    assert next(answer_request(*loaded, "golden", str(photo), "a" * PROMPT_LIMIT, 1.0, 0.1, 3, 4))
    with pytest.raises(InputsError, match="prompt must have at most 2000 characters, got 2001"):
        next(answer_request(*loaded, "golden", str(photo), "a" * (PROMPT_LIMIT + 1), 1.0, 0.1, 3, 4))
    Image.new("1", (5001, 5000)).save(tmp_path / "large.png")
    with pytest.raises(ImageSizeError, match="at most 25000000 pixels, got 5001x5000"):
        next(answer_request(*loaded, "golden", str(tmp_path / "large.png"), "What", 1.0, 0.1, 3, 4))


def test_uploads_that_do_not_open_get_a_sentence(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    import gradio

    part = opened(*loaded)[1]["image"]
    (tmp_path / "text.png").write_text("no picture")
    upload = part.data_model(path=str(tmp_path / "text.png"), orig_name="text.png")
    with pytest.raises(gradio.Error, match="does not open; choose a PNG or JPEG") as told:
        part.preprocess(upload)
    assert not told.value.print_exception


def test_uploads_are_limited(address: str) -> None:
    def upload(size: int) -> int:
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        body = head + b"x" * size + b"\r\n--b--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        return status(urllib.request.Request(f"{address}gradio_api/upload", body, headers))

    assert upload(1000) == 200
    assert upload(11_000_000) == 413
