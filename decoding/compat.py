"""What the versions of transformers that this package works with do differently."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import GenerationMixin

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


def too_old(what: str, needed: str, why: str) -> UnsupportedModelError:
    """The error for what an older transformers gets wrong.

    Args:
        what: the models in question.
        needed: the first version that gets it right.
        why: what older ones do.
    """
    return UnsupportedModelError(
        f"transformers must be {needed} or newer for {what}, as older ones {why}, got {transformers.__version__}; "
        f"pip install 'transformers>={needed}'"
    )
