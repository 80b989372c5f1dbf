"""Methods as text: ``damro``, ``damro:alpha=0.5,top_k=20``, ``vcd:noise_step=700@1``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from damro.decoding.errors import ParameterError
from damro.methods.base import Method
from damro.methods.greedy import Greedy
from damro.methods.registry import METHODS
from damro.parameters import build, given, parameters, show

_TEXT = re.compile(r"(?P<name>[^:@]+)(?::(?P<values>.*?))?(?:@(?P<temperature>[^@\",=]*))?", re.DOTALL)
_VALUE = re.compile(r'(?P<name>\w+)=(?P<value>"(?:[^"\\]|\\.)*"|[^",]*)(?:,(?=\w+=)|$)')
SAMPLE = "sample"
"""The name of plain sampling."""
HOTTEST = 100.0
"""A temperature is below."""


class Recipe(NamedTuple):
    """How answers are decoded.

    Attributes:
        method: what is contrasted with what.
        temperature: of sampling; 0 is greedy search.
    """

    method: Method
    temperature: float = 0.0

    @property
    def name(self) -> str:
        """The method with its temperature, without its parameters: ``damro``, ``vcd@1``, ``sample``."""
        return self._spell("")

    @property
    def text(self) -> str:
        """The shortest text that :func:`parse` reads as this recipe."""
        return self._spell(_spell_values(given(self.method)))

    def _spell(self, values: str) -> str:
        name = self.method.name
        if isinstance(self.method, Greedy) and self.temperature:
            return SAMPLE if self.temperature == 1 else f"{SAMPLE}@{self.temperature:g}"
        return f"{name}{':' if values else ''}{values}{f'@{self.temperature:g}' if self.temperature else ''}"


def parse(text: str, defaults: Mapping[str, str] | None = None) -> Recipe:
    """Reads a method's text: its name, its parameters behind a colon, and the temperature behind an at sign.

    ``sample`` is plain decoding at temperature 1. A text in JSON's quotes may hold anything:
    ``icd:disturbance="No, you are."``.

    Args:
        text: what to read.
        defaults: parameters as texts that count where `text` names them not; those that the method does not have are
            left aside.

    Raises:
        ParameterError: no such method, no such parameter, a value out of range, or a temperature that is none.

    Example:
        >>> parse("vcd:noise_step=700@0.5").method.noise_step, parse("sample").temperature
        (700, 1.0)
        >>> parse("damro:top_k=20,alpha=0.50").text, parse("sample@0.5").name
        ('damro:alpha=0.5,top_k=20', 'sample@0.5')
        >>> parse("damro", {"alpha": "0.5", "noise_step": "3"}).text
        'damro:alpha=0.5'
    """
    match = _TEXT.fullmatch(text)
    name = match["name"] if match else text
    if match is None or (name == Greedy.name and match["temperature"] is not None):
        raise ParameterError(
            f"method must be NAME, NAME:PARAMETER=VALUE,... or either with @TEMPERATURE to sample (plain sampling is "
            f"named {SAMPLE}), got {text!r}"
        )
    owner = Greedy if name == SAMPLE else METHODS.find(name)
    values = dict(_read_values(match["values"], text)) if match["values"] is not None else {}
    known = {one.name: one for one in parameters(owner)}
    told = {key: value for key, value in (defaults or {}).items() if key in known} | values
    read = {key: known[key].read(value, ParameterError) if key in known else value for key, value in told.items()}
    method = build(owner, read, ParameterError, name)
    recipe = Recipe(method, _temperature(match["temperature"], text, plain=name == SAMPLE))
    if recipe.temperature and method.searches:
        raise ParameterError(f"method must come without @ where it searches by itself, got {text!r}; leave it out")
    return recipe


def as_recipe(method: str | Method | None) -> Recipe:
    """A recipe from what a caller may name: a text, an instance, or None for plain decoding.

    Raises:
        ParameterError: it is none of them, or :func:`parse` cannot read it.
    """
    if method is None:
        return Recipe(Greedy())
    if isinstance(method, Method):
        return Recipe(method)
    if not isinstance(method, str):
        raise ParameterError(
            f"method must be a name such as 'damro:alpha=0.5' or an instance of damro.methods, got {method!r}"
        )
    return parse(method)


def labels(recipes: Sequence[Recipe]) -> list[str]:
    """Names that tell recipes apart, by what differs and nothing else.

    Example:
        >>> labels([parse("greedy"), parse("damro:alpha=1,beta=0.2"), parse("damro:alpha=2,beta=0.2")])
        ['greedy', 'damro:alpha=1', 'damro:alpha=2']
        >>> labels([parse("greedy"), parse("damro:alpha=1")])
        ['greedy', 'damro']
    """
    found = []
    for recipe in recipes:
        others = [other for other in recipes if other.name == recipe.name]
        names = [one.name for one in parameters(type(recipe.method))]
        differing = {
            name: getattr(recipe.method, name)
            for name in names
            if any(getattr(other.method, name) != getattr(recipe.method, name) for other in others)
        }
        found.append(recipe._spell(_spell_values(differing)))
    return found


def _spell_values(values: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={show(value)}" for name, value in values.items())


def _read_values(written: str, text: str) -> list[tuple[str, str]]:
    found, place = [], 0
    for match in _VALUE.finditer(written):
        if match.start() != place:
            break
        quoted = match["value"].startswith('"')
        found.append((match["name"], json.loads(match["value"]) if quoted else match["value"]))
        place = match.end()
    if place != len(written) or not found or len(dict(found)) < len(found):
        raise ParameterError(
            f"method's parameters must be written NAME=VALUE with commas between, each once, texts with commas in "
            f"double quotes, got {text!r}; such as damro:alpha=0.5,top_k=20"
        )
    return found


def _temperature(written: str | None, text: str, *, plain: bool) -> float:
    if written is None:
        return 1.0 if plain else 0.0
    try:
        temperature = float(written)
    except ValueError:
        temperature = -1.0
    if not 0 < temperature < HOTTEST:
        raise ParameterError(
            f"method's temperature must be a number above 0 and below {HOTTEST:g}, got {text!r}; "
            "without @ the search is greedy"
        )
    return temperature
