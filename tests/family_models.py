"""Tiny models with random weights of the families that have no golden recording, and inputs for them."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipVideoConfig,
    InstructBlipVideoForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.golden_models import word_tokenizer

MORE_FAMILIES = (
    "vipllava", "video_llava", "video_llava_video", "llava_onevision", "llava_siglip", "blip-2", "paligemma",
    "instructblipvideo",
)  # fmt: skip
SINCE_5_23 = Version(transformers.__version__) >= Version("5.23")
needs_capped = pytest.mark.skipif(not SINCE_5_23, reason="PaliGemma 2 needs transformers 5.23 or newer")
ENCODER_DECODERS = ("instructblip-t5", "blip-2-t5")
IMAGE, VIDEO, PATCHES, FRAMES, QUERIES = 199, 198, 16, 3, 6
Inputs = dict[str, Tensor]
_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}  # fmt: skip
_VIT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 3,
        "image_size": 56, "patch_size": 14}  # fmt: skip
_CLIP = {"model_type": "clip_vision_model", **_VIT}
_SIGLIP = {"model_type": "siglip_vision_model", **_VIT, "vision_use_head": False}
_LLAMA = {"model_type": "llama", **_TEXT}
# FLAN-T5's kind of T5: gated, with an output layer that is not scaled.
_T5 = {"model_type": "t5", "vocab_size": 200, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
       "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
       "pad_token_id": 0, "eos_token_id": None}  # fmt: skip
_QFORMER = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
            "encoder_hidden_size": 24}  # fmt: skip


def _vipllava() -> Any:
    # The plural is the older name; where it is not known any more it is another name of the singular.
    config = VipLlavaConfig(
        vision_config=_CLIP, text_config=_LLAMA, image_token_index=IMAGE, vision_feature_layers=[-2, -3, 1]
    )
    return VipLlavaForConditionalGeneration(config)


def _video_llava() -> Any:
    config = VideoLlavaConfig(
        vision_config=_CLIP, text_config=_LLAMA, image_token_index=IMAGE, video_token_index=VIDEO,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    return VideoLlavaForConditionalGeneration(config)


def _llava_onevision() -> Any:
    config = LlavaOnevisionConfig(
        vision_config=_SIGLIP, text_config={"model_type": "qwen2", **_TEXT, "num_key_value_heads": 2},
        image_token_index=IMAGE, video_token_index=VIDEO, vision_feature_layer=-1,
        vision_feature_select_strategy="full", image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
    )  # fmt: skip
    return LlavaOnevisionForConditionalGeneration(config)


def _llava_siglip() -> Any:
    config = LlavaConfig(
        vision_config=_SIGLIP, text_config=_LLAMA, image_token_index=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def _blip_2() -> Any:
    config = Blip2Config(
        vision_config=dict(_VIT),
        qformer_config={**_QFORMER, "vocab_size": 10},
        text_config={"model_type": "opt", "vocab_size": 200, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
                     "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 128,
                     "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None},
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )  # fmt: skip
    return Blip2ForConditionalGeneration(config)


def _paligemma() -> Any:
    return _paligemma_on({"model_type": "gemma"})


def _paligemma_2() -> Any:
    """Every other layer has a window, shorter than the prompts; scores and logits are soft-capped."""
    return _paligemma_on({"model_type": "gemma2", "sliding_window": 12, "query_pre_attn_scalar": 8})


def _paligemma_on(text: dict[str, Any]) -> Any:
    config = PaliGemmaConfig(
        vision_config=_SIGLIP, text_config={**_TEXT, "num_key_value_heads": 2, "head_dim": 8, **text},
        image_token_index=IMAGE, projection_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    return PaliGemmaForConditionalGeneration(config)


def _instructblip_t5() -> Any:
    config = InstructBlipConfig(
        vision_config=dict(_VIT), qformer_config={**_QFORMER, "vocab_size": 120}, text_config=dict(_T5),
        num_query_tokens=QUERIES, image_token_index=IMAGE,
    )  # fmt: skip
    return InstructBlipForConditionalGeneration(config)


def _instructblip_video() -> Any:
    config = InstructBlipVideoConfig(
        vision_config=dict(_VIT), qformer_config={**_QFORMER, "vocab_size": 120}, text_config=_LLAMA,
        num_query_tokens=QUERIES, video_token_index=VIDEO,
    )  # fmt: skip
    return InstructBlipVideoForConditionalGeneration(config)


def _instructblip_video_t5() -> Any:
    config = InstructBlipVideoConfig(
        vision_config=dict(_VIT), qformer_config={**_QFORMER, "vocab_size": 120}, text_config=dict(_T5),
        num_query_tokens=QUERIES, video_token_index=VIDEO,
    )  # fmt: skip
    return InstructBlipVideoForConditionalGeneration(config)


def _blip_2_t5() -> Any:
    config = Blip2Config(
        vision_config=dict(_VIT), qformer_config={**_QFORMER, "vocab_size": 10}, text_config=dict(_T5),
        num_query_tokens=QUERIES, image_token_index=IMAGE,
    )  # fmt: skip
    return Blip2ForConditionalGeneration(config)


_MAKERS = {
    "vipllava": _vipllava,
    "video_llava": _video_llava,
    "video_llava_video": _video_llava,
    "llava_onevision": _llava_onevision,
    "llava_siglip": _llava_siglip,
    "blip-2": _blip_2,
    "paligemma": _paligemma,
    "paligemma2": _paligemma_2,
    "instructblipvideo": _instructblip_video,
    "instructblip-t5": _instructblip_t5,
    "instructblipvideo-t5": _instructblip_video_t5,
    "blip-2-t5": _blip_2_t5,
}


@lru_cache
def family_model(name: str, attention: str = "sdpa") -> Any:
    """A model, shared between tests: none may leave a change on it."""
    torch.manual_seed(0)
    model = _MAKERS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 or parameter.std() == 0 or parameter.shape == (32,):
                parameter.add_(0.25 * torch.randn(parameter.shape))
    if attention != "sdpa":
        model.set_attn_implementation(attention)
    return model


def _takes(key: str) -> bool:
    """Whether Video-LLaVA takes images by this name; before transformers 5.21 it has one of its own."""
    return key in inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters


def family_inputs(name: str) -> Inputs:
    """Two prompts of different length about different images (or videos), padded on the left."""
    random = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    visual: Inputs = {"pixel_values": drawn(2, 3, 56, 56)}
    columns = [[IMAGE] * PATCHES] * 2
    if name == "video_llava_video":
        visual = {"pixel_values_videos": drawn(2, FRAMES, 3, 56, 56)}
        columns = [[VIDEO] * FRAMES * (1 + PATCHES)] * 2
    elif name == "video_llava" and not _takes("pixel_values"):
        visual = {"pixel_values_images": visual["pixel_values"]}
    elif name == "llava_onevision":
        # 56x112 is two tiles side by side, 4 lines of 8 patches and a newline; of 56x56 in them half is padding.
        visual = {"pixel_values": drawn(2, 5, 3, 56, 56), "image_sizes": torch.tensor([[56, 112], [56, 56]])}
        columns = [[IMAGE] * (PATCHES + 4 * 9), [IMAGE] * (PATCHES + 4 * 5)]
    elif name == "blip-2":
        columns = [[IMAGE] * QUERIES] * 2
    elif name == "instructblipvideo":
        asked = torch.tensor([[1, 60, 61, 62], [1, 63, 64, 0]])
        visual = {"pixel_values": drawn(2, FRAMES, 3, 56, 56), "qformer_input_ids": asked}
        visual["qformer_attention_mask"] = (asked != 0).long()
        columns = [[VIDEO] * FRAMES * QUERIES] * 2
    prompts = [[1, 9, *columns[0], 30, 31, 32, 33], [1, *columns[1], 40, 41]]
    if name.startswith("paligemma"):
        prompts = [[*columns[0], 1, 9, 30, 31, 32, 33], [*columns[1], 1, 40, 41]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    if name.startswith("paligemma"):
        visual["token_type_ids"] = torch.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": mask, **visual}


def encoder_inputs(name: str, rows: int) -> Inputs:
    """Prompts of different length about different images, padded on the right, as FLAN-T5's tokenizer does."""
    random = torch.Generator().manual_seed(1)
    video = name == "instructblipvideo-t5"
    columns = [VIDEO] * QUERIES * FRAMES if video else [IMAGE] * QUERIES
    prompts = [columns + text for text in ([30, 31, 32, 33, 2], [40, 41, 2], [50, 51, 52, 2])[:rows]]
    width = max(map(len, prompts))
    inputs = {
        "input_ids": torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts]),
        "attention_mask": torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts]),
        "pixel_values": torch.randn((rows, *[FRAMES][:video], 3, 56, 56), generator=random),
    }
    if name.startswith("instructblip"):
        asked = torch.tensor([[1, 60, 61, 62], [1, 63, 64, 0], [1, 65, 0, 0]])[:rows]
        inputs |= {"qformer_input_ids": asked, "qformer_attention_mask": (asked != 0).long()}
    return inputs


