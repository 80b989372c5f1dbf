"""Real processors of newer families without a hub: their own image processors, a tokenizer of 200 words, a template.

The last word is the image token, so that they fit the tiny models, whose image token is 199. Video processors need
torchvision; a processor here has none, and everything else of it is transformers' own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AyaVisionProcessor,
    Cohere2VisionProcessor,
    Gemma3Processor,
    GraniteDoclingProcessor,
    Idefics3Processor,
    InternVLProcessor,
    Lfm2VlProcessor,
    Ovis2Processor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.granite_docling.image_processing_pil_granite_docling import GraniteDoclingImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

SIZE, SIDE = 200, 56
_WORDS = "Is there a cat dog in the image ? What do you see Describe this picture . user assistant : Answer it".split()
# One user turn after another; an image stands where its entry stands.
_TEMPLATE = (
    "{% for message in messages %}{{ message.role }} : {% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def chat_tokenizer(image_token: str, specials: dict[str, str]) -> PreTrainedTokenizerFast:
    """200 words with the image token last; `specials` are further tokens by the attribute that the processor reads."""
    head = ["<pad>", "<s>", "</s>", "<unk>", *(f"▁{word}" for word in _WORDS)]
    tail = [*specials.values(), image_token]
    words = head + [f"▁w{number}" for number in range(SIZE - len(head) - len(tail))] + tail
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        padding_side="left", extra_special_tokens={**specials, "image_token": image_token},
    )  # fmt: skip


def _without_video(kind: type[Any]) -> type[Any]:
    """The class of a processor that takes anything for its video processor, and is like it in all else."""

    def check(self: Any, name: str, argument: Any) -> Any:
        return None if name == "video_processor" else kind.check_argument_for_proper_class(self, name, argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})


def _template(image: str) -> str:
    return _TEMPLATE.replace("IMAGE", image)


def qwen_processor() -> Any:
    """Qwen2.5-VL's: patches of 7 pixels, four of which make a column; images keep their shape."""
    marks = {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    tokenizer = chat_tokenizer("<|image_pad|>", {**marks, "video_token": "<|video_pad|>"})
    pixels = Qwen2VLImageProcessorPil(patch_size=7, merge_size=2, min_pixels=28 * 28, max_pixels=56 * 84)
    template = _template("<|vision_start|><|image_pad|><|vision_end|>")
    return _without_video(Qwen2_5_VLProcessor)(pixels, tokenizer, None, chat_template=template)


def internvl_processor() -> Any:
    """InternVL's: up to four tiles of 56 pixels and the whole image behind them."""
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    tokenizer = chat_tokenizer("<IMG_CONTEXT>", {**marks, "context_image_token": "<IMG_CONTEXT>"})
    return _without_video(InternVLProcessor)(
        _cut_by_shape(), tokenizer, None, image_seq_length=16, chat_template=_template("<IMG_CONTEXT>")
    )


def smolvlm_processor() -> Any:
    """SmolVLM's: tiles of 56 pixels in rows, then the whole image; tokens that say which is which."""
    from transformers import SmolVLMProcessor

    marks = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    marks |= {"end_of_utterance_token": "<end_of_utterance>"}
    tokenizer = chat_tokenizer("<image>", {**marks, **_places()})
    pixels = SmolVLMImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    return _without_video(SmolVLMProcessor)(
        pixels, tokenizer, SimpleNamespace(num_frames=1, fps=1), image_seq_len=16, chat_template=_template("<image>")
    )


def idefics3_processor() -> Any:
    """Idefics3's, which SmolVLM's comes from."""
    marks = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    marks |= {"end_of_utterance_token": "<end_of_utterance>"}
    tokenizer = chat_tokenizer("<image>", {**marks, **_places()})
    pixels = Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    return Idefics3Processor(pixels, tokenizer, image_seq_len=16, chat_template=_template("<image>"))


def _places() -> dict[str, str]:
    """The tokens in front of tiles."""
    return {f"row_{row}_col_{column}": f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)}


def gemma3_processor() -> Any:
    """Gemma 3's: a square image and as many columns of each."""
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = chat_tokenizer("<image_soft_token>", marks)
    pixels = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return Gemma3Processor(pixels, tokenizer, chat_template=_template("<start_of_image>"), image_seq_length=16)


def aya_processor() -> Any:
    """Aya Vision's: up to four tiles of 56 pixels, each behind its number, and the whole image behind them."""
    marks = {"start": "<|START_OF_IMG|>", "end": "<|END_OF_IMG|>", "whole": "TILE_GLOBAL", "placeholder": "<image>"}
    tokenizer = chat_tokenizer("<|IMG_PATCH|>", {**marks, **{f"tile_{tile}": f"TILE_{tile}" for tile in range(1, 5)}})
    return AyaVisionProcessor(
        _cut_by_shape(), tokenizer, patch_size=7, downsample_factor=2, img_size=SIDE, chat_template=_template("<image>")
    )


def cohere2_processor() -> Any:
    """Cohere 2 Vision's: the same with line breaks; its own image processor, which needs torchvision, if asked for."""
    from transformers.models.cohere2_vision.image_processing_cohere2_vision import Cohere2VisionImageProcessor

    marks = {"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>", "img_line_break_token": "<|LINE_BREAK|>"}
    # A tile has as many columns as a patch has pixels: 16 x 16 in the trained models, 4 x 4 here.
    pixels = Cohere2VisionImageProcessor(size={"height": SIDE, "width": SIDE}, max_patches=4, patch_size=4)
    return Cohere2VisionProcessor(pixels, chat_tokenizer("<image>", marks), chat_template=_template("<image>"))


def lfm2_processor() -> Any:
    """LFM2-VL's, which needs torchvision: square tiles, and the whole image in its own shape behind them."""
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    marks = {"image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>"}
    marks |= {"image_thumbnail_token": "<|img_thumbnail|>"}
    marks |= {f"at_{row}_{column}": f"<|img_row_{row}_col_{column}|>" for row in (1, 2, 3) for column in (1, 2, 3)}
    pixels = Lfm2VlImageProcessor(
        encoder_patch_size=7, downsample_factor=2, tile_size=SIDE, max_tiles=4, min_image_tokens=4, max_image_tokens=16,
        size={"height": SIDE, "width": SIDE}, max_pixels_tolerance=1.5,
    )  # fmt: skip
    return Lfm2VlProcessor(pixels, chat_tokenizer("<image>", marks), chat_template=_template("<image>"))


def ovis2_processor() -> Any:
    """Ovis 2's: the whole image, and up to four tiles behind it."""
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>", "<image>", "<6>", "<7>", "<8>")
    tokenizer = chat_tokenizer("<IMG_ATOM>", {f"mark_{number}": mark for number, mark in enumerate(marks)})
    pixels = Ovis2ImageProcessorPil(size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=4)
    return Ovis2Processor(pixels, tokenizer, image_seq_length=16, chat_template=_template("<image>"))


def _cut_by_shape() -> Any:
    return GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_to_patches=True, min_patches=1, max_patches=4
    )


def granite_docling_processor() -> Any:
    """Granite Docling's: tiles behind their places, and the whole image behind them if there are several."""
    marks = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    marks |= {f"at_{row}_{column}": f"<row_{row}_col_{column}>" for row in (1, 2, 3, 4) for column in (1, 2, 3, 4)}
    pixels = GraniteDoclingImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_patches=4)
    return GraniteDoclingProcessor(
        pixels, chat_tokenizer("<image>", marks), image_seq_len=16, chat_template=_template("<image>")
    )
