"""Rotary positions that depend on the longest prompt of a pass, and what such models need to be read rightly.

"longrope" chooses one of two sets of frequencies by the last position of a pass; "dynamic" (NTK) computes them from it,
and keeps those of the longest pass so far. Two prompts in one pass, or several tokens fed at once, are then not read as
one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def ropes_of_longest(module: nn.Module) -> list[nn.Module]:
    """The rotary embeddings of a model that look at the longest position; none in most models.

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> scaled = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        >>> for more in ({}, {"rope_parameters": scaled}):
        ...     print(len(ropes_of_longest(LlamaModel(LlamaConfig(vocab_size=8, **small, **more)))))
        0
        1
    """
    return [part for part in module.modules() if any(_is_of_longest(kind) for _, kind in _kinds(part))]


def forget_longest(ropes: Iterable[nn.Module]) -> None:
    """Has the next pass compute its frequencies from its own length, as in a model that has read nothing yet."""
    for part in ropes:
        rope: Any = part
        for prefix, kind in _kinds(part):
            if "dynamic" in kind:
                device = getattr(rope, f"{prefix}inv_freq").device
                original = getattr(rope, f"{prefix}original_inv_freq")
                rope.register_buffer(f"{prefix}inv_freq", original.to(device, copy=True), persistent=False)
                setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)


def _kinds(part: nn.Module) -> list[tuple[str, str]]:
    """What a module's attributes begin with and which kind of rotary positions they are; some differ by layer."""
    kind: Any = getattr(part, "rope_type", None)
    if isinstance(kind, dict):
        return [(f"{layer}_", name) for layer, name in kind.items()]
    return [("", kind)] if isinstance(kind, str) else []


def _is_of_longest(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind
