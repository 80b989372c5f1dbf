"""Stage 1: the ViT alone learns what is in a scene (from [CLS]) and what each foreground patch shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from damro.tiny.cache import CLASSES, NO_CLASS, SceneCache
from damro.tiny.dice import Bytes
from damro.tiny.loop import Schedule, run_stage
from damro.tiny.model import GRID
from damro.tiny.parallel import share_of


class VisionTask(nn.Module):
    """A ViT with two heads.

    Args:
        tower: a CLIP or InstructBLIP vision model.
        feature_layer: index into its hidden states; what the language model will see.
    """

    def __init__(self, tower: PreTrainedModel, feature_layer: int) -> None:
        """Adds the heads."""
        super().__init__()
        width = int(tower.config.hidden_size)
        self.tower = tower
        self.feature_layer = feature_layer
        self.scene_head = nn.Linear(width, len(CLASSES))
        nn.init.constant_(self.scene_head.bias, -3.0)  # about one class in twenty is there
        self.patch_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(CLASSES)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores of the scene (B, C) and of each patch (B, 64, C)."""
        output = self.tower(pixel_values=pixels, output_hidden_states=True)
        patches = output.hidden_states[self.feature_layer][:, 1:]  # (B, P, D)
        return self.scene_head(output.pooler_output), self.patch_head(patches)


def to_pixels(images: Bytes) -> Tensor:
    """Normalises as the processors do: to -1 .. 1.

    Args:
        images: uint8 (B, 96, 96, 3).

    Returns:
        float32 (B, 3, 96, 96).
    """
    return torch.tensor(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def rows_of(step: int, batch: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """This process's scenes of a step, in order, from the first again after the last.

    Args:
        step: number of the step.
        batch: scenes a step.
        count: how many scenes of the cache are used.
    """
    return (step * batch + np.array(share_of(batch))) % count


def take_batch(cache: SceneCache, step: int, batch: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """This process's scenes of a step: in order, mirrored in every second round through the cache.

    Args:
        cache: the scenes.
        step: number of the step.
        batch: scenes a step.
        count: how many scenes of the cache are used.

    Returns:
        Pixels (B, 3, 96, 96), patch labels (B, 64), and which classes are there (B, C) as 0 or 1.
    """
    turns = step * batch + np.array(share_of(batch))
    mirrored = (turns // count) % 2 == 1
    rows = rows_of(step, batch, count)
    images, patches = cache.images[rows], cache.patches[rows].reshape(-1, GRID, GRID)
    images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    patches = np.where(mirrored[:, None, None], patches[:, :, ::-1], patches)
    present = torch.zeros(len(rows), len(CLASSES))
    for row, groups in enumerate(cache.groups[rows]):
        present[row, [int(name) for name, amount, _ in groups if amount]] = 1.0
    return to_pixels(images), torch.from_numpy(patches.reshape(len(rows), -1).astype(np.int64)), present


def vision_loss(task: VisionTask, pixels: Tensor, labels: Tensor, present: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Binary cross-entropy of the scene's classes plus cross-entropy of its foreground patches.

    Args:
        task: the ViT and its heads.
        pixels: (B, 3, 96, 96).
        labels: (B, 64) class numbers, `NO_CLASS` on background, which is not scored.
        present: (B, C).

    Returns:
        The loss, and the figures "patch" (accuracy on foreground patches) and "loss".
    """
    scene_scores, patch_scores = task(pixels)
    cls_loss = functional.binary_cross_entropy_with_logits(scene_scores, present, reduction="none").sum(1).mean()
    seen = labels != NO_CLASS
    patch_loss = functional.cross_entropy(patch_scores[seen], labels[seen])
    loss = patch_loss + 0.25 * cls_loss
    accuracy = (patch_scores[seen].argmax(-1) == labels[seen]).float().mean()
    return loss, {"loss": float(loss.detach()), "cls": float(cls_loss.detach()), "patch": float(accuracy)}


def train_vision(
    tower: PreTrainedModel, feature_layer: int, cache: SceneCache, count: int, schedule: Schedule, folder: Path
) -> VisionTask:
    """Runs stage 1 in place.

    Args:
        tower: the vision model.
        feature_layer: index of the hidden state that the language model will see.
        cache: training scenes.
        count: how many of them.
        schedule: how.
        folder: where the state is saved.

    Returns:
        The tower with its heads.
    """
    task = VisionTask(tower, feature_layer).train()
    tower.set_attn_implementation("eager")  # at 65 tokens much faster on a CPU than the fused kernel

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        return vision_loss(task, *take_batch(cache, step, schedule.batch, count))

    run_stage("stage 1: ViT", task, loss_of, schedule, folder / "vision.pt")
    return task
