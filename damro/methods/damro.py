"""DAMRO: the prompt against its outlier patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from damro.decoding.errors import UnsupportedModelError
from damro.methods.base import SECOND, Cost, Method, Scene
from damro.methods.presets import Task, has_preset, preset
from damro.parameters import Cutoff, Range, Strength, given, show

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from damro.decoding.rules import Contrast

Variant = Literal["reference", "corrected"]
Patches = Annotated[int, Range(1)]


@dataclass(frozen=True)
class FromPreset(Method):
    """Base of methods with parameters that depend on the model's family and the task.

    A subclass has a `task` and some of `alpha`, `beta` and `top_k`; none of them takes the preset.
    """

    def settle(self, family: str, task: Task | None = None, seed: int = 0) -> Self:
        """See :meth:`damro.methods.base.Method.settle`."""
        settled = super().settle(family, task, seed)
        missing = [name for name in ("alpha", "beta", "top_k") if getattr(self, name, 0) is None]
        if missing and not has_preset(family):
            raise UnsupportedModelError(
                f"{self.name} must be told {', '.join(missing)} for a model of a family without a preset, got none for "
                f"{family!r}; pass {', '.join(missing)}, such as {self.name}:{missing[0]}=..., or try several: "
                f"{_sweep(self.name, given(self), missing)}"
            )
        told: Task | None = getattr(self, "task", None) or task
        values: dict[str, Any] = {name: getattr(preset(family, told), name) for name in missing}
        return replace(settled, **{"task": None, **values})


@dataclass(frozen=True)
class PresetMethod(FromPreset):
    """Base of DAMRO and its controls.

    Attributes:
        alpha: strength of the contrast; none takes the preset of the family and task.
        beta: plausibility cutoff; none takes the preset.
        task: whose preset to take; none takes the benchmark's of a run, else the general one.
    """

    alpha: Strength | None = None
    beta: Cutoff | None = None
    task: Task | None = None


_TRIED: dict[str, tuple[str, ...]] = {"alpha": ("0.5", "1", "2"), "beta": ("0.1",), "top_k": ("10",)}
"""Values to try where the paper has none: those of its runs with other models."""


def _sweep(name: str, told: Mapping[str, Any], missing: Sequence[str]) -> str:
    """A command that runs a method with several values of what it has not been told."""
    known = [f"{one}={show(value)}" for one, value in told.items()]
    tried = [
        f"{name}:{','.join([*known, *(f'{one}={value}' for one, value in zip(missing, values, strict=True))])}"
        for values in product(*(_TRIED[one] for one in missing))
    ]
    return f"damro run pope --model ... --methods greedy {' '.join(tried)}"


@dataclass(frozen=True)
class Damro(PresetMethod):
    """The prompt against the patches with the most [CLS] attention (DAMRO, EMNLP 2024, eq. 7 to 9).

    Where the ViT has no [CLS] (SigLIP), patches are ranked by the attention they receive, which is not the paper's
    method.

    Attributes:
        top_k: number of patches of a tile; none takes the preset.
        variant: reference does what the released code does; corrected differs for InstructBLIP alone, see
            :class:`damro.DAMROProcessor`.
    """

    name: ClassVar = "damro"
    source: ClassVar = "DAMRO, EMNLP 2024, arXiv 2410.04514, eq. 7 to 9; github.com/coder-gx/DAMRO"
    cost: ClassVar = Cost(passes=1, memory=SECOND)
    code: ClassVar[str | None] = "github.com/coder-gx/DAMRO"

    top_k: Patches | None = None
    variant: Variant = "reference"

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the one with the chosen patches in descending attention."""
        from damro.methods.patches import patch_contrast
        from damro.vision.outliers import rank_patches

        return patch_contrast(model, inputs, scene, self, rank_patches)
