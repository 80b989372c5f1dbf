"""Logits of some tokens are those of all tokens, and cost no head where that can be known to be right."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from damro.decoding.branches.head import PartialHead

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


# Devices and threads


class Stub(nn.Module):
    """A decoder that says how much of its output layer was run, and may wait for another thread around its body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Embedding(40, 16)
        self.lm_head = nn.Linear(16, 40)
        self.kept: list[int | Tensor] = []
        self.together: Barrier | None = None

    def get_decoder(self) -> nn.Module:
        return self.body

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, logits_to_keep: int | Tensor) -> Any:
        self.kept.append(logits_to_keep)
        self._meet()
        states = self.body(input_ids)
        self._meet()
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutput(logits=self.lm_head(states[:, columns]))

    def _meet(self) -> None:
        if self.together is not None:
            self.together.wait()


class Elsewhere(Tensor):
    """Says that it is on another device, of which nothing can be read here."""

    device = torch.device("meta")


@torch.no_grad()
def test_the_index_of_no_columns_suits_every_device() -> None:
    """The states may be on another device than the tokens; an index on the CPU can be used on any."""
    model = built(Stub)
    head = PartialHead(model)
    head.logits(input_ids=IDS[0])
    tokens = TOKENS.as_subclass(Elsewhere)
    assert torch.empty(0, device=tokens.device).is_meta  # what is made where the tokens are is not on the CPU
    logits = head.logits(tokens, input_ids=IDS[1])
    torch.testing.assert_close(logits.as_subclass(Tensor), model(IDS[1], 1).logits[:, -1, TOKENS])
    none = model.kept[1]
    assert isinstance(none, Tensor) and (none.numel(), none.device.type) == (0, "cpu")


@pytest.mark.parametrize("runs_before", [0, 1])
def test_threads_that_run_one_decoder_get_their_own_logits(runs_before: int) -> None:
    """Both are in the decoder at once, in the run that looks how it is made or in the one that makes use of it."""
    model = built(Stub)
    heads = [PartialHead(model) for _ in IDS]

    @torch.no_grad()
    def ask(head: PartialHead, ids: Tensor, tokens: Tensor | None = None) -> Tensor:
        return head.logits(tokens, input_ids=ids)

    def both(tokens: Tensor | None) -> list[Tensor]:
        model.together = Barrier(2, timeout=20)
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(ask, heads, IDS, [tokens, tokens]))

    for _ in range(runs_before):
        for head, ids in zip(heads, IDS, strict=True):
            ask(head, ids)
    got = [both(TOKENS), both(TOKENS)]
    for logits in got:
        for ours, ids in zip(logits, IDS, strict=True):
            torch.testing.assert_close(ours, model.lm_head(model.body(ids[:, -1])).detach()[:, TOKENS])
    none = [kept for kept in model.kept if isinstance(kept, Tensor)]
    assert len(none) == 2 + 2 * runs_before
