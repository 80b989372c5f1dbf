"""``import damro`` is cheap, and its names are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import damro


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import sys, damro; print(damro.__version__, {'torch', 'transformers', 'numpy'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split(maxsplit=1) == [damro.__version__, "set()\n"]


@pytest.mark.parametrize("name", damro.__all__)
def test_every_public_name_is_found(name):
    assert getattr(damro, name) is not None
    assert name in dir(damro)


def test_public_names_are_those_of_their_modules():
    from damro.processor import DAMROProcessor
    from damro.pruning import prune
    from damro.vision.attention import cls_attention

    assert damro.prune is prune
    assert damro.cls_attention is cls_attention
    assert damro.DAMROProcessor is DAMROProcessor


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'damro' has no attribute 'DAMRO'"):
        _ = damro.DAMRO
