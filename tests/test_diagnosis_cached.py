"""Kept logits give the choices that the rule itself makes on all of them."""

import numpy as np
import torch

from damro.decoding.rules import contrast_scores, plausible_tokens
from damro.diagnosis.cached import cache_step, choose_places, is_open

ALPHAS, BETAS = (0.1, 0.5, 2.0), (0.05, 0.1, 0.5)


def test_every_choice_is_that_of_the_rule_on_all_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    changed = 0
    for _ in range(40):
        full = torch.randn(50, generator=generator) * 2
        negative = torch.randn(4, 50, generator=generator) * 3
        step = cache_step(full, negative, min(BETAS))
        tokens = step.tokens[choose_places(step, ALPHAS, BETAS)]
        for second in range(4):
            for a, alpha in enumerate(ALPHAS):
                for b, beta in enumerate(BETAS):
                    expected = int(contrast_scores(full, negative[second], alpha, beta).argmax())
                    assert tokens[second, a, b] == expected
                    changed += expected != int(full.argmax())
    assert changed > 100


def test_what_is_open_is_counted_as_the_rule_counts() -> None:
    full = torch.randn(30, generator=torch.Generator().manual_seed(1))
    step = cache_step(full, torch.zeros(1, 30), min(BETAS))
    assert is_open(step, BETAS).tolist() == [bool(plausible_tokens(full, beta).sum() > 1) for beta in BETAS]
    assert not is_open(cache_step(torch.tensor([9.0, 0.0]), torch.zeros(1, 2), 0.05), BETAS).any()


def test_only_plausible_tokens_are_kept() -> None:
    full = torch.tensor([0.0, -1.0, -9.0, -2.0])
    step = cache_step(full, torch.arange(8.0).view(2, 4), 0.2)
    assert step.tokens.tolist() == [0, 1]
    assert np.array_equal(step.negative, [[0, 1], [4, 5]])
