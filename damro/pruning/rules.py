"""Which patches to keep and which columns they are: pure functions on scores and column numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from damro.decoding.families import ColumnPatches, Encoding


def keep_top(scores: Tensor, count: Tensor, present: Tensor) -> Tensor:
    """Boolean `(tiles, patches)`: the patches with the highest scores among those present.

    Args:
        scores: `(tiles, patches)`.
        count: `(tiles,)`, how many of each tile; of equal scores the first patch comes first.
        present: boolean `(tiles, patches)`, the candidates.

    Example:
        >>> import torch
        >>> present = torch.tensor([[True, True, False, True]])
        >>> keep_top(torch.tensor([[0.1, 0.3, 0.9, 0.2]]), torch.tensor([2]), present).tolist()
        [[False, True, False, True]]
    """
    order = scores.masked_fill(~present, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    return (rank < count[:, None]) & present


def iqr_counts(scores: Tensor, present: Tensor) -> Tensor:
    """`(tiles,)`: how many present patches score above the third quartile by 1.5 interquartile ranges.

    Example:
        >>> import torch
        >>> iqr_counts(torch.tensor([[1.0, 2.0, 3.0, 4.0, 50.0]]), torch.ones(1, 5, dtype=torch.bool)).tolist()
        [1]
    """
    candidates = scores.masked_fill(~present, float("nan"))
    lower, upper = candidates.nanquantile(scores.new_tensor([0.25, 0.75]), dim=-1, keepdim=True)
    above: Tensor = candidates > upper + 1.5 * (upper - lower)
    return above.sum(dim=-1)


def information_density(keys: Tensor, present: Tensor, similarity: float = 0.8, share: float = 0.1) -> Tensor:
    """Share of a tile's patches that are not redundant, `(tiles,)`.

    After Token-level Correlation-guided Compression (Zhang et al., arXiv 2407.14439): a patch is redundant if many
    others have nearly its key, and the density is one less the share of redundant patches. What counts as nearly
    and as many are this project's own choices, not the paper's.

    Args:
        keys: `(tiles, patches, C)`, the keys of a ViT layer.
        present: boolean `(tiles, patches)`, the patches that count.
        similarity: cosine above which two keys are nearly the same.
        share: a patch is redundant if more than this share of the other patches is nearly the same.

    Example:
        Three patches alike and one of its own; for each of the three, two of three others are alike:

        >>> import torch
        >>> keys = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 1.0]]])
        >>> information_density(keys, torch.ones(1, 4, dtype=torch.bool)).tolist()
        [0.25]
    """
    unit = normalize(keys.float(), dim=-1)
    alike = (unit @ unit.transpose(1, 2) > similarity) & present[:, None]  # (tiles, patches, patches)
    alike.diagonal(dim1=1, dim2=2).fill_(False)
    others = (present.sum(dim=-1, keepdim=True) - 1).clamp(min=1)
    redundant = (alike.sum(dim=-1) > share * others) & present
    return 1 - redundant.sum(dim=-1) / present.sum(dim=-1).clamp(min=1)


def gumbel_scores(weights: Tensor, seed: int) -> Tensor:
    """Scores whose k highest are a draw of k without replacement, with probabilities in proportion to `weights`.

    The Gumbel-top-k trick (Kool et al., arXiv 1903.06059): `log w + g`, with g drawn from the standard Gumbel
    distribution. All tiles get the same g, so that a tile's draw does not depend on the others.

    Args:
        weights: `(tiles, patches)`, >= 0.
        seed: of g.
    """
    uniform = torch.rand(weights.shape[-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return weights.double().log() - uniform.clamp(min=1e-300).log().neg().log()


def present_patches(columns: Sequence[ColumnPatches], tiles: Sequence[int], patches: int) -> Tensor:
    """Boolean `(tiles of all images, patches)`: the patches that fill a column; the others are padding.

    Args:
        columns: for each image, what fills its columns.
        tiles: for each image, the number of its tiles.
        patches: patches of a tile.
    """
    present = []
    for image, number in zip(columns, tiles, strict=True):
        filled = torch.zeros(number * patches, dtype=torch.bool)
        filled[image.patch[image.patch >= 0]] = True
        present.append(filled.view(number, patches))
    return torch.cat(present)


def kept_columns(columns: Sequence[ColumnPatches], kept: Tensor, encoding: Encoding, rows: int) -> list[Tensor]:
    """For each prompt, the ordinals of the image columns to keep, as :meth:`VisualPrompt.keep` takes them.

    Args:
        columns: for each image, what fills its columns.
        kept: boolean `(tiles of all images, patches)`.
        encoding: the vision tower's run.
        rows: number of prompts.

    Returns:
        Ordinals in image order. A column that is no patch stays if a patch of its line does.
    """
    ordinals: list[list[Tensor]] = [[] for _ in range(rows)]
    offset = [0] * rows
    per_image = torch.split(kept, list(encoding.tiles))
    for image, row, chosen in zip(columns, encoding.rows, per_image, strict=True):
        stays = chosen.flatten()[image.patch.clamp(min=0)] & (image.patch >= 0)
        alive = torch.zeros(int(image.line.max()) + 1, dtype=torch.bool)
        alive[image.line[stays]] = True
        stays |= (image.patch < 0) & alive[image.line]
        ordinals[row].append(stays.nonzero().flatten() + offset[row])
        offset[row] += len(image.patch)
    return [torch.cat(found) for found in ordinals]
