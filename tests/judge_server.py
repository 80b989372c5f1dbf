"""An OpenAI-compatible server on loopback, for judges that are a function."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serve(reply: Callable[[str], str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server that answers with what a function makes of the text, and all that it is sent."""
    seen: list[dict[str, Any]] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            content = reply(seen[-1]["messages"][0]["content"][0]["text"])
            choices = [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}},
            ]
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
