"""Which image columns the language model reads when it chooses each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from damro.decoding.altering import reading
from damro.decoding.branches.encoder_decoder import start_tokens
from damro.decoding.branches.kv import keeps_columns, roomy_cache
from damro.decoding.compat import CACHE
from damro.decoding.families import check_inputs, family_of, unwrap
from damro.decoding.families.base import is_encoder_decoder
from damro.decoding.prompts import Prompt, VisualPrompt
from damro.errors import InputsError, ParameterError, UnsupportedModelError
from damro.inspection.layout import ImageView, encode_with_views, find_view
from damro.inspection.plain import Plain
from damro.inspection.rows import Rows, recording_rows


@dataclass(frozen=True)
class DecoderInspection(Plain):
    """Attention of the generated tokens to the image, averaged over heads.

    Row t is the attention with which token t was *chosen*: that of the position before it, as in the
    `attentions[t]` that ``generate`` returns.

    Attributes:
        tokens: `(T,)`, the generated tokens.
        layers: numbers of the N layers looked at, from 0.
        columns: `(N, T, I)`, share of the softmax over all visible columns that each image column gets.
        views: how image columns lie in the images.
    """

    tokens: Tensor
    layers: tuple[int, ...]
    columns: Tensor
    views: tuple[ImageView, ...]

    def maps(self, view: str = "image", image: int = 0) -> Tensor:
        """`(N, T, rows, columns)`: the attention laid out over an image.

        Args:
            view: "image", or "tiles" for LLaVA-NeXT's finer grid.
            image: the image's number in the prompt.

        Raises:
            InputsError: if there is no such view.
        """
        return find_view(self.views, view, image).read(self.columns)

    @property
    def image_share(self) -> Tensor:
        """`(N, T)`: how much of the attention all image columns get together."""
        return self.columns.sum(dim=-1)


def inspect_decoder(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    tokens: Tensor,
    layers: Sequence[int] | None = None,
) -> DecoderInspection:
    """Replays generated tokens in one pass and keeps where in the image each was looking.

    Weights are looked at where transformers lets attention functions be exchanged, for this thread alone, so this works
    under any attention implementation; of a layer only the rows of the generated tokens and the image columns are kept.

    Args:
        model: a supported LVLM.
        inputs: what its processor returned for one prompt.
        tokens: `(T,)`, what was generated, by whatever method; no padding.
        layers: layers of the language model, negative counts from the end; None takes all.

    Raises:
        InputsError: if there is more than one prompt, or no token.
        ParameterError: if there is no such layer.
        UnsupportedModelError: if the family or the language model's attention is not supported.
    """
    prompt, views = single_prompt(model, inputs)
    numbers = resolve_layers(model, layers)
    replayed = replay(model, prompt, tokens, numbers)
    return DecoderInspection(tokens.cpu(), numbers, replayed.columns, views)


def resolve_layers(model: PreTrainedModel, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers, from 0, of the language model's layers that :func:`inspect_decoder` would look at.

    It costs nothing, and refuses what :func:`inspect_decoder` would: call it before the answer is generated.

    Args:
        model: a supported LVLM.
        layers: negative counts from the end; None takes all.

    Raises:
        ParameterError: if there is no such layer.
        UnsupportedModelError: if the language model's attention is not supported.
    """
    count = len(decoder_layers(model))
    for layer in layers or ():
        if not -count <= layer < count:
            raise ParameterError(
                f"layers must name some of the language model's {count} layers (0 to {count - 1}), got {layer}"
            )
    numbers = tuple(range(count)) if layers is None else tuple(layer % count for layer in layers)
    if not numbers:
        raise ParameterError(f"layers must name at least one of the language model's {count} layers, got none")
    return numbers


class Replay(NamedTuple):
    """One pass over a prompt and tokens: `logits (T, V)` of each token, `columns (N, T, I)` of attention."""

    logits: Tensor
    columns: Tensor


@torch.no_grad()
def single_prompt(model: PreTrainedModel, inputs: Mapping[str, Any]) -> tuple[Prompt, tuple[ImageView, ...]]:
    """The prompt the model reads, and where its image columns lie.

    Raises:
        InputsError: if there is more than one prompt.
    """
    family = family_of(model)
    check_inputs(model, inputs)
    if len(inputs["input_ids"]) != 1:
        raise InputsError(f"inputs must hold one prompt, got {len(inputs['input_ids'])}; inspect them one by one")
    encoding, views = encode_with_views(model, inputs)
    return family.full_prompt(model, inputs, encoding), views


