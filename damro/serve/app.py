"""The endpoint: chat completions, the list of models, and whether it is well."""

from __future__ import annotations

import asyncio
import hmac
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from transformers import PreTrainedModel

from damro.answering import Answer
from damro.hosts import OwnHostOnly
from damro.methods import Recipe
from damro.serve.batching import Batcher, Job
from damro.serve.errors import RequestError, as_request_error
from damro.serve.replies import DONE, Reply, event, models
from damro.serve.requests import Limits, read_request

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError as error:
    missing = (error.name or "").partition(".")[0]
    raise ImportError(
        f"damro serve needs the package {missing}, which is not installed; pip install 'damro[serve]'", name=missing
    ) from error

_GRACE = 5  # seconds that answers have to end when the server does
_BACKLOG = 128
_COMPLETIONS = "/v1/chat/completions"
_OWN_FAULT = "the server failed, which is a fault of its own; its log says more"


class Endpoint:
    """Answers requests of HTTP with one model.

    Args:
        model: the model.
        processor: its processor.
        name: what clients call it.
        recipe: the method of requests that name none.
        limits: what may be asked for.
        batch_size: requests that are answered together.
        api_key: what clients must send as ``Authorization: Bearer ...``; None for no such thing.

    Attributes:
        name: see above.
        recipe: likewise.
        limits: likewise.
        open: requests for an answer that are read, wait or are answered.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        name: str,
        recipe: Recipe,
        *,
        limits: Limits | None = None,
        batch_size: int = 8,
        api_key: str | None = None,
    ) -> None:
        self.name = name
        self.recipe = recipe
        self.limits = limits or Limits()
        self._batcher = Batcher(model, processor, batch_size)
        self._api_key = api_key
        self._since = int(time.time())
        self.open = 0

    def close(self) -> None:
        """Ends all answers and lets the model go."""
        self._batcher.close()

    async def complete(self, request: Request) -> ASGIApp:
        """POST /v1/chat/completions."""
        self._check_key(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a page elsewhere may have a browser send other types without asking first
            raise RequestError(f"Content-Type must be application/json, got {kind!r}", status=415)
        body = await _read(request, self.limits.body_bytes)
        asked = await asyncio.to_thread(read_request, body, self.name, self.recipe, self.limits)
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        put = _putting(pieces)
        job = Job(asked, put if asked.stream else None)
        job.result.add_done_callback(lambda result: put(None))
        self._batcher.submit(job)
        async with _following(request, job):
            first = await pieces.get()  # what cannot be answered has a status of its own in a stream, too
            reply = Reply(self.name, asked.recipe)
            if first is None:
                answer, length = _result(job)
            if asked.stream:
                return _Stream(request, job, first, pieces, reply)
            return JSONResponse(reply.whole(answer, length))

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        self._check_key(request)
        return JSONResponse(models(self.name, self._since))

    async def show_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self._check_key(request)
        if request.path_params["name"] != self.name:
            told = f"model must be {self.name!r}, the one that is served, got {request.path_params['name']!r}"
            raise RequestError(told, status=404, code="model_not_found", param="model")
        return JSONResponse(models(self.name, self._since)["data"][0])

    async def tell_health(self, request: Request) -> Response:
        """GET /health, for whoever watches over the server; needs no key."""
        return JSONResponse({"status": "ok", "model": self.name, "open_requests": self.open})

    def _check_key(self, request: Request) -> None:
        if self._api_key is None:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._api_key.encode()):
            told = "Authorization must be 'Bearer KEY' with the key that the server was started with; send it"
            raise RequestError(told, status=401, code="invalid_api_key")


class _Stream:
    """An answer as it is written, in events; a response of Starlette's kind."""

    def __init__(
        self, request: Request, job: Job, first: str | None, pieces: asyncio.Queue[str | None], reply: Reply
    ) -> None:
        self._request, self._job, self._first, self._pieces, self._reply = request, job, first, pieces, reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with _following(self._request, self._job):
            async for sent in self._events():
                await send({"type": "http.response.body", "body": sent, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        yield self._reply.piece({"role": "assistant", "content": ""})
        piece = self._first
        while piece is not None:
            yield self._reply.piece({"content": piece})
            piece = await self._pieces.get()
        try:
            answer, length = _result(self._job)
        except RequestError as error:  # the status has been sent: an event has to tell
            yield event(error.body)
            return
        yield self._reply.piece({}, answer.reason)
        if self._job.asked.include_usage:
            yield self._reply.usage(answer, length)
        yield DONE


class _NotTooMany:
    """ASGI middleware: sends requests for an answer away while as many as may be are open."""

    def __init__(self, app: ASGIApp, endpoint: Endpoint) -> None:
        self._app, self._endpoint = app, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint, most = self._endpoint, self._endpoint.limits.waiting
        if scope["type"] != "http" or scope["path"] != _COMPLETIONS:
            await self._app(scope, receive, send)
        elif endpoint.open >= most:
            told = f"at most {most} requests may wait at once, and so many do; try again later"
            error = RequestError(told, status=429, code="rate_limit_exceeded")
            await JSONResponse(error.body, 429, {"Retry-After": "1"})(scope, receive, send)
        else:
            endpoint.open += 1
            try:
                await self._app(scope, receive, send)
            finally:
                endpoint.open -= 1


def build_app(endpoint: Endpoint, host: str = "127.0.0.1") -> Starlette:
    """Puts an endpoint behind its paths.

    Args:
        endpoint: what answers; it is closed when the server ends.
        host: the address that will be listened on: requests that name another host are refused.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(endpoint.close)

    return Starlette(
        routes=[
            Route(_COMPLETIONS, endpoint.complete, methods=["POST"]),
            Route("/v1/models", endpoint.list_models),
            Route("/v1/models/{name:path}", endpoint.show_model),
            Route("/health", endpoint.tell_health),
        ],
        middleware=[Middleware(OwnHostOnly, host=host), Middleware(_NotTooMany, endpoint=endpoint)],
        exception_handlers={
            ClientDisconnect: _tell_nobody,
            HTTPException: _tell_path,
            RequestError: _tell_error,
            Exception: _tell_error,
        },
        lifespan=lifespan,
    )


def listen(host: str, port: int) -> socket.socket:
    """Takes a port, 0 for any that is free.

    Raises:
        OSError: it is taken, or there is no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]"), port), family=family, backlog=_BACKLOG)


def make_server(app: Starlette) -> uvicorn.Server:
    """A server whose ``run(sockets=[...])`` answers until it is interrupted, or `should_exit` is set."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=_GRACE
    )
    return uvicorn.Server(config)


async def _read(request: Request, most: int) -> bytes:
    """The body; of one that is too large the rest is read and dropped, or its sender would never hear why."""
    read, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            read.append(part)
        else:
            read.clear()
    if size > most:
        told = f"body must have at most {most} bytes, got {size}; send fewer or smaller images"
        raise RequestError(told, status=413, code="request_too_large")
    return b"".join(read)


@asynccontextmanager
async def _following(request: Request, job: Job) -> AsyncIterator[None]:
    """Cancels a job whose client hangs up."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    waiting = asyncio.create_task(wait())
    try:
        yield
    except BaseException:
        job.cancel()
        raise
    finally:
        waiting.cancel()


def _putting(pieces: asyncio.Queue[str | None]) -> Callable[[str | None], None]:
    """What puts pieces into a queue of this loop from another thread."""
    loop = asyncio.get_running_loop()

    def put(piece: str | None) -> None:
        with suppress(RuntimeError):  # the loop is closed, and with it all that wait
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    return put


def _result(job: Job) -> tuple[Answer, int]:
    """What came of a job that has ended; the traceback of a bug goes to stderr, and the client is told of none."""
    try:
        return job.result.result(timeout=0)
    except Exception as error:
        told = as_request_error(error)
        if told is None:
            traceback.print_exception(error)
            told = RequestError(_OWN_FAULT, status=500)
        raise told from error


async def _tell_error(request: Request, error: Exception) -> Response:
    told = error if isinstance(error, RequestError) else RequestError(_OWN_FAULT, status=500)
    return JSONResponse(told.body, told.status)


async def _tell_nobody(request: Request, error: Exception) -> Response:
    """One who hangs up before the body is there reads nothing."""
    return Response(status_code=499)


async def _tell_path(request: Request, error: Exception) -> Response:
    """Of a path or a verb that there is not."""
    assert isinstance(error, HTTPException)
    told = f"{request.method} {request.url.path} must be one of the endpoint's, such as POST {_COMPLETIONS}"
    return JSONResponse(RequestError(told, status=error.status_code).body, error.status_code, error.headers)
