"""What asks an OpenAI-compatible server as a judge: bounded in time and length, and silent about passwords."""

from __future__ import annotations

import base64
import json
import math
import queue
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any
from urllib.parse import unquote, urlsplit

from damro.eval.errors import EvalError
from damro.eval.judged.replies import Ask, JudgeReplyError

MAX_REPLY = 1 << 20
"""Bytes of a server's reply; two lines of grades take some hundred, reasons and lists some thousand."""
CONNECT_SECONDS = 5.0
_RETRIES = 4
_MAX_TOKENS = 64
_HIDDEN = "***"


def mask_endpoint(endpoint: str) -> str:
    """Return an address without the user, the password and the query that it may hold.

    Raises:
        EvalError: It is none of HTTP.

    Example:
        >>> mask_endpoint("http://user:pass@host:8000/v1?key=1")
        'http://***@host:8000/v1?***'
    """
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket left open, a port that is no number
        sound = False
    if not sound:
        shown = repr(endpoint.rpartition("@")[2][:80])
        raise EvalError(f"--endpoint must be an address such as http://127.0.0.1:8000/v1, got {shown}")
    user, at, host = parts.netloc.rpartition("@")
    query = f"?{_HIDDEN}" if parts.query else ""
    return f"{parts.scheme}://{_HIDDEN + at if at else ''}{host}{parts.path}{query}"


def secret_masker(endpoint: str, key: str | None) -> Callable[[str], str]:
    """Return what hides, in any text, the key and the user and password of an address, also as they travel.

    Example:
        >>> secret_masker("http://user:p%40ss@host/v1", "sk-1")("sk-1, p@ss and p%40ss at host")
        '***, *** and *** at host'
    """
    raw, plain = _login(endpoint)
    found = {key, urlsplit(endpoint).query}
    if raw:
        found |= {raw, plain, _encode(plain), *(one.partition(":")[2] or one.partition(":")[0] for one in (raw, plain))}
    secrets = sorted(filter(None, found), key=len, reverse=True)

    def mask(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, _HIDDEN)
        return text

    return mask


def openai_judge(
    endpoint: str, model: str, key: str | None, *, timeout: float = 60.0, max_tokens: int = _MAX_TOKENS
) -> Ask:
    """Return what asks an OpenAI-compatible server; connection faults and overload are tried again by the client.

    What it returns or raises holds neither the key nor the address' password, should the server echo them.

    Args:
        endpoint: The server's address, up to and with ``/v1``; a user and password in it are sent as basic
            authentication, instead of the key.
        model: The judge's name there.
        key: The key, or None for servers that want none.
        timeout: Seconds until an answer must be there, all tries together; connecting may take `CONNECT_SECONDS`.
        max_tokens: The longest reply; the default is for two lines of grades.

    Raises:
        EvalError: The ``openai`` package is not installed, the address is none, the timeout not above 0; when asking,
            the server refuses, cannot be reached or is late.
        JudgeReplyError: When asking, what the server sent is no whole chat completion with a text, or above
            `MAX_REPLY` bytes.
    """
    shown, mask = mask_endpoint(endpoint), secret_masker(endpoint, key)
    if not 0 < timeout < math.inf:
        raise EvalError(f"--timeout must be a number of seconds above 0, got {timeout}")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise EvalError("the judge's key must be of printable ASCII, got other characters: copy it again")
    try:
        import openai
    except ImportError as error:
        raise EvalError("judging needs the openai package: pip install 'damro[judge]'") from error
    client, library = _open_client(openai, endpoint, key, timeout)

    def send(text: str, image: bytes | None) -> bytes:
        # A model's answer may hold half of a surrogate pair, which has no UTF-8 form.
        content: list[Any] = [{"type": "text", "text": text.encode("utf-8", "replace").decode()}]
        if image is not None:
            address = "data:image/png;base64," + base64.b64encode(image).decode("ascii")
            content.append({"type": "image_url", "image_url": {"url": address}})
        with client.chat.completions.with_streaming_response.create(
            model=model, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=max_tokens
        ) as reply:
            return bytes(reply.read())

    def ask(text: str, image: bytes | None) -> str:
        try:
            return mask(read_completion(_within(timeout, lambda: send(text, image)), max_tokens))
        except JudgeReplyError as error:
            raise JudgeReplyError(mask(str(error))) from None
        except (TimeoutError, openai.APITimeoutError, library.TimeoutException):
            raise EvalError(
                f"--endpoint {shown} must answer within {timeout:g} s, did not: see whether the server runs, or give "
                "--timeout more seconds, then the same command again"
            ) from None
        except openai.OpenAIError as error:
            reason = mask(_one_line(_reason(error)))
            raise EvalError(f"--endpoint {shown} must answer, failed: {reason}; give the same command again") from None
        except library.HTTPError as error:
            raise JudgeReplyError(f"reply must be whole, was cut: {mask(_one_line(str(error)))}") from None

    return ask


