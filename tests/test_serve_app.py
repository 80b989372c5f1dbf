"""The endpoint over real HTTP, asked with OpenAI's own client."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import damro
from damro.inputs import prepare_inputs
from damro.loading import Loaded, load_model
from damro.serve.errors import RequestError
from damro.serve.requests import Limits
from damro.tiny import scene

openai = pytest.importorskip("openai", reason="openai is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
from serve_server import ask, serving  # noqa: E402

CAPTION = "Generate a short caption of this image."


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load_model("tiny")


@pytest.fixture(scope="module")
def address(tiny: Loaded) -> Iterator[str]:
    with serving(*tiny) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client: Any, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=messages, max_tokens=24, **options)


def wait_until_empty(endpoint: Any) -> None:
    """A request is counted until the server is done with it, which is a moment after its answer has arrived."""
    end = time.monotonic() + 30
    while endpoint.open and time.monotonic() < end:
        time.sleep(0.01)
    assert endpoint.open == 0


def text_of(client: Any, messages: list[Any], **options: Any) -> str:
    return str(complete(client, messages, **options).choices[0].message.content)


def generated(tiny: Loaded, method: str, question: str, image: Image.Image) -> tuple[str, int]:
    """The text and the number of tokens that :func:`damro.generate` has."""
    inputs = prepare_inputs(tiny.processor, [image], [question], tiny.model)
    ids = damro.generate(tiny.model, inputs, method, processor=tiny.processor, max_new_tokens=24, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return tiny.processor.decode(new, skip_special_tokens=True), len(new)


@pytest.mark.parametrize("method", ["greedy", "damro", "damro:alpha=3,top_k=2", "vcd:noise_step=700", "icd", "m3id"])
def test_answers_are_those_of_generate(client: Any, tiny: Loaded, method: str) -> None:
    picture = scene("test", 5).image
    found = complete(client, ask(CAPTION, picture), extra_body={"method": method})
    text, length = generated(tiny, method, CAPTION, picture)
    assert found.choices[0].message.content == text
    assert found.usage.completion_tokens == length
    assert found.usage.total_tokens == found.usage.prompt_tokens + length
    assert found.choices[0].finish_reason == "stop"
    assert found.method == method


def test_parameters_of_a_method_may_stand_beside_it(client: Any, tiny: Loaded) -> None:
    picture = scene("test", 2).image
    beside = complete(client, ask(CAPTION, picture), extra_body={"method": "vcd", "noise_step": 900, "alpha": 4})
    assert beside.method == "vcd:alpha=4,noise_step=900"
    assert beside.choices[0].message.content == generated(tiny, "vcd:alpha=4,noise_step=900", CAPTION, picture)[0]
    assert complete(client, ask(CAPTION, picture), extra_body={"top_k": 3}).method == "damro:top_k=3"


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}, {"stop": [" and", "snow"]}, {"stop": "A"}])
def test_a_stream_is_the_same_answer_in_pieces(client: Any, options: dict[str, Any]) -> None:
    messages = ask(CAPTION, scene("test", 2).image)
    whole = complete(client, messages, **options)
    chunks = list(complete(client, messages, stream=True, stream_options={"include_usage": True}, **options))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(piece for piece in pieces if piece) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1
    if not options:
        assert sum(bool(piece) for piece in pieces) > 3


def test_it_ends_before_a_stop_text_and_at_its_length(client: Any) -> None:
    messages = ask(CAPTION, scene("test", 2).image)
    whole = text_of(client, messages)
    assert text_of(client, messages, stop=[" and"]) == whole.partition(" and")[0] != whole
    cut = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2
    assert whole.startswith(cut.choices[0].message.content)


def test_a_seed_settles_what_is_sampled(client: Any) -> None:
    messages = ask(CAPTION, scene("test", 1).image)
    drawn = [text_of(client, messages, temperature=2.0, seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    assert text_of(client, messages, temperature=2.0, top_p=0, seed=2) == text_of(client, messages)


def test_what_waits_is_answered_together_and_each_as_alone(tiny: Loaded) -> None:
    questions = [CAPTION, "Is there a dog in the image?", "Describe this image in detail."]
    sizes = [(96, 96), (300, 80), (40, 200), (96, 96)]
    asked = [(questions[n % 3], scene("test", n).image.resize(sizes[n % 4])) for n in range(8)]
    with serving(*tiny) as (address, endpoint):
        batches: list[int] = []
        answer = endpoint._batcher._answer_together
        gate = threading.Event()

        def recording(batch: Any) -> None:
            gate.wait()
            batches.append(len(batch))
            answer(batch)

        endpoint._batcher._answer_together = recording  # type: ignore[method-assign]
        with (
            openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as one,
            openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as other,
            ThreadPoolExecutor(8) as pool,
        ):
            futures = [
                pool.submit(text_of, (one, other)[n % 2], ask(*told), extra_body={"method": ("damro", "vcd")[n == 5]})
                for n, told in enumerate(asked)
            ]
            while endpoint.open < 8:
                time.sleep(0.01)
            time.sleep(0.3)  # the last has been counted, and is now read
            gate.set()
            found = [future.result() for future in futures]
    expected = [generated(tiny, ("damro", "vcd")[n == 5], *told)[0] for n, told in enumerate(asked)]
    assert found == expected
    assert sum(batches) == 8 and max(batches) >= 4


def test_texts_alone_and_several_images_are_answered(client: Any, tiny: Loaded) -> None:
    inputs = tiny.processor(text="USER: Hello. ASSISTANT:", return_tensors="pt")
    ids = tiny.model.generate(**inputs, max_new_tokens=24, do_sample=False)
    alone = tiny.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text_of(client, [{"role": "user", "content": "Hello."}]) == alone
    pictures = [scene("test", 3).image, scene("test", 4).image]
    text = "USER: <image>\n<image>\nIs there a cat? ASSISTANT:"
    both = tiny.processor(images=pictures, text=text, return_tensors="pt")
    ids = damro.generate(tiny.model, both, "damro", max_new_tokens=24, do_sample=False)
    expected = tiny.processor.decode(ids[0, both["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text_of(client, ask("Is there a cat?", *pictures)) == expected


def test_images_stand_where_the_text_of_their_message_has_marks(client: Any, tiny: Loaded) -> None:
    pictures = [scene("test", 3).image, scene("test", 4).image]
    text = "USER: Look: <image>\nand <image>\nIs there a cat? ASSISTANT:"
    inputs = tiny.processor(images=pictures, text=text, return_tensors="pt")
    ids = damro.generate(tiny.model, inputs, "damro", max_new_tokens=24, do_sample=False)
    expected = tiny.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for order in (slice(None), slice(None, None, -1)):  # tools send the texts first, or the images
        [asked] = ask("Look: <image>and <image>Is there a cat?", *pictures)
        images, words = asked["content"][:2], asked["content"][2:]
        parts = [images, words][order]
        message = {"role": "user", "content": [*parts[0], *parts[1]]}
        assert text_of(client, [message]) == expected


def test_earlier_turns_are_read(client: Any, tiny: Loaded) -> None:
    picture = scene("test", 6).image
    chat = [
        *ask("Is there a dog in the image?", picture),
        {"role": "assistant", "content": "No"},
        {"role": "user", "content": CAPTION},
    ]
    text = f"USER: <image>\nIs there a dog in the image? ASSISTANT: No</s> USER: {CAPTION} ASSISTANT:"
    inputs = tiny.processor(images=picture, text=text, return_tensors="pt")
    ids = damro.generate(tiny.model, inputs, "damro", max_new_tokens=24, do_sample=False)
    expected = tiny.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text_of(client, chat) == expected


def test_an_image_of_20_megabytes_is_answered_and_a_larger_body_refused(client: Any, tiny: Loaded) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2650, 2650, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    [asked] = ask(CAPTION, picture, kind="BMP")  # quicker to write than PNG
    assert len(asked["content"][0]["image_url"]["url"]) * 3 / 4 > 20_000_000
    assert text_of(client, [asked]) == generated(tiny, "damro", CAPTION, picture)[0]
    with pytest.raises(openai.APIStatusError, match=r"body must have at most 33554432 bytes, got \d+") as caught:
        complete(client, [asked, asked])
    assert caught.value.status_code == 413


def put(url: Any, kind: str = "image_url") -> list[Any]:
    return [{"role": "user", "content": [{"type": kind, "image_url": {"url": url}}, {"type": "text", "text": "?"}]}]


GOOD = ask(CAPTION, scene("test", 0).image)
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("http image", {"messages": put("http://example.com/a.png")}, "since this server fetches nothing, got"),
    ("file image", {"messages": put("file:///etc/passwd")}, r"image_url.url must be a data URL .*'file:///etc/passwd'"),
    ("no base64", {"messages": put("data:image/png;base64,****")}, r"image_url.url must hold valid base64, got"),
    ("no image", {"messages": put("data:image/png;base64,AAAA")}, "a file that Pillow can open, got 'image 1 of"),
    ("large image", {"messages": ask("?", Image.new("L", (6000, 5000)))}, "image must have at most 25000000 pixels"),
    ("audio", {"messages": put("", "input_audio")}, r"messages\[0\].content\[0\] must be a part"),
    ("many images", {"messages": ask("?", *[Image.new("L", (8, 8))] * 17)}, "about at most 16 images, got 17"),
    ("image token", {"messages": [{"role": "user", "content": "a <image>?"}]}, "must not hold the model's image token"),
    ("marks", {"messages": ask("a <image> <image>?", Image.new("L", (8, 8)))}, "for every image or none, got 2 for 1"),
    ("no messages", {"messages": []}, "messages must be a list of at least one message"),
    ("role", {"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role must be one of system, .*'tool'"),
    ("last", {"messages": [{"role": "assistant", "content": "x"}]}, "must be user in the last message, got"),
    ("method", {"extra_body": {"method": "damra"}}, "method must be one of .*'damra'; did you mean 'damro'"),
    ("parameter", {"extra_body": {"noise_step": 3}}, "damro must have parameters of .* got 'noise_step'"),
    ("unknown", {"extra_body": {"colour": 3}}, "body must hold fields of OpenAI's .* got 'colour'"),
    ("range", {"extra_body": {"alpha": -1}}, "alpha must be a finite number >= 0, got -1"),
    ("text", {"extra_body": {"alpha": "1"}}, "alpha must be a finite number >= 0, got '1'"),
    ("twice", {"extra_body": {"method": "damro@1"}, "temperature": 0.5}, "temperature must be left out .* got 0.5"),
    ("endless", {"extra_body": {"temperature": 10**400}}, "temperature must be a number"),
    ("much", {"messages": ask("?", *[Image.new("L", (4000, 4000))] * 2)}, "at most 25000000 pixels together, got 32"),
    ("temperature", {"temperature": -1}, "temperature must be a number"),
    ("top_p", {"top_p": 1.5}, r"top_p must be a number in \[0, 1\], got 1.5"),
    ("tools", {"tools": [TOOL], "tool_choice": "required"}, 'tool_choice must be "none" or "auto", as nothing else'),
    ("penalty", {"extra_body": {"repetition_penalty": 1.1}}, "repetition_penalty must be 1, as nothing else is done"),
    ("n", {"n": 2}, "n must be 1, as nothing else is done here, got 2"),
    ("stop", {"stop": [""]}, "stop must be a text that is not empty"),
    ("tokens", {"extra_body": {"max_tokens": 5000}}, "max_tokens must be a whole number from 1 to 4096, got 5000"),
    ("context", {"messages": [{"role": "user", "content": "cat " * 2000}]}, "prompt must leave room"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_told_in_openais_form(
    client: Any, options: dict[str, Any], message: str, stream: bool
) -> None:
    given = {"messages": GOOD, "stream": stream, **options}
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.chat.completions.create(model="tiny", **given)
    assert caught.value.type == "invalid_request_error"
    assert len(str(caught.value)) < 700  # no image comes back


def test_there_is_one_model(client: Any) -> None:
    [model] = client.models.list()
    assert model.id == client.models.retrieve("tiny").id == "tiny"
    assert "noise_step" in model.methods["vcd"]
    for call in (
        lambda: client.models.retrieve("gpt"),
        lambda: client.chat.completions.create(model="gpt", messages=GOOD),
    ):
        with pytest.raises(openai.NotFoundError, match="model must be 'tiny', the one that is served, got 'gpt'"):
            call()


def raw(address: str, path: str, **options: Any) -> tuple[int, Any]:
    """What plain HTTP gets."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        connection.request(options.pop("verb", "GET"), path, **options)
        reply = connection.getresponse()
        text = reply.read().decode()
        return reply.status, json.loads(text) if "json" in reply.headers["content-type"] else text
    finally:
        connection.close()


