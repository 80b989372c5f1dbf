"""Self-Introspective Decoding: the prompt against itself with the least attended image columns alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from damro.decoding.errors import ParameterError
from damro.methods.base import ATTENTION, SECOND, Cost, Method, Scene
from damro.methods.presets import Task
from damro.parameters import Cutoff, Range, Strength

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.altering import AttentionChange, Columns
    from damro.decoding.rules import Contrast

EarlyLayer = Annotated[int, Range(1, hint="2 is what SID was released with")]
Share = Annotated[float, Range(0, 1, above=True, hint="100 of 576 columns is what SID's script for POPE has")]

_POPE, _CAPTIONS = 100 / 576, 50 / 576


@dataclass(frozen=True)
class SID(Method):
    """The prompt against itself, with the least attended image columns alone in later layers (SID, ICLR 2025).

    The second prompt is the same as the first. Its layers before `layer` read it as it is. Where the last column, or
    the last token, of a pass looks in the layer before that, averaged over heads, tells which image columns it looks at
    least; from `layer` on the others are hidden from that pass. So every token chooses anew. Layers and the numbers of
    columns are those of the released scripts, 100 of LLaVA's 576 columns for POPE and 50 for captions, here as shares.
    They hand no alpha on, so that the code's own default of 0.5 counts.

    A column of the prompt that has none but hidden ones before it, as of an image that begins the prompt, sees all
    columns alike, as in the released code.

    Differences from the released code: its greedy search (which all its commands ask for) has no plausibility cutoff,
    as a beta near 0 has none; and it takes one prompt at a time.

    Attributes:
        alpha: strength of the contrast.
        beta: plausibility cutoff.
        layer: first layer of the language model in which columns are hidden, counted from 0.
        share: of the image columns, those with the least attention that stay; none takes the task's.
    """

    name: ClassVar = "sid"
    source: ClassVar = "SID, ICLR 2025, arXiv 2408.02032; github.com/huofushuo/SID, modeling_llama.py and vcd_sample.py"
    cost: ClassVar = Cost(passes=1, memory=SECOND)
    limits: ClassVar = ATTENTION
    code: ClassVar = "github.com/huofushuo/SID"

    alpha: Strength = 0.5
    beta: Cutoff = 0.1
    layer: EarlyLayer = 2
    share: Share | None = None

    def settle(self, family: str, task: Task | None = None, seed: int = 0) -> Self:
        """See :meth:`damro.methods.base.Method.settle`."""
        usual = _CAPTIONS if task == "chair" else _POPE
        return replace(super().settle(family, task, seed), share=usual if self.share is None else self.share)

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the same with columns hidden."""
        from damro.decoding.altering import Alteration, layers_of
        from damro.decoding.families import family_of
        from damro.decoding.rules import Contrast, ContrastRule

        assert self.share is not None  # settled
        full: Any = scene.full_prompt(model, inputs, scene.look(model, inputs))
        layers = len(layers_of(family_of(model).decoder(model)))
        if self.layer >= layers:
            raise ParameterError(
                f"layer must be below the language model's {layers} layers, got {self.layer}; 2 is usual"
            )
        hidden = replace(full, altered=Alteration(attention=least_attended(self.share, self.layer)))
        return Contrast(full, hidden, ContrastRule(self.alpha, self.beta))


class _Hidden(threading.local):
    """What a thread's pass hides from its later layers, `(R, Q, K)`."""

    columns: Tensor | None = None


def least_attended(share: float, layer: int) -> AttentionChange:
    """Hides, from a layer on, all image columns but those that are attended to least in the layer before.

    Args:
        share: of a row's image columns, those that stay, rounded and at least one.
        layer: the first in which the others are hidden.
    """
    import torch

    hidden = _Hidden()

    def hide(logits: Tensor, number: int, columns: Columns) -> Tensor:
        if number < layer - 1:
            return logits
        if number == layer - 1:
            hidden.columns = _most_attended(logits.softmax(dim=-1).mean(dim=1), columns.image, share)
            return logits
        assert hidden.columns is not None
        logits = logits.masked_fill(hidden.columns[:, None].to(logits.device), torch.finfo(logits.dtype).min)
        # What is left with nothing to see sees all alike, but no padding.
        read = torch.nn.functional.pad(columns.read, (0, logits.shape[-1] - columns.read.shape[1]), value=True)
        return logits.masked_fill(~read[:, None, None], float("-inf"))

    return hide


def _most_attended(attention: Tensor, image: Tensor, share: float) -> Tensor:
    """Image columns without the share of them that each query attends to least, `(R, Q, K)`, boolean.

    What stands within the prompt has the choice of its last column.

    Args:
        attention: `(R, Q, K)`.
        image: `(R, L)`, the prompt's image columns; the first of the K columns.
        share: of them.
    """
    import torch

    prompt, (queries, keys) = image.shape[1], attention.shape[1:]
    asked = torch.arange(keys - queries, keys, device=attention.device).clamp(min=prompt - 1) - (keys - queries)
    attention = attention[:, asked]
    image = torch.nn.functional.pad(image, (0, keys - prompt))[:, None]  # (R, 1, K)
    ranks = attention.masked_fill(~image, float("inf")).argsort(dim=-1, stable=True).argsort(dim=-1)  # (R, Q, K)
    stay = (image.sum(dim=-1, keepdim=True) * share).round().clamp(min=1)
    return image & (ranks >= stay)
