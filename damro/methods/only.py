"""ONLY: one layer's attention without what looks at the image most, as other logits of the same pass."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.methods.base import ATTENTION, Cost, Method, Scene
from damro.methods.presets import Task
from damro.parameters import Cutoff, Range, Strength, check_fields

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.altering import Columns
    from damro.decoding.branches.readout import LayerHead
    from damro.decoding.rules import Contrast

Distance = Annotated[float, Range(0, 2, hint="0.2 and 0.25 are those of the released scripts")]
Layer = Annotated[int, Range(0)]
_GAMMAS = {"pope": 0.2, "chair": 0.25, "mme": 0.25}
_GAMMA = 0.1
_BETAS = {"mme": 0.4}
_BETA = 0.1
_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_OF_LAST, _OF_FULL = 0.2, 0.5
"""The released code's own weights of the last layer's input, and of the model's last state."""
_EPSILON = 1e-6


@dataclass(frozen=True)
class Only(Method):
    """Logits of one layer's text-led attention, added or subtracted (ONLY, ICCV 2025).

    In one layer, what the last column attends to is changed beside the pass: weights on the text that lie above their
    mean by more than a standard deviation are dropped, those on the image likewise, and then all of the heads whose
    ratio of text entropy to image entropy is below the mean of the heads. What the layer's output projection makes of
    it goes past the layers between into the last one's MLP, and n are the logits of its end. With
    `t = sum |softmax(f) - softmax(n)|` the scores are those of `f + alpha_pos n` where t < gamma, else of
    `(1 + alpha_neg) f - alpha_neg n`, over the plausible tokens. As in the released code, the token that begins a text
    in front of an image takes no part, and a fifth of the last layer's input and half of the model's last state are
    added on the way. That code reads one prompt at a time, and tells the image by LLaVA-1.5's columns; here every row
    and every image counts for itself.

    Attributes:
        alpha_pos: weight of n where it is close.
        alpha_neg: strength of the contrast where it is not.
        gamma: how far apart the two may be to be called close; none takes the released scripts': 0.2 for pope, 0.25
            for chair and mme, else 0.1.
        beta: plausibility cutoff; none takes the released scripts': 0.4 for mme, else 0.1.
        layer: whose attention is changed, counted from 0.
        normed: whether what it gives goes through the last layer's first norm; none does as the released code: not in
            InstructBLIP, but in every other model.
    """

    name: ClassVar = "only"
    source: ClassVar = "ONLY, ICCV 2025, arXiv 2507.00898; github.com/zifuwan/ONLY, modeling_llama.py, only_sample.py"
    cost: ClassVar = Cost(memory="one layer's attention; that of all layers is worked out by its definition")
    limits: ClassVar = (*ATTENTION, "layers that are not built as Llama's: two norms, attention and an MLP")
    code: ClassVar = "github.com/zifuwan/ONLY"

    alpha_pos: Strength = 3.0
    alpha_neg: Strength = 1.0
    gamma: Distance | None = None
    beta: Cutoff | None = None
    layer: Layer = 0
    normed: bool | None = None

    def settle(self, family: str, task: Task | None = None, seed: int = 0) -> Self:
        """See :meth:`damro.methods.base.Method.settle`."""
        settled = super().settle(family, task, seed)
        gamma, beta = _GAMMAS.get(task or "", _GAMMA), _BETAS.get(task or "", _BETA)
        return replace(
            settled,
            gamma=gamma if self.gamma is None else self.gamma,
            beta=beta if self.beta is None else self.beta,
            normed=family != "instructblip" if self.normed is None else self.normed,
        )

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and what one layer's changed attention leads to in the same pass."""
        from damro.decoding.altering import Alteration
        from damro.decoding.branches.readout import LayersReadout
        from damro.decoding.families import family_of
        from damro.decoding.inside import check_decoder
        from damro.decoding.rules import Contrast

        assert self.gamma is not None and self.beta is not None and self.normed is not None  # settled
        decoder: Any = family_of(model).decoder(model)
        check_decoder(decoder)
        layers = _layers_like_llama(decoder)
        if self.layer >= len(layers):
            raise ParameterError(
                f"layer must name one of the model's {len(layers)} layers (0 to {len(layers) - 1}), got {self.layer}; "
                "0 is what ONLY was released with"
            )
        side = _SidePass(layers[self.layer], layers[-1], self.layer, normed=self.normed)
        full: Any = scene.full_prompt(model, inputs, scene.look(model, inputs))
        altered = replace(full, altered=Alteration(look=side.look))
        readout = LayersReadout([len(layers) - 2, len(layers) - 1], side.logits)
        return Contrast(altered, readout, OnlyRule(self.alpha_pos, self.alpha_neg, self.gamma, self.beta))


def _layers_like_llama(decoder: Any) -> Any:
    """The layers, each of which adds its attention and its MLP to its states, a norm in front of either."""
    from damro.decoding.altering import layers_of

    layers = layers_of(decoder)
    for layer in layers:
        parts: Any = layer
        named = {name for name, _ in layer.named_children()}
        if named != _PARTS or not hasattr(parts.self_attn, "o_proj") or hasattr(layer, "residual_multiplier"):
            raise UnsupportedModelError(
                f"language model must have layers of {', '.join(sorted(_PARTS))} for only, got {type(layer).__name__} "
                f"of {', '.join(sorted(named))}; use another method, such as vcd or m3id"
            )
    return layers


class _Seen(threading.local):
    """What a thread's last pass attended to, changed: `(R, heads * d)`."""

    attended: Tensor | None = None


