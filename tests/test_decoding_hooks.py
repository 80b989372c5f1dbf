"""Hooks of one thread, hooks for the life of an object, and what is left of either after an interrupt."""

from __future__ import annotations

import contextlib
import copy
import dis
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from damro.decoding import hooks
from damro.decoding.hooks import hook_for_life, hooked


def tables(*modules: nn.Module) -> list[int]:
    """How many entries every table of hooks has."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    return [len(getattr(module, kind)) for module in modules for kind in kinds]


def interrupted(run: Callable[[], None], at: int, *files: str) -> bool:
    """Runs something with a KeyboardInterrupt in front of the `at`-th instruction of some files; False if none came.

    Instructions that do nothing are not counted: Python delivers no interrupt there.
    """
    left = at

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_code.co_code[frame.f_lasti] != dis.opmap["NOP"]:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_what_is_seen_before_and_after() -> None:
    layer = nn.Linear(2, 3)
    seen: list[Any] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((module, args, kwargs))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((module, args, output))

    given = torch.ones(1, 2)
    with hooked(before=[(layer, before)], after=[(layer, after)]):
        output = layer(input=given)
        assert tables(layer) == [1, 1, 1]
    layer(given)
    assert tables(layer) == [0, 0, 0]
    assert len(seen) == 2
    assert seen[0][0] is layer and seen[0][1] == () and seen[0][2]["input"] is given
    assert seen[1][0] is layer and seen[1][2] is output


def test_other_threads_are_not_seen_and_not_disturbed() -> None:
    layer = nn.Linear(2, 2)
    seen: list[int] = []
    with hooked(before=[(layer, lambda *_: seen.append(1))], after=[(layer, lambda *_: seen.append(2))]):
        other = threading.Thread(target=layer, args=(torch.ones(1, 2),))
        other.start()
        other.join()
        assert seen == []
        layer(torch.ones(1, 2))
    assert seen == [1, 2]


def test_a_hook_that_is_called_without_keywords_by_another_thread_is_silent() -> None:
    """As between the two steps of its removal, when a thread has already found it in the table."""
    layer = nn.Linear(2, 2)
    failed: list[Exception] = []

    def call(hook: Any) -> None:
        try:
            hook(layer, (torch.ones(1, 2),))
        except Exception as error:
            failed.append(error)

    with hooked(before=[(layer, lambda module, args, kwargs: None)]):
        (hook,) = layer._forward_pre_hooks.values()
        other = threading.Thread(target=call, args=(hook,))
        other.start()
        other.join()
    assert failed == []


def test_hooks_are_gone_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), hooked(before=[(layer, lambda *_: None)], after=[(layer, lambda *_: None)]):
        layer(torch.ones(1, 5))
    assert tables(layer) == [0, 0, 0]


def test_keys_never_meet_those_of_torch() -> None:
    """Threads that register at the same time get one number from torch; then one hook would replace the other."""
    layer = nn.Linear(2, 2)
    handle = layer.register_forward_hook(lambda *_: None)
    nothing = (layer, lambda *_: None)
    with hooked(after=[nothing, nothing]), hooked(after=[nothing]):
        keys = list(layer._forward_hooks)
    assert len(set(keys)) == 4 and [key >= 0 for key in keys] == [True, False, False, False]
    assert list(layer._forward_hooks) == [handle.id]


def test_an_interrupt_at_any_instruction_leaves_no_hook() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)

    def run() -> None:
        looks: Any = [(first, lambda *_: None), (second, lambda *_: None)]
        with hooked(before=looks, after=looks):
            second(first(torch.ones(1, 2)))

    assert hooks.__file__ and contextlib.__file__
    at = 1
    while interrupted(run, at, hooks.__file__, contextlib.__file__):
        assert tables(first, second) == [0] * 6, f"interrupt at instruction {at}"
        at += 1
    assert at > 100  # the loop has gone through the body of hooked, not past it


class Owner:
    """Counts what it is shown."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def look(self, args: tuple[Any, ...], kwargs: Any) -> None:
        self.seen.append((args, kwargs))


def test_a_hook_lives_as_long_as_its_owner() -> None:
    layer, owner, given = nn.Linear(2, 2), Owner(), torch.ones(1, 2)
    hook_for_life(owner, layer, Owner.look)
    other = threading.Thread(target=layer, args=(given,))
    other.start()
    other.join()
    layer(input=given)
    assert [(len(args), list(kwargs)) for args, kwargs in owner.seen] == [(1, []), (0, ["input"])]
    del owner
    assert tables(layer) == [0, 0, 0]


def test_a_hook_keeps_no_module_alive() -> None:
    layer, owner = nn.Linear(2, 2), Owner()
    hook_for_life(owner, layer, Owner.look)
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
    del owner  # with nothing left to remove it from


def test_copies_of_a_module_have_no_eyes() -> None:
    layer, owner = nn.Linear(2, 2), Owner()
    hook_for_life(owner, layer, Owner.look)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin(torch.ones(1, 2)), layer(torch.ones(1, 2)))
    assert len(owner.seen) == 2
