"""damro/registry.py: names that are found when they are asked for, and those that are refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from damro import registry
from damro.decoding.errors import ParameterError
from damro.registry import Registry

PLACES = {"pi": "math:pi", "json": "json"}


def installed(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> Registry[Any]:
    monkeypatch.setattr(registry, "entry_points", lambda group: [one for one in points if one.group == group])
    return Registry("shapes", "shape", ParameterError, PLACES)


def test_it_is_a_mapping_of_attributes_and_modules() -> None:
    import json
    import math

    shapes: Registry[Any] = Registry("no such group", "shape", ParameterError, PLACES)
    assert dict(shapes) == {"pi": math.pi, "json": json}
    assert list(shapes) == ["pi", "json"] and len(shapes) == 2 and "pi" in shapes and "tau" not in shapes
    with pytest.raises(KeyError):
        shapes["tau"]


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    shapes: Registry[Any] = Registry("no such group", "shape", ParameterError, {"gone": "no_such_module:x"})
    assert list(shapes) == ["gone"]
    with pytest.raises(ModuleNotFoundError):
        shapes.find("gone")


def test_an_unknown_name_lists_what_there_is() -> None:
    shapes: Registry[Any] = Registry("no such group", "shape", ParameterError, PLACES)
    with pytest.raises(ParameterError, match="shape must be one of pi, json, got 'jsn'; did you mean 'json'?"):
        shapes.find("jsn")
    with pytest.raises(ParameterError, match="shape must be one of pi, json, got 'circle'$"):
        shapes.find("circle")


def test_a_package_adds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = installed(monkeypatch, EntryPoint("tau", "math:tau", "shapes"), EntryPoint("e", "math:e", "others"))
    assert list(shapes) == ["pi", "json", "tau"]
    assert shapes.find("tau") == pytest.approx(6.2832, abs=1e-4)


def test_a_taken_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match="shape 'pi' is taken by damro itself; uninstall math:tau"):
        list(installed(monkeypatch, EntryPoint("pi", "math:tau", "shapes")))
    two = (EntryPoint("e", "math:e", "shapes"), EntryPoint("e", "math:tau", "shapes"))
    with pytest.raises(ParameterError, match="shape 'e' is taken by math:e; uninstall math:tau"):
        list(installed(monkeypatch, *two))
    twice = installed(monkeypatch, two[0], two[0])  # one package, seen in two places of the path
    assert list(twice) == ["pi", "json", "e"]


def test_a_package_that_does_not_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = installed(monkeypatch, EntryPoint("tau", "no_such_module:tau", "shapes"))
    assert shapes.find("pi") > 3
    with pytest.raises(ParameterError, match="shape 'tau' of no_such_module:tau must be importable, got ModuleNotFo"):
        shapes.find("tau")


def test_what_is_added_in_this_process_can_be_taken_out_again() -> None:
    shapes: Registry[Any] = Registry("no such group", "shape", ParameterError, PLACES)
    shapes.add("one", 1)
    assert shapes["one"] == 1
    with pytest.raises(ParameterError, match="shape 'one' is taken by damro itself; choose another name"):
        shapes.add("one", 2)
    shapes.remove("one")
    assert "one" not in shapes


def test_what_is_none_of_the_kind_is_refused() -> None:
    class Good(Path):
        name = "good"

    shapes: Registry[Any] = Registry("no such group", "shape", ParameterError, {"list": "builtins:list"}, Path)
    shapes.add("good", Good)
    assert shapes.find("good") is Good
    with pytest.raises(ParameterError, match="'list' must be a subclass of pathlib.*Path with that name, got .*list"):
        shapes.find("list")
    with pytest.raises(ParameterError, match="shape 'better' must be a subclass of"):
        shapes.add("better", Good)
