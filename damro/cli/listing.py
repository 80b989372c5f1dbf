"""Lists of things that describe themselves: methods, benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from damro.parameters import Parameter, parameters, plain, show


def print_listing(
    kind: str,
    owners: Mapping[str, Any],
    *,
    as_json: bool,
    more: Callable[[Any], Mapping[str, Any]] = lambda owner: {},
) -> None:
    """Prints names, what each is, its parameters with rules and defaults, and its source.

    Args:
        kind: what one of them is called.
        owners: dataclasses by name, each with a `source`.
        as_json: whether to print one JSON object.
        more: what else there is to tell of each, by its heading.
    """
    if as_json:
        print(json.dumps({name: {**_to_dict(owner), **more(owner)} for name, owner in owners.items()}, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{kind}s", show_lines=True)
    table.add_column(kind, no_wrap=True)
    table.add_column("what it is; its parameters, what they must be and their defaults; its source")
    for name, owner in owners.items():
        told = [f"  [dim]{escape(heading)}: {escape(text)}[/]" for heading, text in more(owner).items()]
        source = f"[dim]{escape(owner.source)}[/]"
        lines = [escape(summary(owner)), *(_line(one) for one in parameters(owner)), *told, source]
        table.add_row(f"[bold]{escape(name)}[/]", "\n".join(lines))
    Console().print(table)


def summary(owner: Any) -> str:
    """What something is: the first line of its docstring."""
    return plain(str(owner.__doc__).partition("\n")[0])


def _line(one: Parameter) -> str:
    from rich.markup import escape

    rule = "" if one.kind is str and not one.choices else f" ({one.rule})"
    return f"  [bold]{one.name}[/]={escape(_default(one))}: {escape(one.help.rstrip('.') + rule)}"


def _default(one: Parameter) -> str:
    return (" ".join(map(show, one.default)) or "none") if one.several else show(one.default)


def _to_dict(owner: Any) -> dict[str, Any]:
    told = {one.name: {"default": one.default, "must_be": one.rule, "help": one.help} for one in parameters(owner)}
    return {"what": summary(owner), "parameters": told, "source": owner.source}
