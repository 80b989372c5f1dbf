"""No contrast at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from damro.methods.base import Method, Scene

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from damro.decoding.prompts import Prompt


@dataclass(frozen=True)
class Greedy(Method):
    """Plain decoding: the model's own next-token scores. At a temperature it is called ``sample``."""

    name: ClassVar = "greedy"
    source: ClassVar = "what model.generate does"

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Prompt:
        """The full prompt alone."""
        return scene.full_prompt(model, inputs, scene.look(model, inputs))
