import pytest

from jaxdq._common.errors import described


class Mute(ValueError):
    """Says nothing when asked."""

    def __str__(self):
        raise RuntimeError("no")


def test_an_exception_without_a_message_is_named_by_the_line_that_raised_it():
    with pytest.raises(Mute) as caught:
        raise Mute
    assert described(caught.value) == "Mute at `raise Mute`"
    assert described(Mute()) == "Mute"
