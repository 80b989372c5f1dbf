"""eval/objhal: objects of Object HalBench's descriptions, beside what its own scripts count."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from judge_server import serve
from PIL import Image

from damro.cli import main
from damro.eval.benchmark import DataRequest, score_run
from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.judged.replies import Judge, collect
from damro.eval.objhal.benchmark import Objhal, ObjhalScoring, to_answer
from damro.eval.objhal.judging import OWN, ask_about
from damro.eval.objhal.questions import FILE
from damro.eval.objhal.words import parse_names
from damro.images import ImageError

# What eval/eval_gpt_obj_halbench.py of repository RLHF-V/RLHF-V (commit 8daac8a) writes under `overall_metrics` for the
# descriptions, annotations and replies below: with --use_gpt, where a stub of its client returns these replies and one
# of spaCy has NLTK's tags and WordNet's nouns, and without, where NLTK alone reads the descriptions.
JUDGED = {
    "chair_s": 0.525,
    "response": 0.8076923076923077,
    "mention": 0.6515151515151515,
    "recall": 0.12290502793296089,
    "mean_length": 11.575,
}
UNJUDGED = {
    "chair_s": 0.675,
    "response": 0.7714285714285715,
    "mention": 0.6195652173913043,
    "recall": 0.19553072625698323,
    "mean_length": 11.575,
}
CATEGORIES = (
    *("person", "bicycle", "car", "dog", "elephant", "dining table", "remote", "cake", "cell phone", "chair"),
    *("toilet", "train", "hot dog", "wine glass"),
)
THINGS = (
    *("a man", "two pedestrians", "a bike", "a white car", "the dog", "a baby elephant", "a coffee table"),
    *("a remote control", "some cheesecake", "a cell phone", "the seat of a chair", "a toilet", "the train tracks"),
    *("a hot dog", "wine glasses", "a laptop computer", "brothers"),
)
NAMES = (
    *("man", "pedestrians", "person", "motor bike", "white car", "dogs", "baby elephant", "Coffee Table"),
    *("remote control", "cheesecake", "cell phones", "seat", "toilet", "train track", "hot dog", "wine glasses"),
    *("dog bowl", "man in a hat", "stove top oven", "woman with a tennis racket", "grass", "brothers"),
    "kitchen table",
)
IMAGES = tuple(range(1001, 1041))


def pick(items: tuple[str, ...], seed: int, count: int) -> list[str]:
    return [items[(seed * 7 + place * (seed % 5 + 3)) % len(items)] for place in range(count)]


def made() -> list[dict[str, Any]]:
    """Answers as muffin_vqa.py of RLHF-V writes them; those of three words are asked nobody about."""
    found = []
    for n in IMAGES:
        shown = f"Assistant: The image shows {', '.join(pick(THINGS, n + 1, n % 4 + 1))}, and  more. "
        text = "A nice day." if n % 13 == 0 else shown
        prompt = f"Describe image {n % 8} in detail."
        found.append({"question_id": n - 1001, "image_id": n, "prompt": prompt, "text": text})
    return found


def reply(n: int) -> str:
    names = [] if n % 11 == 0 else pick(NAMES, n, n % 6)
    listed = json.dumps(names)
    return f"The objects are:\n{listed}" if n % 3 == 0 and names else listed


def written(place: Path, rows: list[dict[str, Any]]) -> str:
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(place)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations, half of the images in each split."""
    place = tmp_path_factory.mktemp("annotations")
    categories = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, 1)]
    for split, images in (("val", IMAGES[:20]), ("train", IMAGES[20:])):
        head = {"info": {}, "licenses": [], "images": [{"id": n} for n in images]}
        boxes = [
            {"id": n * 10 + k, "image_id": n, "category_id": CATEGORIES.index(name) + 1}
            for n in images
            for k, name in enumerate(pick(CATEGORIES, n, 3))
        ]
        captions = [
            {"id": n * 10 + k, "image_id": n, "caption": f"There is {thing} near people seated outside."}
            for n in images
            for k, thing in enumerate(pick(THINGS, n + 3, 2))
        ]
        instances = {**head, "categories": categories, "annotations": boxes}
        (place / f"instances_{split}2014.json").write_text(json.dumps(instances))
        (place / f"captions_{split}2014.json").write_text(json.dumps({**head, "annotations": captions}))
    return place


def judged(path: Path, answers: list[dict[str, Any]]) -> str:
    asked = ask_about([to_answer(fields, "") for fields in answers], OWN)
    images = {one.text: int(one.sample_id) for one in asked}
    collect(asked, path, lambda text, image: reply(images[text]), Judge("m", OWN.name), check=parse_names)
    return str(path)


