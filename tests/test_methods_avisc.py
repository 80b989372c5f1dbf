"""AvisC against the authors' code, and its blind columns against attention that stock eager models return."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import damro
from damro.decoding.errors import UnsupportedModelError
from damro.methods import AvisC
from damro.methods.avisc import attention_of_last, blanked, blind_columns
from tests.family_models import encoder_inputs, family_model
from tests.golden_cases import IMAGE_TOKEN, fresh_model, inputs_of, model_of, row_alone
from tests.llava_models import llava_inputs, llava_of
from tests.test_methods_second_prompts import scores_of
from tests.told import contrast_of
from tests.zoo import zoo_inputs, zoo_model

# sangminwoo/AvisC, avisc_utils/avisc_sample.py under transformers 4.37, on the language model of the golden LLaVA and
# its prompt about image 0: alpha, layer_gamma, lamb, the blind columns, tokens, and the best log-probability of every
# step.
RELEASED: list[tuple[float, float, float, list[int], list[int], list[float]]] = [
    (2.5, 0.5, 1.0, [8, 14], [41, 25, 87, 72, 15, 45], [-0.00471, -0.60465, -0.00405, 0.0, -0.52488, -0.09826]),
    (1.0, 0.5, 1.0, [8, 14], [41, 25, 87, 72, 45, 198], [-0.06524, -1.23195, -0.05795, 0.0, -0.767, -0.61515]),
    (1.0, 0.9, 0.5, [1, 8, 14], [41, 25, 87, 72, 45, 198], [-0.21697, -0.74466, -0.03492, 0.0, -0.85809, -0.88702]),
    (3.0, 0.3, 0.0, [1, 8, 14, 15], [41, 25, 87, 72, 45, 41], [-0.16934, -0.36177, -0.00011, 0.0, -0.14771, -0.6804]),
]


@pytest.mark.parametrize(("alpha", "share", "deviations", "blind", "tokens", "best"), RELEASED)
def test_scores_are_those_of_the_released_code(
    alpha: float, share: float, deviations: float, blind: list[int], tokens: list[int], best: list[float]
) -> None:
    model, inputs, method = model_of("llava"), inputs_of("llava_img0"), AvisC(alpha, 0.1, share, deviations)
    written, scores = scores_of(model, inputs, method, steps=6)
    assert written.tolist() == [tokens]
    torch.testing.assert_close(scores[0].amax(-1), torch.tensor(best), atol=1e-4, rtol=0)
    negative: Any = contrast_of("avisc", model, inputs, layer_share=share, deviations=deviations).negative
    assert negative.inputs_embeds[negative.image_mask].abs().sum(-1).nonzero().flatten().tolist() == blind


@torch.no_grad()
def test_attention_is_what_stock_models_return() -> None:
    """Row by row, each prompt by itself."""
    eager, inputs = fresh_model("llava", attn_implementation="eager"), inputs_of("llava_batch2")
    model = model_of("llava")
    full: Any = contrast_of("avisc", model, inputs).full
    found = attention_of_last(model, full)
    for row in (0, 1):
        alone = row_alone(inputs, row)
        returned = eager(**alone, output_attentions=True).attentions
        expected = torch.stack([layer[0, :, -1].mean(0) for layer in returned])
        image = alone["input_ids"][0] == IMAGE_TOKEN
        torch.testing.assert_close(found[:, row, full.image_mask[row]], expected[:, image], atol=1e-5, rtol=0)


def test_blind_columns_by_hand() -> None:
    attention = torch.tensor([[0.02, 0.02, 0.02, 0.02], [0.1, 0.2, 0.1, 0.2], [0.0, 0.1, 0.2, 0.1]])
    # Shares of the layers: 0.08, 0.6 and 0.4 of 1.08. Half of all: the second alone, mean 0.15, deviation 0.0577.
    assert blind_columns(attention, 0.5, 0.5).tolist() == [False, True, False, True]
    # More than that takes the third, too: 0.05, 0.15, 0.15, 0.15 with mean 0.125, deviation 0.05.
    assert blind_columns(attention, 0.7, 0.4).tolist() == [False, True, True, True]
    assert blind_columns(attention, 0.7, 0.6).tolist() == [False] * 4
    assert blind_columns(attention, 1.0, 0.0).tolist() == blind_columns(attention, 0.99, 0.0).tolist()


def test_a_prompt_of_tokens_loses_its_features() -> None:
    model, inputs = zoo_model("qwen3_vl"), zoo_inputs("qwen3_vl")
    contrast: Any = contrast_of("avisc", model, inputs, deviations=0.0)
    features, kept = contrast.negative.features, contrast.full.features
    for vectors, before in zip((features.pooled, *features.deepstack), (kept.pooled, *kept.deepstack), strict=True):
        blind = vectors.abs().sum(-1) > 0
        assert 0 < int(blind.sum()) < len(blind)
        assert torch.equal(vectors[blind], before[blind])
    every = blanked(contrast.full, contrast.full.image_mask)
    assert int(every.features.pooled.abs().sum()) == 0  # type: ignore[attr-defined]


def test_what_cannot_be_looked_into() -> None:
    with pytest.raises(UnsupportedModelError, match="left to right"):
        damro.generate(family_model("blip-2-t5"), encoder_inputs("blip-2-t5", 1), AvisC(), max_new_tokens=2)
    windowed = llava_of(text={"model_type": "mistral", "sliding_window": 4})
    with pytest.raises(UnsupportedModelError, match="sliding window"):
        damro.generate(windowed, llava_inputs(), AvisC(), max_new_tokens=2)
