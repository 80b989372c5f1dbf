"""The errors of the analyzer."""

from damro.decoding.errors import (
    DecodingError,
    InputsError,
    NonFiniteScoresError,
    ParameterError,
    UnsupportedModelError,
)

__all__ = [
    "DecodingError",
    "InputsError",
    "NoClsTokenError",
    "NonFiniteScoresError",
    "ParameterError",
    "UnsupportedModelError",
]


class NoClsTokenError(UnsupportedModelError):
    """The vision transformer has no [CLS] token whose attention could be read."""
