"""Params of another network are told before anything runs, by everybody who is given them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NUM_TIMESTEPS, SHAPE, Tiny, tiny_quantized, toy_calibration, toy_params, toy_plan

import jaxdq
from jaxdq import InputError, Rule, Scheme, apply, quantize, sample
from jaxdq.diffusion import linear_schedule
from jaxdq.linen import Correction, Instead

KEY = jax.random.key(0)
X, T = np.random.default_rng(3).standard_normal((4, *SHAPE)).astype(np.float32), np.int32(0)
W8, A8 = Scheme(8, channel_axis=-1), Scheme(8, symmetric=False)


@functools.cache
def calibrated():
    denoiser = tiny_quantized()[0]
    rules = [Rule("time", W8), Rule("conv_(in|out)"), Rule(".*", W8, A8)]
    plan = toy_plan(Tiny(), denoiser.params, rules, X, T)
    return toy_calibration(Tiny(), denoiser.params, plan, [0] * NUM_TIMESTEPS, X, T)


def changed(path, change):
    """The float params with one leaf changed."""
    module, name = path.split("/")
    params = tiny_quantized()[0].params
    return {**params, module: {**params[module], name: change(jnp.asarray(params[module][name]))}}


def without(path):
    params = tiny_quantized()[0].params
    return {name: leaves for name, leaves in params.items() if name != path}


FOREIGN = {
    "NaN in a kernel": (changed("conv/kernel", lambda w: w.at[0].set(np.nan)), "'conv/kernel' holds NaN"),
    "infinity in a bias": (changed("dense/bias", lambda b: b.at[0].set(np.inf)), "'dense/bias' holds NaN or infinity"),
    "an integer kernel": (changed("conv/kernel", lambda w: w.astype(jnp.int8)), "'conv/kernel' holds int8"),
    "an integer bias": (changed("conv_in/bias", lambda b: b.astype(jnp.int32)), "'conv_in/bias' holds int32"),
    "a complex kernel": (changed("conv/kernel", lambda w: w + 1j), "'conv/kernel' holds complex64"),
    "another shape": (changed("conv/kernel", lambda w: w[:1]), r"'conv/kernel' has shape \(1, 3, 8, 8\)"),
    "another shape in float": (changed("conv_in/bias", lambda b: b[:1]), r"'conv_in/bias' has shape \(1,\)"),
    "other weights": (changed("conv_in/kernel", lambda w: w * 1.1), "'conv_in/kernel' holds other numbers"),
    "another bias": (changed("dense/bias", lambda b: b + 0.1), "'dense/bias' holds other numbers"),
    "a missing layer": (without("conv_in"), "'conv_in/bias', 'conv_in/kernel' are missing"),
    "a layer too many": ({**without(""), "extra": {"kernel": jnp.ones((2, 2))}}, "'extra/kernel' is unknown"),
    "the collections": ({"params": without("")}, "are missing and .* are unknown"),
}
ABSTRACT = [
    name for name in FOREIGN if name not in ("NaN in a kernel", "infinity in a bias", "other weights", "another bias")
]
every_foreign = pytest.mark.parametrize("name", FOREIGN)


@every_foreign
def test_quantize_tells_params_of_another_network(name):
    params, message = FOREIGN[name]
    with pytest.raises(InputError, match=message):
        quantize(params, calibrated())


@pytest.mark.parametrize("name", ABSTRACT)
def test_under_jit_names_shapes_and_types_are_told(name):
    params, message = FOREIGN[name]
    with pytest.raises(InputError, match=message):
        jax.eval_shape(quantize, params, calibrated())


@every_foreign
def test_sample_and_evaluate_tell_a_denoiser_of_another_network(name):
    denoiser, qparams = tiny_quantized()
    params, message = FOREIGN[name]
    other = dataclasses.replace(denoiser, name="other")
    object.__setattr__(other, "params", params)  # what is not finite, a denoiser refuses by itself
    with pytest.raises(InputError, match=message):
        sample(other, qparams, sampler=jaxdq.ddim(2), num_images=1, key=KEY)
    with pytest.raises(InputError, match=message):
        jaxdq.evaluate(other, qparams, sampler=jaxdq.ddim(2), num_images=2, key=KEY)


def with_leaf(path, change):
    module, name = path.split("/")
    qparams = tiny_quantized()[1]
    leaves = qparams.params[module]
    return dataclasses.replace(qparams, params={**qparams.params, module: {**leaves, name: change(leaves[name])}})


@pytest.mark.parametrize(
    ("qparams", "message"),
    [
        (with_leaf("conv/bias", lambda b: b.at[0].set(jnp.inf)), "'conv/bias' holds NaN or infinity"),
        (with_leaf("conv_in/kernel", lambda w: w + 1), "'conv_in/kernel' holds other numbers"),
        (with_leaf("conv/kernel", lambda w: jnp.ones(w.shape)), "'conv/kernel' is in float and not on its grid"),
        (dataclasses.replace(tiny_quantized()[1], params=without("conv")), "'conv/bias', 'conv/kernel' are missing"),
    ],
)
def test_qparams_that_were_changed_are_told(qparams, message):
    with pytest.raises(InputError, match=message):
        apply(Tiny(), qparams, X, 3)
    with pytest.raises(InputError, match=message):
        sample(tiny_quantized()[0], qparams, sampler=jaxdq.ddim(2), num_images=1, key=KEY)


class Deeper(Tiny):
    @nn.compact
    def __call__(self, x, t, label=None):
        return nn.Dense(2, name="more")(Tiny.__call__(self, x, t, label))


class Biased(nn.Module):
    use_bias: bool = True
    size: int = 8
    features: int = 8

    @nn.compact
    def __call__(self, x, t):
        h = nn.Conv(self.features, (3, 3), name="conv", use_bias=self.use_bias)(x)
        return nn.Dense(x.shape[-1], name="dense")(h) + t


@functools.cache
def biased():
    params = toy_params(Biased(), X, T)
    plan = toy_plan(Biased(), params, [Rule(".*", W8, A8)], X, T)
    return jax.jit(quantize)(params, toy_calibration(Biased(), params, plan, [0], X, T))


class Nothing(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Deeper(), "Deeper and qparams are of different networks .*'?more"),
        (Tiny(features=16), r"Tiny and qparams are of different networks"),
        (Nothing(), "Nothing and qparams .* calls none of the 2 integer layers, such as 'conv'"),
    ],
)
def test_another_module_is_told(module, message):
    with pytest.raises(InputError, match=message):
        apply(module, tiny_quantized()[1], X, 3)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(functools.partial(apply, module), tiny_quantized()[1], X, 3)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Biased(use_bias=False), "'conv' is given a bias and has none"),
        (Biased(features=4), r"'conv' takes a kernel of shape \(3, 3, 2, 4\) and is given \(3, 3, 2, 8\)"),
    ],
)
def test_an_integer_layer_of_other_settings_is_told(module, message):
    with pytest.raises(InputError, match=message):
        apply(module, biased(), X, 0)


def test_a_layer_that_is_not_called_is_warned_of():
    class Shorter(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            return nn.Conv(8, (3, 3), name="conv")(x)

    with pytest.warns(UserWarning, match="Shorter did not call 'dense', which ran on integers"):
        apply(Shorter(), biased(), X, 0)


def test_casts_and_boxes_are_the_same_network():
    """Digests are of what bfloat16 keeps, so that a cast of the checkpoint is still that checkpoint."""
    denoiser = tiny_quantized()[0]
    for dtype in ("bfloat16", "float16", "float32"):
        params = jax.tree.map(lambda leaf, dtype=dtype: jnp.asarray(leaf, dtype), denoiser.params)
        qparams = jax.jit(quantize, static_argnames="dtype")(params, calibrated(), dtype=dtype)
        assert apply(Tiny(), qparams, X, 3).shape == X.shape
        assert quantize(params, calibrated()).plan.leaves == calibrated().plan.leaves


def test_leaves_that_a_calibration_replaces_have_other_numbers_on_purpose():
    bias = jnp.full(8, 0.5)
    calib = dataclasses.replace(calibrated(), params={"conv_in/bias": bias})
    denoiser, qparams = tiny_quantized()[0], quantize(tiny_quantized()[0].params, calib)
    np.testing.assert_array_equal(qparams.params["conv_in"]["bias"], bias)
    assert sample(denoiser, qparams, sampler=jaxdq.ddim(2), num_images=1, key=KEY).shape == (1, *SHAPE)


ALL, HALF = np.ones(NUM_TIMESTEPS, np.float32), np.arange(NUM_TIMESTEPS) < NUM_TIMESTEPS // 2


@pytest.mark.parametrize(
    ("brought", "message"),
    [
        ({"params": {"conv/bias": np.full(8, np.nan)}}, "in place of 'conv/bias' holds NaN or infinity"),
        ({"params": {"conv/bias": [0.0] * 8}}, "in place of 'conv/bias' is a list"),
        ({"params": {"conv/bias": None}}, "in place of 'conv/bias' is a NoneType"),
        ({"params": {"conv/bias": np.ones(8, bool)}}, "in place of 'conv/bias' is an array of type bool"),
        ({"correction": 2.0}, "correction is a float; give a Correction"),
        ({"correction": Correction(output_gain=2.0)}, "output_gain is a float"),
        ({"correction": Correction(output_gain=ALL[:5])}, r"output_gain has shape \(5,\) and .* 20 timesteps"),
        ({"correction": Correction(input_shift=ALL[0])}, r"input_shift has shape \(\)"),
        ({"correction": Correction(output_shift=ALL * np.nan)}, "output_shift holds NaN or infinity"),
        ({"correction": Correction(output_std=ALL * np.inf)}, "output_std holds NaN or infinity"),
        ({"instead": calibrated()}, "instead is a Calibration; give an Instead"),
        ({"instead": Instead(None, HALF[:5])}, r"are of shape \(5,\) and type bool; give an array of 20 truth values"),
        ({"instead": Instead(None, np.arange(NUM_TIMESTEPS))}, "and type int64; give an array of 20 truth values"),
        ({"instead": Instead(None, True)}, "are of type bool; give"),
    ],
)
def test_what_a_calibration_brings_beside_its_grids_is_looked_at(brought, message):
    with pytest.raises(InputError, match=message) as caught:
        quantize(tiny_quantized()[0].params, dataclasses.replace(calibrated(), **brought))
    assert "\n" not in str(caught.value)


def test_rows_of_a_correction_that_do_not_fit_the_image_are_told():
    calib = dataclasses.replace(calibrated(), correction=Correction(output_shift=np.ones((NUM_TIMESTEPS, 3))))
    qparams = quantize(tiny_quantized()[0].params, calib)
    with pytest.raises(InputError, match=r"rows of shape \(3,\) for arrays of shape \(4, 8, 8, 2\)"):
        apply(Tiny(), qparams, X, 3)


def test_the_float_network_beside_a_quantized_one_is_taken_out_of_its_boxes(tmp_path):
    params = tiny_quantized()[0].params
    boxed = jax.tree.map(lambda leaf: nn.Partitioned(leaf, names=(None,) * leaf.ndim), params)
    both = quantize(boxed, dataclasses.replace(calibrated(), instead=Instead(None, HALF)))
    np.testing.assert_allclose(apply(Tiny(), both, X, 3), apply(Tiny(), params, X, 3), rtol=1e-6)
    jaxdq.save(tmp_path / "both", both)
    assert jax.tree.structure(jaxdq.restore(tmp_path / "both").choices[1]) == jax.tree.structure(params)


def test_a_schedule_of_another_length_is_told():
    denoiser, qparams = tiny_quantized()
    other = dataclasses.replace(denoiser, schedule=linear_schedule(50))
    with pytest.raises(InputError, match=f"calibrated for {NUM_TIMESTEPS} timesteps and the schedule of 'toy' has 50"):
        sample(other, qparams, sampler=jaxdq.ddim(2), num_images=1, key=KEY)
    with pytest.raises(InputError, match="has 50"):
        jaxdq.evaluate(other, qparams, sampler=jaxdq.ddim(2), num_images=2, key=KEY)


def test_restored_params_are_held_against_their_plan(tmp_path):
    qparams = tiny_quantized()[1]
    jaxdq.save(tmp_path / "whole", qparams)
    assert jaxdq.restore(tmp_path / "whole").plan == qparams.plan
    jaxdq.save(tmp_path / "other", with_leaf("conv_in/kernel", lambda w: w + 1))
    with pytest.raises(InputError, match="'conv_in/kernel' holds other numbers"):
        jaxdq.restore(tmp_path / "other")
    jaxdq.save(tmp_path / "part", dataclasses.replace(qparams, params={"conv": qparams.params["conv"]}))
    with pytest.raises(InputError, match=r"'.*part' are not those of its plan"):
        jaxdq.restore(tmp_path / "part")
