"""Networks whose arguments or results have another form than a denoiser's: one wrapper around them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxdq._common.checks import is_whole, shown
from jaxdq._common.errors import InputError

TimeForm = Literal["scalar", "vector", "column"]


@dataclass(frozen=True)
class Wrapped:
    """A network with what `wrap` says around it. It has no parameters: the network's sites keep their paths.

    Attributes:
        module: The network.
        channels_first: It takes and returns [B, C, ...].
        time: The form of its t: "scalar", "vector" [B] or "column" [B, 1].
        time_dtype: Its dtype, or None for that of the model times, int32.
        joined: Number of conditions that join x, along its channels.
        channels: Number of its output's first channels that are the prediction, or None for all.
    """

    module: Any
    channels_first: bool = False
    time: TimeForm = "scalar"
    time_dtype: str | None = None
    joined: int = 0
    channels: int | None = None

    def apply(self, variables: Any, x: jax.Array, t: jax.Array, *conditions: jax.Array, **named: Any) -> jax.Array:
        """Call the network.

        Args:
            variables: `{"params": params}` of the network.
            x: f32[B, ..., C], the state.
            t: int32[] or int32[B].
            *conditions: [B, ...] each; the first `joined` of them are [B, ..., any channels].
            **named: What else the network takes by name.

        Returns:
            [B, ..., channels].
        """
        out = _array_of(self.module.apply(variables, *self._given(x, t, conditions), **named))
        out = jnp.moveaxis(out, 1, -1) if self.channels_first else out
        return out if self.channels is None else out[..., : self.channels]

    def init(self, key: jax.Array, x: jax.Array, t: jax.Array | int, *conditions: jax.Array, **named: Any) -> Any:
        """Make the network's variables; the arguments are those of `apply`."""
        return self.module.init(key, *self._given(x, jnp.asarray(t), conditions), **named)

    def _given(self, x: jax.Array, t: jax.Array, conditions: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """What the network is called with."""
        images, rest = conditions[: self.joined], conditions[self.joined :]
        state = jnp.concatenate([x, *(rows.astype(x.dtype) for rows in images)], axis=-1) if images else x
        return jnp.moveaxis(state, -1, 1) if self.channels_first else state, self._time_of(x, t), *rest

    def _time_of(self, x: jax.Array, t: jax.Array) -> jax.Array:
        t = jnp.asarray(t) if self.time_dtype is None else jnp.asarray(t, self.time_dtype)
        if self.time != "scalar":
            t = jnp.broadcast_to(t, (len(x),))
        return t[:, None] if self.time == "column" else t


def wrap(
    module: Any,
    *,
    channels_first: bool = False,
    time: TimeForm = "scalar",
    time_dtype: str | None = None,
    joined: int = 0,
    channels: int | None = None,
) -> Wrapped:
    """A network in the form that `jaxdq.Denoiser` takes: `module.apply(variables, x, t, *conditions)` on [B, H, W, C].

    A result that is no array is looked into: the field `sample` of an output struct or a dict, the first entry of a
    tuple. The parameters are the network's own, and so are the paths of its sites.

    Args:
        module: A flax linen module.
        channels_first: It takes and returns [B, C, H, W].
        time: The form of its t: "scalar", "vector" ([B]) or "column" ([B, 1]).
        time_dtype: Dtype of its t, such as "float32"; None leaves the model times int32.
        joined: The denoiser's first conditions that join x along its channels: 1 for a network that takes a mask or
            another image beside the noisy one.
        channels: Number of the output's first channels that are the prediction; None is all. A network with a learned
            variance returns that behind it.

    Returns:
        The wrapped network, for `jaxdq.Denoiser(module=...)`.

    Raises:
        InputError: An argument does not fit its description.

    Example:
        >>> from types import SimpleNamespace
        >>> network = SimpleNamespace(apply=lambda variables, x, t: {"sample": x + t[:, :, None, None]})
        >>> float(wrap(network, channels_first=True, time="column").apply({}, jnp.zeros((1, 2, 2, 1)), 3).max())
        3.0
    """
    if isinstance(module, type) or not callable(getattr(module, "apply", None)):
        raise InputError(f"module is {shown(module)}; pass a flax linen module, or anything with an apply method.")
    if time not in get_args(TimeForm):
        raise InputError(f"time is {shown(time)}; pass one of {', '.join(get_args(TimeForm))}.")
    if not isinstance(channels_first, bool):
        raise InputError(f"channels_first is {shown(channels_first)}; pass True or False.")
    if not is_whole(joined) or joined < 0:
        raise InputError(f"joined is {shown(joined)}; pass a number of conditions, 0 or more.")
    if channels is not None and (not is_whole(channels) or channels < 1):
        raise InputError(f"channels is {shown(channels)}; pass a positive number of channels, or None for all.")
    try:
        time_dtype = None if time_dtype is None else jnp.dtype(time_dtype).name
    except TypeError:
        raise InputError(f"time_dtype is {shown(time_dtype)}; pass a dtype such as 'float32', or None.") from None
    return Wrapped(module, channels_first, time, time_dtype, int(joined), channels)


def _array_of(out: Any) -> jax.Array:
    """The prediction in what a network returned."""
    if isinstance(out, Mapping):
        out = out.get("sample", out)
    elif hasattr(out, "sample") and not hasattr(out, "ndim"):
        out = out.sample
    elif isinstance(out, tuple | list) and out:
        out = out[0]
    if not hasattr(out, "ndim"):
        raise InputError(
            f"The network returned {shown(out)}; let it return an array, a struct or dict with the array as sample, or "
            "a tuple that begins with it."
        )
    return out
