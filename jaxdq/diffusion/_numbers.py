"""Numbers that people pass in, or that files hold: what is one, and what only looks like one."""

import math
import numbers
from typing import Any

import numpy as np


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number of Python's or NumPy's; True and False are none.

    Example:
        >>> is_integer(7), is_integer(np.int32(7)), is_integer(True), is_integer(7.0)
        (True, True, False, False)
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)


def is_real(value: Any) -> bool:
    """Whether a value is a number other than NaN; True and False are none, infinity is one.

    Example:
        >>> is_real(0.5), is_real(np.float32(0.5)), is_real(True), is_real("0.5"), is_real(float("nan"))
        (True, True, False, False, False)
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_) and not math.isnan(value)
