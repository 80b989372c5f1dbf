"""The parameters of a run's contrast: those asked for, else the preset or what the method's authors have."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from damro.generation import MethodOptions
from damro.presets import Task, preset
from decoding.methods import ContrastRule, M3IDRule
from eval.methods import OTHERS, Method
from eval.run_config import RunRequest

# The authors' for VCD and ICD, whose strengths do not depend on family and benchmark.
_ALPHA, _BETA = 1.0, 0.1


@dataclass(frozen=True)
class Strengths:
    """Parameters of the contrast; None where the method has none.

    Attributes:
        alpha: Strength of the contrast.
        beta: Plausibility cutoff.
        top_k: Number of patches in the negative prompt.
        noise_step: VCD: of the diffusion process.
        disturbance: ICD: the sentence in front of the instruction.
        forgetting: M3ID: how fast its weight grows.
        confidence: M3ID: probability from which on nothing is changed.
    """

    alpha: float | None = None
    beta: float | None = None
    top_k: int | None = None
    noise_step: int | None = None
    disturbance: str | None = None
    forgetting: float | None = None
    confidence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return alpha, beta and top_k, and of the others those that the method has."""
        always = ("alpha", "beta", "top_k")
        return {name: value for name, value in asdict(self).items() if name in always or value is not None}

    def to_options(self, **more: Any) -> MethodOptions:
        """Return them as options of `damro.generation.make_contrast`, with further ones."""
        return MethodOptions(**{name: value for name, value in asdict(self).items() if value is not None}, **more)


def strengths_of(request: RunRequest, method: Method, family: str) -> Strengths:
    """Return the parameters of a request's contrast; what its method does not have is left out.

    Raises:
        UnsupportedModelError: The family has no preset.
        ParameterError: alpha or beta is out of range.

    Example:
        >>> from eval.methods import parse_method
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
    tasks: dict[str, Task] = {"pope": "pope", "chair": "chair", "mme": "mme"}
    defaults = preset(family, tasks[request.benchmark])
    return Strengths(
        alpha=defaults.alpha if request.alpha is None else request.alpha,
        beta=defaults.beta if request.beta is None else request.beta,
        top_k=None if method.contrast == "no-image" else defaults.top_k if request.top_k is None else request.top_k,
    )


def _of_others(request: RunRequest, contrast: str) -> Strengths:
    defaults = MethodOptions()
    if contrast == "m3id":
        rule = M3IDRule(defaults.forgetting, defaults.confidence, request.beta)
        return Strengths(beta=rule.beta, forgetting=rule.forgetting, confidence=rule.confidence)
    checked = ContrastRule(
        alpha=_ALPHA if request.alpha is None else request.alpha,
        beta=_BETA if request.beta is None else request.beta,
    )
    if contrast == "vcd":
        return Strengths(checked.alpha, checked.beta, noise_step=defaults.noise_step)
    return Strengths(checked.alpha, checked.beta, disturbance=defaults.disturbance)
