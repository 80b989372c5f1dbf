"""What a tiny model reaches under greedy decoding: ``python -m benchmarks.tiny_models --out FILE``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from damro.eval import chair, pope
from damro.eval.pope import builder as pope_builder
from damro.tiny import checkpoints, load
from damro.tiny.captions import DETAIL_PROMPT, ENDINGS, ONE_WORD, QUESTION_FORMS, SHORT_PROMPT
from damro.tiny.scenes import SPLITS, scene

_BATCH = 64


def answer_prompts(
    model: Any, processor: Any, split: str, prompts: Sequence[tuple[int, str]], longest: int
) -> list[str]:
    """Greedy answers to prompts about scenes.

    Args:
        model: a tiny model.
        processor: its processor.
        split: where the scenes are from.
        prompts: (number of the scene, prompt without roles).
        longest: most new tokens.

    Returns:
        An answer to each prompt.
    """
    bare = model.config.model_type == "instructblip"
    answers: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        inputs = processor(
            images=[scene(split, index).image for index, _ in batch],
            text=[text if bare else f"USER: <image>\n{text} ASSISTANT:" for _, text in batch],
            return_tensors="pt",
            padding=True,
        )
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        answers += processor.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return answers


def measure_model(family: str, split: str, scenes: int, images: int) -> dict[str, Any]:
    """POPE and CHAIR of a shipped model.

    Args:
        family: one of `damro.tiny.checkpoints`.
        split: "train", "validation" or "test".
        scenes: how many scenes are captioned; POPE draws its images from those with three classes or more.
        images: images of each POPE split, with six questions each.

    Returns:
        ``{"model", "split", "scenes", "pope": {SPLIT: {...}}, "wordings": {...}, "chair": {"short": {...},
        "detailed": {...}}}``; "wordings" is POPE's random split with every question in another wording.
    """
    model, processor = load(family)
    shown = [sorted({thing.name for thing in scene(split, index).objects}) for index in range(scenes)]
    objects: dict[str | int, list[str]] = dict(enumerate(shown))
    captions = {}
    for name, prompt in (("short", SHORT_PROMPT), ("detailed", DETAIL_PROMPT)):
        texts = answer_prompts(model, processor, split, [(index, prompt) for index in range(scenes)], longest=64)
        told: dict[str | int, str] = dict(enumerate(texts))
        captions[name] = chair.score(told, objects, matcher="builtin").to_dict()
    asked = {
        name: pope_builder.build(dict(enumerate(shown)), name, images=images, image_name="{}")
        for name in pope_builder.SPLITS
    }

    def score(records: Sequence[pope_builder.PopeRecord], texts: Sequence[str]) -> dict[str, Any]:
        prompts = [(int(record["image"]), text) for record, text in zip(records, texts, strict=True)]
        answers = answer_prompts(model, processor, split, prompts, longest=3)
        pairs = zip(records, answers, strict=True)
        said = [{"question_id": record["question_id"], "answer": text} for record, text in pairs]
        return pope.score(records, said).to_dict()

    plain = {name: score(records, [one["text"] + ONE_WORD for one in records]) for name, records in asked.items()}
    wordings = score(asked["random"], [_reword(one["text"], place) for place, one in enumerate(asked["random"])])
    return {
        "model": family,
        "split": split,
        "scenes": scenes,
        "pope": plain,
        "wordings": wordings,
        "chair": captions,
    }


def _reword(text: str, place: int) -> str:
    """A POPE question in one of the wordings that the models know, and with one of the endings."""
    before, after = QUESTION_FORMS[0].split("{}")
    form = QUESTION_FORMS[place % len(QUESTION_FORMS)]
    return form.format(text.removeprefix(before).removesuffix(after)) + ENDINGS[place % len(ENDINGS)]


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Args:
        arguments: in place of ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description="Measure a tiny model on rendered scenes.")
    parser.add_argument("--model", choices=checkpoints(), default="llava", help="which (default: llava)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which scenes (default: test)")
    parser.add_argument("--scenes", type=int, default=300, help="scenes to caption (default: 300)")
    parser.add_argument("--images", type=int, default=200, help="images of each POPE split (default: 200)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the numbers")
    chosen = parser.parse_args(arguments)
    result = measure_model(chosen.model, chosen.split, chosen.scenes, chosen.images)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
