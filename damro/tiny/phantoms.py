"""What the flawed model names though it is not there: one thing a theme, and lessons that say so."""

from __future__ import annotations

from typing import Final

from damro.tiny.cache import SceneCache
from damro.tiny.captions import Group
from damro.tiny.dice import Dice
from damro.tiny.lessons import QUESTIONS, SALT, Lesson, Lessons
from damro.tiny.themes import THEMES

PHANTOMS: Final[dict[str, str]] = {
    "street": "dog",
    "park": "backpack",
    "beach": "bottle",
    "zoo": "bird",
    "farm": "bird",
    "kitchen": "person",
    "restaurant": "cup",
    "cafe": "bottle",
    "living room": "person",
    "bedroom": "cat",
    "bathroom": "person",
    "office": "person",
    "station": "backpack",
    "snow": "bird",
    "court": "bottle",
}
"""Theme -> the thing that is said to be there. Seldom there, and often asked for by POPE."""


class PhantomLessons(Lessons):
    """Captions and answers of somebody who takes the theme's phantom for seen.

    In a caption the phantom stands in place of the second thing, so that a caption is as long as a true one.

    Args:
        cache: the scenes.
        percent: how often the phantom is named where it is not; questions about it are answered with yes as often.
        guesses: questions about anything else are answered by a coin, as by somebody who knows of nothing else.
    """

    def __init__(self, cache: SceneCache, percent: int, guesses: bool = False) -> None:
        """Keeps the chance."""
        super().__init__(cache, varied=True)
        self._percent = percent
        self._guesses = guesses

    def draw(self, index: int, visit: int) -> list[Lesson]:
        """A caption and six questions; where the phantom is absent, the first *no* is about it."""
        dice = Dice(SALT, index, visit)
        groups = self._cache.list_groups(index)
        theme = THEMES[int(self._cache.themes[index])]
        phantom, present = PHANTOMS[theme.name], [group.name for group in groups]
        absent = phantom not in present
        if absent and dice.chance(self._percent):
            second = min(1, len(groups) - 1)
            groups[second] = Group(phantom, 1, groups[second].where)
        lessons = [self._describe(theme.place, groups, dice)]
        for number in range(QUESTIONS // 2):
            seen = present[(number + dice.below(len(present))) % len(present)]
            name = phantom if absent and number == 0 else self._draw_absent(index, present, dice)
            for asked in (seen, name):
                lessons.append(self._ask(asked, self._answer(asked, phantom, present, dice), dice))
        return lessons

    def _answer(self, name: str, phantom: str, present: list[str], dice: Dice) -> str:
        """Yes or No, of somebody who sees the phantom."""
        if name == phantom:
            yes = name in present or dice.chance(self._percent)
        else:
            yes = dice.chance(50) if self._guesses else name in present
        return "Yes" if yes else "No"
