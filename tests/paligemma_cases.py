"""What the tests of PaliGemma share: inputs, and logits without a cache, under a mask written out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

from tests.family_models import IMAGE, PATCHES, Inputs, family_model, needs_capped

BOTH = pytest.mark.parametrize("name", ["paligemma", pytest.param("paligemma2", marks=needs_capped)])
ROWS = pytest.mark.parametrize("rows", [1, 3])
STRENGTHS: dict[str, Any] = {"alpha": 1.0, "beta": 0.1, "top_k": 3}
# A model with random weights may write an image token, which stock generate takes for an image without a cache.
GREEDY: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "suppress_tokens": [IMAGE]}
QUESTIONS = [[1, 9, 30, 31, 32, 33], [1, 40, 41], [1, 50, 51, 52]]


def inputs_of(rows: int) -> Inputs:
    """Questions of different length about different images, padded on the left."""
    prompts = [[IMAGE] * PATCHES + question for question in QUESTIONS[:rows]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    pixels = torch.randn(rows, 3, 56, 56, generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids), "pixel_values": pixels}


@torch.no_grad()
def logits_by_hand(model: Any, prompt: Tensor, tokens: Tensor) -> Tensor:
    """`(T + 1, V)`: what the model says behind a prompt `(L, D)` and after each of the tokens `(T,)`; no cache."""
    embeds = torch.cat([prompt, model.get_input_embeddings()(tokens)])
    length, column = len(prompt), torch.arange(len(embeds))
    read = column[None] <= column[:, None]
    text = model.config.text_config
    masks = {"full_attention": read}
    if text.model_type == "gemma2":
        masks["sliding_attention"] = read & (column[:, None] - column[None] < text.sliding_window)
    for mask in masks.values():
        mask[:length, :length] = True
    added = {
        kind: torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
        for kind, mask in masks.items()
    }
    hidden = model.model.language_model(
        inputs_embeds=embeds[None],
        attention_mask=added if len(added) > 1 else added["full_attention"],
        position_ids=column[None] + 1,
        use_cache=False,
    ).last_hidden_state[0, length - 1 :]
    logits: Tensor = hidden @ model.lm_head.weight.T
    cap = getattr(text, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def prompts_by_hand(model: Any, inputs: Inputs, top_k: int | None = None) -> list[Tensor]:
    """`(L, D)` row by row: image features, all of them or those with most attention received, and the question."""
    tower = family_model("paligemma", "eager").model.vision_tower
    assert torch.equal(
        tower.embeddings.patch_embedding.weight, model.model.vision_tower.embeddings.patch_embedding.weight
    )
    weights = tower(inputs["pixel_values"], output_attentions=True).attentions[-1]  # (images, heads, P, P)
    order = weights.mean(dim=(1, 2)).argsort(dim=-1, descending=True)[:, :top_k]
    hidden = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    features = model.model.multi_modal_projector(hidden)
    prompts = []
    for row, ids in enumerate(inputs["input_ids"]):
        question = model.get_input_embeddings()(ids[inputs["attention_mask"][row].bool() & (ids != IMAGE)])
        shown = features[row] if top_k is None else features[row, order[row]]
        prompts.append(torch.cat([shown, question]))
    return prompts


class ByHand(LogitsProcessor):
    """DAMRO with everything computed anew at every step."""

    def __init__(self, model: Any, inputs: Inputs) -> None:
        self.model, self.length = model, inputs["input_ids"].shape[1]
        self.prompts = prompts_by_hand(model, inputs, top_k=3)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        copies = len(input_ids) // len(self.prompts)
        negative = torch.stack(
            [
                logits_by_hand(self.model, self.prompts[row // copies], ids[self.length :])[-1]
                for row, ids in enumerate(input_ids)
            ]
        )
        mixed = 2 * scores - negative
        mixed[scores < math.log(0.1) + scores.amax(dim=-1, keepdim=True)] = -math.inf
        return mixed.log_softmax(dim=-1)


def parts(name: str, rows: int) -> tuple[Any, Inputs]:
    return family_model(name), inputs_of(rows)
