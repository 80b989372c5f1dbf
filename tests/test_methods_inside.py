"""What every method that works inside of the model must hold: batches, samples, beams, runs that are resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import damro
from damro.decoding.families import family_of
from damro.decoding.generate import decode
from damro.eval.runs.engine import make_engine
from damro.eval.runs.loop import Answered, Loop
from damro.eval.samples import Sample, open_scene
from damro.loading import Loaded
from damro.methods import Scene, parse
from damro.methods.directions import Directions, model_digest, save_directions
from damro.tiny.model import build_model, build_processor
from tests.family_models import family_inputs, family_model
from tests.golden_cases import inputs_of, model_of
from tests.llava_models import llava_inputs, llava_of
from tests.told import request

METHODS = ["dola", "vista:strength=0.3", "deco:alpha=4", "vti:alpha_text=4", "only:gamma=0.8"]
DEPTH = 4
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
EVERY = pytest.mark.parametrize("method", METHODS)


def hooks_of(model: Any) -> list[tuple[int, int]]:
    return [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]


def told(method: str, model: Any, folder: Path) -> str:
    """The method's text; VTI's with a file of directions of the model, of both of its parts where those are plain."""
    if not method.startswith("vti"):
        return method
    random, text = torch.Generator().manual_seed(0), family_of(model).decoder(model).config.get_text_config()
    layers = torch.randn(text.num_hidden_layers, text.hidden_size, generator=random)
    save_directions(Directions(layers, None, model_digest(model), {}), folder / "directions.safetensors")
    return f"{method},alpha_image=0,directions={folder / 'directions.safetensors'}"


@EVERY
def test_batches_samples_and_beams(method: str, tmp_path: Path) -> None:
    """A row is the same alone, unpadded and in one pass, as beside another; nothing stays in the model."""
    model, inputs = llava_of(text={"num_hidden_layers": DEPTH}), llava_inputs(rows=2)
    method = told(method, model, tmp_path)
    plain = damro.generate(model, inputs, "greedy", **OPTIONS)
    hooks = hooks_of(model)
    width = inputs["input_ids"].shape[1]
    both = damro.generate(model, inputs, method, **OPTIONS)[:, width:]
    beams = damro.generate(model, inputs, method, **OPTIONS, num_beams=3)[:, width:]
    sampled = {**OPTIONS, "do_sample": True, "top_k": 1}
    several = damro.generate(model, inputs, method, **sampled, num_return_sequences=2)[:, width:]
    assert torch.equal(several, both.repeat_interleave(2, dim=0))  # of one candidate, sampling is greedy
    for row in range(2):
        read = inputs["attention_mask"][row].bool()
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        alone |= {key: alone[key][:, read] for key in ("input_ids", "attention_mask")}
        width = alone["input_ids"].shape[1]
        assert torch.equal(damro.generate(model, alone, method, **OPTIONS)[0, width:], both[row])
        assert torch.equal(damro.generate(model, alone, method, **OPTIONS, num_beams=3)[0, width:], beams[row])
    assert torch.equal(damro.generate(model, inputs, "greedy", **OPTIONS), plain)
    assert hooks_of(model) == hooks


@EVERY
def test_an_image_that_is_shared_and_a_pruned_prompt(method: str, tmp_path: Path) -> None:
    model, inputs = llava_of(text={"num_hidden_layers": DEPTH}), llava_inputs(rows=2)
    method = told(method, model, tmp_path)
    inputs["pixel_values"] = inputs["pixel_values"][:1].repeat(2, 1, 1, 1)
    apart = damro.generate(model, inputs, method, **OPTIONS)
    shared = parse(method).method.prepare(model, inputs, Scene(shared_image=True))
    assert torch.equal(decode(model, inputs, shared, **OPTIONS), apart)
    pruned = damro.generate(model, inputs, method, keep_tokens=5, **OPTIONS)
    assert pruned.shape == apart.shape
    assert not torch.equal(pruned, apart)


@EVERY
@pytest.mark.parametrize("family", ["llava_next", "instructblip", "llava_onevision", "paligemma"])
def test_other_families(method: str, family: str, tmp_path: Path) -> None:
    golden = family in ("llava_next", "instructblip")
    model, inputs = (model_of(family), inputs_of(f"{family}_batch2")) if golden else (
        family_model(family), family_inputs(family)
    )  # fmt: skip
    method = told(method, model, tmp_path)
    plain = damro.generate(model, inputs, "greedy", **OPTIONS)
    hooks = hooks_of(model)
    found = damro.generate(model, inputs, method, **OPTIONS)
    assert found.shape == plain.shape
    assert not torch.equal(found, plain)
    assert torch.equal(damro.generate(model, inputs, "greedy", **OPTIONS), plain)
    assert hooks_of(model) == hooks


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.manual_seed(1)
    model = build_model("llava").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                weight.normal_(0, 2 * weight.shape[1] ** -0.5)
    processor = build_processor("llava")
    processor.tokenizer.padding_side = "left"
    return Loaded(model, processor)


@EVERY
def test_a_run_that_is_cut_short_ends_with_the_same_records(loaded: Loaded, method: str, tmp_path: Path) -> None:
    questions = ["Is there a cat in the image?", "Is there an orange on the left in the image?", "Is there a dog?"]
    asked = [Sample(f"s/{n}", f"test_{n // 2:06d}.png", questions[n % 3], {}) for n in range(6)]
    method = told(method, loaded.model, tmp_path)
    engine = make_engine(request("pope", "untrained", method=method, max_new_tokens=5), loaded, open_scene)

    def records(folder: str) -> list[dict[str, Any]]:
        lines = (tmp_path / folder / "records.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]

    Loop(batch_size=2).run(tmp_path / "whole", asked, engine.answer)
    assert all(record.get("error") is None for record in records("whole"))
    left = [1]

    def cut(batch: Sequence[Sample]) -> list[Answered]:
        if not left.pop():
            raise KeyboardInterrupt
        left.append(0)
        return list(engine.answer(batch))

    with pytest.raises(KeyboardInterrupt):
        Loop(batch_size=2).run(tmp_path / "cut", asked, cut)
    assert len(records("cut")) == 2
    Loop(batch_size=2).run(tmp_path / "cut", asked, engine.answer)
    assert records("cut") == records("whole")
