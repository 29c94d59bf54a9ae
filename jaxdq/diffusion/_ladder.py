"""Networks that were trained on another state than a variance-preserving one: EDM, variance exploding, flow matching.

Their noise levels become a table of model times 0 to T - 1, and a wrapper turns the state of this library,
`sqrt(abar) x_0 + sqrt(1 - abar) eps`, into the network's own and its result into a prediction of x_0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Family = Literal["edm", "ve", "flow"]


@dataclass(frozen=True)
class Ladder:
    """Noise levels of a network, least noisy first, and what it takes and returns there.

    With sigma the noise on a signal of weight 1, and x the state `x_0 + sigma eps`:

    - "edm" (Karras et al. 2022, table 1): `D = c_skip x + c_out F(c_in x, log(sigma) / 4)` predicts x_0;
    - "ve" (Song et al. 2021): F(x, sigma) predicts the score, so `x_0 = x + sigma^2 F`;
    - "flow" (Lipman et al. 2023): on `(1 - s) x_0 + s eps` F(., T s) predicts `eps - x_0`.

    Attributes:
        family: Which of them.
        num_timesteps: T.
        sigma_min: The lowest level; of "edm" and "ve".
        sigma_max: The highest.
        sigma_data: Standard deviation of the data; of "edm".
        rho: Levels are evenly spaced in `sigma ** (1 / rho)`, or in the logarithm for infinity; of "edm".
        velocity: F is a velocity: c_out has the other sign; of "edm".
        shift: `s = shift u / (1 + (shift - 1) u)` for u = 1/T to 1; of "flow".
    """

    family: Family
    num_timesteps: int = 1000
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    velocity: bool = False
    shift: float = 1.0

    def levels(self) -> np.ndarray:
        """The noise on a signal of weight 1: float64[T], rising; infinity where there is no signal."""
        if self.family == "flow":
            s = self._shares()
            return np.divide(s, 1 - s, out=np.full_like(s, np.inf), where=s < 1)
        u = np.linspace(0, 1, self.num_timesteps)
        low, high = self.sigma_min, self.sigma_max
        if self.family == "ve" or np.isinf(self.rho):
            return low * (high / low) ** u
        return (low ** (1 / self.rho) + u * (high ** (1 / self.rho) - low ** (1 / self.rho))) ** self.rho

    def _shares(self) -> np.ndarray:
        u = np.arange(1, self.num_timesteps + 1) / self.num_timesteps
        return self.shift * u / (1 + (self.shift - 1) * u)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """The signal's share of the variance: float64[T]."""
        return 1 / (1 + self.levels() ** 2)

    def coefficients(self) -> np.ndarray:
        """Float64[T, 4]: with (a, time, b, c) of a level, `x_0 = b x + c F(a x, time)` for our state x."""
        if self.family == "flow":
            s = self._shares()
            norm = np.sqrt((1 - s) ** 2 + s**2)
            return np.stack([norm, self.num_timesteps * s, norm, -s], axis=1)
        sigma = self.levels()
        norm = np.sqrt(1 + sigma**2)
        if self.family == "ve":
            return np.stack([norm, sigma, norm, sigma**2], axis=1)
        total = np.sqrt(sigma**2 + self.sigma_data**2)
        out = sigma * self.sigma_data / total * (-1 if self.velocity else 1)
        return np.stack([norm / total, np.log(sigma) / 4, norm * self.sigma_data**2 / total**2, out], axis=1)


@dataclass(frozen=True)
class Preconditioned:
    """A network of a ladder, called with a state and a time of ours; it returns a prediction of x_0.

    Attributes:
        module: The network.
        ladder: Its noise levels.

    Example:
        >>> from types import SimpleNamespace
        >>> network = SimpleNamespace(apply=lambda variables, x, t: 0 * x)
        >>> module = Preconditioned(network, Ladder("flow", num_timesteps=2))
        >>> float(module.apply({}, jnp.ones(1), 1)[0])
        1.0
    """

    module: Any
    ladder: Ladder

    def apply(self, variables: Any, x: jax.Array, t: jax.Array, *conditions: jax.Array, **named: Any) -> jax.Array:
        """Call the network.

        Args:
            variables: `{"params": params}` of the network.
            x: f32[B, ...], the state.
            t: int32[] or int32[B], from 0 to T - 1.
            *conditions: [B, ...] each.
            **named: What else the network takes by name.

        Returns:
            f32[B, ...], x_0.
        """
        table = jnp.asarray(self.ladder.coefficients(), jnp.float32)[jnp.asarray(t)]
        into, time, skip, out = jnp.moveaxis(table, -1, 0)
        if jnp.ndim(t):
            into, skip, out = (part.reshape(-1, *[1] * (jnp.ndim(x) - 1)) for part in (into, skip, out))
        found = self.module.apply(variables, into * x, time, *conditions, **named)
        return skip * x + out * found


def ladder_of(class_name: str, values: Mapping[str, Any]) -> Ladder | None:
    """The ladder of a scheduler's class, or None where its networks take the variance-preserving state.

    Args:
        class_name: diffusers' name.
        values: Its fields, with their defaults.
    """
    if class_name in ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"):
        return Ladder(
            "edm",
            int(values["num_train_timesteps"]),
            values["sigma_min"],
            values["sigma_max"],
            values["sigma_data"],
            np.inf if values["sigma_schedule"] == "exponential" else values["rho"],
            values["prediction_type"] == "v_prediction",
        )
    if class_name == "ScoreSdeVeScheduler":
        return Ladder("ve", int(values["num_train_timesteps"]), values["sigma_min"], values["sigma_max"])
    if class_name == "FlowMatchEulerDiscreteScheduler":
        return Ladder("flow", int(values["num_train_timesteps"]), shift=values["shift"])
    return None
