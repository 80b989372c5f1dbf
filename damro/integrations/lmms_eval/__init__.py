"""damro as a model of lmms-eval, which finds :func:`manifest` by an entry point of the group ``lmms_eval.models``.

::

    lmms-eval --model damro --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=damro,alpha=0.5 --tasks pope
"""

from __future__ import annotations

from typing import Any

from damro.integrations import versions

PACKAGE = "lmms-eval"
"""Its name on PyPI."""
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
    """The error that says which version of lmms-eval works."""
    return ImportError(versions.moved(PACKAGE, WORKS_WITH, error), name=error.name)
