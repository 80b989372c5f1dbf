"""POPE's questions and a model's answers: reading them, and joining them one to one.

Questions have POPE's own format, ``{"question_id", "image", "text", "label"}``. An answer has its text under
``answer``, ``output``, ``response`` or ``text``, and says which question it belongs to by ``question_id``, or by
``image`` and the question under ``question``, ``prompt`` or, where that is not the answer, ``text``. Files of other
tools are read by `damro.eval.formats.answers`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.formats.answers import read_answers
from damro.eval.pope.rules import parse_label
from damro.eval.records import each_record
from damro.eval.resources import POPE_SPLITS, pope_questions_path

_SHOWN = 3
_ANSWER_KEYS = ("answer", "output", "response")


class Question(NamedTuple):
    """One yes/no question.

    Attributes:
        question_id: The id as text (``"1"`` and ``1`` are the same id), or None.
        image: The image's file name.
        text: The question.
        label: The gold label.
    """

    question_id: str | None
    image: str
    text: str
    label: Literal["yes", "no"]


class Answer(NamedTuple):
    """One answer of a model.

    Attributes:
        question_id: The id of its question as text, or None.
        image: The image's file name, or None.
        question: The question or the whole prompt, or None.
        text: What the model said.
        label: The gold label, where the file has it, or None.
        splits: The splits that the question is of, where the file names them.
    """

    question_id: str | None
    image: str | None
    question: str | None
    text: str
    label: str | None = None
    splits: tuple[str, ...] = ()


def load_questions(source: Path | str) -> list[Question]:
    """Read POPE questions from a file, or a shipped split by name.

    Args:
        source: A ``.json``, ``.jsonl`` or ``.gz`` file, or one of `POPE_SPLITS` such as ``"coco/popular"``; the name
            of a split wins over a file of that name.

    Raises:
        DataFormatError: A record is malformed; names the file, the line and what was wrong.

    Example:
        >>> questions = load_questions("coco/random_2910")
        >>> len(questions), questions[0].text, questions[0].label
        (2910, 'Is there a snowboard in the image?', 'yes')
    """
    path = pope_questions_path(str(source)) if str(source) in POPE_SPLITS else Path(source)
    return [to_question(fields, where) for where, fields in each_record(path)]


def load_answers(path: Path | str) -> list[Answer]:
    """Read a model's answers from a ``.json``, ``.jsonl`` or ``.gz`` file, or one of another tool.

    Args:
        path: See `damro.eval.formats.answers.read_answers`.

    Raises:
        DataFormatError: A record is malformed; names the file, the line and what was wrong.
        EvalError: The package that reads such files is not installed.
    """
    return [to_answer(fields, where) for where, fields in read_answers(path)]


def to_question(fields: Mapping[str, Any], where: str) -> Question:
    """Make a `Question` of a record; ``text`` may also be called ``question``.

    Args:
        fields: The record.
        where: Where it stands, for the message of the error.

    Raises:
        DataFormatError: A field is missing or not of its type, or the label is neither yes nor no.
    """
    text = _text(fields, "text", where) or _text(fields, "question", where)
    image = _text(fields, "image", where)
    if not text or not image:
        raise DataFormatError(
            f"{where}: a question must have 'image' and 'text' (the question), got keys {_keys(fields)}"
        )
    try:
        label = parse_label(fields.get("label"))
    except EvalError as error:
        raise DataFormatError(f"{where}: {error}") from error
    return Question(_identifier(fields, where), image, text, label)


def to_answer(fields: Mapping[str, Any], where: str) -> Answer:
    """Make an `Answer` of a record.

    Args:
        fields: The record.
        where: Where it stands, for the message of the error.

    Raises:
        DataFormatError: There is no answer, there are two (both ``answer`` and ``response``, say: one may be the gold
            label), or a field is not of its type.
    """
    keys = [key for key in _ANSWER_KEYS if key in fields]
    if len(keys) > 1:
        raise DataFormatError(f"{where}: must have one answer, got {' and '.join(map(repr, keys))}: keep the model's")
    key = keys[0] if keys else "text"
    text = _text(fields, key, where)
    if text is None:
        raise DataFormatError(
            f"{where}: the answer must be text under 'answer', 'text', 'output' or 'response', got keys {_keys(fields)}"
        )
    question = _text(fields, "question", where) or _text(fields, "prompt", where)
    if not question and key != "text":
        question = _text(fields, "text", where)
    image = _text(fields, "image", where) or None
    label, splits = fields.get("label"), _splits(fields)
    return Answer(
        _identifier(fields, where), image, question or None, text, label if isinstance(label, str) else None, splits
    )


def align(
    questions: Iterable[Question | Mapping[str, Any]], answers: Iterable[Answer | Mapping[str, Any]]
) -> list[tuple[Question, str]]:
    """Give every question its answer's text, in the order of the questions.

    The join is by ``question_id`` if the two share ids and no answer names another image or question than its id
    does; else by (image, question). There the image's folder, an ``<image>`` mark and what a prompt adds after the
    question mark are ignored; a question that stands twice, with one label, takes its two answers in order.

    Args:
        questions: `Question`s, or records of their format.
        answers: `Answer`s, or records of their format.

    Raises:
        AlignmentError: Answers are missing, doubled or unknown, cannot be joined, or are the questions themselves;
            names the first few and the count.
        DataFormatError: A record is malformed.
        EvalError: There are no questions.

    Example:
        >>> question = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "no"}
        >>> answer = {"question_id": 7, "image": "a.jpg", "question": question["text"], "answer": "No"}
        >>> align([question], [answer])[0][1]
        'No'
    """
    asked = [
        item if isinstance(item, Question) else to_question(item, f"questions[{place}]")
        for place, item in enumerate(questions)
    ]
    said = [
        item if isinstance(item, Answer) else to_answer(item, f"answers[{place}]") for place, item in enumerate(answers)
    ]
    if not asked:
        raise EvalError("questions must hold at least one question, got none")
    ids = _by_id(asked)
    conflicts = [
        f"id {answer.question_id}"
        for answer in said
        if answer.question_id in ids and not agree(ids[answer.question_id], answer)
    ]
    if not conflicts and any(answer.question_id in ids for answer in said):
        return _join(
            asked, said, [f"id {item.question_id}" for item in asked], [f"id {item.question_id}" for item in said]
        )
    if said and all(answer.image and answer.question for answer in said):
        _check_repeated(asked)
        keys = [_pair(answer.image or "", answer.question or "") for answer in said]
        return _join(asked, said, [_pair(item.image, item.text) for item in asked], keys)
    if conflicts:
        raise AlignmentError(
            f"an answer must name the image and question of its id, got {len(conflicts)} that name others "
            f"({_first(conflicts)}): give the answers to these questions"
        )
    raise AlignmentError(
        f"each answer must carry its question's id, or its image and question, got {len(said)} answers to {len(asked)} "
        f"questions, {_no_shared_id(asked, said)}"
    )


def _no_shared_id(asked: Sequence[Question], said: Sequence[Answer]) -> str:
    """Why answers cannot be joined by id, and what helps."""
    ids = [item.question_id for item in asked if item.question_id is not None]
    named = [item.question_id for item in said if item.question_id is not None]
    twice = [key for key, count in Counter(ids).items() if count > 1]
    both = "give the answers 'image' and 'question'"
    if not named:
        return f"where no answer has an id: add 'question_id', or {both}"
    if twice:
        return f"where {len(twice)} ids of questions stand twice ({_first(twice)}): {both}, or each question its own id"
    if len(ids) < len(asked):
        return f"where {len(asked) - len(ids)} questions have no 'question_id': add it, or {both}"
    return (
        f"where no id of an answer ({_first(named)}) is one of a question ({_first(ids)}): give the answers to these "
        "questions"
    )


def _join(
    questions: list[Question], answers: list[Answer], question_keys: list[str], answer_keys: list[str]
) -> list[tuple[Question, str]]:
    wanted, given = Counter(question_keys), Counter(answer_keys)
    missing = [key for key in wanted if given[key] < wanted[key]]
    doubled = [key for key in given if key in wanted and given[key] > wanted[key]]
    unknown = [key for key in given if key not in wanted]
    if missing or doubled or unknown:
        parts = [
            f"{len(keys)} {kind} ({_first(keys)})"
            for kind, keys in (("missing", missing), ("doubled", doubled), ("unknown", unknown))
            if keys
        ]
        raise AlignmentError(
            f"every question must have one answer, got {len(answers)} answers to {len(questions)} questions: "
            f"{'; '.join(parts)}. Give the answers to these questions"
        )
    given_to: dict[str, list[Answer]] = defaultdict(list)
    for key, answer in zip(answer_keys, answers, strict=True):
        given_to[key].append(answer)
    turns = {key: iter(said) for key, said in given_to.items()}
    pairs = [(question, next(turns[key])) for key, question in zip(question_keys, questions, strict=True)]
    _check_answered(pairs)
    return [(question, answer.text) for question, answer in pairs]


def _check_answered(pairs: list[tuple[Question, Answer]]) -> None:
    # A model may repeat its question; but where nothing else is the question, the text is no answer.
    asked = [
        _pair(question.image, question.text)
        for question, answer in pairs
        if answer.question is None and _plain(answer.text) == _plain(question.text)
    ]
    if asked:
        raise AlignmentError(
            f"an answer must be what the model said, got {len(asked)} of {len(pairs)} that are the question "
            f"({_first(asked)}): give the model's answers, not the questions"
        )


def _by_id(questions: list[Question]) -> dict[str | None, Question]:
    # Ids that are missing or used twice (files of several splits put together) cannot join anything.
    ids: dict[str | None, Question] = {item.question_id: item for item in questions if item.question_id is not None}
    return ids if len(ids) == len(questions) else {}


def agree(question: Question, answer: Answer) -> bool:
    """Whether an answer names, as far as it does, the image and the question of a question."""
    same_image = answer.image is None or _file_name(answer.image) == _file_name(question.image)
    return same_image and (answer.question is None or _plain(question.text) in _plain(answer.question))


def _check_repeated(questions: list[Question]) -> None:
    labels: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        labels[_pair(question.image, question.text)].add(question.label)
    both = [key for key, found in labels.items() if len(found) > 1]
    if both:
        raise AlignmentError(
            f"a question that stands twice must have one label, got {len(both)} with two ({_first(both)}): "
            "join by question_id, or remove one of each"
        )


def _pair(image: str, question: str) -> str:
    asked = _plain(question)
    return f"{_file_name(image)}: {asked[: asked.index('?') + 1] if '?' in asked else asked}"


def _plain(text: str) -> str:
    # POPE's first builder put "an" for every "a" of the template; later copies of its files mend "imange" or not.
    return " ".join(text.replace("<image>", " ").replace("imange", "image").split())


def _file_name(image: str) -> str:
    return image.replace("\\", "/").rsplit("/", 1)[-1]


def _identifier(fields: Mapping[str, Any], where: str) -> str | None:
    value = fields.get("question_id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataFormatError(f"{where}: question_id must be a whole number or text, got {ascii(value)[:80]}")
    return str(value)


def _splits(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The names under ``category`` or ``split``, which a comma parts."""
    names = fields.get("category", fields.get("split"))
    return tuple(name.strip() for name in names.split(",") if name.strip()) if isinstance(names, str) else ()


def _text(fields: Mapping[str, Any], key: str, where: str) -> str | None:
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise DataFormatError(f"{where}: {key!r} must be text, got {type(value).__name__} {ascii(value)[:80]}")
    return value


def _keys(fields: Mapping[str, Any]) -> str:
    return ascii(sorted(map(str, fields)))[:200]


def _first(keys: Sequence[str]) -> str:
    return ", ".join(ascii(key)[1:-1] for key in keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
