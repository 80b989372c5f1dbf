"""MME: two yes/no questions an image, scored by category."""

from damro.eval.mme.score import CATEGORIES, HALLUCINATION, CategoryScore, MMEAnswer, MMEScore, load_answers, score

__all__ = ["CATEGORIES", "HALLUCINATION", "CategoryScore", "MMEAnswer", "MMEScore", "load_answers", "score"]
