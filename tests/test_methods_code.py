"""CODE against the authors' function, and its second prompt against one put together by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import damro
from damro.decoding.errors import InputsError, ParameterError
from damro.methods.code import INSTRUCTION, CODERule, ask_for_description, insert_behind_image
from tests.golden_cases import FAMILIES, IMAGE_TOKEN, inputs_of, model_of, row_alone
from tests.golden_models import make_processor
from tests.test_methods_others import logits_of, own_logits
from tests.test_runs_generic import PROCESSORS
from tests.told import contrast_of
from tests.zoo import zoo_inputs, zoo_model

# IVY-LVLM/CODE, models/contrastive_decoding/cd_utils.py with cd_alpha 0.7, on these two logits.
FULL, TOLD = (2 * torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(3))).unbind()
X = -math.inf
RELEASED = [
    [X, X, X, X, X, X, 0.0, X], [X, X, X, X, -0.6099, X, -2.3235, -1.0254], [X, -1.8331, X, X, -0.1743, X, X, X],
]  # fmt: skip
WORDS = "What is a cat."
SHORT: dict[str, Any] = {"instruction": WORDS, "description_tokens": 5}


def test_scores_are_those_of_the_released_code() -> None:
    torch.testing.assert_close(CODERule()(FULL, TOLD, step=0), torch.tensor(RELEASED), atol=1e-4, rtol=0)


def test_where_both_say_the_same_nothing_changes() -> None:
    torch.testing.assert_close(CODERule()(FULL, FULL, step=0), FULL.log_softmax(-1))
    assert CODERule().needed(FULL, 0).all()
    assert CODERule()(torch.full((1, 2), math.nan), torch.zeros(1, 2), 0).isnan().all()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_description_stands_where_the_image_stood(family: str) -> None:
    """The model is asked by hand, with stock generate, and its answer put between the words around the image."""
    model, inputs, processor = model_of(family), inputs_of(f"{family}_img0"), make_processor(family)
    ids = inputs["input_ids"][0]
    image = ids == IMAGE_TOKEN
    columns = ids[image]
    if family == "instructblip":
        question = torch.cat([columns, torch.tensor(processor.tokenizer(WORDS)["input_ids"])])
        read = processor.qformer_tokenizer([WORDS], return_tensors="pt")
        more = {"qformer_input_ids": read["input_ids"], "qformer_attention_mask": read["attention_mask"]}
    else:
        format_of = f"USER: <image>\n{WORDS} ASSISTANT:"
        other = processor(images=Image.new("RGB", (56, 56)), text=format_of, return_tensors="pt")["input_ids"][0]
        first, final = (other == IMAGE_TOKEN).nonzero().flatten()[[0, -1]].tolist()
        question, more = torch.cat([other[:first], columns, other[final + 1 :]]), dict[str, Tensor]()
    asked = {**inputs, **more, "input_ids": question[None], "attention_mask": torch.ones_like(question[None])}
    written = model.generate(**asked, max_new_tokens=5, do_sample=False, pad_token_id=0)[:, len(question) :]
    description = processor.tokenizer(processor.batch_decode(written, skip_special_tokens=True)[0])["input_ids"]
    last = int(image.nonzero()[-1])
    text = torch.cat([ids[: last + 1][~image[: last + 1]], torch.tensor(description), ids[last + 1 :]])[None]
    contrast = contrast_of("code", model, inputs, processor=processor, **SHORT)
    full, negative = logits_of(contrast, model)
    torch.testing.assert_close(full, own_logits(model, inputs), atol=1e-4, rtol=0)
    decoder = model.language_model if family == "instructblip" else model
    torch.testing.assert_close(negative, decoder(input_ids=text).logits[:, -1], atol=1e-4, rtol=0)


def test_rows_of_a_batch_have_descriptions_of_their_own() -> None:
    model, inputs, processor = model_of("llava"), inputs_of("llava_batch2"), make_processor("llava")
    both: Any = contrast_of("code", model, inputs, processor=processor, **SHORT).negative
    for row in (0, 1):
        alone: Any = contrast_of("code", model, row_alone(inputs, row), processor=processor, **SHORT).negative
        read = both.attention_mask[row].bool()
        torch.testing.assert_close(both.inputs_embeds[row, read], alone.inputs_embeds[0], atol=1e-5, rtol=0)


def test_a_shared_image_is_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, one, processor = model_of("llava"), inputs_of("llava_img0"), make_processor("llava")
    inputs = {key: torch.cat([value, value]) for key, value in one.items()}
    inputs["input_ids"][1, -1] = 9
    alone: Any = contrast_of("code", model, inputs, processor=processor, **SHORT).negative
    rows: list[int] = []
    stock = type(model).generate
    monkeypatch.setattr(type(model), "generate", lambda self, **k: rows.append(len(k["input_ids"])) or stock(self, **k))
    shared: Any = contrast_of("code", model, inputs, processor=processor, shared_image=True, **SHORT).negative
    assert rows == [1]
    torch.testing.assert_close(shared.inputs_embeds, alone.inputs_embeds, atol=1e-5, rtol=0)


def test_prompts_of_tokens() -> None:
    model, inputs, processor = zoo_model("qwen2_5_vl"), zoo_inputs("qwen2_5_vl"), PROCESSORS["qwen2_5_vl"]()
    asked = ask_for_description(model, inputs, processor, "What do you see ?")
    for row, (before, after) in enumerate(zip(inputs["input_ids"], asked["input_ids"], strict=True)):
        token = model.config.image_token_id
        assert int((before == token).sum()) == int((after == token).sum()), row
    contrast: Any = contrast_of("code", model, inputs, processor=processor, **SHORT)
    assert not contrast.negative.image_mask.any()
    tokens = damro.generate(model, inputs, damro.methods.CODE(**SHORT), processor=processor, max_new_tokens=2)
    assert len(tokens) == len(inputs["input_ids"])


def test_inserted_tokens_and_padding() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    told = insert_behind_image(model, inputs, [torch.tensor([5, 6]), torch.tensor([7])])
    for row, new in enumerate(([5, 6], [7])):
        kept = told["input_ids"][row][told["attention_mask"][row].bool()].tolist()
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        end = len(ids) - ids[::-1].index(IMAGE_TOKEN)
        assert kept == ids[:end] + new + ids[end:]
    assert told["attention_mask"][:, -1].all()


def test_what_cannot_be_described() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    with pytest.raises(ParameterError, match="processor must be given to ask for a description, got None"):
        contrast_of("code", model, inputs)
    two = {**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)}
    ids = inputs["input_ids"]
    two["input_ids"] = torch.cat([ids[:, :4], ids[:, 4:20], ids[:, 4:]], dim=1)
    two["attention_mask"] = torch.ones_like(two["input_ids"])
    with pytest.raises(InputsError, match="every prompt must hold one image .* got 2 images in 1 prompts"):
        contrast_of("code", model, two, processor=make_processor("llava"))
    assert INSTRUCTION.startswith("Provide a detailed description of the image")
