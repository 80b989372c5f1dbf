"""eval/report/columns.py and terminal.py: tables of any width of terminal, in which no number is cut."""

from __future__ import annotations

import functools
import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from damro.eval.benchmark import find_benchmark
from damro.eval.pope.benchmark import PopeScoring
from damro.eval.report.columns import fit_tables
from damro.eval.report.comparison import Comparison, compare
from damro.eval.report.tables import by_group, show_cell
from damro.eval.report.terminal import to_terminal

WIDTHS = (160, 100, 80, 60, 40, 30)
LONG = "damro:alpha=0.5,beta=0.1,top_k=10,select=random-k"


def asked(period: int) -> dict[str, dict[str, str]]:
    return {
        str(n): {
            "split": "random",
            "image": f"{n}.jpg",
            "question": f"Is there a thing {n}?",
            "label": "yes" if n % 2 else "no",
            "answer": "Yes" if (n % 2 == 1) != (n % period == 0) else "No",
        }
        for n in range(60)
    }


@functools.cache
def made(*names: str) -> Comparison:
    runs = {name: asked(place + 3) for place, name in enumerate(names)}
    return compare(find_benchmark("pope"), "m", runs, PopeScoring())


def printed(comparison: Comparison, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    for table, _ in to_terminal(comparison, width):
        console.print(table)
    return console.export_text()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("names", [("greedy", "damro"), ("greedy", LONG)])
def test_no_number_is_cut(names: tuple[str, ...], width: int) -> None:
    comparison = made(*names)
    text = printed(comparison, width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    wanted = [show_cell(row, "\n").replace(" [", "\n[").split("\n") for row in comparison.rows()]
    numbers = [line for lines in wanted for line in lines if line]
    assert len(numbers) == 2 * 5 * 2 + 5 * 2  # values and differences, each with its interval
    for number in set(numbers):
        assert len(re.findall(rf"(?<![^ │]){re.escape(number)}(?![^ │])", text)) >= numbers.count(number), number


@pytest.mark.parametrize("width", WIDTHS)
def test_every_table_tells_its_rows(width: int) -> None:
    comparison = made("greedy", "damro")
    tables = [table for table, _ in to_terminal(comparison, width)]
    for table in tables:
        assert [str(cell) for cell in table.columns[0].cells] == ["greedy", "damro"]
    titles = [str(column.header).replace("\n", " ") for table in tables for column in table.columns[1:]]
    rows = next(iter(by_group(comparison).values()))
    assert titles == list(dict.fromkeys(row.measure.title for row in rows))


def test_notes_stand_below_the_last_table_of_a_group() -> None:
    wide, narrow = (to_terminal(made("greedy", "damro"), width) for width in (160, 60))
    assert [bool(below) for _, below in wide] == [True]
    assert [bool(below) for _, below in narrow] == [False] * (len(narrow) - 1) + [True]
    assert [str(table.title) for table, _ in narrow][:2] == [
        f"POPE random (1 of {len(narrow)})",
        f"POPE random (2 of {len(narrow)})",
    ]


def test_a_long_name_is_broken_and_whole() -> None:
    (table,) = fit_tables("t", ["method", "F1 %"], [[LONG, "1.0"]], 40)
    name = str(next(iter(table.columns[0].cells)))
    assert name.replace("\n", "") == LONG and max(map(len, name.split("\n"))) <= 20


def test_what_fits_stays_as_it_is() -> None:
    (table,) = fit_tables("", ["method", "passes a token"], [["greedy", "1.00 [0.90, 1.10]"]], 80)
    assert str(table.columns[1].header) == "passes a token" and table.title is None
    assert [str(cell) for cell in table.columns[1].cells] == ["1.00 [0.90, 1.10]"]
    assert not table.show_lines


def test_titles_are_broken_before_intervals_and_those_before_tables() -> None:
    head, rows = ["method", "language passes a token"], [["greedy", "1.00 [0.90, 1.10]"]]
    shapes = []
    for width in (60, 34, 26):
        (table,) = fit_tables("t", head, rows, width)
        shapes.append((str(table.columns[1].header).count("\n"), str(next(iter(table.columns[1].cells))).count("\n")))
    assert shapes == [(0, 0), (1, 0), (2, 1)]


def test_more_columns_of_names_stand_in_every_table() -> None:
    head = ["method", "alpha", "recall %", "to greedy", "CHAIRi %", "to greedy"]
    row = ["damro", "0.5", "73.7 [60.0, 86.4]", "-25.0 [-50.0, +0.0]*", "30.4 [15.4, 47.6]", "+1.4 [+0.0, +3.7]"]
    tables = fit_tables("", head, [row], 60, names=2)
    assert [[str(column.header) for column in table.columns[:2]] for table in tables] == [["method", "alpha"]] * 2
    assert [len(table.columns) for table in tables] == [4, 4]
