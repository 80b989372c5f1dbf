"""DoLa: the model's last layer against an earlier one, chosen anew at every token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from damro.methods.base import INSIDE, Cost, Method, Scene
from damro.methods.layers import check_layers, layer_numbers
from damro.parameters import Cutoff

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.branches.readout import LayerHead
    from damro.decoding.rules import Contrast

Divergence = Literal["released", "jensen-shannon"]
_SHALLOW, _SPAN = 40, 20


@dataclass(frozen=True)
class DoLa(Method):
    """The last layer against an earlier one, that which differs most from it (DoLa, ICLR 2024, eq. 1 to 5).

    At every token and in every row the candidate layer with the greatest divergence from the last one is taken;
    `log_softmax(log p_last - log p_earlier)` over the plausible tokens are the scores. The output layer reads the
    candidates as they are, without the norm that the last layer's states go through, as in the authors' code and in
    transformers'. Differences from both: they choose one layer for all rows of a batch, here a row's answer does not
    depend on its neighbours; a cap or a scale that the model puts on its logits (Gemma 2) is put on the candidates'
    too; scores are normalised. The authors decode with a repetition penalty of 1.2 behind the contrast, while
    ``generate``'s own stands in front of it: for theirs pass
    `logits_processor=[RepetitionPenaltyLogitsProcessor(1.2)]`.

    Attributes:
        layers: the candidates: low or high for every second layer of that half (of models with more than 40 layers
            the first or last 20), or numbers and ranges with commas between, 0 for the embeddings and i for the
            output of the i-th layer, such as "0,2,4". The authors take low for long answers (FACTOR, StrategyQA,
            GSM8K), high for TruthfulQA. Where the output layer is the embeddings' own, low begins at 2, as in
            transformers.
        beta: plausibility cutoff, which the authors call relative_top.
        divergence: released is the mean of the divergences of the two layers' average from either, which is what the
            authors' code computes; jensen-shannon that of either from the average, as the paper says.
    """

    name: ClassVar = "dola"
    source: ClassVar = "DoLa, ICLR 2024, arXiv 2309.03883, eq. 1 to 5; github.com/voidism/DoLa"
    cost: ClassVar = Cost(memory="logits of the candidate layers")
    limits: ClassVar = (*INSIDE, "the last layer as a candidate")
    code: ClassVar = "github.com/voidism/DoLa"

    layers: str = "low"
    beta: Cutoff = 0.1
    divergence: Divergence = "released"

    def __post_init__(self) -> None:
        """Checks the parameters.

        Raises:
            ParameterError: one is out of its range, or the layers are neither a half nor numbers.
        """
        super().__post_init__()
        check_layers(self.layers, "low", "high")

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the logits of its chosen layers."""
        import torch

        from damro.decoding.altering import layers_of
        from damro.decoding.branches.readout import LayersReadout
        from damro.decoding.families import family_of
        from damro.decoding.rules import Contrast, MixRule

        decoder: Any = family_of(model).decoder(model)
        output, embedding = decoder.get_output_embeddings(), decoder.get_input_embeddings()
        candidates = candidate_layers(self.layers, len(layers_of(decoder)), tied=output.weight is embedding.weight)

        def premature(states: Sequence[Tensor], full: Tensor, head: LayerHead) -> Tensor:
            early = torch.stack([head(one, norm=False).to(full.device) for one in states])
            return most_different(full, early, self.divergence)

        readout = LayersReadout([number - 1 for number in candidates], premature)
        full = scene.full_prompt(model, inputs, scene.look(model, inputs))
        return Contrast(full, readout, MixRule(1.0, -1.0, self.beta))


def candidate_layers(layers: str, depth: int, *, tied: bool) -> list[int]:
    """The numbers of the candidate layers, as transformers counts `hidden_states`.

    Args:
        layers: low, high, or numbers.
        depth: layers of the model.
        tied: whether its output layer is that of its embeddings, which then say nothing of the next token.

    Raises:
        ParameterError: if a number is that of the last layer, or of none.

    Example:
        >>> candidate_layers("low", 32, tied=False), candidate_layers("high", 32, tied=True)
        ([0, 2, 4, 6, 8, 10, 12, 14], [16, 18, 20, 22, 24, 26, 28, 30])
        >>> candidate_layers("low", 48, tied=True)
        [2, 4, 6, 8, 10, 12, 14, 16, 18]
    """
    half = depth // 2 if depth <= _SHALLOW else None
    if layers == "low":
        first = min(2, depth - 1) if tied else 0
        return list(range(first, _SPAN if half is None else half, 2)) or [first]
    if layers == "high":
        return list(range(depth - _SPAN if half is None else half, depth, 2))
    return layer_numbers(layers, depth)


def most_different(full: Tensor, early: Tensor, divergence: Divergence = "released") -> Tensor:
    """The logits of the layer that differs most from the last one.

    With p of the last layer, q of an earlier one and `m = (p + q) / 2`, "jensen-shannon" is
    `KL(p, m) / 2 + KL(q, m) / 2` and "released" is `KL(m, p) / 2 + KL(m, q) / 2`.

    Args:
        full: `(R, V)`, logits of the last layer.
        early: `(layers, R, V)`, of the candidates.
        divergence: "released" or "jensen-shannon".

    Returns:
        `(R, V)`, row by row those of one candidate.

    Example:
        >>> import torch
        >>> early = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
        >>> most_different(torch.tensor([[2.0, 0.0]]), early).tolist()
        [[0.0, 3.0]]
    """
    import torch

    if len(early) == 1:
        return early[0]
    last, others = full.float().log_softmax(dim=-1), early.float().log_softmax(dim=-1)
    middle = torch.logaddexp(last, others) - torch.log(torch.tensor(2.0, device=full.device))
    if divergence == "jensen-shannon":
        terms = last.exp() * (last - middle) + others.exp() * (others - middle)
    else:
        terms = middle.exp() * (2 * middle - last - others)
    chosen = (terms.sum(dim=-1) / 2).argmax(dim=0)  # (R,)
    return early[chosen, torch.arange(len(chosen), device=early.device)]
