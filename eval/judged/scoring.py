"""How runs of judged benchmarks are scored: by files of a judge's replies."""

from __future__ import annotations

from dataclasses import dataclass

from damro.eval.benchmark import Note, Scoring
from damro.eval.judged.prompts import note_of
from damro.eval.judged.replies import Judgements


@dataclass(frozen=True)
class JudgedScoring(Scoring):
    """What a judge said of the answers.

    Attributes:
        judgements: files of the judge's replies, which damro score records with --judge.
    """

    judgements: tuple[str, ...] = ()


def notes_of(judgements: Judgements) -> list[Note]:
    """Return what a reader must know of who judged, and with what prompt."""
    judge = judgements.judge
    return [] if judge is None else [Note("judge", judge.name), note_of(judge.prompt)]
