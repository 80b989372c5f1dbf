"""Every option of ``generate`` acts with DAMRO as in the stock loop with DAMRO by hand, or is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Words
from tokenizers import models, pre_tokenizers
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, PreTrainedTokenizerFast, WatermarkingConfig

import damro
from damro.decoding.errors import DecodingError
from damro.methods import Damro
from tests.golden_cases import inputs_of, model_of
from tests.stateless import StatelessDAMRO

STRENGTHS: dict[str, Any] = {"alpha": 1.0, "beta": 0.1, "top_k": 4}
ENDS = [5, 9, 20, 30, 41, 43, 60, 70, 80, 90, 100, 120]
NEW = 8
PROMPT = inputs_of("llava_batch2")["input_ids"].shape[1]
SAMPLED = {"do_sample": True}
ENDING = {"eos_token_id": ENDS, "pad_token_id": 0}
LOOKED_UP = {"prompt_lookup_num_tokens": 2}
RETURNED = {"return_dict_in_generate": True}


def words() -> PreTrainedTokenizerFast:
    """Token n is the word wn; the first is the one that transformers asks about stop strings with."""
    numbers = {"abcdef": 0, **{f"w{number}": number for number in range(1, 200)}}
    core = Words(models.WordLevel(numbers, unk_token="abcdef"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="abcdef")


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "max_length": [{"max_length": PROMPT + 5, "max_new_tokens": None}],
    "max_new_tokens": [{"max_new_tokens": 5}],
    "min_length": [{"min_length": PROMPT + 6, **ENDING}],
    "min_new_tokens": [{"min_new_tokens": 6, **ENDING}],
    "early_stopping": [{"early_stopping": True, "num_beams": 2, **ENDING}],
    "max_time": [{"max_time": 1000.0}],
    "stop_strings": [{"stop_strings": [f"w{end}" for end in ENDS], "tokenizer": words()}],
    "do_sample": [SAMPLED],
    "num_beams": [{"num_beams": 3}, {"num_beams": 2, **SAMPLED}],
    "use_mtp": [{"use_mtp": True}],
    "use_cache": [{"use_cache": False}],
    "cache_implementation": [{"cache_implementation": it} for it in ("dynamic", "static")],
    "cache_config": [{"cache_config": {}}],
    "max_cache_len": [{"max_cache_len": 64}, {"max_cache_len": 64, "cache_implementation": "static"}],
    "temperature": [{"temperature": 0.7, **SAMPLED}],
    "top_k": [{"top_k": 3, **SAMPLED}],
    "top_p": [{"top_p": 0.8, **SAMPLED}],
    "min_p": [{"min_p": 0.2, **SAMPLED}],
    "top_h": [{"top_h": 0.4, **SAMPLED}],
    "typical_p": [{"typical_p": 0.8, **SAMPLED}],
    "epsilon_cutoff": [{"epsilon_cutoff": 0.05, **SAMPLED}],
    "eta_cutoff": [{"eta_cutoff": 0.05, **SAMPLED}],
    "repetition_penalty": [{"repetition_penalty": 1.4}],
    "encoder_repetition_penalty": [{"encoder_repetition_penalty": 2.0}, {"encoder_repetition_penalty": 1.0}],
    "length_penalty": [{"length_penalty": 2.0, "num_beams": 2, **ENDING}],
    "no_repeat_ngram_size": [{"no_repeat_ngram_size": 1}],
    "bad_words_ids": [{"bad_words_ids": [[41], [190, 139]]}],
    "renormalize_logits": [{"renormalize_logits": True, **SAMPLED}],
    "forced_bos_token_id": [{"forced_bos_token_id": 7}],
    "forced_eos_token_id": [{"forced_eos_token_id": 7}],
    "remove_invalid_values": [{"remove_invalid_values": True}],
    "exponential_decay_length_penalty": [{"exponential_decay_length_penalty": (2, 1.5), **ENDING}],
    "suppress_tokens": [{"suppress_tokens": [41, 60, 90]}],
    "begin_suppress_tokens": [{"begin_suppress_tokens": list(range(3, 100))}],
    "sequence_bias": [{"sequence_bias": [[[41], 5.0]]}],
    "token_healing": [{"token_healing": True, "tokenizer": words()}],
    "guidance_scale": [{"guidance_scale": 1.5}],
    "watermarking_config": [{"watermarking_config": WatermarkingConfig(bias=3.0)}],
    "num_return_sequences": [{"num_return_sequences": 2, **SAMPLED}],
    "output_attentions": [{"output_attentions": True, **RETURNED}],
    "output_hidden_states": [{"output_hidden_states": True, **RETURNED}],
    "output_scores": [{"output_scores": True, **RETURNED}],
    "output_logits": [{"output_logits": True, **RETURNED}],
    "return_dict_in_generate": [RETURNED],
    "pad_token_id": [{"pad_token_id": 3, "eos_token_id": ENDS}],
    "bos_token_id": [{"bos_token_id": 3}],
    "eos_token_id": [ENDING, {"eos_token_id": 41}, {"eos_token_id": None}],
    "encoder_no_repeat_ngram_size": [{"encoder_no_repeat_ngram_size": 1}],
    "decoder_start_token_id": [{"decoder_start_token_id": 3}],
    "is_assistant": [{"is_assistant": True}],
    "num_assistant_tokens": [{"num_assistant_tokens": 2, **LOOKED_UP}],
    "num_assistant_tokens_schedule": [{"num_assistant_tokens_schedule": "constant", **LOOKED_UP}],
    "assistant_confidence_threshold": [{"assistant_confidence_threshold": 0.3, **LOOKED_UP}],
    "prompt_lookup_num_tokens": [LOOKED_UP],
    "max_matching_ngram_size": [{"max_matching_ngram_size": 1, **LOOKED_UP}],
    "assistant_early_exit": [{"assistant_early_exit": 1}],
    "assistant_lookbehind": [{"assistant_lookbehind": 5, **LOOKED_UP}],
    "target_lookbehind": [{"target_lookbehind": 5, **LOOKED_UP}],
    "assistant_ensemble_weight": [{"assistant_ensemble_weight": 0.5}],
    "speculation_type": [{"speculation_type": "dflash"}],
    "compile_config": [{"compile_config": CompileConfig()}],
    "disable_compile": [{"disable_compile": True}],
    "continuous_batching_config": [{"continuous_batching_config": None}],
    "low_memory": [{"low_memory": True}],
    "penalty_alpha": [{"penalty_alpha": 0.5}],
    "dola_layers": [{"dola_layers": "high"}],
    "diversity_penalty": [{"diversity_penalty": 0.5, "num_beams": 2, "num_beam_groups": 2}],
    "num_beam_groups": [{"num_beams": 2, "num_beam_groups": 2}],
    "constraints": [{"constraints": [1], "num_beams": 2}],
    "force_words_ids": [{"force_words_ids": [[7]], "num_beams": 2}],
    "prefill_chunk_size": [{"prefill_chunk_size": 1}, {"prefill_chunk_size": 7}],
}
"""Values of every field of transformers' ``GenerationConfig``, with what they need beside."""

