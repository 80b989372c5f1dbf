"""OPERA: beam search that mistrusts tokens which everything after them looks at, and goes back behind them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from damro.methods.base import Cost, Method, Scene
from damro.parameters import Range

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.hypotheses import Chosen, Hypotheses, Hypothesis
    from damro.decoding.search import Beams, Frame, Search

_FIRST = 10
"""So many tokens are chosen by how much they look at the image; behind them none is gone back to."""
_SMALL = 1e-7
_REJECTED = -999.0

Beam = Annotated[int, Range(2, hint="5 is what OPERA was released with")]
Scale = Annotated[float, Range(0, above=True, hint="50 is what OPERA was released with")]
Threshold = Annotated[int, Range(2, hint="15 is what OPERA was released with; more goes back less often")]
Candidates = Annotated[int, Range(1, hint="5 is what OPERA was released with")]
Weight = Annotated[float, Range(0, hint="1 is what OPERA was released with, 0 leaves the going back alone")]


@dataclass(frozen=True)
class OPERA(Method):
    """Beam search with a penalty on over-trust, and retrospection (OPERA, CVPR 2024, eq. 3 to 9).

    Of every beam the best tokens are tried out. Let `w_ij` be how much token i of the answer looks at token j in the
    last layer: the largest weight over the heads, as a share of what it looks at altogether. A candidate's logit is
    lowered by `max_j 1e-7 prod_{i >= j} scale w_ij`, which grows where all tokens behind j look at j; that of the
    first ten tokens is raised by the candidate's share of attention on the image. Other tokens get -999. Where every
    beam has found the same j at more than `threshold` steps, the search goes back to the token behind j and rejects
    what it chose there.

    Defaults are those of the released code. It decodes one prompt at a time; so does this, and a batch is searched
    prompt by prompt. Image columns are those of the prompt (the released range for InstructBLIP begins at the second
    and ends one behind the last), and a penalty that a beam's candidates share is taken off, which changes nothing
    unless it is as large as -999: there the released code writes arbitrary tokens. Scores are divided by the length of
    the answer, and by that of its prompt too in the released code for LLaVA. The released tables end at 512 tokens.

    Attributes:
        num_beams: continuations that are followed side by side.
        scale_factor: of attention in the products.
        threshold: at how many steps the same token must have been found to be gone back to.
        num_attn_candidates: best tokens of a beam that are tried out, and how often one place is gone back to.
        penalty_weights: of the penalty.
    """

    name: ClassVar = "opera"
    source: ClassVar = "OPERA, CVPR 2024, arXiv 2311.17911, eq. 3 to 9; opera_beam_search of the released code"
    cost: ClassVar = Cost(passes=29, memory="keys and values of 5 beams")  # each by itself and with 5 candidates
    limits: ClassVar = (
        "encoder-decoders",
        "language models that keep states",
        "attention that cannot be exchanged by name",
        "positions that depend on the length read",
        "sampling",
        "scores, attention or drafts of generate",
        "a logits processor",
        "answers read from logits",
    )
    code: ClassVar = "github.com/shikiw/OPERA"
    searches: ClassVar = True

    num_beams: Beam = 5
    scale_factor: Scale = 50.0
    threshold: Threshold = 15
    num_attn_candidates: Candidates = 5
    penalty_weights: Weight = 1.0

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Search:
        """The full prompt, and this search."""
        from damro.decoding.search import Search

        return Search(scene.full_prompt(model, inputs, scene.look(model, inputs)), self)

    def search(self, beams: Beams, frame: Frame) -> list[Hypothesis]:
        """See :class:`damro.decoding.search.Searching`."""
        return _Run(self, beams, frame).answers()


class _Moment(NamedTuple):
    """The search in front of a choice: what it goes back to.

    Attributes:
        tokens: `(beams, t)`.
        scores: `(beams,)`, sums of log-probabilities.
        trust: `(beams, t)`, `sum_{i >= j} log(scale w_ij)` of the tokens so far.
        hypotheses: answers that have ended.
        chosen: what led here; None in front of the first choice.
    """

    tokens: Tensor
    scores: Tensor
    trust: Tensor
    hypotheses: Hypotheses
    chosen: Chosen | None


class _Tried(NamedTuple):
    """Candidates `(beams, C)`: their numbers, their penalised logits, and the tokens with the largest products."""

    tokens: Tensor
    logits: Tensor
    places: Tensor


@dataclass
class _Run:
    """The search behind one prompt.

    Attributes:
        method: its parameters.
        beams: the model's continuations.
        frame: what ``generate`` says.
        past: the moments so far, one a token.
        found: for each of them `(beams,)`, the token that was looked at most.
        returned: how often each place was gone back to.
        rejected: by place, the choices that were made there, as numbers in `(beams, V)`.
    """

    method: OPERA
    beams: Beams
    frame: Frame
    past: list[_Moment] = field(default_factory=list)
    found: list[Tensor] = field(default_factory=list)
    returned: Counter[int] = field(default_factory=Counter)
    rejected: dict[int, Tensor] = field(default_factory=dict)

    def answers(self) -> list[Hypothesis]:
        """Runs the search."""
        now = self._first()
        while True:
            self.past.append(now)
            tried = self._try_out(now)
            self.found.append(tried.places.mode().values)
            place = self._place_to_return_to(tried.places)
            if place is None:
                logits = self.beams.logits.new_full(self.beams.logits.shape, _REJECTED)
                logits = logits.scatter(-1, tried.tokens, tried.logits)
            else:
                now, logits = self._return_to(place)
            scores = self.frame.process(now.tokens, logits.log_softmax(dim=-1))
            totals = scores + now.scores[:, None]
            hypotheses = now.hypotheses.copy()
            chosen = hypotheses.advance(now.tokens, totals, self.frame.ends)
            tokens = self._cat(now.tokens[chosen.rows], chosen.tokens[:, None])
            done = hypotheses.done(float(totals.max()), tokens.shape[1])
            if done or self.frame.ended(tokens):
                break
            now = self._go_on(now, chosen, tokens, hypotheses)
        if not done:
            for total, row in zip(chosen.scores.tolist(), tokens.tolist(), strict=True):
                hypotheses.add(total, row)
        return hypotheses.best(self.frame.wanted)

    def _first(self) -> _Moment:
        """The search in front of its first token, of which one beam counts, as all are alike."""
        from damro.decoding.hypotheses import Hypotheses

        count, frame = self.method.num_beams, self.frame
        scores = self.beams.logits.new_zeros(count)
        scores[1:] = -1e9
        none = self.beams.logits.new_zeros(count, 0)
        ended = Hypotheses(count, frame.length_penalty, frame.early_stopping, frame.room)
        return _Moment(none.long(), scores, none.double(), ended, None)

    def _go_on(self, now: _Moment, chosen: Chosen, tokens: Tensor, hypotheses: Hypotheses) -> _Moment:
        """Feeds what was chosen."""
        self.beams.keep(chosen.rows)
        trust = self._trusting(now.trust[chosen.rows], self.beams.feed(chosen.tokens))
        return _Moment(tokens, chosen.scores, trust, hypotheses, chosen)

    def _trusting(self, trust: Tensor, weights: Tensor) -> Tensor:
        """`(R, t + 1)`: the sums of logarithms, `(R, t)`, with one more token, that looks with `(R, L + t + 1)`."""
        shares = weights.double() / weights.double().sum(dim=-1, keepdim=True)
        own = (self.method.scale_factor * shares[:, len(self.beams.image) :]).log()
        return self._cat(trust, trust.new_zeros(len(trust), 1)) + own

    def _try_out(self, now: _Moment) -> _Tried:
        """Looks where the best tokens of every beam would look, and lowers their logits by that."""
        import torch

        logits, tokens = self.beams.logits.topk(self.method.num_attn_candidates)
        weights = [self.beams.peek(column) for column in tokens.unbind(dim=-1)]
        trust = torch.stack([self._trusting(now.trust, one) for one in weights], dim=1)
        # In half precision, as released, where most products are 0 and the first of them is then the largest.
        penalties, places = (trust + math.log(_SMALL)).exp().half().max(dim=-1)
        if trust.shape[-1] <= _FIRST:
            image = self.beams.image.to(weights[0].device)
            seen = torch.stack(weights, dim=1)
            penalty = -seen[..., : len(image)][..., image].sum(dim=-1) / seen.sum(dim=-1)
        else:
            penalty = penalties.float().clamp(max=torch.finfo(torch.half).max)
            penalty = penalty - penalty.amin(dim=-1, keepdim=True)
        return _Tried(tokens, logits - self.method.penalty_weights * penalty, places)

    def _place_to_return_to(self, places: Tensor) -> int | None:
        """Which token to choose again, counted from 0; None to go on."""
        import torch

        token = int(places.mode().values.mode().values)
        often = (torch.stack(self.found, dim=-1) == token).sum(dim=-1) > self.method.threshold
        if token < _FIRST or not bool(often.all()):
            return None
        for place in (token + 1, token):
            if self.returned[place] < self.method.num_attn_candidates:
                self.returned[place] += 1
                return place
        return None

    def _return_to(self, place: int) -> tuple[_Moment, Tensor]:
        """The moment in front of a token, and logits without what was chosen there before."""
        before, after = self.past[place : place + 2]
        del self.past[place + 1 :], self.found[place + 1 :]
        self.rejected.pop(place + 1, None)
        self.beams.rewind(before.tokens)
        logits = self.beams.logits
        lowest = logits.amin(dim=-1, keepdim=True)
        logits = (logits - lowest + _REJECTED).flatten()
        assert after.chosen is not None  # it stands behind the first choice
        wrong = after.chosen.rows * (len(logits) // len(lowest)) + after.chosen.tokens
        if place in self.rejected:
            wrong = self._cat(self.rejected[place], wrong)
        self.rejected[place] = wrong
        logits[wrong] = _REJECTED
        return before, logits.view(len(lowest), -1)

    def _cat(self, *tensors: Tensor) -> Tensor:
        import torch

        return torch.cat(tensors, dim=-1)
