"""The errors of the analyzer."""

from damro.decoding.errors import DecodingError, InputsError, ParameterError, UnsupportedModelError

__all__ = ["DecodingError", "InputsError", "NoClsTokenError", "ParameterError", "UnsupportedModelError"]


class NoClsTokenError(UnsupportedModelError):
    """The vision transformer has no [CLS] token whose attention could be read."""
