"""The paper's figures beside one's own, with what differs between the two protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from damro.eval.benchmark import BENCHMARKS, Measure
from damro.eval.errors import EvalError
from damro.eval.records import read_json
from damro.eval.report.comparison import Comparison
from damro.eval.resources import data_path
from damro.eval.runs.request import TINY, to_request
from damro.eval.statistics import Interval

_PAPER_MODELS = {"llava": "LLaVA-1.5", "llava_next": "LLaVA-NeXT", "instructblip": "InstructBLIP"}
_PAPER_METHODS = {"greedy": "original", "damro": "damro"}


@dataclass(frozen=True)
class Beside:
    """One figure of the paper and one's own.

    Attributes:
        method: Name of one's own run.
        metric: Name of the metric.
        measure: How it is told.
        published: The paper's figure, a fraction.
        measured: One's own; None if it is not defined.
    """

    method: str
    metric: str
    measure: Measure
    published: float
    measured: Interval | None

    @property
    def inside(self) -> bool | None:
        """Whether the paper's figure lies in the interval of one's own; None without one."""
        return None if self.measured is None else self.measured.low <= self.published <= self.measured.high


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
        comparison: One's own runs, scored; the last group of each is taken, all splits together.
        runs: The ``run.json`` of each, by the names of the comparison.

    Raises:
        EvalError: The paper has no figures for this benchmark, model or any of the methods.
    """
    tables = load_published().get(comparison.benchmark)
    if comparison.benchmark not in BENCHMARKS or not isinstance(tables, dict):
        raise EvalError(f"benchmark must be pope or chair to have published figures, got {comparison.benchmark!r}")
    found = []
    for entry in comparison.entries:
        resolved = runs[entry.name]["resolved"]
        table = tables[paper_model(runs[entry.name])].get(_PAPER_METHODS.get(resolved["method"]["method"], ""))
        intervals, measures = entry.groups[-1].intervals(), entry.groups[-1].measures
        found += [
            Beside(entry.name, metric, measures[metric], round(value / 100, 6), intervals[metric])
            for metric, value in (table or {}).items()
        ]
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
    if family not in _PAPER_MODELS:
        raise EvalError(f"model must be of a family in the paper ({', '.join(_PAPER_MODELS)}), got {family!r}")
    return _PAPER_MODELS[family]


def protocol_differences(run: Mapping[str, Any]) -> list[str]:
    """Say in what a run differs from the paper's protocol, as far as the paper and its code tell.

    Example:
        >>> from damro.eval.runs.record import to_record
        >>> from damro.eval.runs.request import RunRequest
        >>> request = RunRequest("pope", "tiny", data={"split": ("coco/random",)}, limit=10)
        >>> resolved = {"method": {"temperature": 0.0, "top_p": 1.0, "parameters": {}},
        ...             "generation": {"max_new_tokens": 64},
        ...             "prompt": {"template": "{question} Please answer this question with one word."}}
        >>> for line in protocol_differences(to_record(request, resolved)):
        ...     print(line)
        model: 'tiny', trained on rendered scenes; the paper's are the 7B checkpoints
        decoding: greedy; the paper samples at temperature 1
        max_new_tokens: 64; the paper allows 1024
        samples: the first 10 of each split; the paper takes all
        splits: coco/random; the paper averages coco/random, coco/popular, coco/adversarial
    """
    request, resolved = run["request"], run["resolved"]
    method, lines = resolved["method"], []
    if request["model"] == TINY:
        lines.append("model: 'tiny', trained on rendered scenes; the paper's are the 7B checkpoints")
    if not method["temperature"]:
        lines.append("decoding: greedy; the paper samples at temperature 1")
    elif method["temperature"] != 1 or method["top_p"] != 1:
        lines.append(
            f"decoding: sampling at temperature {method['temperature']:g}, top-p {method['top_p']:g}; the paper's: 1, 1"
        )
    else:
        lines.append("sampling: a random stream a sample; the paper's is one for all, so single answers differ")
    longest = resolved["generation"].get("max_new_tokens")
    if longest != 1024:
        lines.append(f"max_new_tokens: {longest}; the paper allows 1024")
    asked = to_request(run)
    if resolved["prompt"]["template"] != asked.asked.prompt:
        lines.append(f"prompt: {resolved['prompt']['template']!r}; the paper's is {asked.asked.prompt!r}")
    if "keep_tokens" in method:
        lines.append(f"pruning: {method['keep_tokens']} patches of a tile; the paper keeps all")
    variant = method["parameters"].get("variant", "reference")
    if variant != "reference":
        lines.append(f"variant: {variant}; the paper's is the released code")
    if request["seed"] != 42:
        lines.append(f"seed: {request['seed']}; the paper's is 42")
    if request["limit"] is not None:
        lines.append(f"samples: the first {request['limit']} of each split; the paper takes all")
    return lines + asked.asked.paper_differences(asked.data_request)
