"""What is changed inside of a language model while it reads one prompt and what is generated behind it.

A prompt says how it is read (`altered`); whoever runs the language model over a prompt does so inside of
:func:`reading`. So a pass over one prompt leaves no trace in those over another, in other threads, or in the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from damro.decoding.attending import attending
from damro.decoding.errors import UnsupportedModelError
from damro.decoding.hooks import replaced_output
from damro.decoding.watching import check_plain

if TYPE_CHECKING:
    from damro.decoding.prompts import Prompt

_ATTENTION = "damro_altered"


class Columns(NamedTuple):
    """The columns of a prompt, which come first in every row's keys.

    Attributes:
        image: `(R, L)`, True for columns that come from an image.
        read: `(R, L)`, False for padding.
    """

    image: Tensor
    read: Tensor

    def of_rows(self, rows: int, device: torch.device) -> Columns:
        """The same for a batch of rows, which hold as many of each prompt, one behind the other."""
        copies = rows // len(self.image)
        return Columns(*(table.to(device).repeat_interleave(copies, dim=0) for table in self))


AttentionChange = Callable[[Tensor, int, Columns], Tensor]
"""From logits of attention `(R, heads, Q, K)`, float32, masked; the number of the layer; and the prompt's columns in
those rows to other logits. The first columns of K are the prompt's. Query q stands in column `K - Q + q`: a run may
feed the whole prompt, one token, or several."""

AttentionLook = Callable[[Tensor, Tensor, int, Columns], None]
"""Sees logits of attention as an :data:`AttentionChange` leaves them, the values `(R, heads, K, d)` that are attended
to, the number of the layer, and the prompt's columns in those rows."""

StateChange = Callable[[Tensor, Columns], Tensor]
"""From what a module puts out, `(R, T, D)`, and the prompt's columns in those rows to what takes its place."""


@dataclass(frozen=True, eq=False)
class Alteration:
    """How a prompt is read otherwise than the model would read it.

    Attributes:
        attention: changes the logits of attention in the language model's layers; None leaves them as they are.
        outputs: modules of the language model, and what changes their outputs.
        look: sees the attention of every layer; None if nobody does.
    """

    attention: AttentionChange | None = None
    outputs: tuple[tuple[nn.Module, StateChange], ...] = ()
    look: AttentionLook | None = None

    @property
    def of_attention(self) -> bool:
        """Whether attention must be worked out where it can be changed or seen."""
        return self.attention is not None or self.look is not None


class _Now(threading.local):
    """How this thread reads at the moment."""

    alteration: Alteration | None = None
    columns: Columns | None = None


_NOW = _Now()


@contextmanager
def reading(decoder: Any, prompt: Prompt) -> Iterator[None]:
    """While open, the passes of a language model in this thread are over a prompt, and altered as that says.

    It may be opened within another: what that alters is left aside in the meantime.

    Args:
        decoder: the language model with its head.
        prompt: what is read.
    """
    alteration = prompt.altered
    if alteration is None and _NOW.alteration is None:
        yield
        return
    before = _NOW.alteration, _NOW.columns
    with ExitStack() as stack:
        try:
            _NOW.alteration = alteration
            _NOW.columns = Columns(prompt.image_mask, prompt.attention_mask.bool())
            changes = alteration is not None and alteration.of_attention
            # With no config, whatever a pass further out has put in place of the model's own attention is out of it.
            stack.enter_context(attending(_ATTENTION, [decoder.get_decoder().config] if changes else []))
            for module, change in () if alteration is None else alteration.outputs:
                stack.enter_context(replaced_output(module, _Change(alteration, change)))
            yield
        finally:
            _NOW.alteration, _NOW.columns = before


class _Change:
    """Changes what a module puts out, while the pass is one of its alteration's own."""

    def __init__(self, alteration: Alteration | None, change: StateChange) -> None:
        self._alteration = alteration
        self._change = change

    def __call__(self, output: Any) -> Any:
        columns = _NOW.columns
        if _NOW.alteration is not self._alteration or columns is None:
            return output
        states: Tensor = output if isinstance(output, Tensor) else output[0]
        changed = self._change(states, columns.of_rows(len(states), states.device)).to(states.dtype)
        return changed if isinstance(output, Tensor) else (changed, *output[1:])


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention by the definition, with its logits changed."""
    check_plain(module, kwargs, "language model")
    heads = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(heads, dim=1) for states in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query.float() @ key.float().transpose(-1, -2) * scale
    if attention_mask is not None:
        logits = logits + attention_mask[..., : logits.shape[-1]]
    alteration, columns = _NOW.alteration, _NOW.columns
    if alteration is not None and columns is not None:
        of_rows = columns.of_rows(len(query), query.device)
        if alteration.attention is not None:
            logits = alteration.attention(logits, module.layer_idx, of_rows)
        if alteration.look is not None:
            alteration.look(logits, value, module.layer_idx, of_rows)
    weights = torch.softmax(logits, dim=-1).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, eager_mask)


def layers_of(decoder: Any) -> nn.ModuleList:
    """The layers of a language model.

    Raises:
        UnsupportedModelError: if they do not stand in a list `layers`.
    """
    layers = getattr(decoder.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(
            f"language model must have its layers in a list to be read or changed inside, got "
            f"{type(decoder.get_decoder()).__name__} without; use a method that leaves the inside alone"
        )
    return layers


_MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe")


def mlps_of(decoder: Any) -> list[nn.Module]:
    """The part of each layer that works on every column by itself.

    Raises:
        UnsupportedModelError: as :func:`layers_of`; or if a layer has no such module.
    """
    found = []
    for layer in layers_of(decoder):
        mlp = next((getattr(layer, name) for name in _MLPS if isinstance(getattr(layer, name, None), nn.Module)), None)
        if mlp is None:
            raise UnsupportedModelError(
                f"language model must have an MLP module in each layer for its output to be changed, got none in "
                f"{type(layer).__name__}; use a method that leaves the inside alone"
            )
        found.append(mlp)
    return found
