"""Tiny models with random weights of image-text families that need no module of their own, and inputs for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from damro.decoding.compat import older_than
from damro.decoding.families.generic.support import SINCE
from tests.zoo_images import FILLED, IMAGE, SHOWN, TILES, VIDEO, Inputs, by_prompt, drawn, token_types
from tests.zoo_images_newest import NEWEST_SHOWN
from tests.zoo_more import MORE, MORE_LAZY, MORE_RECURRENT, MORE_UNRANKED
from tests.zoo_newest import NEWEST, NEWEST_LAZY, NEWEST_RECURRENT, NEWEST_UNRANKED
from tests.zoo_parts import (
    GLM_STARTS,
    HALF,
    PIXTRAL,
    QWEN,
    SIGLIP,
    STARTS,
    TOKENS,
    VIT,
    WINDOWS,
    Kind,
    text,
    vision_text,
)


def _qwen2_vl() -> Any:
    vision = {**QWEN, "embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2}
    del vision["intermediate_size"], vision["out_hidden_size"]
    return hf.Qwen2VLConfig(vision_config=vision, text_config=vision_text(), **STARTS)


def _qwen3_5() -> Any:
    states = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
              "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
    vision = {**QWEN, "deepstack_visual_indexes": [], "num_position_embeddings": 64}
    return hf.Qwen3_5Config(
        vision_config=vision, text_config=text(head_dim=8, rope_parameters=dict(HALF), **states), **STARTS
    )


def _deepstack(config: Any, **more: Any) -> Any:
    vision = {**QWEN, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    return config(vision_config=vision, text_config=vision_text(head_dim=8, **more), **STARTS)


def _internvl(**more: Any) -> Any:
    return hf.InternVLConfig(
        vision_config={**VIT, "image_size": [56, 56], "patch_size": [7, 7], **more}, text_config=text("qwen2"),
        image_token_id=IMAGE, image_seq_length=16, downsample_ratio=0.5,
    )  # fmt: skip


def _idefics3(config: Any, kind: str) -> Any:
    vision = {"model_type": kind, **VIT, "image_size": 56, "patch_size": 7}
    return config(vision_config=vision, text_config=text("llama"), image_token_id=IMAGE, scale_factor=2, pad_token_id=0)


def _gemma3() -> Any:
    words = text("gemma3_text", head_dim=8, sliding_window=12, num_hidden_layers=6, query_pre_attn_scalar=8)
    return hf.Gemma3Config(
        vision_config=SIGLIP, text_config=words, image_token_id=IMAGE, mm_tokens_per_image=16, boi_token_index=196,
        eoi_token_index=195,
    )  # fmt: skip


def _aya_vision() -> Any:
    return hf.AyaVisionConfig(
        vision_config=SIGLIP, text_config=text("cohere2", sliding_window=8, head_dim=8), image_token_index=IMAGE,
        downsample_factor=2, vision_feature_select_strategy="full", vision_feature_layer=-1,
        adapter_layer_norm_eps=1e-6,
    )  # fmt: skip


def _cohere2_vision() -> Any:
    return hf.Cohere2VisionConfig(
        vision_config=SIGLIP, text_config=text("cohere2", sliding_window=8, head_dim=8), image_token_id=IMAGE,
        downsample_factor=2, alignment_intermediate_size=32,
    )  # fmt: skip


def _glm(config: Any, **more: Any) -> Any:
    vision = {**QWEN, "image_size": 56, "model_type": "glm4v_vision"}
    return config(
        vision_config=vision,
        text_config=text("glm4v_text", head_dim=8, rope_parameters=dict(HALF), **more), **GLM_STARTS,
    )  # fmt: skip


def _ovis2() -> Any:
    vision = {**VIT, "image_size": 56, "patch_size": 7, "vocab_size": 40, "hidden_stride": 2,
              "num_visual_indicator_tokens": 5}  # fmt: skip
    return hf.Ovis2Config(
        vision_config=vision, text_config=text("qwen2"), image_token_id=IMAGE,
        visual_indicator_token_ids=[190, 191, 192, 193, 194], vocab_size=200, hidden_size=32,
    )  # fmt: skip


def _lfm2_vl() -> Any:
    vision = {"model_type": "siglip2_vision_model", **VIT, "num_patches": 64, "patch_size": 7,
              "vision_use_head": False}  # fmt: skip
    return hf.Lfm2VlConfig(
        vision_config=vision, text_config=text("lfm2", layer_types=["conv", "full_attention"]), image_token_id=IMAGE,
        downsample_factor=2, projector_hidden_size=32,
    )  # fmt: skip


def _exaone4_5() -> Any:
    vision = {**QWEN, **WINDOWS, "num_key_value_heads": 3}
    words = text("exaone4", sliding_window=8, num_hidden_layers=4, head_dim=8)
    return hf.Exaone4_5_Config(vision_config=vision, text_config=words, **TOKENS)


def _glm4v_moe() -> Any:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
               "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}  # fmt: skip
    words = text(head_dim=8, rope_parameters=dict(HALF), **experts)
    return hf.Glm4vMoeConfig(vision_config={**QWEN, "image_size": 56}, text_config=words, **GLM_STARTS)


def _glm_ocr() -> Any:
    words = text(head_dim=8, rope_parameters=dict(HALF))
    return hf.GlmOcrConfig(vision_config={**QWEN, "image_size": 56}, text_config=words, **GLM_STARTS)


def _paddleocr_vl() -> Any:
    vision = {**VIT, "patch_size": 7, "image_size": 56, "spatial_merge_size": 2}
    return hf.PaddleOCRVLConfig(vision_config=vision, text_config=vision_text(head_dim=8), **STARTS)


def _kimi_k25() -> Any:
    vision = {**VIT, "patch_size": 7, "pos_emb_height": 8, "pos_emb_width": 12, "pos_emb_time": 1}
    latent = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
              "first_k_dense_replace": 2, "num_key_value_heads": 4}  # fmt: skip
    return hf.Kimi_K25Config(
        vision_config=vision, text_config=text("deepseek_v3", **latent), projection_hidden_size=24, **STARTS
    )


def _gemma4() -> Any:
    vision = {**VIT, "num_key_value_heads": 3, "head_dim": 8, "pooling_kernel_size": 2, "patch_size": 7,
              "position_embedding_size": 64}  # fmt: skip
    words = text("gemma4_text", head_dim=8, global_head_dim=8, sliding_window=12, num_hidden_layers=4,
                 layer_types=["sliding_attention", "full_attention"] * 2, vocab_size_per_layer_input=200,
                 hidden_size_per_layer_input=8)  # fmt: skip
    return hf.Gemma4Config(
        vision_config=vision, text_config=words, audio_config=None, boi_token_id=196, eoi_token_id=195,
        boa_token_id=194, eoa_token_index=193, audio_token_id=197, **TOKENS,
    )  # fmt: skip


KINDS: dict[str, Kind] = {
    "internvl": Kind(_internvl, "square"),
    "internvl_qknorm": Kind(lambda: _internvl(use_qk_norm=True), "square"),
    "internvl_tiles": Kind(_internvl, "tiles"),
    "qwen2_vl": Kind(_qwen2_vl, "packed"),
    "qwen2_5_vl": Kind(
        lambda: hf.Qwen2_5_VLConfig(vision_config={**QWEN, **WINDOWS}, text_config=vision_text(), **STARTS),
        "packed",
    ),
    "qwen3_vl": Kind(lambda: _deepstack(hf.Qwen3VLConfig), "packed"),
    "qwen3_vl_moe": Kind(
        lambda: _deepstack(hf.Qwen3VLMoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
        "packed",
    ),
    "qwen3_5": Kind(_qwen3_5, "packed"),
    "smolvlm": Kind(lambda: _idefics3(hf.SmolVLMConfig, "smolvlm_vision"), "marked_tiles"),
    "idefics3": Kind(lambda: _idefics3(hf.Idefics3Config, "idefics3_vision"), "marked_tiles"),
    "gemma3": Kind(_gemma3, "square"),
    "mistral3": Kind(
        lambda: hf.Mistral3Config(
            vision_config=PIXTRAL, text_config=text("mistral", sliding_window=None), image_token_index=IMAGE,
            spatial_merge_size=2, vision_feature_layer=-1,
        ), "lines",
    ),
    "glm4v": Kind(lambda: _glm(hf.Glm4vConfig), "packed"),
    "glm46v": Kind(lambda: _glm(hf.Glm46VConfig), "packed"),
    "aya_vision": Kind(_aya_vision, "global_tiles"),
    "cohere2_vision": Kind(_cohere2_vision, "lined_tiles"),
    "deepseek_vl": Kind(
        lambda: hf.DeepseekVLConfig(vision_config=SIGLIP, text_config=text("llama"), image_token_id=IMAGE), "whole"
    ),
    "ovis2": Kind(_ovis2, "first_tiles"),
    "video_llama_3": Kind(
        lambda: hf.VideoLlama3Config(vision_config={**VIT, "patch_size": 7}, text_config=text("qwen2"), **TOKENS),
        "packed_still",
    ),
    "lighton_ocr": Kind(
        lambda: hf.LightOnOcrConfig(
            vision_config=PIXTRAL, text_config=text("qwen3", head_dim=8), image_token_id=IMAGE, spatial_merge_size=2
        ), "sized",
    ),
    "exaone4_5": Kind(_exaone4_5, "packed_plain"),
    "lfm2_vl": Kind(_lfm2_vl, "padded_tiles"),
    "llava_pixtral": Kind(
        lambda: hf.LlavaConfig(
            vision_config=PIXTRAL, text_config=text("mistral", sliding_window=None), image_token_index=IMAGE,
            vision_feature_layer=-1, vision_feature_select_strategy="full",
        ), "patch_lines",
    ),
    "glm4v_moe": Kind(_glm4v_moe, "packed"),
    "glm_ocr": Kind(_glm_ocr, "packed"),
    "paddleocr_vl": Kind(_paddleocr_vl, "packed_patches"),
    "kimi_k25": Kind(_kimi_k25, "packed_patches_plain"),
    "gemma4": Kind(_gemma4, "placed"),
}  # fmt: skip


def _got_ocr2() -> Any:
    vision = {"hidden_size": 24, "output_channels": 16, "num_hidden_layers": 3, "num_attention_heads": 3,
              "image_size": 64, "patch_size": 8, "window_size": 2, "global_attn_indexes": [1, 2],
              "mlp_dim": 32}  # fmt: skip
    return hf.GotOcr2Config(vision_config=vision, text_config=text("qwen2"), image_token_id=IMAGE, image_seq_length=4)


def _idefics2() -> Any:
    queries = {"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 2, "resampler_n_heads": 4,
               "resampler_head_dim": 8, "num_key_value_heads": 2}  # fmt: skip
    return hf.Idefics2Config(
        vision_config={**VIT, "image_size": 56, "patch_size": 7}, perceiver_config=queries,
        text_config=text("mistral", sliding_window=None), image_token_id=IMAGE,
    )  # fmt: skip


def _aria() -> Any:
    words = text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    return hf.AriaConfig(
        vision_config={"model_type": "idefics3_vision", **VIT, "image_size": 56, "patch_size": 7}, text_config=words,
        projector_patch_to_query_dict={64: 16}, image_token_index=IMAGE,
    )  # fmt: skip


KINDS |= MORE | NEWEST
ZOO = tuple(KINDS)
# Models whose columns are no patches, or whose towers attend where it cannot be seen.
KINDS |= {"got_ocr2": Kind(_got_ocr2, "four"), "idefics2": Kind(_idefics2, "one_tile"), "aria": Kind(_aria, "square")}
KINDS |= MORE_UNRANKED | NEWEST_UNRANKED
UNRANKED = ("got_ocr2", "idefics2", "aria", *MORE_UNRANKED, *NEWEST_UNRANKED)
RECURRENT = ("qwen3_5", "lfm2_vl", *MORE_RECURRENT, *NEWEST_RECURRENT)
LAZY = (
    *RECURRENT,
    "gemma3",
    "aya_vision",
    "cohere2_vision",
    "exaone4_5",
    "kimi_k25",
    "gemma4",
    *MORE_LAZY,
    *NEWEST_LAZY,
)
"""Models whose two prompts are not read in one batch."""

PROMPTS: tuple[tuple[Any, ...], ...] = ((1, 9, 11, "image", 30, 31, 32, 33), (1, "image", 40, 41))
TWO_IMAGES: tuple[tuple[Any, ...], ...] = ((1, 9, "image", 12, 13, "image", 30, 31, 32), (1, "image", 40))
# What a model with random weights may write and no trained one would: tokens that stand for images.
NEVER = [IMAGE, VIDEO, *FILLED]


@lru_cache
def zoo_model(name: str, attention: str = "sdpa") -> Any:
    """A model, shared between tests: none may leave a change on it."""
    if older_than(SINCE):
        pytest.skip(f"models without a module need transformers {SINCE} or newer")
    config = KINDS[name].make()
    torch.manual_seed(0)
    model = hf.AutoModelForImageTextToText.from_config(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 or (parameter.numel() > 1 and parameter.std() == 0):
                parameter.add_(0.25 * torch.randn(parameter.shape))
    if attention != "sdpa":
        model.set_attn_implementation(attention)
    return model


STAND_FOR_ALL = ("internvl_tiles", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "idefics3", "gemma3", "llava_pixtral")
"""Models on which everything is tried always; on others some of it waits for the slow round."""


def thorough(names: Sequence[str], *values: Any) -> list[Any]:
    """Cases of a test, a model each and what else it takes, of which most wait for the slow round."""
    return [pytest.param(name, *values, marks=[] if name in STAND_FOR_ALL else [pytest.mark.slow]) for name in names]


def zoo_inputs(name: str, prompts: Sequence[Sequence[Any]] = PROMPTS, seed: int = 1) -> Inputs:
    """Prompts of different length about different images, padded on the left, as the model's processor has them."""
    number = sum(part == "image" for prompt in prompts for part in prompt)
    pixels, runs = (SHOWN | NEWEST_SHOWN)[KINDS[name].shown](number, torch.Generator().manual_seed(seed))
    if TILES in pixels:
        pixels = by_prompt(KINDS[name].shown, pixels[TILES], [list(prompt).count("image") for prompt in prompts])
    left = iter(runs)
    rows = [[token for part in prompt for token in (next(left) if part == "image" else [part])] for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, **pixels, **token_types(name, KINDS[name].shown, ids)}


def row_of(inputs: Inputs, row: int) -> Tensor:
    """The tokens of one prompt, without padding."""
    return inputs["input_ids"][row][inputs["attention_mask"][row].bool()]


__all__ = ["KINDS", "NEVER", "PROMPTS", "RECURRENT", "LAZY", "TWO_IMAGES", "UNRANKED", "ZOO", "drawn", "row_of", "text",
           "thorough", "zoo_inputs", "zoo_model"]  # fmt: skip
