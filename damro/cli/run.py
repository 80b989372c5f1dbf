"""``damro run BENCHMARK``: a model over a benchmark, recorded answer by answer, scored at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from damro.cli.options import (
    add_flags,
    add_loading_options,
    add_max_pixels,
    add_method_flags,
    add_sampling_options,
)
from damro.cli.outputs import check_folder
from damro.cli.plan import ALL, Planned, plan, tell
from damro.cli.progress import show_progress
from damro.cli.results import (
    add_cost_flag,
    add_form_flags,
    add_partial_flag,
    add_scoring_flags,
    make_scoring,
    origin_of,
    print_comparison,
    show_costs,
    tell_unscored,
    write_tables,
)
from damro.eval.benchmark import BENCHMARKS, Benchmark, Records
from damro.eval.errors import EvalError
from damro.eval.runs.record import folder_name, load_run
from damro.eval.runs.request import TINY
from damro.methods import METHODS, labels

if TYPE_CHECKING:
    from damro.eval.report.comparison import Comparison
    from damro.eval.runs.run import Asked, Prepared
    from damro.eval.samples import OpenImage


class Ran(NamedTuple):
    """What came of a command.

    Attributes:
        comparison: The scores.
        runs: The run.json of each run, by its name in the comparison; those of the command first.
        out: The folder.
        benchmark: With its parameters.
        open_image: Opens its images.
    """

    comparison: Comparison
    runs: dict[str, dict[str, Any]]
    out: Path
    benchmark: Benchmark
    open_image: OpenImage


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    names = ", ".join(BENCHMARKS)
    parser = subparsers.add_parser(
        "run",
        help=f"run a model over a benchmark ({names}) and score it",
        description="Run a model over a benchmark. Every answer is recorded as it comes; a run cut off goes on "
        "where it stopped when the same command is given again. Several GPUs, or several processes on CPUs: "
        "torchrun --standalone --nproc_per_node N -m damro.cli run ...",
    )
    parser.add_argument("benchmark", nargs="?", metavar="BENCHMARK", help=f"{names}; left out with --from")
    parser.add_argument("--from", dest="source", metavar="RUN", help="run again what a run.json says, into --out")
    _add_method_options(parser)
    add_data_options(parser)
    add_model_options(parser)
    add_run_options(parser)
    add_scoring_flags(parser)
    parser.set_defaults(run=run, defaults=parser.parse_args([]))


def _add_method_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "method",
        f"NAME, NAME:PARAMETER=VALUE,... or either with @T to sample at temperature T; names: {', '.join(METHODS)}, "
        "and sample for plain sampling. 'damro methods' lists their parameters",
    )
    which = group.add_mutually_exclusive_group()
    which.add_argument("--method", default="greedy", help="(default: greedy)")
    which.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help=f"several, compared with the first; {ALL}: every one that works with the model, compared with greedy",
    )
    add_answer_options(group)
    add_method_flags(parser, leave_out=("task",))


def add_answer_options(group: Any) -> None:
    """How answers are made, whatever the method: --keep-tokens, those of sampling, --max-new-tokens, --prompt."""
    group.add_argument(
        "--keep-tokens", type=int, metavar="N", help="patches of a tile that the full prompt keeps (default: all)"
    )
    add_sampling_options(group, seeds="of sampling, random patches, choice of images")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="(default: the benchmark's)")
    group.add_argument("--prompt", metavar="TEXT", help="template with {question} (default: the benchmark's)")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """What is asked: the parameters of all benchmarks, --images, --limit, --max-pixels, --scenes."""
    group = parser.add_argument_group("data", "'damro benchmarks' lists what each benchmark has")
    add_flags(group, dict(BENCHMARKS))
    group.add_argument("--images", metavar="DIR", help="COCO val2014, or the benchmark's folder; 'tiny' needs none")
    group.add_argument("--limit", type=int, metavar="N", help="at most N samples; of each split for pope and amber")
    add_max_pixels(group)
    group.add_argument(
        "--scenes", type=int, metavar="N", help="embedded scenes, for 'tiny' without --images (default: 200)"
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model, which may be left out, and how it is loaded."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="NAME_OR_PATH", help=f"(default: {TINY}, the embedded model)")
    add_loading_options(group)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Where and how the runs are made, and how they are told."""
    group = parser.add_argument_group("run")
    group.add_argument("--out", metavar="DIR", help="(default: runs/BENCHMARK/MODEL); a folder a method in it")
    group.add_argument(
        "--continuous",
        action="store_true",
        help="let the next sample take the place of an answer that is written, where a batch waits for its longest: "
        "for captions; the same answers up to rounding",
    )
    group.add_argument(
        "--exact",
        action="store_true",
        help="answer every sample by itself: slower, and neither their order nor what else is asked changes a bit",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="decode with a compiled step: faster tokens behind minutes of compiling, the same answers up to rounding",
    )
    group.add_argument("--batch-size", default="auto", metavar="N", help="(default: auto, by the device)")
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with what is recorded in --out; --no-resume refuses a folder that holds records",
    )
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="do failed samples again; those whose image was not there are done again without it",
    )
    group.add_argument("--strict", action="store_true", help="stop at the first sample that fails")
    group.add_argument(
        "--adopt-records",
        action="store_true",
        help="take records in --out without a run.json for those of this command, and write it anew",
    )
    add_partial_flag(group)
    group.add_argument("--report-to", choices=("wandb", "tensorboard", "mlflow"), help="tell it scores and parameters")
    add_cost_flag(
        group, "measure and show what answers cost: tokens a second, passes of the model; methods then share nothing"
    )
    add_form_flags(group)


