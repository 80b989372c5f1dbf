"""The negative branch: whatever history it is shown, the cached answer is the uncached one."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from damro.decoding.branches.negative import NegativeBranch
from damro.decoding.errors import InputsError
from damro.decoding.prompts import VisualPrompt

VOCABULARY = 30


class SpiedDecoder(nn.Module):
    """A two-layer Llama that notes how many columns each pass was fed, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.5,
        )
        self.llama = LlamaForCausalLM(config).eval()
        self.fed: list[tuple[int, int]] = []
        self.fails = 0

    def forward(self, **arguments):
        output = self.llama(**arguments)
        if self.fails:
            self.fails -= 1
            raise KeyboardInterrupt  # after the cache has been written to
        self.fed.append(tuple(arguments["inputs_embeds"].shape[:2]))
        return output


@pytest.fixture(scope="module")
def spied() -> SpiedDecoder:
    return SpiedDecoder()


@pytest.fixture
def decoder(spied: SpiedDecoder) -> SpiedDecoder:
    spied.fed.clear()
    spied.fails = 0
    return spied


def branch_of(decoder: SpiedDecoder, lengths: list[int]) -> NegativeBranch:
    """A branch with one left-padded prompt of random vectors for each length."""
    generator = torch.Generator().manual_seed(1)
    columns = max(lengths)
    mask = torch.tensor([[0] * (columns - length) + [1] * length for length in lengths])
    embeds = torch.randn(len(lengths), columns, 16, generator=generator) * mask[..., None]
    prompt = VisualPrompt(embeds, mask, torch.zeros_like(mask, dtype=torch.bool))
    return NegativeBranch(decoder, decoder.llama.get_input_embeddings(), prompt)


