"""The app on a free port of this machine."""

from __future__ import annotations

import gc
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def collected_leftovers() -> Iterator[None]:
    """Collects the sockets and event loops that Gradio's server leaves behind, without a word about them.

    Otherwise they warn wherever the garbage collector happens to run next, in some other test.
    """
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(model: Any, processor: Any) -> Iterator[str]:
    """The address of the app, as long as the context is open."""
    from damro.pages.app import build_app, serve_app

    with collected_leftovers():
        page = build_app(model, processor, "golden")
        try:
            yield serve_app(page, port=free_port(), block=False)
        finally:
            page.close()
            del page
