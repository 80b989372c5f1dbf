"""The class that VLMEvalKit asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vlmeval.vlm.base import BaseModel

from damro.answering import Answer, answer_chats
from damro.decoding.families import family_of
from damro.errors import InputsError, ParameterError
from damro.images import load_image
from damro.loading import load_model
from damro.methods import parse
from damro.methods.base import seed_of
from damro.turns import Part, to_chat

FAILED: list[str] = []
"""What was raised in loading and answering: VLMEvalKit writes it to its log, and goes on with the next data set."""


class Damro(BaseModel):  # type: ignore[misc]
    """An LVLM with a decoding method.

    Args:
        pretrained: a folder, a name on the Hub, or "tiny".
        method: as :func:`damro.methods.parse` reads it.
        max_new_tokens: longest answer.
        device: as torch names it, or "auto"; None takes a GPU if there is one.
        dtype: of the weights.
        seed: of sampling.
        **unknown: refused.

    Raises:
        ParameterError: a method, parameter or argument that there is not.
        ModelLoadError: the model does not load.
    """

    INTERLEAVE = True
    allowed_types = ["text", "image"]

    def __init__(
        self,
        pretrained: str,
        method: str = "damro",
        max_new_tokens: int = 1024,
        device: str | None = None,
        dtype: str = "auto",
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        with _recording("the model"):
            if unknown:
                known = "pretrained, method, max_new_tokens, device, dtype, seed"
                raise ParameterError(
                    f"arguments of the model must be {known}, got {', '.join(unknown)}; leave them out"
                )
            if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
                raise ParameterError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
            self._recipe = parse(method)
            self._max_new_tokens, self._seed = max_new_tokens, seed
            self._model, self._processor = load_model(pretrained, device=device, dtype=dtype)
            family_of(self._model)  # a bare ViT loads too

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """The answer to texts and images in a row."""
        return self._answer([("user", message)], dataset)

    def chat_inner(self, messages: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """The answer to a chat."""
        return self._answer([(str(turn["role"]), turn["content"]) for turn in messages], dataset)

    def _answer(self, turns: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], dataset: str | None) -> str:
        asked = "\0".join(str(part["value"]) for _, parts in turns for part in parts)
        answer = Answer(self._max_new_tokens, seed=seed_of(self._seed, f"{dataset}\0{asked}", "tokens"))
        with _recording(str(dataset)):
            chat = to_chat([(role, [_read(part) for part in parts]) for role, parts in turns])
            answer_chats(self._model, self._processor, [chat], self._recipe, [answer])
        return answer.text


@contextmanager
def _recording(where: str) -> Iterator[None]:
    """Notes what is raised, and lets it pass."""
    try:
        yield
    except Exception as error:
        FAILED.append(f"{where}: {type(error).__name__}: {error}")
        raise


def _read(part: Mapping[str, Any]) -> Part:
    if part["type"] == "text":
        return str(part["value"])
    if part["type"] == "image":
        return load_image(part["value"])
    raise InputsError(f"parts of a message must be texts or images, got {part['type']!r}; leave such data sets out")
