"""Tables of questions with their images, and `damro run` on them: in the schemas of lmms-lab/POPE and lmms-lab/MME."""

import base64
import csv
import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_formats_tables import write_excel, write_parquet

from damro.cli import main
from damro.eval.benchmark import DataRequest
from damro.eval.chair.benchmark import Chair
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.formats.images import Role, choose_columns
from damro.eval.mme.benchmark import Mme
from damro.eval.pope.benchmark import Pope
from damro.images import ImageError
from damro.tiny.scenes import scene

pytest.importorskip("pyarrow")
SPLITS = ("adversarial", "popular", "random")


def picture(number: int, size: tuple[int, int] | None = None) -> bytes:
    image, file = scene("test", number).image, io.BytesIO()
    (image if size is None else image.resize(size)).save(file, "PNG")
    return file.getvalue()


def pope_rows(images: Sequence[bytes], splits: Sequence[str] = SPLITS) -> list[dict[str, Any]]:
    """Two questions about every image in every split, as lmms-lab/POPE has them: the ids of a split begin at 1."""
    rows: list[dict[str, Any]] = []
    for split in splits:
        for number, content in enumerate(images):
            for place, (noun, answer) in enumerate((("cat", "yes"), ("dog", "no")), start=1):
                told = {"id": str(len(rows)), "question_id": str(2 * number + place), "category": split}
                told |= {"question": f"Is there a {noun} in the image?", "answer": answer}
                told |= {"image_source": f"COCO_val2014_{number:012d}"}
                rows.append({**told, "image": {"bytes": content, "path": None}})
    return rows


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    """A folder as a snapshot of the hub: the default configuration in two files under data, and another beside it."""
    rows = pope_rows([picture(0), picture(1, (90, 70)), picture(2)])
    for name in ("data", "Full"):
        (tmp_path / "snapshot" / name).mkdir(parents=True)
    write_parquet(tmp_path / "snapshot" / "data" / "test-00000-of-00002.parquet", rows[:8])
    write_parquet(tmp_path / "snapshot" / "data" / "test-00001-of-00002.parquet", rows[8:])
    write_parquet(tmp_path / "snapshot" / "Full" / "random-00000.parquet", rows[12:])
    return tmp_path / "snapshot"


def test_samples_of_pope(pope: Path) -> None:
    dataset = Pope(data=str(pope)).load(DataRequest())
    assert len(dataset.samples) == 18
    images = [sample.image for sample in dataset.samples]
    assert images == [f"COCO_val2014_{n:012d}.jpg" for n in range(3) for _ in range(6)]  # those of an image together
    assert [sample.sample_id for sample in dataset.samples[:3]] == ["adversarial/1", "adversarial/2", "popular/1"]
    assert [sample.fields["label"] for sample in dataset.samples[:2]] == ["yes", "no"]
    assert [dataset.open_image(images[6 * n]).size for n in range(3)] == [scene("test", 0).image.size, (90, 70)] + [
        scene("test", 2).image.size
    ]
    assert dataset.open_image(images[0]).tobytes() == scene("test", 0).image.convert("RGB").tobytes()
    assert dataset.digest_image(images[6]) != dataset.digest_image(images[0])
    table = dataset.data["table"]
    assert list(table["files"]) == ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"]
    assert table["rows"] == 18 and table["columns"]["answer"] == "answer"


def test_split_and_limit(pope: Path) -> None:
    dataset = Pope(data=str(pope), split=("random",)).load(DataRequest(limit=3))
    assert [sample.sample_id for sample in dataset.samples] == ["random/1", "random/2", "random/3"]
    with pytest.raises(EvalError, match=r"categories \(adversarial, popular, random\), got 'hard'"):
        Pope(data=str(pope), split=("hard",)).load(DataRequest())


