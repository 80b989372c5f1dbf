"""Malformed question, answer, caption, object, annotation, label and MME files, through the command line.

Each example damages one file of a real set and leaves the others whole. The command must then say what is wrong
(exit code 2 and a message), or score everything: a traceback fails the test, and so does a score of fewer samples.
"""

import gzip
import io
import json
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damro.cli import main
from damro.eval.pope import load_questions
from damro.eval.runs.record import to_record, write_run
from damro.eval.runs.request import RunRequest

DATA = Path(__file__).parent / "data"
QUESTIONS = 24
CAPTIONS = 12
JUNK: list[Any] = [
    *(None, True, -1, 0, 10**30, 0.5, float("nan"), float("inf"), "", " ", "no", "cat", "42", "\ud800", "<script>"),
    *([], [[]], [None], {}, {"": None}, ["dog", 1]),
]
BYTES = [b"\x00", b"\xff\xfe", b"\n", b"\t", b"\r", b"{", b"}", b"]", b",", b'"', b"\\u", b"NaN", b"\xef\xbb\xbf"]
DEEP = b"[" * 100_000


class Case(NamedTuple):
    """A command, its file that is damaged, and how many samples its scores must be of.

    Attributes:
        file: Name of the file.
        command: Arguments; "DIR/" stands for the folder of the files.
        scored: From the scores to the number of samples that they are of.
        expected: From the damaged file's text to the number of samples that there must be.
        lines: The file holds a record a line; otherwise it is one JSON value. None: lines with tabs.
    """

    file: str
    command: str
    scored: Callable[[Any], int]
    expected: Callable[[str], int]
    lines: bool | None


def count_records(text: str) -> int:
    if text.lstrip().startswith("["):
        return len(json.loads(text))
    return sum(bool(line.strip()) for line in text.split("\n"))


def count_questions(scores: Mapping[str, Any]) -> int:
    return int(scores["n"])


def count_captions(scores: Mapping[str, Any]) -> int:
    return int(scores["n_captions"])


def count_labelled(scores: Mapping[str, Any]) -> int:
    (group,) = scores["methods"]["greedy"]["scores"].values()
    return int(group["n"] + group["excluded_by_labels"])


def count_mme(scores: Mapping[str, Any]) -> int:
    return sum(each["n_questions"] for each in scores["categories"].values())


