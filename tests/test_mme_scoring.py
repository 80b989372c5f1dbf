"""eval/mme/scoring.py: accuracy and accuracy+ of MME's answer files."""

from pathlib import Path

import pytest

from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.mme import HALLUCINATION, MMEAnswer, load_answers, parse_answer, score

RECORDED = Path(__file__).parent / "data" / "mme"

# Counted with awk -F'\t' over the recorded files (tolower($3) == tolower($4), line by line and by pairs of lines):
# right of 60 questions, images right twice of 30. Score = 100 * (right / 60 + twice / 30);
# existence: 100 * (58/60 + 28/30) = 190.
COUNTED = {
    "existence": (58, 28, 190.0),
    "count": (51, 21, 155.0),
    "position": (45, 16, 128 + 1 / 3),
    "color": (54, 24, 170.0),
}


def recorded(category):
    return load_answers(RECORDED / f"llava-v1.5-7b_{category}.txt")


@pytest.mark.parametrize("category", HALLUCINATION)
def test_recorded_answers(category):
    right, twice, points = COUNTED[category]
    result = score(recorded(category)).categories[category]
    assert (result.n_questions, result.n_images, result.other) == (60, 30, 0)
    assert result.accuracy == pytest.approx(right / 60, abs=1e-12)
    assert result.accuracy_plus == pytest.approx(twice / 30, abs=1e-12)
    assert result.score == pytest.approx(points, abs=1e-9)


def test_hallucination_subset_and_total():
    answers = [answer for category in reversed(HALLUCINATION) for answer in recorded(category)]
    result = score(answers)
    # 190 + 155 + 128.33 + 170
    assert result.hallucination == result.total == pytest.approx(643 + 1 / 3, abs=1e-9)
    assert list(result.categories) == list(HALLUCINATION)
    posters = [MMEAnswer("posters", "p", each, "yes", "Yes") for each in ("one?", "two?")]
    more = score(answers + posters)
    assert more.hallucination == pytest.approx(643 + 1 / 3, abs=1e-9)
    assert more.total == pytest.approx(843 + 1 / 3, abs=1e-9)
    fewer = score(recorded("count"))
    assert fewer.hallucination is None and fewer.total == pytest.approx(155, abs=1e-9)
    assert list(more.to_dict()["categories"]["posters"].values()) == [1.0, 1.0, 200.0, 0, 2, 1]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        *[(text, "yes") for text in ("yes", "Yes", "YES.", " yes", "Yes, no", "Oyes")],
        *[(text, "no") for text in ("no", "No", "Not", " no", "Know", "None")],
        *[(text, "other") for text in ("", "  yes", "There", "A: no", "I'm not")],
    ],
)
def test_only_the_first_four_letters_count(text, verdict):
    assert parse_answer(text) == verdict


def test_an_answer_that_is_neither_is_wrong_and_counted():
    asked = [
        ("a", "1", "yes", "Yes"),
        ("a", "2", "no", "There is none"),
        ("b", "1", "yes", "Yes"),
        ("b", "2", "no", "No"),
    ]
    result = score(MMEAnswer("color", *each) for each in asked).categories["color"]
    # right: 3 of 4 questions; twice right: b of a and b
    assert (result.accuracy, result.accuracy_plus, result.score, result.other) == (0.75, 0.5, 125.0, 1)


def test_order_of_lines_does_not_matter():
    answers = recorded("position")
    assert score(answers[::2] + answers[1::2]) == score(answers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tq\tYes\tYes\nb\tq\tYes\n", r"count.txt, line 2: must be image, question, gold and answer .*got 3 fields"),
        ("a\tq\tYes\tYes\tno\n", "count.txt, line 1: .*got 5 fields"),
        ("a\tq\tYes\tYes\n\na\tr\tperhaps\tYes\n", "count.txt, line 3: label must be yes or no, got 'perhaps'"),
        ("\n", "count.txt: must hold at least one answer, is empty"),
    ],
)
def test_malformed_lines_name_file_and_line(tmp_path, text, message):
    path = tmp_path / "model_count.txt"
    path.write_text(text)
    with pytest.raises(DataFormatError, match=message):
        load_answers(path)


@pytest.mark.parametrize("extra", [["b", "1"], ["a", "3"], ["b", "1", "b", "1"]])
def test_images_without_two_different_questions_are_named(extra):
    asked = ["a", "1", "a", "2", *extra]
    answers = [MMEAnswer("count", *asked[n : n + 2], "yes", "Yes") for n in range(0, len(asked), 2)]
    with pytest.raises(AlignmentError, match=rf"every image of 'count' .* got 1 images that have not \({extra[0]}\)"):
        score(answers)


def test_bad_categories(tmp_path):
    path = tmp_path / "answers.txt"
    path.write_text("a\tq\tYes\tYes\n")
    with pytest.raises(
        EvalError,
        match="name must end in its category, .*, got 'answers.txt': rename it after one of exist",
    ):
        load_answers(path)
    with pytest.raises(EvalError, match="category must be one of existence, .*got 'colour'"):
        load_answers(path, "colour")
    assert load_answers(path, "code_reasoning") == [MMEAnswer("code_reasoning", "a", "q", "yes", "Yes")]
    with pytest.raises(EvalError, match="got 'colour'"):
        score([MMEAnswer("colour", "a", "q", "yes", "Yes")])
    with pytest.raises(EvalError, match="at least one answer"):
        score([])


def test_category_is_the_end_of_the_name(tmp_path):
    for name, category in (("x_text_translation.txt", "text_translation"), ("OCR.txt", "OCR")):
        (tmp_path / name).write_text("a\tq\tNo\tYes\r\n")
        assert load_answers(tmp_path / name) == [MMEAnswer(category, "a", "q", "no", "Yes")]
