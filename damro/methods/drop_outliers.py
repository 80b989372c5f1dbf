"""The plainest rival of DAMRO: the prompt without its outlier patches, and no contrast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from damro.methods.base import Scene
from damro.methods.damro import FromPreset, Patches
from damro.methods.presets import Task
from damro.parameters import Seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from damro.decoding.prompts import Prompt
    from damro.methods.patches import Choose


@dataclass(frozen=True)
class DropOutliers(FromPreset):
    """The prompt without the patches with the most [CLS] attention, decoded plainly: a rival of DAMRO.

    If outliers mislead, leaving them out should do what contrasting with them does, at no cost. It is nobody's paper:
    ranking and number are DAMRO's, and what is left out is the patch that was ranked, in every family.

    LLaVA's columns of those patches are left out, LLaVA-NeXT's in each tile, and InstructBLIP's Q-Former reads the
    others, [CLS] among them. Of other image-text models the columns of the base tile are ranked and left out. Where the
    ViT has no [CLS] (SigLIP), patches are ranked by the attention they receive. With `keep_tokens` the columns to keep
    are chosen among the others.

    Attributes:
        top_k: number of patches of a tile; none takes DAMRO's preset.
        task: whose preset to take; none takes the benchmark's of a run, else the general one.
    """

    name: ClassVar = "drop-outliers"
    source: ClassVar = "the project's own; ranked as DAMRO, EMNLP 2024, arXiv 2410.04514"
    limits: ClassVar = (
        "image columns that hold parts of several patches (LLaVA-OneVision)",
        "beams and other stock loops, sliding windows and states with prompts of tokens (Qwen-VL, InternVL, ...)",
    )

    top_k: Patches | None = None
    task: Task | None = None

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Prompt:
        """The full prompt without the chosen patches."""
        from damro.decoding.errors import ParameterError
        from damro.methods.patches import rank_image
        from damro.pruning.dropping import prompt_without

        assert self.top_k is not None  # settled
        choose = self.choose(model, inputs, scene)
        run, attention, outliers = rank_image(model, inputs, scene, self.top_k, choose, reference=True)
        fewest = min(attention.patches_of(tile) for tile in range(len(attention.row)))
        if self.top_k >= fewest:
            raise ParameterError(
                f"top_k must leave a patch of the {fewest} of a tile, got {self.top_k}; decode without the image by "
                "a prompt without one"
            )
        return prompt_without(model, inputs, run.encoding, outliers, scene.pruning, run.ranked)

    def choose(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Choose:
        """Which patches are left out."""
        from damro.vision.outliers import rank_patches

        return rank_patches


@dataclass(frozen=True)
class DropRandom(DropOutliers):
    """The prompt without k random patches: a control of `drop-outliers`.

    Attributes:
        seed: of the choice; none takes the run's, else 0. In a run the choice depends on it and the image alone.
    """

    name: ClassVar = "drop-random"
    source: ClassVar = "control"

    seed: Seed | None = None

    def choose(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Choose:
        """Patches drawn without replacement, those that `random-k` draws."""
        from damro.methods.patches import random_choice

        return random_choice(model, inputs, scene, self.seed or 0)
