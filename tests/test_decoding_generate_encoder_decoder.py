"""InstructBLIP and BLIP-2 on T5: every way of generating gives the tokens of a negative pass without a cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateEncoderDecoderOutput

import damro
import damro.decoding.branches.encoder_decoder
from damro.decoding.branches.encoder_decoder import PromptReader
from damro.processor import contrast_processor
from damro.speed.timing import counted
from tests.encoder_decoder_cases import GREEDY, STRENGTHS, Uncached, fast, negative_of, stock
from tests.family_models import ENCODER_DECODERS, encoder_inputs, encoder_processor, family_model
from tests.told import generate

EVERY_FAMILY = pytest.mark.parametrize("name", ENCODER_DECODERS)
SAMPLED: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.3, "top_p": 0.9}
ENDS: dict[str, Any] = {"eos_token_id": list(range(3, 60)), "pad_token_id": 0}
METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "damro": STRENGTHS,
    "no-image": {"alpha": 1.0, "beta": 0.1},
    "vcd": {"seed": 2},
    "icd": {"disturbance": "What is a cat.", "alpha": 4.0},
    "m3id": {"forgetting": 0.5, "confidence": 1.0},
}


@EVERY_FAMILY
def test_the_full_prompt_alone_gives_the_model_s_own_tokens(name: str) -> None:
    model, inputs = family_model(name), encoder_inputs(name, 3)
    plain = model.generate(**inputs, **GREEDY)
    assert len(set(map(tuple, plain.tolist()))) == 3
    for strategy in ("fused", "lazy"):
        assert torch.equal(generate(model, inputs, method=None, strategy=strategy, **GREEDY), plain)
        idle = {"alpha": 0.0, "beta": 1e-6, "top_k": 3}
        assert torch.equal(generate(model, inputs, strategy=strategy, **idle, **GREEDY), plain)
        assert torch.equal(
            model.generate(**inputs, logits_processor=damro.DAMROProcessor(model, inputs, **idle), **GREEDY), plain
        )


@EVERY_FAMILY
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_all_ways_give_the_same_tokens(name: str, rows: int, options: dict[str, Any]) -> None:
    model, inputs = family_model(name), encoder_inputs(name, rows)
    expected = stock(model, inputs, own=[Uncached(model, negative_of(model, inputs))], **options)
    assert torch.equal(stock(model, inputs, **options), expected)
    for strategy in ("fused", "lazy", "auto"):
        assert torch.equal(fast(model, inputs, strategy, **options), expected)
    torch.manual_seed(0)
    assert not torch.equal(model.generate(**inputs, **options), expected)  # the contrast does something here


@EVERY_FAMILY
@pytest.mark.parametrize("method", METHOD_OPTIONS)
def test_every_method(name: str, method: str) -> None:
    """Without an image, and behind a disturbance, the two prompts differ in length."""
    model, inputs, options = family_model(name), encoder_inputs(name, 3), METHOD_OPTIONS[method]
    if method == "icd":
        options = options | {"processor": encoder_processor(name)}
    expected = stock(model, inputs, own=contrast_processor(model, inputs, method=method, **options), **GREEDY)
    for strategy in ("fused", "lazy"):
        answers = generate(model, inputs, method=method, strategy=strategy, **options, **GREEDY)
        assert torch.equal(answers, expected)
    assert not torch.equal(model.generate(**inputs, **GREEDY), expected)


@EVERY_FAMILY
def test_a_question_is_answered_as_on_its_own(name: str) -> None:
    model, inputs = family_model(name), encoder_inputs(name, 3)
    together = fast(model, inputs, **GREEDY)
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        read = alone["attention_mask"][0].bool()
        alone |= {key: alone[key][:, read] for key in ("input_ids", "attention_mask")}
        assert torch.equal(fast(model, alone, **GREEDY)[0], together[row])


@EVERY_FAMILY
def test_padding_on_the_left_is_read_as_the_model_reads_it(name: str) -> None:
    model, inputs = family_model(name), encoder_inputs(name, 3)
    padding = (inputs["attention_mask"] == 0).sum(dim=-1).tolist()
    for key in ("input_ids", "attention_mask"):
        inputs[key] = torch.stack([row.roll(count) for row, count in zip(inputs[key], padding, strict=True)])
    assert not bool(inputs["attention_mask"][:, 0].all())
    expected = stock(model, inputs, own=[Uncached(model, negative_of(model, inputs))], **GREEDY)
    assert torch.equal(fast(model, inputs, "fused", **GREEDY), expected)
    assert torch.equal(fast(model, inputs, "lazy", **GREEDY), expected)


@EVERY_FAMILY
@pytest.mark.parametrize("more", [{}, {"num_return_sequences": 2}, {"do_sample": True}], ids=["", "two", "sampled"])
def test_beams(name: str, more: dict[str, Any]) -> None:
    model, inputs = family_model(name), encoder_inputs(name, 3)
    options = {"num_beams": 3, "max_new_tokens": 8, **ENDS, **more}
    expected = stock(model, inputs, own=[Uncached(model, negative_of(model, inputs))], **options)
    assert torch.equal(stock(model, inputs, **options), expected)
    assert torch.equal(fast(model, inputs, **options), expected)


@EVERY_FAMILY
def test_rows_end_by_themselves_and_leave_the_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = family_model(name), encoder_inputs(name, 3)
    sizes: list[int] = []

    class Watched(PromptReader):
        def forward(self, inputs_embeds: Tensor, *args: Any, **kwargs: Any) -> Any:
            sizes.append(len(inputs_embeds))
            return super().forward(inputs_embeds, *args, **kwargs)

    monkeypatch.setattr(damro.decoding.branches.encoder_decoder, "PromptReader", Watched)
    options = {**SAMPLED, "max_new_tokens": 30, "num_return_sequences": 4, **ENDS}
    expected = stock(model, inputs, own=[Uncached(model, negative_of(model, inputs))], **options)
    assert (expected == 0).any() and not (expected[:, 1:] == 0).all(dim=-1).any()
    assert len(set(map(tuple, expected.tolist()))) > 3
    assert torch.equal(stock(model, inputs, **options), expected)
    sizes.clear()
    assert torch.equal(fast(model, inputs, **options), expected)
    assert sizes[:2] == [6, 24] and min(sizes[1:]) <= 12 and sizes[1:] == sorted(sizes[1:], reverse=True)


SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"min_new_tokens": 5, **ENDS},
    {"min_length": 5, **ENDS},
    {"max_length": 6, "max_new_tokens": None},
    {"bad_words_ids": [[41], [190, 139]], "no_repeat_ngram_size": 2},
    {"decoder_start_token_id": 7},
    {"decoder_input_ids": torch.tensor([[0, 44, 45]]).expand(3, -1)},
    {"use_cache": False},
    {"prompt_lookup_num_tokens": 3, "max_new_tokens": 10},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_every_setting_acts_the_same_in_all_strategies(settings: dict[str, Any]) -> None:
    name = ENCODER_DECODERS[0]
    rows = 1 if "prompt_lookup_num_tokens" in settings else 3
    model, inputs = family_model(name), encoder_inputs(name, rows)
    options = {**GREEDY, **settings}
    fused, lazy = (fast(model, inputs, strategy, **options) for strategy in ("fused", "lazy"))
    assert torch.equal(fused, lazy)
    if "decoder_start_token_id" in settings:
        assert bool((fused[:, 0] == 7).all())
    else:
        assert torch.equal(stock(model, inputs, **options), fused)
    assert torch.equal(fused, fast(model, inputs, **GREEDY)) == ("use_cache" in settings)


def test_recorded_scores() -> None:
    name = ENCODER_DECODERS[0]
    model, inputs = family_model(name), encoder_inputs(name, 3)
    options = {**GREEDY, "output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    expected, got = stock(model, inputs, **options), fast(model, inputs, **options)
    assert isinstance(got, GenerateEncoderDecoderOutput)
    assert torch.equal(got.sequences, expected.sequences)
    for key in ("scores", "logits"):
        torch.testing.assert_close(torch.stack(got[key]), torch.stack(expected[key]), atol=1e-3, rtol=0)


def test_a_streamer_gets_what_the_stock_loop_sends() -> None:
    class Collected(BaseStreamer):
        def __init__(self) -> None:
            self.got: list[Any] = []

        def put(self, value: Tensor) -> None:
            self.got.append(value.tolist())

        def end(self) -> None:
            self.got.append("end")

    name = ENCODER_DECODERS[0]
    model, inputs = family_model(name), encoder_inputs(name, 1)
    streamers = [Collected() for _ in range(2)]
    stock(model, inputs, streamer=streamers[0], **GREEDY)
    fast(model, inputs, streamer=streamers[1], **GREEDY)
    assert streamers[0].got == streamers[1].got and streamers[0].got[0] == [[0]]


@EVERY_FAMILY
def test_questions_about_one_image_share_its_encoding(name: str) -> None:
    model, inputs = family_model(name), encoder_inputs(name, 3)
    one = {**inputs, "pixel_values": inputs["pixel_values"][:1]}
    three = {**inputs, "pixel_values": inputs["pixel_values"][:1].expand(3, -1, -1, -1)}
    with counted(model.vision_model) as passes, counted(model.language_model.encoder) as reads:
        shared = generate(model, one, shared_prefix=True, **STRENGTHS, **GREEDY)
    assert (len(passes), len(reads)) == (1, 1)
    assert torch.equal(shared, fast(model, three, "lazy", **GREEDY))
    plain = generate(model, one, method=None, shared_prefix=True, **GREEDY)
    assert torch.equal(plain, model.generate(**three, **GREEDY))


def test_a_processor_serves_any_number_of_calls() -> None:
    name = ENCODER_DECODERS[0]
    model, inputs = family_model(name), encoder_inputs(name, 3)
    processor = damro.DAMROProcessor(model, inputs, **STRENGTHS)
    for options in (GREEDY, {**SAMPLED, "num_return_sequences": 2}, {"num_beams": 3, "max_new_tokens": 6}, GREEDY):
        torch.manual_seed(3)
        again = model.generate(**inputs, logits_processor=processor, **options)
        assert torch.equal(again, stock(model, inputs, seed=3, **options))


def test_a_negative_pass_that_nothing_calls_for_is_not_run() -> None:
    name = ENCODER_DECODERS[0]
    model, inputs = family_model(name), encoder_inputs(name, 1)
    with counted(model.language_model.encoder) as reads:
        generate(model, inputs, strategy="lazy", alpha=0.0, beta=0.1, top_k=3, **GREEDY)
    assert len(reads) == 1


def test_eager_attention_gives_the_same_tokens() -> None:
    name = ENCODER_DECODERS[0]
    model, inputs = family_model(name, "eager"), encoder_inputs(name, 3)
    assert model.language_model.decoder.config._attn_implementation == "eager"
    expected = stock(family_model(name), inputs, **GREEDY)
    for strategy in ("fused", "lazy"):
        assert torch.equal(fast(model, inputs, strategy, **GREEDY), expected)


@EVERY_FAMILY
def test_bfloat16(name: str) -> None:
    """T5 keeps some layers in float32 when it is loaded; here all are rounded. Step by step while the tokens agree."""
    model = copy.deepcopy(family_model(name)).to(torch.bfloat16)
    inputs = encoder_inputs(name, 3)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    options = {**GREEDY, "output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    expected = stock(model, inputs, **options)
    # A unit in the last place of bfloat16 is at most 2^-7 of a number; scores are 2 f - n.
    tolerance = 3 * 2**-7 * float(torch.stack(expected.logits).abs().max())
    for strategy in ("fused", "lazy"):
        got, later = fast(model, inputs, strategy, **options), 0
        for step, (ours, theirs) in enumerate(zip(got.scores, expected.scores, strict=True)):
            same = (got.sequences[:, : step + 1] == expected.sequences[:, : step + 1]).all(dim=-1)
            kept = ours[same].isfinite() & theirs[same].isfinite()  # one of them may cut a token near the cutoff
            assert kept.any(dim=-1).all()
            torch.testing.assert_close(ours[same][kept], theirs[same][kept], atol=tolerance, rtol=0)
            later += int(same.sum()) if step else 0
        assert later >= 9  # of 33 steps behind a first token
