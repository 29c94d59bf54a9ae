"""`Acts`: the grids of all quantized activations, a row for each time group."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.linen._plan import Column
from jaxdq.linen._tree import has_values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Acts:
    """Grids of activations by time group.

    G is the number of groups, A that of quantized arrays, T that of model times.

    Attributes:
        scale: f32[G, A].
        zero_point: int32[G, A]; 0 where the scheme is symmetric.
        group_of_t: int32[T] in [0, G), the group of every model time.
        columns: The (array, scheme) that each of the A columns was fitted for (static). A plan looks its columns up
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

    def check(self) -> None:
        """Refuses tables that don't fit one another; numbers are looked at where they are concrete.

        Raises:
            InputError: Shapes that differ, a group without a row, a scale that is not finite and above 0.
        """
        shape, groups = (self.scale.shape[0] if self.scale.ndim else 0, len(self.columns)), self.group_of_t
        if self.scale.shape != shape or self.zero_point.shape != shape or groups.ndim != 1:
            raise InputError(
                f"the activations' grids have scales of shape {self.scale.shape}, zero points of "
                f"{self.zero_point.shape} and groups of {groups.shape} for {len(self.columns)} arrays; give [G, A], "
                f"[G, A] and [T]."
            )
        if has_values(groups) and groups.size and not 0 <= np.min(groups) <= np.max(groups) < shape[0]:
            raise InputError(
                f"group_of_t runs from {np.min(groups)} to {np.max(groups)} and there are {shape[0]} groups of grids; "
                f"give groups of 0 to {shape[0] - 1}."
            )
        if has_values(self.scale) and not (np.isfinite(self.scale).all() and (np.asarray(self.scale) > 0).all()):
            raise InputError("a scale of the activations' grids is not finite and above 0; fit the grids again.")

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
