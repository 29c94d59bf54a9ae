"""A network of two dense layers whose activations are known by hand, and states of it at two steps."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from toys import NUM_TIMESTEPS, toy_plan, toy_work

from jaxdq import ddim, linear_schedule
from jaxdq.diffusion import Denoiser
from jaxdq.grid import Scheme
from jaxdq.linen import Rule
from jaxdq.sampling import Trajectories

SHAPE = (1, 2, 2)


class Pair(nn.Module):
    """`second(relu(first(x)) + t)`, with `first` a permutation and a gain: activations are known by hand."""

    @nn.compact
    def __call__(self, x, t, label=None):
        x = x if label is None else x + label
        return nn.Dense(2, name="second")(nn.relu(nn.Dense(2, name="first", use_bias=False)(x)) + t)


PARAMS = {
    "first": {"kernel": jnp.array([[0.0, 3.0], [1.0, 0.0]])},
    "second": {"kernel": jnp.eye(2), "bias": jnp.ones(2)},
}
# States of 3 images at 2 steps, t = 10 and 0.
STATES = np.random.default_rng(0).normal(size=(2, 3, *SHAPE)).astype(np.float32)


def work(states=STATES, rules=None, conditions=()):
    denoiser = Denoiser(Pair(), PARAMS, linear_schedule(NUM_TIMESTEPS), SHAPE, conditions)
    rules = rules or [Rule(".*", Scheme(8, channel_axis=-1), Scheme(8, symmetric=False))]
    plan = toy_plan(Pair(), PARAMS, rules, states[0], jnp.int32(0))
    t, index = np.array([10, 0], np.int32), np.arange(states.shape[1], dtype=np.int32)
    data = Trajectories(states, states, t, index, states[0])
    return toy_work(denoiser, ddim(2), plan, data)


def by_hand(states, t, label=0.0):
    """(low, high) of the inputs of first and second."""
    x = states + label
    second = np.maximum(x[..., ::-1] * np.array([1.0, 3.0], np.float32), 0) + t
    return [(x.min(), x.max()), (second.min(), second.max())]
