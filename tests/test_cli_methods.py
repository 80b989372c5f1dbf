"""``damro methods`` and ``damro benchmarks``: every parameter, with what it must be, its default and its source."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from damro import __version__
from damro.cli import main
from damro.eval.benchmark import BENCHMARKS
from damro.methods import METHODS
from damro.parameters import parameters


@pytest.mark.parametrize(("command", "owners"), [("methods", METHODS), ("benchmarks", BENCHMARKS)])
def test_lists_hold_what_the_classes_say(command: str, owners: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(owners)
    for name, owner in owners.items():
        assert list(found[name]["parameters"]) == [one.name for one in parameters(owner)]
        assert found[name]["source"] == owner.source
    assert main([command, *["--long"] * (command == "methods")]) == 0
    table = " ".join(capsys.readouterr().out.split())
    for name, owner in owners.items():
        assert name in table
        assert all(f"{one.name}=" in table for one in parameters(owner))


def test_a_parameter_says_what_it_must_be(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods", "--json"])
    found = json.loads(capsys.readouterr().out)["vcd"]["parameters"]["noise_step"]
    assert (found["default"], found["must_be"]) == (500, "a whole number from 0 to 999")
    main(["methods", "vcd"])
    table = capsys.readouterr().out
    assert "noise_step=500" in table
    assert "m3id" not in table


def test_a_line_a_method_says_what_it_costs_and_refuses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods"]) == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    for name, owner in METHODS.items():
        line = next(line for line in lines if line.split(" ")[0] == name)
        cost = owner.cost
        assert (f" +{cost.passes:g} " in line) == bool(cost.passes)
        assert line.rstrip().endswith("yes") == (owner.code is not None)
        assert all(clause in " ".join(told.split()) for clause in owner.limits)
    assert "noise_step" not in told


def test_the_json_of_a_method_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods", "opera", "greedy", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["opera", "greedy"]
    told, cost = found["opera"], METHODS["opera"].cost
    assert (told["passes"], told["looks"], told["memory"]) == cost
    assert told["limits"] == list(METHODS["opera"].limits)
    assert told["code"] == "github.com/shikiw/OPERA"
    assert list(told["parameters"]) == [one.name for one in parameters(METHODS["opera"])]


def test_a_method_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "oprea"]) == 2
    assert "opera" in capsys.readouterr().err


def test_every_parameter_is_a_flag_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for owner in (*METHODS.values(), *BENCHMARKS.values(), *(one.scoring for one in BENCHMARKS.values())):
        for one in parameters(owner):
            if one.name != "task":  # a run's benchmark is its task
                assert one.flag in text
    assert "vcd: how far the image has gone in a diffusion process of 1000 steps" in text


def test_help_says_what_a_flag_is_to_each_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    split = text.partition(" --split SPLIT [SPLIT ...] ")[2].partition(" --questions ")[0]
    for name, owner in BENCHMARKS.items():
        told = [one.help.rstrip(".") for one in parameters(owner) if one.name == "split"]
        assert all(f"{name}: {text}" in split for text in told), name
    assert "(default: exact for crpe, letter for mmvp)" in text


def test_the_package_itself_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "damro", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"damro {__version__}\n"
