"""More tiny models of image-text families; see `tests.zoo`."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.zoo_images import IMAGE, VIDEO
from tests.zoo_parts import (
    GLM_STARTS,
    HALF,
    MROPE,
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


def _qwen3_5_moe() -> Any:
    states = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
              "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
               "shared_expert_intermediate_size": 16}  # fmt: skip
    words = text(head_dim=8, rope_parameters=dict(HALF), **states, **experts)
    del words["intermediate_size"]
    return hf.Qwen3_5MoeConfig(
        vision_config={**QWEN, "num_position_embeddings": 64}, text_config=words, **STARTS
    )  # fmt: skip


def _glmga() -> Any:
    vision = {**QWEN, "image_size": 56, "model_type": "glm4v_vision"}
    words = text("glm4v_text", head_dim=8, rope_parameters=dict(HALF))
    return hf.GlmgaConfig(vision_config=vision, text_config=words, **GLM_STARTS)


def _qianfan_ocr() -> Any:
    return hf.QianfanOCRConfig(
        vision_config={**VIT, "image_size": [56, 56], "patch_size": [7, 7]}, text_config=text("qwen3", head_dim=8),
        image_token_id=IMAGE, image_seq_length=16, downsample_ratio=0.5,
    )  # fmt: skip


def _granite_docling() -> Any:
    vision = {**VIT, "image_size": 56, "patch_size": 7, "out_hidden_size": 32, "scale_factor": 2,
              "deepstack_visual_indexes": [0, 1]}  # fmt: skip
    # Granite's multipliers make a model with random weights deaf to its images.
    plain = {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
             "attention_multiplier": 8**-0.5}  # fmt: skip
    return hf.GraniteDoclingConfig(
        vision_config=vision, text_config=text(**plain), image_token_id=IMAGE, pad_token_id=0
    )  # fmt: skip


def _shieldgemma2() -> Any:
    words = text("gemma3_text", head_dim=8, sliding_window=12, num_hidden_layers=6, query_pre_attn_scalar=8)
    return hf.ShieldGemma2Config(
        vision_config=SIGLIP, text_config=words, image_token_index=IMAGE, mm_tokens_per_image=16, boi_token_index=196,
        eoi_token_index=195,
    )  # fmt: skip


def _qwen2_5_omni() -> Any:
    hearing = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
               "num_mel_bins": 8, "output_dim": 32}  # fmt: skip
    return hf.Qwen2_5OmniThinkerConfig(
        audio_config=hearing, vision_config={**QWEN, **WINDOWS}, text_config=vision_text(), audio_token_index=197,
        image_token_index=IMAGE, video_token_index=VIDEO,
        vision_start_token_id=196, vision_end_token_id=195,
    )  # fmt: skip


def _qwen3_omni() -> Any:
    hearing = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
               "num_mel_bins": 8, "output_dim": 32, "downsample_hidden_size": 8}  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    vision = {**QWEN, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    return hf.Qwen3OmniMoeThinkerConfig(
        audio_config=hearing, vision_config=vision, text_config=vision_text(head_dim=8, **experts),
        audio_token_id=197, **STARTS,
    )  # fmt: skip


def _ernie() -> Any:
    vision = {"depth": 3, "hidden_size": 24, "num_heads": 3, "patch_size": 7, "spatial_merge_size": 2,
              "intermediate_size": 32}  # fmt: skip
    experts = {"moe_intermediate_size": [16, 8], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
    return hf.Ernie4_5_VLMoeConfig(vision_config=vision, text_config=vision_text(**experts), **GLM_STARTS)


def _hyperclovax() -> Any:
    vision = {**QWEN, **WINDOWS, "model_type": "qwen2_5_vl_vision"}
    return hf.HyperCLOVAXVisionV2Config(vision_config=vision, text_config=text("hyperclovax"), **TOKENS)


def _muse_glimmer() -> Any:
    vision = {**VIT, "patch_size": 7, "pos_emb_height": 8, "pos_emb_width": 8, "max_position_embeddings": 64}
    words = text(head_dim=8, sliding_window=8, output_multiplier=1.0, qk_scale_factor=1.0)
    return hf.MuseGlimmerConfig(
        vision_config=vision, text_config=words, out_hidden_size=96, projector_hidden_size=32, **TOKENS
    )


def _cosmos3_edge() -> Any:
    return hf.Cosmos3EdgeConfig(
        vision_config={**VIT, "patch_size": 7, "num_patches": 64}, text_config=vision_text(head_dim=8),
        projector_hidden_size=32, **STARTS,
    )  # fmt: skip


def _cosmos3_omni() -> Any:
    vision = {**QWEN, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    return hf.Cosmos3OmniConfig(vision_config=vision, text_config=vision_text(head_dim=8), **STARTS)


def _cohere_compass() -> Any:
    kinds = ["sliding_attention", "full_attention"]
    words = text(sliding_window=8, head_dim=8, layer_types=kinds, rope_parameters={kind: dict(MROPE) for kind in kinds})
    vision = {**QWEN, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    return hf.CohereCompassConfig(vision_config=vision, text_config=words, **STARTS)


_INDEXER = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2, "num_key_value_heads": 4, "kv_lora_rank": 8,
            "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 2, "num_experts_per_tok": 1,
            "moe_intermediate_size": 16}  # fmt: skip


def _glm5_next() -> Any:
    kinds = ["linear_attention", "indexed_attention"]
    states = {"linear_head_dim": 8, "linear_num_heads": 4, "layer_types": kinds}
    words = text(**_INDEXER, **states, q_lora_rank=8, index_kpool=2, hc_mult=2)
    vision = {**QWEN, "image_size": 56, "projection_intermediate_size": 32}
    return hf.Glm5NextConfig(vision_config=vision, text_config=words, **GLM_STARTS)


MORE: dict[str, Kind] = {
    "qwen3_5_moe": Kind(_qwen3_5_moe, "packed"),
    "glmga": Kind(_glmga, "packed"),
    "qianfan_ocr": Kind(_qianfan_ocr, "tiles"),
    "granite_docling": Kind(_granite_docling, "counted_tiles"),
    "shieldgemma2": Kind(_shieldgemma2, "square"),
    "qwen2_5_omni_thinker": Kind(_qwen2_5_omni, "packed_started"),
    "qwen3_omni_moe_thinker": Kind(_qwen3_omni, "packed_started"),
    "ernie4_5_vl_moe": Kind(_ernie, "packed_flat"),
    "hyperclovax_vision_v2": Kind(_hyperclovax, "packed_plain"),
    "muse_glimmer": Kind(_muse_glimmer, "packed_blocks"),
    "cosmos3_edge": Kind(_cosmos3_edge, "packed_flat"),
    "cosmos3_omni": Kind(_cosmos3_omni, "packed"),
    "cohere_compass": Kind(_cohere_compass, "packed"),
    "glm5_next": Kind(_glm5_next, "packed"),
}
MORE_RECURRENT = ("qwen3_5_moe", "glm5_next")
MORE_LAZY = ("shieldgemma2", "muse_glimmer", "cohere_compass")


def _deepseek_vl_hybrid() -> Any:
    other = {"model_type": "sam_vision_model", "hidden_size": 24, "output_channels": 16, "num_hidden_layers": 3,
             "num_attention_heads": 3, "image_size": 64, "patch_size": 8, "window_size": 2,
             "global_attn_indexes": [1, 2], "mlp_dim": 32}  # fmt: skip
    return hf.DeepseekVLHybridConfig(
        vision_config=SIGLIP, high_res_vision_config=other, text_config=text("llama"), image_token_id=IMAGE
    )


def _lfm3_vl() -> Any:
    vision = {**VIT, "num_hidden_layers": 4, "num_key_value_heads": 3, "patch_size": 7,
              "layer_types": ["conv", "conv", "full_attention", "conv"]}  # fmt: skip
    return hf.Lfm3VlConfig(
        vision_config=vision, text_config=text("lfm3", head_dim=8, layer_types=["conv", "full_attention"]),
        projector_hidden_size=32, **STARTS,
    )  # fmt: skip


def _hunyuan_vl() -> Any:
    vision = {**VIT, "patch_size": 7, "out_hidden_size": 32, "max_image_size": 56, "min_image_size": 14,
              "img_max_token_num": 64, "max_vit_seq_len": 64}  # fmt: skip
    axes = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1, 1]}
    return hf.HunYuanVLConfig(
        vision_config=vision, text_config=text(head_dim=8, rope_parameters=axes), image_token_id=IMAGE
    )


def _minicpmv4_6() -> Any:
    states = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
              "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
    words = text("qwen3_5_text", head_dim=8, rope_parameters=dict(HALF), **states)
    return hf.MiniCPMV4_6Config(
        vision_config={**VIT, "image_size": 56, "patch_size": 7}, text_config=words, insert_layer_id=1,
        image_token_id=IMAGE, video_token_id=VIDEO,
    )  # fmt: skip


def _step3p7() -> Any:
    experts = {"n_routed_experts": 2, "num_experts_per_tok": 1, "num_local_experts": 2, "moe_intermediate_size": 16,
               "share_expert_dim": 16}  # fmt: skip
    return hf.Step3p7Config(
        vision_config={**VIT, "image_size": 56, "patch_size": 7, "max_position_embeddings": 64},
        text_config=text(head_dim=8, sliding_window=64, **experts), image_token_id=IMAGE,
    )  # fmt: skip


def _molmo2() -> Any:
    heads = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 3, "num_key_value_heads": 3,
             "head_dim": 8}  # fmt: skip
    vision = {**heads, "num_hidden_layers": 3, "image_size": [56, 56], "patch_size": 7, "num_position_embeddings": 64}
    return hf.Molmo2Config(
        vision_config=vision, adapter_config={**heads, "vision_feature_layer": [-1], "text_hidden_size": 32},
        text_config=text(head_dim=8, additional_vocab_size=8), image_token_id=IMAGE,
    )  # fmt: skip


MORE_UNRANKED: dict[str, Kind] = {
    "deepseek_vl_hybrid": Kind(_deepseek_vl_hybrid, "whole_twice"),
    "lfm3_vl": Kind(_lfm3_vl, "packed_plain"),
    "hunyuan_vl": Kind(_hunyuan_vl, "packed_lines"),
    "molmo2": Kind(_molmo2, "pooled"),
    "minicpmv4_6": Kind(_minicpmv4_6, "one_row"),
    "step3p7": Kind(_step3p7, "views"),
}
"""Models whose columns are no patches that can be ranked."""
