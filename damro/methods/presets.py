"""alpha, beta and top-k of the paper's runs, by family and task."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from damro.decoding.errors import ParameterError, UnsupportedModelError

Task = Literal["pope", "chair", "mme"]


class Preset(NamedTuple):
    """Strength of the contrast, plausibility cutoff, number of outlier patches."""

    alpha: float
    beta: float
    top_k: int


# Defaults of the released code (coder-gx/DAMRO). LLaVA's 0.5 for captions is as remembered from the paper's text
# and not in the released scripts; InstructBLIP's 1.5 for captions is in them.
_DEFAULT = {
    "llava": Preset(alpha=2.0, beta=0.1, top_k=10),
    "llava_next": Preset(alpha=2.0, beta=0.1, top_k=10),
    "instructblip": Preset(alpha=0.5, beta=0.1, top_k=4),
}
_CHAIR_ALPHA = {"llava": 0.5, "llava_next": 0.5, "instructblip": 1.5}


def preset(family: str, task: Task | None = None) -> Preset:
    """The preset for a model family (its `config.model_type`) and task.

    Args:
        family: "llava", "llava_next" or "instructblip".
        task: "pope", "chair" or "mme"; None takes the released default, which is also POPE's and MME's.

    Raises:
        UnsupportedModelError: if the family has no preset.
        ParameterError: if the task is unknown.

    Example:
        >>> preset("llava", "chair")
        Preset(alpha=0.5, beta=0.1, top_k=10)
    """
    if not has_preset(family):
        raise UnsupportedModelError(
            f"family must have a preset ({', '.join(_DEFAULT)}), got {family!r}; pass alpha, beta and top_k"
        )
    check_task(task)
    chosen = _DEFAULT[family]
    return chosen._replace(alpha=_CHAIR_ALPHA[family]) if task == "chair" else chosen


def has_preset(family: str) -> bool:
    """Whether the paper has values for a model family (its `config.model_type`).

    Example:
        >>> has_preset("llava"), has_preset("paligemma")
        (True, False)
    """
    return family in _DEFAULT


def starting_preset(family: str) -> Preset:
    """Values to start from where somebody looks and tries: the preset, or LLaVA's where the paper has none.

    Answers are not made with it by default: there a family without a preset must be given its values.

    Example:
        >>> starting_preset("instructblip")
        Preset(alpha=0.5, beta=0.1, top_k=4)
        >>> starting_preset("paligemma")
        Preset(alpha=2.0, beta=0.1, top_k=10)
    """
    return preset(family if has_preset(family) else "llava")


def check_task(task: str | None) -> None:
    """Checks the name of a task.

    Raises:
        ParameterError: if it is unknown.
    """
    if task is not None and task not in get_args(Task):
        raise ParameterError(f"task must be one of {', '.join(get_args(Task))} or None, got {task!r}")
