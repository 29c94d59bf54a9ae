import dataclasses
import functools

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from toys import KNOWN_PARAMS, KNOWN_X, Known, toy_calibration, toy_params, toy_plan

from jaxdq import InputError
from jaxdq.grid import Scheme
from jaxdq.linen import Rule, apply, quantize

W8, A8 = Scheme(8, channel_axis=-1), Scheme(8, symmetric=False)
NUM_TIMESTEPS = 40


@functools.cache
def known():
    """Every time a group of its own, with scales so wide that no two draw the same."""
    plan = toy_plan(Known(), KNOWN_PARAMS, [Rule(".*", W8, A8)], KNOWN_X, np.int32(0))
    groups = np.arange(NUM_TIMESTEPS)
    calib = toy_calibration(Known(), KNOWN_PARAMS, plan, groups, KNOWN_X, np.int32(0), num_groups=NUM_TIMESTEPS)
    return jax.jit(quantize)(KNOWN_PARAMS, calib)


run = jax.jit(lambda qparams, t: apply(Known(), qparams, KNOWN_X, t))


def call(t):
    return run(known(), t)


@functools.cache
def at_whole_times():
    return np.stack([call(jnp.int32(t)) for t in range(NUM_TIMESTEPS)])


@settings(max_examples=30, deadline=None)
@given(st.floats(0, NUM_TIMESTEPS, width=32))
def test_property_a_time_between_whole_ones_is_the_nearest(t):
    expected = at_whole_times()[min(int(np.round(t)), NUM_TIMESTEPS - 1)]
    np.testing.assert_array_equal(call(jnp.float32(t)), expected)
    np.testing.assert_array_equal(call(jnp.full(2, t, jnp.float32)), expected)


@pytest.mark.parametrize("t", [36.421, NUM_TIMESTEPS, np.float64(0.4), np.array([3.2, NUM_TIMESTEPS])])
def test_concrete_times_are_the_traced_ones(t):
    # Outside jit XLA fuses less: other roundings, in the seventh digit of 500.
    np.testing.assert_allclose(
        apply(Known(), known(), KNOWN_X, t), call(jnp.asarray(t, jnp.float32)), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint32", "float16", "bfloat16", "float32"])
def test_every_type_of_t_reaches_the_last_of_a_thousand_times(dtype):
    """127 and 255 are the largest that int8 and uint8 hold; bfloat16 has no 999, but 1000."""
    groups = np.arange(1000) // 25
    qparams = dataclasses.replace(
        known(), acts=dataclasses.replace(known().acts, group_of_t=jnp.asarray(groups, jnp.int32))
    )
    largest = min(1000, int(jnp.iinfo(dtype).max)) if "int" in dtype else 1000
    expected = at_whole_times()[groups[min(largest, 999)]]
    traced = run(qparams, jnp.asarray(largest, dtype))
    np.testing.assert_array_equal(traced, expected)
    np.testing.assert_allclose(
        apply(Known(), qparams, KNOWN_X, np.asarray(largest, dtype)), expected, rtol=0, atol=1e-3
    )


class PerRow(nn.Module):
    """A network that takes one time for each image, in one of the ways in which networks say so: by failing."""

    way: str = "assert"

    @nn.compact
    def __call__(self, x, t):
        h = nn.Dense(4, name="in")(x)  # a site before the time is looked at
        match self.way:
            case "assert":
                assert t.ndim == 1
            case "length":
                assert len(t) == len(x), "one time for each image"
            case "index":
                t = t[:, None][:, 0]
            case "reshape":
                t = t.reshape(x.shape[0])
            case "vmap":
                t = jax.vmap(lambda row, t: t)(x, t)
        h = h + jnp.cos(0.3 * t).reshape(-1, *[1] * (x.ndim - 1))
        return nn.Dense(x.shape[-1], name="out")(nn.silu(h))


class AnyTime(PerRow):
    way: str = "any"


X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
PARAMS = toy_params(AnyTime(), X, np.int32(0))


@functools.cache
def quantized():
    plan = toy_plan(AnyTime(), PARAMS, [Rule(".*", W8, A8)], X, np.int32(0))
    calib = toy_calibration(AnyTime(), PARAMS, plan, [0, 1], X, np.int32(0), num_groups=2)
    return jax.jit(quantize)(PARAMS, calib)


@pytest.mark.parametrize("way", ["assert", "length", "index", "reshape", "vmap"])
def test_a_network_that_takes_one_time_per_row_gets_it(way):
    for params in (PARAMS, quantized()):
        expected = apply(AnyTime(), params, X, jnp.int32(1))
        jitted = jax.jit(lambda t, p=params: apply(PerRow(way), p, X, t))
        np.testing.assert_allclose(jitted(jnp.int32(1)), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(jitted(jnp.ones(3, jnp.int32)), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(apply(PerRow(way), params, x=X, t=1), expected, rtol=1e-5, atol=1e-6)


class Whole(PerRow):
    """A network that takes arrays alone: a list of times fails, and so does one of another length."""

    way: str = "index"

    @nn.compact
    def __call__(self, x, t):
        return PerRow.__call__(self, x, jnp.broadcast_to(t, x.shape[:1]))


def test_a_list_of_times_is_an_array_of_them_and_one_of_another_length_is_told():
    for params in (PARAMS, quantized()):
        expected = apply(AnyTime(), params, X, np.array([0.0, 1.0, 0.6]))
        np.testing.assert_array_equal(apply(Whole(), params, X, [0.0, 1.0, 0.6]), expected)
        np.testing.assert_array_equal(apply(Whole(), params, x=X, t=(0.0, 1.0, 0.6)), expected)
        for t in (np.zeros(2), [0, 1], jnp.zeros(4)):
            with pytest.raises(InputError, match=r"t has \d entries and the batch 3 rows; pass one t per row"):
                apply(Whole(), params, X, t)


def test_what_fails_either_way_fails_with_its_own_words():
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            raise KeyError("no such table" if np.ndim(t) == 0 else "another")

    with pytest.raises(KeyError, match="no such table"):
        apply(Broken(), PARAMS, X, 1)
    with pytest.raises(KeyError, match="no such table"):
        apply(Broken(), quantized(), X, 1)
    with pytest.raises(InputError, match="t has 2 entries"):
        apply(AnyTime(), quantized(), X, np.zeros(2))
