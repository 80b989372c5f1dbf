"""Other packages that move: which version works, and what to say of one that does not, or that no test has seen."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def moved(package: str, works_with: str, error: Exception) -> str:
    """What to say where a package lacks what is asked of it.

    Args:
        package: its name on PyPI.
        works_with: the version that the tests run.
        error: what was raised.

    Example:
        >>> print(moved("no-such-package", "1.2", ImportError("No module named 'such'")))
        no-such-package must have the interface of 1.2 with all that it imports, got none: No module named 'such'; pip
        install 'no-such-package==1.2'
    """
    return (
        f"{package} must have the interface of {works_with} with all that it imports, got {_installed(package)}: "
        f"{error}; pip install '{package}=={works_with}'"
    )


def untested(package: str, works_with: str) -> str | None:
    """What to say of another version than the tests run, which may work; None of that one.

    Args:
        package: its name on PyPI.
        works_with: the version that the tests run.
    """
    found = _installed(package)
    if found == works_with:
        return None
    return (
        f"{package} is tested in version {works_with}, got {found}; if it fails, pip install '{package}=={works_with}'"
    )


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
