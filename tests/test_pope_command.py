"""damro/cli/score_pope.py: ``damro score pope``."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from damro.cli import main
from damro.eval.pope import RULES

ROOT = Path(__file__).parent.parent
RECORDED = ROOT / "tests" / "data" / "pope"
RANDOM = str(RECORDED / "answers_llava-v1.5-13b_random.jsonl.gz")
ADVERSARIAL = str(RECORDED / "answers_llava-v1.5-13b_adversarial.jsonl.gz")
KEYS = "tp fp tn fn unparsed misread accuracy precision recall f1 yes_ratio n rule joined ci".split()


def write(path, *records):
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


@pytest.mark.parametrize(
    ("split", "answers", "counts"),
    [
        ("coco/random_2910", RANDOM, [1182, 31, 1379, 318, 0, 0]),
        ("coco/adversarial", ADVERSARIAL, [1182, 117, 1383, 318, 0, 0]),
    ],
)
def test_json(capsys, split, answers, counts):
    assert main(["score", "pope", "--split", split, "--answers", answers, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == KEYS
    assert [result[key] for key in KEYS[:6]] == counts
    assert (result["n"], result["rule"], result["recall"]) == (sum(counts), "pope", 0.788)


def test_questions_file_equals_shipped_split(capsys, tmp_path):
    shipped = ROOT / "eval" / "data" / "pope" / "coco_adversarial.jsonl.gz"
    copy = tmp_path / "questions.json"
    copy.write_bytes(gzip.decompress(shipped.read_bytes()))
    for source in (["--split", "coco/adversarial"], ["--questions", str(shipped)], ["--questions", str(copy)]):
        assert main(["score", "pope", *source, "--answers", ADVERSARIAL, "--json"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert others == [first, first]


def test_table(capsys):
    assert main(["score", "pope", "--split", "coco/random_2910", "--answers", RANDOM]) == 0
    cells = [
        line.replace("\u2502", " ").replace("\u2503", " ").split() for line in capsys.readouterr().out.splitlines()
    ]
    assert ["pope"] in cells
    assert ["tp", "1182"] in cells and ["tn", "1379"] in cells and ["n", "2910"] in cells
    assert ["recall", "78.80", "%"] in [line[:3] for line in cells]
    assert ["precision", "97.44", "%"] in [line[:3] for line in cells]


def test_every_rule_at_once(capsys):
    arguments = ["score", "pope", "--split", "coco/random_2910", "--answers", RANDOM, "--rule", "all"]
    assert main([*arguments, "--json"]) == 0
    assert [result["rule"] for result in json.loads(capsys.readouterr().out)] == list(RULES)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(rule in out for rule in RULES) and max(map(len, out.splitlines())) <= 80


def test_null_for_a_zero_denominator(capsys, tmp_path):
    record = {
        "question_id": 1,
        "image": "a.jpg",
        "text": "Is there a cat in the image?",
        "label": "yes",
        "response": "No",
    }
    path = write(tmp_path / "both.jsonl", record)
    assert main(["score", "pope", "--questions", path, "--answers", path, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["precision"], result["f1"], result["recall"]) == (None, None, 0.0)
    assert main(["score", "pope", "--questions", path, "--answers", path]) == 0
    assert "-" in capsys.readouterr().out


def test_corrected_labels(capsys, tmp_path):
    asked = [{"image": "a.jpg", "text": f"Is there {n}?", "label": "yes", "response": "Yes"} for n in range(4)]
    path = write(tmp_path / "both.jsonl", *asked)  # without ids: joined by image and question
    changed = [{**asked[0], "label": "no"}, {**asked[1], "label": "ambiguous"}, asked[2]]
    labels = write(tmp_path / "labels.jsonl", *changed)
    arguments = ["score", "pope", "--questions", path, "--answers", path, "--labels", labels]
    for more, counts in (([], (2, 1, 3, 1, 1)), (["--labels-complete"], (1, 1, 2, 1, 2))):
        assert main([*arguments, *more, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert tuple(result[key] for key in ("tp", "fp", "n", "labels_changed", "excluded_by_labels")) == counts
    assert main(arguments) == 0
    assert "excluded_by_labels" in capsys.readouterr().out
    assert main([*arguments[:-2], "--labels-complete"]) == 2
    assert "must come with --labels" in capsys.readouterr().err
    write(tmp_path / "labels.jsonl", *[{**each, "label": "unsure"} for each in asked])
    assert main(arguments) == 2
    assert "--labels must leave at least one question, got a file that excludes all 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "content", "message"),
    [
        (
            "coco/random",
            '{"question_id": 1, "answer": "Yes"}\n{"question_id": 2, "answer"',
            "answers.jsonl, line 2: not JSON",
        ),
        (
            "coco/random",
            '{"question_id": 1, "answer": "Yes"}',
            "1 answers to 3000 questions: 2999 missing (id 2, id 3, id 4, ...)",
        ),
        ("coco/random", "", "answers.jsonl: must hold at least one record, is empty"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_2(capsys, tmp_path, split, content, message):
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    assert main(["score", "pope", "--split", split, "--answers", str(path), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--split", "coco/random"],
        ["--split", "coco/hard", "--answers", RANDOM],
        ["--split", "coco/random", "--questions", RANDOM, "--answers", RANDOM],
        ["--split", "coco/random", "--answers", RANDOM, "--rule", "llava"],
    ],
)
def test_bad_arguments(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["score", "pope", *arguments])
    assert stopped.value.code == 2 and "--help" in capsys.readouterr().err


def test_scoring_loads_no_model_library():
    code = (
        "import sys; from damro.cli import main\n"
        f"main(['score', 'pope', '--split', 'coco/random_2910', '--answers', {RANDOM!r}, '--json'])\n"
        "print([name for name in ('torch', 'transformers', 'nltk', 'pyarrow', 'openpyxl', 'huggingface_hub')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[0])["tp"] == 1182
    assert done.stdout.splitlines()[1:] == ["[]"]
