"""What the versions of transformers that this package works with do differently."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import GenerationMixin
from transformers import __version__ as installed

from damro.decoding.errors import UnsupportedModelError

_KEYWORDS = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters

CACHE = "cache" if "cache" in _KEYWORDS else "past_key_values"
"""The keyword of models and of ``generate`` for a cache: `cache` from transformers 5.24 on."""


def with_known_cache(call: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ``generate`` with the caller's own cache, if there is one, under the name that it is known by here.

    Of both names `cache` counts, as in ``generate``.

    Example:
        >>> with_known_cache({"past_key_values": 1}) == with_known_cache({"cache": 1}) == {CACHE: 1}
        True
    """
    names = ("cache", "past_key_values")
    caches = [call[name] for name in names if call.get(name) is not None]
    others = {key: value for key, value in call.items() if key not in names}
    return {**others, CACHE: caches[0]} if caches else others


def check_version(needed: str, what: str, why: str) -> None:
    """Checks that transformers is new enough for models that older ones get wrong.

    Args:
        needed: the first version that gets them right, such as "5.23".
        what: the models.
        why: what older versions do.

    Raises:
        UnsupportedModelError: naming both versions.
    """
    if older_than(needed):
        raise UnsupportedModelError(
            f"transformers must be {needed} or newer for {what}, as older ones {why}, got {installed}; "
            f"pip install 'transformers>={needed}'"
        )


def older_than(version: str) -> bool:
    """Whether the transformers at hand is older than a version such as "5.23"."""
    return _numbers(installed) < _numbers(version)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")[:2]]
