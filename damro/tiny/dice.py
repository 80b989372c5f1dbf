"""Random integers that are the same on every machine and under every numpy version.

Only the raw words of PCG64 are used: numpy promises those streams for ever, but not what ``Generator`` makes
of them. Everything downstream is integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

_BLOCK = 128


class Dice:
    """A stream of random integers, seeded by integers.

    Args:
        seeds: any number of integers >= 0; each tuple of seeds is a stream of its own.

    Example:
        >>> [Dice(0, 7).below(1000), Dice(0, 7).below(1000)] == [Dice(0, 7).below(1000)] * 2
        True
        >>> Dice(0, 7).below(1)
        0
    """

    def __init__(self, *seeds: int) -> None:
        """Seeds the stream."""
        self._bits = np.random.PCG64(np.random.SeedSequence(seeds))
        self._words: list[int] = []

    def below(self, bound: int) -> int:
        """A number from 0 to bound - 1. The modulo bias of a 64 bit word is of no account here."""
        if not self._words:
            self._words = [int(word) for word in self._bits.random_raw(_BLOCK)]
        return self._words.pop() % bound

    def between(self, low: int, high: int) -> int:
        """A number from low to high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in so many of a hundred cases."""
        return self.below(100) < percent

    def pick(self, weights: Sequence[int]) -> int:
        """An index, each as often as its weight says."""
        rest = self.below(sum(weights))
        for index, weight in enumerate(weights):
            rest -= weight
            if rest < 0:
                return index
        raise AssertionError("unreachable: rest is below the sum of the weights")

    def noise(self, shape: tuple[int, ...]) -> Bytes:
        """Random bytes of a shape."""
        count = int(np.prod(shape))
        words = self._bits.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].reshape(shape)
