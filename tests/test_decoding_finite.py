"""What is no number is an error everywhere: plain decoding, sampling, beams, attention, outliers, pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

from damro import cls_attention, find_outliers, outlier_view, patch_features
from damro.decoding.errors import NonFiniteScoresError
from damro.decoding.finite import FiniteScores
from damro.pruning import prune
from tests.golden_cases import FAMILIES, fresh_model, inputs_of, model_of
from tests.told import generate

PLAIN: dict[str, Any] = {"method": "greedy", "max_new_tokens": 6}


def broken_head(family: str, value: float, at: int) -> Any:
    """A model that says so of one token of the second row, from a step on."""
    model, runs = fresh_model(family), []

    def spoil(module: Any, args: Any, logits: Tensor) -> Tensor:
        runs.append(1)
        spoilt = logits.clone()
        spoilt[-1:, -1, 7] = value if len(runs) > at else spoilt[-1:, -1, 7]
        return spoilt

    getattr(model, "language_model", model).get_output_embeddings().register_forward_hook(spoil)
    return model


@pytest.mark.parametrize("how", [{"do_sample": False}, {"do_sample": True}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_decoding_stops_at_scores_that_are_no_numbers(family: str, value: float, how: dict[str, Any]) -> None:
    inputs = inputs_of(f"{family}_batch2")
    for at in (0, 3):
        with pytest.raises(NonFiniteScoresError, match="NaN or infinity"):
            generate(broken_head(family, value, at), inputs, **PLAIN, **how)


def test_prompts_read_with_a_shared_prefix_are_no_exception() -> None:
    model, inputs = broken_head("llava", torch.nan, 2), inputs_of("llava_img0")
    with pytest.raises(NonFiniteScoresError, match="NaN or infinity"):
        generate(model, inputs, shared_prefix=True, do_sample=True, **PLAIN)


def test_nothing_is_written_behind_the_first_broken_step() -> None:
    model, inputs, steps = broken_head("llava", torch.nan, 2), inputs_of("llava_img0"), []

    class Count(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            steps.append(input_ids.shape[1])
            return scores

    with pytest.raises(NonFiniteScoresError):
        generate(model, inputs, method="greedy", max_new_tokens=50, logits_processor=[Count()])
    assert len(steps) == 3


def test_what_settings_forbid_is_not_a_fault_of_the_model() -> None:
    processor, forbidden = FiniteScores(), torch.full((1, 4), -torch.inf)
    assert torch.equal(processor(torch.zeros(1, 1).long(), forbidden), forbidden)
    processor.check()
    ids, scores = torch.zeros(2, 1).long(), torch.tensor([[1.0, torch.nan], [1.0, -torch.inf]])
    assert processor(ids, scores).tolist() == [[0.0, 0.0], [1.0, -torch.inf]]
    assert processor.stop(ids, scores).tolist() == [True, True]
    with pytest.raises(NonFiniteScoresError):
        processor.check()


READERS: dict[str, Callable[[Any, Any], Any]] = {
    "attention": cls_attention,
    "outliers": lambda model, inputs: outlier_view(model, inputs, alpha=1.0, beta=0.1, top_k=3),
    "pruning": lambda model, inputs: prune(model, inputs, 4),
    "pruning by density": lambda model, inputs: prune(model, inputs, None, by="correlation"),
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("reader", READERS)
def test_a_vision_tower_with_a_broken_weight_is_refused(reader: str, value: float) -> None:
    model, inputs = fresh_model("llava"), inputs_of("llava_img0")
    with torch.no_grad():
        model.model.vision_tower.encoder.layers[1].mlp.fc1.weight[0, 0] = value
    with pytest.raises(NonFiniteScoresError, match=r"weights of patches must be finite, got .* in tiles \[0\]"):
        READERS[reader](model, inputs)


def test_outliers_of_broken_attention_or_features_are_refused() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    attention, features = cls_attention(model, inputs), patch_features(model, inputs)
    weights, patches = attention.weights.clone(), features.patches.clone()
    weights[1, 5] = patches[1, 5, 0] = torch.nan
    with pytest.raises(NonFiniteScoresError, match=r"in tiles \[1\]"):
        find_outliers(replace(attention, weights=weights), top_k=3)
    with pytest.raises(NonFiniteScoresError, match=r"in tiles \[1\]"):
        find_outliers(attention, rule="norm", features=replace(features, patches=patches))
