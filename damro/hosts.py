"""Keeps what is served on this machine from other sites: only requests that name one of its own hosts are answered.

A site whose name its owner points to 127.0.0.1 (DNS rebinding) may otherwise speak to it from a visitor's
browser; its requests still carry the site's name in their Host header.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EVERY_ADDRESS = ("0.0.0.0", "::")
_REFUSED = b"The Host header must name the address that damro was told to listen on (--host).\n"

Message = MutableMapping[str, Any]


def is_own_host(header: str, host: str) -> bool:
    """Whether a Host header names the loopback or the address that is listened on.

    A page that listens on every address is found under any of them in digits: a rebound name has none.

    Args:
        header: the header, with or without a port.
        host: the address that the page listens on, as given.

    Example:
        >>> [is_own_host(header, "127.0.0.1") for header in ("localhost:7860", "[::1]:7860", "evil.example:7860", "")]
        [True, True, False, False]
        >>> is_own_host("192.168.1.5:80", "0.0.0.0"), is_own_host("192.168.1.5:80", "127.0.0.1")
        (True, False)
    """
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    own = host.strip("[]").lower()
    if name in (*LOOPBACK, own):
        return True
    return own in _EVERY_ADDRESS and _is_address(name)


class OwnHostOnly:
    """ASGI middleware: answers 421 to what :func:`is_own_host` does not know, or names no host or several."""

    def __init__(self, app: Callable[..., Awaitable[None]], host: str) -> None:
        self._app = app
        self._host = host

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        """Passes a request on, or refuses it."""
        named = [value.decode("latin-1") for key, value in scope.get("headers", []) if key == b"host"]
        if scope["type"] == "lifespan" or (len(named) == 1 and is_own_host(named[0], self._host)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(_REFUSED)).encode())]
            await send({"type": "http.response.start", "status": 421, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSED})


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
