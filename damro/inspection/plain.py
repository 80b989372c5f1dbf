"""Dataclasses of tensors as plain values that ``json.dumps`` takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Plain:
    """Gives a dataclass of tensors a way to JSON."""

    def to_json(self) -> dict[str, Any]:
        """Field by field: tensors as nested lists, NaN and infinities as None."""
        plain: dict[str, Any] = jsonable(self)
        return plain


def jsonable(value: Any) -> Any:
    """Numbers, strings, lists and dicts for what a dataclass of tensors holds.

    JSON has neither NaN nor infinities; both become None.

    Raises:
        TypeError: if there is no plain form.

    Example:
        >>> import torch
        >>> jsonable({"a": torch.tensor([0.5, float("nan")]), "b": (1, "x")})
        {'a': [0.5, None], 'b': [1, 'x']}
    """
    if isinstance(value, Tensor):
        return jsonable(value.tolist())
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    raise TypeError(f"value must be made of tensors, numbers, strings, lists and dicts, got {type(value).__name__}")
