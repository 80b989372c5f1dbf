"""What the wrapper is told, and what it leaves to VLMEvalKit. Imports no VLMEvalKit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from damro.errors import ParameterError

NAME = "damro"
"""What ``--model`` calls it."""
CLASS = "Damro"
"""What ``"class"`` of a config calls it."""


class Told(NamedTuple):
    """A command line, read.

    Attributes:
        model: what the class gets where ``--model damro`` asks for it; None with a config, which says it itself.
        rest: the arguments for VLMEvalKit.
    """

    model: dict[str, Any] | None
    rest: list[str]


def read_options(argv: Sequence[str]) -> Told:
    """Reads a command line.

    Args:
        argv: without the program's name.

    Raises:
        ParameterError: the model is told twice, or not at all.

    Example:
        >>> read_options(["--pretrained", "tiny", "--data", "POPE"])
        Told(model={'pretrained': 'tiny'}, rest=['--data', 'POPE', '--model', 'damro'])
    """
    parser = argparse.ArgumentParser(
        prog="python -m damro.integrations.vlmeval",
        description=f"Runs VLMEvalKit with the model {NAME!r}. All other options are VLMEvalKit's own: --data, "
        f'--model, --mode, --judge, ... With --config, a model\'s entry is {{"class": "{CLASS}", "pretrained": ..., '
        '"method": ...} instead of the options below.',
        allow_abbrev=False,
    )
    parser.add_argument("--pretrained", metavar="NAME_OR_PATH", help="folder, Hub name, or 'tiny'")
    parser.add_argument("--method", help="such as damro, greedy, vcd or damro:alpha=0.5 (default: damro)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: 1024)")
    parser.add_argument("--device", help="as torch names it, or 'auto' to spread over all (default: a GPU, if any)")
    parser.add_argument("--dtype", help="auto, float32, bfloat16 or float16 (default: the checkpoint's)")
    known, rest = parser.parse_known_args(argv)
    told = {name: value for name, value in vars(known).items() if value is not None}
    if any(option == "--config" or option.startswith("--config=") for option in rest):
        if told:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in told)
            raise ParameterError(f"{names} must be left out with --config, whose entries of models say it")
        return Told(None, rest)
    if "pretrained" not in told:
        raise ParameterError("--pretrained must name the model, got none; a folder, a name on the Hub, or 'tiny'")
    if not any(option == "--model" or option.startswith("--model=") for option in rest):
        rest = [*rest, "--model", NAME]
    return Told(told, rest)
