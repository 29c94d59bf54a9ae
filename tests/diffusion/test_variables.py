import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NUM_TIMESTEPS, SHAPE, toy_params

import jaxdq
from jaxdq import InputError
from jaxdq.diffusion import Denoiser, linear_schedule

X = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
SCHEDULE = linear_schedule(NUM_TIMESTEPS, 0.01, 0.3)


class Normed(nn.Module):
    """Two collections: running statistics, inside `nn.remat` too, and a number of one's own. Its time is called so."""

    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, label: jax.Array | None = None, *, timesteps: jax.Array) -> jax.Array:
        h = nn.Conv(4, (1, 1), name="conv_in")(x) * self.variable("mine", "gain", jnp.ones, ()).value
        h = nn.BatchNorm(use_running_average=not self.train, name="norm")(h)
        h = nn.Conv(4, (1, 1), name="conv")(nn.silu(h)) + 0.01 * timesteps
        h = nn.remat(nn.BatchNorm)(use_running_average=not self.train, name="norm_in_remat")(h)
        return nn.Dense(x.shape[-1], name="conv_out")(nn.silu(h))


class Positional(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        return Normed(self.train, name="net")(x, timesteps=t)


PARAMS = toy_params(Positional(), X, 0)
STATS = {
    "mean": np.array([0.3, -0.5, 0.1, 0.0], np.float32),
    "var": np.array([0.2, 1.0, 0.5, 2.0], np.float32),
}
VARIABLES = {
    "batch_stats": {"net": {"norm": STATS, "norm_in_remat": STATS}},
    "mine": {"net": {"gain": np.float32(0.5)}},
}


@pytest.fixture(scope="module")
def quantized():
    # What init returns holds params too; they have a place of their own.
    denoiser = Denoiser(Positional(), PARAMS, SCHEDULE, SHAPE, variables={**VARIABLES, "params": PARAMS})
    recipe = jaxdq.recipes.uniform_groups(num_groups=2, ranges="minmax")
    calib = jaxdq.calibrate(denoiser, recipe, sampler=jaxdq.ddim(2), key=jax.random.key(0), num_images=4)
    return denoiser, jax.jit(jaxdq.quantize)(denoiser.params, calib)


def run(module, qparams, **kwargs):
    return np.asarray(jax.jit(jaxdq.apply, static_argnums=0)(module, qparams, X, **kwargs))


@pytest.mark.slow
def test_collections_come_along_in_float_on_integers_and_after_restoring(quantized, tmp_path):
    denoiser, qparams = quantized
    exact = np.asarray(Positional().apply({"params": PARAMS, **VARIABLES}, X, 5))
    np.testing.assert_allclose(run(denoiser.module, PARAMS, t=5), exact, rtol=1e-6, atol=1e-6)
    jaxdq.save(tmp_path / "q", qparams)
    found = run(denoiser.module, qparams, t=5)
    for other in (run(Positional(), qparams, t=5), run(Positional(), jaxdq.restore(tmp_path / "q"), t=5)):
        np.testing.assert_array_equal(other, found)
    assert 0 < abs(found - exact).mean() < 0.05 * abs(exact).mean()
    other = jax.tree.map(lambda leaf: 2 * leaf, VARIABLES)
    assert abs(run(Positional(), dataclasses.replace(qparams, variables=other), t=5) - found).max() > 0.01
    images = [
        jaxdq.sample(denoiser, params, sampler=jaxdq.ddim(2), num_images=2, key=jax.random.key(1))
        for params in (PARAMS, qparams)
    ]
    assert 0 < abs(images[0] - images[1]).max() < 0.2


def test_a_denoiser_that_is_changed_is_wrapped_once(quantized):
    denoiser, _ = quantized
    assert dataclasses.replace(denoiser, name="other").module is denoiser.module
    again = dataclasses.replace(denoiser, variables={**VARIABLES, "mine": {"net": {"gain": np.float32(2.0)}}})
    assert again.module.module == denoiser.module.module == Positional()
    assert abs(run(again.module, PARAMS, t=5) - run(denoiser.module, PARAMS, t=5)).max() > 0.01


class Listed(nn.Module):
    features: list

    @nn.compact
    def __call__(self, x, t):
        for features in self.features:
            x = nn.Dense(features)(x)
        return x


def test_a_module_with_a_list_among_its_attributes_is_no_other():
    module = Listed([3, 4, SHAPE[-1]])
    params = toy_params(module, X, 0)
    with pytest.raises(TypeError, match="unhashable"):
        hash(module)
    denoiser = Denoiser(module, params, SCHEDULE, SHAPE)
    assert dataclasses.replace(denoiser, name="other").module is denoiser.module
    np.testing.assert_allclose(run(denoiser.module, params, t=0), module.apply({"params": params}, X, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "a collection 'mine' beside params and was called without it; pass jaxdq.Denoiser"),
        ({"mine": VARIABLES["mine"]}, "a collection 'batch_stats' beside params"),
        ({"batch_stats": [1.0]}, r"variables is \[\"'batch_stats'\"\]; pass the collections"),
        ([1.0], "variables is list; pass the collections"),
        ({"mine": {"gain": np.float32("nan")}}, "NaN or infinity in variables at mine/gain"),
    ],
)
def test_collections_that_are_missing_or_none_are_named(variables, words):
    with pytest.raises(InputError, match=words):
        denoiser = Denoiser(Positional(), PARAMS, SCHEDULE, SHAPE, variables=variables)
        jaxdq.calibrate(denoiser, jaxdq.recipes.minmax(), sampler=jaxdq.ddim(2), key=jax.random.key(0))


def test_a_network_in_training_mode_is_told_so():
    denoiser = Denoiser(Positional(train=True), PARAMS, SCHEDULE, SHAPE, variables=VARIABLES)
    with pytest.raises(InputError, match="updates its collection 'batch_stats' when it is called; make it in"):
        jaxdq.calibrate(denoiser, jaxdq.recipes.minmax(), sampler=jaxdq.ddim(2), key=jax.random.key(0))