def run(args: argparse.Namespace) -> int:
    """Runs, scores and prints."""
    ran = execute(args)
    if ran is None:
        return 0
    print_comparison(ran.comparison, as_json=args.json, as_latex=args.latex)
    print(f"written to {ran.out}", file=sys.stderr)
    return tell_unscored(ran.comparison)


def execute(args: argparse.Namespace) -> Ran | None:
    """Runs, scores and writes; None in a process that another one leads."""
    from damro.eval.runs.loop import Loop
    from damro.eval.runs.run import Asked, prepare, working
    from damro.eval.runs.sharding import find_workers, holds_records

    planned = plan(args)
    first = planned[0].request
    out = Path(args.out or Path("runs", first.benchmark, folder_name(first.model)))
    check_folder(out)
    if args.report_to:
        from damro.eval.report.trackers import check_tracker, track

        check_tracker(args.report_to)
    workers = find_workers(first.device)
    if workers.leads and args.model is None and args.source is None:
        tell(f"no --model given, so it is {TINY!r}, the embedded one")
    if not args.resume and any(holds_records(out / one.folder) for one in planned):
        raise EvalError(f"--out must hold no records with --no-resume, got {str(out)!r}: give another folder")
    make_scoring(args, first.asked, {})  # what is wrong with it is told before the run
    say = tell if workers.leads else lambda sentence: None
    every = args.methods == [ALL]
    prepared = prepare(*(one.request for one in (planned[:1] if every else planned)), tell=say)
    if every:
        kept = working([one.request for one in planned], prepared, say)
        planned = [one for one in planned if one.request in kept]
    titles = [f"{first.benchmark} {one.label}" for one in planned]
    with show_progress(titles, quiet=not workers.leads) as bars:
        asked = [Asked(one.request, out / one.folder, bar) for one, bar in zip(planned, bars, strict=True)]
        loop = Loop(strict=args.strict, retry_failed=args.retry_failed, workers=workers)
        options = {"loop": loop, "prepared": prepared, "adopt_records": args.adopt_records, "cost": args.cost}
        records = _run_all(asked, out, options)
    runs = dict(zip((one.label for one in planned), records, strict=True))
    if not workers.leads:
        return None
    _tell_failed(runs)
    comparison, found = _compare(args, out, planned, runs, prepared)
    write_tables(comparison, out, origin_of(args, comparison, found, prepared.dataset.open_image))
    if args.report_to:
        # Those of this command stand before the ones that were in the folder.
        track(args.report_to, comparison, dict(islice(found.items(), len(planned))), out)
    return Ran(comparison, found, out, first.asked, prepared.dataset.open_image)


def _tell_failed(runs: Mapping[str, Records]) -> None:
    """Says how many samples failed, and how they are done again."""
    failed = [fields for records in runs.values() for fields in records.values() if "error" in fields]
    if failed:
        tell(
            f"{len(failed)} of {sum(map(len, runs.values()))} samples failed, the first with: {failed[0]['error']}; "
            "mend it and give the same command with --retry-failed to do them again"
        )


def _compare(
    args: argparse.Namespace, out: Path, planned: Sequence[Planned], runs: Mapping[str, Records], prepared: Prepared
) -> tuple[Comparison, dict[str, dict[str, Any]]]:
    """Scores the runs together with those that were in the folder before; returns the run.json of each, too."""
    from damro.eval.report.comparison import check_whole, compare
    from damro.eval.report.others import find_others

    first, dataset = planned[0].request, prepared.dataset
    samples = [sample.sample_id for sample in dataset.samples]
    if not args.partial:
        for one in planned:
            check_whole(str(out / one.folder), len(runs[one.label]), len(samples))
    own = {one.folder: runs[one.label] for one in planned}
    others, sentences = find_others(out, own, samples, partial=args.partial)
    for sentence in sentences:
        tell(sentence)
    names = [one.label for one in planned]
    if others:
        names = labels([*(one.request.recipe for one in planned), *(other.recipe for other in others)])
    folders = [*own, *(other.folder for other in others)]
    names = [f"{name} ({of})" if names.count(name) > 1 else name for name, of in zip(names, folders, strict=True)]
    records = dict(zip(names, [*own.values(), *(other.records for other in others)], strict=True))
    scoring = make_scoring(args, first.asked, dataset.truth)
    compared = compare(first.asked, first.model, records, scoring, dict.fromkeys(records, len(samples)))
    of_names = dict(zip(names, folders, strict=True))
    if args.cost:
        compared = show_costs(compared, {name: out / of for name, of in of_names.items()})
    return compared, {name: load_run(out / of) for name, of in of_names.items()}


def _run_all(asked: Sequence[Asked], out: Path, options: Mapping[str, Any]) -> list[dict[str, dict[str, Any]]]:
    from damro.eval.runs.run import run_benchmarks

    try:
        return run_benchmarks(asked, **options)
    except KeyboardInterrupt:
        print(f"damro: stopped; give the same command again to go on in {out}", file=sys.stderr)
        raise
