"""The output layer of a language model, applied to a few tokens only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from damro.decoding.hooks import hooked


class PartialHead:
    """Runs a decoder for the logits of all tokens, or of some of them with no work done for the others.

    In a small model a fifth of a pass is the output layer. For some tokens the decoder is run with no column left for
    its head, and only their rows of the head's weight are read. That is done only after the first run has shown that
    the logits are what a linear head makes of the last states and nothing else, so that scaled, capped, quantized or
    adapted heads are run whole.

    Args:
        decoder: the causal language model with its head; takes `logits_to_keep`, returns `.logits`.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder: Any = decoder
        self._plain: bool | None = None

    def logits(self, tokens: Tensor | None = None, **inputs: Any) -> Tensor:
        """Logits of the token behind the last column.

        Args:
            tokens: `(k,)`, those that are wanted; None for all.
            **inputs: of the decoder.

        Returns:
            `(R, V)`, or `(R, k)`.
        """
        if self._plain is None:
            logits, self._plain = self._compare(inputs)
        elif tokens is not None and self._plain:
            return self._some(tokens, inputs)
        else:
            logits = self._decoder(**inputs, logits_to_keep=1).logits[:, -1]
        return logits if tokens is None else logits[:, tokens.to(logits.device)]

    def _some(self, tokens: Tensor, inputs: dict[str, Any]) -> Tensor:
        # An index on the CPU suits states on any device.
        none = torch.empty(0, dtype=torch.long)
        with _states_of(self._decoder.get_decoder()) as states:
            self._decoder(**inputs, logits_to_keep=none)
        head = self._decoder.get_output_embeddings()
        wanted = tokens.to(head.weight.device)
        bias = None if head.bias is None else head.bias[wanted]
        return linear(states[0][:, -1].to(head.weight.device), head.weight[wanted], bias)

    def _compare(self, inputs: dict[str, Any]) -> tuple[Tensor, bool]:
        """All logits, and whether they are the plain output of a linear head."""
        body, head = _method(self._decoder, "get_decoder"), _method(self._decoder, "get_output_embeddings")
        # By type: subclasses of Linear hold their weights in other forms. Offloaded weights are on no device.
        if body is None or type(head) is not nn.Linear or head.weight.device.type == "meta":
            return self._decoder(**inputs, logits_to_keep=1).logits[:, -1], False
        with _states_of(body) as states:
            logits: Tensor = self._decoder(**inputs, logits_to_keep=1).logits
        if len(states) != 1:
            return logits[:, -1], False
        expected = linear(states[0][:, -1:].to(head.weight.device), head.weight, head.bias)
        return logits[:, -1], torch.equal(logits.to(expected.device), expected)


def _method(module: Any, name: str) -> Any:
    """What a method of the module returns; None without it."""
    return getattr(module, name)() if hasattr(module, name) else None


@contextmanager
def _states_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """While open, collects the first output of every run of a module in this thread."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    with hooked(after=[(module, note)]):
        yield seen