def scores(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["score", "objhal", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["descriptions"]
    return found


def test_the_official_numbers(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], nltk_data: None) -> None:
    answers, said = written(tmp_path / "a.jsonl", made()), judged(tmp_path / "j.jsonl", made())
    words = ["--answers", answers, "--annotations", str(coco)]
    found = scores(capsys, *words, "--judgements", said)
    assert {name: found[name] for name in JUDGED} == pytest.approx(JUDGED, rel=1e-12)
    assert (found["judge"], found["tagger"], found["n_with_object"], found["n_mentions"]) == ("m", "nltk", 26, 66)
    assert found["ci"]["mention"][0] < found["mention"] < found["ci"]["mention"][1]
    found = scores(capsys, *words, "--matcher", "nltk")
    assert {name: found[name] for name in UNJUDGED} == pytest.approx(UNJUDGED, rel=1e-12)
    assert found["no judge"] == "matcher nltk"
    kept = coco / "damro_objhal_objects.nltk.json"
    objects = tmp_path / "objects.json"
    objects.write_text(json.dumps(json.loads(kept.read_text())["objects"]))
    again = scores(capsys, "--answers", answers, "--objects", str(objects), "--judgements", said)
    assert {name: again[name] for name in JUDGED} == pytest.approx(JUDGED, rel=1e-12)


def test_the_official_scripts_file_holds_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentences = [
        {
            "image_id": 1001,
            "caption": "A man and a dog at a table.",
            "mscoco_hallucinated_words": [["dog", ["dog", "dog"]]],
            "mscoco_gt_words": ["person", "dining table", "cup", "bowl"],
            "mscoco_generated_words": [["man", "person"], ["dog", "dog"], ["table", "dining table"]],
            "words": ["man", "dog", "table", "joy"],
        },
        {"image_id": 1002, "caption": "Joy.", "mscoco_gt_words": ["cat"], "mscoco_generated_words": [], "words": []},
        {
            "image_id": 1003,
            "caption": "A cat.",
            "mscoco_gt_words": ["cat"],
            "mscoco_generated_words": [["cat", "cat"]],
            "words": ["cat"],
        },
    ]
    path = tmp_path / "hall_x_-1.json"
    path.write_text(json.dumps({"sentences": sentences, "overall_metrics": {}}))
    found = scores(capsys, "--answers", str(path))
    assert {name: found[name] for name in JUDGED} == pytest.approx(
        {"chair_s": 1 / 3, "response": 1 / 2, "mention": 1 / 4, "recall": 3 / 6, "mean_length": (8 + 1 + 2) / 3}
    )
    assert main(["score", "objhal", "--answers", str(path), "--objects", "o.json"]) == 2
    assert "--objects must be left out where the official script's file" in capsys.readouterr().err
    assert main(["score", "objhal", "--answers", str(path), str(path)]) == 2
    assert "a further one for 1001" in capsys.readouterr().err
    del sentences[1]["mscoco_gt_words"]
    path.write_text(json.dumps({"sentences": sentences, "overall_metrics": {}}))
    assert main(["score", "objhal", "--answers", str(path)]) == 2
    assert "must have 'caption', 'mscoco_generated_words' and 'mscoco_gt_words'" in capsys.readouterr().err


def test_a_judge_is_asked_about_all_but_short_descriptions(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], nltk_data: None
) -> None:
    pytest.importorskip("openai")
    script = tmp_path / "script.py"
    script.write_text('prompt_template = """{question}|{answer}"""\n')
    words = ["--answers", written(tmp_path / "a.jsonl", made()), "--annotations", str(coco)]
    words += ["--judgements", str(tmp_path / "j.jsonl")]
    images = {f"{one['prompt']}|{one['text'].replace('Assistant:', '').strip()}": one["image_id"] for one in made()}
    odd = {1002: ["No list."] * 3, 1005: ["None."]}

    def answer(text: str) -> str:
        left = odd.get(images[text], [])
        return left.pop() if left else reply(images[text])

    with serve(answer) as (endpoint, seen):
        asking = [*words, "--judge", "m", "--endpoint", endpoint, "--judge-prompt", str(script)]
        found = scores(capsys, *asking)
        long = sum(n % 13 != 0 for n in IMAGES)
        assert len(seen) == long + 2 + 1
        assert seen[0]["max_tokens"] == 512
        assert (found["not judged"], found["n"]) == (1, len(IMAGES) - 1)
        assert scores(capsys, *words) == found
        found = scores(capsys, *asking, "--retry-failed")
        assert len(seen) == long + 2 + 1 + 1
    assert {name: found[name] for name in JUDGED} == pytest.approx(JUDGED, rel=1e-12)
    assert found["prompt"].startswith("script.py ")


