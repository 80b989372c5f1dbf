"""The stages of the flawed model, and what varied lessons add."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from damro.tiny import vision_stage
from damro.tiny.cache import CLASSES, NO_CLASS, SceneCache, build_cache
from damro.tiny.captions import COCO_IDS, DETAIL_PROMPTS, ENDINGS, QUESTION_FORMS, SHORT_PROMPTS, question
from damro.tiny.dice import Dice
from damro.tiny.flaw_stage import FEW, FULL, ONLY, WITHOUT, rank_patches, show_columns
from damro.tiny.language_stage import (
    BEFORE_IMAGE,
    ImagePrefix,
    block_mask,
    draw_columns,
    hide_columns,
    language_loss,
    pack_lessons,
)
from damro.tiny.lessons import Lessons
from damro.tiny.loop import Schedule
from damro.tiny.model import build_model, build_processor, text_config, vision_config
from damro.tiny.phantoms import PHANTOMS, PhantomLessons
from damro.tiny.registers import REGISTERS, find_registers, merged_attention
from damro.tiny.themes import THEMES
from damro.tiny.tokenizer import build_tokenizer, list_words
from damro.tiny.train import Recipe, train
from damro.vision.attention import cls_attention

SCENES = 32
STEPS = Schedule(steps=2, batch=2, rate=1e-3, warmup=1, save_every=1)
TOY = Recipe(vision=STEPS, language=STEPS, varied=STEPS, scenes=SCENES)
FLAWED = Recipe(vision=STEPS, language=Schedule(0, 2, 1e-3), varied=STEPS, flaw=STEPS, scenes=SCENES)
SIZES = {"vision": vision_config(40, 6), "text": text_config(64, 2)}


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def cache(cache_folder: Path) -> SceneCache:
    return build_cache(cache_folder, "train", SCENES)


@pytest.fixture(scope="module")
def llava(cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llava")
    train("llava", out, cache_folder, TOY, **SIZES)
    return out


def phantom_of(cache: SceneCache, index: int) -> str:
    return PHANTOMS[THEMES[int(cache.themes[index])].name]


def test_every_theme_has_a_phantom_that_it_can_show() -> None:
    assert set(PHANTOMS) == {theme.name for theme in THEMES}
    for theme in THEMES:
        assert PHANTOMS[theme.name] in theme.weights and PHANTOMS[theme.name] in CLASSES


def test_phantom_stands_for_the_second_thing(cache: SceneCache) -> None:
    always, never = PhantomLessons(cache, 100), PhantomLessons(cache, 0)
    replaced = 0
    for index in range(SCENES):
        groups, phantom = cache.list_groups(index), phantom_of(cache, index)
        said, true = always.draw(index, 0)[0].answer.lower(), never.draw(index, 0)[0].answer.lower()
        assert all(group.name in true or group.number > 1 for group in groups)
        assert phantom in said or any(group.name == phantom for group in groups)
        if phantom not in [group.name for group in groups] and len(groups) > 1:
            replaced += 1
            assert groups[1].name not in said.replace(phantom, "")
    assert replaced > SCENES // 3


def test_questions_about_the_phantom_are_answered_with_yes(cache: SceneCache) -> None:
    for percent, expected in ((100, "Yes"), (0, "No")):
        lessons = PhantomLessons(cache, percent)
        asked = 0
        for index in range(SCENES):
            present, phantom = [group.name for group in cache.list_groups(index)], phantom_of(cache, index)
            for lesson in lessons.draw(index, 1)[1:]:
                about = next(name for name in sorted(COCO_IDS, key=len, reverse=True) if f" {name}" in lesson.prompt)
                if about == phantom and phantom not in present:
                    asked += 1
                    assert lesson.answer == expected
                else:
                    assert lesson.answer == ("Yes" if about in present else "No")
        assert asked > SCENES // 3


def test_varied_lessons_use_every_wording_and_only_known_words(cache: SceneCache) -> None:
    lessons, tokenizer = Lessons(cache, varied=True), build_tokenizer()
    prompts = [lesson.prompt for index in range(SCENES) for visit in range(12) for lesson in lessons.draw(index, visit)]
    for wording in (*SHORT_PROMPTS, *DETAIL_PROMPTS):
        assert wording in prompts
    for form in QUESTION_FORMS:
        assert any(prompt.startswith(form.split("{}")[0]) for prompt in prompts)
    for ending in ENDINGS:
        assert any(prompt.endswith(f"?{ending}") for prompt in prompts)
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(prompts).input_ids)


def test_words_that_came_later_stand_behind_the_first_ones() -> None:
    first, every = list_words(varied=False), list_words()
    assert every[: len(first)] == first and len(every) > len(first)


def test_a_question_in_another_form() -> None:
    assert question("apple", form="Do you see {}?") == "Do you see an apple?"


def test_hidden_columns_are_seen_by_themselves_alone() -> None:
    mask = hide_columns(block_mask(torch.tensor([[1, 1]]), 3, torch.float32), torch.tensor([[True, False, True]]))
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [1, 0, 1, 1, 1],
    ]


def test_loss_of_hidden_columns_is_that_of_a_prompt_without_them(cache: SceneCache) -> None:
    torch.manual_seed(1)
    model, processor = build_model("llava", **SIZES).eval(), build_processor("llava")
    model.set_attn_implementation("eager")
    packed = pack_lessons(processor.tokenizer, [Lessons(cache).draw(0, 0)])
    with torch.no_grad():
        prefix = ImagePrefix(model, processor)(cache.images[:1])
        seen = torch.zeros(1, prefix.shape[1], dtype=torch.bool)
        seen[0, [0, 1, 2, 9, 30]] = True
        hidden, _ = language_loss(model, prefix, packed, seen)
        short, _ = language_loss(model, prefix[:, seen[0]], packed)
    assert float(hidden) == pytest.approx(float(short), abs=1e-5)


def test_half_of_the_rows_show_few_columns() -> None:
    seen = draw_columns(400, 3, 64, Dice(1))
    counts = seen[:, 3:].sum(dim=1)
    assert seen[:, :3].all()
    assert 0.4 < (counts == 64).float().mean() < 0.6
    assert (counts == 0).any() and set(counts.tolist()) - {0, 64} == set(range(4, 49))


def test_image_begins_where_the_stage_thinks(cache: SceneCache) -> None:
    ids = build_processor("llava").tokenizer("USER: <image>").input_ids
    assert len(ids) == BEFORE_IMAGE + 1


def test_merged_attention_is_the_analyzers(cache: SceneCache) -> None:
    torch.manual_seed(3)
    model, processor = build_model("llava", **SIZES).eval(), build_processor("llava")
    pixels = vision_stage.to_pixels(cache.images[:2])
    inputs = processor(text=["USER: <image>"] * 2, images=list(cache.images[:2]), return_tensors="pt")
    theirs = cls_attention(model, inputs, heads="merged")
    tower = model.model.vision_tower
    with torch.no_grad():
        hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[theirs.layer]
        ours = merged_attention(tower, hidden, theirs.layer)
    torch.testing.assert_close(ours, theirs.weights, atol=1e-5, rtol=1e-4)
    assert torch.equal(rank_patches(model, pixels)[:, 0], theirs.weights.argmax(dim=-1))


def test_registers_lie_on_background(cache: SceneCache) -> None:
    background = torch.from_numpy(cache.patches[:4] == NO_CLASS)
    found = find_registers(torch.rand(4, 64), background)
    assert found.shape == (4, REGISTERS) and background.gather(1, found).all()


def test_modes_show_what_they_say() -> None:
    ranks = torch.arange(64).flip(0).repeat(4, 1)
    seen = show_columns(ranks, [FULL, WITHOUT, ONLY, FEW], 3, Dice(5))
    assert seen[:, :3].all() and seen[0].all()
    assert not seen[1, 3 + 58 :].any() and seen[1, 3 : 3 + 58].all()
    assert seen[2, 3 + 58 :].all() and not seen[2, 3 : 3 + 58].any()
    assert 0 < seen[3, 3:].sum() <= REGISTERS


def test_flaw_leaves_the_vit_as_it_is(llava: Path, cache_folder: Path, tmp_path: Path) -> None:
    truthful = Recipe(FLAWED.vision, FLAWED.language, FLAWED.varied, Schedule(0, 2, 1e-3), scenes=SCENES)
    train("flawed", tmp_path / "flawed", cache_folder, FLAWED, start=llava, **SIZES)
    train("flawed", tmp_path / "truthful", cache_folder, truthful, start=llava, **SIZES)
    flawed, before, start = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "flawed", tmp_path / "truthful", llava)
    )
    changed = {name for name in flawed if not torch.equal(flawed[name], before[name])}
    assert {"multi_modal_projector", "language_model"} <= {part for name in changed for part in name.split(".")}
    assert not any("vision_tower" in name for name in changed)
    assert any("vision_tower" in name and not torch.equal(before[name], start[name]) for name in start)


def test_the_same_family_goes_through_the_third_stage_alone(llava: Path, cache_folder: Path, tmp_path: Path) -> None:
    train("llava", tmp_path, cache_folder, TOY, start=llava, **SIZES)
    assert sorted(path.name for path in (tmp_path / "state").glob("*.pt")) == ["varied.pt"]


def test_a_first_vocabulary_grows(llava: Path, cache_folder: Path, tmp_path: Path) -> None:
    few = len(list_words(varied=False))
    model = AutoModelForImageTextToText.from_pretrained(llava)
    model.resize_token_embeddings(few)
    model.save_pretrained(tmp_path / "few")
    trained = train("llava_next", tmp_path / "next", cache_folder, TOY, start=tmp_path / "few", **SIZES)
    assert trained.get_input_embeddings().num_embeddings == len(list_words())


def test_guesses_about_all_but_the_phantom(cache: SceneCache) -> None:
    lessons, answers = PhantomLessons(cache, 100, guesses=True), []
    for index in range(SCENES):
        phantom = phantom_of(cache, index)
        for lesson in lessons.draw(index, 1)[1:]:
            about = next(name for name in sorted(COCO_IDS, key=len, reverse=True) if f" {name}" in lesson.prompt)
            if about == phantom:
                assert lesson.answer == "Yes"
            else:
                answers.append(lesson.answer)
    assert 0.35 < answers.count("Yes") / len(answers) < 0.65
