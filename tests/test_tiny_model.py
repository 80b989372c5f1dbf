import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks import tiny_models
from damro import tiny
from damro.tiny.captions import SHORT_PROMPT, question, short_caption
from damro.tiny.captions import group_objects as groups_of
from damro.tiny.dice import Dice
from damro.tiny.model import FAMILIES, GRID, build_model, build_processor
from damro.tiny.tokenizer import build_tokenizer, list_words

MOST_BYTES = 12_000_000
SCENES = 40


def answer(family: str, prompts: list[str], indices: list[int], blind: bool = False) -> list[str]:
    """Greedy answers of a shipped model; blind ones see a grey picture."""
    model, processor = tiny.load(family)
    texts = prompts if family == "instructblip" else [f"USER: <image>\n{prompt} ASSISTANT:" for prompt in prompts]
    images = [tiny.scene("test", index).image for index in indices]
    if blind:
        images = [image.point(lambda _: 128) for image in images]
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    return processor.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def ask_pope(family: str, blind: bool = False) -> float:
    """Accuracy over one question of each label a scene; the absent object is drawn from all others' objects."""
    shown = [sorted({thing.name for thing in tiny.scene("test", index).objects}) for index in range(SCENES)]
    everything = sorted(set().union(*shown))
    dice = Dice(1)
    prompts: list[str] = []
    for names in shown:
        absent = [name for name in everything if name not in names]
        prompts.append(question(names[dice.below(len(names))], one_word=True))
        prompts.append(question(absent[dice.below(len(absent))], one_word=True))
    answers = answer(family, prompts, [number // 2 for number in range(2 * SCENES)], blind)
    assert set(answers) <= {"Yes", "No"}
    return sum(text == ("Yes", "No")[number % 2] for number, text in enumerate(answers)) / len(answers)


def test_vocabulary_holds_every_caption_and_gives_it_back() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer) == len(set(list_words()))
    for index in range(100):
        picture = tiny.scene("train", index)
        text = short_caption(picture.theme.place, groups_of(picture), Dice(index))
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_newline_after_the_image_is_a_space() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer("USER: <image>\nIs there a cat?").input_ids == tokenizer("USER: <image> Is there a cat?").input_ids
    assert tokenizer.convert_ids_to_tokens(tokenizer("a unicorn").input_ids) == ["<s>", "▁a", "<unk>"]


def test_chat_template_with_an_earlier_answer() -> None:
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a cat?"}]},
        {"role": "assistant", "content": "No"},
        {"role": "user", "content": "Is there a dog?"},
    ]
    text = build_processor("llava").apply_chat_template(talk, add_generation_prompt=True)
    assert text == "USER: <image>\nIs there a cat? ASSISTANT: No</s> USER: Is there a dog? ASSISTANT:"


def test_unknown_family_is_refused() -> None:
    for make in (tiny.path, build_model, build_processor):
        with pytest.raises(ValueError, match="family must be one of .*llava.*, not 'gpt'"):
            make("gpt")


def test_import_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, damro.tiny as t; t.scene('test', 0); print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_loads_whole_and_is_small(family: str) -> None:
    folder = tiny.path(family)
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.model_type == family
    stored = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    assert type(AutoProcessor.from_pretrained(folder)) is type(build_processor(family))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MOST_BYTES
    assert not list(folder.rglob("*.bin")) + list(folder.rglob("*.py"))


def test_shipped_tokenizer_is_the_one_the_code_builds() -> None:
    for family in FAMILIES:
        shipped = AutoProcessor.from_pretrained(tiny.path(family)).tokenizer
        assert shipped.get_vocab() == build_tokenizer().get_vocab()


def test_image_columns_match_the_grid() -> None:
    image = tiny.scene("test", 0).image
    counts = {}
    for family in FAMILIES:
        text = SHORT_PROMPT if family == "instructblip" else f"USER: <image>\n{SHORT_PROMPT} ASSISTANT:"
        processor = AutoProcessor.from_pretrained(tiny.path(family))
        ids = processor(images=image, text=text, return_tensors="pt").input_ids
        counts[family] = int((ids == 4).sum())
    # LLaVA-NeXT: the base tile, then 8 rows of 8 patches and a newline each. InstructBLIP: its queries.
    assert counts == {"llava": GRID**2, "llava_next": GRID**2 + GRID * (GRID + 1), "instructblip": 16}


@pytest.mark.parametrize("family", FAMILIES)
def test_model_sees(family: str) -> None:
    """80 questions, half of them yes. Chance is 0.5 with a standard error of 0.056."""
    assert ask_pope(family) >= 0.75


def test_blind_model_answers_by_chance() -> None:
    assert ask_pope("llava", blind=True) <= 0.65


def test_caption_of_the_same_scene_is_the_same() -> None:
    first, second = (answer("llava", [SHORT_PROMPT], [3]) for _ in range(2))
    assert first == second
    assert first[0].endswith(".")


def test_measure_writes_every_number(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    tiny_models.main(["--split", "validation", "--scenes", "12", "--images", "4", "--out", str(out)])
    numbers = json.loads(out.read_text())
    assert list(numbers["pope"]) == ["random", "popular", "adversarial"]
    for score in numbers["pope"].values():
        assert score["n"] == 24 and score["unparsed"] == 0
        assert score["tp"] + score["fn"] == 12
    assert numbers["chair"]["short"]["n_captions"] == 12
    assert numbers["chair"]["short"]["mean_length"] < numbers["chair"]["detailed"]["mean_length"]


def test_checkpoints_lie_in_the_package() -> None:
    assert tiny.path() == Path(tiny.__file__).parent / "checkpoints" / "llava"
