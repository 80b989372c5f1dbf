"""The other runs in a folder that a run lies in: scored together with it, so that no score of before is lost."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from damro.decoding.errors import DecodingError
from damro.eval.benchmark import Records, answered
from damro.eval.errors import EvalError
from damro.eval.report.comparison import share_of
from damro.eval.runs.identity import check_same_images
from damro.eval.runs.record import RUN_FILE, identity_of, load_run
from damro.eval.runs.request import to_request
from damro.eval.runs.sharding import read_done
from damro.methods import Recipe


class Other(NamedTuple):
    """Another run in the folder.

    Attributes:
        folder: Its folder's name.
        recipe: Its method.
        records: By sample id.
    """

    folder: str
    recipe: Recipe
    records: Records


def find_others(
    out: Path, own: Mapping[str, Records], samples: Collection[str], *, partial: bool = False
) -> tuple[list[Other], list[str]]:
    """Find the runs in a folder that can stand in one table with those at hand, the oldest first.

    They are of the same benchmark, data and model, and on the same samples, all of which they have a record of.

    Args:
        out: The folder.
        own: The records of the runs at hand, by the names of their folders in it.
        samples: The ids of the samples of these.
        partial: Whether others may lack samples.

    Returns:
        The runs, and a sentence for each of this benchmark that cannot.
    """
    reference = load_run(out / next(iter(own)))
    found, told = [], []
    for path in sorted(out.glob(f"*/{RUN_FILE}")):
        name = path.parent.name
        if name in own:
            continue
        try:
            record = load_run(path.parent)
            if record["request"].get("benchmark") != reference["request"]["benchmark"]:
                continue
            records = read_done(path.parent, identity_of(record).check)
            of_others = record.get("samples", len(samples)) != len(samples) or not records.keys() <= set(samples)
            reason = _unlike(record, reference) or ("it is a run on other samples" if of_others else "")
            reason = reason or _lacking(records, len(samples), partial=partial)
            check_same_images({**own, name: records})
            recipe = to_request(record).recipe
        except (EvalError, DecodingError) as error:
            reason = str(error)
        if reason:
            told.append(f"{path.parent} is not in the scores of {out}: {reason}")
        else:
            found.append((str(record.get("created")), Other(name, recipe, records)))
    return [other for _, other in sorted(found, key=lambda one: one[0])], told


def _unlike(record: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """In what a run is of other things, if it is."""
    for what in ("data", "model"):
        before, now = (one["resolved"].get(what) for one in (record, reference))
        if what == "model":
            before, now = (one and one.get("fingerprint") for one in (before, now))
        if before != now:
            return f"it is a run of other {what}" if what == "data" else "it is a run of another model"
    return ""


def _lacking(records: Records, planned: int, *, partial: bool) -> str:
    """What a run lacks to be shown, if so."""
    share = share_of(len(records), planned)
    if share is not None and not partial:
        return f"it has {share}, give its command again"
    return "" if answered(records) else "it has no answer"