def test_a_run_scores_the_same(coco: Path, tmp_path: Path, nltk_data: None) -> None:
    image = io.BytesIO()
    Image.new("RGB", (4, 3), (255, 0, 0)).save(image, "png")
    packed = base64.b64encode(image.getvalue()).decode()
    rows = [{"image": packed, "image_id": one["image_id"], "question": one["prompt"]} for one in made()]
    questions = written(tmp_path / FILE, rows)
    objects = tmp_path / "objects.json"
    assert main(["score", "objhal", "--answers", written(tmp_path / "a", made()), "--annotations", str(coco)]) == 0
    objects.write_text(json.dumps(json.loads((coco / "damro_objhal_objects.nltk.json").read_text())["objects"]))
    benchmark = Objhal(questions=questions, objects=str(objects))
    dataset = benchmark.load(DataRequest())
    assert benchmark.has_images
    assert (dataset.samples[0].image, dataset.samples[0].prompt) == (
        "COCO_val2014_000000001001.jpg",
        "Describe image 1 in detail.",
    )
    assert dataset.open_image(dataset.samples[0].image).size == (4, 3)
    assert dataset.digest_image(dataset.samples[0].image)
    records: dict[str, dict[str, Any]] = {
        one.sample_id: {**one.fields, "prompt": one.prompt, "answer": said["text"]}
        for one, said in zip(dataset.samples, made(), strict=True)
    }
    said = judged(tmp_path / "j.jsonl", list(records.values()))
    (group,) = score_run(benchmark, records, ObjhalScoring(judgements=(said,), truth=dataset.truth))
    assert {name: group.scores[name] for name in JUDGED} == pytest.approx(JUDGED, rel=1e-12)
    (group,) = score_run(benchmark, records, ObjhalScoring(truth=dataset.truth, matcher="builtin"))
    assert {name: group.scores[name] for name in UNJUDGED} == pytest.approx(UNJUDGED, rel=1e-12)
    assert [note.value for note in group.notes if note.doubtful] == ["matcher builtin"]
    records["1001"]["answer"] += " Indeed."
    with pytest.raises(EvalError, match=r"lacks 1 of 37 \(1001\)"):
        score_run(benchmark, records, ObjhalScoring(judgements=(said,), truth=dataset.truth))


def test_images_of_a_folder_or_of_the_file(tmp_path: Path) -> None:
    place = tmp_path / "val2014"
    place.mkdir()
    Image.new("RGB", (5, 5)).save(place / "000000000042.jpg")
    rows = [{"image_id": 42, "question": "Describe."}, {"image_id": "73", "question": "Describe."}]
    questions = written(tmp_path / FILE, rows)
    found = Objhal().load(DataRequest(images=place))
    assert [one.image for one in found.samples] == ["000000000042.jpg", "COCO_val2014_000000000073.jpg"]
    assert found.missing_images() == ["COCO_val2014_000000000073.jpg"]
    with pytest.raises(EvalError, match=r"got no --images and none in the file of questions for 2 of 2"):
        Objhal(questions=questions).load(DataRequest())
    written(tmp_path / FILE, [{**rows[0], "image": "no base64!"}, {**rows[1], "image": "aGk="}])
    broken = Objhal(questions=questions).load(DataRequest())
    with pytest.raises(EvalError, match="must be Base64"):
        broken.open_image(broken.samples[0].image)
    with pytest.raises(ImageError):
        broken.open_image(broken.samples[1].image)
    assert broken.digest_image(broken.samples[0].image) is None
    for change, told in (
        ({"image_id": None}, "image_id must be the number"),
        ({"question": " "}, "question must be the request"),
        ({"image": 3}, "image must be a file in Base64"),
    ):
        written(tmp_path / FILE, [{**rows[0], **change}])
        with pytest.raises(DataFormatError, match=told):
            Objhal(questions=questions).load(DataRequest())
    with pytest.raises(EvalError, match=f"objhal needs {FILE}"):
        Objhal().load(DataRequest(images=place / "none"))


def test_answers_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = made()[0]
    objects = tmp_path / "objects.json"
    objects.write_text('{"42": ["dog"]}')
    options = ["--objects", str(objects), "--matcher", "builtin"]
    for rows, told in (
        ([good, good], "a further one for 1001"),
        ([good], "images of the ground truth, which lacks 1001"),
        ([{**good, "image_id": True}], "must have 'image_id', 'prompt' and the description"),
        ([{"image_id": 42, "text": "A dog."}], "what was asked as text under 'prompt'"),
        ([{"id": "1", "error": "no such file"}], "at least one description"),
    ):
        assert main(["score", "objhal", "--answers", written(tmp_path / "a.jsonl", rows), *options]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(AlignmentError):
        score_run(
            Objhal(),
            {"1": {"image_id": "1", "prompt": "p", "answer": "A dog."}},
            ObjhalScoring(truth={}, matcher="builtin"),
        )


def test_importing_the_scorers_loads_neither_torch_nor_nltk() -> None:
    code = (
        "import sys, damro.eval.objhal.command, damro.eval.mmhal.command; "
        "print([m for m in ('torch', 'nltk', 'spacy', 'openai', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
