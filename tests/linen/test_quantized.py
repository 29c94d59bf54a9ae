import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import KNOWN_PARAMS, SHAPE, Known, ToyUNet, toy_calibration, toy_params, toy_plan

from jaxdq import InputError
from jaxdq.grid import QTensor, Scheme, dequantize, stored_bytes
from jaxdq.linen import Rule, quantize

X, T = np.random.default_rng(1).standard_normal((1, *SHAPE)).astype(np.float32), np.int32(0)
A8 = Scheme(8, symmetric=False)
PARAMS = toy_params(ToyUNet(), X, T)
# A scheme of weights for every site, so that one calibration meets every number of bits, symmetric and not.
SCHEMES = {
    "conv_in": Scheme(8, channel_axis=-1),
    "down": Scheme(7, symmetric=False, channel_axis=-1),
    "query": Scheme(6),
    "key": Scheme(5, channel_axis=-1),
    "value": Scheme(4, channel_axis=-1),
    "out": Scheme(3, symmetric=False, channel_axis=-1),
    "up": Scheme(2, channel_axis=-1),
    "conv_out": Scheme(2, symmetric=False),
}


@pytest.fixture(scope="module")
def calib():
    rules = [Rule(path, scheme, A8) for path, scheme in SCHEMES.items()]
    rules += [Rule("time", reason="float"), Rule("shift", Scheme(8, channel_axis=-1)), Rule("scores|mix")]
    return toy_calibration(ToyUNet(), PARAMS, toy_plan(ToyUNet(), PARAMS, rules, X, T), [0], X, T)


@pytest.fixture(scope="module")
def qparams(calib):
    return jax.jit(quantize)(PARAMS, calib)


def kernel(qparams, path):
    return qparams.params[path]["kernel"]


def test_planned_kernels_are_integers_and_nothing_else_is(qparams):
    for path, leaves in qparams.params.items():
        assert isinstance(leaves.get("kernel"), QTensor) == (path in SCHEMES or path == "shift")
    kept = {leaf.shape for leaf in jax.tree.leaves(qparams.params) if leaf.dtype == np.float32 and leaf.size > 100}
    assert not kept & {PARAMS[path]["kernel"].shape for path in SCHEMES}
    assert qparams.params["time"] is not PARAMS["time"]
    np.testing.assert_array_equal(qparams.params["time"]["kernel"], PARAMS["time"]["kernel"])
    np.testing.assert_array_equal(qparams.params["norm"]["scale"], PARAMS["norm"]["scale"])


# Written out, not computed as the code computes them.
BOUNDS = {
    "conv_in": ("int8", -127, 127),
    "down": ("int8", -64, 63),
    "query": ("int8", -31, 31),
    "key": ("int8", -15, 15),
    "value": ("int4", -7, 7),
    "out": ("int4", -4, 3),
    "up": ("int2", -1, 1),
    "conv_out": ("int2", -2, 1),
    "shift": ("int8", -127, 127),
}


@pytest.mark.parametrize("path", BOUNDS)
def test_golden_dtype_and_bounds(qparams, path):
    codes = kernel(qparams, path).qvalue
    dtype, low, high = BOUNDS[path]
    assert codes.dtype == dtype
    codes = np.asarray(codes).astype(np.int32)
    assert low <= codes.min() and codes.max() <= high
    # Ranges are those of the weights themselves, so that an end of every grid is in use.
    assert codes.max() == high or codes.min() == low


@pytest.mark.parametrize("path", BOUNDS)
def test_roundtrip_within_half_a_step(qparams, path):
    tensor = kernel(qparams, path)
    scale = np.asarray(tensor.qparams.scale)
    # Asymmetric zero points are rounded, so an end of the range may clip by half a step more.
    steps = 0.5 if tensor.scheme.symmetric else 1.0
    assert (np.abs(dequantize(tensor) - PARAMS[path]["kernel"]) <= steps * scale * (1 + 1e-5)).all()
    channels = 1 if tensor.scheme.channel_axis is None else PARAMS[path]["kernel"].shape[-1]
    assert scale.size == channels


