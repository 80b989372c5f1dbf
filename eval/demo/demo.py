"""The whole job on the embedded model: captions and questions under DAMRO, its controls and sampling, told honestly."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from damro.eval.benchmark import Records
from damro.eval.demo.premise import Premise, attend_scenes, measure_premise
from damro.eval.records import write_whole
from damro.eval.report.comparison import Comparison, compare
from damro.eval.report.html import Example, Page, Picture, bars, pieces, render
from damro.eval.report.plots import to_data_uri
from damro.eval.report.verdict import judge_controls, judge_sampling
from damro.eval.runs.engine import Engine, make_engine
from damro.eval.runs.first_token import answer_in_one_token
from damro.eval.runs.loop import Answered, cut, to_fields
from damro.eval.runs.request import RunRequest
from damro.eval.samples import Dataset, Sample
from damro.loading import Loaded, load_model
from damro.tiny.scenes import scene

METHODS = ("greedy", "damro", "random-k", "least-k", "no-image", "sample", "sample@0.5", "damro@1")
"""Plain and DAMRO decoding, DAMRO's controls, and both under sampling, with plain sampling at half the temperature
beside them: a method that sharpens the distribution has to beat that too."""
BATCH_SIZE = 100
_SCORED: dict[str, dict[str, Any]] = {"pope": {}, "chair": {"matcher": "builtin"}}  # the same on every machine
MAX_NEW_TOKENS = {"pope": 1, "chair": 64}  # the question asks for one word
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, of how many)."""


class Demo(NamedTuple):
    """What the demo found.

    Attributes:
        metrics: What ``metrics.json`` holds.
        pope: The methods on POPE.
        chair: The methods on captions.
        premise: Where the flagged patches lie.
        sentences: Whether the premise holds, and whether DAMRO beats the controls.
    """

    metrics: dict[str, Any]
    pope: Comparison
    chair: Comparison
    premise: Premise
    sentences: tuple[str, ...]


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
    pope = _compare("pope", scenes, loaded, tell)
    chair = _compare("chair", scenes, loaded, tell)
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
        "methods": {name: _metrics_of(name, pope, chair) for name in METHODS},
    }
    demo = Demo(metrics, pope, chair, premise, sentences)
    pictures = [_attention_picture(attention, _top_k(loaded), _example_scene(chair)), bars(pope), bars(chair)]
    metrics["seconds"] = round(time.perf_counter() - began, 2)
    write_whole(Path(out) / "report.html", render(_page(demo, pictures)))
    write_whole(Path(out) / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return demo


def _compare(benchmark: str, scenes: int, loaded: Loaded, tell: Progress) -> Comparison:
    """Run every method over one benchmark."""
    request = RunRequest(benchmark, "tiny", scenes=scenes, max_new_tokens=MAX_NEW_TOKENS[benchmark])
    dataset = request.asked.load(request.data_request)
    open_image = functools.cache(dataset.open_image)  # every method looks at every scene
    engines = {name: make_engine(replace(request, method=name), loaded, open_image) for name in METHODS}
    answer = _answer_questions if MAX_NEW_TOKENS[benchmark] == 1 else _write_captions
    runs = answer(engines, dataset, tell)
    scoring = request.asked.scoring(**_SCORED[benchmark], truth=dataset.truth)
    return compare(request.asked, "tiny", runs, scoring)


def _answer_questions(engines: Mapping[str, Engine], dataset: Dataset, tell: Progress) -> dict[str, Records]:
    runs: dict[str, dict[str, Any]] = {name: {} for name in engines}
    images = list(cut(dataset.samples, 1))  # all questions about one image
    for number, samples in enumerate(images):
        tell("POPE, all methods", number, len(images))
        began = time.perf_counter()
        answers = answer_in_one_token(engines, samples)
        seconds = (time.perf_counter() - began) / len(samples) / len(engines)
        for name, found in answers.items():
            runs[name].update(_records(samples, found, seconds))
    return dict(runs)


def _write_captions(engines: Mapping[str, Engine], dataset: Dataset, tell: Progress) -> dict[str, Records]:
    runs: dict[str, Records] = {}
    for number, (name, engine) in enumerate(engines.items()):
        tell(f"captions, {name}", number, len(engines))
        records: dict[str, Any] = {}
        for batch in cut(dataset.samples, BATCH_SIZE):
            began = time.perf_counter()
            answers = engine.answer(batch)
            records.update(_records(batch, answers, (time.perf_counter() - began) / len(batch)))
        runs[name] = records
    return runs


def _records(samples: Sequence[Sample], answers: Sequence[Answered], seconds: float) -> dict[str, Any]:
    return {
        sample.sample_id: to_fields(sample, answered, round(seconds, 4))
        for sample, answered in zip(samples, answers, strict=True)
    }


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
    splits = {group.removeprefix("tiny/"): scores for group, scores in found.items() if group != "all splits"}
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
    return Page("damro demo", demo.sentences, facts, pictures[:1], [example], pictures[1:], [demo.pope, demo.chair])


def _scene_uri(number: int) -> str:
    import base64
    import io

    content = io.BytesIO()
    scene("test", number).image.save(content, format="png")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
