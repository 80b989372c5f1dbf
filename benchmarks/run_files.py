"""What the files of a run cost: a million records, digests of weights and images, fsync.

python benchmarks/run_files.py records --count 1000000
python benchmarks/run_files.py questions --count 1000000
python benchmarks/run_files.py weights --gigabytes 2
python benchmarks/run_files.py images --count 5000
python benchmarks/run_files.py sync
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def told(what: str, act: Callable[[], object]) -> None:
    """Prints what took how long, and the most memory that the process has had so far."""
    began, busy = time.perf_counter(), time.process_time()
    kept = act()  # alive while memory is told
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {seconds:.2f} s, {busy:.2f} s of CPU, peak {peak:.0f} MiB", flush=True)
    del kept


def question(number: int) -> dict[str, object]:
    """One of six POPE questions about an image."""
    image = f"COCO_val2014_{number // 6:012d}.jpg"
    label = "yes" if number % 2 else "no"
    return {"question_id": number + 1, "image": image, "text": "Is there a snowboard in the image?", "label": label}


def record(number: int, digest: Callable[[dict[str, object]], str]) -> dict[str, object]:
    """The record of a question."""
    asked = question(number)
    fields: dict[str, object] = {
        "id": f"coco/random/{number + 1}",
        "split": "coco/random",
        "question_id": str(number + 1),
        "question": asked["text"],
        "label": asked["label"],
        "image": asked["image"],
        "prompt": f"{asked['text']} Please answer this question with one word.",
        "image_digest": f"{number // 6:016x}",
    }
    answer = "Yes" if number % 3 else "No"
    return {**fields, "answer": answer, "outliers": [list(range(10))], "seconds": 0.1234, "digest": digest(fields)}


def records(folder: Path, count: int) -> None:
    """A file of records whose last tenth lies in a part: put together, read, and scored."""
    from damro.eval.benchmark import find_benchmark, score_run
    from damro.eval.pope.benchmark import PopeScoring
    from damro.eval.runs.identity import Identity, digest_of_record
    from damro.eval.runs.sharding import Workers, consolidate, read_done, records_path

    identity = Identity("0123456789abcdef")
    part = records_path(folder, Workers(1, 2))
    with (folder / "records.jsonl").open("w") as whole, part.open("w") as rest:
        for number in range(count):
            fields = record(number, lambda fields: digest_of_record(identity.settings, fields))
            (whole if number < count * 9 // 10 else rest).write(json.dumps(fields) + "\n")
    size = (folder / "records.jsonl").stat().st_size + part.stat().st_size
    order = [f"coco/random/{number + 1}" for number in range(count)]
    print(f"{count} records, {size / 1e6:.0f} MB")
    told("merge of a tenth in parts, every record checked", lambda: consolidate(folder, order, check=identity.check))
    told("again, nothing to do", lambda: consolidate(folder, order, check=identity.check))
    told("read alone", lambda: read_done(folder))
    benchmark = find_benchmark("pope")
    told("read and scored as POPE", lambda: score_run(benchmark, read_done(folder), PopeScoring()))


def questions(folder: Path, count: int) -> None:
    """A file of questions, loaded as `damro run pope --questions` does."""
    from damro.eval.pope.questions import load_questions

    path = folder / "questions.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps(question(number)) + "\n" for number in range(count))
    print(f"{count} questions, {path.stat().st_size / 1e6:.0f} MB")
    told("loaded", lambda: load_questions(path))


def weights(folder: Path, gigabytes: float) -> None:
    """The fingerprint of a checkpoint that holds one large file, with an empty cache and with a full one."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    from damro.eval.runs import fingerprint

    model = folder / "model"
    model.mkdir()
    with (model / "model.safetensors").open("wb") as file:
        for _ in range(int(gigabytes * 1e9) >> 24):
            file.write(os.urandom(1 << 24))
    time.sleep(3)  # a file that has just changed is not kept
    for what in ("first", "second"):
        told(f"fingerprint, {what} time", lambda: fingerprint.fingerprint_folder(model))
        fingerprint._cached_digest.cache_clear()


def images(folder: Path, count: int) -> None:
    """The digests of image files of 160 KB, as a resumed run compares them."""
    from damro.eval.runs.identity import check_images
    from damro.eval.samples import ImageFolder

    names = [f"{number}.jpg" for number in range(count)]
    for name in names:
        (folder / name).write_bytes(os.urandom(160_000))
    opener = ImageFolder(folder)
    seen = [{"image": name, "image_digest": (opener.digest(name) or "")[:16]} for name in names]
    told(f"{count} images compared", lambda: check_images(seen, opener.digest))


def sync(folder: Path) -> None:
    """What a batch of eight records costs, with the disk asked to keep it and without."""
    from damro.eval.records import RecordWriter
    from damro.eval.runs.identity import digest_of_record

    lines = [record(number, lambda fields: digest_of_record("0", fields)) for number in range(8)]
    for kept in (False, True):
        times = []
        with RecordWriter(folder / "records.jsonl") as writer:
            for _ in range(200):
                began = time.perf_counter()
                for line in lines:
                    writer.write(line)
                if kept:
                    writer.sync()
                times.append(time.perf_counter() - began)
        print(f"8 records, {'with' if kept else 'without'} fsync: median {1e3 * statistics.median(times):.2f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("records", "questions", "weights", "images", "sync"))
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", help="where files are made (default: the system's for temporary ones)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        place = Path(folder)
        if args.what in ("records", "questions", "images"):
            globals()[args.what](place, args.count)
        elif args.what == "weights":
            weights(place, args.gigabytes)
        else:
            sync(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
