"""What a processor was made from, so that it can tell when a model has been given something else since."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from damro.decoding.errors import InputsError
from damro.decoding.families import check_inputs, family_of
from damro.decoding.families.base import is_encoder_decoder
from damro.decoding.hooks import hook_for_life, hooked
from damro.decoding.prompts import Prompt, VisualPrompt

_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
"""What an adapter layer of PEFT does at the moment: its class has the first of them."""

_ROUNDED = 2.0**-6
"""Two roundings of one number to eight bits (bfloat16) are closer than this share of it."""

Fingerprint = tuple[Any, ...]


def fingerprint(model: nn.Module) -> Fingerprint:
    """What changes when a model's parameters do: it compares equal as long as none was written, replaced or moved.

    It costs a few attribute reads a parameter and reads no weights. Writes that torch is kept from counting are not
    seen: those to `parameter.data`, and to parameters made in inference mode.

    Args:
        model: any module; of PEFT's adapter layers, which adapters are active, merged and how strong they are.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = fingerprint(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight.add_(1)
        >>> fingerprint(layer) == before
        False
    """
    weights = tuple(_identity(parameter) for parameter in model.parameters())
    adapters = tuple(
        tuple(repr(getattr(module, name, None)) for name in _ADAPTER_STATE)
        for module in model.modules()
        if hasattr(type(module), _ADAPTER_STATE[0])
    )
    return weights, adapters


def _identity(parameter: Tensor) -> tuple[int, int, int]:
    """The object, where its numbers are, and how often they were written."""
    if parameter.is_meta:
        return 0, 0, 0  # offloaded: its place is taken by another object after every run
    # Tensors of other classes (quantized ones, sharded ones) may have no memory of their own to point to.
    place = parameter.data_ptr() if type(parameter) is nn.Parameter else 0
    return id(parameter), place, 0 if parameter.is_inference() else parameter._version


class _Read(threading.local):
    """What a thread's runs have been given since the last look: by its name, whether it is what was expected."""

    def __init__(self) -> None:
        self.same: dict[str, Tensor] = {}
        self.asked = False


class Origin:
    """A model's parameters and what its modules read when a processor was made; for :class:`RuleProcessor`.

    As long as it lives, hooks in front of the vision tower (and of a text encoder) compare what these are given with
    what they were given then. The hooks are gone with the object. Each thread's runs are its own.

    Args:
        model: the LVLM.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._parameters = fingerprint(model)
        self._read = _Read()

    def expect_pixels(self, tower: nn.Module, runs: list[Tensor]) -> None:
        """Expects a vision tower to be given what it was given in one of these runs, `(tiles, ...)` each."""

        def look(origin: Origin, args: tuple[Any, ...], kwargs: Any) -> None:
            given = _pixels_of(args, kwargs)
            if given is not None:
                origin._read.same["pixels"] = torch.stack([_same_rows(given, run) for run in runs]).any()

        hook_for_life(self, tower, look)

    def expect_text(self, prompt: Prompt) -> None:
        """Expects the encoder of an encoder-decoder to be given the text of a prompt; other models have none.

        What ``generate`` shows to processors is there the answer alone.
        """
        decoder: Any = family_of(self._model).decoder(self._model)
        if not is_encoder_decoder(decoder) or not isinstance(prompt, VisualPrompt):
            return
        embeds = prompt.inputs_embeds
        # Image columns are computed, and may be rounded otherwise next time; text is looked up.
        other = (prompt.image_mask | ~prompt.attention_mask.bool().to(prompt.image_mask.device)).unsqueeze(-1)
        expected = embeds.masked_fill(other.to(embeds.device), 0)

        def look(origin: Origin, args: tuple[Any, ...], kwargs: Any) -> None:
            given = kwargs.get("inputs_embeds")
            if given is not None:
                copies = max(1, len(given) // len(expected))
                left_out = other.to(given.device).repeat_interleave(copies, dim=0)
                fits = given.shape[:2] == left_out.shape[:2]
                text = given.masked_fill(left_out, 0) if fits else given
                origin._read.same["text"] = _same_rows(text, expected)

        hook_for_life(self, decoder.get_encoder(), look)

    def check(self, step: int) -> None:
        """Checks what a generation has been given, once it has begun; at its other steps nothing is done.

        Args:
            step: tokens generated so far.

        Raises:
            InputsError: if the model's parameters or what its modules were given in this thread are not those that
                the processor was made with.
        """
        read = self._read
        if step and read.asked and not read.same:
            return
        same, read.same, read.asked = read.same, {}, True
        others = " and ".join(name for name, fits in same.items() if not bool(fits))
        if others:
            raise InputsError(
                f"inputs must be those this processor was made for, got other {others}; make one processor for each "
                "call's inputs"
            )
        if fingerprint(self._model) != self._parameters:
            raise InputsError(
                "model must have the parameters this processor was made with, got others: weights were written, "
                "replaced or moved, or another adapter is active; make the processor after the change"
            )

    def forget(self) -> None:
        """Leaves out of account what the modules have been given in this thread until now."""
        self._read.same = {}


@contextmanager
def record_origin(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Iterator[Origin]:
    """While open, notes what the vision tower is given in this thread; afterwards that is what is expected of it.

    Args:
        model: the LVLM.
        inputs: what its processor returned.

    Yields:
        The origin of what is made in the meantime.

    Raises:
        InputsError, UnsupportedModelError: as :func:`damro.decoding.families.check_inputs`.
    """
    check_inputs(model, inputs)
    tower = family_of(model).vision_tower(model, inputs)
    runs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        pixels = _pixels_of(args, kwargs)
        if pixels is not None:
            runs.append(pixels.detach().clone())  # the caller may write another image to the same place

    origin = Origin(model)
    with hooked(before=[(tower, keep)]):
        yield origin
    if runs:
        origin.expect_pixels(tower, runs)


def _pixels_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a vision tower is given to look at."""
    pixels = kwargs.get("pixel_values", args[0] if args else None)
    return pixels if isinstance(pixels, Tensor) else None


def _same_rows(given: Tensor, expected: Tensor) -> Tensor:
    """Whether rows are those expected; a tensor of one boolean, so that nobody has to wait for a device.

    Rows may be repeated, the same number of times each, as ``generate`` does for beams and returned sequences where
    images are encoded behind it; which row is repeated where is then not looked at.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0]])
        >>> [bool(_same_rows(given, rows)) for given in (rows, rows.repeat_interleave(2, 0), rows.flip(0), rows + 1)]
        [True, True, False, False]
    """
    if given.shape[1:] != expected.shape[1:] or len(given) % len(expected):
        return torch.tensor(False, device=given.device)
    expected = expected.to(given.device)
    if len(given) == len(expected):
        return _equal(given, expected).all()
    return torch.stack([_equal(given, row).flatten(1).all(dim=1) for row in expected]).any(dim=0).all()


def _equal(given: Tensor, expected: Tensor) -> Tensor:
    """Element by element, NaN like NaN; up to rounding where the precision is not the same."""
    tolerance = 0.0 if given.dtype == expected.dtype else _ROUNDED
    return torch.isclose(given.float(), expected.float(), rtol=tolerance, atol=tolerance, equal_nan=True)
