"""One call that decodes with DAMRO, with one of its controls, or plainly; one vision pass, one pass a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.branches.prefix import encode_images
from damro.decoding.generate import Strategy, decode
from damro.decoding.prompts import VisualPrompt
from damro.decoding.rules import Contrast, icd_contrast, m3id_contrast, vcd_contrast
from damro.errors import ParameterError
from damro.methods.icd import DISTURBANCE
from damro.methods.patches import Choose, OutlierView, Variant, check_variant, outlier_view, rule_for
from damro.methods.presets import Task
from damro.pruning import Pruning, full_prompt, record_for


@dataclass(frozen=True)
class MethodOptions:
    """What a method may want to know beside the model and its inputs.

    Attributes:
        alpha: strength of the contrast; None takes the preset, or what the method's authors have.
        beta: plausibility cutoff; None takes the preset, or what the method's authors have.
        top_k: number of patches; None takes the preset.
        task: chooses the preset.
        variant: "reference" does what DAMRO's released code does.
        seed: of what is drawn at random.
        shared_image: all prompts show one image, which is to be encoded once.
        pruning: which image columns of the full prompt to keep; None keeps all.
        processor: the model's own; "icd" tokenizes its sentence by it.
        noise_step: of "vcd".
        disturbance: the sentence of "icd".
        question_only: of "icd", disturb what a Q-Former reads and nothing else.
        forgetting: of "m3id".
        confidence: of "m3id".
    """

    alpha: float | None = None
    beta: float | None = None
    top_k: int | None = None
    task: Task | None = None
    variant: Variant = "reference"
    seed: int = 0
    shared_image: bool = False
    pruning: Pruning | None = None
    processor: Any = None
    noise_step: int = 500
    disturbance: str = DISTURBANCE
    question_only: bool = False
    forgetting: float = 0.02
    confidence: float = 0.3

    def full_prompt(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> VisualPrompt:
        """The prompt that the model itself would read, pruned if asked; one run of the vision tower."""
        with record_for(self.pruning, model, inputs) as ranked:
            encoding = encode_images(model, inputs, shared=self.shared_image)
        return full_prompt(model, inputs, encoding, self.pruning, ranked)

    def strengths(self) -> dict[str, float]:
        """What was asked for of alpha and beta, for functions that have defaults of their own."""
        asked = {"alpha": self.alpha, "beta": self.beta}
        return {name: value for name, value in asked.items() if value is not None}


Method = Callable[[PreTrainedModel, Mapping[str, Any], MethodOptions], Contrast | VisualPrompt]


def generate(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *,
    method: str | None = "damro",
    alpha: float | None = None,
    beta: float | None = None,
    top_k: int | None = None,
    task: Task | None = None,
    variant: Variant = "reference",
    seed: int = 0,
    keep_tokens: int | Pruning | None = None,
    strategy: Strategy = "auto",
    shared_prefix: bool = False,
    processor: Any = None,
    noise_step: int = 500,
    disturbance: str = DISTURBANCE,
    question_only: bool = False,
    forgetting: float = 0.02,
    confidence: float = 0.3,
    **generate_kwargs: Any,
) -> Any:
    """Generates with contrastive decoding at about the cost of ``model.generate``.

    ::

        inputs = processor(images=image, text=prompt, return_tensors="pt")
        ids = damro.generate(model, inputs, max_new_tokens=256)

    The vision tower runs once; "vcd" has it look at the noisy image too, and with `keep_tokens` "vcd", "icd" and "m3id"
    take one more run. The tokens are those of
    :class:`damro.DAMROProcessor`, or :func:`damro.contrast_processor`, with the same parameters.

    Args:
        model: of one of ``damro.decoding.families.FAMILIES``.
        inputs: the mapping its processor returned for images and text, padded on the left unless an encoder reads it.
        method: "damro"; its controls "random-k" (k random patches), "least-k" (the k least attended) and
            "no-image" (the text alone) in place of the outliers; "vcd", "icd" and "m3id", see
            :mod:`damro.decoding.rules`; "greedy" or None for no contrast at all, whether tokens are sampled or not. The
            keys of ``METHODS``.
        alpha: strength of the contrast; None takes the preset of the family and `task`, of "vcd" and "icd" 1.0.
            "m3id" has no alpha.
        beta: plausibility cutoff in (0, 1]; None takes the preset, of "vcd" and "icd" 0.1, of "m3id" no cutoff.
        top_k: number of patches of a tile; None takes the preset. (Sampling's top-k goes into a
            `generation_config`.)
        task: "pope", "chair", "mme" or None; chooses the preset only.
        variant: "reference" or "corrected", see :class:`damro.DAMROProcessor`.
        seed: of "random-k" and of the noise of "vcd". Sampling draws from torch's own generator, as
            ``model.generate`` does.
        keep_tokens: prunes the prompt that sees the image to this many patches of a tile, those with the most
            [CLS] attention; a :class:`damro.pruning.Pruning` chooses in other ways. The negative prompt stays what
            it is without. None keeps all.
        strategy: "fused", "lazy" or "auto", see :func:`damro.decoding.generate.decode`.
        shared_prefix: all prompts ask about one image (`pixel_values` holds it once, or once a prompt): it is
            encoded once and what the prompts begin with is read once. The answers are those of asking one by one.
        processor: the model's own processor; "icd" needs it, to tokenize its sentence.
        noise_step: of "vcd", 0 to 999: how far the image has gone in a diffusion process of 1000 steps.
        disturbance: of "icd", the sentence in front of the instruction.
        question_only: of "icd" with InstructBLIP, puts the sentence into what the Q-Former reads and not into the
            language model's text, as the authors' code does; see :func:`damro.decoding.rules.icd_contrast`.
        forgetting: of "m3id", how fast the weight of the contrast grows; see :class:`damro.decoding.rules.M3IDRule`.
        confidence: of "m3id", the probability of the best token from which on nothing is changed.
        **generate_kwargs: anything ``model.generate`` takes.

    Returns:
        What ``model.generate`` returns.

    Raises:
        ParameterError: a parameter out of range, an unknown method.
        UnsupportedModelError: the family, or a ViT without [CLS]; `keep_tokens` with image columns that are not
            patches (InstructBLIP).
        InputsError: no image, no image token, right padding before a causal model; different images with
            `shared_prefix`.
    """
    options = MethodOptions(
        alpha,
        beta,
        top_k,
        task,
        variant,
        seed,
        shared_prefix,
        keep_tokens if isinstance(keep_tokens, Pruning | None) else Pruning(keep_tokens),
        processor,
        noise_step,
        disturbance,
        question_only,
        forgetting,
        confidence,
    )
    contrast = make_contrast(model, inputs, method, options)
    return decode(model, inputs, contrast, strategy=strategy, shared_prefix=shared_prefix, **generate_kwargs)


@torch.no_grad()
def make_contrast(
    model: PreTrainedModel, inputs: Mapping[str, Any], method: str | None, options: MethodOptions
) -> Contrast | VisualPrompt:
    """The prompts and the rule of a method; of "greedy" (or None) the prompt alone. See :func:`generate`.

    Raises:
        ParameterError: a parameter out of range, an unknown method or variant.
        UnsupportedModelError: the family, or a ViT without [CLS].
        InputsError: no image, no image token, right padding before a causal model; different images that are
            said to be one.
    """
    name = "greedy" if method is None else method
    if name not in METHODS:
        raise ParameterError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    check_variant(options.variant)
    return METHODS[name](model, inputs, options)


def _plain(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> VisualPrompt:
    return options.full_prompt(model, inputs)


def _no_image(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> Contrast:
    full = _plain(model, inputs, options)
    return Contrast(full, full.drop_image(), rule_for(model, options.alpha, options.beta, options.task))


def view_patches(
    model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions, choose: Choose | None = None
) -> OutlierView:
    """What "damro" and its controls with patches decode, with the attention and the patches behind it.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        options: of the method.
        choose: which patches; None takes those with the most attention. See :func:`damro.outlier_view`.
    """
    return outlier_view(
        model,
        inputs,
        alpha=options.alpha,
        beta=options.beta,
        top_k=options.top_k,
        task=options.task,
        variant=options.variant,
        choose=choose,
        shared_image=options.shared_image,
        pruning=options.pruning,
    )


def _damro(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> Contrast:
    return view_patches(model, inputs, options).contrast


def _random_k(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> Contrast:
    return view_patches(model, inputs, options, random_patches(options.seed)).contrast


def _least_k(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> Contrast:
    return view_patches(model, inputs, options, least_patches).contrast


def _vcd(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> Contrast:
    contrast = vcd_contrast(
        model,
        inputs,
        noise_step=options.noise_step,
        seed=options.seed,
        shared_image=options.shared_image,
        **options.strengths(),
    )
    return _prune(contrast, model, inputs, options)


def _icd(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> Contrast:
    contrast = icd_contrast(
        model,
        inputs,
        processor=options.processor,
        disturbance=options.disturbance,
        question_only=options.question_only,
        shared_image=options.shared_image,
        **options.strengths(),
    )
    return _prune(contrast, model, inputs, options)


def _m3id(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> Contrast:
    if options.alpha is not None:
        raise ParameterError(
            f"alpha must be left out of 'm3id', whose weight grows with the answer, got {options.alpha!r}; "
            "forgetting says how fast"
        )
    contrast = m3id_contrast(
        model,
        inputs,
        forgetting=options.forgetting,
        confidence=options.confidence,
        beta=options.beta,
        shared_image=options.shared_image,
    )
    return _prune(contrast, model, inputs, options)


def _prune(contrast: Contrast, model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> Contrast:
    """The contrast with a pruned full prompt, if asked for; that takes one more run of the vision tower."""
    return contrast if options.pruning is None else replace(contrast, full=options.full_prompt(model, inputs))


def random_patches(seed: int) -> Choose:
    """A control: k patches drawn without replacement, the same ones for the same seed on every device.

    Example:
        >>> import torch
        >>> torch.equal(random_patches(1)(torch.zeros(2, 9), 3), random_patches(1)(torch.ones(2, 9), 3))
        True
    """

    def choose(weights: Tensor, top_k: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(weights.shape, generator=generator).argsort(dim=-1)
        return order[:, :top_k].to(weights.device)

    return choose


def least_patches(weights: Tensor, top_k: int) -> Tensor:
    """A control: the k patches with the least attention, the least first.

    Example:
        >>> import torch
        >>> least_patches(torch.tensor([[0.3, 0.1, 0.2]]), 2).tolist()
        [[1, 2]]
    """
    return weights.argsort(dim=-1, stable=True)[:, :top_k]


METHODS: dict[str, Method] = {
    "greedy": _plain,
    "damro": _damro,
    "random-k": _random_k,
    "least-k": _least_k,
    "no-image": _no_image,
    "vcd": _vcd,
    "icd": _icd,
    "m3id": _m3id,
}
"""What ``method=`` may name. A method is one function: model, inputs and options to a contrast."""
