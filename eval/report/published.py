"""The paper's figures beside one's own, with what differs between the two, and whether they can be compared at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from damro.eval.benchmark import BENCHMARKS, Difference, Group, Measure
from damro.eval.errors import EvalError
from damro.eval.records import read_json
from damro.eval.report.comparison import Comparison
from damro.eval.resources import data_path
from damro.eval.runs.request import RunRequest, to_request
from damro.eval.statistics import Interval
from damro.methods import METHODS

Outcome = Literal["not comparable", "not decided", "yes", "no", "-"]


class PaperModel(NamedTuple):
    """A model of the paper.

    Attributes:
        name: In the paper's tables.
        checkpoint: On the Hub, without its owner; as the released scripts name it.
    """

    name: str
    checkpoint: str


PAPER_MODELS = {
    "llava": PaperModel("LLaVA-1.5", "llava-1.5-7b-hf"),
    "llava_next": PaperModel("LLaVA-NeXT", "llava-v1.6-vicuna-7b-hf"),
    "instructblip": PaperModel("InstructBLIP", "instructblip-vicuna-7b"),
}
"""By family: ``scrpits/run_generation.sh`` of the released code."""
PAPER_SIZE = (6_000_000_000, 9_000_000_000)
"""Between which numbers of parameters a model of 7B with its vision tower lies: neither 3B, nor 13B."""
_PAPER_METHODS = {"greedy": "original", "damro": "damro"}
_PAPER_DTYPE = "float32"  # run_pope.py and run_chair.py of the released code
_LONGEST = 1024
_SEED = 42


@dataclass(frozen=True)
class Beside:
    """One figure of the paper and one's own.

    Attributes:
        method: Name of one's own run.
        metric: Name of the metric.
        measure: How it is told.
        published: The paper's figure, a fraction.
        measured: One's own; None if it is not defined.
        effect: By how much plain decoding and DAMRO differ in the paper, a fraction.
        reasons: Why the two cannot be compared; none if they can.
    """

    method: str
    metric: str
    measure: Measure
    published: float
    measured: Interval | None
    effect: float
    reasons: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """Whether one's own run has the paper's figure.

        *not comparable* where the run differs from the paper's in anything that moves a figure, whatever the numbers
        are. Otherwise *no* if the figure lies outside of the interval of one's own; *yes* if it lies inside and the
        interval is not wider than what DAMRO changes in the paper, the difference between its two figures; and *not
        decided* if it lies inside of a wider one, which would hold a run without any effect as well. *-* where the
        metric is not defined.
        """
        if self.reasons:
            return "not comparable"
        if self.measured is None:
            return "-"
        if not self.measured.low <= self.published <= self.measured.high:
            return "no"
        return "yes" if self.measured.high - self.measured.low <= self.effect else "not decided"


def load_published() -> dict[str, Any]:
    """Return the paper's tables: percent, by benchmark, model and method, with source and protocol.

    Example:
        >>> load_published()["pope"]["LLaVA-1.5"]["damro"]["accuracy"]
        85.31
    """
    return dict(read_json(data_path("published.json")))


def put_beside(comparison: Comparison, runs: Mapping[str, Mapping[str, Any]]) -> list[Beside]:
    """Put one's own runs beside the paper's table for their model.

    Args:
        comparison: One's own runs, scored; all splits together are taken.
        runs: The ``run.json`` of each, by the names of the comparison.

    Raises:
        EvalError: The paper has no figures for this benchmark, model or any of the methods.
    """
    tables = load_published().get(comparison.benchmark)
    if comparison.benchmark not in BENCHMARKS or not isinstance(tables, dict):
        raise EvalError(f"benchmark must be pope or chair to have published figures, got {comparison.benchmark!r}")
    found = []
    for entry in comparison.entries:
        run = runs[entry.name]
        table = tables[paper_model(run)]
        figures = table.get(_PAPER_METHODS.get(run["resolved"]["method"]["method"], ""), {})
        different = protocol_differences(run, entry.whole)
        reasons = tuple(one.text for one in different if not one.harmless)
        intervals, measures = entry.whole.intervals(), entry.whole.measures
        for metric, value in figures.items():
            effect = abs(table["damro"][metric] - table["original"][metric])
            found.append(
                Beside(
                    *(entry.name, metric, measures[metric], round(value / 100, 6), intervals[metric]),
                    *(round(effect / 100, 6), reasons),
                )
            )
    if not found:
        names = ", ".join(entry.name for entry in comparison.entries)
        raise EvalError(f"a run must be plain decoding or DAMRO to have published figures, got {names}")
    return found


def paper_model(run: Mapping[str, Any]) -> str:
    """Return the paper's name for the family of a run's model.

    Raises:
        EvalError: The paper has no such model.
    """
    family = run["resolved"]["model"]["family"]
    if family not in PAPER_MODELS:
        raise EvalError(f"model must be of a family in the paper ({', '.join(PAPER_MODELS)}), got {family!r}")
    return PAPER_MODELS[family].name


def protocol_differences(run: Mapping[str, Any], scored: Group) -> list[Difference]:
    """Say in what a run differs from the paper's protocol, as far as the paper and its code tell.

    What the record does not say, as one of an older version, counts as different.

    Args:
        run: Its ``run.json``.
        scored: What came of it, all splits together.

    Raises:
        EvalError: The paper has no model of this family.

    Example:
        >>> from damro.eval.runs.record import to_record
        >>> request = RunRequest("pope", "tiny", data={"split": ("coco/random",)}, scenes=4, limit=10)
        >>> resolved = {"method": {"method": "greedy", "temperature": 0.0, "top_p": 1.0, "parameters": {}},
        ...             "model": {"family": "llava", "dtype": "float32", "parameters": 3_900_000},
        ...             "generation": {"max_new_tokens": 64},
        ...             "prompt": {"template": "{question} Please answer this question with one word."}}
        >>> scored = Group("coco/random", {"rule": "pope", "n": 10}, {}, {})
        >>> for one in protocol_differences(to_record(request, resolved), scored):
        ...     print(one.text)
        model: 'tiny'; the paper's is llava-1.5-7b-hf
        size: 3.9 million parameters; the paper's have 7 billion and a vision tower
        decoding: greedy; the paper samples at temperature 1
        max_new_tokens: 64; the paper allows 1024
        samples: the first 10 of each split; the paper takes all
        questions: about embedded scenes; the paper averages coco/random, coco/popular, coco/adversarial
        samples: 10 questions answered; the paper's are 9000
        rule: pope; the released code reads answers as vcd does: give --rules vcd
        average: over questions; the paper's is that of the splits' figures
    """
    asked = to_request(run)
    paper_model(run)  # raises for another family
    texts = [*_of_model(asked, run["resolved"]["model"]), *_of_decoding(asked, run["resolved"])]
    if asked.limit is not None:
        texts.append(f"samples: the first {asked.limit} of each split; the paper takes all")
    harmless = []
    if run["resolved"]["method"]["temperature"]:
        harmless.append("sampling: a random stream a sample; the paper's is one for all, so single answers differ")
    if asked.seed != _SEED:
        harmless.append(f"seed: {asked.seed}; the paper's is {_SEED}")
    found = [*map(Difference, texts), *(Difference(text, harmless=True) for text in harmless)]
    return found + asked.asked.paper_differences(asked.data_request, scored)


def _of_model(asked: RunRequest, model: Mapping[str, Any]) -> list[str]:
    """What differs in the model and the form of its weights."""
    lines = []
    checkpoint = PAPER_MODELS[model["family"]].checkpoint
    if _checkpoint(asked.model) != checkpoint:
        lines.append(f"model: {asked.model!r}; the paper's is {checkpoint}")
    size = model.get("parameters")
    if size is None:
        lines.append("size: not in run.json, which an older version wrote; the paper's have 7 billion parameters")
    elif not PAPER_SIZE[0] <= size <= PAPER_SIZE[1]:
        lines.append(f"size: {size / 1e6:,.1f} million parameters; the paper's have 7 billion and a vision tower")
    if model.get("dtype") != _PAPER_DTYPE:
        lines.append(f"dtype: {model.get('dtype', 'not in run.json')}; the released code has {_PAPER_DTYPE}")
    if asked.quantization is not None:
        lines.append(f"quantization: {asked.quantization}; the paper has none")
    return lines


def _checkpoint(model: str) -> str:
    """The name of a checkpoint: of the folder, of the Hub's repository, or of the one that a cache's snapshot is of."""
    path = Path(model)
    name = path.parents[1].name if path.parent.name == "snapshots" else path.name
    return name.rpartition("--")[2]


def _of_decoding(asked: RunRequest, resolved: Mapping[str, Any]) -> list[str]:
    """What differs in how tokens are chosen, and what for."""
    method, lines = resolved["method"], []
    if not method["temperature"]:
        lines.append("decoding: greedy; the paper samples at temperature 1")
    elif method["temperature"] != 1 or method["top_p"] != 1:
        lines.append(
            f"decoding: sampling at temperature {method['temperature']:g}, top-p {method['top_p']:g}; the paper's: 1, 1"
        )
    longest = resolved["generation"].get("max_new_tokens")
    if longest != _LONGEST:
        lines.append(f"max_new_tokens: {longest}; the paper allows {_LONGEST}")
    if resolved["prompt"]["template"] != asked.asked.prompt:
        lines.append(f"prompt: {resolved['prompt']['template']!r}; the paper's is {asked.asked.prompt!r}")
    if "keep_tokens" in method:
        lines.append(f"pruning: {method['keep_tokens']} patches of a tile; the paper keeps all")
    if method["method"] not in _PAPER_METHODS:
        return [*lines, f"method: {method['method']}; the paper's figures are of {' and '.join(_PAPER_METHODS)}"]
    usual = METHODS.find(method["method"])().settle(resolved["model"]["family"], asked.asked.task, asked.seed)
    for name, value in usual.to_record().items():
        if method["parameters"].get(name) != value:
            lines.append(f"{name}: {method['parameters'].get(name, 'not in run.json')}; the paper's is {value}")
    return lines
