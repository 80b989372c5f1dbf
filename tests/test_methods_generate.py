"""Every contrast method through its two doors, against loops written out by hand that keep no cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from damro.decoding.processor import RuleProcessor
from damro.errors import ParameterError
from damro.methods import METHODS
from damro.methods.m3id import M3IDRule
from damro.methods.vcd import noise_levels
from damro.processor import contrast_processor
from damro.pruning import Pruning
from tests.golden_cases import FAMILIES, IMAGE_TOKEN, Inputs, inputs_of, model_of, prompt_length, row_alone
from tests.golden_models import make_processor
from tests.test_methods_others import SENTENCE, disturbed_by_hand, own_logits, without_image
from tests.told import contrast_of, generate

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
NEW = 8
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
STRENGTHS = {"alpha": 1.0, "beta": 0.1, "top_k": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "damro": STRENGTHS,
    "random-k": STRENGTHS | {"seed": 3},
    "least-k": STRENGTHS,
    "no-image": {"alpha": 1.0, "beta": 0.1},
    "vcd": {"noise_step": 700, "seed": 4},
    "icd": {"disturbance": SENTENCE},
    "m3id": {"forgetting": 0.5},
}


def options_of(method: str, family: str) -> dict[str, Any]:
    return OPTIONS[method] | ({"processor": make_processor(family)} if method == "icd" else {})


def written(tokens: Tensor, inputs: Inputs) -> list[list[int]]:
    return tokens[:, prompt_length(inputs) :].tolist()


def continued(inputs: Inputs, tokens: list[int]) -> Inputs:
    more = torch.tensor([tokens], dtype=torch.long)
    return inputs | {
        "input_ids": torch.cat([inputs["input_ids"], more], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1),
    }


def negative_inputs(method: str, family: str, inputs: Inputs) -> Inputs:
    if method == "vcd":
        noise = torch.randn(inputs["pixel_values"].shape[1:], generator=torch.Generator().manual_seed(4))
        of_image, of_noise = noise_levels(700)
        return inputs | {"pixel_values": of_image * inputs["pixel_values"] + of_noise * noise}
    if method == "icd":
        return disturbed_by_hand(family, inputs, text=True)
    return without_image(inputs)


def best_token(method: str, full: Tensor, negative: Tensor, t: int) -> int:
    """The greedy choice by the method's equation."""
    if method == "m3id":
        conditioned, unconditioned = full.log_softmax(-1), negative.log_softmax(-1)
        gamma = torch.exp(torch.tensor(-0.5 * t))
        unsure = conditioned.exp().max() < 0.3
        return int((conditioned + unsure * (1 - gamma) / gamma * (conditioned - unconditioned)).argmax())
    likely = full.softmax(-1) >= 0.1 * full.softmax(-1).max()
    return int((2 * full - negative).masked_fill(~likely, -torch.inf).argmax())


def by_hand(method: str, family: str, inputs: Inputs) -> list[int]:
    """Greedy decoding of one prompt in which the model reads everything anew at every token, image included."""
    model, tokens = model_of(family), list[int]()
    negative = negative_inputs(method, family, inputs)
    for step in range(NEW):
        full_logits = own_logits(model, continued(inputs, tokens))[0]
        negative_logits = own_logits(model, continued(negative, tokens))[0]
        tokens.append(best_token(method, full_logits, negative_logits, step + 1))
    return tokens


@EVERY_FAMILY
@pytest.mark.parametrize("method", ["vcd", "icd", "m3id"])
def test_answers_are_those_of_the_equation(family: str, method: str) -> None:
    model, inputs, options = model_of(family), inputs_of(f"{family}_img0"), options_of(method, family)
    expected = by_hand(method, family, row_alone(inputs, 0))
    for strategy in ("fused", "lazy"):
        answers = generate(model, inputs, method=method, strategy=strategy, **options, **GREEDY)
        assert written(answers, inputs) == [expected]
    plain = model.generate(**inputs, **GREEDY)
    assert written(plain, inputs) != [expected]


@EVERY_FAMILY
@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_the_processor_gives_the_same_answers(family: str, method: str) -> None:
    model, inputs, options = model_of(family), inputs_of(f"{family}_batch2"), options_of(method, family)
    fused = generate(model, inputs, method=method, strategy="fused", **options, **GREEDY)
    processor = contrast_processor(model, inputs, method=method, **options)
    assert isinstance(processor, RuleProcessor)
    assert torch.equal(model.generate(**inputs, logits_processor=processor, **GREEDY), fused)
    assert 0 < processor.branch.passes <= NEW


@EVERY_FAMILY
@pytest.mark.parametrize("method", ["vcd", "icd", "m3id"])
def test_questions_about_one_image_are_answered_as_one_by_one(family: str, method: str) -> None:
    model, one, options = model_of(family), inputs_of(f"{family}_img0"), options_of(method, family)
    inputs = {key: torch.cat([value, value]) for key, value in one.items()}
    inputs["input_ids"][1, -1] = 9
    together = generate(model, inputs, method=method, shared_prefix=True, **options, **GREEDY)
    for row in (0, 1):
        alone = row_alone(inputs, row)
        answer = generate(model, alone, method=method, strategy="lazy", **options, **GREEDY)
        assert written(together[row : row + 1], inputs) == written(answer, alone)


