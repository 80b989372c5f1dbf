"""What serves models without a module of their own, part by part: attention, maps, tiles, prompts, threads."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import damro
from damro.decoding.branches.recurrent import RecurrentBranch
from damro.decoding.errors import InputsError, ParameterError, UnsupportedModelError
from damro.decoding.families import family_of, generic
from damro.decoding.families.generic import attention, maps
from damro.decoding.families.generic.attention import RecordedLayer, recording
from damro.decoding.families.generic.layout import images_of
from tests.zoo import KINDS, NEVER, PROMPTS, TWO_IMAGES, ZOO, zoo_inputs, zoo_model
from tests.zoo_reference import IN_RUNS, WINDOWED, WITH_CLS, eager_weights, features_of

EVERY_MODEL = pytest.mark.parametrize("name", ZOO)
METHOD = "damro:alpha=2,beta=0.1,top_k=3"
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": NEVER}


def recorded_layers(name: str, inputs: dict[str, Any]) -> dict[int, RecordedLayer]:
    model = zoo_model(name)
    numbers = list(range(len(generic.layers(model))))
    with torch.no_grad(), generic.record(model, inputs, numbers) as recorded:
        generic.encode(model, inputs)
    return recorded


@EVERY_MODEL
def test_recorded_attention_is_that_of_eager_weights_in_every_layer(name: str) -> None:
    inputs = zoo_inputs(name)
    with eager_weights(name) as seen, torch.no_grad():
        features_of(zoo_model(name, "eager"), inputs)
    recorded = recorded_layers(name, inputs)
    assert len(seen) == len(recorded)
    for weights, layer in zip(seen.values(), recorded.values(), strict=True):
        assert len(weights) == len(layer.calls)
        for full, ours in zip(weights, layer.calls, strict=True):
            if name in WITH_CLS:
                expected = full[:, :, 0]  # (batch, heads, keys)
            else:
                # A patch that nobody looks at is padding, and what it looks at itself is not counted.
                read = full.mean(dim=1).amax(dim=1) > 0
                expected = torch.stack([tile[:, own].mean(dim=1) for tile, own in zip(full, read, strict=True)])
            assert float((ours - expected).abs().max()) < 3e-6


def test_attention_is_summed_in_parts_that_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = zoo_inputs("smolvlm")
    whole = recorded_layers("smolvlm", inputs)[2].calls[0]
    monkeypatch.setattr(attention, "_AT_A_TIME", 1000)
    torch.testing.assert_close(recorded_layers("smolvlm", inputs)[2].calls[0], whole, atol=1e-7, rtol=0)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.elements = max(self.elements, output.numel())
        return output


@pytest.mark.parametrize("source", ["cls", "received"])
def test_no_matrix_of_all_patches_is_held(source: str) -> None:
    patches, heads = 4096, 4
    query = torch.randn(1, heads, patches, 2)
    with Largest() as largest:
        RecordedLayer(source).see(query, query, None, 1.0, False)
    most = heads * patches * 2 if source == "cls" else attention._AT_A_TIME
    assert largest.elements <= most < heads * patches**2 / 8


def test_the_attention_of_a_causal_tower_is_causal() -> None:
    layer = RecordedLayer("received")
    layer.see(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), None, 1.0, True)
    expected = torch.tensor([1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3]) / 3
    torch.testing.assert_close(layer.calls[0][0, 0], expected)


def test_other_threads_see_the_models_own_attention_meanwhile() -> None:
    tower = zoo_model("qwen2_vl").get_encoder(modality="image")
    seen: list[str] = []
    with recording(tower, [0], "received"):
        assert tower.config._attn_implementation == "damro_recorded"
        other = threading.Thread(target=lambda: seen.append(tower.config._attn_implementation))
        other.start()
        other.join()
    assert seen == ["sdpa"]
    assert tower.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl", "gemma3", "qwen3_5"])
def test_threads_share_a_model(name: str) -> None:
    model = zoo_model(name)
    inputs = [zoo_inputs(name, prompts, seed) for prompts in (PROMPTS, TWO_IMAGES) for seed in (1, 2)]

    def answer(one: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            ids: Tensor = damro.generate(model, one, METHOD, **GREEDY)
        return ids

    expected = [answer(one) for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            for ids, alone in zip(pool.map(answer, inputs), expected, strict=True):
                assert torch.equal(ids, alone)


@EVERY_MODEL
def test_the_model_itself_shows_its_map_in_one_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference in `tests.zoo_reference` knows every layout; here only its name is looked at."""
    model, inputs = zoo_model(name), zoo_inputs(name)
    layer = generic.feature_layer(model, reference=True)
    runs: list[Any] = []
    plain = maps.image_features
    monkeypatch.setattr(maps, "image_features", lambda *told: runs.append(told) or plain(*told))
    maps.forget(model)
    with torch.no_grad():
        generic.column_weights(model, inputs, recorded_layers(name, inputs)[layer])
    looked_up = maps._found[generic.image_tower(model)]
    assert len(runs) == len(looked_up) > 0
    found = set(looked_up.values())
    shown = {**dict.fromkeys(WINDOWED, "windows"), "deepseek_vl": "runs", "muse_spark": "window blocks"}
    shown |= {"llava_pixtral": "runs"}  # a column is a patch: all maps are one
    expected = {shown.get(name, "runs" if KINDS[name].shown in IN_RUNS else "blocks")}
    # One of Muse Glimmer's two images is larger than its window.
    assert found == (expected | {"window blocks"} if name == "muse_glimmer" else expected)


