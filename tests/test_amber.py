"""eval/amber against what inference.py of github.com/junyangwang0410/AMBER printed for the made files in data/amber.

The script ran unchanged but for its vectors: with the same word alone as alike ("exact"), and with a model of spaCy
whose vectors were made so that the pairs of `ALIKE` have a cosine of 0.9.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_cli import call
from test_formats_images import picture, text_of, write_tsv
from test_formats_tables import write_excel, write_parquet

from damro.cli import main
from damro.eval.amber import AmberAnswer, describe_objects, extract_nouns, load_questions, load_words, score_groups
from damro.eval.amber import descriptions as module
from damro.eval.amber.files import load_answers
from damro.eval.benchmark import DataRequest, Records, find_benchmark
from damro.eval.benchmark import score_run as score_records
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.tiny.scenes import scene

FOLDER = Path(__file__).parent / "data" / "amber"
ANSWERS = [(str(one["id"]), one["response"]) for one in json.loads((FOLDER / "answers.json").read_text())]
ALIKE = [{"kitten", "dog"}, {"chair", "desk"}, {"seat", "tree"}, {"football", "kitten"}]
# Accuracy, precision, recall, F1.
PRINTED = {
    "existence": (66.6, 100.0, 66.6, 79.9),
    "state": (50.0, 0.0, 0.0, 0.0),
    "number": (50.0, 50.0, 99.9, 66.6),
    "action": (50.0, 99.9, 99.9, 99.9),
    "attribute": (50.0, 66.6, 66.6, 66.6),
    "relation": (66.6, 99.9, 50.0, 66.6),
    "yes/no": (58.3, 83.3, 62.5, 71.4),
}


def answers() -> list[AmberAnswer]:
    by_id = {asked.question_id: asked for asked in load_questions(FOLDER)}
    return [AmberAnswer(by_id[identifier], text) for identifier, text in ANSWERS]


def yes_no_answers() -> list[AmberAnswer]:
    return [answer for answer in answers() if answer.question.label is not None]


def test_yes_no_answers_score_as_the_script_prints() -> None:
    groups = {group.name: group for group in score_groups(yes_no_answers(), None)}
    assert list(groups) == ["existence", "state", "number", "action", "attribute", "relation", "yes/no"]
    assert {name: tuple(group.scores["script"].values()) for name, group in groups.items()} == PRINTED
    # 12 questions: 7 right; 5 right noes, 6 said, 8 that are right; "yes", "Yes." and "No, there is not." are unread.
    whole = groups["yes/no"]
    found = [whole.scores[name] for name in ("accuracy", "precision", "recall", "f1", "unread")]
    assert found == pytest.approx([7 / 12, 5 / 6, 5 / 8, 10 / 14, 3])
    assert [note.value for note in whole.notes if note.doubtful] == [3]
    assert groups["state"].scores["precision"] is None and groups["state"].scores["f1"] is None


def test_the_first_word_is_read_on_request() -> None:
    whole = score_groups(yes_no_answers(), None, yes_no="start")[-1]
    assert whole.scores["unread"] == 0
    assert whole.scores["accuracy"] == pytest.approx(9 / 12)  # "Yes." and "No, there is not." are right then


def test_descriptions_score_as_the_script_prints(wordnet_data: None) -> None:
    groups = score_groups(answers(), load_words(FOLDER))
    described, total = groups[0], groups[-1]
    assert described.scores["script"] == {"CHAIR": 41.2, "Cover": 54.5, "Hal": 75.0, "Cog": 75.0}
    found = [described.scores[name] for name in ("chair", "cover", "hal", "cog")]
    assert found == pytest.approx([7 / 17, 6 / 11, 3 / 4, 6 / 8])
    assert total.name == "AMBER" and total.scores["amber"] == pytest.approx((100 - 700 / 17 + 1000 / 14) / 2)
    for group in groups:
        for name, interval in group.intervals().items():
            if interval is not None:
                assert interval.estimate == pytest.approx(group.scores[name]), (group.name, name)
            else:
                assert group.scores[name] is None


def test_alike_words_count_as_in_the_script(wordnet_data: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_vectors", lambda model: lambda one, two: one == two or {one, two} in ALIKE)
    module.load_similarity.cache_clear()
    described = score_groups(answers(), load_words(FOLDER), similarity="spacy")[0]
    module.load_similarity.cache_clear()
    assert described.scores["script"] == {"CHAIR": 29.4, "Cover": 54.5, "Hal": 75.0, "Cog": 87.5}
    assert [note.value for note in described.notes] == ["spacy"]


def test_oversights_are_kept(wordnet_data: None) -> None:
    assert extract_nouns("Dogs run. Two dogs and two women sit.") == ["Dogs", "dog", "woman"]
    words = load_words(FOLDER)
    said = describe_objects(["man", "cup", "cup"], ["person", "man", "cup", "cup"], [], words, str.__eq__)
    assert (said.covered, said.objects) == (2, 4)  # neither the man himself nor the second cup
    said = describe_objects(["floor", "tree"], ["grass"], ["dog"], words, str.__eq__)
    assert said.hallucinated == ("tree",)  # "floor" is a safe word


def test_spacy_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(EvalError, match=r"--similarity spacy needs spaCy and its model en_core_web_lg, .*pip install"):
        module.load_vectors("en_core_web_lg")


def test_nltk_data_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    def fail(text: str) -> None:  # NLTK keeps what it has loaded, so that taking away its folders is not enough
        raise LookupError(text)

    monkeypatch.setattr(nltk, "word_tokenize", fail)
    with pytest.raises(EvalError, match="run 'damro setup-nltk'"):
        extract_nouns("A dog.")


def test_the_command_scores_files(wordnet_data: None, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--annotations", str(FOLDER), "--answers", str(FOLDER / "answers.json")]
    assert main(["score", "amber", *files, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["yes/no"]["script"]["F1"] == 71.4 and result["AMBER"]["script"]["AMBER"] == 65.1
    assert result["AMBER"]["ci"]["amber"][0] < result["AMBER"]["amber"] < result["AMBER"]["ci"]["amber"][1]
    assert main(["score", "amber", *files]) == 0
    told = capsys.readouterr().out
    assert "similarity: exact" in told and "3 answers are neither" in told and max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('[{"id": 99, "response": "Yes"}]', "got 1 of other ids (99)"),
        ('[{"id": 5, "response": "Yes"}, {"id": 5, "response": "No"}]', "record 2: a question must be answered once"),
        ('[{"id": 5}]', "record 1: an answer to AMBER must have"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    lines: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "answers.json").write_text(lines)
    file = ["--answers", str(tmp_path / "answers.json")]
    assert main(["score", "amber", "--annotations", str(FOLDER), *file]) == 2
    assert message in capsys.readouterr().err
    assert main(["score", "amber", "--annotations", str(tmp_path), *file]) == 2
    assert "without relation.json: give the folder 'data'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("annotations.json", '"person", "man"', '"person", "gnome"', "must be words of relation.json, got 'gnome'"),
        ("annotations.json", '"relation"', '"relations"', "type must be one of generative"),
        ("annotations.json", '"id": 7,', '"id": 77,', "annotations.json has no such id"),
        ("annotations.json", '"truth": "yes"', '"truth": "maybe"', "label must be yes or no"),
        ("relation.json", '["puppy", "animal"]', '"puppy"', "must be one object, from each word to a list"),
        ("query/query_all.json", '"id": 5,', '"id": "5",', "'id' must be a whole number"),
    ],
)
def test_malformed_official_files_are_refused(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    shutil.copytree(FOLDER, tmp_path / "data")
    path = tmp_path / "data" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataFormatError, match=message):
        load_questions(tmp_path)
    with pytest.raises(EvalError, match=r"--split must be of AMBER's tasks .* got 'colour'"):
        load_questions(tmp_path, ["colour"])


def test_a_run_asks_and_scores(wordnet_data: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1, 5):
        scene("test", number).image.save(tmp_path / f"AMBER_{number}.jpg")
    files = ["--annotations", str(FOLDER), "--images", str(tmp_path), "--out", str(tmp_path / "out")]
    more = ["--prompt", "{question} Yes or no?", "--max-new-tokens", "4", "--device", "cpu", "--yes-no", "start"]
    assert call("run", "amber", "--model", "tiny", *files, *more, "--json") == 0
    scores = json.loads(capsys.readouterr().out)["methods"]["greedy"]["scores"]
    assert scores["yes/no"]["n_questions"] == 12 and scores["generative"]["n_descriptions"] == 4
    assert scores["yes/no"]["yes-no"] == "start" and "AMBER" in scores
    lines = (tmp_path / "out/greedy/records.jsonl").read_text().splitlines()
    records: dict[str, dict[str, Any]] = {record["id"]: record for record in map(json.loads, lines)}
    assert len(records) == 16
    damaged = {key: {**fields, "truth": None} for key, fields in records.items()}
    with pytest.raises(DataFormatError, match="must have its label, or the lists"):
        score(damaged)


def score(records: Records) -> None:
    benchmark = find_benchmark("amber", {"annotations": str(FOLDER)})
    score_records(benchmark, records, benchmark.scoring())


def test_what_a_run_needs_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "amber", "--model", "tiny", "--images", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "give --annotations with the folder 'data'" in capsys.readouterr().err
    command = ["run", "amber", "--model", "tiny", "--annotations", str(FOLDER), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "give --images" in capsys.readouterr().err


def test_scoring_imports_no_torch() -> None:
    code = "import sys, damro.eval.amber, damro.eval.amber.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def of_vlmevalkit() -> list[dict[str, Any]]:
    """Predictions as VLMEvalKit writes them: the yes/no questions, with type and label, numbered in its own way."""
    types = {one["id"]: one["type"] for one in json.loads((FOLDER / "annotations.json").read_text())}
    return [
        {
            "index": number,
            "category": types[int(one.question.question_id)],
            "image_path": one.question.image,
            "question": one.question.text,
            "answer": str(one.question.label),
            "prediction": one.text,
        }
        for number, one in enumerate(yes_no_answers())
    ]


def of_lmms() -> list[dict[str, Any]]:
    """Samples of lmms-eval's task amber_g: descriptions without an id, and the objects as text."""
    return [
        {
            "doc_id": int(one.question.question_id) - 1,
            "input": "Describe this image",
            "target": str(list(one.question.truth)),
            "filtered_resps": one.text,
            "amber_chair": {"chair_score": 0},
        }
        for one in answers()
        if one.question.kind == "generative"
    ]


