"""eval/report/tables.py and text.py: what tables show of a benchmark's notes, of few images and of odd names."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from damro.eval.benchmark import Benchmark, Group, Measure, Note, Records, Scoring, find_benchmark
from damro.eval.chair.benchmark import ChairScoring
from damro.eval.pope.benchmark import PopeScoring
from damro.eval.report.comparison import Comparison, compare
from damro.eval.report.html import _table, write_report
from damro.eval.report.tables import (
    FEWEST,
    group_notes,
    is_clear,
    show_difference,
    show_value,
    to_csv,
    to_json,
    to_markdown,
)
from damro.eval.report.terminal import to_terminal
from damro.eval.report.text import to_cell, to_markdown_text
from damro.eval.report.verdict import is_better
from damro.eval.statistics import Interval, bootstrap, bootstrap_difference, bootstrap_metrics, first_column

ODD = "a|b`c`[d](http://e.f) <b>x</b> **g** _h_ ~~i~~ &amp; [red]j[/] :car: \x1b[31m\nk"
PLAIN = "a|b`c`[d](http://e.f) <b>x</b> **g** _h_ ~~i~~ &amp; [red]j[/] :car:  [31m k"


@dataclass(frozen=True)
class Made(Benchmark):
    """A benchmark that no module of reports has heard of."""

    name: ClassVar = "made"
    prompt: ClassVar = ""
    scoring: ClassVar = Scoring
    title: str = "part"
    silent: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing to check."""

    def score(self, records: Records, scoring: Scoring) -> list[Group]:
        counts = {key: (float(fields["answer"]), 1.0) for key, fields in records.items()}
        quiet = sum(fields.get("quiet", 0) for fields in records.values())
        told = (Note("reader", "strict"), Note("quiet", quiet, "said nothing", doubtful=quiet > 0))
        return [Group(self.title, {}, counts, {"mean": Measure(first_column, "mean", plotted=True)}, notes=told)]


def run(*values: float, quiet: int = 0) -> dict[str, dict[str, Any]]:
    return {str(n): {"answer": value, "quiet": int(n < quiet)} for n, value in enumerate(values)}


def terminal(comparison: Comparison) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    for table, below in to_terminal(comparison, 200):
        console.print(table)
        for line in below:
            console.print(line, markup=False)
    return console.export_text()


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


def test_notes_of_any_benchmark_are_in_every_form() -> None:
    runs = {"one": run(1, 0, 1, quiet=2), "two": run(1, 1, 1)}
    comparison = compare(Made(), "m", runs, Scoring())
    doubt = "WARNING: quiet (said nothing): one 2, two 0"
    assert group_notes(comparison, "part") == ["reader: strict", doubt]
    assert "reader: strict" in terminal(comparison) and doubt in terminal(comparison)
    assert f"\nreader: strict\n\n{doubt}\n" in to_markdown(comparison)
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [row["notes"] for row in rows] == ["reader: strict; quiet: 2", "reader: strict; quiet: 0"]
    found = json.loads(to_json(comparison))["methods"]
    assert [found[name]["scores"]["part"]["quiet"] for name in ("one", "two")] == [2, 0]
    assert _table(comparison)["groups"][0]["notes"] == ["reader: strict", doubt]
    calm = compare(Made(), "m", {"one": run(1, 0), "two": run(1, 1)}, Scoring())
    assert group_notes(calm, "part") == ["reader: strict; quiet: 0"]


