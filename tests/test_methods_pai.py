"""PAI against the authors' code, and against a stock eager model whose attention is raised by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama

import damro
from damro.decoding.errors import ParameterError
from damro.methods import PAI
from tests.golden_cases import IMAGE_TOKEN, inputs_of, model_of, prompt_length, row_alone
from tests.llava_models import llava_inputs, llava_of
from tests.test_methods_second_prompts import scores_of

OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

# LALBJ/PAI, attention.py and CFG.py under transformers 4.37, on the language model of the golden LLaVA and its prompt
# about image 0: layers 1 and 2 of 3, greedy search; alpha, gamma (None: without --use-cfg), tokens, and the best
# log-probability of every step.
RELEASED = [
    (0.2, None, [41, 190, 139, 96, 48, 34], [-0.73859, -2.40836, -0.89214, -1.01606, -0.82639, -0.43255]),
    (0.2, 1.1, [41, 9, 60, 30, 107, 73], [-0.2226, -1.9613, -0.87488, -1.09088, -0.86841, -1.14895]),
    (0.8, 2.0, [41, 9, 60, 15, 59, 147], [-0.00976, -0.65311, -0.17633, -0.16251, -0.00144, -0.06096]),
    (0.8, None, [41, 190, 83, 112, 50, 13], [-1.12635, -2.32364, -1.34799, -0.70289, -0.51656, -0.67819]),
    (3.0, None, [13, 17, 197, 196, 50, 13], [-1.09174, -0.45907, -1.84338, -1.15955, -0.49657, -0.91961]),
    (3.0, 2.0, [41, 96, 41, 83, 141, 82], [-0.00976, -0.77398, -0.03117, -0.08062, -0.21419, -0.35097]),
]


@pytest.mark.parametrize(("alpha", "gamma", "tokens", "best"), RELEASED)
def test_scores_are_those_of_the_released_code(
    alpha: float, gamma: float | None, tokens: list[int], best: list[float]
) -> None:
    method = PAI(alpha, gamma or 1.0, from_layer=1, boost_first=gamma is None)
    written, scores = scores_of(model_of("llava"), inputs_of("llava_img0"), method, steps=6)
    assert written.tolist() == [tokens]
    torch.testing.assert_close(scores[0].amax(-1), torch.tensor(best), atol=1e-4, rtol=0)


class _Raised:
    """Eager attention of transformers whose logits are raised at image tokens, from a column of the prompt on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, alpha: float, prompt: int) -> None:
        self.rows: Tensor | None = None
        eager = modeling_llama.eager_attention_forward

        def forward(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any) -> Any:
            if self.rows is None or module.layer_idx == 0:
                return eager(module, query, key, value, mask, **kwargs)
            groups = query.shape[1] // key.shape[1]
            keys = key.repeat_interleave(groups, dim=1)
            logits = query @ keys.transpose(2, 3) * module.scaling + mask
            image = (self.rows == IMAGE_TOKEN).nonzero().flatten().tolist()
            for column in image:
                late = logits[:, :, prompt - 1 :, column]
                logits[:, :, prompt - 1 :, column] = late.abs() * alpha + late
            weights = logits.softmax(-1)
            return (weights @ value.repeat_interleave(groups, dim=1)).transpose(1, 2).contiguous(), weights

        monkeypatch.setattr(modeling_llama, "eager_attention_forward", forward)


@torch.no_grad()
def by_hand(monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Tensor], alpha: float, gamma: float) -> list[int]:
    """One prompt, greedy, everything read anew at every token, by the equations."""
    model: Any = llava_of()
    model.set_attn_implementation("eager")
    prompt = inputs["input_ids"].shape[1]
    hand, ids = _Raised(monkeypatch, alpha, prompt), inputs["input_ids"]
    for _ in range(6):
        hand.rows = ids[0]
        conditioned = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1].log_softmax(-1)
        hand.rows = None
        text = model(input_ids=ids[ids != IMAGE_TOKEN][None]).logits[0, -1].log_softmax(-1)
        scores = gamma * conditioned - (gamma - 1) * text
        scores[conditioned.exp() < 0.1 * conditioned.exp().max()] = -torch.inf
        ids = torch.cat([ids, scores.argmax()[None, None]], dim=1)
    monkeypatch.undo()
    return ids[0, prompt:].tolist()


@pytest.mark.parametrize("gamma", [1.1, 2.0])
def test_tokens_are_those_of_the_equations_in_a_batch(gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of a batch as alone, with fewer heads of keys than of queries."""
    inputs = llava_inputs(rows=2)
    written = damro.generate(llava_of(), inputs, PAI(1.5, gamma, from_layer=1), **OPTIONS)[:, prompt_length(inputs) :]
    assert written.tolist() == [by_hand(monkeypatch, row_alone(inputs, row), 1.5, gamma) for row in (0, 1)]


def test_the_image_is_looked_at_more_where_it_is_said() -> None:
    from damro.decoding.altering import Columns
    from damro.methods.pai import image_boost

    logits = torch.tensor([[-1.0, 2.0, -3.0, 4.0]]).repeat(1, 3, 1)[:, None]  # (R, heads, Q, K)
    columns = Columns(torch.tensor([[True, True, False]]), torch.ones(1, 3).bool())
    boost = image_boost(0.5, range(1, 2))
    assert torch.equal(boost(logits, 0, columns), logits)
    raised = boost(logits, 1, columns)[0, 0].tolist()  # queries 1, 2 and 3, of which the last is behind the prompt
    assert raised == [[-1.0, 2.0, -3.0, 4.0], [-0.5, 3.0, -3.0, 4.0], [-0.5, 3.0, -3.0, 4.0]]
    raised = image_boost(0.5, range(1, 2), first=False)(logits, 1, columns)[0, 0].tolist()
    assert raised[1:] == [[-1.0, 2.0, -3.0, 4.0], [-0.5, 3.0, -3.0, 4.0]]


def test_layers_that_are_not_there() -> None:
    for layers in ({"from_layer": 2}, {"from_layer": 1, "to_layer": 1}):
        with pytest.raises(ParameterError, match="from_layer must be below to_layer .* got . for"):
            damro.generate(llava_of(), llava_inputs(), PAI(**layers), **OPTIONS)
    with pytest.raises(ParameterError, match="gamma must be a finite number >= 1, got 0.9"):
        PAI(gamma=0.9)
