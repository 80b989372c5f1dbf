"""From the body of a request to what the model is asked."""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from damro.errors import DecodingError, ParameterError
from damro.images import read_image
from damro.inputs import Chat
from damro.methods import METHODS, Recipe, parse
from damro.parameters import build, given, parameters
from damro.serve.errors import RequestError
from damro.turns import place_images

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_OWN = (
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream",
    "stream_options", "method",
)  # fmt: skip
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields of OpenAI's that ask for something which is not done here, and the values that ask for nothing."""
_UNREAD = (
    "user", "metadata", "store", "service_tier", "tools", "parallel_tool_calls", "safety_identifier",
    "prompt_cache_key",
)  # fmt: skip
"""Fields that no answer depends on. Tools are an offer, which some clients make with every request: none is called."""
_USUAL_LENGTH = 1024
_MOST_STOPS = 16
_HOTTEST = 100.0
_SHOWN = 60


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        body_bytes: of a body as it is sent; base64 makes images larger by a third.
        pixels: of the images of a request together.
        images: of a request.
        new_tokens: of an answer.
        waiting: requests that are read, wait or are answered; beyond that they are sent away.
    """

    body_bytes: int = 32 * 1024 * 1024
    pixels: int = 25_000_000
    images: int = 16
    new_tokens: int = 4096
    waiting: int = 64


class Asked(NamedTuple):
    """A request that has been read.

    Attributes:
        chat: the turns and their images.
        recipe: the method and the temperature.
        top_p: nucleus of sampling.
        seed: of sampling.
        max_new_tokens: longest answer.
        stop: texts that end it.
        stream: whether it is told bit by bit.
        include_usage: whether the stream ends with the numbers of tokens.
    """

    chat: Chat
    recipe: Recipe
    top_p: float
    seed: int
    max_new_tokens: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def read_request(body: bytes, model: str, default: Recipe, limits: Limits) -> Asked:
    """Reads a body.

    Args:
        body: JSON.
        model: the name of the one model there is.
        default: the method of requests that name none.
        limits: what may be asked for.

    Raises:
        RequestError: saying what is wrong with it.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"body must be JSON, got {type(error).__name__}: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError(f"body must be a JSON object, got {_shown(fields)}")
    told = {name: value for name, value in fields.items() if value is not None}
    if told.get("model") != model:
        raise RequestError(
            f"model must be {model!r}, the one that is served, got {_shown(told.get('model'))}",
            status=404 if "model" in told else 400,
            code="model_not_found",
            param="model",
        )
    for name, neutral in _ONLY.items():
        if name in told and told[name] not in neutral:
            raise _wrong(name, " or ".join(map(json.dumps, neutral)) + ", as nothing else is done here", told[name])
    stream = _boolean(told, "stream")
    options = told.get("stream_options", {})
    if not isinstance(options, dict) or (options and not stream):
        raise _wrong("stream_options", "an object beside stream: true", options)
    recipe = _recipe(told, default)
    return Asked(
        chat=_chat(told.get("messages"), limits),
        recipe=recipe,
        top_p=_number(told, "top_p", 1.0, 0.0, 1.0),
        seed=_whole(told, "seed", -(2**63), 2**63 - 1, secrets.randbits(63)),
        max_new_tokens=_length(told, limits),
        stop=_stop(told.get("stop", ())),
        stream=stream,
        include_usage=_boolean(options, "include_usage"),
    )


def _recipe(told: Mapping[str, Any], default: Recipe) -> Recipe:
    """The method with the parameters that stand beside it in the body."""
    text = told.get("method")
    if text is not None and not isinstance(text, str):
        raise _wrong("method", "a text such as 'damro:alpha=0.5'", text)
    others = [name for name in told if name not in (*_OWN, *_ONLY, *_UNREAD)]
    known = {one.name for owner in METHODS.values() for one in parameters(owner)}
    for name in others:
        if name not in known:
            raise RequestError(
                f"body must hold fields of OpenAI's chat completions, method, and parameters of a method, got "
                f"{_shown(name)}; leave it out, GET /v1/models lists the methods with their parameters",
                code="unknown_parameter",
                param=name,
            )
    try:
        recipe = default if text is None else parse(text)
        kind = type(recipe.method)
        values = {**given(recipe.method), **{name: told[name] for name in others}}
        recipe = recipe._replace(method=build(kind, values, ParameterError, kind.name))
    except DecodingError as error:
        raise RequestError(str(error), param=others[0] if others and text is None else "method") from error
    if "temperature" not in told:
        return recipe
    temperature = _number(told, "temperature", 0.0, 0.0, _HOTTEST)
    if text is not None and recipe.temperature:
        raise _wrong("temperature", f"left out where the method says it, as {text!r} does", temperature)
    return recipe._replace(temperature=temperature)


