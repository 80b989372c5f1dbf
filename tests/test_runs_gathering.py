"""Processes that write to folders of their own, here as threads: what comes together, and what is refused."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from run_stub import answer, make_samples
from thread_group import run_together

from damro.eval.errors import EvalError
from damro.eval.runs import gathering
from damro.eval.runs.costs import Costs, bring_costs, costs_path, measured, read_costs
from damro.eval.runs.gathering import find_gathering
from damro.eval.runs.identity import ForeignRecordError, Identity
from damro.eval.runs.loop import Answered, Loop
from damro.eval.runs.sharding import Workers, records_path
from damro.eval.samples import Sample

SAMPLES = make_samples(23)
Answer = Callable[[Sequence[Sample]], list[Answered]]


def places(root: Path, nodes: Sequence[int]) -> list[Path]:
    """The folder of each process, by the node that it runs on."""
    folders = [root / f"node-{node}/run" for node in nodes]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return folders


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def counting(asked: list[str], stop_at: str | None = None) -> Answer:
    def count(batch: Sequence[Sample]) -> list[Answered]:
        if any(sample.sample_id == stop_at for sample in batch):
            raise KeyboardInterrupt
        asked.extend(sample.sample_id for sample in batch)
        return answer(batch)

    return count


@pytest.mark.parametrize("nodes", [(0, 1), (0, 0, 1, 1), (0, 1, 1, 2), (0, 0, 0)])
def test_several_folders_equal_one(tmp_path: Path, nodes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "_PIECE", 100)  # bytes: a record is longer
    monkeypatch.setattr(gathering, "_ITEMS", 4)
    whole = Loop(batch_size=3).run(tmp_path / "one", SAMPLES, answer)
    folders = places(tmp_path, nodes)
    asked: list[str] = []

    def work(workers: Workers) -> Any:
        return Loop(batch_size=3, workers=workers).run(folders[workers.rank], SAMPLES, counting(asked))

    told, group = run_together(len(nodes), work)
    for one in told:
        assert list(one) == list(whole)
        assert [fields.get("answer") for fields in one.values()] == [fields.get("answer") for fields in whole.values()]
    assert sorted(asked) == sorted(whole)
    assert records(folders[0]) == records(tmp_path / "one")
    assert files(folders[0]) == ["records.jsonl"]
    assert [files(folder) for folder in folders if folder != folders[0]] == [[]] * sum(node > 0 for node in nodes)
    assert 0 < group.largest <= 100 if any(nodes) else group.largest == 0  # one folder needs no messages


def test_what_a_killed_node_recorded_on_its_disk_is_not_asked_again(tmp_path: Path) -> None:
    Loop(batch_size=3).run(tmp_path / "one", SAMPLES, answer)
    folders = places(tmp_path, (0, 0, 1, 1))
    before: list[str] = []
    # The second batches of 2 and 3 are 6 and 7; each records its first one and is gone.
    for rank, stop in ((2, "s/18"), (3, "s/21")):
        with pytest.raises(KeyboardInterrupt):
            stopped = Loop(batch_size=3, workers=Workers(rank, 4))
            stopped.run(folders[rank], SAMPLES, counting(before, stop))
    assert sorted(before) == ["s/10", "s/11", "s/6", "s/7", "s/8", "s/9"]
    part = folders[2] / "parts/2.jsonl"
    part.write_bytes(part.read_bytes() + b'{"id": "s/19", "ans')  # torn
    again: list[str] = []

    def work(workers: Workers) -> Any:
        return Loop(batch_size=3, workers=workers).run(folders[workers.rank], SAMPLES, counting(again))

    run_together(4, work)
    assert records(folders[0]) == records(tmp_path / "one")
    assert not set(before) & set(again)
    assert Counter(before + again) == Counter(sample.sample_id for sample in SAMPLES)
    assert files(folders[2]) == []


def test_nodes_that_change_places_lose_nothing(tmp_path: Path) -> None:
    Loop(batch_size=3).run(tmp_path / "one", SAMPLES, answer)
    folders = places(tmp_path, (0, 1))
    whole = (tmp_path / "one/records.jsonl").read_bytes().splitlines(keepends=True)
    (folders[1] / "records.jsonl").write_bytes(b"".join(whole[:9]))  # it led an earlier run
    asked: list[str] = []

    def work(workers: Workers) -> Any:
        return Loop(batch_size=3, workers=workers).run(folders[workers.rank], SAMPLES, counting(asked))

    run_together(2, work)
    assert records(folders[0]) == records(tmp_path / "one")
    assert sorted(asked) == sorted(sample.sample_id for sample in SAMPLES[9:])
    assert (folders[1] / "records.jsonl").read_bytes() == b"".join(whole[:9])  # a file of the user's by now


def test_an_answer_counts_more_than_a_failure_on_another_disk(tmp_path: Path) -> None:
    Loop(batch_size=3).run(tmp_path / "one", SAMPLES, answer)
    folders = places(tmp_path, (0, 1))
    lines = (tmp_path / "one/records.jsonl").read_text().splitlines(keepends=True)
    (folders[0] / "records.jsonl").write_text("".join(lines))
    mended = [{**json.loads(line), "answer": "mended"} for line in lines if "error" in json.loads(line)]
    for fields in mended:
        del fields["error"]
    (folders[1] / "records.jsonl").write_text("".join(json.dumps(fields) + "\n" for fields in mended))
    told, _ = run_together(2, lambda workers: Loop(workers=workers).run(folders[workers.rank], SAMPLES, answer))
    for one in told:
        assert len(one) == len(SAMPLES)
        assert [one[fields["id"]]["answer"] for fields in mended] == ["mended"] * 3


def test_records_of_another_run_on_a_node_are_refused_everywhere(tmp_path: Path) -> None:
    folders = places(tmp_path, (0, 1))
    foreign = Identity("other").stamp({"id": "s/4", "image": "4.jpg", "prompt": "What is 4?", "answer": "x"})
    part = records_path(folders[1], Workers(1, 2))
    part.write_text(json.dumps(foreign) + "\n")

    def work(workers: Workers) -> Any:
        return Loop(workers=workers, identity=Identity("this")).run(folders[workers.rank], SAMPLES, answer)

    (here, there), _ = run_together(2, work)
    assert isinstance(there, ForeignRecordError)
    assert f"{part}, line 1: record 's/4' must carry the digest of this run" in str(there)
    assert isinstance(here, EvalError) and "process 1 is not: " in str(here) and str(part) in str(here)
    assert part.exists() and not (folders[0] / "records.jsonl").exists()


def test_a_folder_of_parts_of_somebody_else_is_refused_everywhere(tmp_path: Path) -> None:
    folders = places(tmp_path, (0, 1))
    (folders[1] / "parts").mkdir()
    (folders[1] / "parts/0.jsonl").write_text("mine")
    told, _ = run_together(2, lambda workers: Loop(workers=workers).run(folders[workers.rank], SAMPLES, answer))
    assert ["parts must be free for what several processes write" in str(error) for error in told] == [True, True]
    assert (folders[1] / "parts/0.jsonl").read_text() == "mine"


def test_the_first_tells_what_all_do_and_who_differs_is_named(tmp_path: Path) -> None:
    folders = places(tmp_path, (0, 1, 1))

    def work(workers: Workers) -> Any:
        found = find_gathering(folders[workers.rank], workers)
        said = found.agree(lambda: {"seed": 1, "of": workers.rank}, lambda one, other: [])
        assert said == {"seed": 1, "of": 0}

        def differ(one: int, other: int) -> list[str]:
            return [f"seed: {one} -> {other}"] if one != other else []

        with pytest.raises(EvalError, match=r"process 2 differs from the first in 1: seed: 1 -> 3\. Start all"):
            found.agree(lambda: 3 if workers.rank == 2 else 1, differ)
        return found.keeps

    told, _ = run_together(3, work)
    assert told == [True, True, False]


def test_costs_on_other_disks_are_counted_once(tmp_path: Path) -> None:
    folders = places(tmp_path, (0, 1, 1))

    def work(workers: Workers) -> Any:
        folder = folders[workers.rank]
        found = find_gathering(folder, workers)
        counted = measured(answer, lambda: Costs(1, 1, 10, 1.0, 10, 1.0), costs_path(folder, workers))
        for batch in (SAMPLES[:1], SAMPLES[1:2]):
            counted(batch)
            workers.wait()
            bring_costs(folder, found)  # an earlier run, and the one that goes on with it
            workers.wait()
        return read_costs(folders[0])

    told, _ = run_together(3, work)
    assert told == [Costs(6, 6, 60, 6.0, 60, 6.0)] * 3
