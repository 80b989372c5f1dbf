"""AMBER: descriptions and yes/no questions, scored without a judge (Wang et al., arXiv 2311.07397)."""

from damro.eval.amber.descriptions import Described, describe_objects, extract_nouns, load_similarity
from damro.eval.amber.groups import AmberAnswer, read_yes_no, score_groups
from damro.eval.amber.questions import DIMENSIONS, AmberQuestion, WordLists, load_questions, load_words

__all__ = [
    "DIMENSIONS",
    "AmberAnswer",
    "AmberQuestion",
    "Described",
    "WordLists",
    "describe_objects",
    "extract_nouns",
    "load_questions",
    "load_similarity",
    "load_words",
    "read_yes_no",
    "score_groups",
]
