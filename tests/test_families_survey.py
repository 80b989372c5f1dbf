"""The survey of image-text models says what the models of the zoo show."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import damro
from damro.cli import main
from damro.decoding.branches.fused import why_alone
from damro.decoding.compat import older_than
from damro.decoding.errors import UnsupportedModelError
from damro.decoding.families import FAMILIES, generic
from damro.decoding.families.base import has_cls
from damro.decoding.families.generic.support import NO_PATCHES, SINCE
from damro.decoding.families.survey import TESTED, Served, survey
from tests.zoo import LAZY, NEVER, UNRANKED, ZOO, zoo_inputs, zoo_model
from tests.zoo_reference import Stateless, text_rows

GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": NEVER}


@pytest.mark.parametrize("name", ZOO)
def test_what_is_said_of_a_tested_model_is_so(name: str) -> None:
    model = zoo_model(name)
    if model.config.model_type in FAMILIES:
        return
    facts = TESTED[model.config.model_type]
    assert facts.ranked == ("cls" if has_cls(generic.vision_tower(model)) else "received")
    assert bool(facts.alone) == (why_alone(model) is not None) == (name in LAZY)


def test_every_model_that_is_said_to_be_tested_is_in_the_zoo() -> None:
    assert {zoo_model(name).config.model_type for name in ZOO} - {"llava"} == set(TESTED)
    assert {zoo_model(name).config.model_type for name in UNRANKED} <= set(NO_PATCHES)


NEEDS_FEATURES = pytest.mark.skipif(older_than(SINCE), reason=f"models without a module need transformers {SINCE}")


@NEEDS_FEATURES
def test_the_survey_names_every_image_text_model() -> None:
    found = {one.model_type: one for one in survey()}
    assert found["llava"].how == found["llava_next"].how == "module"
    assert (found["paligemma"].ranked, found["llava"].ranked) == ("received", "cls")
    assert (found["qwen3_vl"].how, found["qwen3_vl"].ranked, found["qwen3_vl"].tested) == ("generic", "received", True)
    assert found["internvl"].ranked == "cls"
    assert found["mllama"].how == "refused" and "cross-attention" in found["mllama"].why
    assert found["kosmos-2"].how == "refused" and "mm_encoder_outputs" in found["kosmos-2"].why
    assert "convolutional" in found["gemma3n"].why
    assert "generate() of its own" in found["janus"].why and found["janus"].how == "refused"
    assert all(one.why for one in found.values() if one.how == "refused")
    assert all(one.ranked for one in found.values() if one.tested)


@NEEDS_FEATURES
def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["model_type"] for one in told] == [one.model_type for one in survey()]
    assert main(["families"]) == 0
    table = capsys.readouterr().out
    assert all(one["model_type"] in table for one in told) and "[CLS]" in table


@NEEDS_FEATURES
def test_nothing_is_said_to_be_untried() -> None:
    """Of the transformers that the tests are written for; of a newer one there may be models that nobody has tried."""
    if older_than("5.24") or not older_than("5.25"):
        pytest.skip("written for transformers 5.24")
    assert [one.model_type for one in survey() if "not tried" in one.note] == []
    assert Served("new_vl", "generic", None, False).note.startswith("not tried")


def test_the_page_names_those_that_are_tested() -> None:
    text = (Path(__file__).parents[1] / "docs/families.md").read_text()
    told = re.search(r"Without a module, tested on tiny random models: ([^.]*)\. ", " ".join(text.split()))
    assert told is not None and told[1].split(", ") == [f"`{name}`" for name in sorted(TESTED)]


@pytest.mark.parametrize("name", UNRANKED)
def test_models_without_patches_are_served_by_methods_that_choose_none(name: str) -> None:
    model, inputs = zoo_model(name), zoo_inputs(name)
    rule = Stateless(model, text_rows(model, inputs), inputs["input_ids"].shape[1], 2.0, 0.1)
    expected = model.generate(**inputs, logits_processor=[rule], **GREEDY)
    for strategy in ("lazy", "fused"):
        ids = damro.generate(model, inputs, "no-image:alpha=2,beta=0.1", strategy=strategy, **GREEDY)
        assert torch.equal(ids, expected)
    with pytest.raises(UnsupportedModelError, match=NO_PATCHES[model.config.model_type]):
        damro.generate(model, inputs, "damro:alpha=2,beta=0.1,top_k=3", **GREEDY)
