"""What a benchmark is: samples to ask, answers to score, and metrics that describe themselves.

A benchmark is a frozen dataclass: its fields are its parameters (a question file, splits, a vocabulary), from which
command line flags and what a run records are read. Importing this module imports neither torch nor numpy: commands
that score recorded answers start at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.groups import Difference, Group, Measure, Note, share
from damro.parameters import build, check_fields, parameters
from damro.registry import Registry

if TYPE_CHECKING:
    from damro.eval.samples import Dataset

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "DataRequest",
    "Difference",
    "Group",
    "Measure",
    "Note",
    "Records",
    "Scoring",
    "answered",
    "answered_in_all",
    "find_benchmark",
    "score_run",
    "share",
]

_OTHER_IMAGES = "give --model and --images for other ones"
Records = Mapping[str, Mapping[str, Any]]
"""The records of a run by sample id."""


@dataclass(frozen=True)
class Scoring:
    """How a benchmark's runs are scored; none of it changes an answer. Base of what single benchmarks have.

    The fields that have defaults are parameters, as those of a benchmark are.

    Attributes:
        truth: What a benchmark's :meth:`Benchmark.truth` returned.
    """

    truth: Mapping[str, Sequence[str]] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_fields(self, EvalError)


class DataRequest(NamedTuple):
    """What a run wants of a benchmark's data.

    Attributes:
        images: Folder of the images; None for embedded scenes.
        scenes: How many embedded scenes, where they are wanted; None otherwise.
        limit: At most so many samples (of each split).
        seed: Of what is chosen at random.
        prompt: Template with ``{question}``; None takes the benchmark's.
    """

    images: Path | None = None
    scenes: int | None = None
    limit: int | None = None
    seed: int = 42
    prompt: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """Base of all benchmarks; a subclass sets the class attributes and writes `load` and `score`.

    Attributes of the class:
        name: How it is called everywhere.
        source: The paper.
        prompt: The default template of prompts, those of the DAMRO paper's runs; ``{question}`` stands for a question.
        max_new_tokens: The longest answer, in tokens.
        task: Whose presets DAMRO takes for it; None for the general ones.
        scoring: The class of its scoring.
        rescored: Parameters that only scoring depends on, so that they may be given anew for records.
        recorded: Texts that its records hold and that `score` reads.
        command: Module with ``add_parser`` and ``run`` that scores recorded answers; None without.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    prompt: ClassVar[str]
    max_new_tokens: ClassVar[int]
    task: ClassVar[Literal["pope", "chair", "mme"] | None] = None
    scoring: ClassVar[type[Scoring]] = Scoring
    rescored: ClassVar[tuple[str, ...]] = ()
    recorded: ClassVar[tuple[str, ...]] = ()
    command: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        """Check types and choices of the parameters.

        Raises:
            EvalError: One is not of its kind.
        """
        check_fields(self, EvalError)

    @property
    def has_images(self) -> bool:
        """Whether its parameters say where images are, so that the embedded scenes are not meant."""
        return False

    @property
    def reads_logits(self) -> bool:
        """Whether P(yes) is read from logits, and no answer is generated."""
        return False

    def load(self, request: DataRequest) -> Dataset:
        """Return the samples of a request; opens no image yet.

        Raises:
            EvalError: A file is malformed or missing, or a parameter names nothing.
        """
        raise NotImplementedError

    def settle_scoring(self, scoring: Any, runs: Mapping[str, Records]) -> Any:
        """Return how runs that are compared are scored, where that depends on all of them.

        Args:
            scoring: Of the class that `scoring` names.
            runs: The records that are compared, all of them with an answer, by the names of the runs.
        """
        return scoring

    def score(self, records: Records, scoring: Any) -> list[Group]:
        """Score the records of a run, all of them with an answer.

        Args:
            records: By sample id, at least one.
            scoring: Of the class that `scoring` names.

        Raises:
            EvalError: The records cannot be scored.
        """
        raise NotImplementedError

    def truth(self, request: DataRequest) -> Mapping[str, Sequence[str]]:
        """Return what answers are scored with beside the records, without opening an image."""
        return {}

    def paper_differences(self, request: DataRequest, scored: Group) -> list[Difference]:
        """Say in what the data, and the way they were scored, differ from those of the DAMRO paper's runs.

        Args:
            request: Of the run.
            scored: What came of it: the whole of the run.
        """
        return []

    def check_scenes_heed(self, *heeded: str) -> None:
        """Refuse parameters that are given where embedded scenes are asked about, which do not depend on them.

        Args:
            heeded: Names of those that the scenes do depend on.

        Raises:
            EvalError: Another one is given.
        """
        for one in parameters(type(self)):
            value = getattr(self, one.name)
            if one.name not in heeded and value != one.default:
                shown = " ".join(value) if isinstance(value, tuple) else value
                raise EvalError(
                    f"{one.flag} must be left out for the embedded scenes, which it does not change, got {shown!r}: "
                    f"{_OTHER_IMAGES}"
                )

    def to_record(self) -> dict[str, Any]:
        """Return the parameters, for ``run.json``."""
        return asdict(self)

    def ask(self, request: DataRequest, question: str = "") -> str:
        """Return the prompt of a question under a request's template."""
        return (request.prompt or self.prompt).replace("{question}", question)


