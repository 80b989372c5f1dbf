"""A multimodal prompt as a table of columns, and the operations that make one prompt out of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from damro.decoding.altering import Alteration
from damro.decoding.errors import InputsError, UnsupportedModelError


class Prompt(Protocol):
    """What branches know of a prompt, whether it is made of embedded columns or of a model's own inputs.

    See :class:`VisualPrompt` and :class:`damro.decoding.families.generic.prompt.TokenPrompt`.
    """

    @property
    def attention_mask(self) -> Tensor:
        """`(B, L)`, 1 for columns that are read and 0 for padding."""

    @property
    def image_mask(self) -> Tensor:
        """`(B, L)`, True for columns that come from an image."""

    @property
    def altered(self) -> Alteration | None:
        """How the language model is changed while it reads the prompt and what follows; None if not at all."""

    @property
    def bidirectional(self) -> bool:
        """Whether every column is read with all columns of its row in view."""

    @property
    def in_one_pass(self) -> bool:
        """Whether the prompt must be read as a whole, and not its beginning first."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the columns."""

    @property
    def next_position(self) -> Tensor:
        """`(B,)`, the position of the token behind each row."""

    def first_inputs(self) -> dict[str, Any]:
        """What the language model is given to read the prompt in one pass, beside a cache."""

    def next_inputs(self, tokens: Tensor, embed: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What it is given of tokens `(R, T)` behind the prompt, beside mask, positions and cache."""

    def keep(self, indices: Sequence[Tensor]) -> Self:
        """Keeps only some image columns of each row, see :meth:`VisualPrompt.keep`."""

    def drop_image(self) -> Self:
        """The text alone."""

    def repeat(self, copies: int) -> Self:
        """Every row so many times, one copy behind the other."""


@dataclass(frozen=True)
class VisualPrompt:
    """What the language model reads: text columns and image columns, one row a prompt.

    An outlier-only prompt, a pruned prompt and a text-only prompt are all subsets of the columns of the
    full one, so one class with two operations serves every negative view.

    Attributes:
        inputs_embeds: `(B, L, D)`, the embedded columns.
        attention_mask: `(B, L)`, 1 for columns that are read and 0 for padding.
        image_mask: `(B, L)`, True for columns that come from an image.
        bidirectional: whether every column is read with all columns of its row in view, as a prefix language model
            (PaliGemma) reads its prompt, and not only with those before it. What is generated sees what is before it
            in either case.
        altered: how the language model is changed while it reads the prompt and what follows. What is made of some of
            the columns is read as the model reads it.

    Example:
        >>> import torch
        >>> prompt = VisualPrompt(
        ...     inputs_embeds=torch.arange(5.0).reshape(1, 5, 1),
        ...     attention_mask=torch.ones(1, 5, dtype=torch.long),
        ...     image_mask=torch.tensor([[False, True, True, True, False]]),
        ... )
        >>> prompt.keep([torch.tensor([2, 0])]).inputs_embeds.flatten().tolist()
        [0.0, 3.0, 1.0, 4.0]
        >>> prompt.drop_image().inputs_embeds.flatten().tolist()
        [0.0, 4.0]
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    bidirectional: bool = False
    altered: Alteration | None = None

    @property
    def position_ids(self) -> Tensor:
        """`(B, L)`, compact positions: every read column counts one, padding none."""
        return positions_of(self.attention_mask)

    @property
    def lengths(self) -> Tensor:
        """`(B,)`, the number of columns that are read in each row."""
        return self.attention_mask.sum(dim=-1)

    @property
    def next_position(self) -> Tensor:
        """`(B,)`, the position of the token behind each row."""
        return self.lengths

    @property
    def in_one_pass(self) -> bool:
        """Whether the prompt must be read as a whole: columns that see what stands behind them are of one pass."""
        return self.bidirectional

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the columns."""
        return self.inputs_embeds.dtype

    def first_inputs(self) -> dict[str, Any]:
        """What the language model is given to read the prompt in one pass, beside a cache."""
        mask = self.attention_mask
        return {
            "inputs_embeds": self.inputs_embeds,
            # Without padding no mask is needed, and attention kernels are faster without one.
            "attention_mask": None if bool(mask.all()) else mask,
            "position_ids": self.position_ids,
            **self.reading(),
        }

    def next_inputs(self, tokens: Tensor, embed: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What it is given of tokens `(R, T)` behind the prompt, beside mask, positions and cache."""
        return {"inputs_embeds": embed(tokens)}

    def reading(self, following: int = 0) -> dict[str, Tensor]:
        """What the language model is told beside mask and positions when it reads the prompt in one pass.

        Args:
            following: tokens that stand behind the prompt in that pass.

        Returns:
            Nothing if it reads from left to right; else `token_type_ids (B, L + following)`, 0 for the columns that
            see each other and 1 for the tokens behind them, which is how transformers tells PaliGemma.
        """
        if not self.bidirectional:
            return {}
        prompt = torch.zeros_like(self.attention_mask)
        return {"token_type_ids": torch.cat([prompt, prompt.new_ones(len(prompt), following)], dim=-1)}

    def keep(self, indices: Sequence[Tensor]) -> VisualPrompt:
        """Keeps only some image columns, in the order given.

        A kept column stands where its run of image columns stood; several kept columns of one run stand in
        the order of `indices`, which need not be image order (DAMRO's stand in descending attention order).

        Args:
            indices: for each row, the ordinals of the image columns to keep, `0 .. row's image columns - 1`.

        Returns:
            A prompt whose rows are padded on the left to the longest of them.

        Raises:
            InputsError: if a row is missing or an ordinal does not name an image column.
        """
        columns = columns_to_keep(self.image_mask, self.attention_mask, indices)
        return VisualPrompt(
            take_columns(self.inputs_embeds, columns, dim=1),
            take_columns(self.attention_mask, columns),
            take_columns(self.image_mask, columns),
            self.bidirectional,
        )

    def drop_image(self) -> VisualPrompt:
        """Drops every image column: the text alone."""
        none = torch.empty(0, dtype=torch.long, device=self.image_mask.device)
        return self.keep([none] * len(self.image_mask))

    def repeat(self, copies: int) -> VisualPrompt:
        """Every row so many times, one copy behind the other."""
        return replace(
            self,
            inputs_embeds=self.inputs_embeds.repeat_interleave(copies, dim=0),
            attention_mask=self.attention_mask.repeat_interleave(copies, dim=0),
            image_mask=self.image_mask.repeat_interleave(copies, dim=0),
        )

    def replace_image(self, features: Tensor) -> VisualPrompt:
        """Puts other vectors into the image columns, row by row and from left to right.

        Args:
            features: any shape `(..., D)` with as many vectors as there are image columns.
        """
        return replace(self, inputs_embeds=scatter_features(self.inputs_embeds, self.image_mask, features))


def embedded(prompt: Prompt) -> VisualPrompt:
    """The same prompt, for what needs its columns as vectors.

    Raises:
        UnsupportedModelError: if it is made of tokens.
    """
    if not isinstance(prompt, VisualPrompt):
        raise UnsupportedModelError(
            "model must be of a family whose prompts are made of embedded columns, such as LLaVA, got one with prompts "
            "of tokens"
        )
    return prompt


def columns_to_keep(image_mask: Tensor, attention_mask: Tensor, indices: Sequence[Tensor]) -> list[Tensor]:
    """The columns that stay of each row, in their new order: its text, and some of its image columns.

    Args:
        image_mask: `(B, L)`.
        attention_mask: `(B, L)`.
        indices: for each row, the ordinals of the image columns to keep; see :meth:`VisualPrompt.keep`.

    Raises:
        InputsError: if a row is missing or an ordinal does not name an image column.
    """
    if len(indices) != len(image_mask):
        raise InputsError(f"indices must have one tensor a row: got {len(indices)} for {len(image_mask)} rows")
    rows = zip(image_mask, attention_mask, indices, strict=True)
    return [_columns_of_row(image, mask, kept, row) for row, (image, mask, kept) in enumerate(rows)]


def _columns_of_row(is_image: Tensor, mask: Tensor, kept: Tensor, row: int) -> Tensor:
    image_columns = is_image.nonzero().flatten()
    kept = kept.to(image_columns.device)
    if kept.numel() and not (0 <= int(kept.min()) and int(kept.max()) < len(image_columns)):
        raise InputsError(
            f"indices must be ordinals of the row's {len(image_columns)} image columns: "
            f"got {kept.tolist()} for row {row}"
        )
    chosen = image_columns[kept]
    text = (~is_image & mask.bool()).nonzero().flatten()
    # A run of image columns is named by its first column. A stable sort by that name puts every chosen
    # column where its run stood and leaves the order within a run as it was asked for.
    starts = is_image & ~torch.roll(is_image, 1)
    starts[0] = is_image[0]
    column = torch.arange(len(is_image), device=is_image.device)
    run_start = torch.where(starts, column, -1).cummax(dim=0).values
    columns = torch.cat([text, chosen])
    return columns[torch.argsort(torch.cat([text, run_start[chosen]]), stable=True)]


def take_columns(table: Tensor, rows: Sequence[Tensor], dim: int = -1) -> Tensor:
    """Takes some columns of each row, and pads on the left with zeros.

    Args:
        table: something of every column. Its rows are the dimension in front of `dim`.
        rows: for each row, the columns to take.
        dim: the dimension of columns.

    Example:
        >>> import torch
        >>> take_columns(torch.tensor([[5, 6, 7], [8, 9, 3]]), [torch.tensor([2, 0]), torch.tensor([1])]).tolist()
        [[7, 5], [0, 9]]
    """
    dim = dim % table.ndim
    length = max(len(columns) for columns in rows)
    taken = table.new_zeros(*table.shape[:dim], length, *table.shape[dim + 1 :])
    by_row = taken.movedim((dim - 1, dim), (0, 1))
    for row, (columns, source) in enumerate(zip(rows, table.movedim((dim - 1, dim), (0, 1)), strict=True)):
        by_row[row, length - len(columns) :] = source[columns.to(source.device)]
    return taken


def positions_of(attention_mask: Tensor) -> Tensor:
    """Compact positions of a mask, as ``generate`` numbers a left-padded prompt.

    Args:
        attention_mask: `(B, L)`, 1 where a column is read.

    Returns:
        `(B, L)`: 0 for the first read column, one more for each that follows; padding gets 0.

    Example:
        >>> import torch
        >>> positions_of(torch.tensor([[0, 0, 1, 1]])).tolist()
        [[0, 0, 0, 1]]
    """
    positions = attention_mask.long().cumsum(dim=-1) - 1
    return positions.masked_fill(attention_mask == 0, 0)


def stack_rows(prompts: Sequence[VisualPrompt]) -> VisualPrompt:
    """Puts the rows of prompts of different length below each other, padded on the left.

    Example:
        >>> import torch
        >>> one, two = (VisualPrompt(torch.ones(1, n, 4), torch.ones(1, n), torch.zeros(1, n).bool()) for n in (1, 2))
        >>> stack_rows([one, two]).attention_mask.tolist()
        [[0.0, 1.0], [1.0, 1.0]]
    """
    length = max(prompt.inputs_embeds.shape[1] for prompt in prompts)
    parts = [
        (
            torch.nn.functional.pad(prompt.inputs_embeds, (0, 0, length - prompt.inputs_embeds.shape[1], 0)),
            torch.nn.functional.pad(prompt.attention_mask, (length - prompt.attention_mask.shape[1], 0)),
            torch.nn.functional.pad(prompt.image_mask, (length - prompt.image_mask.shape[1], 0)),
        )
        for prompt in prompts
    ]
    embeds, mask, image = zip(*parts, strict=True)
    return VisualPrompt(torch.cat(embeds), torch.cat(mask), torch.cat(image), prompts[0].bidirectional)


def scatter_features(inputs_embeds: Tensor, image_mask: Tensor, features: Tensor) -> Tensor:
    """Writes image features into the image columns of embedded text.

    Args:
        inputs_embeds: `(B, L, D)`.
        image_mask: `(B, L)`, True where a feature belongs.
        features: `(..., D)`, as many vectors as there are True entries.

    Returns:
        A new tensor `(B, L, D)`.

    Raises:
        InputsError: if the numbers differ.
    """
    vectors = features.reshape(-1, features.shape[-1])
    columns = int(image_mask.sum())
    if columns != len(vectors):
        raise InputsError(
            f"inputs: image tokens in input_ids must match the image features, got {columns} tokens for "
            f"{len(vectors)} features; pass what the model's own processor returned, unchanged"
        )
    return inputs_embeds.masked_scatter(
        image_mask.unsqueeze(-1).to(inputs_embeds.device),
        vectors.to(inputs_embeds.device, inputs_embeds.dtype),
    )