def test_code_sums_are_ready_where_a_zero_point_needs_them(qparams):
    codes = np.asarray(kernel(qparams, "down").qvalue, np.int32)
    np.testing.assert_array_equal(kernel(qparams, "down").code_sum, codes.sum((0, 1, 2), keepdims=True))
    # Its inputs are float: nothing to correct.
    assert kernel(qparams, "shift").code_sum is None


@pytest.mark.parametrize("scheme", [Scheme(8, channel_axis=-1), Scheme(3, symmetric=False)], ids=str)
def test_jit_equals_eager_to_the_bit(scheme):
    plan = toy_plan(Known(), KNOWN_PARAMS, [Rule(".*", scheme, A8)], X[:, 0, 0], T)
    calib = toy_calibration(Known(), KNOWN_PARAMS, plan, [0], X[:, 0, 0], T)
    eager, jitted = quantize(KNOWN_PARAMS, calib), jax.jit(quantize)(KNOWN_PARAMS, calib)
    assert jax.tree.structure(eager) == jax.tree.structure(jitted)
    for one, two in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_params_and_calibration_are_left_as_they_were(calib):
    before = jax.tree.map(np.array, (PARAMS, calib))
    jax.jit(quantize)(PARAMS, calib)
    jax.tree.map(np.testing.assert_array_equal, before, (PARAMS, calib))
    assert not any(isinstance(leaves.get("kernel"), QTensor) for leaves in PARAMS.values())


def test_golden_bytes_are_the_true_size(qparams):
    # value: 16 x 16 codes of 4 bits, 16 scales, 16 sums; no zero points.
    assert stored_bytes(kernel(qparams, "value")) == 16 * 16 // 2 + 16 * 4 + 16 * 4
    # up: 3 x 3 x 24 x 8 codes of 2 bits.
    assert stored_bytes(kernel(qparams, "up").qvalue) == 9 * 24 * 8 // 4


def test_a_calibration_is_data(calib):
    doubled = jax.tree.map(lambda leaf: leaf * 2, calib)
    assert doubled.plan is calib.plan
    np.testing.assert_array_equal(doubled.acts.scale, 2 * calib.acts.scale)
    assert dataclasses.replace(calib, acts=doubled.acts).plan is calib.plan


def test_no_calibration_is_refused():
    with pytest.raises(InputError, match=r"calib is NoneType; pass what jaxdq\.calibrate returned"):
        quantize(PARAMS, None)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_biases_of_integer_sites_are_float32_in_any_checkpoint(calib, dtype):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    made = quantize(narrow, calib, dtype=dtype)
    sites = {site.path: site.is_integer for site in made.plan.sites if "bias" in made.params.get(site.path, {})}
    assert set(sites.values()) == {True, False}
    for path, is_integer in sites.items():
        assert made.params[path]["bias"].dtype == (jnp.float32 if is_integer else jnp.bfloat16)


# --- Decisions that a calibration carries ----------------------------------------------------------------------------


def test_codes_of_ones_own_pass_through(calib, qparams):
    rounded = kernel(qparams, "query")
    down = dataclasses.replace(rounded, qvalue=jnp.clip(rounded.qvalue - 1, *rounded.scheme.bounds))
    made = jax.jit(quantize)(PARAMS, dataclasses.replace(calib, weights={**calib.weights, "query": down}))
    np.testing.assert_array_equal(kernel(made, "query").qvalue, down.qvalue)
    # Their sums, which the zero point of the inputs multiplies, are those of these codes.
    np.testing.assert_array_equal(kernel(made, "query").code_sum, np.asarray(down.qvalue, int).sum(0, keepdims=True))
    assert jax.tree.structure(made) == jax.tree.structure(qparams)


