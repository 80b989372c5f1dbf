"""eval/runs/identity.py: records and images that are not this run's are refused, with their names."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from damro.eval.errors import EvalError
from damro.eval.runs.identity import (
    ChangedImageError,
    ForeignRecordError,
    Identity,
    SeenImages,
    check_asked,
    check_same_images,
    digest_of_record,
)
from damro.eval.runs.loop import Answered, Loop
from damro.eval.samples import Dataset, ImageFolder, Sample, open_scene

PROMPT = "Is there a cat?"


def make(folder: Path, count: int = 6) -> Dataset:
    """Questions about images, two an image."""
    folder.mkdir(exist_ok=True)
    for number in range(count // 2):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
    samples = [
        Sample(f"s/{number}", f"{number // 2}.png", PROMPT, {"label": "no", "tags": (number,)})
        for number in range(count)
    ]
    return Dataset(samples, ImageFolder(folder), {})


def run(dataset: Dataset, folder: Path, settings: str = "a", **options: Any) -> dict[str, dict[str, Any]]:
    images = SeenImages(dataset.open_image, dataset.digest_image)

    def answer(batch: Sequence[Sample]) -> list[Answered]:
        return [Answered(str(images(sample.image).getpixel((0, 0)))) for sample in batch]

    loop = Loop(batch_size=2, identity=Identity(settings, images=images, **options))
    return loop.run(folder, dataset.samples, answer)


def edit(folder: Path, number: int, **changes: Any) -> None:
    """Changes fields of one record; None takes one out."""
    file = folder / "records.jsonl"
    lines = file.read_text().splitlines()
    fields = {**json.loads(lines[number]), **changes}
    lines[number] = json.dumps({name: value for name, value in fields.items() if value is not None})
    file.write_text("\n".join(lines) + "\n")


def test_a_record_carries_the_digests_of_what_it_is_of(tmp_path: Path) -> None:
    import hashlib

    dataset = make(tmp_path / "images")
    records = run(dataset, tmp_path / "run")
    for fields in records.values():
        content = (tmp_path / "images" / fields["image"]).read_bytes()
        assert fields["image_digest"] == hashlib.sha256(content).hexdigest()[:16]
        asked = {name: fields[name] for name in ("id", "label", "tags", "image", "prompt", "image_digest")}
        text = json.dumps(["a", asked], sort_keys=True)
        assert fields["digest"] == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert len({fields["digest"] for fields in records.values()}) == 6
    before = (tmp_path / "run/records.jsonl").read_bytes()
    assert list(run(dataset, tmp_path / "run")) == list(records)
    assert (tmp_path / "run/records.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "changes", [{"prompt": "Is it?"}, {"label": "yes"}, {"image": "0.png"}, {"digest": "0" * 16}, {"digest": 3}]
)
def test_a_record_that_was_changed_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    dataset = make(tmp_path / "images")
    run(dataset, tmp_path / "run")
    edit(tmp_path / "run", 4, **changes)
    before = (tmp_path / "run/records.jsonl").read_bytes()
    with pytest.raises(
        ForeignRecordError, match=r"records.jsonl, line 5: record 's/4' must .* contradicts the settings"
    ):
        run(dataset, tmp_path / "run")
    assert (tmp_path / "run/records.jsonl").read_bytes() == before


def test_records_of_other_settings_are_refused(tmp_path: Path) -> None:
    dataset = make(tmp_path / "images")
    run(dataset, tmp_path / "run", "a")
    run(dataset, tmp_path / "other", "b")
    lines = [(tmp_path / name / "records.jsonl").read_text().splitlines(keepends=True) for name in ("run", "other")]
    (tmp_path / "run/records.jsonl").write_text("".join(lines[0][:3] + lines[1][3:]))
    with pytest.raises(ForeignRecordError, match="line 4: record 's/3'"):
        run(dataset, tmp_path / "run", "a")


def test_a_record_without_a_digest_is_taken_in_an_old_run_alone(tmp_path: Path) -> None:
    dataset = make(tmp_path / "images")
    run(dataset, tmp_path / "run")
    edit(tmp_path / "run", 2, digest=None)
    with pytest.raises(ForeignRecordError, match="record 's/2' must carry the digest of this run, has none"):
        run(dataset, tmp_path / "run")
    assert len(run(dataset, tmp_path / "run", accepts_old=True)) == 6
    edit(tmp_path / "run", 2, prompt="Is there a dog?")  # what it says itself is believed
    (tmp_path / "run/records-0.jsonl").write_text("")
    before = (tmp_path / "run/records.jsonl").read_bytes()
    with pytest.raises(
        ForeignRecordError, match="line 3: record 's/2' must hold the prompt 'Is there a cat.' .* a dog"
    ):
        run(dataset, tmp_path / "run", accepts_old=True)
    assert (tmp_path / "run/records.jsonl").read_bytes() == before  # nor is anything merged
    assert (tmp_path / "run/records-0.jsonl").exists()


def test_an_answer_is_not_part_of_the_digest() -> None:
    fields = {"id": "s/1", "prompt": PROMPT, "label": "no"}
    for more in ({"answer": "No", "outliers": [[1]], "seconds": 1.0}, {"error": "broken"}, {"digest": "x"}):
        assert digest_of_record("a", {**fields, **more}) == digest_of_record("a", fields)
    assert digest_of_record("b", fields) != digest_of_record("a", fields)


def test_an_image_that_changed_is_named(tmp_path: Path) -> None:
    dataset = make(tmp_path / "images")
    run(dataset, tmp_path / "run")
    file = tmp_path / "images/1.png"
    before = file.read_bytes()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(file)
    with pytest.raises(ChangedImageError, match="image '1.png' must be the file that the recorded answers are about"):
        run(dataset, tmp_path / "run")
    file.unlink()
    assert len(run(dataset, tmp_path / "run")) == 6  # of one that is not there nothing can be said
    file.write_bytes(before)
    os.utime(file, (0, 0))
    assert len(run(dataset, tmp_path / "run")) == 6


def test_an_image_of_a_sample_that_failed_may_be_mended(tmp_path: Path) -> None:
    dataset = make(tmp_path / "images")
    loop = Loop(batch_size=2, identity=Identity("a", images=SeenImages(dataset.open_image, dataset.digest_image)))
    loop.run(tmp_path / "run", dataset.samples, lambda batch: [Answered(None, error="broken") for _ in batch])
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "images/1.png")
    assert ["error" in fields for fields in run(dataset, tmp_path / "run").values()] == [True] * 6


def test_scenes_have_no_files(tmp_path: Path) -> None:
    dataset = Dataset([Sample("s/1", "test_000001.png", PROMPT, {})], open_scene, {})
    images = SeenImages(dataset.open_image, dataset.digest_image)
    assert images("test_000001.png").size == (96, 96)
    assert images.digest("test_000001.png") is None
    with pytest.raises(EvalError, match="must stay inside"):
        ImageFolder(tmp_path).digest("../a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert ImageFolder(tmp_path).digest("pipe.png") is None


def test_runs_that_looked_at_different_images_are_not_compared(tmp_path: Path) -> None:
    dataset = make(tmp_path / "images")
    first = run(dataset, tmp_path / "one")
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "images/2.png")
    second = run(dataset, tmp_path / "two")
    with pytest.raises(ChangedImageError, match="image '2.png' must be the same file .* one and two looked"):
        check_same_images({"one": first, "two": second})
    check_same_images({"one": first, "old": {key: {"image": fields["image"]} for key, fields in second.items()}})


def test_fields_are_compared_as_they_were_written() -> None:
    sample = Sample("s/1", "1.png", PROMPT, {"tags": (1, 2), "label": "no"})
    written = json.loads(json.dumps({**sample.fields, "image": "1.png", "prompt": PROMPT}))
    check_asked(written, sample, "here")
    del written["label"]  # an older version may have written less
    check_asked(written, sample, "here")
    with pytest.raises(ForeignRecordError, match="here: record 's/1' must hold the tags"):
        check_asked({**written, "tags": [1]}, sample, "here")
