"""What a command tells before the work: whether it can write where it is to, and whether a prompt is understood."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from damro.errors import ParameterError


def check_folder(path: str | Path) -> None:
    """Checks that a folder is there to be written in, or can be made.

    Raises:
        ParameterError: the path is a file or lies in one, or what is there may not be written.
    """
    there = Path(path)
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise ParameterError(f"--out must be a folder, got {str(path)!r}: {str(there)!r} is a file; give another")
    _check_writable(path, there)


def check_file(path: str | Path) -> None:
    """Checks that a file can be written.

    Raises:
        ParameterError: the path is a folder, lies in none, or may not be written.
    """
    target = Path(path)
    if target.is_dir():
        raise ParameterError(f"--out must be a file, got the folder {str(path)!r}: add a file's name")
    if target.exists() and not target.is_file():  # it would be replaced by one
        raise ParameterError(f"--out must be a file, got the device or pipe {str(path)!r}: give a file's name")
    if not target.parent.is_dir():
        raise ParameterError(
            f"--out must lie in a folder that exists, got {str(path)!r}; make the folder {str(target.parent)!r} first"
        )
    _check_writable(path, target if target.exists() else target.parent)


def _check_writable(path: str | Path, place: Path) -> None:
    if not os.access(place, os.W_OK):
        raise ParameterError(
            f"--out must be where you may write, got {str(path)!r}: {str(place)!r} is read-only; give another"
        )


def tell_unknown_words(processor: Any, prompt: str) -> None:
    """Tells on stderr what an embedded model does not understand of a prompt."""
    from damro.tiny.known import advice

    if (told := advice(processor, prompt)) is not None:
        print(f"damro: {told}", file=sys.stderr)
