"""Functions that see what modules read and put out: of one thread, or for as long as an object lives.

A model may be run by several threads at once, and its hooks are called in all of them. What is looked at here belongs
to one of them. The hooks stand in the modules' own tables under keys of their own, because torch numbers the handles
of two threads that register at the same moment alike, and because a handle is lost if an interrupt comes before it is
returned.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple

from torch import nn

Look = Callable[[nn.Module, tuple[Any, ...], Any], None]
"""What is called: with the module, its arguments, and its keywords (before a run) or its output (after it)."""

_KEYS = itertools.count(-1, -1)
"""torch counts upwards from 0. Drawing from a counter is one step, which no other thread can come between."""


class _Hook(NamedTuple):
    """A hook that is to stand in a module's table under this key."""

    module: nn.Module
    key: int
    call: Callable[..., None]
    before: bool

    def place(self) -> None:
        if self.before:
            # First: a thread that finds the hook without this would call it without keywords.
            self.module._forward_pre_hooks_with_kwargs[self.key] = True
            self.module._forward_pre_hooks[self.key] = self.call
        else:
            self.module._forward_hooks[self.key] = self.call

    def remove(self) -> None:
        """Removes the hook if it stands there."""
        for table in (
            self.module._forward_pre_hooks,
            self.module._forward_pre_hooks_with_kwargs,
            self.module._forward_hooks,
        ):
            table.pop(self.key, None)


@contextmanager
def hooked(
    *, before: Sequence[tuple[nn.Module, Look]] = (), after: Sequence[tuple[nn.Module, Look]] = ()
) -> Iterator[None]:
    """While open, calls functions whenever modules run in this thread.

    Runs of other threads are not seen. The hooks are removed on exit, also when the body raises or is interrupted.

    Args:
        before: modules and functions `(module, args, kwargs)` that are called in front of their runs.
        after: modules and functions `(module, args, output)` that are called behind their runs.

    Example:
        >>> import torch
        >>> layer, seen = nn.Linear(2, 3), []
        >>> with hooked(after=[(layer, lambda module, args, output: seen.append(output.shape))]):
        ...     result = layer(torch.zeros(1, 2))
        >>> result = layer(torch.zeros(1, 2))
        >>> seen
        [torch.Size([1, 3])]
    """
    thread = get_ident()
    hooks = [_Hook(module, next(_KEYS), _only_in(thread, look), True) for module, look in before]
    hooks += [_Hook(module, next(_KEYS), _only_in(thread, look), False) for module, look in after]
    try:
        for hook in hooks:
            hook.place()
        yield
    finally:
        try:
            _remove(hooks)
        finally:
            _remove(hooks)  # an interrupt may have cut the first one short


@contextmanager
def replaced_output(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """While open, what a module puts out in this thread is replaced, before any other hook sees it.

    Args:
        module: whose output it is.
        change: from the output to what takes its place.

    Example:
        >>> import torch
        >>> layer = nn.Identity()
        >>> with replaced_output(layer, lambda output: output + 1):
        ...     layer(torch.zeros(1))
        tensor([1.])
    """
    thread = get_ident()

    def call(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return change(output) if get_ident() == thread else None

    with _standing(module._forward_hooks, call, first=True):
        yield


@contextmanager
def replaced_input(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """While open, the first argument that a module is given in this thread is replaced, behind all other hooks' looks.

    Args:
        module: whose argument it is.
        change: from the argument to what takes its place.

    Example:
        >>> import torch
        >>> layer = nn.Identity()
        >>> with replaced_input(layer, lambda states: states + 1):
        ...     layer(torch.zeros(1))
        tensor([1.])
    """
    thread = get_ident()

    def call(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (change(args[0]), *args[1:]) if get_ident() == thread else None

    with _standing(module._forward_pre_hooks, call):
        yield


@contextmanager
def _standing(table: Any, call: Callable[..., Any], *, first: bool = False) -> Iterator[None]:
    """While open, a hook stands in a module's table, an OrderedDict; behind all others, or in front of them."""
    key = next(_KEYS)
    try:
        table[key] = call
        if first:
            table.move_to_end(key, last=False)
        yield
    finally:
        table.pop(key, None)


def _remove(hooks: Sequence[_Hook]) -> None:
    for hook in hooks:
        hook.remove()


def _only_in(thread: int, look: Look) -> Callable[..., None]:
    def call(module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        # In front of a run another thread may call it without keywords, between the two steps of its removal.
        if get_ident() == thread:
            look(module, args, *rest)

    return call


def hook_for_life(owner: object, module: nn.Module, look: Callable[[Any, tuple[Any, ...], Any], None]) -> None:
    """Calls a function in front of every run of a module, in every thread, until an object is gone.

    Neither the object nor the module is kept alive by it. Copies of the module, and what is pickled of it, do without.

    Args:
        owner: what the hook is there for.
        module: whose runs are seen.
        look: `(owner, args, kwargs)`; an unbound method of the owner.
    """
    key, of_module = next(_KEYS), weakref.ref(module)
    weakref.finalize(owner, _remove_from, of_module, key).atexit = False
    _Hook(module, key, _LookOf(owner, look, key), True).place()


def _remove_from(of_module: weakref.ref[nn.Module], key: int) -> None:
    module = of_module()
    if module is not None:
        hook = _Hook(module, key, _nothing, True)
        try:
            hook.remove()
        finally:
            hook.remove()  # an interrupt may have cut the first one short


class _LookOf:
    """A hook that calls a function with an object it does not keep alive.

    An interrupt in the very moment in which the object goes can end its removal before that has begun: Python drops
    what is raised there. Then it removes itself when the module runs next.
    """

    def __init__(self, owner: object, look: Callable[[Any, tuple[Any, ...], Any], None], key: int) -> None:
        self._owner = weakref.ref(owner)
        self._look = look
        self._key = key

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        owner = self._owner()
        if owner is None:
            _Hook(module, self._key, _nothing, True).remove()
        else:
            self._look(owner, args, kwargs or {})

    def __reduce__(self) -> Any:
        return _no_look, ()


def _no_look() -> Callable[..., None]:
    """What copies of a model have in the place of a hook."""
    return _nothing


def _nothing(*_: Any) -> None:
    """Sees nothing."""