def read_completion(body: bytes, max_tokens: int = _MAX_TOKENS) -> str:
    """Return the text of a chat completion.

    Args:
        body: What the server sent.
        max_tokens: What the reply was limited to, for the message.

    Raises:
        JudgeReplyError: It is none, holds no text, or was cut where a grade may have gone on.

    Example:
        >>> read_completion(b'{"choices": [{"message": {"content": "Accuracy: A=1 B=2"}}]}')
        'Accuracy: A=1 B=2'
    """
    try:
        choice = json.loads(body)["choices"][0]
        text, end = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        text, end = None, None
    if not isinstance(text, str) or not text.strip():
        start = _one_line(body[:400].decode("utf-8", "replace"))
        raise JudgeReplyError(f"reply must be a chat completion that holds a text, got {start[:120]!r}")
    if end == "length" and text[-1].isdigit():
        raise JudgeReplyError(f"reply must end by itself, was cut after {max_tokens} tokens: {text[-120:]!r}")
    return text


def _open_client(openai: Any, endpoint: str, key: str | None, timeout: float) -> tuple[Any, Any]:
    """The client, and the library that it speaks HTTP with: httpx, or httpx2 under newer versions."""
    library: Any = import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])

    class Bounded(library.SyncByteStream):  # type: ignore[misc]
        """A reply's bytes, of any status, up to the limit."""

        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            read = 0
            for chunk in self._stream:
                read += len(chunk)
                if read > MAX_REPLY:
                    raise JudgeReplyError(f"reply must be of at most {MAX_REPLY} bytes, is longer")
                yield chunk

        def close(self) -> None:
            self._stream.close()

    def bound(response: Any) -> None:
        response.stream = Bounded(response.stream)

    parts = urlsplit(endpoint)
    # Packed, a few bytes could become any number of them.
    headers = {"Accept-Encoding": "identity"}
    raw, plain = _login(endpoint)
    if raw:
        headers["Authorization"] = "Basic " + _encode(plain)
    client = openai.OpenAI(
        base_url=parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
        api_key=key or "none",
        default_headers=headers,
        timeout=openai.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
        max_retries=_RETRIES,
        http_client=openai.DefaultHttpxClient(event_hooks={"response": [bound]}),
    )
    return client, library


def _within(seconds: float, work: Callable[[], bytes]) -> bytes:
    """What the work returns, if it does so in time; a client's own limits hold between two bytes only."""
    done: queue.SimpleQueue[tuple[bytes, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # raised again below, in the thread that waits
            done.put((b"", error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, failure = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if failure is not None:
        raise failure
    return result


def _login(endpoint: str) -> tuple[str, str]:
    """The user and password of an address as written there, and as ``user:password``; twice nothing if it has none."""
    raw = urlsplit(endpoint).netloc.rpartition("@")[0]
    user, _, password = raw.partition(":")
    return raw, raw and f"{unquote(user)}:{unquote(password)}"


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")


def _reason(error: Any) -> str:
    """What the client says of a failure, with what it leaves out: the server's words, or what went wrong below."""
    words, body = str(error), getattr(error, "body", None)
    if body is not None and " - " not in words:
        return f"{words} - {body if isinstance(body, str) else json.dumps(body)}"
    return f"{words} ({error.__cause__})" if body is None and error.__cause__ else words


def _one_line(text: str) -> str:
    """A server's words as part of a message: printable, in one line, and not all of them."""
    words = "".join(letter if letter.isprintable() else " " for letter in text[:2000]).split()
    line = " ".join(words)
    return line if len(line) <= 300 else line[:297] + "..."
