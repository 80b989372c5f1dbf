"""Makes Markdown of what docstrings write in the manner of Sphinx and doctest, for the API pages."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")
_DOCTEST = re.compile(r"^([ ]*)>>> .*(?:\n[ ]*\S.*)*", re.MULTILINE)
_TABLE = re.compile(r"^(=+(?: =+)+\n.*\n=+(?: =+)+)$", re.MULTILINE | re.DOTALL)


class DocstringMarks(Extension):
    """Turns roles into code, `::` into what it announces, simple tables and doctests into blocks."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrites one docstring, before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """The text with those marks replaced."""
    text = _ROLE.sub(r"`\1`", text)
    text = _TABLE.sub(r"```text\n\1\n```", text)
    text = _DOCTEST.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)
    text = re.sub(r"^::\n", "", text, flags=re.MULTILINE)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)
