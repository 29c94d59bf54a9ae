"""What weights look like before they are read."""

from typing import Any, Protocol


class Stored(Protocol):
    """An array, or a tensor in a file, which ``np.asarray`` reads."""

    @property
    def shape(self) -> Any:
        """The sizes of its axes."""

    @property
    def dtype(self) -> Any:
        """Its dtype, known before it is read."""
