"""Tiny models of the newest image-text families of transformers; see `tests.zoo`."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.zoo_images import IMAGE, VIDEO
from tests.zoo_parts import HALF, PIXTRAL, QWEN, STARTS, TOKENS, VIT, Kind, text

_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 16}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
           "num_key_value_heads": 4}  # fmt: skip
# Of more columns than prompts have: where an indexer leaves columns out, see tests/test_families_sparse.py.
_INDEXER = {"index_topk": 64, "index_head_dim": 8, "index_n_heads": 2}
_HEARING = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def _dots3_note() -> Any:
    vision = {**VIT, "patch_size": 7, "moe_intermediate_size": 16, "adapter_in_dim": 24, "adapter_out_dim": 32,
              "mlp_layer_types": ["dense"] * 3, "num_local_experts": 2}  # fmt: skip
    hearing = {**_HEARING, "feature_size": 8, "downsample_hidden_size": 8, "adapter_input_size": 16,
               "adapter_out_dim": 32}  # fmt: skip
    words = text(**_EXPERTS, **_LATENT, **_INDEXER, layer_types=["indexed_attention"] * 2, head_dim=16)
    return hf.Dots3NoteConfig(
        vision_config=vision, audio_config=hearing, text_config=words, audio_token_id=197, **TOKENS
    )


def _muse_spark() -> Any:
    vision = {**VIT, "patch_size": 7, "pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16}
    hearing = {"patch_sizes": [4], "hidden_sizes": [8], "depths": [1], "num_hidden_layers": 1, "out_hidden_size": 32}
    words = text(head_dim=8, sliding_window=8, output_multiplier=1.0, qk_scale_factor=1.0, num_local_experts=2,
                 num_experts_per_tok=1, moe_intermediate_size=16, moe_hidden_size=16)  # fmt: skip
    return hf.MuseSparkConfig(
        vision_config=vision, audio_config=hearing, text_config=words, out_hidden_size=96, projector_hidden_size=32,
        audio_token_id=197, **TOKENS,
    )  # fmt: skip


def _qwen4_exp() -> Any:
    states = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
              "linear_value_head_dim": 8, "layer_types": ["linear_attention", "indexed_attention"]}  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
               "shared_expert_intermediate_size": 16, "hc_count": 2, "hc_lowrank": 8, "indexer_n_heads": 2,
               "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64,
               "indexer_compress_ratio": 4}  # fmt: skip
    words = text(head_dim=8, rope_parameters=dict(HALF), **states, **experts)
    del words["intermediate_size"]
    return hf.Qwen4ExpConfig(vision_config={**QWEN, "num_position_embeddings": 64}, text_config=words, **STARTS)


def _mistral_large4() -> Any:
    words = text(**_EXPERTS, **_LATENT, **_INDEXER)
    del words["q_lora_rank"]
    return hf.MistralLarge4Config(
        vision_config=PIXTRAL, text_config=words, image_token_index=IMAGE, spatial_merge_size=2,
        vision_feature_layer=-1,
    )  # fmt: skip


def _minimax_m3_vl() -> Any:
    words = text(head_dim=8, rotary_dim=8, num_local_experts=4, num_experts_per_tok=2, dense_intermediate_size=48,
                 shared_intermediate_size=16)  # fmt: skip
    return hf.MiniMaxM3VLConfig(
        vision_config={**VIT, "num_attention_heads": 2, "patch_size": 7, "image_size": 56}, text_config=words,
        image_token_index=IMAGE, video_token_index=VIDEO, projector_hidden_size=32,
    )  # fmt: skip


def _inkling2(config: Any, **more: Any) -> Any:
    vision = {**VIT, "patch_size": 7, "posemb_grid_size": 8, "projection_hidden_dim": 32, "text_hidden_size": 32,
              "model_type": "inkling2_vision"}  # fmt: skip
    words = text(head_dim=8, swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8,
                 sliding_window_size=8, d_rel=4, rel_extent=64, moe_intermediate_size=16, n_routed_experts=4,
                 num_experts_per_tok=2, unpadded_vocab_size=200, n_layers_per_attn_res_block=1, **more)  # fmt: skip
    del words["intermediate_size"]
    return config(vision_config=vision, text_config=words, image_token_id=IMAGE)


def _nemotron_h_omni() -> Any:
    vision = {**VIT, "patch_size": 7, "model_type": "radio", "video_temporal_patch_size": 2}
    hearing = {
        **_HEARING,
        "num_mel_bins": 8,
        "subsampling_conv_channels": 4,
        "projection_hidden_size": 16,
        "projection_bias": False,
    }
    words = text("nemotron_h", head_dim=8)
    return hf.AutoConfig.for_model(
        "nemotron_h_omni", vision_config=vision, text_config=words, audio_config=hearing, projector_hidden_size=32,
        vision_hidden_size=24, audio_token_id=197, **TOKENS,
    )  # fmt: skip


NEWEST: dict[str, Kind] = {
    "dots3_note": Kind(_dots3_note, "packed_flat_plain"),
    "muse_spark": Kind(_muse_spark, "packed_blocks"),
    "qwen4_exp": Kind(_qwen4_exp, "packed"),
    "mistral_large4": Kind(_mistral_large4, "lines"),
    "minimax_m3_vl": Kind(_minimax_m3_vl, "packed_plain"),
}  # fmt: skip
NEWEST_RECURRENT = ("qwen4_exp", "dots3_note", "mistral_large4")
NEWEST_LAZY = ("muse_spark",)


_SAM = {"hidden_size": 24, "output_channels": 16, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 64,
        "patch_size": 8, "window_size": 2, "global_attn_indexes": [1, 2], "mlp_dim": 32}  # fmt: skip
_DEEPSEEK = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
             "n_group": 1, "topk_group": 1, "mlp_layer_types": ["dense", "sparse"]}  # fmt: skip


def _deepseek_ocr2() -> Any:
    encoder = {**VIT, "num_key_value_heads": 3, "hidden_size": 24}
    vision = {"sam_config": {**_SAM, "downsample_channels": [16, 24]}, "encoder_config": encoder}
    return hf.DeepseekOcr2Config(vision_config=vision, text_config=text(**_DEEPSEEK), image_token_id=IMAGE)


def _unlimited_ocr() -> Any:
    encoder = {**VIT, "image_size": 14, "patch_size": 7}
    vision = {"sam_config": {**_SAM, "downsample_channels": [16, 24]}, "encoder_config": encoder}
    words = text(**_DEEPSEEK, sliding_window=8)
    return hf.UnlimitedOcrConfig(vision_config=vision, text_config=words, image_token_id=IMAGE)


def _hy_v4_vl() -> Any:
    vision = {**VIT, "patch_size": 7, "out_hidden_size": 32, "max_image_size": 56}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    words = text(**_EXPERTS, **_LATENT, **_INDEXER, hc_mult=2, rope_parameters=rope)
    return hf.HYV4VLConfig(vision_config=vision, text_config=words, **TOKENS)


def _minicpm(config: Any, **more: Any) -> Any:
    states = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
              "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
    words = text("qwen3_5_text", head_dim=8, rope_parameters=dict(HALF), **states)
    return config(
        vision_config={**VIT, "image_size": 56, "patch_size": 7}, text_config=words, insert_layer_id=1,
        image_token_id=IMAGE, video_token_id=VIDEO, downsample_mode="16x", **more,
    )  # fmt: skip


NEWEST_UNRANKED: dict[str, Kind] = {
    "deepseek_ocr2": Kind(_deepseek_ocr2, "separated"),
    "unlimited_ocr": Kind(_unlimited_ocr, "separated_lines"),
    "hy_v4_vl": Kind(_hy_v4_vl, "packed_newlines"),
    "minicpm_ocr": Kind(lambda: _minicpm(hf.MiniCPMOcrConfig), "one_row"),
    "minicpmv4_7": Kind(
        lambda: _minicpm(
            hf.MiniCPMV4_7Config, image_start_id=196, image_end_id=195, slice_start_id=194, slice_end_id=193,
            newline_id=192,
        ), "marked_row",
    ),
    "nemotron_h_omni": Kind(_nemotron_h_omni, "packed_sides"),
    "inkling2": Kind(lambda: _inkling2(hf.Inkling2Config), "packed_squares"),
    "inkling2_loop": Kind(
        lambda: _inkling2(
            hf.Inkling2LoopConfig, num_hidden_layers=3, loop_layer_index_start=1, loop_layer_index_end=2,
            loop_num_passes=2, loop_gate_rank=4,
        ), "packed_squares",
    ),
}  # fmt: skip
