"""Broken checkpoints: each fault is done to a copy of a whole one."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Fault = Callable[[Path], object]
"""What is done to the folder of a whole LLaVA."""

_JUNK: tuple[Any, ...] = (None, -1, 0, 3, "seven", [], {}, 1.5, True)
_FILES = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
_SIZES = (
    *("vision_config.hidden_size", "vision_config.image_size", "vision_config.patch_size"),
    *("vision_config.num_hidden_layers", "text_config.num_attention_heads", "text_config.hidden_size"),
    *("text_config.vocab_size", "text_config.model_type", "text_config.hidden_act"),
    *("image_token_index", "vision_feature_layer", "vision_feature_select_strategy", "model_type"),
    *("vision_config", "text_config", "dtype", "text_config.rope_parameters"),
)
_TEMPLATES = {
    "does not parse": "{% for message in",
    "raises": "{{ raise_exception('no images, please') }}",
    "names what there is not": "{{ messages[0].content.nothing.at.all }}",
    "divides by zero": "{{ 1 / 0 }}",
    "reaches out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "writes no image": "{{ messages[0].content[1].text }}",
    "writes two images": "<image><image>{{ messages[0].content[1].text }}",
    "writes nothing": "",
    "is a number": 7,
    "is a list": [1, 2],
}


def faults() -> dict[str, Fault]:
    """Every fault by a name that says it."""
    return dict(_faults())


def _faults() -> Iterator[tuple[str, Fault]]:
    for name in _FILES:
        yield f"{name} missing", lambda folder, name=name: (folder / name).unlink()
        for kind, content in (
            ("empty", b""),
            ("garbage", b"\x00\xff\xfegarbage"),
            ("a list", b"[1, 2]"),
            ("null", b"null"),
        ):
            yield f"{name} is {kind}", lambda folder, name=name, content=content: (folder / name).write_bytes(content)
        yield f"{name} cut in half", lambda folder, name=name: _cut(folder / name)
        yield f"{name} is a folder", lambda folder, name=name: _be_folder(folder / name)
        yield f"{name} is a loop", lambda folder, name=name: _be_loop(folder / name)
    for key in _SIZES:
        for value in _JUNK:
            yield (
                f"config.json with {key} {json.dumps(value)}",
                lambda folder, key=key, value=value: _set(folder / "config.json", key, value),
            )
    yield "config.json of an unknown model", lambda folder: _set(folder / "config.json", "model_type", "llama_of_mine")
    yield "config.json of a text model", lambda folder: _set(folder / "config.json", "model_type", "llama")
    yield (
        "config.json with code of its own",
        lambda folder: _set(folder / "config.json", "auto_map", {"AutoConfig": "mine.Config"}),
    )
    yield "config.json deep in brackets", lambda folder: (folder / "config.json").write_text("[" * 100_000)
    yield from _weight_faults()
    yield from _processor_faults()
    yield "generation_config.json garbage", lambda folder: (folder / "generation_config.json").write_text("{")
    yield (
        "generation_config.json with wrong types",
        lambda folder: (folder / "generation_config.json").write_text(
            json.dumps({"eos_token_id": "end", "max_length": "long", "temperature": []})
        ),
    )
    yield "an empty folder", lambda folder: [path.unlink() for path in folder.iterdir()]
    yield "a file", _be_file


def _weight_faults() -> Iterator[tuple[str, Fault]]:
    yield "weights with a header of 2**60 bytes", lambda folder: _header(folder, struct.pack("<Q", 1 << 60))
    yield "weights with a header that is no JSON", lambda folder: _header(folder, struct.pack("<Q", 8) + b"{]xxxxxx")
    yield "weights with an unknown dtype", lambda folder: _replace(folder, b'"F32"', b'"F99"')
    yield "weights with another dtype", lambda folder: _replace(folder, b'"F32"', b'"I32"')
    yield (
        "weights with offsets that overlap",
        lambda folder: _replace(folder, b'"data_offsets":[', b'"data_offsets":[9'),
    )
    yield (
        "weights of other shapes",
        lambda folder: _weights(folder, lambda tensors: {name: one.flatten()[:1] for name, one in tensors.items()}),
    )
    yield "weights without a name in common", lambda folder: _weights(folder, lambda _: {"other": torch.ones(2)})
    yield "weights without a tensor", lambda folder: _weights(folder, lambda _: {})
    yield (
        "weights of whole numbers",
        lambda folder: _weights(folder, lambda tensors: {name: one.to(torch.int32) for name, one in tensors.items()}),
    )
    yield (
        "weights of NaN",
        lambda folder: _weights(folder, lambda tensors: {name: one * float("nan") for name, one in tensors.items()}),
    )
    yield (
        "half of the weights",
        lambda folder: _weights(folder, lambda tensors: dict(list(tensors.items())[: len(tensors) // 2])),
    )
    yield "an index that names missing shards", lambda folder: _index(folder, {"weight_map": {"a": "gone.safetensors"}})
    for kind, index in (
        ("without a map", {}),
        ("whose map is a list", {"weight_map": [1]}),
        ("whose map holds numbers", {"weight_map": {"a": 7}}),
        ("that steps out of the folder", {"metadata": {}, "weight_map": {"a": "../../../../etc/hostname"}}),
        ("that is a list", []),
    ):
        yield f"an index {kind}", lambda folder, index=index: _index(folder, index)
    yield "weights pickled", _pickle


def _processor_faults() -> Iterator[tuple[str, Fault]]:
    for key, value in (
        *(("patch_size", 0), ("patch_size", -14), ("patch_size", "x"), ("patch_size", 7), ("patch_size", None)),
        *(("processor_class", "Nothing"), ("processor_class", 7), ("processor_class", "os")),
        *(("image_token", None), ("image_token", 7), ("image_token", "<picture>")),
        *(("num_additional_image_tokens", "x"), ("vision_feature_select_strategy", 7)),
        *(("image_processor", None), ("image_processor", []), ("image_processor", {})),
        *(("image_processor.size", None), ("image_processor.size", {"side": 3}), ("image_processor.size", "x")),
        *(("image_processor.crop_size", {"height": 0, "width": 0}), ("image_processor.crop_size", -5)),
        *(("image_processor.image_mean", "grey"), ("image_processor.image_mean", [1])),
        *(("image_processor.image_std", [0, 0, 0]), ("image_processor.resample", 99)),
        *(("image_processor.image_processor_type", "Nothing"), ("image_processor.rescale_factor", "x")),
    ):
        yield (
            f"processor_config.json with {key} {json.dumps(value)}",
            lambda folder, key=key, value=value: _set(folder / "processor_config.json", key, value),
        )
    for key, value in (
        *(("tokenizer_class", "Nothing"), ("tokenizer_class", 7), ("pad_token", None), ("pad_token", 7)),
        *(("extra_special_tokens", 7), ("image_token", None), ("model_max_length", "x"), ("padding_side", "middle")),
    ):
        yield (
            f"tokenizer_config.json with {key} {json.dumps(value)}",
            lambda folder, key=key, value=value: _set(folder / "tokenizer_config.json", key, value),
        )
    yield "a tokenizer without the image token", _without_image_token
    yield (
        "a tokenizer of three words",
        lambda folder: _set(folder / "tokenizer.json", "model.vocab", {"<unk>": 0, "a": 1, "b": 2}),
    )
    yield "a tokenizer of another kind", lambda folder: _set(folder / "tokenizer.json", "model.type", "Nothing")
    for name, template in _TEMPLATES.items():
        yield f"a template that {name}", lambda folder, template=template: _template(folder, template)


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _be_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _be_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _be_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def _set(path: Path, key: str, value: Any) -> None:
    """Sets a key of a JSON file; dots lead into it."""
    content = json.loads(path.read_text())
    *parents, last = key.split(".")
    place = content
    for name in parents:
        place = place[name]
    place[last] = value
    path.write_text(json.dumps(content))


def _header(folder: Path, head: bytes) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(head + path.read_bytes()[len(head) :])


def _replace(folder: Path, old: bytes, new: bytes) -> None:
    """Changes the header of the weights, whose length stands in front of it."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head = content[8 : 8 + length].replace(old, new, 1)
    path.write_bytes(struct.pack("<Q", len(head)) + head + content[8 + length :])


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file({name: one.clone() for name, one in change(load_file(path)).items()}, path, {"format": "pt"})


def _index(folder: Path, index: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _pickle(folder: Path) -> None:
    """Weights in the old form that can run code when they are read without care."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def _without_image_token(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("<image>", "<other>"))


def _template(folder: Path, template: Any) -> None:
    _set(folder / "processor_config.json", "chat_template", template)
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template)
