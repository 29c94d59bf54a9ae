"""EDM, variance exploding and flow matching: against diffusers' schedulers, and by what a perfect network returns."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, ScoreSdeVeScheduler
from twins import SMALL, WEIGHTS, torch_network

import jaxdq
from jaxdq import InputError
from jaxdq.diffusion import Ladder, Preconditioned, default_sampler, schedule_from_config, with_precondition

CONFIGS = {
    "edm": {"_class_name": "EDMDPMSolverMultistepScheduler"},
    "edm, velocity": {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_data": 1.0},
    "edm, exponential": {"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential"},
    "ve": {"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 100},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}


class Perfect:
    """A network that knows x_0, in the form of its family."""

    def __init__(self, ladder, x_0):
        self.ladder, self.x_0 = ladder, x_0

    def apply(self, variables, x, time):
        ladder, x_0 = self.ladder, self.x_0
        time = time.reshape(-1, 1, 1, 1) if time.ndim else time
        if ladder.family == "flow":
            s = time / ladder.num_timesteps
            return (x - (1 - s) * x_0) / s - x_0
        if ladder.family == "ve":
            return (x_0 - x) / time**2
        sigma, data = jnp.exp(4 * time), ladder.sigma_data
        total = jnp.sqrt(sigma**2 + data**2)
        found = (x_0 - data**2 / total**2 * (x * total)) / (sigma * data / total)
        return -found if ladder.velocity else found


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_perfect_network_draws_what_it_knows(config):
    x_0 = jnp.linspace(-1.5, 2.0, 12).reshape(2, 2, 3)
    ladder = with_precondition(None, config).ladder
    module = Preconditioned(Perfect(ladder, x_0), ladder)
    schedule = schedule_from_config(config)
    assert schedule.prediction_type == "sample" and schedule.clip_range is None
    x = jax.random.normal(jax.random.key(0), (4, 2, 2, 3))
    for t in (0, len(schedule.alphas_cumprod) // 2, len(schedule.alphas_cumprod) - 1):
        np.testing.assert_allclose(module.apply({}, x, t), jnp.broadcast_to(x_0, x.shape), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(
        module.apply({}, x, jnp.array([3, 3, 9, 9]))[2:], module.apply({}, x, 9)[2:], rtol=1e-5, atol=1e-5
    )
    denoiser = jaxdq.Denoiser(module, {"w": np.ones(1)}, schedule, (2, 2, 3))
    # The last level of flow matching is pure noise, where DPM-Solver has no start.
    sampler = jaxdq.ddim(10) if ladder.family == "flow" else jaxdq.dpm_solver(10)
    drawn = jaxdq.sample(denoiser, denoiser.params, sampler=sampler, key=jax.random.key(1), num_images=2)
    np.testing.assert_allclose(drawn, jnp.broadcast_to(x_0, drawn.shape), atol=0.01)


def test_the_levels_are_those_of_diffusers():
    theirs = EDMDPMSolverMultistepScheduler()
    theirs.set_timesteps(1000)
    np.testing.assert_allclose(Ladder("edm").levels()[::-1], theirs.sigmas[:-1].numpy(), rtol=1e-4)
    np.testing.assert_allclose(
        Ladder("ve", 2000, 0.01, 1348.0).levels(), ScoreSdeVeScheduler().discrete_sigmas.numpy()[:2000], rtol=1e-4
    )
    s = FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas.numpy()[::-1].astype(np.float64)
    levels = Ladder("flow", shift=3.0).levels()
    np.testing.assert_allclose(levels[:-1] / (1 + levels[:-1]), s[:-1], rtol=1e-5)
    assert np.isinf(levels[-1]) and s[-1] == 1


def test_a_folder_of_edm_predicts_as_in_pytorch(tmp_path):
    network = torch_network(SMALL)
    network.save_pretrained(tmp_path / "unet")
    assert (tmp_path / "unet" / WEIGHTS).is_file()
    (tmp_path / "scheduler").mkdir()
    config = CONFIGS["edm"]
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    denoiser = jaxdq.load_denoiser(tmp_path)
    assert denoiser.sampler == default_sampler(config) == "dpm_solver"
    scheduler, x = EDMDPMSolverMultistepScheduler(), np.random.default_rng(0).standard_normal((2, 8, 8, 3))
    x, t = x.astype(np.float32), 600
    sigma = torch.tensor(Ladder("edm").levels()[t], dtype=torch.float32)
    state = torch.from_numpy(x).permute(0, 3, 1, 2) * torch.sqrt(1 + sigma**2)
    with torch.no_grad():
        found = network(scheduler.precondition_inputs(state, sigma), scheduler.precondition_noise(sigma)).sample
        expected = scheduler.precondition_outputs(state, found, sigma).permute(0, 2, 3, 1).numpy()
    out = denoiser.module.apply({"params": denoiser.params}, x, t)
    assert np.abs(out - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma_min": 90.0}, "sigma_min is 90.0 and sigma_max is 80.0; jaxdq needs"),
        ({"sigma_data": "half"}, "sigma_data is 'half'"),
        ({"sigma_schedule": "linear"}, "sigma_schedule is 'linear'"),
        ({"prediction_type": "sample"}, "prediction_type='sample'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "use_dynamic_shifting=True"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, "shift is 0"),
    ],
)
def test_bad_fields_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        schedule_from_config(CONFIGS["edm"] | changes)
