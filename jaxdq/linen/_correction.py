"""`Correction`: what is put right at a network's ends, by model time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.linen._switch import Switch
from jaxdq.linen._tree import check_numbers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Correction:
    """An affine correction of a network at every model time, and the noise that its sampler adds.

        output(x, t) = output_gain[t] * network(x + input_shift[t], t) + output_shift[t]

    A gain or shift is f32[T], or f32[T, ...] with trailing axes that broadcast against the last axes of an image, such
    as [T, C]. None leaves that part out; a gain of 1 and a shift of 0 give the same bits as None. `jaxdq.apply` reads
    the first three, so that a loop of one's own has them too; `jaxdq.sample` reads the last.

    Attributes:
        output_gain: Multiplies the output.
        output_shift: Is added to the output afterwards.
        input_shift: Is added to the network's first argument.
        output_std: f32[T] >= 0, standard deviation of the error that is left in the output. A sampler's fresh noise of
            standard deviation sigma becomes so much less that both together have it: with x' the next state,
            `sigma'^2 = max(0, sigma^2 - (dx' / d output)^2 output_std^2)`.
    """

    output_gain: jax.Array | None = None
    output_shift: jax.Array | None = None
    input_shift: jax.Array | None = None
    output_std: jax.Array | None = None

    def check(self, num_timesteps: int) -> None:
        """Refuses what is no table of numbers with a row for each of the T model times."""
        for field in dataclasses.fields(self):
            table = getattr(self, field.name)
            if table is None:
                continue
            check_numbers(table, f"the correction's {field.name}")
            if not table.ndim or table.shape[0] != num_timesteps:
                raise InputError(
                    f"the correction's {field.name} has shape {table.shape} and the network was calibrated for "
                    f"{num_timesteps} timesteps; give a row for each of them."
                )

    def on_input(self, x: jax.Array, t: jax.Array | np.ndarray) -> jax.Array:
        """The corrected input, in x's dtype."""
        return x if self.input_shift is None else x + _at(self.input_shift, t, x)

    def on_output(self, output: Any, t: jax.Array | np.ndarray) -> Any:
        """The corrected output, in its own dtype.

        Raises:
            InputError: The network returns something else than one array.
        """
        if self.output_gain is None and self.output_shift is None:
            return output
        if not isinstance(output, jax.Array):
            raise InputError(
                f"the network returns a {type(output).__name__} and its output has a correction, which is for one "
                f"array; wrap the module so that it returns the prediction alone."
            )
        output = output if self.output_gain is None else output * _at(self.output_gain, t, output)
        return output if self.output_shift is None else output + _at(self.output_shift, t, output)


def output_std_of(params: Any) -> jax.Array | None:
    """f32[T]: the standard deviation of the error that a correction leaves; None where a network has none of them."""
    if isinstance(params, Switch):
        found = [output_std_of(choice) for choice in params.choices]
        if found == [None, None]:
            return None
        none = jnp.zeros(params.choice_of_t.shape)
        first, second = (none if one is None else one for one in found)
        return jnp.where(params.choice_of_t == 0, first, second)
    correction = getattr(params, "correction", None)
    return None if correction is None else correction.output_std


def _at(table: jax.Array, t: jax.Array | np.ndarray, like: jax.Array) -> jax.Array:
    """The row of a time, or a row for each row of the batch, broadcastable to `like` and in its dtype."""
    index = jnp.clip(jnp.round(t).astype(jnp.int32), 0, table.shape[0] - 1)
    row = table[index].astype(like.dtype)
    trailing = row.shape[t.ndim :]
    last = like.shape[like.ndim - len(trailing) :]
    if len(trailing) >= like.ndim or any(own not in (1, size) for own, size in zip(trailing, last, strict=True)):
        raise InputError(
            f"a correction has rows of shape {trailing} for arrays of shape {like.shape}; give rows that broadcast "
            f"against the last axes of one of them."
        )
    return row.reshape(row.shape[: t.ndim] + (1,) * (like.ndim - t.ndim - len(trailing)) + trailing)
