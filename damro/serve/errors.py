"""What a client is told when there is no answer: a status and OpenAI's error body."""

from __future__ import annotations

from typing import Any

import torch

from damro.errors import DecodingError, NonFiniteScoresError

_CLIENTS = "invalid_request_error"
_SERVERS = "server_error"


class RequestError(ValueError):
    """A request that gets no answer.

    Attributes:
        status: of HTTP.
        code: OpenAI's word for it, or None.
        param: the field that is wrong, or None.
    """

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """What OpenAI's clients read.

        Example:
            >>> RequestError("n must be 1, got 2", param="n").body["error"]["type"]
            'invalid_request_error'
        """
        kind = _CLIENTS if self.status < 500 else _SERVERS
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def as_request_error(error: Exception) -> RequestError | None:
    """What to tell a client of an error while answering; None of one that is a bug of this program's own."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, NonFiniteScoresError):
        return RequestError(str(error), status=500, code="non_finite_scores")
    if isinstance(error, DecodingError):
        return RequestError(str(error))
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        told = "memory must suffice for the images and the answer, and did not; send smaller images or ask for less"
        return RequestError(told, status=503, code="out_of_memory")
    return None
