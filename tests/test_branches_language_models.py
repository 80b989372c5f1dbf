"""Language models whose caches or positions do not suit two prompts in one batch: done in another way, or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, RwkvConfig, RwkvForCausalLM

from damro import DAMROProcessor
from damro.decoding.branches.fused import can_branch
from damro.decoding.branches.kv import keeps_columns
from damro.decoding.compat import CACHE
from damro.decoding.errors import UnsupportedModelError
from damro.decoding.rules import contrast_scores
from tests.llava_models import llava_inputs, llava_of
from tests.stateless import StatelessDAMRO
from tests.told import generate

STRENGTHS: dict[str, Any] = {"alpha": 2.0, "beta": 0.1, "top_k": 4}
DECISIVE = STRENGTHS | {"beta": 0.7}  # so that some steps could do without the second prompt
NEW = 12
# Of the prompts, 22 columns with all patches and 10 with four, only the first is longer than 16.
LONGROPE = {
    "model_type": "phi3", "max_position_embeddings": 64, "original_max_position_embeddings": 16,
    "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                        "long_factor": [8.0] * 4, "factor": 4.0, "original_max_position_embeddings": 16},
}  # fmt: skip
DYNAMIC = {
    "max_position_embeddings": 8, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
}  # fmt: skip
MLA = {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 2,
}  # fmt: skip
DIFF = {"model_type": "diffllama"}
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {
        "model_type": "granitemoehybrid", "num_local_experts": 0, "shared_intermediate_size": 32,
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
    },
    "jamba": {
        "model_type": "jamba", "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 5,
        "num_experts": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "qwen3_next": {
        "model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"], "head_dim": 8,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}  # fmt: skip


class StepByStep(LogitsProcessor):
    """Decodes the negative prompt alone, a token a pass with a stock cache, on a model that reads nothing else."""

    def __init__(self, model: Any, inputs: Any) -> None:
        self._model, self._prompt = copy.deepcopy(model), inputs["input_ids"].shape[1]
        (embeds,) = StatelessDAMRO(model, inputs, **STRENGTHS).prompts
        self._embeds, self._cache = embeds[None], DynamicCache()

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids[:, self._prompt :]
        fed = self._model.get_input_embeddings()(new[:, -1:]) if new.shape[1] else self._embeds
        negative = self._model(inputs_embeds=fed, **{CACHE: self._cache}).logits[:, -1]
        return contrast_scores(scores, negative, DECISIVE["alpha"], DECISIVE["beta"])


@pytest.mark.parametrize("text", [LONGROPE, DYNAMIC], ids=["longrope", "dynamic"])
def test_positions_that_depend_on_the_longest_prompt(text: dict[str, Any]) -> None:
    """The second prompt is read as if it were alone, also where it grows past the length that changes positions."""
    inputs = llava_inputs()
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    # A model each: "dynamic" keeps what it has computed for the longest prompt of former calls.
    first, fused, lazy, stock = (llava_of(text) for _ in range(4))
    expected = first.generate(**inputs, logits_processor=[StepByStep(first, inputs)], **options)
    outputs = [
        generate(fused, inputs, strategy="fused", **DECISIVE, **options),
        generate(lazy, inputs, strategy="lazy", **DECISIVE, **options),
        stock.generate(**inputs, logits_processor=DAMROProcessor(stock, inputs, **DECISIVE), **options),
    ]
    survivors = torch.stack([scores.isfinite().sum() for scores in expected.scores])
    assert bool((survivors == 1).any()) and bool((survivors > 1).any())
    for output in outputs:
        assert torch.equal(output.sequences, expected.sequences)
        for got, right in zip(output.scores, expected.scores, strict=True):
            torch.testing.assert_close(got, right, atol=1e-3, rtol=0)


@pytest.mark.parametrize("text", [MLA, DIFF], ids=["latent", "differential"])
def test_attention_that_touches_keys_behind_the_cache(text: dict[str, Any]) -> None:
    model, inputs = llava_of(text), llava_inputs(2)
    assert not can_branch(model)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    expected = model.generate(**inputs, logits_processor=[StatelessDAMRO(model, inputs, **STRENGTHS)], **options)
    assert torch.equal(generate(model, inputs, strategy="fused", **STRENGTHS, **options), expected)


@pytest.mark.parametrize("name", HYBRIDS)
def test_states_are_fed_in_step(name: str) -> None:
    model, inputs = llava_of(HYBRIDS[name]), llava_inputs()
    assert not keeps_columns(model) and not can_branch(model)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    expected = model.generate(**inputs, logits_processor=[StatelessDAMRO(model, inputs, **STRENGTHS)], **options)
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    for _ in range(2):
        assert torch.equal(model.generate(**inputs, logits_processor=processor, **options), expected)
    for strategy in ("fused", "lazy"):
        assert torch.equal(generate(model, inputs, strategy=strategy, **STRENGTHS, **options), expected)
        with pytest.raises(UnsupportedModelError, match="num_beams must be 1 .* got 2"):
            generate(model, inputs, strategy=strategy, max_new_tokens=2, num_beams=2, **STRENGTHS)
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(generate(model, inputs, method="greedy", max_new_tokens=4, do_sample=False), plain)


def test_a_model_with_a_memory_of_its_own_keeps_no_columns() -> None:
    """RWKV has no use for a cache of transformers, which would hold columns for it, too."""
    assert not keeps_columns(RwkvForCausalLM(RwkvConfig(vocab_size=8, hidden_size=8, num_hidden_layers=2)))
