"""The error and the warning for faulty input."""

import traceback


class InputError(ValueError):
    """The input is at fault, and the message is one sentence a person can act on.

    It states what came, what was expected and what to do. The command line prints it and exits with code 2; every other
    exception is a defect of ours and keeps its traceback.
    """

    def __init__(self, sentence: str = "") -> None:
        # An array's repr has lines of its own.
        super().__init__(" ".join(sentence.split()))


class InputWarning(UserWarning):
    """What a person would want to know of an input that works; one sentence, as of `InputError`."""


def described(error: BaseException) -> str:
    r"""An exception of someone else's code in one line: its class, and its message or the line that raised it.

    Example:
        >>> described(KeyError("kernel")), described(ValueError("\ntoo long\n"))
        ("KeyError: 'kernel'", 'ValueError: too long')
        >>> described(AssertionError())
        'AssertionError'
    """
    name = type(error).__name__
    try:
        message = next(iter(str(error).strip().splitlines()), "").rstrip(".:; ")
    except Exception:  # someone else's __str__
        message = ""
    if message:
        return f"{name}: {message}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{name} at `{frames[-1].line}`" if frames and frames[-1].line else name
