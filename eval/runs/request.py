"""What a user asks of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from damro.eval.benchmark import Benchmark, DataRequest, find_benchmark
from damro.eval.errors import DataFormatError, EvalError
from damro.methods import Recipe, parse
from damro.parameters import given
from damro.tiny import checkpoint_of

TINY = "tiny"
"""The embedded model, which needs no images: it is asked about embedded scenes."""
_KINDS: dict[str, tuple[Any, str]] = {
    "str": (str, "a text"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "Mapping[str, Any]": (Mapping, "a mapping from parameters to values"),
}
"""By the type of a field, as it is written: what its values must be."""
_COUNTS = ("limit", "scenes", "batch_size", "max_new_tokens", "keep_tokens", "max_pixels")


@dataclass(frozen=True)
class RunRequest:
    """What a user asks for.

    Attributes:
        benchmark: A name of `damro.eval.benchmark.BENCHMARKS`.
        model: A folder, a name on the Hub, or "tiny", "tiny:NAME" for an embedded one.
        method: As `damro.methods.parse` reads it: "greedy", "damro:alpha=0.5", "random-k@1", ...
        data: The benchmark's parameters, such as ``{"split": ("coco/random",)}``.
        revision: Branch, tag or commit on the Hub.
        images: Folder of the images.
        limit: At most so many samples of a split.
        scenes: How many embedded scenes, for an embedded model.
        seed: Seed of sampling, of random patches and of the choice of images.
        keep_tokens: Patches of a tile that the full prompt keeps; None keeps all.
        top_p: Nucleus of sampling.
        max_new_tokens: Longest answer in tokens; None takes the benchmark's.
        prompt: Template with ``{question}``; None takes the benchmark's.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: As torch names it; None takes a GPU if there is one.
        device_map: "auto" spreads a model over all GPUs.
        quantization: "4bit" or "8bit", through bitsandbytes.
        batch_size: Samples at once; None chooses by the device.
        attn_implementation: As transformers names it; None takes its default.
        max_pixels: The largest image that is opened; None takes `damro.images.MAX_PIXELS`.
        continuous: The place of an answer that is written is taken by the next sample, see `damro.eval.runs.stream`;
            answers are the same up to rounding, which depends on what is written side by side.
        compile: Steps run as a compiled graph, see `damro.generate`; answers are the same up to rounding.
        exact: Every sample is answered by itself, so that neither their order nor what else is asked changes a bit.
    """

    benchmark: str
    model: str
    method: str = "greedy"
    data: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    images: str | None = None
    limit: int | None = None
    scenes: int = 200
    seed: int = 42
    keep_tokens: int | None = None
    top_p: float = 1.0
    max_new_tokens: int | None = None
    prompt: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    quantization: str | None = None
    batch_size: int | None = None
    attn_implementation: str | None = None
    max_pixels: int | None = None
    compile: bool = False
    continuous: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        """Refuse what no run could be made of."""
        self._check_types()
        benchmark = find_benchmark(self.benchmark, self.data)
        # As it will be read again from JSON: what stands at its default is left out, and lists are tuples.
        object.__setattr__(self, "data", given(benchmark))
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EvalError(f"{name} must be at least 1, got {value}")
        if not 0 < self.top_p <= 1:
            raise EvalError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.prompt is not None and not self.prompt.strip():
            raise EvalError(f"prompt must be a text that is not empty, got {self.prompt!r}: leave it out for the usual")
        if self.prompt is not None and "{question}" in benchmark.prompt and "{question}" not in self.prompt:
            raise EvalError(f"prompt must hold {{question}}, got {self.prompt!r}")
        if benchmark.reads_logits:
            self._check_reads_logits()
        if self.compile and self.continuous:
            raise EvalError("--continuous must be left out with --compile, got both: rows come and go one by one there")
        for name, told in (("continuous", self.continuous), ("batch-size", self.batch_size)):
            if self.exact and told:
                raise EvalError(
                    f"--exact must come without --{name}, got both: every sample is answered by itself there"
                )
        if self.quantization not in (None, "4bit", "8bit"):
            raise EvalError(f"quantization must be 4bit or 8bit, got {self.quantization!r}")

    def _check_reads_logits(self) -> None:
        """Refuse what has no meaning where no token is generated."""
        if self.recipe.temperature:
            raise EvalError(
                f"--read logits must come with methods without a temperature, got {self.method!r}: a probability is "
                "read, and nothing is drawn"
            )
        if self.max_new_tokens is not None:
            raise EvalError(
                f"--max-new-tokens must be left out with --read logits, got {self.max_new_tokens}: none is generated"
            )
        for name in ("compile", "continuous"):
            if getattr(self, name):
                raise EvalError(f"--{name} must be left out with --read logits: no step is run behind the prompts")

    def _check_types(self) -> None:
        """Refuse values that are of another type than their field, as a file may hold them."""
        for one in fields(self):
            value, (kinds, shown) = getattr(self, one.name), _KINDS[str(one.type).removesuffix(" | None")]
            missing = value is None and str(one.type).endswith(" | None")
            if not missing and (not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool)):
                wrong = f"{one.name} must be {shown}, got {value!r}"
                raise DataFormatError(f"request of a run must hold values of the right types: {wrong}")

    @property
    def asked(self) -> Benchmark:
        """The benchmark with its parameters."""
        return find_benchmark(self.benchmark, self.data)

    @property
    def recipe(self) -> Recipe:
        """The method with its parameters, and its temperature.

        Raises:
            ParameterError: There is no such method or parameter, or a value is out of range.
        """
        return parse(self.method)

    @property
    def data_request(self) -> DataRequest:
        """What the benchmark is to load."""
        embedded = checkpoint_of(self.model) is not None and self.images is None and not self.asked.has_images
        images = None if self.images is None else Path(self.images)
        return DataRequest(images, self.scenes if embedded else None, self.limit, self.seed, self.prompt)


def to_request(record: Mapping[str, Any]) -> RunRequest:
    """Return the request that a ``run.json`` holds.

    Raises:
        DataFormatError: It holds keys that no request has, or lacks the benchmark or the model.
        EvalError: A value is out of range.

    Example:
        >>> told = {"benchmark": "pope", "model": "tiny", "data": {"split": ["coco/random"]}}
        >>> to_request({"request": told}) == RunRequest("pope", "tiny", data={"split": ("coco/random",)})
        True
    """
    told = dict(record["request"])
    known = {one.name for one in fields(RunRequest)}
    unknown = sorted(set(told) - known)
    if unknown or not {"benchmark", "model"} <= set(told):
        wrong = f"unknown keys {', '.join(unknown)}" if unknown else f"keys {', '.join(sorted(told))}"
        raise DataFormatError(f"request of a run must hold benchmark and model and no unknown keys, got {wrong}")
    try:
        return RunRequest(**told)
    except TypeError as error:
        raise DataFormatError(f"request of a run must hold values of the right types: {error}") from error
