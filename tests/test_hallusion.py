"""eval/hallusion: aAcc, fAcc and qAcc of HallusionBench, beside what its own script counts."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from test_formats_images import picture as content
from test_formats_images import text_of, write_tsv
from test_formats_tables import write_excel, write_parquet

from damro import tiny
from damro.cli import main
from damro.eval.benchmark import BENCHMARKS, DataRequest, Scoring, score_run
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.groups import Group
from damro.eval.hallusion.benchmark import Hallusion, to_answer
from damro.eval.hallusion.files import load_answers
from damro.eval.hallusion.questions import PLACE, load_questions
from damro.eval.hallusion.scoring import ALL, score_groups
from damro.tiny.scenes import scene

# utils.py of repository tianyi-lab/HallusionBench (commit 744007c) on the answers of `made`, a judge's verdicts being
# right, wrong and unclear as they were made: right and all questions, figures, question pairs, easy and hard parts.
OFFICIAL = {
    ALL: (111, 144, 22, 50, 18, 48, 33, 48, 32, 48),
    "VD": (54, 72, 12, 30, 8, 24, 20, 24, 12, 24),
    "VS": (57, 72, 10, 20, 10, 24, 13, 24, 20, 24),
}
# The same without the questions that have no figure.
WITH_FIGURES = {
    ALL: (92, 120, 22, 50, 23, 48, 38, 48, 32, 48),
    "VD": (54, 72, 12, 30, 8, 24, 20, 24, 12, 24),
    "VS": (38, 48, 10, 20, 15, 24, 18, 24, 20, 24),
}


def made() -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for category, subcategory in (("VD", "illusion"), ("VD", "ocr"), ("VS", "chart"), ("VS", "ocr")):
        for number in range(5):
            for figure in range(3):
                for question in range(2 + number % 2):
                    gold = (figure + question + number) % 2
                    kind = (len(records) * 7919 + 13) % 101
                    said = gold if kind < 76 else 1 - gold
                    text = "I cannot tell." if kind >= 90 else ("No, it is not.", "Yes, it is.")[said]
                    bare = category == "VS" and figure == 0
                    records.append(
                        {
                            "category": category,
                            "subcategory": subcategory,
                            "visual_input": "0" if bare else "2" if figure > (category == "VS") else "1",
                            "set_id": str(number),
                            "figure_id": str(figure),
                            "question_id": str(question),
                            "question": f"Is it {question}?",
                            "gt_answer": str(gold),
                            "filename": None if bare else f"./{category}/{subcategory}/{number}_{figure}.png",
                            "model_prediction": text,
                        }
                    )
    return records


def numbers(group: Group) -> tuple[int, ...]:
    return tuple(int(sum(column)) for column in zip(*group.counts.values(), strict=True))


def groups_of(records: list[dict[str, Any]]) -> dict[str, Group]:
    return {group.name: group for group in score_groups(to_answer(one, "made") for one in records)}


@pytest.mark.parametrize("bare", [True, False])
def test_the_counts_are_those_of_the_official_script(bare: bool) -> None:
    groups = groups_of([one for one in made() if bare or one["filename"]])
    assert {name: numbers(group) for name, group in groups.items()} == (OFFICIAL if bare else WITH_FIGURES)
    for name, columns in (OFFICIAL if bare else WITH_FIGURES).items():
        scores = groups[name].scores
        shares = [right / n for right, n in zip(columns[::2], columns[1::2], strict=True)]
        assert [scores[metric] for metric in ("aAcc", "fAcc", "qAcc", "easy", "hard")] == pytest.approx(shares)
        estimates = [value and value.estimate for value in groups[name].intervals().values()]
        assert estimates == pytest.approx(shares)


def test_unclear_is_right_only_where_there_is_no_figure() -> None:
    unclear = [{**one, "model_prediction": "Yes or no? I cannot tell."} for one in made()]
    groups = groups_of(unclear)
    assert numbers(groups["VD"])[0] == 0
    assert numbers(groups["VS"])[:3] == (24, 72, 0)  # the questions without a figure, a third of them
    assert groups["VS"].scores["unparsed"] == 72 and groups["VS"].scores["without_figure"] == 24
    note = next(note for note in groups["VD"].notes if note.name == "unparsed")
    assert (note.value, note.doubtful) == (72, True)
    bare = groups_of([one for one in unclear if not one["filename"]])["VS"]
    assert not any(note.doubtful for note in bare.notes)
    assert bare.scores["fAcc"] is None and bare.intervals()["fAcc"] is None


def official(folder: Path) -> Path:
    """A folder as it is unpacked, with the questions beside it."""
    asked = [{key: value for key, value in one.items() if key != "model_prediction"} for one in made()]
    (folder / "HallusionBench.json").write_text(json.dumps(asked))
    images = folder / "hallusion_bench"
    for one in asked:
        if one["filename"]:
            path = images / one["filename"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return images


def answer_all(images: Path, *split: str) -> dict[str, dict[str, Any]]:
    said = {tuple(one.values())[:2] + tuple(one.values())[3:6]: one["model_prediction"] for one in made()}
    dataset = Hallusion(split=split).load(DataRequest(images=images))
    keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
    return {
        one.sample_id: {**one.fields, "answer": said[tuple(one.fields[key] for key in keys)]} for one in dataset.samples
    }


def test_a_run_asks_all_or_what_has_a_figure_and_scores_the_same(tmp_path: Path) -> None:
    dataset = Hallusion().load(DataRequest(images=official(tmp_path)))
    assert len(dataset.samples) == 144 and dataset.missing_images() == []
    assert [sample.image is None for sample in dataset.samples] == [False] * 120 + [True] * 24
    assert dataset.data["questions"]["without_figure"] == 24
    assert dataset.samples[0].prompt == "Is it 0? Please answer yes or no."
    images = tmp_path / "hallusion_bench"
    for split, expected in (((), OFFICIAL), (("image",), WITH_FIGURES)):
        groups = score_run(Hallusion(), answer_all(images, *split), Scoring())
        assert {group.name: numbers(group) for group in groups} == expected
    assert len(answer_all(images, "non_image")) == 24
    with pytest.raises(EvalError, match="must be of image, non_image, got 'figure'"):
        answer_all(images, "figure")


def test_what_lacks_an_answer_is_left_out_and_told(tmp_path: Path) -> None:
    records = answer_all(official(tmp_path), "image")
    gone = "VD/illusion/0/0/0"
    records[gone] = {"error": "no such file"}
    group = score_run(Hallusion(), records, Scoring())[-1]
    asked = [key.split("/") for key in records if key != gone]
    figures, pairs = defaultdict(set), defaultdict(set)
    for *place, figure, question in asked:
        figures[*place, figure].add(question)
        pairs[*place, question].add(figure)
    assert numbers(group)[1:6:2] == (len(asked), len(figures) - 1, len(pairs) - 1)
    assert numbers(group)[7::2] == (47, 48)  # the question that is gone was of an original figure
    assert {note.name: note.value for note in group.notes if "left out" in note.name} == {
        "figures left out": 1,
        "pairs left out": 1,
    }


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "HallusionBench_result.json"
    path.write_text(json.dumps(made()))
    assert main(["score", "hallusion", "--answers", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["VD", "VS", ALL]
    assert found[ALL]["qAcc"] == pytest.approx(18 / 48) and found[ALL]["rule"] == "vlmeval"
    low, high = found[ALL]["ci"]["aAcc"]
    assert low < 111 / 144 < high
    assert main(["score", "hallusion", "--answers", str(path)]) == 0
    text = capsys.readouterr().out
    assert "77.08" in text and "easy %" in text and "WARNING: unparsed" in text
    assert main(["score", "hallusion", "--answers", str(path), str(path)]) == 2
    assert "once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gt_answer": "2"}, "gt_answer"),
        ({"category": "VX"}, "VD or VS"),
        ({"question": None}, "'question'"),
        ({"filename": 3}, "filename"),
        ({"visual_input": "3"}, "visual_input must be one of 0, 1, 2"),
    ],
)
def test_malformed_questions(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = tmp_path / "HallusionBench.json"
    path.write_text(json.dumps([made()[0], {**made()[1], **change}]))
    with pytest.raises(DataFormatError, match=f"record 2.*{told}"):
        load_questions(path)


def test_what_is_missing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="--images"):
        Hallusion().load(DataRequest())
    with pytest.raises(EvalError, match="--questions"):
        Hallusion().load(DataRequest(images=tmp_path))
    with pytest.raises(DataFormatError, match="model_prediction"):
        to_answer({key: value for key, value in made()[0].items() if key != "model_prediction"}, "line 1")
    with pytest.raises(EvalError, match="at least one"):
        score_groups([])


@pytest.mark.slow
def test_damro_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "hallusion" in BENCHMARKS
    images = official(tmp_path)
    for path in images.rglob("*.png"):
        scene("test", 1).image.save(path)
    arguments = ["--images", str(images), "--out", str(tmp_path / "out"), "--limit", "6", "--json"]
    assert main(["run", "hallusion", "--model", "tiny", *arguments]) == 0
    scores = json.loads(capsys.readouterr().out)["methods"]["greedy"]["scores"]["VD"]
    assert (scores["n"], scores["figures"]) == (6, 3)


def of_vlmevalkit() -> list[dict[str, Any]]:
    """Predictions as VLMEvalKit writes them: the questions with a figure, where one stands under ``index``."""
    records = []
    for one in made():
        if not one["filename"]:
            continue
        names = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")
        told = {"index": "_".join(one[name] for name in names), "category": one["category"]}
        told |= {"l2-category": one["subcategory"], "question": one["question"]}
        records.append({**told, "answer": ("No", "Yes")[int(one["gt_answer"])], "prediction": one["model_prediction"]})
    return records


def of_lmms() -> list[dict[str, Any]]:
    """Samples of lmms-eval's task hallusion_bench_image, whose metrics hold the question, in any order."""
    records = []
    for number, one in enumerate(one for one in made() if one["filename"]):
        sample = {
            "doc_id": number,
            "target": "It is.",
            "filtered_resps": one["model_prediction"],
            "input": one["question"],
        }
        records.append({**sample, "aAcc": one, "fAcc": one, "qAcc": one})
    return records[::-1]


