"""``damro setup-nltk``: get the NLTK data of the CHAIR matcher ``nltk``."""

from __future__ import annotations

import argparse
from pathlib import Path

from damro.eval.errors import EvalError

# Only WordNet is not read when captions are scored: the table of inflections is made from it and tested against it.
_PACKAGES = {
    "punkt_tab": "tokenizers/punkt_tab.zip",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng.zip",
    "wordnet": "corpora/wordnet.zip",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``setup-nltk`` to the commands.

    Args:
        subparsers: What ``add_subparsers`` of the main parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = subparsers.add_parser(
        "setup-nltk",
        help="download the NLTK data for scoring captions with the matcher nltk",
        description=f"Download NLTK's data packages {', '.join(_PACKAGES)} (12 MB) unless they are there already.",
    )
    parser.add_argument(
        "--dir", metavar="DIR", help="where to put them (default: where NLTK chooses, e.g. ~/nltk_data)"
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Download what is missing and say where things are.

    Args:
        args: What the parser of `add_parser` made of the command line.

    Returns:
        The exit code, 0.

    Raises:
        EvalError: A package could not be downloaded.
    """
    import nltk

    if args.dir:
        nltk.data.path.insert(0, args.dir)
    for package, place in _PACKAGES.items():
        if _is_present(place):
            print(f"{package}: already there")
            continue
        if not nltk.download(package, download_dir=args.dir, quiet=True):
            raise EvalError(
                f"NLTK data: {package} could not be downloaded; on a networked machine, run this again, then copy "
                "the nltk_data folder here and set NLTK_DATA to it. Scoring works without it: --matcher builtin"
            )
        print(f"{package}: downloaded")
    if args.dir:
        print(f"set NLTK_DATA={Path(args.dir).resolve()} so that scoring finds them")
    return 0


def _is_present(place: str) -> bool:
    """Whether NLTK finds the package, zipped or unpacked."""
    import nltk

    for form in (place, f"{place.removesuffix('.zip')}/"):
        try:
            nltk.data.find(form)
        except LookupError:
            continue
        return True
    return False
