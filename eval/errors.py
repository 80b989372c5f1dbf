"""The errors that scoring raises."""


class EvalError(ValueError):
    """Base of every error raised by the scorers and readers of ``eval``."""


class DataFormatError(EvalError):
    """A file or a record in it is not of the form that was asked for."""


class AlignmentError(EvalError):
    """Questions and answers (or captions and ground truth) do not match one to one."""
