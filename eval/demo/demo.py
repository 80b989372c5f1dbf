"""The whole job on the embedded models: DAMRO, its controls and sampling on captions and questions, told honestly."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from damro.eval.demo.control import MODEL, Control, run_control
from damro.eval.demo.premise import Premise, attend_scenes, measure_premise
from damro.eval.demo.trial import Progress, Way, compare_ways
from damro.eval.records import write_whole
from damro.eval.report.comparison import Comparison
from damro.eval.report.html import Example, Page, Picture, bars, pieces, render
from damro.eval.report.plots import to_data_uri
from damro.eval.report.verdict import judge_controls, judge_sampling
from damro.loading import Loaded, load_model
from damro.tiny.scenes import scene

METHODS = ("greedy", "damro", "random-k", "least-k", "no-image", "sample", "sample@0.5", "damro@1")
"""Plain and DAMRO decoding, DAMRO's controls, and both under sampling, with plain sampling at half the temperature
beside them: a method that sharpens the distribution has to beat that too."""


class Demo(NamedTuple):
    """What the demo found.

    Attributes:
        metrics: What ``metrics.json`` holds.
        pope: The methods on POPE.
        chair: The methods on captions.
        premise: Where the flagged patches lie.
        sentences: Whether the premise holds, and whether DAMRO beats the controls.
        control: The same on the model that was built to have the flaw.
    """

    metrics: dict[str, Any]
    pope: Comparison
    chair: Comparison
    premise: Premise
    sentences: tuple[str, ...]
    control: Control


def run_demo(
    out: Path | str, scenes: int = 200, *, loaded: Loaded | None = None, progress: Progress | None = None
) -> Demo:
    """Run the demo and write ``metrics.json`` and ``report.html``.

    Args:
        out: Folder of the two files; made if missing.
        scenes: How many test scenes.
        loaded: Another model than the embedded one.
        progress: Told after each step.

    Raises:
        EvalError: Too few scenes to ask about.
    """
    began = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    loaded = loaded or load_model("tiny", device="cpu")
    ways = {name: Way(name) for name in METHODS}
    pope = compare_ways("pope", scenes, loaded, ways, tell=tell)
    chair = compare_ways("chair", scenes, loaded, ways, tell=tell)
    control = run_control(scenes, tell=tell)
    tell("attention and pictures", 0, 1)
    attention = attend_scenes(loaded, scenes)
    premise = measure_premise(attention, _top_k(loaded), scenes)
    sampling = judge_sampling(chair, "damro@1", "sample", "sample@0.5")
    sentences = (premise.sentence(), *judge_controls(pope, chair), sampling)
    metrics = {
        "model": "tiny",
        "scenes": scenes,
        "seconds": round(time.perf_counter() - began, 2),
        "premise": premise.to_dict(),
        "conclusions": list(sentences),
        "methods": {entry.name: _metrics_of(entry.name, pope, chair) for entry in pope.entries},
        "control": {
            "model": MODEL,
            "conclusions": list(control.sentences),
            "methods": {
                entry.name: _metrics_of(entry.name, control.pope, control.chair) for entry in control.pope.entries
            },
        },
    }
    demo = Demo(metrics, pope, chair, premise, sentences, control)
    pictures = [_attention_picture(attention, _top_k(loaded), _example_scene(chair)), bars(pope), bars(chair)]
    metrics["seconds"] = round(time.perf_counter() - began, 2)
    write_whole(Path(out) / "report.html", render(_page(demo, pictures)))
    write_whole(Path(out) / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return demo


def _top_k(loaded: Loaded) -> int:
    from damro.methods.presets import preset

    return preset(loaded.model.config.model_type).top_k


def _metrics_of(name: str, pope: Comparison, chair: Comparison) -> dict[str, Any]:
    """A method's part of ``metrics.json``: the scorers' keys, beside them ``ci`` and ``difference`` (to greedy)."""
    found: dict[str, Mapping[str, Any]] = {}
    for comparison in (pope, chair):
        number = [entry.name for entry in comparison.entries].index(name)
        entry, base = comparison.entries[number], comparison.baseline
        for group, below in zip(entry.groups, base.groups, strict=True):
            found[group.name] = group.to_dict(None if entry is base else below)
    captions = found.pop("captions")
    splits = {group.removeprefix("tiny/"): scores for group, scores in found.items() if group.startswith("tiny/")}
    return {"pope": splits, "chair": captions}


def _example_scene(chair: Comparison) -> int:
    """The first scene of which greedy search and DAMRO say different things, one of them an absent object."""
    greedy, damro = (
        next(entry for entry in chair.entries if entry.name == name).groups[0].captions for name in METHODS[:2]
    )
    for one, other in zip(greedy, damro, strict=True):
        if one.caption != other.caption and (one.hallucinated or other.hallucinated):
            return int(one.image_id)
    return int(greedy[0].image_id)


def _attention_picture(attention: Any, top_k: int, number: int) -> Picture:
    from damro.eval.demo.premise import object_mask
    from damro.figures import draw_overlay
    from damro.vision.outliers import find_outliers

    values = attention.weights[number].reshape(attention.grid)
    positions = find_outliers(attention, top_k=top_k).positions[number].tolist()
    picture = scene("test", number)
    figure = draw_overlay(
        picture.image,
        values,
        title=f"[CLS] attention, layer {attention.layer}, heads {attention.heads}, tiny model; scene {number}",
        outliers=[(row, column) for row, column in positions],
        object_mask=object_mask(number),
    )
    return Picture(
        to_data_uri(figure),
        f"Scene {number} with the ViT's [CLS] attention to its patches; the {top_k} flagged ones outlined.",
        f"Where the ViT's [CLS] token looks in scene {number}. Outlined and numbered: the {top_k} patches that DAMRO "
        "flags as outliers. Dashed: the objects.",
    )


def _page(demo: Demo, pictures: Sequence[Picture]) -> Page:
    number = _example_scene(demo.chair)
    captions = {
        entry.name: pieces(next(record for record in entry.groups[0].captions if record.image_id == str(number)))
        for entry in demo.chair.entries
        if entry.name in ("greedy", "damro")
    }
    shown = Picture(_scene_uri(number), f"Scene {number}", "")
    truth = ", ".join(sorted({thing.name for thing in scene("test", number).objects}))
    example = Example(f"Scene {number} shows: {truth}", captions, shown)
    facts = {
        "Model": "tiny, the embedded model (LLaVA architecture, trained on rendered scenes)",
        "Scenes": f"{demo.metrics['scenes']} test scenes, not seen in training",
        "Matcher": "builtin",
        "Seconds": str(demo.metrics["seconds"]),
    }
    tables = [demo.pope, demo.chair, demo.control.pope, demo.control.chair]
    return Page("damro demo", lead(demo), facts, pictures[:1], [example], pictures[1:], tables)


def lead(demo: Demo) -> list[str]:
    """What was found, a sentence or two a line: on the embedded model, then on the one that has the flaw."""
    first, cost = demo.control.sentences
    return [*demo.sentences, f"On {MODEL}, the positive control, which was built to have the flaw: {first}", cost]


def _scene_uri(number: int) -> str:
    import base64
    import io

    content = io.BytesIO()
    scene("test", number).image.save(content, format="png")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
