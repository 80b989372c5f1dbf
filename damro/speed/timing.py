"""How long decoding takes, by method: alternating runs in one process, medians."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import CompileConfig, LogitsProcessor, PreTrainedModel, StoppingCriteria

from damro.decoding.families import family_of
from damro.decoding.hooks import hooked
from damro.generation import generate

Call = Callable[..., Any]
"""Generates once; takes the keywords of ``generate``."""

Tell = Callable[[str, int, int], None]
"""Called with (what is being measured, steps done, of how many)."""

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _nobody(what: str, done: int, total: int) -> None:
    """Nobody is told."""


class Run(NamedTuple):
    """One call of ``generate``: seconds in all, seconds from the first token to the last, number of tokens."""

    whole: float
    decode: float
    tokens: int


@dataclass(frozen=True)
class Speed:
    """A method's medians.

    Attributes:
        whole: seconds a call: vision, prefill and all tokens.
        step: seconds a token, after the first.
        tokens_per_second: new tokens of all rows over the seconds of the call.
        vision_passes: runs of the vision tower a call.
        peak_bytes: memory a call needs beyond the model; None where it cannot be measured.
    """

    whole: float
    step: float
    tokens_per_second: float
    vision_passes: int
    peak_bytes: int | None


class Clock(StoppingCriteria):
    """Notes the time of every token; stops nothing.

    Attributes:
        times: seconds, as :func:`now` counts them.
    """

    def __init__(self, device: torch.device) -> None:
        self.times: list[float] = []
        self._device = device

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Notes the time of one step of all rows."""
        self.times.append(now(self._device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_call(call: Call, device: torch.device) -> Run:
    """Runs a call once."""
    clock = Clock(device)
    start = now(device)
    call(stopping_criteria=[clock])
    return Run(now(device) - start, clock.times[-1] - clock.times[0], len(clock.times))


def methods(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    naive: Callable[..., LogitsProcessor] | None,
    method: str = "damro",
    *,
    compiled: bool = False,
) -> dict[str, Call]:
    """The calls that are compared.

    "greedy" is stock ``generate``; "naive" the processor with a second pass at each token; "lazy" and "fused" are
    the strategies of :func:`damro.generate`. Random models of :mod:`damro.speed.shapes` have more than one plausible
    token at nearly every step, so "lazy" is at its worst; "lazy-idle" (alpha 0) is lazy where no step needs the second
    pass.

    Args:
        model: the LVLM.
        inputs: of all calls.
        naive: makes the naive processor from model and inputs; None leaves it out.
        method: of lazy and fused, with its parameters where the model has no preset.
        compiled: also "static-compiled", stock ``generate`` with a static cache and a compiled step, and
            "plain-compiled" and "fused-compiled", :func:`damro.generate` with a compiled step without and with a
            contrast.
    """
    idle = f"{method.partition(':')[0]}:{','.join([*_others(method), 'alpha=0'])}"
    stock: Any = model
    calls: dict[str, Call] = {"greedy": lambda **options: stock.generate(**inputs, **options)}
    if naive is not None:
        calls["naive"] = lambda **options: stock.generate(**inputs, logits_processor=[naive(model, inputs)], **options)
    calls["lazy"] = lambda **options: generate(model, inputs, method, strategy="lazy", **options)
    calls["lazy-idle"] = lambda **options: generate(model, inputs, idle, strategy="lazy", **options)
    calls["fused"] = lambda **options: generate(model, inputs, method, strategy="fused", **options)
    if compiled:
        everywhere: Any = CompileConfig()
        everywhere._compile_all_devices = True  # generate compiles on GPUs only, unless told
        static = {"cache_implementation": "static", "compile_config": everywhere}
        calls["static-compiled"] = lambda **options: stock.generate(**inputs, **static, **options)
        calls["plain-compiled"] = lambda **options: generate(model, inputs, "greedy", compile=True, **options)
        calls["fused-compiled"] = lambda **options: generate(model, inputs, method, compile=True, **options)
    return calls


def _others(method: str) -> list[str]:
    """The parameters in a method's text but alpha."""
    return [told for told in method.partition(":")[2].split(",") if told and not told.startswith("alpha=")]


def measure(
    model: PreTrainedModel, calls: Mapping[str, Call], *, new_tokens: int, repeats: int = 3, tell: Tell = _nobody
) -> Iterator[tuple[str, Speed]]:
    """Times calls in turn, so that whatever else the machine does strikes all of them alike.

    A first round, not counted, warms up and takes memory and vision passes.

    Args:
        model: the LVLM.
        calls: by name.
        new_tokens: of every call.
        repeats: counted rounds.
        tell: told before every call.

    Yields:
        A name and its figures, as soon as the last round has come by it.
    """
    device = model.device
    options: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False}
    bound = {name: _bind(call, options) for name, call in calls.items()}
    tower = family_of(model).vision_tower(model)
    costs = {}
    for place, (name, call) in enumerate(bound.items()):
        tell(f"{name}, first run", place, len(calls) * (repeats + 1))
        with counted(tower) as passes, peak_memory(device) as peak:
            rows = len(call())
        costs[name] = (rows, len(passes), peak[0] if peak else None)
    runs: dict[str, list[Run]] = {name: [] for name in calls}
    for number in range(1, repeats + 1):
        for place, (name, call) in enumerate(bound.items()):
            tell(f"{name}, run {number} of {repeats}", number * len(calls) + place, len(calls) * (repeats + 1))
            runs[name].append(time_call(call, device))
            if number == repeats:
                yield name, _summary(runs[name], *costs[name])


def _bind(call: Call, options: Mapping[str, Any]) -> Call:
    return lambda **more: call(**options, **more)


def _summary(runs: Sequence[Run], rows: int, vision_passes: int, peak_bytes: int | None) -> Speed:
    whole = statistics.median(run.whole for run in runs)
    step = statistics.median(run.decode / max(1, run.tokens - 1) for run in runs)
    return Speed(whole, step, rows * runs[0].tokens / whole, vision_passes, peak_bytes)


@contextmanager
def counted(module: nn.Module) -> Iterator[list[None]]:
    """While open, puts one entry into the list whenever the module runs in this thread."""
    entries: list[None] = []
    with hooked(after=[(module, lambda *_: entries.append(None))]):
        yield entries


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Yields a list that holds, afterwards, the most bytes in use above those in use before.

    On a GPU it is what torch allocated; on Linux the resident memory of the process. Elsewhere the list stays
    empty.
    """
    peak: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device) - before)
    elif sys.platform == "linux" and _CLEAR.exists():
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed shall not serve this one unseen
        _CLEAR.write_text("5")  # resets the peak, see proc(5)
        before = _resident("VmRSS")
        yield peak
        peak.append(_resident("VmHWM") - before)
    else:
        yield peak


def _resident(field: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{_STATUS} has no {field}")


def questions_per_second(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    method: str = "damro",
    *,
    new_tokens: int = 2,
    repeats: int = 3,
) -> dict[str, float]:
    """How fast questions about one image are answered: one by one, as a batch, with a shared prefix.

    Args:
        model: the LVLM.
        inputs: of all questions, the image once a question.
        method: what is compared with plain decoding.
        new_tokens: length of an answer; "yes" and the end.
        repeats: rounds of which the median is taken.
    """
    options: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False}
    asked = len(inputs["input_ids"])
    rows = [
        {key: value.chunk(asked)[row] for key, value in inputs.items()} for row in range(asked)
    ]  # one image a question
    ways: dict[str, Callable[[], Any]] = {
        "greedy, one by one": lambda: [generate(model, row, method="greedy", **options) for row in rows],
        "damro, one by one": lambda: [generate(model, row, method, **options) for row in rows],
        "damro, batch": lambda: generate(model, inputs, method, **options),
        "damro, shared prefix": lambda: generate(model, inputs, method, shared_prefix=True, **options),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, way in ways.items():
            start = now(model.device)
            way()
            if round_number:  # the first round warms up
                seconds[name].append(now(model.device) - start)
    return {name: len(rows) / statistics.median(taken) for name, taken in seconds.items()}


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that one token of the language model reads: all but a lookup in the embedding."""
    decoder: Any = family_of(model).decoder(model)
    read = {id(weight): weight for weight in decoder.get_decoder().parameters()}
    read.pop(id(decoder.get_input_embeddings().weight), None)
    head = decoder.get_output_embeddings().weight  # a tied one is read as the head
    read[id(head)] = head
    return sum(weight.numel() * weight.element_size() for weight in read.values())


def copy_bandwidth(device: torch.device, megabytes: int = 512, repeats: int = 5) -> float:
    """Bytes a second, read and written, in copying a large tensor; the best of some tries."""
    source = torch.ones(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(repeats):
        start = now(device)
        target.copy_(source)
        best = min(best, now(device) - start)
    return 2 * source.numel() * source.element_size() / best


def machine(device: torch.device) -> dict[str, Any]:
    """What figures depend on: hardware, threads, load of the last minute, versions, date."""
    cuda = device.type == "cuda"
    return {
        "device": str(device),
        "hardware": torch.cuda.get_device_name(device) if cuda else _processor_name(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _processor_name() -> str:
    """The processor's name on Linux, its kind elsewhere."""
    cores, info = os.cpu_count(), Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.exists() else []
    found = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), platform.machine())
    return f"{found}, {cores} cores"
