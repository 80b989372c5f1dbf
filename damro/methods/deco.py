"""DeCo: an earlier layer that is surer of one of the likely tokens is added to the last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from damro.decoding.errors import ParameterError
from damro.methods.base import INSIDE, Cost, Method, Scene
from damro.methods.layers import check_layers, layer_numbers
from damro.parameters import Range, Strength, check_fields

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.branches.readout import LayerHead
    from damro.decoding.rules import Contrast

Tokens = Annotated[int, Range(1, hint="20 is what DeCo was released with")]
Mass = Annotated[float, Range(0, 1, above=True, hint="0.9 is what DeCo was released with")]
_FIRST, _LAST, _OF = 20, 28, 32


@dataclass(frozen=True)
class DeCo(Method):
    """An earlier layer's logits added to the last one's (DeCo, ICLR 2025, eq. 4 to 6).

    The candidate tokens are the likeliest of the last layer, of which the layer is chosen that gives one of them the
    highest probability p, read through the model's own norm and output layer. The scores are those of
    `f + alpha p g` among the candidates, f the last layer's logits and g the chosen one's. Defaults are those of the
    released scripts. Theirs takes one prompt at a time (or beams); here every row chooses by itself. ``generate``'s
    own processors stand in front of it, in the released code behind it.

    Attributes:
        alpha: weight of the earlier layer.
        threshold_top_k: the most candidate tokens there are.
        threshold_top_p: how much probability they hold together, at which no more are taken.
        layers: among which is chosen, numbers and ranges with commas between, 0 for the embeddings and i for the
            output of the i-th layer; none takes those as deep as 20 to 28 of 32, which are the released ones.
    """

    name: ClassVar = "deco"
    source: ClassVar = "DeCo, ICLR 2025, arXiv 2410.11779; github.com/zjunlp/Deco, generation/utils.py"
    cost: ClassVar = Cost(memory="logits of the candidate layers")
    limits: ClassVar = (*INSIDE, "the last layer as a candidate")
    code: ClassVar = "github.com/zjunlp/Deco"

    alpha: Strength = 0.6
    threshold_top_k: Tokens = 20
    threshold_top_p: Mass = 0.9
    layers: str | None = None

    def __post_init__(self) -> None:
        """Checks the parameters.

        Raises:
            ParameterError: one is out of its range, or the layers are no numbers.
        """
        super().__post_init__()
        if self.layers is not None:
            check_layers(self.layers)

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the weighted logits of the layer that is chosen in its own pass."""
        import torch

        from damro.decoding.altering import layers_of
        from damro.decoding.branches.readout import LayersReadout
        from damro.decoding.families import family_of
        from damro.decoding.rules import Contrast

        depth = len(layers_of(family_of(model).decoder(model)))
        layers = self.layers or f"{_FIRST * depth // _OF}-{_LAST * depth // _OF}"
        rule = DeCoRule(self.threshold_top_k, self.threshold_top_p)

        def anchor(states: Sequence[Tensor], full: Tensor, head: LayerHead) -> Tensor:
            early = torch.stack([head(one).to(full.device) for one in states])
            return self.alpha * surest_layer(early, rule.candidates(full))

        readout = LayersReadout([number - 1 for number in layer_numbers(layers, depth)], anchor)
        return Contrast(scene.full_prompt(model, inputs, scene.look(model, inputs)), readout, rule)


def surest_layer(early: Tensor, candidates: Tensor) -> Tensor:
    """Logits of the layer that is surest of a candidate, times the probability that it gives it.

    Args:
        early: `(layers, R, V)`, logits.
        candidates: `(R, V)`, True for the tokens that count.

    Returns:
        `(R, V)`.

    Example:
        >>> import torch
        >>> early = torch.tensor([[[0.0, 0.0]], [[0.0, 40.0]]])
        >>> surest_layer(early, torch.tensor([[True, True]])).tolist()
        [[0.0, 40.0]]
        >>> surest_layer(early, torch.tensor([[True, False]])).tolist()
        [[0.0, 0.0]]
    """
    import torch

    sure = early.softmax(dim=-1).masked_fill(~candidates, 0).amax(dim=-1)  # (layers, R)
    best, layer = sure.max(dim=0)
    return best.unsqueeze(-1) * early[layer, torch.arange(len(layer), device=early.device)]


@dataclass(frozen=True)
class DeCoRule:
    """`log_softmax(f + n)` over the likeliest tokens, which are those of a nucleus, but not more than so many.

    Attributes:
        top_k: the most there are.
        top_p: how much probability they hold together, at which no more are taken.

    Raises:
        ParameterError: if one is out of range.

    Example:
        >>> import torch
        >>> rule, full = DeCoRule(top_k=2, top_p=0.9), torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.05, 0.95]]).log()
        >>> rule.candidates(full).tolist()
        [[False, True, True], [False, False, True]]
    """

    top_k: Tokens = 20
    top_p: Mass = 0.9

    def __post_init__(self) -> None:
        """Checks the parameters."""
        check_fields(self, ParameterError)

    def candidates(self, full: Tensor) -> Tensor:
        """`(R, V)`, True for the likeliest tokens of logits `(R, V)`."""
        import torch

        likely, tokens = full.float().softmax(dim=-1).topk(min(self.top_k, full.shape[-1]), dim=-1)
        before = likely.cumsum(dim=-1).roll(1, dims=-1)
        before[:, 0] = 0
        return torch.zeros_like(full, dtype=torch.bool).scatter(-1, tokens, before < self.top_p)

    def needed(self, full: Tensor, step: int | Tensor) -> Tensor:
        """The candidates, where there is more than one."""
        from damro.decoding.rules import unless_alone

        return unless_alone(self.candidates(full))

    def __call__(self, full: Tensor, negative: Tensor | None, step: int | Tensor) -> Tensor:
        """See the equation above."""
        mixed = full.float() if negative is None else full.float() + negative.float()
        return mixed.masked_fill(~self.candidates(full), float("-inf")).log_softmax(dim=-1)
