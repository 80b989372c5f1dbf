"""LCD against the authors' processor, and the rule's promises."""

from __future__ import annotations

import math

import pytest
import torch

from damro.decoding.errors import ParameterError
from damro.methods.lcd import LCDRule
from tests.golden_cases import inputs_of, model_of
from tests.test_methods_others import own_logits, without_image
from tests.test_methods_second_prompts import scores_of

# avshalomman/lcd, CDProcessorWithLM of lcd.py with beta 0.1, on these two logits.
FULL, TEXT = (2 * torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(3))).unbind()
X = -math.inf
RELEASED = {
    2.0: [[X, X, X, X, -0.8659, X, -0.5459, X], [-3.7485, X, -2.7684, -6.2855, -0.8228, -3.5723, -3.1132, -0.9161],
          [-4.9921, -3.067, X, X, -0.0653, -4.6406, X, -8.3732]],
    0.5: [[X, X, X, X, -1.7125, X, -0.199, X], [-3.0386, X, -2.3433, -3.9292, -0.8599, -2.6105, -1.9413, -1.6285],
          [-2.9158, -1.4301, X, X, -0.5073, -2.4369, X, -4.0738]],
}  # fmt: skip


@pytest.mark.parametrize("alpha", RELEASED)
def test_scores_are_those_of_the_released_code(alpha: float) -> None:
    torch.testing.assert_close(LCDRule(alpha)(FULL, TEXT, step=0), torch.tensor(RELEASED[alpha]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_text_alone_is_what_the_language_model_reads() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    full, text = own_logits(model, inputs), own_logits(model, without_image(inputs))
    _, scores = scores_of(model, inputs, "lcd", steps=1)
    torch.testing.assert_close(scores[:, 0], LCDRule()(full, text, 0), atol=1e-3, rtol=0)


def test_rows_that_are_decided_need_no_text() -> None:
    rule, sure = LCDRule(), torch.tensor([[9.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    assert rule.needed(sure, 0).tolist() == [[False] * 3, [True] * 3]
    assert torch.equal(rule(sure, None, 0)[0], rule(sure, torch.randn(2, 3), 0)[0])
    assert not LCDRule(alpha=0.0).needed(sure, 0).any()
    assert torch.equal(LCDRule(alpha=0.0)(sure, None, 0), LCDRule(alpha=0.0)(sure, torch.randn(2, 3), 0))


def test_text_that_is_quite_sure_and_nan() -> None:
    certain = torch.tensor([[500.0, 0.0, 0.0]])  # an entropy of 0
    scores = LCDRule()(torch.tensor([[1.0, 0.9, 0.8]]), certain, 0)
    assert scores.exp().tolist() == [[0.0, 1.0, 0.0]]
    assert LCDRule()(torch.tensor([[math.nan, 1.0, 2.0]]), certain, 0).isnan().all()
    with pytest.raises(ParameterError, match="beta must be"):
        LCDRule(beta=0.0)
