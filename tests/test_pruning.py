"""Pruning: rules against formulas written out, columns against the model's own packing, tokens against plain loops."""

from itertools import permutations

import numpy as np
import pytest
import torch
from golden_cases import inputs_of, model_of, row_alone
from torch import Tensor

from damro.decoding.families import ColumnPatches, Encoding, family_of
from damro.decoding.prompts import VisualPrompt
from damro.errors import ParameterError, UnsupportedModelError
from damro.pruning import Pruning, prune
from damro.pruning.rules import gumbel_scores, information_density, iqr_counts, keep_top, kept_columns
from damro.vision.query_keys import ClsQueryKeys

PATCHES = 16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def head_mean(model: object, inputs: dict[str, Tensor], layer: int) -> Tensor:
    """(tiles, patches): what transformers itself returns under eager attention, heads averaged."""
    eager = model_of(model.config.model_type, "eager")
    pixels = inputs["pixel_values"]
    if pixels.ndim == 5:
        tiles = family_of(model).encode(model, inputs).tiles
        pixels = torch.cat([image[:number] for image, number in zip(pixels, tiles, strict=True)])
    with torch.no_grad():
        attentions = eager.model.vision_tower(pixels, output_attentions=True).attentions
    return attentions[layer][:, :, 0, 1:].mean(dim=1)


def full_prompt(model: object, inputs: dict[str, Tensor]) -> VisualPrompt:
    family = family_of(model)
    with torch.no_grad():
        return family.full_prompt(model, inputs, family.encode(model, inputs))


def image_vectors(prompt: VisualPrompt, row: int = 0) -> Tensor:
    return prompt.inputs_embeds[row, prompt.image_mask[row]]


# --- rules -----------------------------------------------------------------------------------------------------------


def test_keep_top_keeps_so_many_of_each_tile() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.4, 0.4, 0.4, 0.1]])
    present = torch.tensor([[True, False, True, True], [True, True, True, True]])
    kept = keep_top(scores, torch.tensor([2, 2]), present)
    assert kept.tolist() == [[False, False, True, True], [True, True, False, False]]


def test_more_than_are_present_keeps_all_that_are() -> None:
    present = torch.tensor([[True, False, True]])
    assert keep_top(torch.ones(1, 3), torch.tensor([3]), present).tolist() == [[True, False, True]]


def test_iqr_counts_against_numpy() -> None:
    scores = draw(6, 40).exp()
    present = draw(6, 40, seed=1) > -0.5
    expected = []
    for row, mask in zip(scores.numpy(), present.numpy(), strict=True):
        lower, upper = np.percentile(row[mask], [25, 75])
        expected.append(int((row[mask] > upper + 1.5 * (upper - lower)).sum()))
    assert iqr_counts(scores, present).tolist() == expected
    assert max(expected) > 0


def test_information_density_against_numpy() -> None:
    keys = torch.cat([draw(3, 12, 2), draw(1, 12, 2).abs()])
    present = draw(4, 12, seed=2) > -1
    found = information_density(keys, present, similarity=0.9, share=0.3)
    for tile in range(4):
        among = [p for p in range(12) if present[tile, p]]
        redundant = 0
        for p in among:
            a = keys[tile, p].numpy()
            cosines = []
            for q in among:
                b = keys[tile, q].numpy()
                if q != p:
                    cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            redundant += sum(c > 0.9 for c in cosines) > 0.3 * len(cosines)
        assert found[tile].item() == pytest.approx(1 - redundant / len(among))
    assert found.min() < found.max()


def test_draws_have_the_probabilities_of_drawing_without_replacement() -> None:
    weights = np.array([0.5, 0.3, 0.2])
    # Chance that both of a pair come up in two draws, by the orders in which they can.
    expected = dict.fromkeys([(0, 1), (0, 2), (1, 2)], 0.0)
    for first, second in permutations(range(3), 2):
        chance = weights[first] * weights[second] / (1 - weights[first])
        expected[tuple(sorted((first, second)))] += chance
    tensor, present = torch.tensor(weights)[None], torch.ones(1, 3, dtype=torch.bool)
    draws = 4000
    found = dict.fromkeys(expected, 0.0)
    for seed in range(draws):
        kept = keep_top(gumbel_scores(tensor, seed), torch.tensor([2]), present)[0]
        found[tuple(kept.nonzero().flatten().tolist())] += 1 / draws
    for pair, chance in expected.items():
        assert found[pair] == pytest.approx(chance, abs=4 * (chance * (1 - chance) / draws) ** 0.5)


