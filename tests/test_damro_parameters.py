"""damro/parameters.py: what is read from the fields of a dataclass, and which values they take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest

from damro.parameters import (
    Cutoff,
    Range,
    Strength,
    build,
    check_fields,
    given,
    parameters,
    show,
)


@dataclass(frozen=True)
class Base:
    """Base.

    Attributes:
        alpha: strength.
    """

    name: ClassVar = "base"
    alpha: Strength | None = None

    def __post_init__(self) -> None:
        check_fields(self, ValueError)


@dataclass(frozen=True)
class Every(Base):
    """Every kind.

    Attributes:
        steps: how many,
            told on two lines.
        mode: one of two.
        words: several.
        loud: a switch.
        text: a sentence.
        beta: a cutoff.

    Raises:
        ValueError: something else.
    """

    steps: Annotated[int, Range(0, 9, hint="5 is usual")] = 5
    mode: Literal["fast", "slow"] = "fast"
    words: tuple[str, ...] = ()
    loud: bool = False
    text: str = "hello"
    beta: Cutoff = 0.1


def test_fields_tell_their_kind_default_and_help() -> None:
    found = {one.name: one for one in parameters(Every)}
    assert list(found) == ["alpha", "steps", "mode", "words", "loud", "text", "beta"]
    assert [one.kind for one in found.values()] == [float, int, str, str, bool, str, float]
    assert [one.default for one in found.values()] == [None, 5, "fast", (), False, "hello", 0.1]
    assert found["steps"].help == "how many, told on two lines."
    assert found["alpha"].help == "strength." and found["alpha"].optional
    assert found["words"].several and found["mode"].choices == ("fast", "slow")
    assert found["steps"].flag == "--steps"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": -1.0}, "alpha must be a finite number >= 0, got -1.0; 0 switches"),
        ({"alpha": math.nan}, "alpha must be a finite number >= 0, got nan"),
        ({"alpha": math.inf}, "alpha must be a finite number >= 0, got inf"),
        ({"alpha": "1"}, "alpha must be a finite number >= 0, got '1'"),
        ({"alpha": True}, "alpha must be a finite number >= 0, got True"),
        ({"beta": 0}, r"beta must be in \(0, 1\], got 0; 0.1 keeps"),
        ({"beta": None}, r"beta must be in \(0, 1\], got None"),
        ({"steps": 10}, "steps must be a whole number from 0 to 9, got 10; 5 is usual"),
        ({"steps": 2.0}, "steps must be a whole number from 0 to 9, got 2.0"),
        ({"steps": False}, "steps must be a whole number from 0 to 9, got False"),
        ({"mode": "medium"}, "mode must be one of fast, slow, got 'medium'"),
        ({"loud": 1}, "loud must be true or false, got 1"),
        ({"text": "  "}, "text must be a text that is not empty, got '  '"),
        ({"words": "cat"}, "words must be a text that is not empty each, got 'cat'"),
        ({"words": ("cat", 3)}, "words must be a text that is not empty each, got"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Every(**values)


def test_values_in_range() -> None:
    assert Every(alpha=0, beta=1, steps=0, words=["a", "b"]).words == ("a", "b")  # type: ignore[arg-type]
    assert Every(alpha=None).alpha is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("alpha", "0.5", 0.5),
        ("alpha", "none", None),
        ("steps", "7", 7),
        ("loud", "true", True),
        ("loud", "False", False),
        ("mode", "slow", "slow"),
        ("words", "cat", ("cat",)),
        ("text", "none", "none"),
    ],
)
def test_texts_are_read(name: str, text: str, value: Any) -> None:
    [one] = [one for one in parameters(Every) if one.name == name]
    assert one.read(text, ValueError) == value


@pytest.mark.parametrize(
    ("name", "text"), [("alpha", "x"), ("alpha", "-1"), ("steps", "1.5"), ("loud", "maybe"), ("mode", ""), ("text", "")]
)
def test_texts_that_are_no_value(name: str, text: str) -> None:
    [one] = [one for one in parameters(Every) if one.name == name]
    with pytest.raises(ValueError, match=f"{name} must be .*, got '?{text}"):
        one.read(text, ValueError)


def test_an_unknown_parameter_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="every must have parameters of alpha, .*, got 'step'; did you mean 'steps'"):
        build(Every, {"step": 1}, ValueError, "every")
    assert build(Every, {"steps": 1}, ValueError, "every").steps == 1


def test_what_differs_from_the_defaults() -> None:
    assert given(Every()) == {}
    assert given(Every(alpha=0.0, words=("a",), steps=5)) == {"alpha": 0.0, "words": ("a",)}


def test_numbers_are_written_so_that_they_are_read_again() -> None:
    for value in (0.1, 1e-7, 1 / 3, 123456.789, 2.0, 1e22):
        assert float(show(value)) == value
    assert (show(2.0), show(None), show("a b")) == ("2", "none", '"a b"')