class TableBenchmark(Benchmark):
    """A benchmark whose questions may stand in a table with their images.

    The dataclass that inherits declares the two parameters, where they belong among its own.

    Attributes:
        data: a table instead, with the images in it: a Parquet file or a folder of them, a data set of the hub
            (hf:lmms-lab/POPE), or a TSV, CSV, Excel or JSON file that has them as base64, as VLMEvalKit's; or one whose
            rows name files in the folder of images.
        columns: which column of the table is what, where they are called otherwise, such as image=img question=q.
    """

    data: str | None
    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the parameters, and that columns are those of a table."""
        super().__post_init__()
        if self.columns and self.data is None:
            raise EvalError(f"--columns must come with --data, got {' '.join(self.columns)!r}: give the table")

    @property
    def has_images(self) -> bool:
        """Whether its data say what the images are."""
        return self.data is not None


class YesNoBenchmark(TableBenchmark):
    """A benchmark of yes/no questions, whose answers may be read from logits.

    The dataclass that inherits declares the parameter beside the other two.
    """

    read: Literal["text", "logits"]

    @property
    def reads_logits(self) -> bool:
        """Whether P(yes) is read from logits."""
        return self.read == "logits"


def find_benchmark(name: str, parameters: Mapping[str, Any] | None = None) -> Benchmark:
    """Return a benchmark by its name, with some of its parameters.

    Raises:
        EvalError: There is no such benchmark, or it does not have such a parameter.

    Example:
        >>> find_benchmark("pope", {"split": ["coco/random"]}).split
        ('coco/random',)
        >>> find_benchmark("pop")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        damro.eval.errors.EvalError: benchmark must be one of pope, chair, ..., got 'pop'; did you mean 'pope'?
    """
    return build(BENCHMARKS.find(name), parameters or {}, EvalError, name)


def answered(records: Records) -> set[str]:
    """Return the sample ids of a run that have an answer."""
    return {key for key, fields in records.items() if "error" not in fields}


def answered_in_all(runs: Iterable[Records]) -> set[str]:
    """Return the sample ids that have an answer in every run: what runs can be compared on."""
    sets = [answered(records) for records in runs]
    return set.intersection(*sets) if sets else set()


def score_run(benchmark: Benchmark, records: Records, scoring: Scoring, keep: set[str] | None = None) -> list[Group]:
    """Score the records of a run.

    Args:
        benchmark: Whose records they are.
        records: Failed ones are left out; whoever shows the result says how many.
        scoring: How.
        keep: Only these samples; None keeps all.

    Raises:
        EvalError: No sample has an answer, or a record lacks what is scored.
    """
    good = {key: fields for key, fields in records.items() if "error" not in fields and (keep is None or key in keep)}
    if not good:
        reasons = [str(fields["error"]) for fields in records.values() if "error" in fields]
        first = f"; the first of {len(reasons)} failed with: {reasons[0]}" if reasons else ""
        raise EvalError(f"a run must have at least one answer to be scored, got none{first}")
    wrong = [(key, name) for key in good for name in benchmark.recorded if not isinstance(good[key].get(name), str)]
    for key, name in wrong[:1]:
        raise DataFormatError(
            f"record {key!r} must have the text {name!r}, got {good[key].get(name, 'nothing')!r:.80}: restore the "
            "records or run the benchmark anew"
        )
    return benchmark.score(good, scoring)


BENCHMARKS: Registry[type[Benchmark]] = Registry(
    "damro.benchmarks",
    "benchmark",
    EvalError,
    {
        "pope": "damro.eval.pope.benchmark:Pope",
        "chair": "damro.eval.chair.benchmark:Chair",
        "mme": "damro.eval.mme.benchmark:Mme",
        "amber": "damro.eval.amber.benchmark:Amber",
        "hallusion": "damro.eval.hallusion.benchmark:Hallusion",
        "crpe": "damro.eval.crpe.benchmark:Crpe",
        "mmvp": "damro.eval.mmvp.benchmark:Mmvp",
        "mmhal": "damro.eval.mmhal.benchmark:Mmhal",
        "objhal": "damro.eval.objhal.benchmark:Objhal",
    },
    Benchmark,
)
"""The benchmarks by name. One of another package comes by an entry point of the group ``damro.benchmarks``."""
