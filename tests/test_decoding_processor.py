"""The logits processor on a branch whose logits are fixed, with the formula written out."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from damro.decoding.branches.negative import NegativeBranch
from damro.decoding.errors import InputsError, NonFiniteScoresError, ParameterError
from damro.decoding.processor import ContrastiveProcessor, RuleProcessor
from damro.decoding.rules import ContrastRule, ScoreRule
from damro.methods.m3id import M3IDRule

PROMPT = torch.tensor([[5, 6, 7], [0, 8, 9]])
PAD, END = 0, 2


class FixedBranch(NegativeBranch):
    """Says the same of every row, or of each its own; notes the histories and the tokens it was asked about."""

    def __init__(self, negative: Tensor) -> None:
        self.negative = negative
        self.asked: list[list[list[int]]] = []
        self.tokens: list[list[int] | None] = []
        self.restarts = 0

    def restart(self) -> None:
        self.restarts += 1

    def logits(self, history: Tensor, tokens: Tensor | None = None) -> Tensor:
        self.asked.append(history.tolist())
        self.tokens.append(None if tokens is None else tokens.tolist())
        logits = self.negative.expand(len(history), -1)
        return logits if tokens is None else logits[:, tokens]


def processor_of(negative=(0.0, 0.0, 0.0, 3.0), alpha=1.0, beta=0.1, **ends) -> ContrastiveProcessor:
    return ContrastiveProcessor(FixedBranch(torch.tensor(negative)), PROMPT, alpha, beta, **ends)


def after(*histories: tuple[int, ...]) -> Tensor:
    """The two prompts, each row continued by a history; more rows than prompts repeat the prompts."""
    prompts = PROMPT.repeat_interleave(len(histories) // 2, dim=0)
    return torch.cat([prompts, torch.tensor(histories, dtype=torch.long).reshape(len(histories), -1)], dim=1)


UNDECIDED = [1.0, 0.5, -9.0, 1.2]
DECIDED = [9.0, 0.0, 0.0, 0.0]


def test_scores_are_the_formula():
    processor = processor_of()
    scores = processor(after((), ()), torch.tensor([UNDECIDED, DECIDED]))
    # Row 0 keeps 1.0, 0.5 and 1.2 (cutoff 1.2 - 2.303): 2*1.0, 2*0.5, 2*1.2 - 3. Row 1 keeps its best alone.
    mixed = [2.0, 1.0, -0.6]
    norm = math.log(sum(map(math.exp, mixed)))
    assert scores[0].tolist() == pytest.approx([2.0 - norm, 1.0 - norm, -math.inf, -0.6 - norm], abs=1e-6)
    assert scores[1].tolist() == [0.0, -math.inf, -math.inf, -math.inf]


def test_scores_passed_in_are_not_modified():
    scores = torch.tensor([UNDECIDED, DECIDED])
    kept = scores.clone()
    processor_of()(after((), ()), scores)
    assert torch.equal(scores, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_scores_keep_their_dtype(dtype):
    scores = processor_of()(after((), ()), torch.tensor([UNDECIDED, DECIDED], dtype=dtype))
    assert scores.dtype == dtype
    assert scores.exp().sum(-1).tolist() == pytest.approx([1, 1], abs=2e-2)


def test_no_pass_while_one_token_survives_in_every_row():
    processor = processor_of()
    for length in range(4):
        processor(after((3,) * length, (4,) * length), torch.tensor([DECIDED, DECIDED]))
    assert processor.branch.asked == []


def test_one_undecided_row_is_enough_for_a_pass():
    processor = processor_of()
    processor(after((3,), (4,)), torch.tensor([DECIDED, UNDECIDED]))
    assert processor.branch.asked == [[[3], [4]]]


def test_a_pass_sees_the_whole_history_of_every_row():
    processor = processor_of()
    processor(after((3, 1), (4, 1)), torch.tensor([DECIDED, DECIDED]))
    processor(after((3, 1, 1), (4, 1, 1)), torch.tensor([UNDECIDED, DECIDED]))
    assert processor.branch.asked == [[[3, 1, 1], [4, 1, 1]]]


def test_without_contrast_there_is_never_a_pass():
    processor = processor_of(alpha=0.0)
    scores = processor(after((), ()), torch.tensor([UNDECIDED, DECIDED]))
    assert processor.branch.asked == []
    assert scores[0].tolist() == pytest.approx(
        torch.tensor([1.0, 0.5, -math.inf, 1.2]).log_softmax(-1).tolist(), abs=1e-6
    )


@pytest.mark.parametrize(
    ("histories", "asks"),
    [
        (((3, END, PAD), (4, 4, 4)), False),  # row 0 has ended and is padded
        (((3, END, PAD, PAD), (4, 4, 4, 4)), False),
        (((END, PAD, PAD), (4, 4, 4)), False),
        (((3, 4, END), (4, 4, 4)), True),  # ends here: indistinguishable from a row that ignores the end token
        (((3, END, 4), (4, 4, 4)), True),  # went on after an end token that did not count
        (((3, PAD, PAD), (4, 4, 4)), True),  # the padding token without an end token is a token
    ],
)
def test_finished_rows_do_not_call_for_a_pass(histories, asks):
    processor = processor_of(eos_token_ids=[END, 1], pad_token_id=PAD)
    processor(after(*histories), torch.tensor([UNDECIDED, DECIDED]))
    assert bool(processor.branch.asked) == asks


def test_a_padding_token_that_is_the_end_token():
    processor = processor_of(eos_token_ids=[END], pad_token_id=END)
    processor(after((3, END, END), (4, 4, 4)), torch.tensor([UNDECIDED, DECIDED]))
    assert processor.branch.asked == []


def test_without_known_end_tokens_every_row_counts():
    processor = processor_of(pad_token_id=PAD)
    processor(after((3, END, PAD), (4, 4, 4)), torch.tensor([UNDECIDED, DECIDED]))
    assert len(processor.branch.asked) == 1


def test_bare_it_is_a_list_of_itself():
    processor = processor_of()
    assert isinstance(processor, LogitsProcessor)
    assert list(processor) == [processor]
    assert len(processor) == 1
    assert LogitsProcessorList(processor) == LogitsProcessorList([processor])


def test_more_rows_than_prompts_repeat_the_prompts():
    processor = processor_of()
    scores = torch.tensor([UNDECIDED] * 4)
    assert processor(after((1,), (2,), (3,), (4,)), scores).shape == (4, 4)
    assert processor.branch.asked == [[[1], [2], [3], [4]]]


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([[5, 6], [0, 8]]),  # shorter
        torch.tensor([[5, 6, 7], [0, 8, 8]]),  # other tokens
        torch.tensor([[5, 6, 7], [0, 8, 8]]).repeat_interleave(2, dim=0),
        torch.tensor([[5, 6, 7]]),  # fewer rows
        torch.tensor([[5, 6, 7], [0, 8, 9], [5, 6, 7]]),
        torch.tensor([[5, 6, 7], [0, 8, 9]]).repeat(2, 1),  # tiled, not interleaved
        torch.tensor([[1, 5, 6, 7], [0, 0, 8, 9]]),  # another prompt, longer
    ],
)
def test_prompts_of_another_call_are_an_error(ids):
    with pytest.raises(InputsError, match="input_ids must .* this processor was made for, got .*; make one"):
        processor_of()(ids, torch.tensor([UNDECIDED]).expand(len(ids), -1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_unusable_scores_are_an_error(bad, alpha):
    with pytest.raises(NonFiniteScoresError, match="scores must .* got NaN or infinity; .* try bfloat16"):
        processor_of(alpha=alpha)(after((), ()), torch.tensor([DECIDED, [1.0, bad, 0.0, 0.0]]))


def test_a_row_that_forbids_every_token_is_an_error():
    with pytest.raises(NonFiniteScoresError):
        processor_of()(after((), ()), torch.tensor([DECIDED, [-math.inf] * 4]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_unusable_scores_of_the_negative_prompt_are_an_error(bad):
    processor = processor_of(negative=(bad, 0.0, 0.0, 0.0))
    with pytest.raises(NonFiniteScoresError, match="negative prompt .*bfloat16"):
        processor(after((), ()), torch.tensor([UNDECIDED, DECIDED]))


def test_minus_infinity_from_earlier_processors_is_no_error():
    scores = processor_of()(after((), ()), torch.tensor([[1.0, -math.inf, 0.9, -math.inf], DECIDED]))
    assert scores[0].isneginf().tolist() == [False, True, False, True]


# Few of many tokens

MANY = 64
PLAUSIBLE = [{3: 5.0, 10: 4.9, 40: 4.8, 41: 4.7}, {7: 9.0}, {10: 5.0, 11: 4.5}, {50: 5.0, 51: 4.9}]
LAST_ENDED = after((3, 4, 5), (4, 4, 4), (5, 5, 5), (3, END, PAD))


def among_many(plausible: list[dict[int, float]]) -> Tensor:
    """Logits of the full prompt, in which all other tokens are far below."""
    full = torch.linspace(-4.0, -3.0, MANY).repeat(len(plausible), 1)
    for row, logits in enumerate(plausible):
        full[row, list(logits)] = torch.tensor(list(logits.values()))
    return full


def by_hand(full: list[float], negative: list[float], weight: float, kept: Iterable[int]) -> list[float]:
    """`log_softmax(f + weight (f - n))` over the tokens that are kept."""
    mixed = {token: full[token] + weight * (full[token] - negative[token]) for token in kept}
    norm = math.log(sum(map(math.exp, mixed.values())))
    return [mixed[token] - norm if token in mixed else -math.inf for token in range(len(full))]


W = math.exp(0.02 * 4) - 1  # M3ID's weight of the fourth token


@pytest.mark.parametrize(
    ("rule", "asked", "weights"),
    [
        (ContrastRule(2.0, 0.1), [3, 10, 11, 40, 41], [2.0, 2.0, 2.0]),
        (M3IDRule(confidence=1.0, beta=0.1), [3, 10, 11, 40, 41], [W, W, W]),
        (M3IDRule(beta=0.1), [3, 10, 40, 41], [W, 0.0, 0.0]),  # sure where two tokens are left
        (M3IDRule(), None, [W, 0.0, 0.0]),  # without a cutoff every token is plausible
    ],
    ids=["contrast", "m3id-always", "m3id-unsure", "m3id-no-cutoff"],
)
def test_the_branch_is_asked_for_what_live_rows_need(
    rule: ScoreRule, asked: list[int] | None, weights: list[float]
) -> None:
    full = among_many(PLAUSIBLE)
    negative = 3 * torch.randn(4, MANY, generator=torch.Generator().manual_seed(0))
    processor = RuleProcessor(FixedBranch(negative), PROMPT, rule, [END], PAD)
    scores = processor(LAST_ENDED, full)
    assert processor.branch.tokens == [asked]
    for row, weight in enumerate(weights):
        kept = range(MANY) if asked is None else PLAUSIBLE[row]
        expected = by_hand(full[row].tolist(), negative[row].tolist(), weight, kept)
        assert scores[row].tolist() == pytest.approx(expected, abs=1e-5)
    assert not scores[3].isnan().any()  # ended: of no use, but it must not break the others


@pytest.mark.parametrize("count", [2, 8, 9, 64])
def test_more_than_an_eighth_of_the_tokens_are_asked_for_in_one_piece(count: int) -> None:
    full = among_many([{7: 9.0}, {token: 5.0 - 0.01 * token for token in range(count)}])
    negative = torch.randn(2, MANY, generator=torch.Generator().manual_seed(0))
    processor = RuleProcessor(FixedBranch(negative), PROMPT, ContrastRule(1.0, 0.1))
    scores = processor(after((3,), (4,)), full)
    assert processor.branch.tokens == [list(range(count)) if count <= 8 else None]
    expected = by_hand(full[1].tolist(), negative[1].tolist(), 1.0, range(count))
    assert scores[1].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("strengths", [{"alpha": -1.0}, {"alpha": math.nan}, {"beta": 0.0}, {"beta": 1.5}])
def test_strengths_are_checked(strengths):
    with pytest.raises(ParameterError, match="must be"):
        processor_of(**strengths)


def test_the_branch_starts_anew_with_every_generation() -> None:
    processor = processor_of()
    for history in ((), (1,), (1, 2), ()):
        processor(after(history, history), torch.tensor([UNDECIDED, UNDECIDED]))
    assert processor.branch.restarts == 2
