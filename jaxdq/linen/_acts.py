"""`Acts`: the grids of all quantized activations, a row for each time group."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._errors import InputError
from jaxdq.linen._plan import Column


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Acts:
    """Grids of activations by time group.

    G is the number of groups, A that of quantized arrays, T that of model times.

    Attributes:
        scale: f32[G, A].
        zero_point: int32[G, A]; 0 where the scheme is symmetric.
        group_of_t: int32[T] in [0, G), the group of every model time.
        columns: the (array, scheme) that each of the A columns was fitted for (static). A plan looks its columns up
            here by name, so that a bit width changed after the fact cannot take a neighbour's scale.
    """

    scale: jax.Array
    zero_point: jax.Array
    group_of_t: jax.Array
    columns: tuple[Column, ...] = dataclasses.field(metadata={"static": True})

    @property
    def num_groups(self) -> int:
        """G."""
        return self.scale.shape[0]

    def select(self, columns: tuple[Column, ...]) -> "Acts":
        """The same grids with these columns, in this order.

        Raises:
            InputError: A column that no grid was fitted for: the array was not calibrated, or with other bits.
        """
        if columns == self.columns:
            return self
        index = {column: index for index, column in enumerate(self.columns)}
        for array, scheme in columns:
            if (array, scheme) not in index:
                fitted = [str(other) for name, other in self.columns if name == array]
                came = f"{' and '.join(fitted)} bits" if fitted else "no bits at all"
                raise InputError(
                    f"the plan puts the input of '{array}' on {scheme} bits and its grid was fitted for {came}; fit "
                    f"the activations again after the plan has changed."
                )
        chosen = np.array([index[column] for column in columns], int)
        return Acts(self.scale[:, chosen], self.zero_point[:, chosen], self.group_of_t, columns)


def with_one_partition(scale: np.ndarray, zero_point: np.ndarray, group_of_t: np.ndarray) -> tuple[np.ndarray, ...]:
    """Tables in which every array had a partition of its own, as tables with one partition for the network.

    Args:
        scale: f32[G, A].
        zero_point: int32[G, A].
        group_of_t: int32[T, A].

    Returns:
        (f32[G', A], int32[G', A], int32[T]): the same grid for every array at every time; G' is the number of different
        rows of `group_of_t`.
    """
    rows, group = np.unique(group_of_t, axis=0, return_inverse=True)
    columns = np.arange(scale.shape[1])
    return scale[rows, columns], zero_point[rows, columns], group.reshape(-1).astype(np.int32)


def unfitted_acts(columns: tuple[Column, ...], num_timesteps: int, *, num_groups: int = 1, scale: float = 1.0) -> Acts:
    """Grids that nobody fitted, in equal spans of time: for programs whose numbers do not matter."""
    shape = num_groups, len(columns)
    group_of_t = jnp.arange(num_timesteps, dtype=jnp.int32) * num_groups // num_timesteps
    return Acts(jnp.full(shape, scale, jnp.float32), jnp.zeros(shape, jnp.int32), group_of_t, columns)
