import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, Tiny, toy_denoiser

import jaxdq
from jaxdq import InputError
from jaxdq.calibration import plan_for, run_recipe
from jaxdq.diffusion import Denoiser, Guided, guided
from jaxdq.linen import apply, apply_visited

KEY = jax.random.key(2)
LABELS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
NONE = np.full((1, 4), 5.0, np.float32)


def plain() -> Denoiser:
    return toy_denoiser(Tiny(), (LABELS,))


def test_golden_the_output_is_the_extrapolation_from_without_to_with():
    denoiser = guided(plain(), (NONE,), guidance_scale=3.0)
    x, t, index = jax.random.normal(KEY, (2, *SHAPE)), jnp.int32(4), jnp.array([2, 4])
    without, given = denoiser.args(index)
    np.testing.assert_array_equal(without, np.repeat(NONE, 2, 0))
    np.testing.assert_array_equal(given, LABELS[[2, 1]])
    call = jax.jit(apply, static_argnums=0)
    uncond, cond = (call(Tiny(), denoiser.params, x, t, label) for label in (without, given))
    out = call(denoiser.module, denoiser.params, x, t, without, given)
    # One batch of four rows against two of two: other fused multiply-adds, then times 3.
    np.testing.assert_allclose(out, uncond + 3 * (cond - uncond), rtol=0, atol=1e-5)


def test_both_halves_are_seen_by_whoever_watches_the_sites():
    denoiser, seen = guided(plain(), (NONE,)), {}

    def visitor(name, x):
        seen[name] = x
        return x

    x = jnp.zeros((2, *SHAPE))
    apply_visited(denoiser.module, denoiser.params, visitor, x, jnp.int32(0), *denoiser.args(jnp.arange(2)))
    # cos(0) = 1 plus the label: without it in the first half, with it in the second.
    np.testing.assert_allclose(seen["time"], 1 + np.concatenate([NONE, NONE, LABELS[:2]]), rtol=1e-6)


def test_sites_and_plan_are_those_of_the_network_itself():
    recipe = jaxdq.recipes.minmax()
    assert plan_for(guided(plain(), (NONE,)), recipe) == plan_for(plain(), recipe)


def test_calibrates_quantizes_samples_and_evaluates():
    denoiser = guided(plain(), (NONE,), guidance_scale=2.0)
    sampler = jaxdq.ddim(2)
    work = run_recipe(denoiser, jaxdq.recipes.minmax(), sampler=sampler, key=KEY, num_images=3)
    qparams = jax.jit(jaxdq.quantize)(denoiser.params, work.calib)
    found = jaxdq.evaluate(denoiser, qparams, sampler=sampler, key=jax.random.key(3), num_images=3)
    # Two layers at 8 bits are above 30 dB; guidance by 2 can amplify their error up to threefold (10 dB).
    assert found.noise_sqnr_db.min() > 20
    alone = guided(plain(), (NONE,), guidance_scale=1.0)
    images = [
        jaxdq.sample(model, denoiser.params, sampler=sampler, num_images=3, key=KEY) for model in (denoiser, alone)
    ]
    assert abs(images[0] - images[1]).max() > 0.01
    reference = jaxdq.sample(plain(), denoiser.params, sampler=sampler, num_images=3, key=KEY)
    np.testing.assert_allclose(images[1], reference, rtol=0, atol=1e-5)  # scale 1 is the conditional network


def test_equal_guidance_is_one_compiled_program():
    assert Guided(Tiny(), 2.0) == Guided(Tiny(), 2.0) and hash(Guided(Tiny(), 2.0)) == hash(Guided(Tiny(), 2.0))


def test_a_vector_of_times_is_one_for_each_row_of_both_halves():
    denoiser = guided(plain(), (NONE,))
    x, args = jax.random.normal(KEY, (2, *SHAPE)), denoiser.args(jnp.arange(2))
    rows, one = (apply(denoiser.module, denoiser.params, x, t, *args) for t in (jnp.full(2, 4), 4))
    np.testing.assert_allclose(rows, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("unconditional", "message"),
    [
        ((), "0 unconditional arrays and 1 conditions"),
        ((NONE, NONE), "2 unconditional arrays"),
        ((NONE[:, :3],), r"unconditional\[0\] has shape \(1, 3\)"),
        ((np.zeros((2, 4)),), r"pass \[1, 4\] or one row"),
        ((np.float32(0),), r"has shape \(\)"),
    ],
)
def test_refuses_what_does_not_fit_the_conditions(unconditional, message):
    with pytest.raises(InputError, match=message):
        guided(plain(), unconditional)


def test_refuses_models_without_conditions_or_guided_already():
    with pytest.raises(InputError, match="has no conditions"):
        guided(dataclasses.replace(plain(), conditions=()), ())
    with pytest.raises(InputError, match="guided already"):
        guided(guided(plain(), (NONE,)), (NONE, NONE))
    with pytest.raises(InputError, match="guidance_scale is nan"):
        guided(plain(), (NONE,), guidance_scale=float("nan"))