def test_a_page_shows_the_notes(tmp_path: Any) -> None:
    write_report(compare(Made(), "m", {"one": run(1, 0, 1, quiet=2)}, Scoring()), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert '<p class="note">reader: strict</p>' in page
    assert '<p class="warning">WARNING: quiet (said nothing): 2</p>' in page


def test_pope_tells_its_rule_and_what_it_could_not_read() -> None:
    texts = ["", "", "NO", "No", "Yes"]
    asked = {
        str(n): {"split": "s", "image": f"{n}.jpg", "question": f"{n}?", "label": "no", "answer": text}
        for n, text in enumerate(texts)
    }
    comparison = compare(find_benchmark("pope"), "m", {"greedy": asked}, PopeScoring())
    plain, unparsed, misread = group_notes(comparison, "s")
    assert plain == "rule: pope; questions: 5"
    assert unparsed.startswith("WARNING: unparsed (") and unparsed.endswith("): 2")
    assert misread.startswith("WARNING: misread (") and misread.endswith("): 1")


def test_captions_tell_their_matcher() -> None:
    captions = {str(n): {"image_id": n, "answer": "A cat."} for n in range(2)}
    scoring = ChairScoring("builtin", truth={"0": ["cat"], "1": ["dog"]})
    comparison = compare(find_benchmark("chair"), "m", {"greedy": captions}, scoring)
    assert group_notes(comparison, "captions") == ["matcher: builtin; captions: 2"]


def test_one_image_has_no_interval() -> None:
    comparison = compare(Made(), "m", {"one": run(1), "two": run(0)}, Scoring())
    rows = comparison.rows()
    assert rows[0].value is not None and rows[1].difference is not None
    assert show_value(rows[0].value) == "100.0"
    assert show_difference(rows[1].difference) == "-100.0"
    assert not is_clear(rows[1].difference)
    assert not is_better(Measure(first_column, "mean", better="lower"), rows[1].difference)
    found = json.loads(to_json(comparison))["methods"]["two"]["scores"]["part"]
    assert (found["ci"]["mean"], found["difference"]["mean"]) == (None, [-1.0, None, None])
    assert to_csv(comparison).splitlines()[2].startswith("made,m,part,two,mean,0.0,,,-1.0,,,")
    for interval in (
        bootstrap([0.5]),
        bootstrap_difference([1.0], [0.0], paired=True),
        bootstrap_metrics([[1.0]], {"a": first_column})["a"],
    ):
        assert interval is not None and interval.ends is None


@pytest.mark.parametrize("count", [2, FEWEST - 1, FEWEST, 40])
def test_a_few_images_that_change_alike_are_not_clear(count: int) -> None:
    comparison = compare(Made(), "m", {"one": run(*[1] * count), "two": run(*[0] * count)}, Scoring())
    difference = comparison.rows()[1].difference
    shown = "-100.0 [-100.0, -100.0]" + "*" * (2 / 2**count < 0.05)  # the sign test's chance
    assert difference is not None and show_difference(difference) == shown


@pytest.mark.parametrize(
    ("low", "high", "unit", "shown"),
    [
        (0.0004, 0.03, "%", "+2.0 [+0.0, +3.0]"),
        (0.0006, 0.03, "%", "+2.0 [+0.1, +3.0]*"),
        (-0.03, -0.0004, "%", "+2.0 [-3.0, +0.0]"),
        (-0.03, -0.0006, "%", "+2.0 [-3.0, -0.1]*"),
        (0.04, 3.0, "", "+0.0 [+0.0, +3.0]"),
        (0.06, 3.0, "", "+0.0 [+0.1, +3.0]*"),
    ],
)
def test_a_star_stands_where_no_end_is_shown_as_zero(low: float, high: float, unit: Any, shown: str) -> None:
    difference = Interval(0.02, low, high, 0.95, 2000)
    assert show_difference(difference, unit) == shown
    better = Measure(first_column, "mean", unit=unit, better="lower" if high < 0 else "higher")
    assert is_better(better, difference) == shown.endswith("*")


def test_names_in_markdown_are_text() -> None:
    runs = {ODD: run(1, 0), "two": {**run(1, 1), "2": {"error": ODD}}}
    page = rendered(to_markdown(compare(Made(title=ODD), ODD, runs, Scoring())))
    shown = PLAIN.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<h1>MADE: {shown}</h1>" in page and f"<h2>{shown}</h2>" in page
    assert f"<tr>\n<td>{shown}</td>\n<td>50.0 [" in page
    assert page.count("<tr>") == 3 and page.count("<td>") == 4
    assert f"2: {shown}</p>" in page
    assert not any(tag in page for tag in ("<b>", "<a ", "<code>", "<em>", "<strong>", "<s>"))


def test_names_in_a_terminal_are_text() -> None:
    shown = terminal(compare(Made(title=ODD), "m", {ODD: run(1, 0)}, Scoring()))
    assert shown.count(PLAIN) == 2
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", ["=1+1", "+a", "-a", "@a", "\t=a", " =a", '=cmd|" /C calc"!A1'])
def test_no_cell_of_csv_is_a_formula(name: str) -> None:
    comparison = compare(Made(title=name), "m", {name: run(1, 0, 1), "two": run(0, 0, 0)}, Scoring())
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert rows[0]["group"] == rows[0]["method"] == to_cell(name)
    assert rows[0]["group"].startswith("'")
    assert float(rows[1]["difference"]) < 0  # numbers stay numbers


def test_text_without_markup_stays_as_it_is() -> None:
    assert to_markdown_text("damro:alpha=0.5 (coco/random) 1.5-7b") == "damro:alpha=0.5 (coco/random) 1.5-7b"
