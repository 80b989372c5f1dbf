"""``damro methods``: what there is to decode by, what it costs, where it does not work; with --long all parameters."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from damro.cli.listing import print_listing, summary
from damro.methods import METHODS, Method

_OF_NOBODY = ("control", "what model.generate does")
"""Sources that are no paper."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "methods",
        help="list the methods: what they cost, where they do not work; with their names, all about them",
        description="List the methods, a line each; all about those that are named, or with --long about all. A method "
        "is named with its parameters, damro:alpha=0.5,top_k=20, and behind an at sign with the temperature to sample "
        "at, damro:alpha=0.5@1.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods to tell all about")
    parser.add_argument("--long", action="store_true", help="tell all about every method, its parameters too")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with everything")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the list.

    Raises:
        ParameterError: there is no method of a name.
    """
    owners = {name: METHODS.find(name) for name in args.names} or dict(METHODS)
    if args.json:
        print_listing("method", owners, as_json=True, more=_to_json)
    elif args.long or args.names:
        print_listing("method", owners, as_json=False, more=_price)
    else:
        _print_table(owners)
    return 0


def _to_json(method: type[Method]) -> dict[str, Any]:
    """The sentences of :func:`_price`, and what they are made of."""
    passes, looks, memory = method.cost
    numbers = {"passes": passes, "looks": looks, "memory": memory, "limits": list(method.limits), "code": method.code}
    return {**_price(method), **numbers}


def _price(method: type[Method]) -> dict[str, str]:
    """What a method costs beside plain decoding, and where it does not work."""
    passes, looks, memory = method.cost
    told = {
        "cost": f"language passes a token +{passes:g}, vision passes an image +{looks:g}, memory: {memory}",
        "does not work with": ", ".join(method.limits) or "nothing known",
        "authors' code": method.code or "none",
    }
    if method.source in _OF_NOBODY:
        del told["authors' code"]
    return told


def _print_table(owners: Mapping[str, type[Method]]) -> None:
    """A line a method; what several refuse, or hold in memory, is told once below."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    refused, held = Marks("abcdefghijklmnopqrstuvwxyz"), Marks("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    table = Table(title="methods", box=None, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("method", no_wrap=True, style="bold")
    table.add_column("what it is", ratio=1)
    for title in ("LM", "ViT", "mem", "refuses", "code"):  # narrow, for what it is to have room in 80 columns
        table.add_column(title, no_wrap=True, justify="right" if title in ("LM", "ViT") else "left")
    for name, method in owners.items():
        passes, looks, memory = method.cost
        cells = (name, summary(method), _more(passes), _more(looks), held.of([memory] if memory != "nothing" else []))
        table.add_row(*map(escape, cells), refused.of(method.limits), "yes" if method.code else "")
    console = Console()
    console.print(table)
    lines = (
        "LM: passes of the language model a token more than plain decoding; ViT: of the vision tower an image more",
        f"mem, memory beside the prompt's own: {held.told()}",
        f"refuses: {refused.told()}",
        "code: compared with what its authors released",
        "papers, parameters and their defaults: damro methods NAME, or --long",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, style="dim")


def _more(number: float) -> str:
    return f"+{number:g}" if number else ""


class Marks:
    """Letters for clauses that stand in many lines.

    Args:
        letters: to take, one after the other; behind the last they are doubled.

    Example:
        >>> marks = Marks("ab")
        >>> marks.of(["no sampling", "one prompt"]), marks.of(["one prompt", "no text"]), marks.told()
        ('a b', 'b aa', 'a no sampling; b one prompt; aa no text')
    """

    def __init__(self, letters: str) -> None:
        self._letters = letters
        self._marks: dict[str, str] = {}

    def of(self, clauses: list[str] | tuple[str, ...]) -> str:
        """The marks of some clauses."""
        for clause in clauses:
            number = len(self._marks)
            times, place = divmod(number, len(self._letters))
            self._marks.setdefault(clause, self._letters[place] * (times + 1))
        return " ".join(self._marks[clause] for clause in clauses)

    def told(self) -> str:
        """What the marks stand for."""
        return "; ".join(f"{mark} {clause}" for clause, mark in self._marks.items()) or "nothing"