POPE = "score pope --questions DIR/questions.json --answers DIR/answers.jsonl --json"
CHAIR = "score chair --captions DIR/captions.jsonl --matcher builtin --json"
OBJECTS = f"{CHAIR} --objects DIR/objects.json"
ANNOTATIONS = f"{CHAIR} --annotations DIR/annotations"
CASES = {
    "questions": Case("questions.json", POPE, count_questions, lambda _: QUESTIONS, True),
    "answers": Case("answers.jsonl", POPE, count_questions, lambda _: QUESTIONS, True),
    "captions": Case("captions.jsonl", OBJECTS, count_captions, count_records, True),
    "objects": Case("objects.json", OBJECTS, count_captions, lambda _: CAPTIONS, False),
    "instances": Case("annotations/instances_val2014.json", ANNOTATIONS, count_captions, lambda _: CAPTIONS, False),
    "references": Case("annotations/captions_val2014.json", ANNOTATIONS, count_captions, lambda _: CAPTIONS, False),
    "labels": Case(
        "labels.jsonl",
        "compare DIR/run --labels DIR/labels.jsonl --json",
        count_labelled,
        lambda _: QUESTIONS,
        True,
    ),
    "mme": Case("count.txt", "score mme --answers DIR/count.txt --json", count_mme, count_records, None),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole files: the first of the recorded ones, and COCO annotations of the captioned images."""
    place = tmp_path_factory.mktemp("whole")
    questions = load_questions("coco/adversarial")[:QUESTIONS]
    answers = read_lines(DATA / "pope/answers_llava-v1.5-13b_adversarial.jsonl.gz")[:QUESTIONS]
    asked = [{"question_id": q.question_id, "image": q.image, "text": q.text, "label": q.label} for q in questions]
    write_lines(place / "questions.json", asked)
    write_lines(place / "answers.jsonl", answers)
    write_lines(place / "labels.jsonl", [{key: fields[key] for key in ("image", "text", "label")} for fields in asked])
    write_recorded_run(place / "run", asked, answers)
    captions = read_lines(DATA / "captions/r9-llava-7b.jsonl.gz")[:CAPTIONS]
    write_lines(place / "captions.jsonl", captions)
    objects = json.loads(gzip.open(DATA / "captions/r9-llava-7b.objects.json.gz", "rt").read())
    images = [str(fields["image_id"]) for fields in captions]
    (place / "objects.json").write_text(json.dumps(dict(zip(images, objects, strict=False))))
    write_annotations(place / "annotations", [int(image) for image in images])
    lines = (DATA / "mme/llava-v1.5-7b_count.txt").read_text().splitlines(keepends=True)
    (place / "count.txt").write_text("".join(lines[:20]))
    return place


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.open(path, "rt")]


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_recorded_run(folder: Path, asked: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
    write_run(
        folder,
        to_record(
            RunRequest("pope", "tiny"),
            {"method": {"name": "greedy", "method": "greedy", "temperature": 0, "parameters": {}}, "data": {}},
        ),
    )
    records = [
        {
            "id": fields["question_id"],
            "split": "coco/adversarial",
            "image": fields["image"],
            "question": fields["text"],
            "label": fields["label"],
            "answer": answer["answer"],
            "seconds": 0.1,
        }
        for fields, answer in zip(asked, answers, strict=True)
    ]
    write_lines(folder / "records.jsonl", records)


def write_annotations(folder: Path, images: list[int]) -> None:
    folder.mkdir()
    entries = [{"id": image, "file_name": f"COCO_val2014_{image:012d}.jpg"} for image in images]
    categories = [{"id": 18, "name": "dog"}, {"id": 62, "name": "chair"}]
    instances = [
        {"id": number, "image_id": image, "category_id": (18, 62)[number % 2]}
        for number, image in enumerate(images, start=1)
    ]
    captions = [{"id": n, "image_id": image, "caption": "A dog on a chair."} for n, image in enumerate(images, start=1)]
    content: dict[str, Any] = {"images": entries, "annotations": instances, "categories": categories}
    (folder / "instances_val2014.json").write_text(json.dumps(content))
    (folder / "captions_val2014.json").write_text(json.dumps({"images": entries, "annotations": captions}))


def damage_bytes(draw: Callable[..., Any], content: bytes) -> bytes:
    """Cut off, overwrite, insert, delete or repeat some bytes."""
    start = draw(st.integers(0, len(content)))
    end = min(len(content), start + draw(st.integers(1, 60)))
    kind = draw(st.sampled_from(["cut", "overwrite", "insert", "delete", "repeat", "deep"]))
    junk = draw(st.sampled_from(BYTES) | st.binary(min_size=1, max_size=8))
    middle = {
        "cut": b"",
        "overwrite": junk + content[end:],
        "insert": junk + content[start:],
        "delete": content[end:],
        "repeat": content[start:end] * 2 + content[end:],
        "deep": DEEP,
    }[kind]
    return content[:start] + middle if kind != "deep" or start % 2 else DEEP


def damage_value(draw: Callable[..., Any], value: Any) -> Any:
    """Replace, delete, repeat or rename something inside a JSON value; changes lists and dictionaries in place."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 7)) == 0:
        return draw(st.sampled_from(JUNK))
    if isinstance(value, dict):
        return damage_dictionary(draw, value)
    place = draw(st.integers(0, len(value) - 1))
    kind = draw(st.sampled_from(["inside", "inside", "delete", "repeat", "swap"]))
    if kind == "inside":
        value[place] = damage_value(draw, value[place])
    elif kind == "delete":
        del value[place]
    elif kind == "repeat":
        value.insert(draw(st.integers(0, len(value))), value[place])
    else:
        value[place], value[-1] = value[-1], value[place]
    return value


def damage_dictionary(draw: Callable[..., Any], value: dict[str, Any]) -> Any:
    key = draw(st.sampled_from(sorted(value)))
    kind = draw(st.sampled_from(["inside", "inside", "inside", "delete", "rename", "list"]))
    if kind == "inside":
        value[key] = damage_value(draw, value[key])
    elif kind == "delete":
        del value[key]
    elif kind == "rename":
        value[draw(st.sampled_from(["", "text", "answer", "image", "id", "42"]))] = value.pop(key)
    else:
        return list(value.items())
    return value


def damage_cells(draw: Callable[..., Any], content: bytes) -> bytes:
    """Damage the fields between tabs."""
    rows = damage_value(draw, [line.split("\t") for line in content.decode().splitlines()])
    if not isinstance(rows, list):
        return str(rows).encode("utf-8", "surrogatepass")
    lines = ["\t".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def damage(draw: Callable[..., Any], content: bytes, lines: bool | None) -> bytes:
    if draw(st.booleans()):
        return damage_bytes(draw, content)
    if lines is None:
        return damage_cells(draw, content)
    if not lines:
        return json.dumps(damage_value(draw, json.loads(content))).encode()
    records = damage_value(draw, [json.loads(line) for line in content.splitlines()])
    if isinstance(records, list) and draw(st.booleans()):
        return "\n".join(map(json.dumps, records)).encode()
    return json.dumps(records).encode()


def call(arguments: list[str]) -> tuple[int, str, str]:
    """Run a command with streams that encode as a terminal's do."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    streams = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return code, streams[0], streams[1]


def run_with(case: Case, folder: Path, content: bytes) -> tuple[int, str, str]:
    path = folder / case.file
    whole = path.read_bytes()
    (folder / "annotations/damro_objects.builtin.json").unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        return call([word.replace("DIR/", f"{folder}/") for word in case.command.split()])
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", CASES)
def test_whole_files_are_scored(folder: Path, name: str) -> None:
    case = CASES[name]
    whole = (folder / case.file).read_bytes()
    code, out, err = run_with(case, folder, whole)
    assert code == 0, err
    assert case.scored(json.loads(out)) == case.expected(whole.decode()) > 0


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_is_refused_or_scored_in_full(folder: Path, name: str, data: st.DataObject) -> None:
    case = CASES[name]
    content = damage(data.draw, (folder / case.file).read_bytes(), case.lines)
    code, out, err = run_with(case, folder, content)
    if code == 0:
        assert case.scored(json.loads(out)) == case.expected(content.decode("utf-8-sig")) > 0
    else:
        assert code == 2
        assert err.lstrip().startswith("damro: ") and len(err) > 30
        assert "Traceback" not in err and out == ""
