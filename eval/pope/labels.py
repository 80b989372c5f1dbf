"""Corrected labels for POPE questions (as RePOPE's, Neuhaus and Hein 2025): overrides and exclusions from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.pope import Question
from damro.eval.pope.rules import parse_label
from damro.eval.records import digest_of_file, read_records

T = TypeVar("T")
_EXCLUDED = (None, "", "exclude", "ambiguous", "unsure")


class Labels(NamedTuple):
    """Corrected labels.

    Attributes:
        by_question: By image and question, "imange" read as "image"; None excludes the question.
        complete: Whether a question that is not in here is excluded too.
        source: File name and checksum, for what is reported.
    """

    by_question: Mapping[tuple[str, str], str | None]
    complete: bool
    source: Mapping[str, str]


class Corrected(NamedTuple):
    """Questions under corrected labels.

    Attributes:
        questions: Those that stay, with the labels that count.
        changed: How many have another label than before.
        excluded: How many are left out.
    """

    questions: list[Question]
    changed: int
    excluded: int


def load_labels(path: Path | str, *, complete: bool = False) -> Labels:
    """Read corrected labels: records with ``image``, ``text`` (or ``question``) and ``label``.

    The label is yes or no; empty, null, "exclude", "ambiguous" or "unsure" excludes the question. Records are joined by
    image and question: the ids of POPE's splits overlap.

    Args:
        path: ``.json``, ``.jsonl`` or ``.gz``.
        complete: Exclude what the file does not name, as RePOPE's files mean it.

    Raises:
        DataFormatError: A record is malformed, or a question has two labels.
    """
    labels: dict[tuple[str, str], str | None] = {}
    for where, fields in read_records(path):
        image, text = fields.get("image"), fields.get("text", fields.get("question"))
        if not isinstance(image, str) or not isinstance(text, str) or "label" not in fields:
            raise DataFormatError(f"{where}: a corrected label must have 'image', 'text' and 'label'")
        given = fields["label"]
        try:
            label = None if given is None or str(given).strip().lower() in _EXCLUDED else parse_label(given)
        except EvalError as error:
            raise DataFormatError(f"{where}: {error}, or 'exclude'") from error
        if labels.setdefault(_key(image, text), label) != label:
            raise DataFormatError(f"{where}: a question must have one label, got two for {text!r} about {image}")
    return Labels(labels, complete, {"file": Path(path).name, "sha256": digest_of_file(path)})


def correct_pairs(
    pairs: Sequence[tuple[Question, T]], labels: Labels
) -> tuple[list[tuple[Question, T]], dict[str, int]]:
    """Apply corrected labels to questions that have their answers, texts or whatever was read in their place.

    Returns:
        The pairs that stay, and what is reported: ``labels_changed``, ``excluded_by_labels``.

    Raises:
        EvalError: Not one of them is in the file, or it excludes all of them.
    """
    # By their places: questions may have no ids.
    found = correct([question._replace(question_id=str(n)) for n, (question, _) in enumerate(pairs)], labels)
    if not found.questions:
        raise EvalError(f"--labels must leave at least one question, got a file that excludes all {found.excluded}")
    kept = []
    for corrected in found.questions:
        question, text = pairs[int(corrected.question_id or 0)]
        kept.append((question._replace(label=corrected.label), text))
    return kept, {"labels_changed": found.changed, "excluded_by_labels": found.excluded}


def correct(questions: Iterable[Question], labels: Labels) -> Corrected:
    """Apply corrected labels to questions.

    Raises:
        EvalError: Not one of them is in the file.

    Example:
        >>> questions = [Question(str(n), "a.jpg", f"Is there {n}?", "yes") for n in range(3)]
        >>> labels = Labels({("a.jpg", "Is there 0?"): "no", ("a.jpg", "Is there 1?"): None}, False, {})
        >>> [(question.question_id, question.label) for question in correct(questions, labels).questions]
        [('0', 'no'), ('2', 'yes')]
    """
    kept, changed, known = [], 0, 0
    asked = list(questions)
    for question in asked:
        key = _key(question.image, question.text)
        known += key in labels.by_question
        label = labels.by_question.get(key, None if labels.complete else question.label)
        if label is None:
            continue
        changed += label != question.label
        kept.append(question._replace(label=parse_label(label)))
    if not known:
        raise EvalError(f"--labels must name questions of the run, got none of {len(asked)}: check images and texts")
    return Corrected(kept, changed, len(asked) - len(kept))


def _key(image: str, text: str) -> tuple[str, str]:
    """What names a question: POPE's files write "imange" after "an", RePOPE's of the same questions do not."""
    return image, text.replace(" imange", " image")
