"""What an installed damro adds to Python: the one name ``damro``, whatever a user's own folder holds."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKS = ("decoding", "eval")

pytestmark = pytest.mark.slow
# Not by importing: pip in this process would have setuptools take back its own distutils, for good.
needed = [name for name in ("pip", "hatchling", "editables") if name not in packages_distributions()]
if needed:
    pytest.skip(f"{', '.join(needed)} is not installed: the package cannot be built offline", allow_module_level=True)


def outside_environment(tmp: Path) -> dict[str, str]:
    """The variables of a user who knows nothing of this checkout."""
    ours = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTEST_ADDOPTS", "WORLD_SIZE", "RANK", "LOCAL_RANK")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    # A fresh HF_HOME: accelerate reads its defaults there.
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp / "hf"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**kept, **quiet, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def call(*command: str | Path, cwd: Path, fails: bool = False) -> str:
    """Runs a command and returns what it wrote to both streams."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=outside_environment(cwd),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def pip_wheel(source: Path, out: Path) -> Path:
    out.mkdir()
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, source, cwd=out)
    (wheel,) = out.glob("*.whl")
    return wheel


def make_environment(place: Path) -> Path:
    """An environment that sees the packages of the running one, behind its own. Returns its Python.

    A .pth adds folders, but reads no .pth in them: an editable damro of the running environment is not seen.
    """
    venv.create(place, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)}))
    visible = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # Read before _editable_impl_damro.pth, which imports a module of a visible package.
    (site / "00_visible.pth").write_text("\n".join(visible))
    return place / "bin" / "python"


def pip_install(python: Path, *what: str | Path) -> None:
    """Installs what, whether or not the running environment's folders hold a damro."""
    options = ("--no-deps", "--no-build-isolation", "--ignore-installed")
    call(sys.executable, "-m", "pip", "--python", python, "install", *options, *what, cwd=python.parent)


def contents(wheel: Path) -> dict[str, int]:
    """Each file's checksum by its name."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pip_wheel(ROOT, tmp_path_factory.mktemp("build") / "wheel")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The Python of a fresh environment in which the wheel is installed."""
    python = make_environment(tmp_path_factory.mktemp("fresh") / "venv")
    pip_install(python, wheel)
    return python


def test_the_wheel_adds_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (record,) = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
    first = {row[0].split("/")[0] for row in rows}
    assert {name for name in first if not name.endswith(".dist-info")} == {"damro"}


def test_the_wheel_holds_every_file_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    assert len(set(names)) == len(names)
    assert not [entry.filename for entry in entries if (entry.external_attr >> 16) & 0o170000 == 0o120000]  # no links
    files = {
        (Path(folder) / file).relative_to(ROOT).as_posix()
        for folder, _, found in os.walk(ROOT / "damro", followlinks=True)
        for file in found
        if not file.endswith(".pyc")
    }
    assert {name for name in names if name.startswith("damro/")} == files
    assert {"damro/py.typed", "damro/decoding/py.typed", "damro/eval/py.typed"} <= files
    assert {"damro/eval/data/ORIGIN.md", "damro/tiny/checkpoints/llava/model.safetensors"} <= files
    assert {"damro/eval/report/templates/report.html", "damro/pages/templates/explain.html"} <= files


def test_the_wheel_holds_the_licences(wheel: Path) -> None:
    licences = [name.partition(".dist-info/licenses/")[2] for name in contents(wheel)]
    assert set(licences) - {""} == {"LICENSE", "damro/eval/data/ORIGIN.md", "damro/tiny/data/OFL.txt"}


