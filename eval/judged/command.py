"""What ``damro score`` does for judged benchmarks: ask the judge where it is told to, and read what is recorded."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from damro.eval.errors import EvalError
from damro.eval.judged.prompts import Prompt
from damro.eval.judged.replies import Asked, Judge, Judgements, collect, read_judgements

_KEY = "OPENAI_API_KEY"


def add_judge_flags(parser: argparse.ArgumentParser, script: str) -> None:
    """Add the options of a judge.

    Args:
        parser: What gets them.
        script: The official script that holds the prompt.
    """
    group = parser.add_argument_group(
        "judge",
        f"an OpenAI-compatible server; the key is taken from {_KEY}. Without --judge nothing is asked, and answers are "
        "scored by what --judgements holds",
    )
    group.add_argument("--judgements", metavar="FILE", help="where the judge's replies are recorded, and read from")
    group.add_argument("--judge", metavar="NAME", help="have answers judged that are not yet: the model's name")
    group.add_argument("--endpoint", metavar="URL", help="such as http://127.0.0.1:8000/v1")
    group.add_argument(
        "--judge-prompt",
        metavar="FILE",
        help=f"{script}, or another prompt as text (default: this package's own, not comparable with published "
        "figures)",
    )
    group.add_argument("--retry-failed", action="store_true", help="ask again for judgements that failed")
    group.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds to wait for a reply (default: 60)"
    )


def judge_answers(
    args: argparse.Namespace,
    asked: Sequence[Asked],
    prompt: Prompt,
    *,
    max_tokens: int,
    check: Callable[[str], object] = lambda reply: None,
) -> Judgements:
    """Have answers judged as the options say; the key and the endpoint's password stand in no message.

    Args:
        args: With the options of `add_judge_flags`, ``--judge`` among them.
        asked: The answers.
        prompt: What they are asked about with.
        max_tokens: The longest reply.
        check: See `damro.eval.judged.replies.collect`.

    Raises:
        EvalError: An option that is needed is missing, the server cannot be reached, or the file is of another judge.
    """
    from damro.eval.report.judge_client import openai_judge, secret_masker

    key = os.environ.get(_KEY)
    ask = openai_judge(args.endpoint, args.judge, key, timeout=args.timeout, max_tokens=max_tokens)
    try:
        return collect(
            asked,
            Path(args.judgements),
            ask,
            Judge(args.judge, prompt.name),
            check=check,
            retry_failed=args.retry_failed,
            progress=_tell if sys.stderr.isatty() else None,
        )
    except EvalError as error:
        raise EvalError(secret_masker(args.endpoint, key)(str(error))) from error


def check_judge_flags(args: argparse.Namespace) -> None:
    """Refuse options of a judge that lack each other.

    Raises:
        EvalError: They do; says which is missing.
    """
    if args.judge is None:
        alone = [f"--{name.replace('_', '-')}" for name in ("endpoint", "judge_prompt") if getattr(args, name)]
        if alone or args.retry_failed:
            raise EvalError(f"{(alone or ['--retry-failed'])[0]} must come with --judge, got it alone: name the judge")
        return
    missing = [f"--{name}" for name in ("endpoint", "judgements") if getattr(args, name) is None]
    if missing:
        raise EvalError(
            f"--judge must come with --endpoint and --judgements, got it without {' and '.join(missing)}: give the "
            "server's address, and the file that replies are recorded in"
        )


def read_recorded(args: argparse.Namespace) -> Judgements | None:
    """Return what ``--judgements`` holds; None where it is not given."""
    return None if args.judgements is None else read_judgements([args.judgements])


def _tell(done: int, total: int) -> None:
    print(f"\r{done} of {total} judgements", end="\n" if done == total else "", file=sys.stderr, flush=True)
