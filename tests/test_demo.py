import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from damro import tiny
from damro.eval.demo.control import MODEL, WAYS, WITHOUT, run_control
from damro.eval.demo.demo import METHODS
from damro.eval.demo.premise import Premise, measure_premise, object_mask
from damro.eval.statistics import Interval
from damro.tiny.scenes import scene
from damro.vision.attention import CLSAttention

RUN_CLI = Path(__file__).with_name("run_cli.py")
POPE_KEYS = {*("tp", "fp", "tn", "fn", "unparsed", "n", "accuracy", "precision", "recall", "f1", "yes_ratio", "rule")}
CHAIR_KEYS = {*("chair_s", "chair_i", "chair_i_unique", "recall", "mean_length", "n_captions", "n_mentions", "matcher")}


def attention_on(scenes: int, *, objects: bool) -> CLSAttention:
    """[CLS] attention on an 8 x 8 grid that lies on objects, or on background."""
    weights = torch.empty(scenes, 64)
    for number in range(scenes):
        area = torch.nn.functional.adaptive_avg_pool2d(object_mask(number).float()[None, None], (8, 8)).flatten()
        weights[number] = area if objects else 1 - area
    numbers = torch.arange(scenes)
    return CLSAttention(weights, (8, 8), 0, "merged", numbers, torch.zeros_like(numbers))


def test_the_premise_is_judged_by_where_attention_lies() -> None:
    base = np.mean(
        [
            (torch.nn.functional.adaptive_avg_pool2d(object_mask(n).float()[None, None], (8, 8)) < 0.5).float().mean()
            for n in range(30)
        ]
    )
    on_objects = measure_premise(attention_on(30, objects=True), 2, 30)
    assert on_objects.holds is False
    assert on_objects.base.estimate == pytest.approx(float(base))
    assert on_objects.flagged.estimate < 0.5 < on_objects.base.estimate
    assert "does not hold for this model" in on_objects.sentence()
    on_background = measure_premise(attention_on(30, objects=False), 2, 30)
    assert on_background.holds is True
    assert on_background.flagged.estimate == 1
    assert "100.0 %" in on_background.sentence()
    assert on_background.difference.estimate == pytest.approx(1 - base)


def test_the_premise_is_not_decided_by_an_end_that_is_shown_as_zero() -> None:
    share = Interval(0.5, 0.4, 0.6, 0.95, 2000)
    open_, decided = (Premise(share, share, Interval(0.1, low, 0.2, 0.95, 2000), 5, 30) for low in (0.0004, 0.0006))
    assert (open_.holds, decided.holds) == (None, True)
    assert "is not decided for this model" in open_.sentence()


def test_object_mask_is_the_union_of_the_objects() -> None:
    picture = scene("test", 3)
    assert int(object_mask(3).sum()) == int(np.any([thing.mask for thing in picture.objects], axis=0).sum())


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What ``damro demo --scenes 20 --json`` prints, and its folder."""
    try:
        tiny.path()
    except ValueError as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, "PYTHONPATH": str(RUN_CLI.parents[1]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(RUN_CLI), "demo", "--scenes", "20", "--json", "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), out


@pytest.mark.slow
def test_the_demo_tells_everything(shown: tuple[dict[str, Any], Path]) -> None:
    metrics, out = shown
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert {"model", "scenes", "seconds", "methods"} <= set(metrics)
    assert (metrics["model"], metrics["scenes"]) == ("tiny", 20)
    assert list(metrics["methods"]) == list(METHODS)
    for name, found in metrics["methods"].items():
        assert set(found) == {"pope", "chair"}
        assert set(found["pope"]) == {"random", "popular", "adversarial"}
        for scores in [*found["pope"].values(), found["chair"]]:
            assert (POPE_KEYS if "rule" in scores else CHAIR_KEYS) <= set(scores)
            assert ("difference" in scores) == (name != "greedy")
            for metric, ends in scores["ci"].items():
                assert ends is None or ends[0] <= scores[metric] <= ends[1]
    assert {"flagged", "base", "difference", "holds", "top_k"} <= set(metrics["premise"])
    assert metrics["control"]["model"] == "tiny:flawed"
    assert list(metrics["control"]["methods"]) == list(WAYS)
    assert len(metrics["control"]["conclusions"]) == 2
    premise, verdict, cost, sampling = metrics["conclusions"]
    assert "of all patches" in premise
    assert "control" in verdict
    assert "recall" in cost
    assert "sample@0.5" in sampling


@pytest.mark.slow
def test_the_report_holds_its_pictures(shown: tuple[dict[str, Any], Path]) -> None:
    metrics, out = shown
    html = (out / "report.html").read_text()
    assert html.count('src="data:image/png;base64,') == 1  # attention
    assert html.count('"data:image/webp;base64,') == 20  # a scene each
    assert "://" not in html
    for name in (*METHODS, *WAYS):
        assert f" {name}</th>" in html
    assert "POPE, tiny:flawed" in html and "built to have the flaw" in html
    assert metrics["conclusions"][0].split("[CLS]")[1][:40] in html


@pytest.mark.slow
def test_where_the_flaw_is_built_in_damro_beats_its_controls() -> None:
    """On 100 scenes; docs/control.md has 300. Intervals are of paired differences, 95 %."""
    found = run_control(100, tell=lambda what, done, total: None)
    pope, chair = ({entry.name: entry.whole for entry in one.entries} for one in (found.pope, found.chair))
    assert found.chair.model == MODEL
    for control in ("greedy", "random-k", "least-k", "no-image"):
        fewer = chair["damro"].differences(chair[control])["chair_i"]
        assert fewer is not None and fewer.high < 0, control
    recall = chair["damro"].differences(chair["greedy"])["recall"]
    assert recall is not None and recall.high > 0
    for control in ("random-k", "least-k"):
        more = pope["damro"].differences(pope[control])["accuracy"]
        assert more is not None and more.low > 0, control
    without = chair[WITHOUT].differences(chair["greedy"])
    assert without["chair_i"] is not None and without["chair_i"].high < 0
    assert without["recall"] is not None and without["recall"].low > 0
