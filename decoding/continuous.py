"""Continuous batching: the place of an answer that has ended is taken by the next prompt, so the batch stays full."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from damro.decoding.branches.fused import Prefill, why_alone
from damro.decoding.branches.joining import OpenBranches
from damro.decoding.branches.prefix import Read, read_prompt
from damro.decoding.drawing import draw_scores, stream
from damro.decoding.errors import NonFiniteScoresError
from damro.decoding.families.base import is_encoder_decoder
from damro.decoding.inside import prompts_of, works_inside
from damro.decoding.processor import OVERFLOW
from damro.decoding.prompts import Prompt
from damro.decoding.rules import Contrast, ScoreRule
from damro.decoding.search import Search
from damro.decoding.settings import check_prompt_lengths, own_loop_serves
from damro.decoding.stock import StockSteps, why_not_by_row

FREE = 0.25
"""The share of places that must be free before others join: reading several prompts at once costs less than one by
one, and so does writing them into their places."""


class Joining(NamedTuple):
    """Prompts that have been read, one row an answer.

    Attributes:
        keys: what the answers are called.
        read: the full prompts and, if there is a contrast, the negative ones. Both are left as they are: prompts that
            several methods have in common can be given to each of them.
        rule: how scores come about; None for plain decoding. The same for all that are written together.
        tokens: of each row, what stands in front of its answer, without padding.
        seeds: of each row, where tokens are drawn.
    """

    keys: Sequence[Hashable]
    read: Sequence[Prefill]
    rule: ScoreRule | None
    tokens: Sequence[Sequence[int]]
    seeds: Sequence[int]


class Written(NamedTuple):
    """What came of one prompt.

    Attributes:
        key: as its :class:`Joining` has it.
        tokens: of the answer, with the one that ends it.
        error: why there is none; None if there is.
    """

    key: Hashable
    tokens: list[int]
    error: NonFiniteScoresError | None = None


More = Callable[[int], Sequence[Joining]]
"""Prompts for so many free places, or fewer; none if there are no more, or if they want more places at once."""


@torch.no_grad()
def read(
    decoder: Any,
    contrast: Contrast | Prompt,
    inputs: Mapping[str, Any],
    keys: Sequence[Hashable],
    *,
    config: GenerationConfig,
    seeds: Sequence[int] = (),
    shared_prefix: bool = False,
    reader: Read = read_prompt,
) -> Joining:
    """Reads the prompts of a method.

    Args:
        decoder: the language model with its head.
        contrast: of B rows, one for which :func:`why_not` knows nothing.
        inputs: what the processor returned, `input_ids` and `attention_mask`.
        keys: B of them.
        config: how answers are searched.
        seeds: B of them where tokens are drawn.
        shared_prefix: reads the columns that all rows begin with once.
        reader: reads one prompt.

    Raises:
        InputsError: a prompt that does not fit into the model's context.
    """
    prompts = prompts_of(contrast)
    check_prompt_lengths(decoder, prompts, {"generation_config": config})
    rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    tokens = [row[mask.to(row.device)].tolist() for row, mask in rows]
    rule = contrast.rule if isinstance(contrast, Contrast) else None
    found = [reader(decoder, prompt, shared=shared_prefix) for prompt in prompts]
    return Joining(keys, found, rule, tokens, seeds)


def why_not(decoder: Any, contrast: Contrast | Prompt | Search, config: GenerationConfig) -> str | None:
    """Why the answers of a method cannot be written so that others join; None if they can.

    Args:
        decoder: the language model with its head.
        contrast: the method's prompts and rule, of any images.
        config: how answers are searched.

    Returns:
        A clause, as in "a batch at a time, as ...".
    """
    if isinstance(contrast, Search):
        return "the method searches by itself"
    if works_inside(contrast):
        return "the method works inside of the language model"
    if is_encoder_decoder(decoder):
        return "the model is an encoder-decoder"
    if (why := why_alone(decoder)) is not None:
        return why
    if not own_loop_serves(decoder, {"generation_config": config}) or config.do_sample:
        return "a setting asks for another search than the greedy one"
    if isinstance(contrast, Contrast) and not _takes_steps(contrast.rule):
        return f"{type(contrast.rule).__name__} takes one step for all rows"
    return why_not_by_row(decoder, config)


def _takes_steps(rule: ScoreRule) -> bool:
    """Whether a rule gives each row what it gives at that row's step: tried on rows at steps 0 and 9."""
    full, negative = torch.linspace(0, 3, 32).reshape(2, 16), torch.linspace(3, -2, 32).reshape(2, 16).sin()
    alone = [rule(full[row, None], negative[row, None], step) for row, step in enumerate((0, 9))]
    try:
        together = rule(full, negative, torch.tensor([[0], [9]]))
    except Exception:  # whatever a rule raises that was not written for it
        return False
    return torch.allclose(torch.cat(alone), together)


@torch.no_grad()
def write(
    decoder: Any, more: More, *, rows: int, config: GenerationConfig, temperature: float = 0.0, top_p: float = 1.0
) -> Iterator[Written]:
    """Writes answers, a prompt in the place of each that has ended; yields an answer as soon as it is written.

    An answer has the tokens that :func:`damro.decoding.generate.decode` gives of its prompt alone: end tokens, limits
    and the settings that transformers' own processors follow hold for each row by its own tokens, and what is drawn
    depends on the row's seed alone. That is up to rounding: sums over more columns or rows are added up in another
    order. In float32 that moves logits by some 1e-6; in bfloat16 and float16 by as much as these tell numbers apart,
    so that tokens nearly as good as the best one may change places with it when other prompts are in the batch.

    Args:
        decoder: the language model with its head.
        more: called when places are free, see :data:`More`; it reads the prompts with :func:`read`.
        rows: the most that are written at once.
        config: how answers are searched, one for which :func:`why_not` knows nothing.
        temperature: of sampling, by the rows' seeds; 0 is greedy search.
        top_p: nucleus of sampling.

    Yields:
        What came of each prompt. One whose scores are not numbers fails alone.
    """
    pool = _Pool(decoder, StockSteps(decoder, config), temperature, top_p)
    while True:
        yield from pool.fill(more, rows)
        if not pool.live:
            return
        yield from pool.step()


