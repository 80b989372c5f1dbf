"""Attentional Vision Calibration: the prompt against the image columns that draw attention whatever is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from damro.methods.base import READ_ATTENTION, SECOND, Cost, Method, Scene
from damro.parameters import Cutoff, Range, Strength

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.altering import Columns
    from damro.decoding.prompts import Prompt
    from damro.decoding.rules import Contrast

LayerShare = Annotated[float, Range(0, 1, above=True, hint="0.5 is what AvisC was released with")]
Deviations = Annotated[float, Range(0, hint="1 is what AvisC's scripts have")]


@dataclass(frozen=True)
class AvisC(Method):
    """The prompt against its blind tokens: image columns with much of the last column's attention (AvisC, 2024).

    One pass over the prompt is read for where its last column looks. Layers are taken by their share of all layers'
    attention to the image until those taken have `layer_share` of it. A column is blind if its attention, averaged
    over heads and those layers, is at least the mean of all image columns plus `deviations` standard deviations. In
    the second prompt all other image columns are vectors of zeros; the text and all positions stay. Defaults are those
    of the released script for AMBER, the one that has the method switched on.

    Differences from the released code: that takes one prompt at a time, and the attention of the pass which answers
    (here a pass of its own, once a prompt); where the second prompt's logits are NaN it takes the full prompt's, here
    that is an error. Its fillings with ones and with noise are left out.

    Attributes:
        alpha: strength of the contrast.
        beta: plausibility cutoff.
        layer_share: of the attention to the image, that the layers which are asked have.
        deviations: how many standard deviations above the mean a blind column begins.
    """

    name: ClassVar = "avisc"
    source: ClassVar = "AvisC, arXiv 2405.17820; github.com/sangminwoo/AvisC, avisc_utils/avisc_sample.py"
    cost: ClassVar = Cost(passes=1, memory=f"{SECOND}; a further pass over the prompt")
    limits: ClassVar = READ_ATTENTION
    code: ClassVar = "github.com/sangminwoo/AvisC"

    alpha: Strength = 2.5
    beta: Cutoff = 0.1
    layer_share: LayerShare = 0.5
    deviations: Deviations = 1.0

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the same with nothing but its blind columns."""
        import torch

        from damro.decoding.families import family_of
        from damro.decoding.rules import Contrast, ContrastRule

        full = scene.full_prompt(model, inputs, scene.look(model, inputs))
        attention = attention_of_last(family_of(model).decoder(model), full)
        blind = torch.zeros_like(full.image_mask)
        for row, image in enumerate(full.image_mask):
            blind[row, image] = blind_columns(attention[:, row, image], self.layer_share, self.deviations)
        return Contrast(full, blanked(full, full.image_mask & ~blind), ContrastRule(self.alpha, self.beta))


def attention_of_last(decoder: Any, prompt: Prompt) -> Tensor:
    """Where the last column of prompts looks, `(layers, B, L)`, averaged over heads; one pass over them.

    Args:
        decoder: the language model with its head.
        prompt: of `B` rows, which is read as it is.

    Raises:
        UnsupportedModelError: if the attention of the model cannot be seen.
    """
    import torch

    from damro.decoding.altering import Alteration, layers_of
    from damro.decoding.branches.fused import prefill
    from damro.decoding.inside import check_model

    seen: dict[int, Tensor] = {}

    def look(logits: Tensor, layer: int, columns: Columns) -> Tensor:
        seen[layer] = logits[:, :, -1].softmax(dim=-1).mean(dim=1)
        return logits

    watched: Any = replace(prompt, altered=Alteration(attention=look))  # type: ignore[type-var]
    check_model(decoder, watched)
    prefill(decoder, watched)
    device = prompt.image_mask.device
    return torch.stack([seen[layer].to(device) for layer in range(len(layers_of(decoder)))])


def blind_columns(attention: Tensor, layer_share: float, deviations: float) -> Tensor:
    """Which image columns of one prompt are blind, see :class:`AvisC`.

    Args:
        attention: `(layers, columns)`, that of image columns.
        layer_share: as of the method.
        deviations: as of the method.

    Returns:
        `(columns,)`, boolean.

    Example:
        >>> import torch
        >>> blind_columns(torch.tensor([[0.1, 0.1, 0.1, 0.6], [0.2, 0.0, 0.0, 0.0]]), 0.5, 1.0).tolist()
        [False, False, False, True]
    """
    share = attention.sum(dim=-1)
    order = share.argsort(descending=True)
    enough = int((share[order].cumsum(dim=0) < layer_share * share.sum()).sum()) + 1
    mean = attention[order[:enough]].mean(dim=0)
    return mean >= mean.mean() + deviations * mean.std()


def blanked(prompt: Prompt, columns: Tensor) -> Prompt:
    """The same prompt with vectors of zeros in some image columns.

    Args:
        prompt: of embedded columns, or of tokens with image features.
        columns: `(B, L)`, image columns that are to hold nothing.
    """
    from damro.decoding.families.generic.prompt import TokenPrompt
    from damro.decoding.prompts import VisualPrompt

    if isinstance(prompt, VisualPrompt):
        return replace(prompt, inputs_embeds=prompt.inputs_embeds.masked_fill(columns.unsqueeze(-1), 0))
    assert isinstance(prompt, TokenPrompt)
    empty = columns[prompt.image_mask].unsqueeze(-1)
    pooled, *deep = (
        vectors.masked_fill(empty.to(vectors.device), 0)
        for vectors in (prompt.features.pooled, *prompt.features.deepstack)
    )
    return replace(prompt, features=replace(prompt.features, pooled=pooled, deepstack=tuple(deep)))