def test_a_page_elsewhere_reaches_nothing(address: str) -> None:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}]})
    path = "/v1/chat/completions"
    assert raw(address, path, verb="POST", body=body, headers={"Content-Type": "text/plain"})[0] == 415
    assert raw(address, path, verb="POST", body=body, headers={"Host": "evil.example"})[0] == 421
    assert raw(address, "/health")[1]["status"] == "ok"
    for place, status in (("/v1/nothing", 404), (path, 405)):
        found = raw(address, place)
        assert found[0] == status and "POST /v1/chat/completions" in found[1]["error"]["message"]
    found = raw(address, path, verb="POST", body="{", headers={"Content-Type": "application/json"})
    assert found[0] == 400 and found[1]["error"]["message"].startswith("body must be JSON, got JSONDecodeError")


def test_without_the_key_there_is_no_answer(tiny: Loaded) -> None:
    with serving(*tiny, api_key="secret") as (address, _):
        with openai.OpenAI(base_url=f"{address}/v1", api_key="secreT", max_retries=0) as wrong:
            for call in (lambda: complete(wrong, GOOD), wrong.models.list, lambda: wrong.models.retrieve("tiny")):
                with pytest.raises(openai.AuthenticationError, match="Bearer KEY") as caught:
                    call()
                assert "secret" not in str(caught.value)
        with openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0) as right:
            assert text_of(right, GOOD)
        assert raw(address, "/health")[0] == 200


