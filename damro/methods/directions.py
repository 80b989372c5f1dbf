"""Directions in which states are steered: computed from images and captions, stored with how they came about.

demonstrations = [Demonstration(image, "Describe this image in detail.", "A cat ...", "A cat and a dog ..."), ...]
save_directions(compute_directions(model, processor, demonstrations), "llava.safetensors")
damro.generate(model, inputs, "vti:directions=llava.safetensors")
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from damro.decoding.altering import reading
from damro.decoding.errors import InputsError, ParameterError, UnsupportedModelError
from damro.decoding.families import family_of, unwrap
from damro.decoding.families.base import attention_mask_of
from damro.decoding.inside import check_decoder
from damro.inputs import prepare_inputs
from damro.methods.base import Scene

_FORMAT = "damro directions 1"
_SEEN = 8
_AT_ONCE = 10


class Demonstration(NamedTuple):
    """An image with two answers to a question about it.

    Attributes:
        image: as PIL has it.
        question: such as "Describe this image in detail."
        truthful: an answer that names what is there.
        hallucinated: the same with something that is not.
    """

    image: Any
    question: str
    truthful: str
    hallucinated: str


class Directions(NamedTuple):
    """Where to the states of a model are steered.

    Attributes:
        text: `(layers, D)`, of the language model.
        vision: `(layers, tokens, C)`, of the vision tower; None where it was not asked for.
        model: :func:`model_digest` of the model.
        recipe: how they were computed.
    """

    text: Tensor
    vision: Tensor | None
    model: str
    recipe: Mapping[str, Any]


@torch.no_grad()
def compute_directions(
    model: Any,
    processor: Any,
    demonstrations: Sequence[Demonstration],
    *,
    vision: bool = True,
    mask_ratio: float = 0.99,
    trials: int = 50,
    seed: int = 0,
) -> Directions:
    """VTI's directions (arXiv 2410.15778; `vti_utils/utils.py` of github.com/shengliu66/VTI).

    The textual one is the first principal component of what the states behind a truthful answer differ by from those
    behind a hallucinated one, in all layers together, plus their mean. The visual one is that of what the ViT's states
    of an image most of whose patches are masked, averaged over masks, differ by from those of the whole image: as in
    the released code, where the numbers of all layers, tokens and features, in this order, are cut into as many blocks
    as there are tokens, each with a component of its own. Answers are tokenized by themselves; the released code
    tokenizes prompt and answer as one text, and lets InstructBLIP's Q-Former read the answer, too.

    Args:
        model: an LVLM.
        processor: its own.
        demonstrations: two or more; the authors take 50 to 70.
        vision: whether to compute the visual direction.
        mask_ratio: of the patches, how many are masked by the image's mean, in (0, 1).
        trials: masks an image.
        seed: of the masks.

    Raises:
        ParameterError: fewer than two demonstrations, or a number out of range.
        UnsupportedModelError: an encoder-decoder or a language model that keeps states; for `vision`, a ViT without a
            fixed number of tokens.
    """
    _check(demonstrations, mask_ratio, trials)
    model = unwrap(model)
    check_decoder(family_of(model).decoder(model))
    differences, visual = [], []
    generator = torch.Generator().manual_seed(seed)
    for one in demonstrations:
        inputs = prepare_inputs(processor, [one.image], [one.question], model)
        truthful, hallucinated = (
            _states_behind(model, _continued(model, processor, inputs, answer))
            for answer in (one.truthful, one.hallucinated)
        )
        differences.append(truthful - hallucinated)
        if vision:
            visual.append(_masked_less_whole(model, inputs, mask_ratio, trials, generator))
    shape = differences[0].shape
    text = _mean_and_component(torch.stack(differences).view(1, len(differences), -1)).view(shape)[1:]
    recipe = {
        "method": "vti",
        "demonstrations": len(demonstrations),
        "digest": _digest_of(demonstrations),
        **({"mask_ratio": mask_ratio, "trials": trials, "seed": seed} if vision else {}),
    }
    return Directions(text, _joined(visual) if vision else None, model_digest(model), recipe)


def save_directions(directions: Directions, path: str | Path) -> None:
    """Writes directions and their recipe into a safetensors file."""
    from safetensors.torch import save_file

    tensors = {"text": directions.text, "vision": directions.vision}
    told = {"format": _FORMAT, "model": directions.model, "recipe": json.dumps(dict(directions.recipe))}
    save_file({name: one.contiguous() for name, one in tensors.items() if one is not None}, path, told)


def load_directions(path: str | Path) -> Directions:
    """Reads what :func:`save_directions` wrote.

    Raises:
        ParameterError: if there is no such file, or it is none of these.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ParameterError(
            f"directions must be a file that save_directions of damro.methods.directions wrote, got {str(path)!r} "
            f"({error}); compute them with compute_directions"
        ) from error
    if told.get("format") != _FORMAT or "text" not in tensors:
        raise ParameterError(
            f"directions must be a file that save_directions of damro.methods.directions wrote, got {str(path)!r}, a "
            "safetensors file of another kind; compute them with compute_directions"
        )
    return Directions(tensors["text"], tensors.get("vision"), told["model"], json.loads(told["recipe"]))


