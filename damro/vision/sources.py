"""Whose attention a map of a ViT shows: that of [CLS], or, where there is no [CLS], what the patches receive.

This is the one place that chooses between the two, and the one that names them for a reader.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from damro.decoding.families.base import has_cls
from damro.errors import NoClsTokenError, ParameterError

__all__ = ["SOURCE_NAMES", "Source", "has_cls", "resolve_source"]

Source = Literal["cls", "received"]

SOURCE_NAMES: dict[Source, str] = {"cls": "[CLS] attention", "received": "attention received"}
"""What titles and captions call each."""


def resolve_source(source: Source | None, tower: nn.Module) -> Source:
    """What is read of a ViT: what was asked for, if the ViT has it.

    Args:
        source: "cls" or "received"; None takes "cls" where there is a [CLS] and "received" where there is none.
        tower: the ViT.

    Raises:
        ParameterError: if there is no such source, or [CLS] is to be passed over.
        NoClsTokenError: if "cls" is asked of a ViT that has no [CLS].

    Example:
        >>> from transformers import SiglipVisionConfig, SiglipVisionModel, ViTConfig, ViTModel
        >>> small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> resolve_source(None, ViTModel(ViTConfig(**small)))
        'cls'
        >>> resolve_source(None, SiglipVisionModel(SiglipVisionConfig(**small)))
        'received'
    """
    found = has_cls(tower)
    if source is None:
        return "cls" if found else "received"
    if source not in get_args(Source):
        raise ParameterError(f"source must be one of {', '.join(get_args(Source))}, got {source!r}")
    if source == "cls" and not found:
        raise NoClsTokenError(
            f"the vision tower must have a [CLS] token, got {type(tower).__name__}, which has none; "
            "source='received' reads the attention its patches receive"
        )
    if source == "received" and found:
        raise ParameterError(
            f"source must be 'cls' for a vision tower with a [CLS] token, got 'received' for {type(tower).__name__}"
        )
    return source
