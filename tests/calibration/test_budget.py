"""Bits of weights by layer within a budget."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NUM_TIMESTEPS, SHAPE

from jaxdq import InputError, Rule, Scheme, apply, ddim, linear_schedule, quantize
from jaxdq.calibration import (
    Recipe,
    fit_weights,
    measure_sensitivity,
    observe,
    run_recipe,
    share_uniformly,
    spend_budget,
)
from jaxdq.diffusion import Denoiser
from jaxdq.grid import stored_bytes
from jaxdq.observers import minmax, mse_weights

KEY = jax.random.key(0)


class Uneven(nn.Module):
    """One layer whose errors all reach the output, and two of the same size whose errors hardly do."""

    @nn.compact
    def __call__(self, x, t):
        wide = nn.Dense(64, name="in")(x)
        h = nn.Dense(64, name="loud")(wide)
        quiet = nn.Dense(64, name="quiet")(wide) + nn.Dense(64, name="still")(wide)
        return nn.Dense(x.shape[-1], name="out")(jnp.tanh(h + 0.001 * quiet)) + 0.01 * t


@functools.cache
def before():
    module, x = Uneven(), jnp.zeros((2, *SHAPE))
    params = module.init(jax.random.key(3), x, jnp.int32(0))["params"]
    denoiser = Denoiser(module, params, linear_schedule(NUM_TIMESTEPS), SHAPE)
    rules = [
        Rule("loud|quiet|still", Scheme(4, channel_axis=-1), Scheme(8, symmetric=False)),
        Rule(".*", reason="an end"),
    ]
    calibrators = (fit_weights(mse_weights()), observe(minmax()), measure_sensitivity(2, 1), share_uniformly(1))
    return run_recipe(denoiser, Recipe("toy", lambda sites: rules, calibrators), sampler=ddim(4), key=KEY, num_images=8)


def share_of(work):
    whole = jax.eval_shape(quantize, work.denoiser.params, work.calib)
    return stored_bytes(whole) / stored_bytes(work.denoiser.params)


def spent(budget, **settings):
    settings = {"num_rows": 4, "tries": 2, **settings}
    return spend_budget(budget, mse_weights(), **settings)(before(), KEY)


def output_error(work):
    qparams = jax.jit(quantize)(work.denoiser.params, work.calib)
    x = jax.random.normal(jax.random.key(7), (16, *SHAPE))
    exact, ours = (apply(work.denoiser.module, params, x, 3) for params in (work.denoiser.params, qparams))
    return float(jnp.mean((exact - ours) ** 2))


def test_bits_go_where_errors_reach_the_output_and_the_bytes_are_those_asked_for():
    share = share_of(before())
    work = spent(share)
    name, log = work.log[-1]
    assert name == "spend_budget" and log["bits"]["loud"] > 4 > log["bits"]["quiet"]
    assert share_of(work) <= share and abs(log["spent"] - share_of(work)) < 1e-3
    assert {site.path: site.weight.bits for site in work.plan.sites if site.weight} == log["bits"]
    assert sum(log["share_of_error"].values()) == pytest.approx(1)
    assert output_error(work) < 0.5 * output_error(before())
    np.testing.assert_array_equal(work.acts.scale, before().acts.scale)


def test_more_budget_is_never_worse():
    shares = np.linspace(share_of(before()) * 0.8, 0.95, 4)
    errors = [min(spent(float(share), tries=0).log[-1][1]["tried"].values()) for share in shares]
    assert all(rich <= poor * 1.001 for poor, rich in itertools.pairwise(errors))


def test_on_disk_three_bits_are_three():
    work = spent(share_of(before()), resource="disk", levels=(2, 3, 5, 7))
    assert set(work.log[-1][1]["bits"].values()) <= {2, 3, 5, 7} and work.log[-1][1]["bits"]["loud"] > 4


def test_bit_operations():
    work = spent(0.5, resource="bit-operations")
    log = work.log[-1][1]
    assert log["spent"] <= 0.5 and np.mean(list(log["bits"].values())) <= 4


@pytest.mark.parametrize(
    ("budget", "settings", "said"),
    [
        (0.0, {}, r"budget is 0.0; give a share of the float network in \(0, 1\]"),
        ("half", {}, "budget is 'half'; give a share"),
        (0.5, {"resource": "watts"}, "resource is 'watts'; give one of 'bytes', 'disk', 'bit-operations'"),
        (0.5, {"levels": (4, 2)}, "levels is .*; give different numbers of bits from 2 to 8, the smallest first"),
        (0.5, {"levels": (1, 4)}, "levels is "),
        (
            0.01,
            {},
            "the budget is 0.01x of the float network's bytes and the lowest levels take 0.[0-9]+x; give at least",
        ),
    ],
)
def test_refuses_budgets_that_cannot_be_met(budget, settings, said):
    with pytest.raises(InputError, match=said):
        spent(budget, **settings)
