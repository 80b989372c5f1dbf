"""damro inside the installed lmms-eval, beside its own model of transformers; `make test-lmms` has it installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import damro
from damro.errors import InputsError
from damro.inputs import prepare_inputs
from damro.loading import load_model
from damro.tiny import path, scene

pytestmark = pytest.mark.lmms
pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-lmms")
from lmms_eval.evaluator import simple_evaluate  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402
from lmms_tasks import SCENES, write_tasks  # noqa: E402

STOCK = f"pretrained={path()},device=cpu,device_map=cpu,dtype=float32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def evaluate(folder: Path) -> Any:
    manager = TaskManager(include_path=str(folder))
    done: dict[Any, Any] = {}

    def run(
        task: str, model: str, arguments: str, *, simple: bool = False, batch_size: int = 1
    ) -> tuple[list[Any], Any]:
        """The answers by number, and the metrics."""
        key = (task, model, arguments, simple, batch_size)
        if key not in done:
            found = simple_evaluate(
                model=model, model_args=arguments, tasks=[task], task_manager=manager, log_samples=True,
                batch_size=batch_size, force_simple=simple,
            )  # fmt: skip
            samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
            done[key] = [sample["resps"][0] for sample in samples], found["results"][task]
        return done[key]

    return run


def question_of(number: int) -> str:
    """What the tasks ask about a scene."""
    name = scene("test", number).objects[0].name if number % 3 else "zebra"
    return f"Is there a {name} in the image?" if number % 2 else "Generate a short caption of this image."


@pytest.mark.parametrize("simple", [True, False])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_greedy_is_llava_hf_answer_by_answer(evaluate: Any, simple: bool, batch_size: int) -> None:
    stock, metrics = evaluate("scenes", "llava_hf", STOCK, simple=simple)
    own, own_metrics = evaluate(
        "scenes", "damro", "pretrained=tiny,method=greedy", simple=simple, batch_size=batch_size
    )
    assert own == stock and len(own) == SCENES and len({answer[0] for answer in own}) > 4
    assert own_metrics["same,none"] == metrics["same,none"] > 0


def test_a_method_is_that_of_generate(evaluate: Any) -> None:
    answers, _ = evaluate("scenes", "damro", "pretrained=tiny,method=damro,alpha=3,top_k=4", batch_size=4)
    model, processor = load_model("tiny")
    for number in (0, 2, 5):
        inputs = prepare_inputs(processor, [scene("test", number).image], [question_of(number)], model)
        ids = damro.generate(model, inputs, "damro:alpha=3,top_k=4", max_new_tokens=24, do_sample=False)
        assert answers[number] == [processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)]
    assert answers != evaluate("scenes", "damro", "pretrained=tiny,method=greedy", batch_size=5)[0]


def test_several_images_and_none_in_one_task(evaluate: Any) -> None:
    # llava_hf's class for messages takes the marks in a text for images beside the images.
    stock, _ = evaluate("scenes_pair", "llava_hf", STOCK, simple=True)
    for simple in (True, False):
        pairs, _ = evaluate("scenes_pair", "damro", "pretrained=tiny,method=greedy", simple=simple, batch_size=5)
        assert len(pairs) == SCENES and all(answer[0] for answer in pairs)
    model, processor = load_model("tiny")
    some, _ = evaluate("scenes_some", "damro", "pretrained=tiny,method=damro", batch_size=5)
    text, _ = evaluate("scenes_text", "damro", "pretrained=tiny,method=damro", batch_size=5)
    whole, _ = evaluate("scenes", "damro", "pretrained=tiny,method=damro", batch_size=4)
    assert some == [(whole if number % 2 else text)[number] for number in range(SCENES)]
    alone = processor(text="USER: Generate a short caption of this image. ASSISTANT:", return_tensors="pt")
    ids = model.generate(**alone, max_new_tokens=24, do_sample=False)
    assert text[0] == [processor.decode(ids[0, alone["input_ids"].shape[1] :], skip_special_tokens=True)]
    assert len(stock) == SCENES


@pytest.mark.parametrize("simple", [True, False])
def test_its_own_model_of_openai_asks_the_endpoint(evaluate: Any, simple: bool) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    from serve_server import serving

    with serving(*load_model("tiny"), "damro:alpha=3,top_k=4") as (address, _):
        served = f"model=tiny,base_url={address}/v1,api_key=none"
        asked, _ = evaluate("scenes", "openai", served, simple=simple)
        assert asked == evaluate("scenes", "damro", "pretrained=tiny,method=damro,alpha=3,top_k=4", batch_size=4)[0]
        pairs, _ = evaluate("scenes_pair", "openai", served, simple=simple)  # marks for images stand in its texts
        assert pairs == evaluate("scenes_pair", "damro", "pretrained=tiny,method=damro,alpha=3,top_k=4")[0]


def test_until_ends_answers(evaluate: Any) -> None:
    whole, _ = evaluate("scenes", "damro", "pretrained=tiny,method=greedy", batch_size=5)
    cut, _ = evaluate("scenes_stop", "damro", "pretrained=tiny,method=greedy", batch_size=5)
    assert cut == [[answer.partition(" and")[0]] for [answer] in whole] != whole


def test_what_is_drawn_depends_on_the_sample_and_not_on_the_batch(evaluate: Any) -> None:
    one, _ = evaluate("scenes_drawn", "damro", "pretrained=tiny,method=damro", batch_size=1)
    five, _ = evaluate("scenes_drawn", "damro", "pretrained=tiny,method=damro", batch_size=5)
    assert one == five
    assert any(first != second for first, second in one)


def test_a_task_of_rounds_hears_the_answers_before(evaluate: Any) -> None:
    simple, _ = evaluate("scenes_rounds", "damro", "pretrained=tiny,method=greedy", simple=True)
    chat, _ = evaluate("scenes_rounds", "damro", "pretrained=tiny,method=greedy")
    assert simple == chat
    first, _ = evaluate("scenes", "damro", "pretrained=tiny,method=greedy", batch_size=5)
    assert all(len(rounds) == 3 and rounds[0] == answer for [rounds], [answer] in zip(simple, first, strict=True))


def test_choices_are_as_likely_as_the_model_s_own_loss_has_them(evaluate: Any) -> None:
    # llava_hf cannot be asked: transformers refuses the image tokens that it hands over without an image.
    own, metrics = evaluate("scenes_choice", "damro", "pretrained=tiny,method=greedy", simple=True)
    model, processor = load_model("tiny")
    for number in (0, 1, 4, 5):
        head = f"USER: <image>\n{question_of(number)} ASSISTANT:"
        inputs = processor(images=scene("test", number).image, text=f"{head} Yes</s>", return_tensors="pt")
        labels = inputs["input_ids"].clone()
        labels[:, : -len(processor.tokenizer(" Yes</s>", add_special_tokens=False).input_ids)] = -100
        assert own[number][0][0] == pytest.approx(float(model(**inputs, labels=labels).loss), abs=1e-4)
    assert metrics["acc,none"] > 0
    contrasted, _ = evaluate("scenes_choice", "damro", "pretrained=tiny,method=damro,alpha=3", simple=True)
    assert all(0 <= answer[0][0] < 1000 for answer in contrasted) and contrasted != own


def test_an_error_is_an_error_and_names_its_sample(evaluate: Any) -> None:
    with pytest.raises(InputsError, match="visuals of scenes_video/test/0 must be images, got str"):
        evaluate("scenes_video", "damro", "pretrained=tiny,method=damro", simple=True)


def test_the_command_finds_the_model_and_ranks_share_the_work(folder: Path, tmp_path: Path, evaluate: Any) -> None:
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "0",
        "-m", "lmms_eval", "--model", "damro", "--model_args", "pretrained=tiny,method=damro:alpha=3,dtype=float32",
        "--tasks", "scenes", "--include_path", str(folder), "--log_samples", "--output_path", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _, metrics = evaluate("scenes", "damro", "pretrained=tiny,method=damro,alpha=3", batch_size=4)
    assert f"{metrics['same,none']:.4f}" in done.stdout
    assert list(tmp_path.rglob("*samples_scenes.jsonl"))
