"""Grids of each step, fitted behind the quantized steps before it."""

import functools

import jax
import numpy as np
import pytest
from toys import Tiny, toy_denoiser

from jaxdq import InputError, Rule, Scheme, ddim, quantize
from jaxdq.calibration import (
    Recipe,
    fit_progressively,
    fit_weights,
    observe,
    relax_activations,
    run_recipe,
    share_uniformly,
)
from jaxdq.calibration import _progressive as progressive
from jaxdq.diffusion import pndm
from jaxdq.grid import qparams_from_range
from jaxdq.observers import minmax, minmax_weights
from jaxdq.sampling import Walk, walk

KEY, STEPS = jax.random.key(0), 4
ACT = Scheme(4, symmetric=False)
FITTED = (fit_weights(minmax_weights()), observe(minmax()), share_uniformly(1))


def rules(sites):
    return [Rule(".*", Scheme(4, channel_axis=-1), ACT)]


@functools.cache
def before(sampler=ddim(STEPS), images=8):  # noqa: B008
    recipe = Recipe("coarse", rules, FITTED)
    return run_recipe(toy_denoiser(Tiny()), recipe, sampler=sampler, key=KEY, num_images=images, batch_size=8)


@functools.cache
def fitted():
    """Whether images come closer or not."""
    work = before()
    return progressive._fitted(work, walk(work.denoiser, ddim(STEPS), num_images=8, key=KEY, batch_size=8), minmax())[1]


def test_golden_grids_are_those_of_the_states_at_which_the_quantized_sampler_arrives():
    """The first layer's input is the state itself, whatever the grids of its own step."""
    work = fitted()
    way = walk(work.denoiser, ddim(STEPS), num_images=8, key=KEY, batch_size=8)
    qparams, x, past = quantize(work.denoiser.params, work.calib), way.start(), ()
    column = [name for name, _ in work.plan.columns].index("conv_in")
    for step in range(STEPS):
        grid = qparams_from_range(x.min(), x.max(), ACT)
        row = np.asarray(work.acts.group_of_t)[way.t[step]]
        np.testing.assert_allclose(work.acts.scale[row, column], grid.scale, rtol=1e-5)
        assert work.acts.zero_point[row, column] == grid.zero_point
        x, past = way.advance(x, way.output(qparams, x, step), step, past)
    assert work.acts.num_groups == STEPS


def test_the_last_step_is_fitted_too():
    last = np.asarray(fitted().acts.group_of_t)[0]
    assert (np.asarray(fitted().acts.scale[last]) != np.asarray(before().acts.scale[0])).all()


def test_costs_two_calls_for_each_step_and_batch_and_one_program_each(monkeypatch):
    work, calls = before(images=16), []
    observed, output = progressive._observe, Walk.output

    def counted(name, function, batches):
        def call(*args, **kwargs):
            calls.extend([name] * batches)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(progressive, "_observe", counted("observe", observed, 1))
    way = walk(work.denoiser, ddim(STEPS), num_images=16, key=KEY, batch_size=8)
    monkeypatch.setattr(Walk, "output", counted("output", output, len(way.batches)))
    size = observed._cache_size()
    progressive._fitted(work, way, minmax())
    assert len(calls) == 2 * STEPS * len(way.batches)
    assert observed._cache_size() <= size + 1


def test_a_sampler_that_calls_the_network_twice_at_one_time_has_one_grid_there():
    work = before(pndm(STEPS))
    assert len(work.data.t) > len(set(work.data.t.tolist()))
    way = walk(work.denoiser, pndm(STEPS), num_images=4, key=KEY, batch_size=4)
    _, done = progressive._fitted(work, way, minmax())
    assert done.acts.num_groups == len(set(work.data.t.tolist()))


def test_stays_as_it_was_where_images_are_no_closer():
    far = minmax()._replace(qparams=lambda state, scheme: qparams_from_range(-1e3, 1e3, scheme))
    work = fit_progressively(far, num_images=4)(before(), KEY)
    assert work.calib is before().calib and dict(work.log)["fit_progressively"]["kept"] == "before"


def test_is_refused_where_two_networks_take_turns():
    recipe = Recipe("toy", rules, (*FITTED, relax_activations(), fit_progressively()))
    with pytest.raises(
        InputError, match="'fit_progressively' comes after wider activations at some times were decided"
    ):
        run_recipe(before().denoiser, recipe, sampler=ddim(2), key=KEY)
