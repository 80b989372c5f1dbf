"""The full prompt without some patches, whatever becomes of patches in a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.families import Encoding, family_of
from damro.decoding.families.generic.prompt import TokenPrompt
from damro.decoding.prompts import Prompt
from damro.decoding.settings import check_cut
from damro.pruning.prompts import Pruning, keep_patches
from damro.pruning.rules import present_patches
from damro.vision.query_keys import ClsQueryKeys


def prompt_without(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    encoding: Encoding,
    patches: Tensor,
    pruning: Pruning | None = None,
    recorded: Mapping[int, ClsQueryKeys] | None = None,
) -> Prompt:
    """The full prompt without some patches of each tile, the others in image order.

    The columns of LLaVA's patches are left out; InstructBLIP's Q-Former reads all tokens of the ViT but those; of
    families whose columns are ranked themselves, the columns of the base tile are left out.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        encoding: the vision tower's run over them.
        patches: `(tiles of all images, k)`, numbers of patches; of such families `(images, k)`.
        pruning: which of the other patches to keep; None keeps all.
        recorded: what `pruning` recorded of that run.

    Raises:
        UnsupportedModelError: of a family whose columns are not patches; with `pruning`, one that is not pruned; a
            language model that cannot read a prompt of tokens without some of them.
    """
    family: Any = family_of(model)
    if pruning is None and hasattr(family, "prompt_without"):
        prompt: Prompt = family.prompt_without(model, inputs, encoding, patches)
        if isinstance(prompt, TokenPrompt):
            check_cut(family.decoder(model))
        return prompt
    columns = family.column_patches(model, inputs, encoding)
    count = encoding.grid[0] * encoding.grid[1]
    dropped = torch.zeros(len(patches), count, dtype=torch.bool).scatter(1, patches.cpu(), True)
    if pruning is not None:
        return pruning.apply(model, inputs, encoding, recorded or {}, dropped)
    present = present_patches(columns, encoding.tiles, count)
    return keep_patches(model, inputs, encoding, columns, present & ~dropped)
