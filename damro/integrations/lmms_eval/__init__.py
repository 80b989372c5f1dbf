"""damro as a model of lmms-eval, which finds :func:`manifest` by an entry point of the group ``lmms_eval.models``.

::

    lmms-eval --model damro --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=damro,alpha=0.5 --tasks pope
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

WORKS_WITH = "0.7.3"
"""The version of lmms-eval that the tests run."""


def manifest() -> Any:
    """What lmms-eval registers: the name, and where the two classes are.

    Raises:
        ImportError: lmms-eval has moved what this needs; it says which version works.
    """
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise moved(error) from error
    return ModelManifest(
        model_id="damro",
        simple_class_path="damro.integrations.lmms_eval.model.DamroSimple",
        chat_class_path="damro.integrations.lmms_eval.model.DamroChat",
    )


def moved(error: ImportError) -> ImportError:
    """The error that says which version of lmms-eval works.

    Example:
        >>> print(moved(ImportError("cannot import name 'lmms'")))  # doctest: +ELLIPSIS
        lmms-eval must have the interface of 0.7.3, got ...: cannot import name 'lmms'; pip install 'lmms-eval==0.7.3'
    """
    try:
        found = version("lmms-eval")
    except PackageNotFoundError:
        found = "none"
    return ImportError(
        f"lmms-eval must have the interface of {WORKS_WITH}, got {found}: {error}; "
        f"pip install 'lmms-eval=={WORKS_WITH}'",
        name=error.name,
    )
