"""How often a model's two halves are run: what a method costs, whatever machine it is on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from damro.decoding.families import family_of
from damro.decoding.hooks import hooked


@dataclass
class Passes:
    """Runs of a model.

    Attributes:
        rows: prompts and continuations that the language model was run over, summed over its runs; of an
            encoder-decoder, those of its decoder. Several tokens of a row that are fed at once count once.
        tower_rows: of each run of the vision tower, the rows of its batch.
    """

    rows: int = 0
    tower_rows: list[int] = field(default_factory=list)

    @property
    def looks(self) -> float:
        """Runs of the vision tower, each by its share of the rows of the first."""
        return sum(self.tower_rows) / self.tower_rows[0] if self.tower_rows else 0.0


@contextmanager
def counting(model: Any) -> Iterator[Passes]:
    """While open, counts the runs of a model's language model and vision tower in this thread.

    Args:
        model: a supported LVLM.

    Raises:
        UnsupportedModelError: the family is not known.
    """
    family: Any = family_of(model)
    passes = Passes()

    def count_language(module: Any, args: Any, kwargs: Any) -> None:
        passes.rows += _rows(args, kwargs)

    def count_vision(module: Any, args: Any, kwargs: Any) -> None:
        passes.tower_rows.append(_rows(args, kwargs))

    body, tower = family.decoder(model).get_decoder(), family.vision_tower(model)
    with hooked(before=[(body, count_language), (tower, count_vision)]):
        yield passes


def answer_lengths(answers: Tensor, ends: Sequence[int]) -> list[int]:
    """How many tokens each answer has, with the first that ends it; what stands behind that is padding.

    Args:
        answers: `(R, T)`, what was written behind the prompts.
        ends: the tokens that end an answer.

    Example:
        >>> answer_lengths(torch.tensor([[4, 5, 2, 2], [4, 2, 0, 0], [4, 5, 6, 7]]), [2, 9])
        [3, 2, 4]
    """
    ended = torch.isin(answers, torch.tensor(ends, dtype=answers.dtype, device=answers.device)).long()
    lengths: list[int] = (ended.cumsum(dim=-1) - ended == 0).sum(dim=-1).tolist()
    return lengths


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of what a module is given first."""
    named = [kwargs.get(name) for name in ("input_ids", "inputs_embeds", "pixel_values", "hidden_states")]
    given = [one for one in (*args, *named, *kwargs.values()) if isinstance(one, Tensor)]
    return len(given[0]) if given else 1
