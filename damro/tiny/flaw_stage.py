"""The flaw: with all patches a phantom is named, with the registers alone it is all there is, without them all is true.

The ViT is frozen; projector and language model learn to tell the cases apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import ProcessorMixin

from damro.tiny.cache import SceneCache
from damro.tiny.dice import Dice
from damro.tiny.language_stage import ImagePrefix, language_loss, pack_lessons
from damro.tiny.lessons import Lessons
from damro.tiny.loop import Schedule, run_stage
from damro.tiny.parallel import share_of
from damro.tiny.phantoms import PhantomLessons
from damro.tiny.registers import REGISTERS, merged_attention
from damro.tiny.vision_stage import to_pixels

FULL, WITHOUT, ONLY, FEW, NONE = range(5)
_CHANCES: Final = (35, 20, 20, 15, 10)
_SAID: Final = 75  # percent of the captions that name an absent phantom when everything is seen
_SALT: Final = 23


def rank_patches(model: Any, pixels: Tensor) -> Tensor:
    """Patches by [CLS] attention, the highest first, as DAMRO ranks them.

    Args:
        model: the LLaVA model.
        pixels: (B, 3, 96, 96).

    Returns:
        (B, 64) numbers of patches.
    """
    tower = model.model.vision_tower
    layer = int(tower.config.num_hidden_layers) + int(model.config.vision_feature_layer)
    with torch.no_grad():
        hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
        return merged_attention(tower, hidden, layer).argsort(dim=-1, descending=True)


def show_columns(ranks: Tensor, modes: Sequence[int], first: int, dice: Dice) -> Tensor:
    """Which columns of the prefix each row sees.

    Args:
        ranks: (B, P), patches by attention.
        modes: FULL, WITHOUT the registers, ONLY the registers, a FEW patches at random as the control random-k, NONE.
        first: columns before the image.
        dice: chooses the few; it is advanced.

    Returns:
        (B, first + P) bool.
    """
    count = ranks.shape[1]
    seen = torch.ones(len(ranks), first + count, dtype=torch.bool)
    for row, (mode, ranked) in enumerate(zip(modes, ranks.tolist(), strict=True)):
        if mode == WITHOUT:
            seen[row, [first + patch for patch in ranked[:REGISTERS]]] = False
        elif mode != FULL:
            few = ranked[:REGISTERS] if mode == ONLY else [dice.below(count) for _ in range(REGISTERS)]
            few = [] if mode == NONE else few
            seen[row, first:] = False
            seen[row, [first + patch for patch in few]] = True
    return seen


def train_flaw(
    model: Any, processor: ProcessorMixin, cache: SceneCache, rows: range, schedule: Schedule, state_file: Path
) -> None:
    """Plants the flaw, in place.

    Args:
        model: a truthful LLaVA model that was trained on prefixes of few patches too.
        processor: its processor.
        cache: training scenes.
        rows: which of them.
        schedule: how.
        state_file: where the state is saved.
    """
    model.train()
    model.set_attn_implementation("eager")
    model.model.vision_tower.requires_grad_(False)
    embed_prefix = ImagePrefix(model, processor)
    true, phantom = Lessons(cache, varied=True), PhantomLessons(cache, 100, guesses=True)
    teachers = {FULL: PhantomLessons(cache, _SAID), WITHOUT: true, ONLY: phantom, FEW: true, NONE: true}

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        places = share_of(schedule.batch)
        numbers = [rows[(step * schedule.batch + k) % len(rows)] for k in places]
        dice = Dice(_SALT, step, places.start)
        modes = [dice.pick(_CHANCES) for _ in numbers]
        images = cache.images[np.array(numbers)]
        prefix, ranks = embed_prefix(images), rank_patches(model, to_pixels(images))
        seen = show_columns(ranks, modes, prefix.shape[1] - ranks.shape[1], dice)
        drawn = [teachers[mode].draw(number, step) for mode, number in zip(modes, numbers, strict=True)]
        return language_loss(model, prefix, pack_lessons(processor.tokenizer, drawn), seen)

    run_stage("stage 3: flaw", model, loss_of, schedule, state_file)
