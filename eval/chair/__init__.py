"""CHAIR: which objects that a caption names are not in the image."""

from damro.eval.chair.scoring import (
    Caption,
    CaptionCounts,
    CaptionScore,
    ChairScore,
    parse_captions,
    score,
    score_readings,
)
from damro.eval.formats.captions import CAPTION_KEYS

__all__ = [
    "CAPTION_KEYS",
    "Caption",
    "CaptionCounts",
    "CaptionScore",
    "ChairScore",
    "parse_captions",
    "score",
    "score_readings",
]
