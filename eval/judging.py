"""What single answers are worth, for reports that show them one by one."""

from __future__ import annotations

from typing import NamedTuple


class Judged(NamedTuple):
    """What one answer is worth.

    Attributes:
        worth: More is better: 1 for a right answer and 0 for a wrong one, or less for every hallucinated word.
        truth: What is right, in words.
        spans: Start and end of the hallucinated words in the answer.
        objects: The objects that the answer has and the image has not, a name each time.
        read: How the answer was read, such as "no"; empty where it is not read as one of a few.
    """

    worth: float
    truth: str
    spans: tuple[tuple[int, int], ...] = ()
    objects: tuple[str, ...] = ()
    read: str = ""