_DIGESTS: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def model_digest(model: Any) -> str:
    """What tells models apart: their type, and the first numbers of every weight, as bfloat16 has them.

    The precision a model is loaded in does not change it; another fine-tuning, an adapter or a quantization does.
    """
    if model not in _DIGESTS:
        told = hashlib.sha256(str(model.config.model_type).encode())
        for name, weight in sorted(model.named_parameters()):
            told.update(f"\0{name}\0{tuple(weight.shape)}\0".encode())
            if weight.is_floating_point() and weight.device.type != "meta":
                first = weight.detach().flatten()[:_SEEN].to("cpu", torch.bfloat16)
                told.update(first.view(torch.int16).numpy().tobytes())
        _DIGESTS[model] = told.hexdigest()
    return _DIGESTS[model]


def _check(demonstrations: Sequence[Demonstration], mask_ratio: float, trials: int) -> None:
    if len(demonstrations) < 2:
        raise ParameterError(
            f"demonstrations must be two or more, as one has no principal component, got {len(demonstrations)}; the "
            "authors take 50 to 70"
        )
    if not 0 < mask_ratio < 1:
        raise ParameterError(f"mask_ratio must be in (0, 1), got {mask_ratio!r}; 0.99 is what VTI was released with")
    if trials < 1:
        raise ParameterError(f"trials must be at least 1, got {trials!r}; 50 is what VTI was released with")


def _continued(model: Any, processor: Any, inputs: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """Inputs with an answer behind the prompt, one row."""
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    ids: Tensor = inputs["input_ids"]
    new = torch.tensor([tokenizer(answer, add_special_tokens=False)["input_ids"]], dtype=ids.dtype, device=ids.device)
    if not new.numel():
        raise InputsError(f"answer must be of at least one token, got {answer!r}; write what is in the image")
    mask = attention_mask_of(model, inputs).to(ids.device)
    types = {
        name: pad(value, (0, new.shape[1]))
        for name, value in inputs.items()
        if name.endswith("token_type_ids") and isinstance(value, Tensor)
    }
    longer = {"input_ids": torch.cat([ids, new], dim=1), "attention_mask": pad(mask, (0, new.shape[1]), value=1)}
    return {**inputs, **types, **longer}


def _states_behind(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """`(1 + layers, D)`, float32: the last column's states, as transformers counts and norms `hidden_states`."""
    scene, decoder = Scene(), family_of(model).decoder(model)
    prompt = scene.full_prompt(model, inputs, scene.look(model, inputs))
    with reading(decoder, prompt):
        output: Any = decoder(**prompt.first_inputs(), use_cache=False, output_hidden_states=True, logits_to_keep=1)
    return torch.stack([states[0, -1].float().cpu() for states in output.hidden_states])


def _masked_less_whole(
    model: Any, inputs: Mapping[str, Any], mask_ratio: float, trials: int, generator: torch.Generator
) -> Tensor:
    """`(1 + layers, tokens, C)`, float32: what the ViT's states lose with most of an image, averaged over masks."""
    family, pixels = family_of(model), inputs.get("pixel_values")
    side = getattr(getattr(model.config, "vision_config", None), "patch_size", None)
    if not isinstance(pixels, Tensor) or pixels.ndim not in (4, 5) or not isinstance(side, int):
        raise UnsupportedModelError(
            "model must have a ViT that reads images of one size for a direction of its states, got "
            f"{model.config.model_type}; pass vision=False"
        )
    image = pixels[0] if pixels.ndim == 4 else pixels[0, 0]  # of a tiled image the whole of it
    height, width = image.shape[-2] // side, image.shape[-1] // side
    gone = torch.zeros(trials, height * width, dtype=torch.bool)
    for trial in gone:
        trial[torch.randperm(height * width, generator=generator)[: int(mask_ratio * height * width)]] = True
    gone = gone.view(trials, 1, height, width).repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    gone = pad(gone, (0, image.shape[-1] - width * side, 0, image.shape[-2] - height * side)).to(image.device)
    masked = torch.where(gone, image.mean(dim=(1, 2), keepdim=True), image)
    tower: Any = family.vision_tower(model, inputs)
    sums = [
        torch.stack(tower(some, output_hidden_states=True).hidden_states).float().sum(dim=1)
        for some in torch.split(masked, _AT_ONCE)
    ]
    whole = torch.stack(tower(image[None], output_hidden_states=True).hidden_states).float()[:, 0]
    return (torch.stack(sums).sum(dim=0) / trials - whole).cpu()


def _joined(differences: Sequence[Tensor]) -> Tensor:
    """`(layers, tokens, C)` of as many differences `(1 + layers, tokens, C)` as there are demonstrations."""
    shape = differences[0].shape
    blocks = torch.stack([one.reshape(shape[1], -1) for one in differences], dim=1)  # (tokens, n, layers * C)
    return _mean_and_component(blocks).view(shape)[1:].clone()


def _mean_and_component(samples: Tensor) -> Tensor:
    """`(blocks, numbers)`: the mean of samples `(blocks, n, numbers)` plus their first principal component.

    Its sign is that with which the sample it says most of counts above 0.
    """
    mean = samples.mean(dim=1, keepdim=True)
    of_samples, _, components = torch.linalg.svd(samples - mean, full_matrices=False)
    weights = of_samples[:, :, 0]  # (blocks, n)
    sign = weights.gather(1, weights.abs().argmax(dim=1, keepdim=True)).sign()
    found: Tensor = mean[:, 0] + sign * components[:, 0]
    return found


def _digest_of(demonstrations: Sequence[Demonstration]) -> str:
    told = hashlib.sha256()
    for one in demonstrations:
        image = one.image.convert("RGB")
        for part in (repr(image.size).encode(), image.tobytes(), *(text.encode() for text in one[1:])):
            told.update(len(part).to_bytes(8, "big") + part)
    return told.hexdigest()
