"""InstructBLIP for videos against prompts that are read anew, frame by frame and token by token, by its parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

import damro
from damro.decoding.errors import InputsError
from damro.errors import UnsupportedModelError
from damro.inspection import inspect_decoder, inspect_vit
from damro.inspection.layout import encode_with_views
from damro.loading import load_model
from damro.methods import Scene
from tests.family_models import FRAMES, PATCHES, QUERIES, VIDEO, Inputs, encoder_inputs, family_inputs, family_model

NAME = "instructblipvideo"
TOP_K, ALPHA, BETA = 3, 2.0, 0.1
METHOD = f"damro:alpha={ALPHA},beta={BETA},top_k={TOP_K}"
GREEDY: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False}
SAMPLED: dict[str, Any] = {"max_new_tokens": 10, "do_sample": True, "temperature": 1.5}


@torch.no_grad()
def cls_weights(model: Any, frame: Tensor) -> Tensor:
    """`(patches,)`: what [CLS] pays to the patches of a frame in the last layer, from what enters that layer."""
    hidden = model.vision_model(frame[None], output_hidden_states=True).hidden_states[-2]
    layer = model.vision_model.encoder.layers[-1]
    query, key, _ = layer.self_attn.qkv(layer.layer_norm1(hidden)).chunk(3, dim=-1)
    size = query.shape[-1] // 3
    heads = [
        torch.softmax(q[0, 0] @ k[0].T * size**-0.5, dim=-1)
        for q, k in zip(query.split(size, dim=-1), key.split(size, dim=-1), strict=True)
    ]
    return torch.stack(heads).mean(dim=0)[1:]


@torch.no_grad()
def columns_of(model: Any, frame: Tensor, question: Tensor, top_k: int | None) -> Tensor:
    """`(queries, D)`: what stands for a frame; only for its k patches, if k is told."""
    tokens = model.vision_model(frame[None]).last_hidden_state
    if top_k is not None:
        order = torch.sort(cls_weights(model, frame), descending=True).indices[:top_k]
        tokens = tokens[:, 1 + order]
    hidden = model.qformer(
        input_ids=question[None],
        attention_mask=torch.ones(1, QUERIES + len(question), dtype=torch.long),
        query_embeds=model.query_tokens,
        encoder_hidden_states=tokens,
    )[0]
    projected: Tensor = model.language_projection(hidden[:, :QUERIES])[0]
    return projected


def prompts_of(model: Any, inputs: Inputs, top_k: int | None) -> list[Tensor]:
    """`(L, D)` for each row, without padding: its text, and the columns of its frames where they stand."""
    prompts = []
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)):
        question = inputs["qformer_input_ids"][row][inputs["qformer_attention_mask"][row].bool()]
        read = ids[mask]
        embeds = model.get_input_embeddings()(read).detach().clone()
        frames = [columns_of(model, frame, question, top_k) for frame in inputs["pixel_values"][row]]
        embeds[read == VIDEO] = torch.cat(frames)
        prompts.append(embeds)
    return prompts


class Stateless(LogitsProcessor):
    """The contrast by its equation; the negative prompt and all that follows are read anew at every step."""

    def __init__(self, model: Any, inputs: Inputs) -> None:
        self.model, self.length = model, inputs["input_ids"].shape[1]
        self.prompts = prompts_of(model, inputs, TOP_K)

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        copies = len(input_ids) // len(self.prompts)
        embed, negative = self.model.get_input_embeddings(), []
        for row, ids in enumerate(input_ids):
            read = torch.cat([self.prompts[row // copies], embed(ids[self.length :])])
            negative.append(self.model.language_model(inputs_embeds=read[None], use_cache=False).logits[0, -1])
        likely = scores.softmax(dim=-1)
        mixed = (1 + ALPHA) * scores - ALPHA * torch.stack(negative)
        return mixed.masked_fill(likely < BETA * likely.amax(dim=-1, keepdim=True), -torch.inf).log_softmax(dim=-1)


def written(inputs: Inputs, call: dict[str, Any], **told: Any) -> Tensor:
    torch.manual_seed(0)
    ids: Tensor = family_model(NAME).generate(**inputs, **call, **told)
    return ids


def as_processed(inputs: Inputs) -> Inputs:
    """The columns of the video in front, then padding, then the text, as the model's processor has them."""
    order = (inputs["input_ids"] != VIDEO).long().argsort(dim=-1, stable=True)
    return {**inputs, **{key: inputs[key].gather(-1, order) for key in ("input_ids", "attention_mask")}}


def one_frame(inputs: Inputs) -> Inputs:
    """Images: videos of one frame, with as many columns."""
    column = (inputs["input_ids"] == VIDEO).long().cumsum(dim=-1)
    own = (inputs["input_ids"] != VIDEO) | (column <= QUERIES)
    texts = {key: torch.stack([row[keep] for row, keep in zip(inputs[key], own, strict=True)])
             for key in ("input_ids", "attention_mask")}  # fmt: skip
    return {**inputs, **texts, "pixel_values": inputs["pixel_values"][:, :1]}


@pytest.mark.parametrize("shown", [dict, as_processed, one_frame])
@pytest.mark.parametrize("call", [GREEDY, SAMPLED, {**GREEDY, "num_beams": 3}], ids=["greedy", "sampled", "beams"])
def test_tokens_are_those_of_prompts_read_anew(call: dict[str, Any], shown: Callable[[Inputs], Inputs]) -> None:
    """Two prompts of different length, padded on the left."""
    model, inputs = family_model(NAME), shown(family_inputs(NAME))
    expected = written(inputs, call, logits_processor=[Stateless(model, inputs)])
    assert not torch.equal(expected, written(inputs, call))
    processor = damro.DAMROProcessor(model, inputs, alpha=ALPHA, beta=BETA, top_k=TOP_K)
    assert torch.equal(written(inputs, call, logits_processor=processor), expected)
    for strategy in ("lazy", "fused"):
        torch.manual_seed(0)
        assert torch.equal(damro.generate(model, inputs, METHOD, strategy=strategy, **call), expected)


