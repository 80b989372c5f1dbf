"""A language model as judge of two runs' answers: accuracy and detailedness, as in the paper's GPT-4V-aided evaluation.

Every pair of answers is judged in both orders, since judges favour a place; a pair counts the mean of the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from damro.eval.benchmark import Records, answered_in_all
from damro.eval.errors import EvalError
from damro.eval.judged.replies import Ask, JudgeReplyError
from damro.eval.records import RecordWriter, iterate_records
from damro.eval.runs.identity import DIGEST, ForeignRecordError, digest_of_json
from damro.eval.runs.record import check_same, load_run, write_run
from damro.eval.runs.sharding import lock_folder
from damro.eval.statistics import Interval, bootstrap_metrics

ASPECTS = ("accuracy", "detailedness")
JUDGEMENTS = "judgements.jsonl"
_TRIES = 3
_SHOWN = 2000  # characters of a reply that are kept
_INSTRUCTION = """Two assistants were given the attached image and this request: {prompt}

Assistant A answered:
{first}

Assistant B answered:
{second}

Grade each answer from 1 (worst) to 10 (best) in two respects.
Accuracy: does the answer agree with the image? Objects, attributes and relations that are not there lower the grade.
Detailedness: how much of what the image shows does the answer tell? Details that are not there do not count.
The order of the assistants must not influence you. Reply with these two lines and nothing else:
Accuracy: A=<grade> B=<grade>
Detailedness: A=<grade> B=<grade>"""

OpenBytes = Callable[[str], bytes | None]


class Grades(NamedTuple):
    """The grades of two answers, 1 to 10, as (first, second)."""

    accuracy: tuple[float, float]
    detailedness: tuple[float, float]


@dataclass(frozen=True)
class Verdict:
    """What a judge thinks of two runs.

    Attributes:
        first: By aspect, the mean grade of the first run with its interval.
        second: Likewise of the second.
        difference: By aspect, second less first, paired.
        judged: How many pairs count: those graded in both orders.
        failed: The reasons of the others, by sample id.
    """

    first: Mapping[str, Interval | None]
    second: Mapping[str, Interval | None]
    difference: Mapping[str, Interval | None]
    judged: int
    failed: Mapping[str, str]


def parse_grades(reply: str) -> Grades:
    r"""Read the grades of a judge's reply.

    Raises:
        JudgeReplyError: A line is missing, or a grade is not from 1 to 10.

    Example:
        >>> parse_grades("**Accuracy**: A=7 B=9.5\nDetailedness: A = 4, B = 10")
        Grades(accuracy=(7.0, 9.5), detailedness=(4.0, 10.0))
    """
    found = {}
    for aspect in ASPECTS:
        # Possessive, so that a long reply is read once; the lookbehind is for "A=7.B=9", whose stop parts the two.
        grade = r"\s*+[=:]\s*+([\d.]++)"
        match = re.search(rf"{aspect}\W*+A{grade}(?:\W++|(?<=[\d.]\.))B{grade}", reply, re.IGNORECASE)
        try:
            grades = (float(match[1].rstrip(".")), float(match[2].rstrip("."))) if match else (0.0, 0.0)
        except ValueError:
            grades = (0.0, 0.0)
        if not all(1 <= grade <= 10 for grade in grades):
            raise JudgeReplyError(f"reply must grade {aspect} as 'A=<1 to 10> B=<1 to 10>', got {reply[:120]!r}")
        found[aspect] = grades
    return Grades(**found)


def judge_runs(
    first: Records,
    second: Records,
    folder: Path,
    ask: Ask,
    pinned: Mapping[str, Any],
    *,
    open_bytes: OpenBytes = lambda name: None,
    limit: int | None = None,
    retry_failed: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Have two runs judged, pair by pair and in both orders; goes on where an earlier call stopped.

    What is recorded is not asked for again, a failure neither.

    Args:
        first: Records of one run.
        second: Records of the other; samples that either failed are left out.
        folder: Where ``judgements.jsonl`` goes, with a ``run.json`` of what it depends on.
        ask: Sends a text and an image to the judge. A `JudgeReplyError` of its is this judgement's failure, any other
            error ends the judging.
        pinned: What the judgements depend on; a folder with another is refused.
        open_bytes: From an image's name to its PNG; None sends no image.
        limit: At most so many pairs.
        retry_failed: Ask again for judgements that failed.
        progress: Told after each judgement.

    Raises:
        BusyRunError: Another process judges in the folder.
        RunMismatchError: The folder holds judgements of other runs or by another judge.
        ForeignRecordError: A judgement is of other answers than those of the runs.
        EvalError: There is no sample that both runs answered.
    """
    keep = answered_in_all([first, second])
    samples = [key for key in first if key in keep][:limit]
    if not samples:
        raise EvalError("runs must have an answered sample in common to be judged, got none")
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        if (folder / "run.json").exists():
            check_same(folder, load_run(folder), pinned)
        else:
            write_run(folder, pinned)
        done = _read_done(folder / JUDGEMENTS, drop_failed=retry_failed)
        todo = [(key, swapped) for key in samples for swapped in (False, True)]
        with RecordWriter(folder / JUDGEMENTS) as writer:
            for number, (key, swapped) in enumerate(todo, start=1):
                name = f"{key}#{'second first' if swapped else 'first first'}"
                digest = _digest_of_pair(first[key], second[key])
                if name not in done:
                    judged = _judge_one(name, first[key], second[key], swapped, ask, open_bytes)
                    done[name] = {**judged, DIGEST: digest}
                    writer.write(done[name])
                    writer.sync()
                elif done[name].get(DIGEST, digest) != digest:  # older versions wrote none
                    raise ForeignRecordError(
                        f"{folder / JUDGEMENTS}: judgement {name!r} must be of the answers that the runs have, it is "
                        "of others: give another --out"
                    )
                if progress is not None:
                    progress(number, len(todo))
    return conclude(samples, done)


