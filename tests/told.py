"""Methods, benchmarks and runs with all their parameters among the keywords, as tests that go through many want it."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

import damro
from damro.decoding.rules import Contrast
from damro.eval.benchmark import BENCHMARKS
from damro.eval.runs.request import RunRequest
from damro.eval.samples import Dataset
from damro.methods import METHODS, Method, Scene, parse
from damro.parameters import parameters, show
from damro.pruning import Pruning


def told(method: str | None = "damro", **options: Any) -> Method:
    """A method with those of the options that are its parameters."""
    owner = METHODS[method or "greedy"]
    known = {one.name for one in parameters(owner)}
    return owner(**{name: value for name, value in options.items() if name in known})


def generate(model: Any, inputs: Any, *, method: str | None = "damro", **options: Any) -> Any:
    own = {one.name for one in parameters(METHODS[method or "greedy"])}
    others = {one.name for owner in METHODS.values() for one in parameters(owner)} - set(vars(GenerationConfig()))
    # OPERA's num_beams is generate's where another method is told; DAMRO's top_k is never sampling's.
    rest = {name: value for name, value in options.items() if name not in own | others | {"top_k"}}
    return damro.generate(model, inputs, told(method, **options), **rest)


def contrast_of(
    method: str,
    model: Any,
    inputs: Any,
    *,
    shared_image: bool = False,
    pruning: Pruning | None = None,
    processor: Any = None,
    **options: Any,
) -> Contrast:
    contrast = told(method, **options).prepare(model, inputs, Scene(shared_image, pruning, processor))
    assert isinstance(contrast, Contrast)
    return contrast


def request(benchmark: str, model: str, method: str = "greedy", **options: Any) -> RunRequest:
    """A run's request; what the method and the benchmark do not have is left aside."""
    texts = {name: value if isinstance(value, str) else show(value) for name, value in options.items()}
    recipe = parse(method, {name: text for name, text in texts.items() if name not in ("seed", "limit")})
    fields = {name: options[name] for name in options if name in RunRequest.__dataclass_fields__}
    data = {one.name: options[one.name] for one in parameters(BENCHMARKS[benchmark]) if one.name in options}
    return RunRequest(benchmark, model, method=recipe.text, data=data, **fields)


def dataset_of(asked: RunRequest) -> Dataset:
    return asked.asked.load(asked.data_request)
