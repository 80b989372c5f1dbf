"""The errors that decoding raises. All are ``ValueError``s, so that callers need no import to catch them."""


class DecodingError(ValueError):
    """Base of every error raised by ``decoding`` and by the parts of ``damro`` that run a model."""


class UnsupportedModelError(DecodingError):
    """The model is of a family, or has a language model, that is not supported."""


class InputsError(DecodingError):
    """What the processor returned cannot be used: no image, wrong padding, another prompt than before."""


class ParameterError(DecodingError):
    """A parameter of a method is outside its range."""


class NonFiniteScoresError(DecodingError):
    """The model produced NaN or infinity: next-token scores, or attention of its vision tower."""
