"""Logits that come of what the full prompt's own pass goes through: no second prompt, no second pass."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from damro.decoding.altering import layers_of
from damro.decoding.errors import InputsError, UnsupportedModelError
from damro.decoding.hooks import hooked
from damro.decoding.prompts import Prompt

_ENTERING = -1
_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "embedding_norm")


class Readout(ABC):
    """What stands in the place of a negative prompt where the other logits are read inside of the full pass."""

    @property
    @abstractmethod
    def layers(self) -> Sequence[int]:
        """The layers of the language model whose output is wanted, counted from 0; -1 is what enters the first one."""

    @abstractmethod
    def logits(self, states: Sequence[Tensor], full: Tensor, head: LayerHead) -> Tensor:
        """The other logits of the next token.

        Args:
            states: for each of :attr:`layers`, what it put out for the last column, `(R, D)`.
            full: `(R, V)`, the model's own logits of the same step.
            head: makes logits of what a layer put out.

        Returns:
            `(R, V)`.
        """


class LayersReadout(Readout):
    """A readout that a function makes of some layers.

    Args:
        layers: see :attr:`Readout.layers`.
        read: see :meth:`Readout.logits`.
    """

    def __init__(self, layers: Sequence[int], read: Callable[[Sequence[Tensor], Tensor, LayerHead], Tensor]) -> None:
        self._layers = tuple(layers)
        self._read = read

    @property
    def layers(self) -> Sequence[int]:
        """See :attr:`Readout.layers`."""
        return self._layers

    def logits(self, states: Sequence[Tensor], full: Tensor, head: LayerHead) -> Tensor:
        """See :meth:`Readout.logits`."""
        return self._read(states, full, head)


class LayerHead:
    """The end of a language model, applied to what a layer before the last puts out: its norm and its output layer.

    Args:
        decoder: the causal language model with its head.
    """

    def __init__(self, decoder: Any) -> None:
        body = decoder.get_decoder()
        norm = next((getattr(body, name) for name in _NORMS if isinstance(getattr(body, name, None), nn.Module)), None)
        if norm is None:
            raise UnsupportedModelError(
                f"language model must end with a norm for its layers to be read, got none in {type(body).__name__}; "
                "use a method that leaves the inside alone"
            )
        self._norm: nn.Module = norm
        self._output: nn.Module = decoder.get_output_embeddings()
        config = decoder.config.get_text_config(decoder=True)
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)

    def __call__(self, states: Tensor, *, norm: bool = True) -> Tensor:
        """Logits `(..., V)`, float32, of states `(..., D)`; without `norm` the output layer reads them as they are."""
        weight: Any = self._output.weight
        ended = self.normed(states) if norm else states
        logits: Tensor = self._output(ended.to(weight.device)).float() * self._scale
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    def normed(self, states: Tensor) -> Tensor:
        """States `(..., D)` behind the model's last norm."""
        ended: Tensor = self._norm(states)
        return ended

    def check(self, last: Tensor, full: Tensor) -> None:
        """Checks the head on what the last layer put out, `(R, D)`, by the model's own logits, `(R, V)`.

        Raises:
            UnsupportedModelError: if they differ: the model then does more between its layers and its logits.
        """
        made = self(last)
        close = (made - full.to(made.device, torch.float32)).abs().amax() <= 1e-2 * full.abs().amax().clamp(min=1)
        if not bool(close):
            raise UnsupportedModelError(
                "language model must make its logits of its last layer by a norm and an output layer for other layers "
                "to be read, got one that does more; use a method that leaves the inside alone"
            )


class _Held(threading.local):
    """What a thread's last pass over the full prompt has put out: by layer `(R, D)`, and its logits `(R, V)`."""

    def __init__(self) -> None:
        self.states: dict[int, Tensor] = {}
        self.full: Tensor | None = None
        self.checked = False


class ReadoutBranch:
    """What :class:`damro.decoding.branches.negative.NegativeBranch` is, where nothing is run: reads the full pass.

    The pass itself must run inside of :meth:`looking`.

    Args:
        decoder: the causal language model with its head.
        readout: what is made of the pass.
        prompt: the full prompt.

    Attributes:
        passes: 0.
        may_wait: True, as a step at which nobody asks needs no reading afterwards.
    """

    may_wait = True
    passes = 0

    def __init__(self, decoder: Any, readout: Readout, prompt: Prompt) -> None:
        self._decoder, self._readout, self.prompt = decoder, readout, prompt
        self._layers = layers_of(decoder)
        self._head = LayerHead(decoder)
        self._held = _Held()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """While open, keeps what every pass of this thread puts out for its last column."""
        held, last = self._held, len(self._layers) - 1

        def keep(number: int) -> Any:
            def look(module: nn.Module, args: Any, output: Any) -> None:
                states = output if isinstance(output, Tensor) else output[0]
                held.states[number] = states[:, -1].detach()

            return look

        def keep_logits(module: nn.Module, args: Any, output: Any) -> None:
            held.full = output.logits[:, -1].detach()

        def keep_entering(module: nn.Module, args: Any, kwargs: Any) -> None:
            states: Tensor = args[0] if args else kwargs["hidden_states"]
            held.states[_ENTERING] = states[:, -1].detach()

        wanted = sorted({*self._readout.layers, last} - {_ENTERING})
        after = [(self._layers[number], keep(number)) for number in wanted]
        before = [(self._layers[0], keep_entering)] if _ENTERING in self._readout.layers else []
        with hooked(before=before, after=[*after, (self._decoder, keep_logits)]):
            try:
                yield
            finally:
                held.states, held.full = {}, None

    def logits(self, history: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The readout's logits of the pass that has just been made.

        Args:
            history: `(R, T)`, of which only the rows count.
            tokens: `(k,)`, whose logits are wanted; None for all.

        Returns:
            `(R, V)`, or `(R, k)`.

        Raises:
            InputsError: if there has been no pass over so many rows.
            UnsupportedModelError: see :meth:`LayerHead.check`.
        """
        held = self._held
        if held.full is None or len(held.full) != len(history):
            raise InputsError(
                f"input_ids must be the rows of the pass before, got {len(history)} and a pass of "
                f"{0 if held.full is None else len(held.full)}; decode with damro.generate"
            )
        if not held.checked:
            self._head.check(held.states[len(self._layers) - 1], held.full)
            held.checked = True
        states = [held.states[layer] for layer in self._readout.layers]
        logits = self._readout.logits(states, held.full, self._head).to(history.device)
        return logits if tokens is None else logits[:, tokens.to(logits.device)]

    def restart(self) -> None:
        """Nothing: no history is kept."""
