"""Networks that want one time for each image, called with one time for all."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class TimePerRow:
    """A network that takes t of shape [B], called with a scalar t as samplers have it.

    It has no parameters: the network's sites keep their paths.

    Attributes:
        module: The network.

    Example:
        >>> from types import SimpleNamespace
        >>> network = SimpleNamespace(apply=lambda variables, x, t: t)
        >>> TimePerRow(network).apply({}, jnp.zeros((2, 1)), 7).tolist()
        [7, 7]
    """

    module: Any

    def apply(self, variables: Any, x: jax.Array, t: jax.Array, *conditions: jax.Array, **kwargs: Any) -> Any:
        """Call the network with t repeated for each row of x."""
        return self.module.apply(variables, x, jnp.broadcast_to(t, x.shape[:1]), *conditions, **kwargs)
