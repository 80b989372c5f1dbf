"""CHAIR: which objects that a caption names are not in the image."""

from damro.eval.chair.scoring import (
    CAPTION_KEYS,
    Caption,
    CaptionCounts,
    CaptionScore,
    ChairScore,
    parse_captions,
    score,
    score_mentions,
)

__all__ = [
    "CAPTION_KEYS",
    "Caption",
    "CaptionCounts",
    "CaptionScore",
    "ChairScore",
    "parse_captions",
    "score",
    "score_mentions",
]
