"""Processors that are used with something else than they were made for: refused, in every way that it comes about."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import damro
from damro import tiny
from damro.decoding.errors import InputsError
from damro.decoding.origin import fingerprint
from tests.damro_cases import EVERY_FAMILY, STRENGTHS, tower_of
from tests.encoder_decoder_cases import STRENGTHS as FEWER
from tests.family_models import MORE_FAMILIES, encoder_inputs, family_inputs, family_model
from tests.golden_cases import Inputs, fresh_model, inputs_of, model_of
from tests.golden_models import make_processor
from tests.told import generate

PIXELS = "inputs must be those this processor was made for, got other pixels; make one processor for each call's inputs"
TEXT = "got other text; make one processor for each call's inputs"
PARAMETERS = "model must have the parameters this processor was made with, got others.*; make the processor after"
OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
WAYS: list[dict[str, Any]] = [
    {},
    {"num_beams": 2},
    {"prompt_lookup_num_tokens": 2},
    {"num_return_sequences": 2, "do_sample": True},
]


def with_other_pixels(inputs: Inputs) -> Inputs:
    key = next(key for key in inputs if key.startswith("pixel_values"))
    return {**inputs, key: inputs[key] + 0.5}


def write(model: Any, inputs: Inputs, processor: Any, **options: Any) -> Any:
    return model.generate(**inputs, logits_processor=[processor], **OPTIONS | options)


# Another image under the same text


@EVERY_FAMILY
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("method", ["damro", "vcd"])
def test_another_image(family: str, way: dict[str, Any], method: str) -> None:
    name = "img0" if "prompt_lookup_num_tokens" in way else "batch2"
    model, inputs = model_of(family), inputs_of(f"{family}_{name}")
    strengths = STRENGTHS if method == "damro" else {"alpha": 1.0}
    processor = damro.contrast_processor(model, inputs, method=method, **strengths)
    first = write(model, inputs, processor, **way)
    with pytest.raises(InputsError, match=PIXELS):
        write(model, with_other_pixels(inputs), processor, **way)
    again = write(model, inputs, processor, **way)
    assert way.get("do_sample") or torch.equal(again, first)


@pytest.mark.parametrize("name", [*MORE_FAMILIES, "instructblip-t5", "blip-2-t5"])
def test_another_image_in_other_families(name: str) -> None:
    model = family_model(name)
    inputs = encoder_inputs(name, 2) if name.endswith("t5") else family_inputs(name)
    processor = damro.DAMROProcessor(model, inputs, **FEWER)
    first = write(model, inputs, processor)
    with pytest.raises(InputsError, match=PIXELS):
        write(model, with_other_pixels(inputs), processor)
    assert torch.equal(write(model, inputs, processor), first)


def test_images_of_a_batch_in_another_order() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS)
    with pytest.raises(InputsError, match=PIXELS):
        write(model, {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}, processor)


def test_another_image_written_to_the_same_place() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS)
    inputs["pixel_values"].add_(0.5)
    with pytest.raises(InputsError, match=PIXELS):
        write(model, inputs, processor)


def test_another_image_when_an_answer_is_continued() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS)
    ids = write(model, inputs, processor)
    begun = {**inputs, "input_ids": ids[:, :-2], "attention_mask": torch.ones_like(ids[:, :-2])}
    assert torch.equal(write(model, begun, processor, max_new_tokens=2), ids)
    with pytest.raises(InputsError, match=PIXELS):
        write(model, with_other_pixels(begun), processor, max_new_tokens=2)


def test_rows_that_are_repeated_are_the_same_rows() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS)
    twice = {key: value.repeat_interleave(2, dim=0) for key, value in inputs.items()}
    ids = write(model, inputs, processor)
    assert torch.equal(write(model, twice, processor), ids.repeat_interleave(2, dim=0))
    with pytest.raises(InputsError, match=PIXELS):
        write(model, with_other_pixels(twice), processor)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_the_same_image_in_another_precision(precision: torch.dtype) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    rounded = {**inputs, "pixel_values": inputs["pixel_values"].to(precision)}
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS)
    write(model, rounded, processor)
    with pytest.raises(InputsError, match=PIXELS):
        write(model, with_other_pixels(rounded), processor)


def test_other_images_in_between_do_not_matter() -> None:
    """Runs of other calls, of other processors and of other threads."""
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    others = with_other_pixels(inputs)
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS)
    expected = write(model, inputs, processor)
    second = damro.DAMROProcessor(model, others, **STRENGTHS)
    write(model, others, second)
    generate(model, others, strategy="fused", **STRENGTHS, **OPTIONS)
    other = threading.Thread(target=damro.cls_attention, args=(model, others))
    other.start()
    assert torch.equal(write(model, inputs, processor), expected)
    other.join()


def test_two_chats_in_a_pipeline() -> None:
    path = tiny.path("llava")
    model: Any = AutoModelForImageTextToText.from_pretrained(path).eval()
    processor: Any = AutoProcessor.from_pretrained(path)

    def chat(number: int) -> Any:
        image = {"type": "image", "image": tiny.scene("test", number).image}
        return [
            {"role": "user", "content": [image, {"type": "text", "text": "Generate a short caption of this image."}]}
        ]

    inputs = processor.apply_chat_template(
        chat(0), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    contrast = damro.DAMROProcessor(model, inputs)
    pipe: Any = pipeline("image-text-to-text", model=model, processor=processor)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "logits_processor": contrast}
    written = model.generate(**inputs, **options)
    expected = processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert (
        pipe(text=[chat(0)], generate_kwargs=options, return_full_text=False)[0][0]["generated_text"].strip()
        == expected
    )
    with pytest.raises(InputsError, match=PIXELS):
        pipe(text=[chat(0), chat(1)], generate_kwargs=options, return_full_text=False)


# Another text that generate does not show


@pytest.mark.parametrize("name", ["instructblip-t5", "blip-2-t5"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"max_new_tokens": 8}], ids=str)
def test_another_text_before_an_encoder(name: str, options: dict[str, Any]) -> None:
    model, inputs = family_model(name), encoder_inputs(name, 2)
    processor = damro.DAMROProcessor(model, inputs, **FEWER)
    ids = inputs["input_ids"].clone()
    ids[1, -2] += 1
    first = write(model, inputs, processor, **options)
    if bool(inputs["attention_mask"][1, -2]):
        with pytest.raises(InputsError, match=TEXT):
            write(model, {**inputs, "input_ids": ids}, processor, **options)
    ids = inputs["input_ids"].clone()
    ids[0, -2] += 1
    with pytest.raises(InputsError, match=TEXT):
        write(model, {**inputs, "input_ids": ids}, processor, **options)
    longer = {key: nn.functional.pad(inputs[key], (0, 1)) for key in ("input_ids", "attention_mask")}
    with pytest.raises(InputsError, match=TEXT):
        write(model, {**inputs, **longer}, processor, **options)
    assert torch.equal(write(model, inputs, processor, **options), first)


# Other parameters


def scale_in_place(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(2)


def load_others(model: Any) -> None:
    model.load_state_dict({name: tensor + 0.1 for name, tensor in model.state_dict().items()})


def replace_one(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight * 2)


def assign_data(model: Any) -> None:
    tower_of(model).encoder.layers[0].mlp.fc1.weight.data = torch.zeros_like(
        tower_of(model).encoder.layers[0].mlp.fc1.weight
    )


def change_precision(model: Any) -> None:
    model.to(torch.float64)


@pytest.mark.parametrize("change", [scale_in_place, load_others, replace_one, assign_data, change_precision])
def test_other_weights(change: Any) -> None:
    model, inputs = fresh_model("llava"), inputs_of("llava_img0")
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS)
    write(model, inputs, processor)
    change(model)
    with pytest.raises(InputsError, match=PARAMETERS):
        write(model, inputs, processor)
    write(model, inputs, damro.DAMROProcessor(model, inputs, **STRENGTHS))


class AdapterLayer(nn.Linear):
    """What an adapter layer of PEFT has: names of what is active, kept by its class, and strengths."""

    _active_adapter: Any = "default"

    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.scaling = {"default": 1.0}


def test_adapters_that_are_switched() -> None:
    layer = AdapterLayer(2)
    seen = [fingerprint(layer)]
    assert fingerprint(layer) == seen[0]
    layer._active_adapter = ["second"]
    seen.append(fingerprint(layer))
    layer._disable_adapters = True
    seen.append(fingerprint(layer))
    layer.merged_adapters.append("default")
    seen.append(fingerprint(layer))
    layer.scaling["default"] = 0.5
    seen.append(fingerprint(layer))
    assert all(seen[one] != seen[two] for one in range(5) for two in range(one))


def test_adapters_of_peft() -> None:
    peft = pytest.importorskip("peft")
    model, inputs = fresh_model("llava"), inputs_of("llava_img0")
    for name in ("one", "two"):
        config = peft.LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False)
        peft.inject_adapter_in_model(config, model, name)
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]

    def switch(name: str, on: bool = True) -> None:
        for layer in layers:
            layer.set_adapter(name)
            layer.enable_adapters(on)

    switch("one")
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS)
    first = write(model, inputs, processor)
    for name, on in (("two", True), ("one", False)):
        switch(name, on)
        with pytest.raises(InputsError, match=PARAMETERS):
            write(model, inputs, processor)
    switch("one")
    assert layers and torch.equal(write(model, inputs, processor), first)
    layers[0].merge()
    with pytest.raises(InputsError, match=PARAMETERS):
        write(model, inputs, processor)


def test_a_fingerprint_does_not_change_by_use() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    before = fingerprint(model)
    for strategy in ("fused", "lazy"):
        generate(model, inputs, strategy=strategy, **STRENGTHS, **OPTIONS)  # type: ignore[arg-type]
    assert fingerprint(model) == before


def test_parameters_made_in_inference_mode_have_a_fingerprint() -> None:
    with torch.inference_mode():
        layer = nn.Linear(2, 2)
    assert fingerprint(layer) == fingerprint(layer)
    assert fingerprint(layer) != fingerprint(nn.Linear(2, 2))


# What a processor leaves on a model


@EVERY_FAMILY
def test_the_hook_goes_with_the_processor(family: str) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_img0")
    tower = tower_of(model)
    gc.collect()
    assert len(tower._forward_pre_hooks) == 0
    processors = [
        damro.DAMROProcessor(model, inputs, **STRENGTHS),
        damro.contrast_processor(model, inputs, method="m3id"),
    ]
    assert len(tower._forward_pre_hooks) == 2
    write(model, inputs, processors[0])
    processors.pop()
    assert len(tower._forward_pre_hooks) == 1
    processors.pop()
    assert len(tower._forward_pre_hooks) == len(tower._forward_pre_hooks_with_kwargs) == 0


def test_a_processor_that_could_not_be_made_leaves_no_hook() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    gc.collect()
    for options in ({"top_k": 99}, {"choose": lambda weights, k: weights[:, :1].long() + 99}):
        with pytest.raises((ValueError, IndexError, RuntimeError)):
            damro.DAMROProcessor(model, inputs, **STRENGTHS | options)
    gc.collect()
    assert len(tower_of(model)._forward_pre_hooks) == 0


def test_the_disturbed_question_is_not_taken_for_another_text() -> None:
    """ICD has the Q-Former and the encoder read a second text; neither is what generate reads."""
    from tests.family_models import encoder_processor

    model, inputs = family_model("instructblip-t5"), encoder_inputs("instructblip-t5", 2)
    processor = damro.contrast_processor(
        model, inputs, method="icd", processor=encoder_processor("instructblip-t5"), disturbance="What is a cat."
    )
    assert torch.equal(write(model, inputs, processor), write(model, inputs, processor))


def test_real_processors_make_the_same_pixels_again() -> None:
    from PIL import Image

    maker: Any = make_processor("llava")
    image = Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB")
    model = model_of("llava")
    first, second = (maker(images=image, text="USER: <image> What", return_tensors="pt") for _ in range(2))
    processor = damro.DAMROProcessor(model, first, **STRENGTHS)
    assert torch.equal(write(model, second, processor), write(model, first, processor))
