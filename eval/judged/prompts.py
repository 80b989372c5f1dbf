"""What a judge is asked with: the benchmark's own prompt from a file of the user's, or this package's.

The official prompts are parts of official scripts. They do not come with this package; they are read from a copy of the
script, which is not run.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from damro.eval.errors import DataFormatError
from damro.eval.groups import Note
from damro.eval.records import read_text

OFFICIAL, OWN = "official", "damro's own"
"""How prompts are called."""
_DIGITS = 8


class Prompt(NamedTuple):
    """What a judge is asked with.

    Attributes:
        text: With holes.
        name: `OFFICIAL`; or `OWN`, or a file's name, with some digits of the text's SHA-256.
    """

    text: str
    name: str

    def fill(self, *values: tuple[str, str]) -> str:
        """Return the text with its holes filled. What is filled in is not searched for holes.

        Args:
            values: Holes with what goes there, in the order of the text.

        Example:
            >>> Prompt("Q: {} A: {}", OWN).fill(("{}", "Is {} a set?"), ("{}", "Yes"))
            'Q: Is {} a set? A: Yes'
        """
        parts, rest = [], self.text
        for hole, value in values:
            head, _, rest = rest.partition(hole)
            parts += [head, value]
        return "".join([*parts, rest])


def own_prompt(text: str) -> Prompt:
    """Return a prompt of this package's; its name changes with its text, as figures may."""
    return Prompt(text, f"{OWN} {_digest(text)[:_DIGITS]}")


def read_prompt(path: Path | str, variable: str, holes: Sequence[str], official: str) -> Prompt:
    """Read a prompt from a script, where a variable is set to it, or from a file that holds nothing else.

    Args:
        path: A ``.py`` file, which is read and not run, or any other.
        variable: Its name in the script.
        holes: What it must hold, in this order.
        official: SHA-256 of the official one.

    Raises:
        DataFormatError: The file cannot be read, the script has no such variable, or a hole is missing.
    """
    path = Path(path)
    text = read_text(path)
    if path.suffix.lower() == ".py":
        text = _find(text, variable, path)
    rest, found = text, list[str]()
    for hole in holes:
        _, hit, rest = rest.partition(hole)
        found.append(hit)
    if found != list(holes) or sum(map(text.count, set(holes))) != len(holes):
        raise DataFormatError(
            f"{path}: a judge's prompt must hold {', '.join(holes)} once each and in this order: give the official "
            "script, or a text with these holes"
        )
    digest = _digest(text)
    return Prompt(text, OFFICIAL if digest == official else f"{path.name} {digest[:_DIGITS]}")


def _find(script: str, variable: str, path: Path) -> str:
    try:
        statements = ast.parse(script).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataFormatError(f"{path}: must be a Python script to be read for its prompt ({error})") from error
    for one in statements:
        if isinstance(one, ast.Assign) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str):
            if any(isinstance(target, ast.Name) and target.id == variable for target in one.targets):
                return one.value.value
    raise DataFormatError(
        f"{path}: must set the variable {variable!r} to the judge's prompt, does not: give the official script, or the "
        "prompt alone as a .txt file"
    )


def note_of(prompt: str) -> Note:
    """Return what a reader must know of the prompt that answers were judged with."""
    told = "its wording is not the official one: figures are not to be compared with published ones"
    return Note("prompt", prompt, told, doubtful=prompt != OFFICIAL)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
