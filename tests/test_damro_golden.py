"""What the released DAMRO code computed on tiny random models, reproduced with stock transformers."""

from __future__ import annotations

import pytest
import torch

from damro import DAMROProcessor, cls_attention
from tests.golden_cases import (
    NEW_TOKENS,
    PAD_TOKEN,
    WHOLE,
    GoldenRun,
    golden_runs,
    inputs_of,
    model_of,
    prompt_length,
)

COMMITTED_RUNS = golden_runs()
_COMMITTED_NAMES = {run.name for run in COMMITTED_RUNS}
FURTHER_RUNS = [run for run in golden_runs(WHOLE) if run.name not in _COMMITTED_NAMES]


def names(run: GoldenRun) -> str:
    return run.name


def generate(run: GoldenRun, processor: DAMROProcessor | None):
    """`(ids (B, T), log-probabilities (B, T, V))` of the run under transformers 5."""
    model, inputs = model_of(run.family), inputs_of(run.inputs)
    if run.sample_seed is not None:
        torch.manual_seed(run.sample_seed)
    output = model.generate(
        **inputs,
        logits_processor=processor,
        max_new_tokens=NEW_TOKENS,
        do_sample=run.sample_seed is not None,
        top_k=0,
        eos_token_id=run.eos,
        pad_token_id=PAD_TOKEN,
        output_scores=True,
        return_dict_in_generate=True,
    )
    return output.sequences[:, prompt_length(inputs) :], torch.stack(output.scores, dim=1).log_softmax(dim=-1)


def alive(ids: torch.Tensor, eos: int | None) -> torch.Tensor:
    """`(B, T)`: steps at which a row was still being written."""
    if eos is None:
        return torch.ones_like(ids, dtype=torch.bool)
    ended = (ids == eos).long()
    return ended.cumsum(dim=-1) - ended == 0


def check_run(run: GoldenRun) -> None:
    golden, model, inputs = run.tensors(), model_of(run.family), inputs_of(run.inputs)
    processor = None
    if run.strengths is not None:
        processor = DAMROProcessor(model, inputs, **run.strengths)
        assert torch.equal(processor.outliers, golden["topk_idx"].long())
        torch.testing.assert_close(processor.attention.weights, golden["cls_attn"], atol=1e-5, rtol=0)
        check_negative_prompt(processor, golden)
    if not run.comparable:
        return
    ids, scores = generate(run, processor)
    assert torch.equal(ids, golden["generated_ids"])
    live = alive(ids, run.eos)
    expected = golden["scores"].log_softmax(dim=-1)[live]
    assert torch.equal(scores[live].isneginf(), expected.isneginf())
    torch.testing.assert_close(scores[live], expected, atol=1e-3, rtol=0)


def check_negative_prompt(processor: DAMROProcessor, golden: dict[str, torch.Tensor]) -> None:
    """The columns of the negative prompt, their numbers, and the logits that follow them."""
    prompt, mask = processor.branch.prompt, golden["neg_prefill_attention_mask"].bool()
    assert torch.equal(prompt.attention_mask.bool(), mask)
    torch.testing.assert_close(prompt.inputs_embeds[mask], golden["neg_prefill_inputs_embeds"][mask], atol=1e-4, rtol=0)
    assert torch.equal(prompt.position_ids[mask], golden["neg_prefill_position_ids"][mask])
    history = golden["generated_ids"]
    first = processor.branch.logits(history[:, :0])
    torch.testing.assert_close(first, golden["neg_logits"][:, 0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("run", COMMITTED_RUNS, ids=names)
def test_reproduces_the_released_code(run):
    check_run(run)


@pytest.mark.parametrize("run", FURTHER_RUNS or [None], ids=names if FURTHER_RUNS else None)
def test_reproduces_the_rest_of_the_recording(run):
    if run is None:
        pytest.skip(f"the whole recording is not at {WHOLE}")
    check_run(run)


def test_the_committed_part_holds_every_kind_of_run():
    kinds = {(run.family, run.name.split("/", 1)[1]) for run in COMMITTED_RUNS}
    for family in ("llava", "llava_next", "instructblip"):
        for kind in ("img0/baseline", "batch2/a2_b0.1_k10", "batch2/eos_a0.5_b0.1_k4", "img0/sampled_a0.5_b0.1_k4"):
            assert (family, kind) in kinds
    assert ("llava_next", "grid1x2/a0.5_b0.1_k4") in kinds


@pytest.mark.parametrize("run", [run for run in COMMITTED_RUNS if run.eos is not None], ids=names)
def test_a_run_with_an_end_token_ends_one_row_early(run):
    """The recording is worth its name only if a row really finishes while the other goes on."""
    live = alive(run.tensors()["generated_ids"], run.eos)
    assert sorted(live.all(dim=-1).tolist()) == [False, True]


@pytest.mark.parametrize("run", [run for run in COMMITTED_RUNS if run.strengths], ids=names)
def test_cls_attention_alone_gives_the_recorded_weights(run):
    attention = cls_attention(model_of(run.family), inputs_of(run.inputs))
    torch.testing.assert_close(attention.weights, run.tensors()["cls_attn"], atol=1e-5, rtol=0)
