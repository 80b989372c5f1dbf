"""From a model's name and an image's path to what ``generate`` takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionModel,
    PreTrainedModel,
)

from damro import tiny
from damro.chat import format_prompt as format_prompt
from damro.checkpoints import find_fault, find_setting, in_words
from damro.decoding.families import FAMILIES, family_of
from damro.devices import SPREADS, check_device
from damro.errors import DecodingError, ParameterError, UnsupportedModelError
from damro.images import ImageError as ImageError
from damro.images import load_image as load_image
from damro.inputs import prepare_inputs as prepare_inputs
from damro.vision.dinov2_small import MissingExtraError
from damro.vision.vit import BARE_VITS, is_bare_vit

_QUANTIZATIONS = {"4bit": "load_in_4bit", "8bit": "load_in_8bit"}
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_UNREAD = ("pooler.", "mask_token")
_SHOWN = 3
_UNSAVED = 50_000_000  # weights that a checkpoint may lack and be told of by name


class ModelLoadError(DecodingError):
    """There is no such model, or it does not load."""


class Loaded(NamedTuple):
    """A model in evaluation mode and the processor that makes its inputs; of a bare ViT, its image processor."""

    model: PreTrainedModel
    processor: Any


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | None = None,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    quantization: str | None = None,
) -> Loaded:
    """Loads a supported LVLM, or a bare ViT, and its processor; runs no code that comes with a checkpoint.

    Args:
        name_or_path: a folder, a name on the Hub, "tiny" or "tiny:NAME" for a small model that is part of this
            package (`damro.tiny.checkpoints`), or "dinov2-small" for a pretrained ViT out of the extra `vit`. Of a
            whole CLIP the vision half is loaded.
        device: as torch names it; "auto" spreads the model over all devices (accelerate); None takes the GPU if
            there is one, otherwise the CPU.
        dtype: "float32", "bfloat16", "float16"; "auto" takes the checkpoint's.
        attn_implementation: as transformers names it; None takes its default.
        revision: branch, tag or commit on the Hub.
        quantization: "4bit" or "8bit" weights, where bitsandbytes is installed.

    Raises:
        ModelLoadError: if it does not load (the message holds transformers' own), lacks a weight, has one of another
            shape, or one that is not finite.
        UnsupportedModelError: if its family is not supported.
        MissingExtraError: if "dinov2-small" lacks the extra, or quantization lacks bitsandbytes.
        ParameterError: if `dtype`, `quantization` or `attn_implementation` is unknown, there is no such device, or an
            embedded model is to be quantized or of a revision.
    """
    if dtype not in _DTYPES:
        raise ParameterError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in SPREADS:
        check_device(device)
    if attn_implementation is not None:
        _check_attention(attn_implementation)
    embedded = _find_embedded(str(name_or_path))
    quantized = _quantization_options(quantization, embedded=embedded is not None)
    if embedded is not None:
        if revision is not None:
            raise ParameterError(f"revision must be left out for the embedded {name_or_path!r}, got {revision!r}")
        loaded = _place(embedded(), device, dtype)
        if attn_implementation is not None:
            _set_attention(loaded.model, attn_implementation)
        _check_finite(name_or_path, loaded.model)
        return loaded
    make_config: Any = AutoConfig  # transformers leaves these untyped
    options = {"revision": revision, "trust_remote_code": False}
    try:
        config = make_config.from_pretrained(name_or_path, **options)
        _check_images(str(config.model_type))
        make_model, make_processor = _classes(str(config.model_type))
        _check_size(Path(name_or_path), config, make_model)
        model, found = make_model.from_pretrained(
            name_or_path,
            dtype=dtype,
            device_map=device,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to name all of them; none is let through
            **options,
            **quantized,
        )
        processor = make_processor.from_pretrained(name_or_path, **options)
    except (MemoryError, torch.OutOfMemoryError, UnsupportedModelError):
        raise
    except Exception as error:  # a damaged file can make transformers raise anything
        raise ModelLoadError(
            f"model must be a folder or a Hub name that transformers can load, got {str(name_or_path)!r}"
            f"{'' if attn_implementation is None else f' with attn_implementation {attn_implementation!r}'}: "
            f"{find_fault(Path(name_or_path)) or in_words(error)}; 'tiny' needs no download"
        ) from error
    _check_complete(name_or_path, found, bare=is_bare_vit(model))
    _check_finite(name_or_path, model)
    if is_bare_vit(model):
        return Loaded(model.eval(), processor)
    family_of(model)
    _check_answers(name_or_path, model, processor)
    return Loaded(model.eval(), _complete_processor(processor, model.config))


def _check_size(folder: Path, config: Any, make_model: Any) -> None:
    """Refuses a config that describes far more weights than there are: transformers would draw the rest at random.

    A sub-config that is left out stands for billions of parameters, which can take all memory before they are missed.

    Raises:
        ValueError: a weight takes at least a byte of a file, and there are fewer bytes than weights.
    """
    make: Any = make_model  # transformers leaves it untyped
    held = sum(path.stat().st_size for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    if make_model is not AutoModelForImageTextToText or not held or getattr(config, "quantization_config", None):
        return
    with torch.device("meta"):
        described = sum(weight.numel() for weight in make.from_config(config).parameters())
    if described > held + _UNSAVED:
        raise ValueError(
            f"config.json describes {described / 1e6:,.1f} million weights, the files beside it have "
            f"{held / 1e6:,.1f} MB"
        )


def _check_images(kind: str) -> None:
    """Refuses a model whose processor makes inputs of videos alone, where images are to be read."""
    if getattr(FAMILIES.get(kind), "VIDEOS_ALONE", False):
        raise UnsupportedModelError(
            f"model must come with a processor that reads images, got {kind}, whose reads videos; load it with "
            "transformers, and pass what its own processor returns of a video to damro.generate or damro.cls_attention"
        )


def _check_answers(name: str | os.PathLike[str], model: Any, processor: Any) -> None:
    """Refuses an LVLM whose processor or generation config could only fail later."""
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise ModelLoadError(
            f"model must come with a processor of text and images, got {type(processor).__name__} in {str(name)!r}; "
            "its processor_config.json must name the class of one"
        )
    fault = find_setting(model.generation_config.to_dict())
    if fault is not None:
        raise ModelLoadError(f"{fault} in the generation_config.json of {str(name)!r}; correct it there")


def _check_complete(name: str | os.PathLike[str], found: Mapping[str, Any], *, bare: bool) -> None:
    """Refuses a model some of whose weights transformers drew at random, where it only warns.

    Args:
        name: of the checkpoint.
        found: what ``from_pretrained`` tells of the loading; weights that are tied or ignored by design are not in it.
        bare: of a ViT, what attention does not read may be missing: a pooler, the mask token of its training.
    """
    wrong = [f"{key} (missing)" for key in sorted(found["missing_keys"])]
    if bare:
        wrong = [key for key in wrong if not any(part in key for part in _UNREAD)]
    wrong += [
        f"{key} (of shape {tuple(given)}, must be {tuple(wanted)})"
        for key, given, wanted in sorted(found["mismatched_keys"])
    ]
    if wrong:
        raise ModelLoadError(
            f"model must be a checkpoint that holds every weight, got {str(name)!r} with {len(wrong)} missing or "
            f"mismatched: {_first(wrong)}; give a checkpoint whose config.json and weights belong together"
        )


def _check_finite(name: str | os.PathLike[str], model: PreTrainedModel) -> None:
    """Refuses NaN and infinity in weights; copies none."""
    wrong = []
    for key, weight in model.named_parameters():
        # Offloaded weights are not there yet; quantized ones are whole numbers, of 8 bits, or a class of their own.
        plain = type(weight.data) is torch.Tensor and weight.is_floating_point() and weight.element_size() > 1
        if weight.is_meta or not plain or not weight.numel():
            continue
        if not all(bool(end.isfinite()) for end in weight.detach().aminmax()):  # NaN passes through both
            wrong.append(key)
    if wrong:
        raise ModelLoadError(
            f"model must have finite weights, got NaN or infinity in {len(wrong)} of {str(name)!r}: {_first(wrong)}; "
            "copy the checkpoint again, or load it with dtype='float32' if it overflows another"
        )


def _check_attention(name: str) -> None:
    """Refuses the name of an attention that transformers does not have; one of a kernel on the Hub has a slash."""
    registered: Any = AttentionInterface  # transformers leaves it untyped
    known = ["eager", *registered().valid_keys()]
    if name not in known and "/" not in name:
        raise ParameterError(
            f"attn_implementation must be one of {', '.join(known)}, got {name!r}; leave it out for sdpa"
        )


def _set_attention(model: PreTrainedModel, name: str) -> None:
    """Takes another attention for a model that is loaded already."""
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise ParameterError(
            f"attn_implementation must be one that the model and this machine can run, got {name!r}: {error}"
        ) from error


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _quantization_options(quantization: str | None, *, embedded: bool) -> dict[str, Any]:
    """What ``from_pretrained`` takes for quantized weights."""
    if quantization is None:
        return {}
    if quantization not in _QUANTIZATIONS or embedded:
        raise ParameterError(
            f"quantization must be one of {', '.join(_QUANTIZATIONS)}, of a model that is not embedded, "
            f"got {quantization!r}; leave it out"
        )
    if find_spec("bitsandbytes") is None:
        raise MissingExtraError("quantization needs bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    config: Any = BitsAndBytesConfig
    return {"quantization_config": config(**{_QUANTIZATIONS[quantization]: True})}


def _classes(kind: str) -> tuple[Any, Any]:
    """Classes that load a model of this `config.model_type`, and its processor."""
    if kind == "clip":
        return CLIPVisionModel, AutoImageProcessor
    if kind in BARE_VITS:
        return AutoModel, AutoImageProcessor
    return AutoModelForImageTextToText, AutoProcessor


def _find_embedded(name: str) -> Callable[[], Loaded] | None:
    """What loads a model that no folder and no Hub holds; None for any other."""
    if name == "dinov2-small":
        return _load_dinov2_small
    checkpoint = tiny.checkpoint_of(name)
    if checkpoint is None:
        return None
    if checkpoint not in tiny.checkpoints():
        known = ", ".join(f"tiny:{known}" for known in tiny.checkpoints())
        raise ModelLoadError(f"model must be one of {known} where an embedded one is asked for, got {name!r}")
    return partial(_load_tiny, checkpoint)


def _load_tiny(checkpoint: str) -> Loaded:
    """An embedded model."""
    model, processor = tiny.load(checkpoint)
    return Loaded(model, _complete_processor(processor, model.config))


def _load_dinov2_small() -> Loaded:
    """The ViT of the extra."""
    from damro.vision.dinov2_small import load_dinov2_small

    return Loaded(*load_dinov2_small())


def _place(loaded: Loaded, device: str, dtype: str) -> Loaded:
    """A loaded model on the device and in the dtype asked for."""
    model: Any = loaded.model  # torch's overloads of `to` do not fit a model's
    if device not in SPREADS:
        model = model.to(device)
    if dtype != "auto":
        model = model.to(getattr(torch, dtype))
    return Loaded(model.eval(), loaded.processor)


def _complete_processor(processor: Any, config: Any) -> Any:
    """Says where padding goes, and fills in what processors saved by older versions of transformers lack.

    Padding stands on the left. Before an encoder (FLAN-T5) it stands on the right: the processors of InstructBLIP and
    BLIP-2 put the image columns in front of padded text, and the encoder tells by distance what belongs together.
    """
    encoded = getattr(config.get_text_config(), "is_encoder_decoder", False)
    processor.tokenizer.padding_side = "right" if encoded else "left"
    if getattr(processor, "patch_size", 0) is None:
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = 1  # CLIP's [CLS]
    if getattr(processor, "num_query_tokens", 0) is None:
        processor.num_query_tokens = config.num_query_tokens
    return processor
