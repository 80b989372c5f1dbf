"""eval/crpe: accuracy under every order of the options, beside what CRPE's own script prints."""

import json
from pathlib import Path
from typing import Any

import pytest

from damro.cli import main
from damro.eval.benchmark import DataRequest, score_run
from damro.eval.choices import read_choice
from damro.eval.crpe.benchmark import Crpe, CrpeScoring
from damro.eval.crpe.questions import load_questions
from damro.eval.crpe.scoring import ALL
from damro.eval.errors import DataFormatError, EvalError

# all-seeing-v2/llava/eval/eval_crpe.py of repository OpenGVLab/all-seeing (commit 5cb8cea) on the answers of `made`:
# questions and accuracy in percent, as it prints them.
OFFICIAL = {"subject": (11, 54.55), "predicate": (18, 50.0), "object": (10, 60.0)}
LETTERS = "ABCD"


def made() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Questions with the options in four orders, and answers that are bare letters, letters with a mark, or none."""
    questions: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for number in range(39):
        category = ("predicate", "subject", "object", "predicate", "subject", "object", "predicate")[number % 7]
        category = "predicate" if number in (37, 38) else category
        for order in range(4):
            options = [f"thing {(n + order) % 4} of {number}" for n in range(4)]
            gold = LETTERS[options.index(f"thing 0 of {number}")]
            shown = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
            kind = (len(questions) * 7919 + 13) % 101
            said = gold if kind < 92 else LETTERS[(LETTERS.index(gold) + 1) % 4]
            text = f"{said}." if kind % 37 == 0 else "none of them" if kind % 50 == 1 else said
            identifier = len(questions)
            questions.append(
                {
                    "question_id": identifier,
                    "image": f"coco/val2017/{number // 2:012d}.jpg",
                    "category": category,
                    "text": f"What is it?\n{shown}\nAnswer with the option's letter from the given choices directly.",
                    "correct_option": gold,
                }
            )
            answers.append({"question_id": identifier, "text": text})
    return questions, answers


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(path)


def scored(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    questions, answers = made()
    files = [write(folder / "crpe_relation.jsonl", questions), write(folder / "answers.jsonl", answers)]
    assert main(["score", "crpe", "--questions", files[0], "--answers", files[1], "--json", *options]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_the_default_is_the_official_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scored(tmp_path, capsys)
    assert found == scored(tmp_path, capsys, "--choice", "exact")
    assert {name: (one["n"], round(100 * one["accuracy"], 2)) for name, one in found.items() if name != ALL} == OFFICIAL
    assert list(found) == [*OFFICIAL, ALL]
    right = sum(n * share / 100 for n, share in OFFICIAL.values())
    assert found[ALL]["accuracy"] == pytest.approx(right / 39, abs=1e-4)


def test_letter_reads_marks_and_tells_what_chose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = scored(tmp_path, capsys)[ALL]
    letter = scored(tmp_path, capsys, "--choice", "letter")[ALL]
    texts = [one["text"] for one in made()[1]]
    assert exact["unparsed"] == sum(len(text) > 1 for text in texts)
    assert letter["unparsed"] == texts.count("none of them") > 0
    right = [text[0] == asked["correct_option"] for text, asked in zip(texts, made()[0], strict=True)]
    circles = [all(right[n : n + 4]) for n in range(0, len(right), 4)]
    assert letter["single"] == sum(right) / len(right)
    assert letter["accuracy"] == sum(circles) / len(circles) > exact["accuracy"]
    assert letter["ci"]["accuracy"][0] < letter["accuracy"] < letter["ci"]["accuracy"][1]


def test_a_run_scores_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = scored(tmp_path, capsys)
    dataset = Crpe(split=("relation",)).load(DataRequest(images=tmp_path))
    assert Crpe().load(DataRequest(images=tmp_path)).samples == dataset.samples
    assert dataset.samples[0].prompt == made()[0][0]["text"]
    said = {f"relation/{one['question_id']}": one["text"] for one in made()[1]}
    records: dict[str, dict[str, Any]] = {
        one.sample_id: {**one.fields, "image": one.image, "answer": said[one.sample_id]} for one in dataset.samples
    }
    groups = score_run(Crpe(), records, CrpeScoring())
    assert [group.name for group in groups] == list(expected)
    assert [group.scores["accuracy"] for group in groups] == [one["accuracy"] for one in expected.values()]
    records["relation/2"] = {"error": "no such file"}
    short = score_run(Crpe(), records, CrpeScoring())[-1]
    assert short.scores["n"] == 38 and [note.value for note in short.notes if note.name == "left out"] == [1]
    path = write(tmp_path / "records.jsonl", [one for one in records.values() if "answer" in one])
    assert main(["score", "crpe", "--answers", path]) == 0
    assert "WARNING: left out" in capsys.readouterr().out


def test_files_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, answers = made()
    with pytest.raises(DataFormatError, match="4 lines a question, got"):
        load_questions(write(tmp_path / "cut.jsonl", questions[:-1]))
    with pytest.raises(DataFormatError, match="one twice"):
        load_questions(write(tmp_path / "twice.jsonl", questions[:4] * 2))
    with pytest.raises(DataFormatError, match="line 1: correct_option"):
        load_questions(write(tmp_path / "gold.jsonl", [{**questions[0], "correct_option": "E"}]))
    with pytest.raises(DataFormatError, match="'image'"):
        load_questions(write(tmp_path / "bare.jsonl", [{**questions[0], "image": None}]))
    with pytest.raises(EvalError, match="--images"):
        Crpe().load(DataRequest())
    with pytest.raises(EvalError, match="with neither"):
        Crpe().load(DataRequest(images=tmp_path))
    with pytest.raises(EvalError, match="must be of exist, relation"):
        Crpe(split=("objects",)).load(DataRequest(images=tmp_path))
    whole = write(tmp_path / "crpe_exist.jsonl", questions)
    twice = write(tmp_path / "answers.jsonl", answers[:1] * 2)
    assert main(["score", "crpe", "--questions", whole, "--answers", twice]) == 2
    assert "answered once" in capsys.readouterr().err
    assert main(["score", "crpe", "--questions", whole, "--answers", twice, twice]) == 2
    assert main(["score", "crpe", "--answers", twice]) == 2
    assert "--questions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "letter", "first", "exact"),
    [
        ("A", "A", "A", "A"),
        (" b\n", "B", None, None),
        ("(b)", "B", None, None),
        ("**B**", "B", None, None),
        ("B. closed", "B", "B", None),
        ("a\n\nThe door is closed.", "A", "B", None),
        ("A door", None, "A", None),
        ("Because it is open", None, "B", None),
        ("The correct answer is (B) closed", "B", "B", None),
        ("Answer: A", "A", "A", None),
        ("it is closed", None, "B", None),
        ("E", None, None, None),
        ("", None, None, None),
    ],
)
def test_rules(text: str, letter: str | None, first: str | None, exact: str | None) -> None:
    options = {"A": "open", "B": "closed"}
    assert [read_choice(text, options, rule) for rule in ("letter", "first", "exact")] == [letter, first, exact]


def test_an_unknown_rule() -> None:
    with pytest.raises(EvalError, match="letter, first, exact, got 'best'"):
        read_choice("A", {"A": "x"}, "best")
    with pytest.raises(EvalError, match="at least one option"):
        read_choice("A", {})