def test_a_patch_without_attention_is_drawn_last() -> None:
    scores = gumbel_scores(torch.tensor([[0.0, 0.1, 0.2]]), seed=1)
    assert scores.argmin().item() == 0


def test_columns_that_are_no_patch_stay_with_their_line() -> None:
    # Two lines of two patches with a newline each, in two images of one prompt. Of the first image one patch of the
    # second line is kept, of the second image one of each line.
    image = ColumnPatches(torch.tensor([0, 1, -1, 2, 3, -1]), torch.tensor([0, 0, 0, 1, 1, 1]))
    encoding = Encoding(None, (), (0, 0), (1, 1), (2, 2))
    kept = torch.tensor([[False, False, True, False], [True, False, False, True]])
    (columns,) = kept_columns([image, image], kept, encoding, 1)
    assert columns.tolist() == [3, 5, 6 + 0, 6 + 2, 6 + 4, 6 + 5]


# --- which patches of a real model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 5, 16])
def test_llava_keeps_the_most_attended_in_image_order(keep: int) -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    layer = family_of(model).feature_layer(model, reference=False)
    best = head_mean(model, inputs, layer)[0].topk(keep).indices.sort().values
    pruned = prune(model, inputs, keep)
    torch.testing.assert_close(image_vectors(pruned), image_vectors(full_prompt(model, inputs))[best])
    assert pruned.image_mask.sum() == keep


def test_unattended_is_what_the_most_attended_leave() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    full = image_vectors(full_prompt(model, inputs))
    most = head_mean(model, inputs, family_of(model).feature_layer(model, reference=False))[0].topk(4).indices
    rest = [patch for patch in range(len(full)) if patch not in most]
    kept = prune(model, inputs, len(full) - 4, by="unattended")
    torch.testing.assert_close(image_vectors(kept), full[rest])


def test_unattended_without_a_number_leaves_the_outliers_out() -> None:
    weights = torch.full((1, 1, 17), 1.0)
    weights[0, 0, [4, 9]] = 50.0  # of the tokens, so patches 3 and 8
    recorded = {0: ClsQueryKeys(torch.ones(1, 1, 1), weights.log()[..., None])}
    kept = Pruning(None, "unattended").choose(recorded, (4, 4), torch.ones(1, 16, dtype=torch.bool))
    assert [patch for patch in range(16) if not kept[0, patch]] == [3, 8]


def test_sum_over_layers() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    last = family_of(model).feature_layer(model, reference=False)
    assert last >= 1
    total = sum(head_mean(model, inputs, layer)[0] for layer in range(last + 1))
    best = total.topk(6).indices.sort().values
    full = image_vectors(full_prompt(model, inputs))
    torch.testing.assert_close(image_vectors(prune(model, inputs, 6, by="layers", start_layer=0)), full[best])
    one_layer = prune(model, inputs, 6, by="layers", start_layer=last)
    torch.testing.assert_close(one_layer.inputs_embeds, prune(model, inputs, 6).inputs_embeds)


def test_keeping_every_patch_is_the_full_prompt() -> None:
    for family in ("llava", "llava_next"):
        model, inputs = model_of(family), inputs_of(f"{family}_img0")
        pruned, full = prune(model, inputs, PATCHES), full_prompt(model, inputs)
        torch.testing.assert_close(pruned.inputs_embeds, full.inputs_embeds)
        assert torch.equal(pruned.image_mask, full.image_mask)


