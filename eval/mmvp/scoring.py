"""MMVP's scores (Tong et al., Eyes Wide Shut, CVPR 2024, arXiv 2401.06209), by a rule in place of the judge.

*pair accuracy* is that of ``scripts/gpt_grader.py`` of repository tsb0601/MMVP: two answers in a row are a pair, which
is right if both are. There GPT-4 says whether an answer is right; what it says beyond a bare yes or no counts as wrong.
Here the letter is read by a rule of `damro.eval.choices`. `first` is that of InternVL's script, which has no judge
(OpenGVLab/InternVL, ``internvl_chat/eval/mmvp/evaluate_mmvp.py``) and asks with options "A. ..." for "(a) ...".
*single* is the share of right answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from damro.eval.benchmark import Group, Measure, Note, share
from damro.eval.choices import read_choice
from damro.eval.errors import AlignmentError, EvalError
from damro.eval.mmvp.questions import split_options

MEASURES: dict[str, Measure] = {
    "pair_accuracy": Measure(share(lambda m: m[..., 0], lambda m: m[..., 1]), "pair accuracy", plotted=True),
    "single": Measure(share(lambda m: m[..., 2], lambda m: m[..., 3]), "single"),
}
"""Of the columns pairs with both right, pairs, right answers, answers."""


class MmvpAnswer(NamedTuple):
    """What a model said to one question.

    Attributes:
        pair: The pair's name.
        options: "(a) Open (b) Closed".
        gold: The right letter, upper case.
        text: The model's answer.
    """

    pair: str
    options: str
    gold: str
    text: str


def score_groups(given: Iterable[MmvpAnswer], rule: str = "letter") -> list[Group]:
    """Return the one group of all pairs. Pairs are what a bootstrap draws.

    A pair that lacks an answer is left out, and told.

    Args:
        given: The answers.
        rule: One of `damro.eval.choices.CHOICE_RULES`.

    Raises:
        AlignmentError: A pair has more than two answers.
        EvalError: The rule is unknown, or no pair has both its answers.
    """
    pairs: dict[str, list[MmvpAnswer]] = {}
    for answer in given:
        pairs.setdefault(answer.pair, []).append(answer)
    many = [name for name, answers in pairs.items() if len(answers) > 2]
    if many:
        raise AlignmentError(
            f"a pair must have two answers, got {len(pairs[many[0]])} for pair {many[0]}: give each once"
        )
    whole = {name: answers for name, answers in pairs.items() if len(answers) == 2}
    if not whole:
        raise EvalError("answers must hold at least one pair with both its answers, got none")
    counts: dict[str, tuple[float, ...]] = {}
    unparsed = 0
    for name, answers in whole.items():
        said = [read_choice(one.text, split_options(one.options), rule) for one in answers]
        unparsed += said.count(None)
        right = sum(letter == one.gold for letter, one in zip(said, answers, strict=True))
        counts[name] = (float(right == 2), 1.0, float(right), 2.0)
    both, n, right_ones, lines = (int(sum(column)) for column in zip(*counts.values(), strict=True))
    scores = {"pair_accuracy": both / n, "single": right_ones / lines, "n": lines, "pairs": n, "unparsed": unparsed}
    notes = [
        Note("choice", rule),
        Note("pairs", n),
        Note("unparsed", unparsed, "chose no option by this rule, and counted as not right", unparsed > 0),
    ]
    if len(whole) < len(pairs):
        left = len(pairs) - len(whole)
        notes.append(Note("left out", left, "pairs without the answer to one of their questions", doubtful=True))
    return [Group("pairs", scores, counts, MEASURES, notes=tuple(notes))]