def _chat(messages: Any, limits: Limits) -> Chat:
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "a list of at least one message", messages)
    turns: list[tuple[str, Sequence[str | bytes]]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise _wrong(f"{where}.role", f"one of {', '.join(_ROLES)}", role)
        turns.append((_ROLES[message["role"]], _parts(message.get("content"), f"{where}.content")))
    if turns[-1][0] != "user":
        raise _wrong(f"messages[{len(turns) - 1}].role", "user in the last message", messages[-1]["role"])
    files = [part for _, parts in turns for part in parts if isinstance(part, bytes)]
    if len(files) > limits.images:
        raise _wrong("messages", f"about at most {limits.images} images", len(files))
    images = tuple(_open(files, limits.pixels))
    left = iter(images)
    return Chat(tuple({"role": role, "content": _content(parts, left)} for role, parts in turns), images)


def _content(parts: Sequence[str | bytes], images: Iterator[Image.Image]) -> list[dict[str, str]]:
    """The parts of one message, with images where its texts have marks for them, as some tools send them."""
    opened = [next(images) if isinstance(part, bytes) else part for part in parts]
    if not any(isinstance(part, bytes) for part in parts):
        return [{"type": "text", "text": part} for part in opened if isinstance(part, str)]
    try:
        return place_images(opened)
    except DecodingError as error:
        raise RequestError(str(error), param="messages") from error


def _parts(content: Any, where: str) -> Sequence[str | bytes]:
    """The texts and images, still as files, of a message."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list) or not content:
        raise _wrong(where, "a text or a list of parts", content)
    return [_part(part, f"{where}[{number}]") for number, part in enumerate(content)]


def _part(part: Any, where: str) -> str | bytes:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    if kind == "image_url":
        url = part.get("image_url")
        return _file(url.get("url") if isinstance(url, dict) else url, f"{where}.image_url.url")
    raise _wrong(
        where, 'a part {"type": "text", "text": ...} or {"type": "image_url", "image_url": {"url": ...}}', part
    )


def _file(url: Any, where: str) -> bytes:
    """The bytes of a data URL."""
    begin = _DATA_URL.match(url) if isinstance(url, str) else None
    if begin is None:
        raise _wrong(where, "a data URL (data:image/png;base64,...), since this server fetches nothing", url)
    try:
        return base64.b64decode(url[begin.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where} must hold valid base64, got {error}", param=where) from error


def _open(files: Sequence[bytes], most: int) -> Iterator[Image.Image]:
    """Opens images one by one, as long as all of them together have few enough pixels."""
    pixels = 0
    for number, data in enumerate(files, 1):
        try:
            image = read_image(data, f"image {number} of the request", max_pixels=most)
        except DecodingError as error:
            raise RequestError(str(error), code="invalid_image", param="messages") from error
        pixels += image.width * image.height
        if pixels > most:
            raise _wrong("messages", f"about images of at most {most} pixels together", pixels)
        yield image


def _length(told: Mapping[str, Any], limits: Limits) -> int:
    name = "max_completion_tokens" if "max_completion_tokens" in told else "max_tokens"
    return _whole(told, name, 1, limits.new_tokens, min(_USUAL_LENGTH, limits.new_tokens))


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [None]
    if len(texts) > _MOST_STOPS or not all(isinstance(text, str) and text for text in texts):
        raise _wrong("stop", f"a text that is not empty, or a list of at most {_MOST_STOPS}", value)
    return tuple(texts)


def _boolean(told: Mapping[str, Any], name: str) -> bool:
    value = told.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _whole(told: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    value = told.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(name, f"a whole number from {low} to {high}", value)
    return value


def _number(told: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = told.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(name, f"a number in [{low:g}, {high:g}]", value)
    return float(value)


def _wrong(name: str, rule: str, value: Any) -> RequestError:
    return RequestError(f"{name} must be {rule}, got {_shown(value)}", param=name)


def _shown(value: Any) -> str:
    """A value in few characters: it may be an image of megabytes."""
    text = json.dumps(value) if not isinstance(value, str) else repr(value[: 2 * _SHOWN])
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
