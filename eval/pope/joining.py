"""Which answers belong to which questions: files of one split, files of several, files that say no more than an order.

`damro.eval.pope.questions.align` joins the answers of one file to the questions of one split. Other tools write all
splits into one file, leave out images, number questions in their own way or keep the labels beside the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple, TypeVar

from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.pope.questions import Answer, Question, agree, align, load_answers, load_questions
from damro.eval.pope.rules import parse_label
from damro.eval.resources import POPE_SPLITS

BY_KEY = "id, or image and question"
BY_TEXTS = "order, which the texts of the questions confirm"
BY_ORDER = "order alone"
BY_LABELS = "labels of the file of answers"
WITHOUT_IMAGES = "labels of the file of answers; it names no images, so each question counts as one in intervals"


class Part(NamedTuple):
    """The answers to the questions of one split.

    Attributes:
        name: Of the split, or of the file.
        pairs: Each question with its answer.
        joined: By what they were joined.
    """

    name: str
    pairs: list[tuple[Question, str]]
    joined: str


class _Asked(NamedTuple):
    name: str
    questions: list[Question]


P = TypeVar("P", Part, _Asked)


def join_files(questions: Sequence[str], answers: Sequence[str], *, by_order: bool = False) -> list[Part]:
    """Read questions and answers, and give every question its answer.

    Args:
        questions: Shipped splits or files of questions; none where the answers hold their labels.
        answers: As many files of answers, in the order of the questions; or one with the answers to all of them,
            which is parted by the splits that it names, by the texts of the questions in their order, or by image and
            question.
        by_order: Join by nothing but the order.

    Returns:
        A part a split, in the order of the questions.

    Raises:
        AlignmentError: Answers are missing, doubled or unknown, or cannot be joined.
        DataFormatError: A file is malformed.
        EvalError: The numbers of files do not go together.
    """
    said = [(Path(path).name, load_answers(path)) for path in answers]
    if not questions:
        if by_order:
            raise EvalError("--by-order must come with --split or --questions, got neither: name what was asked")
        return _named_once([part for name, of_file in said for part in _own_labels(name, of_file)])
    asked = [_Asked(_name(source), load_questions(source)) for source in questions]
    _named_once(asked)
    if len(said) == len(asked):
        return [_join(one, of_file, by_order) for one, (_, of_file) in zip(asked, said, strict=True)]
    if len(said) == 1:
        return _divide(asked, said[0][1], by_order)
    raise EvalError(
        f"--answers must be one file with all answers, or one a split ({len(asked)}), got {len(said)}: give them in "
        "the order of the splits"
    )


def _named_once(parts: list[P]) -> list[P]:
    """The parts, which are told apart by their names."""
    names = [part.name for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EvalError(f"each split must be given once, got {twice!r} twice: leave one out, or score them one by one")
    return parts


def _name(source: str) -> str:
    return source if source in POPE_SPLITS else Path(source).name


def _join(asked: _Asked, said: Sequence[Answer], by_order: bool) -> Part:
    said = _of_split(asked.name, said)
    if by_order:
        return Part(asked.name, _pair_in_order(asked, said), BY_ORDER)
    try:
        return Part(asked.name, align(asked.questions, said), BY_KEY)
    except AlignmentError as error:
        if _fit_in_order(asked.questions, said):
            return Part(asked.name, _pairs(asked.questions, said), BY_TEXTS)
        if said and all(answer.label and not answer.image for answer in said):
            raise AlignmentError(
                f"{error}. The answers have labels of their own: leave out --split or --questions to score by them"
            ) from error
        raise


def _of_split(name: str, said: Sequence[Answer]) -> list[Answer]:
    """The answers of a split, where all of them say which they are of."""
    if not said or not all(answer.splits for answer in said):
        return list(said)
    short = _short(name)
    found = [answer for answer in said if name in answer.splits or short in answer.splits]
    named = sorted({split for answer in said for split in answer.splits})
    # A file of questions is called anything, and other categories say nothing about splits.
    if not found and name in POPE_SPLITS and any(split in map(_short, POPE_SPLITS) for split in named):
        raise AlignmentError(
            f"answers must be of {name}, got answers of {', '.join(named)[:80]}: name the split that was asked"
        )
    return found or list(said)


def _short(split: str) -> str:
    """What tools call a split: "random" for "coco/random_2910"."""
    return split.rpartition("/")[2].partition("_")[0]


def _divide(asked: Sequence[_Asked], said: Sequence[Answer], by_order: bool) -> list[Part]:
    """One file's answers to the questions of several splits."""
    if not by_order and all(answer.splits for answer in said):
        return [_join(one, said, by_order) for one in asked]
    total = sum(len(one.questions) for one in asked)
    if len(said) != total:
        sizes = " + ".join(f"{len(one.questions)} of {one.name}" for one in asked)
        older = "; LLaVA's file of POPE has the 2910 questions of coco/random_2910" if len(said) == 8910 else ""
        raise AlignmentError(
            f"one file must answer all questions ({sizes}), got {len(said)} answers: name the splits that it answers"
            f"{older}"
        )
    if by_order:
        return [Part(one.name, _pair_in_order(one, of_one), BY_ORDER) for one, of_one in _cut(asked, said)]
    for order in permutations(range(len(asked))) if len(asked) <= 4 else [tuple(range(len(asked)))]:
        cut = _cut([asked[n] for n in order], said)
        if all(_fit_in_order(one.questions, of_one) for one, of_one in cut):
            parts = {one.name: Part(one.name, _pairs(one.questions, of_one), BY_TEXTS) for one, of_one in cut}
            return [parts[one.name] for one in asked]
    whole = _Asked("", [question for one in asked for question in one.questions])
    pairs = align(whole.questions, said)
    starts = [sum(len(one.questions) for one in asked[:n]) for n in range(len(asked) + 1)]
    return [Part(one.name, pairs[starts[n] : starts[n + 1]], BY_KEY) for n, one in enumerate(asked)]