@pytest.mark.parametrize(("tool", "ending"), [("vlmevalkit", "xlsx"), ("vlmevalkit", "tsv"), ("lmms", "jsonl")])
def test_files_of_other_tools_score_as_the_official_form(tool: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"answers.{ending}"
    if tool == "lmms":
        path.write_text("".join(json.dumps(one) + "\n" for one in of_lmms()))
    elif ending == "xlsx":
        write_excel(path, of_vlmevalkit())
    else:
        write_tsv(path, of_vlmevalkit())
    groups = score_groups(load_answers(path))
    assert {group.name: numbers(group) for group in groups} == WITH_FIGURES


def test_files_of_other_tasks_and_scores_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"doc_id": 0, "filtered_resps": "Yes", "input": "Is it?", "mme_score": {}}))
    assert main(["score", "hallusion", "--answers", str(path)]) == 2
    assert "lmms-eval's task hallusion_bench_image" in capsys.readouterr().err
    scores = tmp_path / "model_HallusionBench_score.csv"
    scores.write_text("split,aAcc,fAcc,qAcc\nOverall,1,2,3\n")
    assert main(["score", "hallusion", "--answers", str(scores)]) == 2
    assert "holds scores of VLMEvalKit: give its predictions" in capsys.readouterr().err


def table_rows(bare: bool = True) -> list[dict[str, Any]]:
    """As lmms-lab/HallusionBench has them."""
    rows = []
    for one in made()[::4]:
        if bare or one["filename"]:
            picture = {"bytes": content(int(one["figure_id"])), "path": None}
            row = {key: value for key, value in one.items() if key != "model_prediction"}
            rows.append({**row, "image": picture if one["filename"] else None})
    return rows


