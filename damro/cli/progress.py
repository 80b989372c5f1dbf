"""A bar of a run's progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from damro.eval.runs.loop import Progress, Tally


@contextmanager
def show_progress(title: str, *, quiet: bool = False) -> Iterator[Progress | None]:
    """A progress bar on stderr with rate and time left; nothing where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, rate="", failed="")
        start = {"done": -1, "at": 0.0}

        def update(tally: Tally) -> None:
            if start["done"] < 0:  # what was recorded before does not count for the rate
                start.update(done=tally.done, at=bar.get_time())
            seconds = bar.get_time() - start["at"]
            rate = f"{(tally.done - start['done']) / seconds:.1f}/s" if seconds > 0 else ""
            failed = f"{tally.failed} failed" if tally.failed else ""
            bar.update(task, completed=tally.done, total=tally.total, rate=rate, failed=failed)

        yield update
