"""Trajectories of the quantized sampler, and what is to be learned on them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from toys import Tiny, toy_denoiser

from jaxdq import InputError, Rule, Scheme, ddim, quantize
from jaxdq.calibration import Recipe, fit_weights, observe, roll_out, run_recipe, share_uniformly
from jaxdq.diffusion import dpm_solver
from jaxdq.observers import minmax, minmax_weights
from jaxdq.sampling import trajectories, walk

KEY = jax.random.key(0)


@functools.cache
def before(sampler):
    rules = lambda sites: [Rule(".*", Scheme(3, channel_axis=-1), Scheme(4, symmetric=False))]  # noqa: E731
    recipe = Recipe("coarse", rules, (fit_weights(minmax_weights()), observe(minmax()), share_uniformly(1)))
    toy = toy_denoiser(Tiny())
    toy = dataclasses.replace(toy, schedule=dataclasses.replace(toy.schedule, clip_range=None))  # no step is bent
    return run_recipe(toy, recipe, sampler=sampler, key=KEY, num_images=4, batch_size=4)


@pytest.mark.parametrize("sampler", [ddim(4), ddim(4, eta=1.0), dpm_solver(4)], ids=repr)
def test_oracle_states_are_the_quantized_samplers_and_targets_the_float_networks_there(sampler):
    work = before(sampler)
    data = roll_out()(work, KEY).data
    qparams = quantize(work.denoiser.params, work.calib)
    drawn = trajectories(work.denoiser, qparams, sampler=sampler, num_images=4, key=KEY, batch_size=4)
    np.testing.assert_allclose(data.states, drawn.states, atol=1e-4)
    np.testing.assert_allclose(data.images, drawn.images, atol=1e-4)
    way = walk(work.denoiser, sampler, num_images=4, key=KEY, batch_size=4)
    for step in range(4):
        exact = way.output(work.denoiser.params, data.states[step], step)
        np.testing.assert_allclose(data.outputs[step], exact, atol=1e-5)
        assert abs(data.outputs[step] - drawn.outputs[step]).max() > 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_oracle_the_trajectorys_target_leads_back_to_the_float_path(eta):
    work = before(ddim(4, eta=eta))
    data = roll_out("trajectory")(work, KEY).data
    float_path = trajectories(
        work.denoiser, work.denoiser.params, sampler=ddim(4, eta=eta), num_images=4, key=KEY, batch_size=4
    )
    way = walk(work.denoiser, ddim(4, eta=eta), num_images=4, key=KEY, batch_size=4)
    for step in range(3):
        back, _ = way.advance(data.states[step], data.outputs[step], step)
        np.testing.assert_allclose(back, float_path.states[step + 1], atol=2e-4)


def test_targets_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="target is 'global'; give one of 'local', 'trajectory'"):
        roll_out("global")
    with pytest.raises(InputError, match="DPMSolver looks back; take 'local'"):
        roll_out("trajectory")(before(dpm_solver(4)), KEY)
