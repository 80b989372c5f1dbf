"""Can DAMRO help: a verdict that follows from intervals by a rule that is written down.

A task, yes/no questions or captions, gives claims, each a number that must be above zero if DAMRO is to help there. A
claim *holds* if the 95 % interval of its number lies above zero, *fails* if the interval lies below the least value
that would matter, and is *open* otherwise, or where its number rests on fewer than `FEWEST` images. On a task DAMRO

- may help if all claims hold,
- is not to be expected to if one fails,
- and else it cannot be told.

Of the whole model it is *likely to help* if it may on one task, there is *no reason to expect it* if it is not to be
expected to on any task, and else it *cannot be told from so few images*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from damro.diagnosis.headroom import HeadRoom
from damro.diagnosis.knowledge import METHOD, CaptionKnowledge, QuestionKnowledge
from damro.diagnosis.settings import CONTROLS
from damro.eval.statistics import Interval

Verdict = Literal["likely to help", "no reason to expect it", "cannot be told from so few images"]
LIKELY: Verdict = "likely to help"
NO_REASON: Verdict = "no reason to expect it"
CANNOT_TELL: Verdict = "cannot be told from so few images"

FEWEST = 20
"""Images that a number must rest on to settle a claim."""
LEAST_RATE = 0.01
"""Of hallucinations: one in a hundred."""
LEAST_AUC = 0.05
"""Of a difference between two AUCs, or of one and a half. Of normal distributions a fifth of a deviation apart it is
.056."""
LEAST_CHANGE = 0.01
"""Of answers or words that a contrast mends: one in a hundred."""


class Claim(NamedTuple):
    """A number that must be above zero.

    Attributes:
        text: what the number is.
        value: it, with its interval; None where it is not defined.
        least: the least value that would matter.
        images: how many images it rests on.
    """

    text: str
    value: Interval | None
    least: float
    images: int

    @property
    def holds(self) -> bool | None:
        """Whether it does; None if it is open.

        Example:
            >>> above, below = Interval(0.1, 0.05, 0.2, 0.95, 2000), Interval(0.0, -0.1, 0.01, 0.95, 2000)
            >>> [Claim("", value, 0.02, images).holds for value, images in ((above, 20), (below, 20), (above, 19))]
            [True, False, None]
        """
        if self.value is None or self.value.ends is None or self.images < FEWEST:
            return None
        if self.value.low > 0:
            return True
        return False if self.value.high < self.least else None


class Judgement(NamedTuple):
    """A verdict and what it follows from.

    Attributes:
        verdict: of the whole model.
        tasks: by task, whether DAMRO may help there; None where it cannot be told.
        claims: by task, the claims.
    """

    verdict: Verdict
    tasks: Mapping[str, bool | None]
    claims: Mapping[str, Sequence[Claim]]


def judge(claims: Mapping[str, Sequence[Claim]]) -> Judgement:
    """The verdict.

    Args:
        claims: by task; a task that could not be measured is left out.

    Example:
        >>> above = Claim("", Interval(0.1, 0.05, 0.2, 0.95, 2000), 0.02, 100)
        >>> none = Claim("", Interval(0.0, -0.01, 0.01, 0.95, 2000), 0.02, 100)
        >>> judge({"questions": [above, none], "captions": [above]}).verdict
        'likely to help'
        >>> judge({"questions": [above, none]}).verdict
        'no reason to expect it'
        >>> judge({}).verdict
        'cannot be told from so few images'
    """
    tasks = {name: _all(claim.holds for claim in of_task) for name, of_task in claims.items()}
    verdict = CANNOT_TELL
    if any(may is True for may in tasks.values()):
        verdict = LIKELY
    elif tasks and all(may is False for may in tasks.values()):
        verdict = NO_REASON
    return Judgement(verdict, tasks, claims)


def _all(parts: object) -> bool | None:
    """Whether all hold: False if one fails, None if one is open."""
    found = list(parts)  # type: ignore[call-overload]
    if False in found:
        return False
    return None if None in found or not found else True


def question_claims(known: QuestionKnowledge, room: HeadRoom, images: int) -> list[Claim]:
    """What must be so if DAMRO is to help with yes/no questions.

    Args:
        known: what the second prompts know.
        room: what a contrast changes.
        images: how many were asked about.
    """
    return [
        Claim("share of absent objects that the model says are there", known.rate, LEAST_RATE, images),
        Claim(
            "AUC of hallucinated objects less that of present ones, under the outlier-only prompt",
            known.difference[METHOD],
            LEAST_AUC,
            known.hallucinating_images,
        ),
        *_above(known.above_controls, "AUC of hallucinated objects", known.hallucinating_images),
        Claim(
            "change of accuracy with the best contrast, on images held out",
            room.best[METHOD].change,
            LEAST_CHANGE,
            room.held_out,
        ),
    ]


def caption_claims(known: CaptionKnowledge, room: HeadRoom, images: int) -> list[Claim]:
    """What must be so if DAMRO is to help with captions.

    Args:
        known: what the second prompts know.
        room: what a contrast changes.
        images: how many were captioned.
    """
    return [
        Claim("share of the objects named that are not there", known.rate, LEAST_RATE, images),
        Claim(
            "AUC of hallucinated words over true ones under the outlier-only prompt, less a half",
            known.above_chance[METHOD],
            LEAST_AUC,
            known.hallucinating_images,
        ),
        *_above(known.above_controls, "AUC of hallucinated words", known.hallucinating_images),
        Claim(
            "hallucinated words avoided less true words lost with the best contrast, on images held out",
            room.best[METHOD].change,
            LEAST_CHANGE,
            room.held_out,
        ),
    ]


def _above(differences: Mapping[str, Interval | None], what: str, images: int) -> list[Claim]:
    return [
        Claim(f"{what} under the outlier-only prompt, less that under {name}", differences[name], LEAST_AUC, images)
        for name in CONTROLS
    ]
