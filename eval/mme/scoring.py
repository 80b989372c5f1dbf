"""MME: two yes/no questions an image, scored by category (Fu et al., arXiv 2306.13394).

A category's score is ``100 * (accuracy + accuracy_plus)``, 200 at best: accuracy over its questions, accuracy_plus over
its images, where an image counts if both its questions are answered right.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.pope.rules import parse_label
from damro.eval.records import read_text

HALLUCINATION = ("existence", "count", "position", "color")
"""The categories of MME's hallucination subset."""

PERCEPTION = (*HALLUCINATION, "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
"""The ten categories of perception."""

COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
"""The four categories of cognition."""

CATEGORIES = (*PERCEPTION, *COGNITION)
"""All categories."""

SUMS = {"hallucination": HALLUCINATION, "perception": PERCEPTION, "cognition": COGNITION}
"""The sums that are quoted beside the total, and the categories that each is of."""


class MMEAnswer(NamedTuple):
    """One question of MME and what the model said.

    Attributes:
        category: One of `CATEGORIES`.
        image: The image's name.
        question: The question.
        gold: The gold label.
        answer: The model's answer.
        p_yes: The probability of a yes, where that was read in place of an answer.
    """

    category: str
    image: str
    question: str
    gold: Literal["yes", "no"]
    answer: str
    p_yes: float | None = None


@dataclass(frozen=True)
class CategoryScore:
    """The result of one category.

    Attributes:
        accuracy: Share of questions answered right.
        accuracy_plus: Share of images with both questions answered right.
        score: ``100 * (accuracy + accuracy_plus)``.
        other: Answers read as neither yes nor no; they are wrong.
        n_questions: Number of questions.
        n_images: Number of images.
    """

    accuracy: float
    accuracy_plus: float
    score: float
    other: int
    n_questions: int
    n_images: int


@dataclass(frozen=True)
class MMEScore:
    """The result over all categories given.

    Attributes:
        categories: The result of each category, in the order of `CATEGORIES`.
        hallucination: Sum of the four scores of the hallucination subset (800 at best), None if one is not there.
        perception: Likewise of the ten of perception (2,000 at best).
        cognition: Likewise of the four of cognition (800 at best).
        total: Sum of the scores of all categories given.
    """

    categories: dict[str, CategoryScore]
    hallucination: float | None
    perception: float | None
    cognition: float | None
    total: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, in their order."""
        return asdict(self)


def parse_answer(text: str) -> Literal["yes", "no", "other"]:
    """Read an answer as MME's own script does: "yes" or "no" anywhere in its first four letters, lower-cased.

    Example:
        >>> [parse_answer(text) for text in ("Yes, it is.", "Not really", "There is one", "I know")]
        ['yes', 'no', 'other', 'other']
    """
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def load_answers(path: Path | str, category: str | None = None) -> list[MMEAnswer]:
    r"""Read an official answer file: ``image\tquestion\tgold\tanswer`` a line.

    Args:
        path: The file.
        category: One of `CATEGORIES`; None takes it from the end of the file's name, ``model_count.txt``, say.

    Raises:
        DataFormatError: The file cannot be read, is empty, a line has not four fields, or a label is not yes or no;
            names the file and the line.
        EvalError: The category is unknown.
    """
    path = Path(path)
    text = read_text(path)  # first: of a file that is not there, its name is not the fault
    category = _category_of(path) if category is None else category
    if category not in CATEGORIES:
        raise EvalError(f"category must be one of {', '.join(CATEGORIES)}, got {category!r}")
    answers = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.removesuffix("\r").split("\t")
        if len(fields) != 4:
            raise DataFormatError(
                f"{path}, line {number}: must be image, question, gold and answer with tabs between, "
                f"got {len(fields)} fields: {ascii(line)[:80]}"
            )
        image, question, gold, answer = fields
        try:
            answers.append(MMEAnswer(category, image, question, parse_label(gold), answer))
        except EvalError as error:
            raise DataFormatError(f"{path}, line {number}: {error}") from error
    if not answers:
        raise DataFormatError(f"{path}: must hold at least one answer, is empty")
    return answers


def score(answers: Iterable[MMEAnswer]) -> MMEScore:
    """Score answers of any number of categories.

    Raises:
        AlignmentError: An image of a category has not exactly two different questions; names the first few and the
            count.
        EvalError: There are no answers, or a category is unknown.

    Example:
        >>> asked = [("a.jpg", "one?", "yes", "Yes"), ("a.jpg", "two?", "no", "No"),
        ...          ("b.jpg", "one?", "yes", "Yes"), ("b.jpg", "two?", "no", "Yes")]
        >>> score(MMEAnswer("count", *each) for each in asked).categories["count"].score
        125.0
    """
    grouped: dict[str, list[MMEAnswer]] = defaultdict(list)
    for answer in answers:
        grouped[answer.category].append(answer)
    if not grouped:
        raise EvalError("answers must hold at least one answer, got none")
    unknown = sorted(set(grouped) - set(CATEGORIES))
    if unknown:
        raise EvalError(f"category must be one of {', '.join(CATEGORIES)}, got {unknown[0]!r}")
    categories = {name: _score_category(name, grouped[name]) for name in CATEGORIES if name in grouped}
    sums = {
        name: sum(categories[one].score for one in parts) if all(one in categories for one in parts) else None
        for name, parts in SUMS.items()
    }
    return MMEScore(categories=categories, **sums, total=sum(result.score for result in categories.values()))


def _score_category(name: str, answers: list[MMEAnswer]) -> CategoryScore:
    asked = Counter((answer.image, answer.question) for answer in answers)
    per_image = Counter(image for image, _ in asked.elements())
    wrong = [image for image, count in per_image.items() if count != 2]
    wrong += [image for (image, _), count in asked.items() if count == 2 == per_image[image]]
    if wrong:
        raise AlignmentError(
            f"every image of {name!r} must have two different questions, got {len(wrong)} images that have not "
            f"({', '.join(ascii(image)[1:-1] for image in wrong[:3])}): give each question's answer once"
        )
    verdicts = [(answer, parse_answer(answer.answer)) for answer in answers]
    right = Counter(answer.image for answer, verdict in verdicts if verdict == answer.gold)
    accuracy = right.total() / len(answers)
    accuracy_plus = sum(count == 2 for count in right.values()) / len(per_image)
    return CategoryScore(
        accuracy=accuracy,
        accuracy_plus=accuracy_plus,
        score=100 * (accuracy + accuracy_plus),
        other=sum(verdict == "other" for _, verdict in verdicts),
        n_questions=len(answers),
        n_images=len(per_image),
    )


def category_in(stem: str) -> str | None:
    """Return the category that the stem of a file's name ends in, if it does.

    Example:
        >>> category_in("my-model_existence"), category_in("answers")
        ('existence', None)
    """
    return next((name for name in CATEGORIES if stem == name or stem.endswith(f"_{name}")), None)


def _category_of(path: Path) -> str:
    name = category_in(path.stem)
    if name is not None:
        return name
    raise EvalError(
        "an answer file's name must end in its category, such as existence.txt or my-model_existence.txt, got "
        f"{path.name!r}: rename it after one of {', '.join(CATEGORIES)}"
    )
