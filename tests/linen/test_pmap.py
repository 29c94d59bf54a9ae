"""Data parallelism by pmap: qparams replicated, a state and a time for each device. The devices are virtual."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdq

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from flax.jax_utils import replicate
from toys import SHAPE, tiny_quantized

import jaxdq

assert jax.device_count() == 2
denoiser, qparams = tiny_quantized()
x, t = np.random.default_rng(1).standard_normal((2, 3, *SHAPE)).astype(np.float32), np.int32([3, 17])
both = jax.pmap(lambda q, x, t: jaxdq.apply(denoiser.module, q, x, t))(replicate(qparams), x, t)
assert len(both.sharding.device_set) == 2
one = jax.jit(lambda q, x, t: jaxdq.apply(denoiser.module, q, x, t))
expected = np.stack([one(qparams, *pair) for pair in zip(x, t, strict=True)])
np.testing.assert_allclose(both, expected, rtol=1e-5, atol=1e-6)
# The two times lie in two groups: had both devices taken one, the scales of the other would be a quarter off.
other = np.asarray(one(qparams, x[1], t[0]))
assert np.abs(other - expected[1]).max() > 1e-3
"""


@pytest.mark.slow
def test_two_devices_choose_their_own_scales_and_agree_with_one():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    path = os.pathsep.join([str(Path(jaxdq.__file__).parents[1]), str(Path(__file__).parents[1])])
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    found = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
