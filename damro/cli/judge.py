"""``damro judge RUN RUN``: a language model grades the answers of two runs."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damro.cli.outputs import check_folder
from damro.cli.parser import whole_number
from damro.cli.results import add_partial_flag
from damro.eval.benchmark import Records
from damro.eval.errors import EvalError
from damro.eval.runs.formats import FORMAT
from damro.eval.runs.record import folder_name, load_run
from damro.eval.runs.request import to_request
from damro.tiny import checkpoint_of

if TYPE_CHECKING:
    from damro.eval.statistics import Interval

_KEY = "OPENAI_API_KEY"


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "judge",
        help="have a language model grade the answers of two runs",
        description="Send each image with the answers of two runs to an OpenAI-compatible server and have accuracy and "
        f"detailedness graded, in both orders. The key is taken from {_KEY}; a judgement that is recorded is not asked "
        "for again, one that failed with --retry-failed alone.",
    )
    parser.add_argument("runs", nargs=2, metavar="RUN", help="folder of a run")
    parser.add_argument("--endpoint", required=True, metavar="URL", help="such as http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True, metavar="NAME", help="the judge's name on that server")
    parser.add_argument("--images", metavar="DIR", help="the images, where the runs' folder has moved")
    parser.add_argument("--no-images", action="store_true", help="send the answers alone, to a judge that cannot see")
    parser.add_argument("--out", metavar="DIR", help="(default: judge-SECOND in the folder of the first run)")
    parser.add_argument("--limit", type=whole_number, metavar="N", help="at most N pairs")
    parser.add_argument("--retry-failed", action="store_true", help="ask again for judgements that failed")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds to wait for an answer (default: 60)"
    )
    add_partial_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Asks, records and prints; the key and the endpoint's password stand nowhere."""
    from damro.eval.report.judge_client import mask_endpoint, secret_masker

    shown, mask = mask_endpoint(args.endpoint), secret_masker(args.endpoint, os.environ.get(_KEY))
    try:
        return _judge(args, shown)
    except EvalError as error:  # of a folder, say, that an older version wrote the password to
        raise EvalError(mask(str(error))) from error


def _judge(args: argparse.Namespace, endpoint: str) -> int:
    from damro.eval.report.comparison import load_runs
    from damro.eval.report.judge import ASPECTS, judge_runs
    from damro.eval.report.judge_client import openai_judge

    runs = load_runs(args.runs, partial=args.partial).runs
    first, second = runs
    out = Path(args.out) if args.out else Path(args.runs[0], f"judge-{folder_name(Path(args.runs[1]).name)}")
    check_folder(out)
    request = {"judge": args.model, "endpoint": endpoint, "sees_images": not args.no_images}
    resolved = {"runs": [load_run(folder)["resolved"] for folder in args.runs]}
    verdict = judge_runs(
        runs[first],
        runs[second],
        out,
        openai_judge(args.endpoint, args.model, os.environ.get(_KEY), timeout=args.timeout),
        json.loads(json.dumps({"format": FORMAT, "request": request, "resolved": resolved})),
        open_bytes=(lambda name: None) if args.no_images else _image_opener(args, runs.values()),
        limit=args.limit,
        retry_failed=args.retry_failed,
        progress=_tell if sys.stderr.isatty() else None,
    )
    if args.json:
        values = {name: {key: _to_dict(v) for key, v in getattr(verdict, name).items()} for name in _PARTS}
        print(json.dumps({"runs": [first, second], "judged": verdict.judged, "failed": len(verdict.failed), **values}))
        return 0
    for aspect in ASPECTS:
        one, two, change = (_show(getattr(verdict, name)[aspect]) for name in _PARTS)
        print(f"{aspect}: {first} {one}, {second} {two}, difference {change}")
    print(f"{verdict.judged} pairs, each in both orders; 95 % bootstrap intervals")
    if verdict.failed:
        print(f"WARNING: {len(verdict.failed)} pairs have no grades, e.g. {next(iter(verdict.failed.items()))}")
    return 0


_PARTS = ("first", "second", "difference")


def _image_opener(args: argparse.Namespace, runs: Iterable[Records]) -> Callable[[str], bytes]:
    """From an image's name to its PNG, as the runs saw it; all of them are there, or nothing is judged."""
    from damro.eval.benchmark import answered_in_all
    from damro.eval.runs.identity import check_images
    from damro.eval.samples import OpenImage, bounded, folder_opener, open_scene

    request = to_request(load_run(args.runs[0]))
    request = replace(request, images=args.images or request.images)
    if request.images is None and checkpoint_of(request.model) is None:
        raise EvalError("--images must be given: the runs do not say where their images are")
    open_image: OpenImage = open_scene
    if request.images is not None:
        folder = folder_opener(Path(request.images))
        open_image = bounded(folder, request.max_pixels)
        first, second = runs
        answered = answered_in_all([first, second])
        folder.missing((one["image"] for key, one in first.items() if key in answered and one["image"]), at_most=0)
        check_images([fields for key, fields in first.items() if key in answered], folder.digest)

    def open_bytes(name: str) -> bytes:
        content = io.BytesIO()
        open_image(name).save(content, format="png")
        return content.getvalue()

    return open_bytes


def _show(interval: Interval) -> str:
    ends = "" if interval.ends is None else " [{:.2f}, {:.2f}]".format(*interval.ends)
    return f"{interval.estimate:.2f}{ends}"


def _to_dict(interval: Interval | None) -> dict[str, Any] | None:
    """As JSON values: ends that are not finite are None."""
    if interval is None:
        return None
    low, high = interval.ends or (None, None)
    return {**asdict(interval), "low": low, "high": high}


def _tell(done: int, total: int) -> None:
    print(f"\r{done} of {total} judgements", end="\n" if done == total else "", file=sys.stderr, flush=True)
