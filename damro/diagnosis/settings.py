"""How a model is diagnosed. Importing this imports no torch: the command line reads its options from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from damro.decoding.errors import ParameterError
from damro.methods.presets import starting_preset
from damro.parameters import Cutoff, Range, Seed, check_fields

ALPHAS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
BETAS = (0.05, 0.1, 0.2, 0.4)

PROMPTS = ("damro", "random-k", "least-k", "no-image")
"""The second prompts that are compared: DAMRO's, and its controls."""
CONTROLS = PROMPTS[1:]


@dataclass(frozen=True)
class Settings:
    """How a model is diagnosed.

    Attributes:
        alpha: strengths that are tried.
        beta: plausibility cutoffs that are tried.
        top_k: patches that are flagged; none takes the family's preset, 10 where the paper has none.
        layer: the other layer of the vision tower in which patches are flagged, negative from the end; none takes the
            one before DAMRO's.
        layers: layers of the language model whose attention is averaged, negative from the end; none named takes all.
        max_new_tokens: longest caption in tokens.
        matcher: what finds objects in captions; auto takes nltk where its data is at hand.
        seed: of random patches, of the questions and of how images are cut in halves.
    """

    alpha: tuple[Annotated[float, Range(0, 100, above=True, hint="0.5 to 2 is usual")], ...] = ALPHAS
    beta: tuple[Cutoff, ...] = BETAS
    top_k: Annotated[int, Range(1)] | None = None
    layer: int | None = None
    layers: tuple[int, ...] = ()
    max_new_tokens: Annotated[int, Range(1)] = 64
    matcher: Literal["auto", "nltk", "builtin"] = "auto"
    seed: Seed = 42

    def __post_init__(self) -> None:
        """Checks types and ranges, and puts the grid in order.

        Raises:
            ParameterError: a parameter is out of its range, or there is no alpha or beta.
        """
        check_fields(self, ParameterError)
        for name in ("alpha", "beta"):
            values = getattr(self, name)
            if not values:
                raise ParameterError(f"{name} must be at least one number, got none; leave it out for the usual ones")
            object.__setattr__(self, name, tuple(sorted(set(map(float, values)))))

    def patches_for(self, family: str) -> int:
        """How many patches are flagged for a model family (its `config.model_type`).

        Example:
            >>> Settings().patches_for("instructblip"), Settings().patches_for("qwen2_vl")
            (4, 10)
            >>> Settings(top_k=3).patches_for("instructblip")
            3
        """
        return self.top_k if self.top_k is not None else starting_preset(family).top_k
