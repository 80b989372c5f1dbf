"""Do the vision tower and the language model look at the same patches, and does it differ for hallucinations?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from damro.errors import InputsError, ParameterError
from damro.inspection.plain import Plain
from damro.vision.outliers import rank_patches


class Mention(NamedTuple):
    """An object in a caption.

    Attributes:
        start: its first character.
        end: the character behind its last one.
        hallucinated: whether the image does not show it.
    """

    start: int
    end: int
    hallucinated: bool


@dataclass(frozen=True)
class MentionOverlap(Plain):
    """Mean overlap over the objects of a caption, by whether the image shows them.

    Attributes:
        tops: the numbers of patches `i`.
        hallucinated: `(len(tops),)`, mean over hallucinated objects; NaN if there is none.
        real: `(len(tops),)`, mean over the other objects; NaN if there is none.
        hallucinated_count: how many objects the first mean is over.
        real_count: how many the second is over.
    """

    tops: tuple[int, ...]
    hallucinated: Tensor
    real: Tensor
    hallucinated_count: int
    real_count: int


def patch_overlap(vit: Tensor, decoder: Tensor, tops: Sequence[int] = range(1, 11)) -> Tensor:
    """Share of the top-i patches that vision tower and language model have in common.

    `H(i) = |S_v(i) & S_l(i)| / i`, S the i patches with the most attention: the measure of consistency in the
    DAMRO paper.

    Args:
        vit: `(patches,)` or `(rows, columns)`, attention of [CLS].
        decoder: `(T, patches)` or `(T, rows, columns)` on the same grid, attention of each generated token.
        tops: the numbers i.

    Returns:
        `(T, len(tops))`, in [0, 1].

    Raises:
        InputsError: if the two are not on the same number of patches.
        ParameterError: if a number is not in 1 .. patches.

    Example:
        >>> import torch
        >>> vit = torch.tensor([0.4, 0.3, 0.2, 0.1])
        >>> patch_overlap(vit, torch.tensor([[0.1, 0.5, 0.3, 0.2]]), tops=[1, 2, 3]).tolist()
        [[0.0, 0.5, 0.66...]]
    """
    reference, tokens = vit.flatten(), decoder.flatten(1)
    patches = len(reference)
    if tokens.shape[1] != patches:
        raise InputsError(
            f"decoder must be on the {patches} patches of vit, got {tokens.shape[1]}; "
            "take the view 'image' of both, the grid of the base tile"
        )
    if not tops or not all(1 <= top <= patches for top in tops):
        raise ParameterError(f"tops must be numbers from 1 to the {patches} patches, got {list(tops)}")
    most = max(tops)
    ranked = rank_patches(reference[None], most)[0]
    token_ranked = rank_patches(tokens, most)
    same = token_ranked[:, :, None] == ranked  # (T, most, most): rank in decoder, rank in vit
    return torch.stack([same[:, :top, :top].sum(dim=(1, 2)) / top for top in tops], dim=-1)


def compare_mentions(
    overlap: Tensor,
    spans: Sequence[tuple[int, int]],
    mentions: Sequence[Mention],
    tops: Sequence[int] = range(1, 11),
) -> MentionOverlap:
    """Averages overlap over hallucinated and over real objects.

    An object counts once, with the mean over the tokens that spell it.

    Args:
        overlap: `(T, len(tops))`, what :func:`patch_overlap` returned.
        spans: for each token, where its characters begin and end; see :func:`damro.inspection.token_spans`.
        mentions: the objects.
        tops: the numbers that `overlap` was computed for.

    Raises:
        InputsError: if numbers differ, or an object lies outside all tokens.

    Example:
        >>> import torch
        >>> overlap = torch.tensor([[0.2], [0.4], [0.9]])
        >>> found = [Mention(0, 6, True), Mention(7, 10, False)]
        >>> means = compare_mentions(overlap, [(0, 3), (3, 6), (6, 10)], found, tops=[1])
        >>> means.hallucinated.tolist(), means.real.tolist()
        ([0.30...], [0.89...])
    """
    if overlap.shape != (len(spans), len(tops)):
        raise InputsError(
            f"overlap must have one row a token and one column a top, ({len(spans)}, {len(tops)}), "
            f"got {tuple(overlap.shape)}"
        )
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for mention in mentions:
        rows = [t for t, (start, end) in enumerate(spans) if start < mention.end and mention.start < end]
        if not rows:
            raise InputsError(
                f"mentions must lie within the caption, got characters {mention.start} to {mention.end}; "
                "count characters in the text that token_spans returned"
            )
        groups[mention.hallucinated].append(overlap[rows].mean(dim=0))
    missing = torch.full((len(tops),), float("nan"))
    means = {key: torch.stack(rows).mean(dim=0) if rows else missing for key, rows in groups.items()}
    return MentionOverlap(tuple(tops), means[True], means[False], len(groups[True]), len(groups[False]))
