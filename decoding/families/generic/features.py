"""The vision tower and what comes of its run, found as ``generate`` finds them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from damro.decoding.errors import UnsupportedModelError
from damro.decoding.families.generic.attention import tower_layers


def image_tower(model: Any) -> nn.Module:
    """The module that reads images.

    Raises:
        UnsupportedModelError: if it is not where transformers looks for it.
    """
    tower: nn.Module = model.get_encoder(modality="image")
    if tower is model or tower is model.base_model:
        raise UnsupportedModelError(
            f"model must have its vision tower where get_encoder(modality='image') finds it, got none in "
            f"{type(model).__name__}"
        )
    return tower


def image_features(model: Any, inputs: Mapping[str, Any]) -> Any:
    """Runs the vision tower and what makes columns of its patches, with those inputs that it takes.

    Returns:
        What the model's own `get_image_features` returns, as ``generate`` calls it.
    """
    encode = model.base_model.get_image_features
    taken = [name for name in inspect.signature(encode).parameters if name != "kwargs"]
    return encode(**{name: inputs[name] for name in taken if inputs.get(name) is not None}, return_dict=True)


def encoder_keys(model: Any) -> tuple[str, ...]:
    """Names of the inputs that the vision tower takes."""
    return tuple(name for name in inspect.signature(model.base_model.get_image_features).parameters if name != "kwargs")


def deepest_layer(model: Any) -> int:
    """The layer of the tower whose output becomes the columns, counted from 0.

    `vision_feature_layer` counts the embeddings in front, so that i >= 0 is the output of layer i - 1. Of several
    layers the deepest is taken.
    """
    depth = len(tower_layers(image_tower(model)))
    chosen = getattr(model.config, "vision_feature_layer", None)
    indices = [-1] if chosen is None else [chosen] if isinstance(chosen, int) else list(chosen)
    return max(max(index + depth if index < 0 else index - 1 for index in indices), 0)
