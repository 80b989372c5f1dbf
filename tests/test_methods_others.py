"""VCD, ICD and M3ID against their equations written out by hand, and their views against the model itself."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from damro.decoding.errors import InputsError, ParameterError
from damro.decoding.rules import Contrast, ContrastRule, ScoreRule
from damro.methods.icd import DISTURBANCE, disturb_question, disturb_text
from damro.methods.m3id import M3IDRule
from damro.methods.vcd import add_diffusion_noise, noise_levels
from tests.golden_cases import FAMILIES, IMAGE_TOKEN, Inputs, inputs_of, model_of
from tests.golden_models import make_processor
from tests.told import contrast_of

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
SENTENCE = "What is a cat."  # four tokens of the test tokenizers, none unknown
IDS = [6, 7, 10, 11]
vcd_contrast = partial(contrast_of, "vcd")
icd_contrast = partial(contrast_of, "icd")
m3id_contrast = partial(contrast_of, "m3id")


# The noise


@pytest.mark.parametrize("step", [0, 1, 500, 999])
def test_the_noise_schedule_is_its_definition(step: int) -> None:
    """beta_s rises from 1e-5 to 5e-3 along a sigmoid; a_t is the product of 1 - beta_s up to t."""
    kept = 1.0
    for s in range(step + 1):
        kept *= 1 - (1e-5 + (5e-3 - 1e-5) / (1 + math.exp(6 - 12 * s / 999)))
    of_image, of_noise = noise_levels(step)
    assert of_image == pytest.approx(math.sqrt(kept), abs=1e-9)
    assert of_noise == pytest.approx(math.sqrt(1 - kept), abs=1e-9)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (1, 0.1), (3, 0.25), (500, 0.1), (7, 0.0), (2, 1.0)])
def test_the_paper_s_process_adds_the_same_share_at_every_step(step: int, rate: float) -> None:
    """Step by step: x <- sqrt(1 - rate) x + sqrt(rate) e, of which variances add."""
    image, variance = 1.0, 0.0
    for _ in range(step):
        image, variance = math.sqrt(1 - rate) * image, (1 - rate) * variance + rate
    assert noise_levels(step, rate) == pytest.approx((image, math.sqrt(variance)), abs=1e-9)
    pixels = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(11))
    expected = image * pixels + math.sqrt(variance) * noise
    torch.testing.assert_close(add_diffusion_noise(pixels, step, 11, rate), expected)


def test_the_paper_s_process_in_a_contrast() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    released, papers, none = (
        vcd_contrast(model, inputs, noise_step=3, seed=4, rate=rate).negative.inputs_embeds  # type: ignore[union-attr]
        for rate in (None, 0.25, 0.0)
    )
    assert not torch.allclose(released, papers, atol=1e-3)
    full: Any = vcd_contrast(model, inputs).full
    torch.testing.assert_close(none, full.inputs_embeds, atol=1e-5, rtol=0)


def test_the_noise_grows_over_the_whole_process() -> None:
    levels = [noise_levels(step)[1] for step in range(0, 1000, 37)]
    assert levels == sorted(levels)
    assert levels[0] < 0.01
    assert noise_levels(999)[1] > 0.95


def test_noisy_pixels() -> None:
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    before = pixels.clone()
    noise = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(11))
    of_image, of_noise = noise_levels(500)
    noisy = add_diffusion_noise(pixels, 500, seed=11)
    torch.testing.assert_close(noisy, of_image * before + of_noise * noise)
    assert torch.equal(pixels, before)
    assert torch.equal(noisy, add_diffusion_noise(pixels, 500, seed=11))
    assert not torch.equal(noisy, add_diffusion_noise(pixels, 500, seed=12))
    assert torch.equal(noisy[1:], add_diffusion_noise(pixels[1:], 500, seed=11))  # alone as in the batch
    assert add_diffusion_noise(pixels.bfloat16(), 500, seed=11).dtype == torch.bfloat16


@pytest.mark.parametrize("step", [-1, 1000, 2.5, True, "500", None])
def test_steps_that_are_not_in_the_process(step: Any) -> None:
    with pytest.raises(ParameterError, match="noise_step must be a whole number from 0 to 999, got .*; 500 is"):
        vcd_contrast(model_of("llava"), inputs_of("llava_img0"), noise_step=step)


# M3ID's rule


def m3id_by_hand(full: list[float], negative: list[float], t: int, forgetting: float, confidence: float) -> list[float]:
    """Probabilities after l = lc + 1[max lc < log confidence] (1 - g)/g (lc - lu), g = exp(-forgetting t)."""
    conditioned = [value - math.log(sum(map(math.exp, full))) for value in full]
    unconditioned = [value - math.log(sum(map(math.exp, negative))) for value in negative]
    gamma = math.exp(-forgetting * t)
    weight = (1 - gamma) / gamma if max(conditioned) < math.log(confidence) else 0.0
    mixed = [c + weight * (c - u) for c, u in zip(conditioned, unconditioned, strict=True)]
    total = sum(map(math.exp, mixed))
    return [math.exp(value) / total for value in mixed]


@pytest.mark.parametrize("step", [0, 7, 60])
@pytest.mark.parametrize(("forgetting", "confidence"), [(0.02, 0.3), (0.02, 1.0), (0.05, 0.6)])
def test_m3id_is_its_equation(step: int, forgetting: float, confidence: float) -> None:
    random = torch.Generator().manual_seed(step)
    full, negative = torch.randn(6, 8, generator=random), torch.randn(6, 8, generator=random)
    full[0, 3] += 5  # a sure row
    before = full.clone()
    rule = M3IDRule(forgetting, confidence)
    scores = rule(full, negative, step)
    expected = [
        m3id_by_hand(f, n, step + 1, forgetting, confidence)
        for f, n in zip(full.tolist(), negative.tolist(), strict=True)
    ]
    torch.testing.assert_close(scores.exp(), torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert torch.equal(full, before)
    sure = before.softmax(-1).amax(-1) >= confidence
    assert rule.needed(full, step).tolist() == (~sure)[:, None].expand_as(full).tolist()


@pytest.mark.parametrize("rule", [M3IDRule(), M3IDRule(beta=0.5), M3IDRule(confidence=1.0, beta=0.5), M3IDRule(0.0)])
def test_decided_rows_do_not_depend_on_the_negative_logits(rule: M3IDRule) -> None:
    random = torch.Generator().manual_seed(1)
    full = torch.randn(40, 6, generator=random) * 2
    undecided = rule.needed(full, 9).any(dim=-1)
    assert not undecided.all()
    assert undecided.any() == (rule.forgetting > 0)
    alone = rule(full, None, 9)
    for negative in (torch.randn(40, 6, generator=random), torch.full((40, 6), math.nan)):
        assert torch.equal(rule(full, negative, 9)[~undecided], alone[~undecided])
    if rule.forgetting:
        changed = rule(full, torch.randn(40, 6, generator=random), 9)
        assert not torch.isclose(changed[undecided], alone[undecided]).all(dim=-1).any()


@pytest.mark.parametrize(
    "rule",
    [
        ContrastRule(1.0, 0.1),
        ContrastRule(0.0, 0.1),
        M3IDRule(),
        M3IDRule(0.0),
        M3IDRule(beta=0.3),
        M3IDRule(confidence=1.0, beta=0.1),
    ],
    ids=str,
)
def test_logits_that_are_not_needed_may_be_anything(rule: ScoreRule) -> None:
    """Token by token: those of a row that are needed stay, beside noise."""
    random = torch.Generator().manual_seed(2)
    full, negative, noise = torch.randn(3, 60, 12, generator=random)
    needed = rule.needed(2 * full, 9)
    assert not needed.all()
    expected = rule(2 * full, negative, 9)
    assert torch.equal(rule(2 * full, torch.where(needed, negative, 1e30 * noise), 9), expected)
    changed = rule(2 * full, torch.where(needed, noise, negative), 9)
    assert torch.equal((changed - expected).abs().nan_to_num(0).amax(dim=-1) > 1e-3, needed.any(dim=-1))


def test_m3id_with_a_cutoff_gives_up_implausible_tokens() -> None:
    """The form that other papers compare with: every token contrasted, those under a tenth of the best given up."""
    full, negative = torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([[2.0, 0.0, -9.0]])
    scores = M3IDRule(confidence=1.0, beta=0.1)(full, negative, 49)
    weight = math.e - 1  # exp(0.02 * 50) - 1
    conditioned, unconditioned = full.log_softmax(-1), negative.log_softmax(-1)
    mixed = (conditioned + weight * (conditioned - unconditioned))[0, :2]
    assert scores[0, 2] == -math.inf
    torch.testing.assert_close(scores[0, :2], mixed.log_softmax(-1))


def test_m3id_of_a_very_long_answer_is_finite() -> None:
    full, negative = torch.zeros(1, 4), torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    scores = M3IDRule()(full, negative, 100_000)
    assert scores.exp().tolist() == [[0.0, 0.0, 0.0, 1.0]]


def test_m3id_lets_nan_through_and_takes_log_probabilities() -> None:
    full, negative = torch.tensor([[math.nan, 1.0], [1.0, 1.0]]), torch.tensor([[1.0, 3.0], [1.0, 2.0]])
    scores = M3IDRule(confidence=0.6)(full, negative, 5)
    assert scores[0].isnan().all()
    assert not scores[1].isnan().any()
    torch.testing.assert_close(scores[1:], M3IDRule(confidence=0.6)(full[1:].log_softmax(-1), negative[1:], 5))


@pytest.mark.parametrize(
    ("name", "value"),
    [("forgetting", -0.1), ("forgetting", math.nan), ("forgetting", "1"), ("confidence", 0), ("confidence", 1.1),
     ("confidence", None), ("beta", 0.0), ("beta", 2)],
)  # fmt: skip
def test_parameters_of_m3id(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=f"{name} must be .*, got {value!r}"):
        M3IDRule(**{name: value})


# ICD's text


def test_the_sentence_stands_behind_the_first_token() -> None:
    inputs = inputs_of("llava_batch2")  # row 1 is padded on the left
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    disturbed = disturb_text(model_of("llava"), inputs, make_processor("llava"), SENTENCE)
    pads = int((mask[1] == 0).sum())
    assert pads > 0
    assert disturbed["input_ids"][0].tolist() == [1, *IDS, *ids[0, 1:].tolist()]
    assert disturbed["input_ids"][1].tolist() == [0] * pads + [1, *IDS, *ids[1, pads + 1 :].tolist()]
    assert disturbed["attention_mask"].sum(-1).tolist() == (mask.sum(-1) + 4).tolist()
    assert disturbed["attention_mask"][1, :pads].tolist() == [0] * pads
    assert disturbed["pixel_values"] is inputs["pixel_values"]
    assert ids.shape[1] == 27  # the caller's inputs are as they were


def test_images_before_the_text_stay_there() -> None:
    inputs = inputs_of("instructblip_batch2")
    disturbed = disturb_text(model_of("instructblip"), inputs, make_processor("instructblip"), SENTENCE)
    padded = inputs["input_ids"][1].tolist()
    begin = padded.index(1)
    assert disturbed["input_ids"][1].tolist() == [*padded[: begin + 1], *IDS, *padded[begin + 1 :]]
    assert disturbed["attention_mask"][1].tolist() == [1] * 6 + [0] * (begin - 6) + [1] * (len(padded) - begin + 4)


def test_a_text_without_a_beginning_token_begins_with_the_sentence() -> None:
    ids = torch.tensor([[IMAGE_TOKEN, IMAGE_TOKEN, 8, 9]])
    disturbed = disturb_text(model_of("llava"), {"input_ids": ids}, make_processor("llava").tokenizer, SENTENCE)
    assert disturbed["input_ids"].tolist() == [[IMAGE_TOKEN, IMAGE_TOKEN, *IDS, 8, 9]]
    assert disturbed["attention_mask"].tolist() == [[1] * 8]


def test_the_sentence_in_front_of_a_q_former_s_question() -> None:
    inputs = inputs_of("instructblip_batch2")  # row 1 is padded on the right
    processor = make_processor("instructblip")
    disturbed = disturb_question(model_of("instructblip"), inputs, processor, SENTENCE)
    assert disturbed["qformer_input_ids"].tolist() == [[*IDS, 110, 8, 77, 106, 86], [*IDS, 95, 17, 110, 102, 0]]
    assert disturbed["qformer_attention_mask"].tolist() == [[1] * 9, [1] * 8 + [0]]
    processor.qformer_tokenizer.cls_token = "<s>"
    inputs["qformer_input_ids"][0, 0] = 1
    disturbed = disturb_question(model_of("instructblip"), inputs, processor, SENTENCE)
    assert disturbed["qformer_input_ids"][0].tolist() == [1, *IDS, 8, 77, 106, 86]


def test_the_sentence_is_that_of_the_authors() -> None:
    assert DISTURBANCE.startswith("You are a confused objects detector")


# The views, by the model's own forward


@torch.no_grad()
def logits_of(contrast: Contrast, model: Any) -> tuple[Tensor, Tensor]:
    """Next-token logits of both prompts, each read in one piece."""
    decoder = model.language_model if model.config.model_type == "instructblip" else model
    full, negative = (
        decoder(
            inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask, position_ids=prompt.position_ids
        ).logits[:, -1]
        for prompt in (contrast.full, contrast.negative)
    )
    return full, negative


@torch.no_grad()
def own_logits(model: Any, inputs: Inputs) -> Tensor:
    """What the model itself says of inputs, images encoded and all."""
    if "pixel_values" not in inputs and model.config.model_type == "instructblip":
        model = model.language_model
    if "pixel_values" not in inputs:
        inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    logits: Tensor = model(**inputs).logits[:, -1]
    return logits


def without_image(inputs: Inputs) -> Inputs:
    text = inputs["input_ids"] != IMAGE_TOKEN
    return {key: inputs[key][text].view(1, -1) for key in ("input_ids", "attention_mask")}


def disturbed_by_hand(family: str, inputs: Inputs, *, text: bool) -> Inputs:
    inputs = dict(inputs)
    ids = inputs["input_ids"][0].tolist()
    if text:
        at = ids.index(1) + 1
        inputs["input_ids"] = torch.tensor([[*ids[:at], *IDS, *ids[at:]]])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if family == "instructblip":
        inputs["qformer_input_ids"] = torch.cat([torch.tensor([IDS]), inputs["qformer_input_ids"]], dim=1)
        inputs["qformer_attention_mask"] = torch.ones_like(inputs["qformer_input_ids"])
    return inputs


def view_of(method: str, family: str, inputs: Inputs) -> tuple[Contrast, Inputs]:
    """A method's contrast, and what its negative view would be as inputs of the model itself."""
    model, name = model_of(family), method.partition(" ")[0]
    if name == "vcd":
        noise = torch.randn(inputs["pixel_values"].shape[1:], generator=torch.Generator().manual_seed(4))
        of_image, of_noise = noise_levels(700)
        noisy = inputs | {"pixel_values": of_image * inputs["pixel_values"] + of_noise * noise}
        return vcd_contrast(model, inputs, noise_step=700, seed=4), noisy
    if name == "m3id":
        return m3id_contrast(model, inputs), without_image(inputs)
    alone = method == "icd question"
    options: dict[str, Any] = {"question_only": True} if alone else {}
    contrast = icd_contrast(model, inputs, processor=make_processor(family), disturbance=SENTENCE, **options)
    return contrast, disturbed_by_hand(family, inputs, text=family != "instructblip" or not alone)


