"""From images and prompts to the tensors that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedModel

from damro.chat import Message, format_messages, format_prompt
from damro.checkpoints import in_words
from damro.errors import InputsError
from damro.images import to_rgb


class Chat(NamedTuple):
    """What a model is asked: turns of a chat, and the images that their parts stand for.

    Attributes:
        messages: see :func:`damro.chat.format_messages`.
        images: of any mode, in the order of the parts ``{"type": "image"}``.
    """

    messages: tuple[Message, ...]
    images: tuple[Image.Image, ...] = ()


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
    return _prepare_texts(
        processor, [[image] for image in images], [format_prompt(processor, p) for p in prompts], model
    )


def prepare_chats(
    processor: Any, chats: Sequence[Chat], model: PreTrainedModel | None = None, *, answered: bool = False
) -> BatchFeature:
    """Makes the inputs of a batch of chats, padded as the processor does.

    Args:
        processor: the model's.
        chats: `B` chats, all of them with images or none; how many images may differ.
        model: if given, the tensors go to its device and pixels to its dtype.
        answered: the last turn of each is the answer, see :func:`damro.chat.format_messages`.

    Raises:
        InputsError: if there is nothing, if only some have images, if parts and images differ in number, if the chat
            cannot be written, or if the processor fails.
    """
    if not chats or len({bool(chat.images) for chat in chats}) > 1:
        counts = [len(chat.images) for chat in chats]
        raise InputsError(
            f"chats must be at least one, all with images or all without, got images {counts}; split them"
        )
    for chat in chats:
        places = sum(part["type"] == "image" for message in chat.messages for part in message["content"])
        if places != len(chat.images):
            raise InputsError(
                f"images must be as many as the messages have places for, {places}, got {len(chat.images)}"
            )
    texts = [format_messages(processor, chat.messages, answered=answered) for chat in chats]
    return _prepare_texts(processor, [list(chat.images) for chat in chats], texts, model)


def _prepare_texts(
    processor: Any, images: Sequence[list[Image.Image]], texts: list[str], model: PreTrainedModel | None
) -> BatchFeature:
    """The inputs of whole texts and the images of each; without any image, of texts alone."""
    bos = processor.tokenizer.bos_token
    written = bos is not None and all(text.startswith(bos) for text in texts)
    inputs = _process(
        processor,
        [
            [to_rgb(image) for image in own] for own in images if own
        ],  # Gemma 3 takes a flat list for those of one prompt
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
        inputs: BatchFeature = processor(images=list(images) or None, return_tensors="pt", **options)
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
