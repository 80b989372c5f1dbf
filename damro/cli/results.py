"""What several commands do with recorded runs: how to score them, and how their comparison is told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damro.cli.options import add_flags, given_flags, read_values
from damro.eval.benchmark import BENCHMARKS, Benchmark, Scoring
from damro.eval.errors import EvalError
from damro.eval.records import write_whole
from damro.parameters import build, parameters

if TYPE_CHECKING:
    from damro.eval.report.comparison import Comparison, Loaded
    from damro.eval.report.facts import Origin


def _scorings() -> dict[str, type[Scoring]]:
    return {name: BENCHMARKS[name].scoring for name in BENCHMARKS}


def add_scoring_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every parameter of a benchmark's scoring."""
    text = "changes no answer; scores of a finished run are made anew in seconds"
    add_flags(parser.add_argument_group("scoring", text), _scorings())


def add_truth_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every parameter of a benchmark that only scoring depends on."""
    names = {name for owner in BENCHMARKS.values() for name in owner.rescored}
    others = [name for owner in BENCHMARKS.values() for name in _names(owner) if name not in names]
    add_flags(parser.add_argument_group("truth", "instead of what the runs were made with"), dict(BENCHMARKS), others)


def add_partial_flag(parser: Any) -> None:
    """--partial."""
    parser.add_argument(
        "--partial", action="store_true", help="take runs that lack samples as they are; how many they have is told"
    )


def add_cost_flag(parser: Any, text: str) -> None:
    """--cost."""
    parser.add_argument("--cost", action="store_true", help=text)


def show_costs(comparison: Comparison, folders: Mapping[str, Path]) -> Comparison:
    """The comparison with what answers cost, where that was measured.

    Args:
        comparison: of the runs.
        folders: of the runs, by their names in it.
    """
    from damro.eval.report.comparison import with_costs
    from damro.eval.runs.costs import read_costs

    return with_costs(comparison, {name: read_costs(folder) for name, folder in folders.items()})


def make_scoring(args: argparse.Namespace, benchmark: Benchmark, truth: Mapping[str, Any]) -> Any:
    """How the options want a benchmark's answers scored.

    Raises:
        EvalError: An option is out of range, or one that the benchmark does not have.
    """
    owner = benchmark.scoring
    values = read_values(owner, given_flags(args, _scorings()), EvalError)
    build(owner, values, EvalError, f"scoring of {benchmark.name}")  # names what it does not have
    return owner(**values, truth=truth)


def compare_loaded(args: argparse.Namespace, loaded: Loaded, folder: str) -> Comparison:
    """Scores recorded runs with the truth that they were made with, or the one that the options give.

    Args:
        args: of a command with the flags of scoring and of truth.
        loaded: the runs.
        folder: of the first of them.
    """
    from damro.eval.report.comparison import compare
    from damro.eval.runs.record import load_run
    from damro.eval.runs.request import to_request

    benchmark = loaded.benchmark
    changes = read_values(type(benchmark), given_flags(args, dict(BENCHMARKS)), EvalError)
    build(type(benchmark), changes, EvalError, benchmark.name)  # names what it does not have
    benchmark = replace(benchmark, **changes)
    request = to_request(load_run(folder)).data_request
    if changes:  # a truth that is given is not that of the embedded scenes
        request = request._replace(scenes=None)
    scoring = make_scoring(args, benchmark, benchmark.truth(request))
    return compare(benchmark, loaded.model, loaded.runs, scoring, loaded.planned)


def origin_of(args: argparse.Namespace, comparison: Comparison, runs: Mapping[str, Any], open_image: Any) -> Origin:
    """Where the runs of a report come from.

    Args:
        args: of the command.
        comparison: what is told.
        runs: the ``run.json`` of each run, by its name.
        open_image: opens the images; None where they are not at hand.
    """
    from damro.eval.report.facts import Origin

    told = {entry.name: runs[entry.name] for entry in comparison.entries if entry.name in runs}
    return Origin(getattr(args, "command_line", None), told, open_image)


def find_images(record: Mapping[str, Any]) -> Any:
    """What opens the images of a recorded run; None where they are not where the run had them."""
    from damro.decoding.errors import DecodingError
    from damro.eval.runs.request import to_request
    from damro.eval.samples import bounded

    try:
        request = to_request(record)
        return bounded(request.asked.load(request.data_request).open_image, request.max_pixels)
    except (EvalError, DecodingError, OSError):  # the scores are there without them
        return None


def write_tables(comparison: Comparison, out: Path, origin: Origin) -> None:
    """Writes scores.json, scores.csv, scores.md and report.html."""
    from damro.eval.report.html import write_report
    from damro.eval.report.tables import to_csv, to_json, to_markdown

    for ending, text in (("json", to_json), ("csv", to_csv), ("md", to_markdown)):
        write_whole(out / f"scores.{ending}", text(comparison))
    write_report(comparison, out / "report.html", origin)


def add_form_flags(parser: Any) -> None:
    """--json and --latex."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="print the scores as JSON")
    group.add_argument("--latex", action="store_true", help="print the tables as LaTeX (with the package booktabs)")


def print_comparison(comparison: Comparison, *, as_json: bool, as_latex: bool = False) -> None:
    """Prints the tables, or JSON, or LaTeX."""
    from damro.eval.report.tables import notes, to_json, warnings

    if as_json:
        print(to_json(comparison))
        return
    if as_latex:
        from damro.eval.report.latex import to_latex

        print(to_latex(comparison))
        for line in warnings(comparison):
            print(line, file=sys.stderr)
        return
    from rich.console import Console

    from damro.eval.report.terminal import to_terminal

    console = Console()
    for table, below in to_terminal(comparison, console.width):
        console.print(table)
        print_notes(below)
    print_notes(notes(comparison))


def tell_unscored(comparison: Comparison) -> int:
    """Says on stderr which runs have not a single answer, and why.

    Returns:
        The exit code: 2 if there are any, else 0.
    """
    from damro.eval.report.text import to_line

    for entry in comparison.unscored:
        reason = next(iter(entry.failed.values()), "no records")
        text = f"damro: {entry.name}: all {entry.total} samples failed, the first with: {reason}"
        print(to_line(text), file=sys.stderr)
    return 2 if comparison.unscored else 0


def print_notes(lines: list[str]) -> None:
    """Prints notes below tables; those that begin with WARNING stand out."""
    from rich.console import Console

    from damro.eval.report.tables import WARNING

    for line in lines:
        style = "bold red" if line.startswith(WARNING) else None
        Console().print(line, markup=False, emoji=False, style=style)


def _names(owner: type[Benchmark]) -> list[str]:
    return [one.name for one in parameters(owner)]