@EVERY_FAMILY
@pytest.mark.parametrize("method", ["vcd", "icd question", "icd both", "m3id"])
def test_the_negative_view_is_what_the_model_reads(family: str, method: str) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_img0")
    contrast, negative_inputs = view_of(method, family, inputs)
    full, negative = logits_of(contrast, model)
    torch.testing.assert_close(full, own_logits(model, inputs), atol=1e-4, rtol=0)
    torch.testing.assert_close(negative, own_logits(model, negative_inputs), atol=1e-4, rtol=0)
    assert (full - negative).abs().max() > 1e-2


@EVERY_FAMILY
@pytest.mark.parametrize("shared", [False, True])
def test_an_image_that_is_shared_gives_the_same_views(family: str, shared: bool) -> None:
    model, one = model_of(family), inputs_of(f"{family}_img0")
    inputs = {key: torch.cat([value, value]) for key, value in one.items()}
    inputs["input_ids"][1, -1] = 9  # another question
    if family == "instructblip":
        inputs["qformer_input_ids"][1, -1] = 9
    processor = make_processor(family)
    for contrast, alone in (
        (vcd_contrast(model, inputs, shared_image=shared), vcd_contrast(model, inputs)),
        (
            icd_contrast(model, inputs, processor=processor, disturbance=SENTENCE, shared_image=shared),
            icd_contrast(model, inputs, processor=processor, disturbance=SENTENCE),
        ),
        (m3id_contrast(model, inputs, shared_image=shared), m3id_contrast(model, inputs)),
    ):
        for ours, theirs in ((contrast.full, alone.full), (contrast.negative, alone.negative)):
            torch.testing.assert_close(ours.inputs_embeds, theirs.inputs_embeds, atol=1e-5, rtol=0)
            assert torch.equal(ours.attention_mask, theirs.attention_mask)


def test_what_cannot_be_read_is_refused_first() -> None:
    model, inputs = model_of("llava"), dict(inputs_of("llava_img0"))
    del inputs["pixel_values"]
    for make in (vcd_contrast, m3id_contrast, lambda *known: icd_contrast(*known, processor=make_processor("llava"))):
        with pytest.raises(InputsError, match="'pixel_values' as a tensor"):
            make(model, inputs)


def test_icd_needs_a_tokenizer_and_a_sentence() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    with pytest.raises(ParameterError, match="processor must be given to tokenize the disturbance, got None; pass"):
        icd_contrast(model, inputs, processor=None)
    with pytest.raises(ParameterError, match="disturbance must be a text that is not empty, got ''"):
        icd_contrast(model, inputs, processor=make_processor("llava"), disturbance="")
    model, inputs = model_of("instructblip"), inputs_of("instructblip_img0")
    with pytest.raises(ParameterError, match=r"processor.qformer_tokenizer must be given .*, got None"):
        icd_contrast(model, inputs, processor=make_processor("instructblip").tokenizer)
