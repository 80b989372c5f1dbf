import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_stub import answer, make_samples

from damro.eval.errors import EvalError
from damro.eval.runs.loop import Answered, FailedSampleError, Loop, Tally
from damro.eval.runs.sharding import BusyRunError, Workers, consolidate, find_workers, lock_folder, records_path
from damro.eval.samples import Sample
from damro.images import ImageError, load_image

STUB = Path(__file__).with_name("run_stub.py")


def read_records(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_a_run_records_every_sample_in_order(tmp_path: Path) -> None:
    told: list[Tally] = []
    records = Loop(batch_size=4, progress=told.append).run(tmp_path, make_samples(10), answer)
    assert list(records) == [f"s/{n}" for n in range(10)]
    assert records["s/5"]["answer"] == "4.jpg,5.jpg,6.jpg,7.jpg"
    assert records["s/5"]["prompt"] == "What is 5?"
    assert records["s/6"]["error"] == "broken image"
    assert "answer" not in records["s/6"]
    assert told == [Tally(0, 0, 10), Tally(4, 0, 10), Tally(8, 1, 10), Tally(10, 1, 10)]
    assert [record["id"] for record in read_records(tmp_path)] == list(records)


def test_a_finished_run_is_not_answered_again(tmp_path: Path) -> None:
    Loop(batch_size=4).run(tmp_path, make_samples(10), answer)
    before = (tmp_path / "records.jsonl").read_bytes()

    def refuse(batch: Sequence[Sample]) -> list[Answered]:
        raise AssertionError("asked again")

    Loop(batch_size=4).run(tmp_path, make_samples(10), refuse)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_samples_whose_image_was_not_there_are_done_again_unasked(tmp_path: Path) -> None:
    for name in ("0.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    asked: list[str] = []

    def open_each(batch: Sequence[Sample]) -> list[Answered]:
        answers = []
        for sample in batch:
            asked.append(sample.image)
            try:
                load_image(tmp_path / sample.image)
                answers.append(Answered("seen"))
            except ImageError as error:
                answers.append(Answered(None, error=str(error)))
        return answers

    records = Loop(batch_size=1).run(tmp_path / "run", make_samples(4), open_each)
    assert [record["error"].endswith("no such file") for record in records.values()] == [False, True, False, True]
    asked.clear()
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    records = Loop(batch_size=1).run(tmp_path / "run", make_samples(4), open_each)
    assert asked == ["1.jpg", "3.jpg"]  # a broken image waits for retry_failed
    assert ["answer" in record for record in records.values()] == [False, True, False, False]
    records = Loop(batch_size=1, retry_failed=True).run(tmp_path / "run", make_samples(4), open_each)
    assert ["answer" in record for record in records.values()] == [True, True, True, False]


@pytest.mark.parametrize("device", [None, "cpu"])
def test_processes_that_do_not_see_each_other_are_refused(device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Alone:
        num_processes, process_index = 1, 0

        def __init__(self, cpu: bool, timeout: object) -> None:
            asked.append(cpu)

    monkeypatch.setattr("accelerate.PartialState", Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        EvalError, match=r"must see all 2 that were started \(WORLD_SIZE\), got 1: start them with torchrun"
    ):
        find_workers(device)
    assert asked == [device == "cpu" or not torch.accelerator.is_available()]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert find_workers(device).count == 1


def test_resuming_answers_the_rest_in_the_batches_of_an_undisturbed_run(tmp_path: Path) -> None:
    Loop(batch_size=4).run(tmp_path / "whole", make_samples(10), answer)
    whole = (tmp_path / "whole/records.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    # Two of the first batch, a torn third; and one from the middle, as another process might have left it.
    (tmp_path / "cut/records.jsonl").write_bytes(b"".join(whole[:2]) + whole[2][:20])
    part = records_path(tmp_path / "cut", Workers(3, 4))
    part.write_bytes(whole[5])
    Loop(batch_size=4).run(tmp_path / "cut", make_samples(10), answer)
    assert read_records(tmp_path / "cut") == read_records(tmp_path / "whole")
    assert not part.parent.exists()


def test_a_run_killed_at_random_points_ends_with_the_records_of_an_undisturbed_one(tmp_path: Path) -> None:
    Loop(batch_size=3).run(tmp_path / "whole", make_samples(300), answer)
    dice = random.Random(5)
    environment = {**os.environ, "PYTHONPATH": str(STUB.parents[1])}
    command = [sys.executable, str(STUB), str(tmp_path / "killed"), "300", "3", "0.004"]
    file = tmp_path / "killed/records.jsonl"
    kills = 0
    for _ in range(20):
        size = file.stat().st_size if file.exists() else 0
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None and (file.stat().st_size if file.exists() else 0) <= size:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 20
    assert 20 <= len(file.read_bytes().splitlines()) < 300
    subprocess.run(command, env=environment, check=True)
    assert read_records(tmp_path / "killed") == read_records(tmp_path / "whole")


@pytest.mark.parametrize("count", [2, 3])
def test_several_workers_equal_one(tmp_path: Path, count: int) -> None:
    Loop(batch_size=3).run(tmp_path / "one", make_samples(23), answer)
    barrier = threading.Barrier(count)

    def wait() -> None:
        barrier.wait(timeout=20)

    def work(rank: int) -> None:
        loop = Loop(batch_size=3, workers=Workers(rank, count, wait))
        loop.run(tmp_path / "several", make_samples(23), answer)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_records(tmp_path / "several") == read_records(tmp_path / "one")
    assert [path.name for path in (tmp_path / "several").iterdir()] == ["records.jsonl"]


def test_what_several_workers_began_one_can_finish(tmp_path: Path) -> None:
    Loop(batch_size=3).run(tmp_path / "one", make_samples(23), answer)
    stopped = Loop(batch_size=3, workers=Workers(1, 2))

    def stop_after_two(batch: Sequence[Sample]) -> list[Answered]:
        if batch[0].sample_id == "s/15":
            raise KeyboardInterrupt
        return answer(batch)

    with pytest.raises(KeyboardInterrupt):
        stopped.run(tmp_path / "other", make_samples(23), stop_after_two)
    assert len((tmp_path / "other/parts/1.jsonl").read_text().splitlines()) == 6
    Loop(batch_size=3).run(tmp_path / "other", make_samples(23), answer)
    assert read_records(tmp_path / "other") == read_records(tmp_path / "one")


def test_strict_stops_at_the_first_failure_and_keeps_what_was_done(tmp_path: Path) -> None:
    with pytest.raises(FailedSampleError, match=r"s/6 \(6.jpg\).*broken image"):
        Loop(batch_size=3, strict=True).run(tmp_path, make_samples(10), answer)
    assert [record["id"] for record in read_records(tmp_path)] == [f"s/{n}" for n in range(6)]


def test_failed_samples_are_done_again_only_if_asked(tmp_path: Path) -> None:
    Loop(batch_size=4).run(tmp_path, make_samples(8), answer)

    def mended(batch: Sequence[Sample]) -> list[Answered]:
        return [Answered("mended") for _ in batch]

    assert "error" in Loop(batch_size=4).run(tmp_path, make_samples(8), mended)["s/6"]
    records = Loop(batch_size=4, retry_failed=True).run(tmp_path, make_samples(8), mended)
    assert records["s/6"]["answer"] == "mended"
    assert records["s/5"]["answer"] == "4.jpg,5.jpg,6.jpg,7.jpg"


def test_records_of_other_samples_are_refused(tmp_path: Path) -> None:
    Loop().run(tmp_path, make_samples(3), answer)
    with pytest.raises(EvalError, match=r"got 2 others \(s/1, s/2\)"):
        Loop().run(tmp_path, make_samples(1), answer)


def test_a_doubled_record_is_kept_once(tmp_path: Path) -> None:
    Loop().run(tmp_path, make_samples(2), answer)
    file = tmp_path / "records.jsonl"
    file.write_bytes(file.read_bytes() * 2)
    assert list(consolidate(tmp_path, ["s/0", "s/1"])) == ["s/0", "s/1"]
    assert len(file.read_text().splitlines()) == 2


def test_one_run_at_a_time_in_a_folder(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(BusyRunError, match="one run at a time"), lock_folder(tmp_path):
        raise AssertionError("locked twice")
    with lock_folder(tmp_path):
        pass


def test_files_that_are_not_ours_are_neither_read_nor_removed(tmp_path: Path) -> None:
    Loop(batch_size=4).run(tmp_path, make_samples(6), answer)
    whole = (tmp_path / "records.jsonl").read_bytes()
    stolen = whole.replace(b'"answer": "', b'"answer": "changed ')
    (tmp_path / "records.jsonl").write_bytes(whole.splitlines(keepends=True)[0])
    (tmp_path / "parts").mkdir()
    names = ["records-backup.jsonl", "records-1.jsonl", "records-old.jsonl", "parts/0.jsonl", "parts/mine.jsonl"]
    for name in names:
        (tmp_path / name).write_bytes(stolen)
    Loop(batch_size=4).run(tmp_path, make_samples(6), answer)
    assert "changed" not in (tmp_path / "records.jsonl").read_text()
    assert all((tmp_path / name).read_bytes() == stolen for name in names)
    with pytest.raises(EvalError, match="parts must be free for what several processes write, holds other files"):
        Loop(batch_size=4, workers=Workers(0, 2)).run(tmp_path, make_samples(6), answer)
    assert all((tmp_path / name).read_bytes() == stolen for name in names)


def test_a_file_in_our_folder_of_parts_stays(tmp_path: Path) -> None:
    Loop(batch_size=4).run(tmp_path, make_samples(6), answer)
    line = (tmp_path / "records.jsonl").read_bytes().splitlines(keepends=True)[4]
    part = records_path(tmp_path, Workers(1, 2))
    part.write_bytes(line)
    (part.parent / "notes.txt").write_text("mine")
    (tmp_path / "records.jsonl").unlink()
    assert list(consolidate(tmp_path, [f"s/{n}" for n in range(6)])) == ["s/4"]
    assert (part.parent / "notes.txt").read_text() == "mine"
    assert not part.exists()


def test_parts_of_an_older_version_are_merged_and_kept_under_another_name(tmp_path: Path) -> None:
    Loop(batch_size=4).run(tmp_path, make_samples(6), answer)
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines(keepends=True)
    order = [f"s/{n}" for n in range(6)]
    (tmp_path / "records.jsonl").write_bytes(lines[0])
    (tmp_path / "records-0.jsonl").write_bytes(lines[4] + lines[5][:9])
    (tmp_path / "records-1.jsonl").write_bytes(lines[2])
    (tmp_path / "records-b.jsonl").write_bytes(lines[3])
    assert list(consolidate(tmp_path, order)) == ["s/0"]
    assert list(consolidate(tmp_path, order, with_old_parts=True)) == ["s/0", "s/2", "s/4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("records-0.jsonl.merged", "records-1.jsonl.merged", "records-b.jsonl", "records.jsonl")
    ]
    assert (tmp_path / "records-0.jsonl.merged").read_bytes() == lines[4] + lines[5][:9]
    assert list(consolidate(tmp_path, order, with_old_parts=True)) == ["s/0", "s/2", "s/4"]


def test_a_part_that_is_refused_is_not_merged(tmp_path: Path) -> None:
    records_path(tmp_path, Workers(1, 2)).write_text('{"id": "s/0"}\n')

    def refuse(fields: object, where: str) -> None:
        raise EvalError(f"{where} is foreign")

    with pytest.raises(EvalError, match=r"parts/1.jsonl, line 1 is foreign"):
        consolidate(tmp_path, ["s/0"], check=refuse)
    assert not (tmp_path / "records.jsonl").exists()
    assert (tmp_path / "parts/1.jsonl").exists()


def test_a_batch_is_on_the_disk_before_the_next_one_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fsync

    def count(handle: int) -> None:
        sync(handle)
        synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", count)
    before: list[int] = []

    def note(batch: Sequence[Sample]) -> list[Answered]:
        before.append(synced[-1] if synced else 0)
        return answer(batch)

    Loop(batch_size=4).run(tmp_path, make_samples(12), note)
    ends = [0]
    for line in (tmp_path / "records.jsonl").read_bytes().splitlines(keepends=True):
        ends.append(ends[-1] + len(line))
    assert before == [ends[0], ends[4], ends[8]]
    assert synced[-1] == ends[12]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs processes that know who started them")
def test_workers_end_when_their_launcher_is_killed() -> None:
    worker = (
        "import time; from damro.eval.runs.sharding import end_with_launcher\n"
        "end_with_launcher(); print('working', flush=True); time.sleep(60)"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    with subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "working\n"
        process.kill()
        begun = time.monotonic()
        assert process.stdout.read() == ""  # ends when the worker, which holds the other end, is gone
    assert time.monotonic() - begun < 30


def test_the_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from damro.eval.runs.sharding import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(STUB.parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        with pytest.raises(BusyRunError, match="another process is at work there"), lock_folder(tmp_path):
            raise AssertionError("locked twice")
        process.kill()
    with lock_folder(tmp_path):
        pass
