"""PaliGemma against itself without a cache, its prompt under a mask written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import damro
from damro import DAMROProcessor
from damro.errors import NoClsTokenError, UnsupportedModelError
from damro.inspection import inspect_contrast, inspect_decoder
from damro.loading import prepare_inputs
from damro.processor import contrast_processor
from damro.pruning import prune
from decoding.branches import can_branch, prefill
from decoding.errors import InputsError, ParameterError
from decoding.families import family_of
from decoding.prefix import prefill_shared
from eval.engine import Engine
from eval.first_token import answer_in_one_token, stack_rows
from eval.methods import parse_method
from eval.samples import Sample
from eval.strengths import Strengths
from tests.family_models import IMAGE, PATCHES, Inputs, family_model
from tests.golden_models import word_tokenizer

BOTH = pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
ROWS = pytest.mark.parametrize("rows", [1, 3])
STRENGTHS: dict[str, Any] = {"alpha": 1.0, "beta": 0.1, "top_k": 3}
# A model with random weights may write an image token, which stock generate takes for an image without a cache.
GREEDY: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "suppress_tokens": [IMAGE]}
QUESTIONS = [[1, 9, 30, 31, 32, 33], [1, 40, 41], [1, 50, 51, 52]]


def inputs_of(rows: int) -> Inputs:
    """Questions of different length about different images, padded on the left."""
    prompts = [[IMAGE] * PATCHES + question for question in QUESTIONS[:rows]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    pixels = torch.randn(rows, 3, 56, 56, generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids), "pixel_values": pixels}


# By hand


@torch.no_grad()
def logits_by_hand(model: Any, prompt: Tensor, tokens: Tensor) -> Tensor:
    """`(T + 1, V)`: what the model says behind a prompt `(L, D)` and after each of the tokens `(T,)`; no cache."""
    embeds = torch.cat([prompt, model.get_input_embeddings()(tokens)])
    length, column = len(prompt), torch.arange(len(embeds))
    read = column[None] <= column[:, None]
    text = model.config.text_config
    masks = {"full_attention": read}
    if text.model_type == "gemma2":
        masks["sliding_attention"] = read & (column[:, None] - column[None] < text.sliding_window)
    for mask in masks.values():
        mask[:length, :length] = True
    added = {
        kind: torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
        for kind, mask in masks.items()
    }
    hidden = model.model.language_model(
        inputs_embeds=embeds[None],
        attention_mask=added if len(added) > 1 else added["full_attention"],
        position_ids=column[None] + 1,
        use_cache=False,
    ).last_hidden_state[0, length - 1 :]
    logits: Tensor = hidden @ model.lm_head.weight.T
    cap = getattr(text, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def prompts_by_hand(model: Any, inputs: Inputs, top_k: int | None = None) -> list[Tensor]:
    """`(L, D)` row by row: image features, all of them or those with most attention received, and the question."""
    tower = family_model("paligemma", "eager").model.vision_tower
    assert torch.equal(
        tower.embeddings.patch_embedding.weight, model.model.vision_tower.embeddings.patch_embedding.weight
    )
    weights = tower(inputs["pixel_values"], output_attentions=True).attentions[-1]  # (images, heads, P, P)
    order = weights.mean(dim=(1, 2)).argsort(dim=-1, descending=True)[:, :top_k]
    hidden = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    features = model.model.multi_modal_projector(hidden)
    prompts = []
    for row, ids in enumerate(inputs["input_ids"]):
        question = model.get_input_embeddings()(ids[inputs["attention_mask"][row].bool() & (ids != IMAGE)])
        shown = features[row] if top_k is None else features[row, order[row]]
        prompts.append(torch.cat([shown, question]))
    return prompts


class ByHand(LogitsProcessor):
    """DAMRO with everything computed anew at every step."""

    def __init__(self, model: Any, inputs: Inputs) -> None:
        self.model, self.length = model, inputs["input_ids"].shape[1]
        self.prompts = prompts_by_hand(model, inputs, top_k=3)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        copies = len(input_ids) // len(self.prompts)
        negative = torch.stack(
            [
                logits_by_hand(self.model, self.prompts[row // copies], ids[self.length :])[-1]
                for row, ids in enumerate(input_ids)
            ]
        )
        mixed = 2 * scores - negative
        mixed[scores < math.log(0.1) + scores.amax(dim=-1, keepdim=True)] = -math.inf
        return mixed.log_softmax(dim=-1)


def parts(name: str, rows: int) -> tuple[Any, Inputs]:
    return family_model(name), inputs_of(rows)


# Prompts


@BOTH
@ROWS
@torch.no_grad()
def test_the_negative_prompt_is_read_in_both_directions(name: str, rows: int) -> None:
    model, inputs = parts(name, rows)
    branch = DAMROProcessor(model, inputs, **STRENGTHS).branch
    prompts = prompts_by_hand(model, inputs, top_k=3)
    for row, prompt in enumerate(prompts):
        kept = branch.prompt.attention_mask[row].bool()
        torch.testing.assert_close(branch.prompt.inputs_embeds[row, kept], prompt)
    tokens = torch.randint(2, 190, (rows, 6), generator=torch.Generator().manual_seed(0))
    # The prompt alone, a token, several in one chunk, fewer, others.
    for length, drawn in ((0, tokens), (1, tokens), (6, tokens), (3, tokens), (4, tokens.flip(1))):
        expected = torch.stack(
            [logits_by_hand(model, p, h)[-1] for p, h in zip(prompts, drawn[:, :length], strict=True)]
        )
        torch.testing.assert_close(branch.logits(drawn[:, :length]), expected, atol=1e-4, rtol=0)
        some = torch.tensor([7, 150])
        torch.testing.assert_close(branch.logits(drawn[:, :length], some), expected[:, some], atol=1e-4, rtol=0)


@BOTH
@ROWS
@torch.no_grad()
def test_the_full_prompt_is_what_the_model_reads(name: str, rows: int) -> None:
    model, inputs = parts(name, rows)
    prompt = family_of(model).full_prompt(model, inputs, family_of(model).encode(model, inputs))
    expected = torch.stack(
        [logits_by_hand(model, p, torch.empty(0, dtype=torch.long))[-1] for p in prompts_by_hand(model, inputs)]
    )
    torch.testing.assert_close(prefill(model, prompt).logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(model(**inputs).logits[:, -1], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_reading_from_left_to_right_is_something_else() -> None:
    """What the other tests compare would not be the same without."""
    model, inputs = parts("paligemma", 3)
    prompt = DAMROProcessor(model, inputs, **STRENGTHS).branch.prompt
    difference = prefill(model, prompt).logits - prefill(model, replace(prompt, bidirectional=False)).logits
    assert (difference.abs().amax(dim=-1) > 1e-2).all()


@torch.no_grad()
def test_every_prompt_made_of_it_is_read_that_way() -> None:
    model, inputs = parts("paligemma", 3)
    prompt = family_of(model).full_prompt(model, inputs, family_of(model).encode(model, inputs))
    assert prompt.bidirectional and prompt.drop_image().bidirectional
    assert prompt.replace_image(torch.zeros(3 * PATCHES, 32)).bidirectional
    assert stack_rows([prompt, prompt.drop_image()]).bidirectional
    types = prompt.drop_image().reading(following=2)["token_type_ids"]
    assert types.tolist() == [[0] * 6 + [1] * 2] * 3


def test_an_image_token_outside_of_the_vocabulary() -> None:
    model, inputs = parts("paligemma", 3)
    config = PaliGemmaConfig(**{**model.config.to_dict(), "image_token_index": 500})
    other = PaliGemmaForConditionalGeneration(config).eval()
    other.load_state_dict(model.state_dict())
    far = inputs | {"input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, 500)}
    answers = damro.generate(other, far, **STRENGTHS, **GREEDY)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(answers[:, width:], damro.generate(model, inputs, **STRENGTHS, **GREEDY)[:, width:])


# Decoding


@BOTH
@ROWS
@pytest.mark.parametrize("strategy", ["fused", "lazy"])
def test_without_contrast_it_is_stock_generate(name: str, rows: int, strategy: Any) -> None:
    model, inputs = parts(name, rows)
    stock = model.generate(**inputs, **GREEDY)
    assert torch.equal(damro.generate(model, inputs, method=None, strategy=strategy, **GREEDY), stock)
    assert torch.equal(
        damro.generate(model, inputs, strategy=strategy, **(STRENGTHS | {"alpha": 0.0}), **GREEDY), stock
    )
    by_hand = prompts_by_hand(model, inputs)
    width = inputs["input_ids"].shape[1]
    for row, prompt in enumerate(by_hand):
        written = stock[row, width:]
        logits = logits_by_hand(model, prompt, written[:-1])
        logits[:, IMAGE] = -math.inf
        assert torch.equal(logits.argmax(dim=-1), written)


@BOTH
@ROWS
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_every_strategy_writes_what_is_computed_by_hand(name: str, rows: int, settings: dict[str, Any]) -> None:
    model, inputs = parts(name, rows)
    options = GREEDY | settings
    expected = model.generate(**inputs, logits_processor=[ByHand(model, inputs)], **options)
    assert not torch.equal(expected, model.generate(**inputs, **options))
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    assert torch.equal(model.generate(**inputs, logits_processor=processor, **options), expected)
    for strategy in ("fused", "lazy"):
        assert torch.equal(damro.generate(model, inputs, strategy=strategy, **STRENGTHS, **options), expected)


def test_only_full_attention_is_fused() -> None:
    assert can_branch(family_model("paligemma"))
    assert not can_branch(family_model("paligemma2"))


@BOTH
@pytest.mark.parametrize("method", ["damro", "vcd", "icd", "m3id", "no-image"])
def test_other_methods_too(name: str, method: str) -> None:
    model, inputs = parts(name, 3)
    options: dict[str, Any] = {
        "damro": STRENGTHS,
        "icd": {"processor": word_tokenizer(200), "disturbance": "What is a cat.", "alpha": 4.0},
        "m3id": {"forgetting": 0.5, "confidence": 1.0},
        "no-image": {"alpha": 1.0, "beta": 0.1},
    }.get(method, {})
    processor = contrast_processor(model, inputs, method=method, **options)
    expected = model.generate(**inputs, logits_processor=processor, **GREEDY)
    assert processor.branch.passes > 0
    assert torch.equal(damro.generate(model, inputs, method=method, strategy="fused", **options, **GREEDY), expected)


@BOTH
def test_questions_about_one_image_are_answered_as_one_by_one(name: str) -> None:
    model, inputs = parts(name, 3)
    inputs["pixel_values"] = inputs["pixel_values"][:1].repeat(3, 1, 1, 1)
    width = inputs["input_ids"].shape[1]
    encoded: list[int] = []
    handle = model.model.vision_tower.register_forward_hook(lambda m, a, out: encoded.append(len(out[0])))
    shared = damro.generate(model, inputs, shared_prefix=True, **STRENGTHS, **GREEDY)
    handle.remove()
    assert encoded == [1]
    for row, question in enumerate(QUESTIONS):
        ids = torch.tensor([[IMAGE] * PATCHES + question])
        one = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        alone = damro.generate(model, one | {"pixel_values": inputs["pixel_values"][:1]}, **STRENGTHS, **GREEDY)
        assert torch.equal(alone[0, ids.shape[1] :], shared[row, width:])


@torch.no_grad()
def test_prompts_that_begin_alike_have_nothing_in_common() -> None:
    model, inputs = parts("paligemma", 3)
    inputs["pixel_values"] = inputs["pixel_values"][:1].repeat(3, 1, 1, 1)
    prompt = family_of(model).full_prompt(model, inputs, family_of(model).encode(model, inputs))
    read = prefill_shared(model, prompt)
    torch.testing.assert_close(read.logits, prefill(model, prompt).logits)
    causal = prefill_shared(model, replace(prompt, bidirectional=False))
    assert not torch.allclose(causal.logits, read.logits, atol=1e-2)


@BOTH
@pytest.mark.parametrize("beams", [1, 3])
def test_several_images_in_one_prompt(name: str, beams: int) -> None:
    """A row with two images, one with one; where beams repeat rows, images go with theirs."""
    model, pixels = family_model(name), inputs_of(3)["pixel_values"]
    prompts = [[IMAGE] * 2 * PATCHES + QUESTIONS[0], [0] * (PATCHES + 3) + [IMAGE] * PATCHES + QUESTIONS[1]]
    ids = torch.tensor(prompts)
    inputs = {"input_ids": ids, "attention_mask": ids.ne(0).long(), "token_type_ids": 0 * ids, "pixel_values": pixels}
    options = GREEDY | {"num_beams": beams}
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    assert processor.branch.prompt.image_mask.sum(dim=-1).tolist() == [6, 3]
    expected = model.generate(**inputs, logits_processor=processor, **options)
    for strategy in ("fused", "lazy"):
        assert torch.equal(damro.generate(model, inputs, strategy=strategy, **STRENGTHS, **options), expected)
    plain = model.generate(**inputs, **options)
    assert torch.equal(damro.generate(model, inputs, method=None, strategy="lazy", **options), plain)
    alone = {key: value[1:, PATCHES + 3 :] for key, value in inputs.items() if key != "pixel_values"}
    alone["pixel_values"] = pixels[2:]
    answer = model.generate(**alone, logits_processor=[ByHand(model, alone)], **options)
    assert torch.equal(answer[0, PATCHES + 3 :], expected[1, ids.shape[1] :])


@BOTH
def test_sampling_draws_the_same_numbers(name: str) -> None:
    model, inputs = parts(name, 3)
    options = {"max_new_tokens": 10, "do_sample": True, "temperature": 1.3, "num_return_sequences": 2}
    torch.manual_seed(5)
    expected = model.generate(**inputs, logits_processor=DAMROProcessor(model, inputs, **STRENGTHS), **options)
    for strategy in ("fused", "lazy"):
        torch.manual_seed(5)
        assert torch.equal(damro.generate(model, inputs, strategy=strategy, **STRENGTHS, **options), expected)


def processor_for() -> Any:
    """A processor of the real class, a word a token."""
    words = word_tokenizer(200)
    words.padding_side = "left"
    pixels: Any = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    pixels.image_seq_length = PATCHES
    return PaliGemmaProcessor(pixels, words)


def test_first_tokens_of_several_questions_at_once() -> None:
    model, processor, red = family_model("paligemma"), processor_for(), Image.new("RGB", (80, 60), "red")
    engines = {
        name: Engine(model, processor, parse_method(name), Strengths(2.0, 1e-4, 4), 1, 0, lambda image: red)
        for name in ("greedy", "damro", "no-image")
    }
    questions = ["What is this?", "What is a cat. a cat.", "is this? a"]
    asked = [Sample(f"s/{number}", "image.png", question, {}) for number, question in enumerate(questions)]
    together = answer_in_one_token(engines, asked)
    assert together == {name: engine.answer(asked) for name, engine in engines.items()}
    assert len({tuple(answered.text for answered in answers) for answers in together.values()}) == 3


def test_inputs_of_the_real_processor() -> None:
    model, processor = family_model("paligemma"), processor_for()
    images = [Image.new("RGB", (80, 60), color) for color in ("red", "blue")]
    inputs = prepare_inputs(processor, images, ["What is this?", "What is a cat. a cat."], model)
    assert (inputs["input_ids"] == IMAGE).sum(-1).tolist() == [PATCHES] * 2
    assert inputs["attention_mask"][0].tolist().index(1) > 0 and inputs["attention_mask"][:, -1].all()
    for method, options in (("damro", STRENGTHS), ("icd", {"processor": processor})):
        answers = damro.generate(model, inputs, method=method, **options, **GREEDY)
        stock = model.generate(
            **inputs, logits_processor=contrast_processor(model, inputs, method=method, **options), **GREEDY
        )
        assert torch.equal(answers, stock)


# Looking inside


@BOTH
def test_a_replay_tells_what_both_prompts_thought(name: str) -> None:
    model, inputs = parts(name, 1)
    processor = DAMROProcessor(model, inputs, **STRENGTHS)
    tokens = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    seen = inspect_contrast(model, inputs, tokens, processor)
    for top_k, ours in ((None, seen.full), (3, seen.negative)):
        (prompt,) = prompts_by_hand(model, inputs, top_k)
        logits = logits_by_hand(model, prompt, tokens[:-1]).log_softmax(dim=-1)
        torch.testing.assert_close(ours, logits.gather(-1, tokens[:, None])[:, 0], atol=1e-4, rtol=0)


def test_maps_of_generated_tokens_equal_eager_attentions() -> None:
    model, inputs = family_model("paligemma", "eager"), inputs_of(1)
    output = model.generate(**inputs, output_attentions=True, return_dict_in_generate=True, **GREEDY)
    tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
    expected = torch.stack(
        [torch.stack([step[layer][0, :, -1, :PATCHES].mean(dim=0) for step in output.attentions]) for layer in (0, 1)]
    )
    seen = inspect_decoder(family_model("paligemma"), inputs, tokens)
    torch.testing.assert_close(seen.columns, expected, atol=1e-5, rtol=0)
    assert seen.maps().shape == (2, len(tokens), 4, 4)


def test_maps_of_soft_capped_attention_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"without soft-capped .*, got Gemma2Model"):
        inspect_decoder(family_model("paligemma2"), inputs_of(1), torch.tensor([5, 6]))


# What is refused


@pytest.mark.parametrize("entry", [DAMROProcessor, damro.cls_attention], ids=lambda entry: entry.__name__)
def test_token_types_are_needed(entry: Any) -> None:
    model, inputs = parts("paligemma", 1)
    del inputs["token_type_ids"]
    with pytest.raises(InputsError, match="inputs of paligemma must hold 'token_type_ids'"):
        entry(model, inputs)


def test_a_suffix_is_not_continued() -> None:
    model, inputs = parts("paligemma", 1)
    inputs["token_type_ids"][0, -2:] = 1
    with pytest.raises(InputsError, match="token_type_ids must be 0 .*; leave suffix= out of the call"):
        damro.generate(model, inputs, **STRENGTHS)


def test_drafts_would_be_read_as_part_of_the_prompt() -> None:
    model, inputs = parts("paligemma", 1)
    with pytest.raises(ParameterError, match="prompt_lookup_num_tokens must .* prompt is not causal, got 3; decode"):
        damro.generate(model, inputs, prompt_lookup_num_tokens=3, **STRENGTHS)


def test_flash_attention_takes_no_such_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = parts("paligemma", 1)
    monkeypatch.setattr(model.get_decoder().config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(
        UnsupportedModelError, match="not use flash attention .*, got 'flash_attention_2'; load it with"
    ):
        DAMROProcessor(model, inputs, **STRENGTHS)


def test_pruning_ranks_by_cls() -> None:
    model, inputs = parts("paligemma", 1)
    with pytest.raises(NoClsTokenError, match=r"must have a \[CLS\] token"):
        prune(model, inputs, keep_tokens=4)
    with pytest.raises(NoClsTokenError, match=r"must have a \[CLS\] token"):
        damro.generate(model, inputs, keep_tokens=4, **STRENGTHS)
