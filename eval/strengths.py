"""The parameters of a run's contrast: those asked for, else the preset or what the method's authors have."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from damro.decoding.errors import UnsupportedModelError
from damro.decoding.rules import ContrastRule, M3IDRule
from damro.eval.methods import OTHERS, TAKEN_BY, Method, check_options, parse_method, takes
from damro.eval.runs.request import RunRequest
from damro.generation import MethodOptions
from damro.methods.presets import Task, preset
from damro.methods.vcd import noise_levels

# The authors' for VCD and ICD, whose strengths do not depend on family and benchmark.
_ALPHA, _BETA = 1.0, 0.1


@dataclass(frozen=True)
class Strengths:
    """Parameters of the contrast; None where the method has none.

    Attributes:
        alpha: Strength of the contrast.
        beta: Plausibility cutoff.
        top_k: Number of patches in the negative prompt.
        variant: "corrected", or None for what the released code does.
        noise_step: VCD: of the diffusion process.
        disturbance: ICD: the sentence in front of the instruction.
        question_only: ICD: disturbs only what the Q-Former reads.
        forgetting: M3ID: how fast its weight grows.
        confidence: M3ID: probability from which on nothing is changed.
    """

    alpha: float | None = None
    beta: float | None = None
    top_k: int | None = None
    variant: str | None = None
    noise_step: int | None = None
    disturbance: str | None = None
    question_only: bool | None = None
    forgetting: float | None = None
    confidence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return alpha, beta and top_k, and of the others those that the method has."""
        always = ("alpha", "beta", "top_k")
        return {name: value for name, value in asdict(self).items() if name in always or value is not None}

    def to_options(self, **more: Any) -> MethodOptions:
        """Return them as options of `damro.generation.make_contrast`, with further ones."""
        return MethodOptions(**{name: value for name, value in asdict(self).items() if value is not None}, **more)


def check_request(request: RunRequest) -> Method:
    """Check all of a request's method and its options that can be checked without a model.

    alpha, beta and top_k are options of several methods, and a request may hold them beside a method that has none of
    them: the runs of one command do.

    Raises:
        EvalError: There is no such method, or it does not have an option that only few methods have.
        ParameterError: An option is out of range.

    Example:
        >>> check_request(RunRequest("pope", "tiny", method="vcd", noise_step=400)).name
        'vcd'
    """
    method = parse_method(request.method)
    alpha = _ALPHA if request.alpha is None else request.alpha
    ContrastRule(alpha, _BETA if request.beta is None else request.beta)
    rare = {name: getattr(request, name) for name in TAKEN_BY if name not in ("alpha", "beta", "top_k")}
    check_options({name: value for name, value in rare.items() if value != getattr(RunRequest, name)}, [method])
    if method.contrast in OTHERS:
        _of_others(request, method.contrast)
    return method


def strengths_of(request: RunRequest, method: Method, family: str) -> Strengths:
    """Return the parameters of a request's contrast; what its method does not have is left out.

    Raises:
        UnsupportedModelError: The family has no preset, and not everything was asked for.
        ParameterError: A parameter is out of range.

    Example:
        >>> request = RunRequest("pope", "tiny", beta=0.2)
        >>> strengths_of(request, parse_method("damro"), "llava").to_dict()
        {'alpha': 2.0, 'beta': 0.2, 'top_k': 10}
        >>> strengths_of(request, parse_method("vcd"), "llava").to_dict()
        {'alpha': 1.0, 'beta': 0.2, 'top_k': None, 'noise_step': 500}
    """
    if method.contrast is None:
        return Strengths()
    if method.contrast in OTHERS:
        return _of_others(request, method.contrast)
    names = [name for name in ("alpha", "beta", "top_k") if takes(method, name)]
    asked = {name: getattr(request, name) for name in names}
    missing = [name for name, value in asked.items() if value is None]
    if missing:
        asked |= _defaults(request, family, missing)
    ContrastRule(asked["alpha"], asked["beta"])
    corrected = request.variant != "reference" and takes(method, "variant")
    return Strengths(**asked, variant=request.variant if corrected else None)


def _defaults(request: RunRequest, family: str, missing: list[str]) -> dict[str, float]:
    """The preset's values of some parameters."""
    tasks: dict[str, Task] = {"pope": "pope", "chair": "chair", "mme": "mme"}
    try:
        values = preset(family, tasks[request.benchmark])._asdict()
    except UnsupportedModelError as error:
        options = " ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise UnsupportedModelError(
            f"{request.method} must be told {', '.join(missing)} for a model of a family without a preset, got none "
            f"for {family!r}; give {options}"
        ) from error
    return {name: values[name] for name in missing}


def _of_others(request: RunRequest, contrast: str) -> Strengths:
    defaults = MethodOptions()

    def asked_or_default(name: str) -> Any:
        value = getattr(request, name)
        return getattr(defaults, name) if value is None else value

    if contrast == "m3id":
        rule = M3IDRule(asked_or_default("forgetting"), asked_or_default("confidence"), request.beta)
        return Strengths(beta=rule.beta, forgetting=rule.forgetting, confidence=rule.confidence)
    checked = ContrastRule(
        alpha=_ALPHA if request.alpha is None else request.alpha,
        beta=_BETA if request.beta is None else request.beta,
    )
    if contrast == "vcd":
        step = asked_or_default("noise_step")
        noise_levels(step)
        return Strengths(checked.alpha, checked.beta, noise_step=step)
    return Strengths(
        checked.alpha,
        checked.beta,
        disturbance=asked_or_default("disturbance"),
        question_only=request.question_only,
    )
