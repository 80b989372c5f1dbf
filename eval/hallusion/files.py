"""Files of answers to HallusionBench: the official form, and what other tools write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from damro.eval.errors import DataFormatError
from damro.eval.formats.answers import LMMS, VLMEVAL, read_answers
from damro.eval.hallusion.benchmark import to_answer
from damro.eval.hallusion.questions import official_form
from damro.eval.hallusion.scoring import HallusionAnswer

_METRIC = "aAcc"  # under which lmms-eval's task logs its questions whole


def load_answers(path: Path | str) -> list[HallusionAnswer]:
    """Read answers: of the official script, of this program, of lmms-eval or of VLMEvalKit.

    Raises:
        DataFormatError: The file cannot be read, or is of another task; names the file, the line and what was wrong.
        EvalError: The package that reads such files is not installed.
    """
    forms = (LMMS._replace(convert=_from_lmms), VLMEVAL._replace(convert=_from_vlmeval))
    return [to_answer(fields, where) for where, fields in read_answers(path, forms)]


def _from_lmms(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A sample of the task hallusion_bench_image, whose metrics hold the question with the answer."""
    told = fields.get(_METRIC)
    if not isinstance(told, Mapping) or "model_prediction" not in told:
        raise DataFormatError(
            f"{where}: must be a sample of lmms-eval's task hallusion_bench_image, which has the question and "
            f"'model_prediction' under {_METRIC!r}, got keys {ascii(sorted(map(str, fields)))[:120]}"
        )
    return dict(told)


def _from_vlmeval(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A prediction of VLMEvalKit, which asks the questions that have a figure."""
    return official_form({**fields, "subcategory": fields.get("l2-category"), "model_prediction": fields["prediction"]})
