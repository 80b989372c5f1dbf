"""HallusionBench's file of questions, ``HallusionBench.json`` of repository tianyi-lab/HallusionBench."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.records import read_records

FILE = "HallusionBench.json"
CATEGORIES = ("VD", "VS")
"""Visual dependent: no answer without the figure. Visual supplement: common knowledge, which a figure may alter."""
PLACE = ("category", "subcategory", "set_id", "figure_id", "question_id")
"""What names a question."""
_VISUAL_OF = {("VD", True): "1", ("VD", False): "2", ("VS", True): "0", ("VS", False): ("1", "2")}
"""By category and whether a figure is the first of its set, what the official file has."""
_LABELS = {"yes": "1", "no": "0"}
_VISUAL: tuple[Literal["0", "1", "2"], ...] = ("0", "1", "2")


class HallusionQuestion(NamedTuple):
    """One question of HallusionBench.

    Attributes:
        category: One of `CATEGORIES`.
        subcategory: chart, illusion, ...
        set_id: The figures of a set are an original and what was made of it.
        figure_id: Of the figure in its set; "0" is the original or, in VS, no figure at all.
        question_id: Of the question in its set, where it is asked of several figures.
        question: The question.
        gold: The gold label.
        image: The figure's path below the folder of images; None without a figure.
        visual: "0" without a figure, "1" of an original figure, "2" of an altered one; None where that is not told.
    """

    category: str
    subcategory: str
    set_id: str
    figure_id: str
    question_id: str
    question: str
    gold: Literal["yes", "no"]
    image: str | None
    visual: Literal["0", "1", "2"] | None = None

    @property
    def of_set(self) -> tuple[str, ...]:
        """What names the set."""
        return self[:3]

    @property
    def of_figure(self) -> tuple[str, ...]:
        """What names the figure."""
        return self[:4]

    @property
    def of_pair(self) -> tuple[str, ...]:
        """What names the question over the figures of its set: a question pair."""
        return (*self[:3], self.question_id)

    @property
    def of_half(self) -> tuple[str, ...]:
        """What names the easy or the hard half of its pair: hard is what is asked of altered figures."""
        return (*self.of_pair, "hard" if self.visual == "2" else "easy")


def find_file(folder: Path) -> Path:
    """Return the file of questions that lies in the folder of images or beside it.

    Raises:
        EvalError: There is none.
    """
    for path in (folder / FILE, folder.parent / FILE):
        if path.is_file():
            return path
    raise EvalError(
        f"hallusion needs {FILE}, found none in {str(folder)!r} or beside it: give --questions with the file of "
        "repository tianyi-lab/HallusionBench"
    )


def load_questions(path: Path | str) -> list[HallusionQuestion]:
    """Read the questions of the file, those without a figure too.

    Raises:
        DataFormatError: The file cannot be read, a record lacks something, or a question stands twice.
    """
    questions = [to_question(fields, where) for where, fields in read_records(path)]
    check_once(questions, str(path))
    return questions


def check_once(questions: Iterable[HallusionQuestion], where: str) -> None:
    """Refuse a question that stands twice.

    Raises:
        DataFormatError: One does.
    """
    seen: set[tuple[str, ...]] = set()
    for asked in questions:
        if asked[:5] in seen:
            raise DataFormatError(f"{where}: must hold each question once, got {'/'.join(asked[:5])!r} twice")
        seen.add(asked[:5])


def to_question(fields: Mapping[str, Any], where: str) -> HallusionQuestion:
    """Return a question from a record of the official form.

    Raises:
        DataFormatError: It lacks something; names where it stands.
    """
    place = []
    for name in (*PLACE, "question"):
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise DataFormatError(
                f"{where}: a question of HallusionBench must have {name!r}, got {ascii(value)[:60]}: give {FILE} or "
                "answers in its form"
            )
        place.append(str(value).strip())
    if place[0] not in CATEGORIES:
        raise DataFormatError(f"{where}: category must be VD or VS, got {ascii(place[0])[:60]}")
    gold = str(fields.get("gt_answer"))
    if gold not in ("0", "1"):
        raise DataFormatError(f"{where}: gt_answer must be '0' (no) or '1' (yes), got {ascii(gold)[:60]}")
    file = fields.get("filename")
    if file is not None and not isinstance(file, str):
        raise DataFormatError(f"{where}: filename must be a path or null, got {ascii(file)[:60]}")
    image = PurePosixPath(file).as_posix() if file else None  # "./VD/..." is written there
    label: Literal["yes", "no"] = "yes" if gold == "1" else "no"
    visual = _visual(fields.get("visual_input"), where)
    category, subcategory, set_id, figure_id, question_id, question = place
    return HallusionQuestion(category, subcategory, set_id, figure_id, question_id, question, label, image, visual)


def official_form(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question of VLMEvalKit's as the official file has it; one that has that form already as it is.

    There the label is Yes or No under ``answer``, and ``index`` says where a question stands: category, subcategory,
    visual input, set, figure and question with "_" between.

    Example:
        >>> told = official_form({"index": "VS_map_2_0_1_3", "category": "VS", "answer": "Yes"})
        >>> [told[name] for name in ("set_id", "figure_id", "question_id", "visual_input", "gt_answer")]
        ['0', '1', '3', '2', '1']
    """
    told = dict(fields)
    if isinstance(told.get("answer"), str):
        told["gt_answer"] = _LABELS.get(told.pop("answer").strip().lower(), told.get("gt_answer"))
    parts = str(told.get("index", "")).split("_")
    if len(parts) >= 6 and not any(name in told for name in PLACE[2:]):
        told |= dict(zip(PLACE[2:], parts[3:], strict=False))
        if parts[2] in _VISUAL_OF.get((str(told.get("category")), parts[4] == "0"), ()):
            told["visual_input"] = parts[2]
    return told


def _visual(value: object, where: str) -> Literal["0", "1", "2"] | None:
    for known in _VISUAL:
        if str(value) == known:
            return known
    if value is None:
        return None
    raise DataFormatError(f"{where}: visual_input must be one of {', '.join(_VISUAL)}, got {ascii(value)[:60]}")
