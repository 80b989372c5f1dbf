"""GLSim's crop, against the region found and read by hand with stock models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

import damro
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.methods import Crop, Greedy, Scene
from damro.methods.crop import similarities
from damro.pruning import Pruning
from tests.family_models import encoder_inputs, family_inputs, family_model
from tests.golden_cases import Inputs, inputs_of, model_of, prompt_length, row_alone
from tests.zoo import zoo_inputs, zoo_model

NEW, TOP = 5, 3
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}


def cropped(model: Any, inputs: Inputs) -> Inputs:
    """Inputs with the crop in place of the image: loops over patches, the layer's states from stock outputs."""
    instructblip = model.config.model_type == "instructblip"
    tower = model.vision_model if instructblip else model.model.vision_tower
    index = -1 if instructblip else model.config.vision_feature_layer
    with torch.no_grad():
        states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    if instructblip:  # the last layer, in front of the norm that ends the tower
        seen: list[Tensor] = []
        hook = tower.encoder.layers[-1].register_forward_hook(lambda module, args, output: seen.append(output))
        with torch.no_grad():
            tower(inputs["pixel_values"])
        hook.remove()
        states = [seen[0] if isinstance(seen[0], Tensor) else seen[0][0]]
    crops = []
    for image, tokens in zip(inputs["pixel_values"], states[index], strict=True):
        cosines = [float(t @ tokens[0] / t.norm() / tokens[0].norm()) for t in tokens[1:]]
        best = sorted(range(16), key=lambda patch: -cosines[patch])[:TOP]
        rows, columns = [patch // 4 for patch in best], [patch % 4 for patch in best]
        part = image[:, 14 * min(rows) : 14 * max(rows) + 14, 14 * min(columns) : 14 * max(columns) + 14]
        crops.append(interpolate(part[None], size=(56, 56), mode="bilinear", align_corners=True)[0])
    return inputs | {"pixel_values": torch.stack(crops)}


def features_of(model: Any, inputs: Inputs) -> list[Tensor]:
    names = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
    told = {key: inputs[key] for key in names if key in inputs}
    with torch.no_grad():
        return list(model.get_image_features(**told, return_dict=True).pooler_output)


@pytest.mark.parametrize("family", ["llava", "instructblip"])
@torch.no_grad()
def test_the_crop_stands_behind_the_image(family: str) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    images, crops = features_of(model, inputs), features_of(model, cropped(model, inputs))
    prompt: Any = Crop(patches=TOP).prepare(model, inputs, Scene())
    plain: Any = Greedy().prepare(model, inputs, Scene())
    ids = damro.generate(model, inputs, f"crop:patches={TOP}", **GREEDY)
    decoder, embed = getattr(model, "language_model", model), model.get_input_embeddings()
    for row in (0, 1):
        read, at = plain.attention_mask[row].bool(), plain.image_mask[row]
        text = plain.inputs_embeds[row]
        last = int(at.nonzero().max()) + 1
        first = int(at.nonzero().min())
        expected = torch.cat([text[:first][read[:first]], images[row], crops[row], text[last:][read[last:]]])
        ours = prompt.inputs_embeds[row, prompt.attention_mask[row].bool()]
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
        tokens = ids[row, prompt_length(inputs) :]
        for step in range(NEW):
            told = torch.cat([expected, embed(tokens[:step])])[None]
            logits = decoder(inputs_embeds=told, use_cache=False).logits[0, -1]
            logits[decoder.generation_config.eos_token_id or 2] = -torch.inf
            assert int(logits.argmax()) == int(tokens[step])
    assert not torch.equal(ids, damro.generate(model, inputs, "greedy", **GREEDY))


@torch.no_grad()
def test_the_branch_adds_what_the_crop_says() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    other, method = cropped(model, inputs), f"crop:patches={TOP},way=branch,alpha=2,beta=0.3"
    for strategy in ("fused", "lazy"):
        ids = damro.generate(model, inputs, method, strategy=strategy, **GREEDY)
        length = prompt_length(inputs)
        for step in range(NEW):
            history = ids[:, : length + step]
            told = {"input_ids": history, "attention_mask": torch.ones_like(history)}
            full, crop = (
                model(**told, pixel_values=one["pixel_values"]).logits[0, -1].float() for one in (inputs, other)
            )
            mixed = full + 2 * crop
            mixed[full < full.max() + torch.log(torch.tensor(0.3))] = -torch.inf
            assert int(mixed.argmax()) == int(ids[0, length + step])


@pytest.mark.parametrize("name", ["vipllava", "blip-2", "paligemma"])
def test_a_batch_is_answered_as_its_rows_alone(name: str) -> None:
    model, inputs = family_model(name), family_inputs(name)
    for method in ("crop:patches=3", "crop:patches=3,way=branch"):
        ids = damro.generate(model, inputs, method, **GREEDY)
        for row in (0, 1):
            alone = row_alone(inputs, row)
            answer = damro.generate(model, alone, method, **GREEDY)
            assert torch.equal(answer[0, prompt_length(alone) :], ids[row, prompt_length(inputs) :])


def test_one_image_of_several_questions_and_an_encoder() -> None:
    model, one = model_of("llava"), inputs_of("llava_img0")
    inputs = {key: torch.cat([value, value]) for key, value in one.items()}
    inputs["input_ids"][1, -1] = 9
    together = damro.generate(model, inputs, "crop:patches=3", shared_prefix=True, **GREEDY)
    assert torch.equal(together, damro.generate(model, inputs, "crop:patches=3", **GREEDY))
    t5, asked = family_model("instructblip-t5"), encoder_inputs("instructblip-t5", 2)
    ids = damro.generate(t5, asked, "crop:patches=3", max_new_tokens=NEW, do_sample=False)
    assert len(ids) == 2


def test_pruning_beams_and_samples() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    prompt: Any = Crop(patches=TOP).prepare(model, inputs, Scene(pruning=Pruning(6)))
    assert prompt.image_mask.sum(-1).tolist() == [6 + 16] * 2  # the crop is read whole
    whole: Any = Crop(patches=TOP).prepare(model, inputs, Scene())
    stock = {"inputs_embeds": whole.inputs_embeds, "attention_mask": whole.attention_mask}
    for call in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        torch.manual_seed(3)
        ids = damro.generate(model, inputs, f"crop:patches={TOP}", max_new_tokens=4, **call)
        torch.manual_seed(3)
        assert torch.equal(ids[:, prompt_length(inputs) :], model.generate(**stock, max_new_tokens=4, **call))


def test_without_cls_the_mean_patch_stands_for_it() -> None:
    tower = family_model("paligemma").model.vision_tower
    hidden = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    mean = hidden[0].mean(dim=0)
    expected = [float(one @ mean / one.norm() / mean.norm()) for one in hidden[0]]
    assert similarities(tower, hidden, (4, 4))[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_what_is_refused() -> None:
    for model, inputs in (
        (model_of("llava_next"), inputs_of("llava_next_img0")),
        (zoo_model("qwen2_5_vl"), zoo_inputs("qwen2_5_vl")),
        (family_model("video_llava_video"), family_inputs("video_llava_video")),
    ):
        with pytest.raises(UnsupportedModelError, match="model must see an image as one square that can be cropped"):
            Crop().prepare(model, inputs, Scene())
    with pytest.raises(ParameterError, match="top_k must be a whole number from 1 to the 16 patches"):
        Crop(patches=17).prepare(model_of("llava"), inputs_of("llava_img0"), Scene())