def test_predictions_of_vlmevalkit_score_as_the_official_form(tmp_path: Path) -> None:
    path = write_excel(tmp_path / "model_AMBER.xlsx", of_vlmevalkit())
    groups = score_groups(load_answers([path], None), None)
    assert {group.name: tuple(group.scores["script"].values()) for group in groups} == PRINTED
    assert groups[-1].counts == score_groups(yes_no_answers(), None)[-1].counts


def test_samples_of_lmms_eval_score_as_the_official_form(tmp_path: Path) -> None:
    path = tmp_path / "samples_amber_g.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in of_lmms()[::-1]))
    found = load_answers([path], FOLDER)
    assert found == [one for one in answers() if one.question.kind == "generative"]
    with pytest.raises(EvalError, match="that hold no labels must come with --annotations"):
        load_answers([path], None)
    others = of_lmms()
    others[0]["target"], others[1]["target"] = others[1]["target"], others[0]["target"]
    path.write_text("".join(json.dumps(one) + "\n" for one in others))
    with pytest.raises(AlignmentError, match="sample 0 must be of AMBER's image 1, is of another"):
        load_answers([path], FOLDER)


def test_files_of_other_tasks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"doc_id": 0, "filtered_resps": "Yes", "target": "yes"}))
    with pytest.raises(DataFormatError, match="lmms-eval's task amber_g"):
        load_answers([path], FOLDER)
    table = write_tsv(tmp_path / "a.tsv", [{**of_vlmevalkit()[0], "category": "existence"}])
    with pytest.raises(DataFormatError, match="VLMEvalKit for AMBER, with 'category' one of"):
        load_answers([table], FOLDER)


