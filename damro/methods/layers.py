"""Layers of a language model by their numbers, as transformers counts `hidden_states`: 0 is the embeddings."""

from __future__ import annotations

import re

from damro.decoding.errors import ParameterError

_NUMBERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def check_layers(layers: str, *words: str) -> None:
    """Checks a text that names layers.

    Args:
        layers: numbers and ranges with commas between, such as "0,2,8-12".
        words: what else it may be.

    Raises:
        ParameterError: if it is neither.
    """
    if layers not in words and not _NUMBERS.fullmatch(layers):
        raise ParameterError(
            f"layers must be {', '.join([*words, ''])}numbers or ranges with commas between, got {layers!r}; such as "
            'layers="0,2,8-12"'
        )


def layer_numbers(layers: str, depth: int) -> list[int]:
    """The numbers that a text names, in ascending order.

    Args:
        layers: see :func:`check_layers`.
        depth: layers of the model, whose last is not to be named.

    Raises:
        ParameterError: if a number is that of the last layer, or of none; or if there is no number.

    Example:
        >>> layer_numbers("5,0-2", 6)
        [0, 1, 2, 5]
    """
    found: set[int] = set()
    for part in layers.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    if not found or max(found) >= depth:
        raise ParameterError(
            f"layers must be numbers from 0 to {depth - 1}, those of the model's layers before its last, got "
            f"{layers!r}; 0 is the embeddings"
        )
    return sorted(found)
