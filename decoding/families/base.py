"""What a family module offers, and what one run of its vision tower yields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from damro.decoding.errors import InputsError, UnsupportedModelError
from damro.decoding.prompts import Prompt, VisualPrompt, scatter_features

LVLM = Any
"""A model of transformers. Which submodules it has is what a family module knows, not what types can say."""


@dataclass(frozen=True)
class Encoding:
    """One run of the vision tower over the images of a batch.

    Attributes:
        outputs: what the model's `get_image_features` returned.
        features: for each image, the vectors `(columns, D)` that fill its columns of the prompt.
        rows: for each image, the prompt row it stands in.
        tiles: for each image, how many rows of the vision tower's batch are its own (1 without tiling).
        grid: patch rows and patch columns of one tile.
    """

    outputs: Any
    features: Sequence[Tensor]
    rows: Sequence[int]
    tiles: Sequence[int]
    grid: tuple[int, int]


class ColumnPatches(NamedTuple):
    """What fills the columns of one image.

    Attributes:
        patch: `(columns,)`, the patch's number counted through all tiles of the image, `tile * patches + patch`; -1
            for a column that is no patch ([CLS], a newline).
        line: `(columns,)`, the line of patches that a column belongs to. What is no patch belongs to the patches of
            its line.
    """

    patch: Tensor
    line: Tensor


class Family(Protocol):
    """The functions of a family module.

    A family whose patches the released DAMRO code takes beside the ranked ones also has a `REFERENCE_SHIFT`. One whose
    ViT has no [CLS] has `RANKED = "received"`. One that ranks columns rather than patches also has `layers`, `record`,
    `column_weights`, `images_of`, `each_its_image` and `encode_once`, as :mod:`damro.decoding.families.generic` does.
    One whose columns hold several patches each has `prompt_without`, which is like `prompt_of_patches` with the patches
    to leave out; of others their columns are left out.
    One that leaves some models of its type to that module has a function `serves(model)`. One whose processor reads
    videos and no images has `VIDEOS_ALONE = True`.
    """

    REQUIRED_INPUTS: tuple[str, ...]
    """Keys that the processor's output must have beside `input_ids` and the pixels."""

    PIXELS: tuple[str, ...]
    """Keys that pixels may have; the processor's output has one of them."""

    DEFAULT_HEADS: str
    """How the released DAMRO code joins the heads of this family: "merged" or "mean"."""

    POOLED_AS_LIST: bool
    """Whether the model takes image features that are computed already (`mm_encoder_outputs`) as a list with a tensor
    an image, or as one tensor."""

    def vision_tower(self, model: LVLM, inputs: Mapping[str, Any] | None = None) -> nn.Module:
        """The ViT; of a model with one for images and one for videos, that which reads `inputs`."""

    def decoder(self, model: LVLM) -> nn.Module:
        """The language model with its head; called with `inputs_embeds`, which an encoder reads if there is one."""

    def feature_layer(self, model: LVLM, *, reference: bool) -> int:
        """Index of the ViT layer whose [CLS] attention ranks the patches.

        Args:
            model: the model.
            reference: the layer the released code reads, instead of the one whose features the model uses.
        """

    def encode(self, model: LVLM, inputs: Mapping[str, Any]) -> Encoding:
        """Runs the vision tower once over all images."""

    def full_prompt(self, model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> Prompt:
        """The prompt the model itself would read."""

    def prompt_of_patches(self, model: LVLM, inputs: Mapping[str, Any], encoding: Encoding, patches: Tensor) -> Prompt:
        """The prompt whose images consist of some patches only.

        Args:
            model: the model.
            inputs: what the processor returned.
            encoding: the vision tower's run over them.
            patches: `(tiles of all images, k)`, patch numbers in the order they shall stand; tiles the family
                does not use are ignored. Patch -1 is the [CLS] token, where the family's features hold it.
        """

    def column_patches(self, model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> list[ColumnPatches]:
        """Which patch fills each column, image by image.

        Raises:
            UnsupportedModelError: if the family's columns are not patches.
        """


def embed_prompt(model: LVLM, inputs: Mapping[str, Any], encoding: Encoding) -> VisualPrompt:
    """Embeds the text and puts the image features into their columns."""
    ids: Tensor = inputs["input_ids"]
    mask = attention_mask_of(model, inputs).to(ids.device)
    image_mask = image_columns(model, ids)
    # The image token may lie outside of the vocabulary; what it is embedded as is overwritten.
    embeds = model.get_input_embeddings()(ids.masked_fill(image_mask, 0))
    features = torch.cat([feature.to(embeds.device) for feature in encoding.features])
    return VisualPrompt(scatter_features(embeds, image_mask, features), mask, image_mask)


def visual_tokens(model: LVLM) -> dict[str, int]:
    """The tokens that stand for columns of what a model sees, by "image" and "video", as far as it has them."""
    tokens = {kind: getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")}
    return {kind: token for kind, token in tokens.items() if token is not None}


def image_columns(model: LVLM, ids: Tensor) -> Tensor:
    """`(B, L)`, True where a prompt holds an image token, or a video token in models that have one."""
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for token in visual_tokens(model).values():
        mask |= ids == token
    return mask


def encoder_outputs(model: LVLM, ids: Tensor, prompt: VisualPrompt, *, as_list: bool) -> dict[str, Any]:
    """What tells ``generate`` the columns of images (or videos) beside tokens `(B, L)` that say where they stand.

    Args:
        model: the model.
        ids: the tokens of the prompts.
        prompt: the same prompts, embedded; none of its columns may have been left out.
        as_list: see :class:`Family`.
    """
    features = prompt.inputs_embeds[prompt.image_mask]
    # A tensor has equally many columns an image. As images of one column they suit any prompt.
    rows = list(torch.split(features, prompt.image_mask.sum(dim=-1).tolist()))
    pooled: Any = rows if as_list else features.unsqueeze(1)
    modality = next(kind for kind, token in visual_tokens(model).items() if bool((ids == token).any()))
    return {"mm_encoder_outputs": {modality: BaseModelOutputWithPooling(pooler_output=pooled)}}


def other_patches(patches: Tensor, encoding: Encoding) -> Tensor:
    """All tokens of each tile but some of its patches, in their order, [CLS] as -1 in front.

    Args:
        patches: `(tiles, k)`, those to leave out, each once.
        encoding: of the tiles.

    Returns:
        `(tiles, 1 + P - k)`.

    Example:
        >>> import torch
        >>> other_patches(torch.tensor([[3, 0]]), Encoding(None, (), (), (), (2, 2))).tolist()
        [[-1, 1, 2]]
    """
    count = encoding.grid[0] * encoding.grid[1]
    tokens = torch.arange(-1, count, device=patches.device).expand(len(patches), -1)
    stays = torch.ones_like(tokens, dtype=torch.bool).scatter(1, patches + 1, False)
    return tokens[stays].view(len(patches), -1)


def leading_columns(columns: int, grid: tuple[int, int]) -> int:
    """How many columns of a tile stand before its first patch: [CLS] and registers, as far as the model keeps them.

    Args:
        columns: of the tile, counted in what the model made of it.
        grid: patch rows and patch columns of the tile.

    Raises:
        UnsupportedModelError: if there are fewer columns than patches. Of a ViT without [CLS] the feature strategy
            "default" takes the first patch away.

    Example:
        >>> leading_columns(577, (24, 24)), leading_columns(576, (24, 24))
        (1, 0)
    """
    first = columns - grid[0] * grid[1]
    if first < 0:
        raise UnsupportedModelError(
            f"model must have an image column for each of the {grid[0]}x{grid[1]} patches of a tile, got {columns} "
            "columns; with a ViT that has no [CLS] set vision_feature_select_strategy='full'"
        )
    return first


def tile_columns(model: LVLM, encoding: Encoding) -> int:
    """How many columns the model makes of one tile of a tiled image: the ViT's tokens but one with "default"."""
    tokens: int = encoding.outputs.last_hidden_state.shape[1]
    return tokens - int(model.config.vision_feature_select_strategy == "default")


def unwrap(model: LVLM) -> LVLM:
    """The LVLM inside of a `PeftModel`; any other model is returned as it is.

    Adapters such as LoRA are layers of the model inside, so that they count there, too, as long as they are active.

    Raises:
        UnsupportedModelError: if the adapter is more than layers: virtual tokens in front of the prompt, or a pass of
            its own, of which the model inside knows nothing.
    """
    if not (hasattr(model, "get_base_model") and hasattr(model, "peft_config")):
        return model
    for name in model.active_adapters:
        adapter = model.peft_config[name]
        kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
        if adapter.is_prompt_learning or kind == "XLORA" or getattr(adapter, "alora_invocation_tokens", None):
            raise UnsupportedModelError(
                f"model must have adapters that are layers, such as LoRA, got {kind} ({type(adapter).__name__}), which "
                "acts outside of them; merge it or switch it off"
            )
    return model.get_base_model()


def attention_mask_of(model: LVLM, inputs: Mapping[str, Any]) -> Tensor:
    """The mask in `inputs`, or the one that ``generate`` infers where there is none: padding tokens are not read.

    Like ``generate``, it infers nothing if the padding token is unknown or is also an end token.

    Returns:
        `(B, L)`, 1 for columns that are read.
    """
    mask: Tensor | None = inputs.get("attention_mask")
    if mask is not None:
        return mask
    pad, ends = model.generation_config.pad_token_id, model.generation_config.eos_token_id
    return inferred_mask(inputs["input_ids"], pad, ends if isinstance(ends, list) else [ends])


def inferred_mask(ids: Tensor, pad: int | None, ends: Sequence[int | None]) -> Tensor:
    """The mask that ``generate`` infers from tokens `(B, L)` by the padding token; of ones if it cannot tell.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[0, 0, 9]])
        >>> inferred_mask(ids, 0, [2]).tolist(), inferred_mask(ids, 0, [0]).tolist()
        ([[0, 0, 1]], [[1, 1, 1]])
    """
    return torch.ones_like(ids) if pad is None or pad in ends else ids.ne(pad).long()


def is_encoder_decoder(decoder: LVLM) -> bool:
    """Whether a language model has an encoder that reads the prompt."""
    return bool(decoder.config.is_encoder_decoder)


def has_cls(tower: nn.Module) -> bool:
    """Whether a ViT has a [CLS] token, by the parameter that transformers keeps it in."""
    return any(name.rpartition(".")[2] in ("class_embedding", "cls_token") for name, _ in tower.named_parameters())


def rows_of_images(model: LVLM, inputs: Mapping[str, Any], features: Sequence[Tensor]) -> tuple[int, ...]:
    """The prompt row each image stands in, from the number of image tokens in each row.

    With a single prompt there is nothing to tell apart; whether its image tokens are of the right number is
    checked where features are written into them.

    Raises:
        InputsError: if images and rows do not come out even.
    """
    if len(inputs["input_ids"]) == 1:
        return (0,) * len(features)
    left = image_columns(model, inputs["input_ids"]).sum(dim=-1).tolist()
    rows, row = [], 0
    for number, feature in enumerate(features):
        while row < len(left) and left[row] == 0:
            row += 1
        if row == len(left) or left[row] < len(feature):
            raise InputsError(
                f"inputs: image tokens in input_ids must match the images, got no room for the {len(feature)} "
                f"columns of image {number}; pass what the model's own processor returned, unchanged"
            )
        left[row] -= len(feature)
        rows.append(row)
    if any(left):
        raise InputsError(
            f"inputs: image tokens in input_ids must match the images, got {sum(left)} tokens without an image; "
            "pass what the model's own processor returned, unchanged"
        )
    return tuple(rows)


def patch_grid(model_config: Any, pixel_values: Tensor) -> tuple[int, int]:
    """Patch rows and columns of one tile, from the size of the pixels."""
    height, width = pixel_values.shape[-2:]
    size = model_config.vision_config.patch_size
    return height // size, width // size


def clip_feature_layer(model: LVLM) -> int:
    """The CLIP layer that produces `hidden_states[vision_feature_layer]`, counted from 0.

    `hidden_states` has the embeddings in front, so index i >= 0 is the output of layer i - 1. Of several
    feature layers the deepest is taken.

    Raises:
        InputsError: if the model takes its features from the embeddings, which no layer produces.
    """
    depth = int(model.config.vision_config.num_hidden_layers)
    # ViP-LLaVA, which has several, named them in the plural before transformers 5.23.
    chosen = getattr(model.config, "vision_feature_layers", None) or model.config.vision_feature_layer
    indices = [chosen] if isinstance(chosen, int) else list(chosen)
    layer = max(index + depth if index < 0 else index - 1 for index in indices)
    if not 0 <= layer < depth:
        raise InputsError(f"vision_feature_layer must name the output of one of the ViT's {depth} layers, got {chosen}")
    return layer
