"""A training loop that can be killed at any step and goes on where it was."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import trange

from damro.tiny.parallel import average_gradients, place


@dataclass(frozen=True)
class Schedule:
    """How one stage is trained.

    Attributes:
        steps: optimizer steps.
        batch: scenes a step.
        rate: peak learning rate; it rises linearly over `warmup` steps and falls as a cosine to a hundredth.
        warmup: steps.
        decay: weight decay of the matrices.
        save_every: steps between two saved states.
    """

    steps: int
    batch: int
    rate: float
    warmup: int = 100
    decay: float = 0.05
    save_every: int = 200

    def factor(self, step: int) -> float:
        """The share of the peak rate at a step.

        Example:
            >>> plan = Schedule(steps=100, batch=1, rate=1.0, warmup=10)
            >>> plan.factor(4), plan.factor(10), round(plan.factor(100), 4)
            (0.5, 1.0, 0.01)
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW over what is trainable; only matrices decay.

    Args:
        model: frozen parameters are left out.
        schedule: rate and decay.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": schedule.decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.98))


def run_stage(
    label: str,
    model: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
    schedule: Schedule,
    state_file: Path,
) -> None:
    """Trains a model in place, or finishes a training that was interrupted.

    Args:
        label: shown beside the progress bar.
        model: its trainable parameters are optimised.
        loss_of: step -> (loss, figures to show). Must depend on the step and the weights alone.
        schedule: how.
        state_file: where the state is saved; if it exists, training goes on from it.
    """
    optimizer = make_optimizer(model, schedule)
    first = _restore(state_file, model, optimizer)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    leads = place()[0] == 0
    bar = trange(
        first, schedule.steps, initial=first, total=schedule.steps, desc=label, mininterval=5.0, disable=not leads
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * schedule.factor(step)
        loss, figures = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(weights)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 10 == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()}, refresh=False)
        if leads and ((step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps):
            _save(state_file, model, optimizer, step + 1)
    model.zero_grad(set_to_none=True)


def _restore(state_file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads a saved state; the number of steps already done."""
    if not state_file.exists():
        return 0
    state = torch.load(state_file, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(state_file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes the state so that a kill in the middle leaves the old one."""
    partial = state_file.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
    os.replace(partial, state_file)
