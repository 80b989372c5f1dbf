"""``damro run pope|chair|mme``: a model over a benchmark, recorded answer by answer, scored at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damro.cli.options import add_method_options, given_options
from damro.eval.errors import EvalError
from damro.eval.methods import TAKEN_BY, check_options, parse_method, takes
from damro.eval.pope import POPE_SPLITS, RULES
from damro.eval.runs.request import BENCHMARKS, RunRequest, folder_name, load_run, to_request, write_whole

if TYPE_CHECKING:
    from damro.eval.report.comparison import Comparison
    from damro.eval.runs.loop import Loop, Prepared, Progress
    from damro.eval.scores import Scoring

_REQUEST_OPTIONS = (
    *("model", "revision", "questions", "objects", "image_ids", "images", "limit", "scenes", "seed"),
    *("alpha", "beta", "top_k", "top_p", "max_new_tokens", "prompt", "dtype", "device", "device_map"),
    *("quantization", "keep_tokens"),
)


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "run",
        help="run a model over POPE, CHAIR or MME and score it",
        description="Run a model over a benchmark. Every answer is recorded as it comes; a run cut off goes on "
        "where it stopped when the same command is given again. Several GPUs: accelerate launch -m damro.cli run ...",
    )
    parser.add_argument("benchmark", nargs="?", choices=BENCHMARKS, help="left out with --from")
    parser.add_argument("--from", dest="source", metavar="RUN", help="run again what a run.json says, into --out")
    _add_method_options(parser)
    _add_data_options(parser)
    _add_model_options(parser)
    _add_run_options(parser)
    add_scoring_options(parser)
    parser.set_defaults(run=run, defaults=parser.parse_args([]))


def _add_method_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "method", "names: greedy, sample, damro, random-k, least-k, no-image, vcd, icd, m3id; NAME@T samples"
    )
    which = group.add_mutually_exclusive_group()
    which.add_argument("--method", default="greedy", help="(default: greedy)")
    which.add_argument("--methods", nargs="+", metavar="METHOD", help="several, compared with the first")
    group.add_argument("--alpha", type=float, help="strength of the contrast (default: the preset's)")
    group.add_argument("--beta", type=float, help="plausibility cutoff (default: the preset's)")
    group.add_argument("--top-k", type=int, metavar="K", help="number of patches (default: the preset's)")
    group.add_argument(
        "--variant",
        choices=("reference", "corrected"),
        default="reference",
        help="damro and its controls with InstructBLIP: as released, or corrected (default: reference)",
    )
    add_method_options(group)
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus of sampling (default: 1)")
    group.add_argument(
        "--seed", type=int, default=42, help="of sampling, random patches, choice of images (default: 42)"
    )
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="(default: 1024 for chair, 64 otherwise)")
    group.add_argument("--prompt", metavar="TEXT", help="template with {question} (default: the paper's)")


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--split", nargs="+", metavar="SPLIT", help=f"pope: {', '.join(POPE_SPLITS)}, or all; mme: categories"
    )
    group.add_argument("--questions", metavar="FILE", help="pope: a question file instead of a shipped split")
    group.add_argument("--objects", metavar="FILE", help="chair: ground truth instead of the shipped one")
    group.add_argument("--image-ids", metavar="FILE", help="chair: the images to caption (default: 500 by the seed)")
    group.add_argument("--images", metavar="DIR", help="COCO val2014 images, or MME's folder; 'tiny' needs none")
    group.add_argument("--limit", type=int, metavar="N", help="at most N samples (of each split)")
    group.add_argument(
        "--scenes", type=int, default=200, metavar="N", help="embedded scenes, for 'tiny' (default: 200)"
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="tiny", metavar="NAME_OR_PATH", help="(default: tiny, the embedded model)")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    group.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    group.add_argument("--device", help="as torch names it (default: a GPU, if any)")
    group.add_argument("--device-map", metavar="MAP", help="auto: spread the model over all GPUs")
    group.add_argument("--quantization", choices=("4bit", "8bit"), help="needs bitsandbytes")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--out", metavar="DIR", help="(default: runs/BENCHMARK/MODEL); a folder a method in it")
    group.add_argument("--batch-size", default="auto", metavar="N", help="(default: auto, by the device)")
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with what is recorded in --out; --no-resume refuses a folder that holds records",
    )
    group.add_argument("--retry-failed", action="store_true", help="do failed samples again")
    group.add_argument("--strict", action="store_true", help="stop at the first sample that fails")
    group.add_argument("--json", action="store_true", help="print the scores as JSON")


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """--rules, --labels, --labels-complete, --matcher: how answers are scored."""
    group = parser.add_argument_group("scoring", "changes no answer; scores of a finished run are made anew in seconds")
    group.add_argument("--rules", nargs="+", choices=(*RULES, "all"), default=["pope"], metavar="RULE")
    group.add_argument("--labels", metavar="FILE", help="pope: corrected labels, with exclusions")
    group.add_argument("--labels-complete", action="store_true", help="exclude what --labels does not name (RePOPE)")
    group.add_argument("--matcher", default="auto", choices=("auto", "nltk", "builtin"), help="chair (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Runs, scores and prints."""
    from damro.eval.report.comparison import compare
    from damro.eval.runs.loop import Loop, prepare, run_benchmark
    from damro.eval.runs.sharding import find_workers

    requests = make_requests(args)
    first = requests[0]
    out = Path(args.out or Path("runs", first.benchmark, folder_name(first.model)))
    workers = find_workers(first.device)
    folders = [out / folder_name(request.method) for request in requests]
    if not args.resume and any((folder / "records.jsonl").exists() for folder in folders):
        raise EvalError(f"--out must hold no records with --no-resume, got {str(out)!r}: give another folder")
    prepared = prepare(*requests)
    runs = {}
    for request, folder in zip(requests, folders, strict=True):
        with show_progress(f"{first.benchmark} {request.method}", quiet=not workers.leads) as progress:
            loop = Loop(strict=args.strict, retry_failed=args.retry_failed, workers=workers, progress=progress)
            runs[request.method] = _run_one(request, folder, loop, prepared, run_benchmark)
    if workers.leads:
        scoring = make_scoring(args, first.benchmark, prepared.dataset.truth)
        comparison = compare(first.benchmark, first.model, runs, scoring)
        write_tables(comparison, out)
        print_comparison(comparison, as_json=args.json)
        print(f"written to {out}", file=sys.stderr)
    return 0


