from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from golden_models import FAMILIES, golden_inputs, load_golden, make_processor, word_tokenizer
from PIL import Image
from safetensors.torch import load_file
from test_vision_vit import MODELS, make, pixels
from transformers import LlavaConfig, LlavaForConditionalGeneration

from damro import DAMROProcessor, cls_attention, find_outliers
from damro.decoding.families import family_of
from damro.errors import InputsError, ParameterError
from damro.inspection import (
    Mention,
    compare_mentions,
    inspect_contrast,
    inspect_decoder,
    inspect_vit,
    jsonable,
    patch_overlap,
    token_spans,
)
from damro.inspection.decoder import replay, single_prompt
from damro.loading import prepare_inputs
from damro.vision.features import patch_features


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> tuple[str, Any, Any, dict[str, torch.Tensor]]:
    """Family, model under sdpa, the same model under eager attention, inputs of one prompt."""
    family = request.param
    return family, load_golden(family), load_golden(family, "eager"), golden_inputs(family, "img0")


def eager_rows(model: Any, inputs: dict[str, torch.Tensor], new: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Generated tokens `(T,)` and, from generate's own attentions, `(layers, T, I)` over the image columns."""
    out = model.generate(
        **inputs, max_new_tokens=new, do_sample=False, eos_token_id=None, output_attentions=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    length = inputs["input_ids"].shape[1]
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    steps = [torch.stack([layer[0, :, -1, image].mean(dim=0) for layer in step]) for step in out.attentions]
    return out.sequences[0, length:], torch.stack(steps, dim=1)


def hooks_of(model: Any) -> int:
    """How many hooks there are; the first run of a vision tower lets transformers put in some of its own."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_vit_maps_equal_eager_attentions(case: Any) -> None:
    family, model, eager, inputs = case
    inspect_vit(model, inputs)
    before = hooks_of(model)
    seen = inspect_vit(model, inputs)
    assert hooks_of(model) == before
    pixels = inputs["pixel_values"]
    tower = family_of(eager).vision_tower(eager)
    recorded: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda m, a, o: recorded.append(o[0] if isinstance(o, tuple) else o))
        for layer in tower.encoder.layers
    ]
    with torch.no_grad():
        attentions = tower(pixels.flatten(0, -4), output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    expected = torch.stack([layer[:, :, 0, 1:].transpose(0, 1) for layer in attentions])  # (layers, heads, tiles, P)
    assert seen.per_head.shape == expected.shape
    assert (seen.per_head - expected).abs().max() < 1e-5
    norms = torch.stack([hidden[:, 1:].pow(2).sum(-1).sqrt() for hidden in recorded])
    torch.testing.assert_close(seen.norms, norms, atol=1e-4, rtol=1e-4)
    assert seen.grid == (4, 4) and seen.layers == (0, 1, 2, 3)


def test_vit_ranking_is_the_processors_own(case: Any) -> None:
    family, model, _, inputs = case
    seen = inspect_vit(model, inputs, layers=[-1])
    damro = DAMROProcessor(model, inputs)
    assert seen.layers == (3,) and seen.layer == damro.attention.layer and seen.heads == damro.attention.heads
    torch.testing.assert_close(seen.weights, damro.attention.weights)
    assert seen.outliers.indices.tolist() == damro.outliers.tolist()
    merged = inspect_vit(model, inputs, layers=[seen.layer]).merged[0]
    same = torch.allclose(merged, seen.weights)
    assert same == (family != "instructblip")  # whose heads the released code averages


@pytest.mark.parametrize("name", MODELS)
def test_a_bare_vit_is_seen_like_a_tower(name: str) -> None:
    model, extra = make(name)
    inputs = pixels()
    seen = inspect_vit(model, inputs, rule="norm", top_k=4)
    with torch.no_grad():
        output = model(**inputs, output_attentions=True, output_hidden_states=True)
    eager = torch.stack([layer[:, :, 0, extra:].transpose(0, 1) for layer in output.attentions])
    torch.testing.assert_close(seen.per_head, eager)  # (layers, heads, images, patches)
    torch.testing.assert_close(seen.weights, eager[2].mean(dim=0))
    for number in (0, 1):  # what comes behind the last layer, some models normalise
        torch.testing.assert_close(seen.norms[number], output.hidden_states[number + 1][:, extra:].norm(dim=-1))
    assert (seen.layer, seen.heads, seen.grid, seen.stitched) == (2, "mean", (4, 4), (None, None))
    features = patch_features(model, inputs)
    assert torch.equal(
        seen.outliers.indices,
        find_outliers(cls_attention(model, inputs), rule="norm", top_k=4, features=features).indices,
    )
    assert inspect_vit(model, inputs).outliers.count.tolist() == [10, 10]


def test_decoder_maps_equal_eager_attentions(case: Any) -> None:
    family, model, eager, inputs = case
    tokens, expected = eager_rows(eager, inputs, 5)
    before = hooks_of(model)
    seen = inspect_decoder(model, inputs, tokens)
    assert hooks_of(model) == before
    assert seen.columns.shape == expected.shape
    assert (seen.columns - expected).abs().max() < 1e-5
    torch.testing.assert_close(seen.image_share, expected.sum(-1), atol=1e-5, rtol=0)
    some = inspect_decoder(model, inputs, tokens, layers=[-1, 0])
    assert some.layers == (2, 0)
    torch.testing.assert_close(some.columns, seen.columns[[2, 0]])
    maps = seen.maps()
    assert maps.shape == (3, 5, 4, 4)
    if family == "llava":
        assert torch.equal(maps.flatten(2), seen.columns)


def test_instructblip_maps_go_through_the_qformer() -> None:
    eager, inputs = load_golden("instructblip", "eager"), golden_inputs("instructblip", "img0")
    tokens, columns = eager_rows(eager, inputs, 4)
    with torch.no_grad():
        output = eager.get_image_features(
            inputs["pixel_values"],
            qformer_input_ids=inputs["qformer_input_ids"],
            qformer_attention_mask=inputs["qformer_attention_mask"],
            return_dict=True,
            output_attentions=True,
        )
    # Layers 0 and 2 of the three cross-attend; each is (images, heads, queries, 1 + patches).
    cross = [layer for layer in output.qformer_outputs.cross_attentions if layer is not None]
    assert len(cross) == 2 and cross[0].shape == (1, 4, 6, 17)
    mixing = torch.stack([layer[0].mean(dim=0)[:, 1:] for layer in cross]).mean(dim=0)
    expected = torch.einsum("ntq,qp->ntp", columns, mixing).view(3, 4, 4, 4)
    seen = inspect_decoder(load_golden("instructblip"), inputs, tokens)
    assert (seen.maps() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(56, 56), (160, 60), (50, 170), (90, 110)])
def test_llava_next_tiles_lie_where_the_model_packs_them(size: tuple[int, int]) -> None:
    model = load_golden("llava_next")
    inputs = prepare_inputs(make_processor("llava_next"), [Image.new("RGB", size, "red")], ["What"])
    prompt, views = single_prompt(model, inputs)
    tiles = inputs["pixel_values"].shape[1]
    values = torch.arange(tiles * 16.0).view(tiles, 16)
    # The model's own packing, of patch numbers instead of features, with -1 for newlines.
    [packed], _ = model.model.pack_image_features(
        [values[..., None]], inputs["image_sizes"], "default", image_newline=torch.tensor([-1.0])
    )
    packed = packed[:, 0]
    assert len(packed) == int(prompt.image_mask.sum())
    image, fine = views
    assert (image.name, fine.name) == ("image", "tiles")
    assert image.read(packed).flatten().tolist() == values[0].tolist()
    read = fine.read(packed)
    assert int(read.min()) >= 16  # no newline, no base tile
    assert sorted({*read.flatten().tolist(), *values[0].tolist(), -1.0}) == sorted(set(packed.tolist()))
    seen = inspect_vit(model, inputs)
    stitched = seen.stitched[0]
    assert stitched is not None and stitched.shape == fine.grid
    by_number = seen.weights.flatten()
    torch.testing.assert_close(stitched, by_number[read.long()])


def test_grouped_keys_and_left_padding() -> None:
    torch.manual_seed(5)
    small = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "vocab_size": 200,
        "num_hidden_layers": 2,
    }
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **small, "image_size": 56, "patch_size": 14},
        text_config={"model_type": "mistral", **small, "num_key_value_heads": 2, "head_dim": 16},
        image_token_index=199,
    )
    inputs = golden_inputs("llava", "img0")
    inputs["input_ids"] = torch.cat([torch.zeros(1, 3, dtype=torch.long), inputs["input_ids"]], dim=1)
    inputs["attention_mask"] = torch.cat([torch.zeros(1, 3, dtype=torch.long), inputs["attention_mask"]], dim=1)
    config._attn_implementation = "eager"
    model = LlavaForConditionalGeneration(config).eval()
    tokens, expected = eager_rows(model, inputs, 4)
    assert (inspect_decoder(model, inputs, tokens).columns - expected).abs().max() < 1e-5
    model.config.text_config.sliding_window = 8
    for layer in model.get_decoder().layers:
        layer.self_attn.config.sliding_window = 8
    # Columns that have left the window get nothing; without a cache, eager attention has a row for every position.
    ids = torch.cat([inputs["input_ids"], tokens[None, :-1]], dim=-1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(tokens[None, :-1])], dim=-1)
    whole = {**inputs, "input_ids": ids, "attention_mask": mask}
    attentions = model(**whole, output_attentions=True, use_cache=False).attentions
    image = (ids[0] == model.config.image_token_id).nonzero().flatten()
    windowed = torch.stack([layer[0, :, -len(tokens) :, image].mean(dim=0) for layer in attentions])
    assert (inspect_decoder(model, inputs, tokens).columns - windowed).abs().max() < 1e-5
    assert float(windowed.sum()) < float(expected.sum())


def test_contrast_steps_equal_the_recorded_run(case: Any) -> None:
    family, model, _, inputs = case
    from golden_models import GOLDEN

    [path] = GOLDEN.glob(f"runs/{family}_s0__img0__a1_b0.1_k1.safetensors")
    run = load_file(path)
    tokens = run["generated_ids"][0]
    damro = DAMROProcessor(model, inputs, alpha=1.0, beta=0.1, top_k=1)
    steps = inspect_contrast(model, inputs, tokens, damro, candidates=5)
    rows = torch.arange(len(tokens))
    full = torch.log_softmax(run["full_logits"][0], dim=-1)
    negative = torch.log_softmax(run["neg_logits"][0], dim=-1)
    scores = torch.log_softmax(run["scores"][0], dim=-1)
    torch.testing.assert_close(steps.full, full[rows, tokens], atol=1e-3, rtol=0)
    torch.testing.assert_close(steps.negative, negative[rows, tokens], atol=1e-3, rtol=0)
    torch.testing.assert_close(steps.contrast, scores[rows, tokens], atol=1e-3, rtol=0)
    torch.testing.assert_close(steps.candidate_full, full.topk(5).values, atol=1e-3, rtol=0)
    # A greedy run takes the best score, so every candidate more likely before than the chosen token was vetoed.
    assert steps.vetoed.sum(dim=-1).tolist() == (full > steps.full[:, None] + 1e-3).sum(dim=-1).clamp(max=5).tolist()
    assert bool(steps.vetoed.any()), "the contrast must change something for this test to mean anything"


def test_replay_needs_one_prompt_and_a_token(case: Any) -> None:
    family, model, _, inputs = case
    with pytest.raises(InputsError, match="tokens must be one row"):
        inspect_decoder(model, inputs, torch.empty(0, dtype=torch.long))
    with pytest.raises(InputsError, match="inputs must hold one prompt, got 2"):
        inspect_decoder(model, golden_inputs(family, "batch2"), torch.tensor([5]))
    with pytest.raises(ParameterError, match="language model's 3 layers .* got 3"):
        inspect_decoder(model, inputs, torch.tensor([5]), layers=[3])
    with pytest.raises(ParameterError, match="at least one of the ViT's 4 layers"):
        inspect_vit(model, inputs, layers=[])
    with pytest.raises(ParameterError, match="candidates must be from 1 to the 200 tokens, got 0"):
        inspect_contrast(model, inputs, torch.tensor([5]), DAMROProcessor(model, inputs), candidates=0)
    with pytest.raises(InputsError, match="view must be one of 'image' of image 0.* got 'tile' of image 0"):
        inspect_decoder(model, inputs, torch.tensor([5])).maps("tile")


def test_hooks_are_gone_after_an_error(case: Any) -> None:
    _, model, _, inputs = case
    before = hooks_of(model)
    prompt, _ = single_prompt(model, inputs)
    with pytest.raises(IndexError):
        replay(model, prompt, torch.tensor([10_000]).repeat(2), layers=[0])
    broken = {**inputs, "pixel_values": inputs["pixel_values"][..., :13, :13]}
    with pytest.raises((RuntimeError, ValueError)):
        inspect_vit(model, broken)
    assert hooks_of(model) == before


def test_overlap_by_hand() -> None:
    vit = torch.tensor([[0.30, 0.25], [0.25, 0.05], [0.10, 0.05]])  # ranks: 0, 1, 2, 4, 3, 5
    decoder = torch.tensor([
        [0.10, 0.20, 0.30, 0.00, 0.40, 0.00],  # ranks: 4, 2, 1, 0
        [0.30, 0.25, 0.20, 0.15, 0.10, 0.05],  # ranks: 0, 1, 2, 3
    ])  # fmt: skip
    overlap = patch_overlap(vit, decoder, tops=[1, 2, 3, 4])
    # token 0: {4}/{0}; {4,2}/{0,1}; {4,2,1}/{0,1,2} share 1, 2; {4,2,1,0}/{0,1,2,4} share all
    expected = torch.tensor([[0, 0, 2 / 3, 1], [1, 1, 1, 3 / 4]])
    torch.testing.assert_close(overlap, expected)
    # "a red cat": tokens "a", " red", " cat"; here the object "red cat" takes both, "a" is another object.
    means = compare_mentions(
        overlap[[1, 0, 1]],
        [(0, 1), (1, 5), (5, 9)],
        [Mention(2, 9, True), Mention(0, 1, False), Mention(6, 9, False)],
        tops=[1, 2, 3, 4],
    )
    torch.testing.assert_close(means.hallucinated, torch.tensor([0.5, 0.5, 5 / 6, 7 / 8]))
    torch.testing.assert_close(means.real, torch.tensor([1, 1, 1, 3 / 4]))
    assert (means.hallucinated_count, means.real_count) == (1, 2)
    none = compare_mentions(overlap, [(0, 1), (1, 2)], [Mention(0, 1, False)], tops=[1, 2, 3, 4])
    assert none.to_json()["hallucinated"] == [None] * 4 and none.to_json()["real"][1] == 0.0


def test_overlap_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputsError, match="decoder must be on the 4 patches of vit, got 6"):
        patch_overlap(torch.rand(2, 2), torch.rand(1, 6), tops=[1])
    with pytest.raises(ParameterError, match=r"tops must be numbers from 1 to the 4 patches, got \[5\]"):
        patch_overlap(torch.rand(2, 2), torch.rand(1, 4), tops=[5])
    with pytest.raises(InputsError, match="mentions must lie within the caption, got characters 9 to 12"):
        compare_mentions(torch.rand(1, 1), [(0, 4)], [Mention(9, 12, True)], tops=[1])
    with pytest.raises(InputsError, match=r"one row a token and one column a top, \(1, 2\), got \(1, 1\)"):
        compare_mentions(torch.rand(1, 1), [(0, 4)], [], tops=[1, 2])


def test_token_spans_cut_the_text_without_gaps() -> None:
    tokenizer = word_tokenizer(200)
    ids = torch.tensor(tokenizer("a cat. What w40", add_special_tokens=False).input_ids + [2])
    text, spans = token_spans(tokenizer, ids)
    assert text == "a cat. What w40"
    assert [text[start:end] for start, end in spans] == ["a", " cat.", " What", " w40", ""]


def test_bytes_of_one_character_belong_to_its_last_token() -> None:
    class Bytes:
        def decode(self, ids: list[int], **options: Any) -> str:
            return bytes(ids).decode("utf-8", errors="replace")

    text, spans = token_spans(Bytes(), torch.tensor(list("né!".encode())))
    assert text == "né!" and spans == ((0, 1), (1, 1), (1, 2), (2, 3))


def test_results_become_json(case: Any) -> None:
    _, model, _, inputs = case
    tokens = torch.tensor([7, 8])
    damro = DAMROProcessor(model, inputs, top_k=2)
    for result in (
        inspect_vit(model, inputs, top_k=2),
        inspect_decoder(model, inputs, tokens),
        inspect_contrast(model, inputs, tokens, damro, candidates=3),
    ):
        plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
        assert set(plain) == {field for field in result.__dataclass_fields__}
    assert plain["tokens"] == [7, 8] and len(plain["candidates"][1]) == 3
    assert jsonable(-math.inf) is None
    with pytest.raises(TypeError, match="got object"):
        jsonable(object())
