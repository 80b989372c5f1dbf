"""SID against the authors' code, and which columns its second prompt hides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import damro
from damro.decoding.altering import Columns
from damro.decoding.branches.encoder_decoder import negative_branch
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.decoding.inside import negative_prompt
from damro.methods import SID
from damro.methods.sid import least_attended
from tests.family_models import encoder_inputs, family_model
from tests.golden_cases import inputs_of, model_of
from tests.llava_models import llava_inputs, llava_of
from tests.test_methods_second_prompts import scores_of
from tests.told import contrast_of

NO_CUTOFF = 1e-30

# huofushuo/SID, its modeling_llama.py and the rule of its vcd_sample.py under transformers 4.37, on the language model
# of the golden LLaVA and its prompt about image 0: agg_layer, attention_rank of 16 columns, alpha, beta, tokens, and
# the best log-probability of every step.
RELEASED: list[tuple[int, int, float, float, list[int], list[float]]] = [
    (2, 3, 0.5, 0.1, [41, 115, 10, 59, 179, 72], [-0.39834, -2.36829, -1.7397, -1.26239, -1.80617, 0.0]),
    (1, 5, 1.0, 0.1, [112, 197, 196, 50, 13, 155], [-0.35094, -0.71647, -1.13257, -0.5432, -1.54125, -1.25706]),
    (2, 8, 2.0, 0.1, [41, 9, 45, 53, 178, 93], [-0.27549, -2.28216, -1.70703, -1.7903, -0.71693, -0.16535]),
    (1, 2, 3.0, NO_CUTOFF, [22, 197, 107, 61, 92, 93], [-0.01393, -0.00693, -0.00603, -0.57092, -1.08955, -0.38181]),
]


@pytest.mark.parametrize(("layer", "rank", "alpha", "beta", "tokens", "best"), RELEASED)
def test_scores_are_those_of_the_released_code(
    layer: int, rank: int, alpha: float, beta: float, tokens: list[int], best: list[float]
) -> None:
    method = SID(alpha, beta, layer, rank / 16)
    written, scores = scores_of(model_of("llava"), inputs_of("llava_img0"), method, steps=6)
    assert written.tolist() == [tokens]
    torch.testing.assert_close(scores[0].amax(-1), torch.tensor(best), atol=1e-4, rtol=0)


def test_tokens_that_were_put_off_each_choose_for_themselves() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    history = torch.tensor([[41, 9, 45, 53], [7, 190, 139, 96], [8, 8, 30, 60], [5, 6, 5, 6]])
    contrast = contrast_of("sid", model, inputs, layer=1, share=0.3)
    at_once, one_by_one = (negative_branch(model, negative_prompt(contrast)) for _ in range(2))
    for length in range(4):
        one_by_one.logits(history[:, :length])
    torch.testing.assert_close(at_once.logits(history), one_by_one.logits(history), atol=1e-4, rtol=0)


def test_the_least_attended_columns_stay() -> None:
    """A prompt of five columns, 1 to 3 of them an image, and two tokens; the last three queries are fed."""
    columns = Columns(torch.tensor([[False, True, True, True, False]]), torch.ones(1, 5).bool())
    attention = torch.tensor(
        [[0.3, 0.3, 0.2, 0.1, 0.1, 0.0, 0.0], [0.1, 0.1, 0.2, 0.3, 0.1, 0.2, 0.0], [0.2, 0.3, 0.0, 0.1, 0.1, 0.1, 0.2]]
    )
    logits = attention.log()[None, None].repeat(1, 2, 1, 1)
    hide, plain = least_attended(1 / 3, 2), torch.zeros(1, 2, 3, 7)
    assert torch.equal(hide(logits, 0, columns), logits)
    assert torch.equal(hide(logits, 1, columns), logits)
    hidden = hide(plain, 2, columns)[0, 1] < -1e30
    assert [row.nonzero().flatten().tolist() for row in hidden] == [[1, 2], [2, 3], [1, 3]]
    assert torch.equal(hide(plain, 3, columns)[0, 0] < -1e30, hidden)
    # Of a whole prompt every column has the choice of the last.
    hide(torch.cat([torch.zeros(1, 2, 4, 5), logits[:, :, :1, :5]], dim=2), 1, columns)
    whole = hide(torch.zeros(1, 2, 5, 5), 2, columns)[0, 0] < -1e30
    assert [row.nonzero().flatten().tolist() for row in whole] == [[1, 2]] * 5


def test_the_task_s_share() -> None:
    assert SID().settle("llava", "pope").share == SID().settle("llava").share == 100 / 576
    assert SID().settle("llava", "chair").share == 50 / 576
    assert SID(share=0.5).settle("llava", "chair").share == 0.5


def test_what_is_refused() -> None:
    options: dict[str, Any] = {"max_new_tokens": 2, "pad_token_id": 0}
    with pytest.raises(ParameterError, match="layer must be below the language model's 2 layers, got 2"):
        damro.generate(llava_of(), llava_inputs(), SID(), **options)
    with pytest.raises(ParameterError, match="layer must be a whole number of at least 1, got 0"):
        SID(layer=0)
    with pytest.raises(UnsupportedModelError, match="list"):
        damro.generate(family_model("blip-2-t5"), encoder_inputs("blip-2-t5", 1), SID(), **options)
