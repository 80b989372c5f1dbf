"""Logits of some tokens are those of all tokens, and cost no head where that can be known to be right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from decoding.head import PartialHead

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TOKENS = torch.tensor([3, 39, 0])


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=24, initializer_range=0.5))


def with_bias() -> Any:
    model = llama()
    model.lm_head = nn.Linear(16, 40)
    return model


def opt() -> Any:
    return OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=8, init_std=0.5))


def capped() -> Any:
    config = Gemma2Config(**SIZES, intermediate_size=24, num_key_value_heads=2, head_dim=8, initializer_range=0.5)
    config.final_logit_softcapping = 2.0
    return Gemma2ForCausalLM(config)


class ScaledHead(nn.Linear):
    """A head of another kind, as adapters and quantization have them."""

    def forward(self, states: Tensor) -> Tensor:
        return 3 * super().forward(states)


def adapted() -> Any:
    model = llama()
    model.lm_head = ScaledHead(16, 40)
    return model


class Bare(nn.Module):
    """A decoder without the methods of transformers' models."""

    def __init__(self) -> None:
        super().__init__()
        self.model = llama()

    def forward(self, **arguments: Any) -> Any:
        return self.model(**arguments)


def built(make: Any) -> Any:
    torch.manual_seed(0)
    return make().eval()


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits[:, -1]


IDS = [torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7, 8], [9, 10]])]


@pytest.mark.parametrize("make", [llama, with_bias, opt, capped, adapted, Bare])
@torch.no_grad()
def test_some_logits_are_those_of_all(make: Any) -> None:
    model = built(make)
    head = PartialHead(model)
    for ids in [*IDS, *IDS]:
        expected = logits_of(model, ids)
        torch.testing.assert_close(head.logits(TOKENS, input_ids=ids), expected[:, TOKENS], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(head.logits(input_ids=ids), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("make", "columns"), [(llama, 0), (with_bias, 0), (opt, 0), (capped, 1), (adapted, 1)])
@torch.no_grad()
def test_a_plain_head_gets_no_columns_and_another_is_run_whole(make: Any, columns: int) -> None:
    model = built(make)
    head = PartialHead(model)
    head.logits(input_ids=IDS[0])
    seen: list[int] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    head.logits(TOKENS, input_ids=IDS[1])
    assert seen == [columns]


@torch.no_grad()
def test_what_a_user_s_hook_makes_of_the_logits_is_kept() -> None:
    model = built(llama)
    model.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    head = PartialHead(model)
    for ids in IDS:
        torch.testing.assert_close(head.logits(TOKENS, input_ids=ids), logits_of(model, ids)[:, TOKENS])


@torch.no_grad()
def test_no_hook_is_left_behind_even_by_a_run_that_fails() -> None:
    model = built(llama)
    head = PartialHead(model)
    head.logits(input_ids=IDS[0])
    with pytest.raises(IndexError):
        head.logits(TOKENS, input_ids=torch.tensor([[99]]))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
