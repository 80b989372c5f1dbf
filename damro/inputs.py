"""From images and prompts to the tensors that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedModel

from damro.chat import format_prompt
from damro.checkpoints import in_words
from damro.errors import InputsError
from damro.images import to_rgb


def prepare_inputs(
    processor: Any,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    model: PreTrainedModel | None = None,
) -> BatchFeature:
    """Makes the inputs of a batch, one image a prompt, padded as the processor does; of a bare ViT, of images alone.

    Args:
        processor: the model's.
        images: `B` images, of any mode, see :func:`damro.images.to_rgb`.
        prompts: `B` questions or instructions, see :func:`format_prompt`; for a bare ViT, which reads none, empty.
        model: if given, the tensors go to its device and pixels to its dtype.

    Raises:
        InputsError: if the numbers differ, there is nothing, a bare ViT is asked something, or the processor fails.
    """
    if not hasattr(processor, "tokenizer"):
        return _prepare_images(processor, images, prompts, model)
    if len(images) != len(prompts) or not prompts:
        raise InputsError(
            f"images and prompts must be of the same number, at least one, got {len(images)} and {len(prompts)}"
        )
    texts = [format_prompt(processor, prompt) for prompt in prompts]
    bos = processor.tokenizer.bos_token
    written = bos is not None and all(text.startswith(bos) for text in texts)
    inputs = _process(
        processor,
        [[to_rgb(image)] for image in images],  # Gemma 3 takes a flat list for the images of one prompt
        text=texts,
        padding=True,
        add_special_tokens=not written,  # a template that writes the beginning-of-text token itself
    )
    if "qformer_attention_mask" in inputs:
        _pad_qformer_right(inputs)
    return inputs if model is None else inputs.to(model.device, model.dtype)


def _process(processor: Any, images: Sequence[Any], **options: Any) -> BatchFeature:
    """What a processor makes of images; what it throws, where its settings are wrong, is an error of the inputs."""
    try:
        inputs: BatchFeature = processor(images=list(images), return_tensors="pt", **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputsError(
            f"processor must be able to read the images and prompts, got {in_words(error)} from "
            f"{type(processor).__name__}; compare its settings with the original's"
        ) from error
    return inputs


def _prepare_images(
    processor: Any, images: Sequence[Image.Image], prompts: Sequence[str], model: PreTrainedModel | None
) -> BatchFeature:
    """The inputs of a bare ViT."""
    if prompts:
        raise InputsError(
            f"prompt must be left out for a bare ViT, which reads no text, got {prompts[0]!r}; "
            "answers take an LVLM, such as 'tiny'"
        )
    if not images:
        raise InputsError("images must be at least one, got none")
    inputs = _process(processor, [to_rgb(image) for image in images])
    return inputs if model is None else inputs.to(model.device, model.dtype)


def _pad_qformer_right(inputs: BatchFeature) -> None:
    """Moves the padding of the Q-Former's text behind it.

    InstructBLIP's processor pads it on the language model's side, the left. The Q-Former numbers its tokens by their
    column, so there an answer would depend on the longest question of the batch.
    """
    mask = inputs["qformer_attention_mask"]
    order = mask.argsort(dim=-1, descending=True, stable=True)
    for key in ("qformer_input_ids", "qformer_attention_mask"):
        inputs[key] = inputs[key].gather(-1, order)
