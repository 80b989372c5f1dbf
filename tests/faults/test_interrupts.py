"""Ctrl-C at random moments of everything that sets hooks or switches: none stays, and the next call is as the first."""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import damro
from damro.inspection import inspect_decoder, inspect_vit
from damro.vision.features import patch_features
from tests.golden_cases import fresh_model, inputs_of
from tests.test_threads import find_outliers, state, write_fused, write_lazily

FAULTS, SLOW_FAULTS = 100, 600
"""Interrupts that the two tests try."""

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers that interrupt")


def vcd(model: Any, inputs: Any) -> Any:
    return damro.generate(model, inputs, "vcd", max_new_tokens=2, do_sample=False)


def pruned(model: Any, inputs: Any) -> Any:
    return damro.generate(model, inputs, "greedy", keep_tokens=4, max_new_tokens=2, do_sample=False)


def changed(model: Any, inputs: Any, method: str) -> Any:
    return damro.generate(model, inputs, method, max_new_tokens=2, do_sample=False)


WORKS: dict[str, Callable[[Any, Any], Any]] = {
    "fused": write_fused,
    "lazy": write_lazily,
    "outliers": find_outliers,
    "attention of the ViT": lambda model, inputs: inspect_vit(model, inputs).weights,
    "attention of the decoder": lambda model, inputs: inspect_decoder(model, inputs, torch.tensor([5, 6])).columns,
    "features": lambda model, inputs: patch_features(model, inputs).patches,
    "vcd": vcd,
    "pruned": pruned,
    "attention changed": lambda model, inputs: changed(model, inputs, "pai:from_layer=0"),
    "states changed, layers read": lambda model, inputs: changed(model, inputs, "vista"),
}


def hooks(model: Any) -> int:
    """How many hooks stand in the model's tables; a sum, so that thousands of looks take no time."""
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_pre_hooks_with_kwargs)
        for m in model.modules()
    )


def interrupted_after(seconds: float, work: Callable[[], Any]) -> bool:
    """Whether a Ctrl-C that comes so late comes before the work is done."""
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        work()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        torch.set_grad_enabled(True)  # one inside of torch's no_grad leaves gradients off for whoever is next
    return False


def interrupt(count: int, seed: int) -> None:
    model, inputs = fresh_model("llava"), inputs_of("llava_img0")
    expected = {name: work(model, inputs) for name, work in WORKS.items()}
    lasting = {}
    for name, work in WORKS.items():
        began = time.perf_counter()
        work(model, inputs)
        lasting[name] = time.perf_counter() - began
    before, standing = state(model), hooks(model)
    gc.freeze()  # what is there already need not be looked through every time
    random_of, done = random.Random(seed), 0
    ours = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        while done < count:
            name = random_of.choice(list(WORKS))
            done += interrupted_after(
                random_of.uniform(1e-5, lasting[name]), lambda name=name: WORKS[name](model, inputs)
            )
            if hooks(model) != standing:
                gc.collect()  # an exception holds its frames, and they hold a processor, until they are collected
            if hooks(model) != standing:
                write_lazily(model, inputs)  # what was interrupted while it removed itself goes with the next run
                assert hooks(model) == standing, f"a hook stays after interrupt {done}, in {name}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, ours)
        gc.unfreeze()
    assert state(model) == before
    for name, work in WORKS.items():
        assert torch.equal(work(model, inputs), expected[name]), name


def test_an_interrupt_leaves_no_hook() -> None:
    assert threading.current_thread() is threading.main_thread()  # signals come nowhere else
    interrupt(FAULTS, seed=1)


@pytest.mark.slow
def test_many_interrupts_leave_no_hook() -> None:
    interrupt(SLOW_FAULTS, seed=2)
