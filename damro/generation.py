"""One call that decodes with DAMRO, with one of its controls, or plainly; one vision pass, one pass a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.errors import ParameterError
from damro.presets import Task
from damro.views import Choose, Variant, outlier_view, rule_for
from decoding.families import Encoding, check_inputs, family_of
from decoding.generate import Strategy, decode
from decoding.methods import Contrast
from decoding.prefix import encode_shared
from decoding.prompts import VisualPrompt


@dataclass(frozen=True)
class MethodOptions:
    """What a method may want to know beside the model and its inputs.

    Attributes:
        alpha: strength of the contrast; None takes the preset.
        beta: plausibility cutoff; None takes the preset.
        top_k: number of patches; None takes the preset.
        task: chooses the preset.
        variant: of DAMRO.
        seed: of what is drawn at random.
        shared_image: all prompts show one image, which is to be encoded once.
    """

    alpha: float | None = None
    beta: float | None = None
    top_k: int | None = None
    task: Task | None = None
    variant: Variant = "reference"
    seed: int = 0
    shared_image: bool = False

    def encode(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> Encoding:
        """One run of the vision tower."""
        check_inputs(model, inputs)
        return encode_shared(model, inputs) if self.shared_image else family_of(model).encode(model, inputs)


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
    strategy: Strategy = "auto",
    shared_prefix: bool = False,
    **generate_kwargs: Any,
) -> Any:
    """Generates with contrastive decoding at about the cost of ``model.generate``.

    ::

        inputs = processor(images=image, text=prompt, return_tensors="pt")
        ids = damro.generate(model, inputs, max_new_tokens=256)

    The vision tower runs once. The tokens are those of :class:`damro.DAMROProcessor` with the same parameters.

    Args:
        model: a LLaVA, LLaVA-NeXT or (decoder-only) InstructBLIP model.
        inputs: the mapping its processor returned for images and left-padded text.
        method: "damro"; its controls "random-k" (k random patches), "least-k" (the k least attended) and
            "no-image" (the text alone) in place of the outliers; "greedy" or None for no contrast at all, whether
            tokens are sampled or not. The keys of ``METHODS``.
        alpha: strength of the contrast; None takes the preset of the family and `task`.
        beta: plausibility cutoff in (0, 1]; None takes the preset.
        top_k: number of patches of a tile; None takes the preset. (Sampling's top-k goes into a
            `generation_config`.)
        task: "pope", "chair", "mme" or None; chooses the preset only.
        variant: "reference" or "corrected", see :class:`damro.DAMROProcessor`.
        seed: of "random-k". Sampling draws from torch's own generator, as ``model.generate`` does.
        strategy: "fused", "lazy" or "auto", see :func:`decoding.generate.decode`.
        shared_prefix: all prompts ask about one image (`pixel_values` holds it once, or once a prompt): it is
            encoded once and what the prompts begin with is read once. The answers are those of asking one by one.
        **generate_kwargs: anything ``model.generate`` takes.

    Returns:
        What ``model.generate`` returns.

    Raises:
        ParameterError: a parameter out of range, an unknown method.
        UnsupportedModelError: the family, or a ViT without [CLS].
        InputsError: no image, no image token, right padding; different images with `shared_prefix`.
    """
    name = "greedy" if method is None else method
    if name not in METHODS:
        raise ParameterError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    options = MethodOptions(alpha, beta, top_k, task, variant, seed, shared_image=shared_prefix)
    with torch.no_grad():
        contrast = METHODS[name](model, inputs, options)
    return decode(model, inputs, contrast, strategy=strategy, shared_prefix=shared_prefix, **generate_kwargs)


def _plain(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> VisualPrompt:
    return family_of(model).full_prompt(model, inputs, options.encode(model, inputs))


def _no_image(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> Contrast:
    full = _plain(model, inputs, options)
    return Contrast(full, full.drop_image(), rule_for(model, options.alpha, options.beta, options.task))


def _damro(
    model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions, choose: Choose | None = None
) -> Contrast:
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
    ).contrast


def _random_k(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> Contrast:
    return _damro(model, inputs, options, random_patches(options.seed))


def _least_k(model: PreTrainedModel, inputs: Mapping[str, Any], options: MethodOptions) -> Contrast:
    return _damro(model, inputs, options, least_patches)


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
}
"""What ``method=`` may name. A method is one function: model, inputs and options to a contrast."""
