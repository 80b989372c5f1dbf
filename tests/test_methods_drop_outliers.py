"""The prompt without its outliers, against stock models that read everything anew without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import damro
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.methods import DropOutliers, DropRandom, RandomK, Scene
from damro.pruning import Pruning
from tests.family_models import FRAMES, encoder_inputs, family_inputs, family_model
from tests.golden_cases import IMAGE_TOKEN, Inputs, inputs_of, model_of, prompt_length, row_alone
from tests.stateless import merged_or_mean_weights, queries_reading
from tests.zoo import NEVER, TWO_IMAGES, zoo_inputs, zoo_model
from tests.zoo_reference import (
    TYPES,
    base_tile,
    chosen_columns,
    features_of,
    logits_behind,
    positions_of,
    row_of,
    slice_of,
)

K, NEW = 4, 6
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
METHOD = f"drop-outliers:top_k={K}"


def without_outliers(model: Any, inputs: Inputs) -> list[Tensor]:
    """For each image `(columns left, D)`.

    Of LLaVA-NeXT, what the model itself makes of tiles in which outliers are NaN, without what is NaN.
    """
    ranked = merged_or_mean_weights(model, inputs).argsort(dim=-1, descending=True)
    if model.config.model_type == "instructblip":
        rest = ranked[:, K:].sort(dim=-1).values
        tokens = model.vision_model(inputs["pixel_values"]).last_hidden_state
        left = [torch.cat([token[:1], token[1:][own]]) for token, own in zip(tokens, rest, strict=True)]
        return list(queries_reading(model, inputs, torch.stack(left)))

    def mark(module: Any, args: Any, output: Tensor) -> Tensor:
        at = ranked[:, :K, None].expand(-1, -1, output.shape[-1])
        return output.scatter(1, at, torch.nan)

    images = {key: inputs[key] for key in ("pixel_values", "image_sizes") if key in inputs}
    hook = model.model.multi_modal_projector.register_forward_hook(mark)
    try:
        features = model.get_image_features(**images, return_dict=True).pooler_output
    finally:
        hook.remove()
    newline = getattr(model.model, "image_newline", None)
    return [_left(feature, newline) for feature in features]


def _left(feature: Tensor, newline: Tensor | None) -> Tensor:
    """What is not NaN; of newlines those behind a line that is not all NaN."""
    kept, line = [], 0
    for vector in feature:
        if newline is not None and torch.equal(vector, newline):
            kept += [vector] if line else []
            line = 0
        elif not bool(vector.isnan().any()):
            kept.append(vector)
            line += 1
    return torch.stack(kept)


@torch.no_grad()
def by_hand(model: Any, inputs: Inputs) -> list[list[int]]:
    """Greedy answers, row by row without padding, everything read anew at every token."""
    decoder, embed = getattr(model, "language_model", model), model.get_input_embeddings()
    answers, images = [], iter(without_outliers(model, inputs))
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
        read, at, prompt = ids[mask], 0, []
        while at < len(read):
            if read[at] != IMAGE_TOKEN:
                prompt.append(embed(read[at : at + 1]))
                at += 1
                continue
            prompt.append(next(images))
            while at < len(read) and read[at] == IMAGE_TOKEN:  # one image a run
                at += 1
        columns, tokens = torch.cat(prompt), list[int]()
        for _ in range(NEW):
            told = torch.cat([columns, embed(torch.tensor(tokens, dtype=torch.long))])[None]
            logits = decoder(inputs_embeds=told, use_cache=False).logits[0, -1]
            logits[list(ends_of(decoder))] = -torch.inf
            tokens.append(int(logits.argmax()))
        answers.append(tokens)
    return answers


def ends_of(decoder: Any) -> list[int]:
    ends = decoder.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


@pytest.mark.parametrize("family", ["llava", "llava_next", "instructblip"])
@pytest.mark.parametrize("strategy", ["lazy", "fused"])
def test_answers_are_those_of_the_image_without_them(family: str, strategy: Any) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    assert not bool(inputs["attention_mask"].all())  # rows of different length
    expected = by_hand(model, inputs)
    ids = damro.generate(model, inputs, METHOD, strategy=strategy, **GREEDY)
    assert ids[:, prompt_length(inputs) :].tolist() == expected
    plain = damro.generate(model, inputs, "greedy", **GREEDY)
    assert not torch.equal(plain, ids)
    for row in range(len(ids)):
        alone = row_alone(inputs, row)
        assert damro.generate(model, alone, METHOD, **GREEDY)[0, prompt_length(alone) :].tolist() == expected[row]


def rows_without(name: str, model: Any, inputs: Inputs, top_k: int) -> list[dict[str, Any]]:
    """For each prompt, what the stock model is given: all of its tokens but those of outliers."""
    chosen, images = chosen_columns(name, inputs, top_k)
    output = features_of(model, inputs)
    pooled = torch.cat([one.reshape(-1, one.shape[-1]) for one in output.pooler_output])
    positions, rows, image, column = positions_of(model, inputs), [], 0, 0
    for row, length in enumerate(inputs["attention_mask"].sum(dim=-1).tolist()):
        ids = row_of(inputs, row)
        start, dropped = len(inputs["input_ids"][row]) - length, set[int]()
        places = (ids == IMAGE_TOKEN).nonzero().flatten().tolist()
        numbers = {place: column + number for number, place in enumerate(places)}
        column += len(places)
        while places:
            own, places = places[: sum(images[image])], places[sum(images[image]) :]
            before = sum(images[image][: base_tile(name, images[image])])
            dropped |= {own[before + patch] for patch in chosen[image].tolist()}
            image += 1
        kept = [place for place in range(length) if place not in dropped]
        told: dict[str, Any] = {"input_ids": ids[kept][None]}
        told |= {key: inputs[key][row, start:][kept][None] for key in TYPES if key in inputs}
        told["position_ids"] = torch.arange(len(kept))[None]
        if positions.ndim == 3:
            told["position_ids"] = positions[:, row, start:][:, kept].unsqueeze(-2)
        told["mm_encoder_outputs"] = slice_of(output, pooled, [numbers[place] for place in kept if place in numbers])
        rows.append(told)
    return rows


@pytest.mark.parametrize("name", ["internvl_tiles", "qwen2_5_vl", "qwen3_vl", "smolvlm", "mistral3"])
@torch.no_grad()
def test_prompts_of_tokens_keep_their_places(name: str) -> None:
    model, inputs = zoo_model(name), zoo_inputs(name, TWO_IMAGES)
    call = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": NEVER}
    ids = damro.generate(model, inputs, "drop-outliers:top_k=3", **call)
    assert torch.equal(ids[:, : prompt_length(inputs)], inputs["input_ids"])
    written = ids[:, prompt_length(inputs) :]
    one = zoo_inputs(name, TWO_IMAGES[1:])
    assert torch.equal(damro.generate(model, one, "drop-outliers:top_k=3", **call)[0, :-NEW], one["input_ids"][0])
    for row, told in enumerate(rows_without(name, model, inputs, 3)):
        for step in range(NEW):
            logits = logits_behind(model, told, written[row, :step])
            logits[NEVER] = -torch.inf
            assert int(logits.argmax()) == int(written[row, step])
    assert not torch.equal(ids, damro.generate(model, inputs, "greedy", **call))


@pytest.mark.parametrize("name", ["vipllava", "video_llava_video", "blip-2", "paligemma", "instructblipvideo"])
def test_a_batch_is_answered_as_its_rows_alone(name: str) -> None:
    model, inputs = family_model(name), family_inputs(name)
    ids = damro.generate(model, inputs, METHOD, **GREEDY)
    prompt = DropOutliers(top_k=K).prepare(model, inputs, Scene())
    fewer = 0 if "blip" in name else K * (FRAMES if name == "video_llava_video" else 1)
    whole = damro.methods.Greedy().prepare(model, inputs, Scene())
    assert (whole.image_mask.sum(-1) - prompt.image_mask.sum(-1)).tolist() == [fewer] * 2
    for row in (0, 1):
        alone = row_alone(inputs, row)
        answer = damro.generate(model, alone, METHOD, **GREEDY)
        assert torch.equal(answer[0, prompt_length(alone) :], ids[row, prompt_length(inputs) :])


def test_an_encoder_reads_the_image_without_them() -> None:
    model, inputs = family_model("instructblip-t5"), encoder_inputs("instructblip-t5", 2)
    ids = damro.generate(model, inputs, METHOD, max_new_tokens=NEW, do_sample=False)
    assert not torch.equal(ids, damro.generate(model, inputs, "greedy", max_new_tokens=NEW, do_sample=False))


def test_one_image_of_several_questions_is_read_once() -> None:
    for family in ("llava", "instructblip"):
        model, one = model_of(family), inputs_of(f"{family}_img0")
        inputs = {key: torch.cat([value, value]) for key, value in one.items()}
        inputs["input_ids"][1, -1] = 9
        together = damro.generate(model, inputs, METHOD, shared_prefix=True, **GREEDY)
        assert torch.equal(together, damro.generate(model, inputs, METHOD, **GREEDY))


def test_beams_samples_and_several_sequences() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    prompt = DropOutliers(top_k=K).prepare(model, inputs, Scene())
    stock = {"inputs_embeds": prompt.inputs_embeds, "attention_mask": prompt.attention_mask}
    for call in (
        {"num_beams": 3, "max_new_tokens": 5},
        {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 5},
    ):
        torch.manual_seed(3)
        ids = damro.generate(model, inputs, METHOD, **call)
        torch.manual_seed(3)
        assert torch.equal(ids[:, prompt_length(inputs) :], model.generate(**stock, **call))


def test_random_patches_are_those_of_the_control_of_damro() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    scene = Scene(images=("a", "b"))
    dropped = RandomK(1.0, 0.1, top_k=K, seed=7).prepare(model, inputs, scene).outliers
    whole = damro.methods.Greedy().prepare(model, inputs, scene)
    rest = [[patch for patch in range(16) if patch not in row] for row in dropped.tolist()]
    expected = whole.keep([torch.tensor(row) for row in rest])
    prompt = DropRandom(top_k=K, seed=7).prepare(model, inputs, scene)
    assert torch.equal(prompt.inputs_embeds, expected.inputs_embeds)
    other = DropRandom(top_k=K, seed=7).prepare(model, row_alone(inputs, 1), Scene(images=("b",)))
    assert torch.equal(other.inputs_embeds[0], prompt.inputs_embeds[1, prompt.attention_mask[1].bool()])


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_pruning_chooses_among_the_others(family: str) -> None:
    """As many patches as asked for, and none of them an outlier."""
    model, inputs = model_of(family), inputs_of(f"{family}_img0")
    ranked = merged_or_mean_weights(model, inputs).argsort(dim=-1, descending=True)
    dropped = torch.zeros(len(ranked), 16, dtype=torch.bool).scatter(1, ranked[:, :K], True)
    prompt = DropOutliers(top_k=K).prepare(model, inputs, Scene(pruning=Pruning(5)))
    pruning = Pruning(5)
    encode = damro.decoding.families.family_of(model).encode
    with torch.no_grad(), pruning.record(model, inputs) as recorded:
        encoding = encode(model, inputs)
    kept = pruning.choose(recorded, encoding.grid, ~dropped)
    assert not bool((kept & dropped).any()) and kept.sum(dim=-1).tolist() == [5] * len(kept)
    left = DropOutliers(top_k=K).prepare(model, inputs, Scene()).inputs_embeds[0]
    columns = prompt.inputs_embeds[0, prompt.image_mask[0]]
    assert all(bool((left == column).all(dim=-1).any()) for column in columns)
    patches = columns if family == "llava" else columns[~(columns == model.model.image_newline).all(dim=-1)]
    assert len(patches) == 5 * len(kept)


def test_what_is_refused() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    with pytest.raises(ParameterError, match="top_k must leave a patch of the 16 of a tile, got 16"):
        damro.generate(model, inputs, "drop-outliers:top_k=16", **GREEDY)
    with pytest.raises(ParameterError, match="must be a contrast, got 'drop-outliers:top_k=4'"):
        damro.contrast_processor(model, inputs, METHOD)
    with pytest.raises(UnsupportedModelError, match="image columns that are patches, got llava_onevision"):
        damro.generate(family_model("llava_onevision"), family_inputs("llava_onevision"), METHOD, **GREEDY)
    with pytest.raises(UnsupportedModelError, match="told top_k for .* got none for 'qwen2_5_vl'"):
        damro.generate(zoo_model("qwen2_5_vl"), zoo_inputs("qwen2_5_vl"), "drop-outliers", **GREEDY)


def test_models_of_tokens_refuse_other_loops_and_windows() -> None:
    model, inputs = zoo_model("qwen2_5_vl"), zoo_inputs("qwen2_5_vl")
    for call in ({"num_beams": 2}, {"strategy": "lazy"}):
        with pytest.raises(ParameterError, match="where image columns of qwen2_5_vl are left out, got"):
            damro.generate(model, inputs, "drop-outliers:top_k=2", max_new_tokens=2, **call)
    with pytest.raises(UnsupportedModelError, match="fewer image columns, got gemma3: it has layers of another kind"):
        DropOutliers(top_k=2).prepare(zoo_model("gemma3"), zoo_inputs("gemma3"), Scene())
