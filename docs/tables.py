"""Tables of what there is, made from the fields and docstrings of the code when the pages are built.

A line ``<!-- table: methods -->`` of a page becomes the table of all methods, ``costs`` that of what they cost and
refuse, ``benchmarks`` that of all benchmarks, ``families`` that of the image-text models of the transformers that is
installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from damro.decoding.families.survey import RANKED, survey
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


def list_costs() -> str:
    """A table of methods: what each is and costs beside plain decoding, what it refuses, and whose code there is."""
    lines = [
        "| method | what it is | language passes a token | vision passes an image | memory | does not work with | "
        "code |",
        "|---|---|---:|---:|---|---|---|",
    ]
    for name, method in METHODS.items():
        what = _cell(plain(str(method.__doc__).partition("\n")[0]))
        passes, looks, memory = method.cost
        more = [f"+{number:g}" if number else "" for number in (passes, looks)]
        code = f"[{method.code.partition('/')[2]}](https://{method.code})" if method.code else ""
        cells = [f"`{name}`", what, *more, memory, "<br>".join(map(_cell, method.limits)), code]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def list_families() -> str:
    """A table of image-text model types, one line each."""
    lines = ["| model type | served | ranked by | tested | what to know |", "|---|---|---|---|---|"]
    for one in survey():
        tested = "yes" if one.tested else ""
        lines.append(f"| `{one.model_type}` | {one.how} | {_cell(RANKED[one.ranked])} | {tested} | {_cell(one.note)} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "families": list_families,
    "methods": lambda: list_owners("method", dict(METHODS)),
    "costs": list_costs,
    "benchmarks": lambda: list_owners("benchmark", dict(BENCHMARKS)),
}
