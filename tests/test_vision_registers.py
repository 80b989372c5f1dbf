"""Test-time registers: against the authors' function, and against stock layers run one by one with a token more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from damro.cli import main
from damro.decoding.families import family_of
from damro.errors import InputsError, ParameterError, UnsupportedModelError
from damro.vision.attention import cls_attention
from damro.vision.query_keys import encoder_layers
from damro.vision.register_effect import compare_norms
from damro.vision.register_neurons import RegisterNeurons, find_register_neurons, own_masks, score_neurons
from damro.vision.registers import added_register, move_activations
from tests.family_models import family_inputs, family_model
from tests.golden_cases import Inputs, fresh_model, inputs_of, model_of
from tests.golden_models import save_golden

STATES = [[0.5, -1.0, 2.0, 0.25], [3.0, 0.5, -0.5, 1.0], [-4.0, 2.5, 0.0, -1.5], [1.0, -2.0, 0.75, 0.5],
          [0.0, 0.0, 0.125, -0.25], [0.2, 0.1, -0.1, 0.3]]  # fmt: skip
AUTHORS = {
    (0, 1): [[0.5, -1.0, 2.0, 0.25], [0, 0, -0.5, 1.0], [0, 0, 0, -1.5], [0, 0, 0.75, 0.5], [0, 0, 0.125, -0.25],
             [-4.0, -4.0, -0.1, 0.3]],
    (2,): [[0.5, -1.0, 2.0, 0.25], [3.0, 0.5, 0, 1.0], [-4.0, 2.5, 0, -1.5], [1.0, -2.0, 0, 0.5], [0, 0, 0, -0.25],
           [0.2, 0.1, 2.0, 0.3]],
    (1, 3): [[0.5, -1.0, 2.0, 0.25], [3.0, 0, -0.5, 0], [-4.0, 0, 0, 0], [1.0, 0, 0.75, 0], [0, 0, 0.125, 0],
             [0.2, 2.5, -0.1, 2.5]],
}  # fmt: skip
"""What `activate_on_registers(..., num_registers=1, neuron_indices)` of nickjiang2378/test-time-registers
(860df43, shared/hook_fn.py) makes of STATES, whose last token is the register."""


@pytest.mark.parametrize("neurons", list(AUTHORS))
def test_activations_move_as_in_the_authors_code(neurons: tuple[int, ...]) -> None:
    """Theirs stands behind the patches, ours behind [CLS]."""
    ours = torch.tensor(STATES)[[0, 5, 1, 2, 3, 4]]
    mask = torch.zeros(4, dtype=torch.bool)
    mask[list(neurons)] = True
    before = ours.clone()
    moved = move_activations(ours[None], mask, "layer")[0]
    torch.testing.assert_close(moved, torch.tensor(AUTHORS[neurons])[[0, 5, 1, 2, 3, 4]])
    assert torch.equal(ours, before)


def test_each_neuron_has_its_own_largest_activation() -> None:
    states = torch.tensor([STATES, STATES[::-1]])
    masks = torch.tensor([[True, True, False, False], [False, False, False, True]])
    moved = move_activations(states, masks)
    assert moved[0, 1].tolist() == [-4.0, 2.5, -0.5, 1.0]
    assert moved[0, 0].tolist() == STATES[0]
    assert moved[0, 2:, :2].abs().sum() == 0 and torch.equal(moved[0, 2:, 2:], states[0, 2:, 2:])
    assert moved[1, 1].tolist() == [*STATES[4][:3], -1.5]
    assert torch.equal(moved[1, :, :3], states[1, :, :3])


# --- a whole tower ---------------------------------------------------------------------------------------------------


def dinov2(swiglu: bool = False) -> Any:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14, use_swiglu_ffn=swiglu
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


TOWERS: dict[str, Callable[[], tuple[Any, nn.Module, Inputs]]] = {
    "clip": lambda: (model_of("llava"), model_of("llava").model.vision_tower, inputs_of("llava_batch2")),
    "eva": lambda: (model_of("instructblip"), model_of("instructblip").vision_model, inputs_of("instructblip_batch2")),
    "dinov2": lambda: (one := dinov2(), one, {"pixel_values": torch.randn(2, 3, 56, 56)}),
    "swiglu": lambda: (one := dinov2(swiglu=True), one, {"pixel_values": torch.randn(2, 3, 56, 56)}),
}


def out_of(layer: nn.Module) -> Any:
    return next(one for name, one in layer.named_modules() if name in ("mlp.fc2", "mlp.down_proj", "mlp.weights_out"))


@torch.no_grad()
def states_by_hand(tower: Any, pixels: Tensor, chosen: dict[int, list[int]]) -> list[Tensor]:
    """What each layer puts out, with the register last as the authors have it; that token is dropped at the end."""
    hidden = tower.embeddings(pixels)
    hidden = torch.cat([hidden, torch.zeros_like(hidden[:, :1])], dim=1)
    if hasattr(tower, "pre_layrnorm"):
        hidden = tower.pre_layrnorm(hidden)
    found = []
    for number, layer in enumerate(encoder_layers(tower)):

        def change(module: Any, args: Any, number: int = number) -> Any:
            states = args[0].clone()
            for tile in states:
                for neuron in chosen.get(number, ()):
                    values = tile[:, neuron].tolist()
                    tile[-1, neuron] = max(values, key=abs)
                    tile[1:-1, neuron] = 0
            return (states,)

        hook = out_of(layer).register_forward_pre_hook(change)
        try:
            output = layer(hidden, attention_mask=None) if "CLIP" in type(layer).__name__ else layer(hidden)
        finally:
            hook.remove()
        hidden = output[0] if isinstance(output, tuple) else output
        found.append(hidden[:, :-1])
    return found


@pytest.mark.parametrize("name", list(TOWERS))
def test_a_tower_with_a_register_is_its_layers_one_by_one(name: str) -> None:
    _, tower, inputs = TOWERS[name]()
    pixels, chosen = inputs["pixel_values"], {0: [1, 4], 1: [0]}
    masks = {}
    for layer, neurons in chosen.items():
        masks[layer] = torch.zeros(out_of(encoder_layers(tower)[layer]).in_features, dtype=torch.bool)
        masks[layer][neurons] = True
    with torch.no_grad():
        plain = tower(pixels, output_hidden_states=True)
        with added_register(tower, masks):
            changed = tower(pixels, output_hidden_states=True)
        again = tower(pixels, output_hidden_states=True)
    expected = states_by_hand(tower, pixels, chosen)
    assert len(changed.hidden_states) == len(plain.hidden_states)
    for ours, theirs in zip(changed.hidden_states[1:], expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert changed.last_hidden_state.shape == plain.last_hidden_state.shape
    assert (changed.hidden_states[-1] - plain.hidden_states[-1]).abs().max() > 1e-3
    assert torch.equal(again.last_hidden_state, plain.last_hidden_state)
    assert not any(module._forward_pre_hooks for module in tower.modules())


def test_attention_is_read_beside_a_register() -> None:
    """The register is one of the tokens in front of the patches: it takes its share and shifts no patch."""
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    tower = model.model.vision_tower
    with added_register(tower, {}):
        weights = cls_attention(model, inputs, 0, "mean").weights
    with torch.no_grad():
        hidden = tower.pre_layrnorm(tower.embeddings(inputs["pixel_values"]))
        zero = tower.pre_layrnorm(torch.zeros_like(hidden[:, :1]))
        layer = tower.encoder.layers[0]
        states = layer.layer_norm1(torch.cat([hidden, zero], dim=1))
        query, keys = (
            project(states).unflatten(-1, (layer.self_attn.num_heads, -1)).transpose(1, 2)
            for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        logits = query[:, :, :1] @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    torch.testing.assert_close(weights, logits.softmax(-1).mean(1)[:, 0, 1:-1], atol=1e-5, rtol=1e-4)


def test_no_hook_stays_when_a_run_fails() -> None:
    model = model_of("llava")
    tower = model.model.vision_tower
    before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in tower.modules()]
    mask = torch.ones(out_of(encoder_layers(tower)[0]).in_features, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="stop"), added_register(tower, {0: mask}):
        raise RuntimeError("stop")
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in tower.modules()] == before


# --- finding neurons -------------------------------------------------------------------------------------------------

LAYER, NEURON, PATCH = 1, 5, 9


@torch.no_grad()
def planted() -> tuple[Any, Inputs]:
    """A LLaVA in which one neuron writes a long vector at patch 9 of both images and is silent elsewhere."""
    model, inputs = fresh_model("llava"), inputs_of("llava_batch2")
    inputs = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    row, column = divmod(PATCH, 4)
    inputs["pixel_values"][:, :, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14] = 4.0
    layer = model.model.vision_tower.encoder.layers[LAYER]
    seen: list[Tensor] = []
    hook = layer.mlp.fc1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.get_image_features(inputs["pixel_values"], return_dict=True)
    hook.remove()
    tokens = seen[0]  # (2, 17, C)
    wanted = torch.zeros(2, 17)
    wanted[:, 1 + PATCH] = 1
    told = torch.cat([tokens, torch.ones(2, 17, 1)], dim=-1).flatten(0, 1)
    direction = torch.linalg.lstsq(told, wanted.flatten()[:, None]).solution[:, 0]
    assert ((told @ direction > 0.5) == (wanted.flatten() == 1)).all()
    layer.mlp.fc1.weight[NEURON] = 50 * direction[:-1]
    layer.mlp.fc1.bias[NEURON] = 50 * (direction[-1] - 0.5)
    layer.mlp.fc2.weight[:, NEURON] = 200 * torch.nn.functional.normalize(torch.randn(tokens.shape[-1]), dim=-1)
    return model, inputs


def test_a_planted_neuron_is_found_and_its_outlier_moved() -> None:
    model, inputs = planted()
    found = find_register_neurons(model, [inputs], count=1)
    assert found.neurons == ((LAYER, NEURON),)
    assert found.recipe == {"images": 2, "with_outliers": 2, "outliers": "norm", "top_k": None, "highest_layer": LAYER}
    scored = score_neurons(model, inputs)
    assert scored.outliers.nonzero().tolist() == [[0, PATCH], [1, PATCH]] and scored.first.tolist() == [LAYER] * 2
    assert {layer: mask.nonzero().tolist() for layer, mask in own_masks(scored, 1).items()} == {
        LAYER: [[0, NEURON], [1, NEURON]]
    }
    effect = compare_norms(model, inputs, found.masks())
    before, after = effect.before[LAYER], effect.after[LAYER]
    assert bool((before[:, PATCH] > 5 * before.median(dim=-1).values).all())
    assert bool((after.amax(dim=-1) < 3 * after.median(dim=-1).values).all())
    assert bool((effect.register[LAYER] > 5 * after.median(dim=-1).values).all())
    assert effect.grid == (4, 4)


def test_scores_are_means_of_magnitudes_at_outliers() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    tower = model.model.vision_tower
    scored = score_neurons(model, inputs, outliers="attention", top_k=3)
    best = cls_attention(model, inputs).weights.topk(3, dim=-1).indices
    assert [row.nonzero().flatten().tolist() for row in scored.outliers] == [sorted(row) for row in best.tolist()]
    with torch.no_grad():
        states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
        for number, layer in enumerate(encoder_layers(tower)):
            attended = states[number] + layer.self_attn(layer.layer_norm1(states[number]))[0]
            active = layer.mlp.activation_fn(layer.mlp.fc1(layer.layer_norm2(attended)))
            for tile in (0, 1):
                mean = active[tile, 1 + best[tile]].abs().mean(dim=0)
                quiet = (active[tile] < 0.5).sum(dim=0) >= 0.5 * len(active[tile])
                torch.testing.assert_close(scored.scores[tile, number], mean * quiet, atol=1e-4, rtol=1e-4)


def test_neurons_of_several_batches_and_below_a_layer() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    rows = [{key: value[row : row + 1] for key, value in inputs.items()} for row in (0, 1)]
    told: dict[str, Any] = {"count": 6, "outliers": "attention", "top_k": 3}
    assert find_register_neurons(model, rows, **told).neurons == find_register_neurons(model, [inputs], **told).neurons
    mean = score_neurons(model, inputs, outliers="attention", top_k=3).scores.mean(dim=0)
    lowest = find_register_neurons(model, [inputs], highest_layer=0, **told)
    assert lowest.neurons == tuple((0, int(neuron)) for neuron in mean[0].topk(6).indices)


def test_a_file_keeps_them_and_another_model_refuses_it(tmp_path: Path) -> None:
    model, inputs = planted()
    found = find_register_neurons(model, [inputs], count=2)
    found.save(tmp_path / "neurons.json")
    again = RegisterNeurons.load(tmp_path / "neurons.json")
    assert again == found
    again.check(model.model.vision_tower)
    again.check(model.to(torch.bfloat16).model.vision_tower)  # half precision is the same model
    with pytest.raises(ParameterError, match="neurons must be of the vision tower's own weights, got those of another"):
        again.check(model_of("llava").model.vision_tower)
    with pytest.raises(ParameterError, match="own kind, instructblip_vision_model of .*, got those of clip_vision"):
        again.check(model_of("instructblip").vision_model)


@pytest.mark.parametrize("text", ["", "{}", '{"format": "other"}', '["a"]', '{"format": "damro register neurons 1"}'])
def test_files_that_are_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "neurons.json"
    path.write_text(text)
    with pytest.raises(ParameterError, match="neurons_file must be one that damro registers wrote, got"):
        RegisterNeurons.load(path)
    with pytest.raises(ParameterError, match="neurons_file must be one that damro registers wrote, got"):
        RegisterNeurons.load(tmp_path / "none.json")


def test_what_is_refused() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_batch2")
    with pytest.raises(ParameterError, match="images must have outliers by the rule 'norm', got none in 2 tiles"):
        find_register_neurons(model, [inputs])
    with pytest.raises(InputsError, match="batches must hold an image or more"):
        find_register_neurons(model, [])
    for options, message in (
        ({"count": 0}, "count must be a whole number from 1"),
        ({"highest_layer": 9}, "highest_layer must name one of the ViT's 4 layers, got 9"),
        ({"outliers": "size"}, "outliers must be one of norm, attention, got 'size'"),
    ):
        with pytest.raises(ParameterError, match=message):
            find_register_neurons(model, [inputs], **{"outliers": "attention", "top_k": 3, **options})
    with pytest.raises(UnsupportedModelError, match="plain ViT with .CLS. .*, got 'siglip_vision_model'"):
        score_neurons(family_model("llava_siglip"), family_inputs("llava_siglip"))
    tower: Any = family_of(model).vision_tower(model, inputs)
    with (
        pytest.raises(ParameterError, match="maximum must be one of neuron, layer, got 'mean'"),
        added_register(
            tower,
            {},
            "mean",  # type: ignore[arg-type]
        ),
    ):
        pass


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_what_the_function_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from damro.loading import load_model, prepare_inputs

    folder = save_golden("llava", tmp_path / "model")
    images = []
    for number in (1, 2, 3):
        path = tmp_path / f"{number}.png"
        Image.effect_mandelbrot((80, 60), (-2, -1.5, number, 1.5), 20).convert("RGB").save(path)
        images.append(str(path))
    out, picture = tmp_path / "neurons.json", tmp_path / "norms.png"
    told = ["--model", str(folder), "--device", "cpu", "--outliers", "attention", "--top-k", "3", "--neurons", "4"]
    assert main(["registers", *images, *told, "--out", str(out), "--picture", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "4 register neurons up to layer 1, found in 3 of 3 tiles with outliers by attention" in text
    assert "layer 3: longest patch" in text and picture.stat().st_size > 0
    model, processor = load_model(folder, device="cpu")
    inputs = prepare_inputs(processor, [Image.open(one) for one in images], ["Describe the image."] * 3, model)
    found = find_register_neurons(model, [inputs], count=4, outliers="attention", top_k=3)
    assert RegisterNeurons.load(out).neurons == found.neurons
    assert main(["registers", *images, *told, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    effect = compare_norms(model, inputs, found.masks())
    assert shown["norms"]["longest"]["after"] == pytest.approx(effect.after.amax(-1).mean(-1).tolist(), rel=1e-4)
    assert shown["norms"]["register"] == pytest.approx(effect.register.mean(-1).tolist(), rel=1e-4)
    assert main(["registers", *images, "--model", str(folder), "--outliers", "attention"]) == 2
    assert "--top-k must be given with --outliers attention and only there" in capsys.readouterr().err