def test_more_than_may_wait_are_sent_away(tiny: Loaded) -> None:
    with serving(*tiny, limits=Limits(waiting=2)) as (address, endpoint):
        gate = threading.Event()
        answer = endpoint._batcher._answer_together
        endpoint._batcher._answer_together = lambda batch: (gate.wait(), answer(batch))[1]  # type: ignore[method-assign]
        with (
            openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
            ThreadPoolExecutor(2) as pool,
        ):
            first = [pool.submit(text_of, client, GOOD) for _ in range(2)]
            while endpoint.open < 2:
                time.sleep(0.01)
            with pytest.raises(openai.RateLimitError, match="at most 2 requests may wait at once"):
                complete(client, GOOD)
            gate.set()
            assert first[0].result() == first[1].result()
        wait_until_empty(endpoint)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_its_answer_and_no_other(tiny: Loaded, stream: bool) -> None:
    with serving(*tiny) as (address, endpoint):
        entered, gate = threading.Event(), threading.Event()
        jobs: list[Any] = []
        answer = endpoint._batcher._answer_together

        def held(batch: Any) -> None:
            jobs.extend(batch)
            entered.set()
            gate.wait()
            answer(batch)

        endpoint._batcher._answer_together = held  # type: ignore[method-assign]
        body = json.dumps({"model": "tiny", "messages": GOOD, "max_tokens": 4000, "stream": stream}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) as leaving:
            leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert entered.wait(30)
        while not jobs[0].cancelled:
            time.sleep(0.01)
        gate.set()
        with pytest.raises(RequestError):
            jobs[0].result.result(30)
        assert len(jobs[0]._answer.tokens) <= 1
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            assert text_of(client, GOOD)
        wait_until_empty(endpoint)


