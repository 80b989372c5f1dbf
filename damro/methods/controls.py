"""DAMRO's controls: what the contrast does without what is particular about outliers.

A method that does no better than `RandomK` owes nothing to where [CLS] looks, one that does no better than `NoImage`
nothing to patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from damro.methods.base import SECOND, Cost, Scene
from damro.methods.damro import Damro, PresetMethod
from damro.parameters import Seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from damro.decoding.rules import Contrast


@dataclass(frozen=True)
class RandomK(Damro):
    """The prompt against k random patches: a control of DAMRO.

    Attributes:
        seed: of the choice; none takes the run's, else 0. In a run the choice depends on it and the image alone.
    """

    name: ClassVar = "random-k"
    source: ClassVar = "control"
    code: ClassVar[str | None] = None

    seed: Seed | None = None

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the one with patches drawn without replacement."""
        from damro.methods.patches import patch_contrast, random_choice

        return patch_contrast(model, inputs, scene, self, random_choice(model, inputs, scene, self.seed or 0))


@dataclass(frozen=True)
class LeastK(Damro):
    """The prompt against the k patches with the least [CLS] attention: a control of DAMRO."""

    name: ClassVar = "least-k"
    source: ClassVar = "control"
    code: ClassVar[str | None] = None

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the one with those patches, the least attended first."""
        from damro.methods.patches import least_patches, patch_contrast

        return patch_contrast(model, inputs, scene, self, least_patches)


@dataclass(frozen=True)
class NoImage(PresetMethod):
    """The prompt against its text alone: a control of DAMRO."""

    name: ClassVar = "no-image"
    source: ClassVar = "control"
    cost: ClassVar = Cost(passes=1, memory=SECOND)

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the one without its image columns."""
        from damro.decoding.rules import Contrast, ContrastRule

        assert self.alpha is not None and self.beta is not None  # settled
        full = scene.full_prompt(model, inputs, scene.look(model, inputs))
        return Contrast(full, full.drop_image(), ContrastRule(self.alpha, self.beta))
