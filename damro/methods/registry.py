"""Which methods there are. A method of another package comes by an entry point of the group ``damro.methods``."""

from __future__ import annotations

from damro.decoding.errors import ParameterError
from damro.methods.base import Method
from damro.registry import Registry


def _check(name: str, found: type[Method]) -> None:
    if not (isinstance(found, type) and issubclass(found, Method) and found.name == name):
        raise ParameterError(
            f"method {name!r} must be a subclass of damro.methods.Method with that name, got {found!r}"
        )


METHODS: Registry[type[Method]] = Registry(
    "damro.methods",
    "method",
    ParameterError,
    {
        "greedy": "damro.methods.greedy:Greedy",
        "damro": "damro.methods.damro:Damro",
        "random-k": "damro.methods.controls:RandomK",
        "least-k": "damro.methods.controls:LeastK",
        "no-image": "damro.methods.controls:NoImage",
        "vcd": "damro.methods.vcd:VCD",
        "icd": "damro.methods.icd:ICD",
        "m3id": "damro.methods.m3id:M3ID",
    },
    _check,
)
"""The methods by name."""
