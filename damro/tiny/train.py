"""Trains the tiny models: ``python -m damro.tiny.train``. Killed and started again, it goes on where it was.

LLaVA comes first; the others begin from its weights:

    python -m damro.tiny.train --model llava --out runs/llava
    python -m damro.tiny.train --model llava_next --out runs/llava_next --start runs/llava
    python -m damro.tiny.train --model instructblip --out runs/instructblip --start runs/llava
    python -m damro.tiny.train --model flawed --out runs/flawed --start runs/llava
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from damro.tiny.cache import SceneCache, build_cache
from damro.tiny.flaw_stage import train_flaw
from damro.tiny.language_stage import train_language
from damro.tiny.loop import Schedule
from damro.tiny.model import build_model, build_processor
from damro.tiny.parallel import place, run_parallel
from damro.tiny.qformer_stage import convert_tower, train_qformer
from damro.tiny.registers import train_registers
from damro.tiny.tokenizer import list_words
from damro.tiny.vision_stage import to_pixels, train_vision


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights, beside the code and the scenes.

    Attributes:
        vision: stage 1. No steps: the ViT stays as it came.
        language: stage 2. No steps: what the start has learnt is enough.
        varied: stage 3, the language model goes on with prompts in other words and with few patches.
        flaw: stage 4 of the flawed model.
        scenes: training scenes; the ViT sees the first three quarters, the language model the last.
        seed: of the first weights.
    """

    vision: Schedule
    language: Schedule
    varied: Schedule
    flaw: Schedule | None = None
    scenes: int = 200_000
    seed: int = 0


_NONE = Schedule(steps=0, batch=128, rate=1e-3)

RECIPES: dict[str, Recipe] = {
    "llava": Recipe(
        vision=Schedule(steps=1100, batch=128, rate=1e-3, warmup=100),
        language=Schedule(steps=1000, batch=32, rate=1.5e-3, warmup=100, save_every=100),
        varied=Schedule(steps=300, batch=32, rate=6e-4, warmup=20, save_every=50),
    ),
    "llava_next": Recipe(
        vision=_NONE,
        language=Schedule(steps=150, batch=24, rate=6e-4, warmup=20, save_every=50),
        varied=Schedule(steps=100, batch=24, rate=4e-4, warmup=10, save_every=50),
    ),
    "instructblip": Recipe(
        vision=Schedule(steps=120, batch=128, rate=3e-4, warmup=20, save_every=40),
        language=Schedule(steps=500, batch=16, rate=1e-3, warmup=50, save_every=50),
        varied=Schedule(steps=400, batch=16, rate=8e-4, warmup=20, save_every=50),
    ),
    "flawed": Recipe(
        vision=Schedule(steps=250, batch=64, rate=7e-4, warmup=20, save_every=50),
        language=_NONE,
        varied=Schedule(steps=250, batch=32, rate=7e-4, warmup=20, save_every=50),
        flaw=Schedule(steps=350, batch=32, rate=6e-4, warmup=10, save_every=50),
    ),
}
"""The recipes of the shipped checkpoints."""