def test_a_table_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, wanted in (("image", True), ("non_image", False)):
        rows = [one for one in table_rows() if bool(one["filename"]) is wanted]
        write_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet", rows)
    dataset = Hallusion(data=str(tmp_path)).load(DataRequest())
    expected = sorted("/".join(one[key] for key in PLACE) for one in table_rows())
    assert sorted(sample.sample_id for sample in dataset.samples) == expected
    seen = [sample for sample in dataset.samples if sample.image is not None]
    assert 0 < len(dataset.samples) - len(seen) == dataset.data["questions"]["without_figure"]
    figure = next(sample for sample in seen if sample.fields["figure_id"] == "2")
    assert dataset.open_image(str(figure.image)).size == scene("test", 2).image.size
    assert figure.fields["visual_input"] == "2"


def test_a_table_of_vlmevalkit(tmp_path: Path) -> None:
    rows = [
        {**{key: value for key, value in one.items() if key != "prediction"}, "image": text_of(content(n % 2))}
        for n, one in enumerate(of_vlmevalkit())
    ]
    dataset = Hallusion(data=str(write_tsv(tmp_path / "HallusionBench.tsv", rows))).load(DataRequest())
    assert {sample.sample_id for sample in dataset.samples} == {
        "/".join(one[key] for key in PLACE) for one in made() if one["filename"]
    }
    assert all(sample.image is not None for sample in dataset.samples)


def test_questions_without_a_figure_are_answered_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By every method with the answer of the language model alone, as stock `generate` gives it."""
    images = official(tmp_path)
    for path in images.rglob("*.png"):
        scene("test", 1).image.save(path)
    out = ["--out", str(tmp_path / "out"), "--limit", "6", "--json"]
    options = ["--images", str(images), "--max-new-tokens", "5", "--device", "cpu", *out]
    assert main(["run", "hallusion", "--split", "non_image", "--methods", "greedy", "damro", *options]) == 0
    scores = json.loads(capsys.readouterr().out)["methods"]
    assert scores["damro"]["scores"]["VS"]["without_figure"] == 6 and scores["damro"]["failed"] == 0
    records = {
        method: [json.loads(line) for line in (tmp_path / "out" / method / "records.jsonl").read_text().splitlines()]
        for method in ("greedy", "damro")
    }
    files = {method: (tmp_path / "out" / method / "records.jsonl").read_text() for method in records}
    assert main(["run", "hallusion", "--split", "non_image", "--methods", "greedy", "damro", *options]) == 0  # goes on
    assert files == {method: (tmp_path / "out" / method / "records.jsonl").read_text() for method in records}
    answers = {method: [one["answer"] for one in of] for method, of in records.items()}
    assert answers["greedy"] == answers["damro"] and all(answers["greedy"])
    assert all(one["image"] is None and "image_digest" not in one for one in records["damro"])
    model, processor = tiny.load()
    prompt = f"USER: {records['damro'][0]['prompt']} ASSISTANT:"
    inputs = processor.tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answers["damro"][0] == text.strip()
