"""Which answers belong to which questions, in the files that tools write; and what `damro score pope` makes of them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from test_formats_tables import write_excel

from damro.cli import main
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.pope import load_questions
from damro.eval.pope.joining import BY_KEY, BY_LABELS, BY_ORDER, BY_TEXTS, WITHOUT_IMAGES, join_files

SPLITS = ("adversarial", "popular", "random")
NOUNS = {"adversarial": "dog", "popular": "car", "random": "tree"}


@pytest.fixture
def questions(tmp_path: Path) -> list[str]:
    """Three splits of four questions about two images; ids begin at 1 in each, as POPE's do."""
    files = []
    for split in SPLITS:
        path = tmp_path / f"coco_pope_{split}.json"
        asked = [
            {"question_id": n + 1, "image": f"{n // 2}.jpg", "text": f"Is there a {noun} in the image?", "label": label}
            for n, (noun, label) in enumerate([("cat", "yes"), (NOUNS[split], "no")] * 2)
        ]
        path.write_text("\n".join(map(json.dumps, asked)))
        files.append(str(path))
    return files


def answers_to(questions: list[str], order: tuple[int, ...] = (0, 1, 2)) -> list[dict[str, Any]]:
    """LLaVA's answers to all questions in one file: an id of their own, the prompt, no image. Text tells the place."""
    asked = [(split, question) for split in order for question in load_questions(questions[split])]
    return [
        {
            "question_id": 10_000_000 * split + n,
            "prompt": f"{question.text}\nAnswer the question using a single word or phrase.",
            "text": f"{split} {question.image} {question.text}",
        }
        for n, (split, question) in enumerate(asked)
    ]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_one_file_with_all_splits_in_any_order(tmp_path: Path, questions: list[str], order: tuple[int, ...]) -> None:
    parts = join_files(questions, [write(tmp_path / "llava.jsonl", answers_to(questions, order))])
    assert [part.name for part in parts] == [Path(file).name for file in questions]
    for split, part in enumerate(parts):
        assert part.joined == BY_TEXTS
        assert [text for _, text in part.pairs] == [f"{split} {asked.image} {asked.text}" for asked, _ in part.pairs]


def test_one_split_of_that_file_by_its_texts(tmp_path: Path, questions: list[str]) -> None:
    path = write(tmp_path / "llava.jsonl", answers_to(questions, (2,)))
    (part,) = join_files(questions[2:], [path])
    assert part.joined == BY_TEXTS and len(part.pairs) == 4
    with pytest.raises(AlignmentError, match="no id of an answer"):
        join_files(questions[:1], [path])


def test_a_file_a_split_in_the_order_of_the_splits(tmp_path: Path, questions: list[str]) -> None:
    files = []
    for number, file in enumerate(questions):
        said = [{"question_id": q.question_id, "answer": str(number)} for q in load_questions(file)]
        random.Random(number).shuffle(said)
        files.append(write(tmp_path / f"{number}.jsonl", said))
    parts = join_files(questions, files)
    assert [(part.joined, {text for _, text in part.pairs}) for part in parts] == [(BY_KEY, {str(n)}) for n in range(3)]
    with pytest.raises(EvalError, match=r"one file with all answers, or one a split \(3\), got 2"):
        join_files(questions, files[:2])


def test_one_file_that_names_its_splits(tmp_path: Path) -> None:
    """As lmms-eval's older samples of the shipped questions do: ids begin anew, categories tell them apart."""
    asked = {split: load_questions(f"coco/{split}") for split in SPLITS}
    said = [
        {"question_id": q.question_id, "image": q.image, "question": q.text, "category": split, "answer": split}
        for split in SPLITS
        for q in asked[split]
    ]
    path = write(tmp_path / "a.jsonl", said)
    for wanted in (["coco/random", "coco/popular"], ["coco/adversarial"]):
        parts = join_files(wanted, [path])
        assert [(part.name, part.joined) for part in parts] == [(name, BY_KEY) for name in wanted]
        assert [{text for _, text in part.pairs} for part in parts] == [{name[5:]} for name in wanted]
    with pytest.raises(AlignmentError, match="must be of coco/adversarial, got answers of popular"):
        popular = [one for one in said if one["answer"] == "popular"]
        join_files(["coco/adversarial"], [write(tmp_path / "b.jsonl", popular)])


def test_order_alone_on_request(tmp_path: Path, questions: list[str]) -> None:
    path = write(tmp_path / "bare.jsonl", [{"answer": str(n)} for n in range(12)])
    with pytest.raises(AlignmentError, match="no answer has an id"):
        join_files(questions, [path])
    parts = join_files(questions, [path], by_order=True)
    assert [part.joined for part in parts] == [BY_ORDER] * 3
    assert [text for part in parts for _, text in part.pairs] == list(map(str, range(12)))
    with pytest.raises(AlignmentError, match="must be as many as the 4 questions"):
        join_files(questions[:1], [path], by_order=True)
    with pytest.raises(EvalError, match="--by-order must come with --split or --questions"):
        join_files([], [path], by_order=True)


