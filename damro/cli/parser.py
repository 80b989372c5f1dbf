"""A parser whose errors are one line that names the option, the rule, what was given and what may have been meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser; those that ``add_subparsers`` makes of it are of this class, too."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2 and one line on stderr, without the usage of dozens of options."""
        told = re.sub(r"^argument ([^:]+): must ", r"\1 must ", message)
        told = re.sub(r"^argument ([^:]+): invalid int value: ", r"\1 must be a whole number, got ", told)
        told = re.sub(r"^argument ([^:]+): invalid float value: ", r"\1 must be a number, got ", told)
        self.exit(2, f"{self.prog}: {told}; '{self.prog} --help' lists what there is\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parses; what is unknown is refused here, where the options of the command are known, and not at the root."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = [text.partition("=")[0] for text in unknown if text.startswith("--")]
            close = _close(flags[0], self._option_string_actions) if flags else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{close}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuses what is none of an option's choices."""
        if action.choices is not None and value not in action.choices:
            names = [str(one) for one in action.choices]
            rule = f"must be one of {', '.join(names)}, got {str(value)!r}"
            raise argparse.ArgumentError(action, rule + _close(str(value), names))


def _close(text: str, names: Iterable[str]) -> str:
    """A question after the name that is nearest, if one is near."""
    near = get_close_matches(text, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def whole_number(text: str) -> int:
    """A whole number of at least 1, as an option's type."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def filled_text(text: str) -> str:
    """A text that is not empty, as an option's type."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a text that is not empty, got {text!r}")
    return text