def test_a_table_of_vlmevalkit_asks_without_the_official_files(tmp_path: Path) -> None:
    rows = [{**one, "image": text_of(picture(int(one["index"] % 2)))} for one in of_vlmevalkit()]
    benchmark = find_benchmark("amber", {"data": str(write_tsv(tmp_path / "AMBER.tsv", rows))})
    dataset = benchmark.load(DataRequest())
    records = {
        one.sample_id: {**one.fields, "image": one.image, "answer": rows[int(one.sample_id)]["prediction"]}
        for one in dataset.samples
    }
    groups = score_records(benchmark, records, benchmark.scoring())
    assert {group.name: tuple(group.scores["script"].values()) for group in groups} == PRINTED
    state = find_benchmark("amber", {"data": str(tmp_path / "AMBER.tsv"), "split": ("relation",)})
    assert {one.fields["kind"] for one in state.load(DataRequest()).samples} == {"relation"}


def test_a_table_of_descriptions_takes_their_objects_from_the_official_files(tmp_path: Path) -> None:
    rows = [
        {"question_id": n, "task_type": "generative", "text": "?", "image": {"bytes": picture(n), "path": None}}
        for n in range(1, 5)
    ]
    data = str(write_parquet(tmp_path / "a.parquet", rows))
    with pytest.raises(EvalError, match="--annotations must come with descriptions"):
        find_benchmark("amber", {"data": data}).load(DataRequest())
    dataset = find_benchmark("amber", {"data": data, "annotations": str(FOLDER)}).load(DataRequest())
    assert [one.fields["truth"] for one in dataset.samples][3] == ["dog", "ball"]
    rows[0]["question_id"] = 5
    write_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(AlignmentError, match="must have the number of AMBER's image, 1 to 1004, got '5'"):
        find_benchmark("amber", {"data": data, "annotations": str(FOLDER)}).load(DataRequest())
