"""Which image columns the language model reads when it chooses each token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from damro.decoding.branches.encoder_decoder import start_tokens
from damro.decoding.families import check_inputs, family_of
from damro.decoding.families.base import is_encoder_decoder
from damro.decoding.hooks import Look, hooked
from damro.decoding.prompts import VisualPrompt, embedded
from damro.errors import InputsError, ParameterError, UnsupportedModelError
from damro.inspection.layout import ImageView, encode_with_views, find_view
from damro.inspection.plain import Plain


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

    Queries and keys are taken by hooks that are gone afterwards, so this works under any attention
    implementation; of a layer only the rows of the generated tokens and the image columns are kept.

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
def single_prompt(model: PreTrainedModel, inputs: Mapping[str, Any]) -> tuple[VisualPrompt, tuple[ImageView, ...]]:
    """The prompt the model reads, and where its image columns lie.

    Raises:
        InputsError: if there is more than one prompt.
    """
    family = family_of(model)
    check_inputs(model, inputs)
    if len(inputs["input_ids"]) != 1:
        raise InputsError(f"inputs must hold one prompt, got {len(inputs['input_ids'])}; inspect them one by one")
    encoding, views = encode_with_views(model, inputs)
    return embedded(family.full_prompt(model, inputs, encoding)), views


@torch.no_grad()
def replay(model: PreTrainedModel, prompt: VisualPrompt, tokens: Tensor, layers: Sequence[int] = ()) -> Replay:
    """Feeds a prompt and the tokens that followed it, once.

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
    if is_encoder_decoder(decoder) and not layers:
        columns = torch.empty(0, len(tokens), int(prompt.image_mask.sum()))
        return Replay(_answer_logits(decoder, prompt, tokens), columns)
    embeds = prompt.inputs_embeds
    fed = model.get_input_embeddings()(tokens[None, :-1].to(embeds.device)).to(embeds.dtype)
    mask = torch.cat([prompt.attention_mask, prompt.attention_mask.new_ones(1, len(tokens) - 1)], dim=-1)
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    image = prompt.image_mask[0].nonzero().flatten()
    with record_rows(model, layers, mask[0].bool(), image, len(tokens)) as kept:
        output: Any = decoder(
            inputs_embeds=torch.cat([embeds, fed], dim=1),
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=len(tokens),
            **prompt.reading(following=len(tokens) - 1),
        )
    rows = [kept[layer] for layer in layers]
    empty = torch.empty(0, len(tokens), len(image))
    return Replay(output.logits[0].float().cpu(), torch.stack(rows) if rows else empty)


def _answer_logits(decoder: Any, prompt: VisualPrompt, tokens: Tensor) -> Tensor:
    """`(T, V)`: the logits of every token of an encoder-decoder's answer, which stands behind a start token."""
    fed = torch.cat([start_tokens(decoder, 1).to(tokens.device), tokens[None, :-1]], dim=-1)
    output: Any = decoder(
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        decoder_input_ids=fed.to(prompt.inputs_embeds.device),
        use_cache=False,
    )
    logits: Tensor = output.logits[0].float().cpu()
    return logits


def decoder_layers(model: PreTrainedModel) -> Any:
    """The transformer layers of the language model.

    Raises:
        UnsupportedModelError: if their queries and keys are not where LLaMA-like models have them.
    """
    lvlm: Any = model
    decoder = lvlm.get_decoder()
    layers: Any = getattr(decoder, "layers", ())
    attention = getattr(layers[0], "self_attn", None) if len(layers) else None
    plain = all(hasattr(attention, name) for name in ("q_proj", "k_proj", "scaling", "head_dim"))
    capped = getattr(attention, "attn_logit_softcapping", None) is not None
    if not plain or capped or hasattr(attention, "q_norm"):
        raise UnsupportedModelError(
            "language model must have q_proj and k_proj with rotary positions, without soft-capped scores "
            f"(LLaMA, Mistral, Vicuna, Qwen2, Gemma), got {type(decoder).__name__}"
        )
    return layers


@contextmanager
def record_rows(
    model: PreTrainedModel, layers: Sequence[int], read: Tensor, image: Tensor, rows: int
) -> Iterator[dict[int, Tensor]]:
    """While open, keeps the last rows of some layers' attention to the image columns.

    Args:
        model: a supported LVLM.
        layers: layer numbers.
        read: `(L,)`, True for columns that are no padding.
        image: `(I,)`, the image columns.
        rows: how many rows, counted from the end.

    Yields:
        A dict that is filled, by layer, with `(rows, I)`, float32 on the CPU. Hooks are removed on exit.
    """
    kept: dict[int, Tensor] = {}
    before: list[tuple[nn.Module, Look]] = []
    after: list[tuple[nn.Module, Look]] = []
    length = len(read)
    causal = torch.arange(length)[None] <= torch.arange(length - rows, length)[:, None]
    visible = causal.to(read.device) & read  # (rows, L)
    for number in layers:
        attention = decoder_layers(model)[number].self_attn
        _check_window(attention, length)
        rotary, *outputs = _looks_at_rows(attention, visible, image, kept, number)
        before.append(rotary)
        after += outputs
    with hooked(before=before, after=after):
        yield kept


def _check_window(attention: Any, length: int) -> None:
    """Rows under a sliding window would need another mask."""
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    if window is not None and window < length:
        raise UnsupportedModelError(
            f"prompt and tokens must fit the language model's sliding window of {window}, got {length} columns"
        )


def _looks_at_rows(
    attention: Any, visible: Tensor, image: Tensor, kept: dict[int, Tensor], number: int
) -> list[tuple[nn.Module, Look]]:
    """Modules of one attention, and functions that see what the first reads and what the others put out.

    Queries and keys are dropped as soon as the weights are known.
    """
    parts: dict[str, Any] = {}
    rows = len(visible)

    def rotary(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        parts["rotary"] = kwargs["position_embeddings"]

    def query(module: Any, args: Any, output: Tensor) -> None:
        parts["query"] = output[0, -rows:].view(rows, -1, attention.head_dim)

    def keys(module: Any, args: Any, output: Tensor) -> None:
        parts["keys"] = output[0].view(len(output[0]), -1, attention.head_dim)

    def finish(module: Any, args: Any, output: Any) -> None:
        cos, sin = parts.pop("rotary")
        turned = rotate(parts.pop("query"), cos[0, -rows:], sin[0, -rows:]).float()  # (rows, heads, d)
        held = rotate(parts.pop("keys"), cos[0], sin[0]).float()  # (L, kv heads, d)
        held = held.repeat_interleave(turned.shape[1] // held.shape[1], dim=1)
        logits = torch.einsum("thd,lhd->htl", turned, held) * attention.scaling
        weights = torch.softmax(logits.masked_fill(~visible.to(logits.device), float("-inf")), dim=-1)
        kept[number] = weights[..., image.to(weights.device)].mean(dim=0).cpu()

    return [
        (attention, rotary),
        (attention.q_proj, query),
        (attention.k_proj, keys),
        (attention, finish),
    ]


def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) in the half-split layout of LLaMA.

    Args:
        vectors: `(L, heads, d)`.
        cos: `(L, d)`.
        sin: `(L, d)`.

    Returns:
        `(L, heads, d)`.

    Example:
        >>> import torch
        >>> quarter_turn = torch.zeros(1, 2), torch.ones(1, 2)
        >>> rotate(torch.tensor([[[1.0, 0.0]]]), *quarter_turn).tolist()
        [[[0.0, 1.0]]]
    """
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
