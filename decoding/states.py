"""What the layers of a language model put out for a prompt, read in one plain pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from damro.decoding.altering import layers_of, reading
from damro.decoding.hooks import hooked
from damro.decoding.prompts import Prompt


@torch.no_grad()
def last_states(decoder: Any, prompt: Prompt) -> Tensor:
    """What every layer puts out for the last column of each row.

    Args:
        decoder: the causal language model with its head; see :func:`damro.decoding.inside.check_decoder`.
        prompt: padded on the left.

    Returns:
        `(B, layers, D)`, float32, on the device of the mask; the last layer's without the norm behind it.

    Raises:
        UnsupportedModelError: if the layers do not stand in a list.
    """
    layers, found = layers_of(decoder), dict[int, Tensor]()

    def keep(number: int) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            found[number] = states[:, -1].float().to(prompt.attention_mask.device)

        return look

    with reading(decoder, prompt), hooked(after=[(layer, keep(number)) for number, layer in enumerate(layers)]):
        decoder(**prompt.first_inputs(), use_cache=False, logits_to_keep=1)
    return torch.stack([found[number] for number in range(len(layers))], dim=1)