@dataclass
class _Row:
    """An answer on its way."""

    key: Hashable
    prompt: Sequence[int]
    stream: torch.Generator | None
    longest: int
    before: Sequence[LogitsProcessor]
    after: Sequence[LogitsProcessor]
    tokens: list[int] = field(default_factory=list)


class _Pool:
    """Answers on their way, each at a place of its own."""

    def __init__(self, decoder: Any, stock: StockSteps, temperature: float, top_p: float) -> None:
        self._branches = OpenBranches(decoder)
        self._stock = stock
        self._temperature, self._top_p = temperature, top_p
        self._rule: ScoreRule | None = None
        self._places: list[_Row | None] = []

    @property
    def live(self) -> list[int]:
        """The places that are taken."""
        return [place for place, row in enumerate(self._places) if row is not None]

    def fill(self, more: More, rows: int) -> Iterator[Written]:
        """Lets prompts join while there is room and there are any; draws the first token of each."""
        live = len(self.live)
        if live and rows - live < FREE * rows:
            return
        while True:
            joining = more(rows - len(self.live))
            if not joining:
                self._shrink()
                return
            for one in joining:
                yield from self._draw(self._join(one))

    def step(self) -> Iterator[Written]:
        """Continues every answer by a token."""
        live = self.live
        last = [0 if row is None else row.tokens[-1] for row in self._places]
        self._branches.step(torch.tensor(last))
        yield from self._draw(live)

    def _join(self, joining: Joining) -> list[int]:
        """Gives prompts their places: free ones first, then new ones."""
        free = [place for place, row in enumerate(self._places) if row is None]
        more = len(joining.keys) - len(free)
        places = [*free, *range(len(self._places), len(self._places) + more)][: len(joining.keys)]
        self._places += [None] * more
        self._branches.join(places, joining.read)
        self._rule = joining.rule
        seeds: Sequence[int | None] = joining.seeds or [None] * len(places)
        for place, key, prompt, seed in zip(places, joining.keys, joining.tokens, seeds, strict=True):
            own = self._stock.of(len(prompt))
            drawn = None if seed is None or not self._temperature else stream(seed)
            self._places[place] = _Row(key, prompt, drawn, own.longest, own.before, own.after)
        return places

    def _shrink(self) -> None:
        """Lets go of free places that nobody takes, once they are half of all."""
        live = self.live
        if live and len(live) * 2 <= len(self._places):
            self._branches.keep(torch.tensor(live))
            self._places = [self._places[place] for place in live]

    def _draw(self, places: Sequence[int]) -> Iterator[Written]:
        """Draws the next token of some rows; those that end with it leave."""
        rows = [row for place in places if (row := self._places[place]) is not None]
        scores, broken = self._scores(places, rows)
        drawn: list[list[int]] = torch.stack([scores.argmax(dim=-1), broken.long()]).tolist()
        left, written = [], []
        for place, row, token, failed in zip(places, rows, *drawn, strict=True):
            row.tokens.append(token)
            if failed or token in self._stock.ends or len(row.tokens) >= row.longest:
                left.append(place)
                error = NonFiniteScoresError(f"scores {OVERFLOW}") if failed else None
                written.append(Written(row.key, [] if failed else row.tokens, error))
                self._places[place] = None
        if left:
            self._branches.leave(left)
        yield from written

    def _scores(self, places: Sequence[int], rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
        """Scores of some rows' next tokens `(n, V)`, in the order of a step of ``generate``, and which are no numbers.

        Rows of the second kind get equal scores, from which a token can be drawn that nobody will see.
        """
        logits = self._branches.logits
        if len(places) < logits.shape[1]:
            logits = logits[:, torch.tensor(places, device=logits.device)]
        full = _by_row(logits[0].float(), rows, [row.before for row in rows])
        if self._rule is None:
            scores, broken = full, ~(full.amax(dim=-1) < torch.inf)
        else:
            steps = torch.tensor([[len(row.tokens)] for row in rows], device=full.device)
            scores = self._rule(full, logits[1], steps)
            broken = scores.amax(dim=-1).isnan()
        scores = _by_row(scores.masked_fill(broken[:, None], 0.0), rows, [row.after for row in rows])
        if self._temperature:
            streams = [row.stream for row in rows if row.stream is not None]
            scores = draw_scores(scores, streams, self._temperature, self._top_p)
        return scores, broken


def _by_row(scores: Tensor, rows: Sequence[_Row], processors: Sequence[Sequence[LogitsProcessor]]) -> Tensor:
    """What transformers' own processors make of the scores of each row, shown its own tokens."""
    if not any(processors):
        return scores
    done = []
    for number, (row, own) in enumerate(zip(rows, processors, strict=True)):
        ids, one = torch.tensor([[*row.prompt, *row.tokens]], device=scores.device), scores[number, None]
        for processor in own:
            one = processor(ids, one)
        done.append(one)
    return torch.cat(done)