def train(
    family: str,
    out: Path,
    cache_folder: Path,
    recipe: Recipe,
    start: Path | None = None,
    vision: CLIPVisionConfig | None = None,
    text: LlamaConfig | None = None,
) -> PreTrainedModel:
    """Trains one model, or finishes a training that was interrupted.

    Args:
        family: "llava", "llava_next", "instructblip" or "flawed".
        out: folder of the checkpoint; the states of the stages lie in ``out/state`` until then.
        cache_folder: folder of the rendered scenes.
        recipe: how.
        start: checkpoint to begin from. A LLaVA for the other three, which then go through all their stages; one of
            the same family goes through stage 3 alone.
        vision: ViT of another size.
        text: language model of another size.

    Returns:
        The trained model in float32. The checkpoint in `out` is float16.

    Raises:
        ValueError: another model than LLaVA without `start`.
    """
    if family != "llava" and start is None:
        raise ValueError(f"start must name a LLaVA checkpoint for {family}, not None; train llava first")
    torch.manual_seed(recipe.seed)
    cache = build_cache(cache_folder, "train", recipe.scenes)
    base = "llava" if family == "flawed" else family
    model, processor = build_model(base, vision, text), build_processor(base)
    state = out / "state"
    state.mkdir(parents=True, exist_ok=True)
    if start is not None and _begin_from(model, start, cache) and family != "flawed":
        recipe = replace(recipe, vision=_NONE, language=_NONE)
    rows = range(recipe.scenes * 3 // 4, recipe.scenes)
    if family == "instructblip":
        _train_instructblip(model, processor, cache, rows, recipe, state)
    else:
        _train_llava(model, processor, cache, rows, recipe, state)
    if place()[0] == 0:
        export(model, processor, out)
    return model


def _train_llava(
    model: Any, processor: ProcessorMixin, cache: SceneCache, rows: range, recipe: Recipe, state: Path
) -> None:
    """The stages of LLaVA, of LLaVA-NeXT, and of the flawed model."""
    tower = model.model.vision_tower
    if recipe.flaw is not None:
        train_registers(tower, -2, cache, rows.start, recipe.vision, state / "vision.pt")
    elif recipe.vision.steps:
        train_vision(tower, -2, cache, rows.start, recipe.vision, state)
    if recipe.language.steps:
        train_language(model, processor, cache, rows, recipe.language, state / "language.pt")
    train_language(model, processor, cache, rows, recipe.varied, state / "varied.pt", varied=True)
    if recipe.flaw is not None:
        train_flaw(model, processor, cache, rows, recipe.flaw, state / "flaw.pt")


def _train_instructblip(
    model: Any, processor: ProcessorMixin, cache: SceneCache, rows: range, recipe: Recipe, state: Path
) -> None:
    """The stages of InstructBLIP."""
    if recipe.vision.steps:
        train_vision(model.vision_model, -1, cache, rows.start, recipe.vision, state)
    if recipe.language.steps:
        train_qformer(model, processor, cache, rows, recipe.language, state / "language.pt")
    train_qformer(model, processor, cache, rows, recipe.varied, state / "varied.pt", varied=True)


def _begin_from(model: Any, start: Path, cache: SceneCache) -> bool:
    """Copies what the two share from a trained model: all of the same family, else what a LLaVA has.

    Returns:
        Whether the two are of one family.
    """
    trained = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
    _add_words(trained, model)
    if trained.config.model_type == model.config.model_type:
        model.load_state_dict(trained.state_dict())
        return True
    if model.config.model_type == "instructblip":
        convert_tower(trained.model.vision_tower, model.vision_model, to_pixels(cache.images[:64]))
        model.language_model.load_state_dict(
            {
                **{f"model.{name}": value for name, value in trained.model.language_model.state_dict().items()},
                "lm_head.weight": trained.lm_head.weight,
            }
        )
        return False
    missing, unexpected = model.load_state_dict(trained.state_dict(), strict=False)
    if set(missing) - {"model.image_newline"} or unexpected:
        raise ValueError(f"start must hold a LLaVA of the same sizes, not {start}; train it with the same sizes")
    return False


def _add_words(trained: Any, model: Any) -> None:
    """Gives a checkpoint of the first vocabulary the words that came later, as the new model has them untrained."""
    words = len(list_words())
    trained.resize_token_embeddings(words)
    if trained.config.model_type == "instructblip":
        known = trained.qformer.embeddings.word_embeddings
        fresh = model.qformer.embeddings.word_embeddings
        with torch.no_grad():
            fresh.weight[: known.num_embeddings] = known.weight
        trained.qformer.embeddings.word_embeddings = fresh


def export(model: PreTrainedModel, processor: ProcessorMixin, out: Path) -> None:
    """Saves a checkpoint in float16 that any Auto class loads. The model itself stays as it is.

    Args:
        model: a trained model.
        processor: its processor.
        out: the folder.
    """
    family_model = type(model)(model.config)
    family_model.load_state_dict(model.state_dict())
    family_model.generation_config = model.generation_config
    family_model.half().save_pretrained(out)  # type: ignore[no-untyped-call]
    processor.save_pretrained(out)


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Args:
        arguments: in place of ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description="Train a tiny LVLM on rendered scenes, on a CPU.")
    parser.add_argument("--model", choices=tuple(RECIPES), default="llava", help="which (default: llava)")
    parser.add_argument("--out", type=Path, help="folder of the checkpoint (default: runs/MODEL)")
    parser.add_argument("--start", type=Path, help="LLaVA, or the same model before stage 3 (default: runs/llava)")
    parser.add_argument("--cache", type=Path, default=Path("runs/scenes"), help="folder of rendered scenes, 6 GB")
    parser.add_argument("--vision-steps", type=int, help="steps of stage 1, in place of the recipe's")
    parser.add_argument("--language-steps", type=int, help="steps of stage 2, in place of the recipe's")
    parser.add_argument("--varied-steps", type=int, help="steps of stage 3, in place of the recipe's")
    parser.add_argument("--scenes", type=int, help="training scenes, in place of the recipe's")
    parser.add_argument("--workers", type=int, default=2, help="processes that share a batch (default: 2)")
    chosen = parser.parse_args(arguments)
    recipe = RECIPES[chosen.model]
    if chosen.vision_steps is not None:
        recipe = replace(recipe, vision=replace(recipe.vision, steps=chosen.vision_steps))
    if chosen.language_steps is not None:
        recipe = replace(recipe, language=replace(recipe.language, steps=chosen.language_steps))
    if chosen.varied_steps is not None:
        recipe = replace(recipe, varied=replace(recipe.varied, steps=chosen.varied_steps))
    if chosen.scenes is not None:
        recipe = replace(recipe, scenes=chosen.scenes)
    start = chosen.start or (None if chosen.model == "llava" else Path("runs/llava"))
    out = chosen.out or Path("runs") / chosen.model
    build_cache(chosen.cache, "train", recipe.scenes, chosen.workers)  # once, before the processes part
    run_parallel(
        partial(train, chosen.model, out, chosen.cache, recipe, start), chosen.workers, out / "state" / "meeting"
    )


if __name__ == "__main__":
    main()
