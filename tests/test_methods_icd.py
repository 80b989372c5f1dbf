"""ICD in both published forms: of the scores, and of the place where the sentence stands."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from damro.decoding.errors import ParameterError
from damro.decoding.rules import ContrastRule
from damro.methods.icd import disturb_text
from tests.golden_cases import inputs_of, model_of
from tests.golden_models import make_processor
from tests.test_methods_others import IDS, SENTENCE
from tests.told import contrast_of


def test_the_paper_s_scores() -> None:
    """f - alpha n over the plausible tokens; the released code's are (1 + alpha) f - alpha n."""
    options: dict[str, Any] = {"processor": make_processor("llava"), "disturbance": SENTENCE, "alpha": 0.5}
    rules = [contrast_of("icd", model_of("llava"), inputs_of("llava_img0"), form=form, **options).rule
             for form in ("released", "paper")]  # fmt: skip
    full, negative = torch.tensor([[2.0, 1.5, 1.0, -4.0]]), torch.tensor([[3.0, 1.0, -1.0, 0.0]])
    assert rules[0] == ContrastRule(0.5, 0.1)
    for rule, by_hand in zip(rules, ([1.5, 1.75, 2.0], [0.5, 1.0, 1.5]), strict=True):
        total = math.log(sum(map(math.exp, by_hand)))
        expected = torch.tensor([[*(value - total for value in by_hand), -math.inf]])
        torch.testing.assert_close(rule(full, negative, 0), expected)


def test_the_sentence_behind_the_image() -> None:
    model, inputs, processor = model_of("llava"), inputs_of("llava_batch2"), make_processor("llava")
    disturbed = disturb_text(model, inputs, processor, SENTENCE, "instruction")
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        end = len(ids) - ids[::-1].index(model.config.image_token_id)
        assert disturbed["input_ids"][row].tolist() == [*ids[:end], *IDS, *ids[end:]]
    assert disturbed["attention_mask"].sum(-1).tolist() == (inputs["attention_mask"].sum(-1) + 4).tolist()


def test_where_images_come_first_both_places_are_one() -> None:
    model, inputs = model_of("instructblip"), inputs_of("instructblip_batch2")
    front = disturb_text(model, inputs, make_processor("instructblip"), SENTENCE)
    behind = disturb_text(model, inputs, make_processor("instructblip"), SENTENCE, "instruction")
    assert torch.equal(front["input_ids"], behind["input_ids"])


def test_a_prompt_that_ends_with_its_image() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    ending = {key: inputs[key][:, :20] for key in ("input_ids", "attention_mask")}
    with pytest.raises(ParameterError, match="place must be 'front' where nothing stands behind the image"):
        disturb_text(model, ending, make_processor("llava"), SENTENCE, "instruction")
