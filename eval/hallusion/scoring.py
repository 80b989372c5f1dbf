"""HallusionBench's scores (Guan et al., CVPR 2024, arXiv 2310.14566), by a yes/no rule in place of the judge.

The counts are those of ``utils.py`` of repository tianyi-lab/HallusionBench (`assign_correctness`, `get_eval_all`,
`get_eval_fig`, `get_eval_pair_all`), in which GPT-4 says of an answer whether it is correct, incorrect or unclear:

- *aAcc*: the share of questions answered right;
- *fAcc*: the share of figures of which all questions are;
- *qAcc*: the share of question pairs of which all are: a question as it is asked of every figure of its set;
- *easy*, *hard*: the same of that part of a pair which is asked without a figure or of the original one, and of that
  which is asked of altered figures (`get_eval_pair_easy`, `get_eval_pair_hard`: "easy aAcc" and "hard aAcc" of the
  leaderboard, though they count pairs).

Where a question of VS is asked without a figure, an unclear answer is right and no figure counts. Without a judge,
answers are read as VLMEvalKit does without one (``vlmeval/dataset/utils/yorn.py``, `YOrN_Extraction`), the rule
`vlmeval` of `damro.eval.pope.rules`: exactly one of yes and no as a word, else unclear. VLMEvalKit's `Hallusion_rating`
names figures and pairs without VD or VS, so that those of the two subcategories "ocr" run into each other where their
numbers are the same (26 pairs of the official file); here and in the official script they are apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from damro.eval.benchmark import Group, Measure, Note, share
from damro.eval.errors import EvalError
from damro.eval.hallusion.questions import CATEGORIES, HallusionQuestion
from damro.eval.pope.rules import Verdict, parse_answer

RULE = "vlmeval"
"""The rule that reads answers."""
COLUMNS = (
    *("right answers", "questions", "figures all right", "figures", "pairs all right", "pairs"),
    *("easy parts all right", "easy parts", "hard parts all right", "hard parts"),
)
MEASURES: dict[str, Measure] = {
    "aAcc": Measure(share(lambda m: m[..., 0], lambda m: m[..., 1]), "aAcc", plotted=True),
    "fAcc": Measure(share(lambda m: m[..., 2], lambda m: m[..., 3]), "fAcc", plotted=True),
    "qAcc": Measure(share(lambda m: m[..., 4], lambda m: m[..., 5]), "qAcc", plotted=True),
    "easy": Measure(share(lambda m: m[..., 6], lambda m: m[..., 7]), "easy"),
    "hard": Measure(share(lambda m: m[..., 8], lambda m: m[..., 9]), "hard"),
}
"""Of the columns `COLUMNS`."""
ALL = "VD and VS"
"""Name of the group of all questions."""


class HallusionAnswer(NamedTuple):
    """A question with what a model said.

    Attributes:
        asked: The question.
        text: The model's answer.
        figure_size: How many questions its figure has; None for those that are given.
        pair_size: How many questions its pair has; likewise.
        half_size: How many the easy or hard part of its pair has; likewise.
    """

    asked: HallusionQuestion
    text: str
    figure_size: int | None = None
    pair_size: int | None = None
    half_size: int | None = None


def read_answer(text: str) -> Verdict:
    """Read an answer.

    Example:
        >>> [read_answer(text) for text in ("Yes, it is.", "No", "The left one.")]
        ['yes', 'no', 'unknown']
    """
    return parse_answer(text, RULE)


def is_right(answer: HallusionAnswer) -> bool:
    """Whether an answer counts as right: without a figure, one that is neither yes nor no does, too."""
    verdict = read_answer(answer.text)
    return verdict == answer.asked.gold or (verdict == "unknown" and not _has_figure(answer.asked))


def score_groups(given: Iterable[HallusionAnswer]) -> list[Group]:
    """Return a group for VD, for VS and, of both, for all. Sets of figures are what a bootstrap draws.

    Figures and pairs that lack an answer are left out, and told.

    Raises:
        EvalError: There are no answers.
    """
    answers = list(given)
    if not answers:
        raise EvalError("answers must hold at least one answer, got none")
    parts = {name: [one for one in answers if one.asked.category == name] for name in CATEGORIES}
    groups = [_group(name, part) for name, part in parts.items() if part]
    return [*groups, _group(ALL, answers)] if len(groups) > 1 else groups


def _has_figure(asked: HallusionQuestion) -> bool:
    return not (asked.category == "VS" and asked.figure_id == "0")


def _group(name: str, answers: Sequence[HallusionAnswer]) -> Group:
    counts: dict[str, list[float]] = {}
    for answer in answers:
        row = counts.setdefault("/".join(answer.asked.of_set), [0.0] * len(COLUMNS))
        row[0] += is_right(answer)
        row[1] += 1
    figures = [one for one in answers if _has_figure(one.asked)]
    lacking = [
        _count_whole(counts, 2, [(one.asked.of_figure, is_right(one), one.figure_size) for one in figures]),
        _count_whole(counts, 4, [(one.asked.of_pair, is_right(one), one.pair_size) for one in answers]),
    ]
    for column, half in ((6, "easy"), (8, "hard")):
        parts = [one for one in answers if one.asked.visual is not None and one.asked.of_half[-1] == half]
        _count_whole(counts, column, [(one.asked.of_half, is_right(one), one.half_size) for one in parts])
    totals = [int(sum(column)) for column in zip(*counts.values(), strict=True)]
    scores = {
        metric: totals[n] / totals[n + 1] if totals[n + 1] else None
        for metric, n in zip(MEASURES, range(0, len(COLUMNS), 2), strict=True)
    }
    unparsed = sum(read_answer(one.text) == "unknown" for one in answers)
    wrong = sum(read_answer(one.text) == "unknown" and _has_figure(one.asked) for one in answers)
    bare = sum(not _has_figure(one.asked) for one in answers)
    told = {"n": totals[1], "figures": totals[3], "pairs": totals[5], "unparsed": unparsed, "without_figure": bare}
    notes = [Note("rule", RULE), Note("questions", totals[1]), Note("without figure", bare)]
    notes.append(
        Note("unparsed", unparsed, "neither a yes nor a no; wrong, but for questions without a figure", wrong > 0)
    )
    notes += [
        Note(f"{what} left out", count, "questions of theirs have no answer", doubtful=True)
        for what, count in zip(("figures", "pairs"), lacking, strict=True)
        if count
    ]
    rows = {of_set: tuple(row) for of_set, row in counts.items()}
    return Group(name, {**scores, **told}, rows, MEASURES, notes=tuple(notes))


def _count_whole(
    counts: dict[str, list[float]], column: int, parts: Sequence[tuple[tuple[str, ...], bool, int | None]]
) -> int:
    """Count figures or pairs, and those that are right as a whole, in two columns; return how many lack an answer."""
    given = Counter(key for key, _, _ in parts)
    right = Counter(key for key, good, _ in parts if good)
    sizes = {key: size for key, _, size in parts}
    for key, count in given.items():
        if sizes[key] in (None, count):
            row = counts["/".join(key[:3])]
            row[column] += right[key] == count
            row[column + 1] += 1
    return sum(sizes[key] not in (None, count) for key, count in given.items())
