"""Bars of the progress of runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from damro.eval.runs.loop import Progress, Tally


@contextmanager
def show_progress(titles: Sequence[str], *, quiet: bool = False) -> Iterator[list[Progress | None]]:
    """Progress bars on stderr with rate and time left, one a title; nothing where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield [None] * len(titles)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield [_bar(bars, title) for title in titles]


def _bar(bars: Any, title: str) -> Progress:
    """A new bar; returns what is told how far it is."""
    task = bars.add_task(title, total=None, rate="", failed="")
    start = {"done": -1, "at": 0.0}

    def update(tally: Tally) -> None:
        if start["done"] < 0:  # what was recorded before does not count for the rate
            start.update(done=tally.done, at=bars.get_time())
        seconds = bars.get_time() - start["at"]
        rate = f"{(tally.done - start['done']) / seconds:.1f}/s" if seconds > 0 else ""
        failed = f"{tally.failed} failed" if tally.failed else ""
        bars.update(task, completed=tally.done, total=tally.total, rate=rate, failed=failed)

    return update
