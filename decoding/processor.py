"""Contrastive decoding as a logits processor of stock ``generate``."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor
from transformers import LogitsProcessor

from damro.decoding.branches.negative import Branch
from damro.decoding.errors import InputsError, NonFiniteScoresError
from damro.decoding.origin import Origin
from damro.decoding.rules import ContrastRule, ScoreRule

OVERFLOW = (
    "must have a finite best token in every row, got NaN or infinity; the model overflowed: "
    "try bfloat16 or float32 instead of float16"
)


_FEW = 8
"""Choosing rows of the output layer pays if they are at most one in so many: gathered rows are read twice and written
once, and products with gathered rows use the processor less well."""


class _Seen(threading.local):
    """What a thread saw at the last step: the histories, and which of them could not be padded."""

    last: tuple[Tensor, Tensor] | None = None


class RuleProcessor(LogitsProcessor):
    """Replaces next-token scores by what a rule makes of them and of a negative prompt's.

    The negative pass is lazy: while the rule can do without it in every row that is still being written, it is
    put off. What was put off is fed in one chunk when the pass is next needed, so results are exactly those of
    running it at every step.

    It may be passed bare or in a list: ``logits_processor=p`` and ``logits_processor=[p]`` are the same.

    Args:
        branch: the negative prompt's logits.
        prompt_ids: `(B, P)`, the `input_ids` of the full prompt; histories are what stands behind them.
        rule: how scores come about.
        eos_token_ids: tokens that end a row; a row that holds nothing but padding after one is finished and does
            not call for the negative pass.
        pad_token_id: what ``generate`` fills finished rows with.
        assumed: the call of ``generate`` may name other end and padding tokens than these. A row is then finished only
            if this processor had ruled its padding out, so that nothing but the end of the row can have put it there.
        origin: what the branch was made from; None where nothing else can have come in between.
    """

    def __init__(
        self,
        branch: Branch,
        prompt_ids: Tensor,
        rule: ScoreRule,
        eos_token_ids: Sequence[int] = (),
        pad_token_id: int | None = None,
        assumed: bool = False,
        origin: Origin | None = None,
    ) -> None:
        self.branch = branch
        self.rule = rule
        self._prompt_ids = prompt_ids
        self._eos = tuple(eos_token_ids)
        self._pad = pad_token_id
        self._assumed = assumed
        self._seen = _Seen()
        self._origin = origin

    def __iter__(self) -> Iterator[Self]:
        """Iterates over itself: ``generate`` takes a list of processors, and one is a list of one."""
        yield self

    def __len__(self) -> int:
        """One."""
        return 1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Contrasts the scores of one step.

        Args:
            input_ids: `(R, P + T)`, prompt and history of every row; R is a multiple of the number of prompts.
            scores: `(R, V)`, logits or log-probabilities of the full prompt; not modified.

        Returns:
            `(R, V)`, log-probabilities in the dtype of `scores`.

        Raises:
            InputsError: if `input_ids` do not continue the prompts this processor was made for, or a generation has
                begun with other pixels or other parameters than those it was made from.
            NonFiniteScoresError: if a row of `scores`, or the negative prompt's, is NaN or overflows.
        """
        prompts = self._expected_prompts(input_ids)
        history = input_ids[:, prompts.shape[1] :]
        full, step = scores.float(), history.shape[1]
        if step == 0:
            # Chunks of the history then fall as in the first call, so that a second one repeats it to the last bit.
            self.branch.restart()
        finished = self._finished(history)
        needed = (self.rule.needed(full, step) & ~finished.unsqueeze(-1)).any(dim=0)  # (V,)
        # NaN makes the best score NaN, overflow makes it infinite.
        broken = ~full.amax(dim=-1).isfinite()
        # The whole prompt, at every step: another prompt that is longer would pass for this one with a history.
        foreign = input_ids[:, : prompts.shape[1]] != prompts
        # One transfer to the host answers the three questions of every step.
        count, unusable, other = torch.stack([needed.sum(), broken.any(), foreign.any()]).tolist()
        if other:
            raise self._not_mine(input_ids)
        if self._origin is not None:
            self._origin.check(step)
        if unusable:
            raise NonFiniteScoresError(f"scores {OVERFLOW}")
        negative = self._negative(history, needed, count) if count or not self.branch.may_wait else None
        if negative is not None and self._origin is not None:
            self._origin.forget()  # an encoder has read the negative prompt
        contrasted = self.rule(full, negative, step)
        if negative is not None and bool(contrasted.isnan().any()):
            raise NonFiniteScoresError(f"scores of the negative prompt {OVERFLOW}")
        if self._assumed and self._pad is not None:
            self._seen.last = history, finished | contrasted[:, self._pad].isneginf()
        return contrasted.to(scores.dtype)

    def _negative(self, history: Tensor, needed: Tensor, count: int) -> Tensor:
        """Logits of the negative prompt `(R, V)`; of tokens that no row needs they may be 0 instead."""
        if count > len(needed) // _FEW:
            return self.branch.logits(history)
        tokens = needed.nonzero().flatten()
        logits = self.branch.logits(history, tokens)
        return logits.new_zeros(len(history), len(needed)).index_copy(1, tokens, logits)

    def _expected_prompts(self, input_ids: Tensor) -> Tensor:
        """`(R, P)`, the prompts that `input_ids` must begin with."""
        prompts, length = self._prompt_ids.shape
        rows, tokens = input_ids.shape
        if tokens < length or rows % prompts:
            raise self._not_mine(input_ids)
        return self._prompt_ids.to(input_ids.device).repeat_interleave(rows // prompts, dim=0)

    def _not_mine(self, input_ids: Tensor) -> InputsError:
        prompts, length = self._prompt_ids.shape
        return InputsError(
            f"input_ids must continue the {prompts} prompts of {length} tokens this processor was made for, "
            f"got other tokens or rows, shape {tuple(input_ids.shape)}; make one processor for each call's inputs"
        )

    def _finished(self, history: Tensor) -> Tensor:
        """`(R,)`, rows that ended: an end token, then at least one padding token and nothing else."""
        if not self._eos or self._pad is None or history.shape[1] < 2:
            return torch.zeros(len(history), dtype=torch.bool, device=history.device)
        ends = torch.isin(history, torch.tensor(self._eos, device=history.device))
        after_end = ends.long().cumsum(dim=-1) - ends.long() > 0  # strictly behind the first end token
        only_padding = ((history == self._pad) | ~after_end).all(dim=-1)
        finished = after_end.any(dim=-1) & only_padding
        return finished & self._ruled_out(history[:, :-1]) if self._assumed else finished

    def _ruled_out(self, before: Tensor) -> Tensor:
        """`(R,)`, whether padding was known to be no continuation of a history, `(R, T)`."""
        last, ruled_out = self._seen.last or (None, None)
        if last is None or ruled_out is None or last.shape != before.shape:
            return torch.zeros(len(before), dtype=torch.bool, device=before.device)
        return ruled_out & (last == before).all(dim=-1)  # beams change places


class ContrastiveProcessor(RuleProcessor):
    """Subtracts a negative prompt's logits: a :class:`RuleProcessor` with :class:`ContrastRule`.

    Args:
        branch: the negative prompt's logits.
        prompt_ids: `(B, P)`, the `input_ids` of the full prompt.
        alpha: strength of the contrast, >= 0.
        beta: plausibility cutoff in (0, 1]; scores are `-inf` outside the plausible tokens.
        eos_token_ids: tokens that end a row.
        pad_token_id: what ``generate`` fills finished rows with.
        assumed: whether a call of ``generate`` may name others.
        origin: see :class:`RuleProcessor`.

    Raises:
        ParameterError: if `alpha` or `beta` is out of range.
    """

    def __init__(
        self,
        branch: Branch,
        prompt_ids: Tensor,
        alpha: float,
        beta: float,
        eos_token_ids: Sequence[int] = (),
        pad_token_id: int | None = None,
        assumed: bool = False,
        origin: Origin | None = None,
    ) -> None:
        super().__init__(branch, prompt_ids, ContrastRule(alpha, beta), eos_token_ids, pad_token_id, assumed, origin)
        self.alpha = alpha
        self.beta = beta