def test_a_run_on_parquet_equals_one_on_files(pope: Path, tmp_path: Path) -> None:
    """Answer by answer, with images of different sizes in a batch; and the table's checksum stands in run.json."""
    questions, images = tmp_path / "questions.jsonl", tmp_path / "images"
    images.mkdir()
    dataset = Pope(data=str(pope)).load(DataRequest())
    lines = []
    for number, sample in enumerate(dataset.samples):
        dataset.open_image(sample.image).save(images / f"{sample.image}.png")
        fields = {"question_id": number, "image": f"{sample.image}.png", "text": sample.fields["question"]}
        lines.append(json.dumps({**fields, "label": sample.fields["label"]}))
    questions.write_text("\n".join(lines))
    runs = {}
    for name, options in (
        ("table", ["--data", str(pope)]),
        ("files", ["--questions", str(questions), "--images", str(images)]),
    ):
        out = tmp_path / name
        assert main(["run", "pope", *options, "--device", "cpu", "--max-new-tokens", "3", "--out", str(out)]) == 0
        runs[name] = [json.loads(line) for line in (out / "greedy" / "records.jsonl").read_text().splitlines()]
    answers = {name: [one["answer"] for one in records] for name, records in runs.items()}
    assert answers["table"] == answers["files"] and len(answers["table"]) == 18
    told = json.loads((tmp_path / "table" / "greedy" / "run.json").read_text())
    assert told["resolved"]["data"]["table"] == dataset.data["table"]
    assert all(len(one["image_digest"]) == 16 for one in runs["table"])


def test_images_that_do_not_decode_are_failed_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pope_rows([picture(0), b"no image", picture(2)], ["random"])
    rows[4]["image"] = None
    path = write_parquet(tmp_path / "a.parquet", rows)
    out = tmp_path / "out"
    options = ["--data", str(path), "--device", "cpu", "--max-new-tokens", "3", "--out", str(out), "--json"]
    assert main(["run", "pope", *options]) == 0
    captured = capsys.readouterr()
    assert "3 of 6 samples failed" in captured.err
    assert json.loads(captured.out)["methods"]["greedy"]["failed"] == 3
    records = [json.loads(line) for line in (out / "greedy" / "records.jsonl").read_text().splitlines()]
    errors = {one["id"]: one["error"] for one in records if "error" in one}
    assert list(errors) == ["random/3", "random/4", "random/5"]
    assert errors["random/3"].endswith("cannot identify image file")
    assert "row 5: an image must be bytes, a file's name, or both" in errors["random/5"]


def test_rows_that_name_images_and_hold_none_fail_one_by_one(tmp_path: Path) -> None:
    rows = pope_rows([picture(0), picture(1)], ["random"])
    for row in rows:
        del row["image_source"]
        row["image"] = {"bytes": None, "path": f"{row['question_id']}.png"}
    rows[0]["image"]["bytes"] = picture(0)  # or Parquet would know no bytes
    dataset = Pope(data=str(write_parquet(tmp_path / "a.parquet", rows))).load(DataRequest())
    assert [sample.image for sample in dataset.samples] == ["1.png", "2.png", "3.png", "4.png"]
    with pytest.raises(EvalError, match="row 2 of the table must hold an image under 'image', holds none"):
        dataset.open_image("2.png")
    assert dataset.digest_image("2.png") is None


def test_threads_get_the_image_they_ask_for(tmp_path: Path, switching: None) -> None:
    contents = [picture(0, (20 + n, 20)) for n in range(12)]
    path = tmp_path / "a.parquet"
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(pope_rows(contents, ["random"])), path, row_group_size=2)
    dataset = Pope(data=str(path)).load(DataRequest())
    names = list(dict.fromkeys(sample.image for sample in dataset.samples)) * 8
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda name: dataset.open_image(name).width, names))
    assert found == [20 + n for n in range(12)] * 8


def test_too_large_an_image_is_refused_as_one_of_a_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pope_rows([picture(0)], ["random"]))
    opener = Pope(data=str(path)).load(DataRequest()).open_image
    with pytest.raises(ImageError, match="at most 100 pixels"):
        from damro.eval.samples import bounded

        bounded(opener, 100)("COCO_val2014_000000000000.jpg")


