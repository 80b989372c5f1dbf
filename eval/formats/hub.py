"""Data sets of the Hugging Face Hub: from ``hf:OWNER/NAME`` to the files of the cache."""

from __future__ import annotations

import re
from pathlib import Path

from damro.eval.errors import EvalError

PREFIX = "hf:"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_DEFAULT = "data/*.parquet"  # where the hub keeps the default configuration; others would hold the same rows again


def hub_files(name: str) -> list[Path]:
    """Return the Parquet files of a data set, downloaded if they are not in the cache.

    Those in its folder ``data`` are taken, and all there are where it has none.

    Args:
        name: ``hf:OWNER/NAME``, and behind an at sign a branch, tag or commit.

    Raises:
        EvalError: The name is none, the data set is neither in the cache nor can it be downloaded, or it holds no
            Parquet file.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if not _NAME.fullmatch(repository):
        raise EvalError(f"--data must be hf:OWNER/NAME to name a data set of the hub, got {name!r}")
    for pattern in (_DEFAULT, "*.parquet"):
        files = sorted(_download(name, repository, revision or None, pattern).glob(f"**/{pattern}"))
        if files:
            return files
    raise EvalError(f"--data must be a data set with Parquet files, got {name!r}, which has none: convert it first")


def _download(name: str, repository: str, revision: str | None, pattern: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=[pattern]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise EvalError(
            f"--data must be a data set that is in the hub's cache or can be downloaded, got {name!r} ({reason}): on a "
            f'machine with a network run \'hf download {repository} --repo-type dataset --include "{pattern}" '
            "--local-dir DIR', put DIR here and give --data DIR"
        ) from error
