"""The endpoint on a free port of this machine, and what its clients send."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from damro.methods import parse
from damro.serve.app import Endpoint, build_app, listen, make_server


@contextmanager
def serving(model: Any, processor: Any, method: str = "damro", **options: Any) -> Iterator[tuple[str, Endpoint]]:
    """The address, as long as the context is open, and the endpoint behind it."""
    endpoint = Endpoint(model, processor, "tiny", parse(method), **options)
    server = make_server(build_app(endpoint))
    taken = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{taken.getsockname()[1]}", endpoint
    finally:
        server.should_exit = True
        thread.join()
        taken.close()


def as_url(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(question: str, *images: Image.Image, kind: str = "PNG") -> list[Any]:
    """The messages of one question."""
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": as_url(image, kind)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
