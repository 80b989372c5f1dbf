"""A prompt as the model's own inputs: tokens, and vectors for those of them that stand for images.

Where embedded columns would have to know how a model reads them (vectors that are added in deeper layers, columns of an
image that see each other, embeddings that every layer looks up), tokens leave that to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from damro.decoding.altering import Alteration
from damro.decoding.errors import InputsError, UnsupportedModelError
from damro.decoding.prompts import columns_to_keep, positions_of, take_columns

TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Inputs that say of every token what it is."""

_NOT_READ = ("last_hidden_state", "hidden_states", "attentions", "pooler_output", "deepstack_features")


@dataclass(frozen=True)
class ImageFeatures:
    """Vectors for the image columns of all prompts, from left to right and from the first prompt to the last.

    Attributes:
        kind: class of what the model's `get_image_features` returns.
        pooled: `(N, D)`, the vectors.
        deepstack: for each of some layers `(N, D)`, what the model adds there. Empty in most models.
        as_list: whether the model takes `pooled` as a list with a tensor an image, or as one tensor.
        others: what else it returns and the model reads, such as the vectors of image borders.
    """

    kind: type[Any]
    pooled: Tensor
    deepstack: tuple[Tensor, ...] = ()
    as_list: bool = True
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, output: Any) -> ImageFeatures:
        """The vectors in what the model's `get_image_features` returned.

        Raises:
            UnsupportedModelError: if vectors of deeper layers stand in another form than a list for each layer.
        """
        deep = output.get("deepstack_features")
        if deep is not None and len(deep) and not isinstance(deep[0][0], Tensor):
            raise UnsupportedModelError(
                "model must return the vectors of deeper layers as a list of tensors for each, got "
                f"{type(deep[0]).__name__}s in deepstack_features of {type(output).__name__}"
            )
        return cls(
            type(output),
            flat(output.pooler_output),
            tuple(flat(layer) for layer in deep or ()),
            not isinstance(output.pooler_output, Tensor),
            {key: value for key, value in output.items() if key not in _NOT_READ},
        )

    def rows(self, numbers: Tensor) -> ImageFeatures:
        """Some of the vectors, in the order of their numbers `(n,)`."""
        numbers = numbers.to(self.pooled.device)
        return replace(
            self,
            pooled=self.pooled[numbers],
            deepstack=tuple(layer[numbers.to(layer.device)] for layer in self.deepstack),
        )

    def inputs(self, columns: Sequence[int]) -> dict[str, Any]:
        """What the model is given of them: `mm_encoder_outputs`; nothing if there are none.

        Args:
            columns: of each prompt, how many image columns it has. In this form ``generate`` can repeat prompts.
        """
        if not len(self.pooled):
            return {}
        sizes = [size for size in columns if size]
        pooled: Any = list(torch.split(self.pooled, sizes)) if self.as_list else self.pooled.unsqueeze(1)
        told = {"pooler_output": pooled, **self.others}
        if self.deepstack:
            told["deepstack_features"] = [list(torch.split(layer, sizes)) for layer in self.deepstack]
        return {"mm_encoder_outputs": {"image": self.kind(**told)}}


def repeated(output: Any, copies: int) -> Any:
    """What `get_image_features` would have returned of so many copies of the images, from what it returned of one.

    Tensors and lists have images in front; what is read beside vectors of columns is of no image.
    """
    more = {"pooler_output": _copies(output.pooler_output, copies)}
    if output.get("deepstack_features"):
        more["deepstack_features"] = [_copies(layer, copies) for layer in output["deepstack_features"]]
    return type(output)(**{**output, **more})


def _copies(features: Any, copies: int) -> Any:
    return torch.cat([features] * copies) if isinstance(features, Tensor) else list(features) * copies


def flat(features: Any) -> Tensor:
    """Vectors `(N, D)` of a tensor `(..., D)`, or of a list of such tensors.

    Example:
        >>> import torch
        >>> flat([torch.zeros(2, 4), torch.zeros(1, 3, 4)]).shape
        torch.Size([5, 4])
    """
    return torch.cat([feature.reshape(-1, feature.shape[-1]) for feature in features])


