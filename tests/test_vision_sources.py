"""Whether a ViT has [CLS], and what is read of it."""

from __future__ import annotations

from typing import Any

import pytest
from test_vision_vit import MODELS, make

from damro.decoding.families import family_of
from damro.errors import NoClsTokenError, ParameterError
from damro.vision.sources import has_cls, resolve_source
from tests.family_models import MORE_FAMILIES, family_model

WITHOUT_CLS = ("llava_onevision", "llava_siglip", "paligemma")


def tower_of(name: str) -> Any:
    if name in MODELS:
        return make(name)[0]
    return family_of(family_model(name)).vision_tower(family_model(name))


@pytest.mark.parametrize("name", [*MORE_FAMILIES, *MODELS])
def test_what_there_is_is_read(name: str) -> None:
    tower, there, absent = tower_of(name), "cls", "received"
    if name in WITHOUT_CLS:
        there, absent = absent, there
    assert has_cls(tower) == (there == "cls")
    asked: Any
    for asked in (None, there):
        assert resolve_source(asked, tower) == there
    message = {"cls": r"must have a \[CLS\] token, got Siglip", "received": "source must be 'cls' .* got 'received'"}
    error = NoClsTokenError if absent == "cls" else ParameterError
    unread: Any = absent
    with pytest.raises(error, match=message[absent]):
        resolve_source(unread, tower)


def test_what_is_no_source() -> None:
    unknown: Any = "rollout"
    with pytest.raises(ParameterError, match="source must be one of cls, received, got 'rollout'"):
        resolve_source(unknown, tower_of("paligemma"))