@torch.no_grad()
def replay(model: PreTrainedModel, prompt: Prompt, tokens: Tensor, layers: Sequence[int] = ()) -> Replay:
    """Feeds a prompt, and then the tokens that followed it.

    Of an encoder-decoder there are the logits only: no layer of its decoder can be named in `layers`.

    Args:
        model: a supported LVLM.
        prompt: one row, the full prompt or a negative one.
        tokens: `(T,)`, T >= 1.
        layers: the layers whose attention is kept.

    Raises:
        InputsError: if there is no token.
        UnsupportedModelError: if the attention of a layer cannot be kept.
    """
    if tokens.ndim != 1 or not len(tokens):
        raise InputsError(
            f"tokens must be one row (T,) of at least one generated token, got shape {tuple(tokens.shape)}; "
            "cut the prompt and the padding off what generate returned"
        )
    decoder: Any = family_of(model).decoder(model)
    if isinstance(prompt, VisualPrompt) and is_encoder_decoder(decoder) and not layers:
        columns = torch.empty(0, len(tokens), int(prompt.image_mask.sum()))
        return Replay(_answer_logits(decoder, prompt, tokens), columns)
    if layers and prompt.altered is not None:
        raise UnsupportedModelError(
            "method must leave the language model's attention alone for it to be looked at, got one that works inside; "
            "look at another method, or at the model itself"
        )
    image = prompt.image_mask[0].nonzero().flatten()
    modules = [decoder_layers(model)[number].self_attn for number in layers]
    with recording_rows(_language_model(model), modules, image) as recorded, reading(decoder, prompt):
        logits = _causal_logits(model, decoder, prompt, tokens, recorded)
    empty = torch.empty(0, len(tokens), len(image))
    return Replay(logits, torch.stack(recorded.joined()) if layers else empty)


def _causal_logits(model: Any, decoder: Any, prompt: Prompt, tokens: Tensor, recorded: Rows) -> Tensor:
    """`(T, V)`: the logits of every token of an answer behind a prompt: of the first the prompt's, of others one run's.

    A prompt is read as ``generate`` reads it, with all that a model does to it in one pass.
    """
    if not keeps_columns(decoder):
        raise UnsupportedModelError(
            "language model must attend in every layer for its answers to be replayed, got "
            f"{type(decoder.get_decoder()).__name__}, which keeps states"
        )
    cache = roomy_cache()
    with recorded.last(1):
        first: Any = decoder(**prompt.first_inputs(), use_cache=True, logits_to_keep=1, **{CACHE: cache})
    if len(tokens) == 1:
        return _on_cpu(first)
    mask, start = prompt.attention_mask, prompt.next_position[:, None]
    fed = tokens[None, :-1].to(mask.device)
    following: Any = decoder(
        **prompt.next_inputs(fed, model.get_input_embeddings()),
        attention_mask=torch.cat([mask, mask.new_ones(fed.shape)], dim=-1),
        position_ids=start + torch.arange(fed.shape[1], device=start.device),
        use_cache=True,
        **{CACHE: cache},
    )
    return torch.cat([_on_cpu(first), _on_cpu(following)])


def _on_cpu(output: Any) -> Tensor:
    """`(T, V)`: the logits of a single prompt."""
    logits: Tensor = output.logits[0].float().cpu()
    return logits


def _answer_logits(decoder: Any, prompt: VisualPrompt, tokens: Tensor) -> Tensor:
    """`(T, V)`: the logits of every token of an encoder-decoder's answer, which stands behind a start token."""
    fed = torch.cat([start_tokens(decoder, 1).to(tokens.device), tokens[None, :-1]], dim=-1)
    output: Any = decoder(
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        decoder_input_ids=fed.to(prompt.inputs_embeds.device),
        use_cache=False,
    )
    return _on_cpu(output)


def _language_model(model: Any) -> nn.Module:
    module: nn.Module = unwrap(model).get_decoder()
    return module


def decoder_layers(model: PreTrainedModel) -> Any:
    """The transformer layers of the language model.

    Raises:
        UnsupportedModelError: if they do not attend by queries and keys alone, each in its `self_attn`.
    """
    decoder: Any = _language_model(model)
    layers: Any = getattr(decoder, "layers", ())
    attention = [getattr(layer, "self_attn", None) for layer in layers]
    capped = any(getattr(one, "attn_logit_softcapping", None) is not None for one in attention)
    if not attention or None in attention or capped:
        raise UnsupportedModelError(
            "language model must attend in every layer, by queries and keys alone and without soft-capped scores "
            f"(LLaMA, Mistral, Vicuna, Qwen, Gemma 3), got {type(decoder).__name__}"
        )
    return layers
