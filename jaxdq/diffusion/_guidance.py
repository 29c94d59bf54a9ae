"""Classifier-free guidance: one network asked twice, with the condition and without."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.checks import shown
from jaxdq._common.errors import InputError
from jaxdq.diffusion._denoiser import Denoiser


@dataclass(frozen=True)
class Guided:
    """A network with classifier-free guidance around it, called as the network is, with twice its conditions.

    `out = uncond + guidance_scale (cond - uncond)`, for whatever the network predicts (Ho & Salimans 2022, eq. 6, with
    their `1 + w` as the scale). Both halves go through the network as one batch of 2B rows, the unconditional one
    first, so that whoever watches the network's sites sees both. It has no parameters: the network's sites keep their
    paths.

    Attributes:
        module: The network.
        guidance_scale: 1 is the conditional network alone; Stable Diffusion's custom is 7.5.

    Example:
        >>> from types import SimpleNamespace
        >>> network = SimpleNamespace(apply=lambda variables, x, t, text: text)
        >>> Guided(network, 3.0).apply({}, jnp.zeros(1), 0, jnp.ones(1), jnp.full(1, 2.0)).tolist()
        [4.0]
    """

    module: Any
    guidance_scale: float

    def apply(self, variables: Any, x: jax.Array, t: jax.Array, *conditions: jax.Array) -> jax.Array:
        """Call the network on both halves.

        Args:
            variables: `{"params": params}` of the network.
            x: f32[B, ...], the state.
            t: int32[], one time for all rows; or int32[B].
            *conditions: [B, ...] each: those without the condition, then as many with it.

        Returns:
            What the network returns, [B, ...].
        """
        half = len(conditions) // 2
        both = [jnp.concatenate(pair) for pair in zip(conditions[:half], conditions[half:], strict=True)]
        t = jnp.concatenate([t, t]) if jnp.ndim(t) else t
        out = self.module.apply(variables, jnp.concatenate([x, x]), t, *both)
        unconditional, conditional = jnp.split(out, 2)
        return unconditional + self.guidance_scale * (conditional - unconditional)


def guided(denoiser: Denoiser, unconditional: Sequence[Any], *, guidance_scale: float = 7.5) -> Denoiser:
    """The denoiser with classifier-free guidance, for calibration, sampling and evaluation alike.

    Args:
        denoiser: A conditional model whose conditions are those to be guided towards: a text encoder's rows for P
            prompts, say.
        unconditional: For each condition, the array that stands for none: [1, ...] or [P, ...], such as that of "".
        guidance_scale: A finite number; 1 is the conditional network alone.

    Returns:
        Denoiser: the same parameters, shape and schedule; conditions are `(*unconditional, *conditions)`.

    Raises:
        InputError: The unconditional arrays don't fit the conditions, or the model has none, or is guided already.

    Example:
        `denoiser = jaxdq.guided(jaxdq.load_denoiser(folder, conditions=(embed(prompts),)), (embed([""]),))`
    """
    if not isinstance(denoiser, Denoiser):
        raise InputError(f"denoiser is {shown(denoiser)}; pass a jaxdq.Denoiser.")
    if not isinstance(unconditional, tuple | list):
        raise InputError(f"unconditional is {shown(unconditional)}; pass a tuple with one array for each condition.")
    if isinstance(denoiser.module, Guided) or not denoiser.conditions:
        state = "has no conditions" if not denoiser.conditions else "is guided already"
        raise InputError(f"The model '{denoiser.name}' {state}; pass a conditional model that is not.")
    if not isinstance(guidance_scale, int | float | np.number) or not np.isfinite(guidance_scale):
        raise InputError(f"guidance_scale is {shown(guidance_scale)}; pass a finite number, such as 7.5.")
    if len(unconditional) != len(denoiser.conditions):
        raise InputError(
            f"There are {len(unconditional)} unconditional arrays and {len(denoiser.conditions)} conditions; pass one "
            "for each condition."
        )
    rows = tuple(map(_rows_for, range(len(unconditional)), unconditional, denoiser.conditions))
    module = Guided(denoiser.module, float(guidance_scale))
    return replace(denoiser, module=module, conditions=(*rows, *denoiser.conditions))


def _rows_for(index: int, without: Any, condition: Any) -> np.ndarray:
    """The unconditional array, one row for each of the condition's."""
    given, wanted = np.shape(without), np.shape(condition)
    if given[1:] != wanted[1:] or not given or given[0] not in (1, wanted[0]):
        raise InputError(
            f"unconditional[{index}] has shape {given} and the condition {wanted}; pass {[1, *wanted[1:]]} or one row "
            "for each of the condition's."
        )
    return np.broadcast_to(np.asarray(without), wanted)
