"""Which attention function a model uses, as one thread sees it.

Threads share a model's config, which names the function. So it is not the name that is changed for a run, but what one
thread reads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class _Here(threading.local):
    """The name in this thread, and the configs that answer with it."""

    name: str = ""
    configs: tuple[Any, ...] = ()


# A context variable would do, but torch.compile cannot read one.
_HERE = _Here()


class _AttentionName(property):
    """`config._attn_implementation`: what is stored there, or another name in a thread that is :func:`attending`."""


@contextmanager
def attending(name: str, configs: Sequence[Any]) -> Iterator[None]:
    """While open, models with these configs find another attention function named there, in this thread alone.

    Args:
        name: of a function that was given to `AttentionInterface.register`.
        configs: of the modules that look there.
    """
    for config in configs:
        _read_by_thread(config)
    before = _HERE.name, _HERE.configs
    try:
        _HERE.name, _HERE.configs = name, tuple(configs)
        yield
    finally:
        _HERE.name, _HERE.configs = before


def _read_by_thread(config: Any) -> None:
    """Lets configs of this class answer every thread by itself; what they answer outside of runs stays the same."""
    kind = type(config)
    stored: Any = kind._attn_implementation
    if isinstance(stored, _AttentionName):
        return

    def name(self: Any) -> Any:
        for config in _HERE.configs:
            if config is self:
                return _HERE.name
        return stored.fget(self)

    kind._attn_implementation = _AttentionName(name, stored.fset, stored.fdel, stored.__doc__)
