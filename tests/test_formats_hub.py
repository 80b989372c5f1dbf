from pathlib import Path

import pytest

from damro.eval.errors import EvalError
from damro.eval.formats.hub import hub_files


def fill(cache: Path, name: str, *files: str, revision: str = "main") -> Path:
    """A cache of the hub that holds files of a data set, as a download leaves it."""
    folder = cache / f"datasets--{name.replace('/', '--')}"
    commit = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text(commit)
    for file in files:
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PAR1")
    return folder / "snapshots" / commit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_the_default_configuration_of_what_is_in_the_cache(cache: Path) -> None:
    files = ("data/test-00001-of-00002.parquet", "data/test-00000-of-00002.parquet", "Full/random-00000.parquet")
    folder = fill(cache, "lmms-lab/POPE", *files)
    assert hub_files("hf:lmms-lab/POPE") == [folder / files[1], folder / files[0]]


def test_all_files_where_there_is_no_default(cache: Path) -> None:
    folder = fill(cache, "me/mine", "b.parquet", "more/a.parquet")
    assert hub_files("hf:me/mine") == [folder / "b.parquet", folder / "more" / "a.parquet"]


def test_a_revision(cache: Path) -> None:
    folder = fill(cache, "me/mine", "data/a.parquet", revision="v1")
    assert hub_files("hf:me/mine@v1") == [folder / "data" / "a.parquet"]


def test_what_is_not_there_says_what_to_download_and_where_to_put_it(cache: Path) -> None:
    with pytest.raises(EvalError) as told:
        hub_files("hf:lmms-lab/POPE")
    message = str(told.value)
    assert "got 'hf:lmms-lab/POPE'" in message and "\n" not in message
    assert "hf download lmms-lab/POPE --repo-type dataset" in message and "put DIR here and give --data DIR" in message


def test_names_that_are_none(cache: Path) -> None:
    fill(cache, "me/empty", "README.md")
    for name, message in (
        ("hf:POPE", "must be hf:OWNER/NAME"),
        ("hf:me/empty", "got 'hf:me/empty', which has none"),
    ):
        with pytest.raises(EvalError, match=message):
            hub_files(name)
