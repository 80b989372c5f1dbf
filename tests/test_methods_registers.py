"""The method: prompts of images seen with a register, from a file and from the image itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import damro
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.decoding.families import family_of
from damro.methods import Greedy, Registers, Scene
from damro.pruning import Pruning
from damro.vision.register_neurons import find_register_neurons, own_masks, score_neurons
from damro.vision.registers import added_register
from tests.family_models import family_inputs, family_model
from tests.golden_cases import Inputs, inputs_of, model_of, prompt_length, row_alone
from tests.test_vision_registers import states_by_hand
from tests.zoo import zoo_inputs, zoo_model

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
ATTENDED = "registers:outliers=attention,top_k=3,neurons=8"


def columns_of(prompt: Any) -> Tensor:
    columns: Tensor = prompt.inputs_embeds[prompt.image_mask]
    return columns


def test_columns_are_those_of_the_tower_with_a_register() -> None:
    """Each image by its own neurons: layers run by hand, their output through the model's own projector."""
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    tower, found = model.model.vision_tower, []
    masks = own_masks(score_neurons(model, inputs, outliers="attention", top_k=3), 8)
    for image in (0, 1):
        chosen = {layer: mask[image].nonzero().flatten().tolist() for layer, mask in masks.items()}
        assert sum(map(len, chosen.values())) == 8
        states = states_by_hand(tower, inputs["pixel_values"][image : image + 1], chosen)
        layer = family_of(model).feature_layer(model, reference=False)
        with torch.no_grad():
            found.append(model.model.multi_modal_projector(states[layer][:, 1:])[0])
    prompt = Registers(outliers="attention", top_k=3, neurons=8).prepare(model, inputs, Scene())
    torch.testing.assert_close(columns_of(prompt), torch.cat(found), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(columns_of(prompt), columns_of(Greedy().prepare(model, inputs, Scene())), atol=1e-3)


@pytest.mark.parametrize("family", ["llava", "llava_next", "instructblip"])
def test_a_batch_one_image_and_rows_alone_agree(family: str) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    ids = damro.generate(model, inputs, ATTENDED, **GREEDY)
    for row in range(len(ids)):
        alone = row_alone(inputs, row)
        answer = damro.generate(model, alone, ATTENDED, **GREEDY)
        assert torch.equal(answer[0, prompt_length(alone) :], ids[row, prompt_length(inputs) :])
    one = inputs_of(f"{family}_img0")
    asked = {key: torch.cat([value, value]) for key, value in one.items()}
    asked["input_ids"][1, -1] = 9
    together = damro.generate(model, asked, ATTENDED, shared_prefix=True, **GREEDY)
    assert torch.equal(together, damro.generate(model, asked, ATTENDED, **GREEDY))


def test_neurons_of_a_file(tmp_path: Path) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    found = find_register_neurons(model, [inputs], count=8, outliers="attention", top_k=3)
    path = tmp_path / "neurons.json"
    found.save(path)
    for maximum in ("neuron", "layer"):
        method = Registers(neurons_file=str(path), maximum=maximum)  # type: ignore[arg-type]
        with torch.no_grad(), added_register(model.model.vision_tower, found.masks(), maximum):  # type: ignore[arg-type]
            expected = torch.cat(list(model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output))
        torch.testing.assert_close(columns_of(method.prepare(model, inputs, Scene())), expected)
    assert method.to_record()["neurons_digest"] == Registers(neurons_file=str(path)).to_record()["neurons_digest"]
    path.write_text(path.read_text() + " ")
    assert method.to_record()["neurons_digest"] != damro.methods.parse("registers").method.to_record()
    other = model_of("instructblip")
    with pytest.raises(ParameterError, match="neurons must be of the vision tower's own kind"):
        method.prepare(other, inputs_of("instructblip_batch2"), Scene())


def test_pruning_beams_and_samples() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    method = Registers(outliers="attention", top_k=3, neurons=8)
    whole, pruned = (method.prepare(model, inputs, Scene(pruning=one)) for one in (None, Pruning(6)))
    assert pruned.image_mask.sum(-1).tolist() == [6, 6]
    every = columns_of(whole)
    assert all(bool(torch.isclose(every, column, atol=1e-5).all(dim=-1).any()) for column in columns_of(pruned))
    stock = {"inputs_embeds": whole.inputs_embeds, "attention_mask": whole.attention_mask}
    for call in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        torch.manual_seed(3)
        ids = damro.generate(model, inputs, ATTENDED, max_new_tokens=4, **call)
        torch.manual_seed(3)
        assert torch.equal(ids[:, prompt_length(inputs) :], model.generate(**stock, max_new_tokens=4, **call))
    assert not any(module._forward_pre_hooks for module in model.model.vision_tower.modules())


def test_an_image_without_outliers_has_an_idle_register() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    with torch.no_grad(), added_register(model.model.vision_tower, {}):
        expected = torch.cat(list(model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output))
    torch.testing.assert_close(columns_of(Registers().prepare(model, inputs, Scene())), expected)


def test_what_is_refused() -> None:
    refused: list[tuple[Any, Inputs]] = [
        (family_model("llava_siglip"), family_inputs("llava_siglip")),
        (zoo_model("qwen2_5_vl"), zoo_inputs("qwen2_5_vl")),
    ]
    for model, inputs in refused:
        with pytest.raises(UnsupportedModelError, match="vision tower must be a plain ViT with .CLS."):
            Registers().prepare(model, inputs, Scene())
    with pytest.raises(UnsupportedModelError, match="told top_k for .* got none for 'blip-2'"):
        Registers(outliers="attention").settle("blip-2")
