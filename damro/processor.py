"""DAMRO as a logits processor of stock ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from damro.attention import CLSAttention, family_heads, read_attention, record_cls
from damro.outliers import check_top_k, rank_patches
from damro.presets import Task, preset
from decoding.branch import NegativeBranch
from decoding.contrast import check_strengths
from decoding.errors import ParameterError
from decoding.families import check_inputs, family_of
from decoding.processor import ContrastiveProcessor

Variant = Literal["reference", "corrected"]
Choose = Callable[[Tensor, int], Tensor]


class DAMROProcessor(ContrastiveProcessor):
    """Subtracts what the model says when it sees nothing but the outlier patches (DAMRO, EMNLP 2024, eq. 7 to 9).

    ::

        inputs = processor(images=image, text=prompt, return_tensors="pt")
        ids = model.generate(**inputs, logits_processor=DAMROProcessor(model, inputs), max_new_tokens=256)

    The vision tower runs once, here; the model is not changed. One processor serves any number of ``generate``
    calls with the same inputs, under greedy search, sampling, beams and prompt lookup.

    Args:
        model: a LLaVA, LLaVA-NeXT or (decoder-only) InstructBLIP model.
        inputs: the mapping its processor returned for images and left-padded text.
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
        UnsupportedModelError: the family, or a ViT without [CLS].
        InputsError: no image, no image token, right padding.
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
        if variant not in get_args(Variant):
            raise ParameterError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")
        family = family_of(model)
        check_inputs(model, inputs)
        defaults = preset(model.config.model_type, task)
        alpha = defaults.alpha if alpha is None else alpha
        beta = defaults.beta if beta is None else beta
        check_strengths(alpha, beta)  # before the vision tower runs
        reference = variant == "reference"
        layer = family.feature_layer(model, reference=reference)
        with torch.no_grad():
            with record_cls(family.vision_tower(model), [layer]) as recorded:
                encoding = family.encode(model, inputs)
            self.attention: CLSAttention = read_attention(recorded[layer], encoding, layer, family_heads(family))
            top_k = defaults.top_k if top_k is None else top_k
            check_top_k(top_k, self.attention.weights.shape[-1])
            self.outliers: Tensor = (choose or rank_patches)(self.attention.weights, top_k)
            # The released code takes InstructBLIP's features from a tensor with [CLS] in front, by indices that
            # do not count it: patch i - 1 stands for patch i.
            shift = int(reference and model.config.model_type == "instructblip")
            prompt = family.prompt_of_patches(model, inputs, encoding, self.outliers - shift)
        config = model.generation_config
        super().__init__(
            NegativeBranch(family.decoder(model), model.get_input_embeddings(), prompt),
            inputs["input_ids"],
            alpha,
            beta,
            eos_token_ids=_as_list(config.eos_token_id),
            pad_token_id=config.pad_token_id,
        )


def _as_list(token_ids: int | list[int] | None) -> list[int]:
    """The end tokens of a generation config, which may be none, one or several."""
    if token_ids is None:
        return []
    return [token_ids] if isinstance(token_ids, int) else list(token_ids)
