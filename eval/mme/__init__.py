"""MME: two yes/no questions an image, scored by category."""

from damro.eval.mme.scoring import (
    CATEGORIES,
    HALLUCINATION,
    CategoryScore,
    MMEAnswer,
    MMEScore,
    load_answers,
    parse_answer,
    score,
)

__all__ = [
    "CATEGORIES",
    "HALLUCINATION",
    "CategoryScore",
    "MMEAnswer",
    "MMEScore",
    "load_answers",
    "parse_answer",
    "score",
]
