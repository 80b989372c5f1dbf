"""What every test needs: no hub, and NLTK's data where it can be found."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# NLTK reads the variable when it is imported, and commands started by a test inherit it.
_BESIDE_THE_REPOSITORY = Path(__file__).parents[2] / "shared" / "data" / "nltk_data"
if "NLTK_DATA" not in os.environ and _BESIDE_THE_REPOSITORY.is_dir():
    os.environ["NLTK_DATA"] = str(_BESIDE_THE_REPOSITORY)


@pytest.fixture(scope="session")
def nltk_data() -> None:
    """Skips a test that needs NLTK's data where there is none."""
    from damro.eval.chair.matchers.tagged import missing_data

    missing = missing_data()
    if missing:
        pytest.skip(f"NLTK data not found: {', '.join(missing)}")


@pytest.fixture(scope="session")
def wordnet_data(nltk_data: None) -> None:
    """Skips a test that compares with WordNet itself where it is not installed."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        pytest.skip("NLTK data not found: wordnet")


@pytest.fixture
def switching() -> Iterator[None]:
    """Lets threads take turns fifty times as often as they do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)
