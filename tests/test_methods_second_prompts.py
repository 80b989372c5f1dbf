"""What holds for every method with a prompt, a rule or an attention of its own, whatever these are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import damro
from damro.eval.runs.engine import Engine, make_engine
from damro.eval.runs.loop import Answered, Loop
from damro.eval.samples import Sample
from damro.loading import Loaded
from damro.methods import CODE, ICD, LCD, M3ID, PAI, SID, VCD, AvisC, Method, Recipe, Ritual
from tests.golden_cases import FAMILIES, Inputs, fresh_model, inputs_of, model_of, prompt_length, row_alone
from tests.golden_models import make_processor
from tests.test_decoding_altering import hooks_of
from tests.told import request

CASES: list[Method] = [
    PAI(alpha=1.0, from_layer=1),
    PAI(alpha=1.0, gamma=1.0, from_layer=0, to_layer=2),
    AvisC(),
    SID(layer=1, share=0.3),
    ICD(disturbance="What is a cat.", form="paper", alpha=0.5, place="instruction"),
    VCD(rate=0.01, noise_step=300, seed=3),
    M3ID(forgetting=0.5, confidence=1.0, beta=0.1),
    CODE(instruction="What is a cat.", description_tokens=5),
    LCD(),
]
EVERY_METHOD = pytest.mark.parametrize("method", CASES, ids=str)
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def scores_of(model: Any, inputs: Inputs, method: Method | str, steps: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Tokens `(B, steps)` of a greedy search and the scores `(B, steps, V)` they were chosen by."""
    wanted: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": steps}
    output = damro.generate(model, inputs, method, **{**OPTIONS, **wanted, **options})
    return output.sequences[:, prompt_length(inputs) :], torch.stack(output.scores, dim=1).log_softmax(-1)


@EVERY_FAMILY
@EVERY_METHOD
def test_a_padded_batch_is_each_alone_and_leaves_no_trace(family: str, method: Method) -> None:
    model, inputs = fresh_model(family), inputs_of(f"{family}_batch2")
    processor = make_processor(family)
    plain, _ = scores_of(model, inputs, "greedy", steps=6)
    hooks = hooks_of(model)  # those of transformers, which stand from the first pass on
    tokens, scores = scores_of(model, inputs, method, steps=6, processor=processor)
    for row in (0, 1):
        alone, expected = scores_of(model, row_alone(inputs, row), method, steps=6, processor=processor)
        assert torch.equal(tokens[row], alone[0])
        torch.testing.assert_close(scores[row], expected[0], atol=1e-3, rtol=0)
    _, unlike = scores_of(model, inputs, "greedy", steps=1)
    assert not torch.allclose(scores[:, 0], unlike[:, 0], atol=1e-2)  # it does something
    assert torch.equal(scores_of(model, inputs, "greedy", steps=6)[0], plain)
    assert hooks_of(model) == hooks


@EVERY_METHOD
def test_samples_and_beams(method: Method) -> None:
    model, inputs, processor = model_of("llava"), inputs_of("llava_batch2"), make_processor("llava")
    alone = row_alone(inputs, 0)
    beams = {**OPTIONS, "num_beams": 3, "num_return_sequences": 2, "processor": processor}
    both, first = damro.generate(model, inputs, method, **beams), damro.generate(model, alone, method, **beams)
    assert torch.equal(both[:2, prompt_length(inputs) :], first[:, prompt_length(alone) :])
    samples = {**OPTIONS, "do_sample": True, "num_return_sequences": 3, "processor": processor}
    torch.manual_seed(0)
    drawn = damro.generate(model, inputs, method, **samples)
    torch.manual_seed(0)
    assert torch.equal(damro.generate(model, inputs, method, **samples), drawn)
    assert len({tuple(row) for row in drawn.tolist()}) > 2


@EVERY_METHOD
def test_questions_about_one_image_are_answered_as_one_by_one(method: Method) -> None:
    model, one = model_of("llava"), inputs_of("llava_img0")
    inputs = {key: torch.cat([value, value]) for key, value in one.items()}
    inputs["input_ids"][1, -1] = 9
    options = {**OPTIONS, "processor": make_processor("llava")}
    together = damro.generate(model, inputs, method, shared_prefix=True, **options)
    for row in (0, 1):
        assert torch.equal(together[row], damro.generate(model, row_alone(inputs, row), method, **options)[0])


@EVERY_METHOD
def test_a_pruned_prompt(method: Method) -> None:
    """Fewer image columns in the full prompt, whatever the method does with those that are left."""
    model, inputs, options = model_of("llava"), inputs_of("llava_batch2"), {"processor": make_processor("llava")}
    tokens, scores = scores_of(model, inputs, method, steps=4, keep_tokens=6, **options)
    for row in (0, 1):
        alone, expected = scores_of(model, row_alone(inputs, row), method, steps=4, keep_tokens=6, **options)
        assert torch.equal(tokens[row], alone[0])
        torch.testing.assert_close(scores[row], expected[0], atol=1e-3, rtol=0)
    whole = scores_of(model, inputs, method, steps=1, **options)[1]
    assert not torch.allclose(scores[:, 0], whole[:, 0], atol=1e-2)


def _samples() -> list[Sample]:
    asked = ["What is this?", "What is a cat.", "What is this?", "a cat.", "What is a cat."]
    return [Sample(f"s/{n}", f"{n // 2}.png", text, {}) for n, text in enumerate(asked)]


def _open(name: str) -> Image.Image:
    return Image.linear_gradient("L").rotate(50 * int(name[0])).resize((56, 56)).convert("RGB")


def _engine(method: Method) -> Engine:
    asked = request("pope", "golden", method=Recipe(method).text, max_new_tokens=4)
    return make_engine(asked, Loaded(model_of("llava"), make_processor("llava")), _open)


@pytest.mark.parametrize("method", [*CASES, Ritual()], ids=str)
def test_a_run_that_was_cut_off_goes_on_to_the_same_records(method: Method, tmp_path: Path) -> None:
    def run(folder: str, answer: Callable[[Any], list[Answered]]) -> list[dict[str, Any]]:
        records = Loop(batch_size=2).run(tmp_path / folder, _samples(), answer)
        return [{key: value for key, value in one.items() if key != "seconds"} for one in records.values()]

    whole = run("whole", _engine(method).answer)
    assert all(record.get("answer") for record in whole)
    engine = _engine(method)

    def stops(batch: list[Sample]) -> list[Answered]:
        if batch[0].sample_id != "s/0":
            raise KeyboardInterrupt
        return engine.answer(batch)

    with pytest.raises(KeyboardInterrupt):
        run("cut", stops)
    assert len((tmp_path / "cut/records.jsonl").read_text().splitlines()) == 2
    assert run("cut", _engine(method).answer) == whole
