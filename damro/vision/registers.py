"""Test-time registers: outliers of a ViT are moved to a token that is added while it runs.

In large ViTs a few MLP neurons, the register neurons, write the outlier patches (Jiang et al., "Vision Transformers
Don't Need Trained Registers", NeurIPS 2025, arXiv 2506.08010). Where their activation is put into an added, untrained
token and taken from the patches, that token becomes the outlier, and the patches stay without.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from damro.decoding.hooks import replaced_input, replaced_output
from damro.errors import ParameterError, UnsupportedModelError
from damro.vision.query_keys import encoder_layers
from damro.vision.vit import BARE_VITS

Maximum = Literal["neuron", "layer"]
"""Whose largest activation a register neuron has at the register."""

PLACE = 1
"""Where the register stands: behind [CLS], like trained ones of DINOv2. Attention does not know of places."""

_TOWERS = (*BARE_VITS, "instructblip_vision_model", "instructblipvideo_vision_model", "blip_2_vision_model")
_OUT = ("fc2", "down_proj", "weights_out")  # the last is what older transformers call that of SwiGLU


@contextmanager
def added_register(tower: nn.Module, masks: Mapping[int, Tensor], maximum: Maximum = "neuron") -> Iterator[None]:
    """While open, a ViT runs in this thread with a register; what it puts out has no trace of that token.

    The register begins as zeros behind the embeddings. In each layer of `masks` the chosen neurons are set to their
    largest activation over all tokens, by magnitude and with its sign, at the register; to 0 at the patches; and are
    left alone at [CLS], as in the authors' code. The hooks are removed on exit, also when the body raises.

    Args:
        tower: a ViT with [CLS].
        masks: by layer, boolean `(neurons,)` or `(tiles, neurons)`, the register neurons.
        maximum: "neuron", of each neuron its own largest activation, as the paper says; "layer", of all of them the
            largest of any register neuron of that layer and image, as the authors' code computes it.

    Raises:
        UnsupportedModelError: a ViT that is not known to be built so.
        ParameterError: an unknown `maximum`.
    """
    check_tower(tower)
    if maximum not in get_args(Maximum):
        raise ParameterError(f"maximum must be one of {', '.join(get_args(Maximum))}, got {maximum!r}")
    layers = encoder_layers(tower)
    with ExitStack() as stack:
        embeddings: Any = tower.get_submodule("embeddings")
        stack.enter_context(replaced_output(embeddings, _with_register))
        for number, mask in masks.items():
            stack.enter_context(replaced_input(down_projection(layers[number]), _mover(mask, maximum)))
        stack.enter_context(replaced_output(tower, without_register))
        yield


def check_tower(tower: nn.Module) -> None:
    """Checks that a ViT can be given a register.

    Raises:
        UnsupportedModelError: if it is not known to be a plain ViT with [CLS].
    """
    kind = getattr(getattr(tower, "config", None), "model_type", None)
    if kind not in _TOWERS:
        raise UnsupportedModelError(
            f"vision tower must be a plain ViT with [CLS] ({', '.join(_TOWERS)}) to be given a register, got {kind!r}; "
            "use a method that leaves the vision tower alone"
        )


def down_projection(layer: nn.Module) -> nn.Linear:
    """The second projection of a layer's MLP, which reads the activations of its neurons."""
    modules = {name.rpartition(".")[2]: module for name, module in layer.named_modules()}
    found: Any = next(modules[name] for name in _OUT if name in modules)
    linear: nn.Linear = found
    return linear


def move_activations(states: Tensor, mask: Tensor, maximum: Maximum = "neuron") -> Tensor:
    """Moves the activation of register neurons from the patches to the register.

    Args:
        states: `(tiles, tokens, neurons)`; [CLS], the register, and the rest.
        mask: boolean `(neurons,)` or `(tiles, neurons)`.
        maximum: see :func:`added_register`.

    Returns:
        A new tensor.

    Example:
        >>> import torch
        >>> states = torch.tensor([[[1.0, 1.0], [0.0, 0.0], [-5.0, 2.0], [4.0, 3.0]]])
        >>> move_activations(states, torch.tensor([True, False])).tolist()
        [[[1.0, 1.0], [-5.0, 0.0], [0.0, 2.0], [0.0, 3.0]]]
    """
    chosen = mask.to(states.device).expand(len(states), -1)  # (tiles, neurons)
    largest = _signed_maximum(states, dim=1)  # (tiles, neurons)
    if maximum == "layer":
        largest = _signed_maximum(largest.masked_fill(~chosen, 0), dim=-1)[:, None].expand_as(largest)
    moved = torch.where(chosen[:, None], 0, states)
    moved[:, 0] = states[:, 0]
    moved[:, PLACE] = torch.where(chosen, largest, states[:, PLACE])
    return moved


def _signed_maximum(values: Tensor, dim: int) -> Tensor:
    """What is farthest from 0; of two equally far the negative one, as in the authors' code."""
    high, low = values.amax(dim=dim), values.amin(dim=dim)
    return torch.where(high.abs() > low.abs(), high, low)


def _mover(mask: Tensor, maximum: Maximum) -> Callable[[Tensor], Tensor]:
    return lambda states: move_activations(states, mask, maximum)


def _with_register(embedded: Tensor) -> Tensor:
    """`(tiles, tokens, C)` with a token of zeros more."""
    zeros = torch.zeros_like(embedded[:, :1])
    return torch.cat([embedded[:, :PLACE], zeros, embedded[:, PLACE:]], dim=1)


def without_register(output: Any) -> Any:
    """What a ViT puts out, with one token less in all states and maps that it returns."""
    bare = copy.copy(output)
    bare.last_hidden_state = _drop(output.last_hidden_state, 1)
    for name, dims in (("hidden_states", (1,)), ("attentions", (2, 3))):
        if output.get(name) is not None:
            bare[name] = tuple(one if one is None else _drop(one, *dims) for one in output[name])
    return bare


def _drop(states: Tensor, *dims: int) -> Tensor:
    for dim in dims:
        rest = torch.cat([torch.arange(PLACE), torch.arange(PLACE + 1, states.shape[dim])])
        states = states.index_select(dim, rest.to(states.device))
    return states
