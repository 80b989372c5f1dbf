import argparse
import gzip
import json
import os
import subprocess
from pathlib import Path

import chair_reference as reference
import pytest

from damro.cli import setup_nltk
from damro.eval.chair import command as score_chair
from damro.eval.errors import DataFormatError, EvalError

RECORDED = reference.CAPTIONS / "r9-llava-7b.jsonl.gz"


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    score_chair.add_parser(commands)
    setup_nltk.add_parser(commands)
    args = parser.parse_args(argv)
    return int(args.run(args))


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    captions = tmp_path / "captions.json"
    captions.write_text('[{"image": "scene-1.png", "text": "A cat and a dog."}]', encoding="utf-8")
    objects = tmp_path / "objects.json.gz"
    objects.write_bytes(gzip.compress(b'{"scene-1.png": ["cat", "bus"]}'))
    return str(captions), str(objects)


def test_json_of_recorded_captions(capsys: pytest.CaptureFixture[str], nltk_data: None) -> None:
    assert run("chair", "--captions", str(RECORDED), "--json") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["chair_s"], round(result["chair_i"], 6), round(result["recall"], 6)) == (0.354, 0.138408, 0.647763)
    assert (result["n_captions"], result["n_mentions"], result["matcher"]) == (500, 2601, "nltk")
    assert err == ""


