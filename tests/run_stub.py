"""A run with a stub for a model, to be killed: ``python run_stub.py FOLDER SAMPLES BATCH_SIZE SECONDS_A_BATCH``."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from damro.eval.runs.loop import Answered, Loop
from damro.eval.samples import Sample


def make_samples(count: int) -> list[Sample]:
    return [Sample(f"s/{n}", f"{n}.jpg", f"What is {n}?", {"question_id": str(n)}) for n in range(count)]


def answer(batch: Sequence[Sample]) -> list[Answered]:
    """An answer that tells which batch it comes of; every seventh sample fails."""
    together = ",".join(sample.image for sample in batch)
    return [
        Answered(None, error="broken image")
        if int(sample.fields["question_id"]) % 7 == 6
        else Answered(together, [[1]])
        for sample in batch
    ]


if __name__ == "__main__":
    folder, count, size, seconds = sys.argv[1:]

    def slow_answer(batch: Sequence[Sample]) -> list[Answered]:
        time.sleep(float(seconds))
        return answer(batch)

    Loop(batch_size=int(size)).run(Path(folder), make_samples(int(count)), slow_answer)
