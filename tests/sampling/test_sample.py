import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NUM_TIMESTEPS, SHAPE, Tiny, tiny_quantized, toy_denoiser

import jaxdq
from jaxdq import Calibration, InputError, ddim, ddpm, diffusion, sample
from jaxdq.diffusion import Denoiser, initial_noise, linear_schedule
from jaxdq.linen import Correction
from jaxdq.sampling import batch_at, one_pass, trajectories, turns
from jaxdq.sampling._sample import with_noise_of

KEY = jax.random.key(5)
SCHEDULE = linear_schedule(NUM_TIMESTEPS, 0.01, 0.3)


class Pointwise:
    """Not a linen module, but called like one; it counts how often it is traced. No sums, so no rounding differs."""

    def __init__(self):
        self.traces = []

    def apply(self, variables, x, t, *conditions):
        self.traces.append(x.shape)
        return sum(conditions, variables["params"]["gain"] * x)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sampler", [ddpm(10), ddim(10, eta=1.0), ddim(10, eta=0.4), ddim(10)], ids=repr)
def test_an_error_that_fits_into_the_fresh_noise_leaves_its_variance_as_it_was(sampler, prediction):
    """sigma'^2 + (dx' / d output)^2 std^2 = sigma^2; what doesn't fit draws none, and no error changes no bit."""
    denoiser, qparams = tiny_quantized()
    schedule = dataclasses.replace(denoiser.schedule, prediction_type=prediction, clip_range=None)
    plain = sampler.coefficients(schedule)
    into = diffusion.step(plain, np.zeros(10), np.ones(10)) - diffusion.step(
        plain, np.zeros(10), np.zeros(10)
    )  # each step's own
    for std in (0.0, 1e-3, 0.02, 50.0):
        correction = Correction(output_std=jnp.full(NUM_TIMESTEPS, std))
        found = with_noise_of(dataclasses.replace(qparams, correction=correction), plain)
        expected = np.sqrt(np.maximum(np.float64(plain.noise_std) ** 2 - (np.float64(into) * std) ** 2, 0))
        np.testing.assert_allclose(found.noise_std, expected, atol=1e-6)
        if std == 0:
            np.testing.assert_array_equal(found.noise_std, plain.noise_std)


SHARED = Pointwise()  # compiled programs belong to the module: one serves all tests that count nothing


def pointwise(*conditions, module=SHARED):
    return Denoiser(module, {"gain": jnp.float32(0.5)}, SCHEDULE, SHAPE, conditions)


def draw(denoiser, params=None, *, num_images, sampler=None, **kwargs):
    params = denoiser.params if params is None else params
    sampler = sampler or ddpm(4)
    return np.asarray(sample(denoiser, params, sampler=sampler, num_images=num_images, key=KEY, **kwargs))


def test_invariant_image_i_is_its_own():
    all_at_once = draw(pointwise(), num_images=6)
    assert all_at_once.shape == (6, *SHAPE) and all_at_once.dtype == np.float32
    # Two batches of 3 (and of 3 and 2); fewer images. Elementwise arithmetic in another program: fused multiply-adds.
    for num_images, batch_size in [(6, 4), (5, 3), (3, 64)]:
        images = draw(pointwise(), num_images=num_images, batch_size=batch_size)
        np.testing.assert_allclose(images, all_at_once[:num_images], rtol=0, atol=1e-6)
    assert len({image.tobytes() for image in all_at_once}) == 6


def test_the_same_key_draws_the_same_and_another_does_not():
    denoiser = pointwise()
    once = draw(denoiser, num_images=3)
    np.testing.assert_array_equal(once, draw(denoiser, num_images=3))
    other = sample(denoiser, denoiser.params, sampler=ddpm(4), num_images=3, key=jax.random.key(6))
    assert abs(other - once).max() > 0.1