def test_a_source_archive_gives_the_same_wheel(tmp_path: Path, wheel: Path) -> None:
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path / "sdist", cwd=ROOT)
    (archive,) = (tmp_path / "sdist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert not any((source / name).exists() for name in LINKS)  # real folders in damro/ alone
    assert contents(pip_wheel(source, tmp_path / "wheel")) == contents(wheel)


@pytest.mark.parametrize("missing", [("decoding", "eval"), ("eval",)])
def test_no_build_without_the_links(tmp_path: Path, missing: tuple[str, ...]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "damro", source / "damro", ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    for name in missing:  # as git writes a link where it cannot make one
        shutil.rmtree(source / "damro" / name)
        (source / "damro" / name).write_text(f"../{name}")
    options = ("--no-deps", "--no-build-isolation", "-w", tmp_path / "wheel")
    told = call(sys.executable, "-m", "pip", "wheel", *options, source, cwd=tmp_path, fails=True)
    names = " and ".join(f"damro/{name}" for name in missing)
    (sentence,) = [line.strip() for line in told.splitlines() if "symbolic link" in line]
    assert sentence.startswith(f"{names} must be a symbolic link")
    assert "git config core.symlinks true" in sentence
    assert "Traceback" not in told
    assert not list(tmp_path.rglob("*.whl"))


FIND = "import sys; from importlib.util import find_spec; print(*[name for name in sys.argv[1:] if find_spec(name)])"


def test_an_editable_install_adds_one_name(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv")
    empty = tmp_path / "empty"
    empty.mkdir()
    names = {path.stem for path in ROOT.iterdir() if path.stem.isidentifier()}
    assert {"damro", *LINKS, "benchmarks", "hatch_build"} <= names
    before = set(call(python, "-c", FIND, *names, cwd=empty).split())
    pip_install(python, "--editable", ROOT)
    after = set(call(python, "-c", FIND, *names, cwd=empty).split())
    assert "damro" in after
    assert after - before <= {"damro"}
    files = "import damro, damro.decoding as d, damro.eval as e; print(*[m.__file__ for m in (damro, d, e)], sep='\\n')"
    found = [Path(line) for line in call(python, "-c", files, cwd=empty).splitlines()]
    assert found == [ROOT / "damro" / folder / "__init__.py" for folder in ("", *LINKS)]


LAYOUTS = {
    "modules": {"eval.py": "def f(): return 7", "decoding.py": "mine = True"},
    "packages": {
        "eval/__init__.py": "",
        "eval/metrics.py": "def f(): return 7",
        "decoding/__init__.py": "mine = True",
    },
    "folders": {"eval/metrics.py": "def f(): return 7", "decoding/steps.py": "mine = True"},
}

PROGRAM = """
import json
import damro
import decoding{steps}
from eval{metrics} import f
from damro import DAMROProcessor
import damro.decoding, damro.eval, eval
assert f() == 7 and decoding{steps}.mine and DAMROProcessor.__module__ == "damro.processor"
mine = [list(module.__path__)[0] if hasattr(module, "__path__") else module.__file__ for module in (decoding, eval)]
print(json.dumps([[damro.__file__, damro.decoding.__file__, damro.eval.__file__], mine]))
"""

TEST = """
import damro, damro.eval, decoding{steps}
from eval{metrics} import f

def test_f():
    assert f() == 7 and decoding{steps}.mine
    assert [damro.__file__, damro.eval.__file__] == {installed}
"""


def write_user(folder: Path, layout: str, installed: Path) -> None:
    """Writes a folder whose files are called as ours are, with a program and a test of the user's own."""
    metrics = "" if layout == "modules" else ".metrics"
    steps = ".steps" if layout == "folders" else ""
    ours = repr([str(installed / "__init__.py"), str(installed / "eval" / "__init__.py")])
    files = {
        **LAYOUTS[layout],
        "program.py": PROGRAM.format(metrics=metrics, steps=steps),
        "test_mine.py": TEST.format(metrics=metrics, steps=steps, installed=ours),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(scope="module")
def installed(python: Path) -> Path:
    """The folder of the installed package; it is the fresh environment's."""
    folder = Path(call(python, "-c", "import damro; print(damro.__path__[0])", cwd=python.parent).strip())
    assert folder.is_relative_to(python.parents[1])
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def user(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_user(folder, request.param, installed)
    return folder


def test_both_are_imported_side_by_side(python: Path, installed: Path, user: Path) -> None:
    ours, mine = json.loads(call(python, "program.py", cwd=user))
    assert [Path(file) for file in ours] == [installed / folder / "__init__.py" for folder in ("", *LINKS)]
    assert [Path(path).relative_to(user).parts[0].removesuffix(".py") for path in mine] == list(LINKS)


def test_the_command_starts_there(python: Path, user: Path) -> None:
    script = call(python.parent / "damro", "--version", cwd=user)
    assert script.startswith("damro ")
    assert call(python, "-m", "damro", "--version", cwd=user) == script


def test_their_tests_run_there(python: Path, user: Path) -> None:
    # -P: like the script pytest, which does not put the working folder on the path by itself.
    assert "1 passed" in call(python, "-P", "-m", "pytest", "-p", "no:cacheprovider", "--rootdir=.", cwd=user)


RUN = "-m damro.cli run pope --model tiny --split random --limit 6 --scenes 12 --device cpu --max-new-tokens 3".split()
# With --cpu, accelerate starts one process unless it is told of mpirun's hosts; torchrun starts both.
ACCELERATE = ("accelerate.commands.launch", "--cpu", "--num_processes", "2")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--redirects", "3", "--log-dir", "logs")


def launch(python: Path, folder: Path, *launcher: str) -> list[dict[str, str]]:
    """Runs six questions in a folder and returns the records, which must be in one file and scored."""
    out = folder / "out"
    call(python, "-m", *launcher, *RUN, "--out", out, cwd=folder)
    (file,) = out.rglob("records*.jsonl")
    assert (out / "scores.json").is_file()
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_accelerate_starts_a_run_there(python: Path, user: Path) -> None:
    records = launch(python, user, *ACCELERATE)
    assert [record["question_id"] for record in records] == ["1", "2", "3", "4", "5", "6"]
    assert all(record["answer"] for record in records)


def test_two_processes_share_a_run_there(python: Path, installed: Path, tmp_path: Path) -> None:
    write_user(tmp_path, "packages", installed)
    records = launch(python, tmp_path, *TORCHRUN)
    assert [record["question_id"] for record in records] == ["1", "2", "3", "4", "5", "6"]
    assert len(list((tmp_path / "logs").rglob("stderr.log"))) == 2
