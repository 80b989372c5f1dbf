"""Attention rollout against whole attention matrices of eager towers, multiplied one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import damro.figures
from damro.cli import main
from damro.errors import UnsupportedModelError
from damro.loading import load_model, prepare_inputs
from damro.tiny.scenes import scene
from damro.vision.rollout import attention_rollout
from tests.family_models import family_inputs, family_model
from tests.golden_cases import inputs_of, model_of
from tests.zoo import zoo_inputs, zoo_model


def matrix_product(tower: Any, pixels: Tensor, last: int) -> Tensor:
    """`(tiles, tokens, tokens)`: (W_L + I)/2 ... (W_1 + I)/2 of the attention that an eager tower returns."""
    with torch.no_grad():
        attentions = tower(pixels, output_attentions=True).attentions[: last + 1]
    product = torch.eye(attentions[0].shape[-1])
    for weights in attentions:
        product = (weights.mean(dim=1) + torch.eye(weights.shape[-1])) / 2 @ product
    return product


@pytest.mark.parametrize("layer", [None, 0, -1])
def test_a_rollout_is_its_product(layer: int | None) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    found = attention_rollout(model, inputs, layer)
    tower = model.get_encoder(modality="image")
    tower.set_attn_implementation("eager")
    expected = matrix_product(tower, inputs["pixel_values"], found.layer)[:, 0, 1:]
    tower.set_attn_implementation("sdpa")
    torch.testing.assert_close(found.weights, expected, atol=1e-6, rtol=1e-4)
    assert (found.source, found.heads) == ("cls", "mean")


def test_without_cls_it_is_the_mean_of_all_rows() -> None:
    model, inputs = family_model("llava_siglip"), family_inputs("llava_siglip")
    found = attention_rollout(model, inputs)
    eager = family_model("llava_siglip", "eager").get_encoder(modality="image")
    expected = matrix_product(eager, inputs["pixel_values"], found.layer).mean(dim=1)
    torch.testing.assert_close(found.weights, expected, atol=1e-6, rtol=1e-4)
    assert found.source == "received"


def test_a_model_without_a_module_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="module of its own, or a bare ViT, for a rollout, got qwen2_vl"):
        attention_rollout(zoo_model("qwen2_vl"), zoo_inputs("qwen2_vl"))


def test_the_command_line_rolls_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attention", "tiny:3", "--model", "tiny", "--rollout", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    model, processor = load_model("tiny")
    inputs = prepare_inputs(processor, [scene("test", 3).image], ["Describe the image."], model)
    found = attention_rollout(model, inputs)
    torch.testing.assert_close(torch.tensor(shown["weights"]), found.weights)
    assert shown["rollout"] is True and shown["heads"] == "mean"
    assert shown["outliers"]["indices"] == found.weights.topk(10).indices.tolist()


def test_all_heads_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(damro.figures, "save_figure", lambda figure, path: drawn.append(figure))
    target = tmp_path / "heads.png"
    asked = ["attention", "tiny:3", "--model", "tiny", "--all-heads", "--colormap", "magma", "--out", str(target)]
    assert main(asked) == 0
    assert capsys.readouterr().out.endswith(f"wrote {target}\n")
    config = load_model("tiny").model.config.vision_config
    assert len(drawn[0].axes) == config.num_hidden_layers * (config.num_attention_heads + 1) + 1  # and a colour bar
    assert {axes.images[0].get_cmap().name for axes in drawn[0].axes[:-1]} == {"magma"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--all-heads"], "--all-heads must come with --out FILE"),
        (["--rollout", "--heads", "max"], "--rollout must come without --heads"),
        (["--rollout", "--rule", "norm"], "with a rule of attention"),
        (["--rollout", "--prompt", "What?"], "without --heads and --prompt"),
        (["--out", "map.png", "--colormap", "virids"], "got 'virids'; did you mean 'viridis'?"),
    ],
)
def test_views_that_do_not_go_together(change: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attention", "tiny:3", "--model", "no/such/model", *change]) == 2  # told before a model is loaded
    assert reason in capsys.readouterr().err
