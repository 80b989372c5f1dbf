"""Golden checkpoints as whole models: weights from tests/golden, processors made here, a word a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForImageTextToText,
    InstructBlipProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("llava", "llava_next", "instructblip")
SIDE = 56
_WORDS = ["USER:", "ASSISTANT:", "What", "is", "this?", "<script>alert(1)</script>", "a", "cat."]


def load_golden(family: str, attn_implementation: str = "sdpa") -> Any:
    """The golden checkpoint of a family, in evaluation mode."""
    path = GOLDEN / "checkpoints" / f"{family}_s0"
    options = {} if attn_implementation == "sdpa" else {"attn_implementation": attn_implementation}
    return AutoModelForImageTextToText.from_pretrained(path, **options).eval()


def golden_inputs(family: str, name: str) -> dict[str, torch.Tensor]:
    """Golden inputs in the form of transformers 5."""
    tensors = load_file(GOLDEN / "inputs" / f"{family}_{name}.safetensors")
    for key in ("input_ids", "attention_mask"):
        tensors[key] = tensors.pop(f"expanded_{key}")
    return tensors


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """`size` words; the last one is the image token."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"▁{word}" for word in _WORDS)]
    words += [f"▁w{number}" for number in range(len(words), size - 1)] + ["<image>"]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"} if size == 200 else {},
    )


def make_processor(family: str) -> Any:
    """A processor that fits the golden checkpoint of a family."""
    size = {"height": SIDE, "width": SIDE}
    tokenizer = word_tokenizer(200)
    shared = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if family == "llava":
        pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
        return LlavaProcessor(pixels, tokenizer, **shared)
    if family == "llava_next":
        pins = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
        pixels = LlavaNextImageProcessorPil(size=size, crop_size=size, image_grid_pinpoints=pins)
        return LlavaNextProcessor(pixels, tokenizer, **shared)
    # InstructBLIP's processor wants an AddedToken where the tokenizer knows no image token by name.
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    return InstructBlipProcessor(BlipImageProcessorPil(size=size), plain, word_tokenizer(120), num_query_tokens=6)


def save_golden(family: str, folder: Path) -> Path:
    """Writes a checkpoint with its processor, as from a hub."""
    load_golden(family).save_pretrained(folder)
    make_processor(family).save_pretrained(folder)
    return folder
