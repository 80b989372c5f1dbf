"""What lmms-eval asks, read without lmms-eval."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from PIL import Image

from damro.errors import InputsError, ParameterError
from damro.integrations import lmms_eval, versions
from damro.integrations.lmms_eval.requests import (
    as_images,
    read_generation,
    read_messages,
    read_recipe,
)
from damro.turns import to_chat

DOT, DASH = Image.new("RGB", (4, 4)), Image.new("RGB", (9, 3))


def parts_of(chat: Any) -> list[str]:
    return [part.get("text", "IMAGE") for message in chat.messages for part in message["content"]]


@pytest.mark.parametrize(
    ("told", "stop"),
    [
        ({}, ()),
        ({"until": None}, ()),
        ({"until": "###"}, ("###",)),
        ({"until": ["\n\n"]}, ()),
        ({"until": ["", "\n\n", "\n", "Q:"]}, ("\n", "Q:")),
    ],
)
def test_until_ends_an_answer_but_for_the_empty_line_that_every_task_has(told: Any, stop: tuple[str, ...]) -> None:
    assert read_generation(told).stop == stop


@pytest.mark.parametrize("until", [5, [5], {"a": 1}])
def test_until_that_is_no_text_is_told(until: Any) -> None:
    with pytest.raises(ParameterError, match="until must be a text or a list of texts, got"):
        read_generation({"until": until})


@pytest.mark.parametrize(
    ("told", "temperature"),
    [
        ({}, 0.0),
        ({"temperature": 0, "do_sample": True}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"temperature": 0.7, "do_sample": False}, 0.0),
        ({"do_sample": True}, 1.0),
    ],
)
def test_sampling_is_what_temperature_and_do_sample_agree_on(told: Any, temperature: float) -> None:
    assert read_generation(told).temperature == temperature


def test_other_keywords_are_passed_on_or_told_of(caplog: pytest.LogCaptureFixture) -> None:
    told = {"num_beams": 3, "top_p": 0, "max_new_tokens": 7, "repetition_penalty": 1.0, "image_aspect_ratio": "pad"}
    found = read_generation(told)
    assert (found.settings, found.top_p, found.max_new_tokens) == ({"num_beams": 3}, 0.0, 7)
    assert not caplog.records
    assert read_generation({"top_k": 5, "colour": "red"}).settings == {}
    assert [record.getMessage() for record in caplog.records] == [
        "damro leaves the generation keyword top_k=5 aside",
        "damro leaves the generation keyword colour='red' aside",
    ]
    assert read_generation({}).max_new_tokens == 1024


def test_parameters_stand_beside_the_method_since_a_comma_ends_an_argument() -> None:
    assert read_recipe("damro:alpha=3", {"top_k": 4}).text == "damro:alpha=3,top_k=4"
    assert read_recipe("vcd@1", {"noise_step": 700}).text == "vcd:noise_step=700@1"
    with pytest.raises(ParameterError, match=r"method=damro must have .*, got 'alhpa'; did you mean 'alpha'"):
        read_recipe("damro", {"alhpa": 1})
    with pytest.raises(ParameterError, match="alpha must be a finite number >= 0, got 'x'"):
        read_recipe("damro", {"alpha": "x"})


def test_images_stand_in_front_or_where_the_text_has_them() -> None:
    assert parts_of(to_chat([("user", [DOT, DASH, "What?"])])) == ["IMAGE", "IMAGE", "What?"]
    chat = to_chat([("user", [DOT, DASH, "A <image>\nand <image> is?"])])
    assert parts_of(chat) == ["A ", "IMAGE", "and ", "IMAGE", "is?"]
    assert chat.images == (DOT, DASH)
    assert parts_of(to_chat([("user", ["What?"])])) == ["What?"]
    assert parts_of(to_chat([("user", [""])])) == [""]
    with pytest.raises(InputsError, match="a mark <image> for every image or none, got 1 for 2"):
        to_chat([("user", [DOT, DASH, "<image>\nWhat?"])])
    chat = to_chat([("user", [DOT, "What?"]), ("assistant", ["A dot"]), ("user", ["And <image>?", DASH])])
    assert parts_of(chat) == ["IMAGE", "What?", "A dot", "And ", "IMAGE", "?"]
    with pytest.raises(InputsError, match="got 1 for 0"):
        to_chat([("user", ["<image>\nWhat?"])])


def test_what_is_no_image_is_told_with_its_sample() -> None:
    assert as_images(None, "t") == [] and as_images(DOT, "t") == [DOT] and as_images((DOT, DASH), "t") == [DOT, DASH]
    with pytest.raises(InputsError, match="visuals of pope/test/3 must be images, got str"):
        as_images(["clip.mp4"], "pope/test/3")


def test_messages_are_turns(tmp_path: Any) -> None:
    DASH.save(tmp_path / "a.png")
    user = [
        {"type": "image", "url": DOT},
        {"type": "image", "url": str(tmp_path / "a.png")},
        {"type": "text", "text": "?"},
    ]
    turns = read_messages([{"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                           {"role": "user", "content": user}], "t")  # fmt: skip
    chat = to_chat(turns)
    assert [message["role"] for message in chat.messages] == ["system", "user"]
    assert parts_of(chat) == ["Be brief.", "IMAGE", "IMAGE", "?"]
    assert [image.size for image in chat.images] == [(4, 4), (9, 3)]
    with pytest.raises(InputsError, match="parts of pope/test/3 must be texts or images, got 'video'"):
        read_messages([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "pope/test/3")


def test_an_interface_that_has_moved_is_told_with_the_version_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", None)
    monkeypatch.setitem(sys.modules, "lmms_eval.models", type(sys)("lmms_eval.models"))
    monkeypatch.setitem(sys.modules, "lmms_eval", type(sys)("lmms_eval"))
    with pytest.raises(
        ImportError, match=r"the interface of 0\.7\.3 with .*, got .*; pip install 'lmms-eval==0\.7\.3'"
    ):
        lmms_eval.manifest()
    monkeypatch.setitem(sys.modules, "lmms_eval.api.instance", None)
    monkeypatch.delitem(sys.modules, "damro.integrations.lmms_eval.model", raising=False)
    with pytest.raises(ImportError, match=r"lmms-eval must have the interface of 0\.7\.3"):
        import damro.integrations.lmms_eval.model  # noqa: F401


def test_a_version_that_no_test_has_seen_is_told_with_the_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", {"lmms-eval": "0.8.0", "ms-vlmeval": "0.0.20"}.__getitem__)
    assert versions.untested("ms-vlmeval", "0.0.20") is None
    assert versions.untested(lmms_eval.PACKAGE, lmms_eval.WORKS_WITH) == (
        "lmms-eval is tested in version 0.7.3, got 0.8.0; if it fails, pip install 'lmms-eval==0.7.3'"
    )
