"""``python -m damro.integrations.vlmeval``: VLMEvalKit's own command, with one model more."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from damro.errors import DecodingError
from damro.integrations.versions import moved, untested
from damro.integrations.vlmeval import PACKAGE, WORKS_WITH
from damro.integrations.vlmeval.options import CLASS, NAME, read_options

_TLS = (
    "VLMEvalKit switches off the verification of TLS certificates for all that this process fetches with Python's "
    "urllib, its data sets among it; compare the checksums of what it downloads"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Registers the model, and runs VLMEvalKit.

    Returns:
        0; 1 after an error of the model, over which VLMEvalKit goes on; 2 for a wrong option, or where VLMEvalKit is
        not installed or has moved what this needs.
    """
    try:
        told = read_options(sys.argv[1:] if argv is None else argv)
    except DecodingError as error:
        return _tell(str(error), 2)
    _tell(_TLS, 0)
    try:
        import vlmeval.vlm
        from vlmeval.config import supported_VLM
        from vlmeval.run import main as run

        from damro.integrations.vlmeval.model import FAILED, Damro
    except (ImportError, AttributeError) as error:
        return _tell(moved(PACKAGE, WORKS_WITH, error), 2)
    if (other := untested(PACKAGE, WORKS_WITH)) is not None:
        _tell(other, 0)
    setattr(vlmeval.vlm, CLASS, Damro)
    if told.model is not None:
        supported_VLM[NAME] = partial(Damro, **told.model)
    sys.argv = [sys.argv[0], *told.rest]
    run()
    if FAILED:
        return _tell(f"VLMEvalKit went on over {len(FAILED)} errors of the model, the first of {FAILED[0]}", 1)
    return 0


def _tell(sentence: str, code: int) -> int:
    print(f"damro: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