def test_two_images_of_one_name_stay_two(tmp_path: Path) -> None:
    rows = pope_rows([picture(0), picture(1)], ["random"])
    for row in rows:
        row["image_source"] = "../same.png"
    dataset = Pope(data=str(write_parquet(tmp_path / "a.parquet", rows))).load(DataRequest())
    first, second = dict.fromkeys(sample.image for sample in dataset.samples)
    assert first == "same.png" and second.endswith(" same.png")
    assert dataset.open_image(first).tobytes() != dataset.open_image(second).tobytes()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "xlsx", "parquet"])
def test_a_table_of_any_kind_with_columns_of_any_name(tmp_path: Path, kind: str) -> None:
    rows = [
        {"img": f"{n}.png", "q": f"Is there a cat in {n}?", "gold": answer} for n, answer in enumerate(["Yes", "no"])
    ]
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("img,q,gold\n" + "\n".join(",".join(row.values()) for row in rows))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        (write_excel if kind == "xlsx" else write_parquet)(path, rows)
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    benchmark = Pope(data=str(path), columns=("image=img", "question=q", "answer=gold"))
    dataset = benchmark.load(DataRequest(images=tmp_path))
    assert [(one.image, one.fields["label"]) for one in dataset.samples] == [("0.png", "yes"), ("1.png", "no")]
    assert [one.sample_id for one in dataset.samples] == [f"a.{kind}/1", f"a.{kind}/2"]
    assert dataset.open_image("1.png").size and dataset.missing_images() == []
    with pytest.raises(EvalError, match="--images must be the folder of the files that column 'img' names, got none"):
        benchmark.load(DataRequest())


def mme_rows() -> list[dict[str, Any]]:
    return [
        {
            **{"question_id": f"{category}/{n}.png", "category": category, "answer": answer},
            **{"question": f"{answer}? Please answer yes or no.", "image": {"bytes": picture(n), "path": f"{n}.png"}},
        }
        for answer in ("Yes", "No")
        for category in ("count", "existence")
        for n in range(2)
    ]


def test_mme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_parquet(tmp_path / "test-00000-of-00001.parquet", mme_rows())
    dataset = Mme(data=str(path)).load(DataRequest())
    ids = [f"{category}/{n}.png/{q}" for category in ("existence", "count") for n in range(2) for q in (1, 2)]
    assert [sample.sample_id for sample in dataset.samples] == ids
    assert dataset.samples[0].fields == {
        **{"category": "existence", "name": "0.png", "question": "Yes? Please answer yes or no.", "label": "yes"},
    }
    out = ["--out", str(tmp_path / "out"), "--device", "cpu", "--max-new-tokens", "3", "--json"]
    assert main(["run", "mme", "--data", str(path), "--split", "existence", *out]) == 0
    scores = json.loads(capsys.readouterr().out)["methods"]["greedy"]["scores"]
    assert scores["existence"]["n_images"] == 2
    with pytest.raises(EvalError, match="must be of MME's .* and in the table, got 'color'"):
        Mme(data=str(path), split=("color",)).load(DataRequest())


ROLES = {"image": Role(("image",)), "question": Role(("question", "text")), "id": Role(("question_id",), needed=False)}


