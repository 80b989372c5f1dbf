"""eval/runs/run.py: several runs in turn have the records of each run alone."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Barrier, Thread, current_thread
from typing import Any

import pytest
import torch
from PIL import Image

from damro.decoding.branches.kv import copied_cache, roomy_cache
from damro.eval.errors import EvalError
from damro.eval.runs import engine as engines
from damro.eval.runs.ahead import ImagesAhead
from damro.eval.runs.engine import Engine
from damro.eval.runs.loop import FailedSampleError, Loop
from damro.eval.runs.record import RunMismatchError
from damro.eval.runs.request import RunRequest
from damro.eval.runs.run import Asked, Prepared, prepare, run_benchmark, run_benchmarks
from damro.eval.runs.sharding import BusyRunError, Workers, lock_folder
from damro.eval.samples import Dataset, Sample
from damro.methods.base import Scene

CONTRASTS = ["greedy", "damro", "random-k", "no-image", "vcd", "icd", "m3id"]
OTHERS = ["greedy", "damro@1", "sample@0.7", "crop:way=branch", "opera:num_beams=2", "pai", "registers"]
SIZE = 4


def asked(method: str, **options: Any) -> RunRequest:
    told = {"scenes": 6, "max_new_tokens": 6, "batch_size": SIZE, "limit": 2, "device": "cpu"}
    return RunRequest("pope", "tiny", method=method, **{**told, **options})


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """The embedded model; questions alone and in groups about an image, a text alone, an image that does not open."""
    found = prepare(asked("greedy"))

    def open_image(name: str) -> Image.Image:
        if name == "none.png":
            raise OSError("none.png: no such file")
        return found.dataset.open_image(name)

    samples = [
        Sample(f"s/{number}", image, prompt, {"label": "yes"})
        for number, (image, prompt) in enumerate(
            [
                *((f"test_{image:06d}.png", f"Is there a {noun}?") for image in (0, 1) for noun in ("cat", "red car")),
                *((f"test_{image:06d}.png", "Describe the image.") for image in (2, 3, 4)),
                ("none.png", "Is there a dog?"),
                (None, "What is a cat?"),
                *(("test_000005.png", f"Is there a {noun}?") for noun in ("cat", "dog", "big apple", "tree", "cup")),
            ]
        )
    ]
    return Prepared(found.loaded, Dataset(samples, open_image, {"questions": "own"}))


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def alone(prepared: Prepared, out: Path, methods: list[str], loop: Loop | None = None, **options: Any) -> None:
    for method in methods:
        run_benchmark(asked(method, **options), out / method, prepared=prepared, loop=loop)


def in_turn(prepared: Prepared, out: Path, methods: list[str], loop: Loop | None = None, **options: Any) -> None:
    runs = [Asked(asked(method, **options), out / method) for method in methods]
    run_benchmarks(runs, prepared=prepared, loop=loop)


@pytest.mark.parametrize(
    ("methods", "options"),
    [
        (CONTRASTS, {}),
        (OTHERS, {}),
        (["greedy", "damro", "vcd"], {"keep_tokens": 20}),
        (["greedy", "m3id"], {"seed": 3}),
    ],
)
def test_records_are_those_of_each_run_alone(
    prepared: Prepared, tmp_path: Path, methods: list[str], options: dict[str, Any]
) -> None:
    alone(prepared, tmp_path / "alone", methods, **options)
    in_turn(prepared, tmp_path / "turn", methods, **options)
    for method in methods:
        found = records(tmp_path / "turn" / method)
        assert found == records(tmp_path / "alone" / method)
        assert len(found) == 14 and ["error" in one for one in found].count(True) == 1


def test_p_yes_is_that_of_each_run_alone(tmp_path: Path) -> None:
    options = {"data": {"read": "logits"}, "max_new_tokens": None}
    found = prepare(asked("greedy", **options))
    alone(found, tmp_path / "alone", CONTRASTS, **options)
    in_turn(found, tmp_path / "turn", CONTRASTS, **options)
    for method in CONTRASTS:
        assert records(tmp_path / "turn" / method) == records(tmp_path / "alone" / method)
        assert any(one["p_yes"] is not None for one in records(tmp_path / "turn" / method))


def test_the_tower_looks_once_and_the_full_prompt_is_read_once(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    look = Scene.look
    monkeypatch.setattr(Scene, "look", lambda *args, **options: looks.append(1) or look(*args, **options))
    methods = ["damro", "greedy", "no-image"]
    found = Prepared(prepared.loaded, Dataset(prepared.dataset.samples[:4], prepared.dataset.open_image, {}))
    alone(found, tmp_path / "alone", methods)
    single, looks[:] = len(looks), []
    in_turn(found, tmp_path / "turn", methods)
    tried = 2  # damro and no-image, on a blank image
    assert (single - tried) == 3 * (len(looks) - tried) > 0


def test_runs_that_were_left_at_different_places_go_on(prepared: Prepared, tmp_path: Path) -> None:
    methods = ["greedy", "damro", "vcd"]
    alone(prepared, tmp_path / "alone", methods)
    in_turn(prepared, tmp_path / "turn", methods)
    for method, count in (("greedy", 9), ("damro", 3)):
        path = tmp_path / "turn" / method / "records.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))
    in_turn(prepared, tmp_path / "turn", methods)
    for method in methods:
        assert records(tmp_path / "turn" / method) == records(tmp_path / "alone" / method)


def test_short_memory_halves_the_same_batches(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, tried = engines.decode, list[int]()

    def short(model: Any, inputs: Any, contrast: Any, **options: Any) -> Any:
        tried.append(len(inputs["input_ids"]))
        if len(inputs["input_ids"]) > 2:
            raise RuntimeError("CUDA out of memory.")
        return decode(model, inputs, contrast, **options)

    monkeypatch.setattr(engines, "decode", short)
    methods = ["greedy", "damro"]
    alone(prepared, tmp_path / "alone", methods)
    in_turn(prepared, tmp_path / "turn", methods)
    assert max(tried) > 2
    for method in methods:
        assert records(tmp_path / "turn" / method) == records(tmp_path / "alone" / method)


def test_what_is_kept_gives_way_before_a_batch_is_halved(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, tried = Engine._answer_together, list[int]()

    def once_short(self: Engine, batch: Any, images: Any) -> Any:
        tried.append(len(batch))
        if self.recipe.method.name == "damro" and self.batch is not None and self.batch._kept:
            raise RuntimeError("CUDA out of memory.")
        return together(self, batch, images)

    monkeypatch.setattr(Engine, "_answer_together", once_short)
    alone(prepared, tmp_path / "alone", ["damro"])
    in_turn(prepared, tmp_path / "turn", ["greedy", "damro"])
    assert records(tmp_path / "turn/damro") == records(tmp_path / "alone/damro")


def test_two_workers_write_what_one_writes(prepared: Prepared, tmp_path: Path) -> None:
    methods = ["greedy", "damro"]
    in_turn(prepared, tmp_path / "one", methods)
    barrier = Barrier(2, timeout=60)

    def work(rank: int) -> None:
        loop = Loop(workers=Workers(rank, 2, lambda: barrier.wait() and None))
        in_turn(prepared, tmp_path / "two", methods, loop)

    threads = [Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for method in methods:
        assert records(tmp_path / "two" / method) == records(tmp_path / "one" / method)


def test_a_failure_under_strict_stops_all_and_keeps_what_is_there(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(FailedSampleError, match="none.png"):
        in_turn(prepared, tmp_path, ["greedy", "damro"], Loop(strict=True))
    assert [len(records(tmp_path / method)) for method in ("greedy", "damro")] == [SIZE, SIZE]
    with lock_folder(tmp_path / "damro"):  # which is free again
        pass


def test_a_folder_in_use_or_of_another_run_is_told_before_anything_is_answered(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn(prepared, tmp_path, ["damro"], seed=1)
    monkeypatch.setattr(Engine, "answer", lambda self, batch: pytest.fail("answered"))
    with pytest.raises(RunMismatchError, match="request.seed"):
        in_turn(prepared, tmp_path, ["greedy", "damro"], seed=2)
    assert not list((tmp_path / "greedy").glob("*.json*"))
    (tmp_path / "vcd").mkdir()
    with lock_folder(tmp_path / "vcd"), pytest.raises(BusyRunError, match="vcd"):
        in_turn(prepared, tmp_path, ["greedy", "vcd"])
    with pytest.raises(EvalError, match="must differ in their method alone"):
        runs = [Asked(asked("greedy"), tmp_path / "a"), Asked(asked("vcd", seed=9), tmp_path / "b")]
        run_benchmarks(runs, prepared=prepared)


def test_images_are_opened_once_ahead_and_in_another_thread() -> None:
    opened: list[tuple[str, bool]] = []

    def open_image(name: str) -> Image.Image:
        opened.append((name, current_thread().name.startswith("images")))
        if name == "bad":
            raise OSError("bad: no image")
        return Image.new("RGB", (4, 4))

    with ImagesAhead(open_image) as images:
        images.want(["a", "a", "bad", "b"])
        assert images("a") is images("a")
        for _ in range(2):
            with pytest.raises(OSError, match="no image"):
                images("bad")
        images.want(["b", "c"])
        images("b"), images("c")
        images("a")  # forgotten, and opened anew
    assert opened == [(name, True) for name in ("a", "bad", "b", "c", "a")]


def test_a_copy_of_what_was_read_grows_by_itself() -> None:
    for columns in (3, 70):
        cache, states = roomy_cache(), torch.randn(2, 1, columns, 4)
        cache.update(states, -states, 0)
        one, other = copied_cache(cache), copied_cache(cache)
        new = torch.ones(2, 1, 1, 4)
        grown = one.update(new, new, 0)[0]
        assert torch.equal(grown, torch.cat([states, new], dim=2))
        assert torch.equal(other.update(-new, new, 0)[0], torch.cat([states, -new], dim=2))
        assert torch.equal(cache.layers[0].keys, states) and torch.equal(grown[:, :, -1:], new)