def test_leaves_are_replaced_by_path_in_their_own_dtype(calib):
    leaves = {"query/bias": np.full(16, 0.5), "norm/scale": np.zeros(16), "time/kernel": PARAMS["time"]["kernel"] * 2}
    made = jax.jit(quantize)(PARAMS, dataclasses.replace(calib, params=leaves)).params
    np.testing.assert_array_equal(made["query"]["bias"], leaves["query/bias"])
    np.testing.assert_array_equal(made["norm"]["scale"], 0.0)
    np.testing.assert_array_equal(made["time"]["kernel"], 2 * PARAMS["time"]["kernel"])
    assert made["norm"]["scale"].dtype == jnp.float32


def test_a_replaced_kernel_is_what_is_rounded(calib, qparams):
    leaves = {"value/kernel": PARAMS["value"]["kernel"] * 0}
    made = jax.jit(quantize)(PARAMS, dataclasses.replace(calib, params=leaves))
    np.testing.assert_array_equal(np.asarray(kernel(made, "value").qvalue, int), 0)
    assert np.asarray(kernel(qparams, "value").qvalue, int).any()


MISFITS = {
    "a leaf that is not there": (
        {"params": {"query/bia": jnp.zeros(16)}},
        r"replaces \['query/bia'\] and params have no",
    ),
    "a leaf of another shape": (
        {"params": {"query/bias": jnp.zeros(3)}},
        r"'query/bias' of shape \(16,\) by .* \(3,\)",
    ),
    "no activations": ({"acts": None}, "has no grids for activations yet; end the recipe with"),
    "no weights": ({"weights": {}}, "puts the kernel of '.*' on a grid of .* bits and none was fitted"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_calibration_that_is_not_whole_is_refused(name, calib):
    changes, said = MISFITS[name]
    with pytest.raises(InputError, match=said):
        quantize(PARAMS, dataclasses.replace(calib, **changes))


def test_a_plan_that_changed_after_the_grids_were_fitted_is_refused(calib):
    def with_site(path, **changes):
        sites = [dataclasses.replace(site, **changes) if site.path == path else site for site in calib.plan.sites]
        return dataclasses.replace(calib, plan=dataclasses.replace(calib.plan, sites=tuple(sites)))

    with pytest.raises(InputError, match="kernel of 'query' on a grid of 4 bits and the one at hand was fitted for 6"):
        quantize(PARAMS, with_site("query", weight=Scheme(4)))
    with pytest.raises(InputError, match="input of 'up' on 4a bits and its grid was fitted for 8a bits"):
        quantize(PARAMS, with_site("up", act=Scheme(4, symmetric=False)))
    # A site that goes back to float takes nobody's grid along.
    made = quantize(PARAMS, with_site("down", act=None))
    columns = calib.acts.columns
    for index, column in enumerate(made.acts.columns):
        np.testing.assert_array_equal(made.acts.scale[:, index], calib.acts.scale[:, columns.index(column)])
    assert len(made.acts.columns) == len(columns) - 1


TABLES = {
    "one row for two groups": (
        {"group_of_t": jnp.array([0, 1])},
        "runs from 0 to 1 and there are 1 groups",
    ),
    "a group below 0": ({"group_of_t": jnp.array([-1])}, "group_of_t runs from -1"),
    "groups of two axes": ({"group_of_t": jnp.zeros((1, 1), jnp.int32)}, r"give \[G, A\], \[G, A\] and \[T\]"),
    "too few columns": ({"scale": jnp.ones((1, 1))}, r"scales of shape \(1, 1\)"),
    "a scale of NaN": ({"scale": jnp.full((1, len(SCHEMES)), jnp.nan)}, "is not finite and above 0"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_do_not_fit_one_another_are_refused(name, calib):
    changes, said = TABLES[name]
    with pytest.raises(InputError, match=said):
        quantize(PARAMS, dataclasses.replace(calib, acts=dataclasses.replace(calib.acts, **changes)))
