"""Requests as other tools send them, recorded from their runs against the endpoint or read in their sources."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

import damro
from damro.inputs import prepare_inputs
from damro.loading import Loaded, load_model
from damro.tiny import scene

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
from serve_server import as_url, serving  # noqa: E402

QUESTION = "Is there a dog in the image?"
PICTURE = scene("test", 5).image
TEXT = {"type": "text", "text": QUESTION}
URL = as_url(PICTURE, "PNG")
TOOL = {"type": "function", "function": {"name": "get_current_timestamp", "parameters": {"type": "object"}}}

# What each sends beside the model's name, and the method that answers it.
CLIENTS: dict[str, tuple[dict[str, Any], str]] = {
    # evalscope 1.14.1, --datasets pope
    "evalscope": (
        {
            "messages": [
                {"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}}]}
            ],
            "method": "damro:alpha=0.5",
        },
        "damro:alpha=0.5",
    ),
    # evalscope 1.14.1, --generation-config with stream
    "evalscope, streamed": (
        {
            "stream": True,
            "messages": [
                {"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}}]}
            ],
            "max_tokens": 64,
            "seed": 3,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
        },
        "damro",
    ),
    # ms-vlmeval 0.0.20, --base-url, but for JPEG
    "VLMEvalKit": (
        {
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}, TEXT]}],
            "n": 1,
            "max_tokens": 64,
            "temperature": 0.0,
            "method": "vcd",
            "noise_step": 700,
        },
        "vcd:noise_step=700",
    ),
    # lmms-eval 0.7.3, --model openai, a task with top_p: 0
    "lmms-eval": (
        {
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}, TEXT]}],
            "max_tokens": 24,
            "temperature": 0,
            "top_p": 0,
        },
        "damro",
    ),
    # Open WebUI 0.12.4, a chat in its page, which offers its own tools
    "Open WebUI": (
        {
            "stream": True,
            "messages": [{"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": URL}}]}],
            "stream_options": {"include_usage": True},
            "tools": [TOOL],
        },
        "damro",
    ),
}


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load_model("tiny")


@pytest.fixture(scope="module")
def address(tiny: Loaded) -> Iterator[str]:
    with serving(*tiny) as (address, _):
        yield address


def send(address: str, body: dict[str, Any]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "tiny", **body}), headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def text_of(reply: str) -> str:
    if not reply.startswith("data: "):
        return str(json.loads(reply)["choices"][0]["message"]["content"])
    *events, end = reply.split("\n\n")[:-1]
    assert end == "data: [DONE]"
    choices = [choice for one in events for choice in json.loads(one.removeprefix("data: "))["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize("client", CLIENTS)
def test_what_tools_send_is_answered_as_generate_does(client: str, address: str, tiny: Loaded) -> None:
    body, method = CLIENTS[client]
    status, reply = send(address, body)
    assert status == 200, reply
    inputs = prepare_inputs(tiny.processor, [PICTURE], [QUESTION], tiny.model)
    ids = damro.generate(tiny.model, inputs, method, processor=tiny.processor, max_new_tokens=24, do_sample=False)
    assert text_of(reply) == tiny.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_title_that_open_webui_asks_for_is_written_without_an_image(address: str, tiny: Loaded) -> None:
    asked = "### Task:\nGenerate a title.\n<chat_history>\nUSER: Is there a dog?\nASSISTANT: Yes\n</chat_history>"
    status, reply = send(
        address, {"messages": [{"role": "user", "content": asked}], "stream": False, "max_tokens": 1000}
    )
    assert status == 200, reply
    inputs = tiny.processor(text=f"USER: {asked} ASSISTANT:", return_tensors="pt")
    ids = tiny.model.generate(**inputs, max_new_tokens=1000, do_sample=False)
    assert text_of(reply) == tiny.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
