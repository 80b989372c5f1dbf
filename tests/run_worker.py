"""`run_cli` as one of several processes, which tells what it wrote: ``WORKER_LOG=FOLDER run_worker.py MODULE ...``.

The parts that processes write are merged and removed at the end; their names and samples stay in the folder.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import run_cli

from damro.eval.records import RecordWriter
from damro.eval.runs import loop


class LoggedWriter(RecordWriter):
    def write(self, record: Mapping[str, Any]) -> None:
        super().write(record)
        with Path(os.environ["WORKER_LOG"], f"{self.path.parents[1].name}-records-{self.path.name}").open("a") as log:
            log.write(f"{record['id']}\n")


if __name__ == "__main__":
    loop.RecordWriter = LoggedWriter  # type: ignore[misc, assignment]
    sys.exit(run_cli.main(sys.argv[1:]))
