"""VTI: states of the vision tower and the language model are steered in directions that were computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.methods.base import INSIDE, Cost, Method, Scene
from damro.parameters import Strength

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.altering import Columns
    from damro.decoding.prompts import Prompt
    from damro.methods.directions import Directions

_STEP = 0.1
"""The released code's own factor of both strengths."""


@dataclass(frozen=True)
class VTI(Method):
    """States steered away from hallucinated captions and towards what masked images share (VTI, ICLR 2025).

    What an MLP puts out, x, becomes `|x| (x / |x| + y) / |x / |x| + y|` with `y = 0.1 alpha d / |d|`: in every layer of
    the language model, in the prompt and at every token, d that layer's textual direction, and in every layer of the
    vision tower, d that layer's and that token's visual one. :func:`damro.methods.directions.compute_directions`
    computes them as the released code does, and says where it differs from the paper; a file of another model is
    refused. Where a vision tower reads several tiles of an image, each is steered alike.

    Attributes:
        directions: the file that :func:`damro.methods.directions.save_directions` wrote.
        alpha_text: strength in the language model; 0 does without. 0.9 is the authors' command, 0.8 their default.
        alpha_image: strength in the vision tower; 0 does without. 0.9 is the authors' command.
    """

    name: ClassVar = "vti"
    source: ClassVar = "VTI, ICLR 2025, arXiv 2410.15778; github.com/shengliu66/VTI, llm_layers.py"
    cost: ClassVar = Cost(memory="a vector a layer, and one for each token and layer of the ViT")
    limits: ClassVar = (
        *INSIDE,
        "a call without a file of directions, or with those of another model",
        "layers without an MLP module of their own",
        "for alpha_image, ViTs that read images of several sizes",
    )
    code: ClassVar = "github.com/shengliu66/VTI"

    directions: str | None = None
    alpha_text: Strength = 0.9
    alpha_image: Strength = 0.9

    def to_record(self) -> dict[str, Any]:
        """The parameters, and the digest of the file, so that a run tells one from another of the same name."""
        told = super().to_record()
        if self.directions is not None and Path(self.directions).is_file():
            told["directions_sha256"] = hashlib.sha256(Path(self.directions).read_bytes()).hexdigest()
        return told

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Prompt:
        """The prompt about the steered image, steered itself; it decodes plainly."""
        from damro.decoding.altering import Alteration, mlps_of
        from damro.decoding.families import family_of
        from damro.decoding.inside import check_decoder

        decoder: Any = family_of(model).decoder(model)
        check_decoder(decoder)
        directions = self._of_model(model)
        with self._steered_tower(model, inputs, directions):
            run = Scene.look(scene, model, inputs)  # not one that others share: it is steered
        full: Any = Scene.full_prompt(scene, model, inputs, run)
        if self.alpha_text:
            mlps = mlps_of(decoder)
            outputs = tuple(
                (mlp, _turning(one, self.alpha_text)) for mlp, one in zip(mlps, directions.text, strict=True)
            )
            full = replace(full, altered=Alteration(outputs=outputs))
        prompt: Prompt = full
        return prompt

    def _of_model(self, model: PreTrainedModel) -> Directions:
        """The directions, if they are this model's."""
        from damro.decoding.families import unwrap
        from damro.methods.directions import model_digest

        if self.directions is None:
            raise ParameterError(
                "directions must be a file with those of the model, got none; compute them with "
                "damro.methods.directions.compute_directions and pass vti:directions=FILE"
            )
        path = Path(self.directions)
        found = _load(path, path.stat().st_mtime_ns if path.is_file() else 0)
        if found.model != model_digest(unwrap(model)):
            raise ParameterError(
                f"directions must be those of this very model, got {self.directions!r}, which were computed with "
                "another; compute them anew with damro.methods.directions.compute_directions"
            )
        if self.alpha_image and found.vision is None:
            raise ParameterError(
                f"alpha_image must be 0 with directions of the language model alone, got {self.alpha_image!r} with "
                f"{self.directions!r}; pass alpha_image=0, or compute them with vision=True"
            )
        return found

    @contextmanager
    def _steered_tower(
        self, model: PreTrainedModel, inputs: Mapping[str, Any], directions: Directions
    ) -> Iterator[None]:
        """While open, the vision tower is steered in this thread."""
        from damro.decoding.families import family_of
        from damro.decoding.hooks import replaced_output
        from damro.vision.attention import tower_layers

        with ExitStack() as stack:
            if self.alpha_image and directions.vision is not None:
                family: Any = family_of(model)
                layers: Any = tower_layers(model, family, family.vision_tower(model, inputs))
                for layer, one in zip(layers, directions.vision, strict=True):
                    stack.enter_context(replaced_output(layer.mlp, _turning_tiles(one, self.alpha_image)))
            yield


@lru_cache(maxsize=2)
def _load(path: Path, changed: int) -> Directions:
    """The file as it was when it was last changed."""
    from damro.methods.directions import load_directions

    return load_directions(path)


def _turning(direction: Tensor, alpha: float) -> Any:
    """The change of what an MLP of the language model puts out."""
    placed: dict[Any, Tensor] = {}  # a copy at every token would have a GPU wait

    def change(states: Tensor, columns: Columns) -> Tensor:
        if states.device not in placed:
            placed[states.device] = direction.to(states.device)
        return turn(states, placed[states.device], _STEP * alpha)

    return change


def _turning_tiles(directions: Tensor, alpha: float) -> Any:
    """The change of what an MLP of the vision tower puts out, `(tiles, tokens, C)`."""

    def change(output: Tensor) -> Tensor:
        if output.shape[-2] != len(directions):
            raise UnsupportedModelError(
                f"model must read images of the size that the directions were computed with, got {output.shape[-2]} "
                f"tokens for {len(directions)}; pass alpha_image=0"
            )
        return turn(output, directions.to(output.device), _STEP * alpha).to(output.dtype)

    return change


def turn(states: Tensor, direction: Tensor, step: float) -> Tensor:
    """States turned towards a direction by a step, their lengths kept.

    Args:
        states: `(..., D)`.
        direction: `(..., D)`, which the shape of `states` holds; of any length.
        step: in lengths of the states.

    Returns:
        `(..., D)`, float32.

    Example:
        >>> import torch
        >>> [round(x, 3) for x in turn(torch.tensor([0.0, 2.0]), torch.tensor([3.0, 0.0]), 1.0).tolist()]
        [1.414, 1.414]
    """
    from torch.nn.functional import normalize

    states = states.float()
    turned = normalize(states, dim=-1) + step * normalize(direction.float(), dim=-1)
    steered: Tensor = normalize(turned, dim=-1) * states.norm(dim=-1, keepdim=True)
    return steered