def test_own_objects_and_gzip(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run("chair", "--captions", files[0], "--objects", files[1], "--matcher", "builtin", "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["chair_s"], result["chair_i"], result["recall"]) == (1.0, 0.5, 0.5)


def test_table_shows_recall_beside_chair(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run("chair", "--captions", files[0], "--objects", files[1], "--matcher", "builtin")
    out = capsys.readouterr().out
    for label, value in (("CHAIRs", "100.00 %"), ("CHAIRi", "50.00 %"), ("Recall", "50.00 %"), ("matcher", "builtin")):
        assert any(label in line and value in line for line in out.splitlines()), label


@pytest.fixture
def two_files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "long.json", tmp_path / "short.csv"]
    paths[0].write_text('{"1": "A cat on a mat, next to a bus and a ca"}', encoding="utf-8")
    paths[1].write_text("image_id,prediction\n1,A cat. And\n", encoding="utf-8")
    (tmp_path / "objects.json").write_text('{"1": ["cat"]}', encoding="utf-8")
    return [
        "chair",
        "--captions",
        *map(str, paths),
        "--objects",
        str(tmp_path / "objects.json"),
        "--matcher",
        "builtin",
    ]


def test_several_files_are_scored_at_equal_length_too(two_files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(*two_files, "--json")
    told = json.loads(capsys.readouterr().out)
    assert [one["chair_i"] for one in told["files"].values()] == [0.5, 0.0]  # the bus
    assert [one["chair_i"] for one in told["equal_length"].values()] == [0.0, 0.0]
    assert [one["mean_tokens"] for one in told["equal_length"].values()] == [4.0, 4.0]  # "A cat . And"
    run(*two_files, "--json", "--drop-cut-sentence")
    told = json.loads(capsys.readouterr().out)
    # The first has no finished sentence, and stays; of the second "And" goes.
    assert [one["cut sentences dropped"] for one in told["files"].values()] == [0, 1]
    assert [one["mean_tokens"] for one in told["equal_length"].values()] == [3.0, 3.0]
    run(*two_files)
    out = capsys.readouterr().out
    assert "long.json" in out and "short.csv" in out and "at equal length" in out
    assert max(map(len, out.splitlines())) <= 80


def test_files_of_other_images_are_not_scored_at_equal_length(
    two_files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "objects.json").write_text('{"1": ["cat"], "2": ["dog"]}', encoding="utf-8")
    (tmp_path / "short.csv").write_text("image_id,caption\n2,A dog.\n", encoding="utf-8")
    run(*two_files, "--json")
    out, err = capsys.readouterr()
    assert json.loads(out)["equal_length"] is None and "are of different images" in err
    with pytest.raises(EvalError, match="--records must come with one file of captions, got 2"):
        run(*two_files, "--records", "records.jsonl")


def test_intervals_are_those_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run("chair", "--captions", str(RECORDED), "--matcher", "builtin", "--json")
    result = json.loads(capsys.readouterr().out)
    for name in ("chair_s", "chair_i", "recall", "precision", "f1", "mean_tokens"):
        low, high = result["ci"][name]
        assert low < result[name] < high


def test_a_zero_denominator_is_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"image_id": 42, "caption": "Sky."}\n', encoding="utf-8")
    run("chair", "--captions", str(captions), "--matcher", "builtin")
    row = next(line for line in capsys.readouterr().out.splitlines() if "hallucinated" in line and "CHAIRi" in line)
    assert row.split("│")[2].strip() == "-"


def test_a_note_when_the_data_is_not_there(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], no_data: None
) -> None:
    run("chair", "--captions", files[0], "--objects", files[1], "--json")
    out, err = capsys.readouterr()
    assert json.loads(out)["matcher"] == "builtin"
    assert "matcher is builtin" in err and "damro setup-nltk" in err


def test_records_file(files: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    run("chair", "--captions", files[0], "--objects", files[1], "--matcher", "builtin", "--records", str(path))
    (record,) = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert record["hallucinated"] == [{"name": "dog", "word": "dog", "start": 12, "end": 15, "token": 4}]


def test_records_may_go_to_a_pipe(files: tuple[str, str], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        run("chair", "--captions", files[0], "--objects", files[1], "--matcher", "builtin", "--records", str(pipe))
        shown = reader.communicate(timeout=60)[0]
    assert pipe.is_fifo() and all(json.loads(line) for line in shown.splitlines()) and shown


def test_annotations_are_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = {"images": [{"id": 5}]}
    (tmp_path / "instances_val2014.json").write_text(
        json.dumps(
            {
                **image,
                "categories": [{"id": 1, "name": "bus"}],
                "annotations": [{"id": 1, "image_id": 5, "category_id": 1}],
            }
        ),
        encoding="utf-8",
    )
    (tmp_path / "captions_val2014.json").write_text(
        json.dumps({**image, "annotations": [{"id": 1, "image_id": 5, "caption": "A cab."}]}), encoding="utf-8"
    )
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"image_id": 5, "caption": "A bus, a car and a train."}\n', encoding="utf-8")
    for _ in range(2):
        run("chair", "--captions", str(captions), "--annotations", str(tmp_path), "--matcher", "builtin", "--json")
        result = json.loads(capsys.readouterr().out)
        assert (result["n_mentions"], result["chair_i"], result["recall"]) == (3, 1 / 3, 1.0)
    assert (tmp_path / "damro_objects.builtin.json").is_file()


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image_id": 42, "caption": "Sky."}\n{"image_id": \n', encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"captions\.jsonl, line 2: not JSON"):
        run("chair", "--captions", str(path))


def test_setup_downloads_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_data: None, tmp_path: Path
) -> None:
    import nltk

    asked = []

    def download(package: str, download_dir: str | None, quiet: bool) -> bool:
        asked.append((package, download_dir))
        return True

    monkeypatch.setattr(nltk, "download", download)
    assert run("setup-nltk", "--dir", str(tmp_path)) == 0
    packages = ["punkt_tab", "averaged_perceptron_tagger_eng", "wordnet"]
    assert asked == [(package, str(tmp_path)) for package in packages]
    assert f"NLTK_DATA={tmp_path}" in capsys.readouterr().out


def test_setup_leaves_alone_what_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wordnet_data: None
) -> None:
    import nltk

    def download(*args: object, **kwargs: object) -> bool:
        raise AssertionError("nothing was to be downloaded")

    monkeypatch.setattr(nltk, "download", download)
    assert run("setup-nltk") == 0
    assert capsys.readouterr().out.count("already there") == 3


def test_setup_without_a_network(monkeypatch: pytest.MonkeyPatch, no_data: None) -> None:
    import nltk

    monkeypatch.setattr(nltk, "download", lambda *args, **kwargs: False)
    with pytest.raises(EvalError, match="punkt_tab could not be downloaded.*--matcher builtin"):
        run("setup-nltk")
