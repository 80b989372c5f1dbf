"""An embedded family's model before its training, whose answers differ all the same."""

from __future__ import annotations

import torch

from damro.loading import Loaded
from damro.tiny.model import build_model, build_processor


def load_untrained(family: str) -> Loaded:
    """The model and its processor, padding on the left."""
    torch.manual_seed(1)
    model = build_model(family).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                # Far from uniform, so that answers differ and no rank of a patch hangs on rounding.
                weight.normal_(0, (6 if "qkv" in name else 2) * weight.shape[1] ** -0.5)
    processor = build_processor(family)
    processor.tokenizer.padding_side = "left"
    return Loaded(model, processor)
