"""VISTA: what the image adds to the states of the language model is added to them again at every token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from damro.methods.base import INSIDE, Cost, Method, Scene
from damro.methods.presets import Task
from damro.parameters import Range, Strength

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.altering import Columns
    from damro.decoding.branches.readout import LayerHead
    from damro.decoding.prompts import Prompt
    from damro.decoding.rules import Contrast

Share = Annotated[float, Range(0, 1, hint="0.3 is what VISTA was released with")]
Window = Annotated[int, Range(1, hint="6 is what VISTA was released with")]
_STRENGTHS = {"chair": 0.17, "pope": 0.01}
_STRENGTH = 0.1


@dataclass(frozen=True)
class Vista(Method):
    """The image's share of the states, added in every layer; and earlier layers' logits (VISTA, ICML 2025).

    Both prompts, with the image and without, are read once; what their last columns differ by is a layer's steering
    vector v. What a layer's MLP puts out, x, becomes `|x| (x / |x| + y) / |x / |x| + y|` with
    `y = strength (1 + max(0, -cos(x, v))) v / |v|`, in the prompt and at every token. The logits are
    `(1 - mix) f + mix g`, g the mean of what the output layer makes of the layers of a window before the last, without
    the norm that the last goes through. All of it as in the authors' code, but that 1 is added there to the first
    number of the first layer's vector: the first component of one difference, which has none. The paper writes of
    states where the code changes the MLP's output.

    Attributes:
        strength: of the steering, lambda; 0 does without. None takes the released scripts' for the task: 0.17 for
            chair, 0.01 for pope, else 0.1.
        mix: weight of the earlier layers' logits, gamma; 0 does without.
        window: how many layers they are the mean of, up to the last but one: 6 are the layers 25 to 30 of 32, counted
            from 0, of the released code. A model with fewer gives all but its last.
    """

    name: ClassVar = "vista"
    source: ClassVar = "VISTA, ICML 2025, arXiv 2502.03628; github.com/LzVv123456/VISTA, llm_layers.py"
    cost: ClassVar = Cost(memory="a vector a layer; both prompts are read once more before the first token")
    limits: ClassVar = (*INSIDE, "layers without an MLP module of their own")
    code: ClassVar = "github.com/LzVv123456/VISTA"

    strength: Strength | None = None
    mix: Share = 0.3
    window: Window = 6

    def settle(self, family: str, task: Task | None = None, seed: int = 0) -> Self:
        """See :meth:`damro.methods.base.Method.settle`."""
        settled = super().settle(family, task, seed)
        told = _STRENGTHS.get(task or "", _STRENGTH) if self.strength is None else self.strength
        return replace(settled, strength=told)

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast | Prompt:
        """The steered prompt, and the earlier layers' logits in its own pass."""
        import torch

        from damro.decoding.altering import layers_of
        from damro.decoding.branches.readout import LayersReadout
        from damro.decoding.families import family_of
        from damro.decoding.inside import check_decoder
        from damro.decoding.rules import Contrast, MixRule

        decoder: Any = family_of(model).decoder(model)
        check_decoder(decoder)
        full: Any = scene.full_prompt(model, inputs, scene.look(model, inputs))
        if self.strength:
            full = replace(full, altered=_steered(decoder, full, self.strength))
        last = len(layers_of(decoder)) - 1

        def earlier(states: Sequence[Tensor], full: Tensor, head: LayerHead) -> Tensor:
            return torch.stack([head(one, norm=False).to(full.device) for one in states]).mean(dim=0)

        window = range(max(0, last - self.window), last)
        if not self.mix or not window:
            plain: Prompt = full
            return plain
        return Contrast(full, LayersReadout(window, earlier), MixRule(1 - self.mix, self.mix, None))


def _steered(decoder: Any, full: Prompt, strength: float) -> Any:
    """How a prompt is read with its image's share added in every layer."""
    from damro.decoding.altering import Alteration, mlps_of
    from damro.decoding.states import last_states

    mlps = mlps_of(decoder)
    vectors = last_states(decoder, full) - last_states(decoder, full.drop_image())  # (B, layers, D)

    def adding(vector: Tensor) -> Any:
        def change(states: Tensor, columns: Columns) -> Tensor:
            of_rows = vector.repeat_interleave(len(states) // len(vector), dim=0).to(states.device)
            return steer(states, of_rows[:, None], strength)

        return change

    return Alteration(outputs=tuple((mlp, adding(vectors[:, number])) for number, mlp in enumerate(mlps)))


def steer(states: Tensor, vector: Tensor, strength: float) -> Tensor:
    """States turned towards a vector, their lengths kept; more where they point away from it.

    Args:
        states: `(..., D)`.
        vector: `(..., D)`, which the shape of `states` holds.
        strength: how far; see :class:`Vista`.

    Returns:
        `(..., D)`, float32.

    Example:
        >>> import torch
        >>> [round(x, 3) for x in steer(torch.tensor([0.0, 2.0]), torch.tensor([3.0, 0.0]), 1.0).tolist()]
        [1.414, 1.414]
    """
    from torch.nn.functional import cosine_similarity, normalize

    states, vector = states.float(), vector.float()
    away = 1 + cosine_similarity(states, -vector, dim=-1).clamp(min=0).unsqueeze(-1)
    turned = normalize(states, dim=-1) + strength * away * normalize(vector, dim=-1)
    steered: Tensor = normalize(turned, dim=-1) * states.norm(dim=-1, keepdim=True)
    return steered
