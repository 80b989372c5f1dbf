"""Several prompts about one image: the image is encoded once, and what they begin with is read once.

POPE asks six questions about an image. In LLaVA's prompts the image stands in front of the question, so nearly all
columns are the same in all six, in the full and in the negative prompt. InstructBLIP's image columns depend on the
question; there the vision transformer's run is what can be shared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from damro.decoding.branches.fused import Prefill, prefill
from damro.decoding.compat import CACHE
from damro.decoding.errors import InputsError
from damro.decoding.families import Encoding, check_inputs, family_of
from damro.decoding.families.instructblip import query_features
from damro.decoding.prompts import Prompt, VisualPrompt, positions_of


def encode_images(model: PreTrainedModel, inputs: Mapping[str, Any], *, shared: bool) -> Encoding:
    """Checks the inputs and runs the vision tower over them once, or over the one image that all prompts share.

    Raises:
        InputsError: as :func:`damro.decoding.families.check_inputs` and :func:`encode_shared`.
    """
    if shared:
        return encode_shared(model, inputs)
    check_inputs(model, inputs)
    return family_of(model).encode(model, inputs)


def encode_shared(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Encoding:
    """Runs the vision tower over one image for all prompts that show it.

    Args:
        model: the LVLM.
        inputs: what its processor returned for B prompts with one image each, always the same one;
            `pixel_values` (and `image_sizes`) hold it once or B times.

    Returns:
        The same as the family's `encode` over B copies of the image.

    Raises:
        InputsError: if there are other images, or not one a prompt.
    """
    check_inputs(model, inputs)
    family: Any = family_of(model)
    if hasattr(family, "encode_once"):
        once: Encoding = family.encode_once(model, inputs)
        return once
    rows = len(inputs["input_ids"])
    images = {key: inputs[key] for key in (*family.PIXELS, "image_sizes") if inputs.get(key) is not None}
    for key, value in images.items():
        if len(value) not in (1, rows) or not bool((value == value[:1]).all()):
            raise InputsError(
                f"inputs must show the same image in all {rows} prompts to share it, got {len(value)} {key} "
                "that differ or are too many; leave shared_prefix out, or pass one image at a time"
            )
    first = {key: value[:1] for key, value in inputs.items() if isinstance(value, Tensor)}
    encoding = family.encode(model, first)
    if len(encoding.features) != 1:
        raise InputsError(f"inputs must hold one image a prompt to share it, got {len(encoding.features)}")
    shared = replace(
        encoding, features=list(encoding.features) * rows, rows=tuple(range(rows)), tiles=tuple(encoding.tiles) * rows
    )
    return _ask_each(model, inputs, shared) if "qformer_input_ids" in family.REQUIRED_INPUTS else shared


def _ask_each(model: PreTrainedModel, inputs: Mapping[str, Any], shared: Encoding) -> Encoding:
    """Lets the Q-Former read the other questions too; the first one has been."""
    rows = len(shared.features)
    outputs = copy.copy(shared.outputs)
    seen = outputs.last_hidden_state  # (1, 1 + patches, C), or of a video (frames, 1 + patches, C)
    outputs.last_hidden_state = seen.expand(rows, *seen.shape).flatten(0, 1)
    questions = ("qformer_input_ids", "qformer_attention_mask")
    others = {key: inputs[key][1:] for key in questions if inputs.get(key) is not None}
    features = [shared.features[0]]
    if rows > 1:
        columns = query_features(model, others, outputs.last_hidden_state[len(seen) :])
        features.extend(columns.view(rows - 1, -1, columns.shape[-1]))
    return replace(shared, outputs=outputs, features=features)


def shared_columns(prompt: VisualPrompt) -> int:
    """How many leading columns are the same in all rows, padding on the left aside.

    At least one column of every row is left over: a prompt's next token comes of reading its last column.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[7.0, 8.0, 1.0, 2.0], [0.0, 7.0, 8.0, 3.0]]).unsqueeze(-1)
        >>> mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
        >>> shared_columns(VisualPrompt(rows, mask, mask.bool()))
        2
    """
    lengths = prompt.lengths.tolist()
    most = min(lengths) - 1
    ends = [prompt.attention_mask.shape[1] - length for length in lengths]
    first = prompt.inputs_embeds[0, ends[0] : ends[0] + most]
    same = torch.ones(most, dtype=torch.bool, device=first.device)
    for row, start in enumerate(ends):
        same &= (prompt.inputs_embeds[row, start : start + most] == first).all(dim=-1)
    return int(same.long().cumprod(dim=0).sum())


Read = Callable[..., Prefill]
"""What takes the place of :func:`read_prompt`."""


def read_prompt(decoder: Any, prompt: Prompt, *, shared: bool) -> Prefill:
    """Reads a prompt.

    Args:
        decoder: the causal language model with its head.
        prompt: B rows.
        shared: whether what they begin with is read once for all of them, see :func:`prefill_shared`.
    """
    return (prefill_shared if shared else prefill)(decoder, prompt)


@torch.no_grad()
def prefill_shared(decoder: nn.Module, prompt: Prompt) -> Prefill:
    """Reads prompts, their common columns once for all of them.

    Args:
        decoder: the causal language model with its head.
        prompt: B rows.

    Returns:
        What :func:`damro.decoding.branches.fused.prefill` returns, up to the place of padding, which stands behind the
        common columns instead of before them. Prompts that must be read as a whole,
        and those that are read otherwise than the model reads them, are read as one batch.
    """
    rows = len(prompt.attention_mask)
    if rows == 1 or prompt.in_one_pass or prompt.altered is not None or not isinstance(prompt, VisualPrompt):
        return prefill(decoder, prompt)
    common = shared_columns(prompt)
    if common == 0:
        return prefill(decoder, prompt)
    start = prompt.attention_mask.shape[1] - int(prompt.lengths[0])
    columns = slice(start, start + common)
    head = VisualPrompt(
        prompt.inputs_embeds[:1, columns], prompt.attention_mask[:1, columns], prompt.image_mask[:1, columns]
    )
    cache = prefill(decoder, head).cache
    cache.batch_repeat_interleave(rows)
    rest = int(prompt.lengths.max()) - common
    embeds = prompt.inputs_embeds[:, -rest:]
    # Counted from the right, every row's own columns come last; what is left of them is padding or common.
    column = torch.arange(rest, device=prompt.attention_mask.device)
    own = (column >= rest - (prompt.lengths - common)[:, None]).long()
    mask = torch.cat([own.new_ones(rows, common), own], dim=-1)
    output: Any = decoder(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=positions_of(mask)[:, common:],
        use_cache=True,
        logits_to_keep=1,
        **{CACHE: cache},
    )
    return Prefill(cache, mask, output.logits[:, -1], prompt.next_position)
