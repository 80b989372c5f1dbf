"""Names to objects that are imported when they are first asked for; other packages add theirs by entry points.

Methods, benchmarks and model families are found this way, so that a command line can name all of them without
importing any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to objects.

    Args:
        group: the entry points that add to it, such as ``"damro.methods"``.
        kind: what one of them is called in messages.
        error: the type of error that an unknown or a taken name raises.
        places: names to ``"module:attribute"``, or to a module as a whole.
        base: what each of them is a subclass of, with its name as the attribute `name`; None takes any object.

    Example:
        >>> shapes = Registry("example.shapes", "shape", ValueError, {"pi": "math:pi"})
        >>> list(shapes), round(shapes["pi"], 2)
        (['pi'], 3.14)
        >>> shapes.find("pie")
        Traceback (most recent call last):
        ValueError: shape must be one of pi, got 'pie'; did you mean 'pi'?
        >>> shapes.add("pi", 3.0)
        Traceback (most recent call last):
        ValueError: shape 'pi' is taken by damro itself; choose another name
    """

    def __init__(
        self,
        group: str,
        kind: str,
        error: type[Exception],
        places: Mapping[str, str],
        base: type | None = None,
    ) -> None:
        self.group = group
        self._kind = kind
        self._error = error
        self._base = base
        self._places: dict[str, str | EntryPoint] = dict(places)
        self._found: dict[str, T] = {}
        self._plugins_read = False

    def find(self, name: str) -> T:
        """The object of a name; one that is unknown is an error that lists what there is.

        Raises:
            Exception: of the registry's own type, if there is none of that name, or it cannot be had.
        """
        self._read_plugins()
        if name not in self._found:
            if name not in self._places:
                close = get_close_matches(name, self._places, n=1)
                raise self._error(
                    f"{self._kind} must be one of {', '.join(self._places)}, got {name!r}"
                    + (f"; did you mean {close[0]!r}?" if close else "")
                )
            found = self._load(name, self._places[name])
            self._check(name, found)
            self._found[name] = found
        return self._found[name]

    def add(self, name: str, found: T) -> None:
        """Adds an object in this process. An installed package adds by an entry point.

        Raises:
            Exception: of the registry's own type, if the name is taken.
        """
        self._read_plugins()
        if name in self._places:
            raise self._taken(name, self._places[name])
        self._check(name, found)
        self._places[name] = type(found).__module__
        self._found[name] = found

    def remove(self, name: str) -> None:
        """Takes out what :meth:`add` added."""
        del self._places[name], self._found[name]

    def __getitem__(self, name: str) -> T:
        """The object of a name; raises KeyError, as of any mapping."""
        self._read_plugins()
        if name not in self._places:
            raise KeyError(name)
        return self.find(name)

    def __iter__(self) -> Iterator[str]:
        """The names: those of the package in its order, then those of others."""
        self._read_plugins()
        return iter(self._places)

    def __len__(self) -> int:
        """How many there are."""
        self._read_plugins()
        return len(self._places)

    def _check(self, name: str, found: Any) -> None:
        base = self._base
        if base is None or (isinstance(found, type) and issubclass(found, base) and vars(found).get("name") == name):
            return
        place = f"{base.__module__}.{base.__name__}"
        raise self._error(f"{self._kind} {name!r} must be a subclass of {place} with that name, got {found!r}")

    def _read_plugins(self) -> None:
        if self._plugins_read:
            return
        for point in sorted(entry_points(group=self.group), key=lambda one: one.name):
            taken = self._places.get(point.name)
            if isinstance(taken, EntryPoint) and taken == point:
                continue  # one package seen in two places of the path
            if taken is not None:
                raise self._taken(point.name, taken, _package_of(point))
            self._places[point.name] = point
        self._plugins_read = True

    def _taken(self, name: str, by: str | EntryPoint, wanted_by: str | None = None) -> Exception:
        owner = _package_of(by) if isinstance(by, EntryPoint) else "damro itself"
        remedy = f"uninstall {wanted_by}, which wants it too" if wanted_by else "choose another name"
        return self._error(f"{self._kind} {name!r} is taken by {owner}; {remedy}")

    def _load(self, name: str, place: str | EntryPoint) -> T:
        try:
            if isinstance(place, EntryPoint):
                found: T = place.load()
                return found
            module, _, attribute = place.partition(":")
            home: Any = import_module(module)
            found = getattr(home, attribute) if attribute else home
            return found
        except Exception as error:
            if not isinstance(place, EntryPoint):
                raise
            raise self._error(
                f"{self._kind} {name!r} of {_package_of(place)} must be importable, got {type(error).__name__}: "
                f"{error}; mend or uninstall that package"
            ) from error


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
