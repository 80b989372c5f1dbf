"""The names of decoding methods in runs: what is contrasted with what, and how tokens are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from damro.eval.errors import EvalError

OTHERS = ("vcd", "icd", "m3id")
"""Methods of other authors: the negative prompt holds the image under noise, a disturbing instruction, or no image."""
PATCHES = ("damro", "random-k", "least-k")
"""Methods whose negative prompt holds some patches of the image."""
CONTRASTS = (*PATCHES, "no-image", *OTHERS)
"""DAMRO and its controls: the negative prompt holds the k patches with the most [CLS] attention, k random ones, the k
with the least, or no image at all. And `OTHERS`."""

TAKEN_BY: dict[str, tuple[str, ...]] = {
    "alpha": tuple(name for name in CONTRASTS if name != "m3id"),
    "beta": CONTRASTS,
    "top_k": PATCHES,
    "variant": PATCHES,
    "noise_step": ("vcd",),
    "disturbance": ("icd",),
    "question_only": ("icd",),
    "forgetting": ("m3id",),
    "confidence": ("m3id",),
}
"""Options that not every method has, and the contrasts that have them."""


class Method(NamedTuple):
    """How answers are decoded.

    Attributes:
        contrast: One of `CONTRASTS`, or None for plain decoding.
        temperature: Of sampling; 0 is greedy search.
    """

    contrast: str | None
    temperature: float

    @property
    def name(self) -> str:
        """The shortest name that `parse_method` reads as this method."""
        if self.contrast is None and self.temperature in (0, 1):
            return "sample" if self.temperature else "greedy"
        suffix = f"@{self.temperature:g}" if self.temperature else ""
        return f"{self.contrast or 'sample'}{suffix}"


def parse_method(text: str) -> Method:
    """Read the name of a method: ``greedy``, ``sample`` or one of `CONTRASTS`, with ``@T`` to sample at temperature T.

    Raises:
        EvalError: There is no such method, or the temperature is not above 0.

    Example:
        >>> parse_method("damro"), parse_method("damro@1").temperature, parse_method("sample").name
        (Method(contrast='damro', temperature=0.0), 1.0, 'sample')
        >>> parse_method("sample@0.5").name
        'sample@0.5'
    """
    name, marked, written = text.partition("@")
    if name not in ("greedy", "sample", *CONTRASTS) or (name == "greedy" and marked):
        raise EvalError(
            f"method must be greedy, sample, {', '.join(CONTRASTS)}, all but greedy with @TEMPERATURE to sample, "
            f"got {text!r}"
        )
    temperature = 1.0 if name == "sample" else 0.0
    if marked:
        try:
            temperature = float(written)
        except ValueError:
            temperature = -1.0
        if not 0 < temperature < 100:
            raise EvalError(f"method's temperature must be a number above 0 and below 100, got {text!r}")
    return Method(name if name in CONTRASTS else None, temperature)


def takes(method: Method, option: str) -> bool:
    """Whether a method has an option; what is not in `TAKEN_BY` is any method's.

    Example:
        >>> takes(parse_method("vcd@1"), "noise_step"), takes(parse_method("sample"), "noise_step")
        (True, False)
    """
    return option not in TAKEN_BY or method.contrast in TAKEN_BY[option]


def check_options(given: Mapping[str, Any], methods: Sequence[Method]) -> None:
    """Check that every option given is one of some method at hand.

    Args:
        given: Options by their names in `TAKEN_BY`, with what was asked for.
        methods: The methods at hand.

    Raises:
        EvalError: None of the methods has it.

    Example:
        >>> check_options({"alpha": 1.0}, [parse_method("m3id")])
        Traceback (most recent call last):
        damro.eval.errors.EvalError: --alpha must come with damro or random-k or ..., got 1.0 with m3id; leave it out, or ...
    """
    for option, value in given.items():
        if not any(takes(method, option) for method in methods):
            names = ", ".join(method.name for method in methods)
            raise EvalError(
                f"--{option.replace('_', '-')} must come with {' or '.join(TAKEN_BY[option])}, got {value!r} with "
                f"{names}; leave it out, or name a method that has it"
            )