OF_OTHER_KINDS: dict[str, list[dict[str, Any]]] = {
    "custom_generate": [{"custom_generate": lambda model, input_ids, **others: input_ids}],
    "prefix_allowed_tokens_fn": [{"prefix_allowed_tokens_fn": lambda row, ids: [7, 8, 41 + row]}],
    "synced_gpus": [{"synced_gpus": False}, {"synced_gpus": True}],
}
"""Options that are keywords of ``generate`` and no fields."""

_UNUSED = ("transformers_version",)
CASES = [
    pytest.param(name, values, id=f"{name}-{number}")
    for name, several in (OPTIONS | OF_OTHER_KINDS).items()
    for number, values in enumerate(several)
    if name in OF_OTHER_KINDS or hasattr(GenerationConfig(), name)
]


def test_every_documented_option_is_here() -> None:
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_") and name not in _UNUSED}
    assert not fields - set(OPTIONS)


def outcome(write: Any, *args: Any, **options: Any) -> Tensor | Exception:
    """The tokens, or the error."""
    torch.manual_seed(3)
    try:
        output = write(*args, **{"max_new_tokens": NEW, "do_sample": False} | options)
    except Exception as error:
        return error
    return output if isinstance(output, Tensor) else output.sequences


def tokens_of_strategy(strategy: str, inputs: Any, values: dict[str, Any]) -> Tensor | Exception:
    return outcome(damro.generate, model_of("llava"), inputs, Damro(**STRENGTHS), strategy=strategy, **values)


@pytest.mark.parametrize(("name", "values"), CASES)
def test_acts_as_in_the_stock_loop_or_is_refused_by_name(name: str, values: dict[str, Any]) -> None:
    drafts = {"prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"} & set(values)
    model, inputs = model_of("llava"), inputs_of("llava_img0" if drafts else "llava_batch2")
    by_hand = StatelessDAMRO(model, inputs, **STRENGTHS)
    expected = outcome(model.generate, **inputs, logits_processor=[by_hand], **values)
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS)
    outcomes = {"processor": outcome(model.generate, **inputs, logits_processor=processor, **values)}
    outcomes |= {strategy: tokens_of_strategy(strategy, inputs, values) for strategy in ("fused", "lazy", "auto")}
    for way, got in outcomes.items():
        if isinstance(got, DecodingError):
            assert str(got).startswith(name), (way, got)
        elif isinstance(got, Exception):
            assert isinstance(expected, Exception), (way, got)
            assert (type(got), str(got)) == (type(expected), str(expected)), way
        else:
            assert isinstance(expected, Tensor) and torch.equal(got, expected), (way, got, expected)
