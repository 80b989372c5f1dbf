"""Answers of a batch, each by its own rules."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

import damro
from damro.answering import Answer, answer_chats
from damro.errors import InputsError, ParameterError, UnsupportedModelError
from damro.inputs import Chat, prepare_chats, prepare_inputs
from damro.loading import Loaded, load_model
from damro.methods import parse
from damro.tiny import path, scene

LETTERS = {1: "a", 2: "b", 3: " ", 4: "c", 9: ""}


def spell(tokens: list[int]) -> str:
    """Two tokens of 5 make one letter; a single one is none yet."""
    text, halves = "", 0
    for token in tokens:
        halves += token == 5
        text += "ü" if token == 5 and halves % 2 == 0 else LETTERS.get(token, "")
    return text + ("\ufffd" if halves % 2 else "")


def written(tokens: list[int], **options: Any) -> tuple[Answer, list[str]]:
    pieces: list[str] = []
    answer = Answer(options.pop("max_new_tokens", 99), tell=pieces.append, **options)
    for token in tokens:
        answer.add(token, spell, [9])
    return answer, pieces


@pytest.mark.parametrize(
    ("tokens", "options", "text", "reason", "pieces"),
    [
        ([1, 2, 9, 1], {}, "ab", "stop", ["a", "b"]),
        ([1, 2, 3], {"max_new_tokens": 2}, "ab", "length", ["a", "b"]),
        ([1, 5, 5, 2], {}, "aüb", None, ["a", "ü", "b"]),
        ([1, 5], {"max_new_tokens": 2}, "a\ufffd", "length", ["a", "\ufffd"]),
        ([1, 2, 3, 4, 2], {"stop": ["b c"]}, "a", "stop", ["a"]),
        ([1, 2, 3, 1, 9], {"stop": ["b c"]}, "ab a", "stop", ["a", "b a"]),
        ([1, 2, 9], {"stop": ["b c"]}, "ab", "stop", ["a", "b"]),
        ([1, 2, 1, 2, 4], {"stop": ["ac", "bc"]}, "aba", "stop", ["a", "b", "a"]),
        ([2, 1, 2], {"stop": ["ab", "b"]}, "", "stop", []),
    ],
)
def test_an_answer_ends_and_is_told(
    tokens: list[int], options: dict[str, Any], text: str, reason: str | None, pieces: list[str]
) -> None:
    answer, told = written(tokens, **options)
    assert (answer.text, answer.reason) == (text, reason)
    assert "".join(told) == text and told == pieces


def test_one_that_is_cancelled_takes_one_more_token_and_no_other() -> None:
    answer = Answer(9)
    assert not answer.add(1, spell, [9])
    answer.cancel()
    assert answer.add(2, spell, [9]) and answer.add(4, spell, [9])
    assert (answer.tokens, answer.reason) == ([1, 2], "cancelled")


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load_model("tiny")


def chat(question: str, *images: Image.Image) -> Chat:
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    return Chat(({"role": "user", "content": content},), images)


CHATS = [
    chat("Generate a short caption of this image.", scene("test", 2).image),
    chat("Describe this.", scene("test", 5).image.resize((200, 50))),
    chat("Is there a dog in the image?", scene("test", 7).image.convert("L")),
]


@pytest.mark.parametrize("method", ["greedy", "damro", "random-k", "vcd@2"])
def test_a_row_is_what_it_is_alone(tiny: Loaded, method: str) -> None:
    def answered(chats: list[Chat], seeds: list[int]) -> list[list[int]]:
        answers = [Answer(12 + seed, stop=["."], seed=seed) for seed in seeds]
        answer_chats(*tiny, chats, parse(method), answers)
        return [answer.tokens for answer in answers]

    together = answered(CHATS, [0, 1, 2])
    assert together == [answered([one], [seed])[0] for seed, one in enumerate(CHATS)]


@pytest.mark.parametrize("family", ["llava_next", "instructblip"])
def test_other_families_answer_as_generate_does(family: str) -> None:
    model, processor = load_model(path(family))
    question, picture = "Is there a dog in the image?", scene("test", 2).image
    answers = [Answer(9), Answer(5)]
    settings = {"alpha": 0.5, "beta": 0.1, "top_k": 4}
    text = "damro:" + ",".join(f"{name}={value}" for name, value in settings.items())
    answer_chats(model, processor, [chat(question, picture), chat("What?", picture)], parse(text), answers)
    inputs = prepare_inputs(processor, [picture], [question], model)
    ids = damro.generate(model, inputs, text, max_new_tokens=9, do_sample=False, num_beams=1)
    prompt = damro.returned_prompt(model, inputs).shape[1]
    assert answers[0].text == processor.tokenizer.decode(ids[0, prompt:], skip_special_tokens=True)


def test_beams_are_searched_and_cut(tiny: Loaded) -> None:
    answer, cut = Answer(20), Answer(20, stop=[" of"])
    answer_chats(*tiny, CHATS[:1], parse("damro"), [answer], settings={"num_beams": 3})
    answer_chats(*tiny, CHATS[:1], parse("damro"), [cut], settings={"num_beams": 3})
    inputs = prepare_inputs(tiny.processor, CHATS[0].images, ["Generate a short caption of this image."], tiny.model)
    ids = damro.generate(tiny.model, inputs, "damro", max_new_tokens=20, do_sample=False, num_beams=3)
    text = tiny.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.text == text and " of" in text
    assert cut.text == text.partition(" of")[0]
    with pytest.raises(ParameterError, match="num_beams must be 1 where tokens are sampled, got 3"):
        answer_chats(*tiny, CHATS[:1], parse("damro@1"), [Answer(3)], settings={"num_beams": 3})
    with pytest.raises(ParameterError, match="settings must be those of generate, got colour"):
        answer_chats(*tiny, CHATS[:1], parse("damro"), [Answer(3)], settings={"colour": 3})


def test_chats_that_do_not_go_together_are_refused(tiny: Loaded) -> None:
    with pytest.raises(InputsError, match=r"all with images or all without, got images \[1, 0\]"):
        prepare_chats(tiny.processor, [CHATS[0], chat("Hello.")])
    with pytest.raises(InputsError, match=r"images must be as many as the messages have places for, 1, got 0"):
        prepare_chats(tiny.processor, [CHATS[0]._replace(images=())])
    with pytest.raises(InputsError, match="prompt must leave room for a new token"):
        answer_chats(*tiny, [chat("cat " * 2000)], parse("damro"), [Answer(3)])


def test_a_model_that_begins_with_an_image_answers_no_text_alone() -> None:
    model, processor = load_model(path("instructblip"))
    with pytest.raises(UnsupportedModelError, match="images must be at least one for instructblip"):
        answer_chats(model, processor, [chat("Hello.")], parse("greedy"), [Answer(3)])
    turns = [{"role": role, "content": [{"type": "text", "text": "x"}]} for role in ("user", "assistant", "user")]
    with pytest.raises(InputsError, match="one question of the user where the processor has no chat template"):
        prepare_chats(processor, [Chat(tuple(turns))])
