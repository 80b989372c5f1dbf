"""POPE: polling a model about objects that are there and objects that are not."""

from damro.eval.pope.builder import build
from damro.eval.pope.questions import Answer, Question, align, load_answers, load_questions
from damro.eval.pope.rules import RULES, parse_answer
from damro.eval.pope.scoring import Outcome, PopeScore, judge, score, score_pairs
from damro.eval.resources import POPE_SPLITS

__all__ = [
    "POPE_SPLITS",
    "RULES",
    "Answer",
    "Outcome",
    "PopeScore",
    "Question",
    "align",
    "build",
    "judge",
    "load_answers",
    "load_questions",
    "parse_answer",
    "score",
    "score_pairs",
]