def _run_one(request: RunRequest, folder: Path, loop: Loop, prepared: Prepared, run_benchmark: Any) -> Any:
    try:
        return run_benchmark(request, folder, loop=loop, prepared=prepared)
    except KeyboardInterrupt:
        print(f"damro: stopped; give the same command again to go on in {folder}", file=sys.stderr)
        raise


def make_requests(args: argparse.Namespace) -> list[RunRequest]:
    """The requests that the options make, one a method.

    Raises:
        EvalError: An option is out of range or one that no method named has, a method is unknown or named twice.
    """
    if (args.source is None) == (args.benchmark is None):
        raise EvalError("give either a benchmark (pope, chair, mme) or --from RUN, got both or neither")
    if args.source is not None:
        if args.out is None:
            raise EvalError("--from must come with --out, the folder for the new records")
        settled = ("methods", "method", "split", "batch_size", *_REQUEST_OPTIONS, *TAKEN_BY)
        for name in settled:
            if name != "images" and getattr(args, name) != getattr(args.defaults, name):
                raise EvalError(
                    f"--{name.replace('_', '-')} must be left out with --from, got {getattr(args, name)!r}: "
                    "the run.json says it; start a run of its own to change it"
                )
        request = to_request(load_run(args.source))
        return [replace(request, images=args.images or request.images)]
    options = {name: getattr(args, name) for name in _REQUEST_OPTIONS}
    size = None if args.batch_size == "auto" else _whole_number(args.batch_size)
    methods = [parse_method(name) for name in args.methods or [args.method]]
    if len(set(methods)) < len(methods):
        raise EvalError(f"--methods must be different, got {' '.join(method.name for method in methods)}")
    given = given_options(args)
    check_options(given, methods)
    # alpha, beta and top_k stand in all requests of a command; what only few methods have, in theirs.
    rare = {name: value for name, value in given.items() if name not in options}
    return [
        RunRequest(
            args.benchmark,
            method=method.name,
            splits=_splits(args),
            batch_size=size,
            **options,
            **{name: value for name, value in rare.items() if takes(method, name)},
        )
        for method in methods
    ]


def _splits(args: argparse.Namespace) -> tuple[str, ...]:
    if args.benchmark == "pope" and args.split == ["all"]:
        from damro.eval.samples import all_splits

        return () if args.model == "tiny" else all_splits()
    return tuple(args.split or ())


def _whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise EvalError(f"--batch-size must be auto or a whole number, got {text!r}")
    return int(text)


def make_scoring(args: argparse.Namespace, benchmark: str, truth: Any) -> Scoring:
    """How the options want answers scored."""
    from damro.eval.pope.labels import load_labels
    from damro.eval.scores import Scoring

    rules = RULES if "all" in args.rules else tuple(args.rules)
    labels = load_labels(args.labels, complete=args.labels_complete) if args.labels else None
    matcher = None
    if benchmark == "chair":
        from damro.eval.chair.matchers import load_matcher

        matcher = load_matcher(args.matcher)
    return Scoring(rules, labels, matcher, truth)


def write_tables(comparison: Comparison, out: Path) -> None:
    """Writes scores.json, scores.csv, scores.md and report.html."""
    from damro.eval.report.html import write_report
    from damro.eval.report.tables import to_csv, to_json, to_markdown

    for ending, text in (("json", to_json), ("csv", to_csv), ("md", to_markdown)):
        write_whole(out / f"scores.{ending}", text(comparison))
    write_report(comparison, out / "report.html")


def print_comparison(comparison: Comparison, *, as_json: bool) -> None:
    """Prints the tables, or JSON."""
    from damro.eval.report.tables import notes, to_json, to_terminal

    if as_json:
        print(to_json(comparison))
        return
    from rich.console import Console

    console = Console()
    for table in to_terminal(comparison):
        console.print(table)
    for line in notes(comparison):
        console.print(line, markup=False, style="bold red" if line.startswith("WARNING") else None)


@contextmanager
def show_progress(title: str, *, quiet: bool = False) -> Iterator[Progress | None]:
    """A progress bar on stderr with rate and time left; nothing where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from damro.eval.runs.loop import Tally

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
