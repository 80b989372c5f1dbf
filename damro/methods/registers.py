"""Test-time registers: the image as the vision tower sees it where its outliers are moved to an added token."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from damro.methods.base import Cost, Method, Scene
from damro.methods.damro import FromPreset, Patches
from damro.methods.presets import Task
from damro.parameters import Range

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.prompts import Prompt

Count = Annotated[int, Range(1, hint="10 for a ViT-B/16 and 50 for a ViT-L/14 in the authors' code")]


@dataclass(frozen=True)
class Registers(FromPreset):
    """The prompt of an image whose outliers were moved to a test-time register (Jiang et al., NeurIPS 2025).

    While the vision tower runs, a token of zeros is added; in it the register neurons, which write outliers, get their
    largest activation, and at the patches they get 0. The token is dropped behind the tower, so that the language model
    has the columns it always has, without outliers. It is plain decoding of one prompt.

    The authors find the neurons in some hundred images, and so does ``damro registers``, whose file is told here. With
    no file they are found in the image itself, tile by tile, which is the project's own and takes two more runs of the
    tower; where nothing in a tile is an outlier, the register stays idle in it.

    Differences from the authors' code: see :func:`damro.vision.register_neurons.find_register_neurons` for how neurons
    are found. At the register each neuron has its own largest activation, as the paper has it, where the code takes one
    for all register neurons of a layer (``maximum=layer``). The register stands behind [CLS] and not behind the
    patches, which attention cannot tell.

    Attributes:
        neurons_file: written by ``damro registers``; none finds them in the image itself.
        neurons: how many, if there is no file.
        outliers: if there is no file, norm are patches with long vectors, the authors' rule; attention the top_k that
            DAMRO takes.
        top_k: of attention, number of patches of a tile; none takes DAMRO's preset.
        task: whose preset to take; none takes the benchmark's of a run, else the general one.
        maximum: whose largest activation a neuron has at the register, its own (neuron) or that of its layer's register
            neurons (layer).
    """

    name: ClassVar = "registers"
    source: ClassVar = "Jiang et al., NeurIPS 2025, arXiv 2506.08010, section 4; released shared/hook_fn.py"
    cost: ClassVar = Cost(looks=2, memory="nothing; no further look with a file of neurons")
    limits: ClassVar = ("vision towers that are no plain ViT with [CLS] (SigLIP, Qwen-VL, InternVL, ...)",)
    code: ClassVar = "github.com/nickjiang2378/test-time-registers"

    neurons_file: str | None = None
    neurons: Count = 10
    outliers: Literal["norm", "attention"] = "norm"
    top_k: Patches | None = None
    task: Task | None = None
    maximum: Literal["neuron", "layer"] = "neuron"

    def settle(self, family: str, task: Task | None = None, seed: int = 0) -> Self:
        """See :meth:`damro.methods.base.Method.settle`; the preset is for `attention` alone."""
        if self.neurons_file is None and self.outliers == "attention":
            return super().settle(family, task, seed)
        return replace(Method.settle(self, family, task, seed), task=None)

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Prompt:
        """The full prompt of the image seen with a register."""
        from damro.decoding.families import check_inputs, family_of
        from damro.vision.registers import added_register

        check_inputs(model, inputs)
        tower = family_of(model).vision_tower(model, inputs)
        # Not the scene's own look: that may be one which others share, without a register.
        with added_register(tower, self._masks(model, inputs, scene), self.maximum):
            run = Scene.look(scene, model, inputs)
        return Scene.full_prompt(scene, model, inputs, run)

    def _masks(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> dict[int, Tensor]:
        """By layer, the neurons."""
        import torch

        from damro.decoding.families import family_of
        from damro.vision.register_neurons import RegisterNeurons, own_masks, score_neurons

        if self.neurons_file is not None:
            known = RegisterNeurons.load(self.neurons_file)
            known.check(family_of(model).vision_tower(model, inputs))
            return known.masks()
        if scene.shared_image:  # the tower will see one copy
            inputs = {key: value[:1] for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        seen = score_neurons(model, inputs, outliers=self.outliers, top_k=self.top_k)
        return own_masks(seen, self.neurons)

    def to_record(self) -> dict[str, Any]:
        """The parameters that have a value, and a digest of the file."""
        told = super().to_record()
        if self.neurons_file is None or not Path(self.neurons_file).is_file():
            return told
        return told | {"neurons_digest": hashlib.sha256(Path(self.neurons_file).read_bytes()).hexdigest()[:16]}
