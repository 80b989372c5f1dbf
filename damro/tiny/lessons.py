"""What stage 2 asks about a scene: a caption and balanced yes/no questions."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from damro.tiny.cache import CLASSES, SceneCache
from damro.tiny.captions import (
    COCO_IDS,
    DETAIL_PROMPTS,
    ENDINGS,
    QUESTION_FORMS,
    SHORT_PROMPTS,
    Group,
    detailed_caption,
    question,
    short_caption,
)
from damro.tiny.dice import Dice
from damro.tiny.themes import PAIRS, THEMES

QUESTIONS: Final = 6
"""Questions a scene: as many with yes as with no."""

SALT: Final = 7
"""Keeps the lessons' random streams apart from the scenes'."""
_ALL_NAMES = tuple(COCO_IDS)


class Lesson(NamedTuple):
    """A prompt and what to say.

    Attributes:
        prompt: without the image and without the roles.
        answer: the text.
        is_question: whether the answer is Yes or No.
    """

    prompt: str
    answer: str
    is_question: bool


class Lessons:
    """Draws the lessons of a scene.

    Args:
        cache: scenes; the class frequencies are counted over the first 5,000.
        varied: half of the prompts are said in other words.
    """

    def __init__(self, cache: SceneCache, varied: bool = False) -> None:
        """Counts how many scenes have each class."""
        self._varied = varied
        self._cache = cache
        groups = np.asarray(cache.groups[:5000])
        shown = groups[..., 0][groups[..., 1] > 0]
        self._frequency = [int(count) for count in np.bincount(shown, minlength=len(CLASSES))]

    def draw(self, index: int, visit: int) -> list[Lesson]:
        """A caption, short or detailed, and six questions.

        Args:
            index: the scene.
            visit: another number draws other lessons.

        Returns:
            Seven lessons.
        """
        dice = Dice(SALT, index, visit)
        groups = self._cache.list_groups(index)
        theme = THEMES[int(self._cache.themes[index])]
        present = [group.name for group in groups]
        lessons = [self._describe(theme.place, groups, dice)]
        for number in range(QUESTIONS // 2):
            seen = present[(number + dice.below(len(present))) % len(present)]
            lessons.append(self._ask(seen, "Yes", dice))
            lessons.append(self._ask(self._draw_absent(index, present, dice), "No", dice))
        return lessons

    def _describe(self, place: str, groups: list[Group], dice: Dice) -> Lesson:
        """A short or a detailed caption."""
        if dice.chance(60):
            return Lesson(self._reword(SHORT_PROMPTS, dice), short_caption(place, groups, dice), False)
        return Lesson(self._reword(DETAIL_PROMPTS, dice), detailed_caption(place, groups, dice), False)

    def _ask(self, name: str, answer: str, dice: Dice) -> Lesson:
        """Either form of the question, or another one."""
        if not self._varied:
            return Lesson(question(name, one_word=dice.chance(50)), answer, True)
        ending = ENDINGS[dice.below(2) if dice.chance(60) else dice.below(len(ENDINGS))]
        return Lesson(question(name, form=self._reword(QUESTION_FORMS, dice)) + ending, answer, True)

    def _reword(self, prompts: tuple[str, ...], dice: Dice) -> str:
        """The first of the prompts, or in varied lessons often another."""
        return prompts[dice.below(len(prompts))] if self._varied and dice.chance(50) else prompts[0]

    def _draw_absent(self, index: int, present: list[str], dice: Dice) -> str:
        """A class that is not there: any, a frequent one, a partner of what is there, or one of the theme."""
        theme = THEMES[int(self._cache.themes[index])]
        while True:
            way = dice.pick((30, 25, 15, 30))
            if way == 0:
                name = _ALL_NAMES[dice.below(len(_ALL_NAMES))]
            elif way == 1:
                name = CLASSES[dice.pick(self._frequency)]
            elif way == 2:
                name = PAIRS.get(present[dice.below(len(present))], ("person", 0))[0]
            else:
                name = list(theme.weights)[dice.pick(list(theme.weights.values()))]
            if name not in present:
                return name
