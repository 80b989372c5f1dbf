"""`run_cli` as one of several processes, which tells what it wrote: ``WORKER_LOG=FOLDER run_worker.py MODULE ...``.

The parts that processes write are merged and removed at the end; their names and samples stay in the folder, and so
does how they came together. ``WORKER_PAUSE`` are seconds to wait behind each record.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import run_cli

from damro.eval.records import RecordWriter
from damro.eval.runs import loop, run
from damro.eval.runs.gathering import Gathering, find_gathering
from damro.eval.runs.sharding import Workers


class LoggedWriter(RecordWriter):
    def write(self, record: Mapping[str, Any]) -> None:
        super().write(record)
        with Path(os.environ["WORKER_LOG"], f"{self.path.parents[1].name}-records-{self.path.name}").open("a") as log:
            log.write(f"{record['id']}\n")
        time.sleep(float(os.environ.get("WORKER_PAUSE", "0")))


def find_logged(folder: Path, workers: Workers) -> Gathering:
    found = find_gathering(folder, workers)
    Path(os.environ["WORKER_LOG"], f"gathering-{workers.rank}").write_text(type(found).__name__)
    return found


if __name__ == "__main__":
    loop.RecordWriter = LoggedWriter  # type: ignore[misc, assignment]
    run.find_gathering = find_logged  # type: ignore[attr-defined]
    sys.exit(run_cli.main(sys.argv[1:]))