def _read_done(path: Path, *, drop_failed: bool) -> dict[str, dict[str, Any]]:
    """The judgements so far; of two of one pair and order, the later one."""
    RecordWriter(path).close()  # repairs the end
    done = {str(fields["id"]): fields for _, fields in iterate_records(path)}
    return {name: fields for name, fields in done.items() if not (drop_failed and "error" in fields)}


def _digest_of_pair(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    return digest_of_json([first["prompt"], first["image"], first["answer"], second["answer"]])


def _judge_one(
    name: str, first: Mapping[str, Any], second: Mapping[str, Any], swapped: bool, ask: Ask, open_bytes: OpenBytes
) -> dict[str, Any]:
    answers = (first["answer"], second["answer"])
    shown = answers[::-1] if swapped else answers
    # Not str.format: an answer may hold braces.
    head, middle, tail = re.split(r"\{first\}|\{second\}", _INSTRUCTION.replace("{prompt}", "\0"))
    text = head.replace("\0", first["prompt"]) + shown[0] + middle + shown[1] + tail
    try:
        image = None if first["image"] is None else open_bytes(first["image"])
    except (ValueError, OSError) as error:
        return {"id": name, "error": str(error)}
    reply = failure = ""
    for _ in range(_TRIES):
        try:
            reply = ask(text, image)
            grades = parse_grades(reply)
        except JudgeReplyError as error:
            failure = str(error)
            continue
        order = -1 if swapped else 1
        both = {aspect: list(pair[::order]) for aspect, pair in grades._asdict().items()}
        return {"id": name, "reply": reply[:_SHOWN], **both}
    return {"id": name, "reply": reply[:_SHOWN], "error": f"no grades in {_TRIES} replies, the last: {failure}"}


def conclude(samples: Sequence[str], judgements: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Make a verdict of judgements; a pair counts if it was graded in both orders.

    Raises:
        EvalError: No pair was.
    """
    rows, failed = [], {}
    for key in samples:
        both = [judgements[f"{key}#{order}"] for order in ("first first", "second first")]
        errors = [str(one["error"]) for one in both if "error" in one]
        if errors:
            failed[key] = errors[0]
            continue
        rows.append([np.mean([one[aspect][run] for one in both]) for run in (0, 1) for aspect in ASPECTS])
    if not rows:
        raise EvalError(
            f"at least one pair must be graded in both orders, got none; the first: {next(iter(failed.values()))}"
        )
    columns = np.array(rows)  # (pairs, run and aspect)
    metrics = {aspect: _column(number) for number, aspect in enumerate(ASPECTS)}
    one, two = columns[:, : len(ASPECTS)], columns[:, len(ASPECTS) :]
    return Verdict(
        bootstrap_metrics(one, metrics),
        bootstrap_metrics(two, metrics),
        bootstrap_metrics(two, metrics, baseline=one),
        len(rows),
        failed,
    )


def _column(number: int) -> Callable[[Any], Any]:
    return lambda means: means[..., number]
