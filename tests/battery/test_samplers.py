"""Every sampler goes through the house: methods that learn along trajectories, quantize, sample, save, restore."""

import jax
import numpy as np
import pytest
from toys import NUM_TIMESTEPS, Tiny, toy_denoiser

from jaxdq import calibrate, ddim, ddpm, quantize, recipes, restore, sample, save
from jaxdq.calibration import RangeSettings, SearchSettings
from jaxdq.diffusion import dpm_solver, euler, euler_ancestral, lcm, pndm
from jaxdq.evaluation import evaluate

KEY = jax.random.key(0)
DENOISER = toy_denoiser(Tiny())
SAMPLERS = {
    "ddim": ddim(4, eta=0.5),
    "ddpm": ddpm(4),
    "dpm_solver": dpm_solver(4),
    "euler": euler(4, spacing="linspace"),
    "euler_ancestral": euler_ancestral(4),
    "lcm": lcm(4, original_steps=NUM_TIMESTEPS),
    "pndm": pndm(4),
}
RECIPE = recipes.chain(
    recipes.adpdm(
        8,
        6,
        2,
        search=SearchSettings(num_updates=4, moves=1),
        weights="gptq",
        learning=RangeSettings(num_updates=4, judge_every=2, rows=3),
    ),
    recipes.pcr(),
    recipes.ptqd(),
    recipes.tac(),
)


# Fresh noise, and a past with two calls at one time: what the others have too, which are in CI.
FAST = {"euler_ancestral", "pndm"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in SAMPLERS]
)
def test_every_sampler_serves_every_method(name, tmp_path):
    sampler = SAMPLERS[name]
    calib = calibrate(DENOISER, RECIPE, sampler=sampler, key=KEY, num_images=4, batch_size=4)
    qparams = quantize(DENOISER.params, calib)
    drawn = {"sampler": sampler, "num_images": 4, "key": jax.random.key(1)}
    exact, found = (sample(DENOISER, params, **drawn) for params in (DENOISER.params, qparams))
    assert np.isfinite(found).all() and 0 < abs(found - exact).mean() < 0.2 * abs(exact).mean() + 0.05
    save(tmp_path / "q", qparams)
    np.testing.assert_array_equal(sample(DENOISER, restore(tmp_path / "q"), **drawn), found)
    evaluation = evaluate(DENOISER, qparams, sampler=sampler, key=KEY, num_images=4, batch_size=4)
    assert len(evaluation.t) == sampler.num_steps
    # The calibration serves any other sampler too.
    assert np.isfinite(sample(DENOISER, qparams, **{**drawn, "sampler": ddim(3)})).all()