def test_adaptive_count_is_the_number_of_high_attention() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    weights = head_mean(model, inputs, family_of(model).feature_layer(model, reference=False))[0].numpy()
    lower, upper = np.percentile(weights, [25, 75])
    count = max(1, int((weights > upper + 1.5 * (upper - lower)).sum()))
    assert prune(model, inputs, None).image_mask.sum() == count


def test_correlation_draws_no_more_than_the_density_and_the_limit() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    pruning = Pruning(None, "correlation")
    with torch.no_grad(), pruning.record(model, inputs) as recorded:
        family_of(model).encode(model, inputs)
    keys = next(iter(recorded.values())).keys[:, :, 1:].transpose(1, 2).flatten(2)
    density = information_density(keys, torch.ones(1, PATCHES, dtype=torch.bool)).item()
    free = prune(model, inputs, None, by="correlation")
    assert free.image_mask.sum() == max(1, int(np.ceil(density * PATCHES)))
    assert prune(model, inputs, 3, by="correlation").image_mask.sum() == min(3, int(free.image_mask.sum()))
    other = [prune(model, inputs, 3, by="correlation", seed=seed).inputs_embeds for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(other[0], other[1])
    assert any(not torch.equal(other[0], drawn) for drawn in other[2:])


def test_information_density_sets_the_count_of_each_tile() -> None:
    # Tile 0: sixteen keys in one direction, all redundant: at least one patch stays. Tile 1: sixteen directions at
    # right angles, none redundant: all stay.
    keys = torch.zeros(2, 1, 17, 16)
    keys[0, :, :, 0] = 1
    keys[1, 0, 1:] = torch.eye(16)
    recorded = {3: ClsQueryKeys(torch.zeros(2, 1, 16), keys)}
    kept = Pruning(None, "correlation").choose(recorded, (4, 4), torch.ones(2, 16, dtype=torch.bool))
    assert kept.sum(dim=-1).tolist() == [1, 16]


# --- LLaVA-NeXT ------------------------------------------------------------------------------------------------------

NEXT = ("img0", "grid1x2", "cropped")


def next_inputs(name: str) -> dict[str, Tensor]:
    """Four square tiles; two tiles side by side; four tiles that are cut down by a quarter, 75 pixels of 100 high."""
    if name == "cropped":
        return row_alone(inputs_of("llava_next_batch2"), 1)
    return inputs_of(f"llava_next_{name}")


@pytest.mark.parametrize("name", NEXT)
def test_column_patches_name_the_features_of_the_tiles(name: str) -> None:
    """Every column that is said to be a patch holds the projected vector of just that patch."""
    model, inputs = model_of("llava_next"), next_inputs(name)
    with torch.no_grad():
        encoding = family_of(model).encode(model, inputs)
        tiles = torch.cat([i[:n] for i, n in zip(inputs["pixel_values"], encoding.tiles, strict=True)])
        hidden = model.model.vision_tower(tiles, output_hidden_states=True).hidden_states
        vectors = model.model.multi_modal_projector(hidden[model.config.vision_feature_layer][:, 1:])
    columns = family_of(model).column_patches(model, inputs, encoding)
    start = 0
    for image, feature, number in zip(columns, encoding.features, encoding.tiles, strict=True):
        own = vectors[start : start + number].flatten(0, 1)
        start += number
        is_patch = image.patch >= 0
        torch.testing.assert_close(feature[is_patch], own[image.patch[is_patch]])
        newline = model.model.image_newline
        torch.testing.assert_close(feature[~is_patch], newline.expand(int((~is_patch).sum()), -1))
        assert image.patch[:PATCHES].tolist() == list(range(PATCHES))
        assert (~is_patch).sum() == image.line.max() == {"img0": 8, "grid1x2": 4, "cropped": 6}[name]


@pytest.mark.parametrize("name", NEXT)
@pytest.mark.parametrize("keep", [1, 3, 9])
def test_tiles_are_pruned_one_by_one(name: str, keep: int) -> None:
    model, inputs = model_of("llava_next"), next_inputs(name)
    family = family_of(model)
    with torch.no_grad():
        encoding = family.encode(model, inputs)
    (columns,) = family.column_patches(model, inputs, encoding)
    weights = head_mean(model, inputs, family.feature_layer(model, reference=False))
    patches = columns.patch.tolist()
    kept = set()
    for tile in range(encoding.tiles[0]):
        there = [p for p in patches if p // PATCHES == tile and p >= 0]
        kept |= set(sorted(there, key=lambda p: -float(weights[p // PATCHES, p % PATCHES]))[:keep])
    expected, line = [], []
    for column, patch in enumerate(patches):
        if column < PATCHES:  # the base tile has no newlines
            expected += [column] if patch in kept else []
        elif patch >= 0:
            line += [column] if patch in kept else []
        else:
            expected += [*line, column] if line else []
            line = []
    full = image_vectors(full_prompt(model, inputs))
    torch.testing.assert_close(image_vectors(prune(model, inputs, keep)), full[expected])


# --- decoding from a pruned prompt -----------------------------------------------------------------------------------


def greedy(model: object, prompt: VisualPrompt, row: int, tokens: int) -> list[int]:
    """One row without padding, without cache, positions counted by hand: a plain loop."""
    embeds = prompt.inputs_embeds[row : row + 1, prompt.attention_mask[row].bool()]
    found: list[int] = []
    for _ in range(tokens):
        with torch.no_grad():
            logits = model(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                position_ids=torch.arange(embeds.shape[1])[None],
                use_cache=False,
            ).logits[0, -1]
        found.append(int(logits.argmax()))
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([found[-1:]]))], dim=1)
    return found


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("options", [{}, {"by": "correlation"}, {"by": "layers", "start_layer": 0}])
def test_stock_generate_decodes_the_pruned_prompt(family: str, options: dict[str, object]) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    prompt = prune(model, inputs, 5, **options)
    ids = model.generate(
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
    )
    for row in range(len(ids)):
        assert ids[row].tolist() == greedy(model, prompt, row, 8)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_batch_is_pruned_as_its_rows_alone(family: str) -> None:
    model, inputs = model_of(family), inputs_of(f"{family}_batch2")
    for by in ("attention", "correlation"):
        together = prune(model, inputs, 5, by=by)
        for row in range(len(inputs["input_ids"])):
            alone = prune(model, row_alone(inputs, row), 5, by=by)
            columns = together.attention_mask[row].bool()
            torch.testing.assert_close(together.inputs_embeds[row, columns], alone.inputs_embeds[0])
            assert together.position_ids[row, columns].tolist() == list(range(int(columns.sum())))


# --- what is refused -------------------------------------------------------------------------------------------------


def test_queries_of_a_qformer_are_not_pruned() -> None:
    with pytest.raises(UnsupportedModelError, match="6 columns are queries of its Q-Former"):
        prune(model_of("instructblip"), inputs_of("instructblip_img0"), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_tokens": 0}, "at least 1"),
        ({"keep_tokens": True}, "at least 1"),
        ({"keep_tokens": 2.5}, "at least 1"),
        ({"keep_tokens": 17}, "must not exceed the 16 patches"),
        ({"keep_tokens": 4, "by": "norm"}, "attention, layers, correlation, unattended"),
        ({"keep_tokens": 4, "by": "layers"}, "start_layer must be given"),
        ({"keep_tokens": 4, "start_layer": 0}, "start_layer must be given"),
        ({"keep_tokens": 4, "by": "layers", "start_layer": 99}, "ViT's"),
        ({"keep_tokens": 4, "by": "layers", "start_layer": -1}, "must not lie behind layer"),
    ],
)
def test_parameters_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        prune(model_of("llava"), inputs_of("llava_img0"), **options)


def test_no_hook_stays() -> None:
    model, inputs = model_of("llava"), inputs_of("llava_img0")
    full_prompt(model, inputs)  # transformers leaves hooks of its own on the first run

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in model.modules())

    before = hooks()
    prune(model, inputs, 4)
    with pytest.raises(RuntimeError, match="stop"), Pruning(4).record(model, inputs):
        assert hooks() > before
        raise RuntimeError("stop")
    assert hooks() == before