def test_a_client_that_hangs_up_while_it_sends_is_nothing_to_speak_of(tiny: Loaded, capfd: Any) -> None:
    with serving(*tiny) as (address, endpoint):
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) as leaving:
            leaving.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
            while not endpoint.open:
                time.sleep(0.01)
        while endpoint.open:
            time.sleep(0.01)
    assert capfd.readouterr().err == ""


def test_one_that_fails_takes_no_other_with_it(tiny: Loaded, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from damro.serve import batching

    def failing(model: Any, processor: Any, chats: Any, recipe: Any, answers: Any, **options: Any) -> list[int]:
        if any(answer.max_new_tokens == 7 for answer in answers):
            raise KeyError("a bug")
        return real(model, processor, chats, recipe, answers, **options)

    real = batching.answer_chats
    monkeypatch.setattr(batching, "answer_chats", failing)
    with serving(*tiny) as (address, _), openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
        with ThreadPoolExecutor(4) as pool:
            good = [pool.submit(text_of, client, GOOD) for _ in range(3)]
            bad = pool.submit(client.chat.completions.create, model="tiny", messages=GOOD, max_tokens=7)
            with pytest.raises(openai.InternalServerError, match="a fault of its own; its log says more"):
                bad.result()
            assert len({future.result() for future in good}) == 1
    assert "KeyError: 'a bug'" in capsys.readouterr().err