def _cut(asked: Sequence[_Asked], said: Sequence[Answer]) -> list[tuple[_Asked, Sequence[Answer]]]:
    parts, start = [], 0
    for one in asked:
        parts.append((one, said[start : start + len(one.questions)]))
        start += len(one.questions)
    return parts


def _fit_in_order(questions: Sequence[Question], said: Sequence[Answer]) -> bool:
    """Whether answers, which all name their question, are to these questions in this order."""
    return len(questions) == len(said) and all(
        answer.question is not None and agree(question, answer)
        for question, answer in zip(questions, said, strict=True)
    )


def _pairs(questions: Sequence[Question], said: Sequence[Answer]) -> list[tuple[Question, str]]:
    return [(question, answer.text) for question, answer in zip(questions, said, strict=True)]


def _pair_in_order(asked: _Asked, said: Sequence[Answer]) -> list[tuple[Question, str]]:
    """Join by order; what answers say of image and question must not contradict it."""
    if len(said) != len(asked.questions):
        raise AlignmentError(
            f"answers must be as many as the {len(asked.questions)} questions of {asked.name} to be joined by order, "
            f"got {len(said)}: give all of them"
        )
    wrong = [
        n
        for n, (question, answer) in enumerate(zip(asked.questions, said, strict=True), 1)
        if not agree(question, answer)
    ]
    if wrong:
        raise AlignmentError(
            f"answers must be in the order of the questions of {asked.name}, got {len(wrong)} about another image or "
            f"question, the first in place {wrong[0]}: leave out --by-order, or name the questions that were asked"
        )
    return _pairs(asked.questions, said)


def _own_labels(name: str, said: Sequence[Answer]) -> list[Part]:
    """The answers of a file that holds its labels, split by split."""
    bare = [n for n, answer in enumerate(said, start=1) if answer.label is None]
    if bare:
        raise EvalError(
            f"--split or --questions must name what was asked, since {len(bare)} of {len(said)} answers of {name} have "
            "no label of their own: give a shipped split such as coco/random, or a file of questions"
        )
    named = all(answer.image for answer in said)
    parts: dict[str, list[tuple[Question, str]]] = {}
    for number, answer in enumerate(said, start=1):
        image = answer.image if named and answer.image else f"question {number}"
        try:
            label = parse_label(answer.label)
        except EvalError as error:
            raise DataFormatError(f"{name}, answer {number}: {error}") from error
        question = Question(str(number), image, answer.question or "", label)
        for split in answer.splits or (name,):
            parts.setdefault(split, []).append((question, answer.text))
    return [Part(split, pairs, BY_LABELS if named else WITHOUT_IMAGES) for split, pairs in parts.items()]
