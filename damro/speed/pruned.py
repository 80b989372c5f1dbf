"""What pruning saves: time to the first token, whole call, KV and memory, plain and with DAMRO."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.families import family_of
from damro.decoding.hooks import hooked
from damro.decoding.inside import prompts_of
from damro.decoding.prompts import VisualPrompt, embedded
from damro.generation import generate
from damro.methods import Scene, as_recipe
from damro.pruning import Pruning
from damro.speed.timing import Call, Clock, now, peak_memory

Way = Literal["plain", "damro"]
_METHODS: dict[Way, str] = {"plain": "greedy", "damro": "damro"}


@dataclass(frozen=True)
class PrunedSpeed:
    """What one way to decode costs at one number of image tokens: medians of seconds, and bytes.

    Attributes:
        method: "plain" for no contrast, "damro" for both branches as rows of one batch.
        compiled: whether steps ran as a compiled graph.
        kept: image tokens of an image in the prompt that sees it; None for all. DAMRO's negative prompt is the same
            at every number.
        prefill: seconds from the call to the first token: vision tower, projector, choice of tokens, and the reading
            of the prompts by the language model.
        language: seconds of `prefill` in which the language model's layers ran, for DAMRO over both prompts.
        whole: seconds of the whole call.
        kv_bytes: see :func:`kv_bytes`.
        peak_bytes: memory the call needs beyond the model; None where it cannot be measured.
    """

    method: Way
    compiled: bool
    kept: int | None
    prefill: float
    language: float
    whole: float
    kv_bytes: int
    peak_bytes: int | None


class _Seconds(NamedTuple):
    """Of one call; see :class:`PrunedSpeed`."""

    prefill: float
    language: float
    whole: float


def measure_pruning(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    keep_tokens: Sequence[int],
    *,
    new_tokens: int,
    repeats: int = 3,
    compiled: bool = False,
) -> list[PrunedSpeed]:
    """Times plain decoding and DAMRO with all image tokens and with fewer.

    Plain decoding with all of them is stock ``generate``; the rest is :func:`damro.generate`. Calls alternate, so
    that whatever else the machine does strikes all of them alike. A first round, not counted, warms up and takes
    memory.

    Args:
        model: a LLaVA-1.5.
        inputs: of all calls.
        keep_tokens: numbers of image tokens to keep of each image.
        new_tokens: tokens that each call generates; none ends earlier.
        repeats: rounds of which the median is taken.
        compiled: also both with a compiled step.

    Returns:
        Plain decoding and DAMRO with all tokens, then both with each number of them; behind both those with a compiled
        step.
    """
    ways: list[tuple[Way, bool, int | None]] = [
        (way, graph, kept)
        for kept in (None, *keep_tokens)
        for graph in ((False, True) if compiled else (False,))
        for way in _METHODS
    ]
    calls = [_call(model, inputs, *way, new_tokens) for way in ways]
    calls[0]()  # what only the first call of all needs shall not count as memory of its method
    peaks: list[int | None] = []
    for call in calls:
        with peak_memory(model.device) as peak:
            call()
        peaks.append(peak[0] if peak else None)
    rounds = [[_time(call, model) for call in calls] for _ in range(repeats)]
    found = []
    for (way, graph, kept), peak_bytes, runs in zip(ways, peaks, zip(*rounds, strict=True), strict=True):
        held = kv_bytes(model, _prompts(model, inputs, way, kept), new_tokens)
        seconds = _Seconds(*(statistics.median(values) for values in zip(*runs, strict=True)))
        found.append(PrunedSpeed(way, graph, kept, *seconds, held, peak_bytes))
    return found


def _call(
    model: PreTrainedModel, inputs: Mapping[str, Any], way: Way, graph: bool, kept: int | None, new_tokens: int
) -> Call:
    length: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    if way == "plain" and kept is None and not graph:
        stock: Any = model
        return lambda **options: stock.generate(**inputs, **length, **options)
    method = _METHODS[way]
    return lambda **options: generate(
        model, inputs, method=method, keep_tokens=kept, strategy="fused", compile=graph, **length, **options
    )


def _prompts(model: PreTrainedModel, inputs: Mapping[str, Any], way: Way, kept: int | None) -> list[VisualPrompt]:
    """The prompts that the language model reads in such a call."""
    scene = Scene(pruning=None if kept is None else Pruning(kept))
    found = as_recipe(_METHODS[way]).method.prepare(model, inputs, scene)
    return [embedded(prompt) for prompt in prompts_of(found)]


def kv_bytes(model: PreTrainedModel, prompts: Sequence[VisualPrompt], new_tokens: int) -> int:
    """Bytes of all keys and values that are held when the last token has been drawn.

    Computed and not measured: every column that the language model has read left a key and a value in each layer,

        2 * layers * key-value heads * head width * bytes of a number * columns

    where columns is, summed over the branches, rows times the columns of the prompt and of the new tokens but the
    last, which is drawn and never read. Room that a cache allocates ahead of need is left out; it is part of the peak
    memory.

    Args:
        model: the LVLM.
        prompts: what each branch reads: one for plain decoding, two for a contrast.
        new_tokens: tokens generated in every row.

    Example:
        >>> import torch
        >>> from damro.speed.shapes import SHAPES, random_model
        >>> prompt = VisualPrompt(torch.zeros(1, 10, 64), torch.ones(1, 10), torch.zeros(1, 10, dtype=torch.bool))
        >>> kv_bytes(random_model(SHAPES["micro"]), [prompt], new_tokens=3)  # 2 * 2 layers * 2 * 16 * 4 * (10 + 2)
        6144
    """
    text: Any = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    column = 2 * text.num_hidden_layers * text.num_key_value_heads * width * model.dtype.itemsize
    columns = sum(prompt.attention_mask.numel() + len(prompt.attention_mask) * (new_tokens - 1) for prompt in prompts)
    return int(column * columns)


def _time(call: Call, model: PreTrainedModel) -> _Seconds:
    """Runs a call once."""
    clock = Clock(model.device)
    with _reading(model, clock) as language:
        start = now(model.device)
        call(stopping_criteria=[clock])
        whole = now(model.device) - start
    return _Seconds(clock.times[0] - start, sum(language), whole)


@contextmanager
def _reading(model: PreTrainedModel, clock: Clock) -> Iterator[list[float]]:
    """While open, and until the clock has seen a token, puts the seconds of each run of the language model in a list.

    The hooks do nothing from then on, so that the steps that follow are not held up.
    """
    decoder: Any = family_of(model).decoder(model)
    layers, seconds, begun = decoder.get_decoder(), list[float](), list[float]()

    def begin(*_: Any) -> None:
        if not clock.times:
            begun.append(now(model.device))

    def end(*_: Any) -> None:
        if not clock.times:
            seconds.append(now(model.device) - begun.pop())

    with hooked(before=[(layers, begin)], after=[(layers, end)]):
        yield seconds
