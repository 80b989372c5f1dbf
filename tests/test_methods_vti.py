"""VTI's directions by plain arithmetic, and what they do against stock modules that are wrapped by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import damro
from damro.decoding.errors import InputsError, ParameterError, UnsupportedModelError
from damro.inputs import prepare_inputs
from damro.methods.directions import (
    Demonstration,
    Directions,
    compute_directions,
    load_directions,
    model_digest,
    save_directions,
)
from damro.methods.vti import VTI
from tests.family_models import family_model
from tests.golden_cases import inputs_of, model_of
from tests.golden_models import make_processor
from tests.llava_models import llava_inputs, llava_of

OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
ANSWERS = ["What is a cat.", "a cat is What.", "is a cat", "What is this a cat"]
MASK_RATIO, TRIALS, SEED = 0.7, 3, 5


def demonstrations() -> list[Demonstration]:
    random = torch.Generator().manual_seed(3)
    pixels = [torch.randint(0, 256, (60, 60, 3), generator=random).to(torch.uint8).numpy() for _ in ANSWERS]
    return [
        Demonstration(Image.fromarray(one), "What is this?", answer, ANSWERS[number - 1])
        for number, (one, answer) in enumerate(zip(pixels, ANSWERS, strict=True))
    ]


def plus_component(samples: Tensor) -> Tensor:
    """Mean and first principal component of samples `(n, numbers)`, by the eigenvectors of their products."""
    centred = samples.double() - samples.double().mean(dim=0)
    weights = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -1]
    weights = weights * weights[weights.abs().argmax()].sign()
    component = weights @ centred
    return (samples.double().mean(dim=0) + component / component.norm()).float()


@pytest.fixture(scope="module")
def directions() -> Directions:
    found = compute_directions(
        model_of("llava"), make_processor("llava"), demonstrations(), mask_ratio=MASK_RATIO, trials=TRIALS, seed=SEED
    )
    assert found.vision is not None
    return found


@torch.no_grad()
def test_the_textual_direction_is_its_definition(directions: Directions) -> None:
    model, processor, differences = model_of("llava"), make_processor("llava"), list[Tensor]()
    for one in demonstrations():
        inputs, states = prepare_inputs(processor, [one.image], [one.question], model), list[Tensor]()
        for answer in (one.truthful, one.hallucinated):
            more = torch.tensor([processor.tokenizer(answer, add_special_tokens=False)["input_ids"]])
            ids = torch.cat([inputs["input_ids"], more], dim=-1)
            output = model(input_ids=ids, pixel_values=inputs["pixel_values"], output_hidden_states=True)
            states.append(torch.stack([layer[0, -1] for layer in output.hidden_states]))
        differences.append(states[0] - states[1])
    expected = plus_component(torch.stack(differences).flatten(1)).view_as(differences[0])[1:]
    torch.testing.assert_close(directions.text, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_visual_direction_is_its_definition(directions: Directions) -> None:
    model, processor = model_of("llava"), make_processor("llava")
    random, differences, side = torch.Generator().manual_seed(SEED), list[Tensor](), 14

    def states(image: Tensor) -> Tensor:
        return torch.cat(model.model.vision_tower(image[None], output_hidden_states=True).hidden_states)

    for one in demonstrations():
        image = prepare_inputs(processor, [one.image], [one.question], model)["pixel_values"][0]
        columns, lost = image.shape[-1] // side, list[Tensor]()
        for _ in range(TRIALS):
            masked = image.clone()
            for patch in torch.randperm(columns**2, generator=random)[: int(MASK_RATIO * columns**2)].tolist():
                row, column = patch // columns * side, patch % columns * side
                masked[:, row : row + side, column : column + side] = image.mean(dim=(1, 2))[:, None, None]
            lost.append(states(masked))
        differences.append(torch.stack(lost).mean(dim=0) - states(image))
    layers, tokens, width = differences[0].shape
    blocks = torch.stack(differences).view(len(differences), tokens, layers * width)
    expected = torch.stack([plus_component(blocks[:, block]) for block in range(tokens)]).view(layers, tokens, width)
    assert directions.vision is not None
    torch.testing.assert_close(directions.vision, expected[1:], atol=1e-4, rtol=1e-4)


def turned_by_hand(x: Tensor, direction: Tensor, alpha: float) -> Tensor:
    to = x / x.norm(dim=-1, keepdim=True) + 0.1 * alpha * direction / direction.norm(dim=-1, keepdim=True)
    return to / to.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(("alpha_text", "alpha_image"), [(3.0, 5.0), (0.0, 20.0), (4.0, 0.0)])
def test_tokens_are_those_of_wrapped_modules(
    directions: Directions, alpha_text: float, alpha_image: float, tmp_path: Path
) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    save_directions(directions, tmp_path / "llava.safetensors")
    plain = damro.generate(model, inputs, "greedy", **OPTIONS)
    hooks = [len(part._forward_hooks) for part in model.modules()]
    method = VTI(str(tmp_path / "llava.safetensors"), alpha_text, alpha_image)
    found = damro.generate(model, inputs, method, **OPTIONS)
    assert [len(part._forward_hooks) for part in model.modules()] == hooks
    assert torch.equal(damro.generate(model, inputs, "greedy", **OPTIONS), plain)
    assert not torch.equal(found, plain)
    tower, vision = model.model.vision_tower, directions.vision
    assert vision is not None
    vit = getattr(tower, "vision_model", tower).encoder.layers
    handles = []
    for layers, vectors, alpha in (
        (model.get_decoder().layers, directions.text, alpha_text),
        (vit, vision, alpha_image),
    ):
        for layer, vector in zip(layers, vectors, strict=True):
            handles.append(
                layer.mlp.register_forward_hook(
                    lambda module, args, output, vector=vector, alpha=alpha: turned_by_hand(output, vector, alpha)
                )
            )
    expected = model.generate(**inputs, **OPTIONS)
    for handle in handles:
        handle.remove()
    assert torch.equal(found, expected)


def test_a_file_tells_where_it_comes_from(directions: Directions, tmp_path: Path) -> None:
    path = tmp_path / "directions.safetensors"
    save_directions(directions, path)
    found = load_directions(path)
    assert torch.equal(found.text, directions.text)
    assert found.vision is not None
    assert directions.vision is not None
    assert torch.equal(found.vision, directions.vision)
    assert found[2:] == directions[2:]
    assert {key: value for key, value in found.recipe.items() if key != "digest"} == {
        **{"method": "vti", "demonstrations": 4, "mask_ratio": MASK_RATIO, "trials": TRIALS, "seed": SEED},
    }
    first = VTI(str(path)).to_record()
    save_directions(directions._replace(text=directions.text + 1), path)
    second = VTI(str(path)).to_record()
    assert first["directions"] == second["directions"]
    assert first["directions_sha256"] != second["directions_sha256"]


def test_a_model_is_known_in_every_precision() -> None:
    model = llava_of()
    assert model_digest(model) == model_digest(llava_of()) == model_digest(llava_of().bfloat16())
    other = llava_of()
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    assert model_digest(other) != model_digest(model)


def test_what_is_refused(directions: Directions, tmp_path: Path) -> None:
    model, inputs, path = model_of("llava"), inputs_of("llava_img0"), tmp_path / "directions.safetensors"
    with pytest.raises(ParameterError, match="directions must be a file with those of the model, got none"):
        damro.generate(model, inputs, "vti", **OPTIONS)
    with pytest.raises(ParameterError, match="directions must be a file that save_directions"):
        damro.generate(model, inputs, VTI(str(path)), **OPTIONS)
    path.write_bytes(b"no tensors")
    with pytest.raises(ParameterError, match="directions must be a file that save_directions"):
        damro.generate(model, inputs, VTI(str(path)), **OPTIONS)
    save_directions(directions, path)
    with pytest.raises(ParameterError, match="directions must be those of this very model, got .* another"):
        damro.generate(llava_of(), llava_inputs(), VTI(str(path)), **OPTIONS)
    save_directions(directions._replace(vision=None), path)
    with pytest.raises(ParameterError, match="alpha_image must be 0 with directions of the language model alone"):
        damro.generate(model, inputs, VTI(str(path)), **OPTIONS)
    assert damro.generate(model, inputs, VTI(str(path), alpha_image=0.0), **OPTIONS).shape[0] == 1


def test_what_cannot_be_computed() -> None:
    model, processor, two = model_of("llava"), make_processor("llava"), demonstrations()[:2]
    for options, message in (
        ({"demonstrations": two[:1]}, "demonstrations must be two or more, .* got 1"),
        ({"mask_ratio": 1.0}, r"mask_ratio must be in \(0, 1\), got 1.0"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
    ):
        with pytest.raises(ParameterError, match=message):
            compute_directions(model, processor, **{"demonstrations": two, **options})
    with pytest.raises(InputsError, match="answer must be of at least one token"):
        compute_directions(model, processor, [two[0]._replace(truthful=""), two[1]])
    with pytest.raises(UnsupportedModelError, match="left to right"):
        compute_directions(family_model("blip-2-t5"), processor, two)
