"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from damro.eval.methods import TAKEN_BY
from damro.eval.runs.request import RunRequest


def add_model_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """--model, --device, --dtype, --attn-implementation, --revision."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        required=default is None,
        default=default,
        metavar="NAME_OR_PATH",
        help="folder, Hub name, or 'tiny' for the embedded model" + (f" (default: {default})" if default else ""),
    )
    group.add_argument("--device", help="as torch names it, or 'auto' to spread over all (default: a GPU, if any)")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="(default: the checkpoint's)",
    )
    group.add_argument("--attn-implementation", metavar="NAME", help="sdpa, eager, flash_attention_2, ...")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")


def add_contrast_options(parser: argparse.ArgumentParser) -> None:
    """--alpha, --beta, --top-k, --task, --variant."""
    group = parser.add_argument_group("DAMRO", "what is not given comes from the preset of the model's family and task")
    group.add_argument("--alpha", type=float, help="strength of the contrast, >= 0")
    group.add_argument("--beta", type=float, help="plausibility cutoff in (0, 1]")
    group.add_argument("--top-k", type=int, metavar="K", help="number of outlier patches")
    group.add_argument("--task", choices=("pope", "chair", "mme"), help="whose preset to take")
    group.add_argument(
        "--variant",
        choices=("reference", "corrected"),
        default="reference",
        help="InstructBLIP: as released, or with the patches that were ranked",
    )


def add_method_options(group: Any) -> None:
    """--keep-tokens, and what single methods have.

    Args:
        group: A parser or a group of its arguments.
    """
    group.add_argument(
        "--keep-tokens", type=int, metavar="N", help="patches of a tile that the full prompt keeps (default: all)"
    )
    group.add_argument("--noise-step", type=int, metavar="T", help="vcd: of 1000 (default: the authors')")
    group.add_argument("--disturbance", metavar="TEXT", help="icd: the sentence (default: one of the authors')")
    group.add_argument(
        "--question-only", action="store_true", help="icd with InstructBLIP: disturb the Q-Former only, as released"
    )
    group.add_argument("--forgetting", type=float, metavar="RATE", help="m3id: how fast its weight grows")
    group.add_argument("--confidence", type=float, metavar="P", help="m3id: probability from which nothing changes")


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options that not every method has, as far as the command line says other than the default."""
    return {name: getattr(args, name) for name in TAKEN_BY if getattr(args, name) != getattr(RunRequest, name)}
