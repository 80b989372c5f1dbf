"""What every alpha and beta would change in one image's answers and caption, from kept logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from damro.diagnosis.asking import Answer
from damro.diagnosis.cached import choose_places
from damro.diagnosis.captioning import NamedObject
from damro.diagnosis.headroom import Array, Counts
from damro.diagnosis.settings import PROMPTS


def changed_answers(
    images: Sequence[Sequence[Answer]],
    alphas: Sequence[float],
    betas: Sequence[float],
    says_yes: Callable[[int], bool],
) -> Counts:
    """Which answers every contrast makes right and wrong. A question counts once a split that it stands in, as in POPE.

    Args:
        images: of each, the answers.
        alphas: A strengths.
        betas: B cutoffs.
        says_yes: how a first token is read.
    """
    counts = _nothing(len(images), alphas, betas)
    for image, answers in enumerate(images):
        for answer in answers:
            read = np.array([says_yes(int(token)) for token in answer.step.tokens])
            turned = read[choose_places(answer.step, alphas, betas)] != answer.says_yes
            right = answer.says_yes == answer.question.present
            for changed in (counts.worse, counts.lost) if right else (counts.better, counts.avoided):
                changed[image] += turned * answer.question.splits
            (counts.right if right else counts.wrong)[image] += answer.question.splits
    return counts


def changed_words(images: Sequence[Sequence[NamedObject]], alphas: Sequence[float], betas: Sequence[float]) -> Counts:
    """Which words every contrast would replace, each behind what greedy search wrote before it (teacher-forced).

    A word that gives way to one of the other kind is mended or spoilt. One that gives way to a word that names no
    object, which may be an adjective before the same noun, is avoided or lost, and neither mended nor spoilt.

    Args:
        images: of each, the objects that its caption names.
        alphas: A strengths.
        betas: B cutoffs.
    """
    counts = _nothing(len(images), alphas, betas)
    for image, words in enumerate(images):
        for word in words:
            kinds = word.kinds[choose_places(word.step, alphas, betas)]
            if word.hallucinated:
                counts.better[image] += kinds == 1
                counts.avoided[image] += kinds != -1
                counts.wrong[image] += 1
            else:
                counts.worse[image] += kinds == -1
                counts.lost[image] += kinds != 1
                counts.right[image] += 1
    return counts


def _nothing(images: int, alphas: Sequence[float], betas: Sequence[float]) -> Counts:
    def grid() -> Array:
        return np.zeros((images, len(PROMPTS), len(alphas), len(betas)))

    return Counts(grid(), grid(), grid(), grid(), np.zeros(images), np.zeros(images))
