"""One call that decodes by any method; one vision pass, one pass a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from PIL.Image import Image
from transformers import GenerationConfig, PreTrainedModel

from damro.decoding.errors import ParameterError
from damro.decoding.generate import Strategy, decode
from damro.decoding.settings import with_mask
from damro.methods import METHODS, Method, Recipe, Scene, as_recipe
from damro.parameters import parameters, show
from damro.pruning import Pruning


def generate(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    method: str | Method | None = "damro",
    *,
    keep_tokens: int | Pruning | None = None,
    strategy: Strategy = "auto",
    shared_prefix: bool = False,
    compile: bool = False,  # noqa: A002  # the word for it in torch and transformers
    processor: Any = None,
    pictures: Sequence[Image] | None = None,
    **generate_kwargs: Any,
) -> Any:
    """Generates with contrastive decoding at about the cost of ``model.generate``.

    ::

        inputs = processor(images=image, text=prompt, return_tensors="pt")
        ids = damro.generate(model, inputs, "damro:alpha=0.5", max_new_tokens=256)

    The vision tower runs once; "vcd" has it look at the noisy image too. The tokens are those of
    :class:`damro.DAMROProcessor`, or :func:`damro.contrast_processor`, with the same parameters.

    Args:
        model: of one of ``damro.decoding.families.FAMILIES``.
        inputs: the mapping its processor returned for images and text, padded on the left unless an encoder reads it.
        method: a text such as "damro", "damro:alpha=0.5,top_k=20" or "vcd:noise_step=700@1" (parameters behind the
            colon, behind the at sign a temperature to sample at), or an instance, such as
            ``damro.methods.VCD(noise_step=700)``. ``damro methods`` lists all, with their parameters. "greedy" or None
            for no contrast at all, whether tokens are sampled or not.
        keep_tokens: prunes the prompt that sees the image to this many patches of a tile, those with the most
            [CLS] attention; a :class:`damro.pruning.Pruning` chooses in other ways. The negative prompt stays what
            it is without. None keeps all.
        strategy: "fused", "lazy" or "auto", see :func:`damro.decoding.generate.decode`.
        shared_prefix: all prompts ask about one image (`pixel_values` holds it once, or once a prompt): it is
            encoded once and what the prompts begin with is read once. The answers are those of asking one by one.
        compile: runs the steps behind the prompts as a compiled graph: a token takes about half the time of one of
            ``model.generate`` on a CPU (docs/speed.md), behind minutes for the first call of a model, and with a second
            copy of its weights where memory has room. The same tokens, up to rounding.
        processor: the model's own processor, for methods that write text ("icd", "code") or read pictures ("ritual").
        pictures: the images themselves, one a prompt or one for all, for methods that change them ("ritual").
        **generate_kwargs: anything ``model.generate`` takes; `top_k` is sampling's.

    Returns:
        What ``model.generate`` returns.

    Raises:
        ParameterError: an unknown method, a parameter that it does not have or that is out of range, a parameter of a
            method among the keywords.
        UnsupportedModelError: the family, or one without a preset where "damro" or a control is not told alpha, beta
            or top_k; `keep_tokens` with image columns that are not patches (InstructBLIP); `compile` with a model whose
            step cannot be, or without a compiler.
        InputsError: no image, no image token, right padding before a causal model; different images with
            `shared_prefix`.
    """
    recipe = as_recipe(method)
    _refuse_parameters(recipe, generate_kwargs)
    pruning = keep_tokens if isinstance(keep_tokens, Pruning | None) else Pruning(keep_tokens)
    scene = Scene(shared_prefix, pruning, processor, pictures=pictures)
    call = sampling_options(recipe, generate_kwargs) | generate_kwargs
    inputs = with_mask(model, inputs, call)
    contrast = recipe.method.prepare(model, inputs, scene)
    return decode(model, inputs, contrast, strategy=strategy, shared_prefix=shared_prefix, compile=compile, **call)


def sampling_options(recipe: Recipe, generate_kwargs: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What has ``generate`` sample at the temperature of a recipe; nothing if it has none.

    Args:
        recipe: the method, with its temperature.
        generate_kwargs: what the caller says beside it.

    Raises:
        ParameterError: both say how to sample.
    """
    if not recipe.temperature:
        return {}
    for name in ("do_sample", "temperature"):
        if generate_kwargs.get(name) is not None:
            raise ParameterError(
                f"{name} must be left out where the method says it, got {generate_kwargs[name]!r} with "
                f"{recipe.text!r}; leave one of them out"
            )
    return {"do_sample": True, "temperature": recipe.temperature}


def _refuse_parameters(recipe: Recipe, generate_kwargs: Mapping[str, Any]) -> None:
    """Raises ParameterError for a parameter of a method among the keywords, which ``generate`` would not know."""
    stock = vars(GenerationConfig())  # type: ignore[no-untyped-call]
    owners = [type(recipe.method), *METHODS.values()]
    for name in generate_kwargs:
        having = [owner.name for owner in owners if any(one.name == name for one in parameters(owner))]
        if having and name not in stock:
            told = f"{having[0]}:{name}={show(generate_kwargs[name])}"
            raise ParameterError(
                f"{name} must be told with the method, as in method='{told}', got it as a keyword of generate"
            )
