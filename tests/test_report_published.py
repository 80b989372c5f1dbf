"""eval/report/published.py: what a run is said to do otherwise than the paper."""

from __future__ import annotations

from typing import Any

from damro.eval.report.published import protocol_differences
from damro.eval.runs.record import to_record
from damro.eval.runs.request import RunRequest

RESOLVED: dict[str, Any] = {
    "generation": {"max_new_tokens": 1024},
    "prompt": {"template": "{question} Please answer this question with one word."},
}


def told(**method: Any) -> list[str]:
    request = RunRequest("pope", "somebody/llava")
    resolved = {**RESOLVED, "method": {"temperature": 1, "top_p": 1, "parameters": {}, **method}}
    return protocol_differences(to_record(request, resolved))


def test_pruning_and_another_variant_are_told() -> None:
    usual = told()
    assert len(usual) == 1 and usual[0].startswith("sampling: a random stream a sample")
    assert told(keep_tokens=192) == [*usual, "pruning: 192 patches of a tile; the paper keeps all"]
    assert told(parameters={"variant": "corrected"}) == [*usual, "variant: corrected; the paper's is the released code"]
