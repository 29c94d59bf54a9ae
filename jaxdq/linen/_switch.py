"""`Switch`: two networks of which the time picks one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Switch:
    """Two networks of the same module, of which the time picks one: `choices[choice_of_t[t]]` runs at t.

    What low bits spoil at some steps, more bits keep. An array that both hold is one leaf of this pytree, so that it is
    in memory once, under jit too, and on disk.

    Attributes:
        choices: Two `QuantizedParams`; the second may be the float network's params.
        choice_of_t: int32[T] in {0, 1}.
    """

    choices: tuple[Any, Any]
    choice_of_t: jax.Array

    def tree_flatten(self) -> tuple[list[Any], Any]:
        """Leaves of the first choice, those of the second that the first does not hold, and the times."""
        (first, first_tree), (second, second_tree) = map(jax.tree.flatten, self.choices)
        place = {id(leaf): index for index, leaf in enumerate(first)}
        places = tuple(place.get(id(leaf), -1) for leaf in second)
        own = [leaf for leaf, where in zip(second, places, strict=True) if where < 0]
        return [*first, *own, self.choice_of_t], (first_tree, second_tree, places)

    @classmethod
    def tree_unflatten(cls, structure: Any, leaves: Any) -> "Switch":
        """The inverse of `tree_flatten`."""
        first_tree, second_tree, places = structure
        *arrays, choice_of_t = leaves
        first, own = arrays[: first_tree.num_leaves], iter(arrays[first_tree.num_leaves :])
        second = [next(own) if where < 0 else first[where] for where in places]
        trees = jax.tree.unflatten(first_tree, first), jax.tree.unflatten(second_tree, second)
        return cls(trees, choice_of_t)

    @property
    def plan(self) -> Any:
        """The plan of the first choice."""
        return self.choices[0].plan

    @property
    def acts(self) -> Any:
        """The activations' grids of the first choice."""
        return self.choices[0].acts

    @property
    def params(self) -> Any:
        """The params tree of the first choice."""
        return self.choices[0].params

    def run(self, call: Callable[[Any], jax.Array], t: jax.Array | np.ndarray) -> jax.Array:
        """`call(choice)` of the choice at t; of a vector t both, and of each row its own.

        Raises:
            InputError: A vector t, and an output whose leading axis is not the batch.
        """
        num_timesteps = self.choice_of_t.shape[0]
        choice = self.choice_of_t[jnp.clip(jnp.round(t).astype(jnp.int32), 0, num_timesteps - 1)]
        first, second = self.choices
        if t.ndim == 0:
            out = jax.lax.cond(choice == 0, lambda: call(first), lambda: call(second))
            # A quantized network makes NaN of a traced t outside by itself; the float one knows no bounds.
            inside = (t >= 0) & (t <= num_timesteps)
            return jax.tree.map(lambda leaf: jnp.where(inside, leaf, jnp.nan), out)
        outputs = call(first), call(second)
        if outputs[0].shape[0] != t.shape[0]:
            raise InputError(f"t has {t.shape[0]} entries and the output shape {outputs[0].shape}; give one t per row.")
        rows = choice.reshape(choice.shape + (1,) * (outputs[0].ndim - 1))
        inside = ((t >= 0) & (t <= num_timesteps)).reshape(rows.shape)
        return jnp.where(inside, jnp.where(rows == 0, *outputs), jnp.nan)
