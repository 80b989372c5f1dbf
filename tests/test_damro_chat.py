from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import pytest
import torch
from golden_models import make_processor

from damro import tiny
from damro.chat import format_messages, format_prompt
from damro.errors import InputsError
from damro.loading import load_model, prepare_inputs
from tests.family_models import encoder_processor, siglip_processor

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def with_template(template: str = TEMPLATE) -> Any:
    processor = make_processor("llava")
    processor.chat_template = template
    return processor


def test_no_torch_is_needed() -> None:
    code = "import sys, damro.chat; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_question_gets_the_template_or_the_family_s_format() -> None:
    llava = make_processor("llava")
    assert format_prompt(llava, "What?") == "USER: <image>\nWhat? ASSISTANT:"
    assert format_prompt(make_processor("instructblip"), "What {prompt}?") == "What {prompt}?"
    assert format_prompt(encoder_processor("blip-2-t5"), "What?") == "Question: What? Answer:"
    assert format_prompt(siglip_processor("paligemma"), "answer en What?") == "<image>answer en What?"
    assert format_prompt(with_template(), "What?") == "[user]<image>What?[assistant]"
    bare = types.SimpleNamespace(image_token="<image>")
    with pytest.raises(InputsError, match="processor must have a chat template or be one of LlavaProcessor"):
        format_prompt(bare, "What?")
    assert format_prompt(bare, "As I say: <image>") == "As I say: <image>"


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_processor("llava"),
        lambda: make_processor("llava_next"),
        lambda: make_processor("instructblip"),
        lambda: encoder_processor("blip-2-t5"),
        lambda: siglip_processor("paligemma"),
        with_template,
        lambda: with_template("{{ bos_token }}<image>{{ messages[0].content[1].text }}"),
    ],
    ids=["llava", "llava_next", "instructblip", "blip-2", "paligemma", "template", "image-first"],
)
@pytest.mark.parametrize("mark", ["<image>\n", "<image> "])
def test_an_image_token_in_front_of_the_question_is_left_out(make: Any, mark: str) -> None:
    processor = make()
    for question in ("What is this?", " in\ntwo lines", ""):
        assert format_prompt(processor, mark + question) == format_prompt(processor, question)


def test_the_image_token_of_data_sets_is_left_out_where_the_model_s_is_another() -> None:
    processor = with_template("<|user|><|patch|>{{ messages[0].content[1].text }}<|end|>")
    processor.image_token = "<|patch|>"
    for mark in ("<image>\n", "<|patch|>\n"):
        assert format_prompt(processor, f"{mark}What?") == "<|user|><|patch|>What?<|end|>"
    with pytest.raises(InputsError, match="image token in front"):
        format_prompt(processor, "What is in <image>?")


@pytest.mark.parametrize("family", ["llava", "llava_next", "instructblip"])
def test_the_inputs_are_those_of_the_question_alone(family: str) -> None:
    model, processor = load_model(tiny.path(family), device="cpu")
    images = [tiny.scene("test", number).image for number in range(2)]
    questions = ["Is there a cat in the image?", "Describe the image."]
    alone = prepare_inputs(processor, images, questions, model)
    marked = prepare_inputs(processor, images, [f"<image>\n{question}" for question in questions], model)
    assert alone.keys() == marked.keys()
    assert all(torch.equal(alone[key], marked[key]) for key in alone)


def test_what_is_formatted_already_stays() -> None:
    llava, templated = make_processor("llava"), with_template()
    system = "A chat between a human and an assistant. USER: <image>\nWhat? ASSISTANT:"
    turns = "USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Sure?"
    for prompt in ("USER: <image>\nWhat? ASSISTANT:", "<s>USER: <image> What?", system, turns):
        assert format_prompt(llava, prompt) == prompt
    for prompt in ("[user]<image>What?[assistant]", "[user]<image>", "<image>[user]What?[assistant]\n"):
        assert format_prompt(templated, prompt) == prompt
    blip = encoder_processor("blip-2-t5")
    assert format_prompt(blip, "Question: What? Answer:") == "Question: What? Answer:"
    assert format_prompt(blip, "Question: What?") == "Question: Question: What? Answer:"


@pytest.mark.parametrize(
    "prompt", ["What is <image>?", "What is this?\n<image>", "<image>\n<image>\nWhat?", "A <image>"]
)
@pytest.mark.parametrize("family", ["llava", "instructblip"])
def test_an_image_token_in_another_place_is_refused(prompt: str, family: str) -> None:
    with pytest.raises(
        InputsError, match=r"prompt must hold the image token in front or not at all, got '.*leave it out"
    ):
        format_prompt(make_processor(family), prompt)


@pytest.mark.parametrize("prompt", ["USER: <image>\n<image>\nWhat? ASSISTANT:", "USER: <image>\nWhat <image>?"])
def test_a_whole_text_with_two_images_is_refused(prompt: str) -> None:
    with pytest.raises(InputsError, match="prompt must hold the image token of one image, got 2 in 'USER"):
        format_prompt(make_processor("llava"), prompt)


def turn(role: str, *parts: str) -> dict[str, Any]:
    return {
        "role": role,
        "content": [{"type": "image"} if p == "IMAGE" else {"type": "text", "text": p} for p in parts],
    }


def test_a_chat_gets_the_template_or_if_it_is_one_question_the_family_s_format() -> None:
    chat = [turn("user", "Look: ", "IMAGE", " and ", "IMAGE"), turn("assistant", "Yes."), turn("user", "Why?")]
    assert (
        format_messages(with_template(), chat) == "[user]Look: <image> and <image>[assistant]Yes.[user]Why?[assistant]"
    )
    assert format_messages(with_template(), chat[:2], answered=True) == "[user]Look: <image> and <image>[assistant]Yes."
    llava = make_processor("llava")
    two = [turn("user", "IMAGE", "IMAGE", "What {prompt}?")]
    assert format_messages(llava, two) == "USER: <image>\n<image>\nWhat {prompt}? ASSISTANT:"
    assert format_messages(llava, [turn("user", "Hello.")]) == "USER: Hello. ASSISTANT:"
    answered = format_messages(llava, [turn("user", "Hello."), turn("assistant", "Hi.")], answered=True)
    assert answered == "USER: Hello. ASSISTANT: Hi."
    assert format_messages(siglip_processor("paligemma"), [turn("user", "IMAGE", "answer")]) == "<image>answer"
    assert format_messages(make_processor("instructblip"), [turn("user", "IMAGE", "What?")]) == "What?"
    for wrong in (chat, [turn("system", "Be brief.")], []):
        with pytest.raises(InputsError, match="one question of the user where .* LlavaProcessor has none"):
            format_messages(llava, wrong)
    with pytest.raises(InputsError, match="must not hold the model's image token '<image>'; pass the image itself"):
        format_messages(llava, [turn("user", "IMAGE", "a <image>")])
    with pytest.raises(InputsError, match="chat template must write a chat of user, assistant, user, that of"):
        format_messages(with_template("{{ raise_exception('odd') }}"), chat)
