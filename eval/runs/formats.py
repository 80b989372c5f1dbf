"""Older forms of ``run.json``, read as the present one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from damro.decoding.errors import ParameterError
from damro.eval.errors import DataFormatError
from damro.eval.resources import POPE_SPLITS
from damro.methods import METHODS, Recipe, parse
from damro.parameters import build, parameters, show

FORMAT = 3
"""3: the number of samples is told, and records carry digests; a model's folder is known by every byte of its weights.
2: a method's parameters stand in its text, and a benchmark's under ``data``. Format 1 had a key for each."""

ACCEPTS_OLD = "accepts_records_without_digest"
"""Key of a run that was begun by a version that wrote no digests, or whose records were adopted."""

_ALL_SPLITS = [split for split in POPE_SPLITS if split != "coco/random_2910"]
_OF_METHODS = (
    *("alpha", "beta", "top_k", "variant", "noise_step", "disturbance", "question_only", "forgetting", "confidence"),
)
_OF_DATA = {"splits": "split", "questions": "questions", "objects": "objects", "image_ids": "image_ids"}


def upgrade(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of a run as this version would have written it.

    Raises:
        DataFormatError: It lacks what that format has.
        ParameterError: It names a method that there is none of, or a value out of range.
    """
    if record.get("format") == FORMAT or "benchmark" not in record["request"]:  # a judge's record has none
        return dict(record)
    if record.get("format") == 2:  # a number of samples that is not told is not known
        return {**record, "format": FORMAT, ACCEPTS_OLD: True}
    try:
        return _from_1(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataFormatError(f"run.json must hold what format 1 has, lacks {error}; run the benchmark anew") from error


def _from_1(record: Mapping[str, Any]) -> dict[str, Any]:
    request, resolved = dict(record["request"]), dict(record["resolved"])
    asked = {name: request.pop(name) for name in _OF_METHODS if name in request}
    told = {
        name: value if isinstance(value, str) else show(value) for name, value in asked.items() if value is not None
    }
    recipe = parse(str(request.get("method", "greedy")), told)
    data = {new: request.pop(old) for old, new in _OF_DATA.items() if old in request}
    request["data"] = {name: value for name, value in data.items() if value}
    if request["data"].get("split") == _ALL_SPLITS:
        request["data"]["split"] = ["all"]
    request["method"] = recipe.text
    if "method" in resolved:
        resolved["method"] = _method(resolved, recipe, int(request.get("seed", 42)))
    return dict(
        json.loads(
            json.dumps({**record, "format": FORMAT, ACCEPTS_OLD: True, "request": request, "resolved": resolved})
        )
    )


def _method(resolved: Mapping[str, Any], recipe: Recipe, seed: int) -> dict[str, Any]:
    before = resolved["method"]
    owner = METHODS.find(before["contrast"] or "greedy")
    names = {one.name for one in parameters(owner)}
    values = {name: before[name] for name in names if before.get(name) is not None}
    method = build(owner, values, ParameterError, owner.name)
    family = str(resolved.get("model", {}).get("family"))
    kept = {"keep_tokens": before["keep_tokens"]} if "keep_tokens" in before else {}
    return {
        "name": before["name"],
        "method": owner.name,
        "temperature": before["temperature"],
        "top_p": before["top_p"],
        "parameters": method.settle(family, None, seed).to_record(),
        **kept,
    }
