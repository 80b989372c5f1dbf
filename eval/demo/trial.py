"""Several ways to decode over the embedded scenes: POPE's questions and captions, recorded and compared."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from damro.eval.benchmark import Records
from damro.eval.report.comparison import Comparison, compare
from damro.eval.runs.engine import Engine, make_engine
from damro.eval.runs.first_token import answer_in_one_token
from damro.eval.runs.loop import Answered, cut, to_fields
from damro.eval.runs.request import RunRequest
from damro.eval.samples import Dataset, Sample
from damro.loading import Loaded
from damro.pruning import Pruning

BATCH_SIZE = 100
_SCORED: dict[str, dict[str, Any]] = {"pope": {}, "chair": {"matcher": "builtin"}}  # the same on every machine
MAX_NEW_TOKENS = {"pope": 1, "chair": 64}  # the question asks for one word
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, of how many)."""


class Way(NamedTuple):
    """A way to decode.

    Attributes:
        method: A method's text form.
        pruning: Which image columns the full prompt keeps; None for all.
    """

    method: str
    pruning: Pruning | None = None


def compare_ways(
    benchmark: str, scenes: int, loaded: Loaded, ways: Mapping[str, Way], model: str = "tiny", *, tell: Progress
) -> Comparison:
    """Run every way to decode over one benchmark, and compare them with the first.

    Args:
        benchmark: "pope" or "chair".
        scenes: How many test scenes.
        loaded: The model and its processor.
        ways: By the name that tables show.
        model: The model's name, as tables show it.
        tell: Told after each step.
    """
    request = RunRequest(benchmark, "tiny", scenes=scenes, max_new_tokens=MAX_NEW_TOKENS[benchmark])
    dataset = request.asked.load(request.data_request)
    open_image = functools.cache(dataset.open_image)  # every method looks at every scene
    engines = {}
    for name, way in ways.items():
        engine = make_engine(replace(request, method=way.method), loaded, open_image)
        engines[name] = replace(engine, pruning=way.pruning)
    answer = _answer_questions if MAX_NEW_TOKENS[benchmark] == 1 else _write_captions
    runs = answer(engines, dataset, functools.partial(_tell_of, tell, model))
    scoring = request.asked.scoring(**_SCORED[benchmark], truth=dataset.truth)
    return compare(request.asked, model, runs, scoring)


def _tell_of(tell: Progress, model: str, what: str, done: int, total: int) -> None:
    tell(f"{model}: {what}", done, total)


def _answer_questions(engines: Mapping[str, Engine], dataset: Dataset, tell: Progress) -> dict[str, Records]:
    runs: dict[str, dict[str, Any]] = {name: {} for name in engines}
    images = list(cut(dataset.samples, 1))  # all questions about one image
    alike: dict[Pruning | None, dict[str, Engine]] = {}  # those that share a full prompt
    for name, engine in engines.items():
        alike.setdefault(engine.pruning, {})[name] = engine
    for number, samples in enumerate(images):
        tell("POPE, all methods", number, len(images))
        began = time.perf_counter()
        answers = {
            name: found for group in alike.values() for name, found in answer_in_one_token(group, samples).items()
        }
        seconds = (time.perf_counter() - began) / len(samples) / len(engines)
        for name, found in answers.items():
            runs[name].update(_records(samples, found, seconds))
    return dict(runs)


def _write_captions(engines: Mapping[str, Engine], dataset: Dataset, tell: Progress) -> dict[str, Records]:
    runs: dict[str, Records] = {}
    for number, (name, engine) in enumerate(engines.items()):
        tell(f"captions, {name}", number, len(engines))
        records: dict[str, Any] = {}
        for batch in cut(dataset.samples, BATCH_SIZE):
            began = time.perf_counter()
            answers = engine.answer(batch)
            records.update(_records(batch, answers, (time.perf_counter() - began) / len(batch)))
        runs[name] = records
    return runs


def _records(samples: Sequence[Sample], answers: Sequence[Answered], seconds: float) -> dict[str, Any]:
    return {
        sample.sample_id: to_fields(sample, answered, round(seconds, 4))
        for sample, answered in zip(samples, answers, strict=True)
    }
