"""How the field turns the text of an answer into yes or no: one function a rule, named after where it is used.

The rules disagree on everything but a bare "Yes" or "No", and published numbers depend on them. Each is kept as its
source applies it, including what looks like an oversight: ``pope`` reads "NO" and "No!" as yes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from damro.eval.errors import EvalError

Verdict = Literal["yes", "no", "unknown"]


def parse_answer(text: str, rule: str = "pope", gold: str | None = None) -> Verdict:
    r"""Read an answer under one rule of the field.

    ========= ====================================================================================== ===============
    rule      an answer is                                                                           otherwise
    ========= ====================================================================================== ===============
    `pope`    *no* if ``No``, ``no`` or ``not`` is a word of what stands before the first ".",       yes
              commas dropped, split on single spaces (POPE's and LLaVA's script)
    `opera`   *no* if ``No``, ``not``, ``no``, ``NO`` or a word in ``n't`` is a word of the text,    yes
              "." and "," dropped, split on single spaces (OPERA's script)
    `vcd`     the gold label if that label is a *substring* of the lower-cased text: with gold       the other label
              *no*, "I know" is a no (VCD)
    `lmms`    yes or no if the lower-cased, stripped text is exactly that word: equal to the gold    unknown
              label, or to the other one (lmms-eval)
    `vlmeval` yes or no if exactly one of the two is a word of the lower-cased text, punctuation     unknown
              dropped (VLMEvalKit's exact matching, without a judge)
    ========= ====================================================================================== ===============

    Args:
        text: The answer of the model.
        rule: One of `RULES`.
        gold: The label, "yes" or "no" in any case. Only ``vcd`` depends on it, and needs it.

    Raises:
        EvalError: The rule is unknown, ``gold`` is no label, or ``vcd`` was given none.

    Example:
        >>> parse_answer("There is no dog. Yes.", "pope"), parse_answer("I know.", "vcd", gold="no")
        ('no', 'no')
        >>> parse_answer("Yes.", "lmms"), parse_answer("Yes.", "vlmeval")
        ('unknown', 'yes')
    """
    if rule not in RULES:
        raise EvalError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    label = None if gold is None else parse_label(gold)
    if rule == "vcd":
        if label is None:
            raise EvalError("rule 'vcd' depends on the label of the question, got none: give gold='yes' or gold='no'")
        return _read_vcd(text, label)
    return _READERS[rule](text)


def parse_label(value: object) -> Literal["yes", "no"]:
    """Read a gold label: "yes" or "no" in any case.

    Raises:
        EvalError: It is neither.

    Example:
        >>> parse_label("Yes")
        'yes'
    """
    label = value.strip().lower() if isinstance(value, str) else value
    if label == "yes":
        return "yes"
    if label == "no":
        return "no"
    raise EvalError(f"label must be yes or no, got {ascii(value)[:80]}")


def read_neutrally(text: str) -> Verdict:
    """Read an answer as a person would who knows English, and not the rules.

    It serves to count the answers that are neither a yes nor a no, which most rules score as one of the two anyway.
    In this order: "yes or no" and the like say nothing; a leading yes or no decides; a hedge ("not sure", "cannot
    tell") says nothing; else the first yes, no or negation decides; else "there is", "I see" and a bare "it does"
    affirm.

    Example:
        >>> [read_neutrally(text) for text in ("Sure, yes!", "There isn't one.", "I can't tell.", "a snowboard", "")]
        ['yes', 'no', 'unknown', 'unknown', 'unknown']
    """
    plain = text.lower().replace("\u2019", "'")
    words = re.findall(r"[a-z]+(?:'[a-z]+)*", plain)
    if not words or _BOTH.search(plain):
        return "unknown"
    if words[0] in _AFFIRMING:
        return "yes"
    if words[0] in _DENYING:
        return "no"
    if _HEDGE.search(" ".join(words)):
        return "unknown"
    for word in words:
        if word in ("yes", "yeah", "yep"):
            return "yes"
        if word in _NEGATIONS or word.endswith("n't"):
            return "no"
    return "yes" if _STATEMENT.search(" ".join(words)) else "unknown"


_AFFIRMING = frozenset({"yes", "yeah", "yep", "yup", "true", "correct", "indeed"})
_DENYING = frozenset({"no", "nope", "nah", "false", "incorrect"})
_NEGATIONS = frozenset({"no", "not", "none", "nope", "never", "neither", "nor", "without", "cannot"})
# Possessive, so that a long gap is read once and not once a place where it could be parted in two.
_BOTH = re.compile(r"\byes\s*+(?:/|,?\s*+(?:and|or)\b)\s*+no\b|\bno\s*+(?:/|,?\s*+(?:and|or)\b)\s*+yes\b")
_HEDGE = re.compile(
    r"\b(?:not (?:sure|certain|clear|possible)|unsure|uncertain|unclear|unknown|unable|maybe|perhaps|possibly|might"
    r"|(?:can ?not|can't|could not|couldn't|difficult to|hard to|impossible to)"
    r" (?:be determined|be sure|determine|tell|say|answer|confirm|know|help|assist|process)"
    r"|(?:do not|don't) know|no idea)\b"
)
_STATEMENT = re.compile(r"\b(?:there (?:is|are)|there's|i (?:can |do )?see)\b|^(?:it|they) (?:is|are|does|do)$")


def _read_pope(text: str) -> Verdict:
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def _read_opera(text: str) -> Verdict:
    words = text.replace(".", "").replace(",", "").split(" ")
    denied = any(word in ("No", "not", "no", "NO") or word.endswith("n't") for word in words)
    return "no" if denied else "yes"


def _read_vcd(text: str, label: Literal["yes", "no"]) -> Verdict:
    found = label in text.lower()
    return "yes" if (label == "yes") == found else "no"


def _read_lmms(text: str) -> Verdict:
    answer = text.lower().strip()
    return "yes" if answer == "yes" else "no" if answer == "no" else "unknown"


def _read_vlmeval(text: str) -> Verdict:
    words = set(_drop_punctuation(text.lower()).split())
    if ("yes" in words) == ("no" in words):
        return "unknown"
    return "yes" if "yes" in words else "no"


def _drop_punctuation(text: str) -> str:
    # A mark that stands beside a space somewhere vanishes everywhere, any other becomes a space; one "1,000" makes all
    # marks vanish. Not in the list, so glued to its word for good: ":", "*" and quotation marks other than '"'.
    number = re.search(r"\d,\d", text)
    cleaned = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        vanishes = number or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if vanishes else " ")
    # The source passes re.UNICODE where re.sub takes a count, so only the first 32 full stops go.
    return re.sub(r"\.(?!\d)", "", cleaned, count=32)


_READERS: dict[str, Callable[[str], Verdict]] = {
    "pope": _read_pope,
    "opera": _read_opera,
    "lmms": _read_lmms,
    "vlmeval": _read_vlmeval,
}
RULES: tuple[str, ...] = ("pope", "opera", "vcd", "lmms", "vlmeval")
"""The rules that `parse_answer` knows."""