@torch.no_grad()
def uncached(branch: NegativeBranch, decoder: SpiedDecoder, history: Tensor) -> Tensor:
    """Each row by itself: no padding, no cache, positions from 0."""
    repeats, rows = len(history) // len(branch.prompt.attention_mask), []
    for row, tokens in enumerate(history):
        mask = branch.prompt.attention_mask[row // repeats].bool()
        embeds = branch.prompt.inputs_embeds[row // repeats][mask]
        whole = torch.cat([embeds, decoder.llama.get_input_embeddings()(tokens)])
        rows.append(decoder.llama(inputs_embeds=whole[None], use_cache=False).logits[0, -1])
    return torch.stack(rows)


def check(branch: NegativeBranch, decoder: SpiedDecoder, history: Tensor) -> None:
    torch.testing.assert_close(branch.logits(history), uncached(branch, decoder, history), atol=2e-5, rtol=0)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lengths", [[4], [6, 3], [2, 5, 1]])
def test_the_prompt_itself(decoder, lengths):
    branch = branch_of(decoder, lengths)
    for rows in (len(lengths), 3 * len(lengths)):
        check(branch, decoder, tokens(rows, 0))
    assert branch.passes == 1


def test_token_by_token_feeds_one_column_at_a_time(decoder):
    branch, history = branch_of(decoder, [5, 2]), tokens(2, 6)
    for length in range(7):
        check(branch, decoder, history[:, :length])
    assert decoder.fed == [(2, 5)] + [(2, 1)] * 6
    assert branch.passes == 7


def test_what_was_skipped_goes_through_in_one_chunk(decoder):
    branch, history = branch_of(decoder, [5, 2]), tokens(2, 9)
    check(branch, decoder, history[:, :2])
    check(branch, decoder, history)
    assert decoder.fed == [(2, 5), (2, 2), (2, 7)]


def test_a_branch_that_was_never_asked_for_the_prompt_starts_in_the_middle(decoder):
    check(branch_of(decoder, [3]), decoder, tokens(1, 4))
    assert decoder.fed == [(1, 3), (1, 4)]


def test_reordered_rows_take_their_cache_along(decoder):
    branch, history = branch_of(decoder, [4]), tokens(3, 5)
    branch.logits(history)
    parents = torch.tensor([2, 0, 0])
    check(branch, decoder, torch.cat([history[parents], tokens(3, 1, seed=7)], dim=1))
    assert decoder.fed[-1] == (3, 1)


def test_rejected_drafts_are_cut_off(decoder):
    branch, draft = branch_of(decoder, [4]), tokens(1, 8)
    branch.logits(draft)
    accepted = torch.cat([draft[:, :5], (draft[:, 5:6] + 1) % VOCABULARY], dim=1)
    check(branch, decoder, accepted)
    assert decoder.fed[-1] == (1, 1)


def test_the_same_question_twice_feeds_one_column(decoder):
    branch, history = branch_of(decoder, [4, 2]), tokens(2, 5)
    first = branch.logits(history)
    torch.testing.assert_close(branch.logits(history), first, atol=1e-5, rtol=0)
    assert decoder.fed[-1] == (2, 1)


def test_rows_never_borrow_from_another_prompt(decoder):
    """Two prompts with the same history: their caches must not be mixed up when rows multiply."""
    branch, shared = branch_of(decoder, [4, 4]), tokens(1, 3).expand(2, 3)
    branch.logits(shared)
    check(branch, decoder, shared.repeat_interleave(2, dim=0))
    check(branch, decoder, shared)


def mutate(history: Tensor, prompts: int, chance: random.Random) -> Tensor:
    """One thing a decoding method may do to its rows."""
    rows, length = history.shape
    act = chance.choice(["append", "append", "truncate", "reorder", "branch", "merge", "restart", "replace"])
    per = rows // prompts
    if act == "truncate" and length:
        return history[:, : chance.randrange(length)]
    if act == "reorder":
        parents = [p * per + chance.randrange(per) for p in range(prompts) for _ in range(per)]
        return history[parents]
    if act == "branch" and per < 4:
        return history.repeat_interleave(chance.choice([2, 3]), dim=0)
    if act == "merge":
        return history[::per]
    if act == "restart":
        return torch.zeros(prompts, 0, dtype=torch.long)
    if act == "replace":
        return torch.randint_like(history, VOCABULARY)
    fresh = torch.randint(0, VOCABULARY, (rows, chance.randint(1, 4)))
    return torch.cat([history, fresh], dim=1)


@pytest.mark.parametrize("lengths", [[4], [6, 2]], ids=["one prompt", "two prompts"])
@pytest.mark.parametrize("seed", range(5))
def test_cached_equals_uncached_under_random_histories(decoder, lengths, seed):
    chance = random.Random(seed)
    torch.manual_seed(seed)
    branch, history = branch_of(decoder, lengths), torch.zeros(len(lengths), 0, dtype=torch.long)
    for _ in range(25):
        history = mutate(history, len(lengths), chance)[:, :24]
        if chance.random() < 0.7:  # the others are skipped, as lazy steps are
            check(branch, decoder, history)


@pytest.mark.parametrize("when", ["prompt", "history"])
def test_an_interrupted_pass_leaves_nothing_behind(decoder, when):
    branch, history = branch_of(decoder, [5, 3]), tokens(2, 6)
    if when == "history":
        branch.logits(history[:, :3])
    decoder.fails = 1
    with pytest.raises(KeyboardInterrupt):
        branch.logits(history)
    other = history[:, :4].clone()
    other[:, 3] = (other[:, 3] + 1) % VOCABULARY  # else the half-fed columns would be right by chance
    check(branch, decoder, other)
    check(branch, decoder, history)


def test_neither_prompt_nor_history_is_modified(decoder):
    branch, history = branch_of(decoder, [4, 2]), tokens(2, 5)
    kept = history.clone(), branch.prompt.inputs_embeds.clone(), branch.prompt.attention_mask.clone()
    branch.logits(history)
    branch.logits(history.flip(0))
    now = history, branch.prompt.inputs_embeds, branch.prompt.attention_mask
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


def test_a_history_changed_in_place_is_noticed(decoder):
    """``generate`` hands over fresh tensors; others may reuse one."""
    branch, history = branch_of(decoder, [4]), tokens(1, 5)
    branch.logits(history)
    history[0, 2] = (history[0, 2] + 1) % VOCABULARY
    check(branch, decoder, torch.cat([history, tokens(1, 1, seed=3)], dim=1))


def test_no_gradient_is_kept(decoder):
    assert not branch_of(decoder, [4]).logits(tokens(1, 2)).requires_grad


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_must_be_a_multiple_of_the_prompts(decoder, rows):
    with pytest.raises(InputsError, match=f"a multiple of the 2 prompts .* got {rows} rows; make one processor"):
        branch_of(decoder, [4, 2]).logits(tokens(rows, 3))
