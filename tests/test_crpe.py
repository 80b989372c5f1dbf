"""eval/crpe: accuracy under every order of the options, beside what CRPE's own script prints."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_formats_images import picture, text_of, write_tsv
from test_formats_tables import write_excel, write_parquet

from damro.cli import main
from damro.eval.benchmark import DataRequest, score_run
from damro.eval.choices import read_choice
from damro.eval.crpe.benchmark import Crpe, CrpeScoring
from damro.eval.crpe.files import load_answers
from damro.eval.crpe.questions import load_questions
from damro.eval.crpe.scoring import ALL, score_groups
from damro.eval.errors import AlignmentError, DataFormatError, EvalError

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


def of_vlmevalkit() -> list[dict[str, Any]]:
    """Predictions as VLMEvalKit writes them: no ids, four in a row are a question."""
    return [
        {
            "index": asked["question_id"],
            "image_path": asked["image"],
            "question": asked["text"],
            "answer": f"{asked['correct_option']}. it",
            "category": asked["category"],
            "prediction": said["text"],
        }
        for asked, said in zip(*made(), strict=True)
    ]


def of_lmms() -> list[dict[str, Any]]:
    """Samples of lmms-eval's task crpe_relation: no category; answers as a filter reads them, and as they are."""
    records = []
    for place, (asked, said) in enumerate(zip(*made(), strict=True)):
        kept = {} if len(said["text"]) == 1 else {"resps": [said["text"]]}
        sample = {"doc_id": place, "input": f"{asked['text']}\nPlease answer directly.", "exact_match": 0.0}
        records.append({**sample, "target": asked["correct_option"], "filtered_resps": said["text"][0], **kept})
    return records[::-1]


@pytest.mark.parametrize("tool", ["lmms", "xlsx", "tsv"])
def test_files_of_other_tools_score_as_the_official_form(tool: str, tmp_path: Path) -> None:
    questions, answers = made()
    asked = write(tmp_path / "crpe_relation.jsonl", questions)
    official = score_groups(load_answers(write(tmp_path / "answers.jsonl", answers), asked))
    if tool == "lmms":
        found = score_groups(load_answers(write(tmp_path / "samples.jsonl", of_lmms()), asked))
    else:
        write_table = write_excel if tool == "xlsx" else write_tsv
        found = score_groups(load_answers(write_table(tmp_path / f"CRPE_RELATION.{tool}", of_vlmevalkit())))
    assert [(one.name, one.scores) for one in found] == [(one.name, one.scores) for one in official]
    assert [one.counts for one in found] == [one.counts for one in official]


def test_files_of_other_tools_that_do_not_fit(tmp_path: Path) -> None:
    asked = write(tmp_path / "crpe_relation.jsonl", made()[0])
    samples = of_lmms()
    with pytest.raises(EvalError, match=r"hold no category, so that --questions must be given: crpe_relation\.jsonl"):
        load_answers(write(tmp_path / "samples.jsonl", samples))
    samples[0]["doc_id"], samples[8]["doc_id"] = samples[8]["doc_id"], samples[0]["doc_id"]
    with pytest.raises(AlignmentError, match="sample 147 must be of question 147 of --questions, asks .What is it"):
        load_answers(write(tmp_path / "samples.jsonl", samples), asked)
    table = write_tsv(tmp_path / "a.tsv", of_vlmevalkit())
    with pytest.raises(EvalError, match="must be left out for predictions of VLMEvalKit"):
        load_answers(table, asked)
    mixed = of_vlmevalkit()
    mixed[1]["question"] = mixed[1]["question"].replace("What", "Who")
    with pytest.raises(AlignmentError, match="line .*: 4 predictions of a category in a row must be of one question"):
        load_answers(write_tsv(tmp_path / "a.tsv", mixed))
    with pytest.raises(DataFormatError, match="prediction of VLMEvalKit for CRPE"):
        load_answers(write_tsv(tmp_path / "a.tsv", [{"index": 0, "prediction": "A", "question": "Is it?"}]))


def test_tables_ask_as_the_files_do(tmp_path: Path) -> None:
    questions, _ = made()
    write(tmp_path / "crpe_relation.jsonl", questions)
    expected = Crpe().load(DataRequest(images=tmp_path))
    hub = [{**one, "image": {"bytes": picture(int(one["image"][-5]) % 3), "path": one["image"]}} for one in questions]
    kit = [{**one, "image": text_of(picture(int(one["image_path"][-5]) % 3))} for one in of_vlmevalkit()]
    for path in (write_parquet(tmp_path / "a.parquet", hub), write_tsv(tmp_path / "CRPE.tsv", kit)):
        dataset = Crpe(data=str(path)).load(DataRequest())
        found = {one.sample_id: (one.prompt, dict(one.fields)) for one in dataset.samples}
        assert found == {one.sample_id: (one.prompt, dict(one.fields)) for one in expected.samples}
        assert len({one.image for one in dataset.samples}) == 3  # images of the same bytes are one
    by_name = write_tsv(tmp_path / "named.tsv", of_vlmevalkit())
    assert Crpe(data=str(by_name)).load(DataRequest(images=tmp_path)).samples == expected.samples
    with pytest.raises(EvalError, match="at least one sample"):
        Crpe(data=str(by_name), split=("exist",)).load(DataRequest(images=tmp_path))
