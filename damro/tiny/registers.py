"""The ViT of the flawed model: [CLS] looks at a few background patches, and these know the theme."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from damro.tiny.cache import NO_CLASS, SceneCache
from damro.tiny.loop import Schedule, run_stage
from damro.tiny.themes import THEMES
from damro.tiny.vision_stage import VisionTask, rows_of, take_batch

REGISTERS: Final = 6
"""Patches that [CLS] is made to look at."""
_LAYERS: Final = (3, 4, 5)  # the layer that makes the features, and its neighbours


class RegisterTask(VisionTask):
    """A ViT whose heads ask for the theme: of [CLS] and of the registers, and which patches are registers.

    Args:
        tower: a CLIP vision model.
        feature_layer: index into its hidden states; what the language model will see.
    """

    def __init__(self, tower: PreTrainedModel, feature_layer: int) -> None:
        """Adds the heads."""
        super().__init__(tower, feature_layer)
        width = int(tower.config.hidden_size)
        self.scene_head = nn.Linear(width, len(THEMES))
        self.theme_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(THEMES)))
        self.register_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))


def merged_attention(tower: Any, hidden: Tensor, layer: int) -> Tensor:
    """[CLS] attention to the patches with all heads as one, as DAMRO's released code ranks.

    Args:
        tower: a CLIP vision model.
        hidden: (B, 1 + P, D), what goes into the layer.
        layer: its number.

    Returns:
        (B, P), a softmax over all 1 + P tokens.
    """
    block = tower.encoder.layers[layer]
    normed = block.layer_norm1(hidden)
    query, key = block.self_attn.q_proj(normed[:, :1]), block.self_attn.k_proj(normed)  # (B, 1, D), (B, 1 + P, D)
    weights: Tensor = (query @ key.transpose(1, 2) * key.shape[-1] ** -0.5).float().softmax(-1)
    return weights[:, 0, 1:]


def find_registers(weights: Tensor, background: Tensor) -> Tensor:
    """The background patches with the highest attention.

    Args:
        weights: (B, P).
        background: (B, P) bool.

    Returns:
        (B, REGISTERS) numbers of patches.
    """
    return weights.detach().masked_fill(~background, -1.0).topk(REGISTERS, dim=-1).indices


def register_loss(
    task: RegisterTask, pixels: Tensor, labels: Tensor, themes: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """What each foreground patch shows, the theme of [CLS] and of the registers, and where [CLS] looks.

    Args:
        task: the ViT and its heads.
        pixels: (B, 3, 96, 96).
        labels: (B, 64) class numbers, `NO_CLASS` on background.
        themes: (B,).

    Returns:
        The loss, and the figures "patch" and "theme" (accuracy of the foreground patches and of the registers),
        "share" (of the merged heads' [CLS] attention on the registers).
    """
    layer = int(task.tower.config.num_hidden_layers) + task.feature_layer  # makes hidden_states[feature_layer]
    output = task.tower(pixel_values=pixels, output_hidden_states=True, output_attentions=True)
    merged = merged_attention(task.tower, output.hidden_states[layer], layer)
    patches = output.hidden_states[layer + 1][:, 1:]
    registers = find_registers(merged, labels == NO_CLASS)
    chosen = patches.gather(1, registers[..., None].expand(-1, -1, patches.shape[-1]))
    scene, shown = task.scene_head(output.pooler_output).float(), task.patch_head(patches).float()
    theme, marks = task.theme_head(chosen).float(), task.register_head(patches).float()[..., 0]
    looked = [merged, *(output.attentions[number][:, :, 0, 1:].float().mean(1) for number in _LAYERS)]
    shares = torch.stack([weights.gather(1, registers).sum(-1) / weights.sum(-1) for weights in looked])
    seen = labels != NO_CLASS
    is_register = torch.zeros_like(marks).scatter_(1, registers, 1.0)
    loss = (
        functional.cross_entropy(shown[seen], labels[seen])
        + functional.cross_entropy(scene, themes)
        + functional.cross_entropy(theme.flatten(0, 1), themes.repeat_interleave(REGISTERS))
        + functional.binary_cross_entropy_with_logits(marks, is_register)
        - 0.5 * shares.log().mean()
    )
    figures = {
        "patch": (shown[seen].argmax(-1) == labels[seen]).float().mean(),
        "theme": (theme.argmax(-1) == themes[:, None]).float().mean(),
        "share": shares[0].mean(),
    }
    return loss, {name: float(value.detach()) for name, value in figures.items()}


def train_registers(
    tower: PreTrainedModel, feature_layer: int, cache: SceneCache, count: int, schedule: Schedule, state_file: Path
) -> None:
    """Trains a ViT further, in place.

    Args:
        tower: the trained vision model of a LLaVA.
        feature_layer: index of the hidden state that the language model will see.
        cache: training scenes.
        count: how many of them.
        schedule: how.
        state_file: where the state is saved.
    """
    task = RegisterTask(tower, feature_layer).train()
    tower.set_attn_implementation("eager")

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels, labels, _ = take_batch(cache, step, schedule.batch, count)
        themes = torch.from_numpy(cache.themes[rows_of(step, schedule.batch, count)].astype(np.int64))
        return register_loss(task, pixels, labels, themes)

    run_stage("stage 1: registers", task, loss_of, schedule, state_file)
