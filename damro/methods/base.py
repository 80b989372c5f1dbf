"""What a decoding method is: a frozen dataclass that makes two prompts and a rule of a model and its inputs.

The modules of methods import torch when they decode, not when they are imported, so that a command line can tell of
every method at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from damro.decoding.errors import ParameterError
from damro.methods.presets import Task, check_task
from damro.parameters import check_fields, parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from damro.decoding.families import Encoding
    from damro.decoding.prompts import Prompt
    from damro.decoding.rules import Contrast
    from damro.decoding.search import Search
    from damro.pruning import Pruning


class VisionRun(NamedTuple):
    """One run of the vision tower.

    Attributes:
        encoding: what came of it.
        recorded: by layer, what `damro.vision.attention` needs of those that were asked for.
        ranked: likewise, of those that pruning chooses by.
    """

    encoding: Encoding
    recorded: Mapping[int, Any]
    ranked: Mapping[int, Any]


@dataclass(frozen=True)
class Scene:
    """What a method is shown beside a model and its inputs.

    Attributes:
        shared_image: all prompts show one image, which is to be encoded once.
        pruning: which image columns of the full prompt to keep; None keeps all.
        processor: the model's own, for methods that write text.
        task: whose presets count; None takes the general ones.
        seed: of what is drawn at random by methods that are not told a seed of their own.
        images: names of the images, one a prompt or one for all; random choices then depend on them and on the seed
            alone, not on the batch. None without names.
        pictures: the images themselves, one a prompt or one for all, for methods that change them before the model's
            processor reads them.
    """

    shared_image: bool = False
    pruning: Pruning | None = None
    processor: Any = None
    task: Task | None = None
    seed: int = 0
    images: Sequence[str] | None = None
    pictures: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        """Checks the task's name."""
        check_task(self.task)

    def look(self, model: PreTrainedModel, inputs: Mapping[str, Any], layers: Sequence[int] = ()) -> VisionRun:
        """Checks the inputs and runs the vision tower once.

        Args:
            model: the LVLM.
            inputs: what its processor returned.
            layers: of the vision tower, whose attention is wanted.

        Raises:
            InputsError: no image, no image token, right padding before a causal model; different images that are
                said to be one.
        """
        from damro.decoding.branches.prefix import encode_images
        from damro.decoding.families import check_inputs, family_of
        from damro.pruning import record_for
        from damro.vision.attention import record_layers

        check_inputs(model, inputs)
        family = family_of(model)
        with (
            record_layers(family, model, inputs, layers) as recorded,
            record_for(self.pruning, model, inputs) as ranked,
        ):
            encoding = encode_images(model, inputs, shared=self.shared_image)
        return VisionRun(encoding, recorded, ranked)

    def full_prompt(self, model: PreTrainedModel, inputs: Mapping[str, Any], run: VisionRun) -> Prompt:
        """The prompt that the model itself would read, pruned if asked."""
        from damro.pruning import full_prompt

        return full_prompt(model, inputs, run.encoding, self.pruning, run.ranked)


class Cost(NamedTuple):
    """What a method takes beside plain decoding.

    Attributes:
        passes: of the language model more, for each token; a part of one where it can be put off or is a part of one.
        looks: runs of the vision tower more, for each image.
        memory: what is held beside the full prompt's keys and values.
    """

    passes: float = 0
    looks: float = 0
    memory: str = "nothing"


INSIDE = ("encoder-decoders", "language models that keep states", "drafts of several tokens", "a logits processor")
"""The limits of methods that change or read the inside of the language model, see `damro.decoding.inside`."""
_BY_NAME = "sliding windows, and attention that cannot be exchanged by name"
ATTENTION = (*INSIDE, _BY_NAME)
"""The limits of those among them that change its attention."""
READ_ATTENTION = ("encoder-decoders", "language models that keep states", _BY_NAME)
"""The limits of methods that look at the attention of the language model before it answers."""
SECOND = "keys and values of a second prompt"
"""The memory of a second prompt."""


@dataclass(frozen=True)
class Method:
    """Base of all methods. The fields of a subclass are its parameters; their docstring is their help.

    A subclass writes :meth:`contrast` and sets the class attributes.

    Attributes of the class:
        name: how it is called everywhere.
        source: paper, and equation or file of the released code.
        cost: what it takes beside plain decoding.
        limits: models and settings that it refuses, a clause each; they are checked, and told in one sentence.
        code: where its authors' code is, which it was compared with; None if there is none.
        searches: it decodes by a search of its own, which is not sampled and gives no scores of a single step.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[Cost] = Cost()
    limits: ClassVar[tuple[str, ...]] = ()
    code: ClassVar[str | None] = None
    searches: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Checks types and ranges.

        Raises:
            ParameterError: a parameter is out of its range.
        """
        check_fields(self, ParameterError)

    def settle(self, family: str, task: Task | None = None, seed: int = 0) -> Self:
        """The method with a value for everything that was left to the model and the run.

        Args:
            family: the model's `config.model_type`.
            task: whose presets count, where the method does not say.
            seed: of the run.

        Raises:
            UnsupportedModelError: a parameter comes from a preset, and the family has none.
        """
        draws = any(one.name == "seed" and one.default is None for one in parameters(type(self)))
        told: dict[str, Any] = {"seed": seed} if draws and getattr(self, "seed", None) is None else {}
        return replace(self, **told)

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast | Prompt | Search:
        """The two prompts and the rule that decode; a prompt alone decodes plainly; or a search, if it `searches`.

        Args:
            model: the LVLM.
            inputs: what its processor returned.
            scene: what else there is to know.

        Raises:
            InputsError: what the inputs lack.
            UnsupportedModelError: a model that the method does not work with.
        """
        raise NotImplementedError

    def prepare(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast | Prompt | Search:
        """:meth:`contrast` of the settled method, without gradients.

        Raises:
            ParameterError: a parameter that does not suit this model.
            InputsError: no image, no image token, right padding before a causal model.
            UnsupportedModelError: the family, or what the method says.
        """
        import torch

        from damro.decoding.families import family_of
        from damro.decoding.inside import check_model

        family: Any = family_of(model)  # before a preset is missed, a family that there is none of
        if scene.shared_image and hasattr(family, "each_its_image"):
            inputs = family.each_its_image(model, inputs)  # where images stand is asked of every prompt
        with torch.no_grad():
            contrast = self.settle(model.config.model_type, scene.task, scene.seed).contrast(model, inputs, scene)
        check_model(family.decoder(model), contrast)
        return contrast

    def to_record(self) -> dict[str, Any]:
        """The parameters that have a value, for ``run.json``."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def seed_of(seed: int, name: str, purpose: str) -> int:
    """A seed of 63 bits for one purpose in one sample or image: it depends on nothing else.

    Example:
        >>> seed_of(1, "a", "tokens") == seed_of(1, "a", "tokens") != seed_of(1, "a", "patches")
        True
    """
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
