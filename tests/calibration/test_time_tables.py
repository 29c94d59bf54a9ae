"""Tables over time, on networks that make of the time what UNets make of it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, Tiny, ToyUNet, toy_denoiser

from jaxdq import InputError, InputWarning, Rule, Scheme, apply, ddim, quantize, restore, sample, save
from jaxdq.calibration import Recipe, fit_weights, observe, run_recipe, share_uniformly, tabulate_time
from jaxdq.diffusion import euler
from jaxdq.linen import layers_of_time
from jaxdq.observers import minmax, minmax_weights

KEY, X = jax.random.key(0), jax.random.normal(jax.random.key(1), (3, *SHAPE))
TIME, DDIM = "time|shift", ddim(4)


class Embedded(nn.Module):
    """A time path as JAX code writes it: an embedding without a batch, in nn.remat, and one that tokens read too."""

    @nn.compact
    def __call__(self, x, t):
        sines = jnp.cos(t * 2.0 ** -jnp.arange(4))
        time = (
            nn.Dense(8, name="vector")(sines)[None] if jnp.ndim(t) == 0 else nn.Dense(8, name="vector")(sines[:, None])
        )
        shared = nn.Dense(8, name="shared")
        h = nn.Dense(8, name="in")(x) + nn.remat(nn.Dense)(8, name="inside")(nn.silu(time))[:, None, None]
        h = h + shared(time)[:, None, None] + shared(nn.silu(time))[:, None, None]
        h = h + nn.Dense(8, name="mixed")(time + x.mean((1, 2, 3))[:, None])[:, None, None]
        return nn.Dense(x.shape[-1], name="out")(nn.silu(h))


def rules(sites):
    """Integers everywhere but on the time's way."""
    return [Rule(TIME, reason="the time"), Rule(".*", Scheme(8, channel_axis=-1), Scheme(8, symmetric=False))]


@functools.cache
def made(table="", sampler=DDIM, conditions=0):
    label = np.random.default_rng(5).standard_normal((3, 8 if conditions else 4)).astype(np.float32)
    module = ToyUNet() if conditions else Tiny()
    recipe = Recipe(
        "toy",
        rules,
        (
            fit_weights(minmax_weights()),
            observe(minmax()),
            share_uniformly(2),
            *([tabulate_time(table)] if table else []),
        ),
    )
    denoiser = toy_denoiser(module, (label,) if conditions else ())
    work = run_recipe(denoiser, recipe, sampler=sampler, key=KEY, num_images=4, batch_size=4)
    return work, quantize(denoiser.params, work.calib)


def draw(qparams, sampler=DDIM, work=None):
    denoiser = (work or made()[0]).denoiser
    return np.asarray(sample(denoiser, qparams, sampler=sampler, num_images=4, key=KEY, batch_size=4))


def test_images_are_those_of_a_time_path_in_float():
    np.testing.assert_allclose(draw(made("float32")[1]), draw(made()[1]), atol=2e-5)
    half = draw(made("float16")[1])
    assert 0 < np.abs(half - draw(made()[1])).max() < 5e-2


def test_the_path_is_gone_and_its_rows_are_there():
    work, qparams = made("float16")
    log = dict(work.log)["tabulate_time"]
    assert log == {"layers": 1, "times": 4, "parameters": 4 * 8 + 8, "table_bytes": 4 * 8 * 2, "macs": 4 * 8}
    assert set(qparams.params["time"]) == {"(time table)"} and not qparams.plan.by_path["time"].is_integer
    assert qparams.params["time"]["(time table)"].rows.dtype == jnp.float16


def test_a_vector_of_times_has_a_row_each():
    _, qparams = made("float32")
    t = made()[0].data.t[[2, 0, 3]]
    each = [apply(Tiny(), qparams, X[i : i + 1], t[i])[0] for i in range(3)]
    np.testing.assert_allclose(apply(Tiny(), qparams, X, t), jnp.stack(each), atol=1e-6)


def test_other_times_are_refused_and_nan_under_jit():
    _, qparams = made("float32")
    with pytest.raises(InputError, match=r"t is 3 and .* tables for 4 times from 0 to 15; use the sampler"):
        apply(Tiny(), qparams, X, np.int32(3))
    with pytest.raises(InputError, match="use the sampler and the number of steps"):
        draw(qparams, ddim(5))
    assert np.isnan(jax.jit(functools.partial(apply, Tiny()))(qparams, X, jnp.int32(3))).all()


def test_times_between_whole_ones_have_their_own_rows():
    sampler = euler(4, spacing="linspace")
    work, qparams = made("float32", sampler)
    assert (work.data.t % 1 != 0).any()
    np.testing.assert_allclose(draw(qparams, sampler, work), draw(made("", sampler)[1], sampler, work), atol=2e-5)


def test_comes_back_from_disk(tmp_path):
    _, qparams = made("bfloat16")
    save(tmp_path / "q", qparams)
    np.testing.assert_array_equal(draw(restore(tmp_path / "q")), draw(qparams))


def test_what_a_label_joins_is_left_alone():
    """The embedding is read by layers of time and label, which stay; its first layer alone has rows."""
    work, _ = made("float32", conditions=1)
    assert set(work.calib.tables) == {"time"}


def test_layers_are_found_by_what_they_depend_on():
    denoiser = toy_denoiser(ToyUNet())
    found = layers_of_time(denoiser.module, denoiser.params, X, jnp.int32(0))
    assert found == {"time": False, "shift": True}  # nothing but `shift` reads `time`
    embedded = toy_denoiser(Embedded())
    assert layers_of_time(embedded.module, embedded.params, X, jnp.int32(0)) == {"vector": True, "inside": True}


def test_a_vector_without_a_batch_has_rows_too():
    embedded = toy_denoiser(Embedded())
    recipe = Recipe(
        "toy",
        lambda sites: [Rule("vector|inside|shared|mixed", reason="the time"), *rules(sites)[1:]],
        (fit_weights(minmax_weights()), observe(minmax()), share_uniformly(1)),
    )
    work = run_recipe(embedded, recipe, sampler=ddim(4), key=KEY, num_images=4, batch_size=4)
    tabled = tabulate_time()(work, KEY)
    plain, rows = (quantize(embedded.params, one.calib) for one in (work, tabled))
    for t in work.data.t:
        np.testing.assert_allclose(apply(embedded.module, rows, X, t), apply(embedded.module, plain, X, t), atol=2e-5)


class Timeless(nn.Module):
    """A network that does not look at the time."""

    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(x.shape[-1], name="out")(nn.silu(nn.Dense(8, name="in")(x)))


def test_a_network_without_a_time_path_is_left_as_it_is():
    fitted = (fit_weights(minmax_weights()), observe(minmax()), share_uniformly(1))
    recipe = Recipe("toy", lambda sites: rules(sites)[1:], (*fitted, tabulate_time()))
    with pytest.warns(InputWarning, match="no layer of 'toy' depends on the time alone"):
        work = run_recipe(toy_denoiser(Timeless()), recipe, sampler=ddim(2), key=KEY, num_images=4, batch_size=4)
    assert not work.calib.tables


def test_an_unknown_dtype_is_refused():
    with pytest.raises(InputError, match="dtype is 'int8'; give one of 'float32'"):
        tabulate_time("int8")
