"""The presets are the released code's."""

from __future__ import annotations

import pytest

from damro import preset
from damro.errors import ParameterError, UnsupportedModelError
from damro.methods.presets import has_preset, starting_preset


@pytest.mark.parametrize("task", [None, "pope", "mme"])
def test_released_defaults(task):
    assert preset("llava", task) == (2.0, 0.1, 10)
    assert preset("llava_next", task) == (2.0, 0.1, 10)
    assert preset("instructblip", task) == (0.5, 0.1, 4)


def test_captions_change_alpha_alone():
    assert preset("llava", "chair") == (0.5, 0.1, 10)
    assert preset("llava_next", "chair") == (0.5, 0.1, 10)
    assert preset("instructblip", "chair") == (1.5, 0.1, 4)


def test_fields_have_names():
    chosen = preset("llava")
    assert (chosen.alpha, chosen.beta, chosen.top_k) == (2.0, 0.1, 10)


def test_unknown_family_and_task():
    with pytest.raises(UnsupportedModelError, match=r"\(llava, llava_next, instructblip\), got 'blip_2'; pass alpha"):
        preset("blip_2")
    with pytest.raises(ParameterError, match="task must be one of pope, chair, mme or None, got 'vqa'"):
        preset("llava", "vqa")


@pytest.mark.parametrize("family", ["llava", "llava_next", "instructblip"])
def test_one_starts_at_the_preset(family):
    assert has_preset(family)
    assert starting_preset(family) == preset(family)


@pytest.mark.parametrize("family", ["paligemma", "llava_onevision", "blip-2", "vit"])
def test_without_a_preset_one_starts_at_llavas(family):
    assert not has_preset(family)
    assert starting_preset(family) == (2.0, 0.1, 10)
