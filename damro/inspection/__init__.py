"""Looking inside: where the vision tower and the language model look, and what the contrast changed.

Every result is a frozen dataclass of CPU tensors with `to_json`.
"""

from damro.inspection.contrast import ContrastInspection, inspect_contrast
from damro.inspection.decoder import DecoderInspection, inspect_decoder
from damro.inspection.layout import ImageView
from damro.inspection.overlap import (
    Mention,
    MentionOverlap,
    compare_mentions,
    patch_overlap,
)
from damro.inspection.pixels import seen_image
from damro.inspection.plain import jsonable
from damro.inspection.vit import ViTInspection, inspect_vit
from damro.inspection.words import SpelledTokens, Word, group_words, token_spans

__all__ = [
    "ContrastInspection",
    "DecoderInspection",
    "ImageView",
    "Mention",
    "MentionOverlap",
    "SpelledTokens",
    "ViTInspection",
    "Word",
    "compare_mentions",
    "group_words",
    "inspect_contrast",
    "inspect_decoder",
    "inspect_vit",
    "jsonable",
    "patch_overlap",
    "seen_image",
    "token_spans",
]
