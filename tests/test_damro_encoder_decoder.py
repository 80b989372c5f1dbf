"""InstructBLIP and BLIP-2 on T5 from a folder to an answer: loading, the command line, runs, the browser page."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import damro
from damro.cli import main
from damro.decoding.branches.encoder_decoder import returned_prompt
from damro.errors import UnsupportedModelError
from damro.eval.runs.engine import make_engine
from damro.eval.runs.first_token import answer_in_one_token
from damro.eval.samples import Sample
from damro.inspection import inspect_contrast, inspect_decoder
from damro.loading import Loaded, load_model, prepare_inputs
from damro.pages.explain import explain_answers
from tests.family_models import ENCODER_DECODERS, IMAGE, QUERIES, encoder_processor, family_model
from tests.told import generate, request

QUESTIONS = ["What is this?", "What is a cat.", "What"]
STRENGTHS: dict[str, Any] = {"alpha": 1.0, "beta": 0.1, "top_k": 3}
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module", params=ENCODER_DECODERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    family_model(request.param).save_pretrained(path)
    encoder_processor(request.param).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load_model(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "image.png"
    Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(path)
    return path


def answer_of(loaded: Loaded, photo: Path, question: str, *, contrast: bool = True) -> str:
    """One prompt by stock ``generate``; the start token is a special one, so that nothing needs to be cut off."""
    model, processor = loaded
    inputs = prepare_inputs(processor, [Image.open(photo)], [question], model)
    own = damro.DAMROProcessor(model, inputs, **STRENGTHS) if contrast else []
    stock: Any = model
    ids = stock.generate(**inputs, logits_processor=own, **GREEDY)
    return str(processor.tokenizer.decode(ids[0], skip_special_tokens=True)).strip()


def test_a_batch_is_padded_where_no_distance_changes(loaded: Loaded, photo: Path) -> None:
    model, processor = loaded
    assert processor.tokenizer.padding_side == "right"
    inputs = prepare_inputs(processor, [Image.open(photo)] * 3, QUESTIONS, model)
    assert torch.equal(inputs["input_ids"][:, :QUERIES], torch.full((3, QUERIES), IMAGE))
    assert not inputs["attention_mask"][:, -1].all() and inputs["attention_mask"][:, 0].all()
    assert returned_prompt(model, inputs).tolist() == [[0]] * 3
    together = generate(model, inputs, **STRENGTHS, **GREEDY)
    for row, question in enumerate(QUESTIONS):
        alone = prepare_inputs(processor, [Image.open(photo)], [question], model)
        assert torch.equal(generate(model, alone, **STRENGTHS, **GREEDY)[0], together[row])


def test_the_command_line_prints_whole_answers(
    folder: Path, loaded: Loaded, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["answer", str(photo), QUESTIONS[0], "--model", str(folder), "--device", "cpu", "--compare", "--json"]
    options = ["--max-new-tokens", "6", "--alpha", "1", "--beta", "0.1", "--top-k", "3"]
    assert main([*arguments, *options]) == 0
    shown = json.loads(capsys.readouterr().out)["methods"]
    answers = [answer_of(loaded, photo, QUESTIONS[0], contrast=contrast) for contrast in (False, True)]
    assert [shown[method]["answer"] for method in ("greedy", "damro")] == answers
    assert answers[0] != answers[1] and all(answers)


def test_maps_of_words_are_refused_before_anything_is_generated(
    folder: Path, loaded: Loaded, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*values: Any, **options: Any) -> Any:
        raise AssertionError("an answer was generated")

    monkeypatch.setattr(type(loaded.model), "generate", generate)
    arguments = ["attention", str(photo), "--model", str(folder), "--device", "cpu", "--top-k", "3"]
    assert main(arguments) == 0
    assert "3 patches hold" in capsys.readouterr().out
    assert main([*arguments, "--prompt", QUESTIONS[0], "--max-new-tokens", "3"]) == 2
    assert "language model must attend in every layer" in capsys.readouterr().err
    with pytest.raises(UnsupportedModelError, match="language model must attend in every layer.*, got T5"):
        explain_answers(*loaded, Image.open(photo), QUESTIONS[0], name="t5", **STRENGTHS)


@pytest.mark.parametrize("method", ["greedy", "damro", "no-image"])
def test_a_run_s_answers(loaded: Loaded, photo: Path, method: str) -> None:
    asked = request("pope", "untrained", method=method, max_new_tokens=6, alpha=1.0, beta=0.1, top_k=3)
    engine = make_engine(asked, loaded, lambda name: Image.open(photo))
    samples = [Sample(f"s/{number}", f"{number // 2}.png", question, {}) for number, question in enumerate(QUESTIONS)]
    answered = engine.answer(samples)
    assert [one.error for one in answered] == [None] * 3
    texts = [one.text for one in answered]
    assert texts == [one.text for sample in samples for one in engine.answer([sample])]
    if method != "no-image":
        # A run ranks patches as the released code does.
        assert texts == [answer_of(loaded, photo, question, contrast=method == "damro") for question in QUESTIONS]


def test_answers_of_one_token_for_all_methods_are_those_of_runs(loaded: Loaded, photo: Path) -> None:
    engines = {}
    for method in ("greedy", "damro", "no-image"):
        asked = request("pope", "untrained", method=method, max_new_tokens=1, alpha=8.0, beta=0.01, top_k=3)
        engines[method] = make_engine(asked, loaded, lambda name: Image.open(photo))
    asked = [Sample(f"s/{number}", "0.png", QUESTIONS[number % 3], {}) for number in range(4)]
    together = answer_in_one_token(engines, asked)
    assert together == {method: engine.answer(asked) for method, engine in engines.items()}
    assert len({tuple(one.text for one in answers) for answers in together.values()}) > 1


def test_the_page_and_its_python_give_the_same_answer(
    folder: Path, loaded: Loaded, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    from damro.pages.app import answer_request

    *_, (greedy, answer, _, taken, code) = answer_request(
        *loaded, str(folder), str(photo), QUESTIONS[0], 1.0, 0.1, 3, 6
    )
    assert greedy == answer_of(loaded, photo, QUESTIONS[0], contrast=False)
    assert answer == answer_of(loaded, photo, QUESTIONS[0])
    assert taken
    monkeypatch.chdir(photo.parent)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "recipe", "exec"), {})
    assert printed.getvalue().strip() == answer


def test_steps_are_told_and_attention_is_not(loaded: Loaded, photo: Path) -> None:
    model, processor = loaded
    inputs = prepare_inputs(processor, [Image.open(photo)], QUESTIONS[:1], model)
    contrast = damro.DAMROProcessor(model, inputs, **STRENGTHS)
    options = {**GREEDY, "output_scores": True, "return_dict_in_generate": True}
    stock: Any = model
    answer = stock.generate(**inputs, logits_processor=contrast, **options)
    tokens: Tensor = answer.sequences[0, 1:]
    told = inspect_contrast(model, inputs, tokens, contrast)
    scores = torch.stack(answer.scores)[:, 0].gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(told.contrast, scores, atol=1e-3, rtol=0)
    with pytest.raises(UnsupportedModelError, match="language model must attend in every layer.*, got T5"):
        inspect_decoder(model, inputs, tokens)
