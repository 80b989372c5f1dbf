"""The decoding loop over branches: greedy search and sampling, step for step as the stock loop does them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

from damro.decoding.errors import NonFiniteScoresError
from damro.decoding.processor import OVERFLOW
from damro.decoding.rules import ScoreRule


class Continued(Protocol):
    """Prompts that are continued side by side, such as :class:`damro.decoding.branches.fused.Branches`."""

    logits: Tensor
    """`(branches, R, V)`, of the next token."""

    def step(self, tokens: Tensor) -> None:
        """Continues every row of every branch by its token, `(R,)`."""

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these, `(kept,)`, from every branch."""


class ContrastStep(LogitsProcessor):
    """Stands where a user's processor stands; the loop hands it the negative logits of each step.

    Args:
        rule: how scores come about.
        prompt_length: columns of the prompt; what stands behind them has been generated.

    Attributes:
        negative: `(R, V)`, set by the loop before each call.
        broken: whether the last scores of some row were not numbers; a tensor of one boolean.
    """

    def __init__(self, rule: ScoreRule, prompt_length: int) -> None:
        self._rule = rule
        self._prompt_length = prompt_length
        self.negative: Tensor | None = None
        self.broken: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Contrasts the scores of one step, `(R, V)`."""
        contrasted = self._rule(scores.float(), self.negative, input_ids.shape[1] - self._prompt_length)
        unusable = contrasted.amax(dim=-1, keepdim=True).isnan()
        # Looked at once a step, together with whether all rows have ended: asking here would cost a transfer.
        # Until then the row gets scores that can be sampled from.
        self.broken = unusable.any()
        return contrasted.masked_fill(unusable, 0.0).to(scores.dtype)


class BranchLoop:
    """Greedy search and sampling over branches, for ``generate(custom_generate=...)``.

    The order of what happens in a step, and every draw of a random number, is that of the stock loop.

    Args:
        begin: reads the full prompt and, if there is a contrast, the negative one; gets the model and `(R, P)`, the
            tokens that ``generate`` starts with.
        step: the processor that stands in the merged list, or None for plain decoding.
        streamer: what gets the tokens; ``generate`` keeps it from a callable and sends it the prompt only.
    """

    def __init__(
        self,
        begin: Callable[[Any, Tensor], Continued],
        step: ContrastStep | None,
        streamer: Any = None,
    ) -> None:
        self._begin = begin
        self.step = step
        self._streamer = streamer

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """Runs the loop on what ``generate`` has prepared; returns what ``generate`` shall return."""
        config = generation_config
        rows = _LiveRows(self._begin(model, input_ids))
        wanted = bool(config.return_dict_in_generate)
        scores: tuple[Tensor, ...] | None = () if wanted and config.output_scores else None
        raw: tuple[Tensor, ...] | None = () if wanted and config.output_logits else None
        ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        pad = config._pad_token_tensor.to(input_ids.device) if ends else None
        unfinished = torch.ones(len(input_ids), dtype=torch.long, device=input_ids.device)
        while True:
            full, next_scores = self._scores(rows, input_ids, logits_processor)
            scores = None if scores is None else (*scores, next_scores)
            raw = None if raw is None else (*raw, full)
            tokens = _draw(next_scores) if config.do_sample else next_scores.argmax(dim=-1)
            if pad is not None:
                tokens = tokens * unfinished + pad * (1 - unfinished)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            unfinished = unfinished & ~stopping_criteria(input_ids, scores)
            if self._streamer is not None:
                self._streamer.put(tokens.cpu())
            left = self._count(unfinished)
            if not left:
                break
            # Recorded scores are those of all rows, as in the stock loop. Without an end token the stock loop pads
            # nothing: rows that a criterion has ended are written on with the others.
            if scores is None and raw is None and pad is not None:
                rows.shrink(unfinished, left)
            rows.step(tokens)
        if self._streamer is not None:
            self._streamer.end()
        output: Any = GenerateEncoderDecoderOutput if model.config.is_encoder_decoder else GenerateDecoderOnlyOutput
        return output(sequences=input_ids, scores=scores, logits=raw) if wanted else input_ids

    def _scores(self, rows: _LiveRows, input_ids: Tensor, logits_processor: Any) -> tuple[Tensor, Tensor]:
        """Raw logits of the full prompt and processed scores, `(R, V)` each, float32."""
        logits = rows.logits.to(input_ids.device)
        if self.step is not None:
            self.step.negative = logits[1]
        full = logits[0].to(torch.float32, copy=True)
        return full, logits_processor(input_ids, full)

    def _count(self, unfinished: Tensor) -> int:
        """How many rows go on; the one transfer of a step."""
        left = unfinished.sum()
        if self.step is None or self.step.broken is None:
            return int(left)
        left, broken = torch.stack([left, self.step.broken.long()]).tolist()
        if broken:
            raise NonFiniteScoresError(f"scores {OVERFLOW}")
        return int(left)


def _draw(scores: Tensor) -> Tensor:
    return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1).squeeze(1)


class _LiveRows:
    """Branches without the rows that have ended, looking from outside as if all were there.

    Copying KV to drop rows pays once half of them have ended: then all copies of a generation together move less
    than the first prompt's KV does, and the steps that follow cost half or less.
    """

    def __init__(self, branches: Continued) -> None:
        self._branches = branches
        self._live: Tensor | None = None
        self.logits = branches.logits  # (branches, R, V); of rows that have ended, their last

    def shrink(self, unfinished: Tensor, left: int) -> None:
        """Drops ended rows if at most half of the rows at hand go on."""
        present = self._branches.logits.shape[1]
        if left * 2 > present:
            return
        live = torch.arange(present, device=unfinished.device) if self._live is None else self._live
        kept = unfinished[live].nonzero().flatten()
        self._branches.keep(kept)
        self._live = live[kept]

    def step(self, tokens: Tensor) -> None:
        """Continues every row by its token, `(R,)`."""
        if self._live is None:
            self._branches.step(tokens)
            self.logits = self._branches.logits
            return
        self._branches.step(tokens[self._live])
        self.logits = self.logits.index_copy(1, self._live.to(self.logits.device), self._branches.logits)