def encoder_processor(name: str) -> Any:
    """A processor as FLAN-T5's: no token begins a text, one ends it."""
    words = word_tokenizer(200).backend_tokenizer
    plain = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    pixels = BlipImageProcessorPil(size={"height": 56, "width": 56})
    if name == "blip-2-t5":
        return Blip2Processor(pixels, plain, num_query_tokens=QUERIES)
    return InstructBlipProcessor(pixels, plain, word_tokenizer(120), num_query_tokens=QUERIES)


def siglip_processor(name: str) -> Any:
    """A processor for "paligemma" or "llava_siglip", a word a token."""
    words = word_tokenizer(200)
    words.padding_side = "left"
    pixels: Any = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    if name == "paligemma":
        pixels.image_seq_length = PATCHES
        return PaliGemmaProcessor(pixels, words)
    return LlavaProcessor(pixels, words, 14, "full", num_additional_image_tokens=0)


@torch.no_grad()
def received_by_eager(name: str, pixels: Tensor, layer: int = -1) -> Tensor:
    """`(tiles, patches)`: what each patch of a SigLIP receives, mean over heads and queries, by its own weights."""
    tower = family_model(name, "eager").model.vision_tower
    weights: Tensor = tower(pixels, output_attentions=True).attentions[layer]
    return weights.mean(dim=(1, 2))
