"""From texts and images in a row, as other tools have them, to a chat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from PIL import Image

from damro.errors import InputsError
from damro.inputs import Chat

MARK = "<image>"
"""Where an image stands in the texts of data sets."""

Part = str | Image.Image
Turn = tuple[str, Sequence[Part]]
"""A role, and texts and images in their order."""


def to_chat(turns: Iterable[Turn]) -> Chat:
    r"""A chat of turns; the images of a turn go where its texts have marks, if they have any.

    Args:
        turns: roles, with texts and images in their order.

    Raises:
        InputsError: the texts of a turn have marks, and of another number than it has images.

    Example:
        >>> dot = Image.new("L", (1, 1))
        >>> [part.get("text", "image") for part in to_chat([("user", [dot, "<image>\nWhat?"])]).messages[0]["content"]]
        ['image', 'What?']
    """
    turns = [(role, list(parts)) for role, parts in turns]
    messages = [{"role": role, "content": place_images(parts)} for role, parts in turns]
    return Chat(tuple(messages), tuple(part for _, parts in turns for part in parts if isinstance(part, Image.Image)))


def place_images(parts: Sequence[Part]) -> list[dict[str, str]]:
    """What stands in one turn: texts, and images where the texts have their marks, or else where they are given.

    Args:
        parts: texts and images in their order.

    Raises:
        InputsError: the texts have marks, and of another number than there are images.
    """
    images = sum(isinstance(part, Image.Image) for part in parts)
    marks = sum(part.count(MARK) for part in parts if isinstance(part, str))
    if marks and marks != images:
        raise InputsError(f"texts must have a mark {MARK} for every image or none, got {marks} for {images} images")
    content: list[dict[str, str]] = []
    for part in parts:
        if isinstance(part, str):
            content += _split(part)
        elif not marks:
            content.append({"type": "image"})
    return content


def _split(text: str) -> list[dict[str, str]]:
    """The parts of a text: what stands between its marks, and an image for each."""
    first, *others = text.split(MARK)
    parts = [{"type": "text", "text": first}] if first.strip() or not others else []
    for other in others:
        parts.append({"type": "image"})
        rest = other[other.startswith(("\n", " ")) :]
        if rest:
            parts.append({"type": "text", "text": rest})
    return parts
