"""DAMROProcessor and the model: how often it is run, that it stays as it was, forms of inputs, devices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BatchEncoding, BatchFeature

from damro import DAMROProcessor
from tests.damro_cases import EVERY_FAMILY, STRENGTHS, damro, stateless, tower_of, write
from tests.golden_cases import fresh_model, inputs_of, model_of

# Lazy


@EVERY_FAMILY
def test_no_negative_pass_while_one_token_survives(family):
    """The plausible tokens of every step are counted from the logits; passes are counted by the branch."""
    model, inputs, processor = damro(family, beta=0.6)
    output = model.generate(
        **inputs,
        logits_processor=processor,
        max_new_tokens=24,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    probabilities = torch.stack(output.logits).softmax(dim=-1)
    survivors = (probabilities >= 0.6 * probabilities.amax(dim=-1, keepdim=True)).sum(dim=-1).flatten()
    undecided = int((survivors > 1).sum())
    assert 0 < undecided < 24
    prompt_pass = int(survivors[0] == 1)  # else the first undecided step is the prompt's own
    assert processor.branch.passes == undecided + prompt_pass


@EVERY_FAMILY
@pytest.mark.parametrize("pad", [0, None], ids=["padding", "padded with the end token"])
def test_finished_rows_do_not_call_for_the_negative_pass(family, pad):
    """The end token stands in the config that ``generate`` reads: for InstructBLIP its language model's.

    The call may name another, so that a row has ended only if padding was no choice before.
    """
    model, inputs = fresh_model(family), inputs_of(f"{family}_batch2")
    config = getattr(model, "language_model", model).generation_config
    config.eos_token_id, config.pad_token_id = [50, 60], pad
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    filler = 50 if pad is None else pad
    ended = torch.tensor([[40, 50, filler], [41, 60, filler]])
    decided = torch.zeros(2, 200)
    decided[:, 7] = 20.0
    processor(torch.cat([inputs["input_ids"], ended[:, :2]], dim=1), decided)
    scores = processor(torch.cat([inputs["input_ids"], ended], dim=1), torch.randn(2, 200))
    assert processor.branch.passes == 0
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2))
    alive = torch.tensor([[40, 50, filler], [41, 42, 43]])
    processor(torch.cat([inputs["input_ids"], alive], dim=1), torch.zeros(2, 200))
    assert processor.branch.passes == 2  # the prompt, and what was put off in one chunk


# The model stays as it was


def snapshot(model: Any) -> dict[str, Any]:
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "config": copy.deepcopy(model.config.to_dict()),
        "generation": copy.deepcopy(model.generation_config.to_dict()),
        "training": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "attributes": sorted(vars(model)),
    }


@EVERY_FAMILY
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_not_changed(family, training):
    model, inputs = fresh_model(family).train(training), inputs_of(f"{family}_img0")
    given = {key: value.clone() for key, value in inputs.items()}
    write(model, inputs, None, max_new_tokens=1)  # transformers hangs up hooks of its own where states are asked for
    before = snapshot(model)
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    write(model, inputs, processor, max_new_tokens=3)
    write(model, inputs, processor, max_new_tokens=3, num_beams=3)
    del processor  # with it goes the hook that sees whether the tower is given the same pixels
    after = snapshot(model)
    weights = before.pop("weights"), after.pop("weights")
    assert before == after
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert all(torch.equal(inputs[key], value) for key, value in given.items())
    assert all(parameter.grad is None for parameter in model.parameters())


@EVERY_FAMILY
def test_the_vision_tower_runs_once_in_the_constructor_and_never_for_the_negative_prompt(family):
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    runs: list[int] = []
    handle = tower_of(model).register_forward_hook(lambda *_: runs.append(1))
    try:
        processor = DAMROProcessor(model, inputs, **STRENGTHS)
        assert len(runs) == 1
        write(model, inputs, processor, max_new_tokens=4)
        assert len(runs) == 2  # generate's own
        processor.branch.logits(torch.zeros(2, 1, dtype=torch.long))
        assert len(runs) == 2
    finally:
        handle.remove()


# Forms of inputs, precisions, devices


@pytest.mark.parametrize(
    "form",
    [
        dict,
        BatchFeature,
        BatchEncoding,
        lambda inputs: BatchFeature(inputs).to("cpu", torch.float32),
        lambda inputs: inputs | {"attention_mask": inputs["attention_mask"].to(torch.uint8)},
        lambda inputs: inputs | {"attention_mask": inputs["attention_mask"].bool()},
        lambda inputs: inputs | {"input_ids": inputs["input_ids"].int()},
        lambda inputs: {key: value for key, value in inputs.items() if key != "attention_mask"},
    ],
    ids=["dict", "feature", "encoding", "moved", "uint8 mask", "bool mask", "int32 ids", "no mask"],
)
def test_forms_of_inputs(form):
    """The batch is padded, so a mask that is lost or misread shows."""
    model, inputs, processor = damro("llava", "batch2")
    given = form(inputs)
    assert torch.equal(write(model, given, DAMROProcessor(model, given, **STRENGTHS)), write(model, inputs, processor))


@EVERY_FAMILY
def test_without_a_mask_the_prompt_is_what_generate_reads(family):
    """LLaVA's ``generate`` infers a mask from padding tokens, InstructBLIP's reads them."""
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    del inputs["attention_mask"]
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    mask = processor.branch.prompt.attention_mask
    assert bool(mask.all()) == (family == "instructblip")
    assert write(model, inputs, processor).shape == (2, 8)


def test_other_keys_are_ignored():
    model, inputs, processor = damro("llava")
    extra = inputs | {"image_sizes": torch.tensor([[480, 640]]), "labels": inputs["input_ids"]}
    assert torch.equal(DAMROProcessor(model, extra, **STRENGTHS).outliers, processor.outliers)


@EVERY_FAMILY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(family, dtype):
    model, inputs = fresh_model(family, dtype=dtype), inputs_of(f"{family}_batch2")
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    outputs = [
        model.generate(
            **inputs,
            logits_processor=processor,
            max_new_tokens=8,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        for _ in range(2)
    ]
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    for scores in outputs[0].scores:
        assert not scores.isnan().any()
        torch.testing.assert_close(scores.float().exp().sum(-1), torch.ones(2), atol=1e-3, rtol=0)
    assert torch.equal(model.generate(**BatchFeature(inputs).to(dtype), logits_processor=processor, max_new_tokens=8,
                                      do_sample=False), outputs[0].sequences)  # fmt: skip


@EVERY_FAMILY
def test_attention_implementations_write_the_same(family):
    inputs = inputs_of(f"{family}_batch2")
    written = []
    for name in ("eager", "sdpa"):
        model = model_of(family, name)
        written.append(write(model, inputs, DAMROProcessor(model, inputs, **STRENGTHS)))
    assert torch.equal(*written)


@EVERY_FAMILY
@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}], ids=str)
def test_device_map(family, device_map):
    model, inputs, processor = damro(family)
    mapped = fresh_model(family, device_map=device_map)
    written = write(mapped, inputs, DAMROProcessor(mapped, inputs, **STRENGTHS))
    assert torch.equal(written, write(model, inputs, processor))


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_weights_that_are_offloaded(family, tmp_path):
    """The language model lies on disk and is loaded layer by layer: hooks of accelerate around every module."""
    model, inputs, processor = damro(family)
    device_map = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "cpu",
        "model.language_model": "disk",
        "lm_head": "cpu",
    }
    if family == "llava_next":
        device_map["model.image_newline"] = "cpu"
    split = fresh_model(family, device_map=device_map, offload_folder=str(tmp_path))
    assert any(parameter.device.type == "meta" for parameter in split.parameters())
    written = write(split, inputs, DAMROProcessor(split, inputs, **STRENGTHS), max_new_tokens=4)
    assert torch.equal(written, write(model, inputs, processor, max_new_tokens=4))


# A real processor


def test_what_a_real_processor_returns():
    """A picture and prompts of different length, through LLaVA's own processor, padded on the left."""
    from PIL import Image

    from tests.golden_models import make_processor

    processor = make_processor("llava")
    processor.tokenizer.padding_side = "left"
    generator = torch.Generator().manual_seed(0)
    images = [
        Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())
        for height, width in ((80, 120), (60, 60))
    ]
    texts = ["USER: <image> What is this? ASSISTANT:", "USER: <image> this?"]
    model = model_of("llava")
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert inputs["attention_mask"][:, 0].tolist() == [1, 0]
    assert (inputs["input_ids"] == 199).sum(-1).tolist() == [16, 16]
    expected = write(model, inputs, stateless(model, inputs))
    assert torch.equal(write(model, inputs, DAMROProcessor(model, inputs, **STRENGTHS)), expected)
    moved = inputs.to("cpu", torch.float32)
    assert torch.equal(write(model, moved, DAMROProcessor(model, moved, **STRENGTHS)), expected)
