"""A judge's replies in a file: what stands there is not asked for again, so that scoring again costs nothing.

A reply is found by what was judged, the question with the answer, and not by the run: files of several runs can be put
together, and an answer that two runs share is judged once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.records import RecordWriter, iterate_records
from damro.eval.samples import digest_of

Ask = Callable[[str, bytes | None], str]
"""Sends a text and an image (PNG bytes, or None) to the judge and returns its reply."""
TRIES = 3
"""How often a judge is asked where its reply is none that can be used."""
_DIGITS = 16


class JudgeReplyError(EvalError):
    """The judge's reply is none, or not of the form that it was asked for."""


class Asked(NamedTuple):
    """What a judge is asked about one answer.

    Attributes:
        sample_id: Of the answer, for who reads the file.
        key: What a reply is found by; see `key_of`.
        text: What is sent.
    """

    sample_id: str
    key: str
    text: str


class Judge(NamedTuple):
    """Who judged.

    Attributes:
        name: Of the model.
        prompt: The name of what it was asked with; see `damro.eval.judged.prompts.Prompt`.
    """

    name: str
    prompt: str

    def __str__(self) -> str:
        """Return both, for messages."""
        return f"{self.name!r} with prompt {self.prompt!r}"


class Judgement(NamedTuple):
    """What came of asking once.

    Attributes:
        reply: The judge's; None where it gave none that can be used.
        failure: Why it did not, else empty.
    """

    reply: str | None
    failure: str = ""


@dataclass(frozen=True)
class Judgements:
    """The replies of one judge.

    Attributes:
        by_key: What came of each question with its answer.
        judge: Who judged; None where nothing is recorded yet.
        source: The files, for messages.
    """

    by_key: Mapping[str, Judgement]
    judge: Judge | None
    source: str

    def find(self, keys: Mapping[str, str]) -> dict[str, Judgement]:
        """Return the judgement of each answer.

        Args:
            keys: By the sample's id, the key of its answer.

        Raises:
            EvalError: Some are not judged; says how many.
        """
        missing = [identifier for identifier, key in keys.items() if key not in self.by_key]
        if missing:
            raise EvalError(
                f"--judgements must hold a judgement of every answer, {self.source} lacks {len(missing)} of "
                f"{len(keys)} ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): have them judged with "
                "damro score, --judge NAME and --endpoint URL, or give the file that belongs to these answers"
            )
        return {identifier: self.by_key[key] for identifier, key in keys.items()}


def key_of(*judged: object) -> str:
    """Return what a judgement is found by, of what was judged.

    Example:
        >>> key_of("mmhal", "Who is it?", "A cat.") == key_of("mmhal", "Who is it?", "A cat.")
        True
    """
    return digest_of(judged)[:_DIGITS]


def read_judgements(paths: Sequence[Path | str]) -> Judgements:
    """Read files that `collect` wrote. Of two judgements of one answer the later one counts.

    Raises:
        DataFormatError: A file cannot be read, or a line is no judgement.
        EvalError: The files are of several judges or prompts.
    """
    found: dict[str, Judgement] = {}
    judges: dict[Judge, str] = {}
    for path in paths:
        for where, fields in iterate_records(Path(path)):
            judge, key, judgement = _read(fields, where)
            judges.setdefault(judge, where)
            found[key] = judgement
    if len(judges) > 1:
        (one, _), (other, where) = list(judges.items())[:2]
        raise EvalError(
            f"--judgements must be of one judge and one prompt, got {one} and, at {where}, {other}: keep a file each"
        )
    return Judgements(found, next(iter(judges), None), ", ".join(map(str, paths)))


def collect(
    asked: Sequence[Asked],
    path: Path,
    ask: Ask,
    judge: Judge,
    *,
    check: Callable[[str], object] = lambda reply: None,
    retry_failed: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Judgements:
    """Have answers judged that are not yet, one after the other; each reply is recorded as it comes.

    Args:
        asked: The answers.
        path: The file of judgements; made if missing.
        ask: Sends a text to the judge. A `JudgeReplyError` of its is this answer's failure, any other error ends the
            judging, and what is recorded stays.
        judge: Who judges; a file of another is refused.
        check: Raises `JudgeReplyError` for a reply that cannot be used, which is then asked for again.
        retry_failed: Ask again where no reply could be used.
        progress: Told after each answer.

    Returns:
        All that the file holds.

    Raises:
        EvalError: The file is of another judge or prompt, or another process writes to it.
        DataFormatError: It is malformed.
    """
    with _locked(path), RecordWriter(path) as writer:  # which repairs the end
        done = read_judgements([path])
        if done.judge not in (None, judge):
            raise EvalError(
                f"--judgements must be a file of judge {judge}, got {str(path)!r} of {done.judge}: give another file"
            )
        by_key = dict(done.by_key)
        todo = {one.key: one for one in asked}
        for number, (key, one) in enumerate(todo.items(), start=1):
            if key not in by_key or (retry_failed and by_key[key].reply is None):
                by_key[key] = _judge_one(one, ask, check)
                writer.write(_to_record(one, judge, by_key[key]))
                writer.sync()
            if progress is not None:
                progress(number, len(todo))
    return Judgements(by_key, judge, str(path))


def _judge_one(one: Asked, ask: Ask, check: Callable[[str], object]) -> Judgement:
    failure = ""
    for _ in range(TRIES):
        try:
            reply = ask(one.text, None)
            check(reply)
        except JudgeReplyError as error:
            failure = str(error)
            continue
        return Judgement(reply)
    return Judgement(None, f"no reply of use in {TRIES}, the last: {failure}")


def _to_record(one: Asked, judge: Judge, judgement: Judgement) -> dict[str, Any]:
    said = {"error": judgement.failure} if judgement.reply is None else {"reply": judgement.reply}
    return {"id": one.sample_id, "key": one.key, "judge": judge.name, "prompt": judge.prompt, **said}


def _read(fields: Mapping[str, Any], where: str) -> tuple[Judge, str, Judgement]:
    key, name, prompt = (fields.get(field) for field in ("key", "judge", "prompt"))
    reply, failure = fields.get("reply"), fields.get("error")
    whole = all(isinstance(value, str) for value in (key, name, prompt)) and isinstance(reply, str) != isinstance(
        failure, str
    )
    if not whole:
        raise DataFormatError(
            f"{where}: a judgement must have 'key', 'judge', 'prompt' and either 'reply' or 'error' as texts, got keys "
            f"{ascii(sorted(map(str, fields)))[:120]}: give a file that damro score --judge wrote"
        )
    return Judge(str(name), str(prompt)), str(key), Judgement(reply, str(failure or ""))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """While open, no other process adds to the file; the lock goes with the process, also with a killed one."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise EvalError(f"{path} must be written by one process at a time, another one has answers judged") from error
    except OSError as error:
        raise EvalError(
            f"--judgements must be a file where you may write, got {str(path)!r} ({error.strerror}): make its folder, "
            "or give another"
        ) from error
    try:
        yield
    finally:
        lock.release()