def test_float_and_quantized_networks_start_from_the_same_noise():
    denoiser, qparams = tiny_quantized()
    parts = [
        trajectories(denoiser, params, sampler=ddim(2), num_images=3, key=KEY) for params in (denoiser.params, qparams)
    ]
    np.testing.assert_array_equal(parts[0].states[0], parts[1].states[0])
    np.testing.assert_array_equal(parts[0].states[0], initial_noise(KEY, jnp.arange(3), SHAPE))
    # 8-bit weights and activations of two layers: well above 20 dB at the first step (the floor of the battery).
    error = parts[0].outputs[0] - parts[1].outputs[0]
    assert 0 < np.sum(error**2) < 0.01 * np.sum(parts[0].outputs[0] ** 2)


@pytest.mark.parametrize("clip_range", [1.0, None])
def test_images_are_clipped_and_latents_are_not_and_trajectories_end_in_them(clip_range):
    schedule = linear_schedule(NUM_TIMESTEPS, 0.01, 0.3, clip_range=clip_range)
    denoiser = dataclasses.replace(pointwise(), schedule=schedule)
    images = draw(denoiser, num_images=3)
    assert abs(images).max() == 1 if clip_range else abs(images).max() > 1
    data = trajectories(denoiser, denoiser.params, sampler=ddpm(4), num_images=3, key=KEY)
    np.testing.assert_allclose(data.images, images, rtol=0, atol=1e-6)
    np.testing.assert_allclose(data.outputs, 0.5 * data.states, rtol=1e-6)


def test_trajectories_are_cut_to_the_images_asked_for():
    denoiser = pointwise()
    data = trajectories(denoiser, denoiser.params, sampler=ddim(4), num_images=5, key=KEY, batch_size=3)
    assert data.states.shape == data.outputs.shape == (4, 5, *SHAPE) and data.images.shape == (5, *SHAPE)
    assert (data.num_steps, data.num_images) == (4, 5)
    assert data.t.tolist() == [15, 10, 5, 0] and data.image_index.tolist() == [0, 1, 2, 3, 4]
    assert isinstance(data.states, np.ndarray)


def test_compiles_once_for_all_batches_and_steps():
    denoiser = pointwise(module=Pointwise())
    draw(denoiser, num_images=5, batch_size=3, sampler=ddim(4))
    draw(denoiser, {"gain": jnp.float32(0.1)}, num_images=6, batch_size=3, sampler=ddim(4))
    assert denoiser.module.traces == [(3, *SHAPE)]


def test_conditions_take_turns():
    labels = np.array([0.25, -0.5, 1.0, 0.0], np.float32).reshape(4, 1, 1, 1)
    # The model answers label + 0 x, and "sample" prediction makes that the image.
    schedule = linear_schedule(NUM_TIMESTEPS, 0.01, 0.3, prediction_type="sample")
    denoiser = Denoiser(Pointwise(), {"gain": jnp.float32(0)}, schedule, SHAPE, (labels,))
    images = draw(denoiser, num_images=6, sampler=ddim(4), batch_size=3)
    np.testing.assert_allclose(images[:, 0, 0, 0], labels.ravel()[np.arange(6) % 4], atol=1e-6)


def test_quantized_networks_take_conditions_too():
    denoiser, qparams = tiny_quantized()
    labels = np.array([[0.0] * 4, [2.0] * 4], np.float32)
    labelled = toy_denoiser(Tiny(), (labels,))
    images = draw(labelled, qparams, num_images=2, sampler=ddim(2))
    plain = draw(denoiser, qparams, num_images=2, sampler=ddim(2))
    # A label of zeros changes nothing; a code beside a tie may still flip in another program.
    np.testing.assert_allclose(images[0], plain[0], rtol=0, atol=1e-2)
    assert abs(images[1] - plain[1]).max() > 0.1


@pytest.mark.parametrize(("num_images", "batch_size"), [(0, 1), (-1, 1), (1, 0), (4, -2)])
def test_bad_numbers_are_refused(num_images, batch_size):
    denoiser = pointwise()
    for run in (sample, trajectories):
        with pytest.raises(InputError, match=f"num_images is {num_images} and batch_size {batch_size}"):
            run(denoiser, denoiser.params, sampler=ddim(2), num_images=num_images, key=KEY, batch_size=batch_size)


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(InputError, match="30 steps"):
        draw(pointwise(), num_images=1, sampler=ddim(30))