def test_order_alone_must_not_contradict_the_answers(tmp_path: Path, questions: list[str]) -> None:
    said = answers_to(questions, (0,))
    path = write(tmp_path / "a.jsonl", said[::-1])
    with pytest.raises(AlignmentError, match="4 about another image or question, the first in place 1"):
        join_files(questions[:1], [path], by_order=True)


def test_a_number_of_answers_that_fits_none(tmp_path: Path, questions: list[str]) -> None:
    with pytest.raises(AlignmentError, match=r"4 of coco_pope_adversarial.json \+ 4 of .*, got 11 answers"):
        join_files(questions, [write(tmp_path / "a.jsonl", answers_to(questions)[:-1])])
    said = [{"answer": "No"}] * 8910
    with pytest.raises(AlignmentError, match="LLaVA's file of POPE has the 2910 questions of coco/random_2910"):
        join_files([f"coco/{split}" for split in SPLITS], [write(tmp_path / "b.jsonl", said)])


VLMEVAL = [
    {"index": 1, "question": "Is there a cat?", "answer": "Yes", "category": "popular,random", "prediction": "Yes"},
    {"index": 2, "question": "Is there a dog?", "answer": "No", "category": "popular", "prediction": "Yes"},
]


def test_labels_of_the_answers_and_splits_that_share_questions(tmp_path: Path) -> None:
    path = str(write_excel(tmp_path / "m_POPE.xlsx", VLMEVAL))
    popular, by_chance = join_files([], [path])
    assert (popular.name, len(popular.pairs), by_chance.name, len(by_chance.pairs)) == ("popular", 2, "random", 1)
    assert popular.joined == WITHOUT_IMAGES
    named = [{**one, "image_path": "1.jpg"} for one in VLMEVAL]
    assert join_files([], [str(write_excel(tmp_path / "b.xlsx", named))])[0].joined == BY_LABELS


@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        (None, EvalError, "--split or --questions must name what was asked, since 1 of 2 answers of a.jsonl"),
        ("maybe", DataFormatError, "a.jsonl, answer 2: label must be yes or no, got 'maybe'"),
    ],
)
def test_labels_that_are_not_there(tmp_path: Path, label: str | None, kind: type[Exception], message: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"answer": "Yes", "label": "yes"}, {"answer": "No", "label": label}])
    with pytest.raises(kind, match=message):
        join_files([], [path])


def test_parts_of_one_name_are_refused(tmp_path: Path, questions: list[str]) -> None:
    path = write(tmp_path / "a.jsonl", [{"answer": "Yes", "label": "yes", "category": "random"}])
    for asked in ([], [questions[0], questions[0]]):
        with pytest.raises(EvalError, match="each split must be given once, got '.*' twice"):
            join_files(asked, [path, path])


def test_the_command_tells_splits_their_mean_and_how_answers_were_joined(
    tmp_path: Path, questions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = [{**one, "text": "Yes" if n < 6 else "No"} for n, one in enumerate(answers_to(questions))]
    path = write(tmp_path / "llava.jsonl", said)
    arguments = ["score", "pope", "--questions", *questions, "--answers", path]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    scores = list(told["splits"].values())
    # All yes; the first image's two yes and the other's no; all no. Half of the questions are yes.
    outcomes = [[one[name] for name in ("tp", "fp", "tn", "fn")] for one in scores]
    assert outcomes == [[2, 2, 0, 0], [1, 1, 1, 1], [0, 0, 2, 2]]
    assert [one["f1"] for one in scores] == [pytest.approx(2 / 3), 0.5, None]
    assert told["mean"]["accuracy"] == 0.5 and told["mean"]["recall"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert told["mean"]["f1"] is None and told["mean"]["ci"]["f1"] is None  # one of the splits has none
    assert all(one["joined"] == BY_TEXTS for one in scores)
    assert main([*arguments, "--rule", "all"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("answers joined by order, which the texts of the questions confirm") == 3
    assert all(f"rule {rule}" in out for rule in ("pope", "vlmeval")) and "mean" in out


def test_the_mean_is_that_of_the_splits_and_lies_in_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parent / "data" / "pope"
    files = [str(folder / f"answers_llava-v1.5-13b_{split}.jsonl.gz") for split in ("random", "adversarial")]
    assert (
        main(["score", "pope", "--split", "coco/random_2910", "coco/adversarial", "--answers", *files, "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        values = [one[name] for one in told["splits"].values()]
        low, high = told["mean"]["ci"][name]
        assert told["mean"][name] == pytest.approx(sum(values) / 2) and low < told["mean"][name] < high
    assert round(told["mean"]["accuracy"], 4) == round(((1182 + 1379) / 2910 + (1182 + 1383) / 3000) / 2, 4)
