"""What a user can mend ends with exit code 2 and one line: the argument, the rule, the value, the remedy."""

from __future__ import annotations

import argparse
import errno
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_models import save_golden
from safetensors.torch import load_file, save_file

import damro
from damro import cli
from damro.cli import main
from damro.cli.outputs import check_file, check_folder
from damro.errors import InputsError, ParameterError
from damro.tiny.scenes import scene

JUDGE = "--endpoint http://127.0.0.1:1/v1 --model judge"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, broken ones, a file, a folder, a folder of two runs, answers that fit nothing, a checkpoint of NaN."""
    folder = tmp_path_factory.mktemp("place")
    scene("test", 1).image.save(folder / "image.png")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "image.png").read_bytes()[:300])
    (folder / "file").touch()
    (folder / "folder").mkdir()
    for name in ("greedy", "damro"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "run.json").touch()
    (folder / "model_answers.txt").write_text("a.jpg\tIs it?\tYes\tYes\n")
    weights = save_golden("llava", folder / "nan") / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "vision" in name and tensors[name].ndim == 2)
    tensors[name][0, 0] = math.nan
    save_file(tensors, weights, {"format": "pt"})
    return folder


@pytest.fixture
def told(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Runs a command line that must fail, and returns the last line of stderr; the only one unless a model loads."""
    monkeypatch.chdir(place)

    def run(line: str, *, loads: bool = False) -> str:
        try:
            code = main(shlex.split(line))
        except SystemExit as stopped:
            code = stopped.code  # type: ignore[assignment]
        captured = capsys.readouterr()
        lines = [text for text in captured.err.splitlines() if text.strip()]
        assert (code, captured.out) == (2, "")
        assert "Traceback" not in captured.err
        assert loads or len(lines) == 1, lines
        return lines[-1]

    return run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run pope --methds greedy", "damro run: unrecognized arguments: --methds greedy; did you mean '--methods'?"),
        ("compare a --ot=b", "damro compare: unrecognized arguments: --ot=b; did you mean '--out'?"),
        ("runn pope", "COMMAND must be one of score, demo, .*, got 'runn'; did you mean 'run'?"),
        (
            "score popee",
            "BENCHMARK must be one of pope, chair, mme, amber, .*, got 'popee'; did you mean 'pope'?",
        ),
        (
            "run popee --model tiny",
            "benchmark must be one of pope, chair, mme, amber, .*, got 'popee'; did you mean 'pope'?",
        ),
        ("run pope --dtype float23", "--dtype must be one of auto, .*, got 'float23'; did you mean 'float32'?"),
        ("run pope --limit ten", "--limit must be a whole number, got 'ten'; 'damro run --help' lists"),
        ("run pope --top-p most", "--top-p must be a number, got 'most'"),
        (
            "score mme --answers model_answers.txt",
            "name must end in its category.*, got 'model_answers.txt': rename it",
        ),
        ("score mme --answers none.txt", "none.txt: cannot be read (No such file or directory)"),
        ("compare runs", "runs/damro/run.json, line 1: not JSON"),  # a folder of runs is those that lie in it
        ("reproduce pope runs", "RUN must be the folder of one run, got 'runs', which holds runs"),
        (f"judge runs runs/damro {JUDGE}", "RUN must be the folder of one run, got 'runs', which holds runs"),
        ("run --from runs --out again", "RUN must be the folder of one run, got 'runs', which holds runs"),
        ("compare folder", "RUN must be the folder of one run, got 'folder', which holds no run.json: give a folder"),
        ("compare none", "RUN must be the folder of one run, got 'none', which is not there"),
        (f"judge runs/damro runs/damro {JUDGE} --limit 0", "--limit must be a whole number of at least 1, got '0'"),
        ("bench --batch 0", "--batch must be a whole number of at least 1, got '0'"),
    ],
)
def test_names_and_numbers(line: str, message: str, told: Callable[[str], str]) -> None:
    assert_in(message, told(line))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("answer image.png ''", "prompt must be a text that is not empty, got ''"),
        ("explain image.png ' '", "prompt must be a text that is not empty, got ' '"),
        ("attention image.png --prompt ''", "--prompt must be a text that is not empty, got ''"),
        ("answer image.png Hi --max-new-tokens 0", "--max-new-tokens must be a whole number of at least 1, got '0'"),
        ("explain image.png Hi --max-new-tokens -1", "--max-new-tokens must be a whole number of at least 1, got '-1'"),
        ("attention image.png --max-new-tokens 0", "--max-new-tokens must be a whole number of at least 1, got '0'"),
        ("answer empty.png Hi", "image must be a file that Pillow can open, got 'empty.png': cannot identify"),
        ("explain cut.png Hi", "image must be a file that Pillow can open, got 'cut.png': image file is truncated"),
        ("attention none.png", "image must be a file that Pillow can open, got 'none.png': no such file"),
        ("attention image.png --out folder/none/a.png", "--out must lie in a folder that exists, got .*; make the"),
        ("explain image.png Hi --out folder", "--out must be a file, got the folder 'folder': add a file's name"),
        ("answer image.png Hi --attn-implementation foo", "attn_implementation must be one of eager, .*, got 'foo'"),
        ("answer image.png Hi --revision v2", "revision must be left out for the embedded 'tiny', got 'v2'"),
        ("run pope --max-new-tokens 0", "max_new_tokens must be at least 1, got 0"),
        ("run pope --limit 0", "limit must be at least 1, got 0"),
        ("run pope --batch-size 0", "batch_size must be at least 1, got 0"),
        ("run chair --prompt ''", "prompt must be a text that is not empty, got ''"),
        ("run pope --out file", "--out must be a folder, got 'file': 'file' is a file"),
        ("run pope --out file/below", "--out must be a folder, got 'file/below': 'file' is a file"),
        ("run pope --top-p 0.9", "--top-p must come with a method that samples, got 0.9 with greedy: .* greedy@1"),
        ("run pope --device cpu --device-map auto", "--device must be left out with --device-map, got 'cpu'"),
        ("run pope --scenes 20 --images folder", "--scenes must come with the embedded model and no --images, got 20"),
    ],
)
def test_before_a_model_is_loaded(line: str, message: str, told: Callable[[str], str]) -> None:
    assert_in(message, told(f"{line} --model tiny"))


