"""Pruning: the prompt with fewer image columns, chosen by the [CLS] attention that also flags outliers."""

from damro.pruning.prompts import Pruning, full_prompt, prune, record_for

__all__ = ["Pruning", "full_prompt", "prune", "record_for"]