def test_columns_are_found_or_told() -> None:
    assert choose_columns("t", ["text", "question", "image"], ROLES, []) == {"image": "image", "question": "question"}
    told = choose_columns("t", ["text", "question", "image", "n"], ROLES, ["question=text", "id=n"])
    assert told == {"image": "image", "question": "text", "id": "n"}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            [],
            r"t: must have a column for question \(question or text\), has 'image', 'q': name it with --columns",
        ),
        (["question=quest"], r"t: must have the columns of --columns, lacks 'quest', has 'image', 'q'"),
        (["quest=q"], r"--columns must be ROLE=COLUMN, each role of image, question, id once, got 'quest=q'"),
        (["question"], "must be ROLE=COLUMN"),
        (["question=q", "question=q"], "once, got 'question=q'"),
    ],
)
def test_columns_that_are_not_there(told: list[str], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        choose_columns("t", ["image", "q"], ROLES, told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "maybe"}, r"row 1: label must be yes or no, got 'maybe'"),
        ({"question": None}, r"row 1: 'question' must be text, got None"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = pope_rows([picture(0)], ["random"])
    rows[0] |= change
    with pytest.raises(DataFormatError, match=message):
        Pope(data=str(write_parquet(tmp_path / "a.parquet", rows))).load(DataRequest())


def test_options_that_nothing_would_heed(pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (
            ["--data", str(pope), "--images", str(tmp_path)],
            "--images must be left out where the images are",
        ),
        (["--data", str(pope), "--questions", "q.json"], "--questions must be left out with --data"),
        (["--data", str(pope), "--scenes", "4"], "--scenes must be left out where the data bring their images"),
        (["--columns", "image=a"], "--columns must come with --data"),
        (["--data", str(tmp_path / "none.parquet")], "cannot be read"),
    ):
        assert main(["run", "pope", *options, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(EvalError, match="must be a folder with Parquet files"):
        (tmp_path / "empty").mkdir()
        Pope(data=str(tmp_path / "empty")).load(DataRequest())


def test_files_of_other_columns_are_no_table(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"image": "a", "question": "b", "answer": "yes"}])
    write_parquet(tmp_path / "b.parquet", [{"image": "a", "text": "b", "answer": "yes"}])
    with pytest.raises(DataFormatError, match=r"b\.parquet: must have the columns of a\.parquet"):
        Pope(data=str(tmp_path)).load(DataRequest())


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As VLMEvalKit writes its tables: every cell in quotes."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return path


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_base64_in_a_tsv_of_vlmevalkit(tmp_path: Path) -> None:
    """An image is base64 or the index of a row that has it; a question may stand in several splits."""
    told = [
        ("0", text_of(picture(0))),
        ("1", "0"),
        ("2", text_of(picture(1))),
        ("3", "9"),
        ("4", text_of(50 * b"no image")),
    ]
    rows = [
        {
            "index": index,
            "image": image,
            "image_path": f"COCO_val2014_{'00134'[int(index)]:0>12}.jpg",
            "question": f"Is there a {index} in the image?",
            "answer": ("Yes", "No")[int(index) % 2],
            "category": "popular,random" if index == "0" else "random",
        }
        for index, image in told
    ]
    dataset = Pope(data=str(write_tsv(tmp_path / "POPE.tsv", rows))).load(DataRequest())
    assert [sample.sample_id for sample in dataset.samples] == [
        *("popular/1", "random/1", "random/2", "random/3", "random/4", "random/5")
    ]
    images = [str(sample.image) for sample in dataset.samples]
    assert images[:4] == ["COCO_val2014_000000000000.jpg"] * 3 + ["COCO_val2014_000000000001.jpg"]
    assert dataset.open_image(images[0]).tobytes() == scene("test", 0).image.convert("RGB").tobytes()
    assert dataset.digest_image(images[3]) == hashlib.sha256(picture(1)).hexdigest()
    with pytest.raises(EvalError, match="'index' of a row that has it, got '9'"):
        dataset.open_image(images[4])
    with pytest.raises(ImageError):
        dataset.open_image(images[5])


def test_base64_in_parquet_and_with_the_mark_of_a_url(tmp_path: Path) -> None:
    rows = pope_rows([picture(0)], ["random"])
    for row in rows:
        row["image"] = "data:image/png;base64," + text_of(picture(0))
    dataset = Pope(data=str(write_parquet(tmp_path / "a.parquet", rows))).load(DataRequest())
    assert {sample.image for sample in dataset.samples} == {"COCO_val2014_000000000000.jpg"}
    assert dataset.open_image("COCO_val2014_000000000000.jpg").size == scene("test", 0).image.size
    with pytest.raises(EvalError, match="must be left out where the images are in the table"):
        Pope(data=str(tmp_path / "a.parquet")).load(DataRequest(images=tmp_path))


def test_base64_of_mme(tmp_path: Path) -> None:
    rows = [
        {
            "index": n,
            "image": text_of(picture(7)) if n == 0 else "0",
            "image_path": "existence/0001.png",
            "question": f"Is it {n}?",
            "answer": ("Yes", "No")[n],
            "category": "existence",
        }
        for n in (0, 1)
    ]
    dataset = Mme(data=str(write_tsv(tmp_path / "MME.tsv", rows))).load(DataRequest())
    assert [sample.sample_id for sample in dataset.samples] == ["existence/0001.png/1", "existence/0001.png/2"]
    assert {sample.image for sample in dataset.samples} == {"existence/0001.png"}
    assert dataset.open_image("existence/0001.png").size == scene("test", 7).image.size


def caption_rows(*identifiers: Any, column: str = "image_id") -> list[dict[str, Any]]:
    return [{column: name, "image": {"bytes": picture(n), "path": None}} for n, name in enumerate(identifiers)]


def test_images_of_a_table_are_captioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each once, by number or COCO's name, if the ground truth has it; and a run scores them."""
    objects = tmp_path / "objects.json"
    objects.write_text(json.dumps({"42": ["dog"], "73": ["cat", "dog"], "cats.png": ["cat"]}))
    rows = [*caption_rows(42, 73, 74), *caption_rows(42)]
    path = write_parquet(tmp_path / "a.parquet", rows)
    dataset = Chair(data=str(path), objects=str(objects)).load(DataRequest())
    assert {sample.sample_id: sample.fields["image_id"] for sample in dataset.samples} == {"42": 42, "73": 73}
    assert {sample.prompt for sample in dataset.samples} == {"Generate a short caption of this image."}
    image = {sample.sample_id: str(sample.image) for sample in dataset.samples}["73"]
    assert dataset.digest_image(image) == hashlib.sha256(picture(1)).hexdigest()
    assert dataset.truth == {"42": ["dog"], "73": ["cat", "dog"]} and dataset.data["table"]["rows"] == 4
    named = write_tsv(
        tmp_path / "b.tsv", [{"pic": text_of(picture(n)), "file": f"COCO_val2014_{n:012d}"} for n in (42, 73)]
    )
    columns = ("image=pic", "image_id=file")
    other = Chair(data=str(named), columns=columns, objects=str(objects)).load(DataRequest(seed=1))
    assert {sample.sample_id for sample in other.samples} == {"42", "73"}
    out = tmp_path / "out"
    options = ["--objects", str(objects), "--matcher", "builtin", "--max-new-tokens", "4", "--device", "cpu"]
    assert main(["run", "chair", "--data", str(path), *options, "--out", str(out), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["methods"]["greedy"]["scores"]["captions"]
    assert scores["n_captions"] == 2


def test_which_images_of_a_table_are_captioned(tmp_path: Path) -> None:
    objects, ids = tmp_path / "objects.json", tmp_path / "ids.txt"
    objects.write_text(json.dumps({str(n): ["dog"] for n in range(9)}))
    path = str(write_parquet(tmp_path / "a.parquet", caption_rows(*range(8))))
    ids.write_text("5, 3")
    asked = Chair(data=path, objects=str(objects), image_ids=str(ids)).load(DataRequest())
    assert [sample.sample_id for sample in asked.samples] == ["5", "3"]
    two = [Chair(data=path, objects=str(objects)).load(DataRequest(limit=2, seed=seed)).samples for seed in (1, 1, 2)]
    assert len(two[0]) == 2 and two[0] == two[1] != two[2]
    ids.write_text("5, 8")
    with pytest.raises(EvalError, match=r"must hold the images of --image-ids, lacks 1 of 2 \(8\)"):
        Chair(data=path, objects=str(objects), image_ids=str(ids)).load(DataRequest())
    objects.write_text(json.dumps({"a.png": ["dog"]}))
    with pytest.raises(EvalError, match=r"its ids \(0, 1, 2, ...\) are none of the ground truth's: name their column"):
        Chair(data=path, objects=str(objects)).load(DataRequest())
    with pytest.raises(DataFormatError, match=r"a column for image_id \(image_id or .*has 'n', 'image'"):
        Chair(data=str(write_parquet(tmp_path / "b.parquet", caption_rows(1, column="n")))).load(DataRequest())
