"""The text that a model was trained to read around a question about an image, or a chat. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from damro.decoding.errors import InputsError

_VICUNA = "USER: {image}\n{prompt} ASSISTANT:"
# What each family was trained on, for processors that come without a chat template. The processors of InstructBLIP
# and BLIP-2 put the image columns in front by themselves. LLaVA-NeXT on another language model than Vicuna ships a
# template. PaliGemma's processor writes a beginning and an end of the prompt; its task words ("answer en") are part of
# the prompt.
_FORMATS = {
    "LlavaProcessor": _VICUNA,
    "LlavaNextProcessor": _VICUNA,
    "InstructBlipProcessor": "{prompt}",
    "VideoLlavaProcessor": _VICUNA,
    "Blip2Processor": "Question: {prompt} Answer:",
    "PaliGemmaProcessor": "{image}{prompt}",
}
_MARK = "<image>"  # where the image stands, in data sets; also the image token of most families
_PLACE = "\ue000"  # of the question, in a format: a character that no prompt holds


def format_prompt(processor: Any, prompt: str) -> str:
    r"""The text the model was trained to read for a question about one image.

    The processor's chat template decides; without one, the family's usual format. An image token and a line break or
    a space in front of the question, as data sets write it, is left out, since the format has the image in its place.
    What begins or ends as the format does is taken to be formatted already and stays as it is.

    Args:
        processor: the model's.
        prompt: the question, or the whole text around it with the image token in it.

    Raises:
        InputsError: if the image token stands elsewhere in the prompt, if there is neither a template nor a usual
            format, or if the template fails.

    Example:
        >>> from damro import tiny
        >>> processor = tiny.load()[1]
        >>> [format_prompt(processor, prompt) for prompt in ("What?", "<image>\nWhat?", "USER: <image> What?")]
        ['USER: <image>\nWhat? ASSISTANT:', 'USER: <image>\nWhat? ASSISTANT:', 'USER: <image> What?']
    """
    marks = _marks_of(processor)
    marked = any(mark in prompt for mark in marks)
    if not _has_format(processor):
        if marked:
            return prompt
        raise InputsError(
            f"processor must have a chat template or be one of {', '.join(_FORMATS)}, got {type(processor).__name__}; "
            "write the whole prompt yourself, with the image token in it"
        )
    if _is_formatted(processor, prompt, marked):
        _check_one_image(processor, prompt, marks)
        return prompt
    question = prompt
    for mark in marks:
        if prompt.startswith(mark):
            question = prompt.removeprefix(mark)
            question = question[question.startswith(("\n", " ")) :]
            break
    if any(mark in question for mark in marks):
        raise InputsError(
            f"prompt must hold the image token in front or not at all, got {prompt!r}; leave it out, since the model's "
            f"format puts the image in its place, or write the whole text as {_write(processor, '...')!r} stands"
        )
    return _write(processor, question)


Message = Mapping[str, Any]
"""A turn of a chat as chat templates read it: `role`, and `content`, a list of parts.

A part is ``{"type": "image"}`` or ``{"type": "text", "text": ...}``.
"""


def format_messages(processor: Any, messages: Sequence[Message], *, answered: bool = False) -> str:
    r"""The text the model was trained to read for a chat about any number of images.

    Args:
        processor: the model's.
        messages: the turns. Where an image stands among the parts of a turn is for the template to heed; that of LLaVA
            puts images first.
        answered: the last turn is the answer, and no other is asked for.

    Raises:
        InputsError: if a text holds the model's image token, if there is no template and the chat is more than a
            question of the user, or if the template fails.

    Example:
        >>> from damro import tiny
        >>> chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
        >>> format_messages(tiny.load()[1], chat)
        'USER: <image>\nWhat? ASSISTANT:'
    """
    parts = [part for message in messages for part in message["content"]]
    mark = _marks_of(processor)[0]
    if any(mark in part["text"] for part in parts if part["type"] == "text"):
        raise InputsError(f"text of a message must not hold the model's image token {mark!r}; pass the image itself")
    if getattr(processor, "chat_template", None):
        return _apply_template(processor, messages, add_generation_prompt=not answered)
    if not _has_format(processor) or [message["role"] for message in messages] != ["user", "assistant"][: 1 + answered]:
        raise InputsError(
            f"messages must be one question of the user where the processor has no chat template, as "
            f"{type(processor).__name__} has none, got {', '.join(str(message['role']) for message in messages)}; "
            "set processor.chat_template"
        )
    [question, *answers] = ["".join(part.get("text", "") for part in message["content"]) for message in messages]
    form = _FORMATS[type(processor).__name__]
    images = sum(part["type"] == "image" for part in parts)
    place = "{image}\n" if "{image}\n" in form else "{image}"
    marks = place.replace("{image}", mark) * images
    return " ".join([form.replace(place, marks).replace("{prompt}", question), *answers])


def _check_one_image(processor: Any, prompt: str, marks: tuple[str, ...]) -> None:
    """Refuses a whole text with more image tokens than the format writes for one image."""
    counted = [sum(text.count(mark) for mark in marks) for text in (prompt, _write(processor, ""))]
    if counted[0] > max(counted[1], 1):
        raise InputsError(
            f"prompt must hold the image token of one image, got {counted[0]} in {prompt!r}; leave the others out"
        )


def _has_format(processor: Any) -> bool:
    return bool(getattr(processor, "chat_template", None)) or type(processor).__name__ in _FORMATS


def _marks_of(processor: Any) -> tuple[str, ...]:
    """What stands for the image in a prompt: the model's own token, and the data sets'."""
    return tuple(dict.fromkeys((str(getattr(processor, "image_token", _MARK)), _MARK)))


def _write(processor: Any, question: str) -> str:
    """The question in the model's format."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return _apply_template(processor, [{"role": "user", "content": content}], add_generation_prompt=True)
    return _FORMATS[type(processor).__name__].replace("{image}", _marks_of(processor)[0]).replace("{prompt}", question)


def _apply_template(processor: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """What the processor's chat template writes."""
    turns = [dict(message) for message in messages]
    try:
        text: str = processor.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, tokenize=False)
    except Exception as error:  # a template is a program, of whoever made the checkpoint
        asked = "a question about an image" if len(turns) == 1 else "a chat of " + ", ".join(t["role"] for t in turns)
        raise InputsError(
            f"chat template must write {asked}, that of {type(processor).__name__} raises "
            f"{type(error).__name__}: {error}; correct it, or leave it out for the family's usual format"
        ) from error
    return text


def _is_formatted(processor: Any, prompt: str, marked: bool) -> bool:
    """Whether a prompt is the whole text: between what the format puts around it; with an image in it, either will do.

    In front, the format is looked at up to the image alone ("USER: <image> What?" is formatted), without the token that
    begins a text.
    """
    before, _, after = _write(processor, _PLACE).partition(_PLACE)
    first = str(getattr(getattr(processor, "tokenizer", None), "bos_token", None) or "")
    before, prompt, after = before.removeprefix(first), prompt.removeprefix(first).rstrip(), after.strip()
    heads = [(before.partition(mark)[0], mark) for mark in _marks_of(processor) if mark in before]
    begins = any(head.strip() and prompt.startswith(head + mark) for head, mark in heads)
    ends = bool(after) and prompt.endswith(after)
    whole = ends and bool(before.strip()) and prompt.startswith(before)
    return whole or (marked and (begins or ends))
