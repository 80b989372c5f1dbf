"""``damro.generate(keep_tokens=...)`` against loops without cache, padding or batch."""

import pytest
import torch
from golden_cases import inputs_of, model_of, prompt_length, row_alone
from torch import Tensor
from transformers import GenerationConfig

from damro import outlier_view
from damro.decoding.prompts import VisualPrompt
from damro.errors import ParameterError, UnsupportedModelError
from damro.pruning import Pruning, prune
from tests.told import generate

FAMILIES = ("llava", "llava_next")
TOKENS = 8
LENGTH = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}


def next_logits(model: object, prompt: VisualPrompt, row: int, found: list[int]) -> Tensor:
    embeds = prompt.inputs_embeds[row : row + 1, prompt.attention_mask[row].bool()]
    said = model.get_input_embeddings()(torch.tensor([found], dtype=torch.long))
    embeds = torch.cat([embeds, said], dim=1)
    with torch.no_grad():
        return model(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            position_ids=torch.arange(embeds.shape[1])[None],
            use_cache=False,
        ).logits[0, -1]


def contrast_by_hand(model: object, full: VisualPrompt, negative: VisualPrompt, row: int) -> list[int]:
    """Greedy: the best of 3 f - 2 n among the tokens with at least a tenth of the best probability."""
    found: list[int] = []
    for _ in range(TOKENS):
        f, n = (next_logits(model, prompt, row, found) for prompt in (full, negative))
        scores = torch.where(f.softmax(-1) >= 0.1 * f.softmax(-1).max(), 3 * f - 2 * n, float("-inf"))
        found.append(int(scores.argmax()))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", ["fused", "lazy"])
def test_the_pruned_prompt_is_decoded_against_the_outliers(family: str, strategy: str) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    options = {"alpha": 2.0, "beta": 0.1, "top_k": 4}
    ids = generate(model, inputs, keep_tokens=5, strategy=strategy, **options, **LENGTH)
    view = outlier_view(model, inputs, **options)
    pruned = prune(model, inputs, 5)
    start = prompt_length(inputs)
    for row in range(len(ids)):
        assert torch.equal(ids[row, :start], inputs["input_ids"][row])
        assert ids[row, start:].tolist() == contrast_by_hand(model, pruned, view.contrast.negative, row)
    whole = generate(model, inputs, strategy=strategy, **options, **LENGTH)
    assert not torch.equal(whole, ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_contrast_it_is_stock_generate_on_the_pruned_prompt(family: str) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    pruning = Pruning(4, "layers", start_layer=0)
    ids = generate(model, inputs, method="greedy", keep_tokens=pruning, **LENGTH)
    prompt = prune(model, inputs, 4, by="layers", start_layer=0)
    stock = model.generate(inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask, **LENGTH)
    assert torch.equal(ids[:, prompt_length(inputs) :], stock)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_negative_prompt_and_the_outliers_stay(family: str) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_img0")
    plain, pruned = outlier_view(model, inputs, top_k=4), outlier_view(model, inputs, top_k=4, pruning=Pruning(2))
    assert torch.equal(plain.outliers, pruned.outliers)
    torch.testing.assert_close(plain.contrast.negative.inputs_embeds, pruned.contrast.negative.inputs_embeds)
    torch.testing.assert_close(pruned.contrast.full.inputs_embeds, prune(model, inputs, 2).inputs_embeds)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["damro", "no-image", "greedy"])
def test_prompts_that_share_an_image_are_pruned_alike(family: str, method: str) -> None:
    model, one = model_of(family), inputs_of(f"{family}_img0")
    both = {key: value.repeat(2, *[1] * (value.ndim - 1)) for key, value in one.items()}
    both["input_ids"][1, -1] = 7  # another question about the same image
    options = {"method": method, "top_k": 4, "keep_tokens": Pruning(5, "correlation"), **LENGTH}
    together = generate(model, both, shared_prefix=True, **options)
    for row in range(2):
        assert torch.equal(together[row], generate(model, row_alone(both, row), **options)[0])


def test_the_vision_tower_runs_once() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    runs: list[int] = []
    handle = model.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    generate(model, inputs, keep_tokens=Pruning(4, "layers", start_layer=0), top_k=4, max_new_tokens=3)
    handle.remove()
    assert len(runs) == 1


@pytest.mark.parametrize("method", ["damro", "greedy"])
@pytest.mark.parametrize("strategy", ["fused", "lazy"])
def test_max_length_counts_the_prompt_that_is_returned(method: str, strategy: str) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    length = prompt_length(inputs) + 5
    options = {"method": method, "strategy": strategy, "keep_tokens": 3, "top_k": 4, "do_sample": False}
    ids = generate(model, inputs, max_length=length, min_length=length, **options)
    fewer = generate(model, inputs, max_new_tokens=5, min_new_tokens=5, **options)
    assert torch.equal(ids, fewer)
    config = GenerationConfig(max_length=length, min_length=length, do_sample=False)
    del options["do_sample"]
    assert torch.equal(generate(model, inputs, generation_config=config, **options), fewer)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_read_the_pruned_prompt(family: str) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    beams = {"num_beams": 3, **LENGTH}
    ids = generate(model, inputs, method="greedy", keep_tokens=3, **beams)
    prompt = prune(model, inputs, 3)
    stock = model.generate(inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask, **beams)
    assert torch.equal(ids[:, prompt_length(inputs) :], stock)
    # Without contrast at alpha 0 and with every token plausible, DAMRO is a plain beam search over the same prompt.
    even = generate(model, inputs, alpha=0.0, beta=1e-30, top_k=4, keep_tokens=3, **beams)
    assert torch.equal(even, ids)


@pytest.mark.parametrize("method", ["damro", "greedy"])
def test_drafts_are_refused_with_a_pruned_prompt(method: str) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    with pytest.raises(ParameterError, match="prompt_lookup_num_tokens must be left out where the prompt is pruned"):
        generate(model, inputs, method=method, top_k=4, keep_tokens=3, prompt_lookup_num_tokens=2)


def test_queries_of_a_qformer_are_not_pruned() -> None:
    with pytest.raises(UnsupportedModelError, match="Q-Former"):
        generate(model_of("instructblip"), inputs_of("instructblip_img0"), keep_tokens=3, max_new_tokens=1)


@pytest.mark.parametrize("keep", [0, -1, 17, "8", 2.0])
def test_how_many_must_be_a_number_of_patches(keep: object) -> None:
    with pytest.raises(ParameterError, match="keep_tokens"):
        generate(model_of("llava"), inputs_of("llava_img0"), keep_tokens=keep, max_new_tokens=1)
