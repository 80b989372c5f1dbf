from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from damro.tiny import loop, scenes, vision_stage
from damro.tiny.cache import CLASSES, NO_CLASS, SceneCache, build_cache, label_patches
from damro.tiny.captions import ONE_WORD, group_objects
from damro.tiny.language_stage import ImagePrefix, language_loss, pack_lessons
from damro.tiny.lessons import Lesson, Lessons
from damro.tiny.loop import Schedule
from damro.tiny.model import build_model, build_processor, text_config, vision_config
from damro.tiny.qformer_stage import batch_lessons, convert_tower, qformer_loss
from damro.tiny.train import Recipe, train

SCENES = 32
TOY = Recipe(
    vision=Schedule(steps=3, batch=4, rate=1e-3, warmup=2, save_every=2),
    language=Schedule(steps=3, batch=2, rate=1e-3, warmup=2, save_every=2),
    varied=Schedule(steps=3, batch=2, rate=1e-3, warmup=2, save_every=2),
    scenes=SCENES,
)
SIZES = {"vision": vision_config(40, 2), "text": text_config(64, 2)}


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def cache(cache_folder: Path) -> SceneCache:
    return build_cache(cache_folder, "train", SCENES)


@pytest.fixture(scope="module")
def llava(cache_folder: Path, cache: SceneCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llava")
    train("llava", out, cache_folder, TOY, **SIZES)
    return out


def test_cache_holds_the_scenes(cache: SceneCache) -> None:
    for index in (0, SCENES - 1):
        picture = scenes.scene("train", index)
        assert np.array_equal(cache.images[index], np.asarray(picture.image))
        assert np.array_equal(cache.patches[index], label_patches(picture))
        assert cache.list_groups(index) == group_objects(picture)


def test_patch_labels_are_where_the_object_is(cache: SceneCache) -> None:
    thing = scenes.scene("train", 1).objects[0]
    row, column = np.argwhere(thing.mask).mean(axis=0).astype(int) // 12
    assert CLASSES[cache.patches[1].reshape(8, 8)[row, column]] == thing.name
    corner_free = not any(thing.mask[:12, :12].any() for thing in scenes.scene("train", 1).objects)
    assert corner_free == (cache.patches[1][0] == NO_CLASS)


def test_training_pixels_are_the_processors(cache: SceneCache) -> None:
    image = scenes.scene("train", 0).image
    ours = vision_stage.to_pixels(cache.images[:1])
    for family in ("llava", "instructblip"):
        theirs = build_processor(family).image_processor(image, return_tensors="pt").pixel_values
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_second_round_is_mirrored(cache: SceneCache) -> None:
    pixels, patches, present = vision_stage.take_batch(cache, 0, SCENES, SCENES)
    mirrored = vision_stage.take_batch(cache, 1, SCENES, SCENES)
    assert torch.equal(mirrored[0], pixels.flip(-1))
    assert torch.equal(mirrored[1].view(-1, 8, 8), patches.view(-1, 8, 8).flip(-1))
    assert torch.equal(mirrored[2], present)
    assert present[0].sum() == len(cache.list_groups(0))


def test_lessons_are_true_and_balanced(cache: SceneCache) -> None:
    lessons = Lessons(cache)
    suffixed = 0
    for index in range(SCENES):
        present = {group.name for group in cache.list_groups(index)}
        drawn = lessons.draw(index, 5)
        assert drawn == lessons.draw(index, 5) != lessons.draw(index, 6)
        assert [lesson.is_question for lesson in drawn] == [False] + [True] * 6
        assert [lesson.answer for lesson in drawn[1:]].count("Yes") == 3
        for lesson in drawn[1:]:
            name = lesson.prompt.removesuffix(ONE_WORD).removesuffix(" in the image?").split(" ", 3)[3]
            assert (name in present) == (lesson.answer == "Yes")
            suffixed += lesson.prompt.endswith(ONE_WORD)
    assert 0.3 < suffixed / (6 * SCENES) < 0.7


def test_packed_lessons_are_what_the_model_sees_one_by_one(cache: SceneCache) -> None:
    """Block mask and positions: the packed loss is that of each lesson behind its own image, by the real processor."""
    torch.manual_seed(1)
    model, processor = build_model("llava", **SIZES).eval(), build_processor("llava")
    model.set_attn_implementation("eager")
    lessons = Lessons(cache).draw(0, 0)
    packed = pack_lessons(processor.tokenizer, [lessons])
    with torch.no_grad():
        prefix = ImagePrefix(model, processor)(cache.images[:1])
        loss, figures = language_loss(model, prefix, packed)
    image = scenes.scene("train", 0).image
    caption: list[float] = []
    words: list[float] = []
    ends: list[float] = []
    for lesson in lessons:
        start = f"USER: <image>\n{lesson.prompt} ASSISTANT:"
        inputs = processor(images=image, text=f"{start} {lesson.answer}</s>", return_tensors="pt")
        count = len(processor.tokenizer(f"{lesson.answer}</s>", add_special_tokens=False).input_ids)
        with torch.no_grad():
            scores = torch.log_softmax(model(**inputs).logits[0], dim=-1)
        ids = inputs.input_ids[0]
        losses = [-float(scores[place - 1, ids[place]]) for place in range(len(ids) - count, len(ids))]
        if lesson.is_question:
            words.append(losses[0])
            ends.append(losses[1])
        else:
            caption = losses
    expected = np.mean(caption) + np.mean(words) + 0.1 * np.mean(ends)
    assert float(loss) == pytest.approx(expected, abs=1e-4)
    assert figures["caption"] == pytest.approx(np.mean(caption), abs=1e-4)


def test_qformer_loss_is_the_models_own(cache: SceneCache) -> None:
    torch.manual_seed(1)
    model, processor = build_model("instructblip", **SIZES).eval(), build_processor("instructblip")
    lesson = Lesson("Is there a dog in the image?", "Yes", True)
    caption = Lesson("Generate a short caption of this image.", "A dog and a cat in a kitchen.", False)
    with torch.no_grad():
        patches = model.vision_model(pixel_values=vision_stage.to_pixels(cache.images[:1])).last_hidden_state
        loss, _ = qformer_loss(model, processor.tokenizer, patches, [[caption, lesson]])
        means = []
        for one in (caption, lesson):
            inputs = processor(images=scenes.scene("train", 0).image, text=one.prompt, return_tensors="pt")
            answer = processor.tokenizer(f"{one.answer}</s>", add_special_tokens=False, return_tensors="pt").input_ids
            inputs["input_ids"] = torch.cat([inputs.input_ids, answer], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs.input_ids)
            scores = torch.log_softmax(model(**inputs).logits[0], dim=-1)[-answer.shape[1] - 1 : -1]
            means.append([-float(row[token]) for row, token in zip(scores, answer[0], strict=True)])
    assert float(loss) == pytest.approx(np.mean(means[0]) + means[1][0] + 0.1 * means[1][1], abs=1e-4)


def test_lesson_rows_predict_the_answer_only() -> None:
    tokenizer = build_processor("instructblip").tokenizer
    ids, labels, mask = batch_lessons(tokenizer, [Lesson("Is there a cat?", "No", True)])
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["<s>", "▁Is", "▁there", "▁a", "▁cat", "?", "▁No", "</s>"]
    assert tokenizer.convert_ids_to_tokens(labels[0][labels[0] >= 0]) == ["▁No", "</s>"]
    assert labels[0].tolist().index(int(ids[0, 6])) == 5
    assert mask.all()


def test_interrupted_training_ends_in_the_same_weights(
    llava: Path, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = loop._save, []

    def save_and_stop(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        calls.append(arguments)
        if len(calls) in (1, 3, 5):  # in the middle of each stage
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", save_and_stop)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train("llava", tmp_path, cache_folder, TOY, **SIZES)
    train("llava", tmp_path, cache_folder, TOY, **SIZES)
    assert len(calls) == 6
    assert (tmp_path / "model.safetensors").read_bytes() == (llava / "model.safetensors").read_bytes()


def test_training_changes_the_weights_of_both_stages(llava: Path) -> None:
    torch.manual_seed(TOY.seed)
    before = build_model("llava", **SIZES).half().state_dict()
    after = AutoModelForImageTextToText.from_pretrained(llava, dtype=torch.float16).state_dict()
    for name in ("model.vision_tower.encoder.layers.0.mlp.fc1.weight", "model.multi_modal_projector.linear_1.weight"):
        key = next(key for key in before if key.endswith(name.removeprefix("model.")))
        assert not torch.equal(before[key], after[key])


@pytest.mark.parametrize("family", ["llava_next", "instructblip"])
def test_siblings_train_from_llava(family: str, llava: Path, cache_folder: Path, tmp_path: Path) -> None:
    trained = train(family, tmp_path, cache_folder, TOY, start=llava, **SIZES)
    loaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, weight in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].half(), weight.half()), name


def test_sibling_needs_a_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start must name a LLaVA checkpoint for llava_next, not None"):
        train("llava_next", tmp_path, tmp_path, TOY)


def test_tower_conversion_is_exact_where_patches_are_equally_strong(cache: SceneCache) -> None:
    """Without positions and with one patch tiled over the image, the mean deviation is each patch's own."""
    torch.manual_seed(2)
    clip = build_model("llava", **SIZES).model.vision_tower.eval()
    target = build_model("instructblip", **SIZES).vision_model.eval()
    norm = clip.pre_layrnorm
    with torch.no_grad():
        clip.embeddings.position_embedding.weight.zero_()
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
        pixels = torch.randn(1, 3, 12, 12).tile(1, 1, 8, 8)
        convert_tower(clip, target, pixels)
        expected = clip(pixel_values=pixels).last_hidden_state
        converted = target(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(converted, expected, atol=1e-4, rtol=1e-4)