@pytest.mark.parametrize("line", ["demo --out file", "compare runs/greedy --out file/below"])
def test_a_folder_to_write_is_tried_first(line: str, told: Callable[[str], str]) -> None:
    assert_in("--out must be a folder, got 'file", told(line))


@pytest.mark.parametrize("device", ["gpu0", "meta", "cuda:99"])
@pytest.mark.parametrize(
    "line",
    [
        *("answer image.png Hi --model tiny", "attention image.png --model tiny", "explain image.png Hi --model tiny"),
        *("run pope --model tiny", "bench --config micro"),
    ],
)
def test_a_device_that_there_is_not(line: str, device: str, told: Callable[[str], str]) -> None:
    message = f"device must be one that this machine and its torch have (.*cpu.*), got '{device}': .*; leave it out"
    assert_in(message, told(f"{line} --device {device}"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(told: Callable[[str], str]) -> None:
    assert_in("device must be one that .* (cpu.*), got 'cuda'", told("answer image.png Hi --model tiny --device cuda"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("answer image.png 'USER: <image> <image> Hi ASSISTANT:'", "prompt must hold .* one image, got 2 in 'USER"),
        ("attention image.png --prompt '<image><image>'", "prompt must hold the image token in front or not at all"),
        ("run chair --prompt 'USER: <image> <image> Hi ASSISTANT:'", "prompt must hold .* one image, got 2 in 'USER"),
        ("explain image.png Hi --layers 99", "layers must name some of the language model's 4 layers (0 to 3), got 99"),
        ("explain image.png Hi --top-k 9999", "top_k must be a whole number from 1 to the 64 patches .*, got 9999"),
        ("attention image.png --layer 99", "layer must name one of the ViT's 6 layers .*, got 99"),
    ],
)
def test_what_only_the_model_can_tell(line: str, message: str, told: Callable[..., str], place: Path) -> None:
    assert_in(message, told(f"{line} --model tiny", loads=True))
    assert not (place / "runs/chair").exists()  # nothing is recorded


@pytest.mark.parametrize(
    "line",
    [
        *("answer image.png Hi --model nan", "attention image.png --model nan", "explain image.png Hi --model nan"),
        *("run chair --model nan --images folder --objects objects.json", "bench --config nan --image-tokens 64"),
    ],
)
def test_a_checkpoint_of_nan(line: str, told: Callable[..., str], place: Path) -> None:
    scene("test", 1).image.save(place / "folder/1.png")
    (place / "objects.json").write_text('{"1": ["cat"]}')
    message = "model must have finite weights, got NaN or infinity in 1 of 'nan'"
    assert_in(message, told(line + " --device cpu", loads=True))
    assert not (place / "runs/chair").exists()


def test_the_app_refuses_a_checkpoint_of_nan(told: Callable[..., str]) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    assert_in("model must have finite weights, got NaN", told("app --model nan --device cpu", loads=True))


@pytest.mark.parametrize("line", ["answer image.png Hi", "attention image.png", "explain image.png Hi"])
def test_images_of_more_pixels_than_asked_for(line: str, told: Callable[..., str]) -> None:
    message = "image must have at most 9215 pixels, got 96x96 = 9216; scale it down ('image.png')"
    assert_in(message, told(f"{line} --model tiny --max-pixels 9215"))
    assert_in("--max-pixels must be a whole number of at least 1, got '0'", told(f"{line} --model tiny --max-pixels 0"))


@pytest.mark.parametrize(
    "line", ["answer image.png WORDS", "explain image.png WORDS", "attention image.png --prompt WORDS"]
)
def test_prompts_longer_than_the_context(line: str, told: Callable[..., str]) -> None:
    message = "prompt must leave room for a new token in the model's context of 1024 columns, got .* too many; shorten"
    words = "'" + "Is there a cat? " * 300 + "'"
    assert_in(message, told(f"{line.replace('WORDS', words)} --model tiny --device cpu", loads=True))


def test_the_app_refuses_prompts_longer_than_the_context(place: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    from damro import tiny
    from damro.pages import app

    model, processor = tiny.load()
    long = "cat dog " * (app.PROMPT_LIMIT // 8)
    model.config.get_text_config().max_position_embeddings = 100
    with pytest.raises(InputsError, match="the model's context of 100 columns"):
        next(app.answer_request(model, processor, "tiny", str(place / "image.png"), long, 1.0, 0.1, 2, 4))


def test_the_app_names_its_extra(told: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "damro.pages.app", raising=False)
    assert told("app") == (
        "damro: damro app needs the package gradio, which is not installed; pip install 'damro[app]'"
    )


def test_the_judge_names_its_extra_and_missing_images(
    told: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        scene("test", number).image.save(tmp_path / f"images/{number}.png")
    (tmp_path / "objects.json").write_text('{"1": ["cat"], "2": ["dog"]}')
    files = ["--images", str(tmp_path / "images"), "--objects", str(tmp_path / "objects.json"), "--out", str(tmp_path)]
    options = ["--methods", "greedy", "no-image", "--max-new-tokens", "1", "--device", "cpu", "--matcher", "builtin"]
    assert main(["run", "chair", "--model", "tiny", *files, *options]) == 0
    capsys.readouterr()
    judged = f"judge {tmp_path}/greedy {tmp_path}/no-image {JUDGE} --out {tmp_path}/judged"
    (tmp_path / "images/2.png").unlink()
    assert_in("--images must be the folder .*, which lacks 1 of 2 (2.png): give the folder", told(judged))
    assert not (tmp_path / "judged").exists()  # a judgement that failed would not be asked for again
    monkeypatch.setitem(sys.modules, "openai", None)
    assert_in("openai package: pip install 'damro[judge]'", told(f"{judged} --no-images"))


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the system's answer is put in."""
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "locked")
    check_folder(tmp_path / "open/below")
    check_file(tmp_path / "a.html")
    for check in (check_folder, check_file):
        with pytest.raises(
            ParameterError, match="--out must be where you may write, .*locked' is read-only; give anot"
        ):
            check(tmp_path / "locked/a.html")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "path 'a/b' must be usable, got: Read-only file system"),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"),
            "path 'a/b' must be usable, got: Not a directory",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "must allow .*, refused: No space left on device; mend that",
        ),
        (MemoryError(), "memory must suffice, got: there is none left; take a smaller image"),
        (torch.OutOfMemoryError("CUDA out of memory."), "memory must suffice, got: CUDA out of memory.; take a"),
        (ParameterError("two\nlines"), "two lines"),
    ],
)
def test_errors_of_the_system_are_one_line(
    error: Exception, message: str, told: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "build_parser", lambda: failing(error))
    assert_in(message, told("it"))


