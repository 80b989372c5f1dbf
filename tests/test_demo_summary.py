"""What ``damro demo`` prints: three sentences and a narrow table, decided by the same intervals as the report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from damro.cli.demo import _NARROW, _print_lines, _table
from damro.eval.benchmark import find_benchmark
from damro.eval.demo.summary import MEASURES, lines, sentences
from damro.eval.report.comparison import Comparison, compare

NAMES = ("greedy", "damro", "random-k", "least-k", "no-image")
LONG = "greedy without them"


def pope(right: dict[str, int]) -> Comparison:
    """Of 40 yes/no questions about an image each, so many are answered right by each method."""
    runs: dict[str, Any] = {}
    for name, count in right.items():
        runs[name] = {
            str(n): {"id": str(n), "image": f"{n}.jpg", "split": "s", "question_id": n, "question": "?", "label": "yes",
                     "answer": "yes" if n < count else "no", "seconds": 0.0}
            for n in range(40)
        }  # fmt: skip
    benchmark = find_benchmark("pope", {})
    return compare(benchmark, "m", runs, benchmark.scoring())


def chair(wrong: dict[str, int]) -> Comparison:
    """Of 40 captions of a dog, so many name a cat instead."""
    benchmark = find_benchmark("chair", {})
    runs: dict[str, Any] = {
        name: {
            str(n): {"id": str(n), "image": str(n), "image_id": str(n), "answer": "A cat." if n < count else "A dog.",
                     "seconds": 0.0}
            for n in range(40)
        }
        for name, count in wrong.items()
    }  # fmt: skip
    truth = {str(n): frozenset(["dog"]) for n in range(40)}
    return compare(benchmark, "m", runs, benchmark.scoring(matcher="builtin", truth=truth))


@pytest.fixture(scope="module")
def demo() -> Any:
    """With the flaw DAMRO mends captions and leaves answers; without it, it harms answers."""
    flawed = SimpleNamespace(
        pope=pope({**dict.fromkeys(NAMES, 30), LONG: 30}),
        chair=chair({**dict.fromkeys(NAMES, 30), "damro": 5, LONG: 5}),
    )
    return SimpleNamespace(
        pope=pope({**dict.fromkeys(NAMES, 35), "damro": 10}), chair=chair(dict.fromkeys(NAMES, 8)), control=flawed
    )


def test_the_verdict_comes_in_three_sentences(demo: Any) -> None:
    flawed, plain, other = sentences(demo)
    assert flawed.startswith("With the flaw (tiny:flawed, built to have it): DAMRO helps (POPE accuracy +0.0, ")
    assert flawed.endswith("CHAIRi -62.5 points); it beats its controls in 3 of 6 comparisons.")
    assert "Without it (tiny): DAMRO hurts (POPE accuracy -62.5" in plain and "in 0 of 6 comparisons" in plain
    assert "damro diagnose" in other


def test_the_table_fits_and_nothing_is_cut(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = lines(demo)
    assert [row.method for row in rows] == [*NAMES, LONG, *NAMES]
    assert rows[0].differences == () and rows[1].values == ("75.0", "12.5", "87.5")
    for width in (80, _NARROW):
        Console(width=width).print(_table(rows, MEASURES))
        printed = capsys.readouterr().out
        assert "…" not in printed
        for row in rows:
            assert all(text in printed for text in (*row.values, *row.differences))
    _print_lines(Console(width=40), rows, MEASURES)
    assert "…" not in capsys.readouterr().out
