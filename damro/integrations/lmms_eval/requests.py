"""From what lmms-eval asks to what damro answers. Imports no lmms-eval."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from transformers import GenerationConfig

from damro.errors import InputsError, ParameterError
from damro.images import load_image
from damro.methods import Recipe, parse
from damro.parameters import build, given
from damro.turns import Part, Turn

_USUAL_LENGTH = 1024  # of lmms-eval's own models of transformers
_PARAGRAPH = "\n\n"
_READ = ("max_new_tokens", "temperature", "do_sample", "top_p", "until")
_OTHERS = ("image_aspect_ratio", "image_sizes", "interleaved_format", "visual_cot", "version", "modalities")
"""What tasks tell single models about their own preprocessing."""
_OF_DRAWS = ("top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")  # sampling here knows top_p alone
_NEUTRAL = (None, False, 0, 1, 1.0)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """The generation keywords of a task.

    Attributes:
        max_new_tokens: longest answer.
        temperature: of sampling, 0 for greedy search.
        top_p: nucleus of sampling.
        stop: texts that end an answer.
        settings: others of ``generate``.
    """

    max_new_tokens: int = _USUAL_LENGTH
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What answers of one batch have in common."""
        return repr((self.temperature, self.top_p, sorted(self.settings.items())))


def read_generation(told: Mapping[str, Any]) -> Generation:
    r"""Reads generation keywords.

    An empty line ends no answer: lmms-eval adds it to every task that names no `until`, and its own models of
    transformers do not stop there either.

    Args:
        told: as a task's YAML has them.

    Raises:
        ParameterError: `until` is no text and no list of texts.

    Example:
        >>> read_generation({"until": ["\n\n", "###"], "temperature": 0, "max_new_tokens": 16}).stop
        ('###',)
        >>> read_generation({"temperature": 0.2, "do_sample": False}).temperature
        0.0
    """
    until = told.get("until") or []
    stop = [until] if isinstance(until, str) else until
    if not isinstance(stop, list | tuple) or not all(isinstance(one, str) for one in stop):
        raise ParameterError(f"until must be a text or a list of texts, got {until!r}; correct it in the task")
    sampled = told.get("do_sample") is not False
    temperature = told.get("temperature")
    if temperature is None:
        temperature = 1.0 if told.get("do_sample") else 0.0
    known = vars(GenerationConfig())  # type: ignore[no-untyped-call]
    settings = {}
    for name, value in told.items():
        if name in (*_READ, *_OTHERS) or value in _NEUTRAL:
            continue
        if name in known and name not in _OF_DRAWS:
            settings[name] = value
        else:
            _log.warning("damro leaves the generation keyword %s=%r aside", name, value)
    return Generation(
        max_new_tokens=int(told.get("max_new_tokens") or _USUAL_LENGTH),
        temperature=float(temperature) if sampled else 0.0,
        top_p=1.0 if told.get("top_p") is None else float(told["top_p"]),
        stop=tuple(one for one in stop if one and one != _PARAGRAPH),
        settings=settings,
    )


def read_recipe(method: str, values: Mapping[str, Any]) -> Recipe:
    """The method, with parameters that stand beside it, since a comma ends an argument in ``--model_args``.

    Args:
        method: such as "damro", "damro:alpha=0.5" or "vcd@1".
        values: further arguments.

    Raises:
        ParameterError: no such method, or an argument that is none of the model's and no parameter of the method.

    Example:
        >>> read_recipe("damro:alpha=0.5", {"top_k": 20}).text
        'damro:alpha=0.5,top_k=20'
    """
    recipe = parse(method)
    kind = type(recipe.method)
    told = {**given(recipe.method), **values}
    return recipe._replace(method=build(kind, told, ParameterError, f"model_args with method={kind.name}"))


def as_images(visuals: Any, where: str) -> list[Image.Image]:
    """What a task shows, as images.

    Args:
        visuals: what its function returned; None for nothing.
        where: which sample it is of, for messages.

    Raises:
        InputsError: it is something else, such as a video.
    """
    found = visuals if isinstance(visuals, list | tuple) else [] if visuals is None else [visuals]
    for one in found:
        if not isinstance(one, Image.Image):
            raise InputsError(f"visuals of {where} must be images, got {type(one).__name__}; leave such tasks out")
    return list(found)


def read_messages(messages: Sequence[Mapping[str, Any]], where: str) -> list[Turn]:
    """The turns of what a task's ``doc_to_messages`` returned.

    Args:
        messages: roles, with parts of the types "text" and "image"; an image is one, or a file's path.
        where: which sample it is of, for messages.

    Raises:
        InputsError: a part of another type.
        ImageError: a file that does not open.
    """
    turns: list[Turn] = []
    for message in messages:
        parts: list[Part] = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append(str(part["text"]))
            elif part["type"] == "image" and isinstance(part["url"], str):
                parts.append(load_image(part["url"]))
            elif part["type"] == "image":
                parts += as_images(part["url"], where)
            else:
                raise InputsError(
                    f"parts of {where} must be texts or images, got {part['type']!r}; leave such tasks out"
                )
        turns.append((str(message["role"]), parts))
    return turns