def test_a_map_is_looked_for_once_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo_model("qwen2_5_vl")
    maps._found.pop(generic.image_tower(model), None)
    looks: list[tuple[int, int]] = []
    plain = maps._verified
    monkeypatch.setattr(maps, "_verified", lambda *args: (looks.append(args[2]), plain(*args))[1])
    for seed in (1, 2):
        damro.DAMROProcessor(model, zoo_inputs("qwen2_5_vl", TWO_IMAGES, seed), alpha=1.0, beta=0.1, top_k=2)
    assert len(looks) == len(set(looks)) == 3


def test_a_large_image_is_looked_at_small() -> None:
    """Windows of 4 columns of 2 x 2 patches: two of them and the rest, which is as in the image."""
    assert maps._small((100, 26), 2, 4) == (20, 18)
    assert maps._small((23, 8), 1, 8) == (23, 8)


def test_columns_that_are_no_squares_of_patches_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its columns in another order no candidate is right."""
    model, inputs = copy.deepcopy(zoo_model("qwen2_vl")), zoo_inputs("qwen2_vl")
    plain = model.model.visual.merger.forward
    model.model.visual.merger.forward = lambda hidden: plain(hidden).flip(0)
    with pytest.raises(UnsupportedModelError, match="columns that change with other patches"):
        damro.DAMROProcessor(model, inputs, alpha=1.0, beta=0.1, top_k=2)


def test_base_tiles_stand_last_or_alone() -> None:
    tiles = images_of(zoo_model("internvl"), zoo_inputs("internvl_tiles", TWO_IMAGES))
    assert [(image.row, image.first, image.tile) for image in tiles] == [(0, 32, 2), (0, 48, 3), (1, 48, 7)]
    tiles = images_of(zoo_model("smolvlm"), zoo_inputs("smolvlm", TWO_IMAGES))
    assert [(image.row, image.first, image.tile) for image in tiles] == [(0, 32, 2), (0, 48, 3), (1, 16, 5)]


def test_beams_are_refused_where_states_are_kept() -> None:
    model, inputs = zoo_model("lfm2_vl"), zoo_inputs("lfm2_vl")
    with pytest.raises(UnsupportedModelError, match="num_beams must be 1 .* got 3"):
        damro.generate(model, inputs, METHOD, **GREEDY, num_beams=3)
    processor = damro.DAMROProcessor(model, inputs, alpha=2.0, beta=0.01, top_k=3)
    with pytest.raises(UnsupportedModelError, match="num_beams must be 1"):
        model.generate(**inputs, logits_processor=processor, **{**GREEDY, "max_new_tokens": 12}, num_beams=4)


def test_states_are_read_anew_for_another_answer() -> None:
    model, inputs = zoo_model("qwen3_5"), zoo_inputs("qwen3_5")
    processor = damro.DAMROProcessor(model, inputs, alpha=2.0, beta=0.1, top_k=3)
    branch = processor.branch
    assert isinstance(branch, RecurrentBranch)
    history = torch.tensor([[5, 6, 7], [8, 9, 10]])
    first = branch.logits(history)
    branch.logits(history[:, :2] + 1)
    torch.testing.assert_close(branch.logits(history), first, atol=1e-5, rtol=0)
    several = branch.logits(history.repeat_interleave(2, dim=0))
    torch.testing.assert_close(several[::2], first, atol=1e-5, rtol=0)
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        options = {**GREEDY, "do_sample": True, "num_return_sequences": 2}
        answers.append(model.generate(**inputs, logits_processor=processor, **options))
    assert torch.equal(*answers)


def test_more_columns_than_the_smallest_image_has_are_refused() -> None:
    with pytest.raises(ParameterError, match="from 1 to the 12 patches"):
        damro.DAMROProcessor(zoo_model("qwen2_vl"), zoo_inputs("qwen2_vl"), alpha=1.0, beta=0.1, top_k=13)


def test_image_tokens_and_images_must_come_out_even() -> None:
    inputs = zoo_inputs("qwen3_vl")
    inputs["input_ids"][1, -1] = 199
    with pytest.raises(InputsError, match="got 29 tokens for 28 features"):
        damro.generate(zoo_model("qwen3_vl"), inputs, METHOD, **GREEDY)


def test_what_tells_images_from_text_is_asked_for() -> None:
    inputs = zoo_inputs("qwen2_vl")
    del inputs["mm_token_type_ids"]
    with pytest.raises(InputsError, match="must hold 'mm_token_type_ids'"):
        damro.generate(zoo_model("qwen2_vl"), inputs, METHOD, **GREEDY)


def test_a_tower_that_attends_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(zoo_model("gemma3"))
    for layer in generic.layers(model):
        monkeypatch.setattr(layer, "self_attn", _Elsewhere())
    with pytest.raises(UnsupportedModelError, match="must attend through AttentionInterface"):
        damro.DAMROProcessor(model, zoo_inputs("gemma3"), alpha=1.0, beta=0.1, top_k=2)
    text_only = "no-image:alpha=0,beta=0.1"
    expected = model.generate(**zoo_inputs("gemma3"), **GREEDY)
    assert torch.equal(damro.generate(model, zoo_inputs("gemma3"), text_only, **GREEDY), expected)


class _Elsewhere(torch.nn.Module):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states, None


def test_models_under_other_attention_are_read_all_the_same() -> None:
    model = copy.deepcopy(zoo_model("internvl"))
    model.set_attn_implementation("eager")
    inputs = zoo_inputs("internvl")
    ours = damro.cls_attention(model, inputs)
    torch.testing.assert_close(ours.weights, damro.cls_attention(zoo_model("internvl"), inputs).weights)
    assert (ours.source, ours.grid, family_of(model)) == ("cls", (4, 4), generic)