def test_every_contrast_is_tested_here() -> None:
    elsewhere = {path.stem.removeprefix("test_methods_") for path in Path(__file__).parent.glob("test_methods_*.py")}
    assert set(METHODS) - {"greedy"} - {name for name in METHODS if name.replace("-", "_") in elsewhere} <= set(OPTIONS)


@pytest.mark.parametrize("method", ["vcd", "random-k"])
def test_the_seed_decides(method: str) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")

    def negative(seed: int) -> Tensor:
        torch.rand(7)  # whatever else draws numbers
        return contrast_processor(model, inputs, method=method, seed=seed).branch.prompt.inputs_embeds

    assert torch.equal(negative(1), negative(1))
    assert not torch.equal(negative(1), negative(2))
    drawn = torch.random.get_rng_state()
    contrast_processor(model, inputs, method=method)
    assert torch.equal(torch.random.get_rng_state(), drawn)  # sampling draws what it would have drawn without


@pytest.mark.parametrize("method", ["vcd", "icd", "m3id"])
def test_sampling_draws_the_same_numbers(method: str) -> None:
    model, inputs, options = model_of("llava"), inputs_of("llava_batch2"), options_of(method, "llava")
    sampling = {"max_new_tokens": NEW, "do_sample": True, "temperature": 1.3}
    torch.manual_seed(5)
    fused = generate(model, inputs, method=method, strategy="fused", **options, **sampling)
    processor = contrast_processor(model, inputs, method=method, **options)
    torch.manual_seed(5)
    assert torch.equal(model.generate(**inputs, logits_processor=processor, **sampling), fused)


def test_beams_with_a_weight_that_grows() -> None:
    """The step is that of the history, not of the call: every beam is as long as its tokens."""
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    beams = GREEDY | {"num_beams": 3}
    through = generate(model, inputs, method="m3id", forgetting=0.5, **beams)
    processor = contrast_processor(model, inputs, method="m3id", forgetting=0.5)
    assert torch.equal(model.generate(**inputs, logits_processor=processor, **beams), through)
    assert torch.equal(model.generate(**inputs, logits_processor=processor, **beams), through)  # nothing left over


def test_defaults_are_the_authors() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    for method, options in (("vcd", {}), ("icd", {"processor": make_processor("llava")})):
        rule: Any = contrast_processor(model, inputs, method=method, **options).rule
        assert (rule.alpha, rule.beta) == (1.0, 0.1)
        rule = contrast_processor(model, inputs, method=method, alpha=0.5, beta=0.2, **options).rule
        assert (rule.alpha, rule.beta) == (0.5, 0.2)
    assert contrast_processor(model, inputs, method="m3id").rule == M3IDRule(0.02, 0.3, None)


@torch.no_grad()
def test_icd_disturbs_all_that_instructblip_reads_or_its_question_only() -> None:
    model, inputs, options = model_of("instructblip"), inputs_of("instructblip_img0"), options_of("icd", "instructblip")
    both = contrast_processor(model, inputs, method="icd", **options).branch.prompt
    released = contrast_processor(model, inputs, method="icd", question_only=True, **options).branch.prompt
    columns = inputs["input_ids"].shape[1]
    assert (released.inputs_embeds.shape[1], both.inputs_embeds.shape[1]) == (columns, columns + 4)
    disturbed = disturbed_by_hand("instructblip", inputs, text=True)
    queries = model.get_image_features(**_vision(disturbed)).pooler_output[0]
    for prompt, ids in ((both, disturbed["input_ids"]), (released, inputs["input_ids"])):
        torch.testing.assert_close(prompt.inputs_embeds[prompt.image_mask], queries, atol=1e-5, rtol=0)
        text = model.get_input_embeddings()(ids[ids != IMAGE_TOKEN])
        assert torch.equal(prompt.inputs_embeds[~prompt.image_mask], text)


def _vision(inputs: Inputs) -> Inputs:
    return {key: inputs[key] for key in ("pixel_values", "qformer_input_ids", "qformer_attention_mask")}


def test_a_pruned_prompt_is_contrasted_with_the_same_view() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    pruned = contrast_of("vcd", model, inputs, pruning=Pruning(6), noise_step=700)
    whole = contrast_of("vcd", model, inputs, noise_step=700)
    assert pruned.full.image_mask.sum(-1).tolist() == [6, 6]
    assert torch.equal(pruned.negative.inputs_embeds, whole.negative.inputs_embeds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method must be one of greedy, damro, .*, vcd, icd, m3id.*, got 'magic'"),
        ({"method": "greedy"}, "method must be a contrast, got 'greedy'; plain decoding needs no processor"),
        ({"method": "vcd", "steps": 3}, "vcd must have parameters of alpha, .*, noise_step, .*, got 'steps'"),
        ({"method": "vcd", "pruning": None}, "vcd must have parameters of .*, got 'pruning'"),
        ({"method": "vcd", "noise_step": 1000}, "noise_step must be a whole number from 0 to 999, got 1000"),
        ({"method": "vcd", "alpha": -1.0}, "alpha must be a finite number >= 0, got -1.0"),
        ({"method": "damro", "variant": "own"}, "variant must be one of reference, corrected, got 'own'"),
        ({"method": "icd"}, "processor must be given to tokenize the disturbance, got None; pass processor="),
        ({"method": "m3id", "alpha": 1.0}, "m3id must have parameters of forgetting, confidence, beta, got 'alpha'"),
        ({"method": "m3id", "confidence": 0.0}, r"confidence must be in \(0, 1\], got 0.0"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        contrast_processor(model_of("llava"), inputs_of("llava_img0"), **options)
