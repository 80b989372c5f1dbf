"""What a client reads: OpenAI's objects."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from damro.answering import Answer
from damro.methods import METHODS, Recipe
from damro.parameters import parameters

DONE = b"data: [DONE]\n\n"
"""The end of a stream."""


class Reply:
    """The objects that answer one request.

    Args:
        model: the model's name.
        recipe: the method, which every object names beside what OpenAI's have.
    """

    def __init__(self, model: str, recipe: Recipe) -> None:
        self._common = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "method": recipe.text,
        }

    def whole(self, answer: Answer, prompt_tokens: int) -> dict[str, Any]:
        """The whole answer."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": answer.reason, "logprobs": None}
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(answer, prompt_tokens),
        }

    def piece(self, delta: dict[str, str], reason: str | None = None) -> bytes:
        """An event with what is new: a role, a text, or why the answer ended."""
        return self._event([{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}])

    def usage(self, answer: Answer, prompt_tokens: int) -> bytes:
        """The event with the numbers of tokens."""
        return self._event([], usage=_usage(answer, prompt_tokens))

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return event({**self._common, "object": "chat.completion.chunk", "choices": choices, **more})


def event(value: dict[str, Any]) -> bytes:
    """An object as an event of a stream."""
    return f"data: {json.dumps(value)}\n\n".encode()


def models(model: str, since: int) -> dict[str, Any]:
    """The list of models, which is one, with the methods it can be asked by and their parameters."""
    methods = {name: [one.name for one in parameters(owner)] for name, owner in METHODS.items()}
    card = {"id": model, "object": "model", "created": since, "owned_by": "damro", "methods": methods}
    return {"object": "list", "data": [card]}


def _usage(answer: Answer, prompt_tokens: int) -> dict[str, int]:
    new = len(answer.tokens)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": new, "total_tokens": prompt_tokens + new}