@dataclass(frozen=True)
class TokenPrompt:
    """What :class:`damro.decoding.prompts.VisualPrompt` is, as tokens and image features.

    Attributes:
        tokens: `(B, L)`.
        attention_mask: `(B, L)`, 1 for columns that are read and 0 for padding.
        image_mask: `(B, L)`, True where a token stands for a vector of an image.
        features: of all image columns.
        types: by its name, what says of every token what it is, `(B, L)`; see :data:`TYPES`.
        coordinates: `(axes, B, L)`, where columns stand in models with several positions for each (M-RoPE): text one
            behind the other, patches in time, height and width. None if a column's position is its number.
        extra: what ``generate`` is given beside, to make out where columns stand.
        altered: as of a visual prompt.
    """

    tokens: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    features: ImageFeatures
    types: Mapping[str, Tensor] = field(default_factory=dict)
    coordinates: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    altered: Alteration | None = None

    bidirectional = False
    in_one_pass = True

    def __post_init__(self) -> None:
        """Checks that there is a vector for every image column.

        Raises:
            InputsError: if there are more or less.
        """
        columns, vectors = int(self.image_mask.sum()), len(self.features.pooled)
        if columns != vectors:
            raise InputsError(
                f"inputs: image tokens in input_ids must match the image features, got {columns} tokens for "
                f"{vectors} features; pass what the model's own processor returned, unchanged"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the image's columns."""
        return self.features.pooled.dtype

    @property
    def position_ids(self) -> Tensor:
        """`(B, L)`, compact positions, or `(axes, B, L)`."""
        return positions_of(self.attention_mask) if self.coordinates is None else self.coordinates

    @property
    def next_position(self) -> Tensor:
        """`(B,)`, the position of the token behind each row: one more than the highest on any axis."""
        if self.coordinates is None:
            return self.attention_mask.sum(dim=-1)
        unread = self.attention_mask.to(self.coordinates.device) == 0
        return self.coordinates.masked_fill(unread, -1).amax(dim=(0, 2)) + 1

    def first_inputs(self) -> dict[str, Any]:
        """What the model is given to read the prompt in one pass, beside a cache."""
        mask = self.attention_mask
        return {
            "input_ids": self.tokens,
            # Without padding no mask is needed, and attention kernels are faster without one.
            "attention_mask": None if bool(mask.all()) else mask,
            "position_ids": self.position_ids,
            **self.types,
            **self._features(),
        }

    def next_inputs(self, tokens: Tensor, embed: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What it is given of tokens `(R, T)` behind the prompt, beside mask, positions and cache."""
        return {"input_ids": tokens}

    def generate_inputs(self) -> dict[str, Any]:
        """What ``generate`` is given: no pixels, so that no vision tower runs, and nothing that it may change.

        Positions are left to the model as long as no column has been left out.
        """
        told = {"input_ids": self.tokens, "attention_mask": self.attention_mask, **self.types, **self.extra}
        return told | self._features()

    def _features(self) -> dict[str, Any]:
        return self.features.inputs(self.image_mask.sum(dim=-1).tolist())

    def keep(self, indices: Sequence[Tensor]) -> TokenPrompt:
        """Keeps only some image columns, in the order given, see :meth:`VisualPrompt.keep`.

        Columns keep their coordinates, if they have any, so that a prompt of all columns is the same again.

        Args:
            indices: for each row, the ordinals of the image columns to keep.

        Raises:
            InputsError: if a row is missing or an ordinal does not name an image column.
        """
        rows = columns_to_keep(self.image_mask, self.attention_mask, indices)
        number = self.image_mask.flatten().cumsum(0).view_as(self.image_mask) - 1
        kept = [number[row, columns][self.image_mask[row, columns]] for row, columns in enumerate(rows)]
        return TokenPrompt(
            take_columns(self.tokens, rows),
            take_columns(self.attention_mask, rows),
            take_columns(self.image_mask, rows),
            self.features.rows(torch.cat(kept)),
            {name: take_columns(table, rows) for name, table in self.types.items()},
            None if self.coordinates is None else take_columns(self.coordinates, rows),
        )

    def drop_image(self) -> TokenPrompt:
        """The text alone, with the positions that the model gives to text: one behind the other."""
        none = torch.empty(0, dtype=torch.long)
        text = self.keep([none] * len(self.tokens))
        if text.coordinates is None:
            return text
        return replace(text, coordinates=positions_of(text.attention_mask).expand_as(text.coordinates))

    def repeat(self, copies: int) -> TokenPrompt:
        """Every row so many times, one copy behind the other."""
        vectors = torch.split(torch.arange(len(self.features.pooled)), self.image_mask.sum(dim=-1).tolist())
        return replace(
            self,
            tokens=self.tokens.repeat_interleave(copies, dim=0),
            attention_mask=self.attention_mask.repeat_interleave(copies, dim=0),
            image_mask=self.image_mask.repeat_interleave(copies, dim=0),
            features=self.features.rows(torch.cat([one.repeat(copies) for one in vectors])),
            types={name: table.repeat_interleave(copies, dim=0) for name, table in self.types.items()},
            coordinates=None if self.coordinates is None else self.coordinates.repeat_interleave(copies, dim=1),
        )
