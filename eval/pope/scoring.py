"""POPE: polling a model about objects that are there and objects that are not (Li et al., EMNLP 2023).

`score` is the whole way from questions and answers to the numbers; `load_questions` and `load_answers` read them,
`build` makes new questions. The rules that read an answer are in `damro.eval.pope.rules`.

    >>> questions = [{"question_id": n, "image": "a.jpg", "text": f"Is there a {noun} in the image?", "label": label}
    ...              for n, noun, label in ((1, "cat", "yes"), (2, "dog", "no"), (3, "bus", "no"))]
    >>> answers = [{"question_id": n, "answer": text} for n, text in ((1, "Yes"), (2, "No."), (3, "Yes, there is."))]
    >>> result = score(questions, answers)
    >>> result.tp, result.fp, result.tn, result.fn, result.precision
    (1, 1, 1, 0, 0.5)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from damro.eval.errors import EvalError
from damro.eval.pope.questions import Answer, Question, align
from damro.eval.pope.rules import parse_answer, read_neutrally

Outcome = Literal["tp", "fp", "tn", "fn", "unread"]


@dataclass(frozen=True)
class PopeScore:
    """The result of one POPE run under one rule; *yes* is the positive class.

    Attributes:
        tp: Right yeses.
        fp: Wrong yeses.
        tn: Right noes.
        fn: Wrong noes (`judge` says what else).
        unparsed: Answers that are neither a yes nor a no to a neutral reader, however the rule counts them.
        misread: Answers that are a yes or a no to a neutral reader, and not the same to the rule.
        accuracy: ``(tp + tn) / n``.
        precision: ``tp / (tp + fp)``.
        recall: ``tp / (tp + fn)``.
        f1: ``2 precision recall / (precision + recall)``.
        yes_ratio: ``(tp + fp) / n``, the share of answers read as yes.
        n: Number of questions. It exceeds tp + fp + tn + fn by the *unread* answers of `judge`.
        rule: The rule that read the answers.

    A fraction whose denominator is zero is None.
    """

    tp: int
    fp: int
    tn: int
    fn: int
    unparsed: int
    misread: int
    accuracy: float
    precision: float | None
    recall: float | None
    f1: float | None
    yes_ratio: float
    n: int
    rule: str

    def to_dict(self) -> dict[str, int | float | str | None]:
        """Return the fields as a dictionary, in their order."""
        return asdict(self)


def score(
    questions: Iterable[Question | Mapping[str, Any]],
    answers: Iterable[Answer | Mapping[str, Any]],
    rule: str = "pope",
) -> PopeScore:
    """Join answers to questions and score them.

    Args:
        questions: `Question`s, or records of POPE's format.
        answers: `Answer`s, or records with the answer under ``answer``, ``text``, ``output`` or ``response``.
        rule: One of `RULES`.

    Raises:
        AlignmentError: Answers are missing, doubled or unknown.
        EvalError: The rule is unknown, a record is malformed, or there are no questions.
    """
    return score_pairs(align(questions, answers), rule)


def score_pairs(pairs: Iterable[tuple[Question, str]], rule: str = "pope") -> PopeScore:
    """Score questions that already have their answers, as `align` returns them.

    Raises:
        EvalError: The rule is unknown, or there are no questions.
    """
    pairs = list(pairs)
    if not pairs:
        raise EvalError("pairs must hold at least one question, got none")
    neutral = [read_neutrally(text) for _, text in pairs]
    counts = Counter(judge(question, text, rule) for question, text in pairs)
    tp, fp, tn, fn = (counts[outcome] for outcome in ("tp", "fp", "tn", "fn"))
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    f1 = None if precision is None or recall is None else _ratio(2 * precision * recall, precision + recall)
    return PopeScore(
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
        unparsed=neutral.count("unknown"),
        misread=sum(
            verdict not in ("unknown", parse_answer(text, rule, question.label))
            for verdict, (question, text) in zip(neutral, pairs, strict=True)
        ),
        accuracy=(tp + tn) / len(pairs),
        precision=precision,
        recall=recall,
        f1=f1,
        yes_ratio=(tp + fp) / len(pairs),
        n=len(pairs),
        rule=rule,
    )


def judge(question: Question, text: str, rule: str = "pope") -> Outcome:
    """Say which of the four counts one answer adds to, or none of them.

    Where a rule reads an answer as unknown, it is wrong, and otherwise counted as the rule's source does, so that every
    rule gives the precision, recall and F1 of its source: VLMEvalKit takes it for a missed object if the label is yes
    ("fn"), and leaves it out of precision if the label is no ("unread"); lmms-eval leaves it out of both ("unread").

    Raises:
        EvalError: The rule is unknown.

    Example:
        >>> question = Question("1", "a.jpg", "Is there a cat in the image?", "yes")
        >>> [judge(question, "Perhaps.", rule) for rule in ("pope", "vlmeval", "lmms")]
        ['tp', 'fn', 'unread']
    """
    verdict = parse_answer(text, rule, question.label)
    if verdict == "unknown":
        return "fn" if rule == "vlmeval" and question.label == "yes" else "unread"
    if verdict == "yes":
        return "tp" if question.label == "yes" else "fp"
    return "tn" if question.label == "no" else "fn"


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
