"""DAMRO as a logits processor of stock ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from damro.decoding.branches.encoder_decoder import negative_branch, returned_prompt
from damro.decoding.families import family_of
from damro.decoding.inside import negative_prompt, works_inside
from damro.decoding.origin import record_origin
from damro.decoding.processor import ContrastiveProcessor, RuleProcessor
from damro.decoding.rules import Contrast, ContrastRule
from damro.decoding.settings import check_padding, end_tokens
from damro.errors import ParameterError
from damro.methods import Method, Scene, as_recipe
from damro.methods.damro import Variant
from damro.methods.patches import Choose, outlier_view
from damro.methods.presets import Task
from damro.parameters import build, given
from damro.vision.attention import CLSAttention


class DAMROProcessor(ContrastiveProcessor):
    """Subtracts what the model says when it sees nothing but the outlier patches (DAMRO, EMNLP 2024, eq. 7 to 9).

    ::

        inputs = processor(images=image, text=prompt, return_tensors="pt")
        ids = model.generate(**inputs, logits_processor=DAMROProcessor(model, inputs), max_new_tokens=256)

    The vision tower runs once, here; the model is not changed but for a hook, which is gone with the processor: it
    sees whether the tower is given the same pixels. One processor serves any number of ``generate`` calls with the same
    inputs, under greedy search, sampling, beams and prompt lookup, in any number of threads. A call with another image
    under the same text, or with parameters or adapters that have changed since, is refused: see Raises of
    :class:`damro.decoding.processor.RuleProcessor`.

    Args:
        model: of one of ``damro.decoding.families.FAMILIES``. The paper has presets for LLaVA, LLaVA-NeXT and
            InstructBLIP; for the others give alpha, beta and top_k. Where the ViT has no [CLS] (SigLIP), patches are
            ranked by the attention they receive, which is not the paper's method.
        inputs: the mapping its processor returned for images and text, padded on the left unless an encoder reads it.
        alpha: strength of the contrast; None takes the preset of the family and `task`.
        beta: plausibility cutoff in (0, 1]; None takes the preset.
        top_k: number of outlier patches of a tile; None takes the preset.
        task: "pope", "chair", "mme" or None; chooses the preset only.
        variant: "reference" does what the released code does. "corrected" differs for InstructBLIP alone, where
            the released code ranks with one layer, takes features from another, and takes patch i - 1 (or [CLS])
            for patch i: it ranks with the layer whose features it takes, and takes the patch it ranked.
        choose: another choice of patches, `(weights (tiles, patches), k) -> (tiles, k)`; None takes the k patches
            with the most attention. Controls of an experiment, such as random patches, go here.

    Attributes:
        outliers: `(tiles, k)`, chosen patches in descending attention, one row for every tile of every image
            (LLaVA-NeXT uses base tiles only; :attr:`attention` tells which rows those are).
        attention: the :class:`damro.CLSAttention` they were chosen by.

    Raises:
        UnsupportedModelError: the family, or one without a preset where alpha, beta or top_k is None.
        InputsError: no image, no image token, right padding before a causal model, no telling what is padding.
        ParameterError: alpha, beta or top_k out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Mapping[str, Any],
        *,
        alpha: float | None = None,
        beta: float | None = None,
        top_k: int | None = None,
        task: Task | None = None,
        variant: Variant = "reference",
        choose: Choose | None = None,
    ) -> None:
        check_padding(model, inputs)
        with record_origin(model, inputs) as origin:
            view = outlier_view(
                model, inputs, alpha=alpha, beta=beta, top_k=top_k, task=task, variant=variant, choose=choose
            )
        origin.expect_text(view.contrast.full)
        self.attention: CLSAttention = view.attention
        self.outliers: Tensor = view.outliers
        rule, (ends, pad) = view.contrast.rule, end_tokens(family_of(model).decoder(model), {})
        assert isinstance(rule, ContrastRule)
        branch = negative_branch(model, negative_prompt(view.contrast))
        super().__init__(
            branch, returned_prompt(model, inputs), rule.alpha, rule.beta, ends, pad, assumed=True, origin=origin
        )


def contrast_processor(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    method: str | Method = "damro",
    *,
    processor: Any = None,
    **parameters: Any,
) -> RuleProcessor:
    """Any method of :func:`damro.generate` as a logits processor of stock ``generate``.

    ::

        contrast = damro.contrast_processor(model, inputs, "vcd:noise_step=700")
        ids = model.generate(**inputs, logits_processor=contrast, max_new_tokens=256)

    Args:
        model: as for :func:`damro.generate`.
        inputs: the mapping its processor returned for images and text, padded on the left unless an encoder reads it.
        method: a text or an instance, see :func:`damro.generate`; not "greedy", and without a temperature.
        processor: the model's own processor, for methods that write text ("icd").
        **parameters: parameters of the method, beside those that `method` tells.

    Raises:
        ParameterError: an unknown method or parameter, or one out of range.
        UnsupportedModelError: the family, or one without a preset where "damro" or a control needs it.
        InputsError: no image, no image token, right padding before a causal model, no telling what is padding.
    """
    recipe = as_recipe(method)
    if recipe.temperature:
        raise ParameterError(
            f"method must come without @, got {recipe.text!r}; pass do_sample and temperature to generate"
        )
    asked = {**given(recipe.method), **parameters}
    if recipe.method.searches:
        raise ParameterError(
            f"method must be a contrast to be a logits processor, got {recipe.text!r}, which searches by itself; use "
            "damro.generate"
        )
    chosen = build(type(recipe.method), asked, ParameterError, recipe.method.name)
    check_padding(model, inputs)
    with record_origin(model, inputs) as origin:
        contrast = chosen.prepare(model, inputs, Scene(processor=processor))
    if not isinstance(contrast, Contrast):
        raise ParameterError(
            f"method must be a contrast, got {recipe.text!r}; plain decoding needs no processor, and other prompts "
            "than the model's own need damro.generate"
        )
    if works_inside(contrast):
        raise ParameterError(
            "method must leave the passes of model.generate alone to be a logits processor, "
            f"got {recipe.text!r}, which works inside of the language model; use damro.generate"
        )
    origin.expect_text(contrast.full)
    branch, prompt = negative_branch(model, negative_prompt(contrast)), returned_prompt(model, inputs)
    ends, pad = end_tokens(family_of(model).decoder(model), {})
    return RuleProcessor(branch, prompt, contrast.rule, ends, pad, assumed=True, origin=origin)
