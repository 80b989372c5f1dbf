"""What the runs of one command have in common of a batch: inputs, a look at the images, the full prompt, and its KV.

Methods differ in their second prompt and their rule. What is the same is made by the first that needs it and kept until
the batch is done, so that every answer is the one that its method gives alone, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from damro.decoding.branches.fused import Prefill
from damro.decoding.branches.prefix import read_prompt
from damro.decoding.families import family_of
from damro.decoding.prompts import Prompt
from damro.eval.samples import Sample
from damro.methods import Scene
from damro.methods.base import VisionRun

Made = TypeVar("Made")


class Kept:
    """What is kept of samples that are answered together.

    Args:
        layers: of the vision tower, whose attention any method has asked for so far.

    Attributes:
        looks: What `OneLook` keeps.
    """

    def __init__(self, layers: set[int] | None = None) -> None:
        """Keep nothing yet."""
        self.looks: dict[str, Any] = {"layers": set() if layers is None else layers}
        self._made: dict[Any, Any] = {}

    def once(self, name: Any, make: Callable[[], Made]) -> Made:
        """Return what was made under a name, or make it."""
        if name not in self._made:
            self._made[name] = make()
        made: Made = self._made[name]
        return made

    def holds(self, prompt: Prompt) -> bool:
        """Whether a prompt is the full one, which methods share."""
        return prompt is self.looks.get("full")

    def read(self, decoder: Any, prompt: Prompt, *, shared: bool) -> Prefill:
        """Read a prompt as `damro.decoding.branches.prefix.read_prompt` does; the full one is read once.

        Returns:
            Of the full prompt a copy, whose KV may grow.
        """
        found = self.look_up(decoder, prompt, shared=shared)
        return found.copied() if self.holds(prompt) else found

    def look_up(self, decoder: Any, prompt: Prompt, *, shared: bool) -> Prefill:
        """Do so for those who leave KV as it is: without a copy."""
        if not self.holds(prompt):
            return read_prompt(decoder, prompt, shared=shared)
        return self.once(("read", shared), lambda: read_prompt(decoder, prompt, shared=shared))


class KeptBatch:
    """What engines of one model keep of the batch at hand, for the next of them.

    They are of one request, but for their methods.

    Args:
        most: Of so many samples of it, those that came last; None keeps all.
    """

    def __init__(self, most: int | None = None) -> None:
        """Keep nothing yet."""
        self._most = most
        self._layers: set[int] = set()
        self._kept: dict[tuple[str, ...], Kept] = {}
        self._open = True

    def of(self, samples: Sequence[Sample]) -> Kept:
        """Return what is kept of samples that are answered together."""
        if not self._open:
            return Kept(self._layers)
        key = tuple(sample.sample_id for sample in samples)
        if key not in self._kept:
            self._kept[key] = Kept(self._layers)
            while self._most is not None and sum(map(len, self._kept)) > max(self._most, len(key)):
                del self._kept[next(iter(self._kept))]
        return self._kept[key]

    def begin(self) -> None:
        """Let go of the batch before."""
        self._kept, self._open = {}, True

    def give_way(self) -> bool:
        """Let go of everything until the next batch, as memory is short; return whether anything was kept."""
        held, self._kept, self._open = bool(self._kept), {}, False
        return held


@dataclass(frozen=True)
class OneLook(Scene):
    """A scene at which the vision tower looks once, whoever asks, and of which the full prompt is built once.

    Whoever wants to see or change that look calls ``Scene.look(scene, ...)``, which is not shared. Inputs with other
    pixels or tokens than those of the first look are looked at by themselves.

    Attributes:
        kept: ``run``, what the tower made of it, ``inputs``, of what, and ``full``, the full prompt, once a method has
            asked for them; ``layers``, those to record in any case.
    """

    kept: dict[str, Any] = field(default_factory=dict)

    def look(self, model: PreTrainedModel, inputs: Mapping[str, Any], layers: Sequence[int] = ()) -> VisionRun:
        """See :meth:`damro.methods.base.Scene.look`."""
        family = family_of(model)
        if not self._shows(inputs, (*family.PIXELS, "input_ids")):
            return super().look(model, inputs, layers)
        wanted: set[int] = self.kept.setdefault("layers", set())
        wanted |= set(layers)
        if layers:  # what another variant asks for comes of the same run
            wanted |= {family.feature_layer(model, reference=reference) for reference in (True, False)}
        if "run" not in self.kept or not wanted <= set(self.kept["run"].recorded):
            self.kept["run"] = super().look(model, inputs, sorted(wanted))
        run: VisionRun = self.kept["run"]
        return run

    def full_prompt(self, model: PreTrainedModel, inputs: Mapping[str, Any], run: VisionRun) -> Prompt:
        """See :meth:`damro.methods.base.Scene.full_prompt`."""
        if not self._shows(inputs, (*family_of(model).PIXELS, "input_ids")):
            return super().full_prompt(model, inputs, run)
        if "full" not in self.kept:
            self.kept["full"] = super().full_prompt(model, inputs, run)
        full: Prompt = self.kept["full"]
        return full

    def _shows(self, inputs: Mapping[str, Any], names: Sequence[str]) -> bool:
        """Whether inputs are those of the first look."""
        first = self.kept.setdefault("inputs", inputs)
        return all(_same(first.get(name), inputs.get(name)) for name in names)


def _same(one: Any, other: Any) -> bool:
    if one is other or not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return one is other
    return one.shape == other.shape and bool((one == other).all())