class _SidePass:
    """From the attention of one layer to logits, past the layers between."""

    def __init__(self, layer: Any, last: Any, number: int, *, normed: bool) -> None:
        self._layer, self._last, self._number, self._normed = layer, last, number, normed
        self._seen = _Seen()

    def look(self, logits: Tensor, value: Tensor, layer: int, columns: Columns) -> None:
        """Keeps what the last column of each row attends to without what is dropped."""
        if layer != self._number:
            return
        image, text = _parts_of(columns, logits.shape[-1])
        weights = text_led(logits[:, :, -1].float().softmax(dim=-1), image, text).to(value.dtype)
        self._seen.attended = (weights.unsqueeze(-2) @ value).flatten(1)  # (R, heads * d)

    def logits(self, states: Sequence[Tensor], full: Tensor, head: LayerHead) -> Tensor:
        """See :attr:`damro.decoding.branches.readout.Readout.logits`: of the last layer's input and output."""
        entering, leaving = states
        attended = self._seen.attended
        assert attended is not None  # every pass over the prompt is looked at
        side: Tensor = self._layer.self_attn.o_proj(attended).to(entering.device)
        last = self._last
        side = (last.input_layernorm(side) if self._normed else side) + _OF_LAST * entering
        side = side + last.mlp(last.post_attention_layernorm(side.unsqueeze(1)))[:, 0]
        return head(head.normed(side) + _OF_FULL * head.normed(leaving), norm=False)


def _parts_of(columns: Columns, keys: int) -> tuple[Tensor, Tensor]:
    """`(R, K)` each: the columns of the image and those of the text, without the token that begins a prompt."""
    from torch.nn.functional import pad

    first = columns.read & (columns.read.cumsum(dim=-1) == 1)
    more = (0, keys - columns.image.shape[-1])
    return pad(columns.image & columns.read, more), pad(columns.read & ~columns.image & ~first, more, value=True)


def text_led(weights: Tensor, image: Tensor, text: Tensor) -> Tensor:
    """Weights of attention without what stands out, and without the heads that spread over the image.

    Args:
        weights: `(R, heads, K)`, of one query.
        image: `(R, K)`, True for columns of an image.
        text: `(R, K)`, True for columns of the text that count.

    Returns:
        `(R, heads, K)`, not normalised again.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.375, 0.125]]])
        >>> image = torch.tensor([[False, False, True, True]])
        >>> text_led(weights, image, ~image)[0].tolist()
        [[0.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.375, 0.125]]
    """
    import torch

    kept, entropies = weights, []
    for part in (text.unsqueeze(1), image.unsqueeze(1)):
        of_part = weights.masked_fill(~part, 0)
        count = part.sum(dim=-1, keepdim=True)
        mean = of_part.sum(dim=-1, keepdim=True) / count
        spread = (((of_part - mean) * part).square().sum(dim=-1, keepdim=True) / (count - 1)).sqrt()
        out = part & (weights > mean + spread)
        kept = kept.masked_fill(out, 0)
        shares = of_part.masked_fill(out, 0)
        shares = shares / shares.sum(dim=-1, keepdim=True)
        entropies.append(-(shares * torch.log(shares + _EPSILON)).sum(dim=-1))  # (R, heads)
    ratio = entropies[0].nan_to_num(nan=0.0) / entropies[1].nan_to_num(nan=float("inf"))
    return kept.masked_fill((ratio < ratio.mean(dim=-1, keepdim=True)).unsqueeze(-1), 0)


@dataclass(frozen=True)
class OnlyRule:
    """`log_softmax` of `f + alpha_pos n` or of `(1 + alpha_neg) f - alpha_neg n`, by how far the two are apart.

    Attributes:
        alpha_pos: weight of n where it is close.
        alpha_neg: strength of the contrast where it is not.
        gamma: below which sum of differences of probabilities n is close.
        beta: plausibility cutoff in (0, 1].

    Raises:
        ParameterError: if one is out of range.

    Example:
        >>> import torch
        >>> rule, full = OnlyRule(3.0, 1.0, 0.1, 0.1), torch.tensor([[1.0, 0.0]])
        >>> [round(p, 2) for p in rule(full, full, 0)[0].exp().tolist()]
        [0.98, 0.02]
        >>> [round(p, 2) for p in rule(full, -full, 0)[0].exp().tolist()]
        [0.95, 0.05]
    """

    alpha_pos: Strength = 3.0
    alpha_neg: Strength = 1.0
    gamma: Distance = _GAMMA
    beta: Cutoff = _BETA

    def __post_init__(self) -> None:
        """Checks the parameters."""
        check_fields(self, ParameterError)

    def needed(self, full: Tensor, step: int | Tensor) -> Tensor:
        """All tokens of rows with more than one plausible one: how far apart the two are is a matter of all."""
        from damro.decoding.rules import plausible_tokens, unless_alone

        return unless_alone(plausible_tokens(full, self.beta)).any(dim=-1, keepdim=True).expand_as(full)

    def __call__(self, full: Tensor, negative: Tensor | None, step: int | Tensor) -> Tensor:
        """See the equation above."""
        import torch

        from damro.decoding.rules import plausible_tokens

        mixed = full = full.float()
        if negative is not None:
            other = negative.float()
            apart = (full.softmax(dim=-1) - other.softmax(dim=-1)).abs().sum(dim=-1, keepdim=True)
            added, contrasted = full + self.alpha_pos * other, (1 + self.alpha_neg) * full - self.alpha_neg * other
            mixed = torch.where(apart < self.gamma, added, contrasted)
        return mixed.masked_fill(~plausible_tokens(full, self.beta), float("-inf")).log_softmax(dim=-1)
