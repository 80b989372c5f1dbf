"""Tables of what there is, made from the fields and docstrings of the code when the pages are built.

A line ``<!-- table: methods -->`` of a page becomes the table of all methods, ``benchmarks`` that of all benchmarks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from damro.eval.benchmark import BENCHMARKS
from damro.methods import METHODS
from damro.parameters import Parameter, parameters, plain, show


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    return re.sub(r"<!-- table: (\w+) -->", lambda match: TABLES[match[1]](), markdown)


def list_owners(kind: str, owners: Mapping[str, Any]) -> str:
    """A table of classes with their parameters, one line each.

    Args:
        kind: what one of them is called.
        owners: dataclasses by name, each with a `source`.
    """
    lines = [f"| {kind} | what it is | parameters and their defaults | source |", "|---|---|---|---|"]
    for name, owner in owners.items():
        what = _cell(plain(str(owner.__doc__).partition("\n")[0]))
        told = "<br>".join(_parameter(one) for one in parameters(owner))
        lines.append(f"| `{name}` | {what} | {told} | {_cell(owner.source)} |")
    return "\n".join(lines)


def _parameter(one: Parameter) -> str:
    default = " ".join(map(show, one.default)) if one.several else show(one.default)
    rule = f" ({_cell(one.rule)})" if one.kind is not str or one.choices else ""
    return f"`{one.name}={_cell(default)}` {_cell(one.help.rstrip('.'))}{rule}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


TABLES: dict[str, Callable[[], str]] = {
    "methods": lambda: list_owners("method", dict(METHODS)),
    "benchmarks": lambda: list_owners("benchmark", dict(BENCHMARKS)),
}
