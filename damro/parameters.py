"""Frozen dataclasses that describe themselves: their fields are parameters, their docstring says what each is.

A method, a benchmark and the way a benchmark is scored are such classes. Types, ranges, command line flags, tables and
what a run records are read from the fields; nothing has to be told twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

C = TypeVar("C")


@dataclass(frozen=True)
class Range:
    """Which numbers a parameter may have; stands in an ``Annotated`` beside the type.

    Attributes:
        low: the least one.
        high: the greatest one; None for no bound.
        above: `low` itself is left out.
        hint: what is usual, for error messages.

    Example:
        >>> Range(0, 1, above=True).text(float), Range(0, 999).text(int), Range(1).text(int)
        ('in (0, 1]', 'a whole number from 0 to 999', 'a whole number of at least 1')
    """

    low: float
    high: float | None = None
    above: bool = False
    hint: str = ""

    def holds(self, value: Any) -> bool:
        """Whether a number lies in the range."""
        finite = not isinstance(value, float) or math.isfinite(value)
        low = value > self.low if self.above else value >= self.low
        return finite and bool(low) and (self.high is None or bool(value <= self.high))

    def text(self, kind: type) -> str:
        """The rule, for error messages."""
        if kind is int:
            ends = f"from {self.low:g} to {self.high:g}" if self.high is not None else f"of at least {self.low:g}"
            return f"a whole number {ends}"
        if self.high is None:
            return f"a finite number {'>' if self.above else '>='} {self.low:g}"
        return f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"


Strength = Annotated[float, Range(0, hint="0 switches the contrast off, 0.5 to 2 is usual")]
"""alpha of a contrast."""
Cutoff = Annotated[float, Range(0, 1, above=True, hint="0.1 keeps tokens at least a tenth as likely as the best")]
"""beta of a contrast."""
Seed = Annotated[int, Range(0)]
"""Of what is drawn at random."""


@dataclass(frozen=True)
class Parameter:
    """One field of a class.

    Attributes:
        name: of the field.
        kind: float, int, bool or str.
        default: what counts where nothing is given.
        help: from the docstring of its class.
        optional: whether None is a value.
        several: whether it is a tuple of values.
        choices: the values there are; empty if there are more.
        range: of a number.
    """

    name: str
    kind: type
    default: Any
    help: str
    optional: bool
    several: bool
    choices: tuple[str, ...]
    range: Range | None

    @property
    def flag(self) -> str:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def rule(self) -> str:
        """What a value must be."""
        if self.choices:
            return f"one of {', '.join(self.choices)}{' or None' * self.optional}"
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "a text that is not empty"
        if self.range is not None:
            return self.range.text(self.kind)
        return "a whole number" if self.kind is int else "a finite number"

    def check(self, value: Any, error: type[Exception]) -> None:
        """Raises an error of the given type unless the value is one that the parameter may have."""
        if value is None and self.optional:
            return
        several = self.several and isinstance(value, tuple)
        wrong = [one for one in (value if several else (value,)) if not self._holds(one)]
        if wrong or several != self.several:
            hint = f"; {self.range.hint}" if self.range is not None and self.range.hint else ""
            raise error(f"{self.name} must be {self.rule}{' each' * self.several}, got {(wrong or [value])[0]!r}{hint}")

    def _holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind is str:
            return isinstance(value, str) and bool(value.strip())
        number = isinstance(value, Integral if self.kind is int else Real) and not isinstance(value, bool)
        return number and (self.range.holds(value) if self.range is not None else math.isfinite(value))

    def read(self, text: str, error: type[Exception]) -> Any:
        """The value that a text on a command line stands for; raises an error of the given type if it is none.

        Example:
            >>> [one.read("0.5", ValueError) for one in parameters(Range) if one.name == "high"]
            [0.5]
        """
        value: Any = text
        try:
            if self.optional and text == "none":
                value = None
            elif self.kind is bool:
                value = {"true": True, "false": False}[text.lower()]
            elif self.kind is not str:
                value = self.kind(text)
        except (ValueError, KeyError):
            raise error(f"{self.name} must be {self.rule}, got {text!r}") from None
        value = (value,) if self.several else value
        self.check(value, error)
        return value


_READ: dict[type, tuple[Parameter, ...]] = {}


def parameters(owner: type) -> tuple[Parameter, ...]:
    """The parameters of a dataclass, in the order of its fields; a field without a default is none.

    Example:
        >>> [(one.name, one.kind.__name__, one.default) for one in parameters(Range)]
        [('high', 'float', None), ('above', 'bool', False), ('hint', 'str', '')]
    """
    if owner not in _READ:
        hints = get_type_hints(owner, include_extras=True)
        told = dict(_told(owner))
        _READ[owner] = tuple(
            _parameter(field.name, hints[field.name], field.default, told.get(field.name, ""))
            for field in fields(owner)
            if field.default is not MISSING
        )
    return _READ[owner]


def _parameter(name: str, hint: Any, default: Any, told: str) -> Parameter:
    optional = several = False
    choices: tuple[str, ...] = ()
    bounds: Range | None = None
    while True:  # from the outside in: None, a tuple of, a range, and what is left is the type
        if get_origin(hint) in (Union, UnionType):
            [hint] = [one for one in get_args(hint) if one is not NoneType]
            optional = True
        elif get_origin(hint) is tuple:
            hint, several = get_args(hint)[0], True
        elif get_origin(hint) is Annotated:
            hint, bounds = get_args(hint)[:2]
        elif get_origin(hint) is Literal:
            hint, choices = str, get_args(hint)
        else:
            return Parameter(name, hint, default, told, optional, several, choices, bounds)


def _told(owner: type) -> Iterator[tuple[str, str]]:
    """Names and texts of the "Attributes:" of a docstring, those of base classes first."""
    for base in reversed(owner.__mro__):
        section = (base.__dict__.get("__doc__") or "").partition("Attributes:\n")[2]
        entries = re.split(r"\n {4}(?=\S)", section)[0]
        for entry in re.split(r"\n {8}(?=\w+: )", "\n" + entries.rstrip())[1:]:
            name, _, text = entry.partition(": ")
            yield name, plain(text)


def plain(text: str) -> str:
    r"""A docstring's text for a terminal: on one line, without marks.

    Example:
        >>> plain("see :func:`noise_levels`\n    or ``sample``")
        'see noise_levels or sample'
    """
    return " ".join(re.sub(r":\w+:(?=`)|`+", "", text).split())


def check_value(name: str, value: Any, kind: Any, error: type[Exception]) -> None:
    """Checks one value by a type such as `Strength`.

    Example:
        >>> check_value("alpha", -1.0, Strength, ValueError)
        Traceback (most recent call last):
        ValueError: alpha must be a finite number >= 0, got -1.0; 0 switches the contrast off, 0.5 to 2 is usual
    """
    _parameter(name, kind, None, "").check(value, error)


def check_fields(owner: Any, error: type[Exception]) -> None:
    """Checks every field of an instance; a ``__post_init__`` calls it.

    Lists become tuples first, since JSON knows no tuples.
    """
    for parameter in parameters(type(owner)):
        value = getattr(owner, parameter.name)
        if parameter.several and isinstance(value, list):
            object.__setattr__(owner, parameter.name, tuple(value))
        parameter.check(getattr(owner, parameter.name), error)


def build(owner: type[C], values: Mapping[str, Any], error: type[Exception], name: str) -> C:
    """An instance with some values; a name that the class does not have is an error that lists what it has.

    Args:
        owner: the class.
        values: by the names of its parameters.
        error: the type of what is raised.
        name: what the class is called in messages.
    """
    known = [parameter.name for parameter in parameters(owner)]
    for key in values:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            raise error(
                f"{name} must have parameters of {', '.join(known) or 'none'}, got {key!r}"
                + (f"; did you mean {close[0]!r}?" if close else "")
            )
    return owner(**values)


def given(owner: Any) -> dict[str, Any]:
    """The parameters of an instance that differ from their defaults.

    Example:
        >>> given(Range(0, 1))
        {'high': 1}
    """
    return {
        one.name: getattr(owner, one.name) for one in parameters(type(owner)) if getattr(owner, one.name) != one.default
    }


def show(value: Any) -> str:
    """A value as it is written on a command line; texts that hold more than plain words in JSON's quotes.

    Example:
        >>> show(0.5), show(True), show("corrected"), show("No, you are.")
        ('0.5', 'true', 'corrected', '"No, you are."')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    text = str(value)
    return text if re.fullmatch(r"[\w.+-]+", text) else json.dumps(text)
