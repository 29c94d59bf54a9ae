from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NUM_TIMESTEPS, SHAPE, toy_calibration, toy_denoiser

from jaxdq.app import report
from jaxdq.calibration import plan_for
from jaxdq.diffusion import Denoiser
from jaxdq.evaluation import Evaluation
from jaxdq.linen import QuantizedParams, quantize
from jaxdq.recipes import minmax


class Measured(NamedTuple):
    """A toy network, quantized, and an evaluation of made-up numbers."""

    denoiser: Denoiser
    qparams: QuantizedParams
    evaluation: Evaluation
    metrics: dict[str, Any]


@pytest.fixture(scope="session")
def measured(tmp_path_factory) -> Measured:
    denoiser = toy_denoiser()
    plan = plan_for(denoiser, minmax())
    x, groups = jnp.ones((1, *SHAPE)), np.arange(NUM_TIMESTEPS) * 4 // NUM_TIMESTEPS
    calib = toy_calibration(denoiser.module, denoiser.params, plan, groups, x, jnp.int32(0), num_groups=4)
    qparams = jax.jit(quantize)(denoiser.params, calib)
    images = np.random.default_rng(0).uniform(-1, 1, (5, *SHAPE)).astype(np.float32)
    evaluation = Evaluation(
        t=np.array([15, 10, 5, 0]),
        noise_sqnr_db=np.array([40.0, 20.0, np.inf, 30.0]),
        noise_sqnr_pooled_db=25.0,
        image_psnr_db=40.0,
        psnr_per_image_db=np.array([30.0, 45.0, np.inf, 42.0, 50.0]),
        ssim_per_image=np.array([0.5, 0.9, 1.0, 0.8, 0.95]),
        fd_to_float=0.01,
        fd_float_floor=0.5,
        fd_other_noise=0.75,
        float_images=images,
        quantized_images=images,
        seconds={"sample float": 2.0, "sample quantized": 150.0},
    )
    asked = {
        **{"model": "toy", "recipe": "minmax", "sampler": "ddim", "backend": "cpu", "device": "cpu", "eta": 0.0},
        **{"images": 5, "weight_bits": 8, "act_bits": 8, "groups": 4, "steps": 4, "seed": 0, "batch_size": 64},
        **{"versions": {"jaxdq": "0"}, "command": "jaxdq quantize toy --out <run>"},
    }
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    (checkpoint / "values").write_bytes(bytes(7_000))
    metrics = report.to_json_values({**asked, **report.measured(denoiser, qparams, evaluation, checkpoint)})
    return Measured(denoiser, qparams, evaluation, metrics)