@torch.no_grad()
def test_the_reference_reads_the_full_prompt_as_the_model_does() -> None:
    model, inputs = family_model(NAME), family_inputs(NAME)
    stock = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(**inputs, **stock).logits[0]
    prompts = prompts_of(model, inputs, None)
    logits = [model.language_model(inputs_embeds=one[None]).logits[0, -1] for one in prompts]
    torch.testing.assert_close(torch.stack(logits), expected, atol=1e-5, rtol=0)


def test_patches_are_ranked_frame_by_frame() -> None:
    model, inputs = family_model(NAME), family_inputs(NAME)
    weights = torch.stack([cls_weights(model, frame) for video in inputs["pixel_values"] for frame in video])
    attention = damro.cls_attention(model, inputs)
    torch.testing.assert_close(attention.weights, weights)
    assert attention.row.tolist() == [0] * FRAMES + [1] * FRAMES and attention.tile.tolist() == [*range(FRAMES)] * 2
    assert (attention.layer, attention.source) == (3, "cls")
    processor = damro.DAMROProcessor(model, inputs, alpha=1.0, beta=0.1, top_k=TOP_K)
    assert torch.equal(processor.outliers, weights.topk(TOP_K).indices)
    assert inspect_vit(model, inputs, layers=[-1], top_k=TOP_K).outliers.indices.shape[0] == 2 * FRAMES


def test_random_patches_depend_on_the_video_alone() -> None:
    model, inputs = family_model(NAME), family_inputs(NAME)
    method = damro.methods.RandomK(alpha=1.0, beta=0.1, top_k=4, seed=1)
    both: Any = method.prepare(model, inputs, Scene(images=("a", "b")))
    alone: Any = method.prepare(model, {key: value[1:] for key, value in inputs.items()}, Scene(images=("b",)))
    assert torch.equal(both.outliers[FRAMES:], alone.outliers)
    assert len({tuple(frame) for frame in both.outliers.tolist()}) == 2 * FRAMES


def test_every_frame_has_a_map_of_what_its_columns_were_read_from() -> None:
    model, inputs = family_model(NAME), {key: value[:1] for key, value in family_inputs(NAME).items()}
    with torch.no_grad():
        encoding, views = encode_with_views(model, inputs)
    assert [view.name for view in views] == [f"frame {frame}" for frame in range(FRAMES)]
    assert torch.cat([view.columns for view in views]).tolist() == list(range(FRAMES * QUERIES))
    assert all(view.mixing is not None and view.mixing.shape == (QUERIES, PATCHES) for view in views)
    alone = {**one_frame(inputs), "pixel_values": inputs["pixel_values"][:, 1:2]}
    with torch.no_grad():
        _, (second,) = encode_with_views(model, alone)
    assert second.name == "image" and encoding.tiles == (FRAMES,)
    torch.testing.assert_close(views[1].mixing, second.mixing)
    seen = inspect_decoder(model, inputs, torch.tensor([5, 6]))
    assert seen.maps("frame 2").shape == (2, 2, 4, 4)


def test_an_encoder_reads_videos_too() -> None:
    """On FLAN-T5, whose encoder reads the prompt, padded on the right."""
    model, inputs = family_model("instructblipvideo-t5"), encoder_inputs("instructblipvideo-t5", 2)
    plain = model.generate(**inputs, **GREEDY)
    assert torch.equal(damro.generate(model, inputs, "greedy", **GREEDY), plain)
    strong = "damro:alpha=8,beta=0.001,top_k=3"
    fused, lazy = (damro.generate(model, inputs, strong, strategy=way, **GREEDY) for way in ("fused", "lazy"))
    processor = damro.DAMROProcessor(model, inputs, alpha=8.0, beta=0.001, top_k=3)
    assert torch.equal(fused, lazy) and not torch.equal(fused, plain)
    assert torch.equal(model.generate(**inputs, logits_processor=processor, **GREEDY), fused)


def test_what_it_does_not_read_is_refused() -> None:
    model, inputs = family_model(NAME), family_inputs(NAME)
    message = (
        r"must be videos \(prompts, frames, channels, height, width\), got shape \(2, 3, 56, 56\); show an image as"
    )
    with pytest.raises(InputsError, match=message):
        damro.generate(model, {**inputs, "pixel_values": inputs["pixel_values"][:, 0]}, METHOD, **GREEDY)
    message = (
        rf"must hold {QUERIES} video tokens for each of the 2 frames of 2 videos, .*, got \[18, 18\]; its processor"
    )
    with pytest.raises(InputsError, match=message):
        damro.generate(model, {**inputs, "pixel_values": inputs["pixel_values"][:, :2]}, METHOD, **GREEDY)
    with pytest.raises(UnsupportedModelError, match=f"got {NAME}, whose {QUERIES} columns are queries of its Q-Former"):
        damro.generate(model, inputs, METHOD, keep_tokens=3, **GREEDY)
    other = {**inputs, "input_ids": inputs["input_ids"].where(inputs["input_ids"] != VIDEO, 5)}
    with pytest.raises(InputsError, match=f"this very model, whose video token is {VIDEO}"):
        damro.generate(model, other, METHOD, **GREEDY)


def test_what_reads_image_files_refuses_it(tmp_path: Path) -> None:
    family_model(NAME).save_pretrained(tmp_path)
    message = f"got {NAME}, whose reads videos; load it with transformers, and pass what its own processor returns"
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(tmp_path)
