"""Paying More Attention to Image: the language model looks at the image more, against the text alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from damro.decoding.errors import ParameterError
from damro.methods.base import ATTENTION, SECOND, Cost, Method, Scene
from damro.parameters import Cutoff, Range

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.altering import AttentionChange, Columns
    from damro.decoding.prompts import Prompt
    from damro.decoding.rules import Contrast

Boost = Annotated[float, Range(0, hint="0.2 is what PAI's commands have, 0 leaves attention as it is")]
Guidance = Annotated[float, Range(1, hint="1.1 is what PAI's commands have, 1 does without the second prompt")]
FromLayer = Annotated[int, Range(0, hint="2 is what PAI was released with")]
ToLayer = Annotated[int, Range(1, hint="none goes to the last")]


@dataclass(frozen=True)
class PAI(Method):
    """More attention to the image, and a contrast with the text alone (PAI, ECCV 2024).

    The query of the last column of the prompt, and of every token behind it, has its logits of attention to image
    columns raised, `w + alpha |w|`. The scores are `gamma lc - (gamma - 1) lu` over the plausible tokens, lu being the
    log-probabilities without the image, read with plain attention. Defaults are those of the released commands; the
    scripts themselves have 2 for gamma where nothing is said.

    Differences from the released code: with gamma above 1 that does not boost the last column of the prompt, as its
    switch is thrown when the first token is there; `boost_first` false does the same. Its last layer is 32, which is
    all that LLaVA-7B has; here it is the model's last.

    Attributes:
        alpha: how much the logits of attention to the image are raised.
        gamma: strength of the contrast with the text alone.
        beta: plausibility cutoff of that contrast.
        from_layer: first layer of the language model whose attention is raised, counted from 0.
        to_layer: the layer in front of which that ends; none takes all that follow.
        boost_first: boost the first token of the answer, too; without, the released code with its contrast.
    """

    name: ClassVar = "pai"
    source: ClassVar = "PAI, ECCV 2024, arXiv 2407.21771; github.com/LALBJ/PAI, attention.py and CFG.py"
    cost: ClassVar = Cost(passes=1, memory=SECOND)
    limits: ClassVar = ATTENTION
    code: ClassVar = "github.com/LALBJ/PAI"

    alpha: Boost = 0.2
    gamma: Guidance = 1.1
    beta: Cutoff = 0.1
    from_layer: FromLayer = 2
    to_layer: ToLayer | None = None
    boost_first: bool = True

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast | Prompt:
        """The full prompt with its attention raised, and its text alone; with gamma 1 the first of them."""
        from damro.decoding.altering import Alteration, layers_of
        from damro.decoding.families import family_of
        from damro.decoding.rules import Contrast, ContrastRule

        full: Any = scene.full_prompt(model, inputs, scene.look(model, inputs))
        layers = range(len(layers_of(family_of(model).decoder(model))))[self.from_layer : self.to_layer]
        if not layers:
            raise ParameterError(
                f"from_layer must be below to_layer and the number of the language model's layers, got "
                f"{self.from_layer} for {self.to_layer}; 0 takes the first"
            )
        boosted: Prompt = replace(full, altered=Alteration(attention=image_boost(self.alpha, layers, self.boost_first)))
        if self.gamma == 1:
            return boosted
        return Contrast(boosted, full.drop_image(), ContrastRule(self.gamma - 1, self.beta))


def image_boost(alpha: float, layers: range, first: bool = True) -> AttentionChange:
    """Logits of attention `w + alpha |w|` at image columns, for the queries behind the prompt.

    Args:
        alpha: how much they are raised.
        layers: of the language model, in which they are.
        first: for the last column of the prompt, too, of which the first token comes.
    """
    import torch

    def boost(logits: Tensor, layer: int, columns: Columns) -> Tensor:
        if layer not in layers:
            return logits
        prompt, (queries, keys) = columns.image.shape[1], logits.shape[-2:]
        behind = torch.arange(keys - queries, keys, device=logits.device) >= prompt - int(first)  # (Q,)
        image = torch.nn.functional.pad(columns.image, (0, keys - prompt))  # (R, K)
        chosen = image[:, None, None] & behind[:, None]  # (R, 1, Q, K)
        return torch.where(chosen, logits + alpha * logits.abs(), logits)

    return boost