@pytest.mark.parametrize("error", [OSError("what nobody told"), TypeError("a bug"), ValueError("a bug")])
def test_a_bug_shows_its_traceback_and_says_whose_it_is(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "build_parser", lambda: failing(error))
    assert main(["it"]) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [
        f"{type(error).__name__}: {error}",
        f"damro: this is a bug of damro {damro.__version__}; please report it with this traceback",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_output_that_cannot_be_written_is_one_line() -> None:
    code = "import sys; from damro.cli import main; sys.exit(main(['methods']))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "damro: the system must allow what the command does, refused: No space left on device; mend that\n"
    )


def test_answers_are_printed_in_whatever_letters_the_terminal_has() -> None:
    code = "from damro.cli import main; main(['methods', '-h']); print('caf\\xe9')"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\ntry:\n {code}\nexcept SystemExit: print('caf\\xe9')"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("caf\\xe9\n")


def failing(error: Exception) -> argparse.ArgumentParser:
    def run(args: argparse.Namespace) -> int:
        raise error

    parser = argparse.ArgumentParser()
    parser.add_subparsers().add_parser("it").set_defaults(run=run)
    return parser


def assert_in(message: str, line: str) -> None:
    """Whether the parts of a message between ``.*`` stand in the line, in their order."""
    place = 0
    for part in message.split(".*"):
        assert part in line[place:], (part, line)
        place = line.index(part, place) + len(part)
