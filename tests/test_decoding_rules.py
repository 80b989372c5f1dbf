"""The contrast formula against the formula written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from damro.decoding.errors import ParameterError
from damro.decoding.rules import MixRule, check_strengths, contrast_scores, plausible_tokens


def by_hand(full: list[float], negative: list[float], alpha: float, beta: float) -> list[float]:
    """One row in plain Python."""
    cutoff = math.log(beta) + max(full)
    mixed = [(1 + alpha) * f - alpha * n for f, n in zip(full, negative, strict=True)]
    kept = [m for m, f in zip(mixed, full, strict=True) if f >= cutoff]
    norm = max(kept) + math.log(sum(math.exp(m - max(kept)) for m in kept))
    return [m - norm if f >= cutoff else -math.inf for m, f in zip(mixed, full, strict=True)]


# Multiples of 1/16 keep a safe distance from log(beta), so float32 and Python cut at the same tokens.
logits = st.lists(st.integers(-160, 160).map(lambda n: n / 16), min_size=5, max_size=5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(logits, logits, st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0.01, 0.1, 0.3, 0.9]))
def test_equals_the_formula(full, negative, alpha, beta):
    scores = contrast_scores(torch.tensor([full]), torch.tensor([negative]), alpha, beta)
    torch.testing.assert_close(scores, torch.tensor([by_hand(full, negative, alpha, beta)]), atol=1e-4, rtol=1e-5)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(logits, st.sampled_from([0.01, 0.1, 0.3, 0.9]))
def test_probabilities_sum_to_one_and_a_shift_of_the_logits_changes_nothing(full, beta):
    full = torch.tensor([full])
    negative = full.flip(-1)
    scores = contrast_scores(full, negative, 1.0, beta)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(1))
    torch.testing.assert_close(contrast_scores(full + 8, negative - 4, 1.0, beta), scores, atol=1e-4, rtol=0)


def test_worked_example():
    # Kept: 2.0 and 1.9 (cutoff 2 - ln 2 = 1.307). Mixed: 2*2 - 2 = 2 and 2*1.9 - 0 = 3.8. Difference 1.8.
    scores = contrast_scores(torch.tensor([2.0, 1.9, -5.0]), torch.tensor([2.0, 0.0, 0.0]), 1.0, 0.5)
    assert scores[:2].tolist() == pytest.approx([-math.log1p(math.exp(1.8)), -math.log1p(math.exp(-1.8))], abs=1e-6)
    assert scores[2] == -math.inf


def test_plausible_tokens_are_those_at_least_beta_times_as_likely_as_the_best():
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    assert plausible_tokens(probabilities.log(), 0.29).tolist() == [[True, True, True, False]]
    assert plausible_tokens(probabilities.log(), 0.31).tolist() == [[True, True, False, False]]


def test_logits_and_log_probabilities_cut_alike():
    logits = torch.randn(4, 50, generator=torch.manual_seed(0))
    assert torch.equal(plausible_tokens(logits, 0.1), plausible_tokens(logits.log_softmax(-1), 0.1))


def test_beta_one_leaves_the_best_token_alone():
    scores = contrast_scores(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[0.0, 9.0, 0.0]]), 2.0, 1.0)
    assert scores.tolist() == [[-math.inf, 0.0, -math.inf]]


def test_beta_one_leaves_every_token_that_is_best():
    scores = contrast_scores(torch.tensor([[3.0, 3.0, 2.0]]), None, 2.0, 1.0)
    assert scores.exp().tolist() == [[0.5, 0.5, 0.0]]


def test_without_alpha_or_negative_it_is_plain_softmax_over_the_plausible():
    full = torch.tensor([[2.0, 1.0, -9.0]])
    expected = torch.tensor([2.0, 1.0]).log_softmax(-1).tolist() + [-math.inf]
    assert contrast_scores(full, None, 1.0, 0.1)[0].tolist() == pytest.approx(expected)
    assert contrast_scores(full, torch.randn(1, 3), 0.0, 0.1)[0].tolist() == pytest.approx(expected)


def test_a_sole_survivor_scores_exactly_zero_whatever_the_negative():
    full = torch.tensor([[9.0, 0.0]])
    for negative in (None, torch.tensor([[1e4, -1e4]])):
        assert contrast_scores(full, negative, 2.0, 0.1).tolist() == [[0.0, -math.inf]]


def test_tokens_forbidden_before_stay_forbidden():
    full = torch.tensor([[1.0, -math.inf, 0.9]])
    scores = contrast_scores(full, torch.tensor([[0.0, -math.inf, 5.0]]), 1.0, 0.01)
    assert scores[0, 1] == -math.inf
    assert not scores.isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    full, negative = torch.randn(2, 30).to(dtype), torch.randn(2, 30).to(dtype)
    scores = contrast_scores(full, negative, 1.0, 0.01)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, contrast_scores(full.float(), negative.float(), 1.0, 0.01))


def test_arguments_are_not_modified():
    full, negative = torch.randn(2, 5), torch.randn(2, 5)
    kept = full.clone(), negative.clone()
    contrast_scores(full, negative, 1.0, 0.9)
    contrast_scores(full, None, 1.0, 0.9)
    assert torch.equal(full, kept[0])
    assert torch.equal(negative, kept[1])


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf, -math.inf, "1", None, True])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ParameterError, match=r"alpha must be a finite number >= 0, got .*; 0 switches"):
        check_strengths(alpha, 0.1)


@pytest.mark.parametrize("beta", [0, -0.5, 1.0001, 1.5, math.nan, math.inf, "0.1", None, True])
def test_beta_out_of_range(beta):
    with pytest.raises(ParameterError, match=r"beta must be in \(0, 1\], got .*; 0.1 keeps"):
        check_strengths(1.0, beta)


def test_strengths_at_the_ends_of_their_ranges():
    check_strengths(0, 1)
    check_strengths(100.0, 1e-9)


def test_a_mixture_without_a_cutoff_keeps_every_token() -> None:
    full, other = torch.tensor([[9.0, 0.0, -9.0]]), torch.tensor([[0.0, 2.0, 9.0]])
    rule = MixRule(of_full=0.7, of_other=0.3, beta=None)
    assert rule.needed(full, 0).tolist() == [[True] * 3]
    torch.testing.assert_close(rule(full, other, 0), (0.7 * full + 0.3 * other).log_softmax(dim=-1))
    assert not MixRule(1.0, 0.0, None).needed(full, 0).any()
    torch.testing.assert_close(MixRule(1.0, 0.0, None)(full, None, 0), full.log_softmax(dim=-1))
