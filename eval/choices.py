"""How the text of an answer to a multiple-choice question becomes the letter of an option: a function a rule.

As with yes and no, the rules agree on a bare letter and on little else. An answer in which a rule finds no letter is
*unparsed*: no option was chosen, which counts as not right and is told apart from a wrong choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from damro.eval.benchmark import Scoring
from damro.eval.errors import EvalError

_LEAD = (
    r"(?:the\s++)?(?:correct\s++|best\s++|final\s++)?(?:answer|option|choice)(?:\s++is)?\s*+[:=]?\s*+(?:option\s++)?"
    r"[(\[*\"']*+"
)
_LETTER = re.compile(rf"^\W*+(?:{_LEAD})?([A-Z])(?:[)\].:,;*\"']|[ \t]*+(?:\n|$))", re.IGNORECASE)
_NAMED = re.compile(rf"\b{_LEAD}([A-Z])\b", re.IGNORECASE)
_OPTION = re.compile(r"^([A-Z])\.[ \t]*(.+?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class ChoiceScoring(Scoring):
    """How answers to multiple-choice questions are read.

    Attributes:
        choice: the rule that reads the letter: letter for one that stands for itself; first for the first character, or
            the option whose text is in the answer (InternVL's script); exact for an answer that is a letter and nothing
            else (CRPE's own script).
    """

    choice: Literal["letter", "first", "exact"] = "letter"


def read_choice(text: str, options: Mapping[str, str], rule: str = "letter") -> str | None:
    r"""Read which option an answer chooses.

    ======== ================================================================================================
    rule     an answer chooses
    ======== ================================================================================================
    `letter` the letter it begins with if a bracket, a mark or the end follows, in either case; else the one
             behind "answer", "option" or "choice": "A.", "(a)", "The answer is B"
    `first`  its first character if that is an option's letter, so that "A dog" is A; else the first option
             whose text stands in it (OpenGVLab/InternVL, ``internvl_chat/eval/mmvp/evaluate_mmvp.py``)
    `exact`  the letter that is all it says, in upper case (OpenGVLab/all-seeing,
             ``all-seeing-v2/llava/eval/eval_crpe.py``): "A." chooses nothing
    ======== ================================================================================================

    Args:
        text: The answer of the model.
        options: The options' texts by their letters, which are upper case.
        rule: One of `CHOICE_RULES`.

    Returns:
        The letter; None where the rule finds none of the options.

    Raises:
        EvalError: The rule is unknown, or there are no options.

    Example:
        >>> options = {"A": "Open", "B": "Closed"}
        >>> [read_choice(text, options) for text in ("B", "(b) Closed", "The answer is A.", "A door", "Closed")]
        ['B', 'B', 'A', None, None]
        >>> [read_choice(text, options, "first") for text in ("B.", "A door", "It is Closed")]
        ['B', 'A', 'B']
        >>> [read_choice(text, options, "exact") for text in ("B", "B.")]
        ['B', None]
    """
    if rule not in CHOICE_RULES:
        raise EvalError(f"choice must be one of {', '.join(CHOICE_RULES)}, got {rule!r}")
    if not options:
        raise EvalError("options must hold at least one option, got none")
    return _READERS[rule](text.strip(), options)


def parse_options(text: str) -> dict[str, str]:
    r"""Return the options of a prompt that has them as lines "A. ...", by their letters.

    Example:
        >>> parse_options("What is it?\nA. a cat\nB. a dog\nAnswer with the letter.")
        {'A': 'a cat', 'B': 'a dog'}
    """
    return {letter: option for letter, option in _OPTION.findall(text)}


def _read_letter(text: str, options: Mapping[str, str]) -> str | None:
    for found in (_LETTER.search(text), _NAMED.search(text)):
        if found is not None and found[1].upper() in options:
            return str(found[1].upper())
    return None


def _read_first(text: str, options: Mapping[str, str]) -> str | None:
    if text[:1] in options:
        return text[0]
    if len(text) < 2:
        return None
    return next((letter for letter, option in options.items() if option and option in text), None)


def _read_exact(text: str, options: Mapping[str, str]) -> str | None:
    return text if text in options else None


_READERS: dict[str, Callable[[str, Mapping[str, str]], str | None]] = {
    "letter": _read_letter,
    "first": _read_first,
    "exact": _read_exact,
}
CHOICE_RULES: tuple[str, ...] = tuple(_READERS)
"""The rules that `read_choice` knows."""