def test_one_pass_shows_every_state_in_batches_of_one_size():
    denoiser = pointwise(np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1))
    data = trajectories(denoiser, denoiser.params, sampler=ddim(2), num_images=5, key=KEY)
    batches = list(one_pass(denoiser, data, 2))
    assert [(int(batch.step), int(batch.t), batch.x.shape[0]) for batch in batches] == [(0, 10, 2)] * 3 + [
        (1, 0, 2)
    ] * 3
    for step in range(2):
        seen = {np.asarray(x).tobytes() for batch in batches if batch.step == step for x in batch.x}
        assert seen == {x.tobytes() for x in data.states[step]}
    # Each batch brings the targets and the conditions of its own images.
    batch = batch_at(denoiser, data, 1, np.array([4, 1]))
    np.testing.assert_array_equal(batch.target, data.outputs[1, [4, 1]])
    np.testing.assert_array_equal(np.ravel(batch.args[0]), [1, 1])


def test_few_states_are_of_many_images():
    denoiser = pointwise()
    data = trajectories(denoiser, denoiser.params, sampler=ddim(4), num_images=5, key=KEY)
    counts = np.array([2, 0, 1, 4])
    np.testing.assert_array_equal(turns(counts), [0, 2, 2, 3])
    shown = {
        (int(batch.step), x.tobytes()) for batch in one_pass(denoiser, data, 4, counts) for x in np.asarray(batch.x)
    }
    images = {0: [0, 1], 2: [2], 3: [3, 4, 0, 1]}
    assert shown == {(step, data.states[step, image].tobytes()) for step in images for image in images[step]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": jaxdq.ddim}, "sampler is a function; pass one such as"),
        ({"sampler": "ddim"}, "sampler is 'ddim'"),
        ({"sampler": None}, "sampler is None"),
        ({"key": 0}, r"key is 0; pass one random key, such as jax.random.key\(0\)"),
        ({"key": jax.random.split(jax.random.key(0))}, r"key is of shape \(2,\)"),
        ({"key": None}, "key is None"),
        ({"num_images": True}, "num_images is True"),
        ({"num_images": 2.0}, "num_images is 2.0"),
        ({"batch_size": "8"}, "batch_size '8'"),
    ],
)
def test_arguments_of_the_wrong_kind_are_told_one_by_one(arguments, message):
    denoiser, qparams = tiny_quantized()
    given = {"sampler": jaxdq.ddim(2), "num_images": 1, "key": jax.random.key(0), **arguments}
    with pytest.raises(InputError, match=message):
        sample(denoiser, qparams, **given)


def test_what_is_no_denoiser_and_what_is_no_params_is_told():
    denoiser, _ = tiny_quantized()
    given = {"sampler": jaxdq.ddim(2), "num_images": 1, "key": jax.random.key(0)}
    with pytest.raises(InputError, match=r"denoiser is a Tiny; pass a jaxdq\.Denoiser"):
        sample(denoiser.module, denoiser.params, **given)
    calib = Calibration({}, None, tiny_quantized()[1].plan)
    with pytest.raises(InputError, match=r"params is a calibration; pass jaxdq\.quantize"):
        sample(denoiser, calib, **given)
    with pytest.raises(InputError, match="params is a calibration"):
        jaxdq.apply(denoiser.module, calib, np.zeros((1, *denoiser.shape)), 0)
    with pytest.raises(InputError, match=r"pass the linen module itself, such as denoiser\.module"):
        jaxdq.apply(denoiser, denoiser.params, np.zeros((1, *denoiser.shape)), 0)
    with pytest.raises(InputError, match="params is a Denoiser; pass the float params"):
        jaxdq.quantize(denoiser, calib)
